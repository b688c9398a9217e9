"""What a log line says and does not, and that there is one stream of them."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from select import PIPE_BUF
from typing import Any

import pytest
from conftest import StartGateway
from servers import Gateway, GradioApp, free_port, wait_until
from servers.gateway import PROJECT

from tts_service.front import FACTS
from tts_service.logs import (
    Discretion,
    GunicornFilter,
    JsonFormatter,
    RequestIdFilter,
    StderrHandler,
    TextFormatter,
    request_id,
)


@pytest.fixture(autouse=True)
def _outside_of_a_request() -> None:
    """Whatever test ran in this thread before may have been inside of one."""
    request_id.set("-")


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("tts_service.test").makeRecord(
        "tts_service.test", logging.WARNING, "a.py", 1, message, args, None, extra=extra
    )


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    RequestIdFilter().filter(made)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    told = json.loads(line)
    assert isinstance(told, dict)
    return told


def test_a_json_line_tells_time_level_logger_id_and_message() -> None:
    told = as_json(record("voice %r is %s", "小明", "new"))
    assert datetime.strptime(told.pop("time"), "%Y-%m-%dT%H:%M:%S%z").tzinfo
    assert told == {
        "level": "warning",
        "logger": "tts_service.test",
        "request_id": "-",
        "message": "voice '小明' is new",
    }


def test_a_json_line_has_the_extras_as_fields_of_their_own() -> None:
    told = as_json(record("done", status="200", bytes=44, path=Path("a.wav")))
    assert (told["status"], told["bytes"], told["path"]) == ("200", 44, "a.wav")


def test_a_json_line_stays_one_line_with_a_traceback() -> None:
    made = record("first\nsecond")
    try:
        raise ValueError("broken\nhere")
    except ValueError:
        made.exc_info = sys.exc_info()
    told = as_json(made)
    assert told["message"] == "first\nsecond"
    assert told["traceback"].endswith("ValueError: broken\nhere")


def test_a_line_carries_the_id_of_the_request_that_its_thread_answers() -> None:
    token = request_id.set("abc-1")
    try:
        assert as_json(record("x"))["request_id"] == "abc-1"
    finally:
        request_id.reset(token)
    assert as_json(record("x"))["request_id"] == "-"


# In a process of its own: the configuration is the whole process's.
PROGRAM = """
import logging, sys
from tts_service.logs import configure, request_id
configure(sys.argv[1], sys.argv[2])
request_id.set("the-id")
logging.getLogger("tts_service.deep.down").info("ours")
logging.getLogger("tts_service").debug("too little")
logging.getLogger("gunicorn.error").info("the server's")
logging.getLogger("gunicorn.access").info("twice")
logging.getLogger("elsewhere").info("chatter")
logging.getLogger("elsewhere").warning("theirs")
"""


def lines_of(level: str, style: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, level, style],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert ran.stdout == ""
    return ran.stderr.splitlines()


def test_text_lines_go_to_stderr_once_each_with_the_id() -> None:
    lines = lines_of("info", "text")
    assert [line.rpartition(": ")[2] for line in lines] == ["ours", "the server's", "theirs"]
    assert all("the-id]" in line for line in lines)
    assert "INFO" in lines[0]
    assert "tts_service.deep.down" in lines[0]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["ours", "too little", "the server's", "theirs"]),
        ("warning", ["theirs"]),
    ],
)
def test_json_lines_hold_what_the_level_lets_through(level: str, expected: list[str]) -> None:
    told = [json.loads(line) for line in lines_of(level, "json")]
    assert [line["message"] for line in told] == expected
    assert {line["request_id"] for line in told} == {"the-id"}


def test_a_forked_processs_lines_tell_its_own_id() -> None:
    told = RequestIdFilter.process
    seen, mine = os.pipe()
    child = os.fork()
    if not child:
        made = record("forked")
        RequestIdFilter().filter(made)
        os.write(mine, str(made.process).encode())
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(seen), os.fdopen(mine, "w"):
        assert int(os.read(seen, 100)) == child != told == os.getpid()


# -- lines that are written together ---------------------------------------------------------------


class Pipe:
    """Notes each call."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, text: str) -> None:
        self.written.append(text)

    def flush(self) -> None:
        pass


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def gathers(pipe: Pipe) -> logging.Logger:
    """A logger whose handler writes to `pipe`."""
    logger = logging.Logger("gathers")
    logger.addHandler(StderrHandler(pipe))
    return logger


