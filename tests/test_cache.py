"""The bounded cache, built as the service builds it: by Flask-Caching, from a CACHE_TYPE."""

import functools
import itertools
import sys
import threading
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator

import pytest
from cache_contract import CacheContract, Elapse
from flask import Flask
from flask_caching import Cache
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tts_service.cache import BoundedCache

DAY = 86_400


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def elapse(self, seconds: float) -> None:
        self.now += seconds


def build(
    *,
    threshold: int = 100,
    max_bytes: int = 1_000_000,
    timeout: int = DAY,
    clock: Callable[[], float] | None = None,
) -> BoundedCache:
    app = Flask(__name__)
    cache = Cache(
        app,
        config={
            "CACHE_TYPE": "tts_service.cache.BoundedCache",
            "CACHE_THRESHOLD": threshold,
            "CACHE_DEFAULT_TIMEOUT": timeout,
            "CACHE_OPTIONS": {"clock": clock} if clock else None,
            "MAX_CACHE_BYTES": max_bytes,
        },
    )
    bounded = app.extensions["cache"][cache]
    assert isinstance(bounded, BoundedCache)
    return bounded


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestBoundedCache(CacheContract):
    @pytest.fixture
    def cache(self, clock: Clock) -> BoundedCache:
        return build(clock=clock)

    @pytest.fixture
    def elapse(self, clock: Clock) -> Elapse:
        return clock.elapse

    def test_the_object_itself_comes_back(self, cache: BoundedCache) -> None:
        value = bytes(range(256)) * 100
        cache.set("key", value)
        assert cache.get("key") is value

    def test_the_default_timeout_is_the_one_configured(self, clock: Clock) -> None:
        cache = build(timeout=60, clock=clock)
        cache.set("key", b"value")
        clock.elapse(59.9)
        assert cache.has("key")
        clock.elapse(0.1)
        assert not cache.has("key")

    def test_it_keeps_time_by_itself_where_it_is_given_no_clock(self) -> None:
        cache = build()
        cache.set("key", b"value", timeout=1)
        assert cache.has("key")
        end = time.monotonic() + 5
        while cache.has("key") and time.monotonic() < end:
            time.sleep(0.02)
        assert not cache.has("key")


def keys_in(cache: BoundedCache, keys: str) -> str:
    """Which of `keys` (a letter each) are there; looking is no use of them."""
    return "".join(key for key in keys if cache.has(key))


def fill(cache: BoundedCache, keys: str, size: int = 1) -> None:
    for key in keys:
        cache.set(key, b"x" * size)


@pytest.mark.parametrize("threshold", [1, 2, 3, 100])
def test_it_never_holds_more_than_the_threshold(threshold: int) -> None:
    cache = build(threshold=threshold)
    held = []
    for number in range(threshold + 5):
        cache.set(f"key{number}", b"x")
        held.append(cache.stats().entries)
    assert held == [*range(1, threshold + 1), *[threshold] * 5]


def test_the_least_recently_used_leaves_first() -> None:
    cache = build(threshold=3)
    fill(cache, "abcd")
    assert keys_in(cache, "abcd") == "bcd"


def test_getting_is_a_use() -> None:
    cache = build(threshold=3)
    fill(cache, "abc")
    cache.get("a")
    fill(cache, "de")
    assert keys_in(cache, "abcde") == "ade"


def test_setting_again_is_a_use() -> None:
    cache = build(threshold=3)
    fill(cache, "abcad")
    assert keys_in(cache, "abcd") == "acd"


def test_asking_whether_it_is_there_is_no_use() -> None:
    cache = build(threshold=3)
    fill(cache, "abc")
    assert cache.has("a")
    assert not cache.add("a", b"other")
    fill(cache, "d")
    assert keys_in(cache, "abcd") == "bcd"


def test_what_expires_soon_stays_if_it_is_used(clock: Clock) -> None:
    cache = build(threshold=2, clock=clock)
    cache.set("a", b"x", timeout=5)
    cache.set("b", b"x", timeout=500)
    cache.get("a")
    cache.set("c", b"x")
    assert keys_in(cache, "abc") == "ac"


def test_it_never_holds_more_bytes_than_the_bound() -> None:
    cache = build(max_bytes=100)
    fill(cache, "abcd", size=25)
    assert cache.stats().bytes == 100
    cache.set("e", b"x")
    assert keys_in(cache, "abcde") == "bcde"
    assert cache.stats().bytes == 76


