"""Whose turn it is: simulated backends and requests, in simulated time."""

import gc
import heapq
import itertools
import math
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tts_service.turns import LEAD, Lane, Turn, Turns

Job: TypeAlias = Turn[str]
Backend: TypeAlias = Lane[str]

PACE = 0.05  # seconds a simulated backend needs for each character
SHORT = 1e-9  # what rounding may cost


@dataclass(frozen=True)
class Call:
    """One segment's way through a backend, in seconds since the start."""

    turn: Job
    lane: Backend
    queued: float
    handed_over: float
    began: float
    ended: float
    has_failed: bool


def by_length(turn: Job) -> float:
    return PACE * turn.length


class Simulation:
    """Backends that speak what they are handed in order, and requests that come at given times.

    After every change it is asserted that no backend idles while it could speak what waits.
    `latency` is what passes between a handover and the moment the backend could begin.
    """

    def __init__(
        self,
        lanes: int = 1,
        *,
        slots: int = 1,
        latency: float = 0.0,
        seconds: Callable[[Job], float] = by_length,
        fails: Callable[[Job, Backend], bool] = lambda turn, lane: False,
        retry_delay: float = 2.0,
    ) -> None:
        self.now = 0.0
        self.lanes = [Backend(f"backend {at}", slots, is_open=True) for at in range(lanes)]
        self.turns: Turns[str] = Turns(self.lanes, lambda: self.now)
        self.calls: list[Call] = []
        self.overtaken = 0  # how often a later segment was handed over while a first one waited
        self._latency = latency
        self._seconds = seconds
        self._fails = fails
        self._retry_delay = retry_delay
        self._free_at = {lane: [0.0] * slots for lane in self.lanes}
        self._queued_at: dict[Job, float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), action))

    def ask(self, when: float, line: object, lengths: Iterable[int], voice: str = "ann") -> None:
        """A request: its segments, of so many characters, are queued at once."""
        turns = [
            Turn(str(line), voice, length, f"{line}.{at}", is_first=at == 0)
            for at, length in enumerate(lengths)
        ]
        self.at(when, lambda: self._put(turns))

    def run(self, until: float = math.inf) -> list[Call]:
        """The calls, in the order in which they were handed over."""
        while True:
            change = self.turns.next_change()
            event = self._events[0][0] if self._events else math.inf
            when = min(math.inf if change is None else change, event)
            if when > until or when == math.inf:
                return self.calls
            self.now = when
            if when == event:
                heapq.heappop(self._events)[2]()
            self._assign()

    def _put(self, turns: list[Job]) -> None:
        for turn in turns:
            self._queued_at[turn] = self.now
            self.turns.put(turn)
            self._assign()

    def _assign(self) -> None:
        begun = self.turns.assign()
        for turn, lane in begun:
            self._begin(turn, lane)
        waiting = self.turns.waiting()
        if any(turn.is_first for turn in waiting):
            self.overtaken += sum(not turn.is_first for turn, _ in begun)
        for lane in self.lanes:
            if lane.is_open and len(lane.under_way) < lane.slots:
                assert not any(may_go(turn, lane, self.lanes, self.now) for turn in waiting), (
                    "it idles"
                )

    def _begin(self, turn: Job, lane: Backend) -> None:
        began = max(self.now + self._latency, heapq.heappop(self._free_at[lane]))
        ended = began + self._seconds(turn)
        heapq.heappush(self._free_at[lane], ended)
        has_failed = self._fails(turn, lane)
        queued = self._queued_at[turn]
        self.calls.append(Call(turn, lane, queued, self.now, began, ended, has_failed))
        self.at(self.now + self._latency, lambda: self.turns.note_arrival(turn, lane))
        self.at(ended, lambda: self._end(turn, lane, has_failed))

    def _end(self, turn: Job, lane: Backend, has_failed: bool) -> None:
        self.turns.finish(turn, lane, spoken=not has_failed)
        if has_failed:
            self.turns.put_back(turn, lane, self._retry_delay)


def may_go(turn: Job, lane: Backend, lanes: list[Backend], now: float) -> bool:
    """Where it has failed, only if no other backend is left to try, and after the delay."""
    untried = [other for other in lanes if other.is_open and other not in turn.failed_on]
    return lane in untried if untried else now >= turn.not_before


def spoken(calls: list[Call]) -> list[str]:
    return [call.turn.payload for call in calls if not call.has_failed]


