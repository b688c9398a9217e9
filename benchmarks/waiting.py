"""waiting: what hits and `/health` take while forty-eight clients wait for a backend that is slow.

Each server has a stand-in of its own, so that nobody's calls are in another's way. The servers
take turns while all the clients wait.
"""

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice, repeat
from statistics import median

from benchmarks.load import Load, Wanted, WrongAnswer, begin, for_seconds, send_all, speech_request
from benchmarks.options import Options
from benchmarks.servers import Bench, CannotMeasure, Server, StandIn, bench
from benchmarks.tables import Table
from benchmarks.texts import numbered, one_word, wav_bytes

_WAITING = 48  # clients
_SYNTHESIS_MS = 30_000
_HIT = one_word(7)  # 20 KB
_CONNECTIONS = 4
_ROUNDS = 3
_SECONDS = 2.5  # of one turn
_BEGIN_LIMIT = 15.0  # seconds, until the backend speaks for those who wait
_HEALTH_PAUSE = 0.05  # seconds between two looks
_HEADER = (
    f"{_WAITING} clients wait, {_CONNECTIONS} ask for hits",
    "hits/s",
    "hit p50",
    "hit p99 (target ≤ 50 ms)",
    "hit, worst",
    "/health p50",
    "/health, worst",
)


@dataclass
class Host:
    """A server with clients who wait, its stand-in, and what others saw of it meanwhile."""

    server: Server
    stand_in: StandIn
    hits: list[Load] = field(default_factory=list)
    health: list[float] = field(default_factory=list)  # seconds

    def prime(self) -> None:
        self.server.wait_ready()
        send_all(self.server.port, [speech_request(_HIT)], 1, Wanted(wav_bytes(_HIT)))

    @contextmanager
    def keep_waiting(self, texts: Iterator[str]) -> Iterator[None]:
        """With clients who wait for as many texts."""
        self.stand_in.take(_SYNTHESIS_MS)
        calls = self.stand_in.calls()
        with ExitStack() as stack:
            for text in islice(texts, _WAITING):
                stack.enter_context(closing(begin(self.server.port, speech_request(text))))
            _wait_for_call(self.stand_in, calls)
            yield

    def measure(self, options: Options) -> None:
        """One more turn. Raises WrongAnswer."""
        requests = for_seconds(repeat(speech_request(_HIT)), options.seconds(_SECONDS))
        wanted = Wanted(wav_bytes(_HIT), verdict="hit")
        with _watched(self.server, self.health):
            self.hits.append(send_all(self.server.port, requests, _CONNECTIONS, wanted))

    def row(self) -> list[str]:
        shares = [median(load.within(share) for load in self.hits) for share in (0.5, 0.99)]
        worst = max(load.within(1) for load in self.hits)
        times = (*shares, worst, median(self.health), max(self.health))
        rate = median(load.rate for load in self.hits)
        return [self.server.name, f"{rate:,.0f}", *(f"{each * 1000:.1f} ms" for each in times)]


def run(options: Options) -> Table:
    with bench(options, stand_ins=2) as place, ExitStack() as waiting:
        hosts = _hosts(place, options)
        texts = numbered("waiting")
        for host in hosts:
            host.prime()
        for host in hosts:
            waiting.enter_context(host.keep_waiting(texts))
        for _ in range(options.rounds(_ROUNDS)):
            for host in hosts:
                host.measure(options)
    return Table("Others waiting", _HEADER, [host.row() for host in hosts])


def _hosts(place: Bench, options: Options) -> list[Host]:
    theirs, own = place.stand_ins
    ours = Host(place.service("this service", GRADIO_URL=own.url), own)
    if options.anchors is None:
        return [ours]
    return [Host(place.original("original design, thread pool", mode="threadpool"), theirs), ours]


def _wait_for_call(stand_in: StandIn, calls: int) -> None:
    """Return once it speaks. Raises CannotMeasure."""
    deadline = time.monotonic() + _BEGIN_LIMIT
    while stand_in.calls() == calls:
        if time.monotonic() > deadline:
            raise CannotMeasure("no call has reached the backend")
        time.sleep(0.05)


@contextmanager
def _watched(server: Server, seconds: list[float]) -> Iterator[None]:
    """Meanwhile, put down how long each `/health` takes."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_HEALTH_PAUSE):
            seconds.append(_health_seconds(server))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            is_over.set()
        watching.result()


def _health_seconds(server: Server) -> float:
    """Of one `GET /health`, on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with closing(connection):
        began = time.perf_counter()
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise WrongAnswer(f"/health: {answer.status}")
        return time.perf_counter() - began
