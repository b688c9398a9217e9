"""The WSGI layer in front of Flask: paths as clients write them, request ids, clients behind
proxies, what browsers are told for safety, and one log line each."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from tts_service.logs import request_id
from tts_service.metrics import Metrics
from tts_service.proxies import Proxies

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("tts_service.access")

#: In the WSGI environment: what a view wants to have said in the log line.
NOTES = "tts_service.notes"
#: Set in the environment of requests that the service makes itself, such as the self-test's: no
#: client can, and no limit is theirs.
OWN = "tts_service.own"
REQUEST_ID = "tts_service.request_id"
ASKED_PATH = "tts_service.asked_path"
#: Of every whole answer: how long browsers and proxies may give it again without asking. Short, for
#: a recording may be replaced. Not `public`: with `Authorization` only who sent it may keep it.
CACHE_CONTROL = "max-age=60"
#: What is told of each request, by name; null where it does not apply. Other programs read this:
#: docs/logs.md documents it.
FACTS = (
    *("status", "bytes", "first_byte_ms", "total_ms", "client", "voice", "chars", "format"),
    *("segments", "cache", "queue_ms", "error"),
)
PRINTABLE = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")
_PREFIX = re.compile(r"(/v1)+(?=/|\Z)")
_SLASHES = re.compile(r"/{2,}")


class Front:
    """Wraps the application. A path means the same with or without `/v1`, with doubled slashes
    and with one at its end, and is never redirected."""

    def __init__(
        self,
        app: "WSGIApplication",
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        self._app = app
        self._proxies = proxies or Proxies(())
        self._metrics = metrics or Metrics()
        self._clock = clock

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        asked_id = environ.get("HTTP_X_REQUEST_ID", "")
        new_id = asked_id if PRINTABLE.fullmatch(asked_id) else uuid.uuid4().hex
        environ[REQUEST_ID] = new_id
        environ[NOTES] = {}
        environ["REMOTE_ADDR"] = self._proxies.client(
            environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR", "")
        )
        line = AccessLine(environ, self._metrics, self._clock)  # keeps the path as it was asked for
        environ[ASKED_PATH] = environ.get("PATH_INFO", "")
        environ["PATH_INFO"] = plain_path(environ.get("PATH_INFO", ""))
        request_id.set(new_id)

        def start(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], object]:
            line.status = int(status[:3])
            told = [*headers, *protection(headers), ("X-Request-ID", new_id)]
            return start_response(status, told, exc_info)

        try:
            return _Body(self._app(environ, start), line)
        except BaseException:  # a worker that is told to stop, too, leaves a line
            line.write()
            raise


def plain_path(path: str) -> str:
    """The path that routes are written for."""
    path = _SLASHES.sub("/", path)
    prefix = _PREFIX.match(path)
    return path[prefix.end() if prefix else 0 :].rstrip("/") or "/"


def protection(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What an answer with these headers tells browsers for safety, unless it says so itself.

    Sound may be played by pages of any origin, as ever; everything else is for pages of ours, and
    for those that `CORS_ORIGINS` names. A link holds its text, so no page passes its address on.
    """
    had = {name.lower(): value for name, value in headers}
    kind = had.get("content-type", "")
    wanted = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    if kind:  # a 304 has none, and must not change what it confirms
        is_sound = kind.startswith("audio/")
        wanted["Cross-Origin-Resource-Policy"] = "cross-origin" if is_sound else "same-origin"
    if kind.startswith("text/html"):
        wanted["X-Frame-Options"] = "DENY"
        wanted["Content-Security-Policy"] = "default-src 'self'; frame-ancestors 'none'"
    return [(name, value) for name, value in wanted.items() if name.lower() not in had]


class AccessLine:
    """What is known of one request when its last byte is out."""

    def __init__(
        self, environ: "WSGIEnvironment", metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._environ = environ
        self._metrics = metrics
        self._clock = clock
        self._began = clock()
        self._path = environ.get("PATH_INFO", "")
        self._request_id = environ.get(REQUEST_ID, "-")
        self._first_byte: float | None = None
        self._ended: float | None = None
        self._is_written = False
        self.status: int | None = None
        self.bytes = 0

    def count(self, size: int) -> None:
        """So many bytes of the body are out."""
        if self._first_byte is None:
            self._first_byte = self._clock()
        self.bytes += size

    def end(self) -> float:
        """When the last byte was out: now, unless that was said before."""
        if self._ended is None:
            self._ended = self._clock()
        return self._ended

    def write(self) -> None:
        """Once, however often a server closes a body; the thread has no request from then on."""
        if not self._is_written:
            self._is_written = True
            ended = self.end()
            self._count_in(ended)
            if logger.isEnabledFor(logging.INFO):
                self._log(ended)
            request_id.set("-")

    def _count_in(self, ended: float) -> None:
        cache = self._environ[NOTES].get("cache")
        self._metrics.note_request(str(self.status or "-"), cache)
        if cache:
            first_byte = (self._first_byte or ended) - self._began
            self._metrics.note_latency(cache, first_byte, ended - self._began)

    def _log(self, ended: float) -> None:
        method, path = self._environ.get("REQUEST_METHOD", "-"), _safe(self._path)
        facts: dict[str, object] = {
            **_NO_FACTS,
            "status": self.status,
            "bytes": self.bytes,
            "first_byte_ms": round(((self._first_byte or ended) - self._began) * 1000, 1),
            "total_ms": round((ended - self._began) * 1000, 1),
            "client": self._environ.get("REMOTE_ADDR", "-"),
            **self._environ[NOTES],
        }
        told = [f"{name}={value}" for name, value in facts.items() if value is not None]
        more = {"request_id": self._request_id, "method": method, "path": path, **facts}
        logger.handle(_Record(" ".join([method, path, *told]), more))


class _Record(logging.LogRecord):
    """What `logger.info` would make, but for what is never shown, such as the line of code that it
    was called from: finding that out takes longer than all the rest."""

    _COMMON: ClassVar = vars(logging.LogRecord(logger.name, logging.INFO, "", 0, "", None, None))

    def __init__(self, message: str, more: dict[str, object]) -> None:
        self.__dict__ = self._COMMON | more
        self.msg = message
        self.created = time.time()
        self.msecs = self.created % 1 * 1000


_NO_FACTS = dict.fromkeys(FACTS)


class _Body:
    """The answer's body, watched on its way out."""

    def __init__(self, body: Iterable[bytes], line: AccessLine) -> None:
        self._body = body
        self._line = line

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._body:
            self._line.count(len(chunk))
            yield chunk

    def close(self) -> None:
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            self._line.write()


def _safe(path: str) -> str:
    """A path that cannot forge a log line."""
    return ascii(path)[1:-1][:200]
