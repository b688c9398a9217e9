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
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tts_service.proxies import Proxies
from tts_service.rates import parse_rates
from tts_service.voices import is_valid_name, normalize_name

logger = logging.getLogger("tts_service.config")

ENV_FILE = ".env"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[\w.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?", re.IGNORECASE)
_CREDENTIALS = re.compile(r"//[^/@\s]*@")
SECRETS = frozenset({"API_KEYS", "GRADIO_AUTH", "GRADIO_TOKEN", "REDIS_URL"})
#: What else may stand in `.env`: Flask reads it, too, and the command line asks there.
_NO_SETTINGS = ("TTS_URL", "TTS_KEY")
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
    if url:
        _ = urlsplit(url).port  # raises ValueError for nonsense
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


def _require_proxies(trusted: tuple[str, ...]) -> tuple[str, ...]:
    Proxies(trusted)
    return trusted


def _require_rates(limits: str | None) -> str | None:
    if limits is not None:
        parse_rates(limits)
    return limits


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
    REDIS_TLS_VERIFY: bool = True
    """Whether the certificate of a `rediss://` server is checked."""
    MAX_PENDING: Count = 64
    """Requests waiting for synthesis in one process before 503."""

    API_KEYS: CommaSeparated = Field((), repr=False)
    """Keys that clients must bear; none: everybody may speak."""
    RATE_LIMIT: Annotated[str | None, AfterValidator(_require_rates)] = None
    """How often one key or address may ask: `60/minute`, or several limits; none: no limit."""
    TRUSTED_PROXIES: Annotated[CommaSeparated, AfterValidator(_require_proxies)] = ()
    """Whose X-Forwarded-For is believed: addresses and networks, `*`, or how many there are."""
    CORS_ORIGINS: Annotated[CommaSeparated, AfterValidator(_require_origins)] = ()
    """Web pages that may call the service: their origins, or `*`."""
    MAX_BODY_BYTES: Count = 1024 * 1024
    """The largest request body."""
    CLIENT_TIMEOUT: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60
    """Seconds for a request to arrive, and for which a client may take nothing of its answer."""
    MAX_VOICE_BYTES: Count = 10 * 1024 * 1024
    """The largest recording that is uploaded as a voice."""

    PAGE: bool = True
    """Whether there is a page to listen to, at `/`."""
    DOCS: bool = True
    """Whether `/docs` and `/openapi.json` are served."""

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

    @property
    def GIVEN(self) -> dict[str, str]:  # noqa: N802 - goes the way of settings, for `speech check`
        """The settings that were given, as they may be shown."""
        given = {name: getattr(self, name) for name in sorted(self.model_fields_set)}
        return {name: _shown(name, value) for name, value in given.items()}

    @property
    def UNKNOWN_NAMES(self) -> dict[str, str | None]:  # noqa: N802 - the same
        """As `unknown_names` gives them."""
        return unknown_names()


def _shown(name: str, value: object) -> str:
    if name in SECRETS:
        return "…"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return _CREDENTIALS.sub("//…@", str(value))


def read_config(**overrides: object) -> Config:
    """Read the settings. Raises ConfigError, whose message names each setting that is wrong."""
    try:
        return Config(**overrides)  # type: ignore[arg-type] # pydantic checks them
    except ValidationError as error:
        wrong = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
        raise ConfigError("\n".join(_explain(item) for item in wrong)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{ENV_FILE} is not UTF-8: {error}") from None


def changed(config: Config) -> dict[str, str]:
    """The settings that differ from their defaults, as they would be written; secrets masked."""
    return {
        name: "…" if name in SECRETS else _CREDENTIALS.sub("//…@", _written(getattr(config, name)))
        for name, field in Config.model_fields.items()
        if field.default_factory is None and getattr(config, name) != field.default
    }


def _written(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(int(value) if isinstance(value, bool) else value)


def secrets_in(config: Config) -> frozenset[str]:
    """Every key and password among the settings: no log line may hold one."""
    urls = [*config.GRADIO_URL, config.REDIS_URL or ""]
    passwords = (unquote(urlsplit(url).password or "") for url in urls)
    auth = config.GRADIO_AUTH[1] if config.GRADIO_AUTH else ""
    return frozenset({*config.API_KEYS, config.GRADIO_TOKEN or "", auth, *passwords} - {""})


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
        if name not in known and name not in _NO_SETTINGS
    }


def warn_of_unknown_names() -> None:
    """Log each name in `.env` that is no setting."""
    for name, meant in unknown_names().items():
        hint = f"; did you mean {meant}?" if meant else ""
        logger.warning(".env: %s is no setting of this service%s", name, hint)
