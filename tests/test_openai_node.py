"""OpenAI's SDK for Node against the service: the last line made for Node 20, and the newest."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sdk_contract import SdkContract
from sdk_process import Sdk
from servers import require_program

PROJECT = Path(__file__).with_name("node")
INSTALL_LIMIT = 100  # seconds


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `tests/node` with its packages, as the lock file has them.

    Where they cannot be fetched the test is skipped, except in CI.
    """
    folder = tmp_path_factory.mktemp("node") / "project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        [require_program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=INSTALL_LIMIT,
        check=False,
    )
    if done.returncode and os.environ.get("CI") == "true":
        pytest.fail(f"npm cannot install, and CI must not skip what needs it: {done.stderr}")
    if done.returncode:
        pytest.skip(f"npm cannot install: {done.stderr[-200:]}")
    return folder


class TestNodeSdk(SdkContract):
    @pytest.fixture(scope="class", params=["6", "7"])
    @classmethod
    def sdk(cls, request: pytest.FixtureRequest, installed: Path) -> Iterator[Sdk]:
        command = [require_program("node"), "scenario.mjs", f"openai-{request.param}"]
        with Sdk(command, installed) as sdk:
            assert sdk.version.startswith(f"{request.param}.")
            yield sdk
