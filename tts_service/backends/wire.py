"""HTTP to a server that may be anything: what it sends is bounded, in bytes and in time.

httpx bounds the silence between two reads and nothing else: a server that sends a byte now and
then, or never stops, would hold a thread or fill the memory. It also unpacks what it gets, and a
megabyte may unpack to a thousand. Here a head, and the whole of a body, each have as long as the
request's timeout for reading; a stream of events may go on, but has the same bound in bytes.
Redirects are never followed.
"""

import contextlib
import logging
import time
import types
from collections.abc import Iterator
from typing import Any

import httpcore
import httpx

logger = logging.getLogger(__name__)

#: Of an answer that is read as a whole, or of a stream of events.
LARGEST_TALK = 4 * 1024 * 1024  # bytes
#: Names of request extensions: another bound in bytes, and when the body must have ended
#: (on time.monotonic).
LARGEST, UNTIL = "tts_service.largest", "tts_service.until"


class TooMuch(httpx.RequestError):
    """The server sends more than it may, or packed so that nobody can tell how much."""


class Client(httpx.Client):
    """An httpx client with these bounds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, event_hooks={"response": [_bound]})
        self.headers["Accept-Encoding"] = "identity"
        for transport in (self._transport, *self._mounts.values()):
            # httpx has no option for the layer below its connections.
            pool = getattr(transport, "_pool", None)
            if pool is not None:
                pool._network_backend = _Network(pool._network_backend)


def bounded_httpx() -> types.ModuleType:
    """A stand-in for the module httpx whose requests go through `Client`."""
    module = types.ModuleType("httpx", "httpx, with bounds.")
    vars(module).update(vars(httpx))
    vars(module).update(Client=_EventsClient, get=_get, post=_post)
    return module


class _EventsClient(Client):
    """Whatever breaks a stream of events is a RemoteProtocolError, the one error that gradio_client
    takes calmly: for all others it prints a traceback past the log."""

    @contextlib.contextmanager
    def stream(self, *args: Any, **options: Any) -> Iterator[httpx.Response]:
        try:
            with super().stream(*args, **options) as response:
                yield response
        except httpx.RequestError as error:
            logger.info("a stream of events broke: %s", str(error) or type(error).__name__)
            raise httpx.RemoteProtocolError(str(error)) from error


def _get(url: str, **options: Any) -> httpx.Response:
    with _client(options) as client:
        return client.get(url, **options)


def _post(url: str, **options: Any) -> httpx.Response:
    with _client(options) as client:
        return client.post(url, **options)


def _client(options: dict[str, Any]) -> Client:
    """A client with those of a request's options that are the client's."""
    own = {name: options.pop(name) for name in ("verify", "cookies", "timeout") if name in options}
    return Client(**own)


def _bound(response: httpx.Response) -> None:
    """A response hook: it is called when the head is there, and before the body is read."""
    extensions = response.request.extensions
    largest = extensions.get(LARGEST, LARGEST_TALK)
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise TooMuch("The server packs its answer, which it was not asked for.")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > largest:
        raise TooMuch(f"The server's answer is larger than {largest} bytes.")
    stream = response.extensions.get("network_stream")
    if isinstance(stream, _Stream):
        is_endless = response.headers.get("Content-Type", "").startswith("text/event-stream")
        seconds = None if is_endless else extensions["timeout"]["read"]
        until = None if seconds is None else time.monotonic() + seconds
        stream.read_body(extensions.get(UNTIL, until))
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _Bounded(response.stream, largest)


class _Bounded(httpx.SyncByteStream):
    """A body that ends with an error when it is too large."""

    def __init__(self, body: httpx.SyncByteStream, largest: int) -> None:
        self._body = body
        self._largest = largest

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._body:
            size += len(chunk)
            if size > self._largest:
                raise TooMuch(f"The server's answer is larger than {self._largest} bytes.")
            yield chunk

    def close(self) -> None:
        self._body.close()


class _Network(httpcore.NetworkBackend):
    """Makes connections whose reads have an end."""

    def __init__(self, network: httpcore.NetworkBackend) -> None:
        self._network = network

    def connect_tcp(self, *args: Any, **options: Any) -> httpcore.NetworkStream:
        return _Stream(self._network.connect_tcp(*args, **options))

    def sleep(self, seconds: float) -> None:
        self._network.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    """A connection. From a request's last byte on its answer's head has as long as one read may
    take, however many reads it comes in; the body ends when it was told."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._is_in_head = True
        self._asked_at = time.monotonic()
        self._until: float | None = None

    def read_body(self, until: float | None) -> None:
        """The head is there; the body must have ended at `until` (None: it may go on)."""
        self._is_in_head = False
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        until = self._until
        if self._is_in_head:
            until = None if timeout is None else self._asked_at + timeout
        if until is not None:
            left = until - time.monotonic()
            if left <= 0:
                raise httpcore.ReadTimeout("The server did not end its answer in time.")
            timeout = left if timeout is None else min(timeout, left)
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)
        self._is_in_head = True
        self._asked_at = time.monotonic()

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *args: Any, **options: Any) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(*args, **options))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
