"""Sound in and out: decoding, speed, joins, and the six formats, measured on real bytes."""

import gc
import io
import math
import re
import socket
import struct
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import mutagen.aac
import mutagen.flac
import mutagen.mp3
import mutagen.oggopus
import numpy as np
import pytest
from av.container import OutputContainer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tts_service.audio import (
    FORMATS,
    MEDIA_TYPES,
    Audio,
    Resampler,
    UndecodableAudio,
    audible_seconds,
    clipped_share,
    decode,
    fade_edges,
    media_type,
    resample,
    seconds_of,
    silence,
    stretch,
    wav,
    wav_header,
)

Samples = NDArray[np.float64]

RATES = (16_000, 22_050, 24_000, 44_100)
DURATIONS = (0.03, 0.5, 1.7, 10.0)
MODES = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
EVERY_FORMAT = pytest.mark.parametrize("name", FORMATS)
WITH_CODEC = pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.codec])

#: What FFmpeg says of any such file, and not because of what is in it: mp3 without Xing and ADTS
#: state no length, two frames of AAC tell little, and a streamed WAV has the size 0xFFFFFFFF.
UNAVOIDABLE = {
    "mp3": ("Estimating duration",),
    "aac": ("Estimating duration", "Format aac detected only with low score"),
    "wav": ("Estimating duration", "Ignoring maximum wav data size", "Packet corrupt"),
}


def tone(rate: int, seconds: float, hertz: float = 220.0, peak: float = 0.5) -> Audio:
    time = np.arange(round(rate * seconds)) / rate
    return audio_of(rate, peak * np.sin(2 * np.pi * hertz * time))


def audio_of(rate: int, samples: Samples) -> Audio:
    return Audio(rate, np.round(samples * 32767).astype("<i2").tobytes())


def samples_of(audio: Audio) -> Samples:
    return np.frombuffer(audio.pcm, "<i2") / 32768


def pieces_of(audio: Audio, seconds: float) -> Iterator[Audio]:
    size = 2 * round(audio.rate * seconds)
    for start in range(0, len(audio.pcm), size):
        yield Audio(audio.rate, audio.pcm[start : start + size])


def encoded(name: str, audio: Audio, *, streamed: bool = False, piece: float = 0.7) -> bytes:
    encoder = FORMATS[name].encoder(audio.rate, streamed=streamed)
    chunks = [encoder.encode(part) for part in pieces_of(audio, piece)]
    return b"".join(chunks) + encoder.flush()


def heard(name: str, data: bytes) -> tuple[Samples, int, list[str]]:
    """What a player makes of the bytes: samples, rate, and every warning on the way."""
    if name == "pcm":
        return np.frombuffer(data, "<i2") / 32768, 24_000, []
    parts: list[Samples] = []
    with (
        av.logging.Capture(local=False) as logs,
        # Named, as a player knows it from the content type: bytes alone tell too little of 30 ms.
        av.open(io.BytesIO(data), mode="r", format=FORMATS[name].container) as container,
    ):
        stream = container.streams.audio[0]
        rate = stream.rate
        for frame in container.decode(stream):
            samples = frame.to_ndarray()[0]
            parts.append(samples / 32768 if samples.dtype == np.int16 else samples)
    expected = UNAVOIDABLE.get(name, ())
    warnings = [message for _, _, message in logs if not message.startswith(expected)]
    return np.concatenate(parts), rate, warnings


def info_of(kind: Any, data: bytes) -> Any:
    """What mutagen reads of a file of that kind."""
    return kind(io.BytesIO(data)).info


def pitch(audio: Audio) -> float:
    """The strongest frequency in Hz."""
    samples = samples_of(audio)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 18))
    return float(np.argmax(spectrum)) * audio.rate / (1 << 18)


def steepest(samples: Samples) -> float:
    return float(np.max(np.abs(np.diff(samples))))


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"".join(chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def wave_format(*, tag: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16) -> bytes:
    block = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits))


@pytest.fixture(autouse=True)
def ffmpeg_warns() -> Iterator[None]:
    """FFmpeg's warnings reach av.logging.Capture, each of them; PyAV's defaults drop them."""
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)
    yield
    av.logging.set_skip_repeated(True)
    av.logging.set_level(None)


# Audio


def test_audio_counts_frames_and_seconds() -> None:
    audio = Audio(8_000, bytes(8_000))
    assert (audio.frames, audio.seconds) == (4_000, 0.5)


def test_silence_lasts_as_long_as_asked() -> None:
    assert silence(22_050, 0.2) == Audio(22_050, bytes(2 * 4_410))


