"""The endpoint's contract, over HTTP: a real gunicorn in front of a real Gradio."""

import io
import json
import re
import shutil
import socket
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import StartGateway, StartGradioApp
from servers import Gateway, GradioApp, wait_until

ERROR_KEYS = {"message", "type", "param", "code"}
Post = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, GradioApp]]:
    """A gateway and its backend, shared by the tests of this module."""
    app = GradioApp("indextts-1.0")
    gateway = Gateway(
        tmp_path_factory.mktemp("served"),
        GRADIO_URL=app.url,
        GRADIO_CALL_DELAY=0.1,
        MAX_BODY_BYTES=20_000,
    )
    try:
        for server in (app, gateway):
            server.launch()
        for server in (app, gateway):
            server.wait_ready()
        yield gateway, app
    finally:
        gateway.stop()
        app.stop()


@pytest.fixture
def gw(served: tuple[Gateway, GradioApp]) -> Gateway:
    return served[0]


@pytest.fixture
def app(served: tuple[Gateway, GradioApp]) -> GradioApp:
    served[1].control(reset=True)
    return served[1]


def texts(app: GradioApp) -> list[str]:
    """What the backend was asked to speak since the reset."""
    return [call["arguments"]["text"] for call in app.calls]


def prompts(app: GradioApp) -> list[str]:
    """The recordings it was given, by content."""
    return [call["arguments"]["prompt"]["sha256"] for call in app.calls]


def assert_error(
    answer: httpx.Response, status: int, kind: str, code: str | None, param: str | None
) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-ID"]
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == ERROR_KEYS
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    assert isinstance(error["message"], str)
    assert error["message"]
    return str(error["message"])


def seconds(wav: bytes) -> float:
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.getnframes() / file.getframerate()


# -- the seed --------------------------------------------------------------------------------------


