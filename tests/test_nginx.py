"""Behind nginx with deploy/nginx.conf: what it answers itself, what it leaves to the gateways."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import StartGateway, StartServers
from servers import Gateway, GradioApp, NginxServer, start_all, wait_until
from servers.machine import Server

SPEECH = "/v1/audio/speech"
BUFFERED = 32 * 1024  # bytes of a body, of which nginx makes a key: client_body_buffer_size

StartNginx = Callable[..., NginxServer]


@pytest.fixture
def nginx(start_servers: StartServers, tmp_path: Path) -> StartNginx:
    """`nginx(gateway, …)`: in front of these gateways, with an empty cache."""

    def start(*gateways: Gateway) -> NginxServer:
        server: NginxServer = start_servers(
            NginxServer(tmp_path, *(gateway.url for gateway in gateways))
        )[0]
        return server

    return start


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[NginxServer, Gateway, GradioApp]]:
    """nginx, a gateway without keys, and its backend."""
    folder = tmp_path_factory.mktemp("nginx")
    app = GradioApp()
    gateway = Gateway(
        folder, GRADIO_URL=app.url, CORS_ORIGINS="http://one.example,http://two.example"
    )
    front = NginxServer(folder, gateway.url)
    servers: list[Server] = [app, gateway, front]
    try:
        start_all(servers)
        yield front, gateway, app
    finally:
        for server in reversed(servers):
            server.stop()


@pytest.fixture
def front(served: tuple[NginxServer, Gateway, GradioApp]) -> NginxServer:
    return served[0]


@pytest.fixture
def gw(served: tuple[NginxServer, Gateway, GradioApp]) -> Gateway:
    return served[1]


@pytest.fixture
def app(served: tuple[NginxServer, Gateway, GradioApp]) -> GradioApp:
    served[2].control(reset=True)
    return served[2]


def say(front: NginxServer, text: str, *, key: str = "", **fields: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return front.client.post(SPEECH, json={"input": text, **fields}, headers=headers)


def link(
    front: NginxServer, text: str, headers: dict[str, str] | None = None, *, method: str = "GET"
) -> httpx.Response:
    return front.client.request(method, SPEECH, params={"input": text}, headers=headers)


def by_nginx(answer: httpx.Response) -> bool:
    """Whether nginx's cache answered, and said so once."""
    said = answer.headers.get_list("X-Cache")
    assert len(said) <= 1
    return said == ["NGINX"]


def asked_by(gateway: Gateway, marker: str) -> int:
    """How many requests with this in their id the gateway has answered."""
    return len(re.findall(marker, gateway.log))


# -- what nginx answers ----------------------------------------------------------------------------


def test_what_was_spoken_once_nginx_answers_by_itself(
    front: NginxServer, gw: Gateway, app: GradioApp
) -> None:
    first = say(front, "Once and again.")
    assert (first.status_code, first.headers["X-Cache"]) == (200, "MISS")
    assert "total" in first.headers["Server-Timing"]
    again = say(front, "Once and again.")
    assert by_nginx(again)
    assert again.content == first.content == gw.post({"input": "Once and again."}).content
    for name in ("Content-Type", "Content-Length", "ETag", "Cache-Control"):
        assert again.headers[name] == first.headers[name]
    assert "Server-Timing" not in again.headers
    assert len(app.calls) == 1


def test_another_body_is_another_answer(front: NginxServer, app: GradioApp) -> None:
    said = [say(front, text) for text in ("A short one.", "One that is a little longer.")]
    formats = [say(front, "A short one.", response_format=name) for name in ("mp3", "flac")]
    assert not any(by_nginx(answer) for answer in said + formats)
    assert len({answer.content for answer in said + formats}) == 4


def test_bodies_beyond_the_buffer_are_never_taken_for_each_other(
    front: NginxServer, app: GradioApp
) -> None:
    padding = "x" * BUFFERED * 2
    long = [say(front, text, padding=padding) for text in ("This.", "And something else.")]
    assert [answer.status_code for answer in long] == [200, 200]
    assert long[0].content != long[1].content
    again = say(front, "This.", padding=padding)
    assert again.headers["X-Cache"] == "HIT"  # the gateway's
    assert again.content == long[0].content == say(front, "This.").content


