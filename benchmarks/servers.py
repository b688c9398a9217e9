"""The servers that are measured, each a process group of its own on loopback.

They see an environment of a few names and write into a temporary folder, so that neither this
machine's settings nor a `.env` in the checkout changes what is measured. Linux only: what their
processes cost is read from /proc.
"""

import contextlib
import getpass
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import NginxServer, RedisServer

from benchmarks.options import PROJECT, Options

_START_LIMIT = 60.0  # seconds, until a server answers
_STOP_LIMIT = 5.0  # seconds, after which it is killed
_TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds, the unit of times in /proc

#: As little of nginx as may be around a `server`; its log is written as deploy/nginx.conf has it.
_NGINX = """
user {user};
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    open_file_cache max=16;
    access_log {folder}/access.log combined buffer=64k flush=1s;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    {http}
    server {{
        listen 127.0.0.1:{port};
        {server}
    }}
}}
"""
_BARE_CACHE = """
        location / {{
            proxy_pass           {url};
            proxy_cache          kept;
            proxy_cache_methods  GET POST;
            proxy_cache_key      $request_uri$request_body;
            proxy_hide_header    X-Cache;
            add_header           X-Cache NGINX;
        }}
"""


class CannotMeasure(Exception):
    """A server did not come up; the message holds the end of its log."""


class Server:
    """A running process group that answers `GET ready_path` with 200 once it is up."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, object],
        *,
        port: int,
        ready_path: str,
    ) -> None:
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        self._ready_path = ready_path
        self._log = folder / f"{port}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=_clean_environment(folder) | {k: str(v) for k, v in environment.items()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return once it answers. Raises CannotMeasure."""
        deadline = time.monotonic() + _START_LIMIT
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise CannotMeasure(f"{self.name} did not start: {self.log[-2000:]}")
            time.sleep(0.05)

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def workers(self) -> list[int]:
        """The pids of its first process's children: gunicorn's workers."""
        pid = self._process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def cpu_seconds(self) -> float:
        """What all its processes have used so far."""
        return sum(_cpu_seconds_by_group().get(self._process.pid, []))

    def stop(self) -> None:
        """End the whole group."""
        for sig in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_LIMIT)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", self._ready_path)
            return connection.getresponse().status == 200
        return False


@dataclass(frozen=True)
class Dialect:
    """How a stand-in names, on its control port, its synthesis time (ms; for each call, and for
    each character) and its calls so far."""

    synthesis: str
    synthesis_by_character: str
    calls: str


class StandIn:
    """A Gradio server with `/gen_single` and a settable synthesis time: 24 kHz mono 16-bit,
    60 ms for each character. It speaks one call at a time."""

    def __init__(self, server: Server, port: int, control_port: int, dialect: Dialect) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.wait_ready = server.wait_ready
        self._port = control_port
        self._dialect = dialect

    def take(self, synthesis_ms: float, *, ms_per_character: float = 0) -> None:
        """Let each call take that long from now on."""
        names = (self._dialect.synthesis, self._dialect.synthesis_by_character)
        times = dict(zip(names, (synthesis_ms, ms_per_character), strict=True))
        self._control("POST", json.dumps(times))

    def calls(self) -> int:
        """How often it was asked to speak."""
        return int(self._control("GET")[self._dialect.calls])

    def _control(self, method: str, body: str | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, "/", body)
            return dict(json.load(connection.getresponse()))


