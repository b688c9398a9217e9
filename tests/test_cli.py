"""The command line: `flask --app wsgi speech say|read|warm|voices|check`."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import tracemalloc
import wave
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import mutagen
import pytest
from conftest import StartGateway, StartGradioApp
from servers import GradioApp, RedisServer, free_port, wait_until
from servers.sound import tone, write_wav

from config import Config, read_config
from tts_service import create_app
from tts_service.audio import FORMATS, Audio, decode, silence
from tts_service.cli import service as client
from tts_service.cli.commands import Failed
from tts_service.cli.crew import Crew
from tts_service.cli.narration import Narration
from tts_service.cli.service import Refused, Service, Unreachable
from tts_service.cli.takes import Takes
from tts_service.cli.texts import read_text

PROJECT = Path(__file__).parents[1]
FLASK = [sys.executable, "-m", "flask", "--app", "wsgi", "speech"]
LIMIT = 60  # seconds for a command

#: Ten sentences of their own; a character takes 60 ms of sound unless a test says otherwise.
SENTENCES = [f"This is sentence number {number} of the book." for number in range(10)]
BOOK = "\n\n".join([" ".join(SENTENCES[:4]), " ".join(SENTENCES[4:])])
PAUSE = 0.2  # SEGMENT_PAUSE_MS
DURATION = sum(len(text) * 0.06 for text in SENTENCES) + 9 * PAUSE


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is set, whatever the environment and a developer's `.env` say."""
    monkeypatch.chdir(tmp_path)
    for name in (*Config.model_fields, "TTS_URL", "TTS_KEY"):
        monkeypatch.delenv(name, raising=False)


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: bytes
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(prompts: Path) -> Run:
    """`run("say", "Hello.", GRADIO_URL=…)`: a command in this process, and how it ended."""

    def run(*arguments: object, stdin: bytes = b"", **settings: Any) -> Done:
        given = {
            "PROMPTS_DIR": prompts,
            "DEFAULT_PROMPT_AUDIO_PATH": prompts / "default.wav",
            "SELF_TEST": False,
            "GRADIO_CALL_DELAY": 0,
        }
        app = create_app(read_config(**{**given, **settings}))
        told = app.test_cli_runner().invoke(args=["speech", *map(str, arguments)], input=stdin)
        if told.exception is not None and not isinstance(told.exception, SystemExit):
            raise told.exception
        return Done(told.exit_code, told.stdout_bytes, told.stderr)

    return run


class Command:
    """`flask --app wsgi speech …` as a process, with its output in files."""

    def __init__(self, folder: Path, *arguments: object, **settings: object) -> None:
        self._error = folder / "stderr"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "LANG") or name.startswith("COVERAGE_")
        }
        given = {
            "HOME": folder,
            "PROMPTS_DIR": folder / "prompts",
            "DEFAULT_PROMPT_AUDIO_PATH": folder / "prompts" / "default.wav",
        }
        with self._error.open("ab") as error:
            self.process = subprocess.Popen(
                [*FLASK, *map(str, arguments)],
                cwd=PROJECT,
                env={**inherited, **{k: str(v) for k, v in {**given, **settings}.items()}},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=error,
                start_new_session=True,
            )

    def wait(self) -> int:
        try:
            return self.process.wait(LIMIT)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()

    @property
    def error(self) -> str:
        return self._error.read_text(errors="replace")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    return path


def seconds_of(path: Path) -> float:
    return decode(path.read_bytes()).seconds


def texts_of(backend: GradioApp, outcome: str = "answered") -> Counter[str]:
    """What the backend was asked, and how often."""
    return Counter(call["text"] for call in backend.calls if call["outcome"] == outcome)


# say


@pytest.mark.parametrize(
    ("name", "form"), [("a.mp3", "mp3"), ("a.ogg", "opus"), ("a.OPUS", "opus"), ("a.wav", "wav")]
)
def test_say_writes_the_format_that_the_files_ending_says(
    run: Run, backend: GradioApp, tmp_path: Path, name: str, form: str
) -> None:
    done = run("say", "Hello, world.", "-o", tmp_path / name, GRADIO_URL=backend.url)
    assert done == Done(0, b"", "")
    data = (tmp_path / name).read_bytes()
    magic = {"mp3": b"\xff\xf3", "opus": b"OggS", "wav": b"RIFF"}[form]
    assert data.startswith(magic)
    assert decode(data).seconds == pytest.approx(len("Hello, world.") * 0.06, abs=0.06)
    assert [call["text"] for call in backend.calls] == ["Hello, world."]


@pytest.mark.parametrize("arguments", [(), ("-",), ("-", "-o", "-")])
def test_say_speaks_standard_input_to_standard_output(
    run: Run, backend: GradioApp, arguments: Sequence[str]
) -> None:
    done = run(
        "say",
        *arguments,
        "-f",
        "pcm",
        stdin="你好，世界。".encode("gb18030"),
        GRADIO_URL=backend.url,
    )
    assert done.code == 0
    assert len(done.out) == round(6 * 0.06 * 24_000) * 2
    assert [call["text"] for call in backend.calls] == ["你好，世界。"]


def test_say_takes_the_default_format_on_standard_output(run: Run, backend: GradioApp) -> None:
    done = run("say", "Hello.", GRADIO_URL=backend.url, DEFAULT_RESPONSE_FORMAT="flac")
    assert done.out.startswith(b"fLaC")


