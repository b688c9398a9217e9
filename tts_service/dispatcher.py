"""The backends and the segments that wait for them.

`turns.py` decides; this module has the threads: for each backend some that speak (one for each
call at a time, and one for the call that is handed over early) and a keeper, which connects,
watches and probes; and one clerk for what time alone changes. They start at the first use, so
never before a fork.
"""

import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from tts_service.audio import Audio
from tts_service.backends.base import (
    Backend,
    BackendLost,
    BackendUnreachable,
    ModelChanged,
    Segment,
)
from tts_service.backends.binding import Binding
from tts_service.errors import (
    BackendMisfit,
    BackendTimeout,
    CannotSpeak,
    NoBackend,
    Overloaded,
    SpeechError,
)
from tts_service.metrics import Metrics
from tts_service.turns import Lane, Turn, Turns

logger = logging.getLogger(__name__)

#: The backend is not there as it was: it rests until a probe succeeds.
_GONE = (BackendUnreachable, BackendLost, BackendMisfit, ModelChanged)
#: Nothing was spoken yet, so the segment has lost none of its tries.
_NOT_BEGUN = (BackendUnreachable, BackendMisfit, ModelChanged)
_LONGEST_REST = 5.0  # seconds; a backend that is back is used again within this time
_LONGEST_SPARING = 120.0
_MOST_STRIKES = 3
_KEPT_OUT_REST = 30.0
_WATCH_SECONDS = 3.0  # between two looks at a backend that is speaking or idle
#: Pings in a row, each of some seconds, after which a backend that is speaking counts as frozen;
#: more where no other is there to take over, since it may only be very busy.
_MISSED_PINGS = 2
_MISSED_PINGS_ALONE = 5
_FRESH_SECONDS = 2.0  # how long a sign of life proves that a backend is ready
_LEAST_PAUSE = 0.25  # between two probes, however many requests ask for one
_CLERK_SECONDS = 0.5  # between two looks at the queue while somebody waits


class State(Enum):
    """What is known of a backend."""

    NEW = "new"  # not connected to yet
    READY = "ready"
    RESTING = "resting"  # it failed; it is probed in the background
    KEPT_OUT = "kept out"  # it cannot be used, or serves another model than the others


@dataclass(frozen=True, slots=True)
class Spoken:
    """A segment's sound, and what it took: seconds in the queue, and at the backend."""

    audio: Audio
    queued: float
    took: float


Land = Callable[[Spoken | SpeechError], None]


@dataclass(eq=False)
class Call:
    """A segment on its way, and who is told of its end."""

    segment: Segment
    queued_at: float
    deadline: float
    land: Land
    tries: int = 0
    stranded_at: float | None = None  # since when no backend was there to take it
    #: Whether anybody still waits for it; what nobody wants is not tried again.
    is_wanted: Callable[[], bool] = lambda: True


@dataclass(eq=False)
class Post:
    """A backend, its lane, and what was seen of it."""

    backend: Backend
    lane: Lane[Call]
    state: State = State.NEW
    binding: Binding | None = None
    probes: int = 0
    failed_probes: int = 0  # since it was last ready
    missed_pings: int = 0
    strikes: int = 0  # calls that failed since one succeeded
    spared_until: float = 0.0  # on the clock, as long as there are others
    calls: int = 0
    failures: int = 0
    last_error: str | None = None
    last_sign: float | None = None  # of life, on the clock
    sound_seconds: float = 0.0
    busy_seconds: float = 0.0
    inbox: "queue.SimpleQueue[Turn[Call] | None]" = field(default_factory=queue.SimpleQueue)
    wake: threading.Event = field(default_factory=threading.Event)  # for its keeper


class Line:
    """One request's place: its segments take turns with those of other lines."""


