"""The service's own description, complete and true; and the page that shows it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import validate
from playwright.sync_api import Page, Request, sync_playwright
from servers import Gateway, GradioApp, require_program, start_all
from servers.machine import Server
from servers.sound import tone, write_prompts, write_wav

from config import read_config
from tts_service import create_app
from tts_service.audio import FORMATS
from tts_service.openapi import SPEECH, Terms, document
from tts_service.speech_request import SpeechRequest, parse_speech_request

TERMS = Terms(
    max_input_chars=100,
    default_format="opus",
    needs_key=True,
    limits_rate=True,
    voices=("chixiaotu6", "朗读者"),
)
API = ("/models", "/audio")  # routes that clients know under /v1


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    prompts = tmp_path / "prompts"
    write_prompts(prompts)
    return create_app(read_config(PROMPTS_DIR=prompts, API_KEYS=("sk-1",), MAX_INPUT_CHARS=321))


def routes_of(app: Flask) -> set[tuple[str, str]]:
    """Method and path, as a client writes them; parameters without their names."""
    return {
        (method, re.sub("<.+?>", "{}", f"/v1{rule}" if rule.rule.startswith(API) else rule.rule))
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def routes_in(described: dict[str, Any]) -> set[tuple[str, str]]:
    return {
        (method.upper(), re.sub("{.+?}", "{}", path))
        for path, item in described["paths"].items()
        for method in item.keys() & {"get", "post", "put", "patch", "delete"}
    }


def accepted_forms(described: dict[str, Any], field: str) -> list[dict[str, Any]]:
    properties = described["components"]["schemas"]["SpeechRequest"]["properties"]
    return list(properties[field]["anyOf"])


# -- the document ----------------------------------------------------------------------------------


def test_every_route_is_described_and_nothing_else_is(app: Flask) -> None:
    described = app.test_client().get("/openapi.json").json
    assert described is not None
    assert routes_in(described) == routes_of(app)


@pytest.mark.parametrize("needs_key", [True, False])
@pytest.mark.parametrize("voices", [(), TERMS.voices])
def test_the_document_is_valid_openapi(needs_key: bool, voices: tuple[str, ...]) -> None:
    described = document(replace(TERMS, needs_key=needs_key, voices=voices))
    assert described["openapi"].startswith("3.1.")
    validate(described)


def test_every_operation_has_its_own_name() -> None:
    names = re.findall('"operationId": "(.+?)"', json.dumps(document(TERMS)))
    assert len(names) == len(set(names)) == len(routes_in(document(TERMS)))


def test_every_part_that_is_defined_is_used_and_the_other_way_round() -> None:
    described = document(TERMS)
    used = set(re.findall('"#/components/(.+?)"', json.dumps(described)))
    defined = {
        f"{kind}/{name}"
        for kind, parts in described["components"].items()
        for name in parts
        if kind != "securitySchemes"
    }
    assert used == defined


def test_the_document_has_every_field_and_every_format() -> None:
    described = document(TERMS)
    schema = described["components"]["schemas"]["SpeechRequest"]
    assert schema["properties"].keys() == SpeechRequest.model_fields.keys()
    assert all(field["description"] for field in schema["properties"].values())
    post, get = (described["paths"][SPEECH][method] for method in ("post", "get"))
    sounds = {format_.content_type for format_ in FORMATS.values()}
    assert post["responses"]["200"]["content"].keys() == sounds | {"text/event-stream"}
    assert get["responses"]["200"]["content"].keys() == sounds
    assert get["responses"]["206"]["content"].keys() == sounds


def test_the_settings_show_in_the_document(app: Flask) -> None:
    text = app.test_client().get("/openapi.json").get_data(as_text=True)
    described = json.loads(text)
    properties = described["components"]["schemas"]["SpeechRequest"]["properties"]
    assert properties["input"]["maxLength"] == 321
    assert properties["response_format"]["default"] == "wav"
    assert {"chixiaotu6", "default", "alloy"} <= set(
        described["components"]["schemas"]["VoiceName"]["enum"]
    )


def test_a_new_voice_shows_at_once(app: Flask, tmp_path: Path) -> None:
    client = app.test_client()
    assert "朗读者" not in client.get("/openapi.json").get_data(as_text=True)
    (tmp_path / "prompts" / "朗读者.wav").write_bytes(
        (tmp_path / "prompts" / "default.wav").read_bytes()
    )
    assert "朗读者" in client.get("/openapi.json").get_data(as_text=True)


def test_a_key_is_required_where_keys_are_set_and_optional_elsewhere() -> None:
    guarded = document(TERMS)["paths"][SPEECH]["post"]
    assert guarded["security"] == [{"bearer": []}]
    assert {"401", "429"} <= guarded["responses"].keys()
    open_to_all = document(replace(TERMS, needs_key=False, limits_rate=False))
    post = open_to_all["paths"][SPEECH]["post"]
    assert post["security"] == [{}, {"bearer": []}]
    assert not {"401", "429"} & post["responses"].keys()


# -- what it says is accepted, is ------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    ["speed", "stream", "timestamps", "early_start", "response_format", "stream_format"],
)
@given(data=st.data())
def test_every_text_that_a_pattern_allows_is_understood(field: str, data: st.DataObject) -> None:
    (pattern,) = [
        form["pattern"] for form in accepted_forms(document(TERMS), field) if "pattern" in form
    ]
    text = data.draw(st.from_regex(pattern.replace("$", r"\Z")))
    request = parse_speech_request({"input": "Hi.", field: text}, max_input_chars=100)
    assert field in request.model_fields_set


@pytest.mark.parametrize("nothing", ["", None])
@pytest.mark.parametrize("field", sorted(SpeechRequest.model_fields.keys() - {"input"}))
def test_what_counts_as_absent_is_listed_and_ignored(field: str, nothing: str | None) -> None:
    assert accepted_forms(document(TERMS), field)[-1]["enum"] == ["", None]
    request = parse_speech_request({"input": "Hi.", field: nothing}, max_input_chars=100)
    assert field not in request.model_fields_set


@pytest.mark.parametrize("speed", [0.25, 4.0])
def test_the_bounds_of_the_speed_are_those_of_the_request(speed: float) -> None:
    number = accepted_forms(document(TERMS), "speed")[0]
    assert (number["minimum"], number["maximum"]) == (0.25, 4.0)
    assert parse_speech_request({"input": "Hi.", "speed": speed}, max_input_chars=9).speed == speed


# -- the page --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium_page() -> Iterator[Page]:
    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require_program("chromium"), args=flags
        )
        yield browser.new_context().new_page()
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a backend, shared by the tests of the page."""
    app = GradioApp("indextts-1.0")
    gateway = Gateway(tmp_path_factory.mktemp("served"), GRADIO_URL=app.url, API_KEYS="sk-right")
    servers: list[Server] = [app, gateway]
    try:
        start_all(servers)
        yield gateway
    finally:
        gateway.stop()
        app.stop()