def rush(simulation: Simulation, requests: int, every: float, seed: int = 1) -> int:
    """That many requests of 1 to 8 segments, one every so many seconds on average; how many
    segments they have."""
    chance = random.Random(seed)
    when = 0.0
    segments = 0
    for number in range(requests):
        lengths = [chance.randint(5, 120) for _ in range(chance.randint(1, 8))]
        simulation.ask(when, number, lengths, voice=chance.choice(["ann", "bob", "carl"]))
        when += chance.expovariate(1 / every)
        segments += len(lengths)
    return segments


# -- whose turn --------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_first_segments_go_before_all_later_ones_and_as_they_came(lanes: int) -> None:
    simulation = Simulation(lanes)
    segments = rush(simulation, requests=200, every=3)  # more than even four can speak at once
    calls = simulation.run()
    firsts = [call for call in calls if call.turn.is_first]
    assert [call.turn.line for call in firsts] == [str(number) for number in range(200)]
    assert sum(call.handed_over > call.queued for call in firsts) > 100, "there was a queue"
    assert simulation.overtaken == 0
    assert len(calls) == segments


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_later_segments_of_different_requests_take_turns(lanes: int) -> None:
    chance = random.Random(2)
    counts = [chance.randint(1, 6) for _ in range(100)]
    simulation = Simulation(lanes)
    for lane in simulation.lanes:
        lane.is_open = False
    for line, count in enumerate(counts):
        simulation.ask(0, line, [chance.randint(5, 120) for _ in range(count)])
    for lane in simulation.lanes:
        simulation.at(1, lambda lane=lane: setattr(lane, "is_open", True))  # type: ignore[misc]
    in_rounds = [
        f"{line}.{at}" for at in range(6) for line, count in enumerate(counts) if at < count
    ]
    assert spoken(simulation.run()) == in_rounds


def test_a_request_that_comes_later_has_its_turn_in_the_round_under_way() -> None:
    simulation = Simulation()
    for line in "abc":
        simulation.ask(0, line, [20] * 10)
    simulation.ask(8.5, "d", [20] * 4)
    lines = [call.turn.line for call in simulation.run()]
    entered = lines.index("d")
    for start in range(entered, entered + 12, 4):
        assert sorted(map(str, lines[start : start + 4])) == ["a", "b", "c", "d"]


def test_the_segments_of_a_request_are_handed_over_in_order() -> None:
    simulation = Simulation(lanes=4)
    rush(simulation, requests=200, every=4)
    order: dict[object, list[str]] = {}
    for call in simulation.run():
        order.setdefault(call.turn.line, []).append(call.turn.payload)
    assert all(payloads == sorted(payloads) for payloads in order.values())


# -- how long a short request waits for a long one -----------------------------------------------

LONG_TEXT = [120] * 33 + [40]  # 4,000 characters
SEGMENT_SECONDS = 120 * PACE


def wait_of_a_short_request(
    when: float, texts: int = 1, seconds: Callable[[Job], float] = by_length
) -> tuple[float, float]:
    """Seconds from its coming to its beginning, and to the end of what was being spoken then."""
    simulation = Simulation(seconds=seconds)
    for number in range(texts):
        simulation.ask(0, f"long {number}", LONG_TEXT)
    simulation.ask(when, "short", [10])
    calls = simulation.run(until=when + 30)
    [began] = [call.began for call in calls if call.turn.line == "short"]
    under_way = [call.ended for call in calls if call.began <= when < call.ended]
    return began - when, min(under_way) - when


@pytest.mark.parametrize("texts", [1, 10])
def test_4000_characters_delay_a_short_request_by_the_segment_being_spoken_and_no_more(
    texts: int,
) -> None:
    """But for the LEAD seconds before its end: then the next segment has been handed over, and
    cannot make room any more."""
    handed_over = 0
    firsts_spoken = texts * SEGMENT_SECONDS
    arrivals = [firsts_spoken + 0.1234 + 0.0917 * number for number in range(300)]
    for when in arrivals:
        waited, rest = wait_of_a_short_request(when, texts)
        if rest > LEAD + SHORT:
            assert waited <= rest + SHORT
        else:
            handed_over += 1
            assert waited <= rest + SEGMENT_SECONDS + SHORT
    assert 0 < handed_over < 0.03 * len(arrivals)


