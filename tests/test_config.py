"""The settings: where they come from, what is refused, and how that is told."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import StartGateway
from servers import GradioApp

from config import Config, ConfigError, read_config, unknown_names

PROJECT = Path(__file__).parents[1]
BAD_START = {"CACHE_TTL": "soon", "GRADIO_AUTH": "swordfish"}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is set, whatever the environment and a developer's `.env` say."""
    monkeypatch.chdir(tmp_path)
    for name in Config.model_fields:
        monkeypatch.delenv(name, raising=False)


def read(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Config:
    """The settings with these in the environment."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return read_config()


def refusal(monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    """What is said about settings that cannot be understood."""
    with pytest.raises(ConfigError) as refused:
        read(monkeypatch, **settings)
    return str(refused.value)


# Where settings come from


def test_the_env_file_is_read() -> None:
    Path(".env").write_text("GRADIO_URL=http://tts:7860\nMAX_CACHE_SIZE=7\n")
    config = read_config()
    assert (config.GRADIO_URL, config.MAX_CACHE_SIZE) == (("http://tts:7860",), 7)


def test_the_environment_wins_over_the_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("MAX_CACHE_SIZE=7\nCACHE_TTL=60\n")
    config = read(monkeypatch, MAX_CACHE_SIZE="9")
    assert (config.MAX_CACHE_SIZE, config.CACHE_TTL) == (9, 60)


def test_an_empty_value_is_no_value_in_either_place(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("CACHE_TTL=\nMAX_CACHE_SIZE=7\n")
    config = read(monkeypatch, MAX_CACHE_SIZE="", GRADIO_URL="", SELF_TEST="")
    assert (config.CACHE_TTL, config.MAX_CACHE_SIZE) == (86400, 7)
    assert (config.GRADIO_URL, config.SELF_TEST) == ((), True)


def test_an_env_file_that_is_not_utf_8_is_told() -> None:
    Path(".env").write_bytes("SELF_TEST_INPUT=您好\n".encode("gb18030"))
    with pytest.raises(ConfigError, match=r"\.env is not UTF-8"):
        read_config()


def test_other_names_in_the_environment_concern_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, GRADIO_URLS="http://x") == read_config()
    assert unknown_names() == {}


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("GRADIO_ULR=http://tts:7860", "GRADIO_URL"),
        ("gradio_url=http://tts:7860", "GRADIO_URL"),
        ("MAX_CACHESIZE=5", "MAX_CACHE_SIZE"),
        ("FAVOURITE_COLOUR=blue", None),
    ],
)
def test_a_name_in_the_env_file_that_is_no_setting_is_noticed(line: str, meant: str | None) -> None:
    Path(".env").write_text(f"MAX_CACHE_SIZE=7\n{line}\n")
    assert unknown_names() == {line.partition("=")[0]: meant}


# What they mean


@pytest.mark.parametrize(
    ("name", "told", "meant"),
    [
        ("GRADIO_URL", "http://a:7860", ("http://a:7860",)),
        ("GRADIO_URL", " http://a:1 , https://b/tts ,", ("http://a:1", "https://b/tts")),
        ("GRADIO_URL", "owner/space", ("owner/space",)),
        ("GRADIO_PARAMS", '{"top_p": 0.7, "do_sample": false}', {"top_p": 0.7, "do_sample": False}),
        ("GRADIO_AUTH", "me:pass:word", ("me", "pass:word")),
        ("MODEL_PROMPT_MAP", '{"小明": "a/b.wav"}', {"小明": Path("a/b.wav")}),
        ("API_KEYS", "one, two,,", ("one", "two")),
        ("CORS_ORIGINS", "*", ("*",)),
        ("DEFAULT_RESPONSE_FORMAT", "MP3", "mp3"),
        ("LOG_LEVEL", "WARNING", "warning"),
        ("SELF_TEST", "0", False),
        ("SELF_TEST", "off", False),
        ("GRADIO_CALL_DELAY", "0.5", 0.5),
        ("MAX_CACHE_SIZE", "0", 0),
        ("STREAM_AFTER", "0", 0),
    ],
)
def test_a_value_is_understood(
    name: str, told: str, meant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert getattr(read(monkeypatch, **{name: told}), name) == meant


def test_json_needs_no_quotes_in_the_env_file() -> None:
    Path(".env").write_text('MODEL_PROMPT_MAP={"a": "x.wav", "b": "y.wav"}\n')
    recordings = read_config().MODEL_PROMPT_MAP
    assert recordings == {"a": Path("x.wav"), "b": Path("y.wav")}


def test_without_a_port_only_this_machine_is_served() -> None:
    assert (read_config().HOST, read_config().PORT) == ("127.0.0.1", 8000)


def test_a_port_from_a_paas_opens_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    config = read(monkeypatch, PORT="5000")
    assert (config.HOST, config.PORT) == ("0.0.0.0", 5000)


def test_a_host_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, PORT="5000", HOST="127.0.0.1").HOST == "127.0.0.1"


def test_there_are_threads_left_over_for_what_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert read_config().THREADS == 80
    assert read(monkeypatch, MAX_PENDING="4").THREADS == 20
    assert read(monkeypatch, THREADS="3").THREADS == 3


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_config().PORT = 1


# What is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GRADIO_URL", "localhost:7860"),
        ("GRADIO_URL", "http://a:7860,ftp://b"),
        ("GRADIO_URL", "/gen_single"),
        ("GRADIO_URL", "http://"),
        ("GRADIO_PARAMS", "top_p=0.7"),
        ("GRADIO_PARAMS", "[0.7]"),
        ("GRADIO_AUTH", "nobody"),
        ("GRADIO_AUTH", ":password"),
        ("GRADIO_CONCURRENCY", "0"),
        ("GRADIO_CONNECT_ATTEMPTS", "0"),
        ("GRADIO_CONNECT_DELAY", "-1"),
        ("GRADIO_CALL_ATTEMPTS", "many"),
        ("GRADIO_CALL_DELAY", "nan"),
        ("SYNTH_TIMEOUT", "0"),
        ("SYNTH_TIMEOUT", "inf"),
        ("STREAM_AFTER", "-0.1"),
        ("MODEL_PROMPT_MAP", '{"a": 1}'),
        ("MODEL_PROMPT_MAP", "a=x.wav"),
        ("DEFAULT_RESPONSE_FORMAT", "ogg"),
        ("MAX_INPUT_CHARS", "0"),
        ("MAX_INPUT_CHARS", "4096.5"),
        ("SEGMENT_CHARS", "9"),
        ("SEGMENT_PAUSE_MS", "-1"),
        ("SEGMENT_PAUSE_MS", "10001"),
        ("MAX_CACHE_SIZE", "-1"),
        ("MAX_CACHE_SIZE", "1e3"),
        ("MAX_CACHE_BYTES", "256MB"),
        ("CACHE_TTL", "0"),
        ("MAX_PENDING", "0"),
        ("MAX_BODY_BYTES", "0"),
        ("MAX_VOICE_BYTES", "0"),
        ("SELF_TEST", "maybe"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("WEB_CONCURRENCY", "0"),
        ("THREADS", "0"),
    ],
)
def test_a_value_that_cannot_be_understood_is_refused_and_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = refusal(monkeypatch, **{name: value})
    assert told.startswith((f"{name}=", f"{name}["))
    assert "\n" not in told


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("GRADIO_URL", "http://a,b:1", "'b:1' is neither an http(s) URL nor a Space (owner/name)"),
        ("GRADIO_PARAMS", "{", "not a JSON object"),
        ("MAX_CACHE_SIZE", "x", "Input should be a valid integer"),
        ("DEFAULT_RESPONSE_FORMAT", "ogg", "'wav', 'mp3', 'opus', 'aac', 'flac' or 'pcm'"),
    ],
)
def test_the_value_is_told_with_what_is_wrong_about_it(
    name: str, value: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = refusal(monkeypatch, **{name: value})
    assert told.startswith(f"{name}='{value}': ")
    assert complaint in told


@pytest.mark.parametrize("url", ["http://:s3cret@127.0.0.1", "127.0.0.1:6379", "redis:s3cret"])
def test_what_is_no_address_of_a_redis_is_refused_and_not_shown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = refusal(monkeypatch, REDIS_URL=url)
    assert told == "REDIS_URL=…: expected redis://…, rediss://… or unix://…"


def test_all_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = refusal(monkeypatch, PORT="x", MAX_PENDING="x", LOG_LEVEL="x", CACHE_TTL="60")
    names = [line.partition("=")[0] for line in told.splitlines()]
    assert sorted(names) == ["LOG_LEVEL", "MAX_PENDING", "PORT"]


def test_a_wrong_value_in_the_env_file_is_named_as_well() -> None:
    Path(".env").write_text("CACHE_TTL=soon\n")
    with pytest.raises(ConfigError, match="CACHE_TTL='soon'"):
        read_config()


def test_a_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, GRADIO_AUTH="swordfish") == "GRADIO_AUTH=…: expected user:password"


# Real processes


@pytest.mark.parametrize(
    "door", [["wsgi.py"], ["-m", "gunicorn", "wsgi:app"]], ids=["python", "gunicorn"]
)
def test_a_start_with_bad_settings_ends_with_their_names_and_no_traceback(door: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, *door],
        cwd=PROJECT,
        env={**os.environ, **BAD_START},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert "These settings cannot be understood" in ended.stderr
    assert all(f"{name}=" in ended.stderr for name in BAD_START)
    assert "swordfish" not in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The project in a folder of its own, which can have its own `.env`."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("config.py", "wsgi.py", "gunicorn.conf.py", "Procfile", "tts_service"):
        (folder / name).symlink_to(PROJECT / name)
    return folder


def test_the_env_file_names_the_backend_and_its_misspellings_are_warned_of(
    gateway: StartGateway, backend: GradioApp, checkout: Path
) -> None:
    (checkout / ".env").write_text(f"GRADIO_URL={backend.url}\nMAX_CACHESIZE=5\n")
    service = gateway(project=checkout)
    assert service.post({"input": "Hello."}).status_code == 200
    assert [call["arguments"]["text"] for call in backend.calls] == ["Hello."]
    assert (
        ".env: MAX_CACHESIZE is no setting of this service; did you mean MAX_CACHE_SIZE?"
        in service.log
    )
