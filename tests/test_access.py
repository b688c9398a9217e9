"""Who may speak: keys, and web pages of other origins."""

from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from servers import Gateway, GradioApp, start_all, wait_until

SPEECH = "/v1/audio/speech"
KEYS = ("sk-first-secret", "sk-second-secret")
PAGE = "https://app.example.com"
#: What the openai package asks for in a browser.
ASKED = "authorization, content-type, x-stainless-arch, x-stainless-os, x-stainless-runtime"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Gateway, Gateway]]:
    """A gateway with keys and two origins, one open to all pages, one with neither."""
    app = GradioApp("indextts-1.0")
    folder = tmp_path_factory.mktemp("access")
    guarded = Gateway(
        folder,
        GRADIO_URL=app.url,
        API_KEYS=", ".join(KEYS),
        CORS_ORIGINS=f"{PAGE},http://localhost:3000",
        SELF_TEST=1,
        LOG_LEVEL="debug",
    )
    anywhere = Gateway(folder, GRADIO_URL=app.url, CORS_ORIGINS="*")
    plain = Gateway(folder, GRADIO_URL=app.url)
    with ExitStack() as started:
        servers = (app, guarded, anywhere, plain)
        for server in servers:
            started.callback(server.stop)
        start_all(servers)
        yield guarded, anywhere, plain


@pytest.fixture
def guarded(served: tuple[Gateway, Gateway, Gateway]) -> Gateway:
    return served[0]


@pytest.fixture
def anywhere(served: tuple[Gateway, Gateway, Gateway]) -> Gateway:
    return served[1]


@pytest.fixture
def plain(served: tuple[Gateway, Gateway, Gateway]) -> Gateway:
    return served[2]


def ask(gateway: Gateway, method: str, headers: dict[str, str]) -> httpx.Response:
    fields = {"input": "Who is there?"}
    if method == "POST":
        return gateway.client.post(SPEECH, json=fields, headers=headers)
    return gateway.client.request(method, SPEECH, params=fields, headers=headers)


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# -- keys ------------------------------------------------------------------------------------------

WRONG = {
    "none": {},
    "another": bearing("sk-third-secret"),
    "empty": {"Authorization": "Bearer"},
    "a-part": bearing(KEYS[0][:-1]),
    "both": bearing(",".join(KEYS)),
    "basic": {"Authorization": f"Basic {KEYS[0]}"},
    "bare": {"Authorization": KEYS[0]},
    "elsewhere": {"X-API-Key": KEYS[0]},
    "not-ascii": {"Authorization": "Bearer caf\xe9"},
}


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD"])
@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_without_a_right_key_it_is_401(
    guarded: Gateway, method: str, headers: dict[str, str]
) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = ask(guarded, method, raw)  # type: ignore[arg-type] # httpx would refuse to encode é
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["X-Request-ID"]
    if method != "HEAD":
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD"])
@pytest.mark.parametrize("key", KEYS)
def test_each_of_the_keys_opens(guarded: Gateway, method: str, key: str) -> None:
    assert ask(guarded, method, bearing(key)).status_code == 200


def test_the_scheme_is_known_in_any_case(guarded: Gateway) -> None:
    answer = ask(guarded, "POST", {"Authorization": f"bearer {KEYS[0]}"})
    assert answer.status_code == 200


def test_an_unauthorized_request_is_refused_before_its_fields_are_read(guarded: Gateway) -> None:
    assert guarded.post({"voice": "nobody"}).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1/models/chixiaotu6",
        "/v1/audio/models",
        "/v1/audio/voices",
        "/health",
        "/health/live",
        "/health/ready",
    ],
)
def test_lists_and_health_need_no_key(guarded: Gateway, path: str) -> None:
    wait_until(lambda: guarded.health()["gradio_client"] == "connected")
    assert guarded.client.get(path).status_code == 200


