"""How answers are made from segments, and what is never made twice; over HTTP, on real servers."""

import io
import re
import socket
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import av
import httpx
import numpy as np
import pytest
from conftest import StartGateway
from servers import Gateway, GradioApp, start_all, wait_until
from servers.machine import Server

FORMATS = ["wav", "mp3", "opus", "aac", "flac", "pcm"]
PAUSE = 0.35


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, GradioApp]]:
    app = GradioApp("indextts-1.0")
    gateway = Gateway(
        tmp_path_factory.mktemp("answers"),
        GRADIO_URL=app.url,
        GRADIO_CALL_DELAY=0.05,
        SEGMENT_PAUSE_MS=round(PAUSE * 1000),
        MAX_CACHE_SIZE=1000,
    )
    with ExitStack() as started:
        servers: list[Server] = [app, gateway]
        for server in servers:
            started.callback(server.stop)
        start_all(servers)
        yield gateway, app


@pytest.fixture
def app(served: tuple[Gateway, GradioApp]) -> GradioApp:
    """The backend, reset, and spoken to by nobody."""
    gateway, app = served
    app.control(reset=True)
    wait_until(gateway.is_idle)
    app.control(reset=True)
    return app


@pytest.fixture
def gw(served: tuple[Gateway, GradioApp], app: GradioApp) -> Gateway:
    return served[0]


@pytest.fixture
def background(app: GradioApp) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(50) as pool:
        yield pool
        app.control(reset=True)  # nobody waits for a backend that a failed test left holding


def hold(app: GradioApp, gateway: Gateway) -> None:
    """Have the backend hold every call.

    The gateway learns before that this backend is slow: to a quick one it hands two segments at
    once, and either may be spoken first.
    """
    app.control(synth_ms=150)
    gateway.post({"input": f"{time.monotonic_ns() % 1000}"}).raise_for_status()
    app.control(reset=True, hold=True)


def sentences(topic: str, count: int = 3) -> list[str]:
    """Each of them is one segment; a longer first one would be cut for an early start."""
    said = [f"Part {i} is about {topic}." for i in range(1, count + 1)]
    assert len(said[0]) <= 40
    return said


def texts(app: GradioApp) -> list[str]:
    """What the backend was asked to speak since the reset."""
    return [call["arguments"]["text"] for call in app.calls]


def verdict(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.headers["X-Cache"])


def timing(answer: httpx.Response) -> dict[str, float]:
    """Server-Timing: milliseconds by name."""
    told = re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"])
    return {name: float(value) for name, value in told}


def seconds(body: bytes, format_: str = "wav") -> float:
    """How long it lasts, by decoding it."""
    if format_ == "pcm":
        return len(body) / 2 / 24_000
    with av.open(io.BytesIO(body), "r") as file:
        return sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))


def leave_behind(gateway: Gateway, text: str) -> socket.socket:
    """Ask for a whole answer on a connection of its own; whoever closes it leaves."""
    body = f'{{"input": "{text}"}}'.encode()
    head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", gateway.port))
    connection.sendall(b"POST /v1/audio/speech HTTP/1.1\r\n" + head.encode() + body)
    return connection


def requests(gateway: Gateway) -> int:
    """How many wait for synthesis."""
    return int(gateway.health()["queue"]["requests"])


# -- segments --------------------------------------------------------------------------------------

MIXED = (
    "您好，世界。今天天气很好！我们去公园散步吧？Hello there, Dr. Smith. It costs 3.14 dollars. "
    "他说：“真的吗？”然后就走了。\n第二段从这里开始，《红楼梦》是一本好书。这是一个非常长的句子，"
    "它有很多很多的逗号，一个接着一个，似乎永远都不会结束，但是它总有一天会结束的，只是我们不知道"
    "那会是在什么时候，也许是明天，也许是后天，也许是在很久很久以后的某一天，谁又能够说得清楚呢，"
    "反正我们可以慢慢地等待，等到花儿也谢了。The end!"
)


def test_every_character_reaches_the_backend_once_and_in_order(gw: Gateway, app: GradioApp) -> None:
    hold(app, gw)  # once the backend is known to be slow, the order of its calls is the text's
    app.control(hold=False, synth_ms=50)
    assert verdict(gw.post({"input": MIXED})) == "MISS"
    said = texts(app)
    assert len(said) > 8
    assert max(len(text) for text in said) <= 120
    assert "".join("".join(said).split()) == "".join(MIXED.split())


