"""The self-test: after the start, the service asks itself for speech, twice.

The second answer must come from the cache. The result is logged and shown in `/health`.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the service answered to one request."""

    status: int
    cache: str | None  # the X-Cache header
    size: int  # bytes
    error: str | None = None


@dataclass(slots=True)
class Report:
    """How the self-test went; times in seconds."""

    state: Literal["off", "pending", "running", "passed", "failed"]
    first_seconds: float | None = None
    second_seconds: float | None = None
    second_from_cache: bool | None = None
    error: str | None = None


class SelfTest:
    """Asks for `text` by `model` through `post`, the real application's own door."""

    def __init__(self, *, model: str, text: str, is_enabled: bool, expects_hit: bool) -> None:
        self._fields = {"model": model, "input": text}
        self._expects_hit = expects_hit
        self._report = Report("pending" if is_enabled else "off")

    def report(self) -> dict[str, Any]:
        return asdict(self._report)

    def run(self, post: Callable[[dict[str, str]], Reply]) -> None:
        """Ask twice. Never raises: whatever goes wrong is the result."""
        if self._report.state == "off":
            return
        self._report = Report("running")
        try:
            self._report = self._ask_twice(post)
        except Exception as error:
            logger.exception("the self-test broke")
            self._report = Report("failed", error=f"{type(error).__name__}: {error}")
        _log(self._report)

    def _ask_twice(self, post: Callable[[dict[str, str]], Reply]) -> Report:
        first, first_seconds = _timed(post, self._fields)
        if first.status != 200:
            return Report("failed", first_seconds, error=f"{first.status}: {first.error}")
        second, second_seconds = _timed(post, self._fields)
        is_hit = second.cache == "HIT"
        report = Report("passed", first_seconds, second_seconds, is_hit)
        if second.status != 200 or second.size != first.size:
            report.error = f"{second.status}: the second answer differs from the first"
        elif self._expects_hit and not is_hit:
            report.error = "the second answer did not come from the cache"
        if report.error:
            report.state = "failed"
        return report


def _timed(post: Callable[[dict[str, str]], Reply], fields: dict[str, str]) -> tuple[Reply, float]:
    began = time.monotonic()
    reply = post(fields)
    return reply, round(time.monotonic() - began, 4)


def _log(report: Report) -> None:
    if report.state == "passed":
        logger.info(
            "self-test passed: spoken in %.3f s, again in %.1f ms%s",
            report.first_seconds,
            (report.second_seconds or 0) * 1000,
            " from the cache" if report.second_from_cache else "",
        )
    else:
        logger.warning("self-test failed: %s", report.error)