def test_wav_is_44_bytes_of_header_and_the_untouched_samples() -> None:
    audio = tone(22_050, 0.3)
    data = wav(audio)
    assert data[44:] == audio.pcm
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    with wave.open(io.BytesIO(data)) as reader:
        assert reader.getparams()[:4] == (1, 2, 22_050, audio.frames)


def test_wav_header_without_a_size_carries_ffffffff_never_0() -> None:
    header = wav_header(24_000)
    assert len(header) == 44
    assert header[4:8] == header[40:44] == b"\xff\xff\xff\xff"


# Decoding


@pytest.mark.parametrize(
    "before",
    [b"", chunk(b"LIST", b"odd"), chunk(b"LIST", b"even") + chunk(b"junk", b"12345")],
)
@pytest.mark.parametrize("after", [b"", chunk(b"LIST", b"odd"), chunk(b"id3 ", b"four")])
def test_mono_16_bit_wav_is_bit_exact_whatever_surrounds_it(before: bytes, after: bytes) -> None:
    audio = tone(16_000, 0.1)
    data = riff(wave_format(), before, chunk(b"data", audio.pcm), after)
    assert decode(data) == audio


def test_an_extensible_wav_is_bit_exact() -> None:
    audio = tone(16_000, 0.1)
    guid = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    body = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16_000, 32_000, 2, 16, 22, 16, 4) + guid
    assert decode(riff(chunk(b"fmt ", body), chunk(b"data", audio.pcm))) == audio


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize(("bits", "width"), [(16, 2), (8, 1)])
def test_a_streamed_wav_reaches_to_the_end_of_the_file(size: int, bits: int, width: int) -> None:
    sizes = struct.pack("<I", size)
    data = b"RIFF" + sizes + b"WAVE" + wave_format(bits=bits) + b"data" + sizes
    assert decode(data + bytes(4_000 * width)).frames == 4_000


def test_an_honest_data_size_of_0_is_not_taken_for_a_stream() -> None:
    with pytest.raises(UndecodableAudio, match="no samples"):
        decode(riff(wave_format(), chunk(b"data", b""), chunk(b"LIST", bytes(100))))


def test_half_a_sample_at_the_end_is_left_out() -> None:
    assert decode(riff(wave_format(), chunk(b"data", b"\1\2\3"))).pcm == b"\1\2"


def test_stereo_is_mixed_down_without_a_change_of_level() -> None:
    left = np.frombuffer(tone(16_000, 0.5, peak=0.99).pcm, "<i2")
    stereo = np.repeat(left, 2).tobytes()
    mono = decode(riff(wave_format(channels=2), chunk(b"FACT", b"odd"), chunk(b"data", stereo)))
    assert mono.rate == 16_000
    assert np.max(np.abs(np.frombuffer(mono.pcm, "<i2") - left.astype(int))) <= 1


@pytest.mark.parametrize(
    ("tag", "bits", "converted"),
    [
        (3, 32, lambda s: s.astype("<f4").tobytes()),
        (1, 8, lambda s: np.round(s * 127 + 128).astype("u1").tobytes()),
        (1, 24, lambda s: np.round(s * 0x7FFFFF).astype("<i4").view("u1").reshape(-1, 4)[:, :3]),
        (1, 32, lambda s: np.round(s * 0x7FFFFFFF).astype("<i4").tobytes()),
    ],
    ids=["float", "8 bits", "24 bits", "32 bits"],
)
def test_other_sample_formats_become_16_bits(tag: int, bits: int, converted: Any) -> None:
    samples = samples_of(tone(16_000, 0.5))
    data = riff(wave_format(tag=tag, bits=bits), chunk(b"data", bytes(converted(samples))))
    assert np.max(np.abs(samples_of(decode(data)) - samples)) < 0.01


@pytest.mark.parametrize("name", ["wav", "mp3", "opus", "aac", "flac"])
def test_every_container_that_goes_out_can_come_in(name: str) -> None:
    audio = decode(encoded(name, tone(24_000, 1.0)))
    assert abs(audio.seconds - 1.0) <= 0.1
    assert pitch(audio) == pytest.approx(220, rel=0.01)


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("webm", "libopus")])
def test_recordings_from_phones_and_browsers_come_in(container: str, codec: str) -> None:
    assert decode(packed(container, codec, 48_000)).seconds == pytest.approx(2.0, abs=0.05)


