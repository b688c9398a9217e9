"""The load: one process, many kept connections, every answer checked.

Written on bare sockets, because a client library costs more than the servers it would measure;
against nginx this is as fast as wrk, and with large answers faster. Every answer is read to its
end, and its status, length and `X-Cache` are looked at.
"""

import http.client
import json
import select
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import takewhile

SPEECH = "/v1/audio/speech"
_BUFFER_BYTES = 1 << 20  # more than any answer has
_WAV_HEADER = 44  # bytes; what follows in any format is sound
_SILENCE_LIMIT = 60.0  # seconds without any answer, after which the server counts as hung


class WrongAnswer(Exception):
    """A server answered something else than it was measured for: its figures mean nothing."""


@dataclass(frozen=True)
class Wanted:
    """What an answer must be: 200, `length` bytes, and, of a server that tells, `verdict`."""

    length: int
    verdict: str | None = None

    def is_in(self, head: bytes | bytearray) -> bool:
        told = head.lower()
        has_verdict = self.verdict is None or (
            b"\r\nx-cache: " not in told
            or b"\r\nx-cache: %s\r\n" % self.verdict.lower().encode() in told
        )
        has_length = b"\r\ncontent-length: %d\r\n" % self.length in told
        return told[8:13] == b" 200 " and has_length and has_verdict


@dataclass
class Load:
    """What came of it: seconds in all, and from each request to the end of its answer."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.count / self.seconds

    def within(self, share: float) -> float:
        """Seconds within which `share` of the requests were answered."""
        return sorted(self.latencies)[min(self.count - 1, int(self.count * share))]


@dataclass(frozen=True)
class Heard:
    """One answer as a listener has it: seconds from the request to its first sound, and to its
    end. `headers` by name, in small letters."""

    first_sound: float
    whole: float
    headers: Mapping[str, str]
    body: bytes


def speech_request(text: str, query: str = "") -> bytes:
    """A request for `text`, as a client with a kept connection sends it; `query` begins with ?."""
    body = json.dumps({"model": "tts-1", "input": text}).encode()
    head = (
        f"POST {SPEECH}{query} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*head, "", "")).encode() + body


def file_request(name: str) -> bytes:
    """A request for a file, where one is served."""
    return f"GET /{name} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def begin(port: int, request: bytes) -> socket.socket:
    """Send one request to 127.0.0.1; its answer may wait in the socket."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(request)
    return connection


def listen(port: int, **fields: object) -> Heard:
    """Ask 127.0.0.1 for speech on a new connection; `fields` are the request's.

    Raises WrongAnswer: another status than 200, or an answer that breaks off.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SILENCE_LIMIT)
    body = json.dumps({"model": "tts-1", **fields}).encode()
    with closing(connection):
        try:
            began = time.perf_counter()
            connection.request("POST", SPEECH, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            start = answer.read(_WAV_HEADER + 1)
            first_sound = time.perf_counter() - began
            sound = start + answer.read()
            whole = time.perf_counter() - began
        except (http.client.HTTPException, OSError) as error:
            raise WrongAnswer(f"the answer broke off: {error!r}") from error
    if answer.status != 200:
        raise WrongAnswer(f"{answer.status}: {sound[:600].decode(errors='replace')}")
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return Heard(first_sound, whole, headers, sound)


def for_seconds(requests: Iterable[bytes], seconds: float) -> Iterator[bytes]:
    """The requests that begin within `seconds` from now."""
    end = time.perf_counter() + seconds
    return takewhile(lambda _: time.perf_counter() < end, requests)


def send_all(port: int, requests: Iterable[bytes], connections: int, wanted: Wanted) -> Load:
    """Send every request to 127.0.0.1, `connections` at a time. Raises WrongAnswer."""
    remaining = iter(requests)
    load = Load()
    with ExitStack() as stack:
        buffer = bytearray(_BUFFER_BYTES)
        exchanges = [
            stack.enter_context(closing(Exchange(port, wanted, buffer))) for _ in range(connections)
        ]
        began = time.perf_counter()
        for exchange, request in zip(exchanges, remaining, strict=False):
            exchange.send(request)
        for exchange in _answered(exchanges):
            load.latencies.append(time.perf_counter() - exchange.sent_at)
            if (request_or_none := next(remaining, None)) is not None:
                exchange.send(request_or_none)
        load.seconds = time.perf_counter() - began
    return load


def _answered(exchanges: Sequence["Exchange"]) -> Iterator["Exchange"]:
    """Each exchange whenever its answer is complete, as long as any is under way."""
    by_number = {exchange.fileno(): exchange for exchange in exchanges}
    with select.epoll() as poller:
        for number in by_number:
            poller.register(number, select.EPOLLIN)
        while any(exchange.is_under_way for exchange in exchanges):
            ready = poller.poll(_SILENCE_LIMIT)
            if not ready:
                raise WrongAnswer(f"no answer within {_SILENCE_LIMIT:.0f} s")
            for number, _ in ready:
                exchange = by_number[number]
                if not exchange.is_under_way:  # nothing is left to ask, and the server lets it go
                    poller.unregister(number)
                elif exchange.read_on():
                    yield exchange


class Exchange:
    """One connection, on which one request at a time is answered."""

    def __init__(self, port: int, wanted: Wanted, buffer: bytearray) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.settimeout(None)  # only read when epoll says that there is something
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wanted = wanted
        self._buffer = buffer  # what is in it belongs to nobody after `read_on`
        self._missing = 0  # bytes of an answer that has begun
        self.is_under_way = False
        self.sent_at = 0.0
        self.fileno = self._socket.fileno
        self.close = self._socket.close

    def send(self, request: bytes) -> None:
        self.is_under_way = True
        self.sent_at = time.perf_counter()
        self._socket.sendall(request)

    def read_on(self) -> bool:
        """Take what has come; whether the answer is complete now. Raises WrongAnswer."""
        size = self._socket.recv_into(self._buffer)
        if not size:
            raise WrongAnswer("the server has closed the connection")
        expected = self._missing or self._whole_length(size)
        self._missing = expected - size
        if self._missing < 0:
            raise WrongAnswer(f"{-self._missing} bytes after the answer's end")
        self.is_under_way = self._missing > 0
        return not self.is_under_way

    def _whole_length(self, size: int) -> int:
        """Of head and body, from the head, which comes in one piece on loopback."""
        end = self._buffer.find(b"\r\n\r\n", 0, size) + 4
        if end < 4 or not self._wanted.is_in(self._buffer[:end]):
            raise WrongAnswer(self._buffer[: min(size, 600)].decode(errors="replace"))
        return end + self._wanted.length
