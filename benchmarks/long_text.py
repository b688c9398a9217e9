"""long_text: forty sentences, and how long a listener waits for the first sound and for the last.

All backends take as long for a text as it has characters. The first segment is what the service
cuts off for an early start; a client who asks for as many characters alone is its measure.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from statistics import median

from benchmarks.load import Heard, WrongAnswer, listen
from benchmarks.options import Options
from benchmarks.servers import Bench, Server, bench
from benchmarks.tables import Table
from benchmarks.texts import new_words, sentences
from tts_service.text import segments

_MS_PER_CHARACTER = 5
_SENTENCES = 40
_ROUNDS = 3
_POOLS = (1, 2, 4)  # replicas
_WARM_UPS = 12  # sentences, so that every replica is connected and its pace known
_FORMATS = ("wav", "mp3")


@dataclass(frozen=True)
class Way:
    """How a long text is asked for."""

    format: str
    is_streamed: bool

    @property
    def fields(self) -> dict[str, str]:
        how = {"stream_format": "audio"} if self.is_streamed else {}
        return {"response_format": self.format, **how}


@dataclass(frozen=True)
class Turn:
    """One answer, beside one miss of its first segment (seconds) and the least that all its
    synthesis takes on all replicas (seconds)."""

    heard: Heard
    one_miss: float
    synthesis: float


@dataclass
class Reader:
    """A server that reads long texts aloud on `replicas`, and what came of it."""

    server: Server
    replicas: int
    ways: tuple[Way, ...]
    turns: dict[Way, list[Turn]] = field(default_factory=dict)

    def measure(self, way: Way, text: str, words: Iterator[str]) -> None:
        """One more turn. Raises WrongAnswer."""
        alone = Way(way.format, is_streamed=False)
        one_miss = median(self._read(alone, next(words)).whole for _ in range(3))
        spoken = sum(len(piece.strip()) for piece in segments(text))
        synthesis = spoken * _MS_PER_CHARACTER / 1000 / self.replicas
        turn = Turn(self._read(way, text), one_miss, synthesis)
        self.turns.setdefault(way, []).append(turn)

    def cells(self, way: Way) -> list[str]:
        turns = self.turns.get(way)
        if not turns:
            return ["–", "–"]
        first = median(turn.heard.first_sound for turn in turns)
        beside_miss = median(turn.heard.first_sound / turn.one_miss for turn in turns)
        whole = median(turn.heard.whole for turn in turns)
        beside_synthesis = median(turn.heard.whole / turn.synthesis for turn in turns)
        return [f"{first:.2f} s ({beside_miss:.2f})", f"{whole:.2f} s ({beside_synthesis:.2f})"]

    def warm_up(self, texts: Iterator[str]) -> None:
        self._read(self.ways[0], next(texts))

    def _read(self, way: Way, text: str) -> Heard:
        heard = listen(self.server.port, input=text, **way.fields)
        if heard.headers.get("x-cache", "MISS") != "MISS":
            raise WrongAnswer(f"{self.server.name} knew some of the text already")
        return heard


_STREAMED = tuple(Way(format_, is_streamed=True) for format_ in _FORMATS)
_WHOLE = Way("wav", is_streamed=False)
_WAYS = (*_STREAMED, _WHOLE)
_NAMES = (*(f"{way.format} stream" for way in _STREAMED), "wav, whole")
_HEADER = (
    "server",
    *(f"{name}: {what}" for name, what in product(_NAMES, ("first sound", "all"))),
)
_NOTES = (
    "In brackets: the first sound beside one miss of the first segment (target ≤ 1.15 where "
    "streamed), and all beside the synthesis on that many replicas (target ≤ 1.1).",
)


def run(options: Options) -> Table:
    with bench(options, stand_ins=max(_POOLS)) as place:
        for stand_in in place.stand_ins:
            stand_in.take(0, ms_per_character=_MS_PER_CHARACTER)
        readers = _readers(place, options)
        texts, warm_ups = sentences(_SENTENCES), sentences(_WARM_UPS, "Prologue")
        words = new_words(len(segments(next(texts))[0].strip()))
        for reader in readers:
            reader.server.wait_ready()
            reader.warm_up(warm_ups)
        for _ in range(options.rounds(_ROUNDS)):
            for reader in readers:
                for way in reader.ways:
                    reader.measure(way, next(texts), words)
    title = f"A long text: {_SENTENCES} sentences of 50 characters, {_MS_PER_CHARACTER} ms each"
    rows = [[each.server.name, *_joined(each)] for each in readers]
    return Table(title, _HEADER, rows, _NOTES)


def _readers(place: Bench, options: Options) -> list[Reader]:
    ours = [
        Reader(_service(place, replicas), replicas, _WAYS)
        for replicas in (_POOLS[-1:] if options.is_quick else _POOLS)
    ]
    if options.anchors is None:
        return ours
    original = place.original("original design, thread pool", mode="threadpool")
    return [Reader(original, 1, (_WHOLE,)), *ours]


def _service(place: Bench, replicas: int) -> Server:
    urls = ",".join(stand_in.url for stand_in in place.stand_ins[:replicas])
    return place.service(f"this service, {replicas} replica{'s' * (replicas > 1)}", GRADIO_URL=urls)


def _joined(reader: Reader) -> list[str]:
    return [cell for way in _WAYS for cell in reader.cells(way)]
