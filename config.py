"""Every setting, read once from the environment and from `.env`; nobody else reads either.

The environment wins over `.env`; an empty value counts as absent. A value that cannot be
understood stops the start with a message that names the setting, and an unknown name in
`.env` is warned of, because it is nearly always a misspelling.
"""

import difflib
import json
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tts_service.voices import is_valid_name, normalize_name

logger = logging.getLogger("tts_service.config")

ENV_FILE = ".env"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[\w.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?", re.IGNORECASE)
_CREDENTIALS = re.compile(r"//[^/@\s]*@")
SECRETS = frozenset({"API_KEYS", "GRADIO_AUTH", "GRADIO_TOKEN", "REDIS_URL"})
_REDIS = ("redis://", "rediss://", "unix://")


class ConfigError(Exception):
    """One or more settings cannot be understood; the message names each."""


def _split_commas(value: object) -> object:
    return [item.strip() for item in value.split(",")] if isinstance(value, str) else value


def _drop_empty(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value for value in values if value)


def _parse_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"not a JSON object: {error}") from None


def _split_credentials(value: object) -> object:
    if not isinstance(value, str):
        return value
    user, colon, password = value.partition(":")
    if not (colon and user):
        raise ValueError("expected user:password")
    return user, password


def _require_backend_address(addresses: tuple[str, ...]) -> tuple[str, ...]:
    for address in addresses:
        parts = urlsplit(address)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_space = not parts.scheme and address.count("/") == 1 and not address.startswith("/")
        if not (is_url or is_space):
            raise ValueError(f"{address!r} is neither an http(s) URL nor a Space (owner/name)")
    return addresses


def _require_redis(url: str | None) -> str | None:
    if url and not url.startswith(_REDIS):
        raise ValueError("expected redis://…, rediss://… or unix://…")
    return url


def _require_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin: * or scheme://host, with a port or without")
    return origins


def _require_names(recordings: dict[str, Path]) -> dict[str, Path]:
    for name in recordings:
        if not is_valid_name(normalize_name(name)):
            raise ValueError(
                f"{name!r} is no name for a voice: 1 to 64 letters, digits, - _ and . are"
            )
    return recordings


