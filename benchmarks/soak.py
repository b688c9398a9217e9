"""soak: an hour of everything at once, and whether anything grows or fails.

    python -m benchmarks.soak --minutes 60 --folder soak

Of ten requests three are for new texts, six for known ones and one is left by its client, in every
format, speed and way to stream; now and then a voice is uploaded, speaks, and is removed. Meanwhile
the backends are killed, frozen and started again, two at least staying healthy, and Redis is
restarted. Traffic comes in rounds. After each one everything is healed, and what the worker holds
at rest is put down. Nothing may have failed, and the last third of the looks must be like the
first.

Ends with 1 if that is not so. The folder gets `soak.json`, `soak.md` and `soak.svg`.
"""

import argparse
import http.client
import json
import random
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from servers import RedisServer

from benchmarks.chaos import Fate, started_replicas, striking
from benchmarks.load import WrongAnswer
from benchmarks.machine import described
from benchmarks.memory import Client, Question, Worker, new_body, use_every_thread
from benchmarks.options import Options, parse
from benchmarks.plot import Panel, drawn_panels
from benchmarks.servers import Server, bench
from tts_service.audio import Audio, wav

_REPLICAS, _HEALTHY = 3, 2
_CLIENTS = 4
_RATE = 6.0  # requests a second: no more than a slow machine can do
_THREADS = 10  # of the worker; all begin before the first look
#: Requests as fast as they are answered, before anything else: each thread's own memory grows with
#: the first sounds that it encodes.
_FIRST_REQUESTS = 300
_THREADS_WAIT_MS = 500  # of the synthesis for which all of them wait
_SETTINGS: Mapping[str, object] = {
    "WEB_CONCURRENCY": 1,
    "THREADS": _THREADS,
    "MAX_CACHE_SIZE": 64,
    "CACHE_TTL": 20,  # so that Redis, which has no other bound here, comes to a level
    # Faults may take long on a slow machine, and shall not be seen for all that.
    "GRADIO_CALL_ATTEMPTS": 10,
    "GRADIO_CALL_DELAY": 1,
    "SYNTH_TIMEOUT": 120,
}
_ROUNDS_A_MINUTE, _MOST_ROUNDS = 5, 60
_WARM_UP = 0.2  # of the looks: caches fill, pools grow
_PEACE = (1.0, 6.0)  # seconds between two blows
_REDIS_SHARE = 0.15  # of the blows
_VOICE_SHARE = 0.02  # of the requests, where voices can be uploaded
_PATIENCE = 0.06  # seconds, at most, of a client who leaves while waiting
_SEED = 11
_TOLD_FAILURES = 20


