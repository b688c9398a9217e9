"""A real redis-server for a test alone."""

import atexit
import signal
import subprocess
from pathlib import Path

import redis

from servers.machine import free_port, require_program, wait_until

START_LIMIT = 10  # seconds


class RedisServer:
    """An empty one on 127.0.0.1, which writes nothing to disk but its log in `folder`.

    `client` is a client of it. Another `launch` after `stop` or `kill` starts it anew, empty, at
    the same port.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port)
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it and return at once."""
        program = require_program("redis-server")
        atexit.register(self.stop)
        with (self._folder / f"redis-{self.port}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(program, "--port", str(self.port), "--bind", "127.0.0.1"),
                    *("--save", "", "--dir", str(self._folder), *self._options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        """Return once it answers."""
        wait_until(self._answers, START_LIMIT)

    def stop(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """End it; a frozen one, too."""
        process, self._process = self._process, None
        if process is not None:
            self.client.close()
            process.send_signal(sig)
            process.wait(10)
            atexit.unregister(self.stop)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.launch()
        self.wait_ready()

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"redis-server ended with {self._process.returncode}")
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False
