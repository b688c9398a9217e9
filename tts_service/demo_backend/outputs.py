"""The WAV files that the demo backend has spoken."""

import itertools
import wave
from collections import deque
from pathlib import Path
from typing import Final

#: A file is fetched at once by the gateway, and within minutes by somebody at the page.
KEPT: Final = 256


class Outputs:
    """The newest files of a folder: writing one more deletes the oldest, so no disk fills up."""

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self.folder = folder
        self._kept = kept
        self._numbers = itertools.count(1)
        self._paths: deque[Path] = deque()

    def write(self, pcm: bytes, sample_rate: int) -> Path:
        """16-bit mono PCM as a WAV file whose name was never given before."""
        path = self.folder / f"speech-{next(self._numbers)}.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sample_rate)
            file.writeframes(pcm)
        self._paths.append(path)
        if len(self._paths) > self._kept:
            self._paths.popleft().unlink(missing_ok=True)
        return path
