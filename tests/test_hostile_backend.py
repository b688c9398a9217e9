"""A backend of ill will: whatever it sends costs an error that is told, and nothing else."""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import gradio_client.utils
import pytest
from conftest import StartGateway, StartGradioApp
from servers import Gateway, GradioApp, hostile, wait_until
from servers.hostile import Bystander, HostileBackend, Trick
from servers.sound import tone, write_wav

from tts_service.audio import UndecodableAudio, decode
from tts_service.backends.base import BackendUnreachable, Segment
from tts_service.backends.gradio import LARGEST_RESULT, GradioBackend
from tts_service.errors import (
    BackendError,
    BackendMisfit,
    BackendTimeout,
    InvalidRequest,
    NoBackend,
)
from tts_service.voices import Voice

STAGES = (
    "/config",
    "/gradio_api/info",
    "/gradio_api/app_id",
    "/gradio_api/upload",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/file=",
)
QUICK_TRICKS: tuple[Trick, ...] = (
    hostile.endless,
    hostile.endless_head,
    hostile.gigabyte,
    hostile.packed_gigabyte,
    hostile.too_long,
    hostile.too_short,
    hostile.html,
    hostile.deep,
    hostile.nonsense,
)
SLOW_TRICKS: tuple[Trick, ...] = (
    hostile.endless_promises,
    hostile.slow_head,
    hostile.slow_body,
)
PATIENCE = 2.0  # seconds, for one call
LATE = 10.0  # seconds after that, on a busy machine; without an end it would be for ever
MOST_GROWTH = 400 * 1024 * 1024  # bytes; each trick sends a gigabyte, or without end
TOLD = {502, 503, 504}

Open = Callable[[str], HostileBackend]


@pytest.fixture
def hostile_backend() -> Iterator[Open]:
    """`hostile_backend(url)`: an honest door before that app, until a trick is set."""
    doors: list[HostileBackend] = []

    def door(url: str) -> HostileBackend:
        doors.append(HostileBackend(url))
        return doors[-1]

    yield door
    for each in doors:
        each.stop()


@pytest.fixture
def bystander() -> Iterator[Bystander]:
    server = Bystander()
    yield server
    server.stop()


@pytest.fixture
def voice(prompts: Path) -> Voice:
    recording = prompts / "default.wav"
    return Voice("default", recording, hashlib.sha256(recording.read_bytes()).hexdigest())


def outcome(
    url: str, identity: str, voice: Voice, patience: float = PATIENCE
) -> tuple[object, float]:
    """What comes of one call on a new connection, and the seconds it took."""
    backend = GradioBackend(url)
    began = time.monotonic()
    try:
        return backend.synthesize(Segment("Hello.", voice, identity), patience), 0.0
    except Exception as error:  # noqa: BLE001 - it is what the test looks at
        return error, time.monotonic() - began
    finally:
        backend.close()


def play(
    tricks: tuple[Trick, ...],
    backend: GradioApp,
    hostile_backend: Open,
    voice: Voice,
    stages: tuple[str, ...] = STAGES,
) -> list[str]:
    """Play each trick at each stage of a call; what was not told as it should be."""
    honest = GradioBackend(backend.url)
    identity = honest.describe().identity
    honest.close()

    def wrong(stage: str, trick: Trick) -> str | None:
        door = hostile_backend(backend.url)
        door.tricks[stage] = trick
        error, seconds = outcome(door.url, identity, voice)
        is_told = isinstance(error, BackendError | BackendUnreachable | BackendTimeout)
        if is_told and seconds < PATIENCE + LATE:
            return None
        return f"{stage} {getattr(trick, '__name__', 'trick')}: {error!r} after {seconds:.1f} s"

    with ThreadPoolExecutor(8) as pool:
        return [
            told for told in pool.map(lambda pair: wrong(*pair), product(stages, tricks)) if told
        ]


def test_every_trick_at_every_stage_is_told_as_the_backends_failure(
    backend: GradioApp, hostile_backend: Open, voice: Voice
) -> None:
    assert play(QUICK_TRICKS, backend, hostile_backend, voice) == []