def packed(container: str, codec: str, rate: int) -> bytes:
    """Two seconds of tone in any of FFmpeg's containers."""
    sink = io.BytesIO()
    with av.open(sink, mode="w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        frame = av.AudioFrame(format="s16", layout="mono", samples=2 * rate)
        frame.planes[0].update(tone(rate, 2.0).pcm)
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return sink.getvalue()


@pytest.mark.parametrize("name", ["wav", "mp3", "opus", "aac", "flac"])
def test_longest_bounds_the_sound(name: str) -> None:
    data = encoded(name, tone(24_000, 3.0))
    assert decode(data, longest=1.25).seconds == 1.25
    assert decode(data, longest=60).seconds == pytest.approx(3.0, abs=0.1)


def test_nothing_beyond_longest_is_decoded() -> None:
    data = encoded("flac", tone(24_000, 4.0))
    damaged = data[: len(data) // 2]
    assert decode(damaged, longest=1.0).seconds == 1.0
    with pytest.raises(UndecodableAudio):
        decode(damaged)


@pytest.mark.parametrize("longest", [None, 60.0])
def test_a_strict_decoder_takes_nothing_that_was_cut_short(longest: float | None) -> None:
    whole = encoded("flac", tone(24_000, 4.0))
    # Between two frames, so that nothing but the stated length gives it away.
    cut = whole[: [found.start() for found in re.finditer(b"\xff\xf8", whole)][-8]]
    assert 3 < decode(cut, longest=60.0).seconds < 3.75
    with pytest.raises(UndecodableAudio, match="truncated"):
        decode(cut, longest=longest, is_strict=True)
    assert decode(whole, longest=1.0, is_strict=True).seconds == 1.0
    assert decode(whole, longest=longest, is_strict=True).seconds == 4.0


def test_a_frame_of_an_absurd_rate_is_refused() -> None:
    """At the rate of the first frame it would be minutes, and at 1 Hz a day."""
    usual, absurd = (encoded("flac", tone(rate, 2.0)) for rate in (16_000, 500))
    assert decode(usual + encoded("flac", tone(8_000, 2.0))).seconds > 2.1
    with pytest.raises(UndecodableAudio, match="500 Hz"):
        decode(usual + absurd)


@pytest.mark.parametrize("name", ["wav", "mp3", "opus", "flac"])
@pytest.mark.parametrize("seconds", [0.8, 7.0])
def test_the_length_of_a_recording_is_known_without_decoding_it(name: str, seconds: float) -> None:
    assert seconds_of(encoded(name, tone(24_000, seconds))) == pytest.approx(seconds, abs=0.1)


def test_what_is_no_recording_has_no_length() -> None:
    with pytest.raises(UndecodableAudio):
        seconds_of(b"nothing to hear" * 100)


KINDS = [
    ("wav", "pcm_s16le", "audio/wav"),
    ("mp3", "libmp3lame", "audio/mpeg"),
    ("flac", "flac", "audio/flac"),
    ("ogg", "libopus", "audio/ogg"),
    ("ipod", "aac", "audio/mp4"),
    ("adts", "aac", "audio/aac"),
    ("webm", "libopus", "audio/webm"),
    ("aiff", "pcm_s16be", "audio/aiff"),
]


@pytest.mark.parametrize(("container", "codec", "kind"), KINDS)
def test_a_recordings_type_is_told_by_its_bytes(container: str, codec: str, kind: str) -> None:
    assert media_type(packed(container, codec, 48_000)) == kind
    assert kind in MEDIA_TYPES


def test_an_mp3_without_tags_is_told_from_aac() -> None:
    assert media_type(encoded("mp3", tone(24_000, 0.5))) == "audio/mpeg"
    assert media_type(encoded("aac", tone(24_000, 0.5))) == "audio/aac"


@pytest.mark.parametrize("data", [b"", b"\xff", b"<html>", bytes(100)])
def test_what_is_unknown_has_the_type_of_any_bytes(data: bytes) -> None:
    assert media_type(data) == "application/octet-stream" in MEDIA_TYPES


@pytest.mark.parametrize("rate", RATES)
def test_only_what_can_be_heard_counts_as_audible(rate: int) -> None:
    sound = tone(rate, 1.0).pcm + silence(rate, 2.0).pcm + tone(rate, 0.5, peak=0.01).pcm
    assert audible_seconds(Audio(rate, sound)) == pytest.approx(1.5, abs=0.1)
    assert audible_seconds(tone(rate, 1.0, peak=0.001)) == 0
    assert audible_seconds(audio_of(rate, np.full(rate, 0.3))) == 0


@pytest.mark.parametrize("peak", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("hertz", [60.0, 1000.0])
def test_a_tone_that_just_fits_is_not_clipped(peak: float, hertz: float) -> None:
    assert clipped_share(tone(48_000, 1.0, hertz, peak)) < 0.01


@pytest.mark.parametrize("ceiling", [0.85, 1.0])
@pytest.mark.parametrize("gain", [1.1, 4.0])
def test_a_tone_with_its_peaks_cut_off_is_clipped(ceiling: float, gain: float) -> None:
    loud = samples_of(tone(24_000, 1.0, peak=0.9)) / 0.9 * gain * ceiling
    clipped = audio_of(24_000, np.clip(loud, -ceiling, ceiling))
    assert clipped_share(clipped) > 0.2


def test_silence_is_not_clipped() -> None:
    assert clipped_share(silence(24_000, 1.0)) == clipped_share(Audio(24_000, b"")) == 0


def test_joined_files_of_different_shape_are_read_to_the_end() -> None:
    stereo_tone = np.repeat(np.frombuffer(tone(24_000, 1.0).pcm, "<i2"), 2)
    sink = io.BytesIO()
    plain = {"write_xing": "0", "id3v2_version": "0"}
    with av.open(sink, mode="w", format="mp3", options=plain) as output:
        stream = output.add_stream("libmp3lame", rate=24_000, options={"reservoir": "0"})
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame(format="s16", layout="stereo", samples=24_000)
        frame.planes[0].update(stereo_tone.tobytes())
        frame.sample_rate = 24_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    assert decode(encoded("mp3", tone(24_000, 1.0)) + sink.getvalue()).seconds == pytest.approx(
        2.0, abs=0.15
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>502 Bad Gateway</html>" * 20, "not audio"),
        (bytes(5_000), "not audio"),
        (b"RIFF", "not audio"),
        (riff(), "truncated"),
        (riff(wave_format()), "truncated"),
        (riff(wave_format(), chunk(b"data", b"")), "no samples"),
        (riff(wave_format(rate=0), chunk(b"data", bytes(100))), "0 Hz"),
        (riff(wave_format(rate=2_000_000_000), chunk(b"data", bytes(100))), "2000000000 Hz"),
        (riff(wave_format(tag=0x1234), chunk(b"data", bytes(100))), "no decoder"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\n", "HLS playlist"),
        (b"\xef\xbb\xbf\n#EXTM3U\n", "HLS playlist"),
    ],
)
def test_what_is_no_recording_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UndecodableAudio, match=reason):
        decode(data)


def test_a_file_with_pictures_only_has_no_audio_stream() -> None:
    sink = io.BytesIO()
    with av.open(sink, mode="w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for packet in (*stream.encode(av.VideoFrame(64, 64, "yuv420p")), *stream.encode(None)):
            output.mux(packet)
    with pytest.raises(UndecodableAudio, match="no audio stream"):
        decode(sink.getvalue())


@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("missing", [1, 2, 1_000])
def test_a_wav_that_lacks_even_one_byte_is_truncated(bits: int, missing: int) -> None:
    data = riff(wave_format(bits=bits), chunk(b"data", bytes(24_000)))
    with pytest.raises(UndecodableAudio, match=f"truncated: {missing} bytes"):
        decode(data[:-missing])


@pytest.mark.parametrize("kept", [0.5, 0.8])
@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("aiff", "pcm_s16be")])
def test_less_sound_than_the_header_states_is_truncated(
    container: str, codec: str, kept: float
) -> None:
    data = packed(container, codec, 24_000)
    with pytest.raises(UndecodableAudio, match="truncated"):
        decode(data[: int(kept * len(data))])


def test_ffmpeg_opens_no_address_that_a_recording_names() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        playlist = f"#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n"
        for data in (f"#EXTM3U\n{playlist}", f"ffconcat version 1.0\nfile '{url}'\n"):
            with pytest.raises(UndecodableAudio):
                decode(data.encode())
        with pytest.raises(BlockingIOError):
            server.accept()


def test_ffmpeg_opens_no_file_that_a_recording_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.wav").write_bytes(wav(tone(16_000, 1.0)))
    script = b"ffconcat version 1.0\nfile secret.wav\n"
    Path("script.ffconcat").write_bytes(script)
    with av.open("script.ffconcat") as container:  # so it is one that FFmpeg would follow
        assert container.streams.audio[0].rate == 16_000
    with pytest.raises(UndecodableAudio):
        decode(script)


VALID = {name: encoded(name, tone(24_000, 0.3)) for name in FORMATS if name != "pcm"}
STARTS = (
    b"",
    b"RIFF\0\0\0\0WAVE",
    b"fLaC",
    b"OggS\0\2",
    b"ID3\4\0",
    b"\0\0\0\x18ftypM4A ",
    b"FORM",
)


def decoded_if_audio(data: bytes) -> Audio | None:
    try:
        return decode(data, longest=2)
    except UndecodableAudio:
        return None


@settings(max_examples=150, deadline=None)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_undecodable_audio(start: bytes, rest: bytes) -> None:
    audio = decoded_if_audio(start + rest)
    assert audio is None or 0 < audio.seconds <= 2 + 1 / audio.rate


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(VALID)),
    at=st.floats(0, 1, exclude_max=True),
    patch=st.binary(max_size=12),
    kept=st.floats(0.05, 1),
)
def test_damaged_recordings_raise_nothing_but_undecodable_audio(
    name: str, at: float, patch: bytes, kept: float
) -> None:
    data = bytearray(VALID[name])
    start = int(at * at * len(data))  # headers lie in front
    data[start : start + len(patch)] = patch
    audio = decoded_if_audio(bytes(data[: int(kept * len(data))]))
    assert audio is None or 0 < audio.seconds <= 2 + 1 / audio.rate


