"""The shared cache, on a real Redis: what it keeps, and what its faults cost."""

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cache_contract import AnyCache, CacheContract, Elapse
from conftest import StartServers
from servers import RedisServer, free_port, wait_until

from tts_service import records
from tts_service.cache import BoundedCache
from tts_service.shared_cache import CLAIM_SECONDS, PREFIX, SharedCache, Taken
from tts_service.tiers import Tiers

#: What a request may wait in all for a Redis that is not there, in seconds.
PATIENCE = 0.25

Connect = Callable[..., SharedCache]


@pytest.fixture
def connect(redis_server: RedisServer) -> Iterator[Connect]:
    """`connect(**options)`: one more process's view of the same Redis."""
    caches: list[SharedCache] = []

    def build(url: str = redis_server.url, **options: int) -> SharedCache:
        caches.append(SharedCache(url, **options))
        return caches[-1]

    yield build
    for each in caches:
        each.close()


@pytest.fixture
def shared(connect: Connect) -> SharedCache:
    return connect()


class RealTime:
    """Redis has a clock of its own."""

    @pytest.fixture
    def elapse(self) -> Elapse:
        return time.sleep


class TestRedisAlone(RealTime, CacheContract):
    @pytest.fixture
    def cache(self, shared: SharedCache) -> AnyCache:
        return shared


class TestBothTiers(RealTime, CacheContract):
    @pytest.fixture
    def cache(self, shared: SharedCache) -> AnyCache:
        return Tiers(BoundedCache(), shared, is_sound=lambda value: True)


class TestASecondProcess(RealTime, CacheContract):
    """Every entry is read through Redis: the process's own tier holds none."""

    @pytest.fixture
    def cache(self, shared: SharedCache) -> AnyCache:
        return Tiers(BoundedCache(threshold=0), shared, is_sound=lambda value: True)


def tiers(shared: SharedCache) -> tuple[BoundedCache, Tiers]:
    own = BoundedCache()
    is_sound = lambda value: records.unpack(value, verify=True) is not None  # noqa: E731
    return own, Tiers(own, shared, is_sound=is_sound)


PACKED, _ = records.pack(b"sound", {"seconds": 1})


def test_keys_have_a_prefix_with_a_version_and_a_time_to_live(
    shared: SharedCache, redis_server: RedisServer
) -> None:
    shared.set("key", b"value")
    assert redis_server.client.keys() == [b"tts:1:key"]
    assert redis_server.client.get("tts:1:key") == b"value"
    assert 86_300 < redis_server.client.ttl("tts:1:key") <= 86_400


def test_clear_leaves_what_others_keep_in_the_same_redis(
    shared: SharedCache, redis_server: RedisServer
) -> None:
    redis_server.client.set("theirs", b"1")
    shared.set("ours", b"2")
    shared.clear()
    assert redis_server.client.keys() == [b"theirs"]


def test_a_value_beyond_the_bound_is_not_stored(
    connect: Connect, redis_server: RedisServer
) -> None:
    small = connect(max_bytes=10)
    assert small.set("fits", b"x" * 10)
    assert not small.set("large", b"x" * 11)
    assert redis_server.client.keys() == [b"tts:1:fits"]


def test_a_find_in_redis_fills_the_process_and_expires_there_with_redis(
    shared: SharedCache, redis_server: RedisServer
) -> None:
    own, both = tiers(shared)
    shared.set("key", PACKED, timeout=1)
    assert both.get("key") == PACKED
    redis_server.client.flushall()
    assert both.get("key") == PACKED
    time.sleep(1.1)
    assert own.get("key") is None


@pytest.mark.parametrize(
    "value",
    [b"", b"TTS1", PACKED[:-1], PACKED + b"x", b"\x80\x04K\x01.", PACKED.replace(b"so", b"SO")],
    ids=["empty", "head only", "truncated", "longer", "pickle", "damaged"],
)
def test_a_corrupt_or_foreign_value_counts_as_absent(
    shared: SharedCache, redis_server: RedisServer, value: bytes
) -> None:
    own, both = tiers(shared)
    redis_server.client.set(f"{PREFIX}key", value)
    assert both.get("key") is None
    assert not own.has("key")


