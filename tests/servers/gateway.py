"""Starts the service as the Procfile says, and looks at its processes from outside."""

import atexit
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx

from servers.machine import free_port, wait_until
from servers.sound import write_prompts

PROJECT = Path(__file__).parents[2]
START_LIMIT = 30  # seconds
STOP_LIMIT = 40  # seconds; gunicorn's own grace is 30
INHERITED = ("LANG", "LC_ALL")
DEATH = "Exception in worker process"  # gunicorn's words


class Gateway:
    """The service on 127.0.0.1 with `settings` as its environment, and no other.

    `folder` receives its log, what it leaves in its temp folder (`temp`), and two recordings in
    `prompts` if that is not there yet. `client` is an httpx client of it.
    """

    client: httpx.Client

    def __init__(self, folder: Path, *, project: Path = PROJECT, **settings: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.temp = folder / f"temp-{self.port}"
        self._log = folder / f"gateway-{self.port}.log"
        self._project = project
        self._process: subprocess.Popen[bytes] | None = None
        prompts = folder / "prompts"
        if not prompts.exists():
            write_prompts(prompts)
        self._settings = {
            "HOST": "127.0.0.1",
            "PORT": self.port,
            "SELF_TEST": 0,
            "PROMPTS_DIR": prompts,
            "DEFAULT_PROMPT_AUDIO_PATH": prompts / "default.wav",
            "TMPDIR": self.temp,
            "HOME": folder,
        } | settings

    @classmethod
    def start(cls, folder: Path, **settings: Any) -> Self:
        """A gateway that is live."""
        gateway = cls(folder, **settings)
        gateway.launch()
        gateway.wait_ready()
        return gateway

    def launch(self) -> None:
        """Start the processes and return at once."""
        atexit.register(self.stop)
        self.temp.mkdir(exist_ok=True)
        # Without `verify=False` a client spends 30 ms on certificates that plain HTTP never needs.
        self.client = httpx.Client(base_url=self.url, verify=False, timeout=60)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", f"exec {self._command()}"],
                cwd=self._project,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return once `/health/live` says so; RuntimeError with the log if it ends instead."""
        wait_until(self._is_live, START_LIMIT)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int | None:
        """Ask it to end, make sure that it does, and return its exit code.

        AssertionError if an exception ended a worker: gunicorn starts another, so a test would not
        notice.
        """
        if self._process is None:
            return None
        atexit.unregister(self.stop)
        self.client.close()
        if self._process.poll() is None:
            self._process.send_signal(sig)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_LIMIT)
        self._kill_group()
        code = self._process.wait()
        assert DEATH not in self.log, self.log
        return code

    def post(self, json: object, **headers: str) -> httpx.Response:
        """Ask for speech; `X_Request_ID="1"` becomes the header `X-Request-ID: 1`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/v1/audio/speech", json=json, headers=named)

    def health(self) -> dict[str, Any]:
        """The body of `/health`."""
        return dict(self.client.get("/health").raise_for_status().json())

    def is_idle(self) -> bool:
        """Whether nobody waits, and nothing is being spoken."""
        health = self.health()
        is_speaking = any(backend["under_way"] for backend in health["backends"])
        return not is_speaking and not any(health["queue"].values())

    @property
    def log(self) -> str:
        """What its processes have printed."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Of gunicorn's arbiter."""
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        """The pids of gunicorn's workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def threads(self) -> int:
        """How many threads all workers have."""
        return self._entries("task")

    def open_files(self) -> int:
        """How many file descriptors all workers have."""
        return self._entries("fd")

    def _entries(self, folder: str) -> int:
        return sum(len([*Path(f"/proc/{pid}/{folder}").iterdir()]) for pid in self.workers())

    def _command(self) -> str:
        for line in (self._project / "Procfile").read_text().splitlines():
            if line.startswith("web:"):
                return line.removeprefix("web:").strip()
        raise RuntimeError("the Procfile has no line for web")

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in INHERITED or name.startswith("COVERAGE_")
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = {name: str(value) for name, value in self._settings.items()}
        return {**inherited, "PATH": path, **settings}

    def _is_live(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"the gateway ended with {code}: {self.log}")
        try:
            return self.client.get("/health/live", timeout=2).is_success
        except httpx.TransportError:
            return False

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