# Rate and speed


@pytest.mark.parametrize("source", [8_000, 22_050, 44_100])
@pytest.mark.parametrize("target", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("frames", [1, 10, 100, 1_001, 30_000])
def test_resampling_keeps_the_duration_to_the_sample(source: int, target: int, frames: int) -> None:
    resampled = resample(Audio(source, bytes(2 * frames)), target)
    assert (resampled.rate, resampled.frames) == (target, round(frames * target / source))


def test_resampling_shifts_nothing() -> None:
    ideal = samples_of(tone(24_000, 0.5))
    resampled = samples_of(resample(tone(22_050, 0.5), 24_000))
    assert np.max(np.abs(resampled - ideal)[20:-20]) < 1e-3


def test_resampling_to_the_own_rate_returns_the_same_object() -> None:
    audio = tone(24_000, 0.1)
    assert resample(audio, 24_000) is audio


def test_pieces_resampled_in_a_row_equal_the_whole() -> None:
    audio = tone(22_050, 1.0)
    resampler = Resampler(22_050, 24_000)
    parts = [resampler.feed(piece.pcm) for piece in pieces_of(audio, 0.13)]
    assert b"".join(parts) + resampler.flush() == resample(audio, 24_000).pcm


@pytest.mark.parametrize("target", [24_000, 48_000])
def test_resampling_a_loud_sine_does_not_clip(target: int) -> None:
    peak = 10 ** (-1 / 20)
    samples = samples_of(resample(tone(22_050, 1.0, hertz=3_000, peak=peak), target))
    assert np.max(np.abs(samples[100:-100])) == pytest.approx(peak, rel=0.01)
    assert np.max(np.abs(samples)) < 1


@pytest.mark.parametrize("speed", [0.25, 0.3, 0.5, 0.8, 0.99, 1.25, 2, 3, 4])
@pytest.mark.parametrize("seconds", [0.03, 0.3, 2.0])
def test_stretching_divides_the_duration_by_the_speed(speed: float, seconds: float) -> None:
    audio = tone(22_050, seconds)
    assert stretch(audio, speed).frames == round(audio.frames / speed)


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.25, 2, 3, 4])
def test_stretching_keeps_the_pitch_and_the_level(speed: float) -> None:
    stretched = stretch(tone(22_050, 2.0), speed)
    assert pitch(stretched) == pytest.approx(220, rel=0.03)
    assert np.max(np.abs(samples_of(stretched))) <= 0.51


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.25, 2, 4])
def test_stretching_keeps_a_last_sound_of_20_ms(speed: float) -> None:
    last = samples_of(tone(24_000, 0.02, hertz=800))
    stretched = samples_of(stretch(audio_of(24_000, np.append(np.zeros(24_000), last)), speed))
    assert np.sum(stretched**2) * speed > 0.75 * np.sum(last**2)


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.25, 2, 4])
def test_stretching_leaves_words_where_they_belong(speed: float) -> None:
    word = samples_of(tone(24_000, 0.2, hertz=800))
    words = np.concatenate([word, np.zeros(24_000), word])
    stretched = samples_of(stretch(audio_of(24_000, words), speed))
    length = round(0.2 * 24_000 / speed)
    for heard_word in (stretched[:length], stretched[-length:]):
        assert np.sqrt(np.mean(heard_word**2)) > 0.25, "the tone's own is 0.35"


