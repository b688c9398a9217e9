"""Logging for the whole process: one stream, one format, the request's id on every line, and no
secret on any."""

import json
import logging
import logging.config
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from select import PIPE_BUF
from typing import Any, Literal
from urllib.parse import quote, urlsplit

#: The id of the request that this thread is answering; "-" outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="-")

# Not worth finding out for each line (logging's own advice): what is not shown, and what stays the
# same until the next fork.
logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id"}
_CREDENTIALS = re.compile(r"//[^/@\s\"']+@")
_BEARER = re.compile(r"\b(bearer|basic)(:?\s+)(?![…$])[^\s\"',;]+", re.IGNORECASE)
_HIDDEN = "…"
_SHORTEST_SECRET = 4  # a shorter one would only make the log unreadable


class Discretion:
    """Takes out of a text what nobody shall read in a log: these secrets, and whatever looks like
    one: `//user:password@`, `Bearer …`."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        plain = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
        # Within JSON, a URL or a repr some are written in another way.
        written = {form(secret) for secret in plain for form in (str, _in_json, quote, _in_repr)}
        longest_first = sorted(written, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if plain else None

    def __call__(self, text: str) -> str:
        if self._secrets is not None:
            text = self._secrets.sub(_HIDDEN, text)
        if "//" in text:
            text = _CREDENTIALS.sub(f"//{_HIDDEN}@", text)
        if "earer" in text or "asic" in text or "EARER" in text:
            text = _BEARER.sub(rf"\1\2{_HIDDEN}", text)
        return text


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _in_repr(text: str) -> str:
    return repr(text)[1:-1]


class GunicornFilter(logging.Filter):
    """What gunicorn says of a request without its query, and of one that it did not understand
    only what was wrong: the rest may be the text that was to be spoken."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args
            )
        record.msg = _INVALID.sub(r"\1", str(record.msg))
        return True


_INVALID = re.compile(r"(Invalid request from ip=\S*: [^:'\"]*).*", re.DOTALL)


class RequestIdFilter(logging.Filter):
    """Puts the process's id on every record, and the current request's if it has none."""

    process = os.getpid()

    def filter(self, record: logging.LogRecord) -> bool:
        record.process = self.process
        if not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        return True


def _note_process() -> None:
    RequestIdFilter.process = os.getpid()


os.register_at_fork(after_in_child=_note_process)


class StderrHandler(logging.StreamHandler[Any]):
    """Writes each line by itself, but those of a block in as few calls as may be."""

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Other threads' lines wait until the end of the block, which has to be short."""
        self.acquire()
        stream, self.stream = self.stream, (gathered := _Gathered())
        try:
            yield
        finally:
            self.stream = stream
            with suppress(OSError):  # there is nowhere to tell it
                for piece in gathered.pieces():
                    stream.write(piece)
                    stream.flush()
            self.release()


class _Gathered:
    """A stream that keeps what is written."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def write(self, line: str) -> None:
        self._lines.append(line)

    def flush(self) -> None:
        """Nothing: that is the point."""

    def pieces(self) -> Iterator[str]:
        """The lines, joined as long as a pipe takes them at once: several workers share it, and
        their lines must not end up in the middle of each other."""
        joined, size = "", 0
        for line in self._lines:
            length = len(line.encode(errors="backslashreplace"))
            if joined and size + length > PIPE_BUF:
                yield joined
                joined, size = "", 0
            joined, size = joined + line, size + length
        if joined:
            yield joined


@contextmanager
def gathering() -> Iterator[None]:
    """What the service logs within the block is written at its end, see `StderrHandler`."""
    with ExitStack() as stack:
        for handler in logging.getLogger("tts_service").handlers:
            if isinstance(handler, StderrHandler):
                stack.enter_context(handler.gathering())
        yield


class TextFormatter(logging.Formatter):
    """A line for people; a traceback follows on lines of its own."""

    def __init__(self, discretion: Discretion | None = None) -> None:
        super().__init__()
        self._discretion = discretion or Discretion()
        self._second: tuple[int, str] = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        return self._discretion(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        what = f"{record.levelname:7} [{record.process} {getattr(record, 'request_id', '-')}]"
        return f"{self.formatTime(record)} {what} {record.name}: {record.message}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """As ever, but the calendar is asked once a second: hits come in thousands."""
        second, told = self._second
        if second != int(record.created):
            told = time.strftime(
                datefmt or self.default_time_format, self.converter(record.created)
            )
            self._second = int(record.created), told
        return f"{told},{int(record.msecs):03}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, request_id, message, and a record's extras."""

    def __init__(self, discretion: Discretion | None = None) -> None:
        super().__init__()
        self._discretion = discretion or Discretion()

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        told = {key: self._told(value) for key, value in line.items()}
        return json.dumps(told, ensure_ascii=False)

    def _told(self, value: object) -> object:
        if value is None or isinstance(value, int | float):
            return value
        return self._discretion(str(value))


def logging_config(
    level: str, style: Literal["text", "json"], secrets: Iterable[str] = ()
) -> dict[str, Any]:
    """The configuration for `logging.config.dictConfig` and for gunicorn's `logconfig_dict`.

    `secrets` never appear in the log, wherever they come from.
    """
    # An object, because of its repr: at debug gunicorn logs its settings, and this among them.
    discretion = Discretion(secrets)
    to_stderr = {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": RequestIdFilter}, "gunicorn": {"()": GunicornFilter}},
        "formatters": {
            "text": {"()": TextFormatter, "discretion": discretion},
            "json": {"()": JsonFormatter, "discretion": discretion},
        },
        "handlers": {
            "nowhere": {"class": "logging.NullHandler"},
            "stderr": {
                "()": StderrHandler,
                "formatter": style,
                "filters": ["request_id"],
            },
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "tts_service": to_stderr,
            "gunicorn.error": {**to_stderr, "filters": ["gunicorn"]},
            # The service writes its own line for each request.
            "gunicorn.access": {"handlers": ["nowhere"], "propagate": False},
            "werkzeug": {"level": "WARNING"},
        },
    }


def configure(level: str, style: Literal["text", "json"], secrets: Iterable[str] = ()) -> None:
    logging.config.dictConfig(logging_config(level, style, secrets))


def without_credentials(url: str) -> str:
    """The URL as it may be shown: without user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
