"""What a benchmark brings: a Markdown table, and the notes without which it would mislead."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """`header` and each row have the same number of cells; the first one names the row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        table = "\n".join(_line(cells) for cells in lines)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(part for part in (f"## {self.title}", table, notes) if part)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
