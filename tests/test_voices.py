"""Voices: what is one, what it is called, and how soon a change is noticed."""

import hashlib
import logging
import os
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tts_service.errors import InvalidRequest, PromptMissing, SpeechError, VoiceNotFound
from tts_service.voices import (
    EXTENSIONS,
    STOCK_VOICES,
    Voice,
    VoiceCatalogue,
    is_valid_name,
    normalize_name,
)

KeepVoices = Callable[..., VoiceCatalogue]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the recordings `default.wav` and `ann.wav`."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "default.wav").write_bytes(b"the default")
    (folder / "ann.wav").write_bytes(b"ann speaks")
    return folder


@pytest.fixture
def catalogue(folder: Path) -> KeepVoices:
    """`catalogue(mapped)`: the voices of `folder` and of a map."""

    def make(mapped: Mapping[str, Path] | None = None) -> VoiceCatalogue:
        return VoiceCatalogue(folder, mapped or {}, folder / "default.wav")

    return make


def fingerprint(voices: VoiceCatalogue, name: str) -> str:
    voice = voices.find(name)
    assert voice is not None, f"there is no {name}"
    return voice.fingerprint


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- the folder --------------------------------------------------------------------------------


def test_each_recording_is_a_voice_named_by_its_stem(folder: Path, catalogue: KeepVoices) -> None:
    assert catalogue().names() == ["ann", "default"]
    assert catalogue().find("ann") == Voice("ann", folder / "ann.wav", sha256(b"ann speaks"))


@pytest.mark.parametrize(
    "name", ["bob.wav", "bob.flac", "bob.mp3", "bob.ogg", "bob.m4a", "bob.WAV"]
)
def test_every_kind_of_recording_is_found(folder: Path, catalogue: KeepVoices, name: str) -> None:
    (folder / name).write_bytes(b"bob")
    assert "bob" in catalogue().names()


@pytest.mark.parametrize("name", ["bob.txt", "bob", "bob.wav.part", ".wav", "bob.aac", ".bob.wav"])
def test_other_files_are_no_voices(folder: Path, catalogue: KeepVoices, name: str) -> None:
    (folder / name).write_bytes(b"bob")
    assert catalogue().names() == ["ann", "default"]


def test_a_folder_called_like_a_recording_is_no_voice(folder: Path, catalogue: KeepVoices) -> None:
    (folder / "bob.wav").mkdir()
    (folder / "bob.wav" / "carl.wav").write_bytes(b"carl")
    assert catalogue().names() == ["ann", "default"]


def test_a_missing_folder_has_no_voices(tmp_path: Path) -> None:
    voices = VoiceCatalogue(tmp_path / "none", {}, tmp_path / "none" / "default.wav")
    assert voices.names() == []
    assert voices.find("ann") is None


@pytest.mark.parametrize("present", [EXTENSIONS[at:] for at in range(len(EXTENSIONS))])
def test_between_equal_stems_the_first_extension_wins(
    folder: Path, catalogue: KeepVoices, present: tuple[str, ...]
) -> None:
    for extension in reversed(present):
        (folder / f"bob{extension}").write_bytes(extension.encode())
    assert fingerprint(catalogue(), "bob") == sha256(present[0].encode())


@pytest.mark.parametrize(
    "stem", ["小明", "Zoë", "ぷりん", "아이유", "Маша", "a.b-c_1", "หญิง", "x" * 64, "7"]
)
def test_letters_of_any_script_make_a_name(folder: Path, catalogue: KeepVoices, stem: str) -> None:
    (folder / f"{stem}.wav").write_bytes(b"x")
    assert normalize_name(stem) in catalogue().names()
    assert fingerprint(catalogue(), stem) == sha256(b"x")


