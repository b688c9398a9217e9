"""The service in a folder, as deploy/install.sh lays it: with requirements.txt and no more."""

import configparser
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from servers.gateway import PROJECT, Gateway

APP = Path("/opt/tts-service")
UNIT = Path("/etc/systemd/system/tts-service.service")


class Installation:
    """What `deploy/install.sh --root folder` makes of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = self.path(APP)
        self.bin = self.app / ".venv" / "bin"

    def install(self, *arguments: str) -> str:
        """Run the script, and return what it says. RuntimeError with that, if it fails."""
        done = subprocess.run(
            [
                *(PROJECT / "deploy" / "install.sh", "--root", self.folder),
                *("--python", sys.executable, *arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(f"install.sh ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def path(self, path: Path | str) -> Path:
        """Where a file of the installed system is."""
        return self.folder / Path(path).relative_to("/")

    def unit(self) -> Mapping[str, str]:
        """[Service] of the unit; of a name that stands there twice, the last value."""
        parser = configparser.RawConfigParser(strict=False, delimiters="=", comment_prefixes="#")
        parser.optionxform = str  # type: ignore[assignment,method-assign] # as they are written
        parser.read(self.path(UNIT))
        return parser["Service"]


class UnitGateway(Gateway):
    """The service as the unit starts it, in a scratch folder: by its line, in its folder, and with
    its environment, PORT and `variables`. All else comes from its `.env`."""

    def __init__(self, folder: Path, installation: Installation, **variables: object) -> None:
        super().__init__(folder, project=installation.app)
        self._installation = installation
        self._variables = variables

    def _command(self) -> str:
        line = self._installation.unit()["ExecStart"]
        return line.replace(str(APP), str(self._installation.app))

    def _environment(self) -> dict[str, str]:
        given = shlex.split(self._installation.unit()["Environment"])
        own = {"PORT": self.port, "TMPDIR": self.temp, **self._variables}
        return (
            {"PATH": os.environ["PATH"]}
            | {name: str(value) for name, value in own.items()}
            | dict(pair.split("=", 1) for pair in given)
        )


class PaasGateway(Gateway):
    """The service as a PaaS starts it: by the Procfile's line, in the checkout, with what
    requirements.txt brings on PATH, and with PORT and `variables` alone."""

    def __init__(self, folder: Path, installation: Installation, **variables: object) -> None:
        super().__init__(folder)
        self._bin = installation.bin
        self._variables = variables

    def _environment(self) -> dict[str, str]:
        own = {"PORT": self.port, "TMPDIR": self.temp, **self._variables}
        path = os.pathsep.join([str(self._bin), "/usr/bin", "/bin"])
        return {"PATH": path, **{name: str(value) for name, value in own.items()}}