def test_model_and_input_alone_bring_a_wav(gw: Gateway, app: GradioApp) -> None:
    answer = gw.post({"model": "chixiaotu6", "input": "第一句话。"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "audio/wav"
    assert answer.headers["X-Cache"] == "MISS"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert texts(app) == ["第一句话。"]
    per_character = app.state()["behaviour"]["ms_audio_per_char"] / 1000
    assert seconds(answer.content) == pytest.approx(len("第一句话。") * per_character, abs=0.001)


def test_the_same_again_comes_from_the_cache_and_touches_no_backend(
    gw: Gateway, app: GradioApp
) -> None:
    first = gw.post({"model": "chixiaotu6", "input": "Once is enough."})
    second = gw.post({"model": "chixiaotu6", "input": "Once is enough."})
    assert second.headers["X-Cache"] == "HIT"
    assert second.content == first.content
    assert second.headers["ETag"] == first.headers["ETag"]
    assert len(app.calls) == 1


def test_the_wav_is_the_backends_own_to_the_byte(gw: Gateway, app: GradioApp) -> None:
    answer = gw.post({"input": "To the byte."})
    made = [path.read_bytes() for path in app.folder.rglob("*.wav")]
    assert answer.content in made


def test_a_model_that_is_no_voice_is_spoken_by_the_default(gw: Gateway, app: GradioApp) -> None:
    gw.post({"model": "no-such-model", "input": "Who speaks here?"})
    gw.post({"input": "Who else speaks here?"})
    gw.post({"model": "chixiaotu6", "input": "And who speaks now?"})
    by_unknown, by_none, by_chixiaotu6 = prompts(app)
    assert by_unknown == by_none != by_chixiaotu6


def test_a_missing_recording_is_400_for_a_named_voice_and_500_for_the_default(
    gateway: StartGateway, app: GradioApp, tmp_path: Path
) -> None:
    service = gateway(
        GRADIO_URL=app.url,
        MODEL_PROMPT_MAP=json.dumps({"ghost": str(tmp_path / "ghost.wav")}),
        DEFAULT_PROMPT_AUDIO_PATH=tmp_path / "nothing.wav",
    )
    named = service.post({"model": "ghost", "input": "Boo."})
    assert_error(named, 400, "invalid_request_error", None, "voice")
    default = service.post({"input": "Boo."})
    assert_error(default, 500, "server_error", None, None)
    assert default.headers["x-should-retry"] == "false"
    assert service.post({"model": "chixiaotu6", "input": "Boo."}).status_code == 200


def test_a_mapped_name_speaks_with_its_recording(
    gateway: StartGateway, app: GradioApp, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere" / "speaker.wav"
    service = gateway(
        GRADIO_URL=app.url,
        MODEL_PROMPT_MAP=json.dumps({"alloy": str(other), "朗读者": str(other)}),
    )
    other.parent.mkdir()
    shutil.copy(tmp_path / "prompts" / "chixiaotu6.wav", other)
    service.post({"model": "tts-1", "voice": "alloy", "input": "By a stock name."})
    service.post({"model": "朗读者", "input": "By another name."})
    service.post({"model": "chixiaotu6", "input": "By its file."})
    assert len(set(prompts(app))) == 1
    assert "朗读者" in [m["id"] for m in service.client.get("/v1/models").json()["data"]]


def test_a_failed_synthesis_is_tried_three_times(gw: Gateway, app: GradioApp) -> None:
    app.control(fail_first=2)
    assert gw.post({"input": "Third time lucky."}).status_code == 200
    assert len(app.calls) == 3


def test_after_three_failures_it_is_502_and_nothing_is_cached(gw: Gateway, app: GradioApp) -> None:
    app.control(fail_first=3)
    refused = gw.post({"input": "Fourth time lucky."})
    assert_error(refused, 502, "server_error", "backend_error", None)
    assert len(app.calls) == 3
    again = gw.post({"input": "Fourth time lucky."})
    assert (again.status_code, again.headers["X-Cache"]) == (200, "MISS")


@pytest.mark.parametrize("fault", ["none", "badpath", "empty", "headonly", "truncated", "notaudio"])
def test_what_is_not_sound_is_never_an_answer(gw: Gateway, app: GradioApp, fault: str) -> None:
    app.control(fail=fault)
    refused = gw.post({"input": f"A fault called {fault}."})
    assert_error(refused, 502, "server_error", "backend_error", None)
    app.control(fail="")
    assert gw.post({"input": f"A fault called {fault}."}).headers["X-Cache"] == "MISS"


def test_a_hanging_backend_is_504_after_the_timeout(gateway: StartGateway, app: GradioApp) -> None:
    service = gateway(GRADIO_URL=app.url, SYNTH_TIMEOUT=1)
    app.control(hold=True)
    refused = service.post({"input": "Never."})
    app.control(hold=False)
    assert_error(refused, 504, "server_error", "backend_timeout", None)


def test_the_least_recently_used_answer_leaves_first(gateway: StartGateway, app: GradioApp) -> None:
    service = gateway(GRADIO_URL=app.url, MAX_CACHE_SIZE=3)

    def verdict(text: str) -> str:
        return str(service.post({"input": text}).headers["X-Cache"])

    assert [verdict(f"Text {i} here.") for i in (1, 2, 3)] == ["MISS"] * 3
    assert verdict("Text 1 here.") == "HIT"
    assert verdict("Text 4 here.") == "MISS"
    assert verdict("Text 1 here.") == "HIT"
    assert verdict("Text 2 here.") == "MISS"
    assert service.health()["cache"]["size"] == service.health()["cache"]["max_size"] == 3


def test_no_file_stays_behind(gw: Gateway, app: GradioApp) -> None:
    for i in range(10):
        assert gw.post({"input": f"Leave no trace, {i}."}).status_code == 200
    assert list(gw.temp.rglob("*")) == []


def test_health_tells_status_connection_and_cache(gw: Gateway, app: GradioApp) -> None:
    gw.post({"input": "How are you?"})
    health = gw.health()
    assert (health["status"], health["gradio_client"]) == ("ok", "connected")
    assert health["cache"]["max_size"] == 100
    assert 1 <= health["cache"]["size"] <= 100
    assert health["self_test"]["state"] == "off"
    (backend,) = health["backends"]
    assert (backend["url"], backend["state"]) == (app.url, "ready")
    assert gw.client.get("/health/ready").json() == {"status": "ready"}


# -- leniency --------------------------------------------------------------------------------------

SPOKEN = [
    {"input": "Nulls.", "model": None, "voice": None, "speed": None, "response_format": None},
    {"input": "Extras.", "frobnicate": {"deep": [1]}, "user": "x"},
    {"input": "String speed.", "speed": "1.0"},
    {"input": "Object voice.", "voice": {"id": "chixiaotu6"}},
    {"input": "Empty voice.", "voice": ""},
    {"input": "Stock voice.", "voice": "nova", "model": "tts-1-hd"},
    {"input": "Upper case.", "response_format": "WAV"},
    {"input": "Empty options.", "response_format": "", "instructions": "", "stream_format": ""},
    {"input": "  \n trimmed \t "},
]


@pytest.mark.parametrize("fields", SPOKEN, ids=lambda fields: fields["input"].strip())
def test_careless_clients_are_understood(
    gw: Gateway, app: GradioApp, fields: dict[str, Any]
) -> None:
    answer = gw.post(fields)
    assert answer.status_code == 200, answer.text
    assert texts(app) == [fields["input"].strip()]


def test_a_stock_voice_lets_a_known_model_speak(gw: Gateway, app: GradioApp) -> None:
    gw.post({"input": "Model by voice.", "voice": "alloy", "model": "chixiaotu6"})
    gw.post({"input": "Voice by name.", "voice": "chixiaotu6", "model": "default"})
    gw.post({"input": "Voice by default.", "voice": "alloy", "model": "tts-1"})
    by_model, by_voice, by_default = prompts(app)
    assert by_model == by_voice != by_default


@pytest.mark.parametrize("text", [".", "……", "！？", "😀", "— —", "。。。"])
def test_punctuation_alone_is_a_short_silence_that_costs_no_backend(
    gw: Gateway, app: GradioApp, text: str
) -> None:
    answer = gw.post({"input": text})
    assert answer.status_code == 200
    assert 0.05 < seconds(answer.content) < 1
    with wave.open(io.BytesIO(answer.content)) as file:
        assert not any(file.readframes(file.getnframes()))
    assert app.calls == []


def test_json_under_curls_default_type_is_taken(gw: Gateway, app: GradioApp) -> None:
    answer = gw.client.post(
        "/v1/audio/speech",
        content=b'{"input": "No type."}',
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/audio/speech", "//v1//audio///speech", "/v1/audio/speech/", "/v1/v1/audio/speech"],
)
def test_every_spelling_of_the_path_is_the_same_and_none_is_redirected(
    gw: Gateway, app: GradioApp, path: str
) -> None:
    answer = httpx.post(gw.url + path, json={"input": "Spelt otherwise."}, follow_redirects=False)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "audio/wav"


# -- errors ----------------------------------------------------------------------------------------

REFUSED = [
    ({}, "input"),
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": " \n "}, "input"),
    ({"input": 5}, "input"),
    ({"input": ["a"]}, "input"),
    ({"input": "x" * 4097}, "input"),
    ({"input": "a\ud800b"}, "input"),
    ({"input": "Hi.", "model": 5}, "model"),
    ({"input": "Hi.", "voice": 5}, "voice"),
    ({"input": "Hi.", "voice": {"name": "x"}}, "voice"),
    ({"input": "Hi.", "response_format": "ogg"}, "response_format"),
    ({"input": "Hi.", "speed": 0.2}, "speed"),
    ({"input": "Hi.", "speed": 4.1}, "speed"),
    ({"input": "Hi.", "speed": "fast"}, "speed"),
    ({"input": "Hi.", "speed": True}, "speed"),
    ({"input": "Hi.", "stream_format": "video"}, "stream_format"),
    ({"input": "Hi.", "instructions": "x" * 4097}, "instructions"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_a_wrong_field_is_400_and_named(
    gw: Gateway, app: GradioApp, fields: dict[str, Any], param: str
) -> None:
    body = json.dumps(fields)
    answer = gw.client.post(
        "/v1/audio/speech", content=body, headers={"Content-Type": "application/json"}
    )
    assert_error(answer, 400, "invalid_request_error", None, param)
    assert app.calls == []


def test_an_unknown_voice_is_told_with_those_there_are(gw: Gateway, app: GradioApp) -> None:
    answer = gw.post({"input": "Hi.", "voice": "../prompts/default"})
    message = assert_error(answer, 400, "invalid_request_error", "voice_not_found", "voice")
    assert "chixiaotu6" in message
    assert "default" in message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 5000, b"input=hello"],
    ids=["empty", "cut", "list", "null", "string", "bytes", "deep", "form"],
)
def test_what_is_no_json_object_is_400(gw: Gateway, body: bytes) -> None:
    answer = gw.client.post(
        "/v1/audio/speech", content=body, headers={"Content-Type": "application/json"}
    )
    assert_error(answer, 400, "invalid_request_error", None, None)


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "text/xml"])
def test_another_content_type_is_415(gw: Gateway, kind: str) -> None:
    answer = gw.client.post(
        "/v1/audio/speech", content=b"input=hello", headers={"Content-Type": kind}
    )
    assert_error(answer, 415, "invalid_request_error", None, None)


def test_a_body_too_large_is_413(gw: Gateway) -> None:
    answer = gw.post({"input": "Hi.", "filler": "x" * 30_000})
    assert_error(answer, 413, "invalid_request_error", None, None)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/readyz", 404),
        ("GET", "/v1/readyz", 404),
        ("GET", "/%2e%2e/etc/passwd", 404),
        ("DELETE", "/v1/audio/speech", 405),
        ("POST", "/health", 405),
        ("PUT", "/v1/models", 405),
    ],
)
def test_unknown_paths_and_wrong_methods_have_the_same_error_shape(
    gw: Gateway, method: str, path: str, status: int
) -> None:
    answer = gw.client.request(method, path)
    assert_error(answer, status, "invalid_request_error", None, None)
    assert ("Allow" in answer.headers) == (status == 405)


