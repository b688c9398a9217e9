"""Once: many callers, one flight, whoever comes and goes."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tts_service.errors import BackendError, SpeechError
from tts_service.flights import Flight, Flights, Withdrawn

LIMIT = 10.0  # seconds; nothing here should take a tenth of it


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.001)


@pytest.fixture
def flights() -> Flights[str]:
    return Flights()


def fly(flights: Flights[str], key: str, take_off: Callable[[Flight[str]], None]) -> str:
    """What a caller does."""
    flight, is_new = flights.board(key)
    try:
        if is_new:
            take_off(flight)
        assert flight.wait(LIMIT)
        return flight.result()
    finally:
        flights.leave(flight)


def test_a_herd_on_one_key_takes_off_once(flights: Flights[str]) -> None:
    took_off = []

    def take_off(flight: Flight[str]) -> None:
        took_off.append(flight)
        wait_until(lambda: flight.waiters == 32)
        flights.land(flight, "sound")

    with ThreadPoolExecutor(32) as pool:
        calls = [pool.submit(fly, flights, "key", take_off) for _ in range(32)]
        assert [call.result() for call in calls] == ["sound"] * 32
    assert len(took_off) == 1
    assert flights.joined == 31
    assert len(flights) == 0


def test_an_error_reaches_everybody_on_board(flights: Flights[str]) -> None:
    error = BackendError("It refused.")

    def take_off(flight: Flight[str]) -> None:
        wait_until(lambda: flight.waiters == 8)
        flights.land(flight, error)

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(fly, flights, "key", take_off) for _ in range(8)]
        assert [call.exception() for call in calls] == [error] * 8
    assert len(flights) == 0


def test_a_flight_knows_how_it_ended(flights: Flights[str]) -> None:
    flight, _ = flights.board("key")
    assert not flight.has_landed()
    assert not flight.wait(0)
    assert flight.failure is None
    error = BackendError("It refused.")
    flights.land(flight, error)
    assert flight.has_landed()
    assert flight.wait(0)
    assert flight.failure is error


def test_different_keys_are_different_flights(flights: Flights[str]) -> None:
    one, one_is_new = flights.board("one")
    other, other_is_new = flights.board("other")
    assert one_is_new
    assert other_is_new
    assert one is not other
    assert len(flights) == 2
    flights.land(one, "sound")
    assert not other.has_landed()


@pytest.mark.parametrize("outcome", ["sound", BackendError("It refused.")], ids=["ok", "failed"])
def test_after_landing_the_next_caller_takes_off_anew(
    flights: Flights[str], outcome: str | SpeechError
) -> None:
    first, _ = flights.board("key")
    flights.land(first, outcome)
    second, is_new = flights.board("key")
    assert is_new
    assert second is not first
    assert not second.has_landed()


def test_a_late_landing_does_not_take_the_next_flight_off_the_table(
    flights: Flights[str],
) -> None:
    first, _ = flights.board("key")
    flights.land(first, "old")
    second, _ = flights.board("key")
    flights.land(first, "old")
    joined, is_new = flights.board("key")
    assert not is_new
    assert joined is second


def queued(flight: Flight[str]) -> list[Flight[str]]:
    """A queue that holds `flight` until somebody withdraws it."""
    queue = [flight]

    def withdraw() -> bool:
        if flight in queue:
            queue.remove(flight)
            return True
        return False

    flight.withdraw = withdraw
    return queue


def test_a_follower_outlives_the_leader(flights: Flights[str]) -> None:
    flight, _ = flights.board("key")
    queue = queued(flight)
    followed, is_new = flights.board("key")
    flights.leave(flight)
    assert not is_new
    assert queue == [flight]
    assert not followed.has_landed()
    flights.land(flight, "sound")
    assert followed.result() == "sound"


def test_when_the_last_one_leaves_what_has_not_begun_is_withdrawn(flights: Flights[str]) -> None:
    flight, _ = flights.board("key")
    flights.board("key")
    queue = queued(flight)
    flights.leave(flight)
    assert queue == [flight]
    flights.leave(flight)
    assert queue == []
    assert isinstance(flight.failure, Withdrawn)
    assert len(flights) == 0
    assert flights.board("key")[1]


def test_what_has_begun_flies_on_without_anybody_and_can_be_joined(flights: Flights[str]) -> None:
    flight, _ = flights.board("key")
    queued(flight).clear()
    flights.leave(flight)
    assert not flight.has_landed()
    joined, is_new = flights.board("key")
    assert not is_new
    flights.land(flight, "sound")
    assert joined.result() == "sound"


def test_leaving_what_has_landed_withdraws_nothing(flights: Flights[str]) -> None:
    flight, _ = flights.board("key")
    queue = queued(flight)
    flights.land(flight, "sound")
    flights.leave(flight)
    assert queue == [flight]
    assert flight.result() == "sound"


def test_who_joins_while_it_is_withdrawn_is_told_and_takes_off_anew(flights: Flights[str]) -> None:
    flight, _ = flights.board("key")
    latecomers = []

    def withdraw() -> bool:
        latecomers.append(flights.board("key"))
        return True

    flight.withdraw = withdraw
    flights.leave(flight)
    [(joined, is_new)] = latecomers
    assert not is_new
    assert isinstance(joined.failure, Withdrawn)
    flights.leave(joined)
    assert flights.board("key")[1]


class Runway:
    """Lands what is queued, a moment later, in a thread of its own: now with a result, now not."""

    def __init__(self, flights: Flights[str], seed: int) -> None:
        self.landed = 0
        self._flights = flights
        self._random = random.Random(seed)
        self._queue: deque[Flight[str]] = deque()
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._land_all)
        self._thread.start()

    def take_off(self, flight: Flight[str]) -> None:
        with self._lock:
            self._queue.append(flight)
        flight.withdraw = lambda: self._withdraw(flight)

    def close(self) -> None:
        self._is_closed.set()
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()

    def _withdraw(self, flight: Flight[str]) -> bool:
        with self._lock:
            if flight in self._queue:
                self._queue.remove(flight)
                return True
            return False

    def _land_all(self) -> None:
        while self._queue or not self._is_closed.is_set():
            time.sleep(self._random.uniform(0, 0.002))
            with self._lock:
                flight = self._queue.popleft() if self._queue else None
            if flight is not None:
                is_lucky = self._random.random() < 0.8
                outcome = f"sound of {flight.key}" if is_lucky else BackendError(flight.key)
                self._flights.land(flight, outcome)
                self.landed += 1


def test_callers_that_come_and_go_leave_an_empty_table(flights: Flights[str]) -> None:
    runway = Runway(flights, seed=1)

    def call(seed: int) -> int:
        chance = random.Random(seed)
        answers = 0
        for _ in range(120):
            key = chance.choice("abc")
            flight, is_new = flights.board(key)
            try:
                if is_new:
                    runway.take_off(flight)
                if chance.random() < 0.4:  # this client goes before it is answered
                    flight.wait(chance.uniform(0, 0.001))
                    continue
                assert flight.wait(LIMIT), "a caller was forgotten"
                if isinstance(flight.failure, Withdrawn):
                    continue
                told = flight.failure.message if flight.failure else flight.result()
                assert told.endswith(key)
                answers += 1
            finally:
                flights.leave(flight)
        return answers

    try:
        with ThreadPoolExecutor(8) as pool:
            answers = sum(pool.map(call, range(8)))
    finally:
        runway.close()
    assert answers > 200
    assert 0 < runway.landed < answers
    assert len(flights) == 0
