"""The documents say what is there: settings, routes, modules, links, and examples that work."""

import json
import re
import shlex
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import StartGateway
from documents import BLOCK, PROJECT, README, README_ZH, blocks, rows, section
from dotenv import dotenv_values
from servers import Gateway, GradioApp
from servers.sound import tone, write_mp3

from config import Config, read_config
from tts_service import create_app
from tts_service.audio import decode

ARCHITECTURE = (PROJECT / "ARCHITECTURE.md").read_text()
ENV_EXAMPLE = (PROJECT / ".env.example").read_text()
DOCUMENTS = sorted(
    path
    for path in PROJECT.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(PROJECT).parts)
)

#: A line of .env.example that becomes a setting without its `#`; prose has a space there.
COMMENTED_OUT = re.compile(r"^#(?=[A-Za-z_]+=)", re.MULTILINE)
#: What the documents show under /v1, as OpenAI does; the rest is the service's own.
API = ("/audio", "/models")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The defaults, whatever the environment and a developer's `.env` say."""
    monkeypatch.chdir(tmp_path)
    for name in Config.model_fields:
        monkeypatch.delenv(name, raising=False)


# Settings


def documented_settings() -> dict[str, str]:
    """Name and default of each setting in the README's tables."""
    table = [row[:2] for row in rows(section(README, "Settings"))]
    names = [name for name, _ in table]
    assert len(names) == len(set(names)), "a setting is documented twice"
    return {name.strip("`"): default for name, default in table}


def test_the_readme_has_every_setting_and_no_other() -> None:
    assert sorted(documented_settings()) == sorted(Config.model_fields)


@pytest.mark.parametrize("name", Config.model_fields)
def test_the_readme_tells_each_settings_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = getattr(read_config(), name)
    told = documented_settings()[name]
    if told == "none":
        assert default in (None, ())
    else:
        monkeypatch.setenv(name, told.strip("`"))
        assert getattr(read_config(), name) == default


def test_the_env_example_has_every_setting_once_commented_out_and_explained() -> None:
    lines = ENV_EXAMPLE.splitlines()
    settings = [at for at, line in enumerate(lines) if COMMENTED_OUT.match(line)]
    names = [lines[at][1:].partition("=")[0] for at in settings]
    assert sorted(names) == sorted(Config.model_fields)
    assert not [names[i] for i, at in enumerate(settings) if not lines[at - 1].startswith("# ")]
    assert all(line.startswith("#") for line in lines if line)


def test_the_env_example_uncommented_is_the_defaults(tmp_path: Path) -> None:
    defaults = read_config()
    (tmp_path / ".env").write_text(COMMENTED_OUT.sub("", ENV_EXAMPLE))
    assert set(dotenv_values(".env")) == set(Config.model_fields)
    assert read_config() == defaults