def test_however_uneven_the_pace_a_short_request_waits_for_one_more_segment_at_most() -> None:
    chance = random.Random(3)

    def seconds(turn: Job) -> float:
        return (0.6 + PACE * turn.length) * chance.uniform(0.7, 1.3)

    longest = 1.3 * (0.6 + SEGMENT_SECONDS)
    waits = [wait_of_a_short_request(9 + 0.317 * at, seconds=seconds) for at in range(300)]
    assert all(waited <= rest + longest for waited, rest in waits)
    handed_over = sum(waited > rest + SHORT for waited, rest in waits)
    assert handed_over < 0.15 * len(waits)


def test_a_short_request_takes_the_backend_that_is_free_first() -> None:
    simulation = Simulation(lanes=2)
    simulation.ask(0, "slow", [120])
    simulation.ask(0, "quick", [40, 40, 40, 40, 40])
    simulation.ask(2.5, "short", [10])
    [call] = [call for call in simulation.run() if call.turn.line == "short"]
    assert call.began == pytest.approx(4)


# -- no idling -----------------------------------------------------------------------------------


def idle_seconds(calls: list[Call]) -> float:
    """Between two calls on one backend while the second was waiting already."""
    total = 0.0
    for lane in {call.lane.name for call in calls}:
        own = [call for call in calls if call.lane.name == lane]
        for before, after in itertools.pairwise(own):
            total += max(0.0, after.began - max(before.ended, after.queued))
    return total


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_a_backend_never_idles_while_segments_wait(lanes: int) -> None:
    simulation = Simulation(lanes)
    rush(simulation, requests=200, every=4)
    assert idle_seconds(simulation.run()) < SHORT


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_what_lies_between_two_calls_is_hidden(slots: int) -> None:
    simulation = Simulation(slots=slots, latency=LEAD / 2)
    for line in range(20):
        simulation.ask(0, line, [60] * 10)
    calls = simulation.run()
    busy = sum(call.ended - call.began for call in calls)
    assert busy / slots / max(call.ended for call in calls) > 0.99
    # It shows after a first call, whose pace is known only when it is over.
    late = [call for call in calls[2 * slots :] if call.began - call.handed_over < LEAD / 2 - SHORT]
    assert late == []


@pytest.mark.parametrize("latency", [0.0, LEAD / 2])
def test_throughput_grows_with_the_backends(latency: float) -> None:
    def makespan(lanes: int) -> float:
        simulation = Simulation(lanes, latency=latency)
        chance = random.Random(4)
        for line in range(40):
            simulation.ask(0, line, [chance.randint(20, 120) for _ in range(10)])
        return max(call.ended for call in simulation.run())

    alone = makespan(1)
    for lanes in (2, 4):
        assert alone / makespan(lanes) >= 0.95 * lanes


# -- handing over early ----------------------------------------------------------------------------


class Bench:
    """A queue whose time and calls a test drives by hand."""

    def __init__(self, lanes: int = 1, slots: int = 1) -> None:
        self.now = 100.0
        self.lanes = [Backend(f"backend {at}", slots, is_open=True) for at in range(lanes)]
        self.turns: Turns[str] = Turns(self.lanes, lambda: self.now)

    def put(
        self,
        name: str,
        line: str = "line",
        voice: str = "ann",
        length: int = 10,
        is_first: bool = False,
    ) -> Job:
        turn = Turn(line, voice, length, name, is_first)
        self.turns.put(turn)
        return turn

    def assign(self, *, arrives: bool = True) -> list[tuple[str, str]]:
        """What begins, and where; it arrives there at once."""
        begun = self.turns.assign()
        for turn, lane in begun if arrives else ():
            self.turns.note_arrival(turn, lane)
        return [(turn.payload, lane.name[-1]) for turn, lane in begun]

    def speak(self, turn: Job, seconds: float) -> None:
        """Hand over a turn, which must be the only one, and let it take so long."""
        [(begun, lane)] = self.turns.assign()
        assert begun is turn
        self.now += seconds
        self.turns.finish(turn, lane, spoken=True)


def test_the_next_segment_is_handed_over_just_before_the_expected_end() -> None:
    bench = Bench()
    bench.speak(bench.put("to learn from", length=10), seconds=2)
    bench.put("under way", length=20)
    bench.put("next")
    bench.put("after next")
    assert bench.assign() == [("under way", "0")]
    expected = bench.now + 4 - LEAD
    assert bench.turns.next_change() == pytest.approx(expected)
    bench.now = expected - 0.001
    assert bench.assign() == []
    bench.now = expected + SHORT
    assert bench.assign() == [("next", "0")]
    bench.now += 100
    assert bench.assign() == [], "one at a time is handed over early"


