"""hits: answers from the cache, of 20 KB and of 300 KB, to 1, 16 and 64 connections.

All servers take turns, case by case and round by round. That every answer came from the cache is
seen twice: in its `X-Cache`, where there is one, and in the stand-in's count of calls.

Beside the service and the original are what bounds them: bare applications on gunicorn's own
worker from below, and nginx, which alone answers a GET, from above.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

from benchmarks.load import Wanted, WrongAnswer, file_request, send_all, speech_request
from benchmarks.options import Options
from benchmarks.servers import Bench, CannotMeasure, Server, bench
from benchmarks.subjects import Subject
from benchmarks.tables import Table
from benchmarks.texts import one_word, wav_bytes

_ROUNDS = 4
_SECONDS = 0.9  # of one turn
_PRIME_LIMIT = 30.0  # seconds, until every worker has the answers
_SMALL, _LARGE = one_word(7), one_word(104)  # 20 KB, 300 KB
_TEXTS = (_SMALL, _LARGE)
_TARGET = 0.85  # × a file: what nginx shall reach with its cache


class Case(NamedTuple):
    """A text and a number of connections."""

    text: str
    connections: int

    def __str__(self) -> str:
        return f"{wav_bytes(self.text) / 1000:.0f} KB × {self.connections}"


@dataclass
class Teller(Subject):
    """A server that has the answers, who says so by `verdict` if at all."""

    verdict: str = "hit"
    has_files: bool = False  # under names of their own, by GET
    number: int = 0  # of its turn

    def request(self, text: str) -> bytes:
        if self.has_files:
            return file_request(_file(text))
        # nginx keeps an answer for a minute: a URL for each turn, so that none ends in the middle.
        return speech_request(text, f"?turn={self.number}" if self.verdict == "nginx" else "")

    def prime(self, text: str) -> None:
        """Ask until every worker has the answer in its cache. Raises WrongAnswer."""
        request, length = self.request(text), wav_bytes(text)
        send_all(self.server.port, [request], 1, Wanted(length))
        deadline = time.monotonic() + _PRIME_LIMIT
        while True:
            try:
                send_all(self.server.port, [request] * 200, 64, Wanted(length, self.verdict))
            except WrongAnswer:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def take_turn(self, case: Case, seconds: float) -> None:
        if self.verdict == "nginx":
            self.number += 1
            self.prime(case.text)
        self.measure(
            case,
            repeat(self.request(case.text)),
            Wanted(wav_bytes(case.text), self.verdict),
            connections=case.connections,
            seconds=seconds,
        )

    def row(self, base: Subject) -> list[str]:
        return [
            self.server.name,
            *(f"{self.rate(case):,.0f} ({self.ratio(base, case):.2f})" for case in _CASES),
            " / ".join(f"{self.cpu(case) * 1e6:.0f} µs" for case in _CPU_CASES),
        ]


_CASES = [Case(text, connections) for text in _TEXTS for connections in (1, 16, 64)]
_CPU_CASES = [case for case in _CASES if case.connections == 16]
_HEADER = (
    "requests/s (ratio to the first server)",
    *map(str, _CASES),
    f"CPU a request, {' / '.join(map(str, _CPU_CASES))}",
)


def run(options: Options) -> Table:
    notes: list[str] = []
    with bench(options) as place:
        services = list(_services(place, notes))
        fronts = _of_nginx(place, services[0].server, notes)
        tellers = [*_originals(place, options), *services, *fronts, *_bare(place)]
        for teller in tellers:
            teller.server.wait_ready()
            for text in _TEXTS:
                teller.prime(text)
        calls = place.stand_in.calls()
        for _ in range(options.rounds(_ROUNDS)):
            for case in _CASES:
                for teller in tellers:
                    teller.take_turn(case, options.seconds(_SECONDS))
        if place.stand_in.calls() != calls:
            raise CannotMeasure("some answers did not come from the cache")
    notes += _beside_files(fronts)
    return Table("A hit", _HEADER, [teller.row(tellers[0]) for teller in tellers], notes)


def _originals(place: Bench, options: Options) -> Iterator[Teller]:
    if options.anchors is not None:
        silent = ["--no-access-log", "--log-level=critical"]
        name = "original design"
        yield Teller(place.original(f"{name}, log off", mode="threadpool", arguments=silent))
        yield Teller(place.original(name, mode="threadpool"))


def _services(place: Bench, notes: list[str]) -> Iterator[Teller]:
    """The first one has one worker, and is who nginx asks."""
    yield Teller(place.service("this service, 1 worker", WEB_CONCURRENCY=1))
    yield Teller(place.service("this service, 2 workers", WEB_CONCURRENCY=2))
    if shutil.which("redis-server"):
        name = "this service, 1 worker, Redis"
        yield Teller(place.service(name, WEB_CONCURRENCY=1, REDIS_URL=place.redis_url()))
    else:
        notes.append("Without Redis: redis-server is not installed.")


def _bare(place: Bench) -> Iterator[Teller]:
    yield Teller(place.bare("bare WSGI, log off", "wsgi"))
    yield Teller(place.bare("bare Flask, log off", "flask"))


def _of_nginx(place: Bench, gateway: Server, notes: list[str]) -> Sequence[Teller]:
    """nginx before `gateway`, which has one worker, without its cache and with it; and before
    files."""
    if not shutil.which("nginx"):
        notes.append("Without nginx, which is not installed.")
        return []
    without = place.nginx("this service behind nginx, no cache", gateway, has_cache=False)
    with_cache = place.nginx("this service behind nginx with its cache", gateway, has_cache=True)
    bare = place.nginx_bare("nginx, nothing but a cache", gateway)
    files = place.nginx_with_files("nginx, a file", {_file(t): wav_bytes(t) for t in _TEXTS})
    return [
        Teller(without, behind=gateway),
        Teller(with_cache, behind=gateway, verdict="nginx"),
        Teller(bare, behind=gateway, verdict="nginx"),
        Teller(files, has_files=True),
    ]


def _beside_files(fronts: Sequence[Teller]) -> Iterator[str]:
    if fronts:
        _, with_cache, bare, files = fronts
        yield (
            f"Behind nginx with its cache, beside nginx's file (target ≥ {_TARGET}): "
            f"{_ratios(with_cache, files)}. nginx with nothing but a cache: {_ratios(bare, files)}."
        )


def _ratios(teller: Teller, base: Teller) -> str:
    return ", ".join(f"{teller.ratio(base, case):.2f} ({case})" for case in _CASES)


def _file(text: str) -> str:
    return f"{len(text)}.wav"
