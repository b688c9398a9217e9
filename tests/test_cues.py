"""When each segment is heard: told to the millisecond, and measured in the decoded answers."""

import io
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers.sound import tone, write_prompts

from tts_service import cues, records
from tts_service.audio import FORMATS, Audio, decode
from tts_service.backends.base import Segment
from tts_service.backends.binding import Binding, Parameter
from tts_service.cache import BoundedCache
from tts_service.captions import Captions
from tts_service.cues import Cue, Span
from tts_service.dispatcher import Dispatcher
from tts_service.hits import Head, Hits
from tts_service.keys import ApiKeys
from tts_service.metrics import Metrics
from tts_service.speech_request import parse_speech_request
from tts_service.sse import as_events
from tts_service.synthesizer import Plan, Speech, Synthesizer
from tts_service.voices import Voice, VoiceCatalogue

TOLERANCE = 0.05  # seconds; the promise
AT_START = 0.01  # what is kept in fact: whoever forgets a codec's delay is further off
PAUSE = 0.2
RATES = (16_000, 22_050, 24_000, 44_100)
SENTENCES = ("The first of them.", "A second, which is longer than the first one.", "And a third.")
TEXT = " ".join(SENTENCES)


def text_and_prompt() -> Iterator[Parameter]:
    for name, component in (("text", "Textbox"), ("prompt", "Audio")):
        yield Parameter(name, name, component, {}, has_default=False, default=None)


class Speaker:
    """A backend in this process: 30 ms of a loud tone for each character."""

    name = "speaker"

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.gate = threading.Event()  # closed, it holds who says "Wait"
        self.gate.set()

    def describe(self) -> Binding:
        return Binding("/gen_single", *text_and_prompt(), {}, {}, identity="a tone")

    def synthesize(
        self, segment: Segment, timeout: float, arrived: Callable[[], None] = lambda: None
    ) -> Audio:
        assert "Wait" not in segment.text or self.gate.wait(timeout)
        sound = tone(300 + 10 * len(segment.text), 0.03 * len(segment.text), self.rate)
        return Audio(self.rate, sound.samples.tobytes())

    def ping(self) -> None: ...

    def abandon(self) -> None: ...

    def close(self) -> None: ...


class Service:
    """The path from a request to its sound, without HTTP."""

    def __init__(self, rate: int, prompts: Path) -> None:
        self.speaker = Speaker(rate)
        self.dispatcher = Dispatcher([self.speaker])
        self.cache = BoundedCache(threshold=2000)
        self.synthesizer = Synthesizer(
            voices=VoiceCatalogue(prompts, {}, prompts / "default.wav"),
            dispatcher=self.dispatcher,
            cache=self.cache,
            default_format="wav",
            segment_chars=120,
            segment_pause=PAUSE,
            synth_timeout=30,
        )

    def plan(self, **fields: Any) -> Plan:
        request = parse_speech_request({"input": TEXT, **fields}, max_input_chars=10_000)
        return self.synthesizer.plan(request)

    def forget(self, plan: Plan) -> None:
        """As if this answer had never been asked for."""
        self.cache.delete(plan.key)

    def whole(self, plan: Plan) -> tuple[bytes, list[Cue]]:
        with closing(self.synthesizer.speak(plan)) as making:
            record = making.whole(float("inf"))
            assert record is not None
            return record.body, making.cues()

    def streamed(self, plan: Plan) -> tuple[bytes, list[Cue]]:
        with closing(self.synthesizer.speak(plan)) as making:
            return b"".join(making.stream(float("inf"))), making.cues()

    def kept(self, plan: Plan) -> list[Cue] | None:
        """What is known of the answer in the cache."""
        record = self.synthesizer.find(plan)
        assert record is not None
        return self.synthesizer.cues(plan, record)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Service]]:
    """One for each rate that a model may have."""
    prompts = tmp_path_factory.mktemp("cues") / "prompts"
    write_prompts(prompts)
    made = {rate: Service(rate, prompts) for rate in RATES}
    yield made
    for service in made.values():
        service.dispatcher.close()


@pytest.fixture
def service(services: dict[int, Service]) -> Service:
    return services[24_000]


# -- measured --------------------------------------------------------------------------------------


def sound_of(name: str, body: bytes) -> Audio:
    return Audio(24_000, body) if name == "pcm" else decode(body)


