"""Speech as a link: what `<audio>`, browsers' caches and download tools ask of one."""

import io
import wave
from collections.abc import Iterator

import httpx
import pytest
from servers import Gateway, GradioApp, start_all
from servers.machine import Server

SPEECH = "/v1/audio/speech"
TEXT = "A link that can be listened to."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, GradioApp]]:
    """A gateway and its backend, which has parameters of its own."""
    app = GradioApp("indextts-2.0")
    gateway = Gateway(tmp_path_factory.mktemp("links"), GRADIO_URL=app.url, MAX_CACHE_SIZE=1000)
    try:
        servers: list[Server] = [app, gateway]
        start_all(servers)
        yield gateway, app
    finally:
        gateway.stop()
        app.stop()


@pytest.fixture
def app(served: tuple[Gateway, GradioApp]) -> GradioApp:
    served[1].control(reset=True)
    return served[1]


@pytest.fixture
def gw(served: tuple[Gateway, GradioApp]) -> Gateway:
    return served[0]


@pytest.fixture(scope="module")
def whole(served: tuple[Gateway, GradioApp]) -> httpx.Response:
    """The answer that the ranges below are cut from."""
    return link(served[0])


def link(
    gateway: Gateway, method: str = "GET", headers: dict[str, str] | None = None, /, **fields: str
) -> httpx.Response:
    asked = fields or {"input": TEXT}
    answer = gateway.client.request(method, SPEECH, params=asked, headers=headers)
    assert answer.headers["X-Request-ID"]
    return answer


def in_part(gateway: Gateway, asked: str, **headers: str) -> httpx.Response:
    return link(gateway, "GET", {"Range": asked, **headers})


# -- the same request ------------------------------------------------------------------------------


def test_a_link_is_the_same_request(gw: Gateway, app: GradioApp) -> None:
    fields = {"input": "您好，by a link.", "voice": "chixiaotu6", "speed": "1.5", "vec1": "0.5"}
    by_post = gw.post({**fields, "response_format": "mp3"})
    by_link = link(gw, **fields, response_format="mp3")
    assert (by_post.headers["X-Cache"], by_link.headers["X-Cache"]) == ("MISS", "HIT")
    assert by_link.content == by_post.content
    assert by_link.headers["Content-Type"] == "audio/mpeg"
    assert by_link.headers["ETag"] == by_post.headers["ETag"]
    (call,) = app.calls
    assert call["arguments"]["vec1"] == 0.5


def test_a_link_brings_the_whole_answer(whole: httpx.Response) -> None:
    assert whole.status_code == 200
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert int(whole.headers["Content-Length"]) == len(whole.content)
    with wave.open(io.BytesIO(whole.content)) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(0.06 * len(TEXT), abs=0.001)