@pytest.fixture
def docs(chromium_page: Page, served: Gateway) -> Iterator[Page]:
    """The page, opened. It must ask no other host for anything, nor complain of anything."""
    page, complaints = chromium_page, list[str]()

    def note_foreign(request: Request) -> None:
        if not request.url.startswith((served.url, "blob:", "data:")):
            complaints.append(request.url)

    def note_error(error: object) -> None:
        complaints.append(str(error))

    page.on("request", note_foreign)
    page.on("pageerror", note_error)
    page.goto(f"{served.url}/docs")
    page.wait_for_selector("main[aria-busy=false]")
    yield page
    page.remove_listener("request", note_foreign)
    page.remove_listener("pageerror", note_error)
    assert complaints == []


def test_the_page_forbids_itself_everything_foreign(served: Gateway) -> None:
    answer = httpx.get(f"{served.url}/docs")
    assert answer.headers["Content-Type"].startswith("text/html")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "<script>" not in answer.text
    assert "style=" not in answer.text


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/v1/docs"])
def test_the_page_finds_its_parts_under_every_spelling(
    chromium_page: Page, served: Gateway, path: str
) -> None:
    chromium_page.goto(f"{served.url}{path}")
    chromium_page.wait_for_selector("main[aria-busy=false]")
    shown = {
        (card.locator(".method").inner_text(), card.locator(".path").inner_text())
        for card in chromium_page.locator("main > details").all()
    }
    described = served.client.get("/openapi.json").json()
    assert {(method, re.sub("{.+?}", "{}", p)) for method, p in shown} == routes_in(described)


def test_a_request_can_be_tried_by_keyboard_alone(docs: Page) -> None:
    docs.locator("#key").press_sequentially("sk-right")
    docs.locator("#createSpeech > summary").press("Enter")
    text = docs.locator("#createSpeech-input")
    assert text.input_value() == "Hello, world."
    text.fill("Typed by hand.")
    docs.locator("#createSpeech-speed").fill("1.5")
    docs.locator("#createSpeech button").press("Enter")
    docs.wait_for_selector("#createSpeech audio")
    assert docs.locator("#createSpeech .status").inner_text().startswith("200 OK")
    docs.wait_for_function("document.querySelector('audio').duration > 0.3")
    docs.locator("#createSpeech [aria-live] summary").press("Enter")
    assert "x-cache" in docs.locator("#createSpeech [aria-live] th").all_inner_texts()


