"""What a second of sound costs in CPU time, format by format, printed as a Markdown table.

    python -m benchmarks.encode_cost [--seconds 8] [--rounds 3] [--rate 22050]

The sound is as hard to encode as speech: harmonics whose pitch and loudness wander, some noise.
The least of the rounds counts, for others may be using the processor too.
"""

import argparse
import math
import random
import struct
import time
from collections.abc import Callable
from functools import partial

from tts_service.audio import FORMATS, Audio, Format, decode, resample, stretch, wav


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the sound")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, best counts")
    parser.add_argument("--rate", type=int, default=22_050, help="rate of the sound in Hz")
    options = parser.parse_args()
    audio = voice_like(options.rate, options.seconds)
    print("| step | CPU ms per s of sound | bytes per s |")
    print("|---|---:|---:|")
    for name, step in steps(audio).items():
        cost, size = measured(step, options.rounds)
        print(f"| {name} | {cost * 1000 / audio.seconds:.2f} | {size / audio.seconds:,.0f} |")


def steps(audio: Audio) -> dict[str, Callable[[], bytes]]:
    """Everything that is measured; each returns the bytes it makes of the sound."""
    recording = wav(audio)
    return {
        **{name: partial(encoded, format_, audio) for name, format_ in FORMATS.items()},
        "resample to 24 kHz": lambda: resample(audio, 24_000).pcm,
        "stretch, speed 0.25": lambda: stretch(audio, 0.25).pcm,
        "stretch, speed 1.25": lambda: stretch(audio, 1.25).pcm,
        "stretch, speed 4": lambda: stretch(audio, 4.0).pcm,
        "decode its wav": lambda: decode(recording).pcm,
    }


def encoded(format_: Format, audio: Audio) -> bytes:
    encoder = format_.encoder(audio.rate, streamed=True)
    return encoder.encode(audio) + encoder.flush()


def measured(step: Callable[[], bytes], rounds: int) -> tuple[float, int]:
    """The least CPU seconds of all rounds, and how many bytes came out."""
    best, size = math.inf, 0
    for _ in range(rounds):
        start = time.process_time()
        size = len(step())
        best = min(best, time.process_time() - start)
    return best, size


def voice_like(rate: int, seconds: float) -> Audio:
    """Eight harmonics on a wandering pitch, in syllables, with breath."""
    noise = random.Random(7)  # the same sound every time
    samples = []
    phase = 0.0
    for i in range(round(rate * seconds)):
        now = i / rate
        phase += 2 * math.pi * (150 + 40 * math.sin(2.1 * now)) / rate
        syllable = max(0.0, math.sin(2 * math.pi * 2.2 * now)) ** 0.5
        voiced = sum(math.sin(k * phase) / k for k in range(1, 9))
        samples.append(round(syllable * (7000 * voiced + noise.gauss(0, 900))))
    return Audio(rate, struct.pack(f"<{len(samples)}h", *samples))


if __name__ == "__main__":
    main()
