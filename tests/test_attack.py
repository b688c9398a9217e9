"""Attacks on every route: whatever comes in, what goes out is an answer that was meant.

`ATTACK_CASES` sets how many cases there are in all, 10,000 unless told otherwise.
"""

import gzip
import io
import json
import os
import re
import resource
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Gateway, GradioApp, hostile, start_all, wait_until
from servers.sound import tone, write_prompts, write_wav
from werkzeug.test import create_environ

from config import read_config
from tts_service import create_app
from tts_service.front import PRINTABLE

CASES = int(os.environ.get("ATTACK_CASES", "10000"))
TOLD = {502, 503, 504}
MARK = "Injected"
REPEATED = {"link", "set-cookie", "vary"}
ORIGIN = "https://page.example"

#: What has broken others: NUL, line breaks of all kinds, no width, other direction, half a
#: surrogate pair, accents by the dozen, what grows or shrinks in another case or form.
NASTY = (
    "\0", "\r\n", "\n", "\x0b", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u200b", "\u200d", "\u202e",
    "\u2066", "\ufeff", "\ufffe", "\ufdd0", "\U0010ffff", "\ud800", "\udfff", "😀", "👩\u200d👧",
    "e\u0301" * 40, "ß", "İ", "ﷺ", "½", "٣", "..", "../../etc/passwd", "..\\", "/etc/passwd", "~",
    "%00", "%2e%2e%2f", "file:///etc/passwd", "http://169.254.169.254/", "$(id)", "`id`",
    "{{7*7}}", "%s%n", "' OR 1=1 --", "<script>alert(1)</script>", f"\r\n{MARK}: yes",
    f"x\r\n\r\n{MARK}", "NaN", "-0", "1e999", "null",
)  # fmt: skip
FIELDS = (
    "input", "model", "voice", "response_format", "speed", "stream_format", "stream",
    "instructions", "timestamps", "emo_weight", "vec1", "emo_text", "emo_control_method", "top_p",
    "num_beams", "do_sample", "prompt", "text", "emo_ref_path", "__class__", "model_config",
)  # fmt: skip
ROUTES = (
    "/v1/audio/speech", "/audio/speech", "/v1/models", "/v1/models/chixiaotu6", "/v1/audio/models",
    "/v1/audio/voices", "/v1/audio/voices/default", "/v1/audio/voices/default/sample", "/",
    "/v1/audio/speech/captions/x.vtt", "/health", "/health/live", "/health/ready", "/metrics",
    "/openapi.json", "/docs", "/static/docs.js", "/static/../config.py", "*", "",
)  # fmt: skip
KNOWN_TEXTS = ("Hello.", "您好。", "One. Two.", "...", "😀")

nasty = st.sampled_from(NASTY)
texts = st.one_of(
    nasty,
    st.lists(st.one_of(nasty, st.text(max_size=8)), max_size=4).map("".join),
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 10**400, -(10**30), 0.25, 4, 1.0000001, True]),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=4,
)
likely: dict[str, st.SearchStrategy[Any]] = {
    "input": st.sampled_from(KNOWN_TEXTS),
    "voice": st.sampled_from(["chixiaotu6", "default", "alloy", {"id": "chixiaotu6"}]),
    "model": st.sampled_from(["tts-1", "chixiaotu6"]),
    "response_format": st.sampled_from(["wav", "mp3", "opus", "aac", "flac", "pcm", "MP3"]),
    "speed": st.sampled_from([1, 1.25, "0.5", 4]),
    "stream_format": st.sampled_from(["audio", "sse"]),
    "emo_weight": st.floats(0, 1),
}


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A request's fields: likely ones, of which some are spoilt."""
    names = draw(st.lists(st.sampled_from(FIELDS), max_size=4, unique=True))
    fields = {"input": draw(likely["input"])}
    for name in names:
        fields[name] = draw(
            st.one_of(likely.get(name, anything), likely.get(name, anything), anything)
        )
    if draw(st.integers(0, 9)) == 0:
        fields[draw(texts)] = draw(anything)
    return fields