def test_the_self_test_bears_a_key(guarded: Gateway) -> None:
    state = wait_until(lambda: {"passed", "failed"} & {guarded.health()["self_test"]["state"]})
    assert state == {"passed"}
    assert guarded.health()["self_test"]["second_from_cache"] is True


def test_no_key_is_ever_written_to_the_log(guarded: Gateway) -> None:
    asked = {"X-Request-ID": "the-logged-one"}
    ask(guarded, "POST", {**asked, **bearing(KEYS[0])})
    ask(guarded, "POST", {**asked, **bearing("sk-third-secret")})
    wait_until(lambda: guarded.log.count("the-logged-one") >= 2)
    assert "secret" not in guarded.log


def test_without_keys_everybody_may_speak(plain: Gateway) -> None:
    assert ask(plain, "POST", {}).status_code == 200
    assert ask(plain, "POST", bearing("sk-anything")).status_code == 200


# -- origins ---------------------------------------------------------------------------------------


def preflight(gateway: Gateway, origin: str, **headers: str) -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ASKED,
    }
    return gateway.client.options(SPEECH, headers={**asked, **headers})


def listed(value: str) -> set[str]:
    return {item.strip().lower() for item in value.split(",")}


def cors_headers(answer: httpx.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_a_preflight_is_answered_before_any_key_and_allows_what_was_asked(
    guarded: Gateway, origin: str
) -> None:
    answer = preflight(guarded, origin)
    assert answer.status_code in (200, 204)
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert listed(answer.headers["Access-Control-Allow-Headers"]) == listed(ASKED)
    assert {"post", "get"} <= listed(answer.headers["Access-Control-Allow-Methods"])
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example.com", f"{PAGE}.evil.com", "http://app.example.com", "null"]
)
def test_a_page_of_another_origin_is_allowed_nothing(guarded: Gateway, origin: str) -> None:
    assert cors_headers(preflight(guarded, origin)) == set()
    answer = ask(guarded, "POST", {**bearing(KEYS[0]), "Origin": origin})
    assert cors_headers(answer) == set()


@pytest.mark.parametrize("origin", [PAGE, "http://192.168.1.2:8080", "null"])
def test_with_a_star_every_page_may_call(anywhere: Gateway, origin: str) -> None:
    answer = preflight(anywhere, origin)
    assert answer.headers["Access-Control-Allow-Origin"] in ("*", origin)
    assert listed(answer.headers["Access-Control-Allow-Headers"]) == listed(ASKED)
    spoken = ask(anywhere, "POST", {"Origin": origin})
    assert spoken.headers["Access-Control-Allow-Origin"] in ("*", origin)


def test_a_page_may_read_what_sdks_look_for(guarded: Gateway) -> None:
    answer = ask(guarded, "POST", {**bearing(KEYS[0]), "Origin": PAGE})
    assert answer.status_code == 200
    assert answer.headers.get_list("Access-Control-Allow-Origin") == [PAGE]
    exposed = listed(answer.headers["Access-Control-Expose-Headers"])
    assert {"x-request-id", "retry-after"} <= exposed


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", SPEECH, 401), ("GET", "/v1/nothing", 404), ("PUT", "/v1/models", 405)],
)
def test_a_page_may_read_errors_too(guarded: Gateway, method: str, path: str, status: int) -> None:
    answer = guarded.client.request(method, path, json={}, headers={"Origin": PAGE})
    assert answer.status_code == status
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.json()["error"]["message"]


def test_a_page_may_read_a_stream(anywhere: Gateway) -> None:
    asked = {"input": "A stream for a page.", "stream_format": "sse"}
    answer = anywhere.client.post(SPEECH, json=asked, headers={"Origin": PAGE})
    assert answer.headers["Access-Control-Allow-Origin"] in ("*", PAGE)


def test_without_origins_no_page_is_mentioned(plain: Gateway) -> None:
    assert cors_headers(preflight(plain, PAGE)) == set()
    assert cors_headers(ask(plain, "POST", {"Origin": PAGE})) == set()
