"""Answers that begin before they are finished, seen on the wire of a real gunicorn."""

import base64
import io
import json
import socket
import struct
import time
import wave
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import av
import httpx
import pytest
from servers import Gateway, GradioApp, start_all, wait_until
from servers.machine import Server

FORMATS = ["wav", "mp3", "opus", "aac", "flac", "pcm"]
PAUSE = 0.2
UNKNOWN_SIZE = b"\xff\xff\xff\xff"
SPEECH = "/v1/audio/speech"
Served = tuple[Gateway, Gateway, GradioApp]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway that streams only on demand, one that does after half a second, their backend."""
    app = GradioApp("indextts-1.0")
    settings: dict[str, Any] = {
        "GRADIO_URL": app.url,
        "GRADIO_CALL_DELAY": 0.05,
        "MAX_CACHE_SIZE": 1000,
    }
    folder = tmp_path_factory.mktemp("streaming")
    patient = Gateway(folder, STREAM_AFTER=0, **settings)
    hasty = Gateway(folder, STREAM_AFTER=0.5, **settings)
    with ExitStack() as started:
        servers: list[Server] = [app, patient, hasty]
        for server in servers:
            started.callback(server.stop)
        start_all(servers)
        yield patient, hasty, app


@pytest.fixture
def app(served: Served) -> GradioApp:
    """The backend, reset, and spoken to by nobody."""
    *gateways, app = served
    app.control(reset=True)
    wait_until(lambda: all(gateway.is_idle() for gateway in gateways))
    app.control(reset=True)
    return app


@pytest.fixture
def gw(served: Served, app: GradioApp) -> Gateway:
    return served[0]


@pytest.fixture
def hasty(served: Served, app: GradioApp) -> Gateway:
    """Its STREAM_AFTER is 0.5."""
    return served[1]


@pytest.fixture
def background(app: GradioApp) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool
        app.control(reset=True)  # nobody waits for a backend that a failed test left holding


def sentences(topic: str, count: int = 3) -> list[str]:
    """Each of them is one segment; a longer first one would be cut for an early start."""
    said = [f"Part {i} is about {topic}." for i in range(1, count + 1)]
    assert len(said[0]) <= 40
    return said


def hold(app: GradioApp, gateway: Gateway, **behaviour: Any) -> None:
    """Have the backend hold every call.

    The gateway learns before that this backend is slow: to a quick one it hands two segments at
    once, and either may be spoken first.
    """
    app.control(synth_ms=150)
    gateway.post({"input": f"{time.monotonic_ns() % 1000}"}).raise_for_status()
    app.control(reset=True, hold=True, **behaviour)


def length_of(texts: list[str]) -> float:
    """Seconds that an answer of these segments lasts; the backend takes 60 ms a character."""
    return sum(0.06 * len(text) for text in texts) + PAUSE * (len(texts) - 1)


def seconds(body: bytes, format_: str) -> float:
    """How long it lasts, by decoding it."""
    if format_ == "pcm":
        return len(body) / 2 / 24_000
    with av.open(io.BytesIO(body), "r") as file:
        return sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))


def lasts(format_: str, texts: list[str]) -> Any:
    return pytest.approx(length_of(texts), abs=0.1 if format_ == "aac" else 0.06)


def opened(gateway: Gateway, asked: dict[str, Any]) -> httpx.Response:
    """The answer, as soon as its headers are there. It must be closed."""
    request = gateway.client.build_request("POST", SPEECH, json=asked)
    return gateway.client.send(request, stream=True)


def opened_behind(
    app: GradioApp, background: ThreadPoolExecutor, gateway: Gateway, asked: dict[str, Any]
) -> "Future[httpx.Response]":
    """The same, from a backend that holds every call; the first one is held by now."""
    hold(app, gateway)
    future = background.submit(opened, gateway, asked)
    wait_until(lambda: app.state()["held"] == 1)
    return future


def outcomes(app: GradioApp) -> list[str]:
    return [call["outcome"] for call in app.calls]


def texts(app: GradioApp) -> list[str]:
    """What the backend was asked to speak since the reset."""
    return [call["arguments"]["text"] for call in app.calls]


def events(body: bytes) -> list[dict[str, Any]]:
    *told, rest = body.decode().split("\n\n")
    assert rest == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in told)
    return [json.loads(event.removeprefix("data: ")) for event in told]


def sound_of(told: list[dict[str, Any]]) -> bytes:
    """The sound in the events before the last."""
    assert {event["type"] for event in told[:-1]} <= {"speech.audio.delta"}
    return b"".join(base64.b64decode(event["audio"], validate=True) for event in told[:-1])


# -- audio -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked_by", [{"stream_format": "audio"}, {"stream": True}], ids=str)
@pytest.mark.parametrize("format_", FORMATS)
def test_a_stream_is_chunked_and_lasts_as_long_as_the_whole(
    gw: Gateway, format_: str, asked_by: dict[str, Any]
) -> None:
    said = sentences(f"{format_} by {next(iter(asked_by))}")
    asked = {"input": " ".join(said), "response_format": format_}
    answer = gw.post({**asked, **asked_by})
    assert answer.status_code == 200
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["X-Cache"] == "MISS"
    assert "Content-Length" not in answer.headers
    assert seconds(answer.content, format_) == lasts(format_, said)
    whole = gw.post(asked)
    assert (whole.headers["X-Cache"], whole.headers["Content-Type"]) == (
        "HIT",
        answer.headers["Content-Type"],
    )
    assert seconds(whole.content, format_) == seconds(answer.content, format_)


@pytest.mark.parametrize("format_", FORMATS)
def test_the_first_chunk_is_sent_before_the_second_segment_is_spoken(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor, format_: str
) -> None:
    said = sentences(f"an early {format_}")
    asked = {"input": " ".join(said), "response_format": format_, "stream_format": "audio"}
    opening = opened_behind(app, background, gw, asked)
    app.control(release=1)
    with closing(opening.result()) as answer:
        chunks = answer.iter_raw()
        first = next(chunks)
        assert first
        wait_until(lambda: app.state()["held"] == 1)
        assert outcomes(app) == ["answered", "running"]
        app.control(hold=False)
        body = first + b"".join(chunks)
    assert texts(app) == said
    assert seconds(body, format_) == lasts(format_, said)


def test_a_streamed_wav_has_no_size_and_the_same_from_the_cache_its_own(gw: Gateway) -> None:
    said = sentences("sizes")
    streamed = gw.post({"input": " ".join(said), "stream": True})
    assert (streamed.content[4:8], streamed.content[40:44]) == (UNKNOWN_SIZE, UNKNOWN_SIZE)
    whole = gw.post({"input": " ".join(said)})
    assert whole.headers["X-Cache"] == "HIT"
    assert int(whole.headers["Content-Length"]) == len(whole.content)
    assert struct.unpack_from("<I", whole.content, 4)[0] == len(whole.content) - 8
    assert struct.unpack_from("<I", whole.content, 40)[0] == len(whole.content) - 44
    assert whole.content[44:] == streamed.content[44:]
    with wave.open(io.BytesIO(whole.content)) as file:
        assert file.getnframes() / file.getframerate() == lasts("wav", said)


def test_a_streamed_flac_tells_its_length_when_it_comes_from_the_cache(gw: Gateway) -> None:
    asked = {"input": " ".join(sentences("lengths")), "response_format": "flac"}
    streamed, whole = gw.post({**asked, "stream": True}), gw.post(asked)
    assert whole.headers["X-Cache"] == "HIT"
    # RFC 9639, 8.2: of these 64 bits the last 36 are the number of samples, 0 if unknown.
    stated = [
        struct.unpack_from(">Q", body, 18)[0] & (1 << 36) - 1
        for body in (streamed.content, whole.content)
    ]
    assert stated[0] == 0
    assert stated[1] / 24_000 == pytest.approx(seconds(whole.content, "flac"), abs=1e-9)


@pytest.mark.parametrize("format_", FORMATS)
def test_the_stream_of_a_cached_answer_is_a_hit(gw: Gateway, app: GradioApp, format_: str) -> None:
    asked = {"input": " ".join(sentences(f"{format_} again")), "response_format": format_}
    whole = gw.post(asked)
    calls = len(app.calls)
    streamed = gw.post({**asked, "stream": True})
    as_events = gw.post({**asked, "stream_format": "sse"})
    assert [a.headers["X-Cache"] for a in (whole, streamed, as_events)] == ["MISS", "HIT", "HIT"]
    assert streamed.content == whole.content
    assert sound_of(events(as_events.content)) == whole.content
    assert len(app.calls) == calls


# -- events ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_events_bring_the_sound_in_pieces_and_then_one_end(gw: Gateway, format_: str) -> None:
    said = sentences(f"{format_} in events")
    text = " ".join(said)
    answer = gw.post({"input": text, "response_format": format_, "stream_format": "sse"})
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["X-Accel-Buffering"] == "no"
    told = events(answer.content)
    sound = sound_of(told)
    assert seconds(sound, format_) == lasts(format_, said)
    assert told[-1]["type"] == "speech.audio.done"
    usage = told[-1]["usage"]
    assert set(usage) == {"input_tokens", "output_tokens", "total_tokens"}
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert gw.post({"input": text, "response_format": format_}).headers["X-Cache"] == "HIT"


def test_no_event_is_longer_than_a_line_that_clients_take(gw: Gateway) -> None:
    asked = {"input": "One long line, " * 7 + "and its end.", "stream_format": "sse"}
    fresh, cached = gw.post(asked), gw.post(asked)
    assert (fresh.headers["X-Cache"], cached.headers["X-Cache"]) == ("MISS", "HIT")
    for answer in (fresh, cached):
        assert len(answer.content) > 2**18
        assert max(len(line) for line in answer.content.split(b"\n")) < 2**16


def test_the_first_event_is_sent_before_the_second_segment_is_spoken(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    said = sentences("early events")
    opening = opened_behind(app, background, gw, {"input": " ".join(said), "stream_format": "sse"})
    app.control(release=1)
    with closing(opening.result()) as answer:
        lines = answer.iter_lines()
        event = json.loads(next(lines).removeprefix("data: "))
        assert event["type"] == "speech.audio.delta"
        assert base64.b64decode(event["audio"])[:4] == b"RIFF"
        wait_until(lambda: app.state()["held"] == 1)
        assert outcomes(app) == ["answered", "running"]
        app.control(hold=False)
        assert "speech.audio.done" in [*lines][-2]


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["audio", "sse"])
def test_what_fails_before_the_first_byte_has_its_own_status(
    gw: Gateway, app: GradioApp, form: str
) -> None:
    app.control(fail="error")
    answer = gw.post({"input": " ".join(sentences(f"no {form}")), "stream_format": form})
    assert answer.status_code == 502
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["error"]["code"] == "backend_error"


@pytest.mark.parametrize("form", ["audio", "sse"])
def test_a_wrong_field_of_a_streamed_request_is_400(gw: Gateway, form: str) -> None:
    answer = gw.post({"input": "Hi.", "voice": "nobody", "stream_format": form})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "voice_not_found")


def begun_then_broken(
    app: GradioApp, background: ThreadPoolExecutor, gateway: Gateway, asked: dict[str, Any]
) -> tuple[bytes, bool]:
    """The body of an answer whose second segment fails, and whether it ended cleanly."""
    opening = opened_behind(app, background, gateway, asked)
    app.control(release=1)
    body = b""
    with closing(opening.result()) as answer:
        assert answer.status_code == 200
        try:
            for chunk in answer.iter_raw():
                if not body:
                    app.control(hold=False, fail="error")
                body += chunk
        except httpx.RemoteProtocolError:  # an incomplete chunked read
            return body, False
    return body, True


@pytest.mark.parametrize("format_", ["wav", "mp3", "opus"])
def test_audio_that_fails_later_breaks_the_connection_and_is_not_cached(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor, format_: str
) -> None:
    said = sentences(f"a broken {format_}")
    asked = {"input": " ".join(said), "response_format": format_}
    body, is_clean = begun_then_broken(app, background, gw, {**asked, "stream": True})
    assert body
    assert not is_clean
    app.control(reset=True)
    again = gw.post(asked)
    assert (again.status_code, again.headers["X-Cache"]) == (200, "PARTIAL")
    assert said[0] not in texts(app)
    assert said[1] in texts(app)
    assert seconds(again.content, format_) == lasts(format_, said)


def test_events_that_fail_later_end_with_an_error_and_without_done(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    asked = {"input": " ".join(sentences("broken events"))}
    body, is_clean = begun_then_broken(app, background, gw, {**asked, "stream_format": "sse"})
    told = events(body)
    assert is_clean
    assert sound_of(told)[:4] == b"RIFF"
    assert told[-1]["type"] == "error"
    assert told[-1]["error"]["code"] == "backend_error"
    app.control(reset=True)
    assert gw.post(asked).headers["X-Cache"] == "PARTIAL"


def test_a_broken_stream_is_told_in_the_log_without_a_traceback(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    said = " ".join(sentences("a broken log"))
    before = len(gw.log)
    begun_then_broken(app, background, gw, {"input": said, "stream": True})
    log = wait_until(lambda: "an answer broke off" in gw.log[before:] and gw.log[before:])
    assert "Traceback" not in str(log)


# -- departures ------------------------------------------------------------------------------------


def waiting(gateway: Gateway) -> int:
    """Segments in the queue."""
    return int(gateway.health()["queue"]["segments"])


@pytest.mark.alone
def test_who_leaves_mid_stream_takes_the_waiting_segments_out_of_the_queue(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    # So long that no backend is handed its successor early while this test looks on.
    held = "This is the part that is being spoken when the client goes away, " * 2
    said = ["A first part.", held[:110].strip() + ".", *sentences("what nobody hears", 3)]
    before = len(gw.log)
    opening = opened_behind(app, background, gw, {"input": " ".join(said), "stream": True})
    app.control(release=1)
    with closing(opening.result()) as answer:
        assert next(answer.iter_raw())
        wait_until(lambda: outcomes(app) == ["answered", "running"])
        assert waiting(gw) > 0
    left = time.monotonic()
    wait_until(lambda: waiting(gw) == 0, 1)
    assert time.monotonic() - left < 1
    app.control(hold=False)
    wait_until(gw.is_idle)
    again = gw.post({"input": " ".join(said[:2])})
    assert (again.status_code, again.headers["X-Cache"]) == (200, "PARTIAL")
    assert texts(app) == said[:2]
    assert "Traceback" not in gw.log[before:]
    assert "broke off" not in gw.log[before:]  # nothing failed


@pytest.mark.parametrize("form", [None, "audio", "sse"], ids=str)
def test_who_joined_gets_everything_though_the_first_has_left(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor, form: str | None
) -> None:
    said = sentences(f"company by {form}")
    asked = {"input": " ".join(said)}
    opening = opened_behind(app, background, gw, {**asked, "stream": True})
    joined = background.submit(gw.post, {**asked, "stream_format": form})
    wait_until(lambda: gw.health()["queue"]["requests"] == 2)
    app.control(release=1)
    with closing(opening.result()) as answer:
        assert next(answer.iter_raw())
    wait_until(lambda: gw.health()["queue"]["requests"] == 1, 2)
    app.control(hold=False)
    body = joined.result().content
    sound = sound_of(events(body)) if form == "sse" else body
    assert seconds(sound, "wav") == lasts("wav", said)
    assert joined.result().headers["X-Cache"] == "COALESCED"
    assert texts(app) == said


def test_fifty_identical_streams_at_once_are_spoken_once(gw: Gateway, app: GradioApp) -> None:
    said = sentences("fifty streams")
    app.control(synth_ms=100)
    with ThreadPoolExecutor(50) as pool:
        asked = {"input": " ".join(said), "stream": True}
        answers = list(pool.map(lambda _: gw.post(asked), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content[44:] for answer in answers}) == 1
    assert texts(app) == said


# -- late answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["wav", "mp3", "opus"])
@pytest.mark.alone
def test_headers_of_a_late_answer_leave_though_nothing_is_spoken_yet(
    hasty: Gateway, app: GradioApp, format_: str
) -> None:
    said = sentences(f"a late {format_}", 2)
    asked = {"input": " ".join(said), "response_format": format_}
    hold(app, hasty)
    began = time.monotonic()
    with closing(opened(hasty, asked)) as answer:
        assert 0.5 <= time.monotonic() - began < 1.5
        assert outcomes(app) == ["running"]
        assert answer.status_code == 200
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert "Content-Length" not in answer.headers
        app.control(hold=False)
        body = answer.read()
    assert seconds(body, format_) == lasts(format_, said)
    assert texts(app) == said
    whole = hasty.post(asked)
    assert whole.headers["X-Cache"] == "HIT"
    assert int(whole.headers["Content-Length"]) == len(whole.content)
    assert seconds(whole.content, format_) == lasts(format_, said)


def test_a_late_answer_begins_with_what_is_spoken_by_then(hasty: Gateway, app: GradioApp) -> None:
    said = sentences("what is there", 3)
    hold(app, hasty, release=2)
    with closing(opened(hasty, {"input": " ".join(said)})) as answer:
        chunks = answer.iter_raw()
        first = next(chunks)
        assert outcomes(app) == ["answered", "answered", "running"]
        assert first[40:44] == UNKNOWN_SIZE
        app.control(hold=False)
        body = first + b"".join(chunks)
    assert seconds(body, "wav") == lasts("wav", said)


def test_an_answer_that_is_done_in_time_is_whole(hasty: Gateway, app: GradioApp) -> None:
    said = sentences("punctuality", 2)
    app.control(synth_ms=50)
    answer = hasty.post({"input": " ".join(said)})
    assert answer.headers["X-Cache"] == "MISS"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert answer.headers["ETag"]


def test_with_stream_after_0_an_answer_never_begins_early(gw: Gateway, app: GradioApp) -> None:
    said = sentences("patience", 2)
    app.control(synth_ms=500)
    answer = gw.post({"input": " ".join(said)})
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert seconds(answer.content, "wav") == lasts("wav", said)


def test_a_late_answer_that_fails_breaks_the_connection_and_is_not_cached(
    hasty: Gateway, app: GradioApp
) -> None:
    asked = {"input": " ".join(sentences("late failure", 2))}
    hold(app, hasty)
    with closing(opened(hasty, asked)) as answer:
        app.control(hold=False, fail="error")
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            answer.read()
    app.control(reset=True)
    assert hasty.post(asked).headers["X-Cache"] == "MISS"


def test_what_fails_before_it_is_late_has_its_own_status(hasty: Gateway, app: GradioApp) -> None:
    app.control(fail="error")
    assert hasty.post({"input": "An early failure."}).status_code == 502


def test_the_headers_of_a_stream_wait_no_longer_either(hasty: Gateway, app: GradioApp) -> None:
    hold(app, hasty)
    asked = {"input": " ".join(sentences("late events", 2)), "stream_format": "sse"}
    with closing(opened(hasty, asked)) as answer:
        assert outcomes(app) == ["running"]
        app.control(hold=False, fail="error")
        (error,) = events(answer.read())
    assert (error["type"], error["error"]["code"]) == ("error", "backend_error")


def test_two_who_are_late_together_are_spoken_to_once(
    hasty: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    said = sentences("two late ones", 2)
    hold(app, hasty)
    opening = [background.submit(opened, hasty, {"input": " ".join(said)}) for _ in range(2)]
    both = [future.result() for future in opening]
    app.control(hold=False)
    bodies = [answer.read() for answer in both]
    assert bodies[0] == bodies[1]
    assert seconds(bodies[0], "wav") == lasts("wav", said)
    assert texts(app) == said


def test_who_leaves_a_late_answer_before_its_first_sound_costs_nothing_more(
    hasty: Gateway, app: GradioApp
) -> None:
    said = sentences("late departure", 3)
    hold(app, hasty)
    with closing(opened(hasty, {"input": " ".join(said)})):
        assert waiting(hasty) > 0
    wait_until(lambda: hasty.health()["queue"] == {"segments": 0, "requests": 0}, 1)
    app.control(hold=False)
    wait_until(lambda: outcomes(app)[:1] == ["answered"])
    # One more may have been handed over already, because the first took unexpectedly long.
    assert texts(app) in (said[:1], said[:2])


def test_a_late_link_streams_and_its_head_lets_the_segments_go(
    hasty: Gateway, app: GradioApp
) -> None:
    said = sentences("late links", 2)
    hold(app, hasty)
    head = hasty.client.head(SPEECH, params={"input": " ".join(said)})
    assert (head.status_code, head.content) == (200, b"")
    assert "Content-Length" not in head.headers
    wait_until(lambda: hasty.health()["queue"] == {"segments": 0, "requests": 0}, 1)
    with hasty.client.stream("GET", SPEECH, params={"input": " ".join(said)}) as answer:
        assert answer.status_code == 200
        assert "Content-Length" not in answer.headers
        assert "Accept-Ranges" not in answer.headers
        app.control(hold=False)
        assert seconds(answer.read(), "wav") == lasts("wav", said)


# -- old clients -----------------------------------------------------------------------------------


def ask_as_http_1_0(gateway: Gateway, asked: dict[str, Any]) -> socket.socket:
    """As nginx does unless told otherwise: the end of the connection is the end of the answer."""
    body = json.dumps(asked).encode()
    head = (
        f"POST {SPEECH} HTTP/1.0\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    connection.sendall(head.encode() + body)
    return connection


def test_an_http_1_0_client_is_streamed_to_without_chunks(gw: Gateway) -> None:
    said = sentences("old clients", 2)
    with ask_as_http_1_0(gw, {"input": " ".join(said), "stream": True}) as connection:
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert seconds(body, "wav") == lasts("wav", said)


def test_an_http_1_0_client_too_sees_that_an_answer_broke_off(gw: Gateway, app: GradioApp) -> None:
    hold(app, gw, release=1)
    asked = {"input": " ".join(sentences("old breaks", 2)), "stream": True}
    with ask_as_http_1_0(gw, asked) as connection:
        assert connection.recv(1)
        app.control(hold=False, fail="error")
        with pytest.raises(ConnectionResetError):
            connection.makefile("rb").read()