header_values = st.one_of(
    nasty, st.text(st.characters(max_codepoint=255), max_size=20), st.sampled_from(["*/*", "gzip"])
).map(lambda text: text.encode("utf-8", "surrogatepass").decode("latin-1"))
header_names = st.sampled_from(
    ["X_REQUEST_ID", "AUTHORIZATION", "RANGE", "IF_NONE_MATCH", "IF_MATCH", "IF_RANGE", "HOST",
     "IF_MODIFIED_SINCE", "ORIGIN", "ACCESS_CONTROL_REQUEST_HEADERS", "EXPECT", "UPGRADE", "COOKIE",
     "ACCESS_CONTROL_REQUEST_METHOD", "ACCEPT", "ACCEPT_ENCODING", "X_FORWARDED_FOR", "REFERER",
     "X_FORWARDED_PREFIX", "TRANSFER_ENCODING", "CONTENT_ENCODING"]
)  # fmt: skip
headers = st.dictionaries(header_names, header_values, max_size=4)
paths = st.one_of(
    st.sampled_from(ROUTES),
    st.tuples(st.sampled_from(ROUTES), texts).map(lambda parts: "/".join(parts)),
    texts.map("/v1/models/{}".format),
    texts.map("/v1/audio/voices/{}".format),
).map(lambda path: path.encode("utf-8", "surrogatepass").decode("latin-1"))


class Service:
    """The application in this process, asked as a server would."""

    def __init__(self, app: Flask) -> None:
        self.app = app

    def ask(self, environ: dict[str, Any]) -> int:
        """The status of the answer, which is looked at in whole."""
        started: list[tuple[str, list[tuple[str, str]]]] = []
        body = self.app.wsgi_app(environ, lambda *told: started.append(told[:2]))  # type: ignore[arg-type]
        try:
            content = b"".join(body)
        finally:
            if hasattr(body, "close"):
                body.close()
        status, told = started[-1]
        check_answer(int(status[:3]), told, content, environ)
        return int(status[:3])


def check_answer(
    status: int, told: list[tuple[str, str]], content: bytes, environ: dict[str, Any]
) -> None:
    """That it is one which the service means to give."""
    assert status < 500 or status in TOLD, (status, content)
    names = [name.lower() for name, _ in told]
    once = [name for name in names if name not in REPEATED]
    assert len(once) == len(set(once)), told
    for name, value in told:
        assert re.fullmatch(r"[A-Za-z-]+", name), told
        assert re.fullmatch(r"[ -~\x80-\xff]*", value), told
        assert not name.startswith(MARK)
    assert PRINTABLE.fullmatch(dict(told)["X-Request-ID"])
    if status >= 400 and environ["REQUEST_METHOD"] != "HEAD":
        assert dict(told)["Content-Type"] == "application/json"
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)


