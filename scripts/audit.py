"""Ask PyPI whether known vulnerabilities are in the pinned versions of requirements*.txt.

    python scripts/audit.py [API]

Ends with 1 if there are, and with 0, saying why, where PyPI's JSON API does not answer. Asks the
API itself: each release's page lists what the Python Packaging Advisory Database knows of it.
"""

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
API = "https://pypi.org/pypi"
_SECONDS = 10.0  # for one answer
_AT_ONCE = 8
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


class Unreachable(Exception):
    """The API does not answer; the message says how."""


@dataclass(frozen=True)
class Finding:
    """A vulnerability in a pinned version."""

    name: str
    version: str
    advisory: str
    fixed_in: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}: {self.advisory}, fixed in {self.fixed_in}"


def pinned(folder: Path = PROJECT) -> list[tuple[str, str]]:
    """Names and versions in the requirements files, each once."""
    texts = (path.read_text() for path in sorted(folder.glob("requirements*.txt")))
    return sorted(
        {(name.lower(), version) for text in texts for name, version in _PIN.findall(text)}
    )


def audit(pins: list[tuple[str, str]], api: str = API) -> Iterator[Finding]:
    """Everything that is known of these. Raises Unreachable."""
    # A mirror that has files alone knows no release at all: then one question is enough.
    probe = next((pin for pin in pins if pin[0] == "flask"), pins[0])
    if _told(*probe, api) is None:
        raise Unreachable(f"{api} has no JSON API")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for pin, told in zip(pins, pool.map(lambda pin: _told(*pin, api), pins), strict=True):
            yield from _findings(*pin, told or {})


def _told(name: str, version: str, api: str) -> dict[str, Any] | None:
    """What PyPI tells of a release; None if it knows of none. Raises Unreachable."""
    try:
        with urllib.request.urlopen(f"{api}/{name}/{version}/json", timeout=_SECONDS) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise Unreachable(f"{api} answers {error.code}") from None
    except (OSError, ValueError) as error:
        raise Unreachable(f"{api} does not answer: {error}") from None


def _findings(name: str, version: str, told: dict[str, Any]) -> Iterator[Finding]:
    for each in told.get("vulnerabilities", []):
        if not each.get("withdrawn"):
            fixed_in = ", ".join(each.get("fixed_in") or ["no version yet"])
            yield Finding(name, version, each["id"], fixed_in)


def main() -> None:
    pins = pinned()
    try:
        found = list(audit(pins, *sys.argv[1:2]))
    except Unreachable as reason:
        print(f"audit skipped: {reason}")
        return
    for finding in found:
        print(finding)
    print(f"audited {len(pins)} pinned packages: {len(found)} known vulnerabilities")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