def test_a_stream_of_events_is_put_together_and_plays(docs: Page) -> None:
    docs.locator("#key").fill("sk-right")
    docs.locator("#createSpeech > summary").click()
    docs.locator("#createSpeech-stream_format").select_option("sse")
    docs.locator("#createSpeech-response_format").select_option("mp3")
    docs.locator("#createSpeech button").click()
    docs.wait_for_selector("#createSpeech audio")
    assert "speech.audio.done" in docs.locator("#createSpeech pre").inner_text()
    docs.wait_for_function("document.querySelector('audio').duration > 0.3")


def test_a_voice_is_added_from_a_file(docs: Page, served: Gateway, tmp_path: Path) -> None:
    write_wav(tmp_path / "recording.wav", tone(220, 3))
    docs.locator("#key").fill("sk-right")
    docs.locator("#createVoice > summary").click()
    docs.locator("#createVoice-name").fill("朗读者")
    docs.locator("#createVoice-audio_sample").set_input_files(tmp_path / "recording.wav")
    docs.locator("#createVoice button").click()
    docs.wait_for_selector("#createVoice .status")
    assert docs.locator("#createVoice .status").inner_text().startswith("201")
    docs.locator("#hearVoice > summary").click()
    docs.locator("#hearVoice-voice").fill("朗读者")
    docs.locator("#hearVoice button").click()
    docs.wait_for_selector("#hearVoice audio")
    docs.wait_for_function("document.querySelector('#hearVoice audio').duration === 3")
    docs.locator("#deleteVoice > summary").click()
    docs.locator("#deleteVoice-voice").fill("朗读者")
    docs.locator("#deleteVoice button").click()
    docs.wait_for_selector("#deleteVoice .status")
    assert served.client.get("/v1/audio/voices/朗读者").status_code == 404


def test_a_failure_is_shown_with_its_message(docs: Page) -> None:
    docs.locator("#key").fill("sk-wrong")
    docs.locator("#linkSpeech > summary").click()
    docs.locator("#linkSpeech button").click()
    docs.wait_for_selector("#linkSpeech .status.failed")
    assert "401" in docs.locator("#linkSpeech .status").inner_text()
    assert "Incorrect API key" in docs.locator("#linkSpeech pre").inner_text()


def test_the_key_is_kept_for_this_tab_only(docs: Page) -> None:
    docs.locator("#key").fill("sk-right")
    docs.reload()
    assert docs.locator("#key").input_value() == "sk-right"
    assert docs.evaluate("localStorage.length") == 0
    assert docs.evaluate("document.cookie") == ""
    other_tab = docs.context.new_page()
    other_tab.goto(docs.url)
    assert other_tab.locator("#key").input_value() == ""
    other_tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(docs: Page, scheme: Any) -> None:
    docs.emulate_media(color_scheme=scheme)
    docs.locator("#createSpeech > summary").click()
    contrast = docs.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5  # WCAG 2, AA


#: The least contrast of any text on the page against the ground under it, by WCAG's formula.
LEAST_CONTRAST = """() => {
    const channels = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => {
        const [r, g, b] = channels(color).slice(0, 3).map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        const color = getComputedStyle(element).backgroundColor;
        return channels(color)[3] === 0 ? ground(element.parentElement) : color;
    };
    const hasText = (element) =>
        [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const written = [...document.querySelectorAll("body *")].filter((element) =>
        element.checkVisibility() && hasText(element));
    return Math.min(...written.map((element) => {
        const both = [light(getComputedStyle(element).color), light(ground(element))];
        return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    }));
}"""


def test_what_is_for_people_can_be_switched_off(tmp_path: Path) -> None:
    for docs in (True, False):
        app = create_app(read_config(PROMPTS_DIR=tmp_path, DOCS=docs, PAGE=False))
        for path in ("/docs", "/openapi.json", "/static/docs.js"):
            answer = app.test_client().get(path)
            assert answer.status_code == (200 if docs else 404), path
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            answer.close()
        assert app.test_client().get("/v1/models").status_code == 200


def test_every_route_says_what_keeps_browsers_safe(app: Flask) -> None:
    for path in ("/docs", "/openapi.json", "/health", "/metrics", "/v1/models", "/nowhere"):
        told = app.test_client().get(path).headers
        assert told.get_all("X-Content-Type-Options") == ["nosniff"], path
        assert told.get_all("Referrer-Policy") == ["no-referrer"], path
        assert told.get_all("Cross-Origin-Resource-Policy") == ["same-origin"], path
    assert app.test_client().get("/docs").headers["X-Frame-Options"] == "DENY"
