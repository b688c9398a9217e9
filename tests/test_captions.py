"""Captions over HTTP: linked by whole answers, served from the cache, read by a real browser."""

import base64
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from conftest import StartGateway
from playwright.sync_api import sync_playwright
from servers import Gateway, GradioApp, RedisServer, require_program, start_all, wait_until
from servers.machine import Server

from tts_service import records
from tts_service.cache import BoundedCache
from tts_service.captions import Captions
from tts_service.cues import Cue
from tts_service.keys import ApiKeys

SPEECH = "/v1/audio/speech"
PATH = f"{SPEECH}/captions/"
PAGE = "https://page.example"
KEY = {"Authorization": "Bearer sesame"}
PAUSE = 0.2
#: What an IndexTTS under test says of it: 60 ms a character.
SECONDS_PER_CHARACTER = 0.06
LINK = re.compile(r'<(/[^>]+)>; rel="captions"; type="([^"]+)"')
Served = tuple[Gateway, Gateway, GradioApp]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway, and one that asks for a key, and begins to stream what takes half a second."""
    app = GradioApp("indextts-1.0")
    folder = tmp_path_factory.mktemp("captions")
    gateway = Gateway(folder, GRADIO_URL=app.url, MAX_CACHE_SIZE=1000)
    hasty = Gateway(
        folder, GRADIO_URL=app.url, STREAM_AFTER=0.5, API_KEYS="sesame", CORS_ORIGINS=PAGE
    )
    with ExitStack() as started:
        servers: list[Server] = [app, gateway, hasty]
        for server in servers:
            started.callback(server.stop)
        start_all(servers)
        yield gateway, hasty, app


@pytest.fixture
def gw(served: Served) -> Gateway:
    return served[0]


@pytest.fixture
def hasty(served: Served) -> Gateway:
    """It wants KEY."""
    return served[1]


@pytest.fixture
def app(served: Served) -> GradioApp:
    served[2].control(reset=True)
    return served[2]


def ask(service: Gateway, text: str, **fields: Any) -> httpx.Response:
    answer = service.post({"input": text, "timestamps": True, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def linked(answer: httpx.Response) -> dict[str, str]:
    """The URLs of an answer's captions, by their type; each in a header of its own."""
    values = answer.headers.get_list("Link")
    return {kind: url for value in values for url, kind in LINK.findall(value)}


def web_vtt(service: Gateway, answer: httpx.Response) -> str:
    captions = service.client.get(linked(answer)["text/vtt"])
    assert captions.status_code == 200, captions.text
    return captions.text


def cues_in(written: str) -> list[tuple[float, float, str]]:
    """Start, end and text of each cue in a WebVTT file."""

    def seconds(clock: str) -> float:
        hours, minutes, rest = clock.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(rest)

    head, *blocks = written.removesuffix("\n").split("\n\n")
    assert head == "WEBVTT"
    found = []
    for block in blocks:
        _, times, text = block.split("\n")
        start, end = times.split(" --> ")
        found.append((seconds(start), seconds(end), text))
    return found


def expected(*sentences: str) -> list[tuple[Any, Any, str]]:
    """Where sentences are heard at speed 1, in a format without delay."""
    cues, at = [], 0.0
    for sentence in sentences:
        end = at + SECONDS_PER_CHARACTER * len(sentence)
        cues.append((pytest.approx(at, abs=0.002), pytest.approx(end, abs=0.002), sentence))
        at = end + PAUSE
    return cues


# -- links -----------------------------------------------------------------------------------------


def test_a_whole_answer_links_its_captions_in_both_formats(gw: Gateway) -> None:
    answer = ask(gw, "The first one. The second one.")
    urls = linked(answer)
    assert urls.keys() == {"text/vtt", "application/x-subrip"}
    assert all(url.startswith(PATH) for url in urls.values())
    vtt, srt = (gw.client.get(url) for url in urls.values())
    assert vtt.headers["Content-Type"] == "text/vtt; charset=utf-8"
    assert srt.headers["Content-Type"] == "application/x-subrip"
    assert cues_in(vtt.text) == expected("The first one.", "The second one.")
    assert [line for line in srt.text.splitlines() if "one" in line] == [
        "The first one.",
        "The second one.",
    ]
    assert re.search(r"^00:00:00,000 --> 00:00:00,840$", srt.text, re.MULTILINE)


