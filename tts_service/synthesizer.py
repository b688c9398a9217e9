"""The path: a request in, its sound out, segment by segment.

    plan     names become a voice, a key and segments
    find     the whole answer, from the cache
    speak    each segment from the cache, or by a flight that the dispatcher sends to a backend,
             a few ahead of what is heard; then speed, pauses and format

A whole answer is the stream, joined: both are made by `Speech`.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

from tts_service import records
from tts_service.audio import (
    FORMATS,
    Audio,
    Encoder,
    Format,
    decode,
    fade_edges,
    silence,
    stretched_frames,
    wav,
)
from tts_service.audio import stretch as stretched
from tts_service.backends.base import Segment
from tts_service.backends.binding import Binding
from tts_service.cache import SpeechCache
from tts_service.claims import Claim, Claims
from tts_service.cues import Cue, Span, joined, span, spans_from_text, spans_to_text
from tts_service.dispatcher import Call, Dispatcher, Line, Spoken
from tts_service.errors import BackendTimeout, SpeechError
from tts_service.flights import Flight, Flights, Withdrawn
from tts_service.metrics import Metrics
from tts_service.records import Record
from tts_service.shared_cache import Taken
from tts_service.speech_request import SpeechRequest
from tts_service.text import is_speakable, segments
from tts_service.turns import Turn
from tts_service.voices import Voice, VoiceCatalogue

#: Seconds between two looks whether the client is still there.
LOOK_AROUND = 0.25
#: What is answered to punctuation alone; the rate is IndexTTS's own.
_SILENCE = silence(24_000, 0.2)

T = TypeVar("T")
Verdict = Literal["HIT", "PARTIAL", "COALESCED", "MISS"]


class Departed(SpeechError):
    """The client has left: nobody will read this."""

    status = 499
    code = "client_closed_request"


@dataclass(frozen=True)
class Plan:
    """What a request comes down to: who says what, how, and under which keys it is kept."""

    text: str
    voice: Voice
    format: Format
    speed: float
    params: Mapping[str, Any]
    identity: str
    segment_chars: int
    pause: float  # seconds
    early_start: bool = True

    @cached_property
    def segments(self) -> list[Segment]:
        """What must be spoken, in order; nothing for punctuation alone."""
        first = None if self.early_start else self.segment_chars
        texts = (piece.strip() for piece in segments(self.text, self.segment_chars, first))
        return [
            Segment(text, self.voice, self.identity, self.params)
            for text in texts
            if is_speakable(text)
        ]

    @cached_property
    def key(self) -> str:
        """The whole answer's key."""
        if self.is_a_segments:
            # One segment in wav at its own speed is the segment's entry itself.
            return segment_key(Segment(self.text, self.voice, self.identity, self.params))
        how = [self.format.name, self.speed, self.segment_chars, self.pause, self.early_start]
        return _key("answer", self.text, self.voice, self.identity, self.params, how)

    @cached_property
    def facts(self) -> Mapping[str, object]:
        """For the request's log line; the text itself is not for the log."""
        return {
            "voice": self.voice.name,
            "chars": len(self.text),
            "format": self.format.name,
            "segments": len(self.segments),
        }

    def is_still_for(self, voice: Voice, identity: str) -> bool:
        """Whether neither the recording nor the model has changed since."""
        return self.voice.fingerprint == voice.fingerprint and self.identity == identity

    def cues(self, spans: Sequence[Span], first: int = 0) -> list[Cue]:
        """The segments from the `first` on, each with its span, of which there may be fewer."""
        texts = [segment.text for segment in self.segments[first : first + len(spans)]]
        return joined(texts, spans)

    @property
    def is_a_segments(self) -> bool:
        """Whether the answer's entry in the cache is that of its only segment."""
        return (
            self.format.name == "wav"
            and self.speed == 1
            and len(self.text) <= self.segment_chars
            and len(self.segments) == 1
            and self.segments[0].text == self.text
        )


def segment_key(segment: Segment) -> str:
    """Everything that changes a segment's sound; never a voice's name or path."""
    return _key("segment", segment.text, segment.voice, segment.identity, segment.params, [])


def _key(
    kind: str,
    text: str,
    voice: Voice,
    identity: str,
    params: Mapping[str, Any],
    how: list[Any],
) -> str:
    told = [identity, voice.fingerprint, text, sorted(params.items()), *how]
    # ASCII: a lone surrogate in a text cannot be encoded otherwise.
    return f"{kind}:{hashlib.sha256(json.dumps(told).encode()).hexdigest()}"


