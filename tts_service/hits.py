"""Hits without the detour: the whole answer of a speech request, if it is in the cache.

The same promises as the long way through Flask, kept by the same parts: the same request model,
plan and record, the same headers, log line and metrics. Whatever is not plainly a hit (an error,
a wrong key, a page of another origin, anything unusual) is none here, and goes the long way.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from random import getrandbits
from typing import NamedTuple

from tts_service import records
from tts_service.cache import BoundedCache
from tts_service.captions import Captions
from tts_service.errors import InvalidApiKey, SpeechError
from tts_service.front import (
    CACHE_CONTROL,
    NOTES,
    PRINTABLE,
    REQUEST_ID,
    AccessLine,
    plain_path,
    protection,
)
from tts_service.keys import ApiKeys
from tts_service.metrics import Metrics
from tts_service.proxies import Proxies
from tts_service.rates import Rates, Standing, as_client
from tts_service.speech_request import SpeechRequest, parse_speech_request
from tts_service.synthesizer import Plan, Synthesizer

#: Requests that are remembered; the rest is parsed again. Bounds what the memory costs.
_REMEMBERED = 1024
_LONGEST_REMEMBERED = 16 * 1024  # bytes of a body
_UNUSUAL = frozenset(
    {"RANGE", "IF-NONE-MATCH", "IF-MATCH", "IF-MODIFIED-SINCE", "EXPECT", "UPGRADE"}
)


@dataclass(frozen=True, slots=True)
class Head:
    """A request's head, as far as it matters here."""

    path: str
    request_id: str | None  # the client's own
    address: str  # the client's, as its proxy tells it
    client: str  # whose rate it counts for


class Hit(NamedTuple):
    """An answer's head and body, and its log line, to be written when both are out."""

    head: bytes
    body: memoryview
    line: AccessLine


@dataclass(slots=True)
class _Known:
    """A request, and what all answers to it have in common."""

    asked: SpeechRequest
    plan: Plan
    turn: int = 0  # in which the plan was last seen to hold
    record: bytes = b""  # the head of the one that the following is of, which itself may leave
    digest: str = ""
    start: int = 0  # of the sound in it
    seconds: float = 0.0
    opening: str = ""  # of the answer's head
    notes: Mapping[str, object] = field(default_factory=dict)  # for the log line


