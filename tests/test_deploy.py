"""The four ways to deploy: what deploy/ and the files for a PaaS say is done here for real, or as
nearly as one machine can do it."""

import getpass
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from conftest import StartGateway, StartServers
from dotenv import dotenv_values
from servers import GradioApp, NginxServer, RedisServer, start_all, wait_until
from servers.box import PYTHON, Box, require_box
from servers.docker import BRIDGE, NETWORK, Builder, Container, Image, is_sent, read_dockerfile
from servers.installation import APP, UNIT, Installation, PaasGateway, UnitGateway
from servers.machine import free_port, require_program

from config import Config, read_config
from tts_service.audio import decode

PROJECT = Path(__file__).parents[1]
SPEECH = "/v1/audio/speech"
#: For the slowest of fixtures, which downloads packages, on a busy machine.
pytestmark = pytest.mark.timeout(600)
FORMATS = ("wav", "mp3", "opus", "aac", "flac", "pcm")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """What deploy/install.sh makes of an empty folder."""
    made = Installation(tmp_path_factory.mktemp("root"))
    made.install("--nginx")
    return made


@pytest.fixture(scope="module")
def app() -> Iterator[GradioApp]:
    """A backend for all tests here."""
    server = GradioApp()
    start_all([server])
    yield server
    server.stop()


@pytest.fixture
def backend(app: GradioApp) -> GradioApp:  # not the suite's: another file may end that one
    app.control(reset=True)
    return app


# -- systemd ---------------------------------------------------------------------------------------


def test_the_script_lays_everything_below_the_folder_that_it_is_given(
    installation: Installation,
) -> None:
    assert (
        installation.path(UNIT).read_text()
        == (PROJECT / "deploy" / "tts-service.service").read_text()
    )
    assert (
        installation.path("/etc/nginx/nginx.conf").read_text()
        == (PROJECT / "deploy" / "nginx.conf").read_text()
    )
    prompts = installation.path("/var/lib/tts-service/prompts")
    assert {each.name for each in prompts.iterdir()} == {"default.wav", "chixiaotu6.wav"}
    own = {each.relative_to(PROJECT) for each in (PROJECT / "tts_service").rglob("*.py")}
    assert own == {
        each.relative_to(installation.app)
        for each in (installation.app / "tts_service").rglob("*.py")
    }


def test_its_env_file_offers_every_setting_and_names_the_recordings_own_folder(
    installation: Installation,
) -> None:
    text = (installation.app / ".env").read_text()
    assert (installation.app / ".env").stat().st_mode & 0o077 == 0  # it will hold keys
    prompts = installation.path("/var/lib/tts-service/prompts")
    assert dotenv_values(installation.app / ".env") == {
        "PROMPTS_DIR": str(prompts),
        "DEFAULT_PROMPT_AUDIO_PATH": str(prompts / "default.wav"),
    }
    offered = re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE)
    assert sorted(offered) == sorted(Config.model_fields)


def test_nothing_is_installed_but_what_the_gateway_needs(installation: Installation) -> None:
    list_names = ("-m", "pip", "list", "--format=freeze", "--disable-pip-version-check")
    listed = subprocess.check_output([installation.bin / "python", *list_names], text=True)
    there = {line.split("==")[0].lower().replace("_", "-") for line in listed.splitlines()}
    assert there - {"pip", "setuptools"} == pins("requirements.txt").keys()


def test_an_update_replaces_the_program_and_leaves_what_is_the_operators(
    installation: Installation,
) -> None:
    stale = installation.app / "tts_service" / "removed_since.py"
    stale.touch()
    settings = installation.app / ".env"
    conf = installation.path("/etc/nginx/nginx.conf")
    own = {each: each.read_text() + "\n# of mine\n" for each in (settings, conf)}
    for each, text in own.items():
        each.write_text(text)
    recording = installation.path("/var/lib/tts-service/prompts/chixiaotu6.wav")
    content = recording.read_bytes()
    recording.unlink()
    packages = (installation.app / ".venv" / "complete").stat().st_mtime_ns
    try:
        said = installation.install("--nginx")
        assert "is left as it is" in said
        assert not stale.exists()
        assert {each: each.read_text() for each in own} == own
        assert not recording.exists()
        assert (installation.app / ".venv" / "complete").stat().st_mtime_ns == packages
    finally:
        recording.write_bytes(content)