def test_one_large_value_pushes_out_as_many_as_it_needs() -> None:
    cache = build(max_bytes=100)
    fill(cache, "abcd", size=25)
    assert cache.set("e", b"x" * 60)
    assert keys_in(cache, "abcde") == "de"
    assert cache.stats().evictions == 3


def test_a_value_as_large_as_the_bound_is_stored_and_a_larger_one_is_not() -> None:
    cache = build(max_bytes=100)
    assert not cache.set("a", b"x" * 101)
    assert cache.set("a", b"x" * 100)


def test_a_value_too_large_to_store_pushes_nothing_out() -> None:
    cache = build(max_bytes=100)
    fill(cache, "abc", size=30)
    assert not cache.set("d", b"x" * 101)
    assert keys_in(cache, "abcd") == "abc"
    assert cache.stats().evictions == 0


def test_a_value_too_large_to_store_leaves_no_old_one_under_its_key() -> None:
    cache = build(max_bytes=100)
    cache.set("a", b"old")
    assert not cache.set("a", b"x" * 101)
    assert not cache.has("a")
    assert cache.stats().bytes == 0


def test_replacing_counts_the_bytes_once() -> None:
    cache = build(max_bytes=100)
    for size in (60, 100, 10, 60):
        assert cache.set("a", b"x" * size)
        assert cache.stats().bytes == size
    assert (cache.stats().entries, cache.stats().evictions) == (1, 0)


def test_what_is_deleted_or_cleared_gives_its_bytes_back() -> None:
    cache = build(max_bytes=100)
    fill(cache, "ab", size=50)
    cache.delete("a")
    assert cache.stats().bytes == 50
    cache.clear()
    assert (cache.stats().entries, cache.stats().bytes) == (0, 0)
    fill(cache, "ab", size=50)
    assert keys_in(cache, "ab") == "ab"


def test_what_has_expired_is_counted_no_more(clock: Clock) -> None:
    cache = build(clock=clock)
    cache.set("a", b"x" * 10, timeout=5)
    cache.set("b", b"x" * 20, timeout=50)
    clock.elapse(5)
    assert (cache.stats().entries, cache.stats().bytes) == (1, 20)


def test_what_has_expired_leaves_before_anything_that_is_alive(clock: Clock) -> None:
    cache = build(threshold=2, clock=clock)
    cache.set("a", b"x")
    cache.set("b", b"x", timeout=5)
    clock.elapse(5)
    cache.set("c", b"x")
    assert keys_in(cache, "abc") == "ac"
    assert cache.stats().evictions == 0


def test_timeout_zero_past_the_threshold_costs_one_entry_each_and_not_the_cache(
    clock: Clock,
) -> None:
    cache = build(threshold=10, timeout=0, clock=clock)
    for number in range(50):
        cache.set(str(number), b"x")
        clock.elapse(10 * DAY)
    assert [key for key in map(str, range(50)) if cache.has(key)] == list(map(str, range(40, 50)))


@pytest.mark.parametrize(("threshold", "max_bytes"), [(0, 100), (100, 0)])
def test_a_bound_of_zero_stores_nothing(threshold: int, max_bytes: int) -> None:
    cache = build(threshold=threshold, max_bytes=max_bytes)
    assert not cache.set("a", b"x")
    assert not cache.add("a", b"x")
    assert cache.get("a") is None
    assert cache.stats().entries == 0


def test_stats_tell_bounds_contents_and_what_happened(clock: Clock) -> None:
    cache = build(threshold=2, max_bytes=100, clock=clock)
    fill(cache, "abc", size=10)
    for key in "abcc":
        cache.get(key)
    clock.elapse(2 * DAY)
    cache.get("c")
    told = cache.stats()
    assert (told.max_entries, told.max_bytes) == (2, 100)
    assert (told.entries, told.bytes) == (0, 0)
    assert (told.hits, told.misses, told.evictions) == (3, 2, 1)


def test_two_apps_share_nothing() -> None:
    one, other = build(), build()
    one.set("a", b"x")
    assert not other.has("a")


def seconds_each(operate: Callable[[str], object], keys: Iterator[str]) -> float:
    """The best of several rounds: on a shared machine the others were disturbed."""
    rounds = []
    for _ in range(9):
        batch = list(itertools.islice(keys, 500))
        began = time.perf_counter()
        for key in batch:
            operate(key)
        rounds.append((time.perf_counter() - began) / len(batch))
    return min(rounds)


