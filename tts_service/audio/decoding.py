"""Bytes to Audio: whatever a backend or a person sends that FFmpeg knows as a recording."""

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import av
from av.container import InputContainer

from .filters import pcm_of
from .sound import BYTES_PER_FRAME, Audio

#: FFmpeg's names of the containers that hold their sound themselves. Playlists and scripts (hls,
#: dash, concat, …) would have it open files and addresses of the sender's choice.
_CONTAINERS = "wav,w64,mp3,flac,ogg,mov,aac,matroska,aiff,au,caf,amr"

#: How a file begins, by what it is.
_MAGIC = {
    b"fLaC": "audio/flac",
    b"OggS": "audio/ogg",
    b"ID3": "audio/mpeg",
    b"\x1a\x45\xdf\xa3": "audio/webm",
    b"FORM": "audio/aiff",
}
_UNKNOWN_TYPE = "application/octet-stream"

#: All that `media_type` tells.
MEDIA_TYPES = tuple(
    dict.fromkeys([*_MAGIC.values(), "audio/wav", "audio/mp4", "audio/aac", _UNKNOWN_TYPE])
)

#: Containers that state the length of their sound; the others leave FFmpeg to guess it.
_STATE_THEIR_LENGTH = {"aiff", "au", "caf", "flac", "mov,mp4,m4a,3gp,3g2,mj2", "w64"}

#: Beyond these a rate in Hz is a damaged header, and a pause at that rate might fill the memory.
#: Each frame has a rate of its own: one at 1 Hz would be hours at that of the first.
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 384_000

#: A few kilobytes can hold hours of silence. So much mono sound is taken at most: 11 minutes at
#: 24 kHz, more than a segment or a recording ever has.
_LARGEST_SOUND = 32 * 1024 * 1024  # bytes
_MOST_SAMPLES = 4 * _LARGEST_SOUND // BYTES_PER_FRAME  # of all channels, before they are mixed

#: Encoder delay and edit lists may make a header promise this much more than there is to hear.
_TOLERANCE_SECONDS = 0.25

#: Streaming writers put 0xFFFFFFFF, 0x7FFFFFFF or just below into a size they cannot know.
_PLACEHOLDER_SIZE = 0x7FFF0000

_FAR_TOO_LONG = "the recording is far too long"
_INTEGER, _EXTENSIBLE = 0x0001, 0xFFFE
#: What follows the format tag in WAVE_FORMAT_EXTENSIBLE's GUID, if it is a tag at all.
_TAG_GUID = bytes.fromhex("000000001000800000aa00389b71")


class UndecodableAudio(ValueError):
    """These bytes are no usable recording; the message says why."""


def decode(data: bytes, *, longest: float | None = None, is_strict: bool = False) -> Audio:
    """Any recording as mono 16-bit Audio at its own rate; at most its first `longest` seconds.

    A mono 16-bit WAV keeps its samples bit for bit. Nothing beyond `longest` is decoded, and
    nothing but `data` is ever opened. Raises UndecodableAudio: empty, cut short, damaged,
    a playlist, no sound in it, far too much of it, or no recording at all. With `longest`,
    compressed sound that was cut short is refused only if that `is_strict`: some of it is enough
    for most purposes.
    """
    if not data:
        raise UndecodableAudio("the recording is empty")
    if data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"#EXTM3U"):
        raise UndecodableAudio("this is an HLS playlist, not a recording")
    wave = _Wave.read(data) if _is_wave(data) else None
    if wave and wave.is_plain:
        audio = Audio(wave.rate, wave.samples(longest))
    else:
        bare = wave.bare() if wave else data
        audio = _decode_container(bare, longest, is_strict or longest is None)
    if not audio.pcm:
        raise UndecodableAudio("the recording holds no samples")
    _require_rate(audio.rate)
    return audio


def seconds_of(data: bytes) -> float:
    """How long a recording lasts by its own account, without decoding it; exact for a WAV.

    Raises UndecodableAudio for what is no recording at all.
    """
    wave = _Wave.read(data) if _is_wave(data) else None
    if wave and wave.is_plain:
        return len(wave.data) / BYTES_PER_FRAME / max(1, wave.rate)
    with _open(wave.bare() if wave else data) as container:
        return max(0.0, (container.duration or 0) / av.time_base)


def media_type(data: bytes) -> str:
    """The media type of a recording, by how its bytes begin."""
    if _is_wave(data):
        return "audio/wav"
    if data[4:8] == b"ftyp":
        return "audio/mp4"
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    # MPEG's sync word is 11 bits; the two that follow the version tell ADTS (layer 0) from MP3.
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return "audio/mpeg" if data[1] & 0x06 else "audio/aac"
    return _UNKNOWN_TYPE