def test_speed_1_returns_the_same_object() -> None:
    audio = tone(24_000, 0.1)
    assert stretch(audio, 1) is audio
    assert stretch(audio, 1.0) is audio


@pytest.mark.parametrize("speed", [0, 0.2, 4.1, math.nan, math.inf])
def test_a_speed_out_of_range_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be between"):
        stretch(tone(24_000, 0.1), speed)


# Joins


def test_faded_segments_join_a_pause_without_a_click() -> None:
    hum = np.cos(2 * np.pi * 220 * np.arange(12_000) / 24_000) * 0.5  # starts and ends at its peak
    segment = audio_of(24_000, hum)
    faded = fade_edges(segment)
    pause = silence(24_000, 0.2)
    joined = samples_of(Audio(24_000, faded.pcm + pause.pcm + faded.pcm))
    assert steepest(samples_of(Audio(24_000, segment.pcm + pause.pcm))) > 0.4
    assert steepest(joined) <= 1.1 * steepest(hum)


def test_fading_touches_the_edges_only() -> None:
    segment = audio_of(24_000, np.full(2_400, 0.3))
    faded = fade_edges(segment, 0.005)
    assert faded.frames == segment.frames
    assert faded.pcm[240:-240] == segment.pcm[240:-240]
    samples = samples_of(faded)
    assert samples[0] == samples[-1] == 0
    assert steepest(samples) < 0.3 / 100


