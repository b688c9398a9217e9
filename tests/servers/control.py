"""The port beside a Gradio app at which tests read its journal and change its behaviour."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from servers.journal import Journal


class ControlServer(ThreadingHTTPServer):
    """Tells the journal's state at `GET /`, its calls at `GET /calls`.

    `POST /` passes a JSON object to `change`; what that refuses is answered with 400.
    """

    daemon_threads = True

    def __init__(self, port: int, journal: Journal) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.journal = journal


class _Request(BaseHTTPRequestHandler):
    server: ControlServer

    def do_GET(self) -> None:
        journal = self.server.journal
        self._answer(200, journal.calls() if self.path == "/calls" else journal.state())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            self.server.journal.change(**json.loads(body))
        except (TypeError, ValueError) as error:
            self._answer(400, {"error": str(error)})
        else:
            self.do_GET()

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: the log belongs to Gradio."""
