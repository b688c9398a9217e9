"""The two doors: `make run` with the demo backend, gunicorn by the Procfile, `python wsgi.py`."""

import os
import platform
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

from config import changed, read_config
from tts_service.start import welcome

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

    def end(self) -> None:
        """End all it has started: politely, so that nothing is left behind, then by force."""
        pids = self.descendants()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(AssertionError):
            wait_until(lambda: self.process.poll() is not None and not any(map(_is_alive, pids)))
        for pid in filter(_is_alive, pids):
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
        each.end()


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
    assert len(_demo_pids(pids)) == 2, "the server, and who keeps it up"
    # As a terminal does it: to the whole foreground group, which the demo is not in.
    os.killpg(running.process.pid, sig)
    running.process.wait(timeout=20)
    wait_until(lambda: not any(_is_alive(pid) for pid in pids), 5)
    assert "Traceback" not in running.log


def test_the_demo_backend_ends_when_the_master_is_killed(service: StartService) -> None:
    running = service(sys.executable, "-m", "gunicorn", "wsgi:app", SELF_TEST=0)
    running.wait_for("is ready")
    pids = running.descendants()
    assert len(_demo_pids(pids)) == 2, "the server, and who keeps it up"
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not any(_is_alive(pid) for pid in pids), 10)


def test_a_demo_backend_that_crashed_speaks_again(service: StartService) -> None:
    running = service(sys.executable, "-m", "gunicorn", "wsgi:app", SELF_TEST=0)
    running.wait_for("is ready")
    (keeper,) = (pid for pid in running.descendants() if "--keep-up" in _command_line(pid))

    def ask(text: str) -> int:
        request = {"input": text}
        return httpx.post(f"{running.url}/v1/audio/speech", json=request, timeout=30).status_code

    assert ask("Before.") == 200
    (server,) = _children(keeper)
    os.kill(server, signal.SIGSEGV)
    wait_until(lambda: not _is_alive(server), 5)
    wait_until(lambda: ask("After.") == 200, 60)
    assert _children(keeper) not in ([], [server])


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
    link = httpx.get(f"{running.url}/v1/audio/speech", params={"input": "Whisper."}, timeout=30)
    assert link.status_code == 200
    running.wait_for("GET /v1/audio/speech status=200")
    assert "Whisper" not in running.log
    pids = running.descendants()
    assert len(_demo_pids(pids)) == 2, "the server, and who keeps it up"
    running.process.terminate()
    assert running.process.wait(timeout=20) == 0
    wait_until(lambda: not any(_is_alive(pid) for pid in pids), 5)
    assert "Traceback" not in running.log


def test_the_start_tells_what_is_configured_and_what_is_missing_once(
    gateway: StartGateway, backend: GradioApp, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    service = gateway(
        GRADIO_URL=backend.url.replace("//", "//me:hidden@"),
        HOST="0.0.0.0",
        WEB_CONCURRENCY=2,
        MAX_PENDING=9,
        RATE_LIMIT="60/minute",
        TRUSTED_PROXIES="127.0.0.1",
        GRADIO_TOKEN="hidden-too",
        PROMPTS_DIR=tmp_path / "empty",
        MODEL_PROMPT_MAP='{"boss": "/nowhere.wav"}',
        DEFAULT_PROMPT_AUDIO_PATH=tmp_path / "empty" / "default.wav",
    )
    lines = [line.partition(" tts_service.start: ")[2] for line in service.log.splitlines()]
    told = [line for line in lines if line]
    assert told == [
        "The speech gateway, as it is configured:",
        f"  backends   {backend.url} by /gen_single",
        "  voices     1: boss",
        "  cache      100 entries and 256 MiB in each process, for 24 hours",
        "  access     no key needed; at most 60/minute; behind 127.0.0.1",
        "  processes  2, of 25 threads each",
        f"  also set   GRADIO_TOKEN=…  DEFAULT_PROMPT_AUDIO_PATH={tmp_path}/empty/default.wav  "
        "MAX_PENDING=9  SELF_TEST=0",
        f"{tmp_path}/empty/default.wav is missing: a request that names no voice will be answered "
        "500.",
        "The recording of the voice 'boss' is missing: /nowhere.wav.",
        "API_KEYS is not set: whoever reaches this port may have something spoken.",
        "REDIS_URL is not set: each worker has a cache of its own and speaks what another has "
        "spoken, and RATE_LIMIT is counted by each.",
        f"Listening at http://127.0.0.1:{service.port}/v1; hear it at "
        f"http://127.0.0.1:{service.port}/ in a browser, or with:",
        f"  curl http://127.0.0.1:{service.port}/v1/audio/speech -H 'Content-Type: "
        """application/json' -d '{"input": "你好，世界。 Hello, world."}' -o hello.wav""",
    ]
    assert "hidden" not in service.log


KEEPS_MEMORY = """
import sys
from pathlib import Path
from tts_service.start import share_memory_among_threads

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1:]:
    share_memory_among_threads()
bytes(8 << 20)  # from which glibc learns
before = resident()
blocks = [b"x" * (1 << 20) for _ in range(8)]
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is free")
def test_what_large_blocks_took_is_given_back_unless_the_operator_wants_it_kept() -> None:
    def kept(*arguments: str, **environment: str) -> int:
        command = [sys.executable, "-c", KEEPS_MEMORY, *arguments]
        told = subprocess.check_output(
            command, env={**os.environ, **environment}, text=True, timeout=60
        )
        return int(told)

    as_operators_say = {
        "MALLOC_MMAP_THRESHOLD_": f"{32 << 20}",
        "MALLOC_TRIM_THRESHOLD_": f"{64 << 20}",
    }
    assert kept() > 6 << 20
    assert kept("shared") < 2 << 20
    assert kept("shared", **as_operators_say) > 6 << 20


def test_a_complete_configuration_is_warned_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    config = read_config(
        _env_file=None,
        GRADIO_URL="http://a:1,http://b:2",
        API_KEYS="one,two",
        HOST="::",
        REDIS_URL="redis://:hidden@r:1/0",
        WEB_CONCURRENCY=2,
        PROMPTS_DIR=PROJECT / "prompts",
        DEFAULT_PROMPT_AUDIO_PATH=PROJECT / "prompts" / "default.wav",
    )
    with caplog.at_level("INFO", "tts_service.start"):
        welcome(dict(config), changed(config))
    assert {line.levelname for line in caplog.records} == {"INFO"}
    for told in (
        "http://a:1, http://b:2 by /gen_single",
        "2: chixiaotu6, default",
        "shared through redis://r:1/0",
        "2 keys; no rate limit",
        'http://127.0.0.1:8000/v1/audio/speech -H "Authorization: Bearer $API_KEY"',
    ):
        assert told in caplog.text
    assert "hidden" not in caplog.text


def test_a_wrong_limit_stops_the_start_and_names_itself(service: StartService) -> None:
    running = service(sys.executable, "-m", "gunicorn", "wsgi:app", RATE_LIMIT="sixty")
    assert running.process.wait(timeout=30) == 1
    assert "RATE_LIMIT='sixty': expected a number of requests" in running.log
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
