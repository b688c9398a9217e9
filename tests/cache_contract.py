"""What any cache must keep: mix `CacheContract` into a test class that has the two fixtures."""

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import pytest


class AnyCache(Protocol):
    """What Flask-Caching's backends have in common, for bytes; timeouts in whole seconds."""

    def get(self, key: str) -> bytes | None: ...

    def set(
        self, key: str, value: bytes, timeout: int | timedelta | None = None
    ) -> bool | None: ...

    def add(self, key: str, value: bytes, timeout: int | timedelta | None = None) -> bool: ...

    def has(self, key: str) -> bool: ...

    def delete(self, key: str) -> bool: ...

    def clear(self) -> bool: ...


Elapse = Callable[[float], None]


class Unpicklable(bytes):
    """Bytes, but whoever hands them to a serializer is found out."""

    def __reduce_ex__(self, protocol: object) -> str:
        raise AssertionError("a cache must not serialize what it is given")


class Boom:
    """Unpickling it raises."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (pytest.fail, ("a cache must not unpickle what it holds",))


class CacheContract:
    """Promises about values, absence and time.

    `cache` is an empty one whose default timeout is longer than a minute; `elapse(seconds)` lets
    time pass for it.
    """

    @pytest.fixture
    def cache(self) -> AnyCache:
        raise NotImplementedError

    @pytest.fixture
    def elapse(self) -> Elapse:
        raise NotImplementedError

    @pytest.mark.parametrize(
        "value",
        [b"", b"RIFF", b"\x00\xff" * 50_000, b"!\x80\x04K\x01.", pickle.dumps({"a": 1}), b"12"],
        ids=["empty", "short", "long", "marked pickle", "pickle", "number"],
    )
    def test_bytes_come_back_as_they_went_in(self, cache: AnyCache, value: bytes) -> None:
        assert cache.set("key", value)
        assert cache.get("key") == value

    @pytest.mark.parametrize("key", ["answer:0f", "您好", "a b\n", "x" * 300])
    def test_any_text_is_a_key(self, cache: AnyCache, key: str) -> None:
        cache.set(key, b"value")
        assert cache.has(key)
        assert cache.get(key) == b"value"
        assert cache.delete(key)

    def test_nothing_is_pickled_on_its_way_in(self, cache: AnyCache) -> None:
        assert cache.set("key", Unpicklable(b"value"))
        assert cache.add("other", Unpicklable(b"value"))
        assert cache.get("key") == b"value"

    def test_nothing_is_unpickled_on_its_way_out(self, cache: AnyCache) -> None:
        trap = pickle.dumps(Boom())
        for key, value in (("plain", trap), ("marked", b"!" + trap)):
            cache.set(key, value)
            assert cache.get(key) == value

    @pytest.mark.parametrize("value", ["text", 1, None, bytearray(b"a"), memoryview(b"a"), [b"a"]])
    def test_whatever_is_not_bytes_is_refused_and_changes_nothing(
        self, cache: AnyCache, value: object
    ) -> None:
        cache.set("key", b"value")
        with pytest.raises(TypeError):
            cache.set("key", value)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            cache.add("other", value)  # type: ignore[arg-type]
        assert cache.get("key") == b"value"
        assert not cache.has("other")

    def test_what_was_never_set_is_absent(self, cache: AnyCache) -> None:
        assert cache.get("key") is None
        assert not cache.has("key")
        assert not cache.delete("key")

    def test_a_second_set_replaces_the_first(self, cache: AnyCache) -> None:
        cache.set("key", b"one")
        cache.set("key", b"two")
        assert cache.get("key") == b"two"

    def test_add_stores_only_where_there_is_nothing(self, cache: AnyCache) -> None:
        assert cache.add("key", b"one")
        assert not cache.add("key", b"two")
        assert cache.get("key") == b"one"

    def test_delete_takes_one_key_and_leaves_the_others(self, cache: AnyCache) -> None:
        cache.set("one", b"1")
        cache.set("two", b"2")
        assert cache.delete("one")
        assert cache.get("one") is None
        assert cache.get("two") == b"2"

    def test_clear_empties_it(self, cache: AnyCache) -> None:
        cache.set("one", b"1")
        cache.set("two", b"2", timeout=0)
        assert cache.clear()
        assert not cache.has("one")
        assert not cache.has("two")
        assert cache.set("one", b"1")

    @pytest.mark.parametrize("timeout", [1, timedelta(seconds=1)])
    def test_a_value_is_there_until_its_timeout_and_then_gone(
        self, cache: AnyCache, elapse: Elapse, timeout: int | timedelta
    ) -> None:
        cache.set("key", b"value", timeout=timeout)
        elapse(0.5)
        assert cache.has("key")
        assert cache.get("key") == b"value"
        elapse(0.6)
        assert not cache.has("key")
        assert cache.get("key") is None
        assert not cache.delete("key")

    def test_a_timeout_below_a_second_is_not_for_ever(
        self, cache: AnyCache, elapse: Elapse
    ) -> None:
        cache.set("key", b"value", timeout=timedelta(milliseconds=300))
        elapse(1.1)
        assert not cache.has("key")

    def test_what_has_expired_is_not_there_to_be_deleted(
        self, cache: AnyCache, elapse: Elapse
    ) -> None:
        cache.set("key", b"value", timeout=1)
        elapse(1.1)
        assert not cache.delete("key")

    def test_reading_does_not_prolong(self, cache: AnyCache, elapse: Elapse) -> None:
        cache.set("key", b"value", timeout=1)
        elapse(0.6)
        assert cache.get("key")
        elapse(0.6)
        assert cache.get("key") is None

    def test_add_takes_the_place_of_what_has_expired(self, cache: AnyCache, elapse: Elapse) -> None:
        cache.set("key", b"one", timeout=1)
        elapse(1.1)
        assert cache.add("key", b"two")
        assert cache.get("key") == b"two"

    def test_setting_again_sets_the_timeout_again(self, cache: AnyCache, elapse: Elapse) -> None:
        cache.set("longer", b"one", timeout=1)
        cache.set("longer", b"two", timeout=60)
        cache.set("shorter", b"one", timeout=60)
        cache.set("shorter", b"two", timeout=1)
        elapse(1.1)
        assert cache.get("longer") == b"two"
        assert cache.get("shorter") is None

    def test_no_timeout_is_the_default_and_zero_is_for_ever(
        self, cache: AnyCache, elapse: Elapse
    ) -> None:
        cache.set("default", b"1")
        cache.set("for ever", b"2", timeout=0)
        cache.set("for ever, too", b"3", timeout=timedelta(0))
        elapse(1.1)
        assert cache.get("default") == b"1"
        assert cache.get("for ever") == b"2"
        assert cache.get("for ever, too") == b"3"