def test_say_passes_voice_speed_and_the_backends_parameters_on(
    run: Run, shared_app: StartGradioApp, prompts: Path, tmp_path: Path
) -> None:
    app = shared_app("indextts-1.5")
    write_wav(prompts / "alice.wav", tone(440, 3))
    out = tmp_path / "a.wav"
    options = ("-v", "alice", "-s", "2", "-p", "top_p=0.5", "-p", "infer_mode=批次推理")
    assert run("say", "Hello, world.", "-o", out, *options, GRADIO_URL=app.url).code == 0
    (call,) = app.calls
    assert call["arguments"]["prompt"]["seconds"] == pytest.approx(3)
    assert call["arguments"]["infer_mode"] == "批次推理"
    assert 0.5 in call["arguments"].values()
    assert seconds_of(out) == pytest.approx(len("Hello, world.") * 0.06 / 2, abs=0.01)


def test_what_fails_is_told_in_one_line_and_leaves_no_file(
    run: Run, backend: GradioApp, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp3"
    done = run("say", "Hello.", "-v", "bob", "-o", out, GRADIO_URL=backend.url)
    assert done.code == 1
    assert done.err == "Error: Unknown voice 'bob'. Known voices: chixiaotu6, default.\n"
    assert not [*tmp_path.glob("out*")]


def test_a_file_that_cannot_be_written_is_told_in_one_line(run: Run, backend: GradioApp) -> None:
    done = run("say", "Hello.", "-o", "no/such/folder.mp3", GRADIO_URL=backend.url)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "folder.mp3" in done.err


def test_a_device_is_written_to_and_not_replaced(run: Run, backend: GradioApp) -> None:
    done = run("say", "Hello.", "-o", "/dev/null", "-f", "mp3", GRADIO_URL=backend.url)
    assert done.code == 0
    assert Path("/dev/null").is_char_device()


def test_a_backend_that_is_away_is_a_failure(run: Run, tmp_path: Path) -> None:
    done = run(
        *("say", "Hello.", "-o", tmp_path / "a.wav"),
        GRADIO_URL=f"http://127.0.0.1:{free_port()}",
        GRADIO_CONNECT_ATTEMPTS=1,
    )
    assert done.code == 1
    assert "No backend answers" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("say", "Hello.", "-o", "hello.doc"),
        ("say", "Hello.", "-o", "a.mp3", "-f", "m4a"),
        ("say", "Hello.", "-o", "a.mp3", "-s", "9"),
        ("say", "Hello.", "-o", "a.mp3", "-p", "top_p"),
        ("say", "Hello.", "-o", "a.mp3", "-p", "input=Bye."),
        ("say", "Hello.", "-o", "a.mp3", "--key", "sk-1"),
        ("say", "Hello.", "-o", "a.mp3", "--url", "127.0.0.1:8000"),
        ("read", "no such book.txt", "-o", "a.mp3"),
        ("read", "-"),
        ("warm", "-"),
        ("sing",),
    ],
)
def test_wrong_usage_has_exit_code_2_and_costs_nothing(
    run: Run, backend: GradioApp, arguments: Sequence[str]
) -> None:
    done = run(*arguments, stdin=b"Hello.", GRADIO_URL=backend.url)
    assert done.code == 2
    assert "Usage:" in done.err
    assert not done.out
    assert not backend.calls


def test_say_asks_a_running_service_with_a_key(
    run: Run,
    gateway: StartGateway,
    backend: GradioApp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = gateway(GRADIO_URL=backend.url, API_KEYS="sk-1")
    out = tmp_path / "a.mp3"
    refused = run("say", "Hello.", "-o", out, "--url", service.url)
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "API key" in refused.err
    done = run("say", "Hello.", "-o", out, "--url", f"{service.url}/v1/", "--key", "sk-1")
    assert done == Done(0, b"", "")
    assert seconds_of(out) == pytest.approx(0.36, abs=0.06)
    monkeypatch.setenv("TTS_URL", service.url)
    monkeypatch.setenv("TTS_KEY", "sk-1")
    assert run("say", "Hello.").out.startswith(b"RIFF")


def test_in_this_process_neither_keys_nor_limits_stand_in_the_way(
    run: Run, backend: GradioApp
) -> None:
    done = run("say", "Hello.", GRADIO_URL=backend.url, API_KEYS="sk-1")
    assert done.code == 0


def test_a_service_that_is_not_there_fails_at_once(run: Run) -> None:
    done = run("say", "Hello.", "--url", f"http://127.0.0.1:{free_port()}")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "does not answer" in done.err


def test_a_full_queue_is_asked_again_when_it_says_so(
    gateway: StartGateway, gradio_app: StartGradioApp
) -> None:
    backend = gradio_app(hold=True)
    service = gateway(GRADIO_URL=backend.url, MAX_PENDING=1)
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=service.url, timeout=60) as http:
        first = pool.submit(service.post, {"input": "First."})
        wait_until(lambda: backend.state()["held"], LIMIT)
        second = pool.submit(Service(http).speak, {"input": "Second."})
        wait_until(lambda: "status=503" in service.log, LIMIT)
        backend.control(hold=False)
        assert decode(second.result().body).seconds == pytest.approx(len("Second.") * 0.06)
        assert first.result().status_code == 200
    assert texts_of(backend) == {"First.": 1, "Second.": 1}


def test_a_wav_that_came_as_a_stream_tells_its_length_in_the_end(
    run: Run, gateway: StartGateway, backend: GradioApp, tmp_path: Path
) -> None:
    service = gateway(GRADIO_URL=backend.url, STREAM_AFTER=0.1)
    backend.control(synth_ms=300)
    out = tmp_path / "a.wav"
    assert run("say", "First one. Second one.", "-o", out, "--url", service.url).code == 0
    with wave.open(str(out)) as told:
        assert told.getnframes() / told.getframerate() == pytest.approx(1.46, abs=0.01)


