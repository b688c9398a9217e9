"""A real Gradio server as a backend: what reaches it, what comes back, and what goes wrong."""

import concurrent.futures
import functools
import hashlib
import http.server
import itertools
import json
import os
import queue
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import StartGradioApp, StartServers
from servers import GradioApp, free_port, wait_until
from servers.signatures import SIGNATURES
from servers.sound import speech, tone, write_mp3, write_wav

from tts_service.audio import Audio
from tts_service.backends.base import (
    BackendLost,
    BackendUnreachable,
    ModelChanged,
    Segment,
)
from tts_service.backends.gradio import MOST_OVERDUE, GradioBackend
from tts_service.errors import (
    BackendError,
    BackendMisfit,
    BackendTimeout,
    PromptMissing,
    RecordingReplaced,
)
from tts_service.voices import Voice

TEXT = '他说：“100% of <b>it</b> & 😀”\n{"a": 1}\\n'
LIMIT = 20.0  # seconds; a call takes 30 ms
AT_ONCE = 3.0  # seconds, on a busy machine; what must be told from it takes 5 or more

OpenBackend = Callable[..., GradioBackend]


@pytest.fixture
def open_backend() -> Iterator[OpenBackend]:
    """`open_backend(url, **options)`: a backend that is closed after the test."""
    backends: list[GradioBackend] = []

    def opened(url: str, **options: Any) -> GradioBackend:
        backends.append(GradioBackend(url, **options))
        return backends[-1]

    yield opened
    for backend in backends:
        backend.close()


@pytest.fixture
def voice(prompts: Path) -> Voice:
    return voice_of(prompts / "default.wav")


def voice_of(recording: Path) -> Voice:
    return Voice(recording.stem, recording, hashlib.sha256(recording.read_bytes()).hexdigest())


def speak(
    backend: GradioBackend, voice: Voice, text: str = TEXT, timeout: float = LIMIT, **params: Any
) -> Audio:
    return backend.synthesize(segment_for(backend, voice, text, **params), timeout)


def segment_for(backend: GradioBackend, voice: Voice, text: str = TEXT, **params: Any) -> Segment:
    binding = backend.describe()
    return Segment(text, voice, binding.identity, binding.pick(params))


def expected(signature: str, voice: Voice, text: str = TEXT) -> Audio:
    """The very samples that the server's engine makes of this text and this recording."""
    kind = SIGNATURES[signature]
    recording = voice.recording.read_bytes()
    if signature == "dia":  # takes the samples, without the file around them
        recording = recording[44:]
    sound = speech(text, recording, 0.06 * len(text), kind.rate)
    return Audio(sound.rate, sound.samples.tobytes())


def pitch(audio: Audio) -> float:
    """Of a pure tone, in Hz."""
    samples = memoryview(audio.pcm).cast("h").tolist()
    rises = sum(a < 0 <= b for a, b in itertools.pairwise(samples))
    return rises / audio.seconds


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"took {took:.1f} s"


class Passage(http.server.ThreadingHTTPServer):
    """A door before a Gradio server, which remembers who came through.

    Requests whose path begins like `stuck_at` are never answered. A piece of an answer in which
    `slow_word` occurs comes after `slowness` seconds.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target = target
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, Message]] = []
        self.stuck_at = "nowhere"
        self.slow_word = b"nothing of the kind"
        self.slowness = 0.0
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def count(self, start: str) -> int:
        """How many requests' method and path began like this."""
        return sum(request.startswith(start) for request, _ in self.requests)

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class _Passing(http.server.BaseHTTPRequestHandler):
    server: Passage

    def do_GET(self) -> None:
        self.server.requests.append((f"{self.command} {self.path}", self.headers))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith(self.server.stuck_at):
            self.server.closing.wait()
            return
        kept = {
            name: self.headers[name] for name in ("Content-Type", "Cookie") if name in self.headers
        }
        url = self.server.target + self.path
        with httpx.stream(
            self.command, url, content=body, headers=kept, timeout=LIMIT, verify=False
        ) as answer:
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.end_headers()
            for piece in answer.iter_bytes():
                before, word, after = piece.partition(self.server.slow_word)
                self.wfile.write(before)
                if word:
                    self.server.closing.wait(self.server.slowness)
                self.wfile.write(word + after)

    do_POST = do_HEAD = do_GET  # noqa: N815 - names that the base class asks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


OpenPassage = Callable[[str], Passage]


@pytest.fixture
def passage() -> Iterator[OpenPassage]:
    """`passage(url)`: a door before that server."""
    doors: list[Passage] = []

    def door(url: str) -> Passage:
        doors.append(Passage(url))
        return doors[-1]

    yield door
    for each in doors:
        each.stop()