def attack(share: float) -> Callable[[Any], Any]:
    """So much of all cases; the same ones in each run, unless there are more than usual."""
    return settings(
        max_examples=max(10, int(CASES * share)),
        derandomize=CASES <= 10_000,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("attacked")
    write_prompts(folder / "prompts")
    backend = GradioApp("indextts-2.0", ms_audio_per_char=1)
    start_all([backend])
    app = create_app(
        read_config(
            GRADIO_URL=backend.url,
            PROMPTS_DIR=folder / "prompts",
            DEFAULT_PROMPT_AUDIO_PATH=folder / "prompts/default.wav",
            MAX_CACHE_SIZE=10_000,
            MAX_INPUT_CHARS=200,
            CORS_ORIGINS=ORIGIN,
            LOG_LEVEL="error",
        )
    )
    yield Service(app)
    app.extensions["tts_service"].dispatcher.close()
    backend.stop()


@pytest.mark.timeout(0)
@attack(0.6 / 2)
@given(fields=requests(), method=st.sampled_from(["GET", "HEAD"]), asked=headers)
def test_no_fields_break_a_request_nor_the_same_as_a_link(
    service: Service, fields: dict[str, Any], method: str, asked: dict[str, str]
) -> None:
    told = {f"HTTP_{name}": value for name, value in asked.items()}
    body = json.dumps(fields).encode()
    posted = create_environ("/v1/audio/speech", method="POST", data=body)
    service.ask({**posted, **told, "CONTENT_TYPE": "application/json"})
    query = {
        name.encode("utf-8", "surrogatepass"): str(value).encode("utf-8", "surrogatepass")
        for name, value in fields.items()
    }
    linked = create_environ("/v1/audio/speech", method=method, query_string=urlencode(query))
    service.ask({**linked, **told})


@pytest.mark.timeout(0)
@attack(0.3)
@given(
    method=st.one_of(
        st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT"]),
        st.text("ABC!#$%&'*+-.^_`|~", min_size=1, max_size=9),
    ),
    path=paths,
    query=st.one_of(st.just(""), header_values),
    kind=st.one_of(
        st.sampled_from(["application/json", "multipart/form-data; boundary=x", "text/plain"]),
        header_values,
    ),
    length=st.one_of(st.none(), st.sampled_from(["-1", "1e3", "٣", "99", "99999999999"]), texts),
    body=st.one_of(st.binary(max_size=60), anything.map(lambda value: json.dumps(value).encode())),
    asked=headers,
)
def test_no_request_of_any_form_breaks_any_route(
    service: Service,
    method: str,
    path: str,
    query: str,
    kind: str,
    length: str | None,
    body: bytes,
    asked: dict[str, str],
) -> None:
    environ = {
        **create_environ("/", method="GET"),
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": kind,
        "CONTENT_LENGTH": str(len(body)) if length is None else length,
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        **{f"HTTP_{name}": value for name, value in asked.items()},
    }
    service.ask(environ)


@pytest.mark.timeout(0)
def test_nothing_made_from_the_services_own_description_breaks_it(service: Service) -> None:
    schema = schemathesis.openapi.from_wsgi("/openapi.json", service.app)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 8
    for operation in operations:

        @attack(0.1 / len(operations))
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call()
            assert answer.status_code < 500 or answer.status_code in TOLD, case

        ask()


# -- uploads -----------------------------------------------------------------------------------


def form(name: bytes, recording: bytes, file_name: bytes = b"a.wav") -> dict[str, Any]:
    """An upload's environ, in bytes that no well-behaved client would send."""
    body = b"\r\n".join(
        (
            b"--x",
            b'Content-Disposition: form-data; name="name"',
            b"",
            name,
            b"--x",
            b'Content-Disposition: form-data; name="audio_sample"; filename="' + file_name + b'"',
            b"Content-Type: audio/wav",
            b"",
            recording,
            b"--x--",
            b"",
        )
    )
    environ = create_environ("/v1/audio/voices", method="POST", data=body)
    return {**environ, "CONTENT_TYPE": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("recording") / "a.wav"
    write_wav(path, tone(440, 2, rate=8_000))
    return path.read_bytes()


@pytest.mark.timeout(0)
@attack(0.02)
@given(
    name=st.one_of(texts, st.text("../\\~.a", min_size=1, max_size=6)),
    file_name=st.one_of(st.just("a.wav"), nasty),
)
def test_no_name_of_a_voice_leads_out_of_the_folder(
    service: Service, recording: bytes, name: str, file_name: str
) -> None:
    prompts = Path(service.app.config["PROMPTS_DIR"])
    beside = sorted(prompts.parent.rglob("*"))
    sent = [text.encode("utf-8", "surrogatepass") for text in (name, file_name)]
    status = service.ask(form(sent[0], recording, sent[1]))
    made = set(prompts.parent.rglob("*")) - set(beside)
    assert all(path.parent == prompts and path.suffix == ".wav" for path in made)
    assert len(made) == (1 if status == 201 else 0)
    for path in made:
        path.unlink()


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("part", ["", "/sample"])
def test_no_path_of_a_voice_leads_out_of_the_folder(
    service: Service, method: str, part: str
) -> None:
    for name in (
        *("..", "../default", "..%2f..%2fetc%2fpasswd", "%2e%2e", "/etc/passwd", "default.wav"),
        *("./default", "default\0", "..\\default", "\ud800", "nobody"),
    ):
        path = f"/v1/audio/voices/{name}{part}".encode("utf-8", "surrogatepass").decode("latin-1")
        status = service.ask({**create_environ("/", method=method), "PATH_INFO": path})
        assert status in {404, 405}, name


def test_no_upload_unpacks_without_end(served: Gateway, recording: bytes) -> None:
    (worker,) = served.workers()
    before = hostile.most_resident_bytes(worker)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(100 * hostile.MEGABYTE))
    for sample in (
        hostile.packed_silence(),
        hostile.wav_of(384_000, 13),  # all that the service takes, of the highest rate
        hostile.wav_of(24_000, 1, claimed=2**31 - 100),
        zipped.getvalue(),
        gzip.compress(bytes(100 * hostile.MEGABYTE)),
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        recording[:100],
    ):
        answer = served.client.post(
            "/v1/audio/voices", data={"name": "bomb"}, files={"audio_sample": ("a.wav", sample)}
        )
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "audio_sample"
    assert hostile.most_resident_bytes(worker) - before < 300 * hostile.MEGABYTE


# -- deep, large, odd --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"input":' * 5_000,
        b'{"input": "x", "emo_text": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"input": "x", "top_p": ' + b"9" * 4_000 + b"}",
        b'{"input": "x", "top_p": ' + b"9" * 5_000 + b"}",
        b'{"input": "x", "speed": NaN}',
        b'{"input": "x", "top_p": Infinity}',
        b'{"input": "x", "speed": 1e400}',
        b'{"input": "\\ud800"}',
        b'{"input": "x", "voice": "\\ud800"}',
        b'{"input": "x", "emo_control_method": "\\ud800"}',
        b'{"input": "x", "voice": {"id": {"id": "x"}}}',
        b'{"input": "' + b"e" + "\u0301".encode() * 100_000 + b'"}',
        b'{"input": "\xff\xfe"}',
        b"\xef\xbb\xbf\xff",
        b"",
        b"\0",
    ],
    ids=range(17),
)
def test_odd_json_is_refused(service: Service, body: bytes) -> None:
    environ = create_environ("/v1/audio/speech", method="POST", data=body)
    assert service.ask({**environ, "CONTENT_TYPE": "application/json"}) == 400


