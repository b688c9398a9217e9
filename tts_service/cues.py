"""Cues: when each segment of an answer is heard, and the captions that players read it from.

Sources of the formats: WebVTT, https://www.w3.org/TR/webvtt1/. SubRip (.srt) has no standard: a
number, a line of times and one of text, then an empty line, is what every player reads.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

#: Start and end in milliseconds, counted from the answer's beginning.
Span = tuple[int, int]

_MILLISECONDS = re.compile(r"\d{1,12}", re.ASCII)
#: Stands between two characters and is not seen.
_WORD_JOINER = "\u2060"
_UNPRINTABLE = ("Cc", "Cs")
#: What SubRip's players take for times or tags; it knows no way to escape them.
_SUBRIP_MARKUP = re.compile(r"(?<=--)(?=>)|(?<=<)|(?<=\{)(?=\\)")


@dataclass(frozen=True, slots=True)
class Cue:
    """A segment's text, and from when to when it is heard: milliseconds since the beginning."""

    text: str
    start: int
    end: int


def span(start: float, end: float) -> Span:
    """The span between two moments in seconds. It never is empty: players leave out such cues."""
    began = round(start * 1000)
    return began, max(began + 1, round(end * 1000))


def spans_to_text(spans: Iterable[Span]) -> str:
    """Milliseconds with spaces between them; as a string it costs nobody who only passes it on."""
    return " ".join(f"{start} {end}" for start, end in spans)


def spans_from_text(text: object) -> list[Span] | None:
    """The spans that `spans_to_text` wrote; None if it was something else."""
    if not isinstance(text, str):
        return None
    numbers = text.split(" ") if text else []
    if len(numbers) % 2 or not all(_MILLISECONDS.fullmatch(number) for number in numbers):
        return None
    pairs = map(int, numbers)
    return list(zip(pairs, pairs, strict=True))


# Captions


def web_vtt(cues: Iterable[Cue]) -> str:
    """A WebVTT file."""
    return "WEBVTT\n" + "".join(f"\n{block}" for block in _blocks(cues, ".", _in_web_vtt))


def sub_rip(cues: Iterable[Cue]) -> str:
    """An SRT file."""
    return "\n".join(_blocks(cues, ",", _in_sub_rip))


def _blocks(cues: Iterable[Cue], mark: str, written: Callable[[str], str]) -> Iterator[str]:
    """Number, times and text; `mark` stands before the milliseconds."""
    for number, cue in enumerate(cues, 1):
        times = f"{_clock(cue.start, mark)} --> {_clock(cue.end, mark)}"
        yield f"{number}\n{times}\n{written(_line(cue.text))}\n"


def _clock(milliseconds: int, mark: str) -> str:
    seconds, thousandths = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{thousandths:03}"


def _in_web_vtt(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _in_sub_rip(text: str) -> str:
    return _SUBRIP_MARKUP.sub(_WORD_JOINER, text)


def _line(text: str) -> str:
    """The text in one line, for an empty one would end the cue; and without control marks."""
    shown = " ".join(text.split())
    return "".join(mark for mark in shown if unicodedata.category(mark) not in _UNPRINTABLE)


# In a cache


def to_json(cues: Iterable[Cue]) -> bytes:
    """A JSON array with `[start, end, text]` for each cue."""
    return json.dumps([[cue.start, cue.end, cue.text] for cue in cues]).encode()


def from_json(data: bytes) -> list[Cue] | None:
    """The cues that `to_json` wrote; None if it was something else."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, list) or not all(map(_is_cue, told)):
        return None
    return [Cue(text, start, end) for start, end, text in told]


def _is_cue(told: Any) -> bool:
    return isinstance(told, list) and list(map(type, told)) == [int, int, str]


def joined(texts: Sequence[str], spans: Sequence[Span]) -> list[Cue]:
    """Each text with its span; both are in order."""
    return [Cue(text, *span) for text, span in zip(texts, spans, strict=True)]