def test_the_env_example_tells_the_same_defaults_as_the_readme(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(COMMENTED_OUT.sub("", ENV_EXAMPLE))
    told = {name: default.strip("`") for name, default in documented_settings().items()}
    assert {name: value or "none" for name, value in dotenv_values(".env").items()} == told


# Routes and modules


def as_documented(rule: str) -> str:
    """A rule of the application as a document writes it: `/v1/models/{id}`."""
    path = re.sub(r"<[^>]+>", "{id}", rule)
    return f"/v1{path}" if path.startswith(API) else path


def test_the_readme_has_every_route_and_no_other() -> None:
    app = create_app(read_config())
    served = {
        f"{method} {as_documented(rule.rule)}"
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    documented = {route.strip("`") for route, *_ in rows(section(README, "Routes"))}
    assert {re.sub(r"\{\w+\}", "{id}", route) for route in documented} == served


def rooms() -> set[Path]:
    """The modules in the tree that ARCHITECTURE.md draws, as paths from the project."""
    found, folders = set(), list[str]()
    for line in section(ARCHITECTURE, "Rooms").splitlines():
        if entry := re.match(r"((?:  )*)(\w+(?:/|\.py))(?: |$)", line):
            del folders[len(entry[1]) // 2 :]
            if entry[2].endswith("/"):
                folders.append(entry[2])
            else:
                found.add(Path(*folders, entry[2]))
    return found


def test_every_module_has_its_place_among_the_rooms() -> None:
    modules = {path.relative_to(PROJECT) for path in (PROJECT / "tts_service").rglob("*.py")}
    assert {path for path in modules if path.name != "__init__.py"} <= rooms()


def test_every_room_is_there() -> None:
    assert not {path for path in rooms() if not (PROJECT / path).is_file()}


# Links and examples


def targets(document: Path) -> list[str]:
    """Where the links of a document lead that lead nowhere on the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    return [target for target in found if not target.startswith(("http:", "https:", "mailto:"))]


def anchors(document: Path) -> set[str]:
    """What GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in targets(document):
        path, _, anchor = target.partition("#")
        there = document.parent / path if path else document
        assert there.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{document.name} links to {target}"


def test_the_tour_stops_at_functions_that_are_where_it_says() -> None:
    tour = (PROJECT / "docs" / "tour.md").read_text()
    stops = re.findall(r"`([\w.]+)`\s+in\s+\[[\w.]+\]\(\.\./([\w./]+)\)", tour)
    assert len(stops) > 20
    for name, path in stops:
        code = (PROJECT / path).read_text()
        *owner, function = name.split(".")
        assert not owner or f"class {owner[0]}" in code, name
        assert re.search(rf"^ *(?:def|class) {function}\b", code, re.MULTILINE), name


@pytest.fixture
def shown(gateway: StartGateway, backend: GradioApp) -> Gateway:
    """The service as the README shows it, but for its port and its backend."""
    return gateway(GRADIO_URL=backend.url)


def run_curl(line: str, shown: Gateway, folder: Path) -> None:
    command = shlex.split(line.replace("http://127.0.0.1:8000", shown.url).replace("\\\n", ""))
    subprocess.run([*command, "--silent", "--fail"], cwd=folder, check=True, timeout=30)


def test_the_readmes_curl_line_brings_speech(shown: Gateway, tmp_path: Path) -> None:
    _, line = blocks(section(README, "Try it"), "sh")
    run_curl(line, shown, tmp_path)
    with wave.open(str(tmp_path / "hello.wav")) as hello:
        assert hello.getnframes() / hello.getframerate() > 0.5


def test_the_readmes_curl_lines_add_and_remove_a_voice(shown: Gateway, tmp_path: Path) -> None:
    (line,) = blocks(section(README, "Your own voices"), "sh")
    write_mp3(tmp_path / "recording.m4a", tone(220, 3))
    run_curl(line, shown, tmp_path)
    assert shown.client.get("/v1/audio/voices/alice").status_code == 200
    (removal,) = re.findall(r"`(curl -X DELETE .+?)`", README)
    run_curl(removal, shown, tmp_path)
    assert shown.client.get("/v1/audio/voices/alice").status_code == 404


def test_the_readmes_sdk_example_brings_speech(shown: Gateway, tmp_path: Path) -> None:
    (example,) = blocks(README, "python")
    code = example.replace("http://127.0.0.1:8000", shown.url)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    for name in ("hello.mp3", "stream.mp3"):
        assert decode((tmp_path / name).read_bytes()).seconds > 0.3


def test_the_readmes_error_is_the_services_own(shown: Gateway) -> None:
    refused = shown.post({"input": "Hello.", "voice": "bob"})
    (example,) = blocks(section(README, "Errors"), "json")
    assert refused.json() == json.loads(example)


# The two READMEs

#: What a section has to have in both languages, whatever is said around it.
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
#: A default as the Chinese tables have it.
NO_DEFAULT = "无"


def headings(document: str) -> list[tuple[int, str]]:
    """Level and title of each heading, in order."""
    found = re.findall(r"^(#+) (.+)$", BLOCK.sub("", document), re.MULTILINE)
    return [(len(marks), title) for marks, title in found]


def parts(document: str) -> list[str]:
    """What stands below each heading, in order, but for code blocks."""
    return re.split(r"^#+ .+$", BLOCK.sub("", document), flags=re.MULTILINE)[1:]


def without_comments(code: str) -> str:
    """A code block without what is said in it to people."""
    return re.sub(r"\s*# .*$", "", code, flags=re.MULTILINE)


def facts(text: str) -> dict[str, object]:
    """What a part of a README says that no language changes."""
    plain = re.sub(r"\]\([^)]*\)", "]", INLINE.sub("", text))
    return {
        "code": {code.replace("……", "…") for code in INLINE.findall(text)},
        "numbers": set(NUMBER.findall(plain)),
        "rows": [len(row) for row in rows(text)],
        "points": len(re.findall(r"^(?:- |\*\*)", text, re.MULTILINE)),
    }


def in_order(document: str) -> Iterator[str]:
    """Where each link leads; one within the document as the number of its heading."""
    titles = [
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(document)
    ]
    for target in re.findall(r"\]\(([^)\s]+)\)", document):
        if target not in ("README.md", "README.zh.md"):
            yield str(titles.index(target[1:])) if target.startswith("#") else target


def test_the_two_readmes_link_each_other_at_the_top() -> None:
    assert "[简体中文](README.zh.md)" in README.splitlines()[2]
    assert "[English](README.md)" in README_ZH.splitlines()[2]


def test_the_two_readmes_have_the_same_sections_in_order() -> None:
    ours, theirs = headings(README), headings(README_ZH)
    assert [level for level, _ in ours] == [level for level, _ in theirs]


def test_the_two_readmes_have_the_same_code_but_for_its_comments() -> None:
    english, chinese = (
        [(kind, without_comments(code)) for kind, code in BLOCK.findall(document)]
        for document in (README, README_ZH)
    )
    assert english == chinese


@pytest.mark.parametrize("at", range(len(headings(README))), ids=lambda at: headings(README)[at][1])
def test_the_two_readmes_say_the_same_in_each_section(at: int) -> None:
    assert facts(parts(README)[at]) == facts(parts(README_ZH)[at])


def test_the_two_readmes_lead_to_the_same_places() -> None:
    assert sorted(in_order(README)) == sorted(in_order(README_ZH))


@pytest.mark.parametrize(
    ("english", "chinese"), [("Settings", "设置"), ("Routes", "路由"), ("Errors", "错误")]
)
def test_the_two_readmes_have_the_same_tables(english: str, chinese: str) -> None:
    """Each setting with its default, each route, each status with its codes."""

    def keys(document: str, title: str) -> list[list[str]]:
        cells = (row[:-1] for row in rows(section(document, title)))
        return [
            [
                ", ".join(re.findall(r"`[^`]+`|\d+", cell)) or cell.replace(NO_DEFAULT, "none")
                for cell in row
            ]
            for row in cells
        ]

    assert keys(README, english) == keys(README_ZH, chinese)
