"""`python -m tts_service.demo_backend`: it serves until SIGTERM, SIGINT or its parent's end."""

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tts_service.demo_backend.keeper import SIGNALS, WATCH_SECONDS, ignore_signals, keep_up
from tts_service.demo_backend.launcher import READY_LINE

if TYPE_CHECKING:
    import gradio as gr


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to end (0), or say in one line on stderr why that is impossible (1)."""
    arguments = _parse(argv)
    # Looked at before Gradio is imported: that takes seconds.
    if refusal := _refusal(arguments.host, arguments.port):
        print(refusal, file=sys.stderr)
        return 1
    for each in SIGNALS:
        signal.signal(each, signal.default_int_handler)
    try:
        if arguments.keep_up:
            return keep_up(arguments.host, arguments.port, arguments.parent)
        return _serve_until_told(arguments)
    except KeyboardInterrupt:
        # Struck before there was anything to end.
        return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tts_service.demo_backend",
        description="A Gradio app with IndexTTS's /gen_single, spoken by espeak-ng.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this parent is gone")
    parser.add_argument("--keep-up", action="store_true", help="start it again when it crashes")
    return parser.parse_args(argv)


def _refusal(host: str, port: int) -> str | None:
    """Why nobody can listen there, if so."""
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        return f"demo backend: cannot listen on {host}:{port}: {error}"
    return None


def _serve_until_told(arguments: argparse.Namespace) -> int:
    # A signal between the folder's making and the `try` would leave it behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    folder = Path(tempfile.mkdtemp(prefix="tts-demo-"))
    _prepare_environment(folder)
    server = Server(arguments.host, arguments.port, folder)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        server.start()
        return _watch(server, arguments.parent)
    except KeyboardInterrupt:
        return 0
    finally:
        ignore_signals()
        server.close()
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove it, though a server that still starts may be writing into it."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.01)


def _prepare_environment(folder: Path) -> None:
    """Keep Gradio's files in `folder`, and Gradio off the internet. Call it before the import."""
    # The gateway has settings that begin like Gradio's own, and passes on whatever else is set.
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        # Gradio calls itself when it starts, which a proxy in the environment would catch.
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
    tempfile.tempdir = str(folder)


class Server(threading.Thread):
    """Gradio, imported and served beside the main thread.

    The main thread does nothing but wait. A signal there can safely raise; in the middle of an
    import, or in a callback, the exception could get lost.
    """

    def __init__(self, host: str, port: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self._host, self._port, self._folder = host, port, folder
        self._app: gr.Blocks | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it ended without ever serving; it has said why on stderr."""
        return not self.is_alive() and self._app is None

    def run(self) -> None:
        try:
            self._app = self._launched()
        except ImportError as error:
            print(f"demo backend: {error}: install the extra `demo`", file=sys.stderr)
        except (OSError, RuntimeError) as error:
            print(f"demo backend: {error}", file=sys.stderr)
        else:
            print(READY_LINE.format(url=f"http://{self._host}:{self._port}"), flush=True)

    def _launched(self) -> "gr.Blocks":
        from tts_service.demo_backend import app
        from tts_service.demo_backend.espeak import Espeak
        from tts_service.demo_backend.outputs import Outputs

        outputs = self._folder / "outputs"
        outputs.mkdir()
        blocks = app.build(Espeak(), Outputs(outputs))
        app.launch(blocks, self._host, self._port)
        return blocks

    def close(self) -> None:
        """End the server, if it serves yet."""
        if self._app is not None:
            from tts_service.demo_backend import app

            app.close(self._app)


def _watch(server: Server, parent: int | None) -> int:
    """Wait until the parent is gone (0) or the server has failed (1)."""
    while parent is None or os.getppid() == parent:
        if server.has_failed:
            return 1
        time.sleep(WATCH_SECONDS)
    return 0


def _exit(code: int) -> None:
    """End at once: Python itself would wait for Gradio's threads, or crash a half-done import."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit(main())
