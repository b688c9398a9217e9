"""misses: what a server adds to the backend's own time, for texts that were never asked before.

All servers share one stand-in that speaks one call at a time, and take turns, case by case and
round by round.
"""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.load import Wanted, send_all, speech_request
from benchmarks.options import Options
from benchmarks.servers import Bench, Server, bench
from benchmarks.subjects import Subject
from benchmarks.tables import Table
from benchmarks.texts import numbered, wav_bytes

_ROUNDS = 4
_SLOWER_STAND_IN = (
    "Without the anchors the tests' Gradio app stands in, which examines each recording: some "
    "20 ms of what is added are its own."
)


class Case(NamedTuple):
    """How long a synthesis takes, and how many requests are sent at a time."""

    synthesis_ms: int
    connections: int
    seconds: float  # of one turn


_INSTANT = Case(0, 1, 2.0)
_SLOW = Case(200, 1, 2.5)
_CROWD = Case(0, 8, 3.0)
_HEADER = (
    "server",
    f"{_INSTANT.synthesis_ms} ms synthesis: added (90 %)",
    f"{_SLOW.synthesis_ms} ms synthesis: added (90 %)",
    f"{_CROWD.connections} at a time",
    f"CPU a call, 1 / {_CROWD.connections} at a time",
)


def run(options: Options) -> Table:
    with bench(options) as place:
        subjects = [Subject(server) for server in _servers(place, options)]
        texts = numbered("miss")
        for subject in subjects:
            subject.server.wait_ready()
            _connect(subject.server, texts)
        for _ in range(options.rounds(_ROUNDS)):
            for case in (_INSTANT, _SLOW, _CROWD):
                place.stand_in.take(case.synthesis_ms)
                for subject in subjects:
                    _measure(subject, case, texts, options)
    notes = [] if options.anchors else [_SLOWER_STAND_IN]
    return Table("A miss", _HEADER, [_row(subject) for subject in subjects], notes)


def _servers(place: Bench, options: Options) -> list[Server]:
    ours = place.service("this service")
    if options.anchors is None:
        return [ours]
    return [
        place.original("original design, thread pool", mode="threadpool"),
        place.original("original design, blocking", mode="blocking"),
        ours,
    ]


def _connect(server: Server, texts: Iterator[str]) -> None:
    """Have its connections to the backend made, and the recording uploaded."""
    text = next(texts)
    send_all(server.port, [speech_request(text)], 1, Wanted(wav_bytes(text)))
    requests = [speech_request(next(texts)) for _ in range(_CROWD.connections)]
    send_all(server.port, requests, _CROWD.connections, Wanted(wav_bytes(text)))


def _measure(subject: Subject, case: Case, texts: Iterator[str], options: Options) -> None:
    wanted = Wanted(wav_bytes(next(texts)), verdict="miss")
    subject.measure(
        case,
        map(speech_request, texts),
        wanted,
        connections=case.connections,
        seconds=options.seconds(case.seconds),
    )


def _row(subject: Subject) -> list[str]:
    return [
        subject.server.name,
        _added(subject, _INSTANT),
        _added(subject, _SLOW),
        f"{subject.rate(_CROWD):.1f} req/s",
        " / ".join(f"{subject.cpu(case) * 1000:.0f} ms" for case in (_INSTANT, _CROWD)),
    ]


def _added(subject: Subject, case: Case) -> str:
    middle, slow = (subject.latency(case, share) * 1000 - case.synthesis_ms for share in (0.5, 0.9))
    return f"{middle:.0f} ms ({slow:.0f} ms)"