def test_set_and_get_at_the_bound_cost_the_same_at_any_size() -> None:
    costs = []
    for size in (100, 10_000):
        cache = build(threshold=size)
        keys = map(str, itertools.count())
        for key in itertools.islice(keys, size):
            cache.set(key, b"x")
        set_cost = seconds_each(functools.partial(cache.set, value=b"x"), keys)
        held = [key for key in map(str, range(20_000)) if cache.has(key)]
        assert len(held) == size
        costs.append((set_cost, seconds_each(cache.get, itertools.cycle(held))))
    (small_set, small_get), (large_set, large_get) = costs
    assert large_set < 5 * small_set
    assert large_get < 5 * small_get


def test_setting_the_same_keys_again_and_again_needs_no_more_memory() -> None:
    cache = build()
    tracemalloc.start()
    try:
        for number in range(20_000):
            cache.set(f"{number % 7}", b"x")
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 100_000  # a note of each set would take a megabyte


class Model(RuleBasedStateMachine):
    """Any sequence of operations against a few lines that say what must come of it."""

    threshold = 4
    max_bytes = 30
    keys = st.sampled_from("abcdefg")
    sizes = st.integers(0, 12) | st.just(31)
    timeouts = st.sampled_from([None, 0, 1, 2, 5, 20])

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.cache = build(
            threshold=self.threshold, max_bytes=self.max_bytes, timeout=10, clock=self.clock
        )
        self.entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self.hits = self.misses = self.evictions = 0

    @rule(key=keys, size=sizes, timeout=timeouts)
    def set(self, key: str, size: int, timeout: int | None) -> None:
        value = key.encode() * size
        assert self.cache.set(key, value, timeout) == self.expect_set(key, value, timeout)

    @rule(key=keys, size=sizes, timeout=timeouts)
    def add(self, key: str, size: int, timeout: int | None) -> None:
        value = key.upper().encode() * size
        expected = key not in self.entries and self.expect_set(key, value, timeout)
        assert self.cache.add(key, value, timeout) == expected

    @rule(key=keys)
    def get(self, key: str) -> None:
        if key in self.entries:
            self.entries.move_to_end(key)
            self.hits += 1
            assert self.cache.get(key) is self.entries[key][1]
        else:
            self.misses += 1
            assert self.cache.get(key) is None

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.cache.delete(key) == (self.entries.pop(key, None) is not None)

    @rule(seconds=st.integers(1, 12))
    def elapse(self, seconds: int) -> None:
        self.clock.elapse(seconds)
        over = [key for key, (expires, _) in self.entries.items() if expires <= self.clock.now]
        for key in over:
            del self.entries[key]

    @precondition(lambda self: len(self.entries) > 2)
    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.entries.clear()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert [key for key in "abcdefg" if self.cache.has(key)] == sorted(self.entries)

    @invariant()
    def counts_what_the_model_counts(self) -> None:
        told = self.cache.stats()
        assert (told.hits, told.misses, told.evictions) == (self.hits, self.misses, self.evictions)
        assert told.entries == len(self.entries)
        assert told.bytes == self.held_bytes()

    def expect_set(self, key: str, value: bytes, timeout: int | None) -> bool:
        self.entries.pop(key, None)
        if len(value) > self.max_bytes:
            return False
        seconds = 10 if timeout is None else timeout
        self.entries[key] = (self.clock.now + seconds if seconds else float("inf"), value)
        while len(self.entries) > self.threshold or self.held_bytes() > self.max_bytes:
            self.entries.popitem(last=False)
            self.evictions += 1
        return True

    def held_bytes(self) -> int:
        return sum(len(value) for _, value in self.entries.values())


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("eager_switching")
def test_bounds_and_counts_hold_under_eight_threads() -> None:
    cache = build(threshold=20, max_bytes=2000)
    keys = [f"{number:02}" for number in range(40)]
    end = time.monotonic() + 1
    wrong: list[str] = []

    def work(seed: int) -> None:
        step = seed
        while time.monotonic() < end and not wrong:
            step = (step * 1103515245 + 12345) % 2**31
            key, choice = keys[(step >> 8) % 40], (step >> 16) % 10
            if choice < 5:
                cache.set(key, key.encode() * (step % 120), timeout=(step >> 20) % 3)
            elif choice < 8:
                value = cache.get(key)
                if value and not value.startswith(key.encode()):
                    wrong.append(f"{key} brought {value[:2]!r}")
            elif choice == 8:
                cache.delete(key)
            told = cache.stats()
            if told.entries > 20 or not 0 <= told.bytes <= 2000:
                wrong.append(str(told))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    held = [value for key in keys if (value := cache.get(key)) is not None]
    told = cache.stats()
    assert told.entries == len(held)
    assert told.bytes == sum(map(len, held))
    assert told.hits > 100