def test_nothing_is_handed_over_early_while_the_pace_is_unknown() -> None:
    bench = Bench()
    under_way = bench.put("under way")
    bench.put("next")
    bench.assign()
    bench.now += 1000
    assert bench.turns.next_change() is None
    assert bench.assign() == []
    bench.turns.finish(under_way, bench.lanes[0], spoken=True)
    assert bench.assign() == [("next", "0")]


@pytest.mark.parametrize("slots", [1, 2])
def test_nothing_is_handed_over_early_before_what_is_under_way_has_arrived(slots: int) -> None:
    bench = Bench(slots=slots)
    bench.lanes[0].pace = 0.001
    under_way = [bench.put(f"under way {at}") for at in range(slots)]
    bench.put("next")
    assert len(bench.assign(arrives=False)) == slots
    bench.now += 1000
    for turn in under_way:
        assert bench.turns.next_change() is None
        assert bench.assign() == []
        bench.turns.note_arrival(turn, bench.lanes[0])
    assert bench.assign() == [("next", "0")]


def test_a_call_that_ended_without_having_arrived_keeps_nobody_waiting() -> None:
    bench = Bench()
    bench.lanes[0].pace = 0.001
    lost = bench.put("lost")
    bench.assign(arrives=False)
    bench.turns.finish(lost, bench.lanes[0], spoken=False)
    bench.put("under way")
    bench.put("next")
    assert bench.assign() == [("under way", "0")]
    bench.now += 1000
    assert bench.assign() == [("next", "0")]


def test_a_call_that_failed_tells_no_pace() -> None:
    bench = Bench()
    failed = bench.put("failed")
    bench.assign()
    bench.now += 0.01
    bench.turns.finish(failed, bench.lanes[0], spoken=False)
    assert bench.lanes[0].pace is None


def test_the_pace_follows_the_backend() -> None:
    bench = Bench()
    for seconds in [1.0] * 5 + [3.0] * 30:
        bench.speak(bench.put("x", length=10), seconds)
    assert bench.lanes[0].pace == pytest.approx(0.3, rel=0.01)


def test_what_was_handed_over_early_is_timed_from_when_it_could_begin() -> None:
    bench = Bench()
    bench.speak(bench.put("to learn from", length=10), seconds=1)
    under_way, successor = bench.put("under way", length=10), bench.put("next", length=10)
    bench.assign()
    bench.now += 1 - LEAD / 2
    assert bench.assign() == [("next", "0")]
    bench.now += 5  # it took far longer than expected
    bench.turns.finish(under_way, bench.lanes[0], spoken=False)
    bench.now += 1
    bench.turns.finish(successor, bench.lanes[0], spoken=True)
    assert bench.lanes[0].pace == pytest.approx(0.1)


def test_of_several_calls_at_a_time_the_one_that_ends_first_counts() -> None:
    bench = Bench(slots=2)
    bench.speak(bench.put("to learn from", length=10), seconds=1)
    bench.put("long", length=100)
    bench.put("short", length=10)
    bench.put("next")
    assert bench.assign() == [("long", "0"), ("short", "0")]
    bench.now += 1 - LEAD + SHORT
    assert bench.assign() == [("next", "0")]


def test_a_free_backend_goes_before_one_that_will_be_free_in_a_moment() -> None:
    bench = Bench(lanes=2)
    bench.lanes[0].pace = 0.1
    bench.put("under way", length=10, voice="ann")
    bench.assign()
    bench.now += 0.95
    bench.put("next", voice="ann")
    assert bench.assign() == [("next", "1")]


# -- voices ------------------------------------------------------------------------------------


def test_among_free_backends_a_segment_goes_to_the_one_that_last_spoke_its_voice() -> None:
    bench = Bench(lanes=3)
    for lane, voice in zip(bench.lanes, ["ann", "bob", "carl"], strict=True):
        lane.last_voice = voice
    for voice, name in [("carl", "2"), ("ann", "0"), ("bob", "1")]:
        bench.put(voice, line=voice, voice=voice)
        assert bench.assign() == [(voice, name)]


