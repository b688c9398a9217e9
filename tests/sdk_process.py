"""An SDK in a process of its own, which tests ask to do things."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

KEY = "sk-right"
STOP_LIMIT = 5  # seconds


class Sdk:
    """A scenario script under one version of an SDK.

    It answers one line of JSON to each: `{"do": "speak", "fields", "how", "request_id", "path"}`
    with `size` and `sha256` of the sound, its `type`, and `events`, or `chunks` and when the
    `first` of them came (CLOCK_MONOTONIC, which all processes share);
    `{"do": "models"}` with `ids`; `{"do": "model", "id"}` with `object` and `owned_by`.
    What the SDK raises is `error`, with the `names` of the exception's class and its bases.
    `took` is in seconds.
    """

    def __init__(self, command: Sequence[str | Path], folder: Path, **environment: str) -> None:
        self.folder = folder
        self._log = folder / "sdk.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=_plain_environment() | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        self.version: str = self._read()["version"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def speak(self, url: str, how: str = "whole", **command: Any) -> dict[str, Any]:
        """Speech from the service at `url`, taken in one of the script's ways."""
        told = {"how": how, "request_id": "sdk", "path": str(self.folder / "speech"), **command}
        return self.ask(url, do="speak", **told)

    def ask(self, url: str, *, key: str = KEY, retries: int = 0, **command: Any) -> dict[str, Any]:
        """Have it do what the command says."""
        assert self._process.stdin
        told = {"url": url, "key": key, "retries": retries, **command}
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"the SDK's process has ended: {self._log.read_text()}"
        return dict(json.loads(line))


def _plain_environment() -> dict[str, str]:
    """Without settings for the SDK, and without proxies between it and this machine."""
    return {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