def test_a_stream_of_events_that_breaks_prints_nothing_past_the_log(
    backend: GradioApp, hostile_backend: Open, voice: Voice, capfd: pytest.CaptureFixture[str]
) -> None:
    tricks = (*QUICK_TRICKS, hostile.endless_events)
    assert play(tricks, backend, hostile_backend, voice, ("/gradio_api/queue/data",)) == []
    assert capfd.readouterr().err == ""


def test_a_server_that_sends_byte_by_byte_takes_no_longer_than_was_asked(
    backend: GradioApp, hostile_backend: Open, voice: Voice
) -> None:
    assert play(SLOW_TRICKS, backend, hostile_backend, voice) == []


# -- other hosts -------------------------------------------------------------------------------


def test_no_redirect_leads_to_another_host(
    backend: GradioApp, hostile_backend: Open, voice: Voice, bystander: Bystander
) -> None:
    tricks = (hostile.redirect(f"{bystander.url}/elsewhere"),)
    # Without /config, the client looks for the same on the server's page.
    assert play(tricks, backend, hostile_backend, voice, STAGES[1:]) == []
    play(tricks, backend, hostile_backend, voice, STAGES[:1])
    assert bystander.visits == 0


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_no_prefix_of_its_paths_leads_to_another_host(
    slashes: str, backend: GradioApp, hostile_backend: Open, bystander: Bystander
) -> None:
    door = hostile_backend(backend.url)
    door.rewrite = hostile.describing(api_prefix=f"{slashes}{bystander.url}/")
    with pytest.raises(BackendMisfit, match="another host"):
        GradioBackend(door.url, token="hf_secret").describe()
    assert bystander.visits == 0


@pytest.mark.parametrize("version", ["3.36.1", "2.0", "0", None])
def test_no_server_is_described_to_a_service_on_the_internet(
    version: str | None,
    backend: GradioApp,
    hostile_backend: Open,
    bystander: Bystander,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gradio_client.utils, "SPACE_FETCHER_URL", bystander.url)
    door = hostile_backend(backend.url)
    door.rewrite = hostile.describing(version=version)
    with pytest.raises((BackendMisfit, BackendUnreachable)):
        GradioBackend(door.url, token="hf_secret").describe()
    assert bystander.visits == 0


def test_a_result_is_read_from_the_backend_wherever_its_path_points(
    backend: GradioApp, hostile_backend: Open, voice: Voice, bystander: Bystander, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.wav"
    write_wav(secret, tone(440, 1))
    door = hostile_backend(backend.url)
    identity = GradioBackend(backend.url).describe().identity
    here = f"{bystander.url}/sound.wav"
    for path in (
        str(secret),
        f"../../../../../..{secret}",
        f"file://{secret}",
        here,
        here.removeprefix("http:"),
        f"x@{here}",
        f"\\\\{here}",
        "\r\nHost: elsewhere\r\n\r\n",
        "..",
        "?#%00",
    ):
        door.rewrite = hostile.answering_with(path)
        error, _ = outcome(door.url, identity, voice, LATE)
        assert isinstance(error, BackendError), path
    assert bystander.visits == 0


# -- sound -------------------------------------------------------------------------------------


def test_what_unpacks_to_hundreds_of_times_its_size_is_no_recording() -> None:
    packed = hostile.packed_silence()
    assert len(packed) < hostile.MEGABYTE // 4
    with pytest.raises(UndecodableAudio, match="far too long"):
        decode(packed)
    assert decode(packed, longest=16).seconds == 16


@pytest.mark.parametrize(
    "wav",
    [
        hostile.wav_of(24_000, 1, claimed=100_000),
        hostile.wav_of(1, 10),
        hostile.wav_of(2**31, 0),
        hostile.wav_of(0, 0, claimed=0),
    ],
)
def test_a_header_that_lies_is_no_recording(wav: bytes) -> None:
    with pytest.raises(UndecodableAudio):
        decode(wav)


# -- descriptions and messages -----------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"type": {"type": "number", "minimum": "low", "maximum": [1]}},
        {"type": {"type": "number", "minimum": 10**400, "maximum": 10**400}},
        {"type": {"type": ["number"], "description": "numeric value between 1e999 and 2"}},
        {"type": {"enum": 7}},
        {"type": {"enum": {"a": 1}}},
        {"type": {"enum": ["\ud800", None, [], {}]}},
        {"type": {"items": {"enum": "abc"}, "type": "array"}},
        {"type": "number", "label": ["no", "text"], "component": {}},
    ],
)
def test_no_description_of_parameters_breaks_a_request(
    lie: dict[str, object], shared_app: StartGradioApp, hostile_backend: Open
) -> None:
    door = hostile_backend(shared_app("indextts-2.0").url)
    door.rewrite = hostile.describing_parameters(lie)
    try:
        binding = GradioBackend(door.url).describe()
    except (BackendError, NoBackend):
        return
    for value in (1, "x", [], {}, True, 10**300):
        try:
            binding.effective(dict.fromkeys(("emo_weight", "top_p", "vec1"), value), "softly")
        except InvalidRequest:
            continue


