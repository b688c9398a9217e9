"""Two caches as one: the process's own, and behind it the one that processes share."""

from collections.abc import Callable
from datetime import timedelta

from tts_service.cache import BoundedCache
from tts_service.shared_cache import SharedCache, Timeout


class Tiers:
    """Asks `own` first. What only `shared` has enters `own`, for as long as it stays there.

    `is_sound` judges what comes from `shared`, which others can write to: anything else is as
    good as absent.
    """

    def __init__(
        self, own: BoundedCache, shared: SharedCache, *, is_sound: Callable[[bytes], bool]
    ) -> None:
        self._own = own
        self._shared = shared
        self._is_sound = is_sound

    def get(self, key: str) -> bytes | None:
        value = self._own.get(key)
        if value is not None:
            return value
        found = self._shared.fetch(key)
        if found is None or not self._is_sound(found[0]):
            return None
        value, seconds = found
        self._own.set(key, value, timedelta(seconds=seconds))
        return value

    def set(self, key: str, value: bytes, timeout: Timeout = None) -> bool:
        """Whether either has it now."""
        is_kept = self._own.set(key, value, timeout)
        return self._shared.set(key, value, timeout) or is_kept

    def add(self, key: str, value: bytes, timeout: Timeout = None) -> bool:
        """Store `value` unless either has one already; whether it was stored."""
        if not isinstance(value, bytes):
            raise TypeError(f"only bytes enter the cache, not {type(value).__name__}")
        return not self.has(key) and self.set(key, value, timeout)

    def has(self, key: str) -> bool:
        return self._own.has(key) or self._shared.has(key)

    def delete(self, key: str) -> bool:
        """Whether there was a value."""
        was_own = self._own.delete(key)
        return self._shared.delete(key) or was_own

    def clear(self) -> bool:
        return self._own.clear() and self._shared.clear()
