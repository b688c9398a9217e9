"""Tones, and the files a text-to-speech server might put them in."""

import struct
import wave
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import av
import numpy as np
import numpy.typing as npt

Samples: TypeAlias = npt.NDArray[np.int16]

IEEE_FLOAT = 3  # WAVE_FORMAT_IEEE_FLOAT of mmreg.h


class Sound(NamedTuple):
    """Mono sound; a pair, because that is what Gradio takes."""

    rate: int
    samples: Samples


def tone(frequency: float, seconds: float, rate: int = 24_000) -> Sound:
    """A sine at a quarter of full scale."""
    time = np.arange(round(seconds * rate)) / rate
    return Sound(rate, (8192 * np.sin(2 * np.pi * frequency * time)).astype(np.int16))


def speech(text: str, recording: bytes, seconds: float, rate: int) -> Sound:
    """A tone of 200 to 800 Hz that differs with the text and with the recording."""
    digest = zlib.crc32(text.encode(), zlib.crc32(recording))
    return tone(200 + 600 * digest / 2**32, seconds, rate)


def write_wav(path: Path, sound: Sound) -> None:
    """16-bit mono."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, sound.rate, 0, "NONE", ""))
        file.writeframes(sound.samples.tobytes())


def write_prompts(folder: Path) -> None:
    """Two recordings of 8 s at 24 kHz, `default.wav` and `chixiaotu6.wav`, in a new folder."""
    folder.mkdir()
    write_wav(folder / "default.wav", tone(220, 8))
    write_wav(folder / "chixiaotu6.wav", tone(330, 8))


def write_float_wav(path: Path, sound: Sound) -> None:
    """32-bit float, stereo, both channels alike."""
    scaled = (sound.samples / 32768).astype("<f4")
    data = np.column_stack((scaled, scaled)).tobytes()
    form = struct.pack("<HHIIHH", IEEE_FLOAT, 2, sound.rate, sound.rate * 8, 8, 32)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)


def write_mp3(path: Path, sound: Sound) -> None:
    """Mono at the encoder's default bit rate."""
    _encode(path, sound, "mp3", "mp3")


def write_aac(path: Path, sound: Sound) -> None:
    """ADTS, as in the pieces of an HLS stream."""
    _encode(path, sound, "aac", "adts")


def _encode(path: Path, sound: Sound, codec: Literal["mp3", "aac"], container: str) -> None:
    frame = av.AudioFrame.from_ndarray(sound.samples.reshape(1, -1), "s16", "mono")
    frame.sample_rate = sound.rate
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=sound.rate, layout="mono")
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def seconds_of(path: Path) -> float | None:
    """How long a recording really lasts, by decoding it; None if that is not possible."""
    try:
        with av.open(str(path)) as file:
            return sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))
    except (av.FFmpegError, IndexError):
        return None


#: What becomes of a good file's bytes. 44 is the length of the header that `wave` writes; its
#: sizes, at 4 and 40, are set to nothing, as in a file whose writer found no sound to write.
SPOILED: Mapping[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "headonly": lambda wav: wav[:4] + struct.pack("<I", 36) + wav[8:40] + bytes(4),
    "truncated": lambda file: file[: len(file) // 2],
    "notaudio": lambda _: b"<!DOCTYPE html><title>502 Bad Gateway</title>",
}
