"""The README's recipes: their settings, sent the way each client's own source sends them."""

import json
import re
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml
from documents import README, blocks, rows, section
from openai import OpenAI
from servers import Gateway, GradioApp, require_program, start_all
from servers.machine import Server

from tts_service.audio import FORMATS, decode

ADDRESS = "http://192.168.1.10:8000"  # as the recipes have it
KEY = "any"
BASE, SPEECH = f"{ADDRESS}/v1", f"{ADDRESS}/v1/audio/speech"
TEXT = "Hello, world. 你好，世界。"

Fields = dict[str, Any]


@pytest.fixture(scope="module")
def gw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that wants the recipes' key."""
    app = GradioApp("indextts-2.0")
    gateway = Gateway(tmp_path_factory.mktemp("clients"), GRADIO_URL=app.url, API_KEYS=KEY)
    try:
        servers: list[Server] = [app, gateway]
        start_all(servers)
        yield gateway
    finally:
        gateway.stop()
        app.stop()


def config(recipe: str) -> Fields:
    """The YAML that stands in a recipe."""
    (text,) = blocks(section(README, recipe), "yaml")
    return dict(yaml.safe_load(text))


def form(recipe: str) -> Fields:
    """The table of a recipe: what is entered into which field."""
    values = {}
    for name, value in rows(section(README, recipe)):
        code = re.match(r"`(.+?)`", value)
        assert code is not None, f"{recipe}: {name} has no value"
        values[name] = code[1]
    return values


