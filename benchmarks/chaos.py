"""chaos: two thousand requests, while the backends are killed, frozen, thawed and started again.

At random, but one of them is always healthy; one that was killed counts as healthy again once it
serves, one that was frozen at once. Every answer is read to its end and decoded: anything but 200,
a broken body or sound of another length is a failure.
"""

import base64
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, cycle, islice, product
from time import perf_counter

from servers import GradioApp, start_all

from benchmarks.load import Load, WrongAnswer, listen
from benchmarks.options import Options
from benchmarks.servers import bench
from benchmarks.tables import Table
from tts_service.audio import FORMATS, UndecodableAudio, decode

_REPLICAS = 4
_CLIENTS = 16
_REQUESTS, _QUICK_REQUESTS = 2_000, 200
_SYNTHESIS_MS = 40
_MS_PER_CHARACTER = 60  # of sound
_PAUSE_SECONDS = 0.2  # between two sentences, the service's default
_TOLERANCE_SECONDS = 0.12  # lossy formats pad their frames
_PCM_BYTES_PER_SECOND = 48_000
_SEED = 7
_SHORTEST_PEACE, _LONGEST_PEACE = 0.2, 2.0  # seconds between two blows
_TOLD_FAILURES = 5
_HEADER = (
    f"{_REPLICAS} replicas, {_CLIENTS} clients, {_SYNTHESIS_MS} ms synthesis",
    "failed (target 0)",
    "killed / frozen / started again / thawed",
    "p50",
    "p99",
    "worst",
    "all after",
)


@dataclass(frozen=True)
class Question:
    """A request, and how many seconds of sound its answer must have."""

    text: str
    format: str
    stream_format: str | None
    seconds: float


class Fate:
    """What befalls the replicas, one blow at a time; `least` of them stay healthy."""

    def __init__(
        self, replicas: Sequence[GradioApp], luck: random.Random, *, least: int = 1
    ) -> None:
        self._luck = luck
        self._least = least
        self._healthy = list(replicas)
        self._frozen: list[GradioApp] = []
        self._killed: list[GradioApp] = []
        self.blows: Counter[str] = Counter()

    def strike(self) -> None:
        """One blow, of those that leave a healthy replica."""
        blows = [
            (self._kill, self._frozen),
            (self._thaw, self._frozen),
            (self._start_again, self._killed),
        ]
        if len(self._healthy) > self._least:
            blows += [(self._kill, self._healthy), (self._freeze, self._healthy)]
        possible = [(blow, victims) for blow, victims in blows if victims]
        if possible:
            blow, victims = self._luck.choice(possible)
            blow(victims.pop(self._luck.randrange(len(victims))))

    def heal(self) -> None:
        """Have all of them healthy again."""
        while self._frozen:
            self._thaw(self._frozen.pop())
        while self._killed:
            self._start_again(self._killed.pop())

    def _kill(self, replica: GradioApp) -> None:
        self.blows["killed"] += 1
        replica.kill()
        self._killed.append(replica)

    def _freeze(self, replica: GradioApp) -> None:
        self.blows["frozen"] += 1
        replica.freeze()
        self._frozen.append(replica)

    def _thaw(self, replica: GradioApp) -> None:
        self.blows["thawed"] += 1
        replica.thaw()
        self._healthy.append(replica)

    def _start_again(self, replica: GradioApp) -> None:
        self.blows["started again"] += 1
        replica.restart()
        self._healthy.append(replica)


def run(options: Options) -> Table:
    luck = random.Random(_SEED)
    with bench(options, stand_ins=0) as place, started_replicas(_REPLICAS) as replicas:
        urls = ",".join(replica.url for replica in replicas)
        service = place.service("this service", GRADIO_URL=urls)
        service.wait_ready()
        fate = Fate(replicas, luck)
        requests = _QUICK_REQUESTS if options.is_quick else _REQUESTS
        with striking(fate.strike, luck):
            load, failures = _ask_all(service.port, islice(_questions(), requests))
        if failures:
            print(service.log, file=sys.stderr)
    return Table("Chaos", _HEADER, [_row(load, failures, fate)], failures[:_TOLD_FAILURES])


