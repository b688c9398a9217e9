"""`RATE_LIMIT`: who may ask how often, on both ways, with Redis and without."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise

import httpx
import openai
import pytest
from conftest import StartGateway
from servers import Gateway, GradioApp, RedisServer, start_all, wait_until

from tts_service.rates import RATE_HEADERS, Rates, Windows, as_client, parse_rates

SPEECH = "/v1/audio/speech"
FIELDS = {"input": "How often?"}
KEYS = [f"key-of-{who}" for who in ("all-ways", "nobody-else", "free-things", "guesses", "sdk")]


# -- what is understood ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("60/minute", [(60, 60)]),
        ("5 per 10 seconds", [(5, 10)]),
        ("1000/day;10/second", [(10, 1), (1000, 86400)]),
        ("3/hour, 3/hour", [(3, 3600)]),
    ],
)
def test_limits_are_read_as_they_are_written(text: str, meant: list[tuple[int, int]]) -> None:
    assert [(limit.amount, limit.get_expiry()) for limit in parse_rates(text)] == meant


@pytest.mark.parametrize(
    "text", ["", "60", "60/fortnight", "minute", "0/minute", "-1/minute", "1/2 years", "60/minute;"]
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="request"):
        parse_rates(text)


def test_of_ipv6_a_whole_network_is_one_client() -> None:
    assert as_client("2001:db8::1") == as_client("2001:db8::ffff:1")
    assert as_client("2001:db8:0:1::1") != as_client("2001:db8::1")
    assert as_client("198.51.100.7") != as_client("198.51.100.8")


# -- counting --------------------------------------------------------------------------------------


def test_a_window_begins_with_its_first_request_and_then_anew() -> None:
    now = 100.0
    rates = Rates("2/minute", Windows(clock=lambda: now))
    assert [taken and taken.remaining for taken in map(rates.take, "aaa")] == [1, 0, None]
    now = 159.9
    assert rates.take("a") is None
    assert rates.standing("a").seconds == pytest.approx(0.1)
    now = 160.1
    assert [taken and taken.remaining for taken in map(rates.take, "aaa")] == [1, 0, None]


def test_the_tightest_of_several_limits_is_told() -> None:
    now = 0.0
    rates = Rates("2/second; 3/day", Windows(clock=lambda: now))
    told = []
    for now in (0.0, 0.1, 2.0, 4.0):  # noqa: B007 - the clock reads it
        taken = rates.take("a")
        told.append(taken and (taken.limit.amount, taken.remaining))
    assert told == [(2, 1), (2, 0), (3, 0), None]
    assert rates.standing("a").headers == dict(
        zip(RATE_HEADERS, ("3", "0", "23h59m56s"), strict=True)
    )


def test_clients_do_not_count_for_each_other() -> None:
    rates = Rates("1/day", Windows())
    assert rates.take("a")
    assert rates.take("b")
    assert rates.take("a") is None


def test_however_many_clients_there_are_the_pile_has_a_bound() -> None:
    now = 0.0
    windows = Windows(most=50, clock=lambda: now)
    rates = Rates("1/minute;1/hour", windows)
    for number in range(1000):
        assert rates.take(str(number))
    assert len(windows) <= 100
    now = 3601.0
    rates.take("again")
    assert len(windows) == 2


def test_many_threads_get_as_many_as_there_are() -> None:
    rates = Rates("100/day", Windows())
    together = threading.Barrier(8)

    def take_often() -> int:
        together.wait(10)
        return sum(rates.take("a") is not None for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert sum(each.result() for each in [pool.submit(take_often) for _ in range(8)]) == 100


# -- the service -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 0], ids=["poller", "flask"])
def limited(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """Three requests an hour, with and without FAST_HITS; the self-test's two are on the house.
    Each test has a key of its own."""
    app = GradioApp("indextts-1.0")
    service = Gateway(
        tmp_path_factory.mktemp("limited"),
        GRADIO_URL=app.url,
        FAST_HITS=request.param,
        RATE_LIMIT="3/hour",
        API_KEYS=",".join(KEYS),
        CORS_ORIGINS="*",
        SELF_TEST=1,
    )
    with ExitStack() as started:
        for server in (app, service):
            started.callback(server.stop)
        start_all((app, service))
        yield service


def ask(
    service: Gateway, key: str, method: str = "POST", text: str = "How often?"
) -> httpx.Response:
    bearing, fields = {"Authorization": f"Bearer {key}"}, {"input": text}
    if method == "POST":
        return service.client.post(SPEECH, json=fields, headers=bearing)
    return service.client.request(method, SPEECH, params=fields, headers=bearing)


def test_hits_and_misses_and_links_count_together_for_each_key(limited: Gateway) -> None:
    def ask_it(method: str) -> httpx.Response:
        return ask(limited, "key-of-all-ways", method, "By all ways.")

    wait_until(lambda: limited.health()["self_test"]["state"] == "passed")
    answers = [ask_it("POST"), ask_it("POST"), ask_it("GET")]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.headers["X-Cache"] for answer in answers] == ["MISS", "HIT", "HIT"]
    told = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers]
    assert told == [2, 1, 0]
    for method in ("POST", "GET", "HEAD"):
        refused = ask_it(method)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 30
        assert refused.headers["x-ratelimit-limit-requests"] == "3"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
    error = ask_it("POST").json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "3 requests per hour" in error["message"]
    assert ask(limited, "key-of-nobody-else").status_code == 200
    wait_until(lambda: "error=rate_limit_exceeded" in limited.log)
    assert "key-of" not in limited.log


def test_what_costs_nothing_is_not_counted(limited: Gateway) -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    for _ in range(5):
        assert limited.client.get("/v1/models").status_code == 200
        assert limited.client.get("/health").status_code == 200
        assert limited.client.options(SPEECH, headers=preflight).is_success
    answer = ask(limited, "key-of-free-things")
    assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (200, "2")
    assert RATE_HEADERS[0] not in limited.client.get("/v1/models").headers


def test_whoever_tries_keys_out_is_stopped_and_nobody_else(limited: Gateway) -> None:
    tried = [ask(limited, f"wrong-{number}").status_code for number in range(5)]
    assert tried == [401, 401, 401, 429, 429]
    assert ask(limited, "key-of-guesses").status_code == 200


def test_the_sdk_takes_it_for_a_rate_limit(limited: Gateway) -> None:
    with openai.OpenAI(base_url=f"{limited.url}/v1", api_key="key-of-sdk", max_retries=0) as sdk:

        def speak() -> None:
            sdk.audio.speech.create(model="tts-1", voice="alloy", input="Again.")

        for _ in range(3):
            speak()
        with pytest.raises(openai.RateLimitError) as refused:
            speak()
    assert refused.value.code == "rate_limit_exceeded"


def test_without_a_limit_nobody_is_told_of_one(gateway: StartGateway, backend: GradioApp) -> None:
    service = gateway(GRADIO_URL=backend.url)
    for _ in range(3):
        assert not set(RATE_HEADERS) & set(service.post(FIELDS).headers)


# -- with Redis ------------------------------------------------------------------------------------


def statuses(service: Gateway, times: int) -> list[int]:
    """Of so many requests, each on a connection of its own, so that any worker may answer."""

    def post(_: int) -> int:
        return httpx.post(f"{service.url}{SPEECH}", json=FIELDS, timeout=60).status_code

    with ThreadPoolExecutor(4) as pool:
        return sorted(pool.map(post, range(times)))


def test_two_workers_with_redis_count_together(
    gateway: StartGateway, backend: GradioApp, redis_server: RedisServer
) -> None:
    settings = {"GRADIO_URL": backend.url, "REDIS_URL": redis_server.url, "RATE_LIMIT": "12/hour"}
    service = gateway(**settings, WEB_CONCURRENCY=2)
    assert statuses(service, 30) == [200] * 12 + [429] * 18
    (name,) = redis_server.client.keys("tts:1:rate:*")
    assert b"127.0.0.1" not in name
    assert 0 < redis_server.client.pttl(name) <= 3_600_000


def test_a_redis_that_hangs_or_dies_delays_hardly_and_fails_nothing(
    gateway: StartGateway, backend: GradioApp, redis_server: RedisServer
) -> None:
    settings = {"GRADIO_URL": backend.url, "REDIS_URL": redis_server.url, "RATE_LIMIT": "9/hour"}
    service = gateway(**settings)
    assert service.post(FIELDS).status_code == 200
    redis_server.freeze()
    began = time.monotonic()
    answers = [service.post(FIELDS) for _ in range(4)]
    assert time.monotonic() - began < 3  # it is asked once, for 0.2 s
    assert {answer.status_code for answer in answers} == {200}
    left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers]
    assert all(before - after == 1 for before, after in pairwise(left))
    redis_server.stop()
    assert statuses(service, 10) == [200] * 5 + [429] * 5