def test_silent_edges_stay_untouched() -> None:
    quiet = audio_of(24_000, np.concatenate([np.zeros(50), np.full(1_000, 0.5), np.zeros(50)]))
    assert fade_edges(quiet) is quiet
    assert fade_edges(silence(24_000, 0)) == silence(24_000, 0)


def test_only_the_loud_end_is_faded() -> None:
    samples = np.concatenate([np.full(1_000, -0.5), np.zeros(1_000)])
    for loud, quiet, order in (
        (slice(240), slice(240, None), 1),
        (slice(-240, None), slice(-240), -1),
    ):
        segment = audio_of(24_000, samples[::order])
        faded = fade_edges(segment)
        assert faded.pcm[quiet] == segment.pcm[quiet]
        assert steepest(samples_of(faded)[loud.start and -120 : loud.stop and 120]) < 0.01


# Formats


def test_the_six_formats_of_openai_have_their_content_types() -> None:
    assert {name: format_.content_type for name, format_ in FORMATS.items()} == {
        "wav": "audio/wav",
        "mp3": "audio/mpeg",
        "opus": "audio/ogg",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "pcm": "audio/pcm",
    }


@MODES
@pytest.mark.parametrize("seconds", DURATIONS)
@pytest.mark.parametrize("rate", RATES)
@EVERY_FORMAT
def test_every_format_lasts_as_long_as_the_sound_and_decodes_without_a_warning(
    name: str, rate: int, seconds: float, streamed: bool
) -> None:
    samples, rate_out, warnings = heard(name, encoded(name, tone(rate, seconds), streamed=streamed))
    tolerance = 0.100 if name == "aac" else 0.060
    assert abs(len(samples) / rate_out - seconds) <= tolerance
    assert not warnings


@pytest.mark.parametrize("name", ["mp3", "aac"])
@pytest.mark.parametrize("rate", [24_000, 44_100, 48_000])
def test_padding_stays_in_bounds_wherever_the_sound_ends(name: str, rate: int) -> None:
    tolerance = 0.100 if name == "aac" else 0.060
    for frames in range(12_000, 12_000 + 1_152, 64):
        samples, rate_out, _ = heard(name, encoded(name, Audio(rate, bytes(2 * frames))))
        assert abs(len(samples) / rate_out - frames / rate) <= tolerance


@WITH_CODEC
def test_a_player_recognises_half_a_second_by_its_bytes_alone(name: str) -> None:
    codec = FORMATS[name].codec
    assert codec
    data = encoded(name, tone(24_000, 0.5))
    with (
        av.logging.Capture(local=False) as logs,
        av.open(io.BytesIO(data), mode="r") as container,
    ):
        assert container.streams.audio[0].codec_context.codec.id == av.Codec(codec, "w").id
    assert not [message for _, _, message in logs if "low score" in message]


