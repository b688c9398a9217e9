"""The project's documents, and how tests read them."""

import re
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
README_ZH = (PROJECT / "README.zh.md").read_text()

#: A fenced block: its language, and what stands in it.
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def section(document: str, title: str) -> str:
    """What stands below the heading `title`, of any level, up to the next one of its level."""
    found = re.search(
        rf"^(##+) {re.escape(title)}$(.*?)(?=^(?!\1#)##+ |\Z)", document, re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"no section {title!r}"
    return found[2]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks in a language."""
    return [code for kind, code in BLOCK.findall(text) if kind == language]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each table row; headings and the lines below them are left out."""
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        is_heading = following.startswith("|--")
        if line.startswith("|") and not line.startswith("|--") and not is_heading:
            yield [cell.strip() for cell in line.strip("|").split("|")]
