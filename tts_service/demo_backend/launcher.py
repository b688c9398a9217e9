"""Starting and stopping the demo backend from the gateway, without importing any of it."""

import http.client
import importlib.util
import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from tts_service.demo_backend.keeper import command, stop

HOST: Final = "127.0.0.1"
#: The folder that holds the `tts_service` package.
HOME: Final = Path(__file__).parents[2]
POLL_SECONDS: Final = 0.1
#: The process cleans up within 2 s of SIGTERM, or 4 if its server is stuck; else it is itself.
STOP_SECONDS: Final = 5.0
TAIL_BYTES: Final = 4096
LINES_SHOWN: Final = 20
#: What the process prints once it serves.
READY_LINE: Final = "demo backend: {url}"


class DemoBackendFailed(RuntimeError):
    """The demo backend ended, or did not get ready; the message ends with its last output."""


def is_installed() -> bool:
    """Whether the `demo` extra is there. Imports nothing."""
    return all(importlib.util.find_spec(name) for name in ("gradio", "espeakng_loader"))


def start(limit_seconds: float = 60.0) -> "DemoBackend":
    """Start the demo backend on a free port and wait until it answers.

    Raises:
        DemoBackendFailed: it ended, or did not answer within the limit. Nothing is left running.
    """
    backend = DemoBackend()
    try:
        backend.wait_until_ready(limit_seconds)
    except BaseException:
        backend.stop()
        raise
    return backend


class DemoBackend:
    """The demo backend's process, which starts its server again when that crashes. It ends by
    itself soon after the process that started it.

    Only that process can stop it: a forked worker has a copy of this object, but not the child.
    """

    def __init__(self) -> None:
        """Start it on a free port; it gets ready later."""
        self._port = _free_port()
        self.url = f"http://{HOST}:{self._port}"
        # A file, because a pipe would need a thread to drain it, and gunicorn's master forks.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - stop() closes it
        self._process = subprocess.Popen(  # noqa: S603 - no argument is anybody's input
            [*command(HOST, self._port), "--keep-up"],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            # The terminal's Ctrl-C is for the gateway, which still needs it for its last requests.
            start_new_session=True,
        )
        self.pid = self._process.pid

    def wait_until_ready(self, limit_seconds: float) -> None:
        """Return once `/gen_single` can be called.

        Raises:
            DemoBackendFailed: it ended, or the limit passed.
        """
        deadline = time.monotonic() + limit_seconds
        while not (self._says_it_is_ready() and self._answers()):
            if self._process.poll() is not None:
                raise self._failure(f"ended with code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready within {limit_seconds:g} s")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End it: politely, then by force. A second call does nothing."""
        stop(self._process, STOP_SECONDS)
        self._output.close()

    def _says_it_is_ready(self) -> bool:
        """Gradio answers a moment earlier already, when starting can still fail."""
        return READY_LINE.format(url=self.url) in self._last_lines()

    def _answers(self) -> bool:
        """Whether a Gradio server with our function answers at the port."""
        # Not urllib or httpx: those would go through a proxy of the environment.
        connection = http.client.HTTPConnection(HOST, self._port, timeout=5)
        try:
            connection.request("GET", "/gradio_api/info")
            description = json.load(connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()
        return isinstance(description, dict) and "/gen_single" in description["named_endpoints"]

    def _failure(self, what: str) -> DemoBackendFailed:
        return DemoBackendFailed("\n".join([f"the demo backend {what}", *self._last_lines()]))

    def _last_lines(self) -> list[str]:
        # Not by seek and read: both processes write and read at one common position.
        descriptor = self._output.fileno()
        end = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, TAIL_BYTES, max(0, end - TAIL_BYTES))
        return tail.decode(errors="replace").splitlines()[-LINES_SHOWN:]


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    """This process's environment, with the package findable from any working directory."""
    path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
