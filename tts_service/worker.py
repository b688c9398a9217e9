"""gunicorn's gthread worker, whose poller reads requests and answers hits by itself.

Handing a request to a pool thread costs more than a hit does: the interpreter's lock changes
hands a dozen times. So the poller collects a request's bytes, has them parsed by gunicorn's own
parser, and asks `Hits`; what is no hit goes to the pool, complete, as it would have by itself.
A client that stalls in the middle of its request keeps nobody but itself waiting.
"""

import errno
import json
import re
import select
import selectors
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from operator import attrgetter
from typing import Any

from gunicorn.http import RequestParser
from gunicorn.http.errors import LimitRequestHeaders, ParseException
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from tts_service.errors import InvalidRequest, Overloaded, SpeechError, TooSlow
from tts_service.extensions import Services
from tts_service.front import NOTES, PRINTABLE, REQUEST_ID, AccessLine, protection
from tts_service.hits import Head, Hit, Hits
from tts_service.logs import gathering, request_id

#: What the poller collects of one request; a larger one is read by its thread.
_LARGEST = 64 * 1024
_PIECE = 16 * 1024  # of it that is read at once
_HEADS = 256  # parsed heads that are remembered
_ID = re.compile(
    rb"\r\nX-Request-ID:[ \t]*(%b)(?=\r\n)" % PRINTABLE.pattern.encode(), re.IGNORECASE
)
_LEAST_RATE = 8 * 1024  # bytes a second, of a larger body: its time grows with what has come
_LINGER_SECONDS = 2.0  # as gunicorn does
_LOOK_SECONDS = 1.0  # between two looks for connections whose time is up


class Connection(TConn):  # type: ignore[misc] # gunicorn has no types
    """A client's connection, with what has come in of its next request."""

    def __init__(
        self, *args: Any, linger: Callable[[Any], None], ended: Callable[[AccessLine], None]
    ) -> None:
        super().__init__(*args)
        self._linger = linger
        self._ended = ended
        self.received = bytearray()
        self.hit: Hit | None = None  # being sent
        self.unsent: list[memoryview] = []

    def close(self, graceful: bool = False) -> None:
        if graceful:
            self._linger(self)
        else:
            super().close()
        self.end_hit()

    def end_hit(self) -> None:
        """Nothing more of it will be sent."""
        hit, self.hit = self.hit, None
        if hit is not None:
            hit.line.count(len(hit.body) - (len(self.unsent[-1]) if self.unsent else 0))
            hit.line.end()
            self._ended(hit.line)