def test_who_does_not_ask_for_timestamps_gets_no_links(gw: Gateway) -> None:
    asked = {"input": "Without any links."}
    for verdict in ("MISS", "HIT", "HIT"):
        answer = gw.post({**asked, "timestamps": False})
        assert answer.headers["X-Cache"] == verdict
        assert "Link" not in answer.headers


@pytest.mark.parametrize("name", ["wav", "mp3", "opus", "aac", "flac", "pcm"])
@pytest.mark.parametrize("text", ["One sentence.", "Two of them. Here is the other."])
def test_an_answer_made_without_timestamps_is_a_hit_with_captions(
    gw: Gateway, name: str, text: str
) -> None:
    text = f"{name}: {text}"
    first = gw.post({"input": text, "response_format": name, "speed": 1})
    assert first.headers["X-Cache"] in ("MISS", "PARTIAL", "COALESCED")
    for _ in range(2):
        again = ask(gw, text, response_format=name)
        assert again.headers["X-Cache"] == "HIT"
        assert again.content == first.content
        assert again.headers["ETag"] == first.headers["ETag"]
        cues = cues_in(web_vtt(gw, again))
        assert " ".join(said for *_, said in cues) == text
        assert len(cues) == text.count(".")


def test_a_link_has_the_captions_of_its_post(gw: Gateway) -> None:
    by_post = ask(gw, "Both ways. Two sentences.", response_format="mp3")
    query = {"input": "Both ways. Two sentences.", "response_format": "mp3", "timestamps": "1"}
    for method in ("GET", "HEAD"):
        by_link = gw.client.request(method, SPEECH, params=query)
        assert by_link.headers["X-Cache"] == "HIT"
        assert linked(by_link) == linked(by_post)
    part = gw.client.get(SPEECH, params=query, headers={"Range": "bytes=0-9"})
    assert (part.status_code, linked(part)) == (206, linked(by_post))


def test_each_speed_has_its_own_captions(gw: Gateway) -> None:
    said = ("At any speed.", "Slow or fast.")
    for speed in (0.25, 0.5, 2, 4):
        cues = cues_in(web_vtt(gw, ask(gw, " ".join(said), speed=speed)))
        at = 0.0
        for (start, end, text), sentence in zip(cues, said, strict=True):
            length = SECONDS_PER_CHARACTER * len(sentence) / speed
            assert (start, end) == pytest.approx((at, at + length), abs=0.002)
            assert text == sentence
            at += length + PAUSE


def test_marks_alone_have_captions_without_a_cue(gw: Gateway) -> None:
    urls = linked(ask(gw, "……!"))
    assert gw.client.get(urls["text/vtt"]).text == "WEBVTT\n"
    assert gw.client.get(urls["application/x-subrip"]).text == ""


def test_captions_that_have_left_the_cache_are_404_until_they_are_asked_for_again(
    gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url, MAX_CACHE_SIZE=2)
    url = linked(ask(service, "Gone."))["text/vtt"]
    assert service.client.get(url).status_code == 200
    service.post({"input": "Gone."})  # used later than its captions
    service.post({"input": "Another."})
    gone = service.client.get(url)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "captions_not_found")
    again = ask(service, "Gone.")
    assert (again.headers["X-Cache"], linked(again)["text/vtt"]) == ("HIT", url)
    assert service.client.get(url).status_code == 200