def _row(load: Load, failures: Sequence[str], fate: Fate) -> list[str]:
    blows = ("killed", "frozen", "started again", "thawed")
    times = (load.within(share) for share in (0.5, 0.99, 1))
    return [
        f"{load.count + len(failures):,} requests",
        f"{len(failures)}",
        " / ".join(str(fate.blows[blow]) for blow in blows),
        *(f"{seconds:.2f} s" for seconds in times),
        f"{load.seconds:.0f} s",
    ]


@contextmanager
def started_replicas(count: int) -> Iterator[Sequence[GradioApp]]:
    """So many Gradio apps, which are stopped at the end."""
    with ExitStack() as stack:
        replicas = [GradioApp(synth_ms=_SYNTHESIS_MS) for _ in range(count)]
        for replica in replicas:
            stack.callback(replica.stop)
        yield start_all(replicas)


@contextmanager
def striking(
    strike: Callable[[], None],
    luck: random.Random,
    peace: tuple[float, float] = (_SHORTEST_PEACE, _LONGEST_PEACE),
) -> Iterator[None]:
    """Meanwhile, let blow follow upon blow, with so many seconds of `peace` in between."""
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.wait(luck.uniform(*peace)):
            strike()

    with ThreadPoolExecutor(1) as pool:
        striking = pool.submit(go_on)
        try:
            yield
        finally:
            is_over.set()
        striking.result()


def _questions() -> Iterator[Question]:
    """Texts of one to three sentences, none twice, in every format and every way to have it."""
    ways = cycle(product(FORMATS, (None, "audio", "sse")))
    for number, (format_, stream_format), sentences in zip(
        count(), ways, cycle((1, 1, 2, 1, 3)), strict=False
    ):
        spoken = [f"Number {number:05d}, part {part}." for part in range(sentences)]
        seconds = sum(map(len, spoken)) * _MS_PER_CHARACTER / 1000
        pauses = (sentences - 1) * _PAUSE_SECONDS
        yield Question(" ".join(spoken), format_, stream_format, seconds + pauses)


def _ask_all(port: int, questions: Iterator[Question]) -> tuple[Load, list[str]]:
    """The load, and what is wrong with the answers that failed."""
    load = Load()
    failures = []
    began = perf_counter()
    with ThreadPoolExecutor(_CLIENTS) as pool:
        for outcome in pool.map(lambda question: _outcome(port, question), questions):
            if isinstance(outcome, str):
                failures.append(outcome)
            else:
                load.latencies.append(outcome)
    load.seconds = perf_counter() - began
    return load, failures


def _outcome(port: int, question: Question) -> float | str:
    """Seconds until the answer's end, or what is wrong with it."""
    way = {"response_format": question.format, "stream_format": question.stream_format}
    try:
        heard = listen(port, input=question.text, **way)
        seconds = _seconds_of_sound(heard.body, question)
    except (WrongAnswer, UndecodableAudio) as error:
        return f"{question}: {error}"
    if abs(seconds - question.seconds) > _TOLERANCE_SECONDS:
        return f"{question}: {seconds:.2f} s of sound"
    return heard.whole


def _seconds_of_sound(body: bytes, question: Question) -> float:
    """Raises WrongAnswer, UndecodableAudio."""
    sound = _sound_in_events(body) if question.stream_format == "sse" else body
    if question.format == "pcm":
        return len(sound) / _PCM_BYTES_PER_SECOND
    return decode(sound).seconds


def _sound_in_events(body: bytes) -> bytes:
    """Raises WrongAnswer if the events do not end as they should."""
    lines = body.decode().split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    *deltas, last = events
    if last["type"] != "speech.audio.done":
        raise WrongAnswer(f"the events end with {last}")
    return b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
