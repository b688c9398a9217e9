"""The demo backend as its users meet it: a process, spoken to by the real gradio_client."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from numpy.typing import NDArray

from tts_service.demo_backend import launcher
from tts_service.demo_backend.espeak import Espeak, Voice
from tts_service.demo_backend.outputs import Outputs
from tts_service.demo_backend.recording import choose, decode, pitch_of

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "prompts"
RATE = 22050
Speak = Callable[[Path, str], NDArray[np.int16]]
CALM = Voice(variant="m3", pitch=50, rate=175)


@dataclass
class Running:
    """A demo backend started by hand, as a user would."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    temp: Path


@contextmanager
def starting(folder: Path, port: int | None = None) -> Iterator[Running]:
    """The process, perhaps not ready yet; ended by force if the test has not ended it."""
    port = port or free_port()
    temp, log = folder / "temp", folder / "log"
    temp.mkdir()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tts_service.demo_backend", "--port", str(port)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temp)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield Running(process, f"http://127.0.0.1:{port}", log, temp)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(condition: Callable[[], object], limit: float = 90) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def wait_until_ready(server: Running) -> None:
    wait_until(lambda: server.url in server.log.read_text() or server.process.poll() is not None)
    assert server.log.read_text() == f"demo backend: {server.url}\n"


def is_running(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody reaps does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with starting(tmp_path_factory.mktemp("server")) as running:
        wait_until_ready(running)
        yield running


@pytest.fixture
def speak(server: Running, tmp_path: Path) -> Speak:
    """Speak a text by a client of its own: the samples. The WAV's form is checked on the way."""

    def speech(prompt: Path, text: str) -> NDArray[np.int16]:
        with quiet_client(server.url, tmp_path) as client:
            answer = client.predict(prompt=handle_file(prompt), text=text, api_name="/gen_single")
        assert (answer["__type__"], answer["visible"]) == ("update", True)
        return samples_of(Path(answer["value"]).read_bytes())

    return speech


@contextmanager
def quiet_client(url: str, downloads: Path) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        # gradio_client lets an absent variable overrule `analytics_enabled=False`.
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        client = Client(url, download_files=downloads, analytics_enabled=False, verbose=False)
    try:
        yield client
    finally:
        client.close()  # type: ignore[no-untyped-call]


def samples_of(wav: bytes) -> NDArray[np.int16]:
    with wave.open(io.BytesIO(wav)) as file:
        form = file.getnchannels(), file.getsampwidth(), file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert form == (1, 2, RATE)
    assert len(wav) == 44 + 2 * len(samples)
    return samples


def loudness(samples: NDArray[np.int16]) -> float:
    return float(np.sqrt((samples.astype(np.float64) ** 2).mean()))


def pitch(samples: NDArray[np.int16]) -> float:
    hertz = pitch_of(samples, RATE)
    assert hertz is not None
    return hertz


@pytest.mark.parametrize(
    ("text", "shortest", "longest"),
    [
        ("您好，今天天气很好。", 1.2, 4.0),
        ("Hello, it is a beautiful day.", 1.0, 4.0),
        ("我喜欢 Python 和 Flask。", 1.2, 5.0),
        ("2026年11月23日", 1.5, 6.0),
    ],
)
def test_text_of_any_language_is_spoken(
    speak: Speak, text: str, shortest: float, longest: float
) -> None:
    samples = speak(PROMPTS / "default.wav", text)
    assert shortest < len(samples) / RATE < longest
    assert loudness(samples) > 500


@pytest.mark.parametrize("text", ["", "。！？……", "😀"])
def test_text_without_a_word_is_a_short_silence(speak: Speak, text: str) -> None:
    samples = speak(PROMPTS / "default.wav", text)
    assert 0.1 <= len(samples) / RATE < 0.5
    assert not samples.any()


def test_a_low_and_a_high_recording_sound_different_and_each_like_itself(
    speak: Speak,
) -> None:
    text = "您好，今天天气很好，我们出去走走吧。"
    low, low_again = (pitch(speak(PROMPTS / "default.wav", text)) for _ in range(2))
    high = pitch(speak(PROMPTS / "chixiaotu6.wav", text))
    assert low == pytest.approx(low_again, rel=0.05)
    assert high > 1.5 * low


def test_four_clients_at_once_are_all_served(speak: Speak, server: Running) -> None:
    texts = [f"第{number}个客户，hello number {number}。" for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        spoken = list(pool.map(lambda text: speak(PROMPTS / "default.wav", text), texts))
    assert all(loudness(samples) > 500 for samples in spoken)
    assert server.process.poll() is None


def upload(url: str, name: str, content: bytes) -> str:
    answer = httpx.post(f"{url}/gradio_api/upload", files={"files": (name, content)})
    path: str = answer.raise_for_status().json()[0]
    return path


def call(url: str, path: str | None, text: str) -> tuple[str, Any]:
    """Call over plain HTTP with an uploaded file's path: the last event and its data."""
    record = path and {"path": path, "meta": {"_type": "gradio.FileData"}}
    joined = httpx.post(f"{url}/gradio_api/call/gen_single", json={"data": [record, text]})
    event = joined.raise_for_status().json()["event_id"]
    stream = httpx.get(f"{url}/gradio_api/call/gen_single/{event}", timeout=20).text
    name, data = re.findall(r"event: (\w+)\ndata: (.*)", stream)[-1]
    return name, json.loads(data)


def test_a_recording_is_uploaded_once_and_used_again_until_it_is_gone(server: Running) -> None:
    path = upload(server.url, "once.wav", (PROMPTS / "default.wav").read_bytes())
    for _ in range(2):
        name, data = call(server.url, path, "您好。")
        assert name == "complete"
        file = httpx.get(f"{server.url}/gradio_api/file={data[0]['value']['path']}")
        assert loudness(samples_of(file.raise_for_status().content)) > 500
    Path(path).unlink()
    name, data = call(server.url, path, "您好。")
    assert name == "error"
    assert "gone" in data["error"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "Choose a recording first."),
        (b"certainly no audio" * 100, "The recording cannot be read as audio."),
        ((PROMPTS / "default.wav").read_bytes()[:44], "The recording is empty."),
    ],
)
def test_a_useless_recording_is_refused_with_its_reason(
    server: Running, content: bytes | None, complaint: str
) -> None:
    path = None if content is None else upload(server.url, "useless.wav", content)
    name, data = call(server.url, path, "您好。")
    assert (name, data["error"]) == ("error", complaint)
    assert "Traceback" not in server.log.read_text()


