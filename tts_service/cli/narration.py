"""A text's sound as it is written: its takes in order, at their speed, with pauses, in a format."""

from collections.abc import Sequence
from typing import BinaryIO

from tts_service.audio import (
    HEAD_SIZE,
    Audio,
    Encoder,
    Format,
    fade_edges,
    resample,
    silence,
    stretch,
)
from tts_service.cli.takes import Takes
from tts_service.cues import Cue, span


class Narration:
    """Writes `texts` to `file` as soon as their takes are there, and notes when each is heard.

    What is in memory does not grow with the sound.
    """

    def __init__(
        self,
        texts: Sequence[str],
        takes: Takes,
        file: BinaryIO,
        *,
        form: Format,
        speed: float,
        pause: float,
    ) -> None:
        self._texts = texts
        self._takes = takes
        self._file = file
        self._form = form
        self._speed = speed
        self._pause = pause  # seconds
        self._encoder: Encoder | None = None
        self._rate = 0
        self._frames = 0
        self._written = 0  # bytes
        self._delay = 0.0  # seconds before the sound
        self.cues: list[Cue] = []

    @property
    def seconds(self) -> float:
        """Of sound so far."""
        return self._frames / self._rate if self._rate else 0.0

    @property
    def is_complete(self) -> bool:
        return len(self.cues) == len(self._texts)

    @property
    def can_go_on(self) -> bool:
        """Whether the next take is there."""
        return not self.is_complete and self._texts[len(self.cues)] in self._takes

    def go_on(self) -> None:
        """Write the next text. Raises OSError."""
        text = self._texts[len(self.cues)]
        take = self._takes.get(text)
        self._rate = self._rate or take.rate
        if self._encoder is None:
            self._encoder = self._form.encoder(self._rate, streamed=True)
            self._delay = self._encoder.delay
        sound = fade_edges(resample(stretch(take, self._speed), self._rate))
        start = self.seconds
        self._write(sound)
        self.cues.append(Cue(text, *span(self._delay + start, self._delay + self.seconds)))
        if not self.is_complete:
            self._write(silence(self._rate, self._pause))
        self._file.flush()  # somebody may listen already

    def finish(self) -> None:
        """The end; and the length into the header, where the file can be written to there."""
        if self._encoder is None:
            return
        self._put(self._encoder.flush())
        if self._file.seekable() and self._file.readable():
            self._file.seek(0)
            head = self._form.completed_head(
                self._file.read(HEAD_SIZE), self._written, self._frames
            )
            if head is not None:
                self._file.seek(0)
                self._file.write(head)

    def close(self) -> None:
        if self._encoder is not None:
            self._encoder.close()

    def _write(self, audio: Audio) -> None:
        assert self._encoder is not None
        self._put(self._encoder.encode(audio))
        self._frames += audio.frames

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._written += len(data)
