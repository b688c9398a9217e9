"""Uploads: which recordings are accepted, and what happens in the folder, come what may."""

import io
import os
import resource
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from tts_service import uploads as uploads_module
from tts_service.audio import FORMATS, Audio, decode, silence, wav
from tts_service.errors import (
    CannotStore,
    Clipped,
    InvalidRequest,
    NoSuchVoice,
    NotAudio,
    RecordingRefused,
    Silent,
    TooLarge,
    TooLong,
    TooManyVoices,
    TooShort,
    VoiceExists,
    VoiceStays,
)
from tts_service.uploads import HIGHEST_RATE, MOST_VOICES, Uploads, accept, publish
from tts_service.voices import VoiceCatalogue

MAX_BYTES = 2_000_000

KeepVoices = Callable[..., Uploads]


def tone(seconds: float, rate: int = 24_000, peak: float = 0.5) -> Audio:
    wave = np.sin(2 * np.pi * 220 * np.arange(round(rate * seconds)) / rate)
    return Audio(rate, np.round(32767 * np.clip(peak * wave, -1, 1)).astype("<i2").tobytes())


def encoded(name: str, sound: Audio) -> bytes:
    encoder = FORMATS[name].encoder(sound.rate, streamed=False)
    return encoder.encode(sound) + encoder.flush()


def recorded(container: str, codec: str, sound: Audio) -> bytes:
    """As a browser's or a phone's recorder writes it."""
    sink = io.BytesIO()
    with av.open(sink, mode="w", format=container) as output:
        stream = output.add_stream(codec, rate=sound.rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        frame = av.AudioFrame(format="s16", layout="mono", samples=sound.frames)
        frame.planes[0].update(sound.pcm)
        frame.sample_rate = sound.rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return sink.getvalue()


GOOD = wav(tone(2.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "default.wav").write_bytes(GOOD)
    return folder


@pytest.fixture
def uploads(folder: Path) -> KeepVoices:
    """`uploads(mapped)`: into `folder`."""

    def make(mapped: dict[str, Path] | None = None, default: Path | None = None) -> Uploads:
        catalogue = VoiceCatalogue(folder, mapped or {}, default or folder / "default.wav")
        return Uploads(catalogue, folder, max_bytes=MAX_BYTES)

    return make


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def names(uploads: Uploads) -> list[str]:
    return uploads._voices.names()


# -- what is accepted --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wav", "mp3", "opus", "aac", "flac"])
def test_every_format_is_taken(name: str) -> None:
    assert accept(encoded(name, tone(2.0))).seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("seconds", [1.0, 60.0])
@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_s16le"), ("mp3", "libmp3lame")])
def test_a_second_is_long_enough_and_a_minute_short_enough(
    container: str, codec: str, seconds: float
) -> None:
    sound = accept(recorded(container, codec, tone(seconds, 8_000)))
    assert sound.seconds == pytest.approx(seconds, abs=0.2)


@pytest.mark.parametrize(
    ("container", "codec"), [("webm", "libopus"), ("ogg", "libopus"), ("ipod", "aac")]
)
def test_what_a_microphone_in_a_browser_makes_is_taken(container: str, codec: str) -> None:
    sound = accept(recorded(container, codec, tone(3.0, 48_000)))
    assert sound.seconds == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("rate", "kept"), [(8_000, 8_000), (22_050, 22_050), (48_000, 48_000), (96_000, HIGHEST_RATE)]
)
def test_a_recording_keeps_its_rate_up_to_48_khz(rate: int, kept: int) -> None:
    sound = accept(wav(tone(2.0, rate)))
    assert (sound.rate, sound.seconds) == (kept, 2.0)


def test_a_mono_wav_keeps_its_samples() -> None:
    assert accept(GOOD) == tone(2.0)


REFUSED: list[tuple[bytes, type[RecordingRefused], str]] = [
    (wav(tone(0.9)), TooShort, "0.90 s"),
    (wav(tone(61.0, 8_000)), TooLong, "60 s"),
    (wav(silence(24_000, 5.0)), Silent, "silent"),
    (wav(tone(5.0, peak=0.001)), Silent, "silent"),
    (wav(Audio(24_000, tone(0.3).pcm + silence(24_000, 5.0).pcm)), Silent, "silent"),
    (wav(tone(5.0, peak=3.0)), Clipped, "cut off"),
    (b"", NotAudio, "empty"),
    (b"<!DOCTYPE html><title>No sound</title>", NotAudio, "not audio"),
    (b"#EXTM3U\nhttp://127.0.0.1/secret.ts", NotAudio, "playlist"),
    (GOOD[:-1000], NotAudio, "truncated"),
    (encoded("flac", tone(9.0))[:-80_000], NotAudio, "truncated"),
    (wav(Audio(24_000, b"")), NotAudio, "no samples"),
]


@pytest.mark.parametrize(("data", "kind", "told"), REFUSED)
def test_what_will_not_do_is_refused_with_the_reason(
    data: bytes, kind: type[RecordingRefused], told: str
) -> None:
    with pytest.raises(RecordingRefused, match=told) as raised:
        accept(data)
    assert type(raised.value) is kind
    assert (raised.value.status, raised.value.param) == (400, "audio_sample")


def test_every_reason_has_a_code_of_its_own() -> None:
    kinds = {kind for _, kind, _ in REFUSED} | {TooLarge}
    assert len({kind.code for kind in kinds}) == len(kinds) == 6


def test_hours_in_a_small_file_are_not_unpacked() -> None:
    """Half a day of silence in 2 MB, which would be 4 GB of samples."""
    whole = encoded("flac", silence(48_000, 60.0))
    start = whole.index(b"\xff\xf8")
    bomb = whole + whole[start:] * 700
    assert len(bomb) < 10_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLong):
        accept(bomb)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000  # KiB