def _is_wave(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def _require_rate(rate: int) -> None:
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise UndecodableAudio(f"{rate} Hz is no sampling rate of a recording")


@dataclass(frozen=True, slots=True)
class _Wave:
    """A RIFF WAVE file, its chunks found: `format` is the body of "fmt ", `data` of "data"."""

    format: bytes
    data: memoryview

    @classmethod
    def read(cls, data: bytes) -> "_Wave":
        """Raises UndecodableAudio if a chunk is missing or cut."""
        format_ = b""
        for name, body, size in _chunks(data):
            if name == b"data":
                if _is_streamed(size, data):
                    return cls(format_, data=memoryview(data)[body:])
                if body + size > len(data):
                    missing = body + size - len(data)
                    raise UndecodableAudio(f"the WAV is truncated: {missing} bytes are missing")
                return cls(format_, memoryview(data)[body : body + size])
            if name == b"fmt ":
                format_ = data[body : body + size]
        raise UndecodableAudio("the WAV is truncated: it ends before its samples begin")

    @property
    def is_plain(self) -> bool:
        """Integer, mono and 16 bits wide: the samples are ours already."""
        if len(self.format) < 16:
            return False
        tag, channels, _, _, block, bits = struct.unpack_from("<HHIIHH", self.format)
        if tag == _EXTENSIBLE and self.format[26:40] == _TAG_GUID:
            (tag,) = struct.unpack_from("<H", self.format, 24)
        return (tag, channels, block, bits) == (_INTEGER, 1, BYTES_PER_FRAME, 16)

    @property
    def rate(self) -> int:
        (rate,) = struct.unpack_from("<I", self.format, 4)
        return int(rate)

    def samples(self, longest: float | None) -> bytes:
        frames = len(self.data) // BYTES_PER_FRAME
        if longest is not None:
            frames = min(frames, math.ceil(longest * self.rate))
        return bytes(self.data[: frames * BYTES_PER_FRAME])

    def bare(self) -> bytes:
        """The same sound with true sizes and no other chunks: FFmpeg stumbles over odd ones."""
        chunks = b"".join(
            (
                struct.pack("<4sI", b"fmt ", len(self.format)),
                self.format,
                bytes(len(self.format) % 2),
                struct.pack("<4sI", b"data", len(self.data)),
                self.data,
            )
        )
        return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset of the body and stated size of every chunk of a RIFF file."""
    offset = 12
    while offset + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, offset)
        yield name, offset + 8, size
        offset += 8 + size + size % 2  # a chunk of odd size is followed by a byte of padding


def _is_streamed(size: int, data: bytes) -> bool:
    """Whether the size of the samples is a placeholder, written before it was known."""
    (riff_size,) = struct.unpack_from("<I", data, 4)
    # A size of 0 is meant only where the file's own size is right.
    return size >= _PLACEHOLDER_SIZE or (size == 0 and riff_size + 8 != len(data))


def _open(data: bytes) -> InputContainer:
    try:
        return av.open(
            io.BytesIO(data),
            mode="r",
            metadata_errors="ignore",
            container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": ""},
        )
    except av.FFmpegError as error:
        raise UndecodableAudio("this is not audio in any container that FFmpeg knows") from error


def _decode_container(data: bytes, longest: float | None, is_strict: bool) -> Audio:
    with _open(data) as container:
        try:
            return _decode_stream(container, longest, is_strict)
        except av.FFmpegError as error:
            raise UndecodableAudio("the recording is truncated or damaged") from error


def _decode_stream(container: InputContainer, longest: float | None, is_strict: bool) -> Audio:
    if not container.streams.audio:
        raise UndecodableAudio("there is no audio stream in this file")
    stream = container.streams.audio[0]
    if stream.codec_context is None:  # PyAV's stubs do not tell
        raise UndecodableAudio("FFmpeg knows no decoder for this recording")
    rate = stream.codec_context.sample_rate
    _require_rate(rate)  # before anything is brought to it
    frames = _mono(container.decode(stream), rate)
    if longest is None:
        audio = Audio(rate, _at_most(frames, _LARGEST_SOUND))
        if len(audio.pcm) == _LARGEST_SOUND:
            raise UndecodableAudio(_FAR_TOO_LONG)
    else:
        audio = Audio(rate, _at_most(frames, math.ceil(longest * rate) * BYTES_PER_FRAME))
    states_length = is_strict and container.format.name in _STATE_THEIR_LENGTH
    if states_length and stream.duration and stream.time_base:
        stated = float(stream.duration * stream.time_base)
        if audio.seconds + _TOLERANCE_SECONDS < min(stated, longest or stated):
            raise UndecodableAudio(
                f"the recording is truncated: {audio.seconds:.1f} of {stated:.1f} s are there"
            )
    return audio


def _mono(frames: Iterator[av.AudioFrame], rate: int) -> Iterator[av.AudioFrame]:
    """The frames mixed down to mono 16 bits at `rate` Hz."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    shape: tuple[str, str, int] | None = None
    samples = 0
    for frame in frames:
        _require_rate(frame.sample_rate)
        samples += frame.samples * frame.layout.nb_channels
        if samples > _MOST_SAMPLES:
            raise UndecodableAudio(_FAR_TOO_LONG)
        # Joined files may change their shape half-way; a resampler takes only one.
        before, shape = shape, (frame.format.name, frame.layout.name, frame.sample_rate)
        if before not in (None, shape):
            yield from _rest(resampler)
            resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
        yield from resampler.resample(frame)
    yield from _rest(resampler)


def _rest(resampler: av.AudioResampler) -> Iterator[av.AudioFrame]:
    # One that had nothing to do hands the None back.
    yield from (frame for frame in resampler.resample(None) if frame is not None)


def _at_most(frames: Iterator[av.AudioFrame], size: int) -> bytes:
    """The first `size` bytes of the samples; further frames are not even decoded."""
    pcm = bytearray()
    while len(pcm) < size and (frame := next(frames, None)):
        pcm += pcm_of([frame])
    return bytes(pcm[:size])
