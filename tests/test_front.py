"""The layer in front of Flask: paths, ids, and one log line for each request."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from flask import Flask, Response, request
from werkzeug.test import create_environ, run_wsgi_app

from tts_service.front import NOTES, REQUEST_ID, Front, plain_path, protection
from tts_service.logs import request_id

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


Lines = Callable[[], list[logging.LogRecord]]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/v1/audio/speech", "/audio/speech"),
        ("/audio/speech", "/audio/speech"),
        ("/v1/audio/speech/", "/audio/speech"),
        ("/v1/audio/speech///", "/audio/speech"),
        ("//v1//audio//speech", "/audio/speech"),
        ("/v1/v1/audio/speech", "/audio/speech"),  # a base URL that ends in /v1, and a path with it
        ("/v1", "/"),
        ("/v1/", "/"),
        ("/", "/"),
        ("", "/"),
        ("//", "/"),
        ("/v10", "/v10"),
        ("/v10/v1/models", "/v10/v1/models"),
        ("/v1models", "/v1models"),
        ("/audio/v1/speech", "/audio/v1/speech"),
        ("/models/v1", "/models/v1"),
        ("/V1/models", "/V1/models"),
        ("/v1\n", "/v1\n"),
        ("/v1/models/a b", "/models/a b"),
        ("/v1/../health", "/../health"),
    ],
)
def test_a_path_means_the_same_however_it_is_written(asked: str, meant: str) -> None:
    assert plain_path(asked) == meant
    assert plain_path(meant) == meant


class Said:
    """What went out in answer to one request, and what was logged of it."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.body = b""

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """`lines()`: the log lines so far."""
    caplog.set_level(logging.INFO, logger="tts_service.access")
    return lambda: [line for line in caplog.records if line.name == "tts_service.access"]