def test_the_real_client_is_told_the_reason_too(server: Running, tmp_path: Path) -> None:
    with quiet_client(server.url, tmp_path) as client, pytest.raises(AppError, match="Choose"):
        client.predict(prompt=None, text="您好。", api_name="/gen_single")


def test_the_page_asks_nothing_of_the_internet(server: Running) -> None:
    page = httpx.get(server.url).raise_for_status().text
    loaded = re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"?(https?://[^\s\">]+)", page)
    config = httpx.get(f"{server.url}/config").raise_for_status().json()
    loaded += [sheet for sheet in config["stylesheets"] if sheet.startswith("http")]
    assert [url for url in loaded if not url.startswith(server.url)] == []


def test_sigterm_ends_it_quickly_and_leaves_nothing(tmp_path: Path) -> None:
    with starting(tmp_path) as running:
        wait_until_ready(running)
        path = upload(running.url, "voice.wav", (PROMPTS / "default.wav").read_bytes())
        assert call(running.url, path, "您好。")[0] == "complete"
        with httpx.stream("GET", f"{running.url}/gradio_api/heartbeat/an-open-page"):
            assert_ends_cleanly(running, signal.SIGTERM)
        assert running.log.read_text() == f"demo backend: {running.url}\n"


def test_sigint_while_it_still_starts_leaves_nothing(tmp_path: Path) -> None:
    with starting(tmp_path) as running:
        wait_until(lambda: list(running.temp.iterdir()))
        assert_ends_cleanly(running, signal.SIGINT)
        assert running.log.read_text() == ""


def assert_ends_cleanly(running: Running, how: signal.Signals) -> None:
    started = time.monotonic()
    running.process.send_signal(how)
    assert running.process.wait(10) == 0
    assert time.monotonic() - started < 2
    assert list(running.temp.iterdir()) == []


def test_a_taken_port_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with starting(tmp_path, port) as running:
            assert running.process.wait(10) == 1
            (line,) = running.log.read_text().splitlines()
    assert line.startswith(f"demo backend: cannot listen on 127.0.0.1:{port}: ")


def test_it_ends_and_cleans_up_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import time; from tts_service.demo_backend import launcher;"
        "backend = launcher.start(); print(backend.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    with parent.stdout:
        try:
            pid = int(parent.stdout.readline())
        finally:
            parent.kill()
            parent.wait()
    try:
        wait_until(lambda: not is_running(pid), limit=3)
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_the_launcher_returns_a_ready_backend_and_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The gateway's own settings must not reach Gradio, which has some that begin alike.
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/elsewhere")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    backend = launcher.start()
    try:
        assert is_running(backend.pid)
        assert os.getsid(backend.pid) != os.getsid(0)
        with httpx.Client(trust_env=False) as client:
            info = client.get(f"{backend.url}/gradio_api/info").json()
        names = [
            it["parameter_name"] for it in info["named_endpoints"]["/gen_single"]["parameters"]
        ]
        assert names == ["prompt", "text"]
    finally:
        backend.stop()
    assert not is_running(backend.pid)
    backend.stop()


def test_a_server_that_is_killed_is_started_again_at_the_same_address_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    backend = launcher.start()
    try:
        servers = [server_of(backend.pid)]
        for _ in range(2):
            os.kill(servers[-1], signal.SIGKILL)
            wait_until(lambda: server_of(backend.pid) not in (0, *servers))
            servers.append(server_of(backend.pid))
            wait_until(lambda: is_served(backend.url))
            (folder,) = tmp_path.iterdir()
            assert len(list(folder.iterdir())) == 1
    finally:
        backend.stop()
    assert not any(is_running(pid) for pid in servers)
    assert list(tmp_path.iterdir()) == []


