"""Which client it is, behind proxies; made-up headers change nothing."""

import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import StartGateway
from servers import Gateway, GradioApp, wait_until
from servers.gateway import PROJECT

from tts_service.proxies import Proxies


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        # nobody is trusted
        ("", "203.0.113.9", "", "203.0.113.9"),
        ("", "127.0.0.1", "198.51.100.7", "127.0.0.1"),
        # one proxy, by its address
        ("127.0.0.1", "127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "198.51.100.7", "203.0.113.9"),
        # what the client wrote itself stands further left
        ("127.0.0.1", "127.0.0.1", "1.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1, 198.51.100.7", "198.51.100.7"),
        # several, one behind the other
        ("127.0.0.1,10.0.0.0/8", "127.0.0.1", "1.1.1.1,198.51.100.7, 10.2.3.4", "198.51.100.7"),
        ("10.0.0.0/8", "10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.9/8", "10.0.0.1", "198.51.100.7", "198.51.100.7"),
        # whatever their addresses
        ("*", "203.0.113.9", "1.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("1", "203.0.113.9", "1.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("2", "203.0.113.9", "1.1.1.1, 198.51.100.7, 10.0.0.1", "198.51.100.7"),
        ("3", "203.0.113.9", "198.51.100.7", "198.51.100.7"),
        # IPv6, in all its forms
        ("::1", "::1", "2001:DB8:0:0::7", "2001:db8::7"),
        ("fd00::/8", "fd00::1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("127.0.0.1", "::ffff:127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("", "::ffff:203.0.113.9", "", "203.0.113.9"),
        ("10.0.0.0/8", "::1", "198.51.100.7", "::1"),
        # ports, blanks, and what is no address
        ("127.0.0.1", "127.0.0.1", " 198.51.100.7:4711 ", "198.51.100.7"),
        ("127.0.0.1", "127.0.0.1", "unknown", "127.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", "198.51.100.7, nonsense, 10.0.0.2", "10.0.0.2"),
        ("127.0.0.1", "127.0.0.1", "a\tb, ,,", "127.0.0.1"),
        # by a Unix socket only a proxy on this machine comes
        ("", "", "1.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("", "", "", "unix"),
        ("10.0.0.0/8", "", "198.51.100.7, 10.0.0.1", "198.51.100.7"),
    ],
)
def test_the_client_is_whom_the_last_trusted_proxy_saw(
    trusted: str, peer: str, forwarded: str, client: str
) -> None:
    assert Proxies(filter(None, trusted.split(","))).client(peer, forwarded) == client


@pytest.mark.parametrize("name", ["localhost", "10.0.0.0/33", "0", "17", "-1", "10.0.0.1,2", ""])
def test_what_is_no_proxy_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"proxies|no proxy"):
        Proxies(name.split(","))


@pytest.mark.parametrize("fast", [1, 0], ids=["poller", "flask"])
def test_the_log_names_the_client_and_not_the_proxy(
    gateway: StartGateway, backend: GradioApp, fast: int
) -> None:
    service = gateway(GRADIO_URL=backend.url, FAST_HITS=fast, TRUSTED_PROXIES="127.0.0.1")
    fields = {"input": "Who asks?"}
    service.post(fields)
    for name, forwarded in (("via", "6.6.6.6, 198.51.100.7"), ("direct", "")):
        answer = service.post(fields, X_Request_ID=name, X_Forwarded_For=forwarded)
        assert answer.headers["X-Cache"] == "HIT"
    wait_until(lambda: line_of(service, "direct"))
    assert "client=198.51.100.7 " in line_of(service, "via")
    assert "client=127.0.0.1 " in line_of(service, "direct")


def test_nobody_is_believed_unless_trusted(gateway: StartGateway, backend: GradioApp) -> None:
    service = gateway(GRADIO_URL=backend.url)
    for name in ("miss", "hit"):
        headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "6.6.6.6"}
        service.client.post(
            "/v1/audio/speech",
            json={"input": "Who?"},
            headers={"X-Request-ID": name, "SCRIPT_NAME": "/x", **headers},
        ).raise_for_status()
    wait_until(lambda: line_of(service, "hit"))
    assert "client=127.0.0.1 " in line_of(service, "miss")
    assert "client=127.0.0.1 " in line_of(service, "hit")
    assert "6.6.6.6" not in service.log


def test_by_a_unix_socket_the_proxy_tells_the_client(tmp_path: Path, backend: GradioApp) -> None:
    path = tmp_path / "socket"
    settings = {"GRADIO_URL": backend.url, "RATE_LIMIT": "2/hour", "SELF_TEST": "0"}
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", f"unix:{path}"]
    log = tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command,
            cwd=PROJECT,
            env={"PATH": "/usr/bin:/bin", "PORT": "29999", "HOST": "127.0.0.1", **settings},
            stdin=subprocess.DEVNULL,
            stderr=out,
        ) as process,
    ):
        try:
            wait_until(lambda: _listens(path) or process.poll() is not None, 60)
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60) as client:

                def ask(address: str) -> int:
                    headers = {"X-Forwarded-For": address}
                    url = "http://x/v1/audio/speech"
                    return client.post(url, json={"input": "Hi."}, headers=headers).status_code

                assert [ask("198.51.100.7") for _ in range(3)] == [200, 200, 429]
                assert ask("198.51.100.8") == 200
        finally:
            process.terminate()
    assert "client=198.51.100.8 " in log.read_text()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def line_of(service: Gateway, name: str) -> str:
    """The access line of the request with this id."""
    lines = [line for line in service.log.splitlines() if f" {name}] tts_service.access" in line]
    return lines[0] if lines else ""
