"""Once, among workers and machines: a claim in Redis tells who makes what.

A claim runs out by itself soon after its holder was killed; one thread renews those that are held
here, and sees when those end that others hold and somebody here waits for. Without a Redis, and
while it is lost, everybody may make everything.
"""

import logging
import threading
import time
from collections.abc import Callable

from redis.lock import Lock

from tts_service.shared_cache import RENEW_SECONDS, SharedCache

logger = logging.getLogger(__name__)

#: Seconds between two looks, one round trip each, at all claims that are waited for.
_LOOK_SECONDS = 0.05

Then = Callable[[], None]


class Claim:
    """The right to make something; release it when that is done, or given up."""

    def __init__(self, claims: "Claims", lock: Lock | None) -> None:
        self._claims = claims
        self._lock = lock

    @property
    def is_shared(self) -> bool:
        """Whether others know of it."""
        return self._lock is not None

    def release(self) -> None:
        """May be called repeatedly, from any thread."""
        lock, self._lock = self._lock, None
        if lock is not None:
            self._claims.give_back(lock)


class Claims:
    """The claims of one process."""

    def __init__(self, shared: SharedCache | None) -> None:
        self._shared = shared
        self._changed = threading.Condition()  # guards all below
        self._held: set[Lock] = set()
        self._awaited: dict[object, tuple[str, Then]] = {}
        self._thread: threading.Thread | None = None

    def claim(self, key: str) -> Claim:
        """The right to make what belongs under `key`. Raises Taken if somebody else has it."""
        lock = None if self._shared is None else self._shared.claim(key)
        if lock is not None:
            with self._changed:
                self._held.add(lock)
                self._start()
        return Claim(self, lock)

    def when_free(self, key: str, then: Then) -> Callable[[], bool]:
        """Call `then` once, from another thread, when nobody has claimed `key` any more. Gives
        what calls that off: it tells whether it was in time."""
        ticket = object()
        with self._changed:
            self._awaited[ticket] = key, then
            self._start()

        def call_off() -> bool:
            with self._changed:
                return self._awaited.pop(ticket, None) is not None

        return call_off

    def give_back(self, lock: Lock) -> None:
        assert self._shared is not None
        with self._changed:
            self._held.discard(lock)
        self._shared.release(lock)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="claims", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _watch(self) -> None:
        renew_at = time.monotonic() + RENEW_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._awaited)
                pause = _LOOK_SECONDS if self._awaited else RENEW_SECONDS / 4
            time.sleep(pause)
            with self._changed:
                held, awaited = set(self._held), dict(self._awaited)
            if time.monotonic() >= renew_at:
                renew_at = time.monotonic() + RENEW_SECONDS
                self._renew(held)
            if awaited:
                self._tell(awaited)

    def _renew(self, held: set[Lock]) -> None:
        assert self._shared is not None
        for lock in held:
            # Lost to a flush or a fault: whoever wants it now makes it a second time.
            if not self._shared.renew(lock) and self._shared.is_up:
                with self._changed:
                    self._held.discard(lock)

    def _tell(self, awaited: dict[object, tuple[str, Then]]) -> None:
        assert self._shared is not None
        claimed = self._shared.claimed(sorted({key for key, _ in awaited.values()}))
        for ticket, (key, then) in awaited.items():
            if key in claimed:
                continue
            with self._changed:
                is_wanted = self._awaited.pop(ticket, None) is not None
            if is_wanted:
                try:
                    then()
                except Exception:
                    logger.exception("what waited for a claim failed by a fault of ours")
