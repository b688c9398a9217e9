"""Turns, failover and rest, on backends whose faults are made to measure."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from servers import wait_until

from tts_service.audio import Audio, silence
from tts_service.backends.base import BackendLost, BackendUnreachable, ModelChanged, Segment
from tts_service.backends.binding import Binding, Parameter
from tts_service.dispatcher import Dispatcher, Line, Spoken
from tts_service.errors import (
    BackendError,
    BackendMisfit,
    BackendTimeout,
    NoBackend,
    Overloaded,
    PromptMissing,
    SpeechError,
)
from tts_service.voices import Voice

VOICE = Voice("somebody", Path("somebody.wav"), "f" * 64)
SOUND = silence(24_000, 0.5)


def binding(identity: str) -> Binding:
    text, prompt = (
        Parameter(name, name, component, {}, has_default=False, default=None)
        for name, component in (("text", "Textbox"), ("prompt", "Audio"))
    )
    return Binding("/gen_single", text, prompt, {}, {}, identity)


class Replica:
    """A backend that does what the test says, at the moment the test says it."""

    def __init__(self, name: str = "one", identity: str = "model") -> None:
        self.name = name
        self.identity = identity
        self.spoken: list[str] = []
        self.described = 0
        self.is_up = True
        self.errors: list[Exception] = []  # raised by the next calls
        self.gate = threading.Event()
        self.gate.set()
        self.road = threading.Event()  # closed, no call arrives
        self.road.set()
        self.abandoned = threading.Event()
        self.is_mute = False  # does not answer pings

    def describe(self) -> Binding:
        self.described += 1
        if not self.is_up:
            raise BackendUnreachable(f"{self.name} is down")
        return binding(self.identity)

    def synthesize(
        self, segment: Segment, timeout: float, arrived: Callable[[], None] = lambda: None
    ) -> Audio:
        if not self.is_up:
            raise BackendUnreachable(f"{self.name} is down")
        if segment.identity != self.identity:
            raise ModelChanged(f"{self.name} serves another model")
        self.spoken.append(segment.text)
        self.road.wait(timeout)
        arrived()
        deadline = time.monotonic() + timeout
        while not self.gate.wait(0.01):
            if self.abandoned.is_set():
                raise BackendLost(f"{self.name} was given up")
            if time.monotonic() > deadline:
                raise BackendTimeout(f"{self.name} hangs")
        if self.errors:
            raise self.errors.pop(0)
        return SOUND

    def ping(self) -> None:
        if not self.is_up or self.is_mute:
            raise BackendUnreachable(f"{self.name} does not answer")

    def abandon(self) -> None:
        self.abandoned.set()

    def close(self) -> None:
        self.road.set()
        self.gate.set()


Build = Callable[..., Dispatcher]


@pytest.fixture
def build() -> Iterator[Build]:
    """`build(replica, …, option=…)`: a dispatcher with short delays, closed after the test."""
    built: list[Dispatcher] = []

    def make(*replicas: Replica, **options: Any) -> Dispatcher:
        quick = {"connect_delay": 0.02, "call_delay": 0.05, "synth_timeout": 5.0}
        built.append(Dispatcher(replicas, **{**quick, **options}))
        return built[-1]

    yield make
    for dispatcher in built:
        dispatcher.close()


class Landing:
    """Where one call ends."""

    def __init__(self) -> None:
        self.outcomes: list[Spoken | SpeechError] = []
        self._there = threading.Event()

    def __call__(self, outcome: Spoken | SpeechError) -> None:
        self.outcomes.append(outcome)
        self._there.set()

    @property
    def outcome(self) -> Spoken | SpeechError:
        """Waited for; there is exactly one."""
        assert self._there.wait(10)
        (outcome,) = self.outcomes
        return outcome


def speak(
    dispatcher: Dispatcher,
    text: str = "Hello.",
    identity: str = "model",
    line: Line | None = None,
    *,
    is_first: bool = True,
) -> Landing:
    landing = Landing()
    segment = Segment(text, VOICE, identity)
    dispatcher.put(line or Line(), segment, landing, is_first=is_first)
    return landing


def test_nothing_connects_and_no_thread_starts_before_the_first_use(build: Build) -> None:
    before = threading.active_count()
    replica = Replica()
    build(replica)
    assert threading.active_count() == before
    assert replica.described == 0


def test_a_segment_is_spoken_and_timed(build: Build) -> None:
    outcome = speak(build(Replica())).outcome
    assert isinstance(outcome, Spoken)
    assert outcome.audio is SOUND
    assert outcome.took >= 0
    assert outcome.queued >= 0


def test_a_call_sets_out_early_but_not_before_the_one_ahead_has_arrived(build: Build) -> None:
    replica = Replica()
    dispatcher = build(replica)
    assert isinstance(speak(dispatcher, "to learn from").outcome, Spoken)  # and no time to speak of
    replica.road.clear()
    replica.gate.clear()
    landings = [speak(dispatcher, text) for text in ("first", "second")]
    wait_until(lambda: "first" in replica.spoken)
    time.sleep(0.1)
    assert (replica.spoken[1:], dispatcher.queue_length()) == (["first"], 1)
    replica.road.set()
    wait_until(lambda: replica.spoken[1:] == ["first", "second"])
    replica.gate.set()
    assert all(isinstance(landing.outcome, Spoken) for landing in landings)


def test_a_failure_goes_to_another_backend_at_once(build: Build) -> None:
    bad, good = Replica("bad"), Replica("good")
    dispatcher = build(bad, good, call_delay=30.0)
    dispatcher.binding()
    wait_until(lambda: all(post["state"] == "ready" for post in dispatcher.report()))
    bad.errors = [BackendError("broken")] * 10
    began = time.monotonic()
    for i in range(6):
        assert isinstance(speak(dispatcher, f"{i}").outcome, Spoken)
    assert time.monotonic() - began < 5
    assert len(good.spoken) == 6


def test_alone_it_is_tried_three_times_with_a_delay_between(build: Build) -> None:
    replica = Replica()
    replica.errors = [BackendError("first"), BackendError("second"), BackendError("third")]
    began = time.monotonic()
    outcome = speak(build(replica, call_delay=0.1)).outcome
    assert isinstance(outcome, BackendError)
    assert outcome.message == "third"
    assert len(replica.spoken) == 3
    assert time.monotonic() - began >= 0.2


def test_a_fault_that_is_not_the_backends_is_told_at_once(build: Build) -> None:
    replica = Replica()
    replica.errors = [PromptMissing("no recording")]
    assert isinstance(speak(build(replica)).outcome, PromptMissing)
    assert len(replica.spoken) == 1


def test_a_fault_of_ours_is_a_plain_500_and_the_backend_is_used_again(build: Build) -> None:
    replica = Replica()
    dispatcher = build(replica)
    replica.errors = [ZeroDivisionError("a bug")]
    outcome = speak(dispatcher).outcome
    assert isinstance(outcome, SpeechError)
    assert (outcome.status, "bug" in outcome.message) == (500, False)
    assert isinstance(speak(dispatcher).outcome, Spoken)


def test_backends_that_are_not_reached_cost_no_tries(build: Build) -> None:
    away = [Replica(f"away {i}") for i in range(4)]
    good = Replica("good")
    dispatcher = build(*away, good, call_attempts=1)
    dispatcher.binding()
    wait_until(lambda: all(post["state"] == "ready" for post in dispatcher.report()))
    for replica in away:
        replica.is_up = False
    assert all(isinstance(speak(dispatcher, f"{i}").outcome, Spoken) for i in range(10))


def test_one_that_comes_back_is_used_again_within_seconds(build: Build) -> None:
    replica = Replica()
    dispatcher = build(replica)
    assert isinstance(speak(dispatcher).outcome, Spoken)
    replica.is_up = False
    assert isinstance(speak(dispatcher).outcome, NoBackend)
    replica.is_up = True
    wait_until(dispatcher.is_connected, 6)
    assert isinstance(speak(dispatcher).outcome, Spoken)


def test_no_backend_at_all_is_told_after_the_tries_a_call_would_have_had(build: Build) -> None:
    replica = Replica()
    dispatcher = build(replica, call_delay=0.3)
    dispatcher.binding()
    replica.is_up = False
    began = time.monotonic()
    assert isinstance(speak(dispatcher).outcome, NoBackend)
    assert 0.5 < time.monotonic() - began < 3


def test_a_new_request_does_not_wait_for_the_first_connection_forever(build: Build) -> None:
    replica = Replica()
    replica.is_up = False
    dispatcher = build(replica)
    with pytest.raises(NoBackend, match="one is down"):
        dispatcher.binding()
    assert replica.described == 5
    with pytest.raises(NoBackend):
        dispatcher.binding()
    assert replica.described > 5  # asked again by the request
    replica.is_up = True
    assert dispatcher.binding().identity == "model"


def test_what_the_pool_serves_is_known_while_every_backend_is_down(build: Build) -> None:
    replica = Replica()
    dispatcher = build(replica)
    known = dispatcher.binding()
    replica.is_up = False
    assert isinstance(speak(dispatcher).outcome, NoBackend)
    assert dispatcher.binding() == known


def test_a_backend_with_another_model_is_kept_out(build: Build) -> None:
    ours, other = Replica("ours"), Replica("other", identity="another model")
    dispatcher = build(ours, other)
    dispatcher.binding()
    wait_until(lambda: "kept out" in [post["state"] for post in dispatcher.report()])
    kept_out = [post["url"] for post in dispatcher.report() if post["state"] == "kept out"]
    (first,) = {"ours", "other"} - set(kept_out)
    identity = "model" if first == "ours" else "another model"
    for i in range(4):
        assert isinstance(speak(dispatcher, f"{i}", identity).outcome, Spoken)
    assert not (other if first == "ours" else ours).spoken


def test_a_lone_backend_may_change_its_model_and_old_calls_are_told(build: Build) -> None:
    replica = Replica()
    dispatcher = build(replica)
    assert dispatcher.binding().identity == "model"
    replica.identity = "new model"
    assert isinstance(speak(dispatcher).outcome, ModelChanged)
    assert dispatcher.binding().identity == "new model"
    assert isinstance(speak(dispatcher, identity="new model").outcome, Spoken)
    assert replica.spoken == ["Hello."]


def test_one_that_no_client_can_use_is_a_misfit(build: Build) -> None:
    class Useless(Replica):
        def describe(self) -> Binding:
            raise BackendMisfit("it has no audio parameter")

    with pytest.raises(BackendMisfit, match="no audio parameter"):
        build(Useless()).binding()


def test_a_hanging_backend_ends_at_the_deadline(build: Build) -> None:
    replica = Replica()
    dispatcher = build(replica, synth_timeout=0.3)
    replica.gate.clear()
    began = time.monotonic()
    assert isinstance(speak(dispatcher).outcome, BackendTimeout)
    assert time.monotonic() - began < 2


def test_one_deadline_covers_the_queue_as_well(build: Build) -> None:
    replica = Replica()
    dispatcher = build(replica, synth_timeout=0.5)
    replica.gate.clear()
    landings = [speak(dispatcher, f"{i}") for i in range(5)]
    began = time.monotonic()
    assert all(isinstance(landing.outcome, BackendTimeout) for landing in landings)
    assert time.monotonic() - began < 3


@pytest.mark.timeout(40)
def test_a_backend_that_stops_answering_while_it_speaks_is_given_up(build: Build) -> None:
    frozen, good = Replica("frozen"), Replica("good")
    dispatcher = build(frozen, good, synth_timeout=60.0)
    dispatcher.binding()
    wait_until(lambda: all(post["state"] == "ready" for post in dispatcher.report()))
    frozen.gate.clear()
    landings = [speak(dispatcher, f"{i}") for i in range(4)]
    wait_until(lambda: frozen.spoken)
    frozen.is_mute = True
    assert all(isinstance(landing.outcome, Spoken) for landing in landings)
    assert frozen.abandoned.is_set()


def test_beyond_the_brim_a_request_is_told_when_to_come_back(build: Build) -> None:
    dispatcher = build(Replica(), max_pending=2)
    with dispatcher.line(), dispatcher.line():
        with pytest.raises(Overloaded) as refused, dispatcher.line():
            pass
        assert 1 <= int(refused.value.headers["Retry-After"]) <= 30
    with dispatcher.line():
        assert dispatcher.pending() == 1
    assert dispatcher.pending() == 0


def test_what_is_withdrawn_is_never_spoken(build: Build) -> None:
    replica = Replica()
    dispatcher = build(replica)
    replica.gate.clear()
    first = speak(dispatcher, "spoken")
    wait_until(lambda: replica.spoken)
    landing = Landing()
    turn = dispatcher.put(Line(), Segment("not spoken", VOICE, "model"), landing, is_first=True)
    assert dispatcher.withdraw(turn)
    assert not dispatcher.withdraw(turn)
    replica.gate.set()
    assert isinstance(first.outcome, Spoken)
    assert replica.spoken == ["spoken"]
    assert landing.outcomes == []


def test_what_nobody_wants_any_more_is_not_tried_again(build: Build) -> None:
    replica = Replica()
    replica.errors = [BackendError("broken")]
    landing = Landing()
    segment = Segment("left alone", VOICE, "model")
    build(replica).put(Line(), segment, landing, is_first=True, is_wanted=lambda: False)
    assert isinstance(landing.outcome, BackendError)
    assert replica.spoken == ["left alone"]


def test_closing_ends_every_thread_and_tells_who_waits(build: Build) -> None:
    before = set(threading.enumerate())
    replica = Replica()
    dispatcher = build(replica)
    dispatcher.binding()
    replica.gate.clear()
    speak(dispatcher, "under way")
    wait_until(lambda: replica.spoken)
    waiting = speak(dispatcher, "waiting")
    dispatcher.close()
    assert isinstance(waiting.outcome, NoBackend)
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_many_threads_and_faults_lose_and_repeat_nothing(build: Build) -> None:
    replicas = [Replica(f"replica {i}") for i in range(3)]
    dispatcher = build(*replicas, call_delay=0.01, call_attempts=50)
    dispatcher.binding()

    def ask(i: int) -> Spoken | SpeechError:
        if i % 7 == 0:
            replicas[i % 3].errors.append(BackendError("now and then"))
        return speak(dispatcher, f"text {i}").outcome

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(ask, range(300)))
    assert all(isinstance(outcome, Spoken) for outcome in outcomes)
    assert {text for replica in replicas for text in replica.spoken} == {
        f"text {i}" for i in range(300)
    }
    assert dispatcher.queue_length() == 0
    assert sum(post["under_way"] for post in dispatcher.report()) == 0


def test_ready_is_proved_by_a_fresh_sign_of_life(build: Build) -> None:
    replica = Replica()
    dispatcher = build(replica)
    dispatcher.check_ready()
    replica.is_up = False
    wait_until(lambda: _is_refused(dispatcher))
    replica.is_up = True
    dispatcher.check_ready()


def _is_refused(dispatcher: Dispatcher) -> bool:
    try:
        dispatcher.check_ready(limit=1.0)
    except NoBackend:
        return True
    return False