@pytest.mark.parametrize("field", ["stream", "stream_format"])
def test_a_link_is_whole_even_if_it_asks_for_a_stream(gw: Gateway, field: str) -> None:
    answer = link(gw, input=f"A link with {field}.", **{field: "sse"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "audio/wav"
    assert int(answer.headers["Content-Length"]) == len(answer.content)


def test_head_tells_what_get_would_without_a_body(gw: Gateway, app: GradioApp) -> None:
    head = link(gw, "HEAD", input="A head before its body.")
    body = link(gw, input="A head before its body.")
    assert (head.status_code, head.content) == (200, b"")
    assert (head.headers["X-Cache"], body.headers["X-Cache"]) == ("MISS", "HIT")
    for name in ("Content-Length", "Content-Type", "ETag", "Accept-Ranges"):
        assert head.headers[name] == body.headers[name]
    assert int(head.headers["Content-Length"]) == len(body.content)
    assert len(app.calls) == 1


@pytest.mark.parametrize(
    ("query", "param"),
    [("", "input"), ("?input=", "input"), ("?input=Hi.&speed=9", "speed"), ("?model=x", "input")],
)
def test_a_link_that_lacks_what_it_needs_is_400(gw: Gateway, query: str, param: str) -> None:
    answer = gw.client.get(SPEECH + query)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.headers["X-Request-ID"]
    head = gw.client.head(SPEECH + query)
    assert (head.status_code, head.content) == (400, b"")


# -- conditions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("known", ["{}", 'W/"other", {}', "*"])
def test_who_has_it_already_is_sent_nothing(
    gw: Gateway, whole: httpx.Response, method: str, known: str
) -> None:
    etag = whole.headers["ETag"]
    answer = link(gw, method, {"If-None-Match": known.format(etag)})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["ETag"] == etag


def test_who_has_another_is_sent_this_one(gw: Gateway, whole: httpx.Response) -> None:
    answer = link(gw, "GET", {"If-None-Match": '"other"'})
    assert (answer.status_code, answer.content) == (200, whole.content)


def test_who_has_it_already_is_sent_no_part_either(gw: Gateway, whole: httpx.Response) -> None:
    answer = in_part(gw, "bytes=0-9", **{"If-None-Match": whole.headers["ETag"]})
    assert (answer.status_code, answer.content) == (304, b"")


def test_who_wants_only_another_is_refused(gw: Gateway, whole: httpx.Response) -> None:
    answer = link(gw, "GET", {"If-Match": '"other"'})
    assert answer.status_code == 412
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert link(gw, "GET", {"If-Match": whole.headers["ETag"]}).status_code == 200


def test_another_speech_has_another_etag(gw: Gateway, whole: httpx.Response) -> None:
    assert whole.headers["ETag"].startswith('"')
    assert link(gw, input=TEXT, speed="2").headers["ETag"] != whole.headers["ETag"]


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=0-1", slice(0, 2)),  # Safari begins with this one
        ("bytes=100-199", slice(100, 200)),
        ("bytes=1000-", slice(1000, None)),
        ("bytes=0-", slice(None)),
        ("bytes=-500", slice(-500, None)),
        ("bytes=-1", slice(-1, None)),
        ("bytes=-99999999", slice(None)),
        ("bytes=1000-99999999", slice(1000, None)),
        ("BYTES=5-9", slice(5, 10)),
    ],
)
def test_a_part_is_those_bytes_of_the_whole(
    gw: Gateway, app: GradioApp, whole: httpx.Response, asked: str, part: slice
) -> None:
    answer = in_part(gw, asked)
    assert answer.status_code == 206
    assert answer.content == whole.content[part]
    start, stop, _ = part.indices(len(whole.content))
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole.content)}"
    assert int(answer.headers["Content-Length"]) == stop - start
    assert answer.headers["Content-Type"] == "audio/wav"
    assert answer.headers["ETag"] == whole.headers["ETag"]
    assert app.calls == []


@pytest.mark.parametrize("asked", ["bytes={}-", "bytes={}-{}", "bytes=99999999-", "bytes=-0"])
def test_a_part_beyond_the_end_is_416(gw: Gateway, whole: httpx.Response, asked: str) -> None:
    size = len(whole.content)
    answer = in_part(gw, asked.format(size, size + 9))
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{size}"
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,4-5",
        "bytes=0-0,-1",
        "lines=1-2",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=" + "9" * 5000 + "-",
    ],
    ids=lambda asked: asked[:20],
)
def test_several_parts_other_units_and_nonsense_are_ignored(
    gw: Gateway, whole: httpx.Response, asked: str
) -> None:
    answer = in_part(gw, asked)
    assert answer.status_code == 200
    assert answer.content == whole.content


def test_the_rest_of_another_answer_is_never_sent(gw: Gateway, whole: httpx.Response) -> None:
    same = in_part(gw, "bytes=10-", **{"If-Range": whole.headers["ETag"]})
    other = in_part(gw, "bytes=10-", **{"If-Range": '"other"'})
    assert (same.status_code, same.content) == (206, whole.content[10:])
    assert (other.status_code, other.content) == (200, whole.content)


def test_head_has_no_parts(gw: Gateway, whole: httpx.Response) -> None:
    answer = link(gw, "HEAD", {"Range": "bytes=0-9"})
    assert answer.status_code == 200
    assert int(answer.headers["Content-Length"]) == len(whole.content)


def test_a_part_of_what_is_not_spoken_yet_is_cut_from_it(gw: Gateway, app: GradioApp) -> None:
    part = link(gw, "GET", {"Range": "bytes=44-1043"}, input="A part comes first.")
    assert (part.status_code, len(part.content)) == (206, 1000)
    assert part.content == link(gw, input="A part comes first.").content[44:1044]
    assert len(app.calls) == 1
