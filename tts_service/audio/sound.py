"""Audio itself, and what needs nothing but its samples: WAV around them, soft edges for joins."""

import struct
from dataclasses import dataclass

BYTES_PER_FRAME = 2
WAV_HEADER_SIZE = 44

#: The size of a RIFF file whose end is not known yet. Readers take it for "until the end"; 0 would
#: be taken at its word by several.
UNKNOWN_SIZE = 0xFFFFFFFF

#: -60 dB of full scale: a step of this height is no click.
_INAUDIBLE = 32


@dataclass(frozen=True, slots=True)
class Audio:
    """Mono sound: `pcm` holds signed 16-bit little-endian samples, `rate` of them a second."""

    rate: int
    pcm: bytes

    @property
    def frames(self) -> int:
        """Samples; the sound is mono, so a frame is one sample."""
        return len(self.pcm) // BYTES_PER_FRAME

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def silence(rate: int, seconds: float) -> Audio:
    """Digital silence, to the nearest sample."""
    return Audio(rate, bytes(round(rate * seconds) * BYTES_PER_FRAME))


def wav(audio: Audio) -> bytes:
    """A whole WAV file: the 44-byte header with exact sizes, then the samples as they are."""
    return wav_header(audio.rate, len(audio.pcm)) + audio.pcm


def wav_header(rate: int, data_size: int | None = None) -> bytes:
    """The 44 bytes before `data_size` bytes of mono 16-bit samples; None: a stream without an end.

    Layout: Multimedia Programming Interface and Data Specifications 1.0 (IBM, Microsoft), WAVE.
    """
    riff_size = UNKNOWN_SIZE if data_size is None else WAV_HEADER_SIZE - 8 + data_size
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        riff_size,
        b"WAVE",
        b"fmt ",
        16,  # bytes of format that follow
        1,  # integer samples
        1,  # channel
        rate,
        rate * BYTES_PER_FRAME,
        BYTES_PER_FRAME,
        8 * BYTES_PER_FRAME,
        b"data",
        UNKNOWN_SIZE if data_size is None else data_size,
    )


def fade_edges(audio: Audio, seconds: float = 0.005) -> Audio:
    """The same sound with both ends led to zero, so that a pause can stand beside it without a
    click. An end that is as good as silent stays untouched; if both are, so does the object.
    """
    length = min(round(seconds * audio.rate), audio.frames // 2)
    if not length:
        return audio
    edge = struct.Struct(f"<{length}h")
    end = len(audio.pcm) - edge.size
    head, tail = edge.unpack_from(audio.pcm), edge.unpack_from(audio.pcm, end)
    starts_hard, ends_hard = abs(head[0]) > _INAUDIBLE, abs(tail[-1]) > _INAUDIBLE
    if not starts_hard and not ends_hard:
        return audio
    pcm = bytearray(audio.pcm)
    if starts_hard:
        edge.pack_into(pcm, 0, *(s * i // length for i, s in enumerate(head)))
    if ends_hard:
        edge.pack_into(pcm, end, *(s * (length - 1 - i) // length for i, s in enumerate(tail)))
    return Audio(audio.rate, bytes(pcm))
