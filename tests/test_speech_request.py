"""What is asked: lenient where clients are careless, strict where guessing would be wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_service.errors import InvalidRequest
from tts_service.speech_request import SpeechRequest, parse_speech_request

LONGEST = 50
FIELDS = list(SpeechRequest.model_fields)


def parse(**fields: Any) -> SpeechRequest:
    return parse_speech_request({"input": "您好。", **fields}, max_input_chars=LONGEST)


def refuse(fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        parse_speech_request(fields, max_input_chars=LONGEST)
    assert raised.value.status == 400
    json.dumps(raised.value.body, ensure_ascii=False)
    return raised.value


def test_an_input_is_all_it_takes() -> None:
    asked = parse()
    assert asked.input == "您好。"
    assert (asked.model, asked.voice, asked.response_format) == (None, None, None)
    assert (asked.speed, asked.stream_format, asked.instructions) == (1.0, None, None)
    assert not asked.is_streamed
    assert asked.model_extra == {}


LENIENT = [
    # field, as it is sent, as it is understood
    ("model", None, None),
    ("model", "", None),
    ("model", "chixiaotu6", "chixiaotu6"),
    ("voice", None, None),
    ("voice", "", None),
    ("voice", "小明", "小明"),
    ("voice", {"id": "小明"}, "小明"),
    ("voice", {"id": "小明", "name": "x"}, "小明"),
    ("voice", {"id": ""}, None),
    ("voice", {"id": None}, None),
    ("response_format", None, None),
    ("response_format", "", None),
    ("response_format", "MP3", "mp3"),
    *[("response_format", name, name) for name in ("wav", "mp3", "opus", "aac", "flac", "pcm")],
    ("speed", None, 1.0),
    ("speed", "", 1.0),
    ("speed", 2, 2.0),
    ("speed", 0.25, 0.25),
    ("speed", 4.0, 4.0),
    ("speed", "1.5", 1.5),
    ("speed", " 1.5 ", 1.5),
    ("speed", "1e0", 1.0),
    ("stream_format", None, None),
    ("stream_format", "", None),
    ("stream_format", "SSE", "sse"),
    ("stream_format", "audio", "audio"),
    ("stream", None, False),
    ("stream", "", False),
    ("stream", "true", True),
    ("stream", 1, True),
    ("stream", "0", False),
    ("early_start", None, True),
    ("early_start", "false", False),
    ("instructions", None, None),
    ("instructions", "", None),
    ("instructions", "x" * 4096, "x" * 4096),
    ("input", " \t\r\n\u3000您好。\n", "您好。"),
    ("input", "x" * LONGEST, "x" * LONGEST),
    ("input", " " * LONGEST + "x" * LONGEST, "x" * LONGEST),
    ("input", "😀" * LONGEST, "😀" * LONGEST),
    ("input", "……", "……"),
    ("input", "a\u3000b\x00", "a\u3000b\x00"),
]


@pytest.mark.parametrize(
    ("field", "sent", "understood"), LENIENT, ids=lambda value: ascii(value)[:30]
)
def test_careless_clients_are_understood(field: str, sent: object, understood: object) -> None:
    assert getattr(parse(**{field: sent}), field) == understood


STRICT = [
    ("input", ""),
    ("input", "  \n\u3000 "),
    ("input", 5),
    ("input", True),
    ("input", ["您好。"]),
    ("input", {"text": "您好。"}),
    ("input", "x" * (LONGEST + 1)),
    ("input", "😀" * (LONGEST + 1)),
    ("input", "\ud83d"),
    ("input", "您好\ude00。"),
    ("input", "\ude00\ud83d"),
    ("model", 5),
    ("model", ["a"]),
    ("model", {"id": "a"}),
    ("model", False),
    ("voice", 5),
    ("voice", True),
    ("voice", ["a"]),
    ("voice", {}),
    ("voice", {"name": "a"}),
    ("voice", {"id": 5}),
    ("voice", {"id": 0}),
    ("voice", {"id": False}),
    ("voice", {"id": []}),
    ("voice", {"id": {"id": "a"}}),
    ("response_format", "mp4"),
    ("response_format", " wav"),
    ("response_format", 5),
    ("response_format", ["wav"]),
    ("response_format", False),
    ("speed", 0),
    ("speed", 0.2499),
    ("speed", 4.0001),
    ("speed", -1),
    ("speed", "fast"),
    ("speed", "1,5"),
    ("speed", True),
    ("speed", False),
    ("speed", [1]),
    ("speed", {}),
    ("speed", float("nan")),
    ("speed", float("inf")),
    ("speed", -float("inf")),
    ("speed", "nan"),
    ("speed", "inf"),
    ("speed", 10**400),
    ("speed", "9" * 5000),
    ("stream_format", "SSE2"),
    ("stream_format", True),
    ("stream_format", 1),
    ("stream", 2),
    ("stream", "maybe"),
    ("stream", []),
    ("instructions", "x" * 4097),
    ("instructions", 5),
    ("instructions", ["gently"]),
]


@pytest.mark.parametrize(("field", "sent"), STRICT, ids=lambda value: ascii(value)[:30])
def test_what_cannot_be_understood_is_refused_by_the_fields_name(field: str, sent: object) -> None:
    error = refuse({"input": "您好。", field: sent})
    assert error.param == field
    assert f"'{field}'" in error.message


@pytest.mark.parametrize("fields", [{}, {"input": None}, {"text": "您好。"}])
def test_a_missing_input_is_called_missing(fields: dict[str, object]) -> None:
    error = refuse(fields)
    assert error.param == "input"
    assert "Missing" in error.message


@pytest.mark.parametrize("body", [None, [], ["input"], "input", 5, True, [{"input": "x"}]])
def test_whatever_is_no_object_is_refused(body: object) -> None:
    assert refuse(body).param is None


def test_too_long_an_input_is_told_both_lengths() -> None:
    message = refuse({"input": f" {'x' * 77} "}).message
    assert "77" in message
    assert str(LONGEST) in message


def test_several_mistakes_are_told_by_the_first() -> None:
    assert refuse({"speed": 9, "voice": 5, "input": 1}).param in {"speed", "voice", "input"}


@pytest.mark.parametrize(
    ("stream", "stream_format", "is_streamed"),
    [
        (None, None, False),
        (False, None, False),
        (True, None, True),
        (None, "audio", True),
        (False, "sse", True),
    ],
)
def test_either_field_asks_for_a_stream(
    stream: bool | None, stream_format: str | None, is_streamed: bool
) -> None:
    assert parse(stream=stream, stream_format=stream_format).is_streamed is is_streamed


def test_unknown_fields_are_kept_for_the_backend_and_absent_ones_are_not() -> None:
    asked = parse(emo_weight=0.5, vec1="0.2", nothing=None, empty="", user="me", 情感={"a": [None]})
    assert asked.model_extra == {
        "emo_weight": 0.5,
        "vec1": "0.2",
        "user": "me",
        "情感": {"a": [None]},
    }


@pytest.mark.parametrize(
    "name",
    [
        *("model_extra", "model_config", "model_fields", "is_streamed", "self", "cls"),
        *("__class__", "__dict__", "__pydantic_extra__", "__init__", "_trim", "max_input_chars"),
    ],
)
def test_no_unknown_field_can_take_the_place_of_something_else(name: str) -> None:
    asked = parse(**{name: "x"})
    assert asked.model_extra == {name: "x"}
    assert asked.input == "您好。"
    assert asked.is_streamed is False
    assert isinstance(asked, SpeechRequest)


def test_an_unknown_field_whose_name_is_no_text_is_ignored() -> None:
    assert parse(**{"\ud800": 1, "top_p": 0.5}).model_extra == {"top_p": 0.5}


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValueError):
        parse().speed = 2.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def outcome(body: Any) -> SpeechRequest | InvalidRequest:
    try:
        return parse_speech_request(body, max_input_chars=LONGEST)
    except InvalidRequest as error:
        return error


@given(JSON | st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON))
def test_any_json_is_understood_or_refused(body: Any) -> None:
    told = outcome(body)
    if isinstance(told, InvalidRequest):
        assert told.param is None or told.param in FIELDS
    else:
        assert 0 < len(told.input) <= LONGEST
        assert 0.25 <= told.speed <= 4
        assert told.input.encode()