@dataclass(frozen=True)
class Measure:
    """One thing that must stay level: its name, its unit, how it is read off a look, and how much
    more than in the first third there may be in the last: a share, and so many."""

    name: str
    unit: str
    read: Callable[["Look"], float]
    share: float
    more: float

    def is_level(self, looks: Sequence["Look"]) -> bool:
        first, last = self.thirds(looks)
        return last <= first * (1 + self.share) + self.more

    def thirds(self, looks: Sequence["Look"]) -> tuple[float, float]:
        """The median of the first and of the last third."""
        values = [self.read(look) for look in looks]
        size = max(1, len(values) // 3)
        return median(values[:size]), median(values[-size:])


@dataclass(frozen=True)
class Look:
    """What was there at rest, so many seconds and requests after the begin."""

    seconds: float
    requests: int
    megabytes: float
    files: int
    sockets: int
    threads: int
    temp_entries: int
    redis_keys: int


MEASURES = (
    Measure("memory", "MB", lambda look: look.megabytes, 0.10, 20),
    Measure("files", "", lambda look: look.files, 0, 4),
    Measure("sockets", "", lambda look: look.sockets, 0, 12),
    Measure("threads", "", lambda look: look.threads, 0, 16),
    Measure("temp entries", "", lambda look: look.temp_entries, 0, 0),
    Measure("keys in Redis", "", lambda look: look.redis_keys, 0.5, 200),
)


@dataclass
class Report:
    """What came of it."""

    about: str
    minutes: float
    looks: list[Look] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    blows: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def steady_looks(self) -> Sequence[Look]:
        """Without those of the warm-up."""
        return self.looks[int(len(self.looks) * _WARM_UP) :]

    @property
    def complaints(self) -> list[str]:
        """Why it has not been endured; none, if it has."""
        grown = [each for each in MEASURES if not each.is_level(self.steady_looks)]
        told = [f"{len(self.failures)} requests failed"] if self.failures else []
        return [*told, *(f"{each.name} has grown" for each in grown)]

    def write(self, folder: Path) -> None:
        """The figures, a page about them, and their picture."""
        folder.mkdir(parents=True, exist_ok=True)
        # `asdict` would take the counters apart wrongly.
        figures = {**vars(self), "looks": [asdict(look) for look in self.looks]}
        figures["complaints"] = self.complaints
        text = json.dumps(figures, ensure_ascii=False, indent=1)
        (folder / "soak.json").write_text(text + "\n", encoding="utf-8")
        (folder / "soak.md").write_text(self._page(), encoding="utf-8")
        panels = [
            Panel(
                f"{each.name} {each.unit}".strip(),
                [(look.seconds / 60, each.read(look)) for look in self.looks],
            )
            for each in MEASURES
        ]
        picture = drawn_panels("What the worker holds, minute by minute", panels)
        (folder / "soak.svg").write_text(picture + "\n", encoding="utf-8")

    def _page(self) -> str:
        outcomes = ", ".join(f"{count:,} {name}" for name, count in self.outcomes.most_common())
        blows = ", ".join(f"{count} {name}" for name, count in self.blows.most_common())
        rows = [
            f"| {each.name} | {first:,.1f} | {last:,.1f} | {'yes' if level else 'no'} |"
            for each in MEASURES
            for first, last in [each.thirds(self.steady_looks)]
            for level in [each.is_level(self.steady_looks)]
        ]
        lines = [
            f"# {self.minutes:g} minutes of everything at once",
            "",
            self.about,
            f"- requests: {outcomes}; failed: {len(self.failures)}",
            f"- faults: {blows}",
            f"- verdict: {'; '.join(self.complaints) or 'endured'}",
            "",
            "![What the worker holds](soak.svg)",
            "",
            "| at rest, median | first third | last third | level |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            *(f"- {failure}" for failure in self.failures[:_TOLD_FAILURES]),
        ]
        return "\n".join(lines) + "\n"


class Voices:
    """Uploads voices, has them speak, and removes them; where the service can do that."""

    def __init__(self, port: int) -> None:
        self._port = port
        tone = b"".join(
            (i * 400 % 20_000 - 10_000).to_bytes(2, "little", signed=True) for i in range(48_000)
        )
        self._recording = wav(Audio(24_000, tone))
        paths = json.loads(self._ask("GET", "/openapi.json")[1])["paths"]
        self.can_upload = "post" in paths.get("/v1/audio/voices", {})

    def come_and_go(self) -> str:
        """One voice's life. Raises WrongAnswer."""
        name = f"soak-{uuid.uuid4().hex[:12]}"
        boundary = uuid.uuid4().hex
        form = b"".join(
            (
                f'--{boundary}\r\nContent-Disposition: form-data; name="name"\r\n\r\n'.encode(),
                f"{name}\r\n--{boundary}\r\nContent-Disposition: form-data; ".encode(),
                b'name="audio_sample"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n',
                self._recording,
                f"\r\n--{boundary}--\r\n".encode(),
            )
        )
        kind = f"multipart/form-data; boundary={boundary}"
        self._expect(201, "POST", "/v1/audio/voices", form, kind)
        speech = json.dumps({"input": "A new voice.", "voice": name}).encode()
        self._expect(200, "POST", "/v1/audio/speech", speech, "application/json")
        self._expect(200, "DELETE", f"/v1/audio/voices/{name}")
        return "uploaded"

    def _expect(
        self, status: int, method: str, path: str, body: bytes = b"", kind: str = ""
    ) -> None:
        found, told = self._ask(method, path, body, kind)
        if found != status:
            raise WrongAnswer(f"{method} {path}: {found} {told[:300]!r}")

    def _ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=180)
        with closing(connection):
            try:
                connection.request(method, path, body, {"Content-Type": kind} if kind else {})
                answer = connection.getresponse()
                return answer.status, answer.read()
            except (http.client.HTTPException, OSError) as error:
                raise WrongAnswer(f"{method} {path}: {error!r}") from error


