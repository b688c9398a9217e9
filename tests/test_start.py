"""The two doors: `make run` with the demo backend, gunicorn by the Procfile, `python wsgi.py`."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import StartGateway
from servers import GradioApp, free_port, wait_until

PROJECT = Path(__file__).parents[1]
START_LIMIT = 60  # seconds; the demo backend imports gradio


class Service:
    """A command that serves, in a session of its own, with its output in a file."""

    def __init__(self, command: list[str], folder: Path, **settings: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "log"
        environment = {
            name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ
        } | {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        environment |= {"HOME": str(folder), "HOST": "127.0.0.1", "PORT": str(self.port)}
        environment |= {name: str(value) for name, value in settings.items()}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, limit: float = START_LIMIT) -> None:
        """Until the log holds `text`."""
        wait_until(lambda: text in self.log or self.process.poll() is not None, limit)
        assert text in self.log, self.log

    def descendants(self) -> set[int]:
        """The pids of everything this command has started, itself included."""
        found, new = set[int](), {self.process.pid}
        while new:
            found |= new
            new = {child for pid in new for child in _children(pid)} - found
        return found

    def kill_all(self) -> None:
        for pid in self.descendants():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # the process has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # only this thread has
                found += map(int, (task / "children").read_text().split())
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _demo_pids(pids: set[int]) -> set[int]:
    return {pid for pid in pids if "demo_backend" in _command_line(pid)}


StartService = Callable[..., Service]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StartService]:
    started: list[Service] = []

    def start(*command: str, **settings: Any) -> Service:
        started.append(Service([*command], tmp_path, **settings))
        return started[-1]

    yield start
    for each in started:
        each.kill_all()


@pytest.fixture
def make_run(service: StartService) -> StartService:
    """`make run`, as a newcomer types it, with the virtual environment that is there."""
    stamp = PROJECT / ".venv" / ".installed"
    if not stamp.exists():
        pytest.skip("`make run` would install first; `make test` has done so")
    return lambda **settings: service("make", "run", **settings)


def test_make_run_prints_a_curl_line_that_brings_speech(
    make_run: StartService, tmp_path: Path
) -> None:
    running = make_run()
    running.wait_for("self-test passed")
    line = re.search(r"curl http.*hello\.wav", running.log)
    assert line is not None, running.log
    subprocess.run(["sh", "-c", f"{line[0]} --silent --fail"], cwd=tmp_path, check=True, timeout=30)
    with wave.open(str(tmp_path / "hello.wav")) as hello:
        assert 1 < hello.getnframes() / hello.getframerate() < 10
        assert max(hello.readframes(hello.getnframes())) > 0
    assert "Installing" not in running.log


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_that_make_run_started(
    make_run: StartService, sig: signal.Signals
) -> None:
    running = make_run(SELF_TEST=0)
    running.wait_for("is ready")
    pids = running.descendants()
    assert len(_demo_pids(pids)) == 1
    # As a terminal does it: to the whole foreground group, which the demo is not in.
    os.killpg(running.process.pid, sig)
    running.process.wait(timeout=20)
    wait_until(lambda: not any(_is_alive(pid) for pid in pids), 5)
    assert "Traceback" not in running.log


def test_the_demo_backend_ends_when_the_master_is_killed(service: StartService) -> None:
    running = service(sys.executable, "-m", "gunicorn", "wsgi:app", SELF_TEST=0)
    running.wait_for("is ready")
    pids = running.descendants()
    assert len(_demo_pids(pids)) == 1
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not any(_is_alive(pid) for pid in pids), 10)


def test_with_a_backend_of_its_own_no_demo_is_started(
    make_run: StartService, backend: GradioApp
) -> None:
    running = make_run(GRADIO_URL=backend.url)
    running.wait_for("self-test passed")
    assert not _demo_pids(running.descendants())
    assert "demo backend" not in running.log
    assert [call["arguments"]["text"] for call in backend.calls] == ["您好。"]


def test_a_taken_port_is_told_in_one_line_before_anything_starts(service: StartService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = service(sys.executable, "-m", "gunicorn", "wsgi:app", PORT=port)
        assert running.process.wait(timeout=20) == 1
    assert f"Port {port} on 127.0.0.1 is taken" in running.log
    assert "demo backend" not in running.log
    assert "Traceback" not in running.log


def test_it_can_be_started_directly_and_ends_with_its_demo(service: StartService) -> None:
    running = service(sys.executable, "wsgi.py")
    running.wait_for("self-test passed")
    answer = httpx.post(f"{running.url}/v1/audio/speech", json={"input": "Hello."}, timeout=30)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "audio/wav")
    pids = running.descendants()
    assert len(_demo_pids(pids)) == 1
    running.process.terminate()
    assert running.process.wait(timeout=20) == 0
    wait_until(lambda: not any(_is_alive(pid) for pid in pids), 5)
    assert "Traceback" not in running.log


def test_the_self_test_asks_twice_and_the_second_is_a_hit(
    gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url, SELF_TEST=1)
    report = wait_until(lambda: _finished(service.health()["self_test"]))
    assert report["state"] == "passed"
    assert report["second_from_cache"] is True
    assert 0 < report["second_seconds"] < report["first_seconds"]
    assert [call["arguments"]["text"] for call in backend.calls] == ["您好。"]
    assert "self-test passed" in service.log


def test_every_worker_tests_itself(gateway: StartGateway, backend: GradioApp) -> None:
    service = gateway(GRADIO_URL=backend.url, SELF_TEST=1, WEB_CONCURRENCY=2)
    wait_until(lambda: service.log.count("self-test passed") == 2)


def test_a_dead_backend_fails_the_self_test_and_nothing_else(gateway: StartGateway) -> None:
    service = gateway(
        GRADIO_URL=f"http://127.0.0.1:{free_port()}",
        SELF_TEST=1,
        GRADIO_CONNECT_DELAY=0.1,
        GRADIO_CALL_DELAY=0.1,
    )
    report = wait_until(lambda: _finished(service.health()["self_test"]))
    assert report["state"] == "failed"
    assert report["error"].startswith("503")
    assert "self-test failed" in service.log
    assert service.client.get("/health/live").status_code == 200


def test_a_hanging_self_test_keeps_the_worker_from_neither_serving_nor_stopping(
    gateway: StartGateway, backend: GradioApp
) -> None:
    backend.control(hold=True)
    service = gateway(GRADIO_URL=backend.url, SELF_TEST=1)
    wait_until(lambda: backend.state()["active"] == 1)
    assert service.health()["self_test"]["state"] == "running"
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 5
    backend.control(hold=False)


def test_the_connection_is_tried_five_times_then_warned_of_and_made_at_a_later_request(
    gateway: StartGateway, gradio_app: Callable[..., GradioApp]
) -> None:
    app = gradio_app("indextts-1.0")
    app.kill()
    service = gateway(GRADIO_URL=app.url, GRADIO_CONNECT_DELAY=0.2, GRADIO_CALL_DELAY=0.1)
    wait_until(lambda: "not connected after 5 attempts" in service.log)
    assert service.health()["gradio_client"] == "disconnected"
    refused = service.post({"input": "Hello."})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "no_backend"
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    app.launch()
    app.wait_ready()
    assert service.post({"input": "Hello."}).status_code == 200
    assert service.health()["gradio_client"] == "connected"


def _finished(report: dict[str, Any]) -> dict[str, Any] | None:
    return report if report["state"] in ("passed", "failed") else None
