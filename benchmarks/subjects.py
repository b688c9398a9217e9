"""A server under measurement, and what was seen of it."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from statistics import median

from benchmarks.load import Load, Wanted, for_seconds, send_all
from benchmarks.servers import Server


@dataclass(frozen=True)
class Turn:
    """One load, and the CPU seconds that the server used for each of its answers."""

    load: Load
    cpu_seconds: float


@dataclass
class Subject:
    """A server, and its turns in each case, one for each round."""

    server: Server
    behind: Server | None = None  # which it asks, and whose CPU time is its own
    turns: dict[Hashable, list[Turn]] = field(default_factory=dict)

    def measure(
        self,
        case: Hashable,
        requests: Iterable[bytes],
        wanted: Wanted,
        *,
        connections: int,
        seconds: float,
    ) -> None:
        """Take one more turn. Raises WrongAnswer."""
        before = self._cpu_seconds()
        load = send_all(self.server.port, for_seconds(requests, seconds), connections, wanted)
        used = self._cpu_seconds() - before
        self.turns.setdefault(case, []).append(Turn(load, used / load.count))

    def rate(self, case: Hashable) -> float:
        """Answers a second."""
        return median(turn.load.rate for turn in self.turns[case])

    def latency(self, case: Hashable, share: float = 0.5) -> float:
        """Seconds within which `share` of a turn's requests were answered."""
        return median(turn.load.within(share) for turn in self.turns[case])

    def cpu(self, case: Hashable) -> float:
        """CPU seconds of an answer."""
        return median(turn.cpu_seconds for turn in self.turns[case])

    def ratio(self, base: "Subject", case: Hashable) -> float:
        """Of the rates, round by round: what slows one round down slows both."""
        pairs = zip(self.turns[case], base.turns[case], strict=True)
        return median(ours.load.rate / theirs.load.rate for ours, theirs in pairs)

    def _cpu_seconds(self) -> float:
        behind = self.behind.cpu_seconds() if self.behind else 0
        return self.server.cpu_seconds() + behind