@pytest.mark.parametrize("name", ["x", "..%2F..%2Fhealth", "0" * 32, "A" * 32, "0" * 5000, "%00"])
def test_other_names_are_404(gw: Gateway, name: str) -> None:
    for suffix in ("vtt", "srt", "txt"):
        answer = gw.client.get(f"{PATH}{name}.{suffix}")
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_who_has_the_captions_already_is_sent_nothing(gw: Gateway) -> None:
    url = linked(ask(gw, "Known already."))["text/vtt"]
    first = gw.client.get(url)
    assert first.headers["Cache-Control"] == "max-age=60"
    again = gw.client.get(url, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = gw.client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(first.content))


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["streamed", "late"])
def test_captions_of_a_stream_are_there_when_it_has_ended(
    hasty: Gateway, app: GradioApp, late: bool
) -> None:
    app.control(hold=True)
    text = f"It begins before it ends. The second part of it is {late}."
    fields = {"input": text, "timestamps": True, "response_format": "mp3", "stream": not late}
    asked = hasty.client.build_request("POST", SPEECH, json=fields, headers=KEY)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(hasty.client.send, asked, stream=True)
        try:
            wait_until(lambda: app.state()["held"] == 1)
            if not late:
                app.control(release=1)
            answer = opening.result()
            assert answer.headers["Transfer-Encoding"] == "chunked"
            url = linked(answer)["text/vtt"]
            assert httpx.get(f"{hasty.url}{url}").status_code == 404
        finally:
            app.control(hold=False)
        answer.read()
    assert len(cues_in(hasty.client.get(url).text)) == 2
    again = hasty.post({**fields, "stream": False}, **KEY)
    assert (again.headers["X-Cache"], linked(again)["text/vtt"]) == ("HIT", url)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n")[:-1]]


@pytest.mark.parametrize("name", ["wav", "mp3", "opus", "aac", "flac", "pcm"])
def test_events_tell_the_same_of_a_new_answer_and_of_a_cached_one(gw: Gateway, name: str) -> None:
    text = f"Told in {name}. Told again in {name}."
    fields = {"response_format": name, "stream_format": "sse"}
    new, cached = ask(gw, text, **fields), ask(gw, text, **fields)
    assert [new.headers["X-Cache"], cached.headers["X-Cache"]] == ["MISS", "HIT"]
    told = [[e for e in events(a) if e["type"] == "speech.audio.segment"] for a in (new, cached)]
    assert told[0] == told[1]
    whole = ask(gw, text, response_format=name)
    assert [(e["start"], e["end"], e["text"]) for e in told[0]] == cues_in(web_vtt(gw, whole))
    assert [e["index"] for e in told[0]] == [0, 1]
    sound = [base64.b64decode(e["audio"]) for e in events(cached) if "audio" in e]
    assert b"".join(sound) == whole.content
    kinds = [event["type"] for event in events(cached)]
    assert kinds[:3] == ["speech.audio.segment"] * 2 + ["speech.audio.delta"]


def test_who_does_not_ask_for_timestamps_gets_no_segments(gw: Gateway) -> None:
    asked = {"input": "Only sound. Nothing else.", "stream_format": "sse"}
    for _ in range(2):
        assert {event["type"] for event in events(gw.post(asked))} == {
            "speech.audio.delta",
            "speech.audio.done",
        }


# -- who may read them -----------------------------------------------------------------------------


def test_who_knows_the_url_needs_no_key(hasty: Gateway) -> None:
    answer = hasty.post({"input": "For those who may.", "timestamps": True}, **KEY)
    captions = httpx.get(f"{hasty.url}{linked(answer)['text/vtt']}")
    assert captions.status_code == 200
    assert "For those who may." in captions.text


def test_captions_made_on_another_machine_are_found(
    gateway: StartGateway, backend: GradioApp, redis_server: RedisServer
) -> None:
    settings = {"GRADIO_URL": backend.url, "REDIS_URL": redis_server.url}
    one, other = gateway(**settings), gateway(**settings)
    answer = ask(one, "Made over there. Read over here.")
    assert cues_in(web_vtt(other, answer)) == expected("Made over there.", "Read over here.")
    at_other = ask(other, "Made over there. Read over here.")
    assert at_other.headers["X-Cache"] == "HIT"
    assert linked(at_other) == linked(answer)


