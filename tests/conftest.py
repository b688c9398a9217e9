"""Fixtures: recordings, and real servers to test against."""

import os
import shutil
import subprocess
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from servers import Gateway, GradioApp, RedisServer, require_program, start_all
from servers.machine import Server
from servers.sound import write_prompts

# On two shared cores an example's time says nothing.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


NODE_PROJECT = Path(__file__).with_name("node")
NPM_LIMIT = 100  # seconds

#: Shared apps that are kept running: an idle one costs 2 % of a core, starting one 0.4 s.
MOST_SHARED = 6

#: The files that take more than a minute, the longest first.
LONG = (
    *("test_soak", "test_attack", "test_deploy", "test_faults", "test_schemathesis"),
    *("test_openai_python", "test_cli", "test_page", "test_start"),
)

Pool = OrderedDict[tuple[str, str | None], GradioApp]
StartServers = Callable[..., Sequence[Any]]
StartGradioApp = Callable[..., GradioApp]
StartGateway = Callable[..., Gateway]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: a worker that begins the longest of all last ends long after the others."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A folder with `default.wav` and `chixiaotu6.wav`, which `gateway` serves."""
    folder = tmp_path / "prompts"
    write_prompts(folder)
    return folder


@pytest.fixture
def start_servers() -> Iterator[StartServers]:
    """`start_servers(one, another)`: start side by side, wait for all, stop them after the test."""
    with ExitStack() as started:

        def start(*servers: Server) -> Sequence[Server]:
            for server in servers:
                started.callback(server.stop)
            return start_all(servers)

        yield start


@pytest.fixture
def gradio_app(start_servers: StartServers) -> StartGradioApp:
    """`gradio_app(signature, **options)`: a running app for this test alone."""

    def start(signature: str = "indextts-1.0", **options: Any) -> GradioApp:
        app: GradioApp = start_servers(GradioApp(signature, **options))[0]
        return app

    return start


@pytest.fixture
def gateway(start_servers: StartServers, tmp_path: Path) -> StartGateway:
    """`gateway(GRADIO_URL=…, …)`: the running service, with these settings and no others."""

    def start(**settings: Any) -> Gateway:
        service: Gateway = start_servers(Gateway(tmp_path, **settings))[0]
        return service

    return start


@pytest.fixture
def redis_server(start_servers: StartServers, tmp_path: Path) -> RedisServer:
    """A running redis-server for this test alone."""
    server: RedisServer = start_servers(RedisServer(tmp_path))[0]
    return server


@pytest.fixture(scope="session")
def _pool() -> Iterator[Pool]:
    apps: Pool = OrderedDict()
    yield apps
    for app in apps.values():
        app.stop()


@pytest.fixture
def shared_app(_pool: Pool) -> StartGradioApp:
    """`shared_app(signature, form)`: an app that all tests share, reset for this one.

    For tests that neither end nor freeze it, and that want no more than `MOST_SHARED` at once.
    """

    def reset_or_start(signature: str, form: str | None = None) -> GradioApp:
        app = _pool.get((signature, form))
        if app is None:
            while len(_pool) >= MOST_SHARED:
                _pool.popitem(last=False)[1].stop()
            app = _pool[signature, form] = GradioApp(signature, form=form)
            start_all([app])
        else:
            app.control(reset=True)
        _pool.move_to_end((signature, form))
        return app

    return reset_or_start


@pytest.fixture
def backend(shared_app: StartGradioApp) -> GradioApp:
    """The shared IndexTTS 1.0, reset."""
    return shared_app("indextts-1.0")


@pytest.fixture(scope="session")
def node_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `tests/node` with its packages, as the lock file has them.

    Where they cannot be fetched the test is skipped, except in CI.
    """
    folder = tmp_path_factory.mktemp("node") / "project"
    shutil.copytree(NODE_PROJECT, folder, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        [require_program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=NPM_LIMIT,
        check=False,
    )
    if done.returncode and os.environ.get("CI") == "true":
        pytest.fail(f"npm cannot install, and CI must not skip what needs it: {done.stderr}")
    if done.returncode:
        pytest.skip(f"npm cannot install: {done.stderr[-200:]}")
    return folder
