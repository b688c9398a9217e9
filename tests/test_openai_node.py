"""OpenAI's SDK for Node against the service: the last line made for Node 20, and the newest."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import StartGateway
from documents import README, blocks
from sdk_contract import SdkContract
from sdk_process import Sdk
from servers import GradioApp, require_program

from tts_service.audio import decode


class TestNodeSdk(SdkContract):
    @pytest.fixture(scope="class", params=["6", "7"])
    @classmethod
    def sdk(cls, request: pytest.FixtureRequest, node_packages: Path) -> Iterator[Sdk]:
        command = [require_program("node"), "scenario.mjs", f"openai-{request.param}"]
        with Sdk(command, node_packages) as sdk:
            assert sdk.version.startswith(f"{request.param}.")
            yield sdk


def test_the_readmes_example_for_node_brings_speech(
    node_packages: Path, gateway: StartGateway, backend: GradioApp
) -> None:
    (example,) = blocks(README, "js")
    code = example.replace("http://127.0.0.1:8000", gateway(GRADIO_URL=backend.url).url)
    script = node_packages / "example.mjs"
    script.write_text(code.replace('from "openai"', 'from "openai-7"'))
    subprocess.run(
        [require_program("node"), script.name], cwd=node_packages, check=True, timeout=60
    )
    assert decode((node_packages / "hello.mp3").read_bytes()).seconds > 0.3
