"""What a log line says, and that there is one stream of them."""

import json
import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tts_service.logs import JsonFormatter, RequestIdFilter, request_id


@pytest.fixture(autouse=True)
def _outside_of_a_request() -> None:
    """Whatever test ran in this thread before may have been inside of one."""
    request_id.set("-")


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("tts_service.test").makeRecord(
        "tts_service.test", logging.WARNING, "a.py", 1, message, args, None, extra=extra
    )


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    RequestIdFilter().filter(made)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    told = json.loads(line)
    assert isinstance(told, dict)
    return told


def test_a_json_line_tells_time_level_logger_id_and_message() -> None:
    told = as_json(record("voice %r is %s", "小明", "new"))
    assert datetime.strptime(told.pop("time"), "%Y-%m-%dT%H:%M:%S%z").tzinfo
    assert told == {
        "level": "warning",
        "logger": "tts_service.test",
        "request_id": "-",
        "message": "voice '小明' is new",
    }


def test_a_json_line_has_the_extras_as_fields_of_their_own() -> None:
    told = as_json(record("done", status="200", bytes=44, path=Path("a.wav")))
    assert (told["status"], told["bytes"], told["path"]) == ("200", 44, "a.wav")


def test_a_json_line_stays_one_line_with_a_traceback() -> None:
    made = record("first\nsecond")
    try:
        raise ValueError("broken\nhere")
    except ValueError:
        made.exc_info = sys.exc_info()
    told = as_json(made)
    assert told["message"] == "first\nsecond"
    assert told["traceback"].endswith("ValueError: broken\nhere")


def test_a_line_carries_the_id_of_the_request_that_its_thread_answers() -> None:
    token = request_id.set("abc-1")
    try:
        assert as_json(record("x"))["request_id"] == "abc-1"
    finally:
        request_id.reset(token)
    assert as_json(record("x"))["request_id"] == "-"


# In a process of its own: the configuration is the whole process's.
PROGRAM = """
import logging, sys
from tts_service.logs import configure, request_id
configure(sys.argv[1], sys.argv[2])
request_id.set("the-id")
logging.getLogger("tts_service.deep.down").info("ours")
logging.getLogger("tts_service").debug("too little")
logging.getLogger("gunicorn.error").info("the server's")
logging.getLogger("gunicorn.access").info("twice")
logging.getLogger("elsewhere").info("chatter")
logging.getLogger("elsewhere").warning("theirs")
"""


def lines_of(level: str, style: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, level, style],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert ran.stdout == ""
    return ran.stderr.splitlines()


def test_text_lines_go_to_stderr_once_each_with_the_id() -> None:
    lines = lines_of("info", "text")
    assert [line.rpartition(": ")[2] for line in lines] == ["ours", "the server's", "theirs"]
    assert all("the-id]" in line for line in lines)
    assert "INFO" in lines[0]
    assert "tts_service.deep.down" in lines[0]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["ours", "too little", "the server's", "theirs"]),
        ("warning", ["theirs"]),
    ],
)
def test_json_lines_hold_what_the_level_lets_through(level: str, expected: list[str]) -> None:
    told = [json.loads(line) for line in lines_of(level, "json")]
    assert [line["message"] for line in told] == expected
    assert {line["request_id"] for line in told} == {"the-id"}
