"""replicas: what a second and a fourth backend bring, and what the queue costs while it is empty.

All backends take the same time for each call, one call at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import median

from benchmarks.load import Wanted, WrongAnswer, listen, send_all, speech_request
from benchmarks.options import Options
from benchmarks.servers import Bench, Server, bench
from benchmarks.tables import Table
from benchmarks.texts import numbered, wav_bytes

_SYNTHESIS_MS = 200
_POOLS = (1, 2, 4)  # replicas
_CLIENTS_EACH = 6  # waiting for each replica
_CALLS_EACH = 25  # of each replica in a turn, so that the first and the last weigh little
_LOW_LOAD_CALLS = 12
_ROUNDS = 3
_HEADER = (
    f"this service, {_SYNTHESIS_MS} ms synthesis",
    "requests/s",
    "beside what the replicas can speak",
    "beside so many times one replica (target ≥ 0.95)",
    "queue, one client: median / worst (target < 1 ms)",
)


@dataclass
class Pool:
    """A service over `replicas`: answers a second by round, and milliseconds in the queue by
    request of one client."""

    service: Server
    replicas: int
    rates: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)

    def speak(self, texts: Iterator[str], calls: int) -> float:
        """Answers a second, over so many calls of each replica. Raises WrongAnswer."""
        wanted = Wanted(wav_bytes(next(texts)), verdict="miss")
        requests = map(speech_request, islice(texts, calls * self.replicas))
        clients = _CLIENTS_EACH * self.replicas
        return send_all(self.service.port, requests, clients, wanted).rate

    def measure(self, texts: Iterator[str], options: Options) -> None:
        """One more round. Raises WrongAnswer."""
        self.rates.append(self.speak(texts, _CALLS_EACH // (5 if options.is_quick else 1)))
        for text in islice(texts, options.rounds(_LOW_LOAD_CALLS)):
            heard = listen(self.service.port, input=text)
            self.queued.append(_milliseconds("queue", heard.headers["server-timing"]))

    def row(self, base: "Pool") -> list[str]:
        most = self.replicas * 1000 / _SYNTHESIS_MS
        pairs = zip(self.rates, base.rates, strict=True)
        beside_one = median(ours / (theirs * self.replicas) for ours, theirs in pairs)
        return [
            self.service.name,
            f"{median(self.rates):.1f}",
            f"{median(self.rates) / most:.2f}",
            f"{beside_one:.2f}",
            f"{median(self.queued):.1f} / {max(self.queued):.1f} ms",
        ]


def run(options: Options) -> Table:
    with bench(options, stand_ins=max(_POOLS)) as place:
        for stand_in in place.stand_ins:
            stand_in.take(_SYNTHESIS_MS)
        pools = [Pool(_service(place, replicas), replicas) for replicas in _POOLS]
        texts = numbered("replicas")
        for pool in pools:
            pool.service.wait_ready()
            pool.speak(texts, 5)  # connects to each, and uploads the recording
        for _ in range(options.rounds(_ROUNDS)):
            for pool in pools:
                pool.measure(texts, options)
    return Table("Replicas", _HEADER, [pool.row(pools[0]) for pool in pools])


def _service(place: Bench, replicas: int) -> Server:
    urls = ",".join(stand_in.url for stand_in in place.stand_ins[:replicas])
    return place.service(f"{replicas} replica{'s' * (replicas > 1)}", GRADIO_URL=urls)


def _milliseconds(name: str, timing: str) -> float:
    """One figure of a `Server-Timing` header. Raises WrongAnswer where it is missing."""
    for entry in timing.split(","):
        told, _, value = entry.strip().partition(";dur=")
        if told == name:
            return float(value)
    raise WrongAnswer(f"no {name} in Server-Timing: {timing}")
