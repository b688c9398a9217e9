"""The audit fails where something is known of a pinned version, and says so where nobody tells."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from servers import free_port

SCRIPT = Path(__file__).parents[1] / "scripts" / "audit.py"
#: As OSV tells it, https://ossf.github.io/osv-schema/.
FLAW = {
    "id": "PYSEC-2026-1",
    "affected": [
        {
            "package": {"name": "flask", "ecosystem": "PyPI"},
            "ranges": [
                {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]},
            ],
        }
    ],
}


class _Advisories(BaseHTTPRequestHandler):
    """Knows one flaw, of Flask."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told = {"vulns": [FLAW]} if asked["package"]["name"] == "flask" else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def advisories() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Advisories)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def audit(url: str) -> subprocess.CompletedProcess[str]:
    """The script, asking at `url`."""
    asked = ["--vulnerability-service=osv", f"--osv-url={url}"]
    return subprocess.run(
        [sys.executable, SCRIPT, *asked], capture_output=True, text=True, check=False
    )


def test_a_known_flaw_of_a_pinned_version_is_a_failure(advisories: str) -> None:
    run = audit(advisories)
    assert run.returncode == 1, run.stderr
    found, total = run.stdout.splitlines()
    assert found.startswith("flask ")
    assert found.endswith(": PYSEC-2026-1, fixed in 99.1")
    assert total.endswith(" pinned packages: 1 known vulnerabilities")
    assert int(total.split()[1]) > 50


def test_where_nobody_tells_it_ends_well_and_says_why() -> None:
    run = audit(f"http://127.0.0.1:{free_port()}")
    assert run.returncode == 0
    assert run.stdout.startswith("audit skipped: ")
    assert "Connection refused" in run.stdout