class Dispatcher:
    """Fair turns, failover and rest over replicas of one model."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        concurrency: int = 1,
        connect_attempts: int = 5,
        connect_delay: float = 2.0,
        call_attempts: int = 3,
        call_delay: float = 2.0,
        synth_timeout: float = 300.0,
        max_pending: int = 64,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._posts = [Post(backend, Lane(backend.name, concurrency)) for backend in backends]
        self._turns: Turns[Call] = Turns([post.lane for post in self._posts], clock)
        self._by_lane = {post.lane: post for post in self._posts}
        self._connect_attempts = connect_attempts
        self._connect_delay = connect_delay
        self._call_attempts = call_attempts
        self._call_delay = call_delay
        self._synth_timeout = synth_timeout
        self._max_pending = max_pending
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._changed = threading.Condition()  # guards everything above and below
        self._pending = 0  # requests that wait for synthesis
        self._binding: Binding | None = None  # of the model that the pool serves
        self._landings: deque[tuple[Call, SpeechError]] = deque()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    # -- what the synthesizer asks -------------------------------------------------------------

    def binding(self) -> Binding:
        """What the pool serves; known from then on, whether or not a backend answers.

        Waits for the first connection; after it has failed, for one more try. Raises NoBackend,
        BackendMisfit.
        """
        self.start()
        with self._changed:
            if self._binding is None:
                self._wake_keepers()
                seen = {post: post.probes for post in self._posts}
                self._changed.wait_for(lambda: self._is_met_or_unmet(seen), self._synth_timeout)
            if self._binding is None:
                raise self._why_not()
            return self._binding

    @property
    def known_binding(self) -> Binding | None:
        """The same, if it is known already."""
        return self._binding

    @contextmanager
    def line(self) -> Iterator[Line]:
        """A place for one request. Raises Overloaded beyond `max_pending` requests."""
        with self._changed:
            if self._pending >= self._max_pending:
                raise Overloaded(
                    f"{self._pending} requests are waiting already.",
                    retry_after=self._expected_wait(),
                )
            self._pending += 1
            self._note_load()
        try:
            yield Line()
        finally:
            with self._changed:
                self._pending -= 1
                self._note_load()

    def put(
        self,
        line: Line,
        segment: Segment,
        land: Land,
        *,
        is_first: bool,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Turn[Call]:
        """Queue a segment of `line`; the first one of a request goes before the others' rest.

        `land` is called once, from another thread, with what became of it. `is_wanted` is asked
        before another try after a failure.
        """
        self.start()
        now = self._clock()
        call = Call(segment, now, now + self._synth_timeout, land, is_wanted=is_wanted)
        turn = Turn(line, segment.voice.fingerprint, len(segment.text), call, is_first)
        with self._changed:
            self._turns.put(turn)
            if not self._open_posts():
                self._wake_keepers()
            self._assign()
        return turn

    def withdraw(self, turn: Turn[Call]) -> bool:
        """Nobody waits for it any more. False if it is being spoken: then it is finished."""
        with self._changed:
            return self._turns.withdraw(turn)

    def promote(self, turn: Turn[Call]) -> None:
        """Another request waits for this segment as its first."""
        with self._changed:
            self._turns.promote(turn)
            self._assign()

    @property
    def slots(self) -> int:
        """Calls at a time, over all backends."""
        return sum(post.lane.slots for post in self._posts)

    # -- what health asks ----------------------------------------------------------------------

    def is_connected(self) -> bool:
        """Whether any backend is in use."""
        with self._changed:
            return bool(self._open_posts())

    def check_ready(self, limit: float = 3.0) -> None:
        """Return if a backend answers: one that gave a sign of life just now, or gives one
        within `limit` seconds. Raises NoBackend, BackendMisfit with the reason."""
        self.start()
        asked_at = self._clock()
        with self._changed:
            if not self._has_sign_since(asked_at - _FRESH_SECONDS):
                self._wake_keepers(State.READY, State.RESTING, State.KEPT_OUT)
                self._changed.wait_for(lambda: self._has_sign_since(asked_at), limit)
            if not self._has_sign_since(asked_at - _FRESH_SECONDS):
                raise self._why_not()

    def report(self) -> list[dict[str, Any]]:
        """Every backend, for people."""
        with self._changed:
            return [self._describe(post) for post in self._posts]

    def queue_length(self) -> int:
        """Segments that wait for their turn."""
        with self._changed:
            return len(self._turns)

    def pending(self) -> int:
        """Requests that wait for synthesis."""
        with self._changed:
            return self._pending

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads, if they are not running yet."""
        with self._changed:
            if self._threads or self._stop.is_set():
                return
            for post in self._posts:
                self._threads.append(self._thread(self._keep, post))
                for _ in range(post.lane.slots + 1):
                    self._threads.append(self._thread(self._speak_on, post))
            self._threads.append(self._thread(self._watch_time))
            for thread in self._threads:
                thread.start()

    def close(self) -> None:
        """End the threads and let the backends go; whoever waits is told NoBackend."""
        with self._change():
            self._stop.set()
            for turn in self._turns.waiting():
                self._fail(turn, NoBackend("The service is stopping."))
            for post in self._posts:
                for _ in range(post.lane.slots + 1):
                    post.inbox.put(None)
                post.wake.set()
        for post in self._posts:
            post.backend.close()
        for thread in self._threads:
            thread.join(timeout=5)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """The lock, for changes that may end calls: those are told once it is free again."""
        try:
            with self._changed:
                yield
                self._changed.notify_all()
        finally:
            while self._landings:
                call, outcome = self._landings.popleft()
                call.land(outcome)

    def _thread(self, target: Callable[..., None], *args: object) -> threading.Thread:
        return threading.Thread(target=target, args=args, name=target.__name__, daemon=True)

    # -- speaking ------------------------------------------------------------------------------

    def _speak_on(self, post: Post) -> None:
        while (turn := post.inbox.get()) is not None:
            began = self._clock()
            try:
                timeout = self._seconds_for_a_try(post, turn)
                arrived = partial(self._note_arrival, post, turn)
                audio = post.backend.synthesize(turn.payload.segment, timeout, arrived)
            except SpeechError as error:
                self._note_failure(post, turn, error)
            except Exception:
                logger.exception("a call on %s failed by a fault of ours", post.lane.name)
                self._note_failure(post, turn, SpeechError("Internal error."))
            else:
                self._note_success(post, turn, audio, self._clock() - began)

    def _seconds_for_a_try(self, post: Post, turn: Turn[Call]) -> float:
        """All that are left; where another backend could try as well, half: this one may hang."""
        with self._changed:
            left = turn.payload.deadline - self._clock()
            return left / 2 if self._others_are_open(post) else left

    def _note_arrival(self, post: Post, turn: Turn[Call]) -> None:
        with self._changed:
            self._turns.note_arrival(turn, post.lane)
            if self._turns:
                self._assign()

    def _note_success(self, post: Post, turn: Turn[Call], audio: Audio, took: float) -> None:
        with self._changed:
            self._turns.finish(turn, post.lane, spoken=True)
            post.calls += 1
            post.strikes = 0
            post.sound_seconds += audio.seconds
            post.busy_seconds += took
            self._note_sign(post)
            self._assign()
        call = turn.payload
        queued = self._clock() - took - call.queued_at
        self._metrics.note_call(post.lane.name, failed=False)
        self._metrics.note_queue_wait(queued)
        call.land(Spoken(audio, queued, took))

    def _note_failure(self, post: Post, turn: Turn[Call], error: SpeechError) -> None:
        with self._change():
            self._turns.finish(turn, post.lane, spoken=False)
            if isinstance(error, CannotSpeak):
                logger.warning("backend %s: %s", post.lane.name, error.message)
                post.calls += 1
                post.failures += 1
                post.strikes += 1
                self._metrics.note_call(post.lane.name, failed=True)
                post.last_error = error.message
            hangs_or_fails = isinstance(error, BackendTimeout) or self._is_a_bad_apple(post)
            if isinstance(error, _GONE) and not self._is_outdated(turn.payload):
                self._rest(post)
            elif hangs_or_fails:
                self._rest(post, is_spared=True)
            self._try_again_or_land(post, turn, error)
            self._assign()

    def _try_again_or_land(self, post: Post, turn: Turn[Call], error: SpeechError) -> None:
        call = turn.payload
        if not isinstance(error, _NOT_BEGUN):
            call.tries += 1
        is_final = (
            not isinstance(error, CannotSpeak)
            or self._clock() >= call.deadline
            or call.tries >= self._call_attempts
            or not call.is_wanted()
            or self._is_outdated(call)
            or self._stop.is_set()
        )
        if is_final:
            self._landings.append((call, error))
        else:
            self._turns.put_back(turn, post.lane, self._call_delay)

    def _is_outdated(self, call: Call) -> bool:
        """Whether the call is meant for a model that the pool does not serve any more."""
        return self._binding is not None and call.segment.identity != self._binding.identity

    def _fail(self, turn: Turn[Call], error: SpeechError) -> None:
        if self._turns.withdraw(turn):
            self._landings.append((turn.payload, error))

    def _assign(self) -> None:
        begun = self._turns.assign()
        self._note_load()
        for turn, lane in begun:
            turn.payload.stranded_at = None
            self._by_lane[lane].inbox.put(turn)
        self._changed.notify_all()

    # -- time ----------------------------------------------------------------------------------

    def _watch_time(self) -> None:
        """Hand over early, try again after a delay, and end what has waited too long."""
        while not self._stop.is_set():
            with self._change():
                self._changed.wait(self._until_next_change())
                self._end_overdue()
                self._assign()

    def _until_next_change(self) -> float | None:
        """Seconds; None while nobody waits. A change made between two waits is not missed for
        long: while somebody waits, the queue is looked at every now and then."""
        if not self._turns:
            return None
        change = self._turns.next_change()
        if change is None:
            return _CLERK_SECONDS
        return min(_CLERK_SECONDS, max(0.001, change - self._clock()))

    def _end_overdue(self) -> None:
        now = self._clock()
        is_stranded = not self._open_posts() and not self._is_connecting()
        if is_stranded and self._turns:  # a backend may be back since it was last looked for
            self._wake_keepers()
        for turn in self._turns.waiting():
            call = turn.payload
            if now >= call.deadline:
                self._fail(turn, BackendTimeout("The backends did not speak in time."))
            elif not is_stranded:
                call.stranded_at = None
            elif call.stranded_at is None:
                call.stranded_at = now
            elif now >= self._gives_up_at(call):
                self._fail(turn, self._why_not())

    def _gives_up_at(self, call: Call) -> float:
        """How long a call waits where no backend is left: as long as its tries would take."""
        return (call.stranded_at or 0.0) + self._call_delay * (self._call_attempts - 1)

    # -- keeping -------------------------------------------------------------------------------

    def _keep(self, post: Post) -> None:
        """Connect, then watch; probe when it rests."""
        while not self._stop.is_set():
            if post.state is State.READY:
                self._watch(post)
            elif not self._is_spared(post):
                self._probe(post)
            pause = self._pause(post)
            self._stop.wait(_LEAST_PAUSE)
            post.wake.wait(max(0.0, pause - _LEAST_PAUSE))
            post.wake.clear()

    def _probe(self, post: Post) -> None:
        try:
            binding = post.backend.describe()
        except BackendMisfit as error:
            with self._changed:
                post.probes += 1
                self._keep_out(post, error.message)
        except SpeechError as error:
            self._note_failed_probe(post, error)
            if self._must_give_up_calls(post):
                post.backend.abandon()
        else:
            self._admit(post, binding)

    def _admit(self, post: Post, binding: Binding) -> None:
        with self._change():
            post.probes += 1
            post.binding = binding
            if self._is_stranger(post):
                self._keep_out(post, "it serves another model than the other backends")
                return
            self._binding = binding
            post.failed_probes = post.missed_pings = 0
            self._set_state(post, State.READY)
            self._note_sign(post)
            for turn in self._turns.waiting():
                if self._is_outdated(turn.payload):
                    self._fail(turn, ModelChanged("The backends serve another model now."))
            self._assign()

    def _is_stranger(self, post: Post) -> bool:
        """Whether others of the pool serve, or served last, the pool's model, and it does not."""
        model = self._binding and self._binding.identity
        others = {
            other.binding.identity for other in self._posts if other.binding and other is not post
        }
        return model in others and post.binding is not None and post.binding.identity != model

    def _keep_out(self, post: Post, reason: str) -> None:
        if post.state is not State.KEPT_OUT or post.last_error != reason:
            logger.error("backend %s is kept out: %s", post.lane.name, reason)
        post.last_error = reason
        self._set_state(post, State.KEPT_OUT)

    def _note_failed_probe(self, post: Post, error: SpeechError) -> None:
        with self._changed:
            post.probes += 1
            post.failed_probes += 1
            post.last_error = error.message
            if post.failed_probes == self._connect_attempts:
                logger.warning(
                    "backend %s: not connected after %d attempts (%s); the service stays up and "
                    "goes on trying",
                    post.lane.name,
                    post.failed_probes,
                    error.message,
                )
            if post.state is not State.NEW or post.failed_probes >= self._connect_attempts:
                self._set_state(post, State.RESTING)
            self._changed.notify_all()

    def _pause(self, post: Post) -> float:
        """Seconds until the next look at a backend."""
        if post.state is State.READY:
            return _LEAST_PAUSE if post.missed_pings else _WATCH_SECONDS
        if post.state is State.NEW:
            return self._connect_delay
        if post.state is State.KEPT_OUT:
            return _KEPT_OUT_REST
        growing = min(_LONGEST_REST, 0.5 * 2.0 ** min(post.failed_probes, 10))
        return growing * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    def _is_spared(self, post: Post) -> bool:
        with self._changed:
            return self._clock() < post.spared_until and self._others_are_open(post)

    def _watch(self, post: Post) -> None:
        """See that a backend in use still answers; give up its calls when it does not."""
        try:
            post.backend.ping()
        except SpeechError as error:
            with self._changed:
                post.last_error = error.message
            if self._must_give_up_calls(post):
                with self._changed:
                    self._rest(post)
                post.backend.abandon()
        else:
            with self._changed:
                post.missed_pings = 0
                self._note_sign(post)
                self._changed.notify_all()

    def _must_give_up_calls(self, post: Post) -> bool:
        """It did not answer once more: whether it counts as frozen now, or does nothing anyway."""
        with self._changed:
            post.missed_pings += 1
            most = _MISSED_PINGS if self._others_are_open(post) else _MISSED_PINGS_ALONE
            return post.missed_pings >= most or not post.lane.under_way

    def _is_a_bad_apple(self, post: Post) -> bool:
        """Whether it fails again and again, where others might not."""
        return post.strikes >= _MOST_STRIKES and self._others_are_open(post)

    def _rest(self, post: Post, *, is_spared: bool = False) -> None:
        """Use it no more until a probe succeeds; `is_spared`: and not for a while after that,
        since its server answers, but its engine does not do its work."""
        if post.state is State.READY:
            logger.warning("backend %s rests: %s", post.lane.name, post.last_error)
            post.failed_probes = 0
            if is_spared:
                sparing = 5.0 * 2.0 ** min(post.strikes, 10)
                post.spared_until = self._clock() + min(_LONGEST_SPARING, sparing)
            self._set_state(post, State.RESTING)
            post.wake.set()

    def _set_state(self, post: Post, state: State) -> None:
        if post.state is not state and state is State.READY:
            logger.info("backend %s is ready", post.lane.name)
        post.state = state
        post.lane.is_open = state is State.READY
        self._metrics.note_backend(post.lane.name, is_ready=post.lane.is_open)
        self._changed.notify_all()

    def _note_load(self) -> None:
        self._metrics.note_load(len(self._turns), self._pending)

    def _note_sign(self, post: Post) -> None:
        post.last_sign = self._clock()

    # -- questions, asked with the lock held -----------------------------------------------------

    def _open_posts(self) -> list[Post]:
        return [post for post in self._posts if post.lane.is_open]

    def _others_are_open(self, post: Post) -> bool:
        return any(other is not post for other in self._open_posts())

    def _is_connecting(self) -> bool:
        return any(post.state is State.NEW for post in self._posts)

    def _is_met_or_unmet(self, seen: dict[Post, int]) -> bool:
        """Whether a backend is known now, or each was tried (again) in vain."""
        in_vain = all(
            post.state is not State.NEW and post.probes > seen[post] for post in self._posts
        )
        return self._binding is not None or in_vain or self._stop.is_set()

    def _has_sign_since(self, when: float) -> bool:
        return any(
            post.last_sign is not None and post.last_sign >= when for post in self._open_posts()
        )

    def _wake_keepers(self, *states: State) -> None:
        """Have backends looked at now. One that is NEW is tried at its own pace (S4)."""
        for post in self._posts:
            if post.state in (states or (State.RESTING, State.KEPT_OUT)):
                post.wake.set()

    def _expected_wait(self) -> float:
        """Seconds until half of what waits will be done, by the calls so far."""
        calls = sum(post.calls for post in self._posts)
        each = sum(post.busy_seconds for post in self._posts) / calls if calls else 1.0
        waiting = len(self._turns) + sum(len(post.lane.under_way) for post in self._posts)
        return each * waiting / max(1, self.slots) / 2

    def _why_not(self) -> SpeechError:
        """Why no backend can be used."""
        if not self._posts:
            return NoBackend("No backend is configured: set GRADIO_URL.", retry_after=30)
        reasons = "; ".join(f"{p.lane.name}: {p.last_error}" for p in self._posts if p.last_error)
        if all(post.state is State.KEPT_OUT for post in self._posts):
            return BackendMisfit(f"No backend can be used. {reasons}")
        return NoBackend(f"No backend answers. {reasons}", retry_after=5)

    def _describe(self, post: Post) -> dict[str, Any]:
        return {
            "url": post.lane.name,
            "state": post.state.value,
            "identity": post.binding.identity if post.binding else None,
            "calls": post.calls,
            "failures": post.failures,
            "last_error": post.last_error,
            "slots": post.lane.slots,
            "under_way": len(post.lane.under_way),
            "sound_seconds": round(post.sound_seconds, 3),
            "real_time_factor": (
                round(post.busy_seconds / post.sound_seconds, 4) if post.sound_seconds else None
            ),
        }