def test_segments_are_joined_by_the_pause_and_by_nothing_else(gw: Gateway, app: GradioApp) -> None:
    said = sentences("pauses", 4)
    answer = gw.post({"input": " ".join(said)})
    with wave.open(io.BytesIO(answer.content)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    spoken = [0.06 * len(text) for text in said]
    assert len(samples) / rate == pytest.approx(sum(spoken) + 3 * PAUSE, abs=0.001)
    # The backend's tones cross zero, but are never silent for 5 ms.
    edges = np.flatnonzero(np.diff(np.r_[False, samples == 0, False].astype(int)))
    silences = [
        (start / rate, (stop - start) / rate)
        for start, stop in edges.reshape(-1, 2)
        if stop - start > rate * 0.005
    ]
    assert [length for _, length in silences] == pytest.approx([PAUSE] * 3, abs=0.002)
    begins = [sum(spoken[: i + 1]) + i * PAUSE for i in range(3)]
    assert [start for start, _ in silences] == pytest.approx(begins, abs=0.002)


def test_segments_are_joined_without_a_click(gw: Gateway, app: GradioApp) -> None:
    answer = gw.post({"input": " ".join(sentences("clicks", 4))})
    samples = np.frombuffer(answer.content[44:], np.int16).astype(int)
    # A tone of 800 Hz at a quarter of full scale moves by 1716 from one sample to the next.
    assert np.abs(np.diff(samples)).max() < 1800


def test_a_text_that_shares_nine_of_ten_sentences_costs_one_call(
    gw: Gateway, app: GradioApp
) -> None:
    said = sentences("sharing", 10)
    assert verdict(gw.post({"input": " ".join(said)})) == "MISS"
    edited = [*said[:4], "This one is new.", *said[5:]]
    app.control(reset=True)
    answer = gw.post({"input": " ".join(edited)})
    assert verdict(answer) == "PARTIAL"
    assert texts(app) == ["This one is new."]
    length = sum(0.06 * len(text) for text in edited) + 9 * PAUSE
    assert seconds(answer.content) == pytest.approx(length, abs=0.001)


def test_a_segment_is_known_as_a_text_of_its_own(gw: Gateway, app: GradioApp) -> None:
    said = sentences("being alone", 2)
    gw.post({"input": " ".join(said)})
    assert verdict(gw.post({"input": said[1]})) == "HIT"
    assert sorted(texts(app)) == said


def test_what_a_text_repeats_is_spoken_once_and_is_nothing_found(
    gw: Gateway, app: GradioApp
) -> None:
    said = sentences("repetition", 6)
    answer = gw.post({"input": " ".join([*said, said[0]])})
    assert verdict(answer) == "MISS"
    assert sorted(texts(app)) == said
    length = sum(0.06 * len(text) for text in [*said, said[0]]) + 6 * PAUSE
    assert seconds(answer.content) == pytest.approx(length, abs=0.001)


# -- formats and speeds of the same segments -------------------------------------------------------


def test_other_formats_of_the_same_text_cost_no_call(gw: Gateway, app: GradioApp) -> None:
    said = sentences("formats")
    for format_ in FORMATS:
        answer = gw.post({"input": " ".join(said), "response_format": format_})
        assert verdict(answer) == ("MISS" if format_ == "wav" else "PARTIAL")
        length = sum(0.06 * len(text) for text in said) + 2 * PAUSE
        tolerance = 0.1 if format_ == "aac" else 0.06
        assert seconds(answer.content, format_) == pytest.approx(length, abs=tolerance)
    assert sorted(texts(app)) == said


@pytest.mark.parametrize("format_", FORMATS)
def test_a_hit_costs_no_encoding(gw: Gateway, format_: str) -> None:
    asked = {"input": f"Encoded once as {format_}. " * 3, "response_format": format_}
    made, found = gw.post(asked), gw.post(asked)
    assert verdict(found) == "HIT"
    assert found.content == made.content
    assert timing(found).get("encode", 0) == 0
    assert timing(found)["total"] < 100


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.5, 2, 3, 4])
def test_speed_changes_the_length_and_costs_no_call(
    gw: Gateway, app: GradioApp, speed: float
) -> None:
    text = "One sentence that is said at any speed."
    gw.post({"input": text})
    app.control(reset=True)
    answer = gw.post({"input": text, "speed": speed})
    assert verdict(answer) in ("PARTIAL", "HIT")
    assert seconds(answer.content) == pytest.approx(0.06 * len(text) / speed, rel=0.01)
    assert app.calls == []


def test_speed_leaves_the_pauses_as_they_are(gw: Gateway) -> None:
    said = sentences("slow pauses", 2)
    answer = gw.post({"input": " ".join(said), "speed": 0.5})
    length = sum(0.06 * len(text) / 0.5 for text in said) + PAUSE
    assert seconds(answer.content) == pytest.approx(length, rel=0.01)


# -- timing ----------------------------------------------------------------------------------------