# -- adding ------------------------------------------------------------------------------------


def test_a_recording_becomes_a_voice(folder: Path, uploads: KeepVoices) -> None:
    kept = uploads()
    before = int(time.time())
    facts = kept.add("小明", io.BytesIO(encoded("mp3", tone(2.0))))
    assert (facts.name, facts.is_removable) == ("小明", True)
    assert facts.duration == pytest.approx(2.0, abs=0.1)
    assert before <= facts.created_at <= time.time()
    assert names(kept) == ["default", "小明"]
    assert files(folder) == {"default.wav", "小明.wav"}
    assert decode((folder / "小明.wav").read_bytes()).seconds == facts.duration


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    catalogue = VoiceCatalogue(folder, {}, folder / "default.wav")
    Uploads(catalogue, folder, max_bytes=MAX_BYTES).add("ann", io.BytesIO(GOOD))
    assert catalogue.names() == ["ann"]


@pytest.mark.parametrize(
    "name",
    [
        *("", " ann", "a b", ".ann", "../ann", "/tmp/ann", "a/b", "a\\b", "ann\x00", "a\nb"),
        *("x" * 65, "ann\ud800", "a\u202eb", "😀", "𠀀" * 64),
    ],
    ids=lambda name: ascii(name)[:20],
)
def test_what_is_no_name_never_becomes_a_path(folder: Path, uploads: KeepVoices, name: str) -> None:
    before = set(folder.parent.rglob("*"))
    with pytest.raises(InvalidRequest) as raised:
        uploads().add(name, io.BytesIO(GOOD))
    assert (raised.value.status, raised.value.param) == (400, "name")
    assert set(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_an_accent_is_the_same_however_it_is_composed(
    folder: Path, uploads: KeepVoices, form: str, on_disk: str
) -> None:
    (folder / f"{unicodedata.normalize(on_disk, 'Zoë')}.mp3").write_bytes(GOOD)
    with pytest.raises(VoiceExists):
        uploads().add(unicodedata.normalize(form, "Zoë"), io.BytesIO(GOOD))
    facts = uploads().add(unicodedata.normalize(form, "Chloé"), io.BytesIO(GOOD))
    assert facts.name == unicodedata.normalize("NFC", "Chloé")
    assert f"{facts.name}.wav" in files(folder)


@pytest.mark.parametrize("taken", ["ann.wav", "ann.mp3", "ann.M4A"])
def test_a_name_that_is_taken_stays_as_it_is(folder: Path, uploads: KeepVoices, taken: str) -> None:
    (folder / taken).write_bytes(b"the first")
    with pytest.raises(VoiceExists) as raised:
        uploads().add("ann", io.BytesIO(GOOD))
    assert (raised.value.status, raised.value.code) == (409, "voice_exists")
    assert raised.value.headers["x-should-retry"] == "false"
    assert (folder / taken).read_bytes() == b"the first"
    assert files(folder) == {"default.wav", taken}


def test_a_name_of_the_map_is_taken(folder: Path, uploads: KeepVoices) -> None:
    with pytest.raises(VoiceExists):
        uploads({"boss": folder / "gone.wav"}).add("boss", io.BytesIO(GOOD))
    assert files(folder) == {"default.wav"}


def test_of_many_uploads_of_one_name_one_wins(folder: Path, uploads: KeepVoices) -> None:
    """Each has a catalogue of its own, as another process has."""
    sounds = [wav(tone(2.0 + number / 10)) for number in range(8)]
    barrier = threading.Barrier(len(sounds))

    def add(data: bytes) -> bool:
        kept = uploads()
        barrier.wait(30)
        try:
            kept.add("ann", io.BytesIO(data))
        except VoiceExists:
            return False
        return True

    with ThreadPoolExecutor(len(sounds)) as pool:
        won = [*pool.map(add, sounds)]
    assert won.count(True) == 1
    assert (folder / "ann.wav").read_bytes() == sounds[won.index(True)]
    assert files(folder) == {"default.wav", "ann.wav"}


def test_one_byte_too_many_is_too_large(folder: Path, uploads: KeepVoices) -> None:
    with pytest.raises(TooLarge, match=str(MAX_BYTES)) as raised:
        uploads().add("ann", io.BytesIO(GOOD.ljust(MAX_BYTES + 1, b"\0")))
    assert (raised.value.status, raised.value.param) == (413, "audio_sample")
    uploads().add("ann", io.BytesIO(GOOD.ljust(MAX_BYTES, b"\0")))
    assert files(folder) == {"default.wav", "ann.wav"}


def test_there_are_not_more_voices_than_a_disk_can_bear(folder: Path, uploads: KeepVoices) -> None:
    for number in range(MOST_VOICES - 2):
        (folder / f"v{number}.wav").touch()
    uploads().add("last", io.BytesIO(GOOD))
    with pytest.raises(TooManyVoices, match=str(MOST_VOICES)):
        uploads().add("more", io.BytesIO(GOOD))
    assert "more.wav" not in files(folder)


# -- what goes wrong ---------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_half_a_file_keeps_nothing_of_it(
    folder: Path, uploads: KeepVoices
) -> None:
    with largest_file(len(GOOD) // 2), pytest.raises(CannotStore) as raised:
        uploads().add("ann", io.BytesIO(GOOD))
    assert (raised.value.status, raised.value.type) == (500, "server_error")
    assert str(folder) not in raised.value.message
    assert files(folder) == {"default.wav"}
    assert uploads().add("ann", io.BytesIO(GOOD)).duration == 2.0


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("a file")
    for folder in (tmp_path / "prompts", tmp_path / "prompts" / "deeper"):
        kept = Uploads(VoiceCatalogue(folder, {}, folder / "x.wav"), folder, max_bytes=MAX_BYTES)
        with pytest.raises(CannotStore):
            kept.add("ann", io.BytesIO(GOOD))


def test_a_failure_at_the_last_step_leaves_nothing(
    folder: Path, uploads: KeepVoices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    for step in ("fsync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(CannotStore, match="Input/output error"):
                uploads().add("ann", io.BytesIO(GOOD))
        assert files(folder) == {"default.wav"}


def test_a_file_system_without_links_will_do(
    folder: Path, uploads: KeepVoices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    uploads().add("ann", io.BytesIO(GOOD))
    assert files(folder) == {"default.wav", "ann.wav"}
    assert (folder / "ann.wav").read_bytes() == GOOD
    assert publish(folder / "ann.wav", b"another") is False
    assert (folder / "ann.wav").read_bytes() == GOOD
    assert files(folder) == {"default.wav", "ann.wav"}


def test_what_a_killed_process_left_behind_is_no_voice_and_is_swept_up(
    folder: Path, uploads: KeepVoices
) -> None:
    old, young = folder / ".upload-old", folder / ".upload-young"
    for part in (old, young):
        part.write_bytes(GOOD[:100])
    os.utime(old, (time.time() - 7200,) * 2)
    assert names(uploads()) == ["default"]
    uploads().add("ann", io.BytesIO(GOOD))
    assert files(folder) == {"default.wav", "ann.wav", young.name}


def test_nobody_waits_for_ever_for_another_upload(
    uploads: KeepVoices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "_WAIT_SECONDS", 0.05)
    kept = uploads()
    with kept._ear, pytest.raises(uploads_module.Overloaded) as raised:
        kept.add("ann", io.BytesIO(GOOD))
    assert raised.value.status == 503
    assert kept.add("ann", io.BytesIO(GOOD)).name == "ann"


# -- removing ----------------------------------------------------------------------------------


def test_a_removed_voice_is_gone_with_every_file_of_its_name(
    folder: Path, uploads: KeepVoices
) -> None:
    others = ["anna.wav", "ann.txt", "ann"]
    for name in ("ann.wav", "ann.mp3", "ann.FLAC", *others):
        (folder / name).write_bytes(GOOD)
    kept = uploads()
    assert kept.remove("ann") == "ann"
    assert files(folder) == {"default.wav", *others}
    assert names(kept) == ["anna", "default"]
    with pytest.raises(NoSuchVoice) as raised:
        kept.remove("ann")
    assert (raised.value.status, raised.value.code) == (404, "voice_not_found")


@pytest.mark.parametrize("trick", ["../secret", "..", "", "default.wav", "/etc/passwd", "a\x00"])
def test_a_name_to_be_removed_never_becomes_a_path(
    folder: Path, uploads: KeepVoices, trick: str
) -> None:
    (folder.parent / "secret.wav").write_bytes(GOOD)
    with pytest.raises(NoSuchVoice):
        uploads().remove(trick)
    assert (folder.parent / "secret.wav").exists()
    assert files(folder) == {"default.wav"}


def test_what_the_settings_name_stays(folder: Path, uploads: KeepVoices, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.wav"
    elsewhere.write_bytes(GOOD)
    for name in ("ann", "bob", "boss", "free"):
        (folder / f"{name}.wav").write_bytes(GOOD)
    (folder / "linked.wav").symlink_to(elsewhere)
    (folder / "default.mp3").write_bytes(GOOD)
    before = files(folder)
    mapped = {
        "boss": elsewhere,  # hides the folder's own
        "chief": folder / "ann.wav",
        "deputy": folder / ".." / folder.name / "bob.wav",
    }
    kept = uploads(mapped)
    for name in ("boss", "chief", "deputy", "ann", "bob", "default"):
        assert kept._voices.facts(name).is_removable is False
        with pytest.raises(VoiceStays) as raised:
            kept.remove(name)
        assert (raised.value.status, raised.value.code) == (409, "voice_not_removable")
    assert files(folder) == before
    for name in ("free", "linked"):
        assert kept._voices.facts(name).is_removable is True
        kept.remove(name)
    assert elsewhere.exists()


def test_the_file_behind_a_default_that_is_a_link_stays(folder: Path, uploads: KeepVoices) -> None:
    (folder / "ann.wav").write_bytes(GOOD)
    (folder / "usual.wav").symlink_to("ann.wav")
    kept = uploads(default=folder / "usual.wav")
    for name in ("usual", "ann"):
        with pytest.raises(VoiceStays):
            kept.remove(name)
    kept.remove("default")


# -- what is told ------------------------------------------------------------------------------


def test_facts_follow_the_file(folder: Path, uploads: KeepVoices) -> None:
    voices = uploads()._voices
    assert voices.facts("default").duration == 2.0
    for seconds in (3.0, 4.0):
        (folder / "default.wav").write_bytes(wav(tone(seconds)))
        assert voices.facts("default").duration == seconds
    os.utime(folder / "default.wav", (1_700_000_000,) * 2)
    assert voices.facts("default").created_at == 1_700_000_000


def test_a_voice_without_a_usable_file_is_still_listed(folder: Path, uploads: KeepVoices) -> None:
    (folder / "text.wav").write_bytes(b"no sound in here")
    voices = uploads({"gone": folder / "gone.wav"})._voices
    told = {facts.name: (facts.created_at > 0, facts.duration) for facts in voices.all_facts()}
    assert told == {"default": (True, 2.0), "gone": (False, 0.0), "text": (True, 0.0)}
    with pytest.raises(NoSuchVoice):
        voices.sample("gone")


def test_what_is_known_of_files_does_not_pile_up(folder: Path, uploads: KeepVoices) -> None:
    kept = uploads()
    voices = kept._voices
    for number in range(20):
        kept.add(f"v{number}", io.BytesIO(GOOD))
        assert voices.find(f"v{number}") is not None
        kept.remove(f"v{number}")
    assert voices.names() == ["default"]
    assert len(voices._contents) + len(voices._durations) <= 2
