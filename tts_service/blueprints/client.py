"""The client of a request: whether it is still there, how long it may go on sending, what part it
wants, how it is cut off."""

import errno
import logging
import os
import re
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, NoReturn

from flask import Response
from werkzeug.exceptions import PreconditionFailed
from werkzeug.wsgi import get_content_length

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger(__name__)

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for 0 seconds
_ONE_RANGE = re.compile(r"bytes=(?=-?\d)(\d{0,18})-(\d{0,18})", re.ASCII | re.IGNORECASE)

#: gunicorn itself takes in so many bytes of a body that nobody read.
_TAKEN_IN_ANYWAY = 64 * 1024
_MOST_TAKEN_IN = 64 * 1024 * 1024  # bytes
_LONGEST_TAKING_IN = 10.0  # seconds
_CUT_SHORT = "tts_service.cut_short"  # in the WSGI environment: the body was not read to its end


def client_has_left(environ: "WSGIEnvironment") -> Callable[[], bool]:
    """A question about this request's connection; where it cannot be known, the answer is no."""
    connection = _connection(environ)
    if connection is None:
        return lambda: False

    def has_left() -> bool:
        try:
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            if not poll.poll(0):
                return False
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ValueError:  # TLS cannot peek
            return False
        except OSError:  # reset
            return True

    return has_left


def break_off(environ: "WSGIEnvironment") -> NoReturn:
    """Break the connection in the middle of an answer, so that no part is taken for the whole.

    Raises BrokenPipeError, which servers take for the client's doing and say nothing about. The
    connection is ended before: else gunicorn's only accepting thread would wait for the client to
    do so, up to 2 s.
    """
    connection = _connection(environ)
    if connection is not None:
        with suppress(OSError):  # the client was faster
            if environ["SERVER_PROTOCOL"] == "HTTP/1.0":
                _reset(connection)
            else:
                connection.shutdown(socket.SHUT_RDWR)
    raise BrokenPipeError(errno.EPIPE, "The answer broke off.")


@contextmanager
def time_limit(environ: "WSGIEnvironment", seconds: float) -> Iterator[Callable[[], bool]]:
    """For reading a request's body: after `seconds` it ends, as if its client had left. Whether
    that has happened is what the question tells.

    A timeout of the socket would begin anew with every byte.
    """
    connection = _connection(environ)
    is_over = threading.Event()

    def end() -> None:
        environ[_CUT_SHORT] = True
        is_over.set()
        if connection is not None:
            with suppress(OSError):
                # Not the TLS socket's own way, which would give up the session.
                socket.socket.shutdown(connection, socket.SHUT_RD)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield is_over.is_set
    finally:
        timer.cancel()


def take_in(environ: "WSGIEnvironment") -> None:
    """Read what the client still sends of a request that is answered already: a connection that
    ended with bytes unread would be reset, and the answer lost with it. A client that does not
    come to an end is cut off.
    """
    size = get_content_length(environ) or 0
    is_chunked = "HTTP_TRANSFER_ENCODING" in environ
    # Where the server does not know a body's end, there is no telling how much was read.
    if "wsgi.input_terminated" not in environ or (size <= _TAKEN_IN_ANYWAY and not is_chunked):
        return
    with time_limit(environ, _LONGEST_TAKING_IN):
        has_ended = _read_to_its_end(environ["wsgi.input"])
    connection = _connection(environ)
    if connection is not None and (not has_ended or _CUT_SHORT in environ):
        # What still comes must not be taken for the next request.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _read_to_its_end(body: IO[bytes]) -> bool:
    try:
        for _ in range(_MOST_TAKEN_IN // _TAKEN_IN_ANYWAY):
            if not body.read(_TAKEN_IN_ANYWAY):
                return True
    except Exception:
        logger.debug("a body that nobody waits for broke off", exc_info=True)
    return False


def as_asked(response: Response, environ: "WSGIEnvironment") -> Response:
    """What a GET or HEAD with conditions or a range gets of a whole answer: all of it, a part
    (206) or nothing new (304). An answer that is streamed stays as it is.

    Raises PreconditionFailed (412) and RequestedRangeNotSatisfiable (416).
    """
    if response.is_streamed:
        return response
    response.headers["Accept-Ranges"] = "bytes"
    response.make_conditional(environ)
    if response.status_code == 412:
        raise PreconditionFailed
    if response.status_code == 200 and environ["REQUEST_METHOD"] == "GET":
        length = response.content_length or 0
        response.make_conditional(_with_one_range(environ, length), True, length)
    return response


def _with_one_range(environ: "WSGIEnvironment", length: int) -> "WSGIEnvironment":
    """The request with at most one range, and that one counted from the beginning.

    By RFC 9110, 14 several ranges, other units and nonsense may be ignored, and the last 1000 of
    500 bytes are all of them; Werkzeug would answer 416.
    """
    wanted = {**environ}
    asked = _ONE_RANGE.fullmatch(wanted.pop("HTTP_RANGE", ""))
    if asked:
        first, last = asked.groups()
        start = int(first) if first else max(0, length - int(last))
        wanted["HTTP_RANGE"] = f"bytes={start}-{last if first else ''}"
    return wanted


def _reset(connection: socket.socket) -> None:
    """End a connection by a reset: in HTTP/1.0, which nginx speaks to its backends unless told
    otherwise, a plain end would be that of a whole answer. The socket stays open for the server
    to close, but is another one.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with socket.socket(connection.family, connection.type) as stand_in:
        os.dup2(stand_in.fileno(), connection.fileno(), inheritable=False)


def _connection(environ: "WSGIEnvironment") -> socket.socket | None:
    connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    return connection if isinstance(connection, socket.socket) else None
