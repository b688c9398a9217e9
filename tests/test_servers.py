"""The servers that the other tests run against are like the real ones."""

import hashlib
import io
import ssl
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from conftest import StartGradioApp
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError, AuthenticationError
from gradio_client.utils import QueueError
from servers import GradioApp, require_program, wait_until

NO_DEFAULT = object()
SAMPLING = (
    {"do_sample": True, "top_p": 0.8, "top_k": 30},
    {
        "length_penalty": 0,
        "num_beams": 3,
        "repetition_penalty": 10,
    },
)
VECTOR = [
    (f"vec{i}", label, 0)
    for i, label in enumerate(["喜", "怒", "哀", "惧", "厌恶", "低落", "惊喜", "平静"], 1)
]
EMOTION = [
    ("emo_ref_path", "上传情感参考音频", NO_DEFAULT),
    ("emo_weight", "情感权重", 0.65),
    *VECTOR,
    ("emo_text", "情感描述文本", ""),
    ("emo_random", "情感随机采样", False),
    ("max_text_tokens_per_segment", "分句最大Token数", 120),
]
METHOD = ("emo_control_method", "情感控制方式", "与音色参考音频相同")


def sampling(first: int, temperature: float, tokens: int) -> list[tuple[str, str, object]]:
    """The parameters without a name of their own, of which `first` is the first's number."""
    before, after = SAMPLING
    values = {**before, "temperature": temperature, **after, "max_mel_tokens": tokens}
    return [(f"param_{i}", label, value) for i, (label, value) in enumerate(values.items(), first)]


