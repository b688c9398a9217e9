"""What the figures were measured on, and with."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.options import Options

_OURS = ("gunicorn", "flask", "gradio", "gradio-client")
_UVICORN = ("uvicorn", "fastapi", "gradio-client", "uvloop", "httptools")
_TELL_VERSIONS = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print("no", name)
"""


def described(options: Options) -> str:
    """The day, the machine and the versions, as a Markdown list."""
    ours = ", ".join(f"{name} {version(name)}" for name in _OURS)
    lines = [
        f"{datetime.date.today()}, {os.cpu_count()} cores ({_processor()}), "
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f} before",
        f"this service and the stand-in: {ours}",
    ]
    if options.anchors is not None:
        command = [str(options.original_python), "-c", _TELL_VERSIONS, *_UVICORN]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines.append(f"the original design: {', '.join(told.splitlines())}")
    return "\n".join(f"- {line}" for line in lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
