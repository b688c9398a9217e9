"""Voices: a name and its recording.

Every recording in the folder is a voice named by its file's stem; `MODEL_PROMPT_MAP` adds more.
Files are looked at again at every lookup (one `stat` each), so one that is added, replaced or
removed is noticed at once, by every worker. A name from a request is only ever compared with
known names; it never becomes a path. (uploads.py makes new files, of names it has checked.)
"""

import hashlib
import logging
import os
import time
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from tts_service.audio import UndecodableAudio, seconds_of
from tts_service.errors import InvalidRequest, NoSuchVoice, PromptMissing, VoiceNotFound

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: OpenAI's own voices: clients offer them by themselves, so none of them is an error here.
STOCK_VOICES = frozenset(
    {
        *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin"),
        *("nova", "onyx", "sage", "shimmer", "verse"),
    }
)
EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg", ".m4a")  # the first wins between equal stems
LONGEST_NAME = 64
_RACY_SECONDS = 2  # a file this young may change again without a new time stamp


@dataclass(frozen=True, slots=True)
class Voice:
    """A name, its recording, and the recording's content hash (hexadecimal SHA-256)."""

    name: str
    recording: Path
    fingerprint: str


@dataclass(frozen=True, slots=True)
class VoiceFacts:
    """What is told of a voice.

    `created_at`: its file's time, in Unix seconds. `duration`: seconds. Both are 0 where the file
    is missing, the latter also where it is no recording. `is_removable`: false for what
    `MODEL_PROMPT_MAP` names, and for the default recording.
    """

    name: str
    created_at: int
    duration: float
    is_removable: bool


@dataclass(frozen=True, slots=True)
class _Sighting(Generic[T]):
    """What was found in a file or folder, and its time stamp then."""

    stamp: tuple[int, ...]
    is_settled: bool  # False: it may have changed since without a new time stamp
    found: T

    @classmethod
    def of(cls, stat: os.stat_result, found: T) -> "_Sighting[T]":
        return cls(_stamp(stat), time.time() - stat.st_ctime > _RACY_SECONDS, found)

    def still_holds(self, stat: os.stat_result) -> bool:
        return self.is_settled and self.stamp == _stamp(stat)


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    # The time of change as well: `cp -p` and `rsync -t` bring an old time of modification along.
    return stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size, stat.st_ino


def normalize_name(name: str) -> str:
    """The form names are compared in: some file systems decompose accents."""
    return unicodedata.normalize("NFC", name)


def is_valid_name(name: str) -> bool:
    """1 to 64 letters of any script, digits, `-`, `_`, and `.`, which does not come first."""
    return (
        0 < len(name) <= LONGEST_NAME
        and name[0] != "."
        and all(char in "-_." or unicodedata.category(char)[0] in "LMN" for char in name)
    )