def test_a_body_nearly_as_large_as_the_buffer_is_a_key(front: NginxServer, app: GradioApp) -> None:
    nearly = "x" * (BUFFERED - 500)
    this, that = (say(front, "Just so.", padding=nearly + end) for end in ("1", "2"))
    assert (by_nginx(this), by_nginx(that)) == (False, False)
    assert by_nginx(say(front, "Just so.", padding=nearly + "1"))
    assert "not enough for cache key" not in front.log


def test_a_link_is_answered_by_nginx_whole_and_in_part(front: NginxServer, app: GradioApp) -> None:
    whole = link(front, "A link behind nginx.")
    assert not by_nginx(whole)
    assert whole.headers["Accept-Ranges"] == "bytes"
    again = link(front, "A link behind nginx.")
    head = link(front, "A link behind nginx.", method="HEAD")
    part = link(front, "A link behind nginx.", {"Range": "bytes=10-19"})
    several = link(front, "A link behind nginx.", {"Range": "bytes=0-1,5-6"})
    known = link(front, "A link behind nginx.", {"If-None-Match": whole.headers["ETag"]})
    assert all(by_nginx(answer) for answer in (again, head, part, several, known))
    assert again.content == several.content == whole.content
    assert (head.content, head.headers["Content-Length"]) == (b"", str(len(whole.content)))
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(whole.content)}"
    assert (known.status_code, known.content) == (304, b"")


def test_a_part_may_be_asked_for_first(front: NginxServer, gw: Gateway, app: GradioApp) -> None:
    part = link(front, "The part comes first.", {"Range": "bytes=-7"})
    head = link(front, "The head comes first.", method="HEAD")
    assert (part.status_code, head.status_code, head.content) == (206, 200, b"")
    for text in ("The part comes first.", "The head comes first."):
        whole = link(front, text)
        assert by_nginx(whole)
        assert whole.content == gw.post({"input": text}).content
    assert part.content == link(front, "The part comes first.").content[-7:]


def test_a_link_and_a_request_are_told_apart(front: NginxServer, app: GradioApp) -> None:
    say(front, "Told apart.")
    url = f"{SPEECH}?input=Not%20this"
    by_link = front.client.get(url)
    by_post = front.client.post(url, json={"input": "Told apart."})
    assert by_link.content != by_post.content == say(front, "Told apart.").content


def test_a_condition_means_nothing_to_a_post(front: NginxServer, app: GradioApp) -> None:
    first = say(front, "Unconditional.")
    assert by_nginx(say(front, "Unconditional."))
    for condition in ({"If-None-Match": first.headers["ETag"]}, {"If-Match": '"other"'}):
        answer = front.client.post(SPEECH, json={"input": "Unconditional."}, headers=condition)
        assert (answer.status_code, answer.content) == (200, first.content)


def test_each_origin_gets_its_own_permission(front: NginxServer, app: GradioApp) -> None:
    for origin in ("http://one.example", "http://two.example", None):
        for _ in range(2):
            answer = link(front, "For pages.", {"Origin": origin} if origin else None)
            assert answer.headers.get("Access-Control-Allow-Origin") == origin
        assert by_nginx(answer)


# -- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_each_answer_has_the_id_of_its_own_request(
    front: NginxServer, app: GradioApp, method: str
) -> None:
    def ids(**headers: str) -> list[str]:
        text = f"Ids by {method}."
        if method == "GET":
            answer = link(front, text, headers)
        else:
            answer = front.client.post(SPEECH, json={"input": text}, headers=headers)
        assert answer.status_code == 200
        return answer.headers.get_list("X-Request-ID")

    id_header = "X-Request-ID"
    assert ids(**{id_header: "the first, of mine"}) == ["the first, of mine"]
    assert ids(**{id_header: "second"}) == ["second"]
    (made,), (another,) = ids(), ids(**{id_header: "x" * 129})
    assert re.fullmatch(r"[0-9.]+-\d+-\d+-\d+", made)
    assert re.fullmatch(r"[0-9.]+-\d+-\d+-\d+", another)
    assert made != another


