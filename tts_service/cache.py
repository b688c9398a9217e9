"""The bounded cache: Flask-Caching's SimpleCache made truly LRU, with a byte bound.

Only raw bytes enter. Nothing is pickled, so nothing is ever unpickled.
"""

import datetime
import heapq
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from flask import Flask
from flask_caching.backends.simplecache import SimpleCache


class SpeechCache(Protocol):
    """What the speech path asks of a cache; tests/cache_contract.py says what it must keep."""

    def get(self, key: str) -> bytes | None: ...

    def set(self, key: str, value: bytes) -> bool: ...

    def has(self, key: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the cache holds now, and what it did since the start."""

    entries: int
    max_entries: int
    bytes: int
    max_bytes: int
    hits: int
    misses: int
    evictions: int


class BoundedCache(SimpleCache):
    """At most `threshold` entries and `max_bytes` bytes; the least recently used leave first.

    Get, set and eviction take constant time (and the logarithm of the size for expiry),
    at any size. A value that is larger than the byte bound is not stored.
    """

    def __init__(
        self,
        threshold: int = 100,
        default_timeout: int = 86400,
        max_bytes: int = 256 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        super().__init__(threshold=threshold, default_timeout=default_timeout, **options)
        self._cache: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._threshold = threshold  # 0 means none here; SimpleCache would make it 500
        self._max_bytes = max_bytes
        self._clock = clock
        self._bytes = 0
        self._hits = self._misses = self._evictions = 0
        self.on_eviction: Callable[[], None] = lambda: None
        self._expiries: list[tuple[float, str]] = []  # a heap; entries may be out of date

    @classmethod
    def factory(
        cls,
        app: Flask,  # noqa: ARG003 - the signature is Flask-Caching's
        config: dict[str, Any],
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> "BoundedCache":
        """Flask-Caching's way to build a backend from its settings."""
        bounds = {"threshold": config["CACHE_THRESHOLD"], "max_bytes": config["MAX_CACHE_BYTES"]}
        return cls(*args, **{**kwargs, **bounds})

    def get(self, key: str) -> bytes | None:
        """The value, which becomes the most recently used; None where there is none."""
        with self._lock:
            entry = self._cache.get(key)
            if entry is not None and self._is_over(entry[0]):
                self._drop(key)
                entry = None
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            self._cache.move_to_end(key)
            return entry[1]

    def set(self, key: str, value: bytes, timeout: int | datetime.timedelta | None = None) -> bool:
        """Store `value`; False if it is too large to be stored. Raises TypeError for non-bytes."""
        if not isinstance(value, bytes):
            raise TypeError(f"only bytes enter the cache, not {type(value).__name__}")
        with self._lock:
            self._drop(key)
            self._drop_expired()
            if len(value) > self._max_bytes or not self._threshold:
                return False
            expires = self._expiry(timeout)
            self._cache[key] = (expires, value)
            self._bytes += len(value)
            self._note_expiry(expires, key)
            while len(self._cache) > self._threshold or self._bytes > self._max_bytes:
                self._drop(next(iter(self._cache)))
                self._evictions += 1
                self.on_eviction()
            return True

    def add(self, key: str, value: bytes, timeout: int | datetime.timedelta | None = None) -> bool:
        """Store `value` unless there is one already; whether it was stored."""
        with self._lock:
            return not self.has(key) and self.set(key, value, timeout)

    def has(self, key: str) -> bool:
        """Whether there is a value; counts neither as a hit nor as a use."""
        with self._lock:
            entry = self._cache.get(key)
            return entry is not None and not self._is_over(entry[0])

    def delete(self, key: str) -> bool:
        """Whether there was a value."""
        with self._lock:
            was_there = self.has(key)
            self._drop(key)
            return was_there

    def clear(self) -> bool:
        with self._lock:
            self._cache.clear()
            self._expiries.clear()
            self._bytes = 0
            return True

    def stats(self) -> CacheStats:
        with self._lock:
            self._drop_expired()
            return CacheStats(
                entries=len(self._cache),
                max_entries=self._threshold,
                bytes=self._bytes,
                max_bytes=self._max_bytes,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
            )

    def _drop(self, key: str) -> None:
        entry = self._cache.pop(key, None)
        if entry is not None:
            self._bytes -= len(entry[1])

    def _is_over(self, expires: float) -> bool:
        return expires <= self._clock()

    def _expiry(self, timeout: int | datetime.timedelta | None) -> float:
        seconds: float = self.default_timeout
        if isinstance(timeout, datetime.timedelta):
            seconds = timeout.total_seconds()
        elif timeout is not None:
            seconds = timeout
        return self._clock() + seconds if seconds else math.inf  # 0 is for ever in Flask-Caching

    def _note_expiry(self, expires: float, key: str) -> None:
        heapq.heappush(self._expiries, (expires, key))
        if len(self._expiries) > 2 * len(self._cache) + 64:  # most of it is out of date by now
            self._expiries = [(entry[0], key) for key, entry in self._cache.items()]
            heapq.heapify(self._expiries)

    def _drop_expired(self) -> None:
        while self._expiries and self._is_over(self._expiries[0][0]):
            expires, key = heapq.heappop(self._expiries)
            entry = self._cache.get(key)
            if entry is not None and entry[0] == expires:
                self._drop(key)