class VoiceCatalogue:
    """The voices of one folder, those of a map, and the default."""

    def __init__(self, folder: Path, mapped: Mapping[str, Path], default: Path) -> None:
        self._folder = folder
        self._mapped = {normalize_name(name): path for name, path in mapped.items()}
        self._default = default
        self._listing: _Sighting[dict[str, tuple[Path, ...]]] | None = None
        self._contents: dict[Path, _Sighting[str]] = {}
        self._durations: dict[Path, _Sighting[float]] = {}
        self._ignored: frozenset[Path] = frozenset()

    def names(self) -> list[str]:
        """The name of every voice, in order."""
        return sorted({*self._files(), *self._mapped})

    def facts(self, name: str) -> VoiceFacts:
        """What is told of the voice called `name`. Raises NoSuchVoice."""
        name = normalize_name(name)
        recording = self._recording(name)
        if recording is None:
            raise NoSuchVoice(f"There is no voice {name[:LONGEST_NAME]!r}.", param="id")
        is_removable = name not in self._mapped and self._kept().isdisjoint(
            map(_place, self.files(name))
        )
        try:
            created_at, duration = int(recording.stat().st_mtime), self._duration(recording)
        except OSError:
            created_at, duration = 0, 0.0
        return VoiceFacts(name, created_at, duration, is_removable)

    def all_facts(self) -> list[VoiceFacts]:
        """What is told of every voice, in the order of the names."""
        told = []
        for name in self.names():
            with suppress(NoSuchVoice):  # it was just removed
                told.append(self.facts(name))
        return told

    def sample(self, name: str) -> bytes:
        """The recording of the voice called `name`. Raises NoSuchVoice, also if it is missing."""
        recording = self._recording(normalize_name(name))
        try:
            if recording is not None:
                return recording.read_bytes()
        except OSError as error:
            logger.warning("the recording of voice %r cannot be read: %s", name, error)
        raise NoSuchVoice(f"There is no recording of a voice {name[:LONGEST_NAME]!r}.", param="id")

    def files(self, name: str) -> tuple[Path, ...]:
        """Every file of this name in the folder, the one in use first."""
        return self._files().get(normalize_name(name), ())

    def find(self, name: str) -> Voice | None:
        """The voice called `name`, or None. Raises InvalidRequest if its recording is missing."""
        recording = self._recording(normalize_name(name))
        if recording is None:
            return None
        try:
            return Voice(normalize_name(name), recording, self._fingerprint(recording))
        except OSError as error:
            logger.warning("the recording of voice %r cannot be read: %s", name, error)
            raise InvalidRequest(
                f"The recording of voice {name!r} is missing on the server.", param="voice"
            ) from None

    def default(self) -> Voice:
        """The voice for whoever names none. Raises PromptMissing."""
        try:
            return Voice(self._default.stem, self._default, self._fingerprint(self._default))
        except OSError as error:
            logger.error("the default recording cannot be read: %s", error)
            raise PromptMissing("The default recording is missing on the server.") from None

    def resolve(self, voice: str | None, model: str | None) -> Voice:
        """Who speaks: a known voice; else, if that is absent or a stock name, a known model;
        else the default.

        Raises VoiceNotFound, InvalidRequest (recording missing), PromptMissing.
        """
        if voice is not None:
            found = self.find(voice)
            if found is not None:
                return found
            if voice not in STOCK_VOICES:
                asked, known = voice[:LONGEST_NAME], ", ".join(self.names())
                raise VoiceNotFound(
                    f"Unknown voice {asked!r}. Known voices: {known}.", param="voice"
                )
        return (self.find(model) if model is not None else None) or self.default()

    def _recording(self, name: str) -> Path | None:
        return self._mapped.get(name) or next(iter(self._files().get(name, ())), None)

    def _kept(self) -> frozenset[Path]:
        """Where the files are that others rely on: the map's and the default."""
        relied_on = [self._default, *self._mapped.values()]
        return frozenset({*map(_place, relied_on), *(path.resolve() for path in relied_on)})

    def _files(self) -> Mapping[str, tuple[Path, ...]]:
        """The folder's recordings by name. A missing folder has none."""
        try:
            stat = self._folder.stat()
            listing = self._listing
            if listing is None or not listing.still_holds(stat):
                self._listing = listing = _Sighting.of(stat, self._scan())
                self._forget_all_but({path for paths in listing.found.values() for path in paths})
        except OSError:
            return {}
        return listing.found

    def _scan(self) -> dict[str, tuple[Path, ...]]:
        paths = sorted(self._folder.iterdir(), key=_rank)
        recordings = [p for p in paths if p.suffix.lower() in EXTENSIONS and p.is_file()]
        usable = [p for p in recordings if is_valid_name(normalize_name(p.stem))]
        self._warn_of(set(recordings) - set(usable))
        found: dict[str, tuple[Path, ...]] = {}
        for path in usable:
            name = normalize_name(path.stem)
            found[name] = (*found.get(name, ()), path)
        return found

    def _forget_all_but(self, files: set[Path]) -> None:
        """Names come and go: what is remembered of files must not pile up."""
        present = {*files, *self._mapped.values(), self._default}
        for memory in (self._contents, self._durations):
            for path in [path for path in list(memory) if path not in present]:
                memory.pop(path, None)

    def _warn_of(self, ignored: Iterable[Path]) -> None:
        now = frozenset(ignored)
        for path in now - self._ignored:
            logger.warning("%s is no voice: its name may hold only letters, digits, - _ .", path)
        self._ignored = now

    def _fingerprint(self, recording: Path) -> str:
        """The content hash, from memory if the file is as it was. Raises OSError."""
        stat = recording.stat()
        known = self._contents.get(recording)
        if known is None or not known.still_holds(stat):
            digest = hashlib.sha256(recording.read_bytes()).hexdigest()
            self._contents[recording] = known = _Sighting.of(stat, digest)
        return known.found

    def _duration(self, recording: Path) -> float:
        """In seconds, from memory if the file is as it was. Raises OSError."""
        stat = recording.stat()
        known = self._durations.get(recording)
        if known is None or not known.still_holds(stat):
            try:
                duration = round(seconds_of(recording.read_bytes()), 3)
            except UndecodableAudio:
                duration = 0.0
            self._durations[recording] = known = _Sighting.of(stat, duration)
        return known.found


def _place(path: Path) -> Path:
    """Where a file itself is, in whatever words; if it is a link, not where that leads."""
    return path.parent.resolve() / path.name


def _rank(path: Path) -> tuple[int, str]:
    suffix = path.suffix.lower()
    return (EXTENSIONS.index(suffix) if suffix in EXTENSIONS else len(EXTENSIONS), path.name)
