"""The audit finds what is told of pinned versions, and says why when nothing is told."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from servers import free_port

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "scripts"))

from audit import Finding, Unreachable, audit, pinned  # noqa: E402 - a script, not a package

KNOWN = {
    "/flask/3.0.0/json": {"vulnerabilities": []},
    "/leaky/1.0/json": {
        "vulnerabilities": [
            {"id": "PYSEC-1", "fixed_in": ["1.1"], "withdrawn": None},
            {"id": "PYSEC-2", "fixed_in": [], "withdrawn": "2026-01-01"},
            {"id": "PYSEC-3", "fixed_in": []},
        ]
    },
}


class _Index(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        told = KNOWN.get(self.path)
        self.send_response(200 if told else 404)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def index() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Index)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_is_known_of_a_version_is_found_unless_it_was_withdrawn(index: str) -> None:
    pins = [("flask", "3.0.0"), ("leaky", "1.0"), ("private", "1.0")]
    assert list(audit(pins, index)) == [
        Finding("leaky", "1.0", "PYSEC-1", "1.1"),
        Finding("leaky", "1.0", "PYSEC-3", "no version yet"),
    ]


def test_where_the_api_does_not_answer_it_is_said_how(index: str) -> None:
    with pytest.raises(Unreachable, match="no JSON API"):
        list(audit([("flask", "9")], index))
    with pytest.raises(Unreachable, match="does not answer"):
        list(audit([("flask", "3.0.0")], f"http://127.0.0.1:{free_port()}"))


def test_every_pin_is_read(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("Flask==3.0.0\n    # via x\nb==1 ; python_version\n")
    (tmp_path / "requirements-dev.txt").write_text("flask==3.0.0\nd_e==2.0.1 \\\n")
    assert pinned(tmp_path) == [("b", "1"), ("d_e", "2.0.1"), ("flask", "3.0.0")]
    assert len(pinned()) > 50


def test_without_an_answer_it_ends_well_and_says_so() -> None:
    run = subprocess.run(
        [sys.executable, PROJECT / "scripts/audit.py", f"http://127.0.0.1:{free_port()}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("audit skipped: ")