def test_what_a_backend_says_is_one_line_of_text_without_a_password() -> None:
    said = "broken\r\n2026-01-01 ERROR forged\x1b[2J\u202e\u2028 \ud800 end"
    error = BackendError(said)
    assert error.message.isprintable()
    assert error.message.encode()
    backend = GradioBackend("http://user:secret@127.0.0.1:9/")
    with pytest.raises(BackendUnreachable) as caught:
        backend.describe()
    assert "secret" not in caught.value.message


def test_an_error_of_a_server_with_a_login_in_its_address_does_not_show_it(
    backend: GradioApp, hostile_backend: Open, voice: Voice
) -> None:
    door = hostile_backend(backend.url)
    identity = GradioBackend(backend.url).describe().identity
    for stage in STAGES:
        door.tricks = {stage: hostile.redirect("http://elsewhere/")}
        address = door.url.replace("//", "//user:secret@")
        error, _ = outcome(address, identity, voice)
        assert "secret" not in str(error), stage


# -- the service as a whole --------------------------------------------------------------------


def grown(service: Gateway, ask: Callable[[], None]) -> int:
    """By how many bytes the worker's memory was larger than before, at its height."""
    (worker,) = service.workers()
    before = hostile.most_resident_bytes(worker)
    ask()
    return hostile.most_resident_bytes(worker) - before


@pytest.mark.timeout(180)
def test_a_backend_without_end_costs_the_service_no_memory_and_no_hit(
    backend: GradioApp, hostile_backend: Open, gateway: StartGateway
) -> None:
    door = hostile_backend(backend.url)
    service = gateway(
        GRADIO_URL=door.url, SYNTH_TIMEOUT=3, GRADIO_CALL_ATTEMPTS=2, GRADIO_CALL_DELAY=0.1
    )
    known = {"input": "This one is known."}
    assert service.post(known).status_code == 200
    flood = (
        ("/gradio_api/app_id", hostile.endless),
        ("/gradio_api/queue/data", hostile.endless),
        ("/gradio_api/queue/data", hostile.endless_events),
        ("/gradio_api/file=", hostile.endless),
        ("/gradio_api/file=", hostile.gigabyte),
        ("/gradio_api/file=", hostile.sound(hostile.packed_silence())),
    )

    def ask() -> None:
        for number, (stage, trick) in enumerate(flood):
            door.tricks = {stage: trick}
            answer = service.post({"input": f"New, number {number}."})
            assert answer.status_code in TOLD, (stage, trick)
            assert answer.json()["error"]["type"] == "server_error"
            hit = service.post(known)
            assert (hit.status_code, hit.headers["X-Cache"]) == (200, "HIT")
            door.tricks = {}
            wait_until(lambda: service.client.get("/health/ready").is_success, 30)

    assert grown(service, ask) < MOST_GROWTH
    assert LARGEST_RESULT < MOST_GROWTH
    assert service.post({"input": "All is well again."}).status_code == 200
    assert "Internal error" not in service.log