def heard(audio: Audio) -> list[tuple[float, float]]:
    """From when to when there is something to hear, in seconds; half a pause ends a part."""
    samples = np.frombuffer(audio.pcm, "<i2") / 32768
    width = audio.rate // 500
    levels = np.sqrt(np.convolve(samples**2, np.ones(width) / width, "same"))
    loud = np.flatnonzero(levels > 0.05) / audio.rate
    breaks = np.flatnonzero(np.diff(loud) > PAUSE / 2)
    starts = [loud[0], *loud[breaks + 1]]
    ends = [*loud[breaks], loud[-1]]
    return list(zip(map(float, starts), map(float, ends), strict=True))


def assert_heard(told: list[Cue], audio: Audio) -> None:
    assert [cue.text for cue in told] == list(SENTENCES)
    measured = heard(audio)
    assert len(measured) == len(told)
    for cue, (start, end) in zip(told, measured, strict=True):
        assert cue.start / 1000 == pytest.approx(start, abs=AT_START)
        assert cue.end / 1000 == pytest.approx(end, abs=TOLERANCE)


@pytest.mark.parametrize("name", FORMATS)
@given(speed=st.floats(0.25, 4.0), rate=st.sampled_from(RATES), streams=st.booleans())
@example(speed=0.25, rate=24_000, streams=False)
@example(speed=0.5, rate=22_050, streams=True)
@example(speed=1, rate=24_000, streams=True)
@example(speed=1, rate=16_000, streams=False)
@example(speed=1, rate=44_100, streams=False)
@example(speed=4, rate=22_050, streams=True)
@settings(max_examples=6)
def test_every_segment_is_heard_when_it_is_told_to_be(
    services: dict[int, Service], name: str, speed: float, rate: int, streams: bool
) -> None:
    service = services[rate]
    plan = service.plan(response_format=name, speed=speed)
    service.forget(plan)
    body, told = service.streamed(plan) if streams else service.whole(plan)
    assert_heard(told, sound_of(name, body))
    assert service.kept(plan) == told


@pytest.mark.parametrize("name", FORMATS)
def test_the_times_of_forty_segments_do_not_drift(service: Service, name: str) -> None:
    text = " ".join(f"Sentence {number}, {'on ' * (number % 5)}it goes." for number in range(40))
    plan = service.plan(input=text, response_format=name, speed=1.7)
    body, told = service.whole(plan)
    starts = [start for start, _ in heard(sound_of(name, body))]
    assert len(starts) == 40
    assert [cue.start / 1000 for cue in told] == pytest.approx(starts, abs=AT_START)


def test_what_took_too_long_to_be_whole_is_told_the_same(service: Service) -> None:
    plan = service.plan(input="One. Another one. Wait for this.", response_format="aac", speed=0.8)
    service.speaker.gate.clear()
    with closing(service.synthesizer.speak(plan)) as making:
        assert making.whole(until=service.synthesizer.clock() + 0.2) is None
        service.speaker.gate.set()
        body = b"".join(making.stream(float("inf")))
        told = making.cues()
    assert service.kept(plan) == told
    starts = [start for start, _ in heard(decode(body))]
    assert [cue.start / 1000 for cue in told] == pytest.approx(starts, abs=AT_START)


# -- kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_one_segment_is_told_too(service: Service, name: str) -> None:
    plan = service.plan(input="One alone.", response_format=name)
    body, told = service.whole(plan)
    assert service.kept(plan) == told
    ((start, end),) = heard(sound_of(name, body))
    (cue,) = told
    assert cue.text == "One alone."
    assert (cue.start / 1000, cue.end / 1000) == pytest.approx((start, end), abs=TOLERANCE)


def test_an_answer_that_is_a_segments_entry_is_told_though_nobody_made_it(
    service: Service,
) -> None:
    service.whole(service.plan(input="Part of it. All of it."))
    part = service.plan(input="Part of it.")
    assert service.kept(part) == [Cue("Part of it.", 0, 330)]
    kept = service.cache.get(part.key)
    service.whole(part)
    assert service.cache.get(part.key) == kept  # and with it the ETag


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate", RATES)
def test_an_answer_kept_without_times_is_told_by_its_segments(
    services: dict[int, Service], rate: int, name: str
) -> None:
    service = services[rate]
    plan = service.plan(response_format=name, speed=1.3)
    body, told = service.whole(plan)
    service.cache.set(plan.key, records.pack(body, {"seconds": 1.0})[0])
    assert service.kept(plan) == told
    for segment_key in [key for key in service.cache._cache if key.startswith("segment:")]:
        service.cache.delete(segment_key)
    assert service.kept(plan) is None


