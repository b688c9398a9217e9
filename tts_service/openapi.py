"""The service's own description: OpenAPI 3.1, made from the model that checks requests.

It promises what is really accepted, careless clients included: null and `""` for a field that is
left out, `speed` as a string, formats in any case, fields that nobody knows.
Source of the format: https://spec.openapis.org/oas/v3.1.0
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tts_service.audio import FORMATS, MEDIA_TYPES
from tts_service.rates import RATE_HEADERS
from tts_service.speech_request import SpeechRequest
from tts_service.uploads import LONGEST, SHORTEST
from tts_service.voices import LONGEST_NAME, STOCK_VOICES

Json = dict[str, Any]

SPEECH = "/v1/audio/speech"
VOICES = "/v1/audio/voices"
_ABOUT = """\
OpenAI's speech API in front of a voice that is cloned from a recording.

Every path works with and without its `/v1`, and is never redirected. Every answer carries
`X-Request-ID`: the client's own, or a new one. Every failure is the same JSON object, `Error`;
`GET` answers to `HEAD` as well."""

#: Fields that a link has no use for: its answer is always whole.
_NOT_IN_A_LINK = ("stream_format", "stream")
_SWITCH_IN_WORDS = "^(?:1|0|t|f|y|n|true|false|yes|no|on|off)$"
#: 0.25 to 4, in decimals.
_SPEED_IN_WORDS = r"^(?:0\.(?:2[5-9]|[3-9])[0-9]{0,9}|[1-3](?:\.[0-9]{1,9})?|4(?:\.0{1,9})?)$"


@dataclass(frozen=True)
class Terms:
    """What the description takes from the settings, and from the folder of voices."""

    max_input_chars: int
    default_format: str
    needs_key: bool
    limits_rate: bool
    voices: tuple[str, ...]


@lru_cache(maxsize=4)
def document_text(terms: Terms) -> str:
    """The document as JSON. Made once for the same terms: a page asks for it at every visit."""
    return json.dumps(document(terms), ensure_ascii=False)


def document(terms: Terms) -> Json:
    """The OpenAPI document. Every route of the service is in it, except static files."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Speech gateway", "version": "1.0", "description": _ABOUT},
        "tags": [
            {"name": "Speech", "description": "Text in, sound out."},
            {"name": "Voices", "description": "Who can speak; to listen to them needs no key."},
            {"name": "Menus", "description": "What clients fill their menus from; no key needed."},
            {"name": "Operation", "description": "For whoever runs the service; no key needed."},
        ],
        "paths": {
            SPEECH: {"post": _create_speech(terms), "get": _link_speech(terms)},
            **_voices(terms),
            **_captions(),
            **_menus(),
            **_operation_of_the_service(),
        },
        "components": {
            "schemas": {
                "SpeechRequest": _speech_request(terms),
                "VoiceName": _one_of(*sorted({*terms.voices, *STOCK_VOICES})),
                **_SCHEMAS,
            },
            "headers": _HEADERS,
            "responses": {_key(status): _failure(status) for status in _FAILURES},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "One of the keys in `API_KEYS`.",
                }
            },
        },
    }


# -- what is asked ---------------------------------------------------------------------------------


def _speech_request(terms: Terms) -> Json:
    return {
        "type": "object",
        "description": "A field that is not listed is passed on if the backend has a parameter "
        "of that name (its value is checked then), and ignored otherwise.",
        "properties": {
            name: _described(own, _accepted(name, own, terms, ["", None]))
            for name, own in _own_fields(terms).items()
        },
        "required": ["input"],
        "additionalProperties": True,
    }


def _query(terms: Terms) -> list[Json]:
    """The same fields as parameters of a link, where everything is text and null cannot be said."""
    return [
        {
            "name": name,
            "in": "query",
            "required": name == "input",
            "description": own["description"],
            "schema": _described({**own, "description": ""}, _in_text(name, own, terms)),
        }
        for name, own in _own_fields(terms).items()
        if name not in _NOT_IN_A_LINK
    ]


def _in_text(name: str, own: Json, terms: Terms) -> list[Json]:
    return [form for form in _accepted(name, own, terms, [""]) if form.get("type") != "object"]


