"""memory: thousands of requests of every kind through one worker, and what stays behind.

New texts and known ones, in all formats, whole and streamed, requests that must be refused, and
clients who leave at a moment of chance: in the middle of their request, while they wait, while they
hear. What the worker holds is looked at again and again, whenever it has come to rest.
"""

import http.client
import json
import os
import queue
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path

from benchmarks.load import SPEECH, Wanted, WrongAnswer, send_all, speech_request
from benchmarks.options import Options
from benchmarks.servers import Server, bench
from benchmarks.tables import Table
from benchmarks.texts import one_word, wav_bytes
from tts_service.audio import FORMATS

_REQUESTS, _QUICK_REQUESTS = 20_000, 1_500
_LOOKS, _QUICK_LOOKS = 10, 5  # the first is what the others are held against
_CLIENTS = 8
_THREADS = 24  # of the worker; all begin before the first look
_CACHED = 64  # answers and segments, in the cache long before the first look
_KNOWN = 24  # texts asked for again, most of which are still in the cache
_SEED = 7
_TIME_LIMIT = 300.0  # seconds, after which no more requests are sent
_REST_LIMIT = 15.0  # seconds, until what clients left behind is given up
_REST = 1.0  # seconds without a change
_CONNECT_MS = 500  # of the synthesis for which all threads wait
_PATIENCE = 0.06  # seconds, at most, of a client who leaves while waiting
_LETTERS = "abcdefghijklmnopqrstuvwxyz 0123456789，您好今天气很不错éüß"
_INVALID: Sequence[bytes] = (
    b'{"input": ""}',
    b'{"input": "half',
    b'{"input": "x", "speed": 9}',
    b'{"input": "x", "response_format": "midi"}',
    b'{"input": "x", "stream_format": "smoke"}',
    b'{"input": "x", "voice": "nobody"}',
    json.dumps({"input": "long " * 2000}).encode(),
    b"[]",
)
_HEADER = (
    f"one worker, {_CLIENTS} clients: after",
    "resident",
    "beside the first (target ≤ 1.05)",
    "files",
    "sockets",
    "threads",
    "temp entries",
)


@dataclass(frozen=True)
class Question:
    """A request, and its client's moment to leave: `heard` bytes of the answer, `waited` seconds
    for it, or after `sent` of the request; None: not so. `is_valid` tells what is to be answered.
    """

    body: bytes
    is_valid: bool = True
    sent: float | None = None  # share
    waited: float | None = None
    heard: int | None = None


@dataclass(frozen=True)
class Held:
    """How many of each a worker holds."""

    files: int
    sockets: int
    threads: int
    temp_entries: int

    def exceeds(self, other: "Held") -> bool:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return any(ours > theirs for ours, theirs in pairs)


@dataclass(frozen=True)
class Look:
    """What was seen after so many requests."""

    requests: int
    resident: int  # bytes
    held: Held