@pytest.mark.parametrize(
    "text",
    ["\0", "a\0b", "\u200b", "\u202eabc", "\ufeff", "\x1b[31m", "e" + "\u0301" * 150, "\u2028"],
)
def test_odd_characters_are_spoken_or_refused(service: Service, text: str) -> None:
    environ = create_environ(
        "/v1/audio/speech", method="POST", data=json.dumps({"input": text}).encode()
    )
    assert service.ask({**environ, "CONTENT_TYPE": "application/json"}) in {200, 400}


# -- below HTTP, on gunicorn itself ------------------------------------------------------------

HEAD = b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"input": "Hello."}'
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
LIMIT = 30.0  # seconds, on a busy machine

MALFORMED = (
    b"\r\n\r\n",
    b"\0\0\0\0\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / \r\n\r\n",
    b"GET / HTTP/1.1\nHost: x\n\n\r\n\r\n",
    b"G\xc3\x89T / HTTP/1.1\r\n\r\n",
    b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n folded: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nA B: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n",
    HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: +19\r\n\r\n" + BODY,
    HEAD + b"Content-Length: 1_9\r\n\r\n" + BODY,
    HEAD + b"Content-Length: \xb2\r\n\r\n" + BODY,
    HEAD + b"Content-Length: 19\r\nContent-Length: 20\r\n\r\n" + BODY,
    HEAD + b"Content-Length: 99999999999999999999\r\n\r\n",
    HEAD + b"Content-Length: 19\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1;" + b"x" * 100_000,
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n" + b"x" * 1000,
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
    b"CONNECT evil:80 HTTP/1.1\r\nHost: evil\r\n\r\n",
    b"GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"x" * 200_000,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The service on gunicorn with few threads and little patience."""
    backend = GradioApp("indextts-2.0", ms_audio_per_char=300)
    gateway = Gateway(
        tmp_path_factory.mktemp("served"), GRADIO_URL=backend.url, THREADS=8, CLIENT_TIMEOUT=2
    )
    start_all([backend, gateway])
    yield gateway
    gateway.stop()
    backend.stop()


def connect(service: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), LIMIT)