def server_of(keeper: int) -> int:
    """The server's pid; 0 between two of them."""
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    return int(children[0]) if children else 0


def is_served(url: str) -> bool:
    try:
        return httpx.get(f"{url}/gradio_api/info", trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_a_backend_that_dies_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gradio.py").write_text("raise ImportError('gradio is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(launcher.DemoBackendFailed, match=r"code 1\n(?s:.*)gradio is broken"):
        launcher.start()


def test_a_backend_that_takes_too_long_is_given_up_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    (tmp_path / "gradio.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(launcher.DemoBackendFailed, match="not ready within 5 s"):
        launcher.start(limit_seconds=5)
    assert not is_running(int(pid_file.read_text()))


def test_the_launcher_imports_neither_gradio_nor_espeak() -> None:
    script = (
        "import sys; from tts_service.demo_backend import launcher;"
        "assert launcher.is_installed();"
        "assert not {'gradio', 'espeakng_loader', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=20)


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    return Espeak()


def seconds(pcm: bytes) -> float:
    return len(pcm) / 2 / RATE


@pytest.mark.parametrize("control", ["\0", "\x01", "\x1b"])
def test_control_characters_are_read_as_spaces(espeak: Espeak, control: str) -> None:
    spoken = espeak.speak(f"Hello{control}20S my dear old friends", CALM)
    expected = espeak.speak("Hello 20S my dear old friends", CALM)
    assert seconds(spoken) == pytest.approx(seconds(expected), rel=0.05)


def test_markup_and_phoneme_brackets_are_read_out_not_obeyed(espeak: Espeak) -> None:
    hello = seconds(espeak.speak("hello", CALM))
    assert seconds(espeak.speak("[[h@l'oU]]", CALM)) > 1.3 * hello
    assert seconds(espeak.speak('<break time="9s"/> hello', CALM)) < 9


def test_a_lone_surrogate_does_not_stop_the_text(espeak: Espeak) -> None:
    assert seconds(espeak.speak("Hello \ud800 my dear old friends", CALM)) > 1


def test_threads_that_share_espeak_take_turns(espeak: Espeak) -> None:
    def long_and_short(number: int) -> float:
        return seconds(espeak.speak("Hello my dear friends. " * (1 + number % 2 * 5), CALM))

    with ThreadPoolExecutor(4) as pool:
        lengths = list(pool.map(long_and_short, range(40)))
    assert lengths[::2] == pytest.approx([lengths[0]] * 20, rel=0.05)
    assert lengths[1::2] == pytest.approx([lengths[1]] * 20, rel=0.05)


@pytest.mark.parametrize("hertz", [80, 120, 200, 300])
def test_a_pulse_train_is_measured_at_its_own_pitch(hertz: int) -> None:
    phase = np.arange(2 * RATE) * hertz / RATE % 1
    buzz = (8000 * (phase - 0.5)).astype(np.int16)
    assert pitch(buzz) == pytest.approx(hertz, rel=0.02)


@pytest.mark.parametrize("amplitude", [0, 8000])
def test_silence_and_noise_have_no_pitch(amplitude: int) -> None:
    noise = np.random.default_rng(1).normal(0, amplitude / 3, 2 * RATE).astype(np.int16)
    assert pitch_of(noise, RATE) is None


@pytest.mark.parametrize("hertz", [None, 110.0, 220.0])
def test_recordings_hardly_ever_share_a_voice(hertz: float | None) -> None:
    digests = [sha256(bytes([number])).digest() for number in range(100)]
    voices = [choose(digest, hertz) for digest in digests]
    assert voices == [choose(digest, hertz) for digest in digests]
    assert len(set(voices)) >= 97
    assert all(20 <= voice.pitch <= 90 and 155 <= voice.rate <= 195 for voice in voices)


def test_only_the_newest_outputs_are_kept(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, kept=3)
    written = [outputs.write(b"\0\0" * 10, RATE) for _ in range(5)]
    assert sorted(tmp_path.iterdir()) == sorted(written[2:])


@pytest.mark.parametrize(
    ("name", "lowest", "highest"), [("default", 70, 130), ("chixiaotu6", 190, 320)]
)
def test_the_prompts_are_clean_recordings(name: str, lowest: int, highest: int) -> None:
    content = (PROMPTS / f"{name}.wav").read_bytes()
    samples = samples_of(content)
    assert 3 <= len(samples) / RATE <= 10
    assert 20 * np.log10(np.abs(samples.astype(int)).max() / 32768) == pytest.approx(-3, abs=0.1)
    assert lowest < pitch(samples) < highest
    assert len(decode(content)) == pytest.approx(len(samples) / RATE * 16000, abs=100)


def test_the_prompts_can_be_made_again_and_are_described(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "make_prompts.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=20, cwd=tmp_path)
    description = (PROMPTS / "README.md").read_text()
    for made in tmp_path.iterdir():
        kept = samples_of((PROMPTS / made.name).read_bytes())
        assert len(samples_of(made.read_bytes())) == pytest.approx(len(kept), rel=0.05)
        assert f"`{made.name}`" in description
    assert len(list(tmp_path.iterdir())) == 2
