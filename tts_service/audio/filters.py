"""Another rate, another speed: Audio to Audio, through FFmpeg's swresample and atempo."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
from av.filter import Graph

from .sound import BYTES_PER_FRAME, Audio, silence

#: The speeds `stretch` accepts, as OpenAI's API does.
SLOWEST, FASTEST = 0.25, 4.0


def frame_of(audio: Audio, pts: int = 0) -> av.AudioFrame:
    """FFmpeg's view of some samples; `pts` counts samples since the sound began."""
    frame = av.AudioFrame(format="s16", layout="mono", samples=audio.frames)
    frame.planes[0].update(audio.pcm)
    frame.sample_rate = audio.rate
    frame.time_base = Fraction(1, audio.rate)
    frame.pts = pts
    return frame


def pcm_of(frames: Iterable[av.AudioFrame]) -> bytes:
    """The samples of mono 16-bit frames, joined."""
    # A plane's buffer may be longer than its samples.
    return b"".join(memoryview(f.planes[0])[: f.samples * BYTES_PER_FRAME] for f in frames)


class Resampler:
    """One continuous sound taken piece by piece from `source` to `target` Hz.

    Its state spans the pieces, so joins do not click. All in all it gives out
    `round(frames * target / source)` samples.
    """

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=target)
        self._frames_in = self._frames_out = 0

    def feed(self, pcm: bytes) -> bytes:
        """What is ready of the sound so far; some samples are held back until more is known."""
        if self.source == self.target or not pcm:
            return pcm
        piece = Audio(self.source, pcm)
        ready = pcm_of(self._resampler.resample(frame_of(piece, self._frames_in)))
        self._frames_in += piece.frames
        self._frames_out += len(ready) // BYTES_PER_FRAME
        return ready

    def flush(self) -> bytes:
        """The rest."""
        if not self._frames_in:
            return b""
        due = round(self._frames_in * self.target / self.source) - self._frames_out
        return _fit(pcm_of(self._resampler.resample(None)), due)


def resample(audio: Audio, rate: int) -> Audio:
    """The same sound at `rate` Hz; the same object if that is its rate already."""
    if rate == audio.rate:
        return audio
    resampler = Resampler(audio.rate, rate)
    return Audio(rate, resampler.feed(audio.pcm) + resampler.flush())


def stretched_frames(frames: int, speed: float) -> int:
    """How many samples `stretch` makes of so many."""
    return round(frames / speed)


def stretch(audio: Audio, speed: float) -> Audio:
    """The same sound `speed` times as fast, its pitch kept: `stretched_frames` samples.

    Speed 1 returns the same object. Raises ValueError outside `SLOWEST` to `FASTEST`.
    """
    if not SLOWEST <= speed <= FASTEST:
        raise ValueError(f"speed must be between {SLOWEST} and {FASTEST}, not {speed}")
    if speed == 1 or not audio.pcm:
        return audio
    # atempo works in windows of up to 1/12 s and keeps the last, unfinished one to itself:
    # silence behind the sound pushes all of the sound out.
    tail = silence(audio.rate, 0.25 * max(1.0, speed))
    stretched = pcm_of(_atempo(Audio(audio.rate, audio.pcm + tail.pcm), speed))
    return Audio(audio.rate, _fit(stretched, stretched_frames(audio.frames, speed)))


def _atempo(audio: Audio, speed: float) -> Iterator[av.AudioFrame]:
    # One node goes down to half the speed; beyond twice the speed it would drop samples instead of
    # blending them. So further changes are shared out evenly.
    nodes = max(1, math.ceil(abs(math.log2(speed))))
    graph = Graph()
    source = graph.add_abuffer(sample_rate=audio.rate, format="s16", layout="mono")
    tempos = [graph.add("atempo", f"{speed ** (1 / nodes):.9f}") for _ in range(nodes)]
    graph.link_nodes(source, *tempos, graph.add("abuffersink"))
    graph.configure()
    for step in (frame_of(audio), None):
        graph.push(step)
        yield from _pulled(graph)


def _pulled(graph: Graph) -> Iterator[av.AudioFrame]:
    """What the graph has ready."""
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        assert isinstance(frame, av.AudioFrame)
        yield frame


def _fit(pcm: bytes, frames: int) -> bytes:
    """`pcm` cut or filled up with silence to `frames` samples."""
    size = max(0, frames) * BYTES_PER_FRAME
    return pcm[:size].ljust(size, b"\0")
