"""The benchmarks print their tables and leave nothing behind; figures are not judged here."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import wait_until

from benchmarks.options import parse

PROJECT = Path(__file__).parents[1]
START_LIMIT = 60  # seconds, until servers that import gradio answer on a busy machine


def start(temp: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m benchmarks`, whose processes and files can all be told by `temp`."""
    command = [sys.executable, "-m", "benchmarks", "--anchors", str(temp / "none"), *arguments]
    return subprocess.Popen(
        command,
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(temp)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(temp: Path) -> list[int]:
    """The pids of all living processes that were started with `temp` for their temp folder."""
    mark = os.fsencode(temp)
    environs = Path("/proc").glob("[0-9]*/environ")
    return [int(path.parent.name) for path in environs if mark in read(path)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended meanwhile, or is not ours
        return b""


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("| ").split("|")]


@pytest.mark.timeout(120)
def test_a_benchmark_prints_its_table_and_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    run = start(tmp_path, "herd", "--quick")
    printed, complaints = run.communicate()
    assert run.returncode == 0, complaints
    assert "measured alone" in complaints  # there is no original design to compare with
    header, rule, ours = (line for line in printed.splitlines() if line.startswith("|"))
    assert len(cells(header)) == len(cells(rule)) == len(cells(ours))
    assert cells(ours)[:2] == ["this service", "1"]  # one call to the backend, on any machine
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(120)
def test_chaos_that_is_ended_half_way_takes_its_servers_with_it(tmp_path: Path) -> None:
    run = start(tmp_path, "chaos", "--quick")
    try:
        wait_until(lambda: any(tmp_path.glob("gradio_app_*/*.wav")), START_LIMIT)
        run.send_signal(signal.SIGTERM)
        run.communicate()
    finally:
        run.kill()
    assert run.returncode == 1
    wait_until(lambda: processes_of(tmp_path) == [])


def test_a_benchmark_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["herd", "chaos"], ["herds"])
    assert "no such benchmark: herds" in capsys.readouterr().err