def test_an_id_made_by_nginx_is_in_the_logs_of_both(
    front: NginxServer, gw: Gateway, app: GradioApp
) -> None:
    made = say(front, "Look for me.").headers["X-Request-ID"]
    wait_until(lambda: made in gw.log)
    wait_until(lambda: made in front.access_log)
    (line,) = [line for line in front.access_log.splitlines() if made in line]
    assert " status=200 " in line
    assert " cache=MISS " in line


# -- what is never kept ----------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream_format": "sse"}])
def test_a_stream_comes_at_once_and_is_not_kept(
    front: NginxServer, gw: Gateway, app: GradioApp, fields: dict[str, object]
) -> None:
    (name,) = fields
    text = f"The first sentence of a {name}. The second one of a {name} is held back."
    app.control(hold=True, release=1)
    with front.client.stream("POST", SPEECH, json={"input": text, **fields}) as streamed:
        chunks = streamed.iter_raw()
        first = next(chunks)  # though the second sentence is not spoken yet
        wait_until(lambda: app.state()["held"])
        app.control(hold=False)
        assert len(first + b"".join(chunks)) > len(first)
    assert streamed.headers["Cache-Control"] == "no-store"
    again = say(front, text, **fields)
    assert again.headers["X-Cache"] == "HIT"  # the gateway's


def test_streams_of_the_same_do_not_wait_for_each_other(
    front: NginxServer, gw: Gateway, app: GradioApp
) -> None:
    asked = {"input": "Both at once. Neither waits.", "stream": True}
    app.control(hold=True)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(front.client.post, SPEECH, json=asked) for _ in range(2)]
        try:
            wait_until(lambda: gw.health()["queue"]["requests"] == 2)
        finally:
            app.control(hold=False)
        assert both[0].result().content == both[1].result().content


def test_what_began_to_stream_late_is_not_kept(
    gateway: StartGateway, nginx: StartNginx, backend: GradioApp
) -> None:
    front = nginx(gateway(GRADIO_URL=backend.url, STREAM_AFTER=0.3))
    backend.control(hold=True)
    with front.client.stream("POST", SPEECH, json={"input": "Late."}) as late:
        assert "Content-Length" not in late.headers
        backend.control(hold=False)
        assert late.read()
    whole = say(front, "Late.")
    assert (whole.headers["X-Cache"], "Content-Length" in whole.headers) == ("HIT", True)
    assert by_nginx(say(front, "Late."))


def test_errors_come_through_as_they_are_and_are_not_kept(
    gateway: StartGateway, nginx: StartNginx, gradio_app: Callable[..., GradioApp]
) -> None:
    app = gradio_app()
    gateway_itself = gateway(GRADIO_URL=app.url, GRADIO_CALL_ATTEMPTS=1)
    front = nginx(gateway_itself)
    for _ in range(2):
        wrong = say(front, "Wrong.", speed=9)
        assert wrong.status_code == 400
        assert wrong.json() == gateway_itself.post({"input": "Wrong.", "speed": 9}).json()
    app.control(fail="error")
    assert say(front, "It fails at first.").status_code == 502
    app.control(fail="")
    assert say(front, "It fails at first.").status_code == 200
    app.kill()
    wait_until(lambda: gateway_itself.client.get("/health/ready").status_code == 503)
    unready = wait_until(lambda: _if_503(say(front, "Nobody is there.")))
    assert 1 <= int(unready.headers["Retry-After"]) <= 30
    assert unready.json()["error"]["code"] == "no_backend"


def _if_503(answer: httpx.Response) -> httpx.Response | None:
    return answer if answer.status_code == 503 else None