def test_two_voices_in_turn_keep_to_a_backend_each() -> None:
    simulation = Simulation(lanes=2)
    for number in range(100):
        simulation.ask(10 * number, number, [20], voice=["ann", "bob", "bob"][number % 3])
    for lane in ("backend 0", "backend 1"):
        voices = {call.turn.voice for call in simulation.run() if call.lane.name == lane}
        assert len(voices) == 1


def test_a_new_voice_takes_the_backend_that_was_used_longest_ago() -> None:
    bench = Bench(lanes=3)
    for voice in ("ann", "bob", "carl", "ann"):
        bench.speak(bench.put(voice, voice=voice), seconds=1)
    bench.put("dora", voice="dora")
    assert bench.assign() == [("dora", "1")]


def test_who_speaks_costs_nobody_a_wait() -> None:
    def beginnings(voices: Sequence[str]) -> list[float]:
        simulation = Simulation(lanes=3)
        chance = random.Random(5)
        when = 0.0
        for number in range(200):
            simulation.ask(when, number, [30] * chance.randint(1, 5), voices[number % len(voices)])
            when += chance.expovariate(1 / 3)
        return sorted(call.began for call in simulation.run())

    assert beginnings(["ann", "bob", "carl", "dora", "bob"]) == beginnings(["ann"])


# -- failures ----------------------------------------------------------------------------------


def fail(bench: Bench, turn: Job, lane: Backend, delay: float = 2.0) -> None:
    bench.turns.finish(turn, lane, spoken=False)
    bench.turns.put_back(turn, lane, delay)


def test_a_failed_segment_goes_to_another_backend_at_once() -> None:
    bench = Bench(lanes=2)
    turn = bench.put("x")
    assert bench.assign() == [("x", "0")]
    fail(bench, turn, bench.lanes[0])
    assert bench.assign() == [("x", "1")]


def test_a_failed_segment_goes_to_the_same_backend_only_after_the_delay() -> None:
    bench = Bench()
    turn = bench.put("x")
    bench.assign()
    fail(bench, turn, bench.lanes[0], delay=2.0)
    assert bench.assign() == []
    assert bench.turns.next_change() == bench.now + 2
    bench.now += 1.999
    assert bench.assign() == []
    bench.now += 0.001
    assert bench.assign() == [("x", "0")]


def test_others_do_not_wait_for_a_failed_segments_delay() -> None:
    bench = Bench()
    turn = bench.put("failed")
    bench.put("next")
    bench.put("another's", line="other")
    bench.assign()
    fail(bench, turn, bench.lanes[0])
    assert bench.assign() == [("another's", "0")]


def test_a_failed_segment_goes_before_what_came_after_it() -> None:
    bench = Bench()
    turn = bench.put("failed")
    bench.put("next")
    bench.assign()
    fail(bench, turn, bench.lanes[0], delay=0)
    assert bench.assign() == [("failed", "0")]


def test_a_failed_first_segment_is_still_a_first_one() -> None:
    bench = Bench(lanes=2)
    bench.lanes[1].is_open = False
    turn = bench.put("failed", is_first=True)
    bench.put("another first", line="other", is_first=True)
    bench.put("later")
    bench.assign()
    fail(bench, turn, bench.lanes[0], delay=0)
    assert bench.assign() == [("failed", "0")]


def test_where_it_has_failed_everywhere_the_delay_holds_for_all() -> None:
    bench = Bench(lanes=2)
    turn = bench.put("x")
    for lane in bench.lanes:
        [(_, where)] = bench.turns.assign()
        assert where is lane
        fail(bench, turn, lane, delay=2)
    assert bench.assign() == []
    bench.now += 2
    assert len(bench.assign()) == 1


def test_with_one_backend_that_always_fails_everything_is_spoken_by_the_other() -> None:
    simulation = Simulation(lanes=2, fails=lambda turn, lane: lane.name == "backend 0")
    segments = rush(simulation, requests=50, every=10)
    calls = simulation.run()
    assert Counter(spoken(calls)).most_common(1)[0][1] == 1
    assert len(spoken(calls)) == segments


def test_a_backend_that_is_closed_gets_nothing_until_it_is_open() -> None:
    bench = Bench(lanes=2)
    for lane in bench.lanes:
        lane.is_open = False
    bench.put("x")
    assert bench.assign() == []
    bench.lanes[1].is_open = True
    assert bench.assign() == [("x", "1")]


# -- leaving and hurrying ------------------------------------------------------------------------


