"""herd: fifty clients ask for the same new text at once.

How often is the backend called, and after how long have all been answered, beside one client who
asks for a new text alone? All servers share one stand-in and take turns.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from benchmarks.load import Wanted, send_all, speech_request
from benchmarks.options import Options
from benchmarks.servers import Bench, Server, StandIn, bench
from benchmarks.tables import Table
from benchmarks.texts import numbered, wav_bytes

_CLIENTS = 50
_SYNTHESIS_MS = 200
_ROUNDS = 3
_HEADER = (
    f"{_CLIENTS} × the same, {_SYNTHESIS_MS} ms synthesis",
    "backend calls, at most (target 1)",
    "all answered after",
    "one client alone",
    "ratio (target ≤ 2)",
)


@dataclass
class Herds:
    """What a server did with its herds, round by round; times in seconds."""

    server: Server
    calls: list[int] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)

    def measure(self, stand_in: StandIn, texts: Iterator[str]) -> None:
        """One more round. Raises WrongAnswer."""
        self.alone.append(_seconds(self.server, next(texts), clients=1))
        calls = stand_in.calls()
        self.together.append(_seconds(self.server, next(texts), clients=_CLIENTS))
        self.calls.append(stand_in.calls() - calls)

    def row(self) -> list[str]:
        ratios = [both / one for both, one in zip(self.together, self.alone, strict=True)]
        return [
            self.server.name,
            f"{max(self.calls)}",
            f"{median(self.together):.2f} s",
            f"{median(self.alone):.2f} s",
            f"{median(ratios):.2f}",
        ]


def run(options: Options) -> Table:
    with bench(options) as place:
        place.stand_in.take(_SYNTHESIS_MS)
        all_herds = [Herds(server) for server in _servers(place, options)]
        texts = numbered("herd")
        for herds in all_herds:
            herds.server.wait_ready()
            _seconds(herds.server, next(texts), clients=1)  # connects, and uploads the recording
        for _ in range(options.rounds(_ROUNDS)):
            for herds in all_herds:
                herds.measure(place.stand_in, texts)
    return Table("A herd", _HEADER, [herds.row() for herds in all_herds])


def _servers(place: Bench, options: Options) -> list[Server]:
    ours = place.service("this service")
    if options.anchors is None:
        return [ours]
    return [place.original("original design, thread pool", mode="threadpool"), ours]


def _seconds(server: Server, text: str, *, clients: int) -> float:
    """Until all of them have the answer to `text`."""
    requests = [speech_request(text)] * clients
    return send_all(server.port, requests, clients, Wanted(wav_bytes(text))).seconds
