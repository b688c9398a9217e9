"""Once: however many callers want the same thing at the same time, it is made once.

The first caller's request takes off; the others join its flight. A flight belongs to nobody:
when the caller that took off leaves, the rest fly on. It is given up when all have left.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from tts_service.errors import SpeechError

T = TypeVar("T")


class Withdrawn(SpeechError):
    """Everybody had left the flight before it began; whoever joined since takes off anew."""


class Flight(Generic[T]):
    """Something under way that several callers wait for."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.waiters = 0  # guarded by Flights
        #: Takes it out of the queue; False if it has begun. Set by whoever takes off.
        self.withdraw: Callable[[], bool] = lambda: False
        #: Tells the queue that somebody waits for it with nothing to play yet.
        self.hurry: Callable[[], None] = lambda: None
        self._landed = threading.Event()
        self._outcome: T | SpeechError | None = None

    def has_landed(self) -> bool:
        return self._landed.is_set()

    def wait(self, timeout: float) -> bool:
        """Whether it has landed, within `timeout` seconds."""
        return self._landed.wait(timeout)

    @property
    def failure(self) -> SpeechError | None:
        """What ended it, if it has landed without a result."""
        return self._outcome if isinstance(self._outcome, SpeechError) else None

    def result(self) -> T:
        """What it brought. Raises the SpeechError that ended it."""
        if isinstance(self._outcome, SpeechError):
            raise self._outcome
        assert self._outcome is not None, "asked before it landed"
        return self._outcome

    def _settle(self, outcome: T | SpeechError) -> None:
        self._outcome = outcome
        self._landed.set()


class Flights(Generic[T]):
    """The flights of one process, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}
        self._lock = threading.Lock()
        self.joined = 0  # how often a caller found a flight under way

    def __len__(self) -> int:
        with self._lock:
            return len(self._flights)

    def board(self, key: str) -> tuple[Flight[T], bool]:
        """The flight for `key`, and whether it is a new one, which the caller must take off
        and, in whatever way it ends, land. Whoever boards must leave."""
        with self._lock:
            flight = self._flights.get(key)
            is_new = flight is None
            if flight is None:
                flight = self._flights[key] = Flight(key)
            else:
                self.joined += 1
            flight.waiters += 1
            return flight, is_new

    def land(self, flight: Flight[T], outcome: T | SpeechError) -> None:
        """Tell everybody on board; the next caller of this key takes off anew."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
        flight._settle(outcome)

    def leave(self, flight: Flight[T]) -> None:
        """One caller less. The last one takes what has not begun out of the queue."""
        with self._lock:
            flight.waiters -= 1
            is_deserted = flight.waiters == 0
        if is_deserted and not flight.has_landed() and flight.withdraw():
            self.land(flight, Withdrawn("Nobody waited for it any more."))