class Hits:
    """Finds answers; never waits for anything.

    For one thread, which calls `end_turn` now and then: whatever comes between two such calls came
    at the same time, so a recording is looked at once for all of it.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        cache: BoundedCache,
        metrics: Metrics,
        *,
        keys: ApiKeys,
        max_input_chars: int,
        allows_origins: bool,
        proxies: Proxies | None = None,
        rates: Rates | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._synthesizer = synthesizer
        self._cache = cache  # the process's own: another could keep us waiting
        self._metrics = metrics
        self._keys = keys
        self._captions = Captions(cache, keys)
        self._max_input_chars = max_input_chars
        self._allows_origins = allows_origins
        self._proxies = proxies or Proxies(())
        self._rates = rates
        self._clock = clock
        self._known: dict[bytes, _Known] = {}
        self._turn = 0
        self._seconds = 0.0  # of sound, in this turn's answers
        self._second = 0  # the date header's
        self._date = ""

    def head(self, method: str, path: str, headers: Mapping[str, str], peer: str) -> Head | None:
        """The head of a request that may be a hit. `headers` by name, in capitals."""
        if method != "POST" or plain_path(path) != "/audio/speech":
            return None
        kind = headers.get("CONTENT-TYPE", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json" or not _UNUSUAL.isdisjoint(headers):
            return None
        if self._allows_origins and "ORIGIN" in headers:
            return None
        if self._rates is not None and self._rates.may_wait:
            return None
        try:
            key = self._keys.check(headers.get("AUTHORIZATION", ""))
        except InvalidApiKey:
            return None
        asked_id = headers.get("X-REQUEST-ID", "")
        address = self._proxies.client(peer, headers.get("X-FORWARDED-FOR", ""))
        return Head(
            path,
            asked_id if PRINTABLE.fullmatch(asked_id) else None,
            address,
            key or as_client(address),
        )

    def find(self, head: Head, body: bytes, own_id: str | None = None) -> Hit | None:
        """The answer to a request, if it is whole and in the cache.

        `own_id`: the client's request id, where that is no longer in the head.
        """
        began = self._clock()
        known = self._recall(body)
        if known is None:
            return None
        key = known.plan.key
        packed = self._cache.get(key)
        if packed is None:
            return None
        if records.head(packed) != known.record:
            self._prepare(known, packed)
        if known.asked.timestamps and not self._captions.are_kept(key, known.digest):
            return None
        # Last of all: what goes to a thread is counted there.
        standing = None if self._rates is None else self._rates.take(head.client)
        if self._rates is not None and standing is None:
            return None  # a thread will refuse
        self._seconds += known.seconds
        new_id = own_id or head.request_id or f"{getrandbits(128):032x}"
        line = self._line(head, new_id, known.notes)
        spent = (self._clock() - began) * 1000
        answer = (
            f"{known.opening}Date: {self._now()}\r\nServer-Timing: total;dur={spent:.1f}\r\n"
            f"{_rate(standing)}X-Request-ID: {new_id}\r\n\r\n"
        )
        return Hit(answer.encode("latin-1"), memoryview(packed)[known.start :], line)

    def end_turn(self) -> None:
        """What comes from now on comes later."""
        self._turn += 1
        if self._seconds:
            self._metrics.note_sound("cache", self._seconds)
            self._seconds = 0.0

    def _prepare(self, known: _Known, packed: bytes) -> None:
        """Note what answers from this record have in common."""
        plan = known.plan
        known.record = records.head(packed)
        known.digest, sound, told = records.view(packed)
        known.start = len(packed) - len(sound)
        known.seconds = told.get("seconds", 0.0)
        known.notes = {**plan.facts, "cache": "HIT", "queue_ms": 0.0}
        kind = plan.format.content_type
        links = self._captions.links(plan.key) if known.asked.timestamps else []
        headers = [
            ("Server", "gunicorn"),
            ("Connection", "keep-alive"),
            ("Content-Type", kind),
            ("Content-Length", str(len(sound))),
            ("ETag", f'"{known.digest}"'),
            ("Cache-Control", CACHE_CONTROL),
            ("X-Cache", "HIT"),
            *protection([("Content-Type", kind)]),
            *(("Link", link) for link in links),
        ]
        known.opening = f"HTTP/1.1 200 OK\r\n{_lines(headers)}"

    def _line(self, head: Head, new_id: str, notes: Mapping[str, object]) -> AccessLine:
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": head.path,
            "REMOTE_ADDR": head.address,
            REQUEST_ID: new_id,
            NOTES: notes,
        }
        line = AccessLine(environ, self._metrics, self._clock)
        line.status = 200
        return line

    def _recall(self, body: bytes) -> _Known | None:
        """What the body asks for; None if that is wrong, streamed as events, or not known yet."""
        known = self._known.get(body)
        if known is not None and known.turn == self._turn:
            return known
        try:
            asked, before = (known.asked, known.plan) if known else (self._parse(body), None)
            plan = self._synthesizer.plan_at_once(asked, before)
        except (SpeechError, ValueError, RecursionError):
            return None
        if plan is None or asked.stream_format == "sse":
            return None
        if known is None or known.plan is not plan:
            known = _Known(asked, plan)
            self._remember(body, known)
        known.turn = self._turn
        return known

    def _parse(self, body: bytes) -> SpeechRequest:
        return parse_speech_request(json.loads(body), max_input_chars=self._max_input_chars)

    def _remember(self, body: bytes, known: _Known) -> None:
        if len(body) <= _LONGEST_REMEMBERED:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[body] = known

    def _now(self) -> str:
        """The date header, which changes once a second."""
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True)
        return self._date


def _rate(standing: Standing | None) -> str:
    return _lines(standing.headers.items()) if standing else ""


def _lines(headers: Iterable[tuple[str, str]]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in headers])