def test_the_script_says_what_it_lacks(tmp_path: Path) -> None:
    script = PROJECT / "deploy" / "install.sh"
    for arguments, told in (
        (["--python", "/nonexistent", "--root", tmp_path], "nonexistent"),
        (["--root"], "--root needs a value"),
        (["--what"], "what is --what?"),
    ):
        done = subprocess.run([script, *arguments], capture_output=True, text=True)
        assert done.returncode
        assert told in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_units_line_tells_when_it_listens_and_speaks_behind_nginx(
    installation: Installation, backend: GradioApp, start_servers: StartServers, tmp_path: Path
) -> None:
    # A socket's path has 107 characters at most, and pytest's folders have long names.
    with (
        tempfile.TemporaryDirectory() as short,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
    ):
        systemd.bind(f"{short}/notify")
        systemd.settimeout(30)
        service = UnitGateway(
            tmp_path,
            installation,
            NOTIFY_SOCKET=f"{short}/notify",
            GRADIO_URL=backend.url,
        )
        _, front = start_servers(service, NginxServer(tmp_path, service.url))
        assert systemd.recv(4096).startswith(b"READY=1")
    answers = [front.client.post(SPEECH, json={"input": "Behind nginx."}) for _ in range(2)]
    assert [answer.headers["X-Cache"] for answer in answers] == ["MISS", "NGINX"]
    assert decode(answers[1].content).seconds > 0.1


class Installed:
    """The service as deploy/install.sh installs and starts it in a box, nginx before it."""

    def __init__(self, installation: Installation, backend: GradioApp) -> None:
        self.box = Box(installation.folder, PROJECT)
        self.port, self.nginx_port = free_port(), free_port()
        self._root = Path("/mnt") / installation.folder.name
        self._backend = backend

    def launch(self) -> None:
        self.box.launch()

    def wait_ready(self) -> None:
        self.box.wait_ready()
        self._lay_packages()
        self._lay_checkout()
        arguments = ("--nginx", "--python", PYTHON)
        self.said = self.box.run("/srv/checkout/deploy/install.sh", *arguments).stdout
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.nginx_port}", verify=False, timeout=60
        )

    def stop(self) -> None:
        self.client.close()
        self.box.stop()

    def _lay_packages(self) -> None:
        """Those of the scratch folder, to spare the machine a second download."""
        venv = APP / ".venv"
        self.box.run("mkdir", "-p", APP)
        self.box.run("sh", "-c", f"cp -a {self._root}{venv}* {APP}")
        for name in ("python", "python3", PYTHON.name):
            self.box.run("ln", "-sf", PYTHON, venv / "bin" / name)
        cfg = self.box.path(venv / "pyvenv.cfg")
        cfg.write_text(
            re.sub("^home = .*", f"home = {PYTHON.parent}", cfg.read_text(), flags=re.MULTILINE)
        )

    def _lay_checkout(self) -> None:
        """The project as its operator has adapted it: other ports, and a log that can be read."""
        self.box.run("mkdir", "/srv/checkout")
        for name in ("deploy", "tts_service", "prompts"):
            self.box.run("cp", "-R", f"/mnt/{PROJECT.name}/{name}", "/srv/checkout")
        for file in (*PROJECT.glob("*.*"), PROJECT / "LICENSE", PROJECT / ".env.example"):
            if file.is_file():
                self.box.run("cp", f"/mnt/{PROJECT.name}/{file.name}", "/srv/checkout")
        self.adapt(
            "/srv/checkout/deploy/nginx.conf",
            ("listen 80;", f"listen 127.0.0.1:{self.nginx_port};"),
            ("127.0.0.1:8000;", f"127.0.0.1:{self.port};"),
        )
        self.adapt(
            "/srv/checkout/.env.example",
            ("#PORT=8000", f"PORT={self.port}"),
            ("#GRADIO_URL=", f"GRADIO_URL={self._backend.url}"),
            ("#WEB_CONCURRENCY=1", "WEB_CONCURRENCY=2"),
        )
        units = self.box.path("/etc/systemd/system")
        (units / "nginx.service").write_bytes(
            Path("/lib/systemd/system/nginx.service").read_bytes()
        )
        (units / f"{UNIT.name}.d").mkdir()
        (units / f"{UNIT.name}.d" / "log.conf").write_text(
            "[Service]\nStandardOutput=append:/var/log/tts\nStandardError=append:/var/log/tts\n"
        )

    def adapt(self, path: str, *places: tuple[str, str]) -> None:
        text = self.box.path(path).read_text()
        for place, ours in places:
            assert text.count(place) == 1, f"{path} has not one {place!r}"
            text = text.replace(place, ours)
        self.box.path(path).write_text(text)

    @property
    def log(self) -> str:
        return self.box.path("/var/log/tts").read_text()

    @property
    def main(self) -> str:
        """The pid of gunicorn's arbiter, inside of the box."""
        return self.box.show(UNIT.name, "MainPID")

    def health(self) -> dict[str, Any]:
        return dict(self.client.get("/health").raise_for_status().json())


