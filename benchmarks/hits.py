"""hits: answers from the cache, of 20 KB and of 300 KB, to 1, 16 and 64 connections.

All servers take turns, case by case and round by round. That every answer came from the cache is
seen twice: in its `X-Cache`, where there is one, and in the stand-in's count of calls.
"""

import time
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

from benchmarks.load import Wanted, WrongAnswer, send_all, speech_request
from benchmarks.options import Options
from benchmarks.servers import Bench, CannotMeasure, Server, bench
from benchmarks.subjects import Subject
from benchmarks.tables import Table
from benchmarks.texts import one_word, wav_bytes

_ROUNDS = 4
_SECONDS = 0.9  # of one turn
_PRIME_LIMIT = 30.0  # seconds, until every worker has the answers
_SMALL, _LARGE = one_word(7), one_word(104)  # 20 KB, 300 KB


class Case(NamedTuple):
    """A text and a number of connections."""

    text: str
    connections: int

    def __str__(self) -> str:
        return f"{wav_bytes(self.text) / 1000:.0f} KB × {self.connections}"


_CASES = [Case(text, connections) for text in (_SMALL, _LARGE) for connections in (1, 16, 64)]
_CPU_CASES = [case for case in _CASES if case.connections == 16]
_HEADER = (
    "requests/s (ratio to the first server)",
    *map(str, _CASES),
    f"CPU a request, {' / '.join(map(str, _CPU_CASES))}",
)


def run(options: Options) -> Table:
    with bench(options) as place:
        subjects = [Subject(server) for server in _servers(place, options)]
        for subject in subjects:
            subject.server.wait_ready()
            for text in (_SMALL, _LARGE):
                _prime(subject.server, text)
        calls = place.stand_in.calls()
        for _ in range(options.rounds(_ROUNDS)):
            for case in _CASES:
                for subject in subjects:
                    _measure(subject, case, options)
        if place.stand_in.calls() != calls:
            raise CannotMeasure("some answers did not come from the cache")
    return Table("A hit", _HEADER, [_row(subject, subjects[0]) for subject in subjects])


def _servers(place: Bench, options: Options) -> Sequence[Server]:
    ours = [
        place.service("this service, 1 worker", WEB_CONCURRENCY=1),
        place.service("this service, 2 workers", WEB_CONCURRENCY=2),
    ]
    if options.anchors is None:
        return ours
    silent = ["--no-access-log", "--log-level=critical"]
    return [
        place.original("original design, log off", mode="threadpool", arguments=silent),
        place.original("original design", mode="threadpool"),
        *ours,
    ]


def _prime(server: Server, text: str) -> None:
    """Ask until every worker has the answer in its cache."""
    request, length = speech_request(text), wav_bytes(text)
    send_all(server.port, [request], 1, Wanted(length))
    deadline = time.monotonic() + _PRIME_LIMIT
    while True:
        try:
            send_all(server.port, [request] * 200, 64, Wanted(length, verdict="hit"))
        except WrongAnswer:
            if time.monotonic() > deadline:
                raise
        else:
            return


def _measure(subject: Subject, case: Case, options: Options) -> None:
    subject.measure(
        case,
        repeat(speech_request(case.text)),
        Wanted(wav_bytes(case.text), verdict="hit"),
        connections=case.connections,
        seconds=options.seconds(_SECONDS),
    )


def _row(subject: Subject, base: Subject) -> list[str]:
    return [
        subject.server.name,
        *(f"{subject.rate(case):,.0f} ({subject.ratio(base, case):.2f})" for case in _CASES),
        " / ".join(f"{subject.cpu(case) * 1e6:.0f} µs" for case in _CPU_CASES),
    ]
