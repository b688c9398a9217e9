"""Voices that come and go by request: a recording is heard before it is kept, and a file is there
whole or not at all.

Whatever is uploaded is stored as mono 16-bit WAV, at its own rate up to 48 kHz. It is written under
a name that is no voice's, and then linked to its own, which fails if that is taken: of two uploads
at the same time, in whichever process, one wins.
"""

import errno
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tts_service.audio import (
    Audio,
    UndecodableAudio,
    audible_seconds,
    clipped_share,
    decode,
    resample,
    wav,
)
from tts_service.errors import (
    CannotStore,
    Clipped,
    InvalidRequest,
    NoSuchVoice,
    NotAudio,
    Overloaded,
    Silent,
    TooLarge,
    TooLong,
    TooManyVoices,
    TooShort,
    VoiceExists,
    VoiceStays,
)
from tts_service.voices import (
    LONGEST_NAME,
    VoiceCatalogue,
    VoiceFacts,
    is_valid_name,
    normalize_name,
)

logger = logging.getLogger(__name__)

SHORTEST, LONGEST = 1.0, 60.0  # seconds
HIGHEST_RATE = 48_000  # Hz; no model listens above it
#: Voices beyond which none is taken: whoever may upload must not be able to fill a disk.
MOST_VOICES = 1000

