"""Two minutes of everything at once, with faults: nothing fails, and nothing grows.

`SOAK_MINUTES` sets how long; half a minute outside of CI.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from servers import require_program

from benchmarks.soak import MEASURES, Look, Report

PROJECT = Path(__file__).parents[1]
MINUTES = float(os.environ.get("SOAK_MINUTES", "2" if os.environ.get("CI") == "true" else "0.5"))


@pytest.mark.timeout(MINUTES * 60 + 600)
def test_nothing_fails_and_nothing_grows(tmp_path: Path) -> None:
    require_program("redis-server")
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", str(MINUTES)]
    run = subprocess.run(
        [*command, "--folder", str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-8000:]
    told = json.loads((tmp_path / "soak.json").read_text())
    assert told["failures"] == told["complaints"] == []
    assert told["outcomes"]["answered"] > 20 * MINUTES
    assert told["outcomes"]["left"] > 0
    assert sum(told["blows"].values()) > 0
    assert "verdict: endured" in (tmp_path / "soak.md").read_text()
    ElementTree.parse(tmp_path / "soak.svg")


def look(number: int, megabytes: float = 100, threads: int = 40) -> Look:
    return Look(number * 10.0, number * 100, megabytes, 20, 10, threads, 1, 50)


@pytest.mark.parametrize(
    ("looks", "complaints"),
    [
        ([look(n) for n in range(12)], []),
        ([look(n, megabytes=60 if n < 2 else 100) for n in range(12)], []),  # the warm-up
        ([look(n, megabytes=100 + 8 * n) for n in range(12)], ["memory has grown"]),
        ([look(n, threads=40 + 4 * n) for n in range(12)], ["threads has grown"]),
    ],
)
def test_a_report_tells_what_has_grown(looks: list[Look], complaints: list[str]) -> None:
    assert Report("- here", 2, looks).complaints == complaints


def test_a_report_tells_what_has_failed(tmp_path: Path) -> None:
    report = Report("- here", 2, [look(n) for n in range(12)], failures=["POST: 500"])
    report.write(tmp_path)
    page = (tmp_path / "soak.md").read_text()
    assert "verdict: 1 requests failed" in page
    assert all(measure.name in page for measure in MEASURES)