class Worker:
    """The one worker of a server, seen from outside."""

    def __init__(self, server: Server) -> None:
        (self._pid,) = server.workers()
        self._temp = server.folder
        self._proc = Path(f"/proc/{self._pid}")

    def look(self, requests: int, first: Look | None) -> Look:
        """Once it is at rest: unchanged for a while, and with no more than at the first look.
        Whatever it does not let go of within the limit is told as it is."""
        deadline = time.monotonic() + _REST_LIMIT
        held, since = self._held(), time.monotonic()
        while time.monotonic() < deadline:
            if time.monotonic() - since > _REST and not (first and held.exceeds(first.held)):
                break
            time.sleep(0.05)
            if (now := self._held()) != held:
                held, since = now, time.monotonic()
        return Look(requests, self._resident(), held)

    def _resident(self) -> int:
        pages = int((self._proc / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _held(self) -> Held:
        kinds = Counter(_kind(path) for path in (self._proc / "fd").iterdir())
        threads = sum(1 for _ in (self._proc / "task").iterdir())
        temp_entries = sum(len(folders) + len(files) for _, folders, files in os.walk(self._temp))
        return Held(kinds["file"], kinds["socket"], threads, temp_entries)


class Client:
    """Asks on one kept connection, until it leaves; then on another."""

    def __init__(self, port: int, *, timeout: float = 60) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self.close = self._connection.close

    def ask(self, question: Question) -> str:
        """What came of it: `answered`, `refused` or `left`. Raises WrongAnswer."""
        try:
            self._send(question)
            if question.sent is not None or question.waited is not None:
                time.sleep(question.waited or 0)
                self.close()
                return "left"
            answer = self._connection.getresponse()
            body = answer.read(question.heard)
        except (http.client.HTTPException, OSError) as error:
            raise WrongAnswer(f"{question}: {error!r}") from error
        wanted = range(200, 201) if question.is_valid else range(400, 500)
        if answer.status not in wanted:
            raise WrongAnswer(f"{question}: {answer.status} {body[:600]!r}")
        if question.heard is not None:
            self.close()
            return "left"
        return "answered" if question.is_valid else "refused"

    def _send(self, question: Question) -> None:
        self._connection.putrequest("POST", SPEECH)
        self._connection.putheader("Content-Type", "application/json")
        self._connection.putheader("Content-Length", str(len(question.body)))
        share = 1 if question.sent is None else question.sent
        self._connection.endheaders(question.body[: int(len(question.body) * share)])


def run(options: Options) -> Table:
    requests = _QUICK_REQUESTS if options.is_quick else _REQUESTS
    step = requests // (_QUICK_LOOKS if options.is_quick else _LOOKS)
    outcomes: Counter[str] = Counter()
    with bench(options) as place:
        server = place.service(
            "this service", WEB_CONCURRENCY=1, THREADS=_THREADS, MAX_CACHE_SIZE=_CACHED
        )
        server.wait_ready()
        place.stand_in.take(_CONNECT_MS)
        use_every_thread(server)
        place.stand_in.take(0)
        worker = Worker(server)
        questions = _questions(random.Random(_SEED))
        deadline = time.monotonic() + _TIME_LIMIT
        looks: list[Look] = []
        while outcomes.total() < requests and time.monotonic() < deadline:
            try:
                outcomes.update(_ask_all(server.port, islice(questions, step)))
            except WrongAnswer:
                print(server.log[-4000:], file=sys.stderr)
                raise
            looks.append(worker.look(outcomes.total(), looks[0] if looks else None))
    rows = [_row(look, looks[0]) for look in looks]
    return Table(f"Memory: {requests:,} requests", _HEADER, rows, [*_notes(requests, outcomes)])


def use_every_thread(server: Server, threads: int = _THREADS) -> None:
    """Have all of them begun, as any crowd would one day: they stay, and are not counted then."""
    text = one_word(7)
    send_all(server.port, [speech_request(text)] * threads, threads, Wanted(wav_bytes(text)))


def _ask_all(port: int, questions: Iterator[Question]) -> Counter[str]:
    """What came of them, with all connections closed again. Raises WrongAnswer."""
    idle: queue.SimpleQueue[Client] = queue.SimpleQueue()

    def ask(question: Question) -> str:
        client = idle.get()
        try:
            return client.ask(question)
        finally:
            idle.put(client)

    with ExitStack() as stack:
        for _ in range(_CLIENTS):
            idle.put(stack.enter_context(closing(Client(port))))
        with ThreadPoolExecutor(_CLIENTS) as pool:
            return Counter(pool.map(ask, questions))


def _questions(luck: random.Random) -> Iterator[Question]:
    """Without end: of ten requests three for new texts, one invalid, the rest for known texts; of
    ten clients one or two leave."""
    known: list[bytes] = []
    kinds: Sequence[Callable[[], Question]] = (
        lambda: Question(new_body(luck, known)),
        lambda: Question(luck.choice(known)),
        lambda: Question(luck.choice(_INVALID), is_valid=False),
        lambda: Question(new_body(luck, known), sent=luck.random()),
        lambda: Question(new_body(luck, known), waited=luck.uniform(0, _PATIENCE)),
        lambda: Question(new_body(luck, known), heard=luck.randrange(1, 20_000)),
    )
    yield Question(new_body(luck, known))
    while True:
        (kind,) = luck.choices(kinds, weights=(18, 60, 10, 4, 4, 4))
        yield kind()


def new_body(luck: random.Random, known: list[bytes]) -> bytes:
    """A request for a text that nobody asked for, in any way to have it; now it is known, in the
    place of an older one."""
    sentences = luck.choice((1, 1, 1, 2))
    texts = ("".join(luck.choices(_LETTERS, k=luck.randrange(5, 15))) for _ in range(sentences))
    fields = {
        "input": ". ".join(texts),
        "response_format": luck.choice([*FORMATS]),
        "stream_format": luck.choice((None, None, "audio", "sse")),
        "speed": luck.choice((1, 1, 1, 1.25)),
    }
    body = json.dumps(fields).encode()
    if len(known) < _KNOWN:
        known.append(body)
    else:
        known[luck.randrange(_KNOWN)] = body
    return body


def _row(look: Look, first: Look) -> list[str]:
    return [
        f"{look.requests:,} requests",
        f"{look.resident / 1e6:.1f} MB",
        f"{look.resident / first.resident:.3f}",
        *(f"{count}" for count in astuple(look.held)),
    ]


def _notes(requests: int, outcomes: Counter[str]) -> Iterator[str]:
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    yield f"{told}; the cache held {_CACHED} answers and segments at most."
    if outcomes.total() < requests:
        yield f"Ended early: {_TIME_LIMIT:.0f} s were over."


def _kind(descriptor: Path) -> str:
    """Of an entry in /proc/…/fd."""
    try:
        target = str(descriptor.readlink())
    except OSError:  # it was closed meanwhile
        return "closed"
    return "socket" if target.startswith("socket:") else "file"
