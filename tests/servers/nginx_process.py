"""A real nginx with the project's own deploy/nginx.conf, for a test alone."""

import atexit
import getpass
import re
import socket
import subprocess
from pathlib import Path

import httpx

from servers.machine import free_port, require_program, wait_until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"
START_LIMIT = 10  # seconds
STOP_LIMIT = 10  # seconds


class NginxServer:
    """nginx on 127.0.0.1 in front of `gateways`, each a URL without a path.

    `folder` receives its configuration, its logs, and its cache, which another `launch` after
    `stop` finds again. `client` is an httpx client of it.
    """

    client: httpx.Client

    def __init__(self, folder: Path, *gateways: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder / f"nginx-{self.port}"
        self._gateways = gateways
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it and return at once."""
        program = require_program("nginx")
        atexit.register(self.stop)
        for each in (self._folder / "cache", self._folder / "log"):
            each.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "nginx.conf"
        configuration.write_text(self.configuration())
        self.client = httpx.Client(base_url=self.url, verify=False, timeout=60)
        with (self._folder / "log" / "error.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-p", self._folder, "-c", configuration, "-g", "daemon off;"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        """Return once it listens. It is not asked anything: a gateway that is not up yet would be
        left out for its first seconds."""
        wait_until(self._listens, START_LIMIT)

    def stop(self) -> None:
        """End it, in the middle of any answer."""
        process, self._process = self._process, None
        if process is not None:
            self.client.close()
            process.terminate()
            process.wait(STOP_LIMIT)
            atexit.unregister(self.stop)

    def configuration(self) -> str:
        """deploy/nginx.conf with the places that anybody would adapt, and no others."""
        text = CONFIGURATION.read_text()
        gateways = "".join(f"server {url.removeprefix('http://')};\n" for url in self._gateways)
        for place, ours in (
            (r"^user .*;", f"user {getpass.getuser()};"),
            (r"\blisten 80;", f"listen 127.0.0.1:{self.port};"),
            (r"^ *server +127\.0\.0\.1:8000;\n", gateways),
            (r"/var/cache/nginx\b", f"{self._folder}/cache"),
            (r"/var/log/nginx\b", f"{self._folder}/log"),
            (r"^(pid +).*;", rf"\g<1>{self._folder}/nginx.pid;"),
        ):
            text, times = re.subn(place, ours, text, flags=re.MULTILINE)
            assert times, f"deploy/nginx.conf has nothing like {place}"
        return text

    @property
    def kept(self) -> Path:
        """The folder of the answers that it keeps."""
        return self._folder / "cache" / "speech"

    @property
    def log(self) -> str:
        """What it has complained about."""
        return (self._folder / "log" / "error.log").read_text(errors="replace")

    @property
    def access_log(self) -> str:
        """One line for each request, up to a second after it."""
        return (self._folder / "log" / "access.log").read_text(errors="replace")

    def _listens(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"nginx ended with {code}: {self.log}")
        try:
            socket.create_connection(("127.0.0.1", self.port), 2).close()
        except OSError:
            return False
        return True
