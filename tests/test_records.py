"""Records: what goes into a cache comes out of it, and damage never passes for sound."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tts_service import records

NOTES = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans()))


@given(st.binary(max_size=200), NOTES)
@example(b"", {})
@example(b"{}", {"\ud800": "\x00"})
def test_a_record_comes_back_as_it_was_packed(body: bytes, notes: dict[str, object]) -> None:
    packed, record = records.pack(body, notes)
    assert (record.body, record.notes) == (body, notes)
    assert records.unpack(packed) == record
    assert records.unpack(packed, verify=True) == record


def test_notes_are_optional() -> None:
    assert records.pack(b"sound")[1].notes == {}


def test_the_digest_tells_bodies_and_notes_apart_and_nothing_else() -> None:
    told = [
        records.pack(body, notes)[1].digest
        for body, notes in [(b"a", {}), (b"b", {}), (b"a", {"rate": 1}), (b"", {}), (b"{}", {})]
    ]
    assert len(set(told)) == len(told)
    assert records.pack(b"a")[1].digest == told[0]
    assert len(bytes.fromhex(told[0])) == 16


@pytest.mark.parametrize("position", range(0, 45, 3))
def test_one_damaged_byte_is_noticed_wherever_it_is(position: int) -> None:
    packed, _ = records.pack(b"sound" * 3, {"rate": 1})
    damaged = bytearray(packed)
    damaged[position] ^= 0x20
    assert records.unpack(bytes(damaged), verify=True) is None


def test_a_record_that_was_cut_short_is_noticed() -> None:
    packed, _ = records.pack(b"sound", {"rate": 24_000})
    for length in range(len(packed)):
        assert records.unpack(packed[:length], verify=True) is None


@given(st.none() | st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"TTS1" + tail))
@example(struct.pack(">4s16sI", b"TTS1", bytes(16), 2**32 - 1) + b"{}")
@example(struct.pack(">4s16sI", b"TTS1", bytes(16), 2) + b"[]sound")
@example(struct.pack(">4s16sI", b"TTS1", bytes(16), 2) + b"\xff\xfesound")
@example(struct.pack(">4s16sI", b"TTS1", bytes(16), 200_000) + b"[" * 200_000)
def test_what_is_no_record_is_none_and_raises_nothing(packed: bytes | None) -> None:
    assert records.unpack(packed, verify=True) is None
    unverified = records.unpack(packed)
    assert unverified is None or isinstance(unverified.notes, dict)


def test_another_layouts_records_are_left_alone() -> None:
    packed, _ = records.pack(b"sound")
    assert records.unpack(b"TTS0" + packed[4:]) is None