def _own_fields(terms: Terms) -> dict[str, Json]:
    """The model's fields: `description`, `default` where there is one, and `form`, its schema."""
    fields = {}
    for name, schema in SpeechRequest.model_json_schema()["properties"].items():
        forms = schema.get("anyOf", [schema])
        hidden = ("title", "description", "default")
        form = {key: value for key, value in forms[0].items() if key not in hidden}
        fields[name] = {"description": schema["description"], "form": form}
        if schema.get("default") is not None:
            fields[name]["default"] = schema["default"]
    fields["response_format"]["default"] = terms.default_format
    return fields


def _described(own: Json, forms: list[Json]) -> Json:
    schema = forms[0] if len(forms) == 1 else {"anyOf": forms}
    told = {key: own[key] for key in ("description", "default") if own.get(key)}
    return {**told, **schema}


def _accepted(name: str, own: Json, terms: Terms, nothing: list[str | None]) -> list[Json]:
    """Every form that a field's value may have, the proper one first; `nothing` is how a client
    says that it leaves the field out.
    """
    absent = {"enum": nothing, "description": "Counts as absent."}
    form = own["form"]
    match name:
        case "input":
            # Spaces around it are not counted, and there must be something else.
            bounds = {"maxLength": terms.max_input_chars, "pattern": r"\S"}
            return [{**form, **bounds, "examples": ["Hello, world."]}]
        case "voice":
            known = {"$ref": "#/components/schemas/VoiceName"}
            reference = {
                "type": "object",
                "properties": {"id": {"anyOf": [known, absent]}},
                "required": ["id"],
            }
            return [known, reference, absent]
        case "response_format" | "stream_format":
            return [form, {"type": "string", "pattern": _in_any_case(form["enum"])}, absent]
        case "speed":
            return [form, {"type": "string", "pattern": _SPEED_IN_WORDS}, absent]
        case "stream" | "timestamps" | "early_start":
            return [
                form,
                {"enum": [0, 1]},
                {"type": "string", "pattern": _SWITCH_IN_WORDS},
                absent,
            ]
        case _:
            return [form, absent]


def _in_any_case(words: Iterable[str]) -> str:
    """A pattern for these words; the dialect of JSON Schema has no flag for it."""
    return f"^(?:{'|'.join(map(_word_in_any_case, words))})$"


def _word_in_any_case(word: str) -> str:
    return "".join(f"[{c.upper()}{c}]" if c.isalpha() else c for c in word)


# -- operations ------------------------------------------------------------------------------------


def _create_speech(terms: Terms) -> Json:
    return {
        "operationId": "createSpeech",
        "tags": ["Speech"],
        "summary": "Speak a text",
        "description": "A whole answer, unless `stream_format` or `stream` asks for one that "
        "starts at once; a whole one that takes long begins to stream by itself.",
        **_security(terms),
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/SpeechRequest"}}
            },
        },
        "responses": {
            "200": _spoken("The sound.", {**_sound(), **_events()}, "Link", *_rate_headers(terms)),
            **_failures(400, *_refusals(terms), 408, 413, 415, 500, 502, 503, 504),
        },
    }


def _link_speech(terms: Terms) -> Json:
    return {
        "operationId": "linkSpeech",
        "tags": ["Speech"],
        "summary": "Speak a text, as a link",
        "description": "The same request as a link, for players: always a whole answer.",
        **_security(terms),
        "parameters": [*_query(terms), *_conditions()],
        "responses": {
            "200": _spoken("The sound.", _sound(), "Accept-Ranges", "Link", *_rate_headers(terms)),
            "206": _spoken("The part that was asked for.", _sound(), "Content-Range", "Link"),
            "304": {"description": "The client has it already.", "headers": _headers("ETag")},
            **_failures(400, *_refusals(terms), 416, 500, 502, 503, 504),
        },
    }


def _conditions() -> list[Json]:
    """The request headers that a whole answer understands."""
    standard = {
        "Range": "Bytes of the answer, to seek in it: `bytes=0-1023`.",
        "If-None-Match": "The `ETag` of an answer that the client has already.",
    }
    return [
        {"name": name, "in": "header", "description": about, "schema": {"type": "string"}}
        for name, about in standard.items()
    ]


