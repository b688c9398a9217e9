"""Keeping the demo backend up: a small process starts its server again whenever that ends.

espeak-ng ends the whole process when it crashes, and the gateway, which forks, has no thread to
look after it.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

#: Seconds between two looks at whether the parent and the server are still there.
WATCH_SECONDS: Final = 0.25
#: Before a server that ended is started again.
PAUSE_SECONDS: Final = 0.5
#: The server cleans up within 2 s of SIGTERM; after this long it is stuck.
STOP_SECONDS: Final = 4.0
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def keep_up(host: str, port: int, parent: int | None) -> int:
    """Have it served until KeyboardInterrupt, or until the parent is gone: 0.

    A server that ends before it has ever served is not started again: its exit code; it has said
    why.
    """
    folder = Path(tempfile.mkdtemp(prefix="tts-demo-"))
    server = None
    has_served = False
    try:
        server = _start(host, port, folder)
        while parent is None or os.getppid() == parent:
            has_served = has_served or _answers(host, port)
            if (code := _end_of(server)) is None:
                continue
            if not has_served:
                return code
            print(f"demo backend: it ended ({code}) and is started again", flush=True)
            time.sleep(PAUSE_SECONDS)
            _empty(folder)
            server = _start(host, port, folder)
        return 0
    finally:
        ignore_signals()
        if server is not None:
            stop(server, STOP_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def ignore_signals() -> None:
    """A second Ctrl-C must not interrupt the cleaning up after the first."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def command(host: str, port: int) -> list[str]:
    """Serves there until this process is gone."""
    return [
        *(sys.executable, "-m", "tts_service.demo_backend"),
        *("--host", host, "--port", str(port), "--parent", str(os.getpid())),
    ]


def stop(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """End it: politely, then after so long by force. Does nothing to one that has ended."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _start(host: str, port: int, folder: Path) -> "subprocess.Popen[bytes]":
    """The server, with its files in `folder`; it ends soon after this process."""
    return subprocess.Popen(  # noqa: S603 - no argument is anybody's input
        command(host, port),
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
    )


def _end_of(server: "subprocess.Popen[bytes]") -> int | None:
    """Its exit code, if it ends within a moment."""
    try:
        return server.wait(WATCH_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=WATCH_SECONDS).close()
    except OSError:
        return False
    return True


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        shutil.rmtree(left, ignore_errors=True)
