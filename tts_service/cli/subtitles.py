"""Subtitles: when each sentence of a recording is heard.

Sources of the formats: WebVTT, https://www.w3.org/TR/webvtt1/. SubRip (.srt) has no standard:
players read a number, a line of times and a line of text, then an empty line.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cue:
    """A sentence, and from when to when it is heard: seconds since the beginning."""

    text: str
    start: float
    end: float


def web_vtt(cues: Iterable[Cue]) -> str:
    """A WebVTT file."""
    return "WEBVTT\n\n" + "\n".join(
        f"{_times(cue, '.')}\n{_escaped(_line(cue.text))}\n" for cue in cues
    )


def sub_rip(cues: Iterable[Cue]) -> str:
    """An SRT file."""
    return "\n".join(
        f"{number}\n{_times(cue, ',')}\n{_line(cue.text)}\n" for number, cue in enumerate(cues, 1)
    )


def _times(cue: Cue, mark: str) -> str:
    return f"{_clock(cue.start, mark)} --> {_clock(cue.end, mark)}"


def _clock(moment: float, mark: str) -> str:
    seconds, thousandths = divmod(round(moment * 1000), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{thousandths:03}"


def _line(text: str) -> str:
    """The text in one line: an empty one would end the cue."""
    return " ".join(text.split()).replace("-->", "->")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