def test_a_wrong_key_never_gets_what_another_was_answered(
    gateway: StartGateway, nginx: StartNginx, backend: GradioApp
) -> None:
    front = nginx(gateway(GRADIO_URL=backend.url, API_KEYS="sesame,poppy"))
    assert say(front, "Secret.", key="sesame").status_code == 200
    link(front, "Secret.", {"Authorization": "Bearer sesame"})
    assert by_nginx(say(front, "Secret.", key="sesame"))
    assert by_nginx(link(front, "Secret.", {"Authorization": "Bearer sesame"}))
    for key in ("wrong", "", "sesam", "sesame2"):
        refused = say(front, "Secret.", key=key)
        assert (refused.status_code, by_nginx(refused)) == (401, False)
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        by_link = link(front, "Secret.", {"Authorization": f"Bearer {key}"} if key else None)
        assert by_link.status_code == 401
    assert say(front, "Secret.", key="poppy").headers["X-Cache"] == "HIT"  # the gateway's


def test_nginxs_own_errors_have_the_shape_of_all_others(front: NginxServer, app: GradioApp) -> None:
    too_large = front.client.post(SPEECH, content=b" " * (1024 * 1024 + 1))
    as_large = say(front, "x", padding="x" * (1024 * 1024 - 100))
    link(front, "Out of range.")
    outside = link(front, "Out of range.", {"Range": "bytes=9999999-"})
    other = link(front, "Out of range.", {"If-Match": '"other"'})
    assert as_large.status_code == 200
    for answer, status in ((too_large, 413), (outside, 416), (other, 412)):
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["X-Request-ID"]
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"


def test_other_routes_pass_and_are_not_kept(front: NginxServer, gw: Gateway) -> None:
    for path in ("/health", "/v1/models", "/v1/audio/voices", "//v1//models/", "/nowhere"):
        for _ in range(2):
            answer = front.client.get(path)
            assert answer.status_code == gw.client.get(path).status_code
            assert not by_nginx(answer)


@pytest.mark.parametrize("path", ["/audio/speech", "//v1//audio/speech/", "/v1/v1/audio/speech"])
def test_every_way_to_write_the_path_is_cached(
    front: NginxServer, app: GradioApp, path: str
) -> None:
    asked = {"input": f"By way of {len(path)}."}
    answers = [front.client.post(f"{front.url}{path}", json=asked) for _ in range(2)]
    assert [by_nginx(answer) for answer in answers] == [False, True]
    assert answers[0].content == answers[1].content


# -- many, and none --------------------------------------------------------------------------------


def test_identical_requests_reach_the_gateway_once(
    front: NginxServer, gw: Gateway, app: GradioApp
) -> None:
    def ask(number: int) -> httpx.Response:
        headers = {"X-Request-ID": f"herd-{number}"}
        return httpx.post(
            f"{front.url}{SPEECH}",
            json={"input": "All at once."},
            headers=headers,
            timeout=30,
            verify=False,
        )

    app.control(synth_ms=500)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    assert len({answer.content for answer in answers}) == 1
    assert sum(by_nginx(answer) for answer in answers) == 49
    assert [answer.headers["X-Request-ID"] for answer in answers] == [
        f"herd-{number}" for number in range(50)
    ]
    wait_until(lambda: asked_by(gw, "herd-"))
    assert asked_by(gw, "herd-") == 1


def test_what_is_known_is_answered_while_every_gateway_is_down(
    gateway: StartGateway, nginx: StartNginx, backend: GradioApp, tmp_path: Path
) -> None:
    behind = gateway(GRADIO_URL=backend.url)
    front = nginx(behind)
    said = say(front, "Kept for bad times."), link(front, "Kept for bad times.")
    expire(front)
    behind.stop()
    again = say(front, "Kept for bad times."), link(front, "Kept for bad times.")
    assert [by_nginx(answer) for answer in again] == [True, True]
    assert [answer.content for answer in again] == [answer.content for answer in said]
    unknown = say(front, "Never heard.")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (502, "server_error")