# -- every signature ---------------------------------------------------------------------------

EMOTION = {
    "emo_control_method": 0,
    "emo_ref_path": None,
    "emo_weight": 0.65,
    **{f"vec{i}": 0 for i in range(1, 9)},
    "emo_text": "",
    "emo_random": False,
    "max_text_tokens_per_segment": 120,
}
SAMPLING = {
    "do_sample": True,
    "top_p": 0.8,
    "top_k": 30,
    "temperature": 0.8,
    "length_penalty": 0,
    "num_beams": 3,
    "repetition_penalty": 10,
    "max_mel_tokens": 1500,
}
#: What the engine gets beside text and recording: each default, and None where there is none.
UNTOUCHED: Mapping[str, Mapping[str, Any]] = {
    "indextts-1.0": {},
    "indextts-2025-04": {"infer_mode": "普通推理"},
    "indextts-1.5": {
        "infer_mode": "普通推理",
        "max_text_tokens_per_sentence": 120,
        "sentences_bucket_max_size": 4,
        **SAMPLING,
        "temperature": 1.0,
        "max_mel_tokens": 600,
    },
    "indextts-2.0": EMOTION | SAMPLING,
    "indextts-2.5": EMOTION | SAMPLING | {"lang_choice": "ZH", "duration_factor": 1},
    # A hidden state is the server's own: this one has no value.
    "indextts-2.5-state": EMOTION | SAMPLING | {"lang_choice": None, "duration_factor": 1},
    "vllm": {},
    "f5-tts": {
        "ref_text_input": None,
        "remove_silence": False,
        "randomize_seed": True,
        "seed_input": 0,
        "cross_fade_duration_slider": 0.15,
        "nfe_slider": 32,
        "speed_slider": 1,
    },
    "cosyvoice": {
        "mode_checkbox_group": "预训练音色",
        "sft_dropdown": "中文女",
        "prompt_text": "",
        "prompt_wav_record": None,
        "instruct_text": "",
        "seed": 0,
        "stream": False,
        "speed": 1,
    },
    "spark-tts": {"prompt_text": None, "prompt_wav_record": None},
    "chatterbox": {"exaggeration": 0.5, "temperature": 0.8, "seed_num": 0, "cfgw": 0.5},
    "voxcpm": {
        "control_instruction": "",
        "use_prompt_text": False,
        "prompt_text_value": "",
        "cfg_value": 2,
        "dit_steps": 10,
    },
    "dia": {"audio_prompt_text_input": "", "max_new_tokens": 3072, "speed_factor": 0.94},
    "fish-speech": {"reference_id": "", "reference_text": "", "top_p": 0.8},
}


