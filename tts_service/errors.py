"""Everything that can go wrong, as one tree.

SpeechError                      500 server_error
├── InvalidRequest               400 invalid_request_error (``param`` names the field)
│   ├── VoiceNotFound            400 voice_not_found
│   ├── InvalidApiKey            401 invalid_api_key
│   ├── NotFound                 404
│   │   ├── ModelNotFound        404 model_not_found
│   │   ├── CaptionsNotFound     404 captions_not_found
│   │   └── NoSuchVoice          404 voice_not_found
│   ├── RecordingRefused         400
│   │   ├── NotAudio             400 recording_not_audio
│   │   ├── TooShort             400 recording_too_short
│   │   ├── TooLong              400 recording_too_long
│   │   ├── Silent               400 recording_silent
│   │   ├── Clipped              400 recording_clipped
│   │   └── TooLarge             413 recording_too_large
│   ├── TooSlow                  408
│   ├── VoiceExists              409 voice_exists
│   ├── VoiceStays               409 voice_not_removable
│   ├── TooManyVoices            409 too_many_voices
│   └── UnsupportedMediaType     415
├── RateLimited                  429 rate_limit_error, rate_limit_exceeded
├── PromptMissing                500: the default voice's recording is not there
├── CannotStore                  500: the folder of recordings cannot be changed
└── CannotSpeak
    ├── BackendError             502 backend_error: refused or failed, all tries used
    │   └── BackendMisfit        502: its API has no function that we could call
    ├── RecordingReplaced        503: while the request was waiting
    ├── NoBackend                503 no_backend: none answers
    ├── Overloaded               503 overloaded: the queue is full
    └── BackendTimeout           504 backend_timeout

A class carries its status, type and code, so that nobody ever reads a message to decide something.
"""

import re
from collections.abc import Mapping
from typing import ClassVar

#: Control characters, line breaks of any kind, what turns the direction of writing or is not to be
#: seen, and lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


class SpeechError(Exception):
    """A failure that can be told to a client: `message` is safe to show."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    #: False: asking again cannot help, and OpenAI's SDKs are told so (`x-should-retry`).
    worth_retrying: ClassVar[bool] = True

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        # Much of it was said by others: it must not be more than one line, nor fail to be encoded.
        self.message = message if message.isprintable() else _UNPRINTABLE.sub("\ufffd", message)
        super().__init__(self.message)
        self.param = param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> Mapping[str, str]:
        """The response headers that belong to this failure."""
        headers = {}
        if self.retry_after is not None:
            # SDKs give up, or sleep for ever, on more than a minute; 0 would make them hammer.
            headers["Retry-After"] = str(round(min(30, max(1, self.retry_after))))
        if not self.worth_retrying:
            headers["x-should-retry"] = "false"
        return headers


class InvalidRequest(SpeechError):
    """The request cannot be understood or fulfilled as it stands."""

    status = 400
    type = "invalid_request_error"


class VoiceNotFound(InvalidRequest):
    code = "voice_not_found"


class InvalidApiKey(InvalidRequest):
    status = 401
    code = "invalid_api_key"

    @property
    def headers(self) -> Mapping[str, str]:
        return {**super().headers, "WWW-Authenticate": "Bearer"}


class NotFound(InvalidRequest):
    status = 404


class ModelNotFound(NotFound):
    code = "model_not_found"


class CaptionsNotFound(NotFound):
    code = "captions_not_found"


class NoSuchVoice(NotFound):
    """There is no voice to be told of, heard or removed; to speak with none is VoiceNotFound."""

    code = "voice_not_found"


class RecordingRefused(InvalidRequest):
    """An uploaded recording would not do as a voice's."""


class NotAudio(RecordingRefused):
    code = "recording_not_audio"


class TooShort(RecordingRefused):
    code = "recording_too_short"


class TooLong(RecordingRefused):
    code = "recording_too_long"


class Silent(RecordingRefused):
    code = "recording_silent"


class Clipped(RecordingRefused):
    code = "recording_clipped"


class TooLarge(RecordingRefused):
    status = 413
    code = "recording_too_large"


class TooSlow(InvalidRequest):
    """The client took too long to send its request."""

    status = 408


class VoiceExists(InvalidRequest):
    status = 409
    code = "voice_exists"
    worth_retrying = False  # the SDKs would, after a 409


class VoiceStays(InvalidRequest):
    """The voice is one that cannot be removed."""

    status = 409
    code = "voice_not_removable"
    worth_retrying = False


class TooManyVoices(InvalidRequest):
    status = 409
    code = "too_many_voices"
    worth_retrying = False


class UnsupportedMediaType(InvalidRequest):
    status = 415


class RateLimited(SpeechError):
    """This client has made as many requests as `RATE_LIMIT` allows for now."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class PromptMissing(SpeechError):
    """The default recording is missing: only the operator can mend that."""

    worth_retrying = False


class CannotStore(SpeechError):
    """The folder of recordings cannot be written to: only the operator can mend that."""

    worth_retrying = False


class CannotSpeak(SpeechError):
    """Synthesis did not come about."""


class BackendError(CannotSpeak):
    """A backend was reached and refused, failed, or answered with something that is not speech."""

    status = 502
    code = "backend_error"


class BackendMisfit(BackendError):
    """The backend's API description offers no function that this service could call."""

    worth_retrying = False


class RecordingReplaced(CannotSpeak):
    """The recording is not the one any more that the request was planned with."""

    status = 503


class NoBackend(CannotSpeak):
    """No backend answers at all."""

    status = 503
    code = "no_backend"


class Overloaded(CannotSpeak):
    """More requests wait than `MAX_PENDING`."""

    status = 503
    code = "overloaded"


class BackendTimeout(CannotSpeak):
    """`SYNTH_TIMEOUT` passed."""

    status = 504
    code = "backend_timeout"
