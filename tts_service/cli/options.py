"""What the commands' options and arguments have in common."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from tts_service.audio import FASTEST, FORMATS, SLOWEST, Format
from tts_service.cli.session import Target
from tts_service.cli.texts import read_text
from tts_service.speech_request import SpeechRequest

Command = TypeVar("Command", bound=Callable[..., Any])

STDIO: Final = "-"
#: What a file's ending may say besides a format's own name.
_ALSO: Final = {"ogg": "opus", "oga": "opus"}


def _url(_context: click.Context, _parameter: click.Parameter, url: str | None) -> str | None:
    if url is not None and not url.lower().startswith(("http://", "https://")):
        raise click.BadParameter(f"{url!r} begins with neither http:// nor https://")
    return url


def service_options(command: Command) -> Command:
    """`--url` and `--key`, as one argument `target`."""
    options = (
        click.option(
            "--url",
            envvar="TTS_URL",
            callback=_url,
            help="A running service to ask, e.g. http://127.0.0.1:8000. Default: none; the work "
            "is done in this process, with the settings that are there.",
        ),
        click.option("--key", envvar="TTS_KEY", help="That service's API key."),
    )
    return _with(options, command)


def speech_options(command: Command) -> Command:
    """What a request to speak may say besides its text."""
    options = (
        click.option("--voice", "-v", help="Who speaks; `speech voices` lists them."),
        click.option(
            "--format",
            "-f",
            "form",
            type=click.Choice(list(FORMATS), case_sensitive=False),
            help="Default: what the output file's ending says.",
        ),
        click.option(
            "--speed",
            "-s",
            type=click.FloatRange(SLOWEST, FASTEST),
            default=1.0,
            show_default=True,
            help="How fast; the pitch stays.",
        ),
        click.option("--instructions", "-i", help="How to speak, if the backend can be told."),
        click.option(
            "--param",
            "-p",
            "params",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_params,
            help="A parameter of the backend; may be given several times.",
        ),
    )
    return _with(options, command)


def _with(options: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def target(url: str | None, key: str | None) -> Target:
    if key and not url:
        raise click.UsageError("--key is for a service at --url.")
    return Target(url, key)


def fields(
    voice: str | None, instructions: str | None, params: Mapping[str, str]
) -> dict[str, Any]:
    """The fields of a request; those that were not given are absent."""
    told = {"voice": voice, "instructions": instructions, **params}
    return {name: value for name, value in told.items() if value is not None}


def _params(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    params = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{each!r} is not NAME=VALUE")
        if name in SpeechRequest.model_fields:
            raise click.BadParameter(f"{name!r} is no parameter of the backend")
        params[name] = value
    return params


def format_of(output: str, form: str | None) -> Format | None:
    """The format that was asked for, or that the file's ending says; None for standard output
    without one. Raises UsageError."""
    if form is not None:
        return FORMATS[form]
    if output == STDIO:
        return None
    ending = Path(output).suffix.lower().removeprefix(".")
    found = FORMATS.get(_ALSO.get(ending, ending))
    if found is None:
        known = ", ".join(f".{name}" for name in (*FORMATS, *_ALSO))
        raise click.UsageError(
            f"The ending of {output!r} names no format: use one of {known}, or --format."
        )
    return found


def require_no_terminal(output: str) -> None:
    """Raises UsageError if sound would be written to a terminal."""
    if output == STDIO and sys.stdout.isatty():
        raise click.UsageError("Sound is nothing for a terminal: name a file with -o.")


def text_at(source: str, encoding: str | None = None) -> str:
    """The text in a file, or on standard input (`-`). Raises Failed, OSError."""
    if source == STDIO:
        return read_text(sys.stdin.buffer.read(), "standard input", encoding)
    return read_text(Path(source).read_bytes(), source, encoding)