def test_pages_of_other_origins_may_read_the_links(hasty: Gateway) -> None:
    answer = hasty.post({"input": "From a page.", "timestamps": True}, Origin=PAGE, **KEY)
    assert "Link" in answer.headers["Access-Control-Expose-Headers"]
    captions = httpx.get(f"{hasty.url}{linked(answer)['text/vtt']}", headers={"Origin": PAGE})
    assert captions.headers["Access-Control-Allow-Origin"] == PAGE


def test_a_text_that_looks_like_markup_is_shown_as_it_is_by_a_browser(gw: Gateway) -> None:
    nasty = 'Say "a --> b" & <i>go</i>.\n\n00:09.000 --> 00:10.000\n你好，<v 世界>。'
    url = linked(ask(gw, nasty))["text/vtt"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require_program("chromium"),
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"],
        )
        page = browser.new_page()
        page.goto(f"{gw.url}/docs")
        shown = page.evaluate(SHOWN, url)
        browser.close()
    assert " ".join(cue["shown"] for cue in shown) == " ".join(nasty.split())
    assert all(0 <= cue["start"] < cue["end"] for cue in shown)


#: What a browser makes of a track: each cue's times, and its text as it would be drawn.
SHOWN = """async (url) => {
    const track = document.createElement("track");
    track.src = url;
    const video = document.createElement("video");
    video.append(track);
    track.track.mode = "hidden";
    await new Promise((resolve, reject) => {
        track.onload = resolve;
        track.onerror = () => reject(new Error("the track did not load"));
    });
    return [...track.track.cues].map((cue) => ({
        start: cue.startTime, end: cue.endTime, shown: cue.getCueAsHTML().textContent,
    }));
}"""


# -- kept ------------------------------------------------------------------------------------------

CUES = [Cue("One.", 0, 1000), Cue("Two.", 1200, 2000)]


def test_without_a_cache_nothing_is_kept() -> None:
    assert not Captions(BoundedCache(threshold=0), ApiKeys(())).keep("answer:1", "digest", CUES)


@pytest.fixture
def cache() -> BoundedCache:
    return BoundedCache(threshold=10)


def name_in(links: list[str]) -> str:
    return re.findall(r"([0-9a-f]{32})\.", links[0])[0]


def test_captions_of_what_was_spoken_anew_are_not_those_of_before(cache: BoundedCache) -> None:
    captions = Captions(cache, ApiKeys(()))
    assert captions.keep("answer:1", "digest", CUES)
    assert captions.are_kept("answer:1", "digest")
    assert not captions.are_kept("answer:1", "another digest")
    assert not captions.are_kept("answer:2", "digest")
    assert captions.keep("answer:1", "another digest", CUES[:1])
    assert captions.find(name_in(captions.links("answer:1"))) == CUES[:1]


def test_captions_that_are_asked_for_stay_as_long_as_their_answer(cache: BoundedCache) -> None:
    captions = Captions(cache, ApiKeys(()))
    captions.keep("answer:1", "digest", CUES)
    for number in range(30):
        cache.set(f"segment:{number}", b"sound")
        assert captions.are_kept("answer:1", "digest")


def test_a_name_is_the_same_on_machines_with_the_same_keys(cache: BoundedCache) -> None:
    one, other = (Captions(cache, ApiKeys(keys)) for keys in (("a", "b"), ("b", "a")))
    assert one.links("answer:1") == other.links("answer:1")
    assert one.links("answer:1") != one.links("answer:2")


def test_a_name_tells_nothing_to_who_has_not_all_keys(cache: BoundedCache) -> None:
    keys = [(), ("a",), ("b",), ("a", "b"), ("a,b",), ("",)]
    names = [name_in(Captions(cache, ApiKeys(some)).links("answer:1")) for some in keys]
    assert len(set(names)) == len(names)
    assert "answer" not in "".join(names)


@pytest.mark.parametrize("body", [b"", b"{}", b'[[0, "x", 1]]', b"\xff"])
def test_an_entry_that_somebody_else_wrote_is_none(cache: BoundedCache, body: bytes) -> None:
    captions = Captions(cache, ApiKeys(()))
    name = name_in(captions.links("answer:1"))
    cache.set(f"captions:{name}", records.pack(body)[0])
    assert captions.find(name) is None