Lowercase = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
CommaSeparated = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_split_commas), AfterValidator(_drop_empty)
]
JsonObject = Annotated[dict[str, Any], NoDecode, BeforeValidator(_parse_object)]
Prompts = Annotated[
    dict[str, Path], NoDecode, BeforeValidator(_parse_object), AfterValidator(_require_names)
]
Credentials = Annotated[tuple[str, str] | None, NoDecode, BeforeValidator(_split_credentials)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _default_host() -> str:
    return "0.0.0.0" if os.environ.get("PORT") else "127.0.0.1"  # noqa: S104 - as a PaaS needs it


class Config(BaseSettings):
    """The settings, with their defaults; README.md says what each is for."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_ignore_empty=True,
        case_sensitive=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    GRADIO_URL: Annotated[CommaSeparated, AfterValidator(_require_backend_address)] = ()
    """One backend, or several separated by commas: replicas of one model."""
    GRADIO_API_NAME: str = "/gen_single"
    """The backend function to call."""
    GRADIO_PARAMS: JsonObject = {}
    """Values for backend parameters, by name or label."""
    GRADIO_AUTH: Credentials = Field(None, repr=False)
    """`user:password`, where the backend asks for a login."""
    GRADIO_TOKEN: str | None = Field(None, repr=False)
    """A Hugging Face token, for private Spaces."""
    GRADIO_CONCURRENCY: Count = 1
    """Calls at a time for each backend."""
    GRADIO_CONNECT_ATTEMPTS: Count = 5
    """How often the first connection is tried before a warning."""
    GRADIO_CONNECT_DELAY: Seconds = 2
    """Seconds between two such tries."""
    GRADIO_CALL_ATTEMPTS: Count = 3
    """How often one segment is tried."""
    GRADIO_CALL_DELAY: Seconds = 2
    """Seconds between two tries, where no other backend is free."""
    SYNTH_TIMEOUT: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300
    """Seconds for one segment: its turn, retries and failover included."""

    STREAM_AFTER: Seconds = 25
    """Seconds after which an answer that is not whole yet begins to stream; 0: never."""

    PROMPTS_DIR: Path = Path("prompts")
    """The folder of recordings: each file is a voice."""
    MODEL_PROMPT_MAP: Prompts = {}
    """More voices: names and the paths of their recordings."""
    DEFAULT_PROMPT_AUDIO_PATH: Path = Path("prompts/default.wav")
    """The recording for whoever names no voice."""

    DEFAULT_RESPONSE_FORMAT: Annotated[
        Literal["wav", "mp3", "opus", "aac", "flac", "pcm"], Lowercase
    ] = "wav"
    """The format of an answer to a request that names none."""
    MAX_INPUT_CHARS: Count = 4096
    """The longest text, in characters."""
    SEGMENT_CHARS: Annotated[int, Field(ge=10)] = 120
    """The longest segment, in characters."""
    SEGMENT_PAUSE_MS: Annotated[int, Field(ge=0, le=10_000)] = 200
    """The pause between two segments."""

    MAX_CACHE_SIZE: Annotated[int, Field(ge=0)] = 100
    """Answers and segments kept in one process; 0: none."""
    MAX_CACHE_BYTES: Annotated[int, Field(ge=0)] = 256 * 1024 * 1024
    """Their bytes."""
    CACHE_TTL: Count = 86400
    """Seconds for which they are kept."""
    REDIS_URL: Annotated[str | None, AfterValidator(_require_redis)] = Field(None, repr=False)
    """The memory that workers and machines share, and the claims behind "spoken once"."""
    MAX_PENDING: Count = 64
    """Requests waiting for synthesis in one process before 503."""

    API_KEYS: CommaSeparated = Field((), repr=False)
    """Keys that clients must bear; none: everybody may speak."""
    CORS_ORIGINS: Annotated[CommaSeparated, AfterValidator(_require_origins)] = ()
    """Web pages that may call the service: their origins, or `*`."""
    MAX_BODY_BYTES: Count = 1024 * 1024
    """The largest request body."""
    CLIENT_TIMEOUT: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60
    """Seconds for a request to arrive, and for which a client may take nothing of its answer."""
    MAX_VOICE_BYTES: Count = 10 * 1024 * 1024
    """The largest recording that is uploaded as a voice."""

    SELF_TEST: bool = True
    """Whether the service tries itself after the start."""
    SELF_TEST_MODEL: str = "chixiaotu6"
    """The model (a voice) it asks for."""
    SELF_TEST_INPUT: str = "您好。"
    """The text it asks for."""

    LOG_LEVEL: Annotated[Literal["debug", "info", "warning", "error"], Lowercase] = "info"
    """The least level that is logged."""
    LOG_FORMAT: Annotated[Literal["text", "json"], Lowercase] = "text"
    """Lines for people, or JSON for machines."""

    FAST_HITS: bool = True
    """Whether gunicorn's workers answer hits without handing them to a thread."""

    PORT: Annotated[int, Field(ge=1, le=65535)] = 8000
    """The port to listen on."""
    HOST: str = Field(default_factory=_default_host)
    """The address to listen on; every one when a PaaS sets PORT."""
    WEB_CONCURRENCY: Count = 1
    """Worker processes."""
    THREADS: Count = Field(default_factory=lambda settings: settings["MAX_PENDING"] + 16)
    """Threads of each worker: a waiting request holds one, the rest serve hits and health."""


def read_config(**overrides: object) -> Config:
    """Read the settings. Raises ConfigError, whose message names each setting that is wrong."""
    try:
        return Config(**overrides)  # type: ignore[arg-type] # pydantic checks them
    except ValidationError as error:
        wrong = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
        raise ConfigError("\n".join(_explain(item) for item in wrong)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{ENV_FILE} is not UTF-8: {error}") from None


def _explain(item: Any) -> str:
    name = str(item["loc"][0])
    where = "".join(f"[{key!r}]" for key in item["loc"][1:])
    value = "…" if name in SECRETS else repr(item["input"])
    told = f"{name}{where}={value}: {item['msg'].removeprefix('Value error, ')}"
    return _CREDENTIALS.sub("//…@", told)


def unknown_names() -> dict[str, str | None]:
    """Names in `.env` that are no setting, each with the setting it may have been meant for."""
    known = list(Config.model_fields)
    return {
        name: next(iter(difflib.get_close_matches(name.upper(), known, n=1)), None)
        for name in dotenv_values(ENV_FILE)
        if name not in known
    }


def warn_of_unknown_names() -> None:
    """Log each name in `.env` that is no setting."""
    for name, meant in unknown_names().items():
        hint = f"; did you mean {meant}?" if meant else ""
        logger.warning(".env: %s is no setting of this service%s", name, hint)
