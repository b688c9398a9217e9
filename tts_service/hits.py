"""Hits without the detour: the whole answer of a speech request, if it is in the cache.

The same promises as the long way through Flask, kept by the same parts: the same request model,
plan and record, the same headers, log line and metrics. Whatever is not plainly a hit (an error,
a wrong key, a page of another origin, anything unusual) is none here, and goes the long way.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache

from tts_service import records
from tts_service.cache import BoundedCache
from tts_service.captions import Captions
from tts_service.errors import InvalidApiKey, SpeechError
from tts_service.front import (
    CACHE_CONTROL,
    NOTES,
    PRINTABLE,
    AccessLine,
    plain_path,
    protection,
)
from tts_service.keys import ApiKeys
from tts_service.logs import request_id
from tts_service.metrics import Metrics
from tts_service.proxies import Proxies
from tts_service.rates import Rates, Standing, as_client
from tts_service.speech_request import SpeechRequest, parse_speech_request
from tts_service.synthesizer import Plan, Synthesizer

#: Requests whose plan is remembered; the rest is parsed again. Bounds what the memory costs.
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


@dataclass(frozen=True, slots=True)
class Hit:
    """An answer's head and body, and its log line, to be written when both are out."""

    head: bytes
    body: memoryview
    line: AccessLine


class Hits:
    """Finds answers; never waits for anything."""

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
        self._plans: dict[bytes, tuple[SpeechRequest, Plan]] = {}
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

    def find(self, head: Head, body: bytes) -> Hit | None:
        """The answer to a request, if it is whole and in the cache."""
        began = self._clock()
        known = self._plan(body)
        if known is None:
            return None
        asked, plan = known
        found = records.view(self._cache.get(plan.key))
        if found is None:
            return None
        digest, sound, told = found
        if asked.timestamps and not self._captions.are_kept(plan.key, digest):
            return None
        # Last of all: what goes to a thread is counted there.
        standing = None if self._rates is None else self._rates.take(head.client)
        if self._rates is not None and standing is None:
            return None  # a thread will refuse
        self._metrics.note_sound("cache", told.get("seconds", 0.0))
        new_id = head.request_id or secrets.token_hex(16)
        request_id.set(new_id)
        line = self._line(head, {**plan.facts, "cache": "HIT", "queue_ms": 0.0})
        spent = (self._clock() - began) * 1000
        kind = plan.format.content_type
        answer = (
            f"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: {self._now()}\r\n"
            f"Connection: keep-alive\r\nContent-Type: {kind}\r\n"
            f'Content-Length: {len(sound)}\r\nETag: "{digest}"\r\n'
            f"Cache-Control: {CACHE_CONTROL}\r\nX-Cache: HIT\r\n"
            f"Server-Timing: total;dur={spent:.1f}\r\n{_protection(kind)}{_rate(standing)}"
            f"X-Request-ID: {new_id}\r\n"
        )
        if asked.timestamps:
            answer += "".join(f"Link: {link}\r\n" for link in self._captions.links(plan.key))
        return Hit(f"{answer}\r\n".encode("latin-1"), sound, line)

    def _line(self, head: Head, notes: Mapping[str, object]) -> AccessLine:
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": head.path,
            "REMOTE_ADDR": head.address,
            NOTES: notes,
        }
        line = AccessLine(environ, self._metrics, self._clock)
        line.status = 200
        return line

    def _plan(self, body: bytes) -> tuple[SpeechRequest, Plan] | None:
        """What the body asks for; None if that is wrong, streamed as events, or not known yet."""
        known = self._plans.get(body)
        try:
            asked, before = known or (self._parse(body), None)
            plan = self._synthesizer.plan_at_once(asked, before)
        except (SpeechError, ValueError, RecursionError):
            return None
        if plan is None or asked.stream_format == "sse":
            return None
        if plan is not before:
            self._remember(body, asked, plan)
        return asked, plan

    def _parse(self, body: bytes) -> SpeechRequest:
        return parse_speech_request(json.loads(body), max_input_chars=self._max_input_chars)

    def _remember(self, body: bytes, asked: SpeechRequest, plan: Plan) -> None:
        if len(body) <= _LONGEST_REMEMBERED:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            self._plans[body] = (asked, plan)

    def _now(self) -> str:
        """The date header, which changes once a second."""
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True)
        return self._date


@cache
def _protection(kind: str) -> str:
    return _lines(protection([("Content-Type", kind)]))


def _rate(standing: Standing | None) -> str:
    return _lines(standing.headers.items()) if standing else ""


def _lines(headers: Iterable[tuple[str, str]]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in headers])