@pytest.fixture(scope="module")
def installed(installation: Installation, app: GradioApp) -> Iterator[Installed]:
    require_box()
    require_program("nginx")
    service = Installed(installation, app)
    try:
        start_all([service])
        yield service
    finally:
        service.stop()


def test_systemd_runs_what_the_script_installed(installed: Installed, backend: GradioApp) -> None:
    assert "Installing" not in installed.said  # the packages that lay there were right
    assert installed.box.show(UNIT.name, "ActiveState") == "active"
    assert installed.box.show(UNIT.name, "UnitFileState") == "enabled"
    settings = installed.box.run("stat", "-c", "%U:%G %a", APP / ".env").stdout.strip()
    assert settings == "root:tts-service 640"
    assert installed.box.path("/etc/nginx/nginx.conf.before-tts-service").exists()


def test_all_formats_can_be_made_within_the_units_bounds(
    installed: Installed, backend: GradioApp
) -> None:
    for name in FORMATS:
        asked = {"input": f"Bounded, as {name}.", "response_format": name}
        answers = [installed.client.post(SPEECH, json=asked) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200], installed.log
        assert answers[1].headers["X-Cache"] == "NGINX"
        assert answers[0].content == answers[1].content
    counted = installed.client.get("/metrics").text  # both workers', in files under /tmp
    assert sum(
        float(value)
        for value in re.findall(r'^tts_requests_total{.*status="200"} (.*)$', counted, re.MULTILINE)
    ) >= len(FORMATS)


