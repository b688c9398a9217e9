"""Takes: what was spoken of a text so far, kept in a file from one run to the next.

    {"takes": 1, …}                             a line of JSON: by whom and how all of it is spoken
    {"text": …, "rate": …, "frames": …}         a line of JSON for each take, and behind it
    signed 16-bit little-endian samples         its sound

A take is found by a hash of its text, so they may come in any order, and an edited text costs only
what is new in it. What is at the end when a run was killed in the middle of it is cut off.
"""

import fcntl
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from tts_service.audio import Audio
from tts_service.cli.commands import Failed

_VERSION: Final = 1
_MARK: Final = b'{"takes":'
_BYTES_PER_FRAME: Final = 2
_LONGEST_LINE: Final = 64 * 1024


class Takes:
    """The takes in `file`, made under these `terms`. Nobody else writes to the file meanwhile.

    Raises Failed: another process has it, it is none of ours, or it was made under other terms.
    """

    def __init__(self, file: BinaryIO, name: str, terms: Mapping[str, Any]) -> None:
        self._file = file
        self._name = name
        self._places: dict[str, tuple[int, int, int]] = {}  # offset, rate, frames
        self._end = 0
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"Another process is working on {name}.") from None
        file.seek(0)
        self._begin(json.loads(json.dumps(dict(terms))))

    @classmethod
    def at(cls, path: Path, terms: Mapping[str, Any]) -> Self:
        """The takes at `path`, which is made if it is not there. Raises Failed, OSError."""
        path.touch()
        file = path.open("r+b")
        try:
            return cls(file, path.name, terms)
        except BaseException:
            file.close()
            raise

    def __contains__(self, text: str) -> bool:
        return _name_of(text) in self._places

    def add(self, text: str, audio: Audio) -> None:
        """Keep a take, out of this process's hands at once. Raises OSError."""
        told = {"text": _name_of(text), "rate": audio.rate, "frames": audio.frames}
        self._file.seek(self._end)
        self._file.write(_line(told) + audio.pcm)
        self._file.flush()
        self._places[_name_of(text)] = self._file.tell() - len(audio.pcm), audio.rate, audio.frames
        self._end = self._file.tell()

    def get(self, text: str) -> Audio:
        """A take that is there. Raises OSError."""
        offset, rate, frames = self._places[_name_of(text)]
        self._file.seek(offset)
        return Audio(rate, self._file.read(frames * _BYTES_PER_FRAME))

    def close(self) -> None:
        self._file.close()

    def _begin(self, terms: dict[str, Any]) -> None:
        line = self._file.readline(_LONGEST_LINE)
        if line.endswith(b"\n"):
            self._require_same(_read(line), terms)
            self._find_all()
        elif not (line.startswith(_MARK) or _MARK.startswith(line)):
            raise Failed(f"{self._name} is there, and nothing of ours: move it away.")
        else:  # new, or ended in its first line
            self._file.seek(0)
            self._file.write(_line({"takes": _VERSION, **terms}))
            self._cut_here()

    def _require_same(self, found: dict[str, Any], terms: dict[str, Any]) -> None:
        if found.pop("takes", None) != _VERSION:
            raise Failed(f"{self._name} is there, and nothing of ours: move it away.")
        others = [name for name in sorted({*found, *terms}) if found.get(name) != terms.get(name)]
        if others:
            told = ", ".join(
                f"{name} {_shown(found.get(name))}, not {_shown(terms.get(name))}"
                for name in others
            )
            raise Failed(
                f"{self._name} was begun with {told}: go on with that, or start anew by --restart."
            )

    def _find_all(self) -> None:
        size = self._file.seek(0, 2)
        self._file.seek(0)
        self._file.readline(_LONGEST_LINE)
        start = self._file.tell()
        while told := _read(self._file.readline(_LONGEST_LINE)):
            body = self._file.tell()
            end = body + told["frames"] * _BYTES_PER_FRAME
            if end > size:
                break
            self._places[told["text"]] = body, told["rate"], told["frames"]
            start = self._file.seek(end)
        self._file.seek(start)
        self._cut_here()

    def _cut_here(self) -> None:
        self._end = self._file.tell()
        self._file.truncate()
        self._file.flush()


def _name_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _line(told: Mapping[str, Any]) -> bytes:
    return json.dumps(told).encode() + b"\n"


def _read(line: bytes) -> dict[str, Any]:
    """What a line tells; nothing, if it is not whole."""
    try:
        told = json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
