"""espeak-ng by ctypes: text in, 16-bit mono PCM out.

The names and numbers are those of espeak-ng's `speak_lib.h` (1.52). The library and its data come
from the `espeakng-loader` wheel.
"""

import ctypes
import re
import threading
import unicodedata
from typing import Any, Final, NamedTuple

import espeakng_loader

AUDIO_OUTPUT_SYNCHRONOUS: Final = 2
INITIALIZE_DONT_EXIT: Final = 0x8000
CHARS_UTF8: Final = 1
POS_CHARACTER: Final = 1
RATE, VOLUME, PITCH = 1, 2, 3

#: Milliseconds. A smaller buffer means more callbacks, and each of them fights for the GIL.
BUFFER_MS: Final = 1000
#: Some variants reach full scale at espeak-ng's own 100.
LOUDNESS: Final = 85
SAMPLE_BYTES: Final = 2
#: An answer shorter than this would look like a failure to whoever plays it.
SHORTEST_SECONDS: Final = 0.1

#: CJK ideographs with their extensions, and the iteration mark 々.
HANZI: Final = re.compile(
    "[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)

SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class EspeakError(RuntimeError):
    """espeak-ng cannot be loaded, or refused a call."""


class Voice(NamedTuple):
    """How espeak-ng is to sound."""

    variant: str  #: one of espeak-ng's variants: f1..f5, m1..m8
    pitch: int  #: 0 to 99; 50 is the variant's own
    rate: int  #: words per minute; 175 is espeak-ng's own


class Espeak:
    """The library, initialised. It keeps its state in C globals: have one of these per process."""

    def __init__(self) -> None:
        """Load the library and its data.

        Raises:
            EspeakError: the library or its data cannot be loaded.
        """
        self._lock = threading.Lock()
        self._pcm: list[bytes] = []
        self._library = _library()
        #: Samples per second of everything that is spoken.
        self.sample_rate = _initialise(self._library)
        # ctypes does not keep the callback alive; this reference does.
        self._callback = SynthCallback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: Voice) -> bytes:
        """Speak `text` as 16-bit mono PCM at `sample_rate`; at least a tenth of a second of it.

        Text without a letter or digit is silence. Safe to call from several threads: they take
        turns, because espeak-ng itself crashes the process otherwise. Not the same bytes twice.

        Raises:
            EspeakError: espeak-ng refused the voice or the text.
        """
        pcm = self._synthesize(plain(text), voice) if is_speakable(text) else b""
        return pcm.ljust(int(SHORTEST_SECONDS * self.sample_rate) * SAMPLE_BYTES, b"\0")

    def _synthesize(self, text: str, voice: Voice) -> bytes:
        encoded = text.encode("utf-8", "replace")
        with self._lock:
            self._pcm.clear()
            self._choose(f"{language_of(text)}+{voice.variant}".encode(), voice)
            # No SSML and no [[phonemes]]: the text is read as it stands.
            status = self._library.espeak_Synth(
                encoded, len(encoded) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None
            )
            _check(status, "cannot speak this text")
            return b"".join(self._pcm)

    def _choose(self, name: bytes, voice: Voice) -> None:
        _check(self._library.espeak_SetVoiceByName(name), f"has no voice {name.decode()}")
        for parameter, value in ((RATE, voice.rate), (PITCH, voice.pitch), (VOLUME, LOUDNESS)):
            _check(self._library.espeak_SetParameter(parameter, value, 0), f"refuses {voice}")

    def _collect(self, samples: Any, count: int, _events: int | None) -> int:
        """Keep `count` samples; 0 asks espeak-ng to go on. `samples` is NULL at the end."""
        if samples and count > 0:
            self._pcm.append(ctypes.string_at(samples, count * SAMPLE_BYTES))
        return 0


def is_speakable(text: str) -> bool:
    """Whether there is a letter or digit to speak: espeak-ng would read emoji out by name."""
    return any(character.isalnum() for character in text)


def plain(text: str) -> str:
    """`text` with spaces for control characters: NUL ends a text, U+0001 begins a command."""
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)


def language_of(text: str) -> str:
    """`cmn` where there is any Hanzi (it reads Latin words as English), else `en-us`."""
    return "cmn" if HANZI.search(text) else "en-us"


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise EspeakError(f"espeak-ng cannot be loaded: {error}") from error
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    return library


def _initialise(library: ctypes.CDLL) -> int:
    """Hand espeak-ng its data; the sample rate."""
    data: str = espeakng_loader.get_data_path()  # type: ignore[no-untyped-call]
    rate: int = library.espeak_Initialize(
        AUDIO_OUTPUT_SYNCHRONOUS, BUFFER_MS, data.encode(), INITIALIZE_DONT_EXIT
    )
    if rate <= 0:
        # Its path buffers hold some 160 bytes; a longer path is cut without a word.
        raise EspeakError(f"espeak-ng cannot read its data in {data} ({len(data)} bytes of path)")
    return rate


def _check(status: int, complaint: str) -> None:
    if status != 0:
        raise EspeakError(f"espeak-ng {complaint} (error {status})")
