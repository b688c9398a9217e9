"""Sound: what a backend's bytes become, what is done to it, and the bytes that go out.

    bytes ─ decode ─► Audio ─ stretch, resample, fade_edges ─► Audio ─ FORMATS[…].encoder ─► bytes

Everything works on mono 16-bit samples and FFmpeg's libraries; nothing here knows of requests.
"""

from .decoding import UndecodableAudio, decode
from .filters import FASTEST, SLOWEST, Resampler, resample, stretch
from .formats import FORMATS, HEAD_SIZE, Encoder, Format
from .sound import Audio, fade_edges, silence, wav, wav_header

__all__ = [
    "FASTEST",
    "FORMATS",
    "HEAD_SIZE",
    "SLOWEST",
    "Audio",
    "Encoder",
    "Format",
    "Resampler",
    "UndecodableAudio",
    "decode",
    "fade_edges",
    "resample",
    "silence",
    "stretch",
    "wav",
    "wav_header",
]
