"""From a reference recording to the voice that stands in for it.

espeak-ng cannot imitate anybody. It can be high where the recording is high and low where it is
low, and it can differ wherever two recordings differ: the measured pitch decides the register, the
bytes of the recording all the rest.
"""

import hashlib
import io
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from tts_service.demo_backend.espeak import Voice

#: IndexTTS listens to no more than this either.
LISTEN_SECONDS: Final = 15
SAMPLE_RATE: Final = 16_000
#: Samples; one frame in two is enough for a median.
FRAME, HOP = 1024, 2048
LOWEST_HZ, HIGHEST_HZ = 60, 400
#: A frame is voiced if it repeats itself at least this well after one period; 1 is perfectly.
PERIODIC: Final = 0.5
#: RMS of a 16-bit frame below which there is only background.
AUDIBLE: Final = 200
#: A playlist is a file that FFmpeg would follow to other files, and to the internet.
NO_OTHER_FILES: Final = {"protocol_whitelist": "none"}

FEMALE = tuple(f"f{number}" for number in range(1, 6))
MALE = tuple(f"m{number}" for number in range(1, 9))
#: Between most men (85 to 155 Hz) and most women (165 to 255 Hz).
REGISTERS_PART_HZ: Final = 160.0
#: What the variants speak at in the mean at pitch 50, and the factor up to pitch 90 (measured).
FEMALE_HZ, MALE_HZ, FACTOR_OF_40 = 184.0, 95.0, 1.5


class UnreadableRecordingError(Exception):
    """The file is missing, is not audio, or holds no sound; the message says which."""


def voice_of(recording: Path) -> Voice:
    """The voice for a recording: always the same for the same bytes, hardly ever for others.

    Raises:
        UnreadableRecordingError: there is nothing to hear in it.
    """
    try:
        content = recording.read_bytes()
    except FileNotFoundError as error:
        raise UnreadableRecordingError("The recording is gone: upload it again.") from error
    pitch = pitch_of(decode(content), SAMPLE_RATE)
    return choose(hashlib.sha256(content).digest(), pitch)


def choose(digest: bytes, pitch_hz: float | None) -> Voice:
    """The voice for a recording's digest and pitch; without a pitch the digest decides alone."""
    female = pitch_hz > REGISTERS_PART_HZ if pitch_hz is not None else digest[0] % 2 == 0
    variants, usual_hz = (FEMALE, FEMALE_HZ) if female else (MALE, MALE_HZ)
    height = 0.0 if pitch_hz is None else 40 * np.log(pitch_hz / usual_hz) / np.log(FACTOR_OF_40)
    nuance = digest[2] % 25 - 12
    return Voice(
        variant=variants[digest[1] % len(variants)],
        # Outside of these, some variants creak or squeak.
        pitch=int(np.clip(50 + height + nuance, 20, 90)),
        rate=155 + digest[3] % 41,
    )


def decode(content: bytes) -> NDArray[np.int16]:
    """The first 15 s of an audio file's content: mono samples at `SAMPLE_RATE`, at least one.

    Raises:
        UnreadableRecordingError: there is nothing to hear in it.
    """
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    blocks: list[NDArray[Any]] = []
    try:
        with av.open(io.BytesIO(content), "r", options=NO_OTHER_FILES) as container:
            if not container.streams.audio:
                raise UnreadableRecordingError("The recording has no sound track.")
            for frame in container.decode(audio=0):
                blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
                if sum(map(len, blocks)) >= LISTEN_SECONDS * SAMPLE_RATE:
                    break
    except (av.FFmpegError, ValueError) as error:  # ValueError: its form changes half-way
        raise UnreadableRecordingError("The recording cannot be read as audio.") from error
    if not blocks:
        raise UnreadableRecordingError("The recording is empty.")
    return np.concatenate(blocks)[: LISTEN_SECONDS * SAMPLE_RATE]


def pitch_of(samples: NDArray[np.int16], rate: int) -> float | None:
    """The median pitch of the voiced frames in Hz, by autocorrelation; None if none is voiced."""
    if len(samples) < FRAME:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP].astype(np.float64)
    frames -= frames.mean(axis=1, keepdims=True)
    frames = frames[np.sqrt((frames**2).mean(axis=1)) > AUDIBLE]
    spectra = np.fft.rfft(frames, 2 * FRAME)
    correlation = np.fft.irfft(np.abs(spectra) ** 2)
    shortest, longest = rate // HIGHEST_HZ, rate // LOWEST_HZ
    lags = shortest + correlation[:, shortest:longest].argmax(axis=1)
    voiced = correlation[np.arange(len(lags)), lags] > PERIODIC * correlation[:, 0]
    return float(np.median(rate / lags[voiced])) if voiced.any() else None
