"""OpenAI's SDK for Node against the service: the last line made for Node 20, and the newest."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sdk_contract import SdkContract
from sdk_process import Sdk
from servers import require_program


class TestNodeSdk(SdkContract):
    @pytest.fixture(scope="class", params=["6", "7"])
    @classmethod
    def sdk(cls, request: pytest.FixtureRequest, node_packages: Path) -> Iterator[Sdk]:
        command = [require_program("node"), "scenario.mjs", f"openai-{request.param}"]
        with Sdk(command, node_packages) as sdk:
            assert sdk.version.startswith(f"{request.param}.")
            yield sdk
