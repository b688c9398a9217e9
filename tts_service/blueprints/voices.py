"""`/v1/audio/voices`: the voices that there are, to hear, to add and to remove."""

from itertools import chain
from typing import Any, BinaryIO, cast

from flask import Blueprint, Response, request
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from tts_service.audio import media_type
from tts_service.blueprints.auth import require_key_to_change
from tts_service.blueprints.client import as_asked, time_limit
from tts_service.errors import InvalidRequest, TooSlow, UnsupportedMediaType
from tts_service.extensions import services
from tts_service.uploads import too_large
from tts_service.voices import VoiceFacts

voices = Blueprint("voices", __name__)
voices.before_request(require_key_to_change)

_NAME, _SAMPLE = "name", "audio_sample"
_OTHER_FIELDS = 64 * 1024  # bytes of a form beside its file
_IN_MEMORY = 256 * 1024  # bytes of a form; the parser itself reads 64 KiB at a time
_MOST_PARTS = 32
_SECONDS = 180.0  # for sending a form; 10 MiB at half a megabit a second

Form = tuple[MultiDict[str, str], MultiDict[str, FileStorage]]


@voices.get("/audio/voices")
def list_voices() -> dict[str, Any]:
    """Every voice, in the order of the names. Open WebUI reads `id` and `name`."""
    return {"voices": [_voice(facts) for facts in services().voices.all_facts()]}


@voices.post("/audio/voices")
def create_voice() -> tuple[dict[str, Any], int]:
    """Add a recording as a voice, in the form that OpenAI's SDKs send."""
    fields, files = _form()
    try:
        name = _required(fields, files)
        return _voice(services().uploads.add(name, cast(BinaryIO, files[_SAMPLE].stream))), 201
    finally:
        for file in chain.from_iterable(files.listvalues()):
            file.close()


@voices.get("/audio/voices/<name>")
def get_voice(name: str) -> dict[str, Any]:
    """One voice. 404 `voice_not_found`."""
    return _voice(services().voices.facts(name))


@voices.get("/audio/voices/<name>/sample")
def get_sample(name: str) -> Response:
    """A voice's recording, as it is; parts of it can be asked for."""
    recording = services().voices.sample(name)
    response = Response(recording, content_type=media_type(recording))
    response.add_etag()
    response.headers["Cache-Control"] = "no-cache"  # the name may be another recording's by then
    return as_asked(response, request.environ)


@voices.delete("/audio/voices/<name>")
def delete_voice(name: str) -> dict[str, Any]:
    """Remove a voice, with every file of its name. 404, and 409 `voice_not_removable`."""
    gone = services().uploads.remove(name)
    return {"id": gone, "object": "audio.voice.deleted", "deleted": True}


def _voice(facts: VoiceFacts) -> dict[str, Any]:
    return {
        "id": facts.name,
        "name": facts.name,
        "object": "audio.voice",
        "type": "audio_sample",
        "created_at": facts.created_at,
        "duration": facts.duration,
        "removable": facts.is_removable,
    }


def _form() -> Form:
    """The form's fields and files. Its body may be larger than any other; a large file goes to the
    disk while it comes in."""
    if request.mimetype != "multipart/form-data":
        raise UnsupportedMediaType("Content-Type must be multipart/form-data.")
    max_bytes = services().uploads.max_bytes
    parser = FormDataParser(
        max_form_memory_size=_IN_MEMORY,
        max_content_length=max_bytes + _OTHER_FIELDS,
        max_form_parts=_MOST_PARTS,
        silent=False,
    )
    with time_limit(request.environ, _SECONDS) as is_over:
        try:
            _, fields, files = parser.parse_from_environ(request.environ)
        except RequestEntityTooLarge:
            raise too_large(max_bytes) from None
        except (ValueError, ClientDisconnected) as error:
            if is_over():
                raise TooSlow(f"The form was not sent within {_SECONDS:.0f} s.") from None
            raise InvalidRequest(f"The form cannot be read: {error}.") from None
    return fields, files


def _required(fields: MultiDict[str, str], files: MultiDict[str, FileStorage]) -> str:
    """The name, if the form is complete."""
    if fields.get("type", "audio_sample") not in ("audio_sample", ""):
        raise InvalidRequest("Voices are made of recordings only: audio_sample.", param="type")
    if _NAME not in fields:
        raise InvalidRequest("name is required: how the voice shall be called.", param=_NAME)
    if _SAMPLE not in files:
        raise InvalidRequest(
            "audio_sample is required: a recording, sent as a file.", param=_SAMPLE
        )
    return fields[_NAME]