@contextmanager
def gathering(logger: logging.Logger) -> Iterator[None]:
    [handler] = logger.handlers
    assert isinstance(handler, StderrHandler)
    with handler.gathering():
        yield


def test_gathered_lines_are_written_at_the_end_in_few_calls_that_a_pipe_takes_whole(
    gathers: logging.Logger, pipe: Pipe
) -> None:
    lines = [f"{number} {'ü' * 100}" for number in range(100)] + ["x" * 2 * PIPE_BUF, "last"]
    with gathering(gathers):
        for line in lines:
            gathers.info(line)
        assert pipe.written == []
    assert "".join(pipe.written).splitlines() == lines
    assert all(text.endswith("\n") for text in pipe.written)
    sizes = [len(text.encode()) for text in pipe.written]
    assert [size for size in sizes if size > PIPE_BUF] == [2 * PIPE_BUF + 1]
    assert len(sizes) <= sum(sizes) / PIPE_BUF * 2
    gathers.info("by itself")
    assert pipe.written[-1] == "by itself\n"


def test_gathered_lines_outlive_a_failing_block_but_not_a_broken_pipe(
    gathers: logging.Logger, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        with gathering(gathers):
            gathers.info("before")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert pipe.written == ["before\n"]

    def broken(_text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(pipe, "write", broken)
    with gathering(gathers):
        gathers.info("lost")
    monkeypatch.undo()
    gathers.info("after")
    assert pipe.written == ["before\n", "after\n"]


def test_another_threads_line_waits_for_the_gathered_ones_and_is_not_lost(
    gathers: logging.Logger, pipe: Pipe
) -> None:
    other = threading.Thread(target=gathers.info, args=("another's",))
    with gathering(gathers):
        gathers.info("first")
        other.start()
        other.join(0.1)
        assert other.is_alive()
        gathers.info("second")
    other.join(10)
    assert pipe.written == ["first\nsecond\n", "another's\n"]


# -- what must not be said -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("key sk-12345 is new", "key … is new"),
        ("[{'key': 'sk-12345'}]", "[{'key': '…'}]"),
        ("http://me:pass@tts:7860/x and redis://:pw@h", "http://…@tts:7860/x and redis://…@h"),
        ("Authorization: Bearer sk-else", "Authorization: Bearer …"),
        ("{'authorization': 'bearer abc.def'}", "{'authorization': 'bearer …'}"),
        ('-H "Authorization: Bearer $API_KEY"', '-H "Authorization: Bearer $API_KEY"'),
        ("Basic bWU6cGFzcw==, twice", "Basic …, twice"),
        ("p%40ss, p@ss and p@ssage", "…, … and …age"),
        ("nothing here: a@b, http://a/b@c, 1", "nothing here: a@b, http://a/b@c, 1"),
    ],
)
def test_secrets_are_taken_out_wherever_they_stand(text: str, told: str) -> None:
    assert Discretion(["sk-12345", "p@ss", "1", ""])(text) == told


def test_no_format_tells_a_secret_of_a_traceback_or_a_fact() -> None:
    made = record("asked %s with %s", "http://u:hidden-1@h", "hidden-2", status=1, fact="hidden-2")
    try:
        raise ValueError("hidden-2 and redis://:hidden-3@h:1/0")
    except ValueError:
        made.exc_info = sys.exc_info()
    RequestIdFilter().filter(made)
    discretion = Discretion(["hidden-2"])
    as_text = TextFormatter(discretion).format(made)
    in_json = JsonFormatter(discretion).format(made)
    assert "hidden" not in as_text + in_json
    assert "ValueError" in as_text
    assert json.loads(in_json)["status"] == 1


