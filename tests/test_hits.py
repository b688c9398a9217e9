"""Hits that the poller answers keep every promise of those that go through Flask."""

import io
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import StartGateway
from servers import Gateway, GradioApp, wait_until

LONG = "A sentence that is long enough to make an answer of several hundred kilobytes, by far. " * 8


def raw_request(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/audio/speech HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", *headers, "", ""])
    return head.encode() + body


def connect(service: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), 10)


def read_answer(client: socket.socket) -> tuple[bytes, bytes]:
    """One answer's head and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(client)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
    while len(body) < length:
        body += receive(client)
    return head, body


def receive(client: socket.socket) -> bytes:
    data = client.recv(65536)
    assert data, "the connection ended early"
    return data


@pytest.fixture
def service(gateway: StartGateway, backend: GradioApp) -> Gateway:
    return gateway(GRADIO_URL=backend.url)


@pytest.fixture(params=[1, 0], ids=["poller", "flask"])
def either(request: pytest.FixtureRequest, gateway: StartGateway, backend: GradioApp) -> Gateway:
    """The service with and without FAST_HITS: what holds for one must hold for the other."""
    return gateway(GRADIO_URL=backend.url, FAST_HITS=request.param, API_KEYS="sesame")


def ask(service: Gateway, fields: dict[str, Any], **headers: str) -> httpx.Response:
    return service.post(fields, Authorization="Bearer sesame", **headers)


@pytest.mark.parametrize("settings", [{}, {"RATE_LIMIT": "100/day"}], ids=["plain", "limited"])
def test_both_ways_answer_alike(
    gateway: StartGateway, backend: GradioApp, settings: dict[str, str]
) -> None:
    mp3 = {"input": "Alike.", "response_format": "mp3"}
    asked = ({"input": "Alike."}, mp3, {**mp3, "timestamps": True})

    def hits(fast: int) -> list[httpx.Response]:
        service = gateway(GRADIO_URL=backend.url, FAST_HITS=fast, **settings)
        for fields in asked:
            service.post(fields)
        return [service.post(fields, X_Request_ID="the-same") for fields in asked]

    for fast, slow, fields in zip(hits(1), hits(0), asked, strict=True):
        assert fast.status_code == slow.status_code == 200
        assert fast.content == slow.content
        varying = {"date", "server-timing", "connection", "x-ratelimit-reset-requests"}
        for name in slow.headers.keys() - varying:
            assert fast.headers.get_list(name) == slow.headers.get_list(name), name
        assert ("Link" in fast.headers) == ("timestamps" in fields)
        assert fast.headers.keys() == slow.headers.keys()
        assert fast.headers["X-Content-Type-Options"] == "nosniff"
        assert ("x-ratelimit-limit-requests" in fast.headers) == bool(settings)


def test_a_key_is_asked_for_and_the_id_is_kept(either: Gateway) -> None:
    assert ask(either, {"input": "Guarded."}).status_code == 200
    answer = ask(either, {"input": "Guarded."}, X_Request_ID="mine")
    assert (answer.headers["X-Cache"], answer.headers["X-Request-ID"]) == ("HIT", "mine")
    for key in ("", "Bearer wrong", "Basic sesame"):
        refused = either.post({"input": "Guarded."}, Authorization=key)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"


def test_each_hit_is_logged_once_and_counted(either: Gateway) -> None:
    ask(either, {"input": "Logged."})
    size = len(ask(either, {"input": "Logged."}, X_Request_ID="look-for-me").content)
    wait_until(lambda: "look-for-me" in either.log)
    (line,) = [line for line in either.log.splitlines() if "look-for-me" in line]
    for fact in ("status=200", f"bytes={size}", "voice=default", "chars=7", "cache=HIT"):
        assert fact in line
    assert 'cache="HIT",status="200"} 1.0' in either.client.get("/metrics").text


def test_a_wrong_request_after_a_hit_is_told_as_ever(either: Gateway) -> None:
    ask(either, {"input": "Right."})
    assert ask(either, {"input": "Right."}).headers["X-Cache"] == "HIT"
    wrong = ask(either, {"input": "Right.", "speed": 9})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "speed")


def test_a_replaced_recording_is_no_hit(either: Gateway, tmp_path: Path) -> None:
    ask(either, {"input": "By whom?"})
    assert ask(either, {"input": "By whom?"}).headers["X-Cache"] == "HIT"
    folder = tmp_path / "prompts"
    (folder / "default.wav").write_bytes((folder / "chixiaotu6.wav").read_bytes())
    assert ask(either, {"input": "By whom?"}).headers["X-Cache"] == "MISS"


def test_a_request_may_come_byte_by_byte(service: Gateway) -> None:
    body = b'{"input": "Bit by bit."}'
    service.post(json.loads(body))
    with connect(service) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in raw_request(body):
            client.sendall(bytes([byte]))
        head, _ = read_answer(client)
    assert b"X-Cache: HIT" in head


def test_several_requests_may_come_at_once(service: Gateway) -> None:
    body = b'{"input": "One after another."}'
    service.post(json.loads(body))
    with connect(service) as client:
        client.sendall(raw_request(body) * 3)
        stream = client.makefile("rb")
        for _ in range(3):
            assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
            length = 0
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            assert len(stream.read(length)) == length > 1000


def test_one_connection_takes_hits_and_other_requests_in_turn(service: Gateway) -> None:
    for i in range(5):
        assert service.post({"input": "In turn."}).status_code == 200
        assert service.client.get("/health").status_code == 200
        assert service.post({"input": f"New {i}."}).headers["X-Cache"] == "MISS"
        assert service.post({"input": "In turn."}).headers["X-Cache"] == "HIT"


def test_clients_that_stall_hold_up_nobody(gateway: StartGateway, backend: GradioApp) -> None:
    service = gateway(GRADIO_URL=backend.url, THREADS=4, MAX_PENDING=2)
    service.post({"input": "A hit."})
    request = raw_request(b'{"input": "Never finished."}')
    with ExitStack() as stalled:
        for cut in (1, 20, len(request) - 20, len(request) - 1) * 10:
            client = stalled.enter_context(connect(service))
            client.sendall(request[:cut])
        for i in range(20):
            assert service.post({"input": "A hit."}).headers["X-Cache"] == "HIT"
            assert service.post({"input": f"A miss {i}."}).status_code == 200
        assert service.client.get("/health").status_code == 200


def test_a_slow_reader_of_a_large_hit_gets_all_of_it_and_holds_up_nobody(
    gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url)
    whole = service.post({"input": LONG}).content
    assert len(whole) > 1_000_000
    body = json.dumps({"input": LONG}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        client.connect(("127.0.0.1", service.port))
        client.sendall(raw_request(body))
        began = time.monotonic()
        for _ in range(50):
            assert service.post({"input": LONG}).headers["X-Cache"] == "HIT"
        assert time.monotonic() - began < 5
        head, got = read_answer(client)
        assert b"X-Cache: HIT" in head
        assert got == whole
        client.sendall(raw_request(body))
        assert read_answer(client)[1] == whole


def test_a_reader_that_leaves_in_the_middle_leaves_nothing_behind(
    gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url)
    service.post({"input": LONG})
    body = json.dumps({"input": LONG}).encode()
    files, workers = service.open_files(), service.workers()
    for _ in range(20):
        with connect(service) as client:
            client.sendall(raw_request(body, "X-Request-ID: leaves"))
            client.recv(1000)
    wait_until(lambda: service.open_files() <= files)
    wait_until(lambda: service.log.count(" leaves]") == 20)
    assert service.workers() == workers


IDS = (
    ["X-Request-ID: mine"],
    ["x-request-id:mine"],
    ["X-REQUEST-ID: \t mine"],
    ['X-Request-ID: of "several" words'],
    ["X-Request-ID: mine  "],
    ["X-Request-ID: " + "x" * 128],
    ["X-Request-ID: " + "x" * 129],
    ["X-Request-ID: mine\tyours"],
    ["X-Request-ID: m\xefne"],
    ["X-Request-ID:"],
    ["X-Request-ID: mine", "X-Request-ID: yours"],
    ["X-Request-ID: mine", "x-request-id:"],
    ["X-Request-ID : mine"],
    ["X-Request-ID: mine", " folded"],
    ["Y-X-Request-ID: mine"],
)


def test_a_request_id_is_read_as_a_thread_reads_it(
    gateway: StartGateway, backend: GradioApp
) -> None:
    body = b'{"input": "Whose is it?"}'

    def told(service: Gateway, lines: list[str]) -> tuple[list[str], bytes, bytes | None]:
        with connect(service) as client:
            client.sendall(raw_request(body, *lines))
            answer, _ = read_answer(client)
        own = re.search(rb"(?i)\r\nx-request-id: (?![0-9a-f]{32}\b)([^\r]*)", answer)
        return lines, answer.split(b"\r\n")[0], own and own[1]

    def all_told(fast: int) -> list[tuple[list[str], bytes, bytes | None]]:
        service = gateway(GRADIO_URL=backend.url, FAST_HITS=fast)
        service.post(json.loads(body))
        return [told(service, lines) for lines in (*IDS, *IDS)]  # with heads new and known

    by_poller, by_threads = all_told(1), all_told(0)
    assert by_poller == by_threads
    assert {own for _, _, own in by_poller} > {b"mine", None}


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000, 431),
        (b"GET /" + b"x" * 70_000, 431),
    ],
    ids=["garbage", "version", "header", "large", "line"],
)
def test_what_is_not_http_is_told_in_json(
    service: Gateway, request_bytes: bytes, status: int
) -> None:
    with connect(service) as client:
        client.sendall(request_bytes)
        head, body = read_answer(client)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"X-Request-ID: " in head
    assert b"X-Content-Type-Options: nosniff" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert service.client.get("/health/live").status_code == 200
    told = re.search(rb"X-Request-ID: (\w+)", head)
    assert told is not None
    wait_until(lambda: f" {told[1].decode()}] tts_service.access" in service.log)
    assert f"status={status} bytes={len(body)} " in service.log


def test_a_long_link_is_understood(service: Gateway) -> None:
    text = "一句很长的话，" * 500
    answer = service.client.get("/v1/audio/speech", params={"input": text})
    assert answer.status_code == 200


def test_a_body_larger_than_the_poller_reads_goes_the_long_way(service: Gateway) -> None:
    answer = service.post({"input": "Large.", "filler": "x" * 200_000})
    assert answer.status_code == 200


def test_chunked_bodies_go_the_long_way(service: Gateway) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"input": '
        yield b'"In chunks."}'

    kind = {"Content-Type": "application/json"}
    for verdict in ("MISS", "HIT"):
        answer = service.client.post("/v1/audio/speech", content=chunks(), headers=kind)
        assert (answer.status_code, answer.headers["X-Cache"]) == (200, verdict)


def test_hits_from_many_connections_at_once_are_all_right(service: Gateway) -> None:
    whole = {text: service.post({"input": text}).content for text in ("One.", "Two!", LONG)}

    def ask_often(text: str) -> None:
        with httpx.Client(base_url=service.url, verify=False) as client:
            for _ in range(40):
                answer = client.post("/v1/audio/speech", json={"input": text})
                assert answer.headers["X-Cache"] == "HIT"
                assert answer.content == whole[text]

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(ask_often, [*whole] * 3))


def test_hits_end_with_the_worker(gateway: StartGateway, backend: GradioApp) -> None:
    service = gateway(GRADIO_URL=backend.url)
    service.post({"input": "Still here."})
    with connect(service) as idle:
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 6
        assert idle.recv(1) == b""


def test_silence_is_a_hit_like_any_other(service: Gateway) -> None:
    first = service.post({"input": "……"})
    again = service.post({"input": "……"})
    assert first.content == again.content
    assert io.BytesIO(again.content).read(4) == b"RIFF"
