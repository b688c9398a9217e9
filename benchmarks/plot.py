"""The figures as one picture: horizontal bars, readable on light pages and on dark ones.

    python -m benchmarks --json figures.json
    python -m benchmarks.plot figures.json > docs/benchmarks.svg

Draws what the file has of three tables: hits beside the original, what a miss adds, and how long a
long text takes to its first sound.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

_WIDTH = 760
_LEFT = 290  # where bars begin; labels are to the left of it
_RIGHT = 90  # kept free for the longest bar's value
_PANEL, _MARGIN = 100, 70  # height of a panel, and what is beside its line
_BAR, _STEP = 16, 24  # height of a bar, and from bar to bar
_OURS = "this service"
_NUMBER = re.compile(r"[\d,]+(?:\.\d+)?")
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #424a53 }
  .title { font-size: 17px; font-weight: 600 }
  .group { font-size: 14px; font-weight: 600 }
  .label { text-anchor: end }
  .note { font-size: 12px; fill: #6e7781 }
  .line { fill: none; stroke: #2f81c7; stroke-width: 2 }
  .axis { stroke: #8c959f }
  .ours { fill: #2f81c7 }
  .other { fill: #8c959f }
  @media (prefers-color-scheme: dark) {
    text { fill: #d0d7de }
    .note { fill: #9198a1 }
  }
"""


@dataclass(frozen=True)
class Bar:
    """A server, its figure, and the figure as it is told."""

    label: str
    value: float
    told: str


@dataclass(frozen=True)
class Group:
    """Bars on one scale."""

    title: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Panel:
    """A line over time: points of minute and value, on a scale that begins at 0."""

    title: str
    points: Sequence[tuple[float, float]]


class CannotDraw(Exception):
    """The file has none of the tables."""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.plot FILE > docs/benchmarks.svg")
    figures = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        print(drawn(figures))
    except CannotDraw as error:
        sys.exit(str(error))


def drawn(figures: Mapping[str, Any]) -> str:
    """The picture of what `python -m benchmarks --json` wrote. Raises CannotDraw."""
    tables = figures["tables"]
    groups = [
        Group(title, list(bars(tables[name])))
        for name, title, bars in (
            ("hits", "A hit, 20 KB, 16 connections: requests/s beside {first}", _hits),
            ("misses", "A miss: what is added to the synthesis (less is better)", _misses),
            ("long_text", "A long text: until its first sound (less is better)", _long_text),
        )
        if name in tables
    ]
    if not groups:
        raise CannotDraw("the file has no hits, no misses and no long_text")
    return _svg([_named(group) for group in groups], _origin(figures["about"]))


def _hits(table: Mapping[str, Any]) -> Iterator[Bar]:
    column = table["header"].index("20 KB × 16")
    for row in table["rows"]:
        ratio = _number(row[column].partition("(")[2])
        yield Bar(row[0], ratio, f"{ratio:.2f} ×")


def _misses(table: Mapping[str, Any]) -> Iterator[Bar]:
    for row in table["rows"]:
        added = row[1].partition(" (")[0]
        yield Bar(row[0], _number(added), added)


def _long_text(table: Mapping[str, Any]) -> Iterator[Bar]:
    """Streamed; of a server that cannot, the whole answer, which is when its first sound comes."""
    header = table["header"]
    streamed, whole = (header.index(f"{way}: first sound") for way in ("wav stream", "wav, whole"))
    for row in table["rows"]:
        first = (row[whole] if row[streamed] == "–" else row[streamed]).partition(" (")[0]
        yield Bar(row[0], _number(first), first)


def _named(group: Group) -> Group:
    return Group(group.title.format(first=group.bars[0].label), group.bars)


def _number(told: str) -> float:
    """The first number in it."""
    found = _NUMBER.search(told)
    if found is None:
        raise CannotDraw(f"no number in {told!r}")
    return float(found[0].replace(",", ""))


def _origin(about: str) -> str:
    """The day and the machine, from the first line of the description."""
    return about.partition("\n")[0].removeprefix("- ")


def _svg(groups: Sequence[Group], origin: str) -> str:
    lines = [_text(0, 20, "title", "The service beside the original design")]
    y = 52
    for group in groups:
        lines.append(_text(0, y, "group", group.title))
        y += 10
        longest = max(bar.value for bar in group.bars) or 1
        for bar in group.bars:
            lines += _drawn_bar(bar, y, (_WIDTH - _LEFT - _RIGHT) / longest)
            y += _STEP
        y += 28
    lines.append(_text(0, y - 8, "note", origin))
    size = f'width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>The service beside the original design: hits, misses, long texts</title>"
    return "\n".join((head, title, f"<style>{_STYLE}</style>", *lines, "</svg>"))


def drawn_panels(title: str, panels: Sequence[Panel]) -> str:
    """One below the other, on one scale of time."""
    lines = [_text(0, 20, "title", title)]
    last = max((minute for panel in panels for minute, _ in panel.points), default=0) or 1
    right, y = _WIDTH - _MARGIN, 40
    for panel in panels:
        most = max((value for _, value in panel.points), default=0) or 1
        top, bottom = y + 10, y + _PANEL - 10
        told = " ".join(
            f"{_MARGIN + minute / last * (_WIDTH - 2 * _MARGIN):.1f},"
            f"{bottom - value / most * (bottom - top):.1f}"
            for minute, value in panel.points
        )
        lines += [
            _text(0, y + 4, "group", panel.title),
            f'<text class="label" x="{_MARGIN - 8}" y="{top + 12}">{most:,.0f}</text>',
            f'<line class="axis" x1="{_MARGIN}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
            f'<polyline class="line" points="{told}"/>',
        ]
        y += _PANEL + 16
    lines.append(_text(0, y, "note", f"{last:.0f} minutes"))
    size = f'width="{_WIDTH}" height="{y + 12}" viewBox="0 0 {_WIDTH} {y + 12}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join(
        (head, f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", *lines, "</svg>")
    )


def _drawn_bar(bar: Bar, y: int, scale: float) -> Iterator[str]:
    length = max(1.0, bar.value * scale)
    kind = "ours" if _OURS in bar.label else "other"
    middle = y + _BAR - 3  # the text's base line
    yield _text(_LEFT - 8, middle, "label", bar.label)
    yield (
        f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>'
    )
    yield _text(_LEFT + length + 6, middle, "value", bar.told)


def _text(x: float, y: float, kind: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
