"""`check`: what is wrong, and what to do about it."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import click
import httpx
import redis
from flask import current_app
from flask.cli import with_appcontext

from tts_service.audio import UndecodableAudio, decode
from tts_service.cli.commands import Failed, one_line
from tts_service.cli.crew import Crew
from tts_service.cli.options import service_options, target
from tts_service.cli.service import Refused, Service
from tts_service.cli.session import Target, demo_backend, in_process, service, silence
from tts_service.extensions import services
from tts_service.logs import without_credentials
from tts_service.shared_cache import PREFIX
from tts_service.start import CannotStart, require_free_port

State = Literal["ok", "note", "wrong"]

_COLOURS: Final[Mapping[State, str]] = {"ok": "green", "note": "yellow", "wrong": "red"}
_LONGEST_CALL: Final = 60.0  # seconds for a backend's sentence
_LONGEST_RECORDING: Final = 60.0  # seconds of it that are decoded
_SHORTEST_RECORDING: Final = 1.0
_REDIS_SECONDS: Final = 3.0
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """How one thing is; for what is wrong, `told` says what to do."""

    state: State
    subject: str
    told: str


@click.command()
@service_options
@with_appcontext
def check(url: str | None, key: str | None) -> None:
    """Test settings, voices, backends, Redis and port, or a running service (--url).

    Each backend is asked for a sentence. The exit code is 1 if anything is wrong.
    """
    wanted = target(url, key)
    with silence():
        wrong = sum(_is_wrong(f) for f in (_of_the_service(wanted) if url else _of_this_machine()))
    if wrong:
        raise Failed(f"{wrong} {'things are' if wrong > 1 else 'thing is'} wrong.")
    click.echo("Everything is in order.")


def _is_wrong(finding: Finding) -> bool:
    """Show the finding, as soon as it is there, and say whether it is a bad one."""
    state = click.style(f"{finding.state:<6}", fg=_COLOURS[finding.state])
    click.echo(f"{state}{finding.subject}: {one_line(finding.told)}")
    return finding.state == "wrong"


def _of_this_machine() -> Iterator[Finding]:
    yield from _settings()
    yield from _folder()
    voice: str | None = None
    for finding in _recordings():
        if finding.state != "wrong" and voice is None:
            voice = finding.subject.removeprefix("voice ")
        yield finding
    yield _default()
    yield from _backends(voice)
    yield from _redis()
    yield _port()


# Settings


def _settings() -> Iterator[Finding]:
    config = current_app.config
    for name, meant in config.get("UNKNOWN_NAMES", {}).items():
        hint = f"did you mean {meant}?" if meant else "remove it."
        yield Finding("wrong", name, f"no setting of this service, in .env; {hint}")
    given = config.get("GIVEN", {})
    for name, value in given.items():
        yield Finding("ok", name, value)
    yield Finding("ok", "settings", f"{len(given)} given, all others have their defaults")
    if config["WEB_CONCURRENCY"] > 1 and not config["REDIS_URL"]:
        yield Finding(
            "note",
            "WEB_CONCURRENCY",
            "without REDIS_URL each worker has a cache of its own, and speaks the same for itself",
        )
    if not config["API_KEYS"] and config["HOST"] not in _LOOPBACK:
        yield Finding("note", "API_KEYS", f"none: whoever reaches {config['HOST']} may speak")


# Voices


def _folder() -> Iterator[Finding]:
    folder = Path(current_app.config["PROMPTS_DIR"])
    if not folder.is_dir():
        yield Finding("wrong", "PROMPTS_DIR", f"there is no folder {folder}: make it")
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield Finding("wrong", "PROMPTS_DIR", f"{folder} cannot be read: see to its rights")
    elif not os.access(folder, os.W_OK):
        yield Finding(
            "note", "PROMPTS_DIR", f"{folder} cannot be written to: no voice can be added"
        )
    else:
        yield Finding("ok", "PROMPTS_DIR", str(folder))


def _recordings() -> Iterator[Finding]:
    voices = services().voices
    for name in voices.names():
        try:
            voice = voices.find(name)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            yield Finding(
                "wrong", f"voice {name}", f"{error} Restore the file, or remove the voice."
            )
        else:
            if voice is not None:
                yield _recording(f"voice {name}", voice.recording)


def _default() -> Finding:
    return _recording(
        "DEFAULT_PROMPT_AUDIO_PATH", Path(current_app.config["DEFAULT_PROMPT_AUDIO_PATH"])
    )


def _recording(subject: str, path: Path) -> Finding:
    try:
        audio = decode(path.read_bytes(), longest=_LONGEST_RECORDING)
    except OSError as error:
        return Finding("wrong", subject, f"{path}: {error.strerror}; put a recording there")
    except UndecodableAudio as error:
        return Finding("wrong", subject, f"{path}: {error}; replace it")
    if not any(audio.pcm):
        return Finding("wrong", subject, f"{path}: it is silent; replace it")
    if audio.seconds < _SHORTEST_RECORDING:
        return Finding(
            "note", subject, f"{path}: {audio.seconds:.1f} s are too short to sound like"
        )
    return Finding("ok", subject, f"{path}, {audio.seconds:.1f} s at {audio.rate} Hz")


# Backends


def _backends(voice: str | None) -> Iterator[Finding]:
    urls: tuple[str, ...] = current_app.config["GRADIO_URL"]
    if voice is None:
        yield Finding("wrong", "GRADIO_URL", "not tested: there is no voice to speak with")
        return
    if urls:
        yield from _each(urls, voice)
        return
    try:
        with demo_backend() as urls:
            yield Finding("note", "GRADIO_URL", "not set: the demo backend speaks, a robot's voice")
            yield from _each(urls, voice)
    except Failed as error:
        yield Finding("wrong", "GRADIO_URL", error.message)


def _each(urls: tuple[str, ...], voice: str) -> Iterator[Finding]:
    app = current_app._get_current_object()  # type: ignore[attr-defined] # Werkzeug's own name

    def test(url: str) -> tuple[str | None, Finding]:
        with app.app_context():
            return _backend(url, voice)

    crew = Crew(test, urls, len(urls))
    found: dict[str, tuple[str | None, Finding]] = {}
    while (outcome := crew.next()) is not None:
        if isinstance(outcome.result, Exception):
            raise outcome.result
        found[outcome.job] = outcome.result
    models = [found[url][0] for url in urls if found[url][0]]
    for url in urls:
        model, finding = found[url]
        if model and model != models[0]:
            finding = Finding(
                "wrong",
                finding.subject,
                "serves another model than the first backend, and would be kept out: remove it",
            )
        yield finding


def _backend(url: str, voice: str) -> tuple[str | None, Finding]:
    """Which model it serves, and how it is: asked for a sentence, by itself."""
    limit = min(current_app.config["SYNTH_TIMEOUT"], _LONGEST_CALL)
    subject = f"backend {without_credentials(url)}"
    began = time.monotonic()
    with in_process(
        GRADIO_URL=(url,),
        GRADIO_CONNECT_ATTEMPTS=1,
        GRADIO_CALL_ATTEMPTS=1,
        SYNTH_TIMEOUT=limit,
        MAX_CACHE_SIZE=0,
        REDIS_URL=None,
    ) as found:
        try:
            seconds = _spoken(found, voice)
        except Failed as error:
            return None, Finding("wrong", subject, f"{_ended(error)} Is it running, and reachable?")
        model = found.get("/health")["backends"][0]["identity"]
    took = time.monotonic() - began
    return model, Finding("ok", subject, f"spoke {seconds:.1f} s of sound in {took:.1f} s")


def _ended(error: Failed) -> str:
    return f"{error.message.rstrip('.')}."


def _spoken(found: Service, voice: str | None) -> float:
    """Seconds of sound. Raises Failed."""
    config = current_app.config
    asked = {"input": config["SELF_TEST_INPUT"], "response_format": "wav"}
    answer = found.speak({**asked, "voice": voice} if voice else asked)
    try:
        return decode(answer.body).seconds
    except UndecodableAudio as error:
        raise Failed(f"What it spoke cannot be used: {error}.") from None


# Redis and port


def _redis() -> Iterator[Finding]:
    url = current_app.config["REDIS_URL"]
    if not url:
        return
    subject, key = f"redis {without_credentials(url)}", f"{PREFIX}check:{os.getpid()}"
    try:
        with redis.Redis.from_url(
            url, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS
        ) as client:
            began = time.monotonic()
            client.set(key, b"1", ex=5)
            is_there = client.get(key) == b"1"
            client.delete(key)
            took = (time.monotonic() - began) / 3 * 1000
    except (redis.RedisError, OSError, ValueError) as error:
        yield Finding("wrong", subject, f"{one_line(error)}; start it, or correct REDIS_URL")
        return
    if is_there:
        yield Finding("ok", subject, f"written and read, {took:.1f} ms each")
    else:
        yield Finding("wrong", subject, "what was written is not there: is it out of memory?")


def _port() -> Finding:
    host, port = current_app.config["HOST"], current_app.config["PORT"]
    subject = f"port {port}"
    try:
        require_free_port(host, port)
    except CannotStart as error:
        if _is_ours(host, port):
            return Finding("ok", subject, f"the service is running there, on {host}")
        return Finding("wrong", subject, str(error))
    return Finding("ok", subject, f"free on {host}")


def _is_ours(host: str, port: int) -> bool:
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104 - compared only
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/health/live"
    try:
        answer = httpx.get(url, timeout=_REDIS_SECONDS, trust_env=False)
        return bool(answer.json() == {"status": "live"})
    except (httpx.HTTPError, ValueError):
        return False


# A running service


def _of_the_service(wanted: Target) -> Iterator[Finding]:
    with service(wanted) as found:
        try:
            found.get("/health/live")
        except Failed as error:
            yield Finding("wrong", "service", f"{_ended(error)} Is the address right?")
            return
        yield Finding("ok", "service", f"{wanted.url} answers")
        speech = _speech(found)  # first, for it has a new service connect to its backends
        yield from _told_by(found.get("/health"))
        names = [voice["id"] for voice in found.get("/v1/audio/voices").get("voices", [])]
        state: State = "ok" if names else "note"
        yield Finding(state, "voices", ", ".join(names) or "none: put recordings into PROMPTS_DIR")
        yield speech


def _told_by(health: Mapping[str, Any]) -> Iterator[Finding]:
    for backend in health.get("backends", []):
        is_well = backend["state"] == "ready"
        told = backend["state"] if is_well else f"{backend['state']}: {backend['last_error']}"
        yield Finding("ok" if is_well else "wrong", f"backend {backend['url']}", told)
    if shared := health.get("redis"):
        is_well = shared["state"] == "up"
        told = "up" if is_well else f"{shared['state']}: {shared['last_error']}; start it"
        yield Finding("ok" if is_well else "wrong", f"redis {shared['url']}", told)
    test = health.get("self_test") or {}
    if test.get("state") == "failed":
        yield Finding("wrong", "self-test", str(test.get("error")))


def _speech(found: Service) -> Finding:
    try:
        return Finding("ok", "speech", f"spoke {_spoken(found, None):.1f} s of sound")
    except Refused as error:
        hint = " Give one with --key." if error.status == 401 else ""
        return Finding("wrong", "speech", f"{error.message}{hint}")
    except Failed as error:
        return Finding("wrong", "speech", error.message)
