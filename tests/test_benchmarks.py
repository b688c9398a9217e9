"""The benchmarks print their tables and leave nothing behind; figures are not judged here."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from servers import require_program, wait_until

from benchmarks import hits, memory
from benchmarks.hits import Teller
from benchmarks.load import Wanted, WrongAnswer, send_all, speech_request
from benchmarks.options import Options, parse
from benchmarks.plot import CannotDraw, drawn
from benchmarks.servers import bench
from benchmarks.texts import one_word, wav_bytes
from tts_service.audio import FORMATS

PROJECT = Path(__file__).parents[1]
ALONE = Options([], anchors=None, original_python=Path(sys.executable), is_quick=True)
SVG = "{http://www.w3.org/2000/svg}"
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
    file = tmp_path / "figures.json"
    run = start(tmp_path, "herd", "--quick", "--json", str(file))
    printed, complaints = run.communicate()
    assert run.returncode == 0, complaints
    assert "measured alone" in complaints  # there is no original design to compare with
    header, rule, ours = (line for line in printed.splitlines() if line.startswith("|"))
    assert len(cells(header)) == len(cells(rule)) == len(cells(ours))
    assert cells(ours)[:2] == ["this service", "1"]  # one call to the backend, on any machine
    told = json.loads(file.read_text())["tables"]["herd"]
    assert [told["header"], *told["rows"]] == [cells(header), cells(ours)]
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == [file]


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


@pytest.mark.timeout(120)
def test_each_server_of_hits_answers_as_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    require_program("nginx")
    text = one_word(7)
    with bench(ALONE) as place:
        gateway = place.service("gateway", WEB_CONCURRENCY=1)
        bare = [place.bare("WSGI", "wsgi"), place.bare("Flask", "flask")]
        passing = place.nginx("without its cache", gateway, has_cache=False)
        keeping = place.nginx("with its cache", gateway, has_cache=True)
        files = place.nginx_with_files("files", {"7.wav": wav_bytes(text)})
        for teller in (
            *map(Teller, bare),
            Teller(passing, gateway),
            Teller(keeping, gateway, verdict="nginx"),
            Teller(files, has_files=True),
        ):
            teller.server.wait_ready()
            teller.prime(text)  # or WrongAnswer after a while
        assert place.stand_in.calls() == 1
        other = Wanted(wav_bytes(text), verdict="nginx")
        with pytest.raises(WrongAnswer, match="X-Cache: HIT"):
            send_all(passing.port, [speech_request(text)], 1, other)
        monkeypatch.setattr(shutil, "which", lambda _: None)
        notes: list[str] = []
        assert hits._of_nginx(place, gateway, notes) == []
        assert notes == ["Without nginx, which is not installed."]


@pytest.mark.timeout(120)
def test_memory_is_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_QUICK_REQUESTS", 60)
    monkeypatch.setattr(memory, "_QUICK_LOOKS", 2)
    monkeypatch.setattr(memory, "_REST", 0.2)
    monkeypatch.setattr(memory, "_REST_LIMIT", 1.0)
    table = memory.run(ALONE)
    assert [row[0] for row in table.rows] == ["30 requests", "60 requests"]
    assert table.rows[0][2] == "1.000"
    assert all(int(count) > 0 for row in table.rows for count in row[3:])
    told = table.notes[0].partition(";")[0].split(", ")
    counts = {outcome: int(count) for count, outcome in map(str.split, told)}
    assert sum(counts.values()) == 60
    assert set(counts) == {"answered", "left", "refused"}


def test_memory_asks_the_same_questions_every_time() -> None:
    some, again = (list(islice(memory._questions(random.Random(7)), 500)) for _ in range(2))
    assert some == again
    asked = [json.loads(question.body) for question in some if question.is_valid]
    assert {each["response_format"] for each in asked} == set(FORMATS)
    assert {each["stream_format"] for each in asked} == {None, "audio", "sse"}
    assert len({question.body for question in some}) < len(some)


def figures(**tables: Any) -> dict[str, Any]:
    return {"about": "- a day, a machine\n- versions", "tables": tables}


HITS = {
    "header": ["server", "20 KB × 1", "20 KB × 16"],
    "rows": [
        ["a <first>", "9 (9.00)", "1,000 (1.00)"],
        ["this service", "9 (9.00)", "2,500 (2.50)"],
    ],
}
LONG = {
    "header": ["server", "wav stream: first sound", "wav, whole: first sound"],
    "rows": [
        ["original", "–", "10.00 s (38.63)"],
        ["this service", "0.20 s (1.00)", "10.4 s (50)"],
    ],
}


def test_the_plot_draws_bars_as_long_as_their_figures() -> None:
    picture = ElementTree.fromstring(drawn(figures(hits=HITS, long_text=LONG)))
    bars = [float(bar.get("width", "")) for bar in picture.iter(f"{SVG}rect")]
    assert bars[1] / bars[0] == pytest.approx(2.5, rel=0.01)
    assert bars[2] / bars[3] == pytest.approx(50, rel=0.01)
    texts: dict[str, list[str | None]] = {}
    for text in picture.iter(f"{SVG}text"):
        texts.setdefault(text.get("class", ""), []).append(text.text)
    assert texts["value"] == ["1.00 ×", "2.50 ×", "10.00 s", "0.20 s"]
    assert texts["label"] == ["a <first>", "this service", "original", "this service"]
    assert len(texts["group"]) == 2  # there are no misses
    assert texts["note"] == ["a day, a machine"]
    assert "prefers-color-scheme: dark" in drawn(figures(hits=HITS))


def test_a_file_with_nothing_to_draw_is_refused() -> None:
    with pytest.raises(CannotDraw, match="no hits, no misses and no long_text"):
        drawn(figures(herd={"header": [], "rows": []}))
