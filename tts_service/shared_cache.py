"""What workers and machines share: Redis, through Flask-Caching's backend for it.

Raw bytes under a prefix with the format's version; nothing is pickled or unpickled. A Redis that
is lost or slow is left alone from the first fault on, and asked in the background until it is
back: a request waits for it once at most, and goes on without.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, TypeVar

import redis
from flask_caching.backends.rediscache import RedisCache
from redis.backoff import NoBackoff
from redis.exceptions import LockError
from redis.lock import Lock
from redis.retry import Retry

from tts_service.logs import without_credentials
from tts_service.metrics import Metrics
from tts_service.patience import Patience, patiently

logger = logging.getLogger(__name__)

#: Before every key. The number is the version of what the values look like.
PREFIX: Final = "tts:1:"
_PATIENCE: Final = 0.15  # seconds of slowness, in one answer or in several in a row
#: Bytes of a value. A larger one could not be had in time over a network of a gigabit.
_LARGEST: Final = 10_000_000
_NO_EXPIRY: Final = -1  # PTTL's word for it
_PROBE_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 2.0
#: How long a claim outlives a holder that was killed, and how often one that lives renews it.
CLAIM_SECONDS: Final = 3.0
RENEW_SECONDS: Final = 1.0

T = TypeVar("T")
Timeout = int | timedelta | None


class Taken(Exception):
    """Somebody else makes it already."""


class SharedCache(RedisCache):
    """Values and claims in the Redis at `url`. Connects when it is first asked.

    Without `verify` any certificate of a `rediss://` server will do.

    `get`, `set` and the others never raise for a fault of Redis: then nothing is there, and
    nothing was stored.
    """

    def __init__(
        self,
        url: str,
        *,
        verify: bool = True,
        default_timeout: int = 86400,
        max_bytes: int = 256 * 1024 * 1024,
        metrics: Metrics | None = None,
    ) -> None:
        tls = {"ssl_cert_reqs": "none"} if url.startswith("rediss://") and not verify else {}
        self._patience = Patience(_PATIENCE)
        pool = redis.ConnectionPool.from_url(
            url,
            **tls,  # what the URL itself says would win
            socket_connect_timeout=_PATIENCE,
            socket_timeout=_PATIENCE,  # of a TLS handshake; then patience takes over
            # Once more at once, for a connection that has broken since it was last used.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            # What a new connection would say first, at the cost of a round trip each.
            protocol=2,
            driver_info=None,
        )
        pool.connection_class = patiently(pool.connection_class, self._patience)
        client = redis.Redis.from_pool(pool)
        super().__init__(host=client, default_timeout=default_timeout, key_prefix=PREFIX)
        self.name = without_credentials(url)
        self._redis = client
        self._max_bytes = min(max_bytes, _LARGEST)
        self._metrics = metrics or Metrics()
        self._lock = threading.Lock()
        self._is_up = True  # until it is found otherwise
        self._is_refusing = False
        self._last_error: str | None = None
        self._stop = threading.Event()
        self._prober: threading.Thread | None = None
        self._metrics.note_redis(is_up=True)

    # -- values --------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        found = self.fetch(key)
        return found and found[0]

    def fetch(self, key: str) -> tuple[bytes, float] | None:
        """The value, and for how many seconds it will be there (0: for ever)."""

        def ask() -> tuple[bytes | None, int]:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.get(PREFIX + key)
                pipeline.pttl(PREFIX + key)
                value, milliseconds = pipeline.execute()
            return value, milliseconds

        nothing: tuple[bytes | None, int] = None, 0
        value, milliseconds = self._ask(ask, nothing)
        if value is None:
            return None
        return value, 0 if milliseconds == _NO_EXPIRY else max(1, milliseconds) / 1000

    def set(self, key: str, value: bytes, timeout: Timeout = None) -> bool:
        """Store `value`; False if it is too large, or Redis cannot. TypeError for non-bytes."""
        return self._store(key, value, timeout, only_new=False)

    def add(self, key: str, value: bytes, timeout: Timeout = None) -> bool:
        """Store `value` unless there is one already; whether it was stored."""
        return self._store(key, value, timeout, only_new=True)

    def has(self, key: str) -> bool:
        return bool(self._ask(lambda: self._redis.exists(PREFIX + key), 0))

    def delete(self, key: str) -> bool:
        """Whether there was a value."""
        return bool(self._ask(lambda: self._redis.delete(PREFIX + key), 0))

    def clear(self) -> bool:
        """Drop everything under the prefix, without holding Redis up for others."""

        def ask() -> bool:
            for key in self._redis.scan_iter(match=f"{PREFIX}*", count=500):
                self._redis.unlink(key)
            return True

        return self._ask(ask, otherwise=False)

    # -- claims --------------------------------------------------------------------------------

    def claim(self, key: str) -> Lock | None:
        """The right to make what belongs under `key`; None if Redis cannot tell. Renew it every
        `RENEW_SECONDS`, and release it. Raises Taken if somebody else has it."""
        lock = Lock(self._redis, self._claim_key(key), timeout=CLAIM_SECONDS, thread_local=False)
        is_ours = self._ask(lambda: lock.acquire(blocking=False), None)
        if is_ours is False:
            raise Taken(key)
        return lock if is_ours else None

    def renew(self, claim: Lock) -> bool:
        """Whether it is still ours."""
        return self._ask(lambda: _is_renewed(claim), otherwise=False)

    def release(self, claim: Lock) -> None:
        def ask() -> None:
            with suppress(LockError):  # it ran out, or Redis was flushed
                claim.release()

        self._ask(ask, None)

    def claimed(self, keys: list[str]) -> frozenset[str]:
        """Those of `keys` that somebody has claimed."""
        names = [self._claim_key(key) for key in keys]
        nothing: list[bytes | str | None] = []
        tokens = self._ask(lambda: self._redis.mget(names), nothing)
        return frozenset(key for key, token in zip(keys, tokens, strict=False) if token is not None)

    def _claim_key(self, key: str) -> str:
        return f"{PREFIX}claim:{key}"

    # -- counters ------------------------------------------------------------------------------

    def count(self, key: str, seconds: float) -> tuple[int, float] | None:
        """Add one to a counter, which begins anew `seconds` after its first: what it says now,
        and for how many more seconds. None if Redis cannot tell."""
        name = PREFIX + key

        def ask() -> tuple[int, int]:
            with self._redis.pipeline() as pipeline:
                pipeline.set(name, 0, px=round(seconds * 1000), nx=True)
                pipeline.incr(name)
                pipeline.pttl(name)
                _, count, milliseconds = pipeline.execute()
            return count, milliseconds

        return _as_counter(self._ask(ask, None))

    def counted(self, key: str) -> tuple[int, float] | None:
        """The same without adding; (0, 0) where there is no such counter."""
        name = PREFIX + key

        def ask() -> tuple[int, int]:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.get(name)
                pipeline.pttl(name)
                count, milliseconds = pipeline.execute()
            return int(count or 0), milliseconds

        return _as_counter(self._ask(ask, None))

    # -- faults --------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether it can be asked, by what is known now."""
        return self._is_up

    def report(self) -> dict[str, Any]:
        """How it is, for people."""
        with self._lock:
            state = "up" if self._is_up else "down"
            return {"url": self.name, "state": state, "last_error": self._last_error}

    def close(self) -> None:
        self._stop.set()
        if self._prober is not None:  # it would find its connection closed under its hands
            self._prober.join(_STOP_SECONDS)
        self._redis.close()

    def _store(self, key: str, value: bytes, timeout: Timeout, *, only_new: bool) -> bool:
        if not isinstance(value, bytes):
            raise TypeError(f"only bytes enter the cache, not {type(value).__name__}")
        if len(value) > self._max_bytes:
            return False
        if timeout is None:
            timeout = self.default_timeout
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout

        def ask() -> bool:
            answer = self._redis.set(
                PREFIX + key,
                memoryview(value),  # a subclass of bytes could do anything when it is written
                px=max(1, round(seconds * 1000)) if seconds else None,
                nx=only_new,
            )
            return bool(answer)

        is_stored = self._ask(ask, otherwise=False)
        if is_stored:
            self._is_refusing = False
        return is_stored

    def _ask(self, ask: Callable[[], T], otherwise: T) -> T:
        """What Redis answers, or `otherwise`."""
        if not self._is_up or self._stop.is_set():
            return otherwise
        self._patience.begin()
        try:
            answer = ask()
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            self._go_down(str(error) or type(error).__name__)
            return otherwise
        except redis.RedisError as error:  # it answers, but refuses: full, read-only, ...
            self._note_refusal(str(error))
            return otherwise
        if not self._patience.end():
            self._go_down("it has been slow for too long")
        return answer

    def _note_refusal(self, error: str) -> None:
        self._metrics.note_redis_fault()
        with self._lock:
            is_news, self._is_refusing, self._last_error = not self._is_refusing, True, error
        if is_news:
            logger.warning("redis %s refuses: %s", self.name, error)

    def _go_down(self, error: str) -> None:
        self._metrics.note_redis_fault()
        with self._lock:
            was_up, self._is_up, self._last_error = self._is_up, False, error
        if was_up:
            self._metrics.note_redis(is_up=False)
            logger.warning("redis %s is left alone for now: %s", self.name, error)
            self._prober = threading.Thread(target=self._probe, name="redis-probe", daemon=True)
            self._prober.start()

    def _probe(self) -> None:
        while not self._stop.wait(_PROBE_SECONDS):
            if self._is_quick():
                break
        else:
            return
        with self._lock:
            self._is_up, self._is_refusing = True, False
        self._metrics.note_redis(is_up=True)
        logger.info("redis %s is back", self.name)

    def _is_quick(self) -> bool:
        """Whether it answers a ping, and not slowly."""
        self._patience.forgive()
        self._patience.begin()
        try:
            self._redis.ping()
        except (redis.RedisError, OSError):
            return False
        return self._patience.was_quick()


def _as_counter(told: tuple[int, int] | None) -> tuple[int, float] | None:
    return None if told is None else (told[0], max(0, told[1]) / 1000)


def _is_renewed(claim: Lock) -> bool:
    try:
        return bool(claim.reacquire())
    except LockError:
        return False