@pytest.mark.parametrize("times", [None, 7, "", "1", "0 1 2", "0 100 300 x", "0 100 300 400", [0]])
def test_notes_that_somebody_else_wrote_tell_nothing(service: Service, times: object) -> None:
    plan = service.plan(response_format="mp3")
    service.cache.set(plan.key, records.pack(b"sound", {"times": times})[0])
    assert service.kept(plan) is None
    service.forget(plan)


@pytest.mark.parametrize("text", ["……", "?!", "\U0001f600"])
def test_what_is_not_spoken_has_no_cue(service: Service, text: str) -> None:
    plan = service.plan(input=text)
    assert service.whole(plan)[1] == service.kept(plan) == []


# -- hits ------------------------------------------------------------------------------------------

HEAD = Head("/v1/audio/speech", None, "127.0.0.1", "somebody")


def hits_of(service: Service, metrics: Metrics | None = None) -> Hits:
    return Hits(
        *(service.synthesizer, service.cache, metrics or Metrics()),
        keys=ApiKeys(()),
        max_input_chars=1000,
        allows_origins=False,
    )


def test_the_poller_links_captions_that_are_there_and_of_this_very_answer(service: Service) -> None:
    hits = hits_of(service)
    captions = Captions(service.cache, ApiKeys(()))
    fields = {"input": "By the poller. In two parts.", "response_format": "mp3"}
    plan = service.plan(**fields)
    _, told = service.whole(plan)

    def find(**more: object) -> bytes | None:
        body = json.dumps({**fields, **more}).encode()
        hit = hits.find(HEAD, body)
        return hit and hit.head

    assert b"\r\nLink: " not in (find() or b"\r\nLink: ")
    assert find(timestamps=True) is None
    record = service.synthesizer.find(plan)
    assert record is not None
    captions.keep(plan.key, record.digest, told)
    head = find(timestamps=True) or b""
    assert [f"Link: {link}" for link in captions.links(plan.key)] == [
        line for line in head.decode().split("\r\n") if line.startswith("Link: ")
    ]
    assert head.endswith(b"\r\n\r\n")
    service.cache.set(plan.key, records.pack(b"spoken anew")[0])
    assert find(timestamps=True) is None


def test_what_comes_in_together_looks_at_its_recording_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    hits = hits_of(service, metrics)
    fields = {"input": "All at once.", "response_format": "mp3"}
    service.whole(service.plan(**fields))
    looks: list[str | None] = []
    resolve = service.synthesizer.voices.resolve

    def look(voice: str | None, model: str | None) -> Voice:
        looks.append(voice)
        return resolve(voice, model)

    monkeypatch.setattr(service.synthesizer.voices, "resolve", look)
    body = json.dumps(fields).encode()
    for turn in range(1, 4):
        found = [hits.find(HEAD, body) for _ in range(5)]
        hits.end_turn()
        assert all(hit is not None for hit in found)
        assert len({hit.head for hit in found if hit}) == 5, "each has an id of its own"
        assert len(looks) == turn
    record = service.synthesizer.find(service.plan(**fields))
    assert record is not None
    [told] = re.findall(r'_total\{source="cache"\} (.*)', metrics.exposition().decode())
    assert float(told) == pytest.approx(15 * record.notes["seconds"]) != 0


def test_hits_keep_no_record_that_the_cache_let_go(service: Service) -> None:
    hits = hits_of(service)
    plan = service.plan(input="Let it go.")
    service.whole(plan)
    assert hits.find(HEAD, b'{"input": "Let it go."}') is not None
    packed = service.cache.get(plan.key)
    service.forget(plan)
    assert sys.getrefcount(packed) == 2  # `packed`, and the call's argument


# -- events ----------------------------------------------------------------------------------------


def events(making: Speech, plan: Plan) -> Iterator[dict[str, Any]]:
    for sent in as_events(making.stream(float("inf")), plan, making.cues):
        for event in sent.decode().splitlines()[::2]:
            yield json.loads(event.removeprefix("data: "))


@pytest.mark.parametrize("speed", [0.25, 1, 4])
def test_a_segment_is_told_before_any_of_its_sound_is_sent(service: Service, speed: float) -> None:
    plan = service.plan(response_format="pcm", speed=speed)
    size = 0
    told: list[dict[str, Any]] = []
    with closing(service.synthesizer.speak(plan)) as making:
        for event in events(making, plan):
            if event["type"] == "speech.audio.segment":
                assert size / 2 / 24_000 <= event["start"] + 0.001
                told.append(event)
            elif event["type"] == "speech.audio.delta":
                size += len(event["audio"]) * 3 // 4
        assert [event["start"] * 1000 for event in told] == [cue.start for cue in making.cues()]
    assert [(event["index"], event["text"]) for event in told] == [*enumerate(SENTENCES)]
    assert size / 2 / 24_000 == pytest.approx(told[-1]["end"], abs=0.001)