def test_what_is_withdrawn_is_never_spoken() -> None:
    bench = Bench()
    one, two = bench.put("one"), bench.put("two", is_first=True)
    assert bench.turns.withdraw(one)
    assert bench.turns.withdraw(two)
    assert len(bench.turns) == 0
    assert bench.assign() == []


def test_what_does_not_wait_cannot_be_withdrawn() -> None:
    bench = Bench()
    turn = bench.put("under way")
    bench.assign()
    assert not bench.turns.withdraw(turn)
    bench.turns.finish(turn, bench.lanes[0], spoken=True)
    assert not bench.turns.withdraw(turn)
    gone = bench.put("gone")
    assert bench.turns.withdraw(gone)
    assert not bench.turns.withdraw(gone)


def test_a_promoted_segment_goes_where_first_ones_go_behind_those_that_wait() -> None:
    bench = Bench()
    bench.put("later")
    wanted = bench.put("wanted")
    bench.put("first", line="other", is_first=True)
    bench.turns.promote(wanted)
    bench.turns.promote(wanted)
    assert [turn.payload for turn in bench.turns.waiting()] == ["first", "wanted", "later"]
    assert len(bench.turns) == 3


def test_one_promoted_while_it_is_spoken_comes_back_as_a_first_one_if_it_fails() -> None:
    bench = Bench()
    wanted = bench.put("wanted")
    bench.assign()
    bench.put("later", line="other")
    bench.turns.promote(wanted)
    assert len(bench.turns) == 1, "it is not queued a second time"
    fail(bench, wanted, bench.lanes[0], delay=0)
    assert bench.assign() == [("wanted", "0")]


def test_a_request_that_is_over_is_forgotten() -> None:
    class Line:
        pass

    bench = Bench()
    line = Line()
    turns = [Turn(line, "ann", 10, str(at), is_first=at == 0) for at in range(4)]
    for turn in turns:
        bench.turns.put(turn)
    bench.turns.withdraw(turns.pop())
    for turn in turns:
        bench.speak(turn, seconds=1)
    seen = weakref.ref(line)
    del line, turn, turns
    gc.collect()
    assert seen() is None


# -- when time alone changes something ---------------------------------------------------------


def test_time_alone_changes_nothing_where_nothing_waits() -> None:
    bench = Bench()
    bench.speak(bench.put("to learn from"), seconds=1)
    bench.put("under way")
    bench.assign()
    assert bench.turns.next_change() is None


def test_the_next_change_is_the_earliest() -> None:
    bench = Bench(lanes=2)
    for lane in bench.lanes:
        lane.pace = 0.1
    bench.put("long", length=100)
    bench.put("short", length=20)
    bench.put("waits")
    bench.assign()
    assert bench.turns.next_change() == pytest.approx(bench.now + 2 - LEAD)
    bench.lanes[1].is_open = False
    assert bench.turns.next_change() == pytest.approx(bench.now + 10 - LEAD)


def test_a_backend_that_has_been_handed_its_next_already_is_no_change_to_wait_for() -> None:
    bench = Bench()
    bench.lanes[0].pace = 0.1
    bench.put("under way", length=10)
    bench.assign()
    bench.now += 0.95
    bench.put("next")
    bench.put("after next", length=100)
    assert bench.assign() == [("next", "0")]
    assert bench.turns.next_change() is None


