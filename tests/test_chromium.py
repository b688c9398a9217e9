"""A real browser plays what the service answers: every format, from start to end, and seeks."""

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import StartGateway
from documents import README, blocks
from playwright.sync_api import Page, sync_playwright
from servers import Gateway, GradioApp, require_program

#: Containers that a browser knows; pcm has none.
FORMATS = ("wav", "mp3", "opus", "aac", "flac")
TEXT = "The first sentence of several. Here is the second one, a bit longer. And a third."

DECODE = """async (url) => {
    const bytes = await (await fetch(url)).arrayBuffer();
    const sound = await new OfflineAudioContext(1, 48000, 48000).decodeAudioData(bytes);
    const samples = sound.getChannelData(0);
    let peak = 0, sum = 0;
    for (const sample of samples) { peak = Math.max(peak, Math.abs(sample)); sum += sample; }
    return {seconds: sound.duration, peak, offset: sum / samples.length};
}"""

PLAY = """async (url) => {
    const audio = new Audio(url);
    const event = (name) => new Promise((resolve, reject) => {
        audio.addEventListener(name, resolve, {once: true});
        audio.addEventListener("error", () => reject(audio.error.message), {once: true});
    });
    const loaded = event("loadedmetadata");
    audio.load();
    await loaded;
    const sought = event("seeked");
    audio.currentTime = audio.duration / 2;
    await sought;
    const from = audio.currentTime;
    const ended = event("ended");
    audio.playbackRate = 4;
    await audio.play();
    await ended;
    return {duration: audio.duration, from, to: audio.currentTime};
}"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of a headless Chromium that asks no other host for anything."""
    flags = [
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--autoplay-policy=no-user-gesture-required",
        "--disable-background-networking",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require_program("chromium"), args=flags
        )
        yield browser.new_page()
        browser.close()


@pytest.fixture
def served(page: Page, gateway: StartGateway, backend: GradioApp) -> Gateway:
    service = gateway(GRADIO_URL=backend.url)
    page.goto(f"{service.url}/health/live")
    return service


def link(response_format: str) -> str:
    return f"/v1/audio/speech?response_format={response_format}&input={TEXT}"


def test_chromium_decodes_every_format_to_the_same_length(page: Page, served: Gateway) -> None:
    decoded: dict[str, Any] = {name: page.evaluate(DECODE, link(name)) for name in FORMATS}
    expected = decoded["wav"]["seconds"]
    assert expected > 2
    for name, sound in decoded.items():
        limit = 0.1 if name == "aac" else 0.06
        assert sound["seconds"] == pytest.approx(expected, abs=limit), name
        assert 0.05 < sound["peak"] < 1, name
        assert abs(sound["offset"]) < 0.001, name


@pytest.mark.parametrize("name", FORMATS)
def test_an_audio_element_plays_the_link_and_seeks_in_it(
    page: Page, served: Gateway, name: str
) -> None:
    played = page.evaluate(PLAY, link(name))
    assert played["from"] == pytest.approx(played["duration"] / 2, abs=0.05)
    assert played["to"] == pytest.approx(played["duration"], abs=0.05)


def test_the_readmes_audio_element_plays_on_a_page_of_another_origin(
    page: Page, served: Gateway, backend: GradioApp
) -> None:
    (example,) = blocks(README, "html")
    page.goto(f"{backend.url}/config")
    page.set_content(example.replace("http://127.0.0.1:8000", served.url))
    audio = page.locator("audio")
    audio.evaluate("(audio) => audio.play()")
    assert audio.evaluate("(audio) => audio.duration") > 0.3
