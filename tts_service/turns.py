"""Whose turn it is: a fair queue of segments over several backends. No threads, no I/O.

The rules, in order:
- the first segment of a request goes before all later ones, first come, first served;
- later segments of different requests take turns;
- a segment goes to the free backend that last spoke its voice, else to the one used longest ago:
  IndexTTS keeps one speaker's conditioning, and that costs nobody a wait;
- a segment that failed goes to a backend where it has not failed yet, at once if that is free;
  where there is none, to any after a delay;
- a backend that will be free in a moment is handed its next segment already, so that what lies
  between two calls is hidden. Not earlier: a segment handed over can no longer make room for
  another request's first one. And not before all that it speaks have arrived there, which
  `note_arrival` tells: they would be overtaken.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

P = TypeVar("P")

#: How long before its expected end a call's successor is handed over, in seconds.
LEAD = 0.1
_SMOOTHING = 0.3  # of the observed pace: the weight of the newest call


@dataclass(eq=False, slots=True)
class Turn(Generic[P]):
    """One segment's place in the queue."""

    line: Hashable  # the request it belongs to
    voice: Hashable
    length: int  # characters
    payload: P
    is_first: bool = False
    failed_on: set["Lane[P]"] = field(default_factory=set)
    not_before: float = 0.0  # where it has failed already


@dataclass(eq=False, slots=True)
class Lane(Generic[P]):
    """One backend, as the queue sees it."""

    name: str
    slots: int = 1  # calls at a time
    is_open: bool = False
    last_voice: Hashable = None
    last_handover: float = -math.inf
    pace: float | None = None  # seconds for each character, smoothed
    under_way: dict[Turn[P], float] = field(default_factory=dict)  # and when each began
    on_their_way: set[Turn[P]] = field(default_factory=set)  # of these, not yet in its own queue

    def handover_at(self) -> float | None:
        """When a successor may be handed over: shortly before the first call ends, by the pace
        so far. None: that cannot be told, or the successor might come first."""
        if self.pace is None or self.on_their_way:
            return None
        ends = (began + self.pace * turn.length for turn, began in self.under_way.items())
        end = min(ends, default=None)
        return None if end is None else end - LEAD


class Turns(Generic[P]):
    """The queue. Its owner calls `assign` after every change, and again at `next_change`."""

    def __init__(self, lanes: list[Lane[P]], clock: Callable[[], float]) -> None:
        self.lanes = lanes
        self._clock = clock
        self._firsts: deque[Turn[P]] = deque()
        self._lines: OrderedDict[Hashable, deque[Turn[P]]] = OrderedDict()

    def __len__(self) -> int:
        """How many turns wait."""
        return len(self._firsts) + sum(len(line) for line in self._lines.values())

    def waiting(self) -> list[Turn[P]]:
        return [*self._firsts, *(turn for line in self._lines.values() for turn in line)]

    def put(self, turn: Turn[P]) -> None:
        """Queue a new turn behind those of its line."""
        self._place_of(turn).append(turn)

    def put_back(self, turn: Turn[P], failed_on: Lane[P], delay: float) -> None:
        """Queue a turn that failed, before all that came after it."""
        turn.failed_on.add(failed_on)
        turn.not_before = self._clock() + delay
        self._place_of(turn).appendleft(turn)

    def withdraw(self, turn: Turn[P]) -> bool:
        """Take a waiting turn out of the queue; False if it does not wait (any more)."""
        place = self._firsts if turn.is_first else self._lines.get(turn.line)
        if place is None or turn not in place:
            return False
        place.remove(turn)
        self._forget_empty(turn.line)
        return True

    def promote(self, turn: Turn[P]) -> None:
        """Another request waits for this one as its first: it goes where first ones go."""
        if turn.is_first:
            return
        waits = self.withdraw(turn)
        turn.is_first = True  # also of one under way: it may fail and come back
        if waits:
            self._firsts.append(turn)

    def assign(self) -> list[tuple[Turn[P], Lane[P]]]:
        """Everything that can begin now, which then counts as under way."""
        begun = []
        while (match := self._next_match()) is not None:
            turn, lane = match
            self._take(turn)
            lane.under_way[turn] = self._clock()
            lane.on_their_way.add(turn)
            lane.last_voice, lane.last_handover = turn.voice, self._clock()
            begun.append(match)
        return begun

    def note_arrival(self, turn: Turn[P], lane: Lane[P]) -> None:
        """The backend has the turn in its own queue: what is handed over now comes after it."""
        lane.on_their_way.discard(turn)

    def finish(self, turn: Turn[P], lane: Lane[P], *, spoken: bool) -> None:
        """The call has ended; a spoken one tells the lane's pace."""
        now = self._clock()
        handed_over_early = list(lane.under_way)[lane.slots :]
        began = lane.under_way.pop(turn)
        lane.on_their_way.discard(turn)
        for successor in handed_over_early:
            if successor in lane.under_way:  # it begins only now
                lane.under_way[successor] = now
        if spoken and turn.length:
            pace = (now - began) / turn.length
            known = pace if lane.pace is None else lane.pace
            lane.pace = known + _SMOOTHING * (pace - known)

    def next_change(self) -> float | None:
        """When, on the clock, time alone may let a turn begin; None: never."""
        if not self:
            return None
        handovers = [
            when
            for lane in self.lanes
            if lane.is_open and self._is_full(lane) and (when := lane.handover_at()) is not None
        ]
        retries = [turn.not_before for turn in self.waiting() if turn.failed_on]
        now = self._clock()
        return min((when for when in handovers + retries if when > now), default=None)

    def _next_match(self) -> tuple[Turn[P], Lane[P]] | None:
        lanes = [lane for lane in self.lanes if self._has_room(lane)]
        for turn in self._in_order() if lanes else ():
            usable = [lane for lane in lanes if self._may(turn, lane)]
            if usable:
                return turn, min(usable, key=lambda lane: self._reluctance(lane, turn))
        return None

    def _in_order(self) -> Iterator[Turn[P]]:
        yield from self._firsts
        for line in self._lines.values():
            yield from line

    def _reluctance(self, lane: Lane[P], turn: Turn[P]) -> tuple[bool, int, bool, float]:
        is_stranger = lane.last_voice != turn.voice
        return self._is_full(lane), len(lane.under_way), is_stranger, lane.last_handover

    def _has_room(self, lane: Lane[P]) -> bool:
        if not lane.is_open or len(lane.under_way) > lane.slots:
            return False
        if not self._is_full(lane):
            return True
        when = lane.handover_at()
        return when is not None and self._clock() >= when

    def _is_full(self, lane: Lane[P]) -> bool:
        return len(lane.under_way) >= lane.slots

    def _may(self, turn: Turn[P], lane: Lane[P]) -> bool:
        """Whether a turn may go there: where it has failed only if nothing else is left to try."""
        if lane not in turn.failed_on:
            return True
        has_others = any(other.is_open and other not in turn.failed_on for other in self.lanes)
        return not has_others and self._clock() >= turn.not_before

    def _place_of(self, turn: Turn[P]) -> deque[Turn[P]]:
        if turn.is_first:
            return self._firsts
        return self._lines.setdefault(turn.line, deque())

    def _take(self, turn: Turn[P]) -> None:
        self.withdraw(turn)
        if not turn.is_first and turn.line in self._lines:
            self._lines.move_to_end(turn.line)

    def _forget_empty(self, line: Hashable) -> None:
        if line in self._lines and not self._lines[line]:
            del self._lines[line]