def test_a_foreign_type_under_our_key_counts_as_absent(
    shared: SharedCache, redis_server: RedisServer
) -> None:
    redis_server.client.lpush(f"{PREFIX}key", b"1")
    assert shared.get("key") is None
    assert shared.is_up
    assert "WRONGTYPE" in shared.report()["last_error"]


def test_a_password_works_and_is_never_shown(start_servers: StartServers, tmp_path: Path) -> None:
    server: RedisServer = start_servers(RedisServer(tmp_path))[0]
    server.client.config_set("requirepass", "s3cret")
    server.client.connection_pool.connection_kwargs["password"] = "s3cret"
    url = server.url.replace("//", "//:s3cret@")
    right, wrong = SharedCache(url), SharedCache(server.url)
    try:
        assert right.set("key", b"value")
        assert wrong.get("key") is None
        assert not wrong.is_up
        assert "s3cret" not in str(right.report())
    finally:
        right.close()
        wrong.close()


# -- faults -----------------------------------------------------------------------------------


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ask_a_lot(cache: SharedCache) -> None:
    """What a request with many segments asks for."""
    for number in range(40):
        cache.get(f"segment:{number}")
        cache.set(f"segment:{number}", b"value")


@pytest.mark.alone
def test_a_redis_that_is_not_there_costs_a_request_less_than_a_quarter_second(
    connect: Connect,
) -> None:
    absent = connect(f"redis://127.0.0.1:{free_port()}")
    assert seconds_of(lambda: ask_a_lot(absent)) < PATIENCE
    assert absent.report()["state"] == "down"


@pytest.mark.alone
def test_a_frozen_redis_costs_a_request_less_than_a_quarter_second_and_is_used_again(
    shared: SharedCache, redis_server: RedisServer
) -> None:
    def cost() -> float:
        shared.set("key", b"value")
        redis_server.freeze()
        seconds = seconds_of(lambda: ask_a_lot(shared))
        assert not shared.is_up
        redis_server.thaw()
        wait_until(lambda: shared.is_up, 5)
        assert shared.get("key") == b"value"
        return seconds

    # At best: a busy machine only adds to it.
    assert min(cost() for _ in range(3)) < PATIENCE