def _voices(terms: Terms) -> Json:
    voice = {
        "name": "voice",
        "in": "path",
        "required": True,
        "description": "A voice's id, which is its name.",
        "schema": {"type": "string", "minLength": 1, "examples": ["default"]},
    }
    return {
        VOICES: {
            **_get("listVoices", "Voices", "All voices", _json("Voices")),
            "post": _create_voice(terms),
        },
        f"{VOICES}/{{voice}}": {
            "parameters": [voice],
            **_get("retrieveVoice", "Voices", "One voice", _json("Voice"), 404),
            "delete": _delete_voice(terms),
        },
        f"{VOICES}/{{voice}}/sample": {"parameters": [voice], "get": _hear_voice()},
    }


def _create_voice(terms: Terms) -> Json:
    form = {
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "minLength": 1,
                "maxLength": LONGEST_NAME,
                "description": "What the voice shall be called: letters of any script, digits, "
                "`-`, `_` and `.`, which does not come first.",
            },
            "audio_sample": {
                "type": "string",
                "format": "binary",
                "description": f"A recording of {SHORTEST:.0f} to {LONGEST:.0f} s in any common "
                "format, of at most `MAX_VOICE_BYTES`.",
            },
        },
        "required": ["name", "audio_sample"],
    }
    added = {"description": "The voice.", "headers": _headers(), "content": _json("Voice")}
    return {
        "operationId": "createVoice",
        "tags": ["Voices"],
        "summary": "Add a voice",
        "description": "The recording is heard first: the `code` of a 400 says what is wrong with "
        "it. Fields that OpenAI has besides, such as `consent`, are ignored.",
        **_security(terms),
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "201": added,
            **_failures(400, *_refusals(terms), 408, 409, 413, 415, 500, 503),
        },
    }


def _delete_voice(terms: Terms) -> Json:
    removed = {"description": "It is gone.", "headers": _headers(), "content": _json("Removal")}
    return {
        "operationId": "deleteVoice",
        "tags": ["Voices"],
        "summary": "Remove a voice",
        "description": "With every file of its name. The default voice stays, and so do those of "
        "`MODEL_PROMPT_MAP`: 409.",
        **_security(terms),
        "responses": {"200": removed, **_failures(*_refusals(terms), 404, 409, 500)},
    }


def _hear_voice() -> Json:
    told = _headers("ETag", "Cache-Control")
    part = _headers("ETag", "Cache-Control", "Content-Range")
    kinds: Json = {kind: {} for kind in MEDIA_TYPES}
    return {
        "operationId": "hearVoice",
        "tags": ["Voices"],
        "summary": "A voice's recording",
        "parameters": _conditions(),
        "responses": {
            "200": {"description": "The recording.", "headers": told, "content": kinds},
            "206": {"description": "Part of it.", "headers": part, "content": kinds},
            "304": {"description": "The client has it already.", "headers": _headers("ETag")},
            **_failures(404, 416),
        },
    }


def _captions() -> Json:
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "From the `Link` of an answer that was asked for with `timestamps`.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    }
    formats = (("WebVTT", "vtt", "text/vtt"), ("SRT", "srt", "application/x-subrip"))
    operations = {}
    for title, suffix, kind in formats:
        summary = f"The captions of an answer, as {title}"
        operation = _get(f"show{title}", "Speech", summary, _text(kind), 404)["get"]
        about = "Each piece of the text, and when it is heard. To know the URL is enough: no key."
        seen = {"description": "The client has it already.", "headers": _headers("ETag")}
        operation["responses"]["200"]["headers"] = _headers("ETag", "Cache-Control")
        operation["responses"]["304"] = seen
        operations[f"{SPEECH}/captions/{{name}}.{suffix}"] = {
            "get": {**operation, "description": about},
            "parameters": [name],
        }
    return operations


def _menus() -> Json:
    name = {
        "name": "model",
        "in": "path",
        "required": True,
        "description": "A model's id, or a voice's.",
        "schema": {"type": "string"},
    }
    one_model = _get("retrieveModel", "Menus", "One model", _json("Model"), 404)
    return {
        "/v1/models": _get("listModels", "Menus", "All models", _json("Models")),
        "/v1/models/{model}": {**one_model, "parameters": [name]},
        "/v1/audio/models": _get(
            "listSpeechModels", "Menus", "All models, for Open WebUI", _json("SpeechModels")
        ),
    }