@pytest.mark.parametrize("signature", UNTOUCHED)
def test_a_signature_gets_text_and_recording_and_keeps_its_defaults(
    signature: str, shared_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    app, kind = shared_app(signature), SIGNATURES[signature]
    backend = open_backend(app.url, api_name=kind.api_name)

    audio = speak(backend, voice)

    assert audio == expected(signature, voice)
    [call] = app.calls
    arguments = dict(call["arguments"])
    assert kind.text is not None
    assert kind.prompt is not None
    assert arguments.pop(kind.text) == TEXT
    recording = arguments.pop(kind.prompt)
    [recording] = recording if isinstance(recording, list) else [recording]
    assert recording["seconds"] == pytest.approx(8)
    if "path" in recording:
        assert recording["sha256"] == voice.fingerprint
        assert Path(recording["path"]).name == f"{voice.fingerprint[:16]}.wav"
    assert arguments == UNTOUCHED[signature]


@pytest.mark.parametrize(
    ("signature", "found"),
    [
        ("no-text", "/gen_single has no text parameter; its parameters are: prompt (Audio)"),
        ("no-audio", "/gen_single has no audio parameter; its parameters are: text (Textbox)"),
        ("two-texts", "more than one possible text parameter; its parameters are: prompt (Audio)"),
        ("no-such-api", "no function /gen_single (GRADIO_API_NAME); it offers: "),
    ],
)
def test_a_server_that_cannot_be_called_is_a_misfit_that_names_what_it_has(
    signature: str,
    found: str,
    shared_app: StartGradioApp,
    open_backend: OpenBackend,
    voice: Voice,
) -> None:
    backend = open_backend(shared_app(signature).url)
    with pytest.raises(BackendMisfit) as described:
        backend.describe()
    assert found in described.value.message
    with pytest.raises(BackendMisfit) as spoken:
        backend.synthesize(Segment(TEXT, voice, "any"), LIMIT)
    assert spoken.value.message == described.value.message


def test_the_misfit_of_a_missing_function_lists_the_functions_there_are(
    shared_app: StartGradioApp, open_backend: OpenBackend
) -> None:
    with pytest.raises(BackendMisfit, match="/speak"):
        open_backend(shared_app("no-such-api").url).describe()


@pytest.mark.parametrize("api_name", ["speak", "/speak"])
def test_the_functions_name_may_come_with_or_without_a_slash(
    api_name: str, shared_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    backend = open_backend(shared_app("no-such-api").url, api_name=api_name)
    assert speak(backend, voice) == expected("no-such-api", voice)


# -- every form of a result --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["update", "path", "tuple", "list", "dict-file", "numpy"])
def test_the_samples_of_a_result_are_kept_whatever_its_form(
    form: str, shared_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    backend = open_backend(shared_app("indextts-1.0", form).url)
    assert speak(backend, voice) == expected("indextts-1.0", voice)


@pytest.mark.parametrize(("form", "tolerance"), [("mp3", 0.1), ("float-wav", 0.0)])
def test_a_result_in_another_encoding_is_the_same_sound(
    form: str,
    tolerance: float,
    shared_app: StartGradioApp,
    open_backend: OpenBackend,
    voice: Voice,
) -> None:
    audio = speak(open_backend(shared_app("indextts-1.0", form).url), voice)
    original = expected("indextts-1.0", voice)
    assert audio.rate == original.rate
    assert audio.seconds == pytest.approx(original.seconds, abs=tolerance)
    assert pitch(audio) == pytest.approx(pitch(original), rel=0.05)


def test_a_streaming_playlist_is_refused_by_its_name(
    shared_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    with pytest.raises(BackendError, match=r"streaming playlist \(HLS\)"):
        speak(open_backend(shared_app("streaming").url), voice)


# -- settings ----------------------------------------------------------------------------------


def test_set_parameters_reach_the_engine_by_name_and_by_label(
    shared_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    app = shared_app("indextts-1.5")
    params = {"max_text_tokens_per_sentence": 60, "推理模式": "批次推理", "num_beams": "1"}
    backend = open_backend(app.url, params=params)

    speak(backend, voice, top_k="7", param_8=1.3)

    arguments = app.calls[0]["arguments"]
    changed = {
        "max_text_tokens_per_sentence": 60,
        "infer_mode": "批次推理",
        "num_beams": 1,
        "top_k": 7,
        "temperature": 1.3,
    }
    assert {name: arguments[name] for name in UNTOUCHED["indextts-1.5"]} == (
        dict(UNTOUCHED["indextts-1.5"]) | changed
    )
    # Engines that count beams with it do not take 1.0.
    assert type(arguments["num_beams"]) is int


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"no_such_thing": 1}, "no_such_thing, but /gen_single has: infer_mode"),
        ({"top_p": "high"}, "expected a number"),
        ({"top_p": 2}, "at least 0 and at most 1"),
        ({"infer_mode": "快速推理"}, "'普通推理', '批次推理'"),
        ({"do_sample": "perhaps"}, "expected true or false"),
    ],
)
def test_set_parameters_that_do_not_fit_are_told_before_anything_is_spoken(
    params: dict[str, Any], said: str, shared_app: StartGradioApp, open_backend: OpenBackend
) -> None:
    app = shared_app("indextts-1.5")
    with pytest.raises(BackendMisfit) as caught:
        open_backend(app.url, params=params).describe()
    assert "GRADIO_PARAMS" in caught.value.message
    assert said in caught.value.message
    assert next(iter(params)) in caught.value.message
    assert app.calls == []


def test_emotion_by_text_switches_the_hidden_choice_on(
    shared_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    app = shared_app("indextts-2.0")
    backend = open_backend(app.url)
    binding = backend.describe()
    params = binding.effective({}, "tired and sad")

    backend.synthesize(Segment(TEXT, voice, binding.identity, params), LIMIT)

    arguments = app.calls[0]["arguments"]
    assert (arguments["emo_control_method"], arguments["emo_text"]) == (3, "tired and sad")


def test_a_login_opens_the_server_and_again_after_its_restart(
    gradio_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    app = gradio_app(auth=("user", "pass:word"))
    backend = open_backend(app.url, auth=("user", "pass:word"))
    assert speak(backend, voice) == expected("indextts-1.0", voice)
    for auth in (None, ("user", "wrong"), ("nobody", "pass:word")):
        with pytest.raises(BackendMisfit, match=r"refuses the login \(GRADIO_AUTH\)"):
            open_backend(app.url, auth=auth).describe()
    app.restart()
    assert speak(backend, voice) == expected("indextts-1.0", voice)


@pytest.mark.parametrize(("token", "sent"), [("hf_ours", "Bearer hf_ours"), (None, None)])
def test_only_the_token_that_was_set_is_sent_and_with_every_request(
    token: str | None,
    sent: str | None,
    backend: GradioApp,
    passage: OpenPassage,
    open_backend: OpenBackend,
    voice: Voice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_machines_user")
    door = passage(backend.url)
    speak(open_backend(door.url, token=token), voice)
    paths = {request.split("?")[0] for request, _ in door.requests}
    assert {"GET /config", "POST /gradio_api/upload", "POST /gradio_api/queue/join"} <= paths
    for request, headers in door.requests:
        found = headers.get("x-hf-authorization") or headers.get("authorization")
        assert found == sent, request


def test_a_name_tells_no_password(open_backend: OpenBackend) -> None:
    backend = open_backend("https://user:secret@example.com:8443/tts")
    assert backend.name == "https://example.com:8443/tts"


# -- the recording -----------------------------------------------------------------------------


def test_a_recording_is_uploaded_once_for_each_start_of_the_server(
    gradio_app: StartGradioApp,
    passage: OpenPassage,
    open_backend: OpenBackend,
    prompts: Path,
) -> None:
    app = gradio_app()
    door = passage(app.url)
    backend = open_backend(door.url)
    one, other = voice_of(prompts / "default.wav"), voice_of(prompts / "chixiaotu6.wav")
    for voice in (one, other, one, other, one):
        assert speak(backend, voice) == expected("indextts-1.0", voice)
    assert door.count("POST /gradio_api/upload") == 2
    paths = [call["arguments"]["prompt"]["path"] for call in app.calls]
    assert len(set(paths)) == 2
    app.restart()
    for voice in (one, one):
        assert speak(backend, voice) == expected("indextts-1.0", voice)
    assert door.count("POST /gradio_api/upload") == 3
    assert {call["arguments"]["prompt"]["path"] for call in app.calls} == {paths[0]}


@pytest.mark.parametrize("write", [write_wav, write_mp3])
def test_a_long_recording_is_trimmed_for_the_upload_only(
    write: Callable[..., None],
    backend: GradioApp,
    open_backend: OpenBackend,
    tmp_path: Path,
) -> None:
    recording = tmp_path / ("long.mp3" if write is write_mp3 else "long.wav")
    write(recording, tone(300, 40))
    voice = voice_of(recording)
    speak(open_backend(backend.url), voice)
    uploaded = backend.calls[0]["arguments"]["prompt"]
    assert 15 <= uploaded["seconds"] <= 16
    assert Path(uploaded["path"]).name == f"{voice.fingerprint[:16]}.wav"
    assert voice_of(recording) == voice


@pytest.mark.parametrize("content", [None, b"", b"<html>"], ids=["missing", "empty", "no audio"])
def test_a_recording_that_cannot_be_used_is_told_and_nothing_is_called(
    content: bytes | None, backend: GradioApp, open_backend: OpenBackend, tmp_path: Path
) -> None:
    recording = tmp_path / "voice.wav"
    if content is not None:
        recording.write_bytes(content)
    with pytest.raises(PromptMissing, match="'voice'"):
        speak(open_backend(backend.url), Voice("voice", recording, "0" * 64))
    assert backend.calls == []


def test_a_recording_that_was_replaced_is_not_taken_for_the_one_before(
    backend: GradioApp, open_backend: OpenBackend, tmp_path: Path
) -> None:
    recording = tmp_path / "voice.wav"
    write_wav(recording, tone(220, 2))
    before = voice_of(recording)
    write_wav(recording, tone(330, 2))
    opened = open_backend(backend.url)
    with pytest.raises(RecordingReplaced, match="'voice'"):
        speak(opened, before)
    assert backend.calls == []
    speak(opened, voice_of(recording))
    write_wav(recording, tone(220, 2))
    speak(opened, before)
    assert len({call["arguments"]["prompt"]["sha256"] for call in backend.calls}) == 2


def test_an_upload_that_the_server_lost_is_made_again_unseen(
    backend: GradioApp,
    passage: OpenPassage,
    open_backend: OpenBackend,
    voice: Voice,
) -> None:
    door = passage(backend.url)
    speaker = open_backend(door.url)
    speak(speaker, voice)
    stored = Path(backend.calls[0]["arguments"]["prompt"]["path"])
    shutil.rmtree(stored.parent)
    assert speak(speaker, voice) == expected("indextts-1.0", voice)
    assert speak(speaker, voice) == expected("indextts-1.0", voice)
    assert door.count("POST /gradio_api/upload") == 2


def test_a_failure_is_not_tried_twice_while_the_server_has_the_recording(
    backend: GradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    speaker = open_backend(backend.url)
    speak(speaker, voice)
    backend.control(reset=True, fail="silent_error")
    with pytest.raises(BackendError):
        speak(speaker, voice)
    assert len(backend.calls) == 1


# -- a server that was restarted ---------------------------------------------------------------


def test_a_server_that_came_back_as_another_model_gets_nothing_meant_for_the_first(
    gradio_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    app = gradio_app("indextts-2.0")
    backend = open_backend(app.url)
    segment = segment_for(backend, voice)
    backend.synthesize(segment, LIMIT)
    app.restart("indextts-1.5")
    for _ in range(2):
        with pytest.raises(ModelChanged):
            backend.synthesize(segment, LIMIT)
    assert app.calls == []
    assert speak(backend, voice) == expected("indextts-1.5", voice)
    assert app.calls[0]["arguments"]["max_mel_tokens"] == 600


def test_a_restart_gives_up_the_calls_of_the_launch_before(
    gradio_app: StartGradioApp,
    open_backend: OpenBackend,
    voice: Voice,
    pool: concurrent.futures.Executor,
) -> None:
    app = gradio_app(hold=True)
    backend = open_backend(app.url)
    segment = segment_for(backend, voice)
    lost = pool.submit(backend.synthesize, segment, LIMIT)
    wait_until(lambda: app.state()["held"])
    app.restart()
    again = pool.submit(backend.synthesize, segment, LIMIT)
    assert isinstance(lost.exception(LIMIT), BackendLost)
    wait_until(lambda: app.state()["held"])
    app.control(hold=False)
    assert again.result(LIMIT) == expected("indextts-1.0", voice)


def test_replicas_have_one_identity_and_other_models_others(
    shared_app: StartGradioApp, start_servers: StartServers, open_backend: OpenBackend
) -> None:
    replica = start_servers(GradioApp("indextts-1.5"))[0]
    url = shared_app("indextts-1.5").url
    identity = open_backend(url).describe().identity
    assert open_backend(replica.url).describe().identity == identity
    others = [
        open_backend(url, params={"top_p": 0.5}).describe().identity,
        *(
            open_backend(shared_app(signature).url).describe().identity
            for signature in ("indextts-1.0", "indextts-2.0", "indextts-2.5")
        ),
        open_backend(shared_app("indextts-2.5-state").url).describe().identity,
    ]
    assert len({identity, *others}) == 1 + len(others)


# -- the client --------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        yield threads


def test_a_new_backend_has_no_connection_and_no_thread(
    backend: GradioApp, passage: OpenPassage
) -> None:
    door = passage(backend.url)
    threads, files = threading.active_count(), open_files()
    speaker = GradioBackend(door.url)
    assert (threading.active_count(), open_files()) == (threads, files)
    assert door.requests == []
    speaker.close()


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_many_threads_get_each_its_own_sound(
    gradio_app: StartGradioApp,
    open_backend: OpenBackend,
    voice: Voice,
    pool: concurrent.futures.Executor,
) -> None:
    app = gradio_app(concurrency=8)
    backend = open_backend(app.url)
    texts = [f"第{i}句。" for i in range(80)]
    segments = [segment_for(backend, voice, text) for text in texts[:1]]
    identity = segments[0].identity
    start = threading.Barrier(8)

    def speak_some(offset: int) -> list[Audio]:
        start.wait(LIMIT)
        return [
            backend.synthesize(Segment(text, voice, identity), LIMIT) for text in texts[offset::8]
        ]

    for offset, spoken in enumerate(pool.map(speak_some, range(8))):
        assert spoken == [expected("indextts-1.0", voice, text) for text in texts[offset::8]]
    assert sorted(call["text"] for call in app.calls) == sorted(texts)
    assert len({call["arguments"]["prompt"]["path"] for call in app.calls}) == 1
    assert app.state()["max_active"] > 1


def test_calls_at_the_same_time_have_a_session_each_and_leave_it_to_later_ones(
    gradio_app: StartGradioApp,
    passage: OpenPassage,
    open_backend: OpenBackend,
    voice: Voice,
    pool: concurrent.futures.Executor,
) -> None:
    app = gradio_app(concurrency=4, hold=True)
    door = passage(app.url)
    backend = open_backend(door.url)
    segment = segment_for(backend, voice)
    for _ in range(2):
        calls = [pool.submit(backend.synthesize, segment, LIMIT) for _ in range(4)]
        wait_until(lambda: app.state()["held"] == 4)
        app.control(release=4)
        assert [call.result(LIMIT) for call in calls] == [expected("indextts-1.0", voice)] * 4
    streams = [path for path, _ in door.requests if path.startswith("GET /gradio_api/queue/data")]
    assert len(streams) == 8
    assert len(set(streams)) == 4


def test_a_call_has_arrived_once_while_it_waits_in_the_servers_own_queue(
    gradio_app: StartGradioApp,
    open_backend: OpenBackend,
    voice: Voice,
    pool: concurrent.futures.Executor,
) -> None:
    app = gradio_app("indextts-2.0", hold=True)
    backend = open_backend(app.url)
    binding = backend.describe()
    # Two calls each: the hidden choice is switched on before.
    params = binding.effective({}, "tired and sad")
    arrivals: queue.SimpleQueue[str] = queue.SimpleQueue()
    calls = []
    for text in ("One.", "Two.", "Three."):
        segment = Segment(text, voice, binding.identity, params)
        arrived = functools.partial(arrivals.put, text)
        calls.append(pool.submit(backend.synthesize, segment, LIMIT, arrived))
        assert arrivals.get(timeout=LIMIT) == text
    assert [call["arguments"]["text"] for call in app.calls] == ["One."]
    app.control(hold=False)
    for call in calls:
        call.result(LIMIT)
    assert [call["arguments"]["text"] for call in app.calls] == ["One.", "Two.", "Three."]
    assert arrivals.empty()


def test_a_call_right_after_another_does_not_share_the_end_of_its_stream(
    shared_app: StartGradioApp, passage: OpenPassage, open_backend: OpenBackend, voice: Voice
) -> None:
    app = shared_app("indextts-2.0")
    door = passage(app.url)
    door.slow_word, door.slowness = b"close_stream", 0.2
    backend = open_backend(door.url)
    binding = backend.describe()
    # Two calls each: the hidden choice is switched on before.
    params = binding.effective({}, "tired and sad")
    for text in ("One.", "Two.", "Three."):
        sound = backend.synthesize(Segment(text, voice, binding.identity, params), LIMIT)
        assert sound == expected("indextts-2.0", voice, text)
    assert [call["arguments"]["text"] for call in app.calls] == ["One.", "Two.", "Three."]


def test_certificates_are_loaded_no_more_than_once(
    backend: GradioApp,
    open_backend: OpenBackend,
    voice: Voice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[object] = []
    create = ssl.create_default_context

    def counted(*args: Any, **options: Any) -> ssl.SSLContext:
        loads.append(args)
        return create(*args, **options)

    monkeypatch.setattr(ssl, "create_default_context", counted)
    for _ in range(2):
        speaker = open_backend(backend.url)
        for _ in range(3):
            speak(speaker, voice)
    assert len(loads) <= 1


def test_threads_and_connections_do_not_pile_up(
    shared_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    # One with a state: for such servers Gradio's client would keep up a heartbeat.
    app = shared_app("indextts-2.5-state")
    before = threading.active_count(), open_files()
    speaker = open_backend(app.url)
    for _ in range(5):
        speak(speaker, voice)
    after_5 = threading.active_count(), open_files()
    assert not any("heartbeat" in thread.name for thread in threading.enumerate())
    for _ in range(50):
        speak(speaker, voice)
    # The last call's event stream may be closing still, and its watcher looks every 50 ms.
    wait_until(lambda: threading.active_count() <= after_5[0] + 1)
    assert open_files() <= after_5[1] + 2
    speaker.close()
    wait_until(lambda: threading.active_count() <= before[0])
    wait_until(lambda: open_files() <= before[1])


def test_results_are_read_over_one_connection(
    backend: GradioApp,
    open_backend: OpenBackend,
    voice: Voice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speaker = open_backend(backend.url)
    speak(speaker, voice)
    opened: list[object] = []
    connect = socket.create_connection

    def counted(*args: Any, **options: Any) -> socket.socket:
        opened.append(args)
        return connect(*args, **options)

    monkeypatch.setattr(socket, "create_connection", counted)
    for _ in range(10):
        speak(speaker, voice)
    # Gradio's client takes one to join the queue and one for the events; app_id and the result
    # share one that is open already.
    assert len(opened) < 30


FORKED = """
import hashlib, json, os, sys, threading
from pathlib import Path
from tts_service.backends.base import Segment
from tts_service.backends.gradio import GradioBackend
from tts_service.voices import Voice

url, recording = sys.argv[1], Path(sys.argv[2])
voice = Voice("default", recording, hashlib.sha256(recording.read_bytes()).hexdigest())
backend = GradioBackend(url)
if child := os.fork():
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
identity = backend.describe().identity
lengths = [backend.synthesize(Segment("您好。", voice, identity), 20).seconds for _ in range(20)]
analytics = [os.environ[name] for name in ("HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")]
telemetry = [thread.name for thread in threading.enumerate() if "telemetry" in thread.name]
print(json.dumps({"lengths": lengths, "analytics": analytics, "telemetry": telemetry}))
sys.stdout.flush()
os._exit(0)
"""


def test_a_backend_built_before_a_fork_speaks_after_it_and_leaves_no_file(
    backend: GradioApp, voice: Voice, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    temp = home / "temp"
    temp.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", FORKED, backend.url, voice.recording],
        cwd=Path(__file__).parents[1],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(temp)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["lengths"] == [pytest.approx(0.18)] * 20
    assert said["analytics"] == ["1", "False"]
    assert said["telemetry"] == []
    assert [*home.rglob("*")] == [temp]
    assert done.stderr == ""


def test_a_call_does_not_sleep_until_its_message_comes(
    backend: GradioApp,
    open_backend: OpenBackend,
    voice: Voice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speaker = open_backend(backend.url)
    speak(speaker, voice)
    sleepers: list[str] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        sleepers.append(sys._getframe(1).f_code.co_name)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noted)
    for _ in range(5):
        speak(speaker, voice)
    assert "check_for_cancel" in sleepers, "the client does not sleep as it used to"
    assert "stream_sse_v1plus" not in sleepers


# -- waiting -----------------------------------------------------------------------------------


def test_a_call_that_never_ends_is_given_up_in_time(
    backend: GradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    speaker = open_backend(backend.url)
    segment = segment_for(speaker, voice)
    backend.control(fail="hang")
    with within(0.3 + AT_ONCE), pytest.raises(BackendTimeout):
        speaker.synthesize(segment, 0.3)
    backend.control(reset=True)
    assert speaker.synthesize(segment, LIMIT) == expected("indextts-1.0", voice)


def test_a_server_stuck_in_many_calls_is_spared_until_they_end(
    gradio_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    app = gradio_app()
    backend = open_backend(app.url)
    speak(backend, voice)
    segment = segment_for(backend, voice)
    app.control(hold=True)
    for _ in range(MOST_OVERDUE):
        with pytest.raises(BackendTimeout):
            backend.synthesize(segment, 0.5)
    threads = threading.active_count()
    with within(AT_ONCE), pytest.raises(BackendUnreachable, match="stuck"):
        backend.synthesize(segment, LIMIT)
    assert threading.active_count() <= threads
    app.control(hold=False)

    def speaks() -> bool:
        try:
            return backend.synthesize(segment, LIMIT) == expected("indextts-1.0", voice)
        except BackendUnreachable:
            return False

    assert wait_until(speaks)


@pytest.mark.parametrize("is_known", [True, False], ids=["connected", "new"])
def test_a_frozen_server_holds_nobody_longer_than_asked(
    is_known: bool, gradio_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    app = gradio_app()
    backend = open_backend(app.url)
    identity = backend.describe().identity if is_known else "any"
    app.freeze()
    with within(0.5 + AT_ONCE), pytest.raises((BackendUnreachable, BackendTimeout)):
        backend.synthesize(Segment(TEXT, voice, identity), 0.5)
    app.thaw()
    assert speak(backend, voice) == expected("indextts-1.0", voice)


def test_nobody_waits_longer_than_asked_for_anothers_attempt_to_connect(
    gradio_app: StartGradioApp,
    open_backend: OpenBackend,
    voice: Voice,
    pool: concurrent.futures.Executor,
) -> None:
    app = gradio_app()
    backend = open_backend(app.url)
    app.freeze()
    patient = pool.submit(backend.describe)
    wait_until(backend._connecting.locked)
    with within(0.5 + AT_ONCE), pytest.raises(BackendTimeout):
        backend.synthesize(Segment(TEXT, voice, "any"), 0.5)
    app.thaw()
    assert patient.result(LIMIT).api_name == "/gen_single"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/config", BackendUnreachable),
        ("/gradio_api/info", BackendUnreachable),
        ("/gradio_api/app_id", BackendUnreachable),
        ("/gradio_api/upload", BackendTimeout),
        ("/gradio_api/queue/join", BackendTimeout),
        ("/gradio_api/queue/data", BackendTimeout),
        ("/gradio_api/file=", BackendTimeout),
    ],
)
def test_no_step_of_a_call_takes_longer_than_asked(
    path: str,
    told: type[Exception],
    backend: GradioApp,
    passage: OpenPassage,
    open_backend: OpenBackend,
    voice: Voice,
) -> None:
    identity = open_backend(backend.url).describe().identity
    door = passage(backend.url)
    door.stuck_at = path
    speaker = open_backend(door.url)
    with within(1 + AT_ONCE), pytest.raises(told):
        speaker.synthesize(Segment(TEXT, voice, identity), 1)
    assert door.count(f"GET {path}") + door.count(f"POST {path}") == 1


@pytest.mark.parametrize("is_frozen", [True, False])
def test_abandoned_calls_end_at_once(
    is_frozen: bool,
    gradio_app: StartGradioApp,
    open_backend: OpenBackend,
    voice: Voice,
    pool: concurrent.futures.Executor,
) -> None:
    app = gradio_app(hold=True, concurrency=2)
    backend = open_backend(app.url)
    segment = segment_for(backend, voice)
    calls = [pool.submit(backend.synthesize, segment, LIMIT) for _ in range(2)]
    wait_until(lambda: app.state()["held"] == 2)
    if is_frozen:
        app.freeze()
    with within(AT_ONCE):
        backend.abandon()
        errors = [call.exception(LIMIT) for call in calls]
    assert [type(error) for error in errors] == [BackendLost] * 2
    app.thaw()
    app.control(hold=False)
    assert backend.synthesize(segment, LIMIT) == expected("indextts-1.0", voice)


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("error", "injected failure"),
        ("silent_error", "The backend failed"),
        ("none", "no audio but"),
        ("badpath", "The backend failed"),
        ("empty", "cannot be used"),
        ("headonly", "cannot be used"),
        ("truncated", "cannot be used"),
        ("notaudio", "cannot be used"),
    ],
)
def test_a_result_that_is_no_speech_is_an_error_and_the_next_call_works(
    fault: str, said: str, backend: GradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    speaker = open_backend(backend.url)
    backend.control(fail=fault)
    with pytest.raises(BackendError) as caught:
        speak(speaker, voice)
    assert type(caught.value) is BackendError
    assert said in caught.value.message
    backend.control(fail="")
    assert speak(speaker, voice) == expected("indextts-1.0", voice)


def test_every_call_tells_its_own_failure(
    backend: GradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    speaker = open_backend(backend.url)
    backend.control(fail_first=2)
    for _ in range(2):
        with pytest.raises(BackendError, match="injected failure"):
            speak(speaker, voice)
    assert speak(speaker, voice) == expected("indextts-1.0", voice)


def test_a_server_that_ends_during_a_call_is_lost_at_once(
    gradio_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    backend = open_backend(gradio_app(fail="exit").url)
    segment = segment_for(backend, voice)
    with within(2 * AT_ONCE), pytest.raises(BackendLost):
        backend.synthesize(segment, LIMIT)
    with within(AT_ONCE), pytest.raises(BackendUnreachable):
        backend.synthesize(segment, LIMIT)


def test_a_full_queue_is_an_error_for_whom_it_turns_away(
    gradio_app: StartGradioApp,
    open_backend: OpenBackend,
    voice: Voice,
    pool: concurrent.futures.Executor,
) -> None:
    app = gradio_app(queue_size=1, hold=True)
    backend = open_backend(app.url)
    segment = segment_for(backend, voice)
    first = pool.submit(backend.synthesize, segment, LIMIT)
    wait_until(lambda: app.state()["held"] == 1)
    crowd = [pool.submit(backend.synthesize, segment, LIMIT) for _ in range(4)]
    done = concurrent.futures.wait(crowd, LIMIT, concurrent.futures.FIRST_COMPLETED).done
    errors = [call.exception() for call in done]
    app.control(hold=False)
    assert {type(error) for error in errors} == {BackendError}
    assert all("Queue is full" in str(error) for error in errors)
    assert first.result(LIMIT) == expected("indextts-1.0", voice)
    concurrent.futures.wait(crowd)


def test_a_server_that_is_down_is_unreachable_at_once_until_it_is_up(
    gradio_app: StartGradioApp, open_backend: OpenBackend, voice: Voice
) -> None:
    app = gradio_app()
    backend, new = open_backend(app.url), open_backend(app.url)
    segment = segment_for(backend, voice)
    app.kill()
    for call in (backend.ping, new.ping, new.describe, lambda: backend.synthesize(segment, LIMIT)):
        with within(AT_ONCE), pytest.raises(BackendUnreachable, match="cannot be reached"):
            call()
    app.restart()
    backend.ping()
    assert backend.synthesize(segment, LIMIT) == expected("indextts-1.0", voice)


def test_a_server_that_is_not_gradio_is_unreachable(
    backend: GradioApp, passage: OpenPassage, open_backend: OpenBackend
) -> None:
    elsewhere = passage(f"{backend.url}/nowhere").url
    with within(AT_ONCE), pytest.raises(BackendUnreachable):
        open_backend(elsewhere).describe()
    with within(AT_ONCE), pytest.raises(BackendUnreachable):
        open_backend(f"http://127.0.0.1:{free_port()}").ping()