# -- anything, in any order ----------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens, each turn is in one place, and time changes what it was said to change."""

    @initialize(slots=st.lists(st.integers(1, 2), min_size=1, max_size=3))
    def begin(self, slots: list[int]) -> None:
        self.now = 0.0
        self.lanes = [Backend(str(at), count, is_open=True) for at, count in enumerate(slots)]
        self.turns: Turns[str] = Turns(self.lanes, lambda: self.now)
        self.all: list[Job] = []
        self.waiting: set[Job] = set()
        self.under_way: list[tuple[Job, Backend]] = []
        self.spoken: set[Job] = set()
        self.withdrawn: set[Job] = set()

    @rule(
        line=st.sampled_from("abc"),
        voice=st.sampled_from("xy"),
        length=st.integers(0, 50),
        is_first=st.booleans(),
    )
    def put(self, line: str, voice: str, length: int, is_first: bool) -> None:
        turn = Turn(line, voice, length, f"{line}.{len(self.all)}", is_first)
        self.all.append(turn)
        self.waiting.add(turn)
        self.turns.put(turn)
        self.assign()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def speak(self, data: st.DataObject) -> None:
        turn, lane = self.take(data)
        self.turns.finish(turn, lane, spoken=True)
        self.spoken.add(turn)
        self.assign()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        self.turns.note_arrival(*data.draw(st.sampled_from(self.under_way)))
        self.assign()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), delay=st.sampled_from([0.0, 2.0]))
    def fail(self, data: st.DataObject, delay: float) -> None:
        turn, lane = self.take(data)
        self.turns.finish(turn, lane, spoken=False)
        self.turns.put_back(turn, lane, delay)
        self.waiting.add(turn)
        self.assign()

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        turn = data.draw(st.sampled_from(self.all))
        assert self.turns.withdraw(turn) == (turn in self.waiting)
        if turn in self.waiting:
            self.waiting.remove(turn)
            self.withdrawn.add(turn)
        self.assign()

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        self.turns.promote(data.draw(st.sampled_from(self.all)))
        self.assign()

    @rule(at=st.integers(0, 2), is_open=st.booleans())
    def open_or_close(self, at: int, is_open: bool) -> None:
        self.lanes[at % len(self.lanes)].is_open = is_open
        self.assign()

    @rule(seconds=st.floats(0, 5))
    def elapse(self, seconds: float) -> None:
        change = self.turns.next_change()
        self.now += seconds
        begun = self.assign()
        assert not begun or (change is not None and self.now >= change)

    @rule()
    def wait_for_the_next_change(self) -> None:
        change = self.turns.next_change()
        if change is not None:
            assert change > self.now
            self.now = change
            self.assign()

    @invariant()
    def each_turn_is_in_one_place(self) -> None:
        waiting = self.turns.waiting()
        assert len(waiting) == len(self.turns) == len(self.waiting)
        assert set(waiting) == self.waiting
        held = [(turn, lane) for lane in self.lanes for turn in lane.under_way]
        assert Counter(held) == Counter(self.under_way)

    @invariant()
    def no_backend_idles_or_is_given_too_much(self) -> None:
        for lane in self.lanes:
            assert len(lane.under_way) <= lane.slots + (lane.pace is not None)
            assert lane.on_their_way <= lane.under_way.keys()
            if lane.is_open and len(lane.under_way) < lane.slots:
                assert not any(may_go(turn, lane, self.lanes, self.now) for turn in self.waiting)

    def teardown(self) -> None:
        """Whatever the state: once the backends work, everything is spoken."""
        if not hasattr(self, "lanes"):
            return
        for lane in self.lanes:
            lane.is_open = True
        for _ in range(2 * len(self.all) + 2):
            self.now += 2
            self.assign()
            while self.under_way:
                turn, lane = self.under_way.pop(0)
                self.turns.finish(turn, lane, spoken=True)
                self.spoken.add(turn)
        assert len(self.turns) == 0
        assert self.spoken | self.withdrawn == set(self.all)
        assert not self.spoken & self.withdrawn

    def take(self, data: st.DataObject) -> tuple[Job, Backend]:
        return self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))

    def assign(self) -> list[tuple[Job, Backend]]:
        begun = self.turns.assign()
        for turn, lane in begun:
            assert lane.is_open
            assert may_go(turn, lane, self.lanes, self.now)
            self.waiting.remove(turn)
            self.under_way.append((turn, lane))
        return begun


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_failures_losses_and_departures_lose_and_double_nothing() -> None:
    chance = random.Random(6)
    simulation = Simulation(lanes=3, latency=0.02, fails=lambda turn, lane: chance.random() < 0.2)
    segments = rush(simulation, requests=300, every=8)
    withdrawn: list[str] = []

    def depart() -> None:
        waiting = simulation.turns.waiting()
        if waiting:
            turn = chance.choice(waiting)
            assert simulation.turns.withdraw(turn)
            withdrawn.append(turn.payload)

    def flap() -> None:
        lane = chance.choice(simulation.lanes)
        lane.is_open = not lane.is_open

    def open_all() -> None:
        for lane in simulation.lanes:
            lane.is_open = True

    for at in range(200):
        simulation.at(at * 11.7, depart)
        simulation.at(at * 12.3, flap)
    simulation.at(2500, open_all)
    done = Counter(spoken(simulation.run()))
    assert set(done.values()) == {1}
    assert not done.keys() & set(withdrawn)
    assert len(done) + len(withdrawn) == segments
    assert len(withdrawn) > 50
    assert len(simulation.turns) == 0
