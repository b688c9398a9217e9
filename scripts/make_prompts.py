"""Make the two recordings in prompts/: `python scripts/make_prompts.py [folder]`.

They are spoken by espeak-ng, which never speaks twice the same bytes: expect a difference in git.
"""

import sys
import wave
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tts_service.demo_backend.espeak import Espeak, Voice  # noqa: E402 - found by the line above

#: -3 dBFS.
PEAK: Final = 32768 * 10 ** (-3 / 20)
FADE_SECONDS: Final = 0.02

PROMPTS: Final = {
    "default": (
        Voice(variant="m3", pitch=50, rate=155),
        "您好，很高兴为您朗读，请慢慢听。Hello, I am the voice you hear when you choose none.",
    ),
    "chixiaotu6": (
        Voice(variant="f5", pitch=72, rate=170),
        "大家好！今天天气真好，我们一起坐下来，听一个小小的故事吧。",
    ),
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    espeak = Espeak()
    for name, (voice, text) in PROMPTS.items():
        samples = mastered(espeak.speak(text, voice), espeak.sample_rate)
        write(folder / f"{name}.wav", samples, espeak.sample_rate)
        print(f"{name}.wav: {len(samples) / espeak.sample_rate:.1f} s")


def mastered(pcm: bytes, sample_rate: int) -> NDArray[np.int16]:
    """16-bit PCM brought to a peak of -3 dBFS, faded in and out."""
    samples = np.frombuffer(pcm, np.int16).astype(np.float64)
    samples *= PEAK / np.abs(samples).max()
    fade = np.linspace(0, 1, int(FADE_SECONDS * sample_rate))
    samples[: len(fade)] *= fade
    samples[-len(fade) :] *= fade[::-1]
    return np.round(samples).astype(np.int16)


def write(path: Path, samples: NDArray[np.int16], sample_rate: int) -> None:
    """A mono 16-bit WAV with the plain header of 44 bytes."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())


if __name__ == "__main__":
    main()
