"""OpenAI's SDK for Python, the newest and the line before it, against the service."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sdk_contract import SdkContract
from sdk_process import Sdk

SCRIPT = Path(__file__).with_name("sdk_scenario.py")
INSTALL_LIMIT = 100  # seconds


def installed(requirement: str, folder: Path) -> Path:
    """A folder with `requirement` and what it needs; fetched once, and kept with pytest's cache.

    Where it cannot be fetched the test is skipped, except in CI.
    """
    if not folder.exists():
        partly = folder.with_name(f"{folder.name}.{os.getpid()}")
        done = subprocess.run(
            [*(sys.executable, "-m", "pip", "install", "--quiet", "--target", partly), requirement],
            capture_output=True,
            text=True,
            timeout=INSTALL_LIMIT,
            check=False,
        )
        if done.returncode and os.environ.get("CI") == "true":
            pytest.fail(
                f"{requirement} cannot be installed, and CI must not skip it: {done.stderr}"
            )
        if done.returncode:
            shutil.rmtree(partly, ignore_errors=True)
            pytest.skip(f"{requirement} cannot be installed: {done.stderr[-200:]}")
        partly.rename(folder)
    return folder


class TestPythonSdk(SdkContract):
    ways = ("whole", "chunks", "file", "async")

    @pytest.fixture(scope="class", params=["newest", "2"])
    @classmethod
    def sdk(
        cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Sdk]:
        environment = {}
        if request.param != "newest":
            assert request.config.cache
            folder = request.config.cache.mkdir("openai-sdk") / request.param
            environment["PYTHONPATH"] = str(installed(f"openai=={request.param}.*", folder))
        folder = tmp_path_factory.mktemp("sdk")
        with Sdk([sys.executable, SCRIPT], folder, **environment) as sdk:
            assert sdk.version.startswith("2.") == (request.param == "2")
            yield sdk