class SpeechWorker(ThreadWorker):  # type: ignore[misc]
    """Set by gunicorn.conf.py, unless FAST_HITS is off."""

    def init_process(self) -> None:
        #: As many threads may wait for bytes of requests that were handed over incomplete.
        self._may_wait = threading.Semaphore(max(1, self.cfg.threads // 4))
        self._heads: dict[tuple[bytes, str], tuple[Head | None, int | None]] = {}
        self._hits: Hits | None = None
        self._ended: list[AccessLine] = []  # of this turn, not yet written
        self._next_look = 0.0
        super().init_process()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        services = self.wsgi.extensions["tts_service"]
        assert isinstance(services, Services)
        self._hits = services.hits
        self._metrics = services.metrics
        self._client_timeout: float = self.wsgi.config["CLIENT_TIMEOUT"]
        self._keepalive: int = self.cfg.keepalive  # looked up only once: that takes gunicorn long

    # -- connections in the poller ---------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        if self.cfg.is_ssl:  # a handshake needs a thread
            super().accept(listener)
            return
        try:
            client, address = listener.accept()
        except OSError:  # gone again, or another worker was faster
            return
        self._make_room()
        self.nr_conns += 1
        connection = Connection(
            *(self.cfg, client, address, listener.getsockname()),
            linger=self._linger,
            ended=self._ended.append,
        )
        connection.set_timeout()
        self.keepalived_conns.append(connection)
        self._watch(connection, self.poller.register, read=True)

    def on_client_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """More of a request, on a connection that is waited on."""
        if not isinstance(conn, Connection):
            super().on_client_socket_readable(conn, client)
            return
        try:
            data = client.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(conn)
            return
        if conn.received:
            conn.received += data
            self._proceed(conn, conn.received)
        else:
            self._proceed(conn, data)

    def murder_keepalived(self, force: bool = False) -> None:
        """gunicorn's loop calls this at the end of each turn."""
        now = time.monotonic()
        if force or not self.alive or now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._drop_overdue(now, force=force)
        self._end_turn()

    def _end_turn(self) -> None:
        """Log and count the hits of this turn, now that their clients have them: all at once takes
        less than half as long as each by itself."""
        if self._hits is not None:
            self._hits.end_turn()
        if self._ended:
            with gathering():
                for line in self._ended:
                    line.write()
            self._ended.clear()

    def _drop_overdue(self, now: float, *, force: bool) -> None:
        """Close connections whose time is up. Hits prolong it without giving them a new place in
        the deque, so all of it is looked at."""
        for conn in list(self.keepalived_conns):
            if force or conn.timeout <= now:
                if isinstance(conn, Connection) and conn.received:
                    too_slow = TooSlow("The request did not arrive in time.")
                    self._refuse(conn.sock, conn.client, too_slow.status, too_slow)
                self._drop(conn)

    def _make_room(self) -> None:
        """Before the last connection that may be open: whose time is up first must go now, or
        idle clients could keep out all others."""
        if self.nr_conns + 1 >= self.worker_connections:
            idle = [conn for conn in self.keepalived_conns if getattr(conn, "hit", None) is None]
            if idle:
                self._drop(min(idle, key=attrgetter("timeout")))

    def _linger(self, conn: Connection) -> None:
        """Close after an answer that may be the last, without losing it: what the client still
        sends is thrown away until it has understood. gunicorn would have everybody wait for that.
        """
        self.nr_conns += 1
        conn.timeout = time.monotonic() + _LINGER_SECONDS
        conn.received.clear()
        self.keepalived_conns.append(conn)
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._discard, conn))
        except (OSError, ValueError):  # the client was faster
            self.keepalived_conns.remove(conn)
            self.nr_conns -= 1
            conn.close()

    def _discard(self, conn: Connection, client: socket.socket) -> None:
        with suppress(BlockingIOError):
            try:
                if client.recv(_LARGEST):
                    return
            except ConnectionError:
                pass
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

    def _proceed(self, conn: Connection, received: bytes | bytearray) -> None:
        """Answer what has come in, hand it over, or wait for the rest."""
        end = received.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(received) >= _LARGEST:
                self.handle_error(None, conn.sock, conn.client, LimitRequestHeaders("head"))
                self._drop(conn)
            else:
                self._wait_for_rest(conn, received)
            return
        head, length, own_id = self._parsed(bytes(received[:end]), conn.client)
        if length is None or end + length > _LARGEST:
            self._hand_over(conn, received)
        elif len(received) < end + length:
            self._wait_for_rest(conn, received)
        else:
            is_alone = len(received) == end + length
            hit = self._find(head, bytes(received[end:]), own_id) if is_alone else None
            if hit is None:
                self._hand_over(conn, received)
            else:
                self._answer(conn, hit)

    def _wait_for_rest(self, conn: Connection, received: bytes | bytearray) -> None:
        if not conn.received:
            conn.received += received
            conn.timeout = time.monotonic() + self._client_timeout

    def _find(self, head: Head | None, body: bytes, own_id: str | None) -> Hit | None:
        may_answer = self.alive and self._hits and self.nr + 1 < self.max_requests
        if head is None or not may_answer:
            return None
        try:
            return self._hits.find(head, body, own_id) if self._hits else None
        except Exception:  # an error here would end the worker's loop
            self.log.exception("looking for a hit failed")
            return None

    def _parsed(self, head: bytes, client: Any) -> tuple[Head | None, int | None, str | None]:
        """What a head says, by gunicorn's parser, and the length of its body, None if only a thread
        can tell; and its request id, without which a proxy's heads are all alike."""
        peer = client[0] if isinstance(client, tuple) else ""  # by a Unix socket
        own_id = None
        if found := _ID.search(head):
            rest = head[: found.start()] + head[found.end() :]
            if b"x-request-id" not in rest.lower():  # else a thread shall tell which counts
                head, own_id = rest, found[1].decode()
        known = self._heads.get((head, peer))
        if known is None:
            known = self._parse(head, client, peer)
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[head, peer] = known
        return *known, own_id

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

    def _hand_over(self, conn: Connection, received: bytes | bytearray) -> None:
        """To the pool, with everything that was read."""
        self._let_go(conn)
        conn.init()
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(self._client_timeout))
        conn.parser.unreader = _TimedUnreader(conn.sock, self._client_timeout, self._may_wait)
        conn.parser.unreader.unread(bytes(received))
        conn.received.clear()
        self.enqueue_req(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        req.body.reader = _TellingReader(req.body.reader)
        try:
            return super().handle_request(req, conn)
        except BlockingIOError:  # what the kernel calls it when the client takes nothing
            raise BrokenPipeError(errno.EPIPE, "The client does not read its answer.") from None

    # -- answers ---------------------------------------------------------------------------------

    def _answer(self, conn: Connection, hit: Hit) -> None:
        self.nr += 1
        conn.received.clear()
        conn.hit = hit
        conn.unsent = [memoryview(hit.head), hit.body]
        if self._send(conn) and conn.hit is not None:
            self._watch(conn, self.poller.modify, read=False)

    def _send_on(self, conn: Connection, _client: socket.socket) -> None:
        """The client takes more; when it has got all, its next request is waited for."""
        if self._send(conn) and conn.hit is None:
            self._watch(conn, self.poller.modify, read=True)

    def _send(self, conn: Connection) -> bool:
        """As much as the client takes now; False if it has left."""
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
            conn.timeout = time.monotonic() + self._client_timeout
        else:
            conn.end_hit()
            conn.timeout = time.monotonic() + self._keepalive
        return True

    # -- errors before there is a request --------------------------------------------------------

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """As gunicorn tells it, but as the JSON that every other error is, and with a log line."""
        request_id.set(uuid.uuid4().hex)
        told = _Recorder()
        super().handle_error(req, told, addr, exc)
        status = int(told.data.split(b" ", 2)[1] or 500) if told.data else 500
        if status in (501, 505):  # a transfer coding or a version of the client's: not our fault
            status = 400
        error = (InvalidRequest if status < 500 else SpeechError)(
            f"The request cannot be understood: {type(exc).__name__}."
        )
        self._refuse(client, addr, status, error, req)

    def _refuse(
        self, client: socket.socket, addr: Any, status: int, error: SpeechError, req: Any = None
    ) -> None:
        """Tell an error as the connection's last answer, of a request that never reached the
        application, and log it."""
        if request_id.get() == "-":
            request_id.set(uuid.uuid4().hex)
        body = json.dumps(error.body).encode()
        headers = [
            ("Connection", "close"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Request-ID", request_id.get()),
        ]
        lines = [f"{name}: {value}\r\n" for name, value in [*headers, *protection(headers)]]
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{''.join(lines)}\r\n"
        try:
            client.sendall(head.encode() + body)
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
            REQUEST_ID: request_id.get(),
            NOTES: {"error": error.code or error.type},
        }
        line = AccessLine(environ, self._metrics, time.monotonic)
        line.status = status
        line.count(size)
        line.write()


class _TellingReader:
    """Reads a body; one that cannot be read is the client's fault, and told so."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def read(self, size: int) -> bytes:
        """Raises InvalidRequest."""
        try:
            return bytes(self._reader.read(size))
        except TimeoutError:  # of gunicorn, when it drops the rest
            raise
        except (ParseException, OSError) as error:
            told = f"The request's body cannot be understood: {type(error).__name__}."
            raise InvalidRequest(told) from None


class _TimedUnreader(SocketUnreader):  # type: ignore[misc]
    """Reads the rest of a request in a thread, with an end to its waiting, and only as long as few
    others do: clients who send byte by byte must not hold all threads."""

    def __init__(self, sock: socket.socket, timeout: float, may_wait: threading.Semaphore) -> None:
        super().__init__(sock)
        self._until = time.monotonic() + timeout
        self._may_wait = may_wait

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Raises TooSlow, Overloaded."""
        if self.sock.gettimeout() is None:  # else gunicorn drops the rest of a body, by its own end
            self._wait()
        data: bytes = super().chunk(size_hint)
        self._until += len(data) / _LEAST_RATE
        return data

    def _wait(self) -> None:
        """Until there is something to read."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if poll.poll(0):
            return
        if not self._may_wait.acquire(blocking=False):
            raise Overloaded("Too many requests arrive slowly.", retry_after=5)
        try:
            left = self._until - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TooSlow("The request did not arrive in time.")
        finally:
            self._may_wait.release()


def _timeval(seconds: float) -> bytes:
    """struct timeval of socket(7)."""
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))


class _Recorder:
    """A socket that keeps what is sent."""

    def __init__(self) -> None:
        self.data = b""

    def gettimeout(self) -> float:
        return 0.0  # so that nobody changes it

    def sendall(self, data: bytes) -> None:
        self.data += data
