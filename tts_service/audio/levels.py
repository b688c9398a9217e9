"""How loud a sound is: whether there is anything to hear, and whether it fits its range."""

import array
import itertools
import sys
from collections.abc import Iterator

from .sound import Audio

#: A window is shorter than the pauses between words, and longer than a period of any voice.
_WINDOW_SECONDS = 0.05
#: -50 dB of full scale, from top to bottom: above the noise of an empty room, below any speech.
_AUDIBLE_SWING = 208
#: -2 dB of full scale. Where a flat top is lower than this, it was never cut off.
_LOUD = 26_000
_FLAT_RUN = 3  # samples in a row; two at the top are a peak


def audible_seconds(audio: Audio) -> float:
    """For how long there is something to hear; a constant, however high, is silence."""
    audible = sum(
        len(window) for window in _windows(audio) if max(window) - min(window) >= _AUDIBLE_SWING
    )
    return audible / audio.rate


def clipped_share(audio: Audio) -> float:
    """The part of the samples that lie in a flat top, 0 to 1.

    A sound too loud for what recorded it has its peaks cut off, near full scale. Of one that fits,
    hardly any are: less than 1 %, even of a deep and pure tone. A lossy format rounds flat tops;
    then only those that reach full scale are found.
    """
    peaks = [max(max(window), -min(window)) for window in _windows(audio)]
    top = max(peaks, default=0) - 1  # converters round
    if top < _LOUD:
        return 0.0
    loud = (window for window, peak in zip(_windows(audio), peaks, strict=True) if peak >= top)
    return sum(_flat_samples(window, top) for window in loud) / audio.frames


def _flat_samples(window: "array.array[int]", top: int) -> int:
    sides = itertools.groupby(window, lambda sample: (sample >= top) - (sample <= -top))
    runs = (len([*run]) for side, run in sides if side)
    return sum(run for run in runs if run >= _FLAT_RUN)


def _windows(audio: Audio) -> Iterator["array.array[int]"]:
    samples = array.array("h", audio.pcm)
    if sys.byteorder == "big":
        samples.byteswap()
    size = max(1, round(_WINDOW_SECONDS * audio.rate))
    return (samples[at : at + size] for at in range(0, len(samples), size))
