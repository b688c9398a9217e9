"""What tests ask of the machine they run on: ports, programs, patience."""

import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import pytest

#: Below Linux's range for outgoing connections: a port from inside it can be taken by any client
#: between our choosing it and a server's binding it, or while a killed server is away.
SERVER_PORTS = range(20_000, 32_000)

Found = TypeVar("Found")


class Server(Protocol):
    """A process that is started in two steps, so that several can start side by side."""

    def launch(self) -> None:
        """Start the process and return at once."""

    def wait_ready(self) -> None:
        """Return once it answers; RuntimeError if it ends, AssertionError if it takes too long."""

    def stop(self) -> object:
        """End it; no process of it is left."""


AnyServer = TypeVar("AnyServer", bound=Server)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    while True:
        port = random.choice(SERVER_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_until(condition: Callable[[], Found], limit: float = 10) -> Found:
    """The first true value of `condition`; AssertionError after `limit` seconds without one."""
    deadline = time.monotonic() + limit
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit} s in vain; the last value was {found!r}")
        time.sleep(0.01)
    return found


def require_program(name: str) -> str:
    """The program's path; without it the test is skipped, except in CI, where it fails."""
    path = shutil.which(name)
    if path is None and os.environ.get("CI") == "true":
        pytest.fail(f"{name} is missing, and CI must not skip what needs it")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def start_all(servers: Sequence[AnyServer]) -> Sequence[AnyServer]:
    """Start all at once, then wait for each."""
    for server in servers:
        server.launch()
    for server in servers:
        server.wait_ready()
    return servers
