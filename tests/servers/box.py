"""A machine within this one, where systemd runs and anything may be installed."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from servers.machine import require_program, wait_until

START_LIMIT = 30  # seconds
STOP_LIMIT = 20  # seconds
SYSTEMD = "/lib/systemd/systemd"
#: This Python, at a place that everybody may read, as a distribution's own.
PYTHON = Path("/usr/local/python/bin") / f"python{sys.version_info[0]}.{sys.version_info[1]}"

# Within new namespaces: over this machine's files a layer that is forgotten, `$1`; in /mnt the
# folders that were given. /sys and /proc/sys are this kernel's, so nobody there may change them.
_SET_UP = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p "usr/local/python"
mount --bind "$2" "usr/local/python"
echo /usr/local/python/lib >etc/ld.so.conf.d/00-python.conf
chroot . ldconfig
shift 2
for folder; do
    mkdir -p "mnt/$(basename "$folder")"
    mount --bind "$folder" "mnt/$(basename "$folder")"
done
rm -rf etc/systemd/system
mkdir -p etc/systemd/system oldroot
for target in sysinit basic multi-user shutdown; do
    printf '[Unit]\\nDefaultDependencies=no\\n' >"etc/systemd/system/$target.target"
done
pivot_root . oldroot
umount -l /oldroot
rmdir /oldroot
exec env -i container=box PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    SYSTEMD_UNIT_PATH=/etc/systemd/system "$SYSTEMD" --system --unit=multi-user.target \\
    --log-target=console --show-status=no
"""


class Box:
    """A view of this machine with files and processes of its own.

    Its network is the same, or, if `has_network`, one of its own, out of which nothing leads. All
    files of the system are there; what is changed is forgotten with it. systemd is its first
    process and knows no units but those laid into /etc/systemd/system. Each of `folders` is at
    `/mnt/<its name>`, and this Python is at `PYTHON`.
    """

    def __init__(self, *folders: Path, has_network: bool = False) -> None:
        self._folders = folders
        self._network = ["--net"] if has_network else []
        self._layer = Path(tempfile.mkdtemp(prefix="box-"))
        self._log = self._layer.with_suffix(".log")
        groups = _cgroup2()
        assert groups is not None  # see require_box
        self._group = groups / self._layer.name
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it and return at once."""
        require_program("unshare")
        atexit.register(self.stop)
        self._group.mkdir()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"),
                    *self._network,
                    *("--cgroup", "sh", "-c", _SET_UP, "box", self._layer, sys.base_prefix),
                    *self._folders,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "SYSTEMD": SYSTEMD},
                preexec_fn=lambda: (self._group / "cgroup.procs").write_text("0"),
            )

    def wait_ready(self) -> None:
        """Return once systemd takes orders."""
        wait_until(self._is_running, START_LIMIT)

    def stop(self) -> None:
        """End it; no process and no file of it is left."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()  # --kill-child: its first process goes with it, and with that all others
        process.wait(STOP_LIMIT)
        wait_until(self._is_gone, STOP_LIMIT)
        shutil.rmtree(self._layer, ignore_errors=True)
        self._log.unlink()
        atexit.unregister(self.stop)

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        is_online: bool = False,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root; its output is told if it fails. With `is_online` the
        command has this machine's network in any case."""
        done = subprocess.run(
            self.command(*command, is_online=is_online),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def command(self, *command: str | Path, is_online: bool = False) -> Sequence[str | Path]:
        """What has to be started here for `command` to run in it."""
        flags = ["--mount", "--pid", "--ipc", "--uts", "--cgroup"]
        if not is_online:
            flags += self._network
        return ("nsenter", "--target", str(self._first()), *flags, "--", *command)

    def path(self, path: str | Path) -> Path:
        """Where one of its files is from here."""
        return Path(f"/proc/{self._first()}/root") / Path(path).relative_to("/")

    def show(self, unit: str, name: str) -> str:
        """One of the unit's properties."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.strip()

    def _first(self) -> int:
        """The pid, as seen from here, of its first process."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            raise RuntimeError(f"the box has ended: {self._log.read_text()}")
        return int(children[0])

    def _is_running(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"the box ended with {code}: {self._log.read_text()}")
        if not Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text():
            return False
        if Path(f"/proc/{self._first()}/comm").read_text().strip() != Path(SYSTEMD).name:
            return False
        told = self.run("systemctl", "is-system-running", check=False).stdout
        return told.strip() in ("running", "degraded")

    def _is_gone(self) -> bool:
        for folder, _, _ in os.walk(self._group, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
        return not self._group.exists()


def require_box() -> None:
    """Skip the test where there can be no box; in CI that fails it."""
    lacking = None
    if os.geteuid() != 0:
        lacking = "only root can make namespaces"
    elif not Path(SYSTEMD).exists():
        lacking = "systemd is not installed"
    elif "overlay" not in Path("/proc/filesystems").read_text():
        lacking = "the kernel has no overlay"
    elif _cgroup2() is None:
        lacking = "no cgroup2 is mounted"
    if lacking and os.environ.get("CI") == "true":
        pytest.fail(f"{lacking}, and CI must not skip what needs it")
    if lacking:
        pytest.skip(lacking)


def _cgroup2() -> Path | None:
    """Where control groups of the second version are, if they are."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(folder)
    return None