def test_the_service_has_no_rights_but_an_ordinary_users(installed: Installed) -> None:
    status = installed.box.path(f"/proc/{installed.main}/status").read_text()
    told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert told["Uid"].split() != ["0"] * 4
    assert {told[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {""}
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    rated = installed.box.run("systemd-analyze", "security", "--no-pager", UNIT.name).stdout
    (exposure,) = re.findall(r"exposure level for .*: ([\d.]+)", rated)
    assert float(exposure) <= 1.5


def test_the_service_may_write_recordings_and_nothing_else(installed: Installed) -> None:
    def touch(path: Path | str) -> bool:
        inside = ("nsenter", "--target", installed.main, "--mount", "--")
        user = ("setpriv", "--reuid", "tts-service", "--regid", "tts-service", "--clear-groups")
        return not installed.box.run(*inside, *user, "touch", path, check=False).returncode

    assert touch("/var/lib/tts-service/prompts/alice.wav")
    assert touch("/tmp/for-itself")
    assert not installed.box.path("/tmp/for-itself").exists()
    for path in (
        APP / "here",
        APP / "tts_service" / "errors.py",
        APP / ".env",
        "/etc/here",
        "/home/here",
    ):
        assert not touch(path)


def test_a_reload_brings_new_workers_and_fails_nobody(
    installed: Installed, backend: GradioApp
) -> None:
    main = installed.main
    children = f"/proc/{main}/task/{main}/children"
    before = installed.box.path(children).read_text().split()
    backend.control(hold=True)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(installed.client.post, SPEECH, json={"input": "Through a reload."})
        wait_until(lambda: backend.state()["held"])
        with installed.box.path(APP / ".env").open("a") as settings:
            settings.write("MAX_CACHE_SIZE=77\n")
        installed.box.run("systemctl", "reload", UNIT.name)
        wait_until(
            lambda: len(set(installed.box.path(children).read_text().split()) - set(before)) == 2,
            30,
        )
        backend.control(hold=False)
        assert asked.result().status_code == 200
    wait_until(lambda: set(installed.box.path(children).read_text().split()).isdisjoint(before), 30)
    assert installed.main == main
    assert installed.health()["cache"]["max_size"] == 77


def test_a_killed_service_is_started_again(installed: Installed, backend: GradioApp) -> None:
    before = installed.main
    installed.box.run("kill", "-KILL", before)
    wait_until(lambda: installed.main not in ("0", before), 30)
    wait_until(lambda: installed.box.show(UNIT.name, "ActiveState") == "active", 30)
    wait_until(lambda: installed.client.get("/health/live").is_success, 30)


def test_a_stop_lets_the_last_answer_end(installed: Installed, backend: GradioApp) -> None:
    backend.control(hold=True)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(installed.client.post, SPEECH, json={"input": "The last words."})
        wait_until(lambda: backend.state()["held"])
        installed.box.run("systemctl", "stop", "--no-block", UNIT.name)
        wait_until(lambda: installed.box.show(UNIT.name, "ActiveState") == "deactivating")
        backend.control(hold=False)
        assert asked.result().status_code == 200
    wait_until(lambda: installed.box.show(UNIT.name, "ActiveState") == "inactive", 40)
    assert installed.box.show(UNIT.name, "Result") == "success"
    installed.box.run("systemctl", "start", UNIT.name)


# -- PaaS ------------------------------------------------------------------------------------------

ROUTER_LIMIT = 30  # seconds that Heroku's router waits for the first byte


@pytest.fixture
def paas(
    installation: Installation, start_servers: StartServers, tmp_path: Path
) -> Callable[..., PaasGateway]:
    """`paas(GRADIO_URL=…)`: the Procfile's line, with these variables and PORT."""

    def start(**variables: object) -> PaasGateway:
        service: PaasGateway = start_servers(PaasGateway(tmp_path, installation, **variables))[0]
        return service

    return start


def test_the_procfiles_line_speaks_with_nothing_but_requirements_txt_and_a_port(
    paas: Callable[..., PaasGateway], backend: GradioApp
) -> None:
    # What Heroku's buildpack for Python sets by itself.
    service = paas(
        GRADIO_URL=backend.url,
        GUNICORN_CMD_ARGS="--access-logfile -",
        FORWARDED_ALLOW_IPS="*",
        DYNO="web.1",
    )
    elsewhere = httpx.post(  # its router comes by another address than 127.0.0.1
        f"http://127.0.0.2:{service.port}{SPEECH}", json={"input": "By the router."}, timeout=60
    )
    assert elsewhere.status_code == 200
    assert decode(elsewhere.content).seconds > 0.1
    wait_until(lambda: service.health()["self_test"]["state"] == "passed", 30)


def test_a_paas_without_a_backend_lives_and_says_what_is_missing(
    paas: Callable[..., PaasGateway],
) -> None:
    service = paas()
    answer = service.post({"input": "Nobody is there."})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_backend")
    assert "GRADIO_URL is not set, and the demo backend is not installed" in service.log


def test_the_first_byte_of_a_long_text_comes_within_the_routers_limit(
    paas: Callable[..., PaasGateway], backend: GradioApp
) -> None:
    assert Config.model_fields["STREAM_AFTER"].default < ROUTER_LIMIT
    service = paas(GRADIO_URL=backend.url, STREAM_AFTER=1)
    backend.control(hold=True)
    asked = {"input": "A sentence that takes long. " * 20}
    try:
        with service.client.stream("POST", SPEECH, json=asked, timeout=ROUTER_LIMIT) as answer:
            assert answer.status_code == 200  # its head is there
            assert backend.state()["held"]  # and nothing is spoken yet
            backend.control(hold=False)
            assert decode(answer.read()).seconds > 1
    finally:
        backend.control(hold=False)


def test_sigterm_to_every_process_at_once_lets_answers_end(
    paas: Callable[..., PaasGateway], backend: GradioApp
) -> None:
    service = paas(GRADIO_URL=backend.url)  # Heroku tells all processes of a dyno, and not one
    backend.control(hold=True)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.post, {"input": "Said before the dyno goes."})
        wait_until(lambda: backend.state()["held"])
        os.killpg(service.pid, signal.SIGTERM)
        wait_until(lambda: "Handling signal: term" in service.log)
        backend.control(hold=False)
        assert asked.result().status_code == 200
    assert service.stop() == 0


@pytest.fixture
def tls_redis(start_servers: StartServers, tmp_path: Path) -> RedisServer:
    """Redis with a certificate that it has signed itself, at a `rediss://` URL with a password."""
    key, certificate = tmp_path / "redis.key", tmp_path / "redis.crt"
    self_signed(key, certificate)
    port = free_port()
    server: RedisServer = start_servers(
        RedisServer(
            tmp_path,
            *("--tls-port", str(port), "--tls-auth-clients", "no"),
            *("--tls-key-file", str(key), "--tls-cert-file", str(certificate)),
        )
    )[0]
    server.url = f"rediss://127.0.0.1:{port}"
    return server


def self_signed(key: Path, certificate: Path) -> None:
    """Make a key, and a certificate of it for no name that anybody calls it by."""
    subprocess.run(
        [
            *(require_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
            *("-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=somebody"),
        ],
        check=True,
        capture_output=True,
    )


def test_a_self_signed_redis_is_used_where_that_is_allowed(
    paas: Callable[..., PaasGateway], backend: GradioApp, tls_redis: RedisServer
) -> None:
    service = paas(GRADIO_URL=backend.url, REDIS_URL=tls_redis.url, REDIS_TLS_VERIFY=0)
    assert service.post({"input": "Kept in Redis."}).status_code == 200
    assert service.health()["redis"]["state"] == "up"
    wait_until(lambda: tls_redis.client.keys("tts:*"))


def test_a_self_signed_redis_is_refused_otherwise_and_nobody_fails(
    paas: Callable[..., PaasGateway], backend: GradioApp, tls_redis: RedisServer
) -> None:
    service = paas(GRADIO_URL=backend.url, REDIS_URL=tls_redis.url)
    assert service.post({"input": "Kept here alone."}).status_code == 200
    assert service.health()["redis"]["state"] == "down"
    assert "certificate verify failed" in service.log
    assert not tls_redis.client.keys("tts:*")


def test_app_json_names_settings_whose_values_are_understood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = json.loads((PROJECT / "app.json").read_text())
    assert told["env"].keys() <= Config.model_fields.keys()
    for name, item in told["env"].items():
        assert item["description"]
        monkeypatch.setenv(name, item.get("value", "http://tts:7860"))
    assert read_config().WEB_CONCURRENCY == 1


def test_the_version_of_python_is_one_that_the_project_supports() -> None:
    version = (PROJECT / ".python-version").read_text().strip()
    assert re.fullmatch(r"3\.\d+", version)
    needed = re.search(r'requires-python = ">=3\.(\d+)"', (PROJECT / "pyproject.toml").read_text())
    assert needed
    assert int(version.split(".")[1]) >= int(needed[1])


def pins(name: str) -> dict[str, str]:
    """Package and version of each line in a pinned set."""
    lines = (PROJECT / name).read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if re.match(r"\w[^ ]*==", line))


def test_what_is_deployed_is_what_is_tested() -> None:
    gateway, demo, tested = (pins(f"requirements{name}.txt") for name in ("", "-demo", "-dev"))
    assert gateway.items() <= demo.items() <= tested.items()


# -- Docker ----------------------------------------------------------------------------------------

DEPLOY = PROJECT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


class Stack:
    """What deploy/compose.yaml starts with the profile `demo`: images as deploy/Dockerfile makes
    them, two gateways, nginx, Redis and the demo backend, on a network of their own."""

    def __init__(self, folder: Path) -> None:
        self.box = Box(PROJECT, Path(sysconfig.get_path("purelib")), has_network=True)
        self._folder = folder

    def launch(self) -> None:
        self.box.launch()

    def wait_ready(self) -> None:
        self.box.wait_ready()
        project = Path("/mnt") / PROJECT.name
        builder = Builder(self.box, project, DOCKERFILE)
        gateway = builder.build("gateway")
        # Gradio's server would take a minute to install: this machine's own stands in.
        demo = builder.build("demo", without=["demo-packages"])
        self._prepare()
        self.redis = self._container("redis", Image(folder="/data"), 2)
        self.demo = self._container("demo", demo, 3, PYTHONPATH="/app:/mnt/site-packages")
        self.gateways = [
            self._container("gateway", gateway, 4),
            self._container("gateway", gateway, 5, WEB_CONCURRENCY="2"),
        ]
        self.nginx = self._container("nginx", Image(), 6)
        behind = [self.redis, *self.gateways, self.demo]
        for each in behind:
            each.launch()
        for each in behind:
            wait_until(each.is_healthy, 90)
        self.nginx.launch()
        wait_until(self.nginx.is_healthy, 90)

    def stop(self) -> None:
        self.box.stop()

    def ask(self, container: Container, text: str) -> tuple[dict[str, str], bytes]:
        """The head (names in small letters, and `status`) and body of an answer of a gateway or
        of nginx."""
        port = 8080 if container is self.nginx else 8000
        url = f"http://{container.address}:{port}{SPEECH}"
        curl = ("curl", "--silent", "--dump-header", "/tmp/head", "--output", "/tmp/body")
        self.box.run(*curl, url, "--data", json.dumps({"input": text}))
        first, *lines = self.box.path("/tmp/head").read_text().splitlines()
        head = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return {"status": first.split()[1], **head}, self.box.path("/tmp/body").read_bytes()

    def _prepare(self) -> None:
        """What Docker and the images of nginx and Redis bring along."""
        self.box.run("useradd", "--system", "--user-group", "nginx")
        self.box.run("mkdir", "-p", "/data", "/var/cache/nginx", "/var/log/nginx")
        for name in ("access.log", "error.log"):
            device = "/dev/stdout" if name == "access.log" else "/dev/stderr"
            self.box.run("ln", "-sf", device, f"/var/log/nginx/{name}")
        names = {"redis": (2,), "demo": (3,), "gateway": (4, 5), "nginx": (6,)}
        self.box.path("/etc/hosts").write_text(
            "127.0.0.1 localhost\n"
            + "".join(f"{NETWORK}.{n} {name}\n" for name, all_ in names.items() for n in all_)
        )
        for line in (
            "link set lo up",
            f"link add {BRIDGE} type bridge",
            f"address add {NETWORK}.1/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ):
            self.box.run("ip", *line.split())

    def _container(self, name: str, image: Image, number: int, **environment: str) -> Container:
        return Container(
            self.box,
            f"{name}-{number}",
            number,
            image,
            COMPOSE["services"][name],
            compose_folder=Path("/mnt") / PROJECT.name / "deploy",
            log=self._folder / f"{name}-{number}.log",
            **environment,
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require_box()
    for program in ("nginx", "redis-server", "curl", "ip"):
        require_program(program)
    running = Stack(tmp_path_factory.mktemp("stack"))
    try:
        start_all([running])
        yield running
    finally:
        running.stop()


def test_the_composed_services_speak_through_nginx(stack: Stack) -> None:
    head, body = stack.ask(stack.nginx, "Spoken in a container.")
    assert (head["status"], head["x-cache"]) == ("200", "MISS"), stack.nginx.log
    assert decode(body).seconds > 0.3
    again, same = stack.ask(stack.nginx, "Spoken in a container.")
    assert (again["x-cache"], same) == ("NGINX", body)


def test_the_composed_gateways_share_what_was_spoken(stack: Stack) -> None:
    one, other = stack.gateways
    said = [stack.ask(each, "Once for both of us.") for each in (one, other)]
    assert [head["x-cache"] for head, _ in said] == ["MISS", "HIT"]
    assert said[0][1] == said[1][1]


def test_the_composed_gateways_share_their_recordings(stack: Stack) -> None:
    one, other = stack.gateways
    voices = "/app/prompts"
    assert not one.run("cp", f"{voices}/default.wav", f"{voices}/alice.wav").returncode
    listed = stack.box.run("curl", "--silent", f"http://{other.address}:8000/v1/audio/voices")
    assert "alice" in {each["id"] for each in json.loads(listed.stdout)["voices"]}


def test_no_container_can_write_to_its_own_files_or_has_any_right(stack: Stack) -> None:
    for container in (stack.nginx, stack.redis, stack.demo, *stack.gateways):
        status = stack.box.path(f"/proc/{container.pid}/status").read_text()
        told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert "0" not in told["Uid"].split()
        assert {told[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {""}
        assert told["NoNewPrivs"] == "1"
        assert "Read-only file system" in container.run("touch", "/etc/here").stderr
    (gateway, _) = stack.gateways
    assert gateway.run("touch", "/app/here").returncode
    assert gateway.run("id", "-u").stdout.strip() == "10001"


def test_several_workers_count_together_on_a_read_only_root(stack: Stack) -> None:
    _, other = stack.gateways
    for number in range(6):
        assert stack.ask(other, f"Counted as {number}.")[0]["status"] == "200"
    counted = stack.box.run("curl", "--silent", f"http://{other.address}:8000/metrics").stdout
    told = re.findall(
        r'^tts_requests_total{cache="MISS",status="200"} (.*)$', counted, re.MULTILINE
    )
    assert float(told[0]) >= 6
    assert re.search("Booting worker.*Booting worker", other.log, re.DOTALL)


def test_a_stopped_gateway_ends_in_its_time_and_the_other_goes_on(stack: Stack) -> None:
    one, _ = stack.gateways
    assert one.is_healthy()
    assert one.stop() == 0
    for number in range(4):
        head, _ = stack.ask(stack.nginx, f"The other one says {number}.")
        assert head["status"] == "200"


def test_docker_is_sent_what_is_copied_and_nothing_else() -> None:
    ignored = (PROJECT / ".dockerignore").read_text()
    tracked = subprocess.check_output(["git", "ls-files"], cwd=PROJECT, text=True).splitlines()
    others = [".env", ".git/config", ".venv/bin/python", "tts_service/__pycache__/front.pyc"]
    copied = [
        source
        for stage in read_dockerfile(DOCKERFILE).values()
        for name, rest in stage.steps
        if name == "COPY" and "--from" not in rest
        for source in [word for word in shlex.split(rest) if not word.startswith("--")][:-1]
    ]
    wanted = {
        path
        for path in tracked
        if any(path == each or path.startswith(f"{each}/") for each in copied)
    }
    assert {path for path in tracked + others if is_sent(path, ignored)} == wanted


def test_the_compose_file_is_one_by_its_specification() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"),
            DEPLOY / "compose.yaml",
        ],
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stdout + done.stderr


def test_the_images_python_is_the_platforms() -> None:
    bases = {stage.base for stage in read_dockerfile(DOCKERFILE).values() if ":" in stage.base}
    assert bases == {f"python:{(PROJECT / '.python-version').read_text().strip()}-slim"}


# -- Kubernetes ------------------------------------------------------------------------------------

MANIFEST = {
    (item["kind"], item["metadata"]["name"]): item
    for item in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
}
POD = MANIFEST["Deployment", "tts-service"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def deployments() -> Iterator[dict[str, Any]]:
    return (item["spec"] for (kind, _), item in MANIFEST.items() if kind == "Deployment")


def test_what_the_manifest_refers_to_is_in_it() -> None:
    for spec in deployments():
        (container,) = spec["template"]["spec"]["containers"]
        mounted = {each["name"] for each in container.get("volumeMounts", [])}
        assert mounted == {each["name"] for each in spec["template"]["spec"].get("volumes", [])}
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels
    pods = {
        spec["selector"]["matchLabels"]["app.kubernetes.io/name"]: spec for spec in deployments()
    }
    for name in pods:
        service = MANIFEST["Service", name]["spec"]
        ports = pods[name]["template"]["spec"]["containers"][0]["ports"]
        assert service["selector"] == pods[name]["selector"]["matchLabels"]
        assert {each["targetPort"] for each in service["ports"]} <= {each["name"] for each in ports}
    kinds = {"configMapRef": "ConfigMap", "secretRef": "Secret"}
    for source in CONTAINER["envFrom"]:
        ((kind, reference),) = source.items()
        assert (kinds[kind], reference["name"]) in MANIFEST
    (claim,) = [each for each in POD["volumes"] if "persistentVolumeClaim" in each]
    assert ("PersistentVolumeClaim", claim["persistentVolumeClaim"]["claimName"]) in MANIFEST
    budget = MANIFEST["PodDisruptionBudget", "tts-service"]["spec"]
    assert budget["selector"] == MANIFEST["Deployment", "tts-service"]["spec"]["selector"]


def test_the_manifests_settings_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        **MANIFEST["ConfigMap", "tts-service"]["data"],
        **MANIFEST["Secret", "tts-service"]["stringData"],
    }
    assert given.keys() <= Config.model_fields.keys()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    config = read_config()
    assert str(config.PROMPTS_DIR) in {each["mountPath"] for each in CONTAINER["volumeMounts"]}
    redis = urlsplit(config.REDIS_URL or "")
    (port,) = MANIFEST["Service", redis.hostname]["spec"]["ports"]
    assert port["port"] == redis.port


def test_a_gateway_whose_backends_are_down_passes_every_probe_and_answers_from_its_cache(
    gateway: StartGateway, gradio_app: Callable[..., GradioApp]
) -> None:
    backend = gradio_app()
    service = gateway(GRADIO_URL=backend.url)
    assert service.post({"input": "Kept for later."}).status_code == 200
    backend.kill()
    wait_until(lambda: service.client.get("/health/ready").status_code == 503, 30)
    for name in PROBES:
        asked = CONTAINER[name]["httpGet"]
        assert asked["port"] in {each["name"] for each in CONTAINER["ports"]}
        assert service.client.get(asked["path"]).status_code == 200
    assert service.post({"input": "Kept for later."}).headers["X-Cache"] == "HIT"


def test_containers_are_as_confined_there_as_in_docker() -> None:
    (user,) = {
        rest
        for stage in read_dockerfile(DOCKERFILE).values()
        for name, rest in stage.steps
        if name == "USER"
    }
    assert user == f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}"
    assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"]
    assert "/tmp" in {each["mountPath"] for each in CONTAINER["volumeMounts"]}
    for spec in deployments():
        assert spec["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
        (container,) = spec["template"]["spec"]["containers"]
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_manifests_redis_starts_with_its_arguments(
    start_servers: StartServers, tmp_path: Path
) -> None:
    spec = MANIFEST["Deployment", "tts-redis"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["command"] == ["redis-server"]
    (server,) = start_servers(RedisServer(tmp_path, *container["args"]))
    assert server.client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}


def test_every_platform_waits_longer_for_the_end_than_gunicorn() -> None:
    (grace,) = re.findall(
        r"^graceful_timeout = (\d+)$", (PROJECT / "gunicorn.conf.py").read_text(), re.MULTILINE
    )
    (systemd,) = re.findall(
        r"^TimeoutStopSec=(\d+)$", (DEPLOY / "tts-service.service").read_text(), re.MULTILINE
    )
    docker = COMPOSE["services"]["gateway"]["stop_grace_period"].removesuffix("s")
    (_, pause) = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    kubernetes = POD["terminationGracePeriodSeconds"] - int(pause)
    assert min(int(systemd), int(docker), kubernetes) >= int(grace) + 5


# -- nginx -----------------------------------------------------------------------------------------


def test_the_pages_lines_for_tls_make_nginx_speak_it(
    gateway: StartGateway, backend: GradioApp, tmp_path: Path
) -> None:
    page = (PROJECT / "docs" / "deploy" / "nginx.md").read_text()
    listen, redirect, _ = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    self_signed(tmp_path / "privkey.pem", tmp_path / "fullchain.pem")
    front = TlsNginx(tmp_path, gateway(GRADIO_URL=backend.url).url, listen=listen, more=redirect)
    try:
        start_all([front])
        tls = httpx.Client(base_url=f"https://127.0.0.1:{front.port}", verify=False, timeout=60)
        assert tls.post(SPEECH, json={"input": "Over TLS."}).status_code == 200
        plain = httpx.post(f"http://127.0.0.1:{front.plain_port}{SPEECH}", json={"input": "Hm."})
        assert plain.status_code == 308
        assert plain.headers["Location"] == f"https://127.0.0.1{SPEECH}"
    finally:
        front.stop()


class TlsNginx(NginxServer):
    """nginx with the page's lines in the place of `listen`, and its second server."""

    def __init__(self, folder: Path, gateway: str, *, listen: str, more: str) -> None:
        super().__init__(folder, gateway)
        self.plain_port = free_port()
        self._listen = listen.replace("listen 443", f"listen 127.0.0.1:{self.port}").replace(
            "/etc/ssl/tts", str(folder)
        )
        self._more = more.replace("listen 80", f"listen 127.0.0.1:{self.plain_port}")

    def configuration(self) -> str:
        text = super().configuration()
        listen = f"        listen 127.0.0.1:{self.port};\n"
        assert listen in text
        text = text.replace(listen, self._listen)
        return text.replace("    server {\n", f"{self._more}\n    server {{\n", 1)


def test_the_pages_site_beside_others_passes_speech_and_streams(
    gateway: StartGateway, backend: GradioApp, tmp_path: Path
) -> None:
    page = (PROJECT / "docs" / "deploy" / "nginx.md").read_text()
    *_, site = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    front = SiteNginx(tmp_path, gateway(GRADIO_URL=backend.url).url, site)
    try:
        start_all([front])
        asked = {"input": "The first sentence. The second sentence is held back.", "stream": True}
        backend.control(hold=True, release=1)
        with front.client.stream("POST", SPEECH, json=asked) as answer:
            chunks = answer.iter_raw()
            assert next(chunks)
            backend.control(hold=False)
            assert b"".join(chunks)
    finally:
        front.stop()


class SiteNginx(NginxServer):
    """nginx as a distribution has it, with one more site."""

    def __init__(self, folder: Path, gateway: str, site: str) -> None:
        super().__init__(folder, gateway)
        self._site = site.replace("listen 80", f"listen 127.0.0.1:{self.port}").replace(
            "http://127.0.0.1:8000", gateway
        )

    def configuration(self) -> str:
        (tmp := self._folder / "body").mkdir()
        return (
            f"user {getpass.getuser()};\npid {self._folder}/nginx.pid;\nevents {{}}\n"
            f"http {{ access_log off; client_body_temp_path {tmp};\n{self._site}}}"
        )
