"""A door before a Gradio app that plays tricks: what a backend of ill will could send."""

import gzip
import io
import json
import re
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import httpx
import numpy as np

MEGABYTE = 1024 * 1024
DRIP_SECONDS = 0.2  # between two bytes
_ANSWER_LIMIT = 30  # seconds

#: What a trick does with a request; True if it has answered it.
Trick = Callable[["_Request"], bool]


class HostileBackend(ThreadingHTTPServer):
    """Passes requests on to the Gradio app at `target`, except those that a trick is set for.

    `tricks` by the beginning of the path. `rewrite` changes the bodies of answers that pass.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.target = target
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.tricks: dict[str, Trick] = {}
        self.rewrite: Callable[[str, bytes], bytes] = lambda path, body: body
        self.asked: list[str] = []
        self.sent = 0  # bytes of tricks
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: whom it wrongs hangs up."""


class _Request(BaseHTTPRequestHandler):
    server: HostileBackend

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append(f"{self.command} {self.path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for start, trick in self.server.tricks.items():
            if self.path.startswith(start) and trick(self):
                return
        self.pass_on()

    do_POST = do_HEAD = do_GET  # noqa: N815 - names that the base class asks for

    def pass_on(self) -> None:
        """As an honest door would."""
        kept = {
            name: self.headers[name] for name in ("Content-Type", "Cookie") if name in self.headers
        }
        answer = httpx.request(
            self.command,
            self.server.target + self.path,
            content=self.body,
            headers=kept,
            timeout=_ANSWER_LIMIT,
            verify=False,
        )
        body = self.server.rewrite(self.path, answer.content)
        self.answer(body, kind=answer.headers.get("Content-Type", ""), status=answer.status_code)

    def answer(self, body: bytes, *, kind: str, status: int = 200, **headers: str) -> None:
        self.head(status, **{"Content-Type": kind, "Content-Length": str(len(body)), **headers})
        self.wfile.write(body)

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def pour(self, pieces: Iterator[bytes], pause: float = 0) -> bool:
        """Send until the other side hangs up."""
        with suppress(OSError):
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                self.server.sent += len(piece)
                if self.server.closing.wait(pause):
                    break
        return True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def _without_end(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def redirect(url: str) -> Trick:
    """To somewhere else."""

    def trick(request: _Request) -> bool:
        request.head(307, Location=url, Content_Length="0")
        return True

    return trick


def endless(request: _Request) -> bool:
    """A body that never ends, as fast as it is taken."""
    request.head(Content_Type="application/json")
    return request.pour(_without_end(b" " * 65536))


def endless_events(request: _Request) -> bool:
    """Events for nobody."""
    request.head(Content_Type="text/event-stream")
    event = {"msg": "process_completed", "output": {}, "success": True}
    numbers = iter(range(10**9))
    return request.pour(
        f"data: {json.dumps({**event, 'event_id': str(number)})}\n\n".encode() for number in numbers
    )


def endless_head(request: _Request) -> bool:
    """Headers without end."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    return request.pour(_without_end(b"X-More: " + b"x" * 1000 + b"\r\n"))


def endless_promises(request: _Request) -> bool:
    """Interim answers without end, each complete."""
    return request.pour(_without_end(b"HTTP/1.1 102 Processing\r\n\r\n" * 100), 0.01)


def gigabyte(request: _Request) -> bool:
    """One of them, and told so."""
    request.head(Content_Type="audio/wav", Content_Length=str(1024 * MEGABYTE))
    return request.pour(bytes(MEGABYTE) for _ in range(1024))


def packed_gigabyte(request: _Request) -> bool:
    """One of them, packed into a megabyte."""
    body = _packed_gigabyte()
    request.answer(body, kind="application/json", Content_Encoding="gzip")
    return True


@cache
def _packed_gigabyte() -> bytes:
    packed = io.BytesIO()
    with gzip.open(packed, "wb", compresslevel=9) as file:
        for _ in range(1024):
            file.write(bytes(MEGABYTE))
    return packed.getvalue()


def too_long(request: _Request) -> bool:
    """Fewer bytes than promised."""
    request.head(Content_Type="application/json", Content_Length="1000")
    request.wfile.write(b"[" * 10)
    return True


def too_short(request: _Request) -> bool:
    """More bytes than promised."""
    request.head(Content_Type="application/json", Content_Length="1")
    request.wfile.write(b"[]" * 1000)
    return True


def html(request: _Request) -> bool:
    """A page, with status 200."""
    request.answer(b"<!DOCTYPE html><script>alert(1)</script>", kind="text/html")
    return True


def deep(request: _Request) -> bool:
    """JSON that goes down a hundred thousand steps."""
    request.answer(b"[" * 100_000, kind="application/json")
    return True


def nonsense(request: _Request) -> bool:
    """No HTTP at all."""
    request.wfile.write(b"\0\xff\r\n" * 1000)
    return True


def slow_head(request: _Request) -> bool:
    """A header that comes byte by byte, and never as a whole."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    return request.pour(_without_end(b"x"), DRIP_SECONDS)


def slow_body(request: _Request) -> bool:
    """A body that comes byte by byte."""
    request.head(Content_Type="application/json")
    return request.pour(_without_end(b" "), DRIP_SECONDS)


def sound(body: bytes) -> Trick:
    """These bytes for the sound that was spoken."""

    def trick(request: _Request) -> bool:
        request.answer(body, kind="audio/wav")
        return True

    return trick


@cache
def packed_silence(minutes: int = 12) -> bytes:
    """Silence as flac, of which a second takes some hundred bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as file:
        stream = file.add_stream("flac", rate=24_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 24_000 * 60), np.int16), "s16", "mono")
        frame.sample_rate = 24_000
        for _ in range(minutes):
            frame.pts = None
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def wav_of(rate: int, seconds: float, *, claimed: int | None = None) -> bytes:
    """A WAV that may claim another size of its samples."""
    data = bytes(2 * round(rate * seconds))
    size = len(data) if claimed is None else claimed
    form = struct.pack("<HHIIHH", 1, 1, rate, (rate * 2) % 2**32, 2, 16)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", (36 + size) % 2**32, b"WAVE", b"fmt ", len(form))
        + form
        + struct.pack("<4sI", b"data", size)
        + data
    )


def answering_with(path: str) -> Callable[[str, bytes], bytes]:
    """A `rewrite` after which the function's result is the file at `path`."""

    def rewrite(asked: str, body: bytes) -> bytes:
        if "/queue/data" not in asked:
            return body
        told = json.dumps(path).encode()
        return re.sub(rb'"path":\s*"[^"]*"', lambda _: b'"path": ' + told, body)

    return rewrite


def describing(**changes: object) -> Callable[[str, bytes], bytes]:
    """A `rewrite` of the server's configuration."""

    def rewrite(asked: str, body: bytes) -> bytes:
        return json.dumps({**json.loads(body), **changes}).encode() if asked == "/config" else body

    return rewrite


def describing_parameters(changes: Mapping[str, object]) -> Callable[[str, bytes], bytes]:
    """A `rewrite` of every parameter in the API's description."""

    def rewrite(asked: str, body: bytes) -> bytes:
        if not asked.endswith("/info"):
            return body
        info = json.loads(body)
        for function in info["named_endpoints"].values():
            for parameter in function["parameters"]:
                if parameter["parameter_name"] not in ("text", "prompt"):
                    parameter.update(changes)
        return json.dumps(info).encode()

    return rewrite


class Bystander(ThreadingHTTPServer):
    """Another host, which counts who comes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Welcome)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.visits = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Welcome(BaseHTTPRequestHandler):
    server: Bystander

    def do_GET(self) -> None:
        self.server.visits += 1
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_HEAD = do_GET  # noqa: N815 - names that the base class asks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def most_resident_bytes(pid: int) -> int:
    """The most memory that a process has held so far (VmHWM of proc_pid_status(5))."""
    told = Path(f"/proc/{pid}/status").read_text()
    return int(told.partition("VmHWM:")[2].split()[0]) * 1024
