"""`say`: a text in, its sound out."""

import os
from collections.abc import Mapping
from typing import BinaryIO

import click
from flask.cli import with_appcontext

from tts_service.audio import HEAD_SIZE, Format
from tts_service.cli.files import complete_or_not
from tts_service.cli.options import (
    STDIO,
    fields,
    format_of,
    require_no_terminal,
    service_options,
    speech_options,
    target,
    text_at,
)
from tts_service.cli.session import service


@click.command()
@click.argument("text", default=STDIO)
@click.option("--output", "-o", default=STDIO, help="The file; - or none: standard output.")
@speech_options
@service_options
@with_appcontext
def say(
    text: str,
    output: str,
    voice: str | None,
    form: str | None,
    speed: float,
    instructions: str | None,
    params: Mapping[str, str],
    url: str | None,
    key: str | None,
) -> None:
    """Speak TEXT, or what is on standard input if there is none (or `-`).

    On standard output the sound comes as soon as its first sentence is spoken.
    """
    wanted = target(url, key)
    require_no_terminal(output)
    chosen = format_of(output, form)
    asked = {
        **fields(voice, instructions, params),
        "input": text_at(STDIO) if text == STDIO else text,
        "speed": speed,
    }
    if chosen is not None:
        asked["response_format"] = chosen.name
    if output == STDIO:
        asked["stream_format"] = "audio"
    with (
        service(wanted) as found,
        found.stream(asked) as chunks,
        complete_or_not(output) as file,
    ):
        for chunk in chunks:
            file.write(chunk)
            file.flush()
        if chosen is not None:
            _complete_head(file, chosen)


def _complete_head(file: BinaryIO, form: Format) -> None:
    """Enter a WAV's length: a service that took too long for a whole answer could not tell it."""
    if form.container == "wav" and file.readable():
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = form.completed_head(file.read(HEAD_SIZE), size, 0)
        file.seek(0)
        file.write(head or b"")