class Answers:
    """A service that gives one answer after the other: a status and headers, or no answer."""

    def __init__(self, *answers: tuple[int, dict[str, str]] | None) -> None:
        self._answers = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self._answers.pop(0)
        if answer is None:
            raise httpx.ConnectError("refused", request=request)
        status, headers = answer
        return httpx.Response(status, headers=headers, content=b"sound")

    def service(self) -> Service:
        return Service(httpx.Client(transport=httpx.MockTransport(self), base_url="http://tts"))

    @property
    def left(self) -> int:
        return len(self._answers)


OK: tuple[int, dict[str, str]] = (200, {"X-Cache": "HIT"})


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "DELAYS", (0.01,) * 3)


@pytest.mark.usefixtures("_impatient")
def test_too_many_requests_are_asked_again_a_bounded_number_of_times() -> None:
    later = (429, {"Retry-After": "0.1"})
    answers = Answers(later, later, OK)
    assert answers.service().speak({"input": "Hello."}) == (b"sound", "HIT")
    answers = Answers(*[later] * 9)
    with pytest.raises(Refused) as refused:
        answers.service().speak({"input": "Hello."})
    assert (refused.value.status, answers.left) == (429, 5)


@pytest.mark.usefixtures("_impatient")
def test_a_service_that_has_spoken_is_waited_for_when_it_is_away() -> None:
    answers = Answers(None, OK)
    with pytest.raises(Unreachable):
        answers.service().speak({"input": "Hello."})
    assert answers.left == 1
    answers = Answers(OK, None, (503, {}), OK)
    service = answers.service()
    assert [service.speak({"input": "Hello."}).body for _ in range(2)] == [b"sound"] * 2


def test_whoever_gave_up_waits_for_no_further_try() -> None:
    answers = Answers((429, {"Retry-After": "60"}), OK)
    service = answers.service()
    service.give_up()
    with pytest.raises(Refused):
        service.speak({"input": "Hello."})
    assert answers.left == 1


def test_an_answer_that_breaks_off_is_no_success(
    run: Run, gradio_app: StartGradioApp, tmp_path: Path, gateway: StartGateway
) -> None:
    backend = gradio_app(fail_first=0)
    service = gateway(GRADIO_URL=backend.url, GRADIO_CALL_ATTEMPTS=1)
    backend.control(hold=True)
    out = tmp_path / "a.wav"
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run, "say", "First one. Second one.", "--url", service.url, "-f", "wav")
        wait_until(lambda: backend.state()["held"], LIMIT)
        backend.control(release=1)
        wait_until(lambda: backend.state()["count"] == 2 and backend.state()["held"], LIMIT)
        backend.control(hold=False, fail="error")
        assert done.result().code == 1
        assert "broke off" in done.result().err
    assert not out.exists()


def test_a_reader_that_has_read_enough_ends_say_quietly(
    backend: GradioApp, tmp_path: Path, prompts: Path
) -> None:
    backend.control(ms_audio_per_char=2000)
    command = Command(tmp_path, "say", BOOK, "-f", "wav", GRADIO_URL=backend.url)
    assert command.process.stdout is not None
    assert command.process.stdout.read(4) == b"RIFF"
    command.process.stdout.close()
    assert command.process.wait(LIMIT) == 1
    assert command.error == ""


# read


