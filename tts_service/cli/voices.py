"""`voices`: who can speak."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from unicodedata import east_asian_width

import click
from flask.cli import with_appcontext

from tts_service.cli.options import service_options, target
from tts_service.cli.progress import duration
from tts_service.cli.session import service

_TITLES: Final = ("VOICE", "NAME", "LENGTH", "SINCE")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@service_options
@with_appcontext
def voices(as_json: bool, url: str | None, key: str | None) -> None:
    """List the voices."""
    with service(target(url, key), speaks=False) as found:
        told = found.get("/v1/audio/voices").get("voices", [])
    if as_json:
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))
    elif told:
        _show([_row(voice) for voice in told])
    else:
        click.echo("There are no voices.", err=True)


def _row(voice: Mapping[str, Any]) -> dict[str, str]:
    """What is known of a voice, for people."""
    row = {"VOICE": str(voice["id"])}
    if voice.get("name") not in (None, voice["id"]):
        row["NAME"] = str(voice["name"])
    if "duration" in voice:
        row["LENGTH"] = duration(voice["duration"])
    if "created_at" in voice:
        row["SINCE"] = datetime.fromtimestamp(voice["created_at"]).astimezone().strftime("%Y-%m-%d")
    return row


def _show(rows: list[dict[str, str]]) -> None:
    titles = [title for title in _TITLES if any(title in row for row in rows)]
    lines = [titles, *([row.get(title, "") for title in titles] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [_padded(cell, width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - _width(cell))


def _width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)