def expire(front: NginxServer) -> None:
    """Make all that is kept older than its max-age, by the clock in the heads of nginx's files."""
    # u_long version; time_t valid_sec, updating_sec, …: only the first time is what counts.
    front.stop()
    kept = [path for path in front.kept.rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        data = bytearray(path.read_bytes())
        data[8:16] = (1).to_bytes(8, "little")
        path.write_bytes(data)
    start_all([front])


def test_what_is_too_old_is_asked_for_anew(
    gateway: StartGateway, nginx: StartNginx, backend: GradioApp, tmp_path: Path
) -> None:
    front = nginx(gateway(GRADIO_URL=backend.url))
    before = say(front, "By the same voice?")
    prompts = tmp_path / "prompts"
    (prompts / "default.wav").write_bytes((prompts / "chixiaotu6.wav").read_bytes())
    assert by_nginx(say(front, "By the same voice?"))
    expire(front)
    renewed = say(front, "By the same voice?")
    assert renewed.headers["X-Cache"] == "MISS"
    assert "max-age=60" in before.headers["Cache-Control"]
    assert by_nginx(say(front, "By the same voice?"))


def test_the_work_is_spread_and_a_dead_gateway_left_out(
    gateway: StartGateway, nginx: StartNginx, backend: GradioApp
) -> None:
    one, other = gateway(GRADIO_URL=backend.url), gateway(GRADIO_URL=backend.url)
    front = nginx(one, other)
    for number in range(6):
        answer = front.client.post(
            SPEECH,
            json={"input": f"Spread {number}."},
            headers={"X-Request-ID": f"spread-{number}"},
        )
        assert answer.status_code == 200
    wait_until(lambda: asked_by(one, "spread-") + asked_by(other, "spread-") == 6)
    assert asked_by(one, "spread-")
    assert asked_by(other, "spread-")
    one.stop()
    for number in range(6):
        assert say(front, f"Left out {number}.").status_code == 200


# -- clients ---------------------------------------------------------------------------------------


def test_the_gateway_knows_nginxs_clients_and_limits_each(
    gateway: StartGateway, nginx: StartNginx, app: GradioApp
) -> None:
    service = gateway(GRADIO_URL=app.url, RATE_LIMIT="2/hour", TRUSTED_PROXIES="127.0.0.1")
    front = nginx(service)

    def ask(address: str, number: int, **headers: str) -> httpx.Response:
        transport = httpx.HTTPTransport(local_address=address, verify=False)
        with httpx.Client(transport=transport, timeout=60) as client:
            named = {"X-Request-ID": f"{address}-{number}", **headers}
            text = f"The sentence number {number}."
            return client.post(f"{front.url}{SPEECH}", json={"input": text}, headers=named)

    made_up = {"X-Forwarded-For": "6.6.6.6"}
    assert [ask("127.0.0.2", number, **made_up).status_code for number in (1, 2, 3)] == [
        *(200, 200, 429)
    ]
    refused = ask("127.0.0.2", 4)
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    assert refused.headers.get_list("x-ratelimit-remaining-requests") == ["0"]
    # What nginx keeps it gives to everybody, without telling how another client stood.
    kept = ask("127.0.0.2", 1)
    assert by_nginx(kept)
    assert not [name for name in kept.headers if name.startswith("x-ratelimit")]
    other = ask("127.0.0.3", 5)
    assert (other.status_code, other.headers["x-ratelimit-remaining-requests"]) == (200, "1")
    wait_until(lambda: asked_by(service, r"127\.0\.0\.3-5"))
    assert "client=127.0.0.2 " in service.log
    assert "client=127.0.0.3 " in service.log
    assert "6.6.6.6" not in service.log


def test_nginxs_own_errors_are_as_safe_as_the_gateways(front: NginxServer) -> None:
    own = front.client.post(SPEECH, content=b"x" * 2_000_000)
    passed = front.client.get("/v1/models")
    assert (own.status_code, passed.status_code) == (413, 200)
    for answer in (own, passed):
        assert answer.headers.get_list("X-Content-Type-Options") == ["nosniff"]
        assert answer.headers.get_list("Referrer-Policy") == ["no-referrer"]