class Bench:
    """Starts servers, and stops them all at its end."""

    def __init__(self, options: Options, folder: Path, stack: ExitStack, stand_ins: int) -> None:
        self._options = options
        self._folder = folder
        self._stack = stack
        self._prompts = self._new_folder("prompts")
        for voice in ("default", "chixiaotu6"):
            _write_recording(self._prompts / f"{voice}.wav")
        self.stand_ins = [self._stand_in() for _ in range(stand_ins)]
        for stand_in in self.stand_ins:
            stand_in.wait_ready()

    @property
    def stand_in(self) -> StandIn:
        """The first one, which every server has for its backend unless told otherwise."""
        return self.stand_ins[0]

    def original(self, name: str, *, mode: str, arguments: Sequence[str] = ()) -> Server:
        """The original design, on one worker of uvicorn; `mode` is `threadpool` or `blocking`."""
        assert self._options.anchors is not None
        port = free_port()
        python = str(self._options.original_python)
        command = [python, "-m", "uvicorn", "seed_fastapi:app", f"--port={port}", *arguments]
        environment = {
            "PYTHONPATH": self._options.anchors,
            "SEED_MODE": mode,
            "GRADIO_URL": self.stand_in.url,
            "PROMPT_DIR": self._prompts,
        }
        return self._start(name, command, environment, port=port, ready_path="/health")

    def service(self, name: str, **settings: object) -> Server:
        """This service, started as the Procfile says."""
        port = free_port()
        environment = {
            "HOST": "127.0.0.1",
            "PORT": port,
            "GRADIO_URL": ",".join(stand_in.url for stand_in in self.stand_ins[:1]),
            "PROMPTS_DIR": self._prompts,
            "DEFAULT_PROMPT_AUDIO_PATH": self._prompts / "default.wav",
            "SELF_TEST": 0,
        } | settings
        command = ["sh", "-c", f"exec {_procfile_command()}"]
        folder = self._linked_project()
        path = "/health/ready"
        return self._start(name, command, environment, port=port, ready_path=path, folder=folder)

    def bare(self, name: str, application: str) -> Server:
        """An application of bare.py on one gthread worker of gunicorn, without a log."""
        port = free_port()
        command = [
            *(sys.executable, "-m", "gunicorn", f"benchmarks.bare:{application}"),
            *(f"--bind=127.0.0.1:{port}", "--worker-class=gthread", "--threads=8"),
            *("--keep-alive=75", "--worker-connections=1000", "--no-control-socket"),
        ]
        environment = {"PYTHONPATH": PROJECT}
        return self._start(name, command, environment, port=port, ready_path="/")

    def redis_url(self) -> str:
        """Of a new and empty redis-server."""
        redis = RedisServer(self._new_folder(f"redis-{free_port()}"))
        self._stack.callback(redis.stop)
        redis.launch()
        redis.wait_ready()
        return redis.url

    def nginx(self, name: str, gateway: Server, *, has_cache: bool) -> Server:
        """nginx in front of `gateway` with deploy/nginx.conf, or with all of that but its cache.

        Raises CannotMeasure if the gateway does not come up.
        """
        gateway.wait_ready()
        project = NginxServer(self._new_folder(f"nginx-{free_port()}"), gateway.url)
        configuration = project.configuration()
        if not has_cache:
            configuration = re.sub(r"^ *proxy_cache[^;]*;", "", configuration, flags=re.MULTILINE)
        for folder in (project.kept.parent, project.kept.parents[1] / "log"):
            folder.mkdir(parents=True)
        return self._nginx(name, configuration, port=project.port, ready_path="/health/ready")

    def nginx_bare(self, name: str, gateway: Server) -> Server:
        """nginx in front of `gateway` with a cache for whatever is asked, and nothing else: the
        least that an answer from nginx's cache can take."""
        port, folder = free_port(), self._new_folder("bare")
        configuration = _NGINX.format(
            user=getpass.getuser(),
            folder=folder,
            port=port,
            http=f"proxy_cache_path {folder}/kept keys_zone=kept:16m levels=1:2 use_temp_path=off;",
            server=_BARE_CACHE.format(url=gateway.url),
        )
        return self._nginx(name, configuration, port=port, ready_path="/health/ready")

    def nginx_with_files(self, name: str, files: Mapping[str, int]) -> Server:
        """nginx that serves files alone, of these names and bytes."""
        port = free_port()
        root = self._new_folder(f"files-{port}")
        for file, size in files.items():
            (root / file).write_bytes(bytes(size))
        folder = self._new_folder(f"nginx-{port}")
        configuration = _NGINX.format(
            user=getpass.getuser(), folder=folder, port=port, http="", server=f"root {root};"
        )
        return self._nginx(name, configuration, port=port, ready_path=f"/{next(iter(files))}")

    def _nginx(self, name: str, configuration: str, *, port: int, ready_path: str) -> Server:
        folder = self._new_folder(str(port))
        (folder / "nginx.conf").write_text(configuration)
        arguments = ("-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;")
        command = ["nginx", *map(str, arguments)]
        return self._start(name, command, {}, port=port, ready_path=ready_path, folder=folder)

    def _stand_in(self) -> StandIn:
        port, control_port = free_port(), free_port()
        anchors = self._options.anchors
        if anchors is None:
            command = [sys.executable, "-m", "benchmarks.stand_in", str(port), str(control_port)]
            environment = {"PYTHONPATH": str(PROJECT)}
            dialect = Dialect("synth_ms", "synth_ms_per_char", "count")
            ready_port, ready_path = control_port, "/"  # the last one to answer
        else:
            command = [sys.executable, str(anchors / "fake_gradio.py")]
            environment = {"PORT": str(port), "CONTROL_PORT": str(control_port)}
            dialect = Dialect("SYNTH_MS", "SYNTH_MS_PER_CHAR", "calls")
            ready_port, ready_path = port, "/config"
        server = self._start(
            "stand-in", command, environment, port=ready_port, ready_path=ready_path
        )
        return StandIn(server, port, control_port, dialect)

    def _start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, object],
        *,
        port: int,
        ready_path: str,
        folder: Path | None = None,
    ) -> Server:
        folder = folder or self._new_folder(str(port))
        server = Server(name, command, folder, environment, port=port, ready_path=ready_path)
        self._stack.callback(server.stop)
        return server

    def _linked_project(self) -> Path:
        """A folder that has the checkout's visible files and folders, and so no `.env`."""
        folder = self._new_folder(f"project-{free_port()}")
        for entry in PROJECT.glob("[!.]*"):
            (folder / entry.name).symlink_to(entry)
        return folder

    def _new_folder(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        return folder


@contextmanager
def bench(options: Options, *, stand_ins: int = 1) -> Iterator[Bench]:
    """A bench with so many stand-ins, whose servers and files are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="benchmarks-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield Bench(options, folder, stack, stand_ins)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _procfile_command() -> str:
    for line in (PROJECT / "Procfile").read_text().splitlines():
        if line.startswith("web:"):
            return line.removeprefix("web:").strip()
    raise CannotMeasure("the Procfile has no line for web")


def _clean_environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _write_recording(path: Path) -> None:
    """8 s of noise at 24 kHz, 384 KB: what a reference recording usually weighs."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes(bytes(range(256)) * (8 * 24_000 * 2 // 256))


def _cpu_seconds_by_group() -> dict[int, list[float]]:
    """User and system seconds of every process, by its process group (proc_pid_stat(5))."""
    groups: dict[int, list[float]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # The second field, a name in parentheses, may itself hold spaces and parentheses.
            fields = stat.read_text().rpartition(")")[2].split()
            groups.setdefault(int(fields[2]), []).append(
                (int(fields[11]) + int(fields[12])) * _TICK
            )
    return groups
