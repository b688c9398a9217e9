"""Clients that leave, queues that are full, backends that hang: nothing leaks, hits go on."""

import random
import socket
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from conftest import StartGateway, StartServers
from servers import Gateway, GradioApp, wait_until


def send(service: Gateway, text: str, extra: str = "") -> socket.socket:
    """A request on a connection of its own, whose answer nobody has read yet."""
    body = f'{{"input": "{text}"{extra}}}'.encode()
    client = socket.create_connection(("127.0.0.1", service.port), 10)
    client.sendall(
        b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return client


def queue(service: Gateway) -> dict[str, int]:
    return dict(service.health()["queue"])


def test_a_departed_clients_waiting_segments_leave_within_a_second(
    gateway: StartGateway, backend: GradioApp
) -> None:
    backend.control(hold=True)
    service = gateway(GRADIO_URL=backend.url)
    for extra in ("", ', "stream": true'):
        text = " ".join(f"Sentence {i} of a long text{len(extra)}." for i in range(10))
        with send(service, text, extra):
            wait_until(lambda: queue(service)["segments"] >= 1)
        began = time.monotonic()
        wait_until(lambda: queue(service) == {"segments": 0, "requests": 0})
        assert time.monotonic() - began < 1


def test_what_is_being_spoken_when_its_client_leaves_is_cached(
    gateway: StartGateway, backend: GradioApp
) -> None:
    backend.control(hold=True)
    service = gateway(GRADIO_URL=backend.url)
    with send(service, "Spoken for nobody."):
        wait_until(lambda: backend.state()["active"] == 1)
    wait_until(lambda: queue(service)["requests"] == 0)
    backend.control(hold=False)
    wait_until(lambda: service.health()["cache"]["size"] == 1)
    assert service.post({"input": "Spoken for nobody."}).headers["X-Cache"] == "HIT"
    assert len(backend.calls) == 1


@pytest.mark.alone
def test_hits_and_health_are_quick_while_everything_else_waits(
    gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url)
    assert service.post({"input": "A hit."}).status_code == 200
    backend.control(hold=True)
    waiting = [send(service, f"Waiting number {i}.") for i in range(64)]
    try:
        wait_until(lambda: queue(service)["requests"] == 64, 20)

        def timed(ask: Callable[[], httpx.Response]) -> float:
            began = time.monotonic()
            assert ask().status_code == 200
            return time.monotonic() - began

        hits = [timed(lambda: service.post({"input": "A hit."})) for _ in range(200)]
        looks = [timed(lambda: service.client.get("/health")) for _ in range(100)]
        lists = [timed(lambda: service.client.get("/v1/models")) for _ in range(100)]
        for times in (hits, looks, lists):
            # 50 ms is the promise; a shared machine's hiccups are not the service's.
            assert statistics.quantiles(times, n=100)[98] < 0.25
            assert statistics.median(times) < 0.05
        assert service.post({"input": "Too many."}).status_code == 503
    finally:
        for client in waiting:
            client.close()
        backend.control(hold=False)
    wait_until(lambda: queue(service)["requests"] == 0)


def test_after_a_storm_of_departures_and_faults_nothing_is_left(
    gateway: StartGateway, start_servers: StartServers
) -> None:
    apps = start_servers(GradioApp(synth_ms=10), GradioApp(synth_ms=10))
    service = gateway(
        GRADIO_URL=",".join(app.url for app in apps), GRADIO_CALL_DELAY=0.05, MAX_PENDING=64
    )
    chance = random.Random(4)
    for i in range(8):  # every thread and connection that stays has been made by then
        service.post({"input": f"Warm-up {i}. Second. Third."})
    wait_until(lambda: queue(service)["requests"] == 0)
    threads, files = service.threads(), service.open_files()
    stopping = threading.Event()

    def make_faults() -> None:
        faults = ("", "error", "none", "truncated", "")
        while not stopping.wait(0.1):
            chance.choice(apps).control(fail=chance.choice(faults))

    def ask_and_maybe_leave(i: int) -> None:
        text = f"Storm {i % 150}. " + "More of it. " * chance.randrange(4)
        extra = chance.choice(["", ', "stream": true', ', "response_format": "mp3"'])
        with suppress(OSError), send(service, text, extra) as client:
            client.settimeout(chance.choice([0.001, 0.05, 0.5, 5]))
            while client.recv(65536):
                pass

    with ThreadPoolExecutor(30) as pool:
        faults = pool.submit(make_faults)
        list(pool.map(ask_and_maybe_leave, range(500)))
        stopping.set()
        faults.result()
    for app in apps:
        app.control(fail="")
    wait_until(lambda: queue(service) == {"segments": 0, "requests": 0}, 30)
    wait_until(lambda: all(b["under_way"] == 0 for b in service.health()["backends"]), 30)
    assert service.post({"input": "After the storm."}).status_code == 200
    # gunicorn keeps up to THREADS threads, each of which may be new.
    wait_until(lambda: service.open_files() <= files + 4, 30)
    assert service.threads() <= threads + 80
    assert list(service.temp.rglob("*")) == []