class Synthesizer:
    """Speaks requests, and remembers what it said."""

    def __init__(
        self,
        *,
        voices: VoiceCatalogue,
        dispatcher: Dispatcher,
        cache: SpeechCache,
        default_format: str,
        segment_chars: int,
        segment_pause: float,
        synth_timeout: float,
        claims: Claims | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.voices = voices
        self.dispatcher = dispatcher
        self.cache = cache
        self.claims = claims or Claims(None)
        self.clock = clock
        self.metrics = metrics or Metrics()
        self.synth_timeout = synth_timeout
        self.segment_flights: Flights[Spoken] = Flights()
        self.answer_flights: Flights[Record] = Flights()
        self._default_format = default_format
        self._segment_chars = segment_chars
        self._segment_pause = segment_pause

    def plan(self, request: SpeechRequest) -> Plan:
        """What a request comes down to; waits for a backend to tell what it serves.

        Raises InvalidRequest, VoiceNotFound, PromptMissing, NoBackend, BackendMisfit.
        """
        voice = self.voices.resolve(request.voice, request.model)
        # Silence needs no backend, so it can always be had.
        binding = self.dispatcher.binding() if is_speakable(request.input) else None
        return self._plan(request, voice, binding)

    def plan_at_once(self, request: SpeechRequest, before: Plan | None) -> Plan | None:
        """As `plan`, without ever waiting: None if no backend has told yet what it serves.

        `before`: an earlier plan of the same request, which is given back if it still holds.
        """
        binding = self.dispatcher.known_binding
        if binding is None:
            return None
        voice = self.voices.resolve(request.voice, request.model)
        holds = before is not None and before.is_still_for(voice, binding.identity)
        return before if holds else self._plan(request, voice, binding)

    def _plan(self, request: SpeechRequest, voice: Voice, binding: Binding | None) -> Plan:
        params: Mapping[str, Any] = {}
        if binding is not None:
            params = binding.effective(request.model_extra or {}, request.instructions)
        return Plan(
            text=request.input,
            voice=voice,
            format=FORMATS[request.response_format or self._default_format],
            speed=request.speed,
            params=params,
            identity="" if binding is None else binding.identity,
            segment_chars=self._segment_chars,
            pause=self._segment_pause,
            early_start=request.early_start,
        )

    def find(self, plan: Plan) -> Record | None:
        """The whole answer, if it is in the cache."""
        record = records.unpack(self.cache.get(plan.key))
        if record is not None:
            self.metrics.note_sound("cache", record.notes.get("seconds", 0.0))
        return record

    def cues(self, plan: Plan, record: Record) -> list[Cue] | None:
        """When each segment is heard in a finished answer; None if nobody knows any more."""
        spans: list[Span] | None
        if plan.is_a_segments:
            spans = [span(0, record.notes.get("seconds", 0.0))]
        elif "times" in record.notes:
            spans = spans_from_text(record.notes["times"])
        else:
            spans = self._spans_by_segments(plan)
        is_whole = spans is not None and len(spans) == len(plan.segments)
        return plan.cues(spans) if spans is not None and is_whole else None

    def _spans_by_segments(self, plan: Plan) -> list[Span] | None:
        """What `Speech` would note, by the segments' entries."""
        spans: list[Span] = []
        at = 0.0
        for segment in plan.segments:
            audio = self.recall(segment_key(segment))
            if audio is None:
                return None
            at = at or plan.format.delay(audio.rate)
            end = at + stretched_frames(audio.frames, plan.speed) / audio.rate
            spans.append(span(at, end))
            at = end + silence(audio.rate, plan.pause).seconds
        return spans

    def recall(self, key: str) -> Audio | None:
        """A segment's sound, if it is in the cache."""
        record = records.unpack(self.cache.get(key))
        return None if record is None else decode(record.body)

    def remember(
        self, key: str, body: bytes, seconds: float, spans: Iterable[Span] | None = None
    ) -> Record:
        """Put sound into the cache; with an answer, when each of its segments is heard."""
        notes: dict[str, Any] = {"seconds": round(seconds, 3)}
        if spans is not None:
            notes["times"] = spans_to_text(spans)
        packed, record = records.pack(body, notes)
        self.cache.set(key, packed)
        return record

    def speak(self, plan: Plan, has_left: Callable[[], bool] = lambda: False) -> "Speech":
        """The answer, in the making. `has_left` tells whether its client is gone."""
        return Speech(self, plan, has_left)


class Speech:
    """One answer in the making; close it in whatever way it ends.

    Either `whole`, or `stream`, or the one after the other when the whole took too long.
    """

    def __init__(self, synthesizer: Synthesizer, plan: Plan, has_left: Callable[[], bool]) -> None:
        self._synthesizer = synthesizer
        self._plan = plan
        self._has_left = has_left
        self._keys = [segment_key(segment) for segment in plan.segments]
        self._flights: deque[Flight[Spoken]] = deque()  # boarded, in order
        self._boarded = 0  # how many segments were boarded so far
        self._pieces: deque[Audio] = deque()  # made, and not streamed yet
        self._made = 0
        self._answer_flight: Flight[Record] | None = None  # ours to land
        self._stack = ExitStack()
        self._line: Line | None = None
        self._began = synthesizer.clock()
        self._cached = self._joined = self._sent = 0
        self._joined_answer = False
        self._waited = self._queued = self._encoded = 0.0  # seconds
        self._seconds = 0.0  # of sound
        self._heard: list[tuple[float, float]] = []  # each segment, in seconds of sound
        self._delay = 0.0  # seconds before the sound
        self.record: Record | None = None  # once it is finished, and kept

    # -- the two ways out ----------------------------------------------------------------------

    def whole(self, until: float) -> Record | None:
        """The finished answer; None when it is not finished at `until`, on the clock.

        Raises Overloaded, Departed, and what synthesis raises.
        """
        flights = self._synthesizer.answer_flights
        while True:
            flight, is_ours = flights.board(self._plan.key)
            if is_ours:
                self._answer_flight = flight
                return self._landed_meanwhile() or self._make_whole(until)
            try:
                self._enter()
                if not self._wait(flight, until):
                    return None
                if not self._must_take_off_again(flight):
                    self._joined_answer = True
                    return flight.result()
            finally:
                flights.leave(flight)

    def stream(self, late: float) -> Iterator[bytes]:
        """The answer, chunk by chunk, each as soon as it can be. Raises as `whole` does.

        The first chunk is empty if nothing has been spoken at `late`, on the clock: with it the
        headers can leave.
        """
        # From now on it takes as long as this client reads, and nobody else shall wait for that.
        self._land_answer(Withdrawn("The request that makes this answer streams it."))
        encoder: Encoder | None = None
        chunks: list[bytes] = []
        frames = 0
        try:
            if not self._pieces and not self._is_next_there(late):
                yield b""
            while (piece := self._next_piece()) is not None:
                encoder = encoder or self._encoder(piece.rate, streamed=True)
                frames += piece.frames
                if chunk := self._timed(encoder.encode, piece):
                    chunks.append(chunk)
                    yield chunk
            assert encoder is not None, "there is at least a silence"
            if chunk := self._timed(encoder.flush):
                chunks.append(chunk)
                yield chunk
            self._keep(self._plan.format.completed(b"".join(chunks), frames))
        finally:
            if encoder is not None:
                encoder.close()
            self.close()

    def close(self) -> None:
        """Leave what was boarded; may be called at any time, repeatedly."""
        while self._flights:
            self._synthesizer.segment_flights.leave(self._flights.popleft())
        if self._answer_flight is not None:
            self._land_answer(Withdrawn("The request that made this answer has ended."))
        self._stack.close()

    # -- what is told about it -----------------------------------------------------------------

    @property
    def verdict(self) -> Verdict:
        """Where the sound comes from, by what is known now."""
        cache = self._synthesizer.cache
        cached = self._cached + sum(cache.has(key) for key in self._keys[self._boarded :])
        if self._joined_answer or (self._joined and not self._sent):
            return "COALESCED"
        return "PARTIAL" if cached else "MISS"

    @property
    def timing(self) -> dict[str, float]:
        """Milliseconds so far: in the queue, at the backends, encoding, and in all."""
        queued = min(self._queued, self._waited)
        total = self._synthesizer.clock() - self._began
        seconds = {"queue": queued, "synth": self._waited - queued, "encode": self._encoded}
        return {name: value * 1000 for name, value in {**seconds, "total": total}.items()}

    def cues(self, first: int = 0) -> list[Cue]:
        """When each segment is heard, from the `first` on, as far as they are made."""
        return self._plan.cues(self._spans(first), first)

    # -- making it -----------------------------------------------------------------------------

    def _landed_meanwhile(self) -> Record | None:
        """What the last flight left in the cache, if it landed after we had looked there."""
        synthesizer, key = self._synthesizer, self._plan.key
        if not synthesizer.cache.has(key) or (record := synthesizer.find(self._plan)) is None:
            return None
        self._joined_answer = True
        self._land_answer(record)
        return record

    def _make_whole(self, until: float) -> Record | None:
        encoder: Encoder | None = None
        try:
            while self._made < self._count:
                if not self._is_next_there(until):
                    return None
                piece = self._make_piece()
                # Kept besides: a stream that takes over begins again, with another encoder.
                self._pieces.append(piece)
                encoder = encoder or self._encoder(piece.rate, streamed=False)
                self._timed(encoder.encode, piece)
            assert encoder is not None, "there is at least a silence"
            return self._keep(self._timed(encoder.flush))
        except SpeechError as error:
            # A departed client's followers go on by themselves; other failures are theirs too.
            self._land_answer(Withdrawn(error.message) if isinstance(error, Departed) else error)
            raise
        finally:
            if encoder is not None:
                encoder.close()

    def _keep(self, body: bytes) -> Record:
        plan = self._plan
        # The entry of a segment must be the same, whoever makes it.
        spans = None if plan.is_a_segments else self._spans()
        self.record = self._synthesizer.remember(plan.key, body, self._seconds, spans)
        self._land_answer(self.record)
        return self.record

    def _encoder(self, rate: int, *, streamed: bool) -> Encoder:
        encoder = self._plan.format.encoder(rate, streamed=streamed)
        self._delay = encoder.delay
        return encoder

    def _spans(self, first: int = 0) -> list[Span]:
        return [span(self._delay + a, self._delay + b) for a, b in self._heard[first:]]

    def _land_answer(self, outcome: Record | SpeechError) -> None:
        flight, self._answer_flight = self._answer_flight, None
        if flight is not None:
            self._synthesizer.answer_flights.land(flight, outcome)
            self._synthesizer.answer_flights.leave(flight)

    # -- pieces: segments as they are joined ---------------------------------------------------

    @property
    def _count(self) -> int:
        return max(1, len(self._plan.segments))

    def _next_piece(self) -> Audio | None:
        """The next piece, in order, as soon as it is there; None after the last."""
        if self._pieces:
            return self._pieces.popleft()
        if self._made == self._count:
            return None
        self._is_next_there(None)
        return self._make_piece()

    def _make_piece(self) -> Audio:
        """The segment that has landed next, at the right speed, and the pause after it."""
        piece = self._piece(self._next_landed()) if self._plan.segments else _SILENCE
        self._made += 1
        self._seconds += piece.seconds
        return piece

    def _next_landed(self) -> Audio:
        flight = self._flights.popleft()
        self._synthesizer.segment_flights.leave(flight)
        spoken = flight.result()
        if not self._made:
            self._queued = spoken.queued
        return spoken.audio

    def _piece(self, audio: Audio) -> Audio:
        audio = self._timed(stretched, audio, self._plan.speed)
        self._heard.append((self._seconds, self._seconds + audio.seconds))
        if self._count == 1:
            return audio
        audio = fade_edges(audio)
        is_last = self._made + 1 == self._count
        pause = silence(audio.rate, 0.0 if is_last else self._plan.pause)
        return Audio(audio.rate, audio.pcm + pause.pcm)

    def _is_next_there(self, until: float | None) -> bool:
        """Wait for the next segment; False if it has not landed at `until`."""
        if not self._plan.segments:
            return True
        while True:
            self._run_ahead()
            flight = self._flights[0]
            if not self._wait(flight, until):
                return False
            if not self._must_take_off_again(flight):
                return True
            self._flights.popleft()
            self._synthesizer.segment_flights.leave(flight)
            self._flights.appendleft(self._board(self._made))

    def _must_take_off_again(self, flight: Flight[Any]) -> bool:
        """Whether a flight ended for a reason of those who boarded it before us."""
        if isinstance(flight.failure, BackendTimeout):  # theirs began earlier than ours
            return self._synthesizer.clock() - self._began < self._synthesizer.synth_timeout / 2
        return isinstance(flight.failure, Withdrawn)

    def _wait(self, flight: Flight[Any], until: float | None) -> bool:
        clock = self._synthesizer.clock
        began = clock()
        try:
            while not flight.has_landed():
                rest = LOOK_AROUND if until is None else min(LOOK_AROUND, until - clock())
                if rest <= 0:
                    return False
                if not flight.wait(rest) and self._has_left():
                    raise Departed("The client has left.")
            return True
        finally:
            self._waited += clock() - began

    def _run_ahead(self) -> None:
        """Keep every backend busy with this request, where nobody else wants it."""
        window = 2 * self._synthesizer.dispatcher.slots + 1
        while len(self._flights) < window and self._boarded < len(self._keys):
            self._flights.append(self._board(self._boarded))
            self._boarded += 1

    def _board(self, index: int) -> Flight[Spoken]:
        """A place on the flight for a segment, which takes off here if it is not under way."""
        flights, key = self._synthesizer.segment_flights, self._keys[index]
        flight, is_new = flights.board(key)
        departure = _Departure(self._synthesizer, self._plan.segments[index], flight)
        try:
            # Looked up only now: the last flight may have landed since anybody looked.
            if is_new and departure.land_from_cache():
                self._cached += key not in self._keys[:index]  # else we had it spoken ourselves
            elif is_new:
                self._take_off(departure, is_first=index == 0)
            else:
                self._joined += 1
                self._synthesizer.metrics.note_joined()
                self._enter()
                if index == 0:
                    flight.hurry()
        except BaseException:
            if is_new:  # whoever joined meanwhile takes off anew
                flights.land(flight, Withdrawn("The request that wanted it first was turned away."))
            flights.leave(flight)
            raise
        return flight

    def _take_off(self, departure: "_Departure", *, is_first: bool) -> None:
        """Have a segment spoken, here or by whoever speaks it already on another worker."""
        if departure.go(self._enter(), is_first=is_first):
            self._sent += 1
        else:
            self._joined += 1
            self._synthesizer.metrics.note_joined()

    def _enter(self) -> Line:
        """This request's place among those that wait for synthesis. Raises Overloaded."""
        if self._line is None:
            self._line = self._stack.enter_context(self._synthesizer.dispatcher.line())
        return self._line

    def _timed(self, make: Callable[..., T], *args: Any) -> T:
        began = self._synthesizer.clock()
        try:
            return make(*args)
        finally:
            self._encoded += self._synthesizer.clock() - began


class _Departure:
    """How a segment's flight comes to its sound: from the cache, a backend, or another worker."""

    def __init__(self, synthesizer: Synthesizer, segment: Segment, flight: Flight[Spoken]) -> None:
        self._synthesizer = synthesizer
        self._segment = segment
        self._flight = flight
        self._began = synthesizer.clock()

    def go(self, line: Line, *, is_first: bool) -> bool:
        """Queue the segment for a backend; False if it is made elsewhere, and awaited."""
        try:
            claim = self._synthesizer.claims.claim(self._flight.key)
        except Taken:
            self._await_others(line, is_first=is_first)
            return False
        try:
            # Whoever had the claim before may have left it since anybody looked.
            if claim.is_shared and self.land_from_cache():
                claim.release()
                return False
            self._queue(line, claim, is_first=is_first)
        except BaseException:
            claim.release()
            raise
        return True

    def _await_others(self, line: Line, *, is_first: bool) -> None:
        def go_on() -> None:
            try:
                if not self.land_from_cache():
                    self._go_on(line, is_first=is_first)
            except Exception as error:
                told = error if isinstance(error, SpeechError) else SpeechError("Internal error.")
                self._land(told)
                if told is not error:
                    raise

        self._flight.withdraw = self._synthesizer.claims.when_free(self._flight.key, go_on)

    def _go_on(self, line: Line, *, is_first: bool) -> None:
        """Nobody makes it elsewhere any more, and nobody has made it."""
        if not self._flight.waiters:
            self._land(Withdrawn("Nobody waited for it any more."))
        elif self._synthesizer.clock() - self._began > self._synthesizer.synth_timeout:
            self._land(BackendTimeout("Another worker did not speak it in time."))
        else:
            self.go(line, is_first=is_first)

    def _queue(self, line: Line, claim: Claim, *, is_first: bool) -> None:
        synthesizer, flight = self._synthesizer, self._flight
        dispatcher = synthesizer.dispatcher

        def land(outcome: Spoken | SpeechError) -> None:
            try:
                if isinstance(outcome, Spoken):
                    audio = outcome.audio
                    synthesizer.remember(flight.key, wav(audio), audio.seconds)
                    synthesizer.metrics.note_sound("backend", audio.seconds)
            finally:
                self._land(outcome)
                claim.release()

        def withdraw() -> bool:
            is_in_time = dispatcher.withdraw(turn)
            if is_in_time:
                claim.release()
            return is_in_time

        turn: Turn[Call] = dispatcher.put(
            line, self._segment, land, is_first=is_first, is_wanted=lambda: flight.waiters > 0
        )
        flight.withdraw = withdraw
        flight.hurry = lambda: dispatcher.promote(turn)

    def land_from_cache(self) -> bool:
        """Whether the sound was in the cache; then the flight has landed."""
        audio = self._synthesizer.recall(self._flight.key)
        if audio is not None:
            self._synthesizer.metrics.note_sound("cache", audio.seconds)
            self._land(Spoken(audio, queued=0.0, took=0.0))
        return audio is not None

    def _land(self, outcome: Spoken | SpeechError) -> None:
        self._synthesizer.segment_flights.land(self._flight, outcome)
