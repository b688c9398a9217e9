"""What backends do wrong, each done by a real server, and what a client then sees."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conftest import StartGateway, StartServers
from servers import Gateway, GradioApp, free_port, wait_until

Pair = tuple[Gateway, GradioApp, GradioApp]


@pytest.fixture
def pair(start_servers: StartServers, gateway: StartGateway) -> Callable[..., Pair]:
    """`pair(**options)`: a gateway over two replicas, the first of which has `options`."""

    def start(settings: dict[str, Any] | None = None, **options: Any) -> Pair:
        bad, good = start_servers(GradioApp(**options), GradioApp())
        service = gateway(
            GRADIO_URL=f"{bad.url},{good.url}", **{"GRADIO_CALL_DELAY": 0.2, **(settings or {})}
        )
        wait_until(lambda: states(service) == ["ready", "ready"] or service.post({"input": "."}))
        speak_until_both_are_used(service, bad, good)
        return service, bad, good

    return start


def states(service: Gateway) -> list[str]:
    return [backend["state"] for backend in service.health()["backends"]]


def speak_until_both_are_used(service: Gateway, *apps: GradioApp) -> None:
    """So that each replica has the recording and a connected client."""

    def both_were_called() -> bool:
        ask_all(service, [f"Warm-up {time.monotonic_ns()} {i}." for i in range(4)])
        return all(app.state()["count"] for app in apps)

    wait_until(both_were_called, 20)


def ask_all(service: Gateway, texts: Sequence[str]) -> list[httpx.Response]:
    """All at once."""
    with ThreadPoolExecutor(len(texts)) as pool:
        return list(pool.map(lambda text: service.post({"input": text}), texts))


def assert_all_spoken(answers: Sequence[httpx.Response]) -> None:
    assert [(a.status_code, a.text[:200]) for a in answers if a.status_code != 200] == []


SIX = [f"Sentence number {i} of this test." for i in range(6)]

# -- with a healthy replica left, a fault is invisible but for the time it takes -------------------


@pytest.mark.parametrize(
    "fault",
    ["error", "silent_error", "none", "badpath", "empty", "headonly", "truncated", "notaudio"],
)
def test_a_replica_that_answers_badly_is_not_noticed(pair: Callable[..., Pair], fault: str) -> None:
    service, bad, _ = pair()
    bad.control(fail=fault)
    assert_all_spoken(ask_all(service, SIX))


def test_a_replica_that_dies_in_the_middle_of_a_call_is_not_noticed(
    pair: Callable[..., Pair],
) -> None:
    service, bad, good = pair()
    for app in (bad, good):
        app.control(synth_ms=300)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask_all, service, SIX)
        wait_until(lambda: bad.state()["active"] == 1)
        bad.kill()
        assert_all_spoken(asked.result())
    wait_until(lambda: states(service)[0] == "resting")


def test_a_replica_that_is_down_from_the_start_is_not_noticed(
    start_servers: StartServers, gateway: StartGateway
) -> None:
    (good,) = start_servers(GradioApp())
    service = gateway(GRADIO_URL=f"http://127.0.0.1:{free_port()},{good.url}")
    began = time.monotonic()
    assert_all_spoken(ask_all(service, SIX))
    assert time.monotonic() - began < 5


def test_a_replica_restarted_between_two_calls_is_used_again_within_seconds(
    pair: Callable[..., Pair],
) -> None:
    service, bad, good = pair()
    bad.restart()
    assert_all_spoken(ask_all(service, SIX))
    wait_until(lambda: states(service) == ["ready", "ready"])
    good.kill()
    assert_all_spoken(ask_all(service, [f"Again {text}" for text in SIX]))
    assert bad.state()["count"] >= 6


@pytest.mark.timeout(60)
def test_a_frozen_replica_is_given_up_in_the_middle_of_a_call(pair: Callable[..., Pair]) -> None:
    service, bad, _ = pair()
    bad.control(synth_ms=500)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask_all, service, SIX)
        wait_until(lambda: bad.state()["active"] == 1)
        bad.freeze()
        try:
            assert_all_spoken(asked.result(timeout=30))
            wait_until(lambda: states(service) == ["resting", "ready"])
            # By now nothing is sent there any more.
            began = time.monotonic()
            assert_all_spoken(ask_all(service, [f"Later {text}" for text in SIX]))
            assert time.monotonic() - began < 5
        finally:
            bad.thaw()
    wait_until(lambda: states(service) == ["ready", "ready"], 20)


@pytest.mark.timeout(60)
def test_a_replica_frozen_before_the_call_is_given_up(pair: Callable[..., Pair]) -> None:
    service, bad, _ = pair()
    bad.freeze()
    try:
        assert_all_spoken(ask_all(service, SIX))
    finally:
        bad.thaw()


def test_a_replica_whose_engine_hangs_costs_half_of_the_timeout_at_most(
    pair: Callable[..., Pair],
) -> None:
    service, bad, _ = pair(settings={"SYNTH_TIMEOUT": 6})
    bad.control(fail="hang")
    began = time.monotonic()
    assert_all_spoken(ask_all(service, SIX))
    assert time.monotonic() - began < 6


def test_a_replica_restarted_with_another_signature_is_kept_out_and_told_of(
    pair: Callable[..., Pair],
) -> None:
    service, bad, _ = pair()
    bad.restart("indextts-2.0")
    assert_all_spoken(ask_all(service, SIX))
    wait_until(lambda: states(service) == ["kept out", "ready"])
    assert bad.calls == []
    assert f"backend {bad.url} is kept out: it serves another model" in service.log


def test_a_wiped_upload_folder_is_not_noticed(pair: Callable[..., Pair]) -> None:
    service, bad, good = pair()
    for app in (bad, good):
        for upload in app.folder.rglob("*.wav"):
            upload.unlink()
    assert_all_spoken(ask_all(service, SIX))


def test_a_replica_that_refuses_the_login_is_kept_out(
    start_servers: StartServers, gateway: StartGateway
) -> None:
    locked, good = start_servers(GradioApp(auth="user:secret"), GradioApp())
    service = gateway(GRADIO_URL=f"{locked.url},{good.url}")
    assert_all_spoken(ask_all(service, SIX))
    wait_until(lambda: states(service) == ["kept out", "ready"])


def test_a_replica_with_a_full_queue_is_not_noticed(pair: Callable[..., Pair]) -> None:
    service, bad, _ = pair(queue_size=1)
    bad.control(synth_ms=200)
    assert_all_spoken(ask_all(service, SIX))


def test_a_replica_that_streams_is_not_noticed(
    start_servers: StartServers, gateway: StartGateway
) -> None:
    streaming, good = start_servers(GradioApp(form="stream"), GradioApp())
    service = gateway(GRADIO_URL=f"{streaming.url},{good.url}", GRADIO_CALL_DELAY=0.2)
    assert_all_spoken(ask_all(service, SIX))


# -- alone --------------------------------------------------------------------------------


def test_a_backend_killed_while_it_speaks_is_waited_for_while_it_comes_back(
    gateway: StartGateway, start_servers: StartServers
) -> None:
    (app,) = start_servers(GradioApp(synth_ms=300))
    service = gateway(GRADIO_URL=app.url)
    assert service.post({"input": "Before."}).status_code == 200
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.post, {"input": "During."})
        wait_until(lambda: app.state()["active"] == 1)
        app.restart()
        assert asked.result().status_code == 200


def test_a_backend_that_stays_away_is_503_after_a_few_seconds(
    gateway: StartGateway, start_servers: StartServers
) -> None:
    (app,) = start_servers(GradioApp())
    service = gateway(GRADIO_URL=app.url, GRADIO_CALL_DELAY=0.5)
    assert service.post({"input": "Before."}).status_code == 200
    app.kill()
    began = time.monotonic()
    refused = service.post({"input": "After."})
    assert time.monotonic() - began < 4
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_backend")
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    # What is in the cache is served all the same.
    assert service.post({"input": "Before."}).headers["X-Cache"] == "HIT"
    ready = service.client.get("/health/ready")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "no_backend")
    app.launch()
    app.wait_ready()
    wait_until(lambda: service.client.get("/health/ready").status_code == 200)
    assert service.post({"input": "After."}).status_code == 200


def test_thirty_requests_for_a_backend_that_is_away_are_all_told_soon(
    gateway: StartGateway,
) -> None:
    service = gateway(
        GRADIO_URL=f"http://127.0.0.1:{free_port()}",
        GRADIO_CONNECT_DELAY=0.1,
        GRADIO_CALL_DELAY=0.2,
    )
    began = time.monotonic()
    answers = ask_all(service, [f"Text {i}." for i in range(30)])
    assert {answer.status_code for answer in answers} == {503}
    assert time.monotonic() - began < 10


@pytest.mark.alone
def test_beyond_the_brim_requests_are_turned_away_at_once_and_hits_go_on(
    gateway: StartGateway, start_servers: StartServers
) -> None:
    (app,) = start_servers(GradioApp())
    service = gateway(GRADIO_URL=app.url, MAX_PENDING=4)
    assert service.post({"input": "In the cache."}).status_code == 200
    app.control(hold=True)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(service.post, {"input": f"Waiting, {i}."}) for i in range(4)]
        wait_until(lambda: service.health()["queue"]["requests"] == 4)
        began = time.monotonic()
        refused = service.post({"input": "One too many."})
        assert time.monotonic() - began < 0.5
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert 1 <= int(refused.headers["Retry-After"]) <= 30
        assert service.post({"input": "In the cache."}).headers["X-Cache"] == "HIT"
        app.control(hold=False)
        assert_all_spoken([each.result() for each in waiting])


def test_without_any_backend_the_service_says_what_to_set(gateway: StartGateway) -> None:
    service = gateway(GRADIO_URL=f"http://127.0.0.1:{free_port()}", GRADIO_CONNECT_ATTEMPTS=1)
    refused = service.post({"input": "Hello?"})
    assert refused.status_code == 503
    assert "No backend answers" in refused.json()["error"]["message"]
    assert service.post({"input": "……"}).status_code == 200


def test_a_backend_without_a_usable_function_is_told_of_by_name(
    gateway: StartGateway, start_servers: StartServers
) -> None:
    (app,) = start_servers(GradioApp("no-audio"))
    service = gateway(GRADIO_URL=app.url, GRADIO_CONNECT_ATTEMPTS=1)
    refused = service.post({"input": "Hello?"})
    assert refused.status_code == 502
    assert refused.headers["x-should-retry"] == "false"
    assert "no audio parameter" in refused.json()["error"]["message"]
    assert "text (Textbox)" in refused.json()["error"]["message"]
