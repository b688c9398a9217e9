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
from dotenv import dotenv_values
from servers import Gateway, GradioApp
from servers.sound import tone, write_mp3

from config import Config, read_config
from tts_service import create_app
from tts_service.audio import decode

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
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


def section(document: str, title: str) -> str:
    """What stands below the heading `## title`."""
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {title!r}"
    return found[1]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each table row; headings and the lines below them are left out."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            yield cells


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


def examples(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def shown(gateway: StartGateway, backend: GradioApp) -> Gateway:
    """The service as the README shows it, but for its port and its backend."""
    return gateway(GRADIO_URL=backend.url)


def run_curl(line: str, shown: Gateway, folder: Path) -> None:
    command = shlex.split(line.replace("http://127.0.0.1:8000", shown.url).replace("\\\n", ""))
    subprocess.run([*command, "--silent", "--fail"], cwd=folder, check=True, timeout=30)


def test_the_readmes_curl_line_brings_speech(shown: Gateway, tmp_path: Path) -> None:
    line, _ = (example for example in examples("sh") if example.startswith("curl "))
    run_curl(line, shown, tmp_path)
    with wave.open(str(tmp_path / "hello.wav")) as hello:
        assert hello.getnframes() / hello.getframerate() > 0.5


def test_the_readmes_curl_lines_add_and_remove_a_voice(shown: Gateway, tmp_path: Path) -> None:
    _, line = (example for example in examples("sh") if example.startswith("curl "))
    write_mp3(tmp_path / "recording.m4a", tone(220, 3))
    run_curl(line, shown, tmp_path)
    assert shown.client.get("/v1/audio/voices/alice").status_code == 200
    (removal,) = re.findall(r"`(curl -X DELETE .+?)`", README)
    run_curl(removal, shown, tmp_path)
    assert shown.client.get("/v1/audio/voices/alice").status_code == 404


def test_the_readmes_sdk_example_brings_speech(shown: Gateway, tmp_path: Path) -> None:
    (example,) = examples("python")
    code = example.replace("http://127.0.0.1:8000", shown.url)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    for name in ("hello.mp3", "stream.mp3"):
        assert decode((tmp_path / name).read_bytes()).seconds > 0.3


def test_the_readmes_error_is_the_services_own(shown: Gateway) -> None:
    refused = shown.post({"input": "Hello.", "voice": "bob"})
    (example,) = examples("json")
    assert refused.json() == json.loads(example)
