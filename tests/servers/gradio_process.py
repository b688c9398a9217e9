"""Starts Gradio apps in processes of their own, and ends them."""

import atexit
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx

from servers.journal import Behaviour
from servers.machine import free_port, wait_until
from servers.options import Options

START_LIMIT = 60  # seconds; the first one of a test run waits for the import of gradio


def _fork_server() -> multiprocessing.context.ForkServerContext:
    """Where apps are forked from: importing gradio costs 3 s, forking one that has 20 ms."""
    context = multiprocessing.get_context("forkserver")
    # What this package imports, not itself: the fork server would not find it.
    context.set_forkserver_preload(["av", "gradio", "httpx", "numpy", "pytest"])
    return context


def _run(options: Options) -> None:
    """The life of the forked process."""
    os.setsid()
    log = os.open(options.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = str(options.folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Where Gradio finds ffmpeg it repairs the files it is given: no test may depend on that.
    os.environ["PATH"] = ""
    threading.Thread(target=_end_with_parent, daemon=True).start()

    # Only here: the process that runs the tests shall not import gradio.
    from servers.gradio_app import serve

    serve(options)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class GradioApp:
    """A Gradio server on 127.0.0.1 whose function is that of `signature`.

    Further options are the fields of `Options`; any field of `Behaviour` is how it behaves from
    the start and after each reset.
    """

    def __init__(self, signature: str = "indextts-1.0", **options: Any) -> None:
        behaviour = {
            name: options.pop(name) for name in Behaviour.__dataclass_fields__ if name in options
        }
        self._options = Options(
            signature,
            port=free_port(),
            control_port=free_port(),
            folder=Path(tempfile.mkdtemp(prefix="gradio_app_")),
            behaviour=Behaviour(**behaviour),
            **options,
        )
        self.folder = self._options.folder
        self.url = f"http://127.0.0.1:{self._options.port}"
        control_url = f"http://127.0.0.1:{self._options.control_port}"
        # Without `verify=False` a client spends 30 ms on certificates that plain HTTP never needs.
        self._control = httpx.Client(base_url=control_url, verify=False, timeout=10)
        self._process: ForkServerProcess | None = None

    def launch(self) -> None:
        """Start the process and return at once."""
        atexit.register(self.stop)
        self._process = _fork_server().Process(target=_run, args=(self._options,), daemon=True)
        self._process.start()

    def wait_ready(self) -> None:
        """Return once it serves; RuntimeError with its log if it ends instead."""
        wait_until(self._answers, START_LIMIT)

    def stop(self) -> None:
        """End it for good, whatever it is doing, and remove its files."""
        self.kill()
        self._control.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """End it without notice; its port is free afterwards. Its files stay."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def restart(self, signature: str | None = None) -> None:
        """Kill it and start again on the same ports, as another program if `signature` says so."""
        self.kill()
        if signature is not None:
            self._options = replace(self._options, signature=signature)
        self.launch()
        self.wait_ready()

    def freeze(self) -> None:
        """Stop it in its tracks: it still accepts connections, and answers none."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def control(self, **changes: Any) -> dict[str, Any]:
        """Change behaviour, `reset=True` or `release=n`; returns the state after it."""
        answer = self._control.post("/", json=changes)
        if answer.is_error:
            raise ValueError(answer.text)
        return dict(answer.json())

    def state(self) -> dict[str, Any]:
        """`behaviour`, and `count`, `active`, `max_active` and `held` calls since the reset."""
        return dict(self._control.get("/").json())

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls since the reset, as `journal.Call` has them."""
        return list(self._control.get("/calls").json())

    @property
    def log(self) -> str:
        """What the process has printed."""
        return (self.folder / "log").read_text(errors="replace")

    def _answers(self) -> bool:
        assert self._process is not None
        if not self._process.is_alive():
            raise RuntimeError(f"the app ended with {self._process.exitcode}: {self.log}")
        try:
            return bool(self.state())
        except httpx.TransportError:
            return False
