"""What is asked: a speech request, checked. Knows nothing of Flask.

The rules are lenient where clients are known to be careless (null is absent, numbers may be
strings, unknown fields are ignored) and strict where guessing would give the wrong sound.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tts_service.errors import InvalidRequest

ResponseFormat = Literal["wav", "mp3", "opus", "aac", "flac", "pcm"]
StreamFormat = Literal["audio", "sse"]


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


class SpeechRequest(BaseModel):
    """One request to speak. Fields it does not name are kept in `model_extra`: the backend's
    own parameters are among them."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    input: str
    """The text to speak."""
    model: str | None = None
    """A voice's name, where `voice` names none."""
    voice: str | None = None
    """The voice: its name, or an object with its `id`."""
    response_format: Annotated[ResponseFormat, BeforeValidator(_lower)] | None = None
    """The format of the answer."""
    speed: Annotated[float, Field(ge=0.25, le=4.0), BeforeValidator(_refuse_bool)] = 1.0
    """How fast to speak; the pitch is kept."""
    stream_format: Annotated[StreamFormat, BeforeValidator(_lower)] | None = None
    """How to stream the answer: its bytes, or server-sent events. Absent: a whole answer."""
    stream: bool = False
    """The same as `stream_format: audio`."""
    timestamps: bool = False
    """Whether to tell when each piece of the text is heard: by events, or by captions to fetch."""
    instructions: Annotated[str, Field(max_length=4096)] | None = None
    """How to speak, for backends that have a parameter for it."""
    early_start: bool = True
    """Whether a long first sentence may be cut in two, so that a stream begins sooner."""

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, fields: Any) -> Any:
        """Null is absent, everywhere; so is an empty string, except for the input."""
        return {
            name: value
            for name, value in fields.items()
            if value is not None
            and (value != "" or name == "input")
            and not _LONE_SURROGATE.search(name)  # the name of no field, and no text to pydantic
        }

    @field_validator("voice", mode="before")
    @classmethod
    def _take_id(cls, voice: Any) -> Any:
        if isinstance(voice, Mapping):
            if "id" not in voice:
                raise ValueError("expected a string, or an object with an id")
            return None if voice["id"] == "" else voice["id"]
        return voice

    @field_validator("input")
    @classmethod
    def _trim(cls, text: str) -> str:
        if not text.isascii() and _LONE_SURROGATE.search(text):  # no backend could be sent that
            raise ValueError("holds half a surrogate pair, which is no character")
        return text.strip()

    @property
    def is_streamed(self) -> bool:
        return self.stream or self.stream_format is not None


def parse_speech_request(fields: Any, *, max_input_chars: int) -> SpeechRequest:
    """The request in `fields`, a JSON value. Raises InvalidRequest, naming the field."""
    if not isinstance(fields, Mapping):
        raise InvalidRequest("The request body must be a JSON object.")
    try:
        request = SpeechRequest.model_validate(fields)
    except ValidationError as error:
        raise _explain(error) from None
    if not request.input:
        raise InvalidRequest("'input' is empty: there is nothing to speak.", param="input")
    if len(request.input) > max_input_chars:
        raise InvalidRequest(
            f"'input' has {len(request.input)} characters; at most {max_input_chars} are allowed.",
            param="input",
        )
    return request


def _explain(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False)[0]
    param = str(first["loc"][0])
    if first["type"] == "missing":
        return InvalidRequest(f"Missing required field: '{param}'.", param=param)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return InvalidRequest(f"Invalid '{param}': {message}.", param=param)
