"""Stopping and reloading: whoever was let in is served to the end."""

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
from conftest import StartGateway
from servers import Gateway, GradioApp, wait_until


def test_sigterm_lets_running_answers_end_and_takes_no_new_ones(
    gateway: StartGateway, backend: GradioApp
) -> None:
    backend.control(hold=True)
    service = gateway(GRADIO_URL=backend.url)
    texts = [f"Said before the end, {i}." for i in range(5)]
    with ThreadPoolExecutor(5) as pool:
        asked = [
            pool.submit(httpx.post, speech(service), json={"input": text}, timeout=60)
            for text in texts
        ]
        wait_until(lambda: service.health()["queue"]["requests"] == 5)
        os.kill(service.pid, signal.SIGTERM)
        wait_until(lambda: "Handling signal: term" in service.log)
        backend.control(hold=False)
        assert [each.result().status_code for each in asked] == [200] * 5
    assert service.stop() == 0
    assert not accepts(service)


def test_sigterm_does_not_cut_a_stream(gateway: StartGateway, backend: GradioApp) -> None:
    backend.control(synth_ms=300)
    service = gateway(GRADIO_URL=backend.url)
    asked = {"input": "One sentence. And two sentences. And three of them.", "stream": True}
    whole = httpx.post(speech(service), json={**asked, "stream": False}).content
    asked["input"] = "Other one here. And two sentences. And three of them."
    with httpx.stream("POST", speech(service), json=asked) as answer:
        chunks = answer.iter_raw()
        first = next(chunks)
        os.kill(service.pid, signal.SIGTERM)
        rest = b"".join(chunks)
    assert len(first) + len(rest) > len(whole) / 2
    assert service.stop() == 0


def test_a_reload_fails_no_request(gateway: StartGateway, backend: GradioApp) -> None:
    service = gateway(GRADIO_URL=backend.url)
    stopping = threading.Event()
    statuses: list[int] = []
    before = service.workers()

    def ask_on() -> None:
        while not stopping.is_set():
            text = f"Reload {time.monotonic_ns()}."
            statuses.append(httpx.post(speech(service), json={"input": text}).status_code)

    with ThreadPoolExecutor(3) as pool:
        askers = [pool.submit(ask_on) for _ in range(3)]
        wait_until(lambda: len(statuses) > 10)
        os.kill(service.pid, signal.SIGHUP)
        wait_until(lambda: set(service.workers()).isdisjoint(before), 30)
        asked_so_far = len(statuses)
        wait_until(lambda: len(statuses) > asked_so_far + 10, 30)
        stopping.set()
        for asker in askers:
            asker.result()
    assert set(statuses) == {200}


def test_a_worker_that_dies_is_replaced(gateway: StartGateway, backend: GradioApp) -> None:
    service = gateway(GRADIO_URL=backend.url)
    (worker,) = service.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: service.workers() and worker not in service.workers())
    assert httpx.post(speech(service), json={"input": "After."}, timeout=30).status_code == 200


def test_nothing_of_several_workers_stays_behind(
    gateway: StartGateway, backend: GradioApp, tmp_path: Path
) -> None:
    service = gateway(GRADIO_URL=backend.url, WEB_CONCURRENCY=2)
    wait_until(lambda: len(service.workers()) == 2)
    for i in range(8):
        assert service.post({"input": f"Number {i} of eight."}).status_code == 200
    assert list(service.temp.glob("tts-metrics-*"))
    assert service.stop() == 0
    assert list(service.temp.rglob("*")) == []


def test_every_worker_counts_into_the_same_metrics(
    gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url, WEB_CONCURRENCY=2)
    for i in range(20):
        answer = httpx.post(speech(service), json={"input": f"Number {i} of twenty."})
        assert answer.status_code == 200
    told = service.client.get("/metrics").text
    assert 'tts_requests_total{cache="MISS",status="200"} 20.0' in told
    assert f'tts_backend_calls_total{{backend="{backend.url}"}} 20.0' in told


def speech(service: Gateway) -> str:
    return f"{service.url}/v1/audio/speech"


def accepts(service: Gateway) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", service.port), 1):
        return True
    return False