@pytest.mark.parametrize(
    ("message", "arguments", "told"),
    [
        (
            "Error handling request %s %s",
            ("GET", "/v1/audio/speech?input=hidden"),
            "Error handling request GET /v1/audio/speech",
        ),
        (
            "Invalid request from ip=::1: Invalid HTTP request line: 'GET /?input=hidden\n'",
            (),
            "Invalid request from ip=::1: Invalid HTTP request line",
        ),
        ("Booting worker with pid: %s", (7,), "Booting worker with pid: 7"),
    ],
)
def test_what_gunicorn_says_of_a_request_is_without_its_text(
    message: str, arguments: tuple[object, ...], told: str
) -> None:
    made = record(message, *arguments)
    assert GunicornFilter().filter(made)
    assert made.getMessage() == told


# -- the line of a request -------------------------------------------------------------------------

#: What other programs read of a request, as docs/logs.md documents it.
KEYS = {
    *("time", "level", "logger", "request_id", "message", "method", "path", "status", "bytes"),
    *("first_byte_ms", "total_ms", "client", "voice", "chars", "format", "segments", "cache"),
    *("queue_ms", "error"),
}
HIDDEN = "Whisper this. And this too, would you?"


def line_of(service: Gateway, name: str) -> dict[str, Any]:
    """The one line of the request with this id."""

    def found() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in service.log.splitlines() if f'"{name}"' in line]
        return [line for line in lines if line["logger"] == "tts_service.access"]

    wait_until(found)
    (line,) = found()
    return line


def test_every_request_has_one_line_with_the_same_keys(
    gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url, LOG_FORMAT="json", GRADIO_CALL_ATTEMPTS=1)
    fields = {"input": HIDDEN, "voice": "chixiaotu6"}
    for name, more in {
        "miss": {},
        "hit": {},
        "stream": {"stream": True, "response_format": "mp3"},
        "events": {"stream_format": "sse", "response_format": "flac"},
        "wrong": {"speed": 9},
        "nobody": {"voice": "nobody"},
    }.items():
        service.post({**fields, **more}, X_Request_ID=name)
    named = {"X-Request-ID": "link"}
    service.client.get("/v1/audio/speech", params={**fields, "speed": "2"}, headers=named)
    service.client.get("/health", headers={"X-Request-ID": "health"})
    service.client.get("/nowhere", headers={"X-Request-ID": "nowhere"})
    backend.control(fail="error")
    service.post({"input": "Not spoken before."}, X_Request_ID="failure")

    spoken = {"voice": "chixiaotu6", "chars": len(HIDDEN), "segments": 2, "client": "127.0.0.1"}
    expected: dict[str, dict[str, Any]] = {
        "miss": {**spoken, "status": 200, "cache": "MISS", "format": "wav", "error": None},
        "hit": {**spoken, "status": 200, "cache": "HIT", "format": "wav", "queue_ms": 0},
        "stream": {**spoken, "status": 200, "cache": "PARTIAL", "format": "mp3"},
        "events": {**spoken, "status": 200, "cache": "PARTIAL", "format": "flac"},
        "link": {**spoken, "status": 200, "method": "GET", "path": "/v1/audio/speech"},
        "wrong": {"status": 400, "error": "invalid_request_error", "voice": None},
        "nobody": {"status": 400, "error": "voice_not_found", "segments": None},
        "health": {"status": 200, "voice": None, "cache": None, "queue_ms": None},
        "nowhere": {"status": 404, "error": "invalid_request_error", "path": "/nowhere"},
        "failure": {"status": 502, "error": "backend_error", "voice": "default", "chars": 18},
    }
    for name, facts in expected.items():
        line = line_of(service, name)
        assert set(line) == KEYS, name
        assert {key: line[key] for key in facts} == facts, name
        assert line["bytes"] > 0
        assert 0 <= line["first_byte_ms"] <= line["total_ms"]
        if line["cache"] not in ("HIT", None):
            assert 0 <= line["queue_ms"] <= line["total_ms"]
    assert line_of(service, "failure")["queue_ms"] is not None
    assert "Whisper" not in service.log