@pytest.mark.parametrize("name", FORMATS)
def test_a_book_lasts_equally_long_in_every_format(
    run: Run, backend: GradioApp, book: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / f"book.{name}"
    done = run("read", book, "-o", out, GRADIO_URL=backend.url, MAX_INPUT_CHARS=60)
    assert done.code == 0, done.err
    assert len(BOOK) > 60
    if name == "pcm":
        assert out.stat().st_size / 48_000 == pytest.approx(DURATION, abs=0.01)
    else:
        assert seconds_of(out) == pytest.approx(DURATION, abs=0.1 if name == "aac" else 0.06)
    assert texts_of(backend) == dict.fromkeys(SENTENCES, 1)
    left = {path.name for path in tmp_path.iterdir()} - {"prompts", "book.txt"}
    assert left == {out.name, "book.srt", "book.vtt"}
    assert "10 sentences" in done.err


@pytest.mark.parametrize("name", ["wav", "flac"])
def test_the_header_of_a_book_tells_its_length(
    run: Run, backend: GradioApp, book: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / f"book.{name}"
    assert run("read", book, "-o", out, GRADIO_URL=backend.url).code == 0
    assert mutagen.File(out).info.length == pytest.approx(DURATION, abs=0.001)


def test_speed_makes_a_book_shorter_and_its_subtitles_with_it(
    run: Run, backend: GradioApp, book: Path, tmp_path: Path
) -> None:
    out = tmp_path / "book.wav"
    assert run("read", book, "-o", out, "-s", "2", GRADIO_URL=backend.url).code == 0
    starts, ends = subtitle_times(out.with_suffix(".srt"))
    assert seconds_of(out) == pytest.approx(ends[-1], abs=0.01)
    spoken = [end - start for start, end in zip(starts, ends, strict=True)]
    assert spoken == pytest.approx([len(text) * 0.03 for text in SENTENCES], abs=0.01)
    pauses = [start - end for start, end in zip(starts[1:], ends, strict=False)]
    assert pauses == pytest.approx([PAUSE] * 9, abs=0.002)


def subtitle_times(path: Path) -> tuple[list[float], list[float]]:
    """Starts and ends, in seconds, from either kind of file."""
    times = re.findall(r"(\d+):(\d+):(\d+)[.,](\d+)", path.read_text())
    seconds = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in times]
    return seconds[::2], seconds[1::2]


def test_both_kinds_of_subtitles_have_every_sentence_when_it_is_heard(
    run: Run, backend: GradioApp, book: Path, tmp_path: Path
) -> None:
    assert run("read", book, "-o", tmp_path / "b.mp3", GRADIO_URL=backend.url).code == 0
    srt, vtt = tmp_path / "b.srt", tmp_path / "b.vtt"
    assert vtt.read_text().startswith("WEBVTT\n\n1\n")
    for path in (srt, vtt):
        assert [line for line in path.read_text().splitlines() if "sentence" in line] == SENTENCES
    assert subtitle_times(srt) == subtitle_times(vtt)
    starts, _ = subtitle_times(srt)
    due = [sum(len(text) * 0.06 + PAUSE for text in SENTENCES[:i]) for i in range(10)]
    delay = FORMATS["mp3"].delay(24_000)
    assert starts == pytest.approx([delay + each for each in due], abs=0.01)


def test_subtitles_can_be_left_out(
    run: Run, backend: GradioApp, book: Path, tmp_path: Path
) -> None:
    arguments = ("read", book, "-o", tmp_path / "b.mp3", "--no-subtitles")
    assert run(*arguments, GRADIO_URL=backend.url).code == 0
    assert not [*tmp_path.glob("b.srt"), *tmp_path.glob("b.vtt")]


def test_a_book_goes_from_standard_input_to_standard_output(
    run: Run, backend: GradioApp, tmp_path: Path
) -> None:
    done = run("read", "-", "-o", "-", "-f", "pcm", stdin=BOOK.encode(), GRADIO_URL=backend.url)
    assert done.code == 0
    assert len(done.out) / 48_000 == pytest.approx(DURATION, abs=0.01)
    assert {path.name for path in tmp_path.iterdir()} == {"prompts"}


def test_long_sentences_of_a_book_are_spoken_in_one_go(
    run: Run, backend: GradioApp, tmp_path: Path
) -> None:
    sentence = (
        "天刚亮的时候，他就出门了，路上一个人也没有，只有远处传来的几声鸡叫，还有河边坐着的老人。"
    )
    (tmp_path / "b.txt").write_text(sentence * 2)
    arguments = ("read", tmp_path / "b.txt", "-o", tmp_path / "b.mp3")
    assert run(*arguments, GRADIO_URL=backend.url).code == 0
    assert texts_of(backend) == {sentence: 1}
    assert run("say", sentence, GRADIO_URL=backend.url).code == 0  # begins early
    assert len(texts_of(backend)) == 3


def test_backends_are_all_kept_busy(
    run: Run, gradio_app: StartGradioApp, book: Path, tmp_path: Path
) -> None:
    backend = gradio_app(concurrency=3, hold=True)
    with ThreadPoolExecutor(1) as pool:
        arguments = ("read", book, "-o", tmp_path / "b.mp3")
        done = pool.submit(run, *arguments, GRADIO_URL=backend.url, GRADIO_CONCURRENCY=3)
        wait_until(lambda: backend.state()["active"] == 3, LIMIT)
        backend.control(hold=False)
        assert done.result().code == 0


@pytest.mark.parametrize("ending", ["mp3", "srt", "vtt"])
def test_a_file_that_is_there_is_not_replaced_unless_told(
    run: Run, backend: GradioApp, book: Path, tmp_path: Path, ending: str
) -> None:
    out, there = tmp_path / "b.mp3", tmp_path / f"b.{ending}"
    there.write_bytes(b"precious")
    assert run("read", book, "-o", out, GRADIO_URL=backend.url).code == 2
    assert (there.read_bytes(), backend.calls) == (b"precious", [])
    assert run("read", book, "-o", out, "--force", GRADIO_URL=backend.url).code == 0
    assert b"precious" not in there.read_bytes()
    assert seconds_of(out) == pytest.approx(DURATION, abs=0.06)


def test_a_text_with_nothing_to_say_is_a_failure(
    run: Run, backend: GradioApp, tmp_path: Path
) -> None:
    done = run("read", "-", "-o", tmp_path / "b.mp3", stdin=b"* * *\n", GRADIO_URL=backend.url)
    assert (done.code, done.err) == (1, "Error: There is nothing to read in this text.\n")


def test_what_failed_is_tried_again_by_the_same_command_and_nothing_else(
    run: Run, gradio_app: StartGradioApp, book: Path, tmp_path: Path
) -> None:
    backend = gradio_app(fail_first=1)
    arguments = ("read", book, "-o", tmp_path / "b.mp3", "-j", 1)
    settings = {"GRADIO_URL": backend.url, "GRADIO_CALL_ATTEMPTS": 1}
    done = run(*arguments, **settings)
    assert done.code == 1
    assert "1 sentences failed" in done.err
    assert "number 0" in done.err
    assert not (tmp_path / "b.mp3").exists()
    done = run(*arguments, **settings)
    assert (done.code, "1 spoken now" in done.err) == (0, True)
    assert texts_of(backend) == dict.fromkeys(SENTENCES, 1)
    assert texts_of(backend, "failed") == {SENTENCES[0]: 1}
    assert seconds_of(tmp_path / "b.mp3") == pytest.approx(DURATION, abs=0.06)


def test_a_backend_that_only_fails_ends_the_reading(
    run: Run, backend: GradioApp, book: Path, tmp_path: Path
) -> None:
    backend.control(fail="error")
    arguments = ("read", book, "-o", tmp_path / "b.mp3", "-j", 1)
    done = run(*arguments, GRADIO_URL=backend.url, GRADIO_CALL_ATTEMPTS=1)
    assert done.code == 1
    assert "backend failed" in done.err
    assert 3 <= len(backend.calls) < 9


# read, stopped and gone on with


class Stopping:
    """A `read` in a process of its own, of a backend that speaks only what it is released for."""

    def __init__(self, folder: Path, backend: GradioApp, *arguments: object, **settings: object):
        self.backend = backend
        self.out = folder / "b.mp3"
        self.takes = folder / "b.mp3.takes"
        backend.control(hold=True)
        book = folder / "book.txt"
        self.command = Command(folder, "read", book, "-o", self.out, *arguments, **settings)

    def speak(self, count: int) -> None:
        """Until so many sentences are among the takes, and others wait at the backend."""
        self.backend.control(release=count)
        wait_until(lambda: self.takes_there() == count, LIMIT)
        wait_until(lambda: self.backend.state()["held"], LIMIT)

    def takes_there(self) -> int:
        return self.takes.read_bytes().count(b'{"text":') if self.takes.exists() else 0

    def send(self, sig: signal.Signals) -> int:
        self.command.process.send_signal(sig)
        return self.command.wait()


@pytest.mark.parametrize("jobs", [1, 3])
def test_ctrl_c_keeps_what_is_under_way_and_no_sentence_is_spoken_twice(
    run: Run, backend: GradioApp, prompts: Path, book: Path, tmp_path: Path, jobs: int
) -> None:
    stopping = Stopping(tmp_path, backend, "-j", jobs, GRADIO_URL=backend.url)
    stopping.speak(3)
    stopping.command.process.send_signal(signal.SIGINT)
    wait_until(lambda: "Stopping when" in stopping.command.error, LIMIT)
    backend.control(hold=False)
    assert stopping.command.wait() == 130
    told = re.search(r"Stopped: (\d+) of 10 sentences are in b.mp3.takes", stopping.command.error)
    assert told is not None, stopping.command.error
    assert 3 < int(told[1]) <= 3 + jobs
    assert texts_of(backend).total() == int(told[1])
    assert "Traceback" not in stopping.command.error
    assert not [*tmp_path.glob("b.mp3"), *tmp_path.glob("b.mp3.part")]
    assert run("read", book, "-o", stopping.out, GRADIO_URL=backend.url).code == 0
    assert texts_of(backend) == dict.fromkeys(SENTENCES, 1)
    assert seconds_of(stopping.out) == pytest.approx(DURATION, abs=0.06)
    assert not stopping.takes.exists()


def test_a_second_ctrl_c_stops_at_once(
    run: Run, gradio_app: StartGradioApp, prompts: Path, book: Path, tmp_path: Path
) -> None:
    # Another backend goes on: the first may still have calls of the ended process in its queue.
    backend, another = gradio_app(), gradio_app()
    stopping = Stopping(tmp_path, backend, GRADIO_URL=backend.url)
    stopping.speak(2)
    stopping.command.process.send_signal(signal.SIGINT)
    wait_until(lambda: "Stopping when" in stopping.command.error, LIMIT)
    assert stopping.send(signal.SIGINT) == 130
    assert "Stopped: 2 of 10" in stopping.command.error
    assert run("read", book, "-o", stopping.out, GRADIO_URL=another.url).code == 0
    assert texts_of(another) == dict.fromkeys(SENTENCES[2:], 1)
    assert seconds_of(stopping.out) == pytest.approx(DURATION, abs=0.06)


def test_what_was_spoken_outlives_a_kill(
    run: Run, gradio_app: StartGradioApp, prompts: Path, book: Path, tmp_path: Path
) -> None:
    # Another backend goes on: the first may still have calls of the killed process in its queue.
    backend, another = gradio_app(), gradio_app()
    stopping = Stopping(tmp_path, backend, GRADIO_URL=backend.url)
    stopping.speak(4)
    assert stopping.send(signal.SIGKILL) == -signal.SIGKILL
    assert run("read", book, "-o", stopping.out, GRADIO_URL=another.url).code == 0
    assert texts_of(another) == dict.fromkeys(SENTENCES[4:], 1)
    assert seconds_of(stopping.out) == pytest.approx(DURATION, abs=0.06)


def test_a_killed_reading_of_a_running_service_costs_no_call_twice(
    run: Run, backend: GradioApp, gateway: StartGateway, book: Path, tmp_path: Path
) -> None:
    service = gateway(GRADIO_URL=backend.url)
    stopping = Stopping(tmp_path, backend, "--url", service.url)
    stopping.speak(4)
    assert stopping.send(signal.SIGKILL) == -signal.SIGKILL
    backend.control(hold=False)
    wait_until(lambda: not service.health()["backends"][0]["under_way"], LIMIT)
    done = run("read", book, "-o", stopping.out, "--url", service.url)
    assert done.code == 0, done.err
    assert texts_of(backend) == dict.fromkeys(SENTENCES, 1)
    assert seconds_of(stopping.out) == pytest.approx(DURATION, abs=0.06)


def test_a_service_that_restarts_is_waited_for(
    backend: GradioApp, gateway: StartGateway, book: Path, tmp_path: Path
) -> None:
    service = gateway(GRADIO_URL=backend.url)
    stopping = Stopping(tmp_path, backend, "--url", service.url)
    stopping.speak(2)
    service.stop(signal.SIGKILL)
    backend.control(hold=False)
    service.launch()
    service.wait_ready()
    assert stopping.command.wait() == 0, stopping.command.error
    assert seconds_of(stopping.out) == pytest.approx(DURATION, abs=0.06)


def test_a_book_that_went_on_is_the_same_as_one_that_was_read_in_one_go(
    run: Run, gradio_app: StartGradioApp, book: Path, tmp_path: Path
) -> None:
    backend = gradio_app(fail_first=1)
    settings = {"GRADIO_URL": backend.url, "GRADIO_CALL_ATTEMPTS": 1}
    twice, once = tmp_path / "twice.mp3", tmp_path / "once.mp3"
    assert run("read", book, "-o", twice, **settings).code == 1
    assert run("read", book, "-o", twice, **settings).code == 0
    assert run("read", book, "-o", once, **settings).code == 0
    assert twice.read_bytes() == once.read_bytes()
    assert twice.with_suffix(".srt").read_text() == once.with_suffix(".srt").read_text()


def test_an_edited_book_costs_only_what_is_new_in_it(
    run: Run, gradio_app: StartGradioApp, book: Path, tmp_path: Path
) -> None:
    backend = gradio_app(fail_first=1)
    arguments = ("read", book, "-o", tmp_path / "b.mp3", "-j", 1)
    settings = {"GRADIO_URL": backend.url, "GRADIO_CALL_ATTEMPTS": 1}
    assert run(*arguments, **settings).code == 1
    book.write_text("A new beginning. " + BOOK.removeprefix(SENTENCES[0]))
    assert run(*arguments, "-s", "1.5", **settings).code == 0
    assert texts_of(backend) == dict.fromkeys([*SENTENCES[1:], "A new beginning."], 1)


def test_a_book_is_not_gone_on_with_by_another_voice(
    run: Run, gradio_app: StartGradioApp, book: Path, tmp_path: Path
) -> None:
    backend = gradio_app(fail_first=1)
    arguments = ("read", book, "-o", tmp_path / "b.mp3", "-v", "default")
    settings = {"GRADIO_URL": backend.url, "GRADIO_CALL_ATTEMPTS": 1}
    assert run(*arguments, **settings).code == 1
    other = (*arguments[:-1], "chixiaotu6")
    done = run(*other, **settings)
    assert done.code == 1
    assert 'voice "default", not "chixiaotu6"' in done.err
    assert "--restart" in done.err
    assert len(backend.calls) == 10
    assert run(*other, "--restart", **settings).code == 0
    assert len(backend.calls) == 20


def test_two_at_once_do_not_write_one_book(
    run: Run, backend: GradioApp, prompts: Path, book: Path, tmp_path: Path
) -> None:
    stopping = Stopping(tmp_path, backend, GRADIO_URL=backend.url)
    stopping.speak(1)
    done = run("read", book, "-o", stopping.out, GRADIO_URL=backend.url)
    assert (done.code, done.err) == (1, "Error: Another process is working on b.mp3.takes.\n")
    backend.control(hold=False)
    assert stopping.command.wait() == 0
    assert texts_of(backend) == dict.fromkeys(SENTENCES, 1)


def test_a_terminal_sees_a_bar_with_the_time_left_and_nobody_else(
    run: Run, backend: GradioApp, prompts: Path, book: Path, tmp_path: Path
) -> None:
    master, terminal = pty.openpty()
    arguments = ("read", book, "-o", tmp_path / "b.mp3")
    settings = {"PROMPTS_DIR": prompts, "DEFAULT_PROMPT_AUDIO_PATH": prompts / "default.wav"}
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "GRADIO_URL": backend.url}
    reading = subprocess.Popen(
        [*FLASK, *map(str, arguments)],
        cwd=PROJECT,
        env={**environment, **{name: str(value) for name, value in settings.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # the terminal's other end is closed
        while piece := os.read(master, 4096):
            shown += piece
    os.close(master)
    assert reading.wait(LIMIT) == 0
    assert re.search(rb"\d+%.*\d:\d\d left", shown)
    assert b"100%" in shown
    assert (
        b"%" not in run("read", book, "-o", "-", "-f", "pcm", GRADIO_URL=backend.url).err.encode()
    )


# read: the parts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "gbk", "utf-32"])
def test_a_text_is_read_in_the_encodings_that_books_come_in(encoding: str) -> None:
    text = "第一章　他说：“你好。”\r\nChapter one."
    assert read_text(text.encode(encoding), "book.txt") == text


def test_an_encoding_can_be_named() -> None:
    assert read_text("第一章".encode("big5"), "book.txt", "big5") == "第一章"
    assert read_text("Hi".encode("utf-16-le"), "book.txt", "utf-16-le") == "Hi"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"\xff\x00\x80\x81", None),
        ("Hello".encode("utf-16-le"), None),
        (b"\xff\xfe\x00\xd8", None),
        ("第一章".encode("gbk"), "utf-8"),
        (b"Hello", "utf-99"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, encoding: str | None) -> None:
    with pytest.raises(Failed):
        read_text(data, "book.txt", encoding)


TERMS = {"voice": "alice"}
TAKES = {f"text {number}": Audio(24_000, bytes([number, 0]) * 50) for number in range(3)}


def test_takes_cut_anywhere_keep_those_that_are_whole_and_take_more(tmp_path: Path) -> None:
    path = tmp_path / "b.takes"
    takes = Takes.at(path, TERMS)
    ends = [path.stat().st_size]
    for text, audio in TAKES.items():
        takes.add(text, audio)
        ends.append(path.stat().st_size)
    takes.close()
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        takes = Takes.at(path, TERMS)
        there = [text for text in TAKES if text in takes]
        assert len(there) == max(0, sum(end <= size for end in ends) - 1)
        takes.add("another", TAKES["text 0"])
        there.append("another")
        takes.close()
        takes = Takes.at(path, TERMS)
        assert all(takes.get(text) == TAKES.get(text, TAKES["text 0"]) for text in there)
        takes.close()


def test_takes_whose_end_is_nonsense_keep_what_is_before_it(tmp_path: Path) -> None:
    path = tmp_path / "b.takes"
    takes = Takes.at(path, TERMS)
    takes.add("text 1", TAKES["text 1"])
    takes.close()
    with path.open("ab") as file:
        file.write(bytes(5000))
    takes = Takes.at(path, TERMS)
    assert takes.get("text 1") == TAKES["text 1"]
    takes.close()


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "b.takes"
    path.write_bytes(b"my notes\n")
    with pytest.raises(Failed, match="move it away"):
        Takes.at(path, TERMS)
    assert path.read_bytes() == b"my notes\n"


def test_memory_does_not_grow_with_the_book(tmp_path: Path) -> None:
    takes = Takes.at(tmp_path / "b.takes", TERMS)
    takes.add("sentence", silence(24_000, 10))
    texts = ["sentence"] * 1000  # 2 h 50 min, 490 MB
    with Path("/dev/null").open("wb") as nowhere:
        narration = Narration(texts, takes, nowhere, form=FORMATS["wav"], speed=1, pause=0.2)
        tracemalloc.start()
        while not narration.is_complete:
            narration.go_on()
        narration.finish()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    takes.close()
    assert narration.seconds == pytest.approx(1000 * 10.2 - 0.2)
    assert peak < 10_000_000


def test_a_crew_does_each_job_once_and_no_more_after_a_stop() -> None:
    crew = Crew(lambda job: job * 2, range(1, 101), 4)
    outcomes = []
    while (outcome := crew.next()) is not None:
        outcomes.append((outcome.job, outcome.result))
    assert sorted(outcomes) == [(job, job * 2) for job in range(1, 101)]
    assert crew.is_done
    begun: list[int] = []
    endless = Crew(begun.append, iter(int, 1), 2)
    assert endless.next() is not None
    endless.stop()
    while endless.next() is not None:
        pass
    assert len(begun) <= 8


# warm


def test_warm_fills_the_cache_of_a_running_service(
    run: Run, gateway: StartGateway, backend: GradioApp, tmp_path: Path
) -> None:
    service = gateway(GRADIO_URL=backend.url)
    phrases = tmp_path / "phrases.txt"
    phrases.write_bytes("您好。\r\n\r\nGood morning.\n您好。\n".encode("utf-16"))
    done = run("warm", phrases, "-f", "mp3", "-v", "default", "--url", service.url)
    assert (done.code, done.out) == (0, b"")
    assert done.err.startswith("2 phrases: 2 spoken, 0 there before, 0 failed; ")
    asked = {"input": "您好。", "voice": "default", "response_format": "mp3"}
    assert service.post(asked).headers["X-Cache"] == "HIT"
    again = run("warm", phrases, "-f", "mp3", "-v", "default", "--url", service.url)
    assert again.err.startswith("2 phrases: 0 spoken, 2 there before, 0 failed; ")
    assert len(backend.calls) == 2


def test_warm_lists_what_failed_and_stops_where_every_phrase_would_fail(
    run: Run, gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url, MAX_INPUT_CHARS=20)
    phrases = f"First.\n{'x' * 21}\nSecond.\n".encode()
    done = run("warm", "-", "--url", service.url, stdin=phrases)
    assert done.code == 1
    failed, total = done.err.splitlines()
    assert failed.startswith(f"line 2, '{'x' * 21}': 'input' has 21 characters")
    assert total.startswith("3 phrases: 2 spoken, 0 there before, 1 failed; ")
    phrases = "".join(f"Phrase {number}.\n" for number in range(50)).encode()
    done = run("warm", "-", "-v", "bob", "-j", 1, "--url", service.url, stdin=phrases)
    assert done.code == 1
    assert "Unknown voice 'bob'" in done.err
    assert service.log.count("POST") < 10


def test_warm_stops_where_no_backend_answers(run: Run, redis_server: RedisServer) -> None:
    settings = {"REDIS_URL": redis_server.url, "GRADIO_URL": f"http://127.0.0.1:{free_port()}"}
    phrases = "".join(f"Phrase {number}.\n" for number in range(50)).encode()
    done = run("warm", "-", "-j", 1, stdin=phrases, GRADIO_CONNECT_ATTEMPTS=1, **settings)
    assert done.code == 1
    assert done.err.count("No backend answers") == 2  # of the first phrase, and at the end


def test_warm_keeps_all_slots_busy(
    run: Run, gateway: StartGateway, gradio_app: StartGradioApp
) -> None:
    backend = gradio_app(concurrency=3, hold=True)
    service = gateway(GRADIO_URL=backend.url, GRADIO_CONCURRENCY=3)
    phrases = "".join(f"Phrase {number}.\n" for number in range(9)).encode()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run, "warm", "-", "--url", service.url, stdin=phrases)
        wait_until(lambda: backend.state()["active"] == 3, LIMIT)
        backend.control(hold=False)
        assert done.result().code == 0
    assert len({call["text"] for call in backend.calls}) == 9


def test_warm_in_this_process_fills_redis(
    run: Run, gateway: StartGateway, backend: GradioApp, redis_server: RedisServer
) -> None:
    settings = {"GRADIO_URL": backend.url, "REDIS_URL": redis_server.url}
    assert run("warm", "-", stdin=b"Hello.\n", **settings).code == 0
    answer = gateway(**settings).post({"input": "Hello."})
    assert answer.headers["X-Cache"] == "HIT"
    assert len(backend.calls) == 1


# voices


def test_voices_lists_them_for_people_and_for_programs(
    run: Run, gateway: StartGateway, prompts: Path
) -> None:
    (prompts / "default.wav").rename(prompts / "朗读者.wav")
    assert [line.split()[0] for line in run("voices").out.decode().splitlines()] == [
        *("VOICE", "chixiaotu6", "朗读者")
    ]
    told = json.loads(run("voices", "--json").out)
    assert [voice["id"] for voice in told] == ["chixiaotu6", "朗读者"]
    service = gateway(GRADIO_URL=f"http://127.0.0.1:{free_port()}")
    assert json.loads(run("voices", "--json", "--url", service.url).out) == told


# check


def findings(done: Done) -> dict[str, str]:
    """The state of each subject."""
    lines = [line for line in done.out.decode().splitlines() if ": " in line]
    return {line[6:].partition(": ")[0]: line[:6].strip() for line in lines}


def test_check_finds_everything_in_order(
    run: Run, backend: GradioApp, redis_server: RedisServer
) -> None:
    port = free_port()
    done = run(
        "check", GRADIO_URL=backend.url, REDIS_URL=redis_server.url, HOST="127.0.0.1", PORT=port
    )
    assert done.code == 0, done
    found = findings(done)
    assert set(found.values()) == {"ok"}
    assert found.keys() >= {
        *("settings", "PROMPTS_DIR", "voice default", "voice chixiaotu6"),
        *("DEFAULT_PROMPT_AUDIO_PATH", f"backend {backend.url}", f"port {port}"),
        f"redis {redis_server.url}",
    }
    assert [call["text"] for call in backend.calls] == ["您好。"]
    assert not redis_server.client.keys()


def test_check_names_what_is_wrong_and_exits_with_1(
    run: Run, gradio_app: StartGradioApp, backend: GradioApp, prompts: Path
) -> None:
    failing, away = gradio_app(fail="error"), f"http://127.0.0.1:{free_port()}"
    stranger = gradio_app("indextts-1.5")
    redis = f"redis://:secret@127.0.0.1:{free_port()}/0"
    (prompts / "broken.wav").write_bytes(b"<html>")
    write_wav(prompts / "silent.wav", tone(0, 3))
    write_wav(prompts / "short.wav", tone(300, 0.4))
    default = prompts / "missing.wav"
    Path(".env").write_text("GRADOI_URL=http://tts\nTTS_URL=http://elsewhere\n")
    urls = ",".join([backend.url, failing.url, away, stranger.url])
    done = run("check", GRADIO_URL=urls, REDIS_URL=redis, DEFAULT_PROMPT_AUDIO_PATH=default)
    found = findings(done)
    assert {subject for subject, state in found.items() if state == "wrong"} == {
        *("GRADOI_URL", "voice broken", "voice silent", "DEFAULT_PROMPT_AUDIO_PATH"),
        *(f"backend {failing.url}", f"backend {away}", f"backend {stranger.url}"),
        f"redis {redis.replace(':secret@', '')}",
    }
    assert (done.code, done.err) == (1, "Error: 8 things are wrong.\n")
    assert found[f"backend {backend.url}"] == "ok"
    assert found["voice short"] == "note"
    assert b"did you mean GRADIO_URL?" in done.out
    assert b"secret" not in done.out


def test_check_knows_a_port_that_is_taken_from_one_that_is_ours(
    run: Run, gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url)
    settings = {"GRADIO_URL": backend.url, "HOST": "127.0.0.1"}
    assert findings(run("check", PORT=service.port, **settings))[f"port {service.port}"] == "ok"
    taken = int(backend.url.rpartition(":")[2])
    done = run("check", PORT=taken, **settings)
    assert (done.code, findings(done)[f"port {taken}"]) == (1, "wrong")


def test_check_looks_at_a_running_service(
    run: Run, gateway: StartGateway, backend: GradioApp
) -> None:
    service = gateway(GRADIO_URL=backend.url, API_KEYS="sk-1")
    done = run("check", "--url", service.url)
    assert (done.code, findings(done)["speech"]) == (1, "wrong")
    assert b"--key" in done.out
    done = run("check", "--url", service.url, "--key", "sk-1")
    assert (done.code, set(findings(done).values())) == (0, {"ok"})
    assert findings(done).keys() >= {"service", f"backend {backend.url}", "voices", "speech"}


def test_check_of_a_service_that_is_away_fails(run: Run) -> None:
    done = run("check", "--url", f"http://127.0.0.1:{free_port()}")
    assert (done.code, findings(done)) == (1, {"service": "wrong"})


def test_a_setting_that_cannot_be_understood_is_named(tmp_path: Path, prompts: Path) -> None:
    command = Command(tmp_path, "check", CACHE_TTL="soon", GRADIO_CONCURRENCY="0")
    assert command.wait() == 1
    assert "CACHE_TTL='soon'" in command.error
    assert "GRADIO_CONCURRENCY='0'" in command.error
    assert "Traceback" not in command.error


def test_what_was_set_is_shown_without_its_secrets(run: Run, backend: GradioApp) -> None:
    done = run("check", GRADIO_URL=backend.url, API_KEYS="sk-1,sk-2", PORT=free_port())
    lines = done.out.decode().splitlines()
    assert f"ok    GRADIO_URL: {backend.url}" in lines
    assert "ok    API_KEYS: …" in lines
    assert not any("sk-" in line for line in lines)
