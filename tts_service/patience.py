"""How long answers of a server are waited for in all, told apart from how busy we are ourselves.

A thread that waits for an answer also waits for its turn in this process and on this machine, and
with a hundred threads that can be the longer part. So time is not measured around a call: the
kernel is asked to wait for a short step, again and again, and only the steps are counted that ended
without a byte, and in time. One that ended late tells that the machine was busy: then the server,
too, may have waited for its turn.
"""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

#: Seconds the kernel waits at a time: fine at first, to tell slow from quick; then coarse, for
#: each step in vain costs a busy process more than it counts.
_STEP, _LONG_STEP, _FINE_UNTIL = 0.01, 0.05, 0.05
_LATE = 2  # times a step's length
_SLOW = 0.04  # seconds of steps in vain before an answer
_LONGEST = 1.0  # seconds in vain, however they are counted

T = TypeVar("T")


class Patience:
    """How long nothing but slow answers came from a server, over all threads.

    Steps in vain add up, where those of several threads overlap only once. An answer that was
    quick makes up for them all.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit  # seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._debt = 0.0  # seconds
        self._counted_until = float("-inf")  # on the clock
        self._mine = threading.local()

    def begin(self) -> None:
        """This thread asks something."""
        self._mine.waited = self._mine.in_vain = 0.0

    def was_quick(self) -> bool:
        """It has its answer, and that did not take long."""
        is_quick: bool = self._mine.waited < _SLOW
        return is_quick

    def end(self) -> bool:
        """It has its answer. Whether there is patience left."""
        if self.was_quick():
            self._debt = 0.0
        return self._debt < self.limit

    def wait(self, connected: socket.socket, operate: Callable[[], T]) -> T:
        """What `operate` gives, which waits for `connected` as long as its timeout says. Raises
        TimeoutError when patience has run out."""
        while True:
            began = self._clock()
            try:
                return operate()
            except TimeoutError:
                if self._has_run_out(began, connected.gettimeout() or 0.0):
                    raise
                is_early = self._mine.in_vain < _FINE_UNTIL
                connected.settimeout(_STEP if is_early else _LONG_STEP)

    def _has_run_out(self, began: float, step: float) -> bool:
        """One more step in vain, which began then and should have taken so long."""
        mine, took = self._mine, self._clock() - began
        mine.in_vain += took
        if took < _LATE * step:
            mine.waited += step
            with self._lock:
                self._debt += max(0.0, step - max(0.0, self._counted_until - began))
                self._counted_until = max(self._counted_until, began + step)
        return self._debt >= self.limit or mine.in_vain >= _LONGEST

    def forgive(self) -> None:
        """Begin anew."""
        self._debt = 0.0


class PatientSocket:
    """A connected socket whose every wait is one of `patience`."""

    def __init__(self, connected: socket.socket, patience: Patience) -> None:
        self._socket = connected
        self._patience = patience
        self._socket.settimeout(_STEP)

    def settimeout(self, seconds: float | None) -> None:
        """0: do not wait; anything else: as long as there is patience."""
        self._socket.settimeout(0 if seconds == 0 else _STEP)

    def recv(self, size: int) -> bytes:
        return self._wait(lambda: self._socket.recv(size))

    def sendall(self, data: bytes | memoryview) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            sent = self._wait(lambda: self._socket.send(rest))  # noqa: B023 - called at once
            rest = rest[sent:]

    def _wait(self, operate: Callable[[], T]) -> T:
        before = self._socket.gettimeout()
        try:
            return self._patience.wait(self._socket, operate)
        finally:
            if self._socket.gettimeout() != before and self._socket.fileno() >= 0:
                self._socket.settimeout(before)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def patiently(connection: type[Any], patience: Patience) -> type[Any]:
    """A class of redis-py's connections, with such sockets."""

    class Patient(connection):  # type: ignore[misc] # whichever class the URL asks for
        def _connect(self) -> PatientSocket:
            return PatientSocket(super()._connect(), patience)

    return Patient