def test_an_answer_that_breaks_off_says_why(gateway: StartGateway, backend: GradioApp) -> None:
    service = gateway(GRADIO_URL=backend.url, LOG_FORMAT="json", GRADIO_CALL_ATTEMPTS=1)

    def break_off(name: str, form: str = "audio", *, leaves: bool, begins: bool = True) -> Any:
        """Ask for a stream whose client leaves, or whose second segment fails; its log line."""
        backend.control(reset=True, hold=True)
        body = json.dumps({"input": f"{name} it begins. Then {name} ends.", "stream_format": form})
        lines = ["POST /v1/audio/speech HTTP/1.1", "Host: x", "Content-Type: application/json"]
        more = [f"Content-Length: {len(body)}", f"X-Request-ID: {name}", "Connection: close"]
        request = "\r\n".join([*lines, *more, "", body])
        with socket.create_connection(("127.0.0.1", service.port), 30) as client:
            client.sendall(request.encode())
            wait_until(lambda: backend.state()["active"] == 1)
            if begins:
                backend.control(release=1)
                assert client.recv(9) == b"HTTP/1.1 "
            if not leaves:
                backend.control(hold=False, fail="error")
                while client.recv(65536):
                    pass
        line = line_of(service, name)
        backend.control(hold=False)
        return line["status"], line["error"], line["cache"]

    gone = "client_closed_request"
    assert break_off("Impatient", leaves=True, begins=False) == (499, gone, None)
    assert break_off("Bored", leaves=True) == (200, gone, "MISS")
    assert break_off("Broken", leaves=False) == (200, "backend_error", "MISS")
    assert break_off("Unhappy", "sse", leaves=False) == (200, "backend_error", "MISS")


def test_the_page_about_logs_documents_these_keys_and_no_others() -> None:
    assert set(FACTS) <= KEYS
    document = (PROJECT / "docs" / "logs.md").read_text()
    table = re.search(r"\| key of a line \| \|\n(.*?)\n\n", document, re.DOTALL)
    assert table is not None
    names = re.findall(r"^\|([^|]*)\|", table[1], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", "".join(names))) == KEYS


@pytest.mark.parametrize("fast", [1, 0], ids=["poller", "flask"])
def test_no_key_and_no_password_is_ever_logged_or_reported(
    gateway: StartGateway, backend: GradioApp, fast: int
) -> None:
    service = gateway(
        GRADIO_URL=f"{backend.url},http://me:hidden-1@127.0.0.1:{free_port()}",
        REDIS_URL=f"redis://:hidden-2@127.0.0.1:{free_port()}/0",
        API_KEYS="hidden-key-3",
        GRADIO_TOKEN="hidden-4",
        LOG_LEVEL="debug",
        FAST_HITS=fast,
        GRADIO_CONNECT_DELAY=0.1,
    )
    wait_until(lambda: service.health()["gradio_client"] == "connected")
    for _ in range(2):
        service.post({"input": HIDDEN}, Authorization="Bearer hidden-key-3").raise_for_status()
    service.post({"input": HIDDEN}, Authorization="Bearer hidden-5")
    for request in (
        b"GET /v1/audio/speech?input=hidden-6 HTTP/9\r\n\r\n",
        b"GET / HTTP/1.1\r\nAuthorization Bearer hidden-key-3\r\n\r\n",
        b"POST / HTTP/1.1\r\nAuthorization: Bearer hidden-key-3\r\nContent-Le",
    ):
        with socket.create_connection(("127.0.0.1", service.port), 10) as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    wait_until(lambda: "not connected after" in service.log)
    assert "is left alone for now" in service.log
    assert "hidden" not in service.log
    assert "hidden" not in service.client.get("/health").text
    assert "Whisper" in service.log, "at debug the text may be read"
