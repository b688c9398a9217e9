"""Once, everywhere: real gunicorns on one real Redis."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest
from conftest import StartGateway
from servers import Gateway, GradioApp, RedisServer, wait_until

TEXT = " ".join(f"This is sentence number {number} of a text for everybody." for number in range(6))

Fault = Callable[[RedisServer], None]


@pytest.fixture
def pair(
    gateway: StartGateway, backend: GradioApp, redis_server: RedisServer
) -> tuple[Gateway, Gateway]:
    """Two services on one backend and one Redis."""
    settings = {"GRADIO_URL": backend.url, "REDIS_URL": redis_server.url}
    return gateway(**settings), gateway(**settings)


def ask(service: Gateway, text: str) -> httpx.Response:
    """On a connection of its own, so that any worker may answer."""
    return httpx.post(f"{service.url}/v1/audio/speech", json={"input": text}, timeout=60)


def spoken(backend: GradioApp) -> list[str]:
    return [call["arguments"]["text"] for call in backend.calls]


def ask_both(
    pool: ThreadPoolExecutor, pair: tuple[Gateway, Gateway], backend: GradioApp, text: str
) -> tuple[Future[httpx.Response], Future[httpx.Response]]:
    """The first asks and is being spoken to; then the second asks the same."""
    first, second = pair
    backend.control(hold=True)
    leader = pool.submit(ask, first, text)
    wait_until(lambda: backend.state()["active"] == 1)
    follower = pool.submit(ask, second, text)
    wait_until(lambda: second.health()["queue"]["requests"] == 1)
    return leader, follower


@pytest.mark.alone
def test_a_hundred_identical_requests_over_two_masters_make_one_call_a_segment(
    gateway: StartGateway, backend: GradioApp, redis_server: RedisServer
) -> None:
    settings = {
        "GRADIO_URL": backend.url,
        "REDIS_URL": redis_server.url,
        "WEB_CONCURRENCY": 2,
    }
    services = [gateway(**settings), gateway(**settings)]
    with ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(ask, services[number % 2], TEXT) for number in range(100)]
        answers = [each.result() for each in asked]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    calls = spoken(backend)
    complaints = [line for each in services for line in each.log.splitlines() if "redis" in line]
    assert len(calls) == len(set(calls)) >= 2, complaints
    assert " ".join(sorted(calls, key=TEXT.index)) == TEXT
    assert redis_server.client.keys("tts:1:claim:*") == []


def test_what_one_service_has_spoken_is_a_hit_at_the_other(
    pair: tuple[Gateway, Gateway], backend: GradioApp
) -> None:
    first, second = pair
    miss, hit, again = ask(first, TEXT), ask(second, TEXT), ask(second, TEXT)
    assert [each.headers["X-Cache"] for each in (miss, hit, again)] == ["MISS", "HIT", "HIT"]
    assert miss.content == hit.content == again.content
    assert miss.headers["ETag"] == hit.headers["ETag"]
    assert len(spoken(backend)) == len(set(spoken(backend)))


def test_whoever_waits_for_another_service_is_told_so(
    pair: tuple[Gateway, Gateway], backend: GradioApp
) -> None:
    with ThreadPoolExecutor(2) as pool:
        leader, follower = ask_both(pool, pair, backend, "For both.")
        backend.control(hold=False)
        assert leader.result().headers["X-Cache"] == "MISS"
        assert follower.result().headers["X-Cache"] == "COALESCED"
    assert spoken(backend) == ["For both."]


def test_when_the_holder_is_killed_another_takes_over_within_seconds(
    pair: tuple[Gateway, Gateway], backend: GradioApp
) -> None:
    with ThreadPoolExecutor(2) as pool:
        leader, follower = ask_both(pool, pair, backend, "Who will say it?")
        pair[0].stop(signal.SIGKILL)
        began = time.monotonic()
        backend.control(hold=False)
        assert follower.result().status_code == 200
        assert time.monotonic() - began < 6
        assert isinstance(leader.exception(), httpx.TransportError)


def test_a_holder_that_fails_does_not_fail_those_who_wait_elsewhere(
    gateway: StartGateway, backend: GradioApp, redis_server: RedisServer
) -> None:
    settings = {"GRADIO_URL": backend.url, "REDIS_URL": redis_server.url}
    pair = gateway(**settings, GRADIO_CALL_ATTEMPTS=1), gateway(**settings)
    with ThreadPoolExecutor(2) as pool:
        leader, follower = ask_both(pool, pair, backend, "It fails once.")
        backend.control(hold=False, fail_first=1)
        statuses = leader.result().status_code, follower.result().status_code
    assert statuses[1] == 200


def test_a_departed_waiter_leaves_nothing_behind(
    pair: tuple[Gateway, Gateway], backend: GradioApp
) -> None:
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(ask, pair[0], "Nobody else waits.")
        backend.control(hold=True)
        wait_until(lambda: backend.state()["active"] == 1 or leader.done())
        with pytest.raises(httpx.ReadTimeout):
            pair[1].client.post(
                "/v1/audio/speech", json={"input": "Nobody else waits."}, timeout=0.5
            )
        wait_until(lambda: pair[1].health()["queue"] == {"segments": 0, "requests": 0}, 2)
        backend.control(hold=False)
        assert leader.result().status_code == 200
    assert spoken(backend) == ["Nobody else waits."]


@pytest.mark.parametrize(
    "fault",
    [
        RedisServer.stop,
        RedisServer.freeze,
        RedisServer.restart,
        lambda redis: redis.client.flushall(),
    ],
    ids=["lost", "frozen", "restarted", "flushed"],
)
def test_a_redis_that_fails_in_mid_flight_fails_nobody(
    pair: tuple[Gateway, Gateway], backend: GradioApp, redis_server: RedisServer, fault: Fault
) -> None:
    with ThreadPoolExecutor(2) as pool:
        leader, follower = ask_both(pool, pair, backend, "In the middle of it.")
        fault(redis_server)
        time.sleep(0.2)
        began = time.monotonic()
        backend.control(hold=False)
        assert (leader.result().status_code, follower.result().status_code) == (200, 200)
        assert time.monotonic() - began < 5
    assert 1 <= len(spoken(backend)) <= 2


@pytest.mark.alone
def test_with_a_frozen_redis_requests_go_on_a_line_says_so_and_it_is_used_again(
    pair: tuple[Gateway, Gateway], backend: GradioApp, redis_server: RedisServer
) -> None:
    first, second = pair
    usual = min(ask(first, f"Before it, {number}.").elapsed.total_seconds() for number in range(5))
    assert first.health()["redis"]["state"] == "up"
    redis_server.freeze()
    longest = ask(first, TEXT.replace("everybody", "a test")).elapsed.total_seconds()
    segments = len([text for text in spoken(backend) if "a test" in text])
    assert longest < 0.25 + segments * usual + 0.5
    assert first.health()["redis"]["state"] == "down"
    assert "is left alone for now" in first.log
    metrics = first.client.get("/metrics").text
    assert "tts_redis_up 0.0" in metrics
    assert ask(first, "Before it, 1.").headers["X-Cache"] == "HIT"
    redis_server.thaw()
    wait_until(lambda: first.health()["redis"]["state"] == "up", 3)
    assert "is back" in first.log
    ask(first, "After it.")
    assert ask(second, "After it.").headers["X-Cache"] == "HIT"


def test_without_redis_health_says_that_there_is_none(
    gateway: StartGateway, backend: GradioApp
) -> None:
    assert gateway(GRADIO_URL=backend.url).health()["redis"] is None


def test_a_redis_that_is_not_there_at_start_keeps_nobody_from_speaking(
    gateway: StartGateway, backend: GradioApp, redis_server: RedisServer
) -> None:
    redis_server.stop()
    service = gateway(GRADIO_URL=backend.url, REDIS_URL=redis_server.url, SELF_TEST=1)
    wait_until(lambda: service.health()["self_test"]["state"] == "passed")
    assert ask(service, "It speaks.").status_code == 200
    redis_server.launch()
    wait_until(lambda: service.health()["redis"]["state"] == "up")
