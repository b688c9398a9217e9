"""How loud a sound is: whether there is anything to hear, and whether it fits its range."""

import array
import sys
from collections.abc import Iterator

from .sound import Audio

#: A window is shorter than the pauses between words, and longer than a period of any voice.
_WINDOW_SECONDS = 0.05
#: -50 dB of full scale, from top to bottom: above the noise of an empty room, below any speech.
_AUDIBLE_SWING = 208
#: At full scale, but for what an encoder may have lost.
_FULL_SCALE = 32_700


def audible_seconds(audio: Audio) -> float:
    """For how long there is something to hear; a constant, however high, is silence."""
    audible = sum(
        len(window) for window in _windows(audio) if max(window) - min(window) >= _AUDIBLE_SWING
    )
    return audible / audio.rate


def clipped_share(audio: Audio) -> float:
    """The part of the samples that stand at full scale, 0 to 1: a sound that is too loud for its
    range has its peaks cut off there."""
    clipped = sum(
        sum(abs(sample) >= _FULL_SCALE for sample in window)
        for window in _windows(audio)
        if max(window) >= _FULL_SCALE or min(window) <= -_FULL_SCALE
    )
    return clipped / max(1, audio.frames)


def _windows(audio: Audio) -> Iterator["array.array[int]"]:
    samples = array.array("h", audio.pcm)
    if sys.byteorder == "big":
        samples.byteswap()
    size = max(1, round(_WINDOW_SECONDS * audio.rate))
    return (samples[at : at + size] for at in range(0, len(samples), size))
