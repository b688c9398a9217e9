"""Requests nobody thought of, made from two descriptions of the API: OpenAI's, and our own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Gateway, GradioApp, start_all
from servers.machine import Server

OFFICIAL = Path(__file__).parents[2] / "shared" / "openai-audio-spec.json"
SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
KEY = "sk-schemathesis"
SEED = 20261123  # the same requests in every run: what fails can be repeated
EXAMPLES = 40
LIMIT = 400  # seconds; each run takes about 40

pytestmark = pytest.mark.timeout(LIMIT + 60)

#: A range that an answer turns out not to have is refused, however well it was asked for; and so
#: are names of more letters than JSON Schema knows, and files without a sound in them.
OWN_RULES = """
[[operations]]
include-name = "GET /v1/audio/speech"
checks.positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "401", "403", "404", "409", "416", "429", "5xx",
]

[[operations]]
include-name = "GET /v1/audio/voices/{voice}/sample"
checks.positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "401", "403", "404", "409", "416", "429", "5xx",
]

[[operations]]
include-name = "POST /v1/audio/voices"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "409", "5xx"]
"""

#: Where this service differs from OpenAI's description on purpose.
NOT_OPENAI = (
    "status_code_conformance",  # it declares 200 and 429, and no other status
    "content_type_conformance",  # one type for every sound
    "response_schema_conformance",
    "positive_data_acceptance",  # it takes any voice
    "negative_data_rejection",  # nulls, strange fields and missing ones are accepted here
    "ignored_auth",  # the lists of models are open
    "missing_required_header",
    "unsupported_method",  # a link, GET, is no method of OpenAI's
    "allow_header_conformance",
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a key and a backend whose speech is short."""
    app = GradioApp("indextts-1.0", ms_audio_per_char=1)
    gateway = Gateway(tmp_path_factory.mktemp("served"), GRADIO_URL=app.url, API_KEYS=KEY)
    servers: list[Server] = [app, gateway]
    try:
        start_all(servers)
        yield gateway
    finally:
        gateway.stop()
        app.stop()


def run(folder: Path, *arguments: str, rules: str = "") -> None:
    """Run Schemathesis; what it finds is the failure's text."""
    (folder / "schemathesis.toml").write_text(rules)
    found = subprocess.run(
        [
            *(str(SCHEMATHESIS), "run", *arguments),
            *("--header", f"Authorization: Bearer {KEY}"),
            *("--max-examples", str(EXAMPLES), "--seed", str(SEED)),
            *("--generation-database", "none", "--no-color", "--continue-on-failure"),
        ],
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def statuses(service: Gateway, since: int) -> set[int]:
    """What the service has answered since its log was this long."""
    return {int(status) for status in re.findall(r" status=(\d+) ", service.log[since:])}


def test_the_service_keeps_every_promise_of_its_own_document(
    served: Gateway, tmp_path: Path
) -> None:
    began = len(served.log)
    run(tmp_path, f"{served.url}/openapi.json", rules=OWN_RULES)
    # These the checks have seen and compared with the document; fewer would prove little.
    assert {200, 400, 401, 404, 405, 415} <= statuses(served, began)
    assert "Traceback" not in served.log


def test_nothing_that_openais_document_allows_breaks_the_service(
    served: Gateway, tmp_path: Path
) -> None:
    if not OFFICIAL.exists():
        pytest.skip("OpenAI's description is not beside this project (../shared)")
    began = len(served.log)
    run(
        tmp_path,
        str(OFFICIAL),
        "--url",
        f"{served.url}/v1",
        "--exclude-checks=" + ",".join(NOT_OPENAI),
    )
    assert statuses(served, began) == {200, 400, 401, 404, 405, 415}
    assert "Traceback" not in served.log
