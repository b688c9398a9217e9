"""Sound: what a backend's bytes become, what is done to it, and the bytes that go out.

    bytes ─ decode ─► Audio ─ stretch, resample, fade_edges ─► Audio ─ FORMATS[…].encoder ─► bytes

Everything works on mono 16-bit samples and FFmpeg's libraries; nothing here knows of requests.
"""

from .decoding import MEDIA_TYPES, UndecodableAudio, decode, media_type, seconds_of
from .filters import FASTEST, SLOWEST, Resampler, resample, stretch
from .formats import FORMATS, Encoder, Format
from .levels import audible_seconds, clipped_share
from .sound import Audio, fade_edges, silence, wav, wav_header

__all__ = [
    "FASTEST",
    "FORMATS",
    "MEDIA_TYPES",
    "SLOWEST",
    "Audio",
    "Encoder",
    "Format",
    "Resampler",
    "UndecodableAudio",
    "audible_seconds",
    "clipped_share",
    "decode",
    "fade_edges",
    "media_type",
    "resample",
    "seconds_of",
    "silence",
    "stretch",
    "wav",
    "wav_header",
]