def test_an_unknown_model_is_404(gw: Gateway) -> None:
    answer = gw.client.get("/v1/models/nobody%2Fknows")
    assert_error(answer, 404, "invalid_request_error", "model_not_found", "model")


# -- request ids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/v1/nothing", "/v1/models"])
def test_every_answer_carries_the_clients_request_id(gw: Gateway, path: str) -> None:
    answer = gw.client.get(path, headers={"X-Request-ID": "my id/42"})
    assert answer.headers["X-Request-ID"] == "my id/42"


@pytest.mark.parametrize("bad", ["x" * 129, "caf\xe9", ""])
def test_an_unusable_request_id_is_replaced(gw: Gateway, bad: str) -> None:
    answer = gw.client.get("/health", headers={"X-Request-ID": bad.encode("latin-1")})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def test_the_log_has_one_line_for_each_request_without_its_text(
    gw: Gateway, app: GradioApp
) -> None:
    gw.post({"input": "A secret told to nobody."}, X_Request_ID="find-me")
    lines = wait_until(lambda: [line for line in gw.log.splitlines() if "find-me" in line])
    (line,) = [line for line in lines if "access" in line]
    for fact in ("POST /v1/audio/speech", "status=200", "voice=default", "chars=24", "cache=MISS"):
        assert fact in line
    assert "secret" not in gw.log