@MODES
@EVERY_FORMAT
def test_sound_goes_through_a_format_with_its_pitch_and_level_and_no_dc(
    name: str, streamed: bool
) -> None:
    samples, rate, _ = heard(name, encoded(name, tone(22_050, 1.0), streamed=streamed))
    assert pitch(audio_of(rate, samples)) == pytest.approx(220, rel=0.01)
    middle = samples[rate // 4 : -rate // 4]
    # LAME scales everything by 0.95 to leave room for its own overshoot.
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / math.sqrt(2), rel=0.06)
    assert abs(np.mean(middle)) < 0.01


@EVERY_FORMAT
def test_a_sine_of_minus_1_db_does_not_clip(name: str) -> None:
    samples, _, _ = heard(name, encoded(name, tone(22_050, 1.0, peak=10 ** (-1 / 20))))
    assert np.max(np.abs(samples)) < 1


@EVERY_FORMAT
def test_the_cut_into_pieces_leaves_no_trace(name: str) -> None:
    audio = tone(22_050, 1.5)
    assert encoded(name, audio, piece=0.11) == encoded(name, audio, piece=9)


@EVERY_FORMAT
def test_pieces_do_not_click_where_they_meet(name: str) -> None:
    data = encoded(name, tone(22_050, 1.5), streamed=True, piece=0.11)
    samples, rate, _ = heard(name, data)
    tone_itself = 0.5 * 2 * math.pi * 220 / rate
    assert steepest(samples[rate // 8 : -rate // 8]) <= 1.2 * tone_itself


@EVERY_FORMAT
def test_a_piece_of_another_rate_keeps_its_duration_and_pitch(name: str) -> None:
    encoder = FORMATS[name].encoder(22_050, streamed=True)
    data = encoder.encode(tone(22_050, 0.5)) + encoder.encode(tone(16_000, 0.5)) + encoder.flush()
    samples, rate, warnings = heard(name, data)
    assert len(samples) / rate == pytest.approx(1.0, abs=0.1)
    second_half = samples[len(samples) // 2 :]
    assert pitch(audio_of(rate, np.clip(second_half, -1, 1))) == pytest.approx(220, rel=0.02)
    assert not warnings


@EVERY_FORMAT
def test_a_stream_gives_bytes_after_one_second_of_sound(name: str) -> None:
    encoder = FORMATS[name].encoder(24_000, streamed=True)
    chunks = [encoder.encode(tone(24_000, 1.0)) for _ in range(4)]
    encoder.close()
    assert all(chunks)
    samples, rate, _ = heard(name, b"".join(chunks))
    assert len(samples) / rate > 3.5, "almost all of the sound is out before the flush"


@EVERY_FORMAT
def test_a_whole_answer_comes_from_the_flush(name: str) -> None:
    encoder = FORMATS[name].encoder(24_000, streamed=False)
    assert encoder.encode(tone(24_000, 1.0)) == b""
    assert encoder.flush()


def test_wav_and_flac_keep_every_sample_at_the_models_own_rate() -> None:
    audio = tone(22_050, 0.7)
    assert encoded("wav", audio) == wav(audio)
    assert encoded("wav", audio, streamed=True) == wav_header(22_050) + audio.pcm
    for streamed in (False, True):
        assert decode(encoded("flac", audio, streamed=streamed)) == audio


@MODES
def test_pythons_wave_reads_the_wav(streamed: bool) -> None:
    audio = tone(22_050, 0.7)
    with wave.open(io.BytesIO(encoded("wav", audio, streamed=streamed))) as reader:
        assert reader.getframerate() == 22_050
        assert reader.readframes(reader.getnframes()) == audio.pcm


def test_a_whole_flac_carries_its_total_of_samples() -> None:
    info = info_of(mutagen.flac.FLAC, encoded("flac", tone(22_050, 1.7)))
    assert info.total_samples == round(22_050 * 1.7)


def test_a_completed_stream_tells_its_length_as_a_whole_answer_does() -> None:
    audio = tone(22_050, 1.7)
    streams = {name: encoded(name, audio, streamed=True) for name in FORMATS}
    completed = {
        name: FORMATS[name].completed(data, audio.frames) for name, data in streams.items()
    }
    assert completed["wav"] == wav(audio)
    info = info_of(mutagen.flac.FLAC, completed["flac"])
    assert (info.total_samples, info.sample_rate) == (audio.frames, audio.rate)
    assert decode(completed["flac"]) == audio
    assert all(completed[name] == streams[name] for name in ("mp3", "opus", "aac", "pcm"))


def test_pcm_is_24_khz_without_a_header() -> None:
    audio = tone(24_000, 0.5)
    assert encoded("pcm", audio) == audio.pcm
    assert len(encoded("pcm", tone(22_050, 1.0))) == 2 * 24_000


@MODES
@pytest.mark.parametrize("seconds", [0.5, 1.7, 10.0])
def test_mp3_has_neither_xing_nor_id3_and_a_constant_bit_rate(
    seconds: float, streamed: bool
) -> None:
    data = encoded("mp3", tone(22_050, seconds), streamed=streamed)
    assert data.startswith(b"\xff\xf3"), "the first frame begins with the first byte"
    assert not any(mark in data for mark in (b"Xing", b"Info", b"ID3", b"TAG"))
    info = info_of(mutagen.mp3.MP3, data)
    assert info.bitrate == 128_000
    assert info.length == pytest.approx(seconds, abs=0.06)


def test_the_frame_left_out_of_an_mp3_takes_no_sound_with_it() -> None:
    abrupt = audio_of(24_000, 0.5 * np.cos(np.arange(12_000) * 0.06))
    samples, _, _ = heard("mp3", encoded("mp3", abrupt))
    encoder = replace(FORMATS["mp3"], lead_in=0).encoder(24_000, streamed=False)
    encoder.encode(silence(24_000, 0.006))
    encoder.encode(abrupt)
    with_all_frames, _, _ = heard("mp3", encoder.flush())
    difference = np.abs(samples - with_all_frames[576:])
    sound_begins = 1105 - 576 + 144
    assert np.max(difference[:sound_begins]) < 0.01, "the whisper before an abrupt sound"
    assert np.max(difference[sound_begins:]) < 0.001


def test_every_frame_of_an_mp3_stands_alone() -> None:
    rng = np.random.default_rng(1)
    bursts = rng.normal(0, 0.1, 48_000) * (np.arange(48_000) % 9_000 < 4_000)
    data = encoded("mp3", audio_of(24_000, np.clip(bursts, -1, 1)))
    reaches_back = data[4::384]  # ISO 13818-3: main_data_begin, the byte after a frame's header
    assert not any(reaches_back)


def test_joined_mp3_files_keep_their_summed_duration() -> None:
    data = b"".join(encoded("mp3", tone(24_000, seconds)) for seconds in (0.5, 1.7, 1.0))
    samples, rate, warnings = heard("mp3", data)
    assert len(samples) / rate == pytest.approx(3.2, abs=3 * 0.06)
    assert info_of(mutagen.mp3.MP3, data).length == pytest.approx(3.2, abs=3 * 0.06)
    assert not warnings


def test_an_mp3_cut_anywhere_between_frames_plays_without_a_warning() -> None:
    data = encoded("mp3", tone(24_000, 2.0))
    frame = 128_000 // 8 * 576 // 24_000
    samples, rate, warnings = heard("mp3", data[20 * frame : 60 * frame])
    assert len(samples) / rate == pytest.approx(40 * 576 / 24_000)
    assert not warnings


@pytest.mark.parametrize("seconds", [1.7, 10.0])
def test_mutagen_agrees_about_opus_and_aac(seconds: float) -> None:
    opus = info_of(mutagen.oggopus.OggOpus, encoded("opus", tone(22_050, seconds)))
    assert opus.length == pytest.approx(seconds, abs=0.06)
    aac = info_of(mutagen.aac.AAC, encoded("aac", tone(22_050, seconds)))
    assert aac.length == pytest.approx(seconds, abs=0.1)


@MODES
@EVERY_FORMAT
def test_an_answer_without_sound_is_no_error(name: str, streamed: bool) -> None:
    encoder = FORMATS[name].encoder(24_000, streamed=streamed)
    data = encoder.encode(silence(24_000, 0)) + encoder.flush()
    assert len(data) < 2_000


@EVERY_FORMAT
def test_close_may_come_at_any_time_and_again(name: str) -> None:
    flushed = FORMATS[name].encoder(24_000, streamed=True)
    flushed.encode(tone(24_000, 0.2))
    flushed.flush()
    for encoder in (flushed, FORMATS[name].encoder(24_000, streamed=False)):
        encoder.close()
        encoder.close()


@WITH_CODEC
def test_an_encoder_left_half_way_is_gone_without_the_garbage_collector(name: str) -> None:
    def containers() -> int:
        return sum(isinstance(thing, OutputContainer) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = containers()
        encoder = FORMATS[name].encoder(22_050, streamed=True)
        encoder.encode(tone(22_050, 0.1))
        assert containers() == before + 1
        del encoder
        assert containers() == before
    finally:
        gc.enable()