def test_timing_tells_where_the_time_went_and_adds_up(gw: Gateway, app: GradioApp) -> None:
    app.control(synth_ms=200)
    said = sentences("time", 2)
    began = time.monotonic()
    told = timing(gw.post({"input": " ".join(said), "response_format": "mp3"}))
    took = (time.monotonic() - began) * 1000
    assert set(told) == {"queue", "synth", "encode", "total"}
    assert told["synth"] >= 390
    assert told["encode"] > 0
    parts = told["queue"] + told["synth"] + told["encode"]
    assert parts <= told["total"] + 1
    assert parts == pytest.approx(told["total"], rel=0.15)
    assert told["total"] <= took


def test_timing_tells_the_wait_for_others(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    hold(app, gw)
    # Long enough for the one behind not to be handed over before its time.
    first = background.submit(gw.post, {"input": "The long one before, spoken at leisure."})
    wait_until(lambda: app.state()["held"] == 1)
    second = background.submit(gw.post, {"input": "The one behind."})
    wait_until(lambda: gw.health()["queue"]["segments"] == 1)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 0.2)
    app.control(hold=False)
    assert timing(second.result())["queue"] >= 200
    assert timing(first.result())["queue"] < timing(second.result())["queue"] / 2


# -- once ------------------------------------------------------------------------------------------


def test_fifty_identical_requests_cost_one_call_for_each_segment(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    said = sentences("fifty at once", 4)
    app.control(synth_ms=100)
    asked = {"input": " ".join(said), "response_format": "mp3"}
    answers = [*background.map(lambda _: gw.post(asked), range(50))]
    verdicts = [verdict(answer) for answer in answers]
    assert len({answer.content for answer in answers}) == 1
    assert sorted(texts(app)) == said
    assert verdicts.count("MISS") == 1
    assert verdicts.count("COALESCED") > 25
    assert set(verdicts) <= {"MISS", "COALESCED", "HIT"}


def test_once_holds_though_the_cache_is_too_small_for_the_segments(
    gateway: StartGateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    service = gateway(GRADIO_URL=app.url, MAX_CACHE_SIZE=1)
    said = sentences("a small cache", 6)
    asked = {"input": " ".join(said), "response_format": "flac"}
    answers = [*background.map(lambda _: service.post(asked), range(50))]
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(texts(app)) == said


def test_different_texts_share_the_segments_under_way(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    said = sentences("half of it", 4)
    hold(app, gw)
    one = background.submit(gw.post, {"input": " ".join(said[:3])})
    other = background.submit(gw.post, {"input": " ".join(said[1:])})
    wait_until(lambda: requests(gw) == 2)
    app.control(hold=False)
    assert {one.result().status_code, other.result().status_code} == {200}
    assert sorted(texts(app)) == said


def test_who_follows_outlives_the_one_who_asked_first(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    said = sentences("followers")
    hold(app, gw)
    with closing(leave_behind(gw, " ".join(said))):
        wait_until(lambda: app.state()["held"] == 1)
        followers = [background.submit(gw.post, {"input": " ".join(said)}) for _ in range(3)]
        wait_until(lambda: requests(gw) == 4)
    wait_until(lambda: requests(gw) == 3, 2)
    app.control(hold=False)
    answers = [follower.result() for follower in followers]
    # One of them goes on in the place of the first.
    assert [verdict(answer) for answer in answers].count("COALESCED") >= 2
    assert len({answer.content for answer in answers}) == 1
    assert texts(app) == said


def test_who_follows_keeps_a_place_in_the_queue_that_the_first_has_left(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    hold(app, gw)
    before = background.submit(gw.post, {"input": "The one that is being spoken."})
    wait_until(lambda: app.state()["held"] == 1)
    text = "The one that two are waiting for."
    with closing(leave_behind(gw, text)):
        wait_until(lambda: requests(gw) == 2)
        follower = background.submit(gw.post, {"input": text})
        wait_until(lambda: requests(gw) == 3)
    wait_until(lambda: requests(gw) == 2, 2)
    app.control(hold=False)
    assert before.result().status_code == 200
    assert seconds(follower.result().content) == pytest.approx(0.06 * len(text), abs=0.001)
    assert texts(app) == ["The one that is being spoken.", text]


def test_a_failure_is_told_to_all_who_wait_for_it_and_to_nobody_after(
    gw: Gateway, app: GradioApp, background: ThreadPoolExecutor
) -> None:
    hold(app, gw)
    asked = {"input": "All of us are disappointed."}
    waiting = [background.submit(gw.post, asked) for _ in range(5)]
    wait_until(lambda: requests(gw) == 5)
    app.control(hold=False, fail="error")
    assert {future.result().status_code for future in waiting} == {502}
    assert len(app.calls) == 3
    app.control(reset=True)
    assert verdict(gw.post(asked)) == "MISS"
