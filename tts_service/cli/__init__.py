"""`flask --app wsgi speech …`: the service from the command line.

Each command asks the same requests over HTTP, either of the application in this process or of a
service that runs elsewhere (`--url`). Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped.
"""

from flask import Flask

from tts_service.cli.check import check
from tts_service.cli.commands import SpeechCommands
from tts_service.cli.read import read
from tts_service.cli.say import say
from tts_service.cli.session import EXTENSION, CreateApp
from tts_service.cli.voices import voices
from tts_service.cli.warm import warm

__all__ = ["register"]


def register(app: Flask, create_app: CreateApp) -> None:
    """Add the commands to the application's. `create_app` makes the one that they ask in this
    process: with their own settings for keys, limits and backends."""
    commands = SpeechCommands("speech", help="Speak, and see to the service.")
    for command in (say, read, warm, voices, check):
        commands.add_command(command)
    app.cli.add_command(commands)
    app.extensions[EXTENSION] = create_app
