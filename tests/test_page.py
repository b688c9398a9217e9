"""The listening page in a real Chromium, on the real service.

Every page that is opened here is watched until its test ends: no error in its console, nothing
that its policy forbids, and no request to any other host.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import StartGateway
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright
from servers import Gateway, GradioApp, require_program, start_all, wait_until
from servers.sound import tone, write_wav

from tts_service.audio import decode

FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
PATIENCE = 20_000  # ms, on a busy machine
NARROW, WIDE = 360, 1920
#: 60 ms a character: about 2, 3 and 2 s.
SENTENCES = (
    "This is the first sentence of all.",
    "It is followed by a second and longer sentence.",
    "A third one comes at the end.",
)
#: As `SENTENCES`, once the page may say which of them is being heard.
HEARD = "#transcript [aria-current=true]"
WATCH = """addEventListener("securitypolicyviolation", (event) => {
    console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`);
});"""

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    heard = tmp_path_factory.mktemp("microphone") / "tone.wav"
    write_wav(heard, tone(440, 5, rate=48_000))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=require_program("chromium"),
            args=[*FLAGS, f"--use-file-for-fake-audio-capture={heard}"],
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def app() -> Iterator[GradioApp]:
    started = GradioApp("indextts-1.0")
    start_all([started])
    yield started
    started.stop()


@pytest.fixture(scope="module")
def shared_gateway(app: GradioApp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("page")
    started = Gateway.start(folder, GRADIO_URL=app.url, GRADIO_CALL_ATTEMPTS=1)
    yield started
    started.stop()


@pytest.fixture
def service(shared_gateway: Gateway, app: GradioApp) -> Gateway:
    """The service of all tests here, idle, and its backend reset."""
    app.control(reset=True)  # ends what is under way for the test before
    wait_until(shared_gateway.is_idle, PATIENCE / 1000)
    app.control(reset=True)
    return shared_gateway


@pytest.fixture
def open_page(browser: Browser, service: Gateway) -> Iterator[OpenPage]:
    """`open_page(width=…, locale=…, theme=…, url=…)`: a page in a browser without a past."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def note(page: Page, url: str) -> None:
        host = urlsplit(url).netloc

        def look(asked: str) -> None:
            parts = urlsplit(asked)
            if parts.scheme not in ("blob", "data") and parts.netloc != host:
                complaints.append(f"another host was asked: {asked}")

        page.on("request", lambda request: look(request.url))
        page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
        page.on(
            "console",
            lambda said: (
                complaints.append(f"console: {said.text}")
                # Chromium itself writes a line for each answer of 400 and more.
                if said.type in ("error", "warning") and "Failed to load resource" not in said.text
                else None
            ),
        )

    def start(
        *, width: int = 1280, locale: str = "en-US", theme: Any = "light", url: str = service.url
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, locale=locale, color_scheme=theme
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.add_init_script(WATCH)
        page = context.new_page()
        note(page, url)
        page.goto(url)
        page.wait_for_selector("body[data-is-ready]")
        return page

    expect.set_options(timeout=PATIENCE)
    yield start
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def speak(page: Page, text: str) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    button(page, "Speak").click()


def speak_all(page: Page, text: str = " ".join(SENTENCES)) -> None:
    """Have it spoken, to its last byte."""
    speak(page, text)
    expect(page.locator("#progress")).to_contain_text("All spoken")


def position(page: Page) -> float:
    """Where in the answer it is being played, in seconds."""
    return float(page.locator("#sound").evaluate("(sound) => sound.currentTime"))


def is_playing(page: Page) -> bool:
    return bool(page.locator("#sound").evaluate("(sound) => !sound.paused && !sound.ended"))


def play_past(page: Page, seconds: float) -> None:
    wait_until(lambda: position(page) > seconds, PATIENCE / 1000)


def hold_at(page: Page, seconds: float) -> None:
    """Pause there: on a busy machine a sentence is over before anybody has looked."""
    page.locator("#sound").evaluate(
        "(sound, at) => { sound.pause(); sound.currentTime = at; }", seconds
    )


def cues(page: Page) -> list[str]:
    return page.locator("#transcript .sentence").all_inner_texts()


# Speaking


def test_sound_starts_with_the_first_sentence_while_the_others_are_not_spoken_yet(
    page: Page, app: GradioApp
) -> None:
    app.control(hold=True)
    speak(page, " ".join(SENTENCES))
    expect(page.locator("#progress")).to_have_text("Waiting for the first sentence …")
    app.control(release=1)
    play_past(page, 0.5)
    assert [call["outcome"] for call in app.calls] == ["answered", "running"]
    expect(page.locator(HEARD)).to_have_text(SENTENCES[0])
    expect(page.locator("#progress")).to_have_text(re.compile("1 sentence spoken, 3[0-9] %"))
    expect(page.locator("#length")).to_contain_text("≈")
    app.control(hold=False)
    expect(page.locator("#progress")).to_have_text("All spoken: 3 sentences")
    assert cues(page) == list(SENTENCES)


NOTE_MARKS = """() => {
    window.marked = [];
    new MutationObserver((changes) => {
        for (const { target } of changes) {
            if (target.hasAttribute("aria-current")) window.marked.push(target.textContent);
        }
    }).observe(document.querySelector("#transcript"), { attributes: true, subtree: true });
}"""


def test_each_sentence_is_marked_while_it_is_heard_until_the_end(page: Page) -> None:
    page.evaluate(NOTE_MARKS)
    speak_all(page)
    page.locator("#sound").evaluate("(sound) => { sound.playbackRate = 2; }")
    wait_until(lambda: not is_playing(page), PATIENCE / 1000)
    assert page.evaluate("window.marked") == list(SENTENCES)
    expect(page.locator(HEARD)).to_have_count(0)
    expect(page.locator("#play")).to_have_accessible_name("Play")


def test_an_answer_can_be_sought_in_by_wave_by_sentence_and_by_key(page: Page) -> None:
    speak_all(page)
    hold_at(page, 0)
    wave_form = page.get_by_role("slider", name="Position")
    box = wave_form.bounding_box()
    assert box is not None
    length = float(page.locator("#sound").evaluate("(sound) => sound.duration"))
    assert length > 6
    wave_form.click(position={"x": box["width"] / 2, "y": 20})
    assert position(page) == pytest.approx(length / 2, abs=0.1)
    expect(page.locator(HEARD)).to_have_text(SENTENCES[1])
    wave_form.press("Home")
    assert position(page) == 0
    wave_form.press("ArrowRight")
    assert position(page) == pytest.approx(5, abs=0.05)
    page.locator("#transcript .sentence").nth(1).click()
    second = position(page)
    assert 2 < second < 3
    button(page, "Next sentence").click()
    expect(page.locator(HEARD)).to_have_text(SENTENCES[2])
    button(page, "Previous sentence").click()
    assert position(page) == pytest.approx(second, abs=0.05)
    button(page, "Play").click()
    play_past(page, second + 0.3)


@pytest.mark.parametrize("form", ["wav", "opus", "aac", "flac", "pcm"])
def test_other_formats_are_played_whole_with_their_sentences(page: Page, form: str) -> None:
    page.get_by_label("Format").select_option(form)
    expect(page.get_by_role("switch")).to_be_disabled()
    speak_all(page, f"{SENTENCES[0]} And this is {form}.")
    assert cues(page) == [SENTENCES[0], f"And this is {form}."]
    play_past(page, 0.3)
    hold_at(page, 0.3)
    expect(page.locator(HEARD)).to_have_text(SENTENCES[0])
    with page.expect_download() as downloaded:
        button(page, "Download").click()
    assert downloaded.value.suggested_filename.endswith(f".{form}")
    sound = downloaded.value.path().read_bytes()
    seconds = len(sound) / 48_000 if form == "pcm" else decode(sound).seconds
    assert seconds > 2


def test_mp3_can_be_asked_for_whole_and_at_another_speed(page: Page) -> None:
    page.get_by_role("switch", name="Play while it is spoken").uncheck()
    page.get_by_label("Speed").fill("2")
    with page.expect_request("**/v1/audio/speech") as asked:
        speak_all(page, "Twice as fast as ever.")
    body = json.loads(asked.value.post_data or "")
    assert body["speed"] == 2
    assert "stream_format" not in body
    play_past(page, 0.2)


def test_what_is_told_beside_the_sound_is_the_time_it_took_and_the_caches_verdict(
    page: Page,
) -> None:
    speak_all(page, "The verdict comes by header.")
    play_past(page, 0.1)
    expect(page.locator("#verdict")).to_have_text("MISS · newly spoken")
    for figure in ("#first-sound", "#total"):
        expect(page.locator(figure)).to_have_text(re.compile(r"\d+\.\d\d s"))
    speak_all(page, "The verdict comes by header.")
    expect(page.locator("#verdict")).to_have_text("HIT · from the cache")


def test_the_waveform_shows_how_loud_it_is(page: Page) -> None:
    empty = page.locator("#wave").screenshot()
    speak_all(page, "A tone has a shape.")
    heights = """(canvas) => {
        const { width, height } = canvas;
        const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
        const isInked = (x, y) => pixels[4 * (y * width + x) + 3] > 128;
        const row = (y) => Array.from({ length: width }, (_, x) => x).filter((x) => isInked(x, y));
        return { tall: row(Math.round(height * 0.1)).length / width };
    }"""
    wait_until(lambda: page.locator("#wave").evaluate(heights)["tall"] > 0.3, PATIENCE / 1000)
    assert page.locator("#wave").screenshot() != empty


# What goes wrong


def test_stopping_takes_the_rest_out_of_the_queue_and_leaves_what_was_heard(
    page: Page, app: GradioApp, service: Gateway
) -> None:
    app.control(hold=True)
    speak(page, " ".join(f"This is sentence number {number} of nine." for number in range(1, 10)))
    app.control(release=1)
    play_past(page, 0.1)
    button(page, "Stop").click()
    expect(page.get_by_role("alert")).to_have_text("Stopped. What was spoken so far can be heard.")
    wait_until(lambda: service.health()["queue"] == {"segments": 0, "requests": 0})
    assert not is_playing(page)
    app.control(hold=False)
    hold_at(page, 0.1)
    button(page, "Play").click()
    play_past(page, 0.3)
    wait_until(lambda: app.state()["active"] == 0)
    assert app.state()["count"] <= 3  # what was under way is finished, and kept


def test_an_answer_that_breaks_off_says_so_and_can_be_heard_so_far(
    page: Page, app: GradioApp
) -> None:
    app.control(hold=True)
    speak(page, "All is well in the beginning. Then the backend fails. And it is over.")
    app.control(release=1)
    play_past(page, 0.1)
    app.control(hold=False, fail="silent_error")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The answer broke off after 0:0")
    expect(alert).to_contain_text("backend")
    wait_until(lambda: not is_playing(page), PATIENCE / 1000)
    button(page, "Play").click()
    play_past(page, 0.2)
    assert page.locator("#shelf li").count() == 0


def test_an_error_is_shown_in_the_services_own_words_with_the_request(
    page: Page, service: Gateway
) -> None:
    speak(page, "x" * 5000)
    alert = page.locator("#trouble")
    expect(alert).to_contain_text("'input' has 5000 characters; at most 4096 are allowed.")
    shown = re.search("Request ([0-9a-f]{32})", alert.inner_text())
    assert shown is not None
    request_id = shown[1]
    wait_until(lambda: request_id in service.log)
    speak_all(page, "It goes on after an error.")
    expect(alert).to_be_empty()


#: The first sound's opening is told when it is closed already.
LATE_OPENING = """() => {
    const sources = MediaSource.prototype;
    const listen = sources.addEventListener;
    sources.addEventListener = function (name, ...rest) {
        sources.addEventListener = listen;
        listen.call(this, name === "sourceopen" ? "sourceclose" : name, ...rest);
    };
}"""


def test_sound_that_was_refused_before_it_could_open_is_no_fault_of_the_page(page: Page) -> None:
    page.evaluate(LATE_OPENING)
    speak(page, "x" * 5000)
    expect(page.locator("#trouble")).to_contain_text("at most 4096 are allowed.")
    speak_all(page, "It goes on after an error.")
    play_past(page, 0.3)


def test_a_service_that_cannot_be_reached_is_told_from_one_that_refuses(page: Page) -> None:
    page.context.set_offline(True)
    speak(page, "Is anybody there?")
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached.")
    expect(page.locator("#state")).to_have_text("Not reachable")
    page.context.set_offline(False)
    speak_all(page, "Is anybody there?")
    expect(page.locator("#state")).to_have_text("Ready")


def test_a_key_is_asked_for_where_the_service_wants_one_and_forgotten_with_the_tab(
    gateway: StartGateway, app: GradioApp, open_page: OpenPage
) -> None:
    guarded = gateway(GRADIO_URL=app.url, API_KEYS="sesame")
    page = open_page(url=guarded.url)
    field = page.get_by_label("API key").first
    speak(page, "Open the door.")
    expect(page.get_by_role("alert")).to_contain_text("This service wants an API key.")
    expect(field).to_be_focused()
    field.fill("sesame")
    field.press("Enter")
    expect(page.locator("#progress")).to_contain_text("All spoken")
    page.reload()
    expect(field).to_have_value("sesame")
    another = page.context.new_page()
    another.goto(guarded.url)
    expect(another.get_by_label("API key").first).to_have_value("")


def test_there_is_no_field_for_a_key_where_none_is_wanted(page: Page) -> None:
    expect(page.get_by_label("API key").first).to_be_hidden()


# What was heard, and how it would be asked for


def test_answers_are_kept_to_be_heard_again_after_a_reload(page: Page, app: GradioApp) -> None:
    page.get_by_label("Format").select_option("wav")
    speak_all(page, "The older of the two. It has a second sentence.")
    page.get_by_label("Format").select_option("mp3")
    speak_all(page, "The newer of the two.")
    wait_until(lambda: page.locator("#shelf li").count() == 2)
    page.reload()
    expect(page.locator("#shelf li")).to_have_count(2)
    spoken = app.state()["count"]
    page.get_by_role("button", name="Hear again: The older").click()
    play_past(page, 0.2)
    hold_at(page, 0.2)
    expect(page.locator(HEARD)).to_have_text("The older of the two.")
    assert app.state()["count"] == spoken
    page.get_by_role("button", name="Forget: The newer").click()
    expect(page.locator("#shelf li")).to_have_count(1)
    button(page, "Clear all").click()
    expect(page.locator("#shelf-empty")).to_be_visible()
    page.reload()
    expect(page.locator("#shelf-empty")).to_be_visible()


def test_no_more_than_a_dozen_answers_are_kept(page: Page) -> None:
    for number in range(13):
        speak_all(page, f"Number {number}.")
        expect(page.locator("#shelf li").first).to_contain_text(f"Number {number}.")
    expect(page.locator("#shelf li")).to_have_count(12)
    expect(page.locator("#shelf li").last).to_contain_text("Number 1.")


QUOTED = """It's "a" \\ $HOME `ls` 引号."""


def copied(page: Page, tab: str) -> str:
    page.get_by_role("tab", name=tab, exact=True).click()
    button(page, "Copy").click()
    expect(page.locator("#copy-words")).to_have_text("Copied")
    return str(page.evaluate("navigator.clipboard.readText()"))


def test_the_code_that_is_copied_runs_and_speaks_the_text(
    page: Page, app: GradioApp, tmp_path: Path
) -> None:
    page.get_by_label("Text", exact=True).fill(QUOTED)
    (tmp_path / "speech.mjs").write_text(copied(page, "JavaScript"))
    (tmp_path / "speech.py").write_text(copied(page, "Python"))
    commands = [
        ["sh", "-c", copied(page, "curl")],
        [sys.executable, "speech.py"],
        [require_program("node"), "speech.mjs"],
    ]
    sizes = set()
    for command in commands:
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60, capture_output=True)
        assert decode((tmp_path / "speech.mp3").read_bytes()).seconds > 1
        sizes.add((tmp_path / "speech.mp3").stat().st_size)
        (tmp_path / "speech.mp3").unlink()
    link = httpx.get(copied(page, "Link")).raise_for_status()
    assert sizes == {len(link.content)}
    assert "".join(call["text"] for call in app.calls) == QUOTED


# Voices


def test_a_voices_recording_is_played_from_its_card_and_stops_what_plays(page: Page) -> None:
    speak_all(page)
    button(page, "Hear default").click()
    sample = page.locator("#sample")
    wait_until(lambda: sample.evaluate("(sound) => sound.currentTime") > 0.1, PATIENCE / 1000)
    assert not is_playing(page)
    button(page, "Stop default").click()
    assert sample.evaluate("(sound) => sound.paused")


def test_the_chosen_voice_speaks_and_is_remembered(page: Page) -> None:
    page.get_by_role("radio", name="chixiaotu6").check()
    with page.expect_request("**/v1/audio/speech") as asked:
        speak_all(page, "By whom?")
    assert json.loads(asked.value.post_data or "")["voice"] == "chixiaotu6"
    page.reload()
    expect(page.get_by_role("radio", name="chixiaotu6")).to_be_checked()


def test_a_file_becomes_a_voice_that_speaks_and_can_be_removed(
    page: Page, service: Gateway, tmp_path: Path
) -> None:
    recording = tmp_path / "Anna's voice (1).wav"
    write_wav(recording, tone(300, 6))
    button(page, "Add a voice").click()
    page.get_by_label("Drop a recording here").set_input_files(recording)
    expect(page.get_by_label("Name", exact=True)).to_have_value("Anna-s-voice-1")
    page.get_by_label("Name", exact=True).fill("default")
    button(page, "Add this voice").click()
    alert = page.get_by_role("dialog").get_by_role("alert")
    expect(alert).to_contain_text("default")  # there is one already
    page.get_by_label("Name", exact=True).fill("anna")
    button(page, "Add this voice").click()
    expect(page.get_by_role("radio", name="anna")).to_be_checked()
    expect(page.locator("#news")).to_have_text("anna can speak now.")
    assert service.client.get("/v1/audio/voices/anna").json()["duration"] == pytest.approx(
        6, abs=0.5
    )
    speak_all(page, "I am new here.")
    button(page, "Remove anna").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("radio", name="anna")).to_be_visible()
    button(page, "Remove anna").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Remove").click()
    expect(page.get_by_role("radio", name="anna")).to_have_count(0)
    assert service.client.get("/v1/audio/voices/anna").status_code == 404


def test_a_file_can_be_dropped_and_what_is_no_recording_is_refused_in_words(page: Page) -> None:
    button(page, "Add a voice").click()
    dropped = page.evaluate_handle(
        """() => {
            const dropped = new DataTransfer();
            dropped.items.add(new File(["no sound at all"], "letter.wav"));
            return dropped;
        }"""
    )
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": dropped})
    expect(page.get_by_label("Name", exact=True)).to_have_value("letter")
    button(page, "Add this voice").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("radio", name="letter")).to_have_count(0)


def test_the_microphone_is_recorded_heard_and_becomes_a_voice(page: Page, service: Gateway) -> None:
    button(page, "Add a voice").click()
    button(page, "Record").click()
    expect(page.locator("#recording-time")).to_contain_text("Recording, 0:02")
    button(page, "Stop recording").click()
    preview = page.locator("#preview")
    preview.evaluate("(sound) => sound.play()")
    wait_until(lambda: preview.evaluate("(sound) => sound.currentTime") > 0.1, PATIENCE / 1000)
    page.get_by_label("Name", exact=True).fill("我的声音")
    button(page, "Add this voice").click()
    expect(page.get_by_role("radio", name="我的声音")).to_be_checked()
    voice = service.client.get("/v1/audio/voices/我的声音").json()
    assert voice["duration"] >= 1
    sample = service.client.get("/v1/audio/voices/我的声音/sample").content
    assert max(abs(value) for value in memoryview(decode(sample).pcm).cast("h")) > 1000
    service.client.delete("/v1/audio/voices/我的声音").raise_for_status()


def test_leaving_the_dialog_lets_go_of_the_microphone(page: Page) -> None:
    tracks = """() => {
        const ask = MediaDevices.prototype.getUserMedia;
        MediaDevices.prototype.getUserMedia = async function (wanted) {
            const stream = await ask.call(this, wanted);
            window.tracks = stream.getTracks();
            return stream;
        };
    }"""
    page.evaluate(tracks)
    button(page, "Add a voice").click()
    button(page, "Record").click()
    expect(page.locator("#recording")).to_be_visible()
    page.keyboard.press("Escape")
    wait_until(lambda: page.evaluate("window.tracks.every((t) => t.readyState === 'ended')"))


# For everybody


def test_the_page_speaks_the_browsers_language_and_can_be_switched(open_page: OpenPage) -> None:
    page = open_page(locale="zh-CN")
    expect(page.get_by_role("heading", level=1)).to_have_text("语音合成")
    expect(button(page, "朗读")).to_be_visible()
    page.get_by_label("文本", exact=True).fill("你好，世界。今天天气真好。")
    button(page, "朗读").click()
    expect(page.locator("#progress")).to_have_text("已全部合成，共 2 句")
    expect(page.locator("#verdict")).to_have_text("MISS · 新合成")
    page.get_by_role("button", name="EN").click()
    expect(page.locator("#progress")).to_have_text("All spoken: 2 sentences")
    assert page.evaluate("document.documentElement.lang") == "en"
    page.reload()
    expect(button(page, "Speak")).to_be_visible()


def test_both_languages_say_the_same_things(page: Page) -> None:
    source = (Path(__file__).parents[1] / "tts_service/static/page/words.js").read_text()
    english, chinese = source.split("  zh: {")
    names = [re.findall(r'^    ("?[\w ]+"?):', part, re.MULTILINE) for part in (english, chinese)]
    assert len(names[0]) > 100
    assert names[0] == names[1]


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_nothing_is_cut_off_at_any_width(open_page: OpenPage, width: int, locale: str) -> None:
    page = open_page(width=width, locale=locale)
    page.locator("#text").fill("Unbroken" * 60)
    page.locator("#speak").click()
    expect(page.locator("#download")).to_be_enabled()

    def overflow() -> list[str]:
        found: list[str] = page.evaluate(
            """() => [...document.querySelectorAll("body *")]
                .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
                .filter((element) => !element.closest(".tabs, .sr-only, .skip, pre"))
                .map((element) => element.outerHTML.slice(0, 80))"""
        )
        return found

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert overflow() == []
    page.locator("#add-voice").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert overflow() == []


def test_everything_is_done_by_keyboard_alone(page: Page) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab never reaches {selector}")

    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips to the text
    page.keyboard.type("Only keys were pressed. Twice.")
    tab_to("[name=voice]")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("radio", name="chixiaotu6")).to_be_checked()
    tab_to("#speed")
    page.keyboard.press("End")
    expect(page.locator("#speed-shown")).to_have_text("4×")
    tab_to("#streaming")
    page.keyboard.press("Space")
    page.keyboard.press("Space")
    tab_to("#speak")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#progress")).to_have_text("All spoken: 2 sentences")
    tab_to("#wave")
    page.keyboard.press("End")
    tab_to("#play")
    tab_to(".again")
    page.keyboard.press("Enter")
    play_past(page, 0.05)
    tab_to("[role=tab]")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Python")).to_be_focused()
    expect(page.locator("#snippet")).to_contain_text("import OpenAI")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.locator("#add-voice").press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#add-voice")).to_be_focused()


def test_the_service_is_asked_how_it_is_only_while_that_can_be_seen(open_page: OpenPage) -> None:
    page = open_page(width=NARROW)  # where the panel is far below
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if r.url.endswith("/health") else None)
    page.clock.install()
    page.reload()
    expect(page.locator("#state")).to_have_text("Ready")
    before = len(asked)
    page.clock.run_for(60_000)
    assert len(asked) == before
    page.locator("#facts").scroll_into_view_if_needed()
    wait_until(lambda: page.evaluate("1") and len(asked) > before, PATIENCE / 1000)
    expect(page.locator("#facts")).to_contain_text("Nobody waits")
    expect(page.locator("#facts")).to_contain_text("http://127.0.0.1")
    seen = len(asked)
    wait_until(lambda: page.clock.run_for(4000) or len(asked) > seen, PATIENCE / 1000)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_axe_finds_nothing_to_object_to(
    open_page: OpenPage, node_packages: Path, theme: str, locale: str
) -> None:
    page = open_page(theme=theme, locale=locale)
    axe = (node_packages / "node_modules/axe-core/axe.min.js").read_text()
    page.evaluate(axe)  # not as a script of the page, which its policy would forbid

    def violations() -> list[str]:
        found = page.evaluate("axe.run()")
        assert found["passes"]
        return [
            f"{rule['id']}: {node['html'][:120]} {node['failureSummary']}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]

    assert violations() == []
    page.locator("#text").fill(f"{SENTENCES[0]} For {theme} and {locale}.")
    page.locator("#speak").click()
    expect(page.locator("#download")).to_be_enabled()
    hold_at(page, 0.2)
    expect(page.locator(HEARD)).to_have_count(1)
    page.locator("#text").fill("")
    page.locator("#speak").click()  # for the complaint
    expect(page.locator("#trouble")).not_to_be_empty()
    assert violations() == []
    page.locator("#add-voice").click()
    assert violations() == []


def test_the_page_may_do_only_what_its_policy_says(service: Gateway) -> None:
    answer = service.client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", answer.text)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
