"""`/metrics` counts what happened, and the dashboard shows only what is counted."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import StartGateway
from prometheus_client.parser import text_string_to_metric_families
from servers import Gateway, GradioApp, wait_until

DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana-dashboard.json"


def samples(service: Gateway) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels."""
    answer = service.client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(service: Gateway, name: str, **labels: str) -> float:
    return samples(service).get((name, frozenset(labels.items())), 0.0)


def test_requests_calls_sound_and_the_cache_are_counted(
    gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url, MAX_CACHE_SIZE=2)
    spoken = service.post({"input": "Counted once."})
    service.post({"input": "Counted once."})
    assert service.post({"input": ""}).status_code == 400
    seconds = (len(spoken.content) - 44) / 2 / 24_000
    assert value(service, "tts_requests_total", status="200", cache="MISS") == 1
    assert value(service, "tts_requests_total", status="200", cache="HIT") == 1
    assert value(service, "tts_requests_total", status="400", cache="") == 1
    assert value(service, "tts_first_byte_seconds_count", cache="MISS") == 1
    assert value(service, "tts_request_seconds_count", cache="HIT") == 1
    assert value(service, "tts_backend_calls_total", backend=backend.url) == 1
    assert value(service, "tts_queue_wait_seconds_count") == 1
    for source in ("backend", "cache"):
        counted = value(service, "tts_sound_seconds_total", source=source)
        assert counted == pytest.approx(seconds, abs=0.002)
    assert value(service, "tts_cache_entries") == 1
    assert value(service, "tts_cache_bytes") > len(spoken.content)
    for i in range(3):
        service.post({"input": f"It makes room, {i}."})
    assert value(service, "tts_cache_evictions_total") == 2


def test_failures_and_readiness_are_counted_by_backend(
    gateway: StartGateway, backend: GradioApp
) -> None:
    backend.control(fail_first=2)
    service = gateway(GRADIO_URL=backend.url, GRADIO_CALL_DELAY=0.05)
    assert service.post({"input": "The third try."}).status_code == 200
    assert value(service, "tts_backend_failures_total", backend=backend.url) == 2
    assert value(service, "tts_backend_calls_total", backend=backend.url) == 3
    assert value(service, "tts_backend_ready", backend=backend.url) == 1


def test_the_load_shows_while_it_lasts(gateway: StartGateway, backend: GradioApp) -> None:
    backend.control(hold=True)
    service = gateway(GRADIO_URL=backend.url)
    text = " ".join(f"Sentence {i} of many." for i in range(6))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.post, {"input": text})
        wait_until(lambda: value(service, "tts_pending_requests") == 1)
        wait_until(lambda: value(service, "tts_queue_segments") >= 1)
        backend.control(hold=False)
        assert asked.result().status_code == 200
    assert value(service, "tts_pending_requests") == value(service, "tts_queue_segments") == 0


def test_the_dashboard_asks_for_nothing_that_is_not_counted(
    gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url)
    service.post({"input": "So that every series is there."})
    told = service.client.get("/metrics").text
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        re.sub("_bucket$", "", name)
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"tts_\w+", target["expr"])
    }
    counted = {line.split()[2] for line in told.splitlines() if line.startswith("# TYPE tts_")}
    assert asked == counted


def test_health_tells_what_each_backend_did(gateway: StartGateway, backend: GradioApp) -> None:
    backend.control(fail_first=1)
    with_password = backend.url.replace("http://", "http://user:secret@")
    service = gateway(GRADIO_URL=with_password, GRADIO_CALL_DELAY=0.05)
    answer = service.post({"input": "Tell me all about it."})
    assert answer.status_code == 200
    (told,) = service.health()["backends"]
    assert told["url"] == backend.url
    assert (told["state"], told["calls"], told["failures"]) == ("ready", 2, 1)
    assert told["last_error"].startswith("The backend failed")
    assert told["sound_seconds"] == pytest.approx((len(answer.content) - 44) / 48_000, abs=0.01)
    assert 0 < told["real_time_factor"] < 1
    assert re.fullmatch("[0-9a-f]{16}", told["identity"])
    assert "secret" not in service.client.get("/health").text
    assert "secret" not in service.log
