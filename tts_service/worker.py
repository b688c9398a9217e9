"""gunicorn's gthread worker, whose poller reads requests and answers hits by itself.

Handing a request to a pool thread costs more than a hit does: the interpreter's lock changes
hands a dozen times. So the poller collects a request's bytes, has them parsed by gunicorn's own
parser, and asks `Hits`; what is no hit goes to the pool, complete, as it would have by itself.
A client that stalls in the middle of its request keeps nobody but itself waiting.
"""

import json
import selectors
import socket
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from gunicorn.http import RequestParser
from gunicorn.http.errors import LimitRequestHeaders
from gunicorn.workers.gthread import TConn, ThreadWorker

from tts_service.errors import InvalidRequest, SpeechError
from tts_service.extensions import Services
from tts_service.front import NOTES, AccessLine, protection
from tts_service.hits import Head, Hit, Hits
from tts_service.logs import request_id

#: What the poller collects of one request; a larger one is read by its thread.
_LARGEST = 64 * 1024
_HEADS = 256  # parsed heads that are remembered
_LOOK_SECONDS = 1.0  # between two looks for connections whose time is up


class Connection(TConn):  # type: ignore[misc] # gunicorn has no types
    """A client's connection, with what has come in of its next request."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.received = bytearray()
        self.hit: Hit | None = None  # being sent
        self.unsent: list[memoryview] = []

    def close(self, graceful: bool = False) -> None:
        super().close(graceful)
        self.end_hit()

    def end_hit(self) -> None:
        """Write the log line of what was sent."""
        hit, self.hit = self.hit, None
        if hit is not None:
            hit.line.count(len(hit.body) - sum(len(part) for part in self.unsent[-1:]))
            hit.line.write()


class SpeechWorker(ThreadWorker):  # type: ignore[misc]
    """Set by gunicorn.conf.py, unless FAST_HITS is off."""

    def init_process(self) -> None:
        self._heads: dict[tuple[bytes, str], tuple[Head | None, int | None]] = {}
        self._hits: Hits | None = None
        self._next_look = 0.0
        super().init_process()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        services = self.wsgi.extensions["tts_service"]
        assert isinstance(services, Services)
        self._hits = services.hits
        self._metrics = services.metrics

    # -- connections in the poller ---------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        if self.cfg.is_ssl:  # a handshake needs a thread
            super().accept(listener)
            return
        try:
            client, address = listener.accept()
        except OSError:  # gone again, or another worker was faster
            return
        self.nr_conns += 1
        connection = Connection(self.cfg, client, address, listener.getsockname())
        connection.set_timeout()
        self.keepalived_conns.append(connection)
        self._watch(connection, self.poller.register, read=True)

    def on_client_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """More of a request, on a connection that is waited on."""
        if not isinstance(conn, Connection):
            super().on_client_socket_readable(conn, client)
            return
        try:
            data = client.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(conn)
            return
        conn.received += data
        self._proceed(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close connections whose time is up. Hits prolong it without giving them a new place in
        the deque, so all of it is looked at, now and then."""
        now = time.monotonic()
        if not force and self.alive and now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        for conn in list(self.keepalived_conns):
            if force or conn.timeout <= now:
                self._drop(conn)

    def _watch(self, conn: Connection, how: Callable[..., Any], *, read: bool) -> None:
        event = selectors.EVENT_READ if read else selectors.EVENT_WRITE
        act = self.on_client_socket_readable if read else self._send_on
        how(conn.sock, event, partial(act, conn))

    def _drop(self, conn: Any) -> None:
        self._let_go(conn)
        self.nr_conns -= 1
        conn.close()

    def _let_go(self, conn: Any) -> None:
        self.keepalived_conns.remove(conn)
        self.poller.unregister(conn.sock)

    # -- requests --------------------------------------------------------------------------------

    def _proceed(self, conn: Connection) -> None:
        """Answer what has come in, hand it over, or wait for the rest."""
        end = conn.received.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(conn.received) >= _LARGEST:
                self.handle_error(None, conn.sock, conn.client, LimitRequestHeaders("head"))
                self._drop(conn)
            return
        head, length = self._parsed(bytes(conn.received[:end]), conn.client)
        if length is None or end + length > _LARGEST:
            self._hand_over(conn)
        elif len(conn.received) >= end + length:
            is_alone = len(conn.received) == end + length
            hit = self._find(head, bytes(conn.received[end:])) if is_alone else None
            if hit is None:
                self._hand_over(conn)
            else:
                self._answer(conn, hit)

    def _find(self, head: Head | None, body: bytes) -> Hit | None:
        may_answer = self.alive and self._hits and self.nr + 1 < self.max_requests
        if head is None or not may_answer:
            return None
        try:
            return self._hits.find(head, body) if self._hits else None
        except Exception:  # an error here would end the worker's loop
            self.log.exception("looking for a hit failed")
            return None

    def _parsed(self, head: bytes, client: Any) -> tuple[Head | None, int | None]:
        """What a head says, by gunicorn's parser, and the length of its body; None if only a
        thread can tell."""
        peer = client[0] if isinstance(client, tuple) else ""  # by a Unix socket
        known = self._heads.get((head, peer))
        if known is None:
            known = self._parse(head, client, peer)
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[head, peer] = known
        return known

    def _parse(self, head: bytes, client: Any, peer: str) -> tuple[Head | None, int | None]:
        try:
            request = next(RequestParser(self.cfg, [head], client))
            headers = dict(request.headers)
            length = int(headers.get("CONTENT-LENGTH", 0))
        except Exception:  # noqa: BLE001 - gunicorn's parser; a thread will tell the client
            return None, None
        if "TRANSFER-ENCODING" in headers or "EXPECT" in headers:
            return None, None
        if self._hits is None or request.should_close() or len(headers) < len(request.headers):
            return None, length
        return self._hits.head(request.method, request.path, headers, peer), length

    def _hand_over(self, conn: Connection) -> None:
        """To the pool, with everything that was read."""
        self._let_go(conn)
        conn.init()
        conn.parser.unreader.unread(bytes(conn.received))
        conn.received.clear()
        self.enqueue_req(conn)

    # -- answers ---------------------------------------------------------------------------------

    def _answer(self, conn: Connection, hit: Hit) -> None:
        self.nr += 1
        conn.received.clear()
        conn.set_timeout()
        conn.hit = hit
        conn.unsent = [memoryview(hit.head), hit.body]
        if self._send(conn):
            self._watch(conn, self.poller.modify, read=False)

    def _send_on(self, conn: Connection, _client: socket.socket) -> None:
        """The client takes more; when it has got all, its next request is waited for."""
        if not self._send(conn) and conn.hit is None:
            self._watch(conn, self.poller.modify, read=True)

    def _send(self, conn: Connection) -> bool:
        """As much as the client takes now; whether it must be waited for."""
        try:
            sent = conn.sock.sendmsg(conn.unsent)
        except BlockingIOError:
            return True
        except OSError:  # it has left
            self._drop(conn)
            return False
        while conn.unsent and sent >= len(conn.unsent[0]):
            sent -= len(conn.unsent.pop(0))
        if conn.unsent:
            conn.unsent[0] = conn.unsent[0][sent:]
            return True
        conn.end_hit()
        return False

    # -- errors before there is a request --------------------------------------------------------

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """As gunicorn tells it, but as the JSON that every other error is, and with a log line."""
        new_id = uuid.uuid4().hex
        request_id.set(new_id)
        told = _Recorder()
        super().handle_error(req, told, addr, exc)
        status = int(told.data.split(b" ", 2)[1] or 500) if told.data else 500
        error = (InvalidRequest if status < 500 else SpeechError)(
            f"The request cannot be understood: {type(exc).__name__}."
        )
        body = json.dumps(error.body).encode()
        reason = told.data.partition(b"\r\n")[0].split(b" ", 2)[-1] or b"Error"
        headers = [
            ("Connection", "close"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Request-ID", new_id),
        ]
        lines = [f"{name}: {value}\r\n" for name, value in [*headers, *protection(headers)]]
        head = b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, reason, "".join(lines).encode())
        try:
            client.sendall(head + body)
        except OSError:
            self.log.debug("Failed to send error message.")
        if status < 500:  # else the application has written it
            self._note(req, addr, status, len(body), error)
        request_id.set("-")

    def _note(self, req: Any, addr: Any, status: int, size: int, error: SpeechError) -> None:
        """The log line of a request that never reached the application."""
        environ = {
            "REQUEST_METHOD": getattr(req, "method", None) or "-",
            "PATH_INFO": getattr(req, "path", None) or "-",
            "REMOTE_ADDR": addr[0] if isinstance(addr, tuple) else "unix",
            NOTES: {"error": error.code or error.type},
        }
        line = AccessLine(environ, self._metrics, time.monotonic)
        line.status = status
        line.count(size)
        line.write()


class _Recorder:
    """A socket that keeps what is sent."""

    def __init__(self) -> None:
        self.data = b""

    def gettimeout(self) -> float:
        return 0.0  # so that nobody changes it

    def sendall(self, data: bytes) -> None:
        self.data += data