def hello(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello, ", b"world"]


def send(app: "WSGIApplication", path: str = "/", **environ: str) -> Said:
    """One request, read to its end and closed, as a server does it."""
    said = Said()
    body, said.status, headers = run_wsgi_app(app, {**create_environ(path), **environ})
    said.headers = list(headers)
    said.body = b"".join(body)
    body.close()  # type: ignore[attr-defined] # werkzeug's is closable
    return said


def test_it_speaks_wsgi() -> None:
    said = send(validator(Front(validator(hello))))
    assert said.body == b"hello, world"


def test_flask_behind_it_sees_plain_paths_and_never_redirects() -> None:
    app = Flask(__name__)
    app.add_url_rule("/audio/speech", view_func=lambda: request.path)
    for path in ("/v1/audio/speech", "//v1/audio//speech/", "/audio/speech/"):
        said = send(Front(app.wsgi_app), PATH_INFO=path)
        assert (said.status, said.body) == ("200 OK", b"/audio/speech")


# -- ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["a", "x" * 128, "req-1/2:3", "two words", "{'a':1}", "!~"])
def test_the_clients_id_is_kept(asked: str) -> None:
    assert send(Front(hello), HTTP_X_REQUEST_ID=asked).header("X-Request-ID") == [asked]


@pytest.mark.parametrize(
    "asked",
    [
        "",
        " ",
        "x" * 129,
        "a\r\nSet-Cookie: a=b",
        "a\n",
        "\na",
        "a\rb",
        "a\x00",
        "a\tb",
        "\x7f",
        "é",
        " a",
        "a ",
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_an_id_that_is_not_printable_or_too_long_is_replaced(asked: str) -> None:
    said = send(Front(hello), HTTP_X_REQUEST_ID=asked)
    [given] = said.header("X-Request-ID")
    assert re.fullmatch(r"[0-9a-f]{32}", given)
    assert not said.header("Set-Cookie")


def test_each_request_without_an_id_gets_one_of_its_own() -> None:
    given = {send(Front(hello)).header("X-Request-ID")[0] for _ in range(50)}
    assert len(given) == 50


def test_the_id_is_known_to_the_app_and_to_its_log_lines_and_forgotten_after() -> None:
    seen = []

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
        seen.append((environ[REQUEST_ID], request_id.get()))
        start_response("200 OK", [])
        yield b"x"
        seen.append((environ[REQUEST_ID], request_id.get()))

    send(Front(app), HTTP_X_REQUEST_ID="abc")
    assert seen == [("abc", "abc")] * 2
    assert request_id.get() == "-"


def test_an_answer_started_anew_carries_the_id_and_is_logged_as_what_it_became(
    lines: Lines,
) -> None:
    started: list[tuple[Any, ...]] = []

    def start_response(*args: Any) -> Callable[[bytes], object]:
        started.append(args)
        return lambda data: None

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start_response("200 OK", [])
        start_response("500 INTERNAL SERVER ERROR", [], told)
        return [b""]

    told: Any = (ValueError, ValueError(), None)
    body: Any = Front(app)(create_environ("/", headers={"X-Request-ID": "abc"}), start_response)
    body.close()
    status, headers, exc_info = started[-1]
    assert (status, exc_info) == ("500 INTERNAL SERVER ERROR", told)
    assert headers.count(("X-Request-ID", "abc")) == 1
    assert vars(lines()[0])["status"] == 500


# -- safety ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("audio/mpeg", "cross-origin"),
        ("audio/wav", "cross-origin"),
        ("application/json", "same-origin"),
        ("text/event-stream", "same-origin"),
        ("text/plain; charset=utf-8", "same-origin"),
    ],
)
def test_only_sound_may_be_played_by_pages_of_others(kind: str, policy: str) -> None:
    assert protection([("content-type", kind)]) == [
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", policy),
    ]


def test_a_confirmation_without_a_type_changes_no_policy() -> None:
    assert "Cross-Origin-Resource-Policy" not in dict(protection([("ETag", '"x"')]))


def test_nobody_frames_a_page_and_what_it_says_itself_stands() -> None:
    own = [("Content-Type", "text/html; charset=utf-8"), ("content-security-policy", "mine")]
    told = dict(protection(own))
    assert told["X-Frame-Options"] == "DENY"
    assert "Content-Security-Policy" not in told
    assert "frame-ancestors 'none'" in dict(protection(own[:1]))["Content-Security-Policy"]


# -- the line ----------------------------------------------------------------------------------


def test_a_line_tells_method_path_status_bytes_times_and_client(lines: Lines) -> None:
    clock = iter([100.0, 100.25, 101.5])
    send(
        Front(hello, clock.__next__),
        PATH_INFO="/v1//audio/speech/",
        REQUEST_METHOD="POST",
        REMOTE_ADDR="10.0.0.7",
    )
    [line] = lines()
    assert line.getMessage().startswith("POST /v1//audio/speech/ status=200 bytes=12 ")
    facts = vars(line)
    assert (facts["status"], facts["bytes"], facts["client"]) == (200, 12, "10.0.0.7")
    assert (facts["first_byte_ms"], facts["total_ms"]) == (250.0, 1500.0)


def test_the_line_is_written_under_the_requests_own_id(lines: Lines) -> None:
    seen: list[str] = []
    logger = logging.getLogger("tts_service.access")

    def note(record: logging.LogRecord) -> bool:
        seen.append(request_id.get())
        return True

    logger.addFilter(note)
    try:
        send(Front(hello), HTTP_X_REQUEST_ID="abc")
    finally:
        logger.removeFilter(note)
    assert seen == ["abc"]


def test_what_the_app_notes_is_in_the_line(lines: Lines) -> None:
    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        environ[NOTES].update(voice="小明", cache="HIT")
        return hello(environ, start_response)

    send(Front(app))
    [line] = lines()
    assert "voice=小明 cache=HIT" in line.getMessage()
    assert vars(line)["cache"] == "HIT"


def test_a_path_cannot_forge_a_line(lines: Lines) -> None:
    send(Front(hello), PATH_INFO="/a\nGET /admin status=200\x1b[2J" + "x" * 5000)
    [line] = lines()
    assert "\n" not in line.getMessage()
    assert "\x1b" not in line.getMessage()
    assert len(line.getMessage()) < 500


def open_body(app: "WSGIApplication") -> Any:
    """The body of an answer, before anybody has read from it."""
    return Front(app)(create_environ("/"), lambda *args: lambda data: None)


def test_the_line_comes_with_the_last_byte_and_not_before(lines: Lines) -> None:
    body = open_body(hello)
    chunks = list(body)
    assert chunks == [b"hello, ", b"world"]
    assert lines() == []
    body.close()
    assert len(lines()) == 1


def test_a_body_nobody_reads_has_its_line_too(lines: Lines) -> None:
    open_body(hello).close()
    [line] = lines()
    assert (vars(line)["status"], vars(line)["bytes"]) == (200, 0)


def test_a_body_read_in_part_counts_what_went_out(lines: Lines) -> None:
    body = open_body(hello)
    next(iter(body))
    body.close()
    assert vars(lines()[0])["bytes"] == len(b"hello, ")


def test_closing_twice_writes_one_line(lines: Lines) -> None:
    body = open_body(hello)
    body.close()
    body.close()
    assert len(lines()) == 1


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_an_app_that_raises_has_its_line_and_the_error_goes_on(
    lines: Lines, error: type[BaseException]
) -> None:
    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        raise error

    with pytest.raises(error):
        open_body(app)
    [line] = lines()
    assert vars(line)["status"] is None
    assert request_id.get() == "-"


def test_a_body_that_breaks_has_its_line_with_what_went_out(lines: Lines) -> None:
    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        raise ConnectionError

    body = open_body(app)
    with pytest.raises(ConnectionError):
        list(body)
    body.close()
    [line] = lines()
    assert (vars(line)["status"], vars(line)["bytes"]) == (200, 5)


def test_a_body_that_cannot_be_closed_has_its_line(lines: Lines) -> None:
    class Unclosable:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

        def close(self) -> None:
            raise OSError

    body = open_body(lambda environ, start_response: Unclosable())
    with pytest.raises(OSError):
        body.close()
    assert len(lines()) == 1
    assert request_id.get() == "-"


def test_the_apps_own_body_is_closed_with_it() -> None:
    app = Flask(__name__)
    closed = []

    def view() -> Response:
        response = Response(iter([b"a", b"b"]))
        response.call_on_close(lambda: closed.append(request_id.get()))
        return response

    app.add_url_rule("/", view_func=view)
    assert send(Front(app.wsgi_app), HTTP_X_REQUEST_ID="abc").body == b"ab"
    assert closed == ["abc"]