def said(client: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    told = b""
    with suppress(ConnectionError):
        while data := client.recv(65536):
            told += data
    return told


def exchange(service: Gateway, request: bytes) -> bytes:
    """All that is answered to a client which then has nothing more to say."""
    with closing(connect(service)) as client:
        with suppress(OSError):
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
        return said(client)


def check_raw(told: bytes, request: bytes) -> None:
    """That every answer is told as it should be; some requests deserve none."""
    if not told:
        return
    assert told.startswith(b"HTTP/1.1 "), (request[:100], told[:200])
    status = int(told[9:12])
    assert status < 500 or status in TOLD, (request[:100], told[:400])
    assert MARK.encode() not in told.partition(b"\r\n\r\n")[0]
    if status >= 400:
        assert b"invalid_request_error" in told or b"server_error" in told, told[:400]


def is_well(service: Gateway) -> bool:
    return service.client.get("/health/live").status_code == 200


def test_malformed_http_is_refused_and_harms_nobody_else(served: Gateway) -> None:
    for request in MALFORMED:
        check_raw(exchange(served, request), request)
        assert is_well(served), request[:100]
    assert "Traceback" not in served.log


@pytest.mark.timeout(0)
def test_no_bytes_break_the_connection_of_another(served: Gateway) -> None:
    cut = st.integers(0, len(WHOLE))

    @attack(0.02)
    @given(start=cut, end=cut, piece=st.one_of(st.binary(max_size=9), nasty.map(lambda text:
        text.encode("utf-8", "surrogatepass"))))  # fmt: skip
    def spoil(start: int, end: int, piece: bytes) -> None:
        request = WHOLE[:start] + piece + WHOLE[end:]
        check_raw(exchange(served, request), request)

    spoil()
    assert is_well(served)
    assert "Traceback" not in served.log


@pytest.mark.parametrize(
    "name", [b"X-Request-ID", b"Origin", b"Range", b"If-None-Match", b"Authorization", b"Host"]
)
def test_no_echoed_header_brings_in_another(served: Gateway, name: bytes) -> None:
    for value in (
        b"a\r\n%s: 1",
        b"a\n%s: 1",
        b"a\r%s: 1",
        b"a\0\n%s: 1",
        b"a\xc4\x8d\xc4\x8a%s: 1",
    ):
        line = b"%s: %s\r\n" % (name, value % MARK.encode())
        request = WHOLE.replace(b"Host: x\r\n", line, 1)
        told = exchange(served, request)
        assert b"\n%s" % MARK.encode() not in told.partition(b"\r\n\r\n")[0]


SLOW = {
    "head": b"POST /v1/audio/speech HTTP/1.1\r\nX-Slow: ",
    "body": HEAD + b"Content-Length: 1000\r\n\r\n",
    "large body": HEAD + b"Content-Length: 200000\r\n\r\n",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n",
}


@pytest.mark.parametrize("where", SLOW)
def test_who_sends_byte_by_byte_is_let_go_and_others_are_served(
    served: Gateway, where: str
) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(connect(served))) for _ in range(40)]
        for client in clients:
            client.sendall(SLOW[where])
        began = time.monotonic()
        answer = served.post({"input": f"Others are slow in the {where}."})
        assert (answer.status_code, answer.headers["X-Cache"]) == (200, "MISS")
        assert is_well(served)
        left = set(clients)
        while left and time.monotonic() < began + LIMIT:
            for client in list(left):
                try:
                    client.sendall(b"x")
                except OSError:
                    left.discard(client)
            time.sleep(0.05)
        assert not left
        assert is_well(served)
    assert "Traceback" not in served.log


def test_a_request_that_takes_too_long_is_told_so(served: Gateway) -> None:
    for start in SLOW.values():
        with closing(connect(served)) as client:
            client.sendall(start)
            assert said(client).startswith(b"HTTP/1.1 408 ")


def test_a_large_body_that_keeps_coming_has_the_time_it_needs(served: Gateway) -> None:
    body = BODY + b" " * 100_000
    with closing(connect(served)) as client:
        client.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 20_000):
            client.sendall(body[start : start + 20_000])
            time.sleep(0.6)  # in all longer than the patience for a small one
        assert said(client).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("is_hit", [False, True])
def test_who_takes_nothing_of_an_answer_is_let_go(served: Gateway, is_hit: bool) -> None:
    body = json.dumps({"input": f"A long text for one who hears {is_hit}. " * 25}).encode()
    if is_hit:
        served.client.post("/v1/audio/speech", content=body)
        assert served.client.post("/v1/audio/speech", content=body).headers["X-Cache"] == "HIT"
    before = served.log.count("bytes=")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", served.port))
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: served.log.count("bytes=") > before, LIMIT)
    assert "Traceback" not in served.log


def test_idle_connections_keep_nobody_out(served: Gateway) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1_200
    if hard != resource.RLIM_INFINITY and hard < wanted + 500:
        pytest.skip(f"{wanted} connections need more files than {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 500), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(wanted):
            stack.enter_context(closing(connect(served)))
        assert exchange(served, WHOLE).startswith(b"HTTP/1.1 200 OK\r\n")