def ask(gw: Gateway, url: str, json: object, key: str | None = KEY) -> httpx.Response:
    """The POST of any of them, at the address that the recipe gives."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return gw.client.post(url.replace(ADDRESS, gw.url), json=json, headers=headers)


def assert_sound(answer: httpx.Response, kind: str) -> None:
    assert answer.status_code == 200, answer.text  # xiaozhi takes no other for success
    assert answer.headers["Content-Type"] == FORMATS[kind].content_type
    assert decode(answer.content).seconds > 0.3


def voices(gw: Gateway) -> set[str]:
    return {voice["id"] for voice in gw.client.get("/v1/audio/voices").json()["voices"]}


def test_every_address_in_the_recipes_is_one_of_three() -> None:
    recipes = section(README, "Use it from …")
    found = set(re.findall(rf"{re.escape(ADDRESS)}[\w./]*", recipes))
    assert found == {BASE, SPEECH}


# Open WebUI


@pytest.fixture
def open_webui() -> Fields:
    return dict(config("Open WebUI")["services"]["open-webui"]["environment"])


def test_open_webui_reads_the_lists_without_a_key(gw: Gateway, open_webui: Fields) -> None:
    base = open_webui["AUDIO_TTS_OPENAI_API_BASE_URL"]
    assert base == BASE
    at_home = base.replace(ADDRESS, gw.url)
    listed = gw.client.get(f"{at_home}/audio/voices").raise_for_status().json()["voices"]
    named = {voice["id"]: voice["name"] for voice in listed}
    assert open_webui["AUDIO_TTS_VOICE"] in named
    models = gw.client.get(f"{at_home}/audio/models").raise_for_status().json()["models"]
    assert open_webui["AUDIO_TTS_MODEL"] in {model["id"] for model in models}


@pytest.mark.parametrize("voice", ["as configured", "alloy"])
def test_open_webui_gets_mp3(gw: Gateway, open_webui: Fields, voice: str) -> None:
    chosen = open_webui["AUDIO_TTS_VOICE"] if voice == "as configured" else voice
    answer = ask(
        gw,
        f"{open_webui['AUDIO_TTS_OPENAI_API_BASE_URL']}/audio/speech",
        {
            "input": TEXT,
            "voice": chosen,
            "model": open_webui["AUDIO_TTS_MODEL"],
            **json.loads(open_webui["AUDIO_TTS_OPENAI_PARAMS"]),
        },
        open_webui["AUDIO_TTS_OPENAI_API_KEY"],
    )
    assert_sound(answer, "mp3")


# SillyTavern


def test_sillytavern_gets_mp3_from_every_voice_it_is_told(gw: Gateway) -> None:
    fields = form("SillyTavern")
    assert fields["Provider Endpoint"] == SPEECH
    told = fields["Available Voices (comma separated)"].split(",")
    assert set(told) <= voices(gw)
    for voice in told:
        answer = ask(
            gw,
            fields["Provider Endpoint"],
            {
                "input": TEXT,
                "response_format": "mp3",
                "voice": voice,
                "speed": json.loads(fields["Speed"]),
                "model": fields["Model"],
            },
            fields["API Key"],
        )
        assert_sound(answer, "mp3")


# Home Assistant


def test_home_assistants_openai_tts_is_satisfied_by_its_probe(gw: Gateway) -> None:
    """It asks for a full stop, and waits 10 s."""
    probe = {"model": "tts-1", "input": ".", "voice": "alloy", "response_format": "mp3"}
    url = form("Home Assistant")["API Endpoint"]
    right, wrong = ask(gw, url, probe), ask(gw, url, probe, "another")
    assert (right.status_code, wrong.status_code) == (200, 401)
    assert right.elapsed.total_seconds() < 10


@pytest.mark.parametrize("instructions", [{}, {"instructions": "Cheerful."}])
def test_home_assistants_openai_tts_gets_a_stream_of_mp3(gw: Gateway, instructions: Fields) -> None:
    fields = form("Home Assistant")
    assert fields["API Endpoint"] == SPEECH
    payload = {
        "model": fields["Model"],
        "input": f"A stream, with {sorted(instructions)}.",
        "voice": fields["Voice"],
        "response_format": "mp3",
        "speed": float(fields["Speed"]),
        **instructions,
        **json.loads(fields["Extra JSON payload"]),
    }
    answer = ask(gw, fields["API Endpoint"], payload, fields["API Key"])
    assert_sound(answer, "mp3")
    assert "Content-Length" not in answer.headers


def test_wyoming_openai_finds_the_header_of_a_wav_in_the_first_2048_bytes(gw: Gateway) -> None:
    settings = config("Home Assistant")["services"]["wyoming_openai"]["environment"]
    assert settings["TTS_OPENAI_URL"] == BASE
    assert settings["TTS_BACKEND"] == "OPENAI"
    told = settings["TTS_VOICES"].split()
    assert set(told) <= voices(gw)
    with (
        sdk(gw, settings["TTS_OPENAI_URL"], settings["TTS_OPENAI_KEY"]) as client,
        client.audio.speech.with_streaming_response.create(
            model=settings["TTS_MODELS"], voice=told[0], input=TEXT, response_format="wav"
        ) as answer,
    ):
        first, *rest = answer.iter_bytes(2048)
    riff, kind, channels, rate, bits = struct.unpack("<4s4x8s6xHI6xH", first[:36])
    assert (riff, kind, channels, bits) == (b"RIFF", b"WAVEfmt ", 1, 16)
    assert first[36:40] == b"data"
    assert decode(b"".join([first, *rest])).rate == rate


def sdk(gw: Gateway, base: str, key: str) -> OpenAI:
    return OpenAI(base_url=base.replace(ADDRESS, gw.url), api_key=key, max_retries=0)


# 阅读 (legado)


@pytest.fixture
def legado() -> Fields:
    (text,) = blocks(section(README, "阅读 (legado)"), "json")
    (source,) = json.loads(text)
    return dict(source)


def read_aloud(gw: Gateway, source: Fields, text: str, speed: int) -> httpx.Response:
    """What 阅读 sends for a paragraph: by `GET` if its rule is not JSON once it is filled in."""
    rule = fill_in(source["url"], text, speed)
    url, options = re.split(r"\s*,\s*(?=\{)", rule, maxsplit=1)
    url = url.replace(ADDRESS, gw.url)
    headers = json.loads(source["header"])
    try:
        option = json.loads(options)
    except ValueError:
        return gw.client.get(url, headers=headers)
    headers["Content-Type"] = "application/json; charset=UTF-8"
    body = json.dumps(option["body"], ensure_ascii=False, indent=2).encode()
    return gw.client.request(option["method"], url, content=body, headers=headers)


def fill_in(rule: str, text: str, speed: int) -> str:
    """Put the value of each expression in double braces in its place, by a JavaScript engine."""
    script = """
        const {rule, speakText, speakSpeed} = JSON.parse(require("fs").readFileSync(0));
        process.stdout.write(rule.replace(/{{(.*?)}}/gs, (_, code) => String(eval(code))));
    """
    told = json.dumps({"rule": rule, "speakText": text, "speakSpeed": speed})
    command = [require_program("node"), "-e", script]
    done = subprocess.run(
        command, input=told, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout


PARAGRAPHS = [
    "“真的吗？”她问。",
    'He said: "Well, {{this}} is it, {isn\'t it}?"',
    "A backslash \\ and\na new line,\tand a tab.",
    "🎉 1 < 2 & 3 > 2 ……",
]


@pytest.mark.parametrize("text", PARAGRAPHS)
def test_legado_gets_mp3_for_whatever_stands_in_a_book(
    gw: Gateway, legado: Fields, text: str
) -> None:
    answer = read_aloud(gw, legado, text, 10)
    assert_sound(answer, "mp3")
    assert re.fullmatch(legado["contentType"], answer.headers["Content-Type"])
    same = ask(gw, SPEECH, {"input": text, "voice": "chixiaotu6", "response_format": "mp3"})
    assert same.headers["X-Cache"] == "HIT", "the text has arrived as it stands in the book"


@pytest.mark.parametrize(("slider", "speed"), [(10, 1), (5, 0.5), (25, 2.5), (50, 4)])
def test_legados_speed_is_ours(gw: Gateway, legado: Fields, slider: int, speed: float) -> None:
    text = "How fast is this?"
    read = read_aloud(gw, legado, text, slider)
    asked = {"input": text, "voice": "chixiaotu6", "response_format": "mp3", "speed": speed}
    same = ask(gw, SPEECH, asked)
    assert same.headers["X-Cache"] == "HIT"
    assert same.content == read.content


def test_legados_simpler_rule_breaks_at_a_quotation_mark(gw: Gateway, legado: Fields) -> None:
    simpler = legado["url"].replace("{{JSON.stringify(String(speakText))}}", '"{{speakText}}"')
    assert simpler != legado["url"]
    plain = read_aloud(gw, {**legado, "url": simpler}, "Hello.", 10)
    quoted = read_aloud(gw, {**legado, "url": simpler}, 'Say "hello".', 10)
    assert (plain.status_code, quoted.status_code) == (200, 400)
    assert quoted.headers["Content-Type"] == "application/json", "it tells errors by this alone"


# xiaozhi


def test_xiaozhi_gets_wav(gw: Gateway) -> None:
    whole = config("xiaozhi")
    settings = whole["TTS"][whole["selected_module"]["TTS"]]
    assert settings["type"] == "openai"
    assert settings["api_url"] == SPEECH
    payload = {
        "model": settings["model"],
        "input": TEXT,
        "voice": settings["voice"],
        "response_format": settings["format"],
        "speed": float(settings["speed"]),
    }
    assert_sound(ask(gw, settings["api_url"], payload, settings["api_key"]), "wav")


# LiteLLM


@pytest.mark.parametrize("kind", ["mp3", "opus", "wav"])
def test_litellm_gets_what_its_clients_ask_for(gw: Gateway, kind: Any) -> None:
    """It is OpenAI's SDK inside."""
    (entry,) = config("LiteLLM")["model_list"]
    settings = entry["litellm_params"]
    provider, _, model = settings["model"].partition("/")
    assert (provider, settings["api_base"]) == ("openai", BASE)
    with sdk(gw, settings["api_base"], settings["api_key"]) as client:
        answer = client.audio.speech.create(
            input=TEXT, model=model, voice="chixiaotu6", response_format=kind
        )
    assert_sound(answer.response, kind)


def test_litellms_model_can_be_a_voice_for_who_knows_only_openais(gw: Gateway) -> None:
    text = "By whom is this?"
    asked = {"input": text, "model": "chixiaotu6", "voice": "alloy", "response_format": "mp3"}
    assert_sound(ask(gw, SPEECH, asked), "mp3")
    named = ask(gw, SPEECH, {**asked, "model": "tts-1", "voice": "chixiaotu6"})
    assert named.headers["X-Cache"] == "HIT"
