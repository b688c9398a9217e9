"""Audio to bytes: the six formats of OpenAI's API, in one table."""

import io
import struct
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import av

from .filters import Resampler, frame_of, resample
from .sound import UNKNOWN_SIZE, WAV_HEADER_SIZE, Audio, silence, wav_header

#: Seconds of silence before the sound where the first packet is left out: packets overlap, and the
#: end of the missing one would be heard as a blur.
_CLEAN_START = 0.006

#: Bytes at the beginning of a stream in which everything stands that depends on its length.
HEAD_SIZE = WAV_HEADER_SIZE


class Encoder(Protocol):
    """Turns one sound, given in pieces, into the bytes of one answer.

    All pieces should have the rate that the encoder was made for: then what resampling there is
    runs on through the joins. One of another rate is resampled by itself.
    """

    @property
    def delay(self) -> float:
        """Seconds that a player hears before the sound begins."""
        ...

    def encode(self, audio: Audio) -> bytes:
        """The bytes that are ready so far and were not given out before; maybe none."""
        ...

    def flush(self) -> bytes:
        """The rest. Nothing may be encoded after it."""
        ...

    def close(self) -> None:
        """Lets go of an encoder that will not be flushed. May be called at any time, repeatedly."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """How one format is made, and what it is called on the wire."""

    name: str
    content_type: str
    #: FFmpeg's names. Without a codec the samples go out as they are.
    codec: str | None = None
    container: str | None = None
    bit_rate: int | None = None
    #: The rates in Hz that it may have, rising; none: every rate.
    rates: tuple[int, ...] = ()
    codec_options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)
    #: Container options for an answer that goes out while it is made.
    streaming_options: Mapping[str, str] = field(default_factory=dict)
    #: Samples of silence that codec and decoder put before the sound, and no header tells to skip.
    lead_in: int = 0
    #: Whether packets that hold nothing else may be left out.
    drops_lead_in: bool = False

    def rate_for(self, rate: int) -> int:
        """The lowest rate of this format that keeps all of a sound of `rate` Hz, or its highest."""
        return next((r for r in self.rates if r >= rate), max(self.rates, default=rate))

    def encoder(self, rate: int, *, streamed: bool) -> Encoder:
        """An encoder for pieces of `rate` Hz.

        `streamed`: bytes come out as soon as they can, none is ever taken back, and lengths
        that cannot be known stay open. Else all of them come from `flush`, with exact lengths.
        """
        if self.codec is None:
            return _SampleEncoder(self, rate, streamed=streamed)
        return _CodecEncoder(self, rate, streamed=streamed)

    def delay(self, rate: int) -> float:
        """Seconds that a player hears before a sound of `rate` Hz begins."""
        encoder = self.encoder(rate, streamed=False)
        try:
            return encoder.delay
        finally:
            encoder.close()

    def completed(self, streamed: bytes, frames: int) -> bytes:
        """All bytes of a stream of `frames` samples, its header now telling the length."""
        head = self.completed_head(streamed[:HEAD_SIZE], len(streamed), frames)
        return streamed if head is None else head + streamed[HEAD_SIZE:]

    def completed_head(self, head: bytes, size: int, frames: int) -> bytes | None:
        """What the first `HEAD_SIZE` bytes of a stream of `size` bytes and `frames` samples should
        be, now that both are known; None if they may stay. Of a WAV over 4 GiB, which cannot tell
        its length, they stay as well."""
        match self.container:
            case "wav" if size - 8 < UNKNOWN_SIZE:
                return _completed_wav(head, size)
            case "flac":
                return _completed_flac(head, frames)
            case _:
                return None


def _completed_wav(head: bytes, size: int) -> bytes:
    completed = bytearray(head)
    struct.pack_into("<I", completed, 4, size - 8)
    struct.pack_into("<I", completed, WAV_HEADER_SIZE - 4, size - WAV_HEADER_SIZE)
    return bytes(completed)


def _completed_flac(head: bytes, frames: int) -> bytes:
    """RFC 9639, 8.2: the last 36 of these 64 bits of the streaminfo are the number of samples."""
    completed = bytearray(head)
    (shape_and_length,) = struct.unpack_from(">Q", completed, 18)
    struct.pack_into(">Q", completed, 18, shape_and_length >> 36 << 36 | frames)
    return bytes(completed)


_TABLE = (
    Format("wav", "audio/wav", container="wav"),
    Format(
        "mp3",
        "audio/mpeg",
        codec="libmp3lame",
        container="mp3",
        bit_rate=128_000,
        # Not below 24 kHz, nor 32: frames are so long there that padding shows in the duration.
        rates=(24_000, 44_100, 48_000),
        # Without a bit reservoir every frame stands alone, so that files can be cut and joined,
        # and the first one left out.
        codec_options={"compression_level": "7", "reservoir": "0"},
        container_options={"write_xing": "0", "id3v2_version": "0"},
        # LAME's 576 and the decoder's 529. Only the Xing header could tell players to skip them.
        lead_in=1105,
        drops_lead_in=True,
    ),
    Format(
        "opus",
        "audio/ogg",
        codec="libopus",
        container="ogg",
        bit_rate=48_000,
        rates=(16_000, 24_000, 48_000),
        codec_options={"vbr": "constrained", "application": "voip"},
        # No random serial number: workers that answer parts of one file must agree about its bytes.
        container_options={"fflags": "+bitexact"},
        streaming_options={"page_duration": "200000"},  # µs; a second by default
    ),
    Format(
        "aac",
        "audio/aac",
        codec="aac",
        container="adts",
        bit_rate=96_000,
        # Not below 24 kHz, for the same reason as mp3.
        rates=(24_000, 32_000, 44_100, 48_000),
        # A fifth of the default's work and as true to voices; only pure tones near full scale lose
        # up to 3 dB.
        codec_options={"aac_coder": "fast"},
        lead_in=1024,  # its packets overlap: none can be left out
    ),
    Format(
        "flac",
        "audio/flac",
        codec="flac",
        container="flac",
        container_options={"metadata_header_padding": "0"},  # else 8 KiB that nobody will fill
    ),
    Format("pcm", "audio/pcm", rates=(24_000,)),
)

#: Every format by its name in OpenAI's API.
FORMATS: Mapping[str, Format] = MappingProxyType({format_.name: format_ for format_ in _TABLE})


class _SampleEncoder:
    """wav and pcm: the samples themselves, with or without a header."""

    delay = 0.0

    def __init__(self, format_: Format, rate: int, *, streamed: bool) -> None:
        self._resampler = Resampler(rate, format_.rate_for(rate))
        self._streamed = streamed
        self._has_header = format_.container == "wav"
        self._ready = [self._header(None)] if streamed else []

    def encode(self, audio: Audio) -> bytes:
        self._ready.append(self._resampler.feed(resample(audio, self._resampler.source).pcm))
        return self._taken() if self._streamed else b""

    def flush(self) -> bytes:
        self._ready.append(self._resampler.flush())
        if not self._streamed:
            self._ready.insert(0, self._header(sum(map(len, self._ready))))
        return self._taken()

    def close(self) -> None:
        self._ready.clear()

    def _header(self, size: int | None) -> bytes:
        return wav_header(self._resampler.target, size) if self._has_header else b""

    def _taken(self) -> bytes:
        taken = b"".join(self._ready)
        self._ready.clear()
        return taken


class _Wire:
    """Where a streamed answer is written to. It cannot seek, and FFmpeg sees that: it then writes
    headers that need no correction later.
    """

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def taken(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self._written)
        self._written.clear()
        return taken

    rest = taken


class _Buffer(io.BytesIO):
    """Where a whole answer is written to: FFmpeg may go back and enter the lengths."""

    def taken(self) -> bytes:
        return b""

    def rest(self) -> bytes:
        return self.getvalue()


class _CodecEncoder:
    """One stream in one container, by FFmpeg. Its native memory goes when the object does."""

    def __init__(self, format_: Format, rate: int, *, streamed: bool) -> None:
        assert format_.codec is not None
        self._rate = rate
        self._frames = 0
        self._sink = _Wire() if streamed else _Buffer()
        options = {**format_.container_options, **(format_.streaming_options if streamed else {})}
        self._container = av.open(
            self._sink, mode="w", format=format_.container, container_options=options
        )
        # A container and its streams refer to each other until it is closed: left to the garbage
        # collector, the encoders of departed clients would pile up by megabytes.
        self._closing = weakref.finalize(self, self._container.close)
        stream = self._container.add_stream(
            format_.codec, rate=format_.rate_for(rate), options=dict(format_.codec_options)
        )
        assert isinstance(stream, av.AudioStream)
        self._stream = stream
        self._stream.layout = "mono"
        if format_.bit_rate:
            self._stream.bit_rate = format_.bit_rate
        self._container.start_encoding()
        packet = max(1, self._stream.codec_context.frame_size)
        self._packets_to_skip = format_.lead_in // packet if format_.drops_lead_in else 0
        lead_in = format_.lead_in - self._packets_to_skip * packet
        self.delay = lead_in / self._stream.codec_context.sample_rate
        if self._packets_to_skip:
            self._feed(silence(rate, _CLEAN_START))
            self.delay += _CLEAN_START

    def encode(self, audio: Audio) -> bytes:
        self._feed(audio)
        return self._sink.taken()

    def flush(self) -> bytes:
        self._write(None)
        self.close()
        return self._sink.rest()

    def close(self) -> None:
        self._closing()

    def _feed(self, audio: Audio) -> None:
        if audio.pcm:
            # The stream brings the samples to its own rate, in one go through all pieces.
            piece = resample(audio, self._rate)
            self._write(frame_of(piece, self._frames))
            self._frames += piece.frames

    def _write(self, frame: av.AudioFrame | None) -> None:
        for packet in self._stream.encode(frame):
            if self._packets_to_skip:
                self._packets_to_skip -= 1
            else:
                self._container.mux(packet)