class Traffic:
    """Clients who ask at a steady rate."""

    def __init__(self, server: Server, report: Report, luck: random.Random) -> None:
        self._port = server.port
        self._report = report
        self._luck = luck
        self._voices = Voices(server.port)
        self._questions = _questions(luck)
        self._lock = threading.Lock()

    def flow(self, seconds: float) -> None:
        """For so long; all connections are closed afterwards."""
        until = time.monotonic() + seconds
        self._ask_on(lambda: time.monotonic() > until, _CLIENTS / _RATE)

    def pour(self, requests: int) -> None:
        """So many, as fast as they are answered."""
        most = self._report.outcomes.total() + requests
        self._ask_on(lambda: self._report.outcomes.total() >= most, 0)

    def _ask_on(self, is_over: Callable[[], bool], pace: float) -> None:
        """`pace`: seconds from one request of a client to its next."""

        def ask_on() -> None:
            with closing(Client(self._port, timeout=180)) as client:
                while not is_over():
                    began = time.monotonic()
                    self._ask(client)
                    time.sleep(max(0.0, began + pace - time.monotonic()))

        with ThreadPoolExecutor(_CLIENTS) as pool:
            for done in [pool.submit(ask_on) for _ in range(_CLIENTS)]:
                done.result()

    def _ask(self, client: Client) -> None:
        with self._lock:
            question = next(self._questions)
            has_voice = self._voices.can_upload and self._luck.random() < _VOICE_SHARE
        try:
            outcome = self._voices.come_and_go() if has_voice else client.ask(question)
        except WrongAnswer as error:
            client.close()
            with self._lock:
                self._report.failures.append(str(error)[:1000])
            outcome = "failed"
        with self._lock:
            self._report.outcomes[outcome] += 1


def _questions(luck: random.Random) -> Iterator[Question]:
    """Without end: of ten requests three for new texts, six for known ones, one that is left."""
    known: list[bytes] = []
    kinds: Sequence[Callable[[], Question]] = (
        lambda: Question(new_body(luck, known)),
        lambda: Question(luck.choice(known)),
        lambda: Question(luck.choice(known), sent=luck.random()),
        lambda: Question(new_body(luck, known), waited=luck.uniform(0, _PATIENCE)),
        lambda: Question(luck.choice(known), heard=luck.randrange(1, 20_000)),
        lambda: Question(new_body(luck, known), heard=luck.randrange(1, 20_000)),
    )
    yield Question(new_body(luck, known))
    while True:
        (kind,) = luck.choices(kinds, weights=(30, 60, 3, 3, 2, 2))
        yield kind()


def endure(minutes: float, options: Options) -> Report:
    """Raises CannotMeasure if a server does not come up."""
    luck = random.Random(_SEED)
    report = Report(described(options), minutes)
    with (
        bench(options, stand_ins=0) as place,
        started_replicas(_REPLICAS) as replicas,
        TemporaryDirectory(prefix="soak-") as folder,
        closing(_Redis(Path(folder))) as redis,
    ):
        urls = ",".join(replica.url for replica in replicas)
        server = place.service("soak", GRADIO_URL=urls, REDIS_URL=redis.server.url, **_SETTINGS)
        server.wait_ready()
        for replica in replicas:
            replica.control(synth_ms=_THREADS_WAIT_MS)
        use_every_thread(server, _THREADS)
        for replica in replicas:
            replica.control(reset=True)
        worker, traffic = Worker(server), Traffic(server, report, luck)
        fate = Fate(replicas, luck, least=_HEALTHY)

        def strike() -> None:
            if luck.random() < _REDIS_SHARE:
                report.blows["Redis restarted"] += 1
                redis.server.restart()
            else:
                fate.strike()

        traffic.pour(_FIRST_REQUESTS)
        began = time.monotonic()
        for seconds in _rounds(minutes):
            with striking(strike, luck, _PEACE):
                traffic.flow(seconds)
            fate.heal()
            report.looks.append(_look(worker, redis, report, time.monotonic() - began))
        report.blows.update(fate.blows)
        if report.failures:
            print(server.log[-20_000:], file=sys.stderr)
    return report


class _Redis:
    """A redis-server that can be closed."""

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer(folder)
        self.close = self.server.stop
        self.server.launch()
        self.server.wait_ready()


def _rounds(minutes: float) -> list[float]:
    """How many seconds each takes."""
    count = max(5, min(_MOST_ROUNDS, round(minutes * _ROUNDS_A_MINUTE)))
    return [minutes * 60 / count] * count


def _look(worker: Worker, redis: _Redis, report: Report, seconds: float) -> Look:
    seen = worker.look(report.outcomes.total(), None)
    keys = redis.server.client.dbsize()
    assert isinstance(keys, int)
    held = asdict(seen.held)
    return Look(round(seconds, 1), seen.requests, seen.resident / 1e6, **held, redis_keys=keys)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="See above.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--folder", type=Path, default=Path("soak"), help="for the report")
    given = parser.parse_args()
    report = endure(given.minutes, parse([], ["--anchors", "none"]))
    report.write(given.folder)
    print((given.folder / "soak.md").read_text(encoding="utf-8"))
    sys.exit(1 if report.complaints else 0)


if __name__ == "__main__":
    main()