PROMPT_2_5, TEXT_2_5 = ("prompt", "", NO_DEFAULT), ("text", "", NO_DEFAULT)
DURATION = ("duration_factor", "时长系数", 1)
INDEXTTS = {
    "indextts-1.0": [
        ("prompt", "请上传参考音频", NO_DEFAULT),
        ("text", "请输入目标文本", NO_DEFAULT),
    ],
    "indextts-2025-04": [
        ("prompt", "请上传参考音频", NO_DEFAULT),
        ("text", "请输入目标文本", NO_DEFAULT),
        ("infer_mode", "选择推理模式（批次推理：更适合长句，性能翻倍）", "普通推理"),
    ],
    "indextts-1.5": [
        ("prompt", "参考音频", NO_DEFAULT),
        ("text", "文本", NO_DEFAULT),
        ("infer_mode", "推理模式", "普通推理"),
        ("max_text_tokens_per_sentence", "分句最大Token数", 120),
        ("sentences_bucket_max_size", "分句分桶的最大容量（批次推理生效）", 4),
        *sampling(5, 1.0, 600),
    ],
    "indextts-2.0": [
        METHOD,
        ("prompt", "音色参考音频", NO_DEFAULT),
        ("text", "文本", NO_DEFAULT),
        *EMOTION,
        *sampling(16, 0.8, 1500),
    ],
    "indextts-2.5": [
        METHOD,
        PROMPT_2_5,
        TEXT_2_5,
        ("lang_choice", "语言", "ZH"),
        *EMOTION,
        DURATION,
        *sampling(18, 0.8, 1500),
    ],
    "indextts-2.5-state": [
        METHOD,
        PROMPT_2_5,
        TEXT_2_5,
        *EMOTION,
        DURATION,
        *sampling(18, 0.8, 1500),
    ],
}
NAMED = {
    "vllm": ("/gen_single", "prompts", "text"),
    "f5-tts": ("/basic_tts", "ref_audio_input", "gen_text_input"),
    "cosyvoice": ("/generate_audio", "prompt_wav_upload", "tts_text"),
    "spark-tts": ("/voice_clone", "prompt_wav_upload", "text"),
    "chatterbox": ("/generate", "audio_prompt_path", "text"),
    "voxcpm": ("/generate", "ref_wav", "text"),
    "dia": ("/generate_audio", "audio_prompt_input", "text_input"),
    "fish-speech": ("/partial", "reference_audio", "text"),
}


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Client]]:
    """`connect(app)`: an official client of the app, which leaves files on the server."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    no_certificates: Any = ssl.SSLContext(
        ssl.PROTOCOL_TLS_CLIENT
    )  # loading them costs 100 ms a call
    clients: list[Client] = []

    def connected(app: GradioApp, **options: Any) -> Client:
        client = Client(
            app.url,
            verbose=False,
            analytics_enabled=False,
            download_files=False,
            ssl_verify=no_certificates,
            **options,
        )
        clients.append(client)
        return client

    yield connected
    for client in clients:
        client.close()  # type: ignore[no-untyped-call]


@pytest.fixture
def recording(prompts: Path) -> Path:
    return prompts / "default.wav"


def parameters(client: Client, api_name: str) -> list[dict[str, Any]]:
    api: Any = client.view_api(print_info=False, return_format="dict")
    return list(api["named_endpoints"][api_name]["parameters"])


def content(app: GradioApp, record: dict[str, Any]) -> bytes:
    url = f"{app.url}/gradio_api/file={record['path']}"
    return httpx.get(url, verify=False).raise_for_status().content


def audio_of(app: GradioApp, result: Any) -> bytes:
    """The bytes of the audio in any form of result."""
    while isinstance(result, list | tuple):
        result = result[0]
    return content(app, result.get("value", result))


def speak(client: Client, recording: Path, text: str = "您好。") -> Any:
    return client.predict(handle_file(str(recording)), text, api_name="/gen_single")


@pytest.mark.parametrize("signature", INDEXTTS)
def test_an_indextts_describes_itself_as_the_real_one(
    signature: str, shared_app: StartGradioApp, connect: Callable[..., Client]
) -> None:
    described = [
        (
            each["parameter_name"],
            each["label"],
            each["parameter_default"] if each["parameter_has_default"] else NO_DEFAULT,
        )
        for each in parameters(connect(shared_app(signature)), "/gen_single")
    ]
    assert described == INDEXTTS[signature]


def test_a_hidden_language_is_still_an_input(
    shared_app: StartGradioApp, connect: Callable[..., Client]
) -> None:
    client = connect(shared_app("indextts-2.5-state"))
    function = next(f for f in client.config["dependencies"] if f["api_name"] == "gen_single")
    assert len(function["inputs"]) == 26


@pytest.mark.parametrize("signature", NAMED)
def test_a_relative_speaks_under_its_own_names(
    signature: str,
    shared_app: StartGradioApp,
    connect: Callable[..., Client],
    recording: Path,
) -> None:
    app, (api_name, prompt, text) = shared_app(signature), NAMED[signature]
    client = connect(app)
    arguments: dict[str, Any] = {
        each["parameter_name"]: None
        for each in parameters(client, api_name)
        if not each["parameter_has_default"]
    }
    file = handle_file(str(recording))
    arguments |= {prompt: [file] if signature == "vllm" else file, text: "您好。"}
    result = client.predict(**arguments, api_name=api_name)
    assert audio_of(app, result).startswith(b"RIFF")
    assert [call["text"] for call in app.calls] == ["您好。"]


@pytest.mark.parametrize(
    ("signature", "api_name", "names", "outputs"),
    [
        ("no-text", "/gen_single", ["prompt"], ["Audio"]),
        ("no-audio", "/gen_single", ["text"], ["Audio"]),
        ("two-texts", "/gen_single", ["prompt", "a", "b"], ["Audio"]),
        ("no-such-api", "/speak", ["prompt", "text"], ["Audio"]),
        ("fish-speech", "/partial", None, ["Audio", "Html"]),
        ("f5-tts", "/basic_tts", None, ["Audio", "Image", "Textbox", "Number"]),
    ],
)
def test_odd_functions_are_described(
    signature: str,
    api_name: str,
    names: list[str] | None,
    outputs: list[str],
    shared_app: StartGradioApp,
    connect: Callable[..., Client],
) -> None:
    client = connect(shared_app(signature))
    api: Any = client.view_api(print_info=False, return_format="dict")
    assert [each["component"] for each in api["named_endpoints"][api_name]["returns"]] == outputs
    if names is not None:
        assert [each["parameter_name"] for each in parameters(client, api_name)] == names
    assert ("/gen_single" in api["named_endpoints"]) == (api_name == "/gen_single")


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("update", {"visible", "value", "__type__"}),
        ("path", dict),
        ("tuple", tuple),
        ("list", list),
        ("dict-file", dict),
        ("numpy", dict),
        ("mp3", dict),
        ("float-wav", dict),
    ],
)
def test_a_result_comes_in_the_form_asked_for(
    form: str,
    shape: type | set[str],
    shared_app: StartGradioApp,
    connect: Callable[..., Client],
    recording: Path,
) -> None:
    app = shared_app("indextts-1.0", form)
    result = speak(connect(app), recording, "十个字。" * 5)
    if isinstance(shape, set):
        assert set(result) == shape
    else:
        assert type(result) is shape
    with av.open(io.BytesIO(audio_of(app, result)), "r") as file:
        stream = file.streams.audio[0]
        assert stream.codec_context.name == {
            "mp3": "mp3float",
            "float-wav": "pcm_f32le",
        }.get(form, "pcm_s16le")
        assert stream.channels == (2 if form == "float-wav" else 1)
        frames = [frame.samples for frame in file.decode(stream)]
    assert sum(frames) / 24_000 == pytest.approx(1.2, abs=0.06)


def test_a_streamed_result_is_a_playlist(
    shared_app: StartGradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    app = shared_app("streaming")
    result = speak(connect(app), recording)
    assert result["is_stream"]
    assert result["path"].endswith("playlist.m3u8")


def test_a_call_is_recorded_with_the_recordings_content(
    backend: GradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    speak(connect(backend), recording, "您好。")
    (call,) = backend.calls
    assert call["arguments"]["text"] == "您好。"
    assert call["arguments"]["prompt"] | {"path": ""} == {
        "path": "",
        "sha256": hashlib.sha256(recording.read_bytes()).hexdigest(),
        "size": recording.stat().st_size,
        "seconds": pytest.approx(8),
    }
    assert call["started"] < call["ended"]
    assert call["outcome"] == "answered"


def test_texts_and_recordings_change_the_sound_and_nothing_else_does(
    backend: GradioApp, connect: Callable[..., Client], prompts: Path
) -> None:
    client, first, second = connect(backend), prompts / "default.wav", prompts / "chixiaotu6.wav"
    asked = [(first, "甲。"), (first, "乙。"), (second, "甲。"), (first, "甲。")]
    sounds = [audio_of(backend, speak(client, prompt, text)) for prompt, text in asked]
    assert len(set(sounds[:3])) == 3
    assert sounds[3] == sounds[0]


def test_sound_is_as_long_as_told(
    backend: GradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    backend.control(ms_audio_per_char=100)
    with wave.open(io.BytesIO(audio_of(backend, speak(connect(backend), recording)))) as file:
        assert (file.getframerate(), file.getnframes()) == (24_000, 7200)


def test_the_text_method_needs_the_experimental_switch_in_the_same_session(
    shared_app: StartGradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    app = shared_app("indextts-2.0")
    client, other = connect(app), connect(app)
    arguments = {
        "emo_control_method": "使用情感描述文本控制",
        "prompt": handle_file(str(recording)),
        "text": "您好。",
        "emo_ref_path": None,
        "api_name": "/gen_single",
    }
    client.predict(True, "与音色参考音频相同", api_name="/on_experimental_change")
    client.predict(**arguments)
    assert app.calls[0]["arguments"]["emo_control_method"] == 3
    with pytest.raises(AppError):
        other.predict(**arguments)


@pytest.mark.parametrize("fault", ["error", "silent_error"])
def test_a_failing_call_raises_in_the_client(
    fault: str, backend: GradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    backend.control(fail=fault)
    with pytest.raises(AppError) as raised:
        speak(connect(backend), recording)
    assert ("injected failure" in str(raised.value)) == (fault == "error")


def test_only_the_first_calls_fail_when_told_so(
    backend: GradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    backend.control(fail_first=1)
    client = connect(backend)
    with pytest.raises(AppError):
        speak(client, recording)
    assert audio_of(backend, speak(client, recording))
    assert [call["outcome"] for call in backend.calls] == ["failed", "answered"]


@pytest.mark.parametrize(
    ("fault", "size"),
    [("empty", 0), ("headonly", 44), ("truncated", (44 + 8640) // 2), ("notaudio", 45)],
)
def test_a_spoiled_file_arrives_spoiled(
    fault: str, size: int, backend: GradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    backend.control(fail=fault)
    audio = audio_of(backend, speak(connect(backend), recording))
    assert len(audio) == size
    assert audio.startswith(b"RIFF") == (fault in {"headonly", "truncated"})


def test_an_answer_can_name_a_file_that_is_not_there(
    backend: GradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    backend.control(fail="badpath")
    result = speak(connect(backend), recording)
    with pytest.raises(httpx.HTTPStatusError, match=r"40[34]"):
        audio_of(backend, result)


def test_an_answer_can_be_nothing(
    backend: GradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    backend.control(fail="none")
    assert speak(connect(backend), recording) is None


def test_an_unknown_switch_is_refused(backend: GradioApp) -> None:
    with pytest.raises(ValueError, match="sometimes"):
        backend.control(fail="sometimes")
    with pytest.raises(ValueError, match="fall"):
        backend.control(fall="error")


def test_held_calls_go_one_by_one_when_released(
    backend: GradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    backend.control(hold=True)
    client = connect(backend)
    jobs = [
        client.submit(handle_file(str(recording)), text, api_name="/gen_single")
        for text in ("甲。", "乙。")
    ]
    wait_until(lambda: backend.state()["held"] == 1)
    backend.control(release=1)
    wait_until(lambda: any(job.done() for job in jobs))
    wait_until(lambda: backend.state()["held"] == 1)
    assert sum(job.done() for job in jobs) == 1
    backend.control(hold=False)
    for job in jobs:
        job.result(timeout=10)
    assert (backend.state()["count"], backend.state()["max_active"]) == (2, 1)


def test_a_reset_ends_a_hanging_call(
    backend: GradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    backend.control(fail="hang")
    client = connect(backend)
    job = client.submit(handle_file(str(recording)), "您好。", api_name="/gen_single")
    wait_until(lambda: backend.state()["active"] == 1)
    backend.control(reset=True)
    with pytest.raises(AppError):
        job.result(timeout=10)
    assert backend.state()["count"] == 0
    assert audio_of(backend, speak(client, recording))


def test_a_full_queue_refuses(
    gradio_app: StartGradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    app = gradio_app(queue_size=1, hold=True)
    client = connect(app)
    file = handle_file(str(recording))
    spoken = client.submit(file, "甲。", api_name="/gen_single")
    wait_until(lambda: app.state()["held"] == 1)
    jobs = [client.submit(file, text, api_name="/gen_single") for text in ("乙。", "丙。")]
    wait_until(lambda: any(job.done() for job in jobs))
    refused = next(job for job in jobs if job.done())
    with pytest.raises(QueueError):
        refused.result()
    app.control(hold=False)
    assert spoken.result(timeout=10)


def test_concurrent_calls_are_counted(
    gradio_app: StartGradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    app = gradio_app(concurrency=2, hold=True)
    file = handle_file(str(recording))
    client = connect(app)
    jobs = [client.submit(file, text, api_name="/gen_single") for text in ("甲。", "乙。")]
    wait_until(lambda: app.state()["held"] == 2)
    app.control(hold=False)
    for job in jobs:
        job.result(timeout=10)
    assert app.state()["max_active"] == 2


def test_a_guarded_app_wants_its_password(
    gradio_app: StartGradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    app = gradio_app(auth=("user", "password"))
    with pytest.raises(AuthenticationError):
        connect(app)
    assert speak(connect(app, auth=("user", "password")), recording)


def test_an_app_can_die_in_a_call_and_return_as_another(
    gradio_app: StartGradioApp, connect: Callable[..., Client], recording: Path
) -> None:
    app = gradio_app(fail="exit")
    job = connect(app).submit(handle_file(str(recording)), "您好。", api_name="/gen_single")
    wait_until(lambda: not answers(app))
    assert job.exception(timeout=10)
    app.restart("indextts-2.0")
    names = [each["parameter_name"] for each in parameters(connect(app), "/gen_single")]
    assert names[:3] == ["emo_control_method", "prompt", "text"]


def test_a_frozen_app_accepts_and_stays_silent_until_thawed(gradio_app: StartGradioApp) -> None:
    app = gradio_app()
    app.freeze()
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{app.url}/config", timeout=0.2, verify=False)
    app.thaw()
    assert httpx.get(f"{app.url}/config", timeout=10, verify=False).is_success


def test_a_stopped_app_leaves_no_process_and_no_file() -> None:
    app = GradioApp()
    app.launch()
    app.wait_ready()
    process, folder = Path(f"/proc/{app.pid}"), app.folder
    assert process.exists()
    assert folder.exists()
    app.stop()
    assert not process.exists()
    assert not folder.exists()
    assert not answers(app)


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_a_missing_program_skips_a_test_except_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    assert Path(require_program("sh")).is_file()
    with pytest.raises(outcome, match="no-such-program"):
        require_program("no-such-program")


def test_waiting_ends_with_the_value_or_at_the_limit() -> None:
    assert wait_until(iter([0, "", "found"]).__next__) == "found"
    with pytest.raises(AssertionError, match="in vain"):
        wait_until(lambda: False, limit=0.05)


def answers(app: GradioApp) -> bool:
    try:
        return httpx.get(app.url, timeout=5, verify=False).is_success
    except httpx.TransportError:
        return False