@contextmanager
def slow_way(port: int, seconds: float) -> Iterator[int]:
    """A port that leads to `port`, with every answer so much later."""

    class Way(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as there:
                threading.Thread(target=self.answer, args=(there,), daemon=True).start()
                while question := self.request.recv(65536):
                    there.sendall(question)

        def answer(self, there: socket.socket) -> None:
            with suppress(OSError):  # the client has gone
                while answer := there.recv(65536):
                    time.sleep(seconds)
                    self.request.sendall(answer)

    class Ways(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Ways(("127.0.0.1", 0), Way) as ways:
        threading.Thread(target=ways.serve_forever, daemon=True).start()
        yield ways.server_address[1]
        ways.shutdown()


@pytest.mark.parametrize("seconds", [0.05, 0.15])
@pytest.mark.alone
def test_a_slow_redis_costs_a_request_less_than_a_quarter_second_and_what_it_takes_to_ask(
    seconds: float, connect: Connect, redis_server: RedisServer
) -> None:
    def cost(port: int) -> float:
        slow = connect(f"redis://127.0.0.1:{port}")
        spent = seconds_of(lambda: ask_a_lot(slow))  # 80 answers: 4 s or 12
        assert slow.report()["state"] == "down"
        return spent

    with slow_way(redis_server.port, seconds) as port:
        # At best: a busy machine only adds to it.
        assert min(cost(port) for _ in range(3)) < PATIENCE + seconds


@pytest.mark.alone
def test_our_own_busy_threads_are_not_taken_for_a_slow_redis(connect: Connect) -> None:
    """Forty threads that compute between their questions make each wait long for its turn."""
    busy = connect()
    longest: list[float] = []

    def ask_and_compute() -> None:
        for number in range(20):
            began = time.perf_counter()
            busy.get(f"segment:{number}")
            longest.append(time.perf_counter() - began)
            sum(at * at for at in range(20_000))

    threads = [threading.Thread(target=ask_and_compute) for _ in range(40)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert max(longest) > 0.03, "nobody had to wait"
    assert busy.report() == {"url": busy.name, "state": "up", "last_error": None}


def test_a_restarted_redis_is_used_again(shared: SharedCache, redis_server: RedisServer) -> None:
    shared.set("key", b"value")
    redis_server.stop()
    assert shared.get("key") is None
    redis_server.launch()
    redis_server.wait_ready()
    wait_until(lambda: shared.is_up, 3)
    assert shared.set("key", b"value")
    assert shared.get("key") == b"value"


def test_a_redis_restarted_between_two_requests_is_no_fault(
    shared: SharedCache, redis_server: RedisServer
) -> None:
    shared.set("key", b"value")
    redis_server.restart()
    assert shared.get("key") is None
    assert shared.is_up


def test_a_full_redis_is_read_but_not_written_and_nobody_fails(
    shared: SharedCache, redis_server: RedisServer
) -> None:
    shared.set("key", b"value")
    redis_server.client.config_set("maxmemory", "1")
    assert not shared.set("other", b"value")
    assert shared.get("key") == b"value"
    assert shared.report()["state"] == "up"
    assert "maxmemory" in shared.report()["last_error"]
    assert shared.claim("segment") is None  # cannot be told


# -- claims -----------------------------------------------------------------------------------


def test_a_claim_is_one_processs_until_it_is_released(connect: Connect) -> None:
    one, another = connect(), connect()
    claim = one.claim("key")
    assert claim is not None
    with pytest.raises(Taken):
        another.claim("key")
    assert another.claimed(["key", "other"]) == {"key"}
    one.release(claim)
    assert another.claimed(["key"]) == frozenset()
    assert another.claim("key") is not None


def test_a_claim_that_nobody_renews_runs_out(connect: Connect) -> None:
    one, another = connect(), connect()
    assert one.claim("key")
    took = seconds_of(lambda: wait_until(lambda: not another.claimed(["key"]), 2 * CLAIM_SECONDS))
    assert took == pytest.approx(CLAIM_SECONDS, abs=0.5)


def test_a_flushed_claim_is_neither_renewed_nor_an_error_to_release(
    shared: SharedCache, redis_server: RedisServer
) -> None:
    claim = shared.claim("key")
    assert claim is not None
    redis_server.client.flushall()
    assert not shared.renew(claim)
    shared.release(claim)
    assert shared.is_up


# -- counters --------------------------------------------------------------------------------------


def test_a_counter_counts_for_everybody_and_begins_anew_when_its_time_is_over(
    connect: Connect,
) -> None:
    one, another = connect(), connect()
    assert one.counted("rate:a") == (0, 0)
    counts = [count.count("rate:a", 30) for count in (one, another, one)]
    assert [count and count[0] for count in counts] == [1, 2, 3]
    assert all(count and 20 < count[1] <= 30 for count in counts)
    seen = another.counted("rate:a")
    assert seen is not None
    assert seen[0] == 3
    assert one.count("rate:b", 0.05)
    wait_until(lambda: another.counted("rate:b") == (0, 0))
    again = one.count("rate:b", 30)
    assert again is not None
    assert again[0] == 1


def test_a_redis_that_is_lost_or_full_counts_nothing_and_keeps_nobody_waiting(
    start_servers: StartServers, connect: Connect, tmp_path: Path
) -> None:
    full: RedisServer = start_servers(RedisServer(tmp_path, "--maxmemory", "1"))[0]
    assert connect(full.url).count("rate:a", 30) is None
    lost = connect(f"redis://127.0.0.1:{free_port()}")
    assert lost.count("rate:a", 30) is None
    assert lost.counted("rate:a") is None
    assert not lost.is_up