_FIELD = "audio_sample"
_PADDING = 0.1  # seconds; encoders fill up their last block
_LEAST_AUDIBLE = 0.5  # seconds
_MOST_CLIPPED = 0.01  # of all samples
_LONGEST_FILE_NAME = 255  # bytes, on every common file system
_PART = ".upload-"  # begins a file that is not whole yet; a voice's name never begins with a dot
_PART_SECONDS = 3600.0  # after which one was left behind by a process that was killed
_WAIT_SECONDS = 30.0
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Uploads:
    """Takes voices into the folder, and out of it."""

    def __init__(self, voices: VoiceCatalogue, folder: Path, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._voices = voices
        self._folder = folder
        self._ear = threading.Lock()  # decoded sound is large: one recording at a time

    def add(self, name: str, recording: BinaryIO) -> VoiceFacts:
        """Keep a recording as the voice called `name`.

        Raises InvalidRequest (name), VoiceExists, TooManyVoices, TooLarge, RecordingRefused,
        Overloaded, CannotStore.
        """
        name = _checked(name)
        self._require_room(name)
        with self._one_at_a_time():
            sound = accept(self._read(recording))
            is_new = self._keep(name, wav(sound))
        if not is_new:
            raise _exists(name)
        logger.info("voice %r was added: %.1f s", name, sound.seconds)
        return self._voices.facts(name)

    def remove(self, name: str) -> str:
        """Remove the voice called `name`: each of its files, so that none takes its place. Returns
        the name as it was known.

        Raises NoSuchVoice, VoiceStays, CannotStore.
        """
        facts = self._voices.facts(name)
        if not facts.is_removable:
            raise VoiceStays(
                f"Voice {facts.name!r} cannot be removed: the service's settings name it.",
                param="id",
            )
        gone = 0
        with self._told():
            for path in reversed(self._voices.files(facts.name)):  # the one in use last
                with suppress(FileNotFoundError):  # somebody was faster
                    path.unlink()
                    gone += 1
            _sync(self._folder)
        if not gone:
            raise NoSuchVoice(f"There is no voice {facts.name!r}.", param="id")
        logger.info("voice %r was removed", facts.name)
        return facts.name

    def _require_room(self, name: str) -> None:
        names = self._voices.names()
        if name in names:
            raise _exists(name)
        if len(names) >= MOST_VOICES:
            raise TooManyVoices(
                f"There are {len(names)} voices already; remove one first.", param="name"
            )

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if not self._ear.acquire(timeout=_WAIT_SECONDS):
            raise Overloaded("Too many recordings are being uploaded.", retry_after=_WAIT_SECONDS)
        try:
            yield
        finally:
            self._ear.release()

    def _read(self, recording: BinaryIO) -> bytes:
        data = recording.read(self.max_bytes + 1)
        if len(data) > self.max_bytes:
            raise too_large(self.max_bytes)
        return data

    def _keep(self, name: str, data: bytes) -> bool:
        """Whether the file is there now; it is not if there was one of its name."""
        with self._told():
            self._folder.mkdir(parents=True, exist_ok=True)
            _sweep(self._folder)
            return publish(self._folder / f"{name}.wav", data)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The file system's refusals as ours."""
        try:
            yield
        except OSError as error:
            logger.error("the folder of recordings cannot be changed: %s", error)
            raise CannotStore(
                f"The folder of recordings cannot be changed on the server: {error.strerror}."
            ) from None


def accept(data: bytes) -> Audio:
    """The sound of a recording that will do as a voice's, at 48 kHz at most.

    Raises NotAudio, TooShort, TooLong, Silent, Clipped. However long the sound is that `data`
    unpacks to, little more than a minute of it is.
    """
    try:
        sound = decode(data, longest=LONGEST + 2 * _PADDING, is_strict=True)
    except UndecodableAudio as error:
        raise NotAudio(f"The file cannot be used: {error}.", param=_FIELD) from None
    if sound.seconds < SHORTEST:
        raise TooShort(
            f"The recording is too short: {sound.seconds:.2f} s; at least {SHORTEST:.0f} s are "
            "needed, and 5 to 15 s are best.",
            param=_FIELD,
        )
    if sound.seconds > LONGEST + _PADDING:
        raise TooLong(
            f"The recording is too long: at most {LONGEST:.0f} s are taken; 5 to 15 s are best.",
            param=_FIELD,
        )
    if audible_seconds(sound) < _LEAST_AUDIBLE:
        raise Silent("The recording is silent: there is nothing to hear in it.", param=_FIELD)
    if (clipped := clipped_share(sound)) > _MOST_CLIPPED:
        raise Clipped(
            f"The recording is clipped: {clipped:.0%} of it are peaks that were cut off. Record it "
            "anew, less loud.",
            param=_FIELD,
        )
    return resample(sound, min(sound.rate, HIGHEST_RATE))


def too_large(max_bytes: int) -> TooLarge:
    """The refusal of a file of more than `max_bytes` bytes."""
    return TooLarge(
        f"The recording is too large: at most {max_bytes} bytes, sent as a file.", param=_FIELD
    )


def publish(path: Path, data: bytes) -> bool:
    """Make a file that is there whole or not at all, and outlasts a loss of power.

    False if there is a file at `path`: it stays as it is. Raises OSError; nothing is left then.
    """
    part = path.parent / f"{_PART}{uuid.uuid4().hex}"
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        is_new = _put(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    _sync(path.parent)
    return is_new


def _put(part: Path, path: Path) -> bool:
    """Give a finished file its name, unless that is taken."""
    try:
        path.hardlink_to(part)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _put_without_links(part, path)
    return True


def _put_without_links(part: Path, path: Path) -> bool:
    """The same on a file system such as exFAT. For an instant the file is there and empty."""
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    try:
        part.replace(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _sync(folder: Path) -> None:
    """Have the folder's own entries written to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left behind."""
    for part in folder.glob(f"{_PART}*"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _PART_SECONDS:
                part.unlink()


def _checked(name: str) -> str:
    name = normalize_name(name)
    if not is_valid_name(name):
        raise InvalidRequest(
            f"name must be 1 to {LONGEST_NAME} letters of any script, digits, - _ and . (which "
            "does not come first).",
            param="name",
        )
    if len(os.fsencode(f"{name}.wav")) > _LONGEST_FILE_NAME:
        raise InvalidRequest("name is too long for a file's name.", param="name")
    return name


def _exists(name: str) -> VoiceExists:
    return VoiceExists(f"There is a voice {name!r} already; remove it first.", param="name")