@pytest.mark.parametrize("name", FORMATS)
def test_segments_and_their_sound_take_turns(service: Service, name: str) -> None:
    plan = service.plan(response_format=name)
    with closing(service.synthesizer.speak(plan)) as making:
        kinds = [event["type"].rpartition(".")[2] for event in events(making, plan)]
    assert [kind for kind in kinds if kind == "segment"] == ["segment"] * 3
    second, third = (at for at, kind in enumerate(kinds) if kind == "segment" and at)
    assert "delta" in kinds[1:second]
    assert "delta" in kinds[second:third]
    assert kinds[-2:] == ["delta", "done"]


# -- captions --------------------------------------------------------------------------------------

#: What SubRip's players would take for something else.
NASTY = "<b>a & b</b> --> {\\an8}c\n\n00:00:09,000 --> 00:00:10,000\r\nd\x00\x1b\u2028&amp; 你好"


def test_web_vtt_is_as_its_standard_has_it() -> None:
    told = [Cue("One & <two>.", 0, 1234), Cue("a --> b\n\nc", 3_600_000, 3_661_005)]
    assert cues.web_vtt(told) == (
        "WEBVTT\n"
        "\n1\n00:00:00.000 --> 00:00:01.234\nOne &amp; &lt;two&gt;.\n"
        "\n2\n01:00:00.000 --> 01:01:01.005\na --&gt; b c\n"
    )


def test_srt_is_as_players_read_it() -> None:
    told = [Cue("One & two.", 28, 1234), Cue("三\n四", 3_600_000, 3_661_005)]
    assert cues.sub_rip(told) == (
        "1\n00:00:00,028 --> 00:00:01,234\nOne & two.\n\n2\n01:00:00,000 --> 01:01:01,005\n三 四\n"
    )


def test_captions_of_nothing_are_empty_files() -> None:
    assert cues.web_vtt([]) == "WEBVTT\n"
    assert cues.sub_rip([]) == ""


def read_back(container: str, written: str) -> list[tuple[int, int, str]]:
    """What FFmpeg finds in the file: start and end in milliseconds, and the text."""
    with av.open(io.BytesIO(written.encode()), format=container) as file:
        return [
            (packet.pts, packet.pts + packet.duration, bytes(packet).decode())
            for packet in file.demux()
            if packet.pts is not None and packet.duration is not None and packet.size
        ]


SPANS = st.lists(st.integers(1, 5_000), min_size=1, max_size=5)


@pytest.mark.parametrize(("container", "write"), [("webvtt", cues.web_vtt), ("srt", cues.sub_rip)])
@given(lengths=SPANS, data=st.data())
@settings(max_examples=50)
def test_every_cue_is_read_back_whatever_is_said(
    container: str, write: Any, lengths: list[int], data: st.DataObject
) -> None:
    texts = st.text("ab<>&{}\\/-\n\r 1:,0\u2028你", min_size=1).map(lambda text: f"x{text}")
    told, at = [], 0
    for length in lengths:
        told.append(Cue(data.draw(st.just(NASTY) | texts), at, at + length))
        at += length + data.draw(st.integers(0, 1_000))
    found = read_back(container, write(told))
    assert [(start, end) for start, end, _ in found] == [(cue.start, cue.end) for cue in told]
    assert all(text.strip() for *_, text in found)


SPAN = st.tuples(st.integers(0, 10**11), st.integers(0, 10**11))


@given(st.lists(SPAN))
def test_spans_come_back_as_they_were_written(spans: list[Span]) -> None:
    assert cues.spans_from_text(cues.spans_to_text(spans)) == spans


@given(st.floats(0, 10**6), st.floats(0, 100))
def test_a_span_is_never_empty(start: float, length: float) -> None:
    began, ended = cues.span(start, start + length)
    assert began < ended
    assert began == pytest.approx(start * 1000, abs=0.5)
    assert ended == pytest.approx((start + length) * 1000, abs=1.5)


@given(st.lists(st.builds(Cue, st.text(), st.integers(), st.integers())))
@settings(max_examples=30)
def test_cues_come_back_from_json(told: list[Cue]) -> None:
    assert cues.from_json(cues.to_json(told)) == told


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b"[[1, 2]]", b'[["a", 1, 2]]', b'[[1, 2.5, "a"]]', b"[" * 10**5]
)
def test_what_is_no_cues_is_none(data: bytes) -> None:
    assert cues.from_json(data) is None
