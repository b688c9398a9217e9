"""The least that gunicorn can answer a hit with, under its own gthread worker: the measure of what
this service adds, or saves.

    gunicorn benchmarks.bare:wsgi      WSGI alone
    gunicorn benchmarks.bare:flask     a Flask view

Both read the JSON of a speech request and answer as many bytes as the stand-in would speak, from a
dictionary: no checks, no keys, no ids, no log. Any GET is answered 200, for whoever waits for them.
"""

import json
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from flask import Flask, Response, request

from benchmarks.load import SPEECH
from benchmarks.texts import wav_bytes


@cache
def _sound(text: str) -> bytes:
    return bytes(wav_bytes(text))


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    body = b""
    if environ["REQUEST_METHOD"] == "POST":
        asked = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        body = _sound(json.loads(asked)["input"])
    headers = [("Content-Type", "audio/wav"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


flask = Flask(__name__)


@flask.post(SPEECH)
def _speech() -> Response:
    return Response(_sound(request.get_json()["input"]), content_type="audio/wav")


@flask.get("/")
def _ready() -> str:
    return ""
