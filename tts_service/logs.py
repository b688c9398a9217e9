"""Logging for the whole process: one stream, one format, the request's id on every line."""

import json
import logging
import logging.config
from contextvars import ContextVar
from typing import Any, Literal
from urllib.parse import urlsplit

#: The id of the request that this thread is answering; "-" outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="-")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id"}


class RequestIdFilter(logging.Filter):
    """Puts the current request's id on every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, request_id, message, and a record's extras."""

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
        return json.dumps(line, ensure_ascii=False, default=str)


def logging_config(level: str, style: Literal["text", "json"]) -> dict[str, Any]:
    """The configuration for `logging.config.dictConfig` and for gunicorn's `logconfig_dict`."""
    text = "%(asctime)s %(levelname)-7s [%(process)d %(request_id)s] %(name)s: %(message)s"
    to_stderr = {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": RequestIdFilter}},
        "formatters": {"text": {"format": text}, "json": {"()": JsonFormatter}},
        "handlers": {
            "nowhere": {"class": "logging.NullHandler"},
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": style,
                "filters": ["request_id"],
            },
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "tts_service": to_stderr,
            "gunicorn.error": to_stderr,
            # The service writes its own line for each request.
            "gunicorn.access": {"handlers": ["nowhere"], "propagate": False},
        },
    }


def configure(level: str, style: Literal["text", "json"]) -> None:
    # Not shown, so not worth finding out for each line (logging's own advice).
    logging.logThreads = logging.logMultiprocessing = False
    logging.config.dictConfig(logging_config(level, style))


def without_credentials(url: str) -> str:
    """The URL as it may be shown: without user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