# -- once ------------------------------------------------------------------------------------------


def test_fifty_identical_requests_at_once_are_spoken_once(gw: Gateway, app: GradioApp) -> None:
    app.control(synth_ms=300)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: gw.post({"input": "Everybody at once."}), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(app.calls) == 1
    verdicts = [answer.headers["X-Cache"] for answer in answers]
    assert verdicts.count("MISS") == 1
    assert set(verdicts) <= {"MISS", "COALESCED", "HIT"}


def test_a_client_that_leaves_while_its_text_waits_costs_no_call(
    gw: Gateway, app: GradioApp
) -> None:
    app.control(hold=True)
    with ThreadPoolExecutor(2) as pool:
        # One is spoken; the other may be handed over early.
        kept = [pool.submit(gw.post, {"input": f"Number {i} stays."}) for i in (1, 2)]
        wait_until(lambda: gw.health()["queue"]["requests"] == 2 and app.state()["active"])
        waiting = gw.health()["queue"]["segments"]
        body = b'{"input": "The one that is left alone."}'
        with socket.create_connection(("127.0.0.1", gw.port)) as client:
            client.sendall(
                b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            wait_until(lambda: gw.health()["queue"]["requests"] == 3)
        wait_until(lambda: gw.health()["queue"]["requests"] == 2, 2)
        assert gw.health()["queue"]["segments"] <= waiting
        app.control(hold=False)
        assert [each.result().status_code for each in kept] == [200, 200]
    assert sorted(texts(app)) == ["Number 1 stays.", "Number 2 stays."]


# -- voices ----------------------------------------------------------------------------------------


def test_a_recording_that_is_replaced_is_spoken_anew(
    gateway: StartGateway, app: GradioApp, tmp_path: Path
) -> None:
    service = gateway(GRADIO_URL=app.url)
    folder = tmp_path / "prompts"
    shutil.copy(folder / "default.wav", folder / "新声音.wav")
    asked = {"voice": "新声音", "input": "Whose voice is this?"}
    assert service.post(asked).headers["X-Cache"] == "MISS"
    assert service.post(asked).headers["X-Cache"] == "HIT"
    shutil.copy(folder / "chixiaotu6.wav", folder / "新声音.wav")
    assert service.post(asked).headers["X-Cache"] == "MISS"
    assert len(set(prompts(app))) == 2
    (folder / "新声音.wav").unlink()
    assert_error(service.post(asked), 400, "invalid_request_error", "voice_not_found", "voice")


def test_the_lists_have_every_voice_in_every_shape(gw: Gateway) -> None:
    models = gw.client.get("/v1/models").json()
    assert models["object"] == "list"
    ids = [model["id"] for model in models["data"]]
    assert ids == ["chixiaotu6", "default", "tts-1", "tts-1-hd", "gpt-4o-mini-tts"]
    assert {model["object"] for model in models["data"]} == {"model"}
    assert gw.client.get("/v1/models/chixiaotu6").json()["id"] == "chixiaotu6"
    assert gw.client.get("/v1/audio/models").json() == {"models": [{"id": i} for i in ids]}
    voices = gw.client.get("/v1/audio/voices").json()["voices"]
    assert [(voice["id"], voice["name"]) for voice in voices] == [
        ("chixiaotu6", "chixiaotu6"),
        ("default", "default"),
    ]


def test_two_recordings_never_share_an_entry(gw: Gateway, app: GradioApp) -> None:
    first = gw.post({"voice": "default", "input": "Said by two."})
    second = gw.post({"voice": "chixiaotu6", "input": "Said by two."})
    assert second.headers["X-Cache"] == "MISS"
    assert first.content != second.content


def test_a_backend_restarted_with_another_signature_is_bound_anew(
    gateway: StartGateway, gradio_app: StartGradioApp
) -> None:
    app = gradio_app("indextts-1.0")
    service = gateway(GRADIO_URL=app.url)
    assert service.post({"input": "Before the restart."}).status_code == 200
    app.restart("indextts-2.0")
    answer = service.post({"input": "After the restart."})
    assert answer.status_code == 200, answer.text
    (call,) = app.calls
    assert call["arguments"]["text"] == "After the restart."
    assert call["arguments"]["emo_ref_path"] is None
    # Another model's voice is never served for this one's.
    assert service.post({"input": "Before the restart."}).headers["X-Cache"] == "MISS"