def _operation_of_the_service() -> Json:
    return {
        "/health": _get("reportHealth", "Operation", "How it is", _json("Health")),
        "/health/live": _get("checkLive", "Operation", "Does it serve?", _json("Status")),
        "/health/ready": _get(
            "checkReady", "Operation", "Does a backend answer?", _json("Status"), 503
        ),
        "/metrics": _get(
            "exposeMetrics", "Operation", "What is counted, for Prometheus", _text("text/plain")
        ),
        "/openapi.json": _get(
            "describeService", "Operation", "This document", {"application/json": {}}
        ),
        "/": _get("showPage", "Operation", "A page to listen with", _text("text/html")),
        "/docs": _get("showDocs", "Operation", "A page for this document", _text("text/html")),
    }


def _get(name: str, tag: str, summary: str, content: Json, *failures: int) -> Json:
    """A path that has nothing but a GET."""
    told = {"description": summary, "headers": _headers(), "content": content}
    return {
        "get": {
            "operationId": name,
            "tags": [tag],
            "summary": summary,
            "responses": {"200": told, **_failures(*failures)},
        }
    }


def _security(terms: Terms) -> Json:
    key: Json = {"bearer": []}
    return {"security": [key] if terms.needs_key else [{}, key]}


def _rate_headers(terms: Terms) -> tuple[str, ...]:
    return RATE_HEADERS if terms.limits_rate else ()


def _refusals(terms: Terms) -> list[int]:
    """The statuses of a client that may not, or not now."""
    return [401] * terms.needs_key + [429] * terms.limits_rate


# -- what is answered ------------------------------------------------------------------------------

_FAILURES: Mapping[int, tuple[str, tuple[str, ...]]] = {
    400: ("Not JSON, or a field's type or value is wrong: `param` names it.", ()),
    401: ("The key is missing or wrong: `invalid_api_key`.", ("WWW-Authenticate",)),
    404: ("Not there: `model_not_found`, `voice_not_found`, `captions_not_found`.", ()),
    408: ("The body took too long to arrive.", ()),
    409: ("`voice_exists`, `voice_not_removable`, `too_many_voices`.", ("x-should-retry",)),
    413: ("The body is too large.", ()),
    415: ("The body is of another type.", ()),
    416: ("The answer has no such bytes.", ("Content-Range",)),
    429: ("Too many requests: `rate_limit_exceeded`.", ("Retry-After", *RATE_HEADERS)),
    500: (
        "A recording is missing or cannot be stored, or the service is at fault.",
        ("x-should-retry",),
    ),
    502: ("The backends refused or failed: `backend_error`.", ("x-should-retry",)),
    503: ("No backend answers, or too many wait: `no_backend`, `overloaded`.", ("Retry-After",)),
    504: ("The backend took too long: `backend_timeout`.", ()),
}


def _failure(status: int) -> Json:
    about, headers = _FAILURES[status]
    return {"description": about, "headers": _headers(*headers), "content": _json("Error")}


def _failures(*statuses: int) -> Json:
    return {str(status): {"$ref": f"#/components/responses/{_key(status)}"} for status in statuses}


def _key(status: int) -> str:
    return f"Error{status}"


def _spoken(about: str, content: Json, *headers: str) -> Json:
    told = _headers("X-Cache", "Server-Timing", "ETag", "Cache-Control", *headers)
    return {"description": about, "headers": told, "content": content}


def _sound() -> Json:
    """Every format. A body of bytes has no schema in OpenAPI 3.1."""
    return {format_.content_type: {} for format_ in FORMATS.values()}


def _events() -> Json:
    """Server-sent events. OpenAPI 3.1 has no word for a sequence: this is one, as in 3.2."""
    content = {"$ref": "#/components/schemas/SpeechEvent"}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    return {"text/event-stream": {"schema": _object("Each event.", data=data)}}


def _json(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _text(kind: str) -> Json:
    return {kind: {"schema": {"type": "string"}}}


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}


def _header(about: str, *, is_always_there: bool = False, **schema: Any) -> Json:
    return {
        "description": about,
        "required": is_always_there,
        "schema": {"type": "string", **schema},
    }