@pytest.mark.parametrize("stem", ["a b", "a+b", "a'b", "a\nb", "a%2Fb", "x" * 65, "a\u200bb", "😀"])
def test_a_file_whose_stem_is_no_name_is_ignored_with_one_warning(
    folder: Path, catalogue: KeepVoices, stem: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="tts_service.voices")
    (folder / f"{stem}.wav").write_bytes(b"x")
    voices = catalogue()
    for _ in range(3):
        assert voices.names() == ["ann", "default"]
        assert voices.find(stem) is None
    [line] = caplog.records
    assert line.levelno == logging.WARNING
    assert stem[:1] in line.getMessage()


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "a/b", "a\\b", "a:b", "a\x00", " a", "\ud800"]
)
def test_such_names_are_not_valid(name: str) -> None:
    assert not is_valid_name(name)


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_composed_and_decomposed_accents_are_the_same_name(
    folder: Path, catalogue: KeepVoices, on_disk: str, asked: str
) -> None:
    forms = {form: unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD")}
    assert forms["NFC"] != forms["NFD"]
    (folder / f"{forms[on_disk]}.wav").write_bytes(b"zoe")
    voice = catalogue().find(forms[asked])
    assert voice is not None
    assert voice.name == forms["NFC"]
    assert forms["NFC"] in catalogue().names()


def test_the_fingerprint_is_of_the_content_and_not_of_the_name(
    folder: Path, catalogue: KeepVoices
) -> None:
    shutil.copyfile(folder / "ann.wav", folder / "anna.flac")
    voices = catalogue()
    assert fingerprint(voices, "ann") == fingerprint(voices, "anna")
    assert fingerprint(voices, "ann") != fingerprint(voices, "default")


# -- changes -----------------------------------------------------------------------------------


def test_what_is_added_or_removed_is_noticed_at_once(folder: Path, catalogue: KeepVoices) -> None:
    voices = catalogue()
    for _ in range(20):
        assert voices.find("bob") is None
        (folder / "bob.wav").write_bytes(b"bob")
        assert fingerprint(voices, "bob") == sha256(b"bob")
        assert voices.names() == ["ann", "bob", "default"]
        (folder / "bob.wav").unlink()


def test_what_is_renamed_is_noticed_at_once(folder: Path, catalogue: KeepVoices) -> None:
    voices = catalogue()
    assert voices.names() == ["ann", "default"]
    (folder / "ann.wav").rename(folder / "beth.wav")
    assert voices.names() == ["beth", "default"]
    assert voices.find("ann") is None


def test_a_better_extension_that_appears_takes_over(folder: Path, catalogue: KeepVoices) -> None:
    (folder / "bob.m4a").write_bytes(b"m4a")
    voices = catalogue()
    assert fingerprint(voices, "bob") == sha256(b"m4a")
    (folder / "bob.wav").write_bytes(b"wav")
    assert fingerprint(voices, "bob") == sha256(b"wav")
    (folder / "bob.wav").unlink()
    assert fingerprint(voices, "bob") == sha256(b"m4a")


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def overwrite_keeping_the_time(path: Path, content: bytes) -> None:
    """As `cp -p` and `rsync --inplace --times` do."""
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def put_in_its_place(path: Path, content: bytes) -> None:
    """As careful programs do."""
    fresh = path.with_suffix(".part")
    fresh.write_bytes(content)
    fresh.replace(path)


REPLACE = [overwrite, overwrite_keeping_the_time, put_in_its_place]


@pytest.mark.parametrize("replace", REPLACE)
def test_a_recording_replaced_within_the_same_second_by_one_as_large_is_noticed(
    folder: Path, catalogue: KeepVoices, replace: Callable[[Path, bytes], None]
) -> None:
    voices = catalogue()
    for number in range(50):
        content = f"ann no. {number:02}".encode()
        replace(folder / "ann.wav", content)
        assert fingerprint(voices, "ann") == sha256(content)


@pytest.fixture
def settled(folder: Path, catalogue: KeepVoices) -> Iterator[VoiceCatalogue]:
    """Voices one of which, `ann`, is so large that reading it shows, and known by now."""
    with (folder / "ann.wav").open("r+b") as file:
        file.truncate(32 * 2**20)
    voices = catalogue()
    reading = seconds_to_find(voices)
    end = time.monotonic() + 10
    while seconds_to_find(voices) > reading / 20:
        assert time.monotonic() < end, "the recording is read again and again"
        time.sleep(0.1)
    yield voices
    (folder / "ann.wav").unlink()


def seconds_to_find(voices: VoiceCatalogue) -> float:
    began = time.perf_counter()
    assert voices.find("ann") is not None
    return time.perf_counter() - began


def test_a_recording_known_for_a_while_is_read_again_only_when_it_is_replaced(
    folder: Path, settled: VoiceCatalogue
) -> None:
    path = folder / "ann.wav"
    for replace in (overwrite_keeping_the_time, overwrite, put_in_its_place):
        content = bytes(path.stat().st_size - 1) + replace.__name__[-1:].encode()
        replace(path, content)
        assert fingerprint(settled, "ann") == sha256(content)


def test_two_catalogues_of_one_folder_agree_at_once(folder: Path, catalogue: KeepVoices) -> None:
    one, other = catalogue(), catalogue()
    assert one.names() == other.names()
    (folder / "bob.wav").write_bytes(b"bob")
    assert one.find("bob") == other.find("bob") is not None


# -- the map -----------------------------------------------------------------------------------


def test_the_map_adds_names_and_goes_before_the_folder(
    folder: Path, catalogue: KeepVoices, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.bin"
    elsewhere.write_bytes(b"elsewhere")
    voices = catalogue({"ann": elsewhere, "carl": folder / "ann.wav"})
    assert voices.names() == ["ann", "carl", "default"]
    assert fingerprint(voices, "ann") == sha256(b"elsewhere")
    assert fingerprint(voices, "carl") == sha256(b"ann speaks")


def test_a_name_in_the_map_may_be_composed_or_not(folder: Path, catalogue: KeepVoices) -> None:
    voices = catalogue({unicodedata.normalize("NFD", "Zoë"): folder / "ann.wav"})
    assert fingerprint(voices, unicodedata.normalize("NFC", "Zoë")) == sha256(b"ann speaks")


@pytest.mark.parametrize("ask", ["voice", "model"])
def test_a_mapped_recording_that_is_missing_is_the_requests_failure(
    folder: Path, catalogue: KeepVoices, ask: str
) -> None:
    voices = catalogue({"carl": folder / "carl" / "gone.wav"})
    with pytest.raises(InvalidRequest, match="carl") as raised:
        voices.resolve(**{"voice": None, "model": None, ask: "carl"})
    assert raised.value.status == 400
    assert str(folder) not in raised.value.message
    (folder / "carl").mkdir()
    (folder / "carl" / "gone.wav").write_bytes(b"back")
    assert fingerprint(voices, "carl") == sha256(b"back")


def test_a_default_recording_that_is_missing_is_the_services_failure(
    folder: Path, catalogue: KeepVoices
) -> None:
    voices = catalogue()
    (folder / "default.wav").unlink()
    with pytest.raises(PromptMissing) as raised:
        voices.resolve(None, None)
    assert raised.value.status == 500
    assert str(folder) not in raised.value.message
    assert voices.resolve("ann", None).name == "ann"
    (folder / "default.wav").write_bytes(b"back")
    assert voices.resolve(None, None).fingerprint == sha256(b"back")


def test_the_default_need_not_be_in_the_folder(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.wav"
    elsewhere.write_bytes(b"elsewhere")
    voices = VoiceCatalogue(folder, {}, elsewhere)
    assert voices.resolve(None, "unknown") == Voice("elsewhere", elsewhere, sha256(b"elsewhere"))
    assert "elsewhere" not in voices.names()


# -- who speaks --------------------------------------------------------------------------------

WHO_SPEAKS = [
    # voice, model, who
    (None, None, "default"),
    (None, "tts-1", "default"),
    (None, "ann", "ann"),
    (None, "alloy", "default"),
    (None, "nova", "nova"),
    ("ann", None, "ann"),
    ("ann", "bob", "ann"),
    ("ann", "unknown", "ann"),
    ("alloy", None, "default"),
    ("alloy", "tts-1-hd", "default"),
    ("alloy", "ann", "ann"),
    ("nova", None, "nova"),
    ("nova", "ann", "nova"),
    ("unknown", None, None),
    ("unknown", "ann", None),
    ("Ann", None, None),
    ("Alloy", None, None),
    ("", None, None),
]


@pytest.mark.parametrize(("voice", "model", "who"), WHO_SPEAKS)
def test_who_speaks(
    folder: Path, catalogue: KeepVoices, voice: str | None, model: str | None, who: str | None
) -> None:
    for name in ("bob", "nova"):
        (folder / f"{name}.wav").write_bytes(name.encode())
    if who is not None:
        assert catalogue().resolve(voice, model).name == who
        return
    with pytest.raises(VoiceNotFound) as raised:
        catalogue().resolve(voice, model)
    assert (raised.value.param, raised.value.code) == ("voice", "voice_not_found")
    assert "ann, bob, default, nova" in raised.value.message


@pytest.mark.parametrize("name", sorted(STOCK_VOICES))
def test_no_stock_voice_is_an_error(catalogue: KeepVoices, name: str) -> None:
    assert catalogue().resolve(name, None).name == "default"


def test_openai_has_thirteen_stock_voices() -> None:
    assert len(STOCK_VOICES) == 13


@pytest.mark.parametrize(
    "trick",
    [
        "../prompts/ann",
        "./ann",
        "ann.wav",
        "ann/",
        "{folder}/ann",
        "{folder}/ann.wav",
        "..",
        ".",
        "/",
        "ann\x00",
        "ann\n",
        " ann",
        "%61nn",
        "..%2Fann",
        "~/ann",
        "sub/carl",
        "sub\\carl",
        "\ud800",
        "ann" * 100_000,
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_name_from_a_request_never_becomes_a_path(
    folder: Path, catalogue: KeepVoices, trick: str
) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "carl.wav").write_bytes(b"carl")
    name = trick.replace("{folder}", str(folder))
    assert catalogue().find(name) is None
    assert catalogue().resolve(None, name).name == "default"
    with pytest.raises(SpeechError) as raised:
        catalogue().resolve(name, None)
    assert raised.value.status == 400
    raised.value.message.encode()  # half a surrogate pair would break the answer
