"""The group of commands: what they have in common from the start to the exit code."""

import errno
import logging
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click
from flask.cli import AppGroup

STOPPED = 130  # as shells have it for a command that was ended by Ctrl-C


class Failed(click.ClickException):
    """A command cannot do what it should; the message is for its user, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Stopped(KeyboardInterrupt):
    """Ctrl-C; the message tells how to go on."""


class SpeechCommands(AppGroup):
    """Turns whatever a command ends by into a line on standard error and an exit code."""

    def invoke(self, ctx: click.Context) -> NoReturn:
        _quieten()
        _end(self._exit_code(ctx))

    def _exit_code(self, ctx: click.Context) -> int:
        try:
            super().invoke(ctx)
        except click.exceptions.Exit as ended:
            return ended.exit_code
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except KeyboardInterrupt as stop:
            click.echo(str(stop) or "Stopped.", err=True)
            return STOPPED
        except OSError as error:
            if error.errno != errno.EPIPE:  # whoever read our output has read enough
                click.echo(f"Error: {_told(error)}", err=True)
            return 1
        return 0


def _quieten() -> None:
    """The service's lines about each request are not what a command's user wants to read."""
    service = logging.getLogger("tts_service")
    if service.level == logging.INFO:
        service.setLevel(logging.WARNING)


def _told(error: OSError) -> str:
    about = f"{error.filename}: " if error.filename else ""
    return f"{about}{error.strerror or error}"


def _end(code: int) -> NoReturn:
    """End the command, and its process where that is all there is in it.

    Not by `sys.exit` there: the interpreter would join gradio_client's threads first, and one that
    waits for a hanging backend would hold it up for half a minute.
    """
    if os.environ.get("FLASK_RUN_FROM_CLI") != "true":
        raise click.exceptions.Exit(code)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def one_line(value: Any) -> str:
    """A value as it fits into a line."""
    return " ".join(str(value).split())