_HEADERS: Mapping[str, Json] = {
    "X-Request-ID": _header("The request's name in the log.", is_always_there=True, minLength=1),
    "X-Cache": _header(
        "Where the sound comes from: the cache, partly the cache, an identical request under way, "
        "or a backend.",
        is_always_there=True,
        enum=["HIT", "PARTIAL", "COALESCED", "MISS"],
    ),
    "Server-Timing": _header(
        "Milliseconds: `queue`, `synth`, `encode` and `total`.", is_always_there=True
    ),
    "ETag": _header("The hash of a whole answer."),
    "Cache-Control": _header("How long a whole answer may be given again; streams: not."),
    "Accept-Ranges": _header("Parts of a whole answer can be asked for.", enum=["bytes"]),
    "Link": _header(
        "With `timestamps`, twice: the URLs of the captions, as `text/vtt` and as "
        "`application/x-subrip`."
    ),
    "Content-Range": _header("Which bytes, of how many."),
    "Retry-After": _header(
        "Seconds to wait before the next try, 1 to 30.", type="integer", minimum=1, maximum=30
    ),
    "x-ratelimit-limit-requests": _header("How many requests a client may make.", type="integer"),
    "x-ratelimit-remaining-requests": _header(
        "How many of them are left.", type="integer", minimum=0
    ),
    "x-ratelimit-reset-requests": _header(
        "How long until all are there again: `6m0s`.", pattern="^(?:[0-9]+[hms])+$"
    ),
    "WWW-Authenticate": _header("How to bear a key.", is_always_there=True, enum=["Bearer"]),
    "x-should-retry": _header("Where asking again cannot help.", enum=["false"]),
}


def _object(about: str = "", **properties: Json) -> Json:
    """A JSON object that always has these properties, and may get others in later versions."""
    told = {"description": about} if about else {}
    return {"type": "object", **told, "properties": properties, "required": list(properties)}


def _one_of(*words: str) -> Json:
    return {"type": "string", "enum": list(words)}


def _list_of(items: Json) -> Json:
    return {"type": "array", "items": items}


_TEXT: Json = {"type": "string"}
_TEXT_OR_NOTHING: Json = {"type": ["string", "null"]}
_COUNT: Json = {"type": "integer", "minimum": 0}
_SECONDS: Json = {"type": "number", "minimum": 0}

_SCHEMAS: Mapping[str, Json] = {
    "SpeechEvent": {
        "anyOf": [
            _object(
                "With `timestamps`, before the sound of each piece of the text: from when to when "
                "it is heard, in seconds of the answer.",
                type=_one_of("speech.audio.segment"),
                index=_COUNT,
                text=_TEXT,
                start=_SECONDS,
                end=_SECONDS,
            ),
            _object("A piece of the sound.", type=_one_of("speech.audio.delta"), audio=_TEXT),
            _object(
                "The end. Tokens are characters in, and bytes out.",
                type=_one_of("speech.audio.done"),
                usage=_object(input_tokens=_COUNT, output_tokens=_COUNT, total_tokens=_COUNT),
            ),
            _object(
                "A failure in the middle: the last event.",
                type=_one_of("error"),
                error={"$ref": "#/components/schemas/Failure"},
            ),
        ]
    },
    "Error": _object(error={"$ref": "#/components/schemas/Failure"}),
    "Failure": _object(
        message=_TEXT,
        type=_one_of("invalid_request_error", "rate_limit_error", "server_error"),
        param=_TEXT_OR_NOTHING,
        code=_TEXT_OR_NOTHING,
    ),
    "Model": _object(id=_TEXT, object=_one_of("model"), created=_COUNT, owned_by=_TEXT),
    "Models": _object(
        object=_one_of("list"), data=_list_of({"$ref": "#/components/schemas/Model"})
    ),
    "SpeechModels": _object(models=_list_of(_object(id=_TEXT))),
    "Voice": _object(
        id=_TEXT,
        name=_TEXT,
        object=_one_of("audio.voice"),
        type=_one_of("audio_sample"),
        created_at={**_COUNT, "description": "Unix seconds: the recording's time."},
        duration={"type": "number", "minimum": 0, "description": "Seconds."},
        removable={"type": "boolean", "description": "False for voices that the settings name."},
    ),
    "Voices": _object(voices=_list_of({"$ref": "#/components/schemas/Voice"})),
    "Removal": _object(
        id=_TEXT, object=_one_of("audio.voice.deleted"), deleted={"type": "boolean"}
    ),
    "Status": _object(status=_one_of("live", "ready")),
    "Health": _object(
        status=_one_of("ok", "degraded"),
        gradio_client=_one_of("connected", "disconnected"),
        cache=_object(size=_COUNT, max_size=_COUNT),
        queue=_object(segments=_COUNT, requests=_COUNT),
        backends=_list_of(_object(url=_TEXT, state=_TEXT)),
        self_test=_object(state=_TEXT),
    ),
}
