"""What Docker would do with our Dockerfile and compose file, done in a box.

Steps are carried out as they are written, and containers run with the user, the rights, the
files and the network that Docker would give them. Not Docker's: the base images, for which the box
itself stands in, and layers: all stages share the box's one file system.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from servers.box import PYTHON, Box

PATH = f"{PYTHON.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BRIDGE = "br0"
NETWORK = "10.99.0"  # the box is .1


@dataclass(frozen=True)
class Stage:
    """FROM and what follows it."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Image:
    """What a container is made of; an exec-form CMD and HEALTHCHECK, as all of ours are."""

    environment: Mapping[str, str] = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0:0"
    command: Sequence[str] = ()
    check: Sequence[str] = ()


def read_dockerfile(text: str) -> dict[str, Stage]:
    """The stages by their names, of a file in which each has one."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            base, named, stage = rest.split()
            assert named == "AS"
            stages[stage] = Stage(base)
        else:
            stages[[*stages][-1]].steps.append((name, rest.strip()))
    return stages


def is_sent(path: str, dockerignore: str) -> bool:
    """Whether a file of the context is sent to Docker: the last line that matches decides."""
    path_and_parents = [path, *(str(parent) for parent in Path(path).parents)]
    sent = True
    for line in dockerignore.splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if any(
            fnmatch(each, pattern) or fnmatch(f"/{each}", pattern.replace("**/", "*/"))
            for each in path_and_parents
        ):
            sent = line.startswith("!")
    return sent


class Builder:
    """Carries out the stages of a Dockerfile in `box`, where the context is at `context`."""

    def __init__(self, box: Box, context: Path, text: str) -> None:
        self._box = box
        self._context = context
        self._stages = read_dockerfile(text)
        self._built: dict[str, Image] = {}

    def build(self, stage: str, *, without: Sequence[str] = ()) -> Image:
        """The image of a stage, after those that it needs but for `without`."""
        if stage not in self._stages or stage in without:
            return Image()
        if stage not in self._built:
            image = self.build(self._stages[stage].base, without=without)
            for name, rest in self._stages[stage].steps:
                image = self._step(image, name, rest, without)
            self._built[stage] = image
        return self._built[stage]

    def _step(self, image: Image, name: str, rest: str, without: Sequence[str]) -> Image:
        if name == "ENV":
            pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
            known = image.environment
            values = {
                key: re.sub(r"\$(\w+)", lambda found: known[found[1]], value)
                for key, value in pairs.items()
            }
            return replace(image, environment={**known, **values})
        if name == "RUN":
            self._run(image, rest)
        elif name == "COPY":
            self._copy(image, shlex.split(rest), without)
        elif name == "WORKDIR":
            self._box.run("mkdir", "-p", rest)
            return replace(image, folder=rest)
        elif name == "USER":
            return replace(image, user=rest)
        elif name == "CMD":
            return replace(image, command=json.loads(rest))
        elif name == "HEALTHCHECK":
            return replace(image, check=json.loads(rest.partition(" CMD ")[2]))
        elif name != "EXPOSE":
            raise AssertionError(f"what is {name}?")
        return image

    def _run(self, image: Image, command: str) -> None:
        assert image.user == "0:0"
        command = re.sub(r"^(--mount=type=cache,\S+\s+)*", "", command)  # pip's own will do
        line = f"cd {image.folder} && {command}"
        self._box.run("sh", "-c", line, is_online=True, **image.environment)

    def _copy(self, image: Image, words: Sequence[str], without: Sequence[str]) -> None:
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        *sources, target = [word for word in words if not word.startswith("--")]
        if (stage := options.get("from")) is not None:
            self.build(stage, without=without)
            assert sources == [target]  # it is there already
            return
        for source in sources:
            there = Path(image.folder) / target / (source if target.endswith("/") else "")
            self._box.run("mkdir", "-p", there.parent)
            self._box.run("cp", "-RT", self._context / source, there)
            self._box.run("chown", "-R", options.get("chown", "0:0"), there)


class Container:
    """A service of a compose file, on the network of the box."""

    def __init__(
        self,
        box: Box,
        name: str,
        number: int,
        image: Image,
        service: Mapping[str, Any],
        *,
        compose_folder: Path,
        log: Path,
        **environment: str,
    ) -> None:
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self._box = box
        self._image = image
        self._service = service
        self._compose_folder = compose_folder
        self._log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it and return at once."""
        self._connect()
        self._log.touch()
        self._log.chmod(0o666)  # nginx opens its standard output by name
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._box.command(
                    *self._in_network("unshare", "--mount", "sh", "-c", self._script())
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> int:
        """SIGTERM, as by `docker compose stop`, and its exit code. After the time that the
        service is given it is killed, which is 137."""
        assert self._process is not None
        grace = float(self._service.get("stop_grace_period", "10s").removesuffix("s"))
        self._box.run("kill", "-TERM", self.pid)
        try:
            return self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._box.run("kill", "-KILL", self.pid)
            return 128 + abs(self._process.wait(10))

    @property
    def pid(self) -> str:
        """Of its first process, inside of the box."""
        return self._box.path(f"/run/{self.name}.pid").read_text().strip()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def run(self, *command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command in it, by its user and with its environment, as `docker exec`."""
        inside = ("nsenter", "--target", self.pid, "--mount", "--net", "--wd", "--")
        return self._box.run(*inside, *self._as_user(command), check=check)

    def is_healthy(self) -> bool:
        """What its health check says: the compose file's, else the image's. RuntimeError with the
        log if it has ended."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"{self.name} ended with {code}: {self.log}")
        if not self._box.path(f"/run/{self.name}.pid").exists():
            return False
        own = self._service.get("healthcheck", {}).get("test")
        check = own[1:] if own else self._image.check
        return not self.run(*check).returncode

    def _connect(self) -> None:
        """Give it a network card."""
        outside = f"v-{self.name}"[:15]
        for line in (
            f"netns add {self.name}",
            f"link add {outside} type veth peer name eth0 netns {self.name}",
            f"link set {outside} master {BRIDGE} up",
            f"-n {self.name} address add {self.address}/24 dev eth0",
            f"-n {self.name} link set eth0 up",
            f"-n {self.name} link set lo up",
        ):
            self._box.run("ip", *line.split())

    def _in_network(self, *command: str) -> Sequence[str]:
        return ("nsenter", f"--net=/run/netns/{self.name}", "--", *command)

    def _script(self) -> str:
        assert self._service["read_only"] is True
        lines = ["set -e", f"echo $$ >/run/{self.name}.pid"]
        for volume in self._service.get("volumes", []):
            lines += self._mount(*volume.split(":")[:2])
        lines.append("mount -o remount,bind,ro /")
        for each in ("/dev/shm:mode=1777", *self._service.get("tmpfs", [])):
            path, _, options = each.partition(":")
            lines.append(f"mount -t tmpfs -o {options or 'rw'} tmpfs {path}")
        command = self._service.get("command", self._image.command)
        lines += [f"cd {self._image.folder}", f"exec {shlex.join(self._as_user(command))}"]
        return "\n".join(lines)

    def _mount(self, source: str, target: str) -> list[str]:
        """A file beside the compose file, or a volume, filled at first with what is there."""
        if source.startswith("."):
            there = self._compose_folder / source
            return [
                f"mkdir -p {Path(target).parent}",
                f"touch {target}",
                f"mount --bind {there} {target}",
            ]
        volume = f"/volumes/{source}"
        return [
            f"[ -d {volume} ] || (mkdir -p /volumes && cp -a {target} {volume})",
            f"mount --bind {volume} {target}",
        ]

    def _as_user(self, command: Sequence[str]) -> Sequence[str]:
        assert self._service["cap_drop"] == ["ALL"]
        assert self._service["security_opt"] == ["no-new-privileges:true"]
        user, _, group = self._service.get("user", self._image.user).partition(":")
        environment = {**self._image.environment, **self._given(), **self._environment}
        return (
            *("setpriv", "--reuid", user, "--regid", group or user, "--clear-groups"),
            *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"),
            *("env", "-i", *(f"{name}={value}" for name, value in environment.items())),
            *command,
        )

    def _given(self) -> dict[str, str]:
        """The service's environment where the shell that runs compose has none of its own."""
        given = self._service.get("environment", {})
        return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in given.items()}
