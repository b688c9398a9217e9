"""What both doors (gunicorn.conf.py, wsgi.py) do around the start of a server."""

import errno
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable

from flask import Flask

from tts_service.demo_backend import launcher
from tts_service.extensions import Services
from tts_service.self_test import Reply

logger = logging.getLogger(__name__)


class CannotStart(Exception):
    """The service cannot be started; the message tells the operator what to do."""


def require_free_port(host: str, port: int) -> None:
    """Raises CannotStart if somebody listens there already, or the address is not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotStart(
                f"Port {port} on {host} is taken. Stop what listens there, or choose another: "
                f"PORT={port + 1}"
            ) from None
        raise CannotStart(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from None


def start_demo_backend() -> "launcher.DemoBackend | None":
    """The embedded demo backend, for a service that was given none; its address becomes
    GRADIO_URL for this process and its children. None where it is not installed.

    Raises CannotStart.
    """
    if not launcher.is_installed():
        logger.warning(
            "GRADIO_URL is not set, and the demo backend is not installed "
            "(requirements-demo.txt): every request will be answered 503"
        )
        return None
    logger.warning("GRADIO_URL is not set: starting the embedded demo backend, a robot's voice")
    try:
        demo = launcher.start()
    except launcher.DemoBackendFailed as error:
        raise CannotStart(str(error)) from None
    os.environ["GRADIO_URL"] = demo.url
    return demo


def welcome(host: str, port: int, *, needs_key: bool) -> list[str]:
    """Where it listens, and a line that brings speech."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104 - compared only
    url = f"http://{shown}:{port}"
    key = ' -H "Authorization: Bearer $API_KEY"' if needs_key else ""
    return [
        f"Listening at {url}/v1; hear it with:",
        f"  curl {url}/v1/audio/speech{key} -H 'Content-Type: application/json' "
        """-d '{"input": "你好，世界。 Hello, world."}' -o hello.wav""",
    ]


def start_in_background(load: Callable[[], Flask | None]) -> threading.Thread:
    """Connect and run the self-test in a daemon thread, which can keep the process neither from
    serving nor from stopping.

    `load` waits for the application and gives it; None if it will not come.
    """
    thread = threading.Thread(target=lambda: _begin(load()), name="self-test", daemon=True)
    thread.start()
    return thread


def leave() -> None:
    """End this process, now that its requests are answered.

    Not by `sys.exit`: the interpreter would first join gradio_client's threads, and one that
    waits for a hanging backend would hold it up for half a minute.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _begin(app: Flask | None) -> None:
    if app is None:
        return
    found = app.extensions["tts_service"]
    assert isinstance(found, Services)
    found.dispatcher.start()
    found.self_test.run(lambda fields: _post(app, fields))


def _post(app: Flask, fields: dict[str, str]) -> Reply:
    """One request through the whole application."""
    keys: tuple[str, ...] = app.config["API_KEYS"]
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    client = app.test_client()
    with client.post("/v1/audio/speech", json=fields, headers=headers) as response:
        told = response.get_json(silent=True) or {}
        return Reply(
            response.status_code,
            response.headers.get("X-Cache"),
            len(response.data),
            told.get("error", {}).get("message"),
        )
