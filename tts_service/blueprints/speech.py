"""`/v1/audio/speech`: a request in, its sound out."""

import itertools
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, request

from tts_service.backends.base import ModelChanged
from tts_service.blueprints.auth import require_key
from tts_service.blueprints.client import as_asked, break_off, client_has_left
from tts_service.errors import InvalidRequest, RecordingReplaced, SpeechError, UnsupportedMediaType
from tts_service.extensions import services
from tts_service.front import CACHE_CONTROL, NOTES
from tts_service.records import Record
from tts_service.speech_request import SpeechRequest, parse_speech_request
from tts_service.sse import as_events
from tts_service.synthesizer import Departed, Plan, Speech, Verdict

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger(__name__)
speech = Blueprint("speech", __name__)
speech.before_request(require_key)


@speech.post("/audio/speech")
def create_speech() -> Response:
    """Speak `input`."""
    return _answer(_parse(_json_body()))


@speech.get("/audio/speech")
def link_speech() -> Response:
    """The same request as a link: a whole answer, of which parts can be asked for."""
    asked = _parse({**request.args.to_dict(), "stream_format": None, "stream": None})
    return as_asked(_answer(asked), request.environ)


def _json_body() -> Any:
    data = request.get_data(cache=False)
    # curl's default type, under which nobody would send JSON on purpose
    is_careless = request.mimetype == "application/x-www-form-urlencoded" and data[:1] == b"{"
    if request.mimetype and not request.is_json and not is_careless:
        raise UnsupportedMediaType(
            f"Content-Type must be application/json, not {request.mimetype}."
        )
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.") from None


def _parse(fields: Any) -> SpeechRequest:
    return parse_speech_request(fields, max_input_chars=current_app.config["MAX_INPUT_CHARS"])


def _answer(asked: SpeechRequest) -> Response:
    late = _late(services().synthesizer.clock())
    try:
        return _speak(asked, late)
    except (ModelChanged, RecordingReplaced):
        # A backend was restarted with another model, or a voice was given another recording while
        # this was waiting; by now that is known.
        return _speak(asked, late)


def _late(now: float) -> float:
    """When, on the clock, the headers of an answer leave, whatever there is of it."""
    seconds = current_app.config["STREAM_AFTER"]
    return now + seconds if seconds else float("inf")


def _speak(asked: SpeechRequest, late: float) -> Response:
    synthesizer = services().synthesizer
    plan = synthesizer.plan(asked)
    _note(**plan.facts)
    record = synthesizer.find(plan)
    if record is not None:
        return _told(_from_record(plan, record, asked), "HIT", {"total": 0.0})
    making = synthesizer.speak(plan, client_has_left(request.environ))
    try:
        record = None if asked.is_streamed else making.whole(late)
        if record is None:
            return _streamed(plan, making, late, asked)
    except BaseException:
        making.close()
        raise
    making.close()
    return _told(_whole(plan, record), making.verdict, making.timing)


def _from_record(plan: Plan, record: Record, asked: SpeechRequest) -> Response:
    if asked.stream_format == "sse":
        return _in_pieces(iter([record.body]), plan, asked)
    return _whole(plan, record)


def _whole(plan: Plan, record: Record) -> Response:
    response = Response(record.body, content_type=plan.format.content_type)
    response.set_etag(record.digest)
    response.headers["Cache-Control"] = CACHE_CONTROL
    return response


def _streamed(plan: Plan, making: Speech, late: float, asked: SpeechRequest) -> Response:
    chunks = making.stream(late)
    # What fails before the first byte is still an error with its own status.
    chunks = itertools.chain([next(chunks)], chunks)
    response = _in_pieces(chunks, plan, asked)
    response.call_on_close(making.close)
    return _told(response, making.verdict, making.timing)


def _in_pieces(chunks: Iterator[bytes], plan: Plan, asked: SpeechRequest) -> Response:
    kind = plan.format.content_type
    if asked.stream_format == "sse":
        chunks, kind = as_events(chunks, plan), "text/event-stream"
    response = Response(_unless_it_breaks(chunks, request.environ), content_type=kind)
    response.headers["X-Accel-Buffering"] = "no"  # nginx passes each piece on at once
    response.headers["Cache-Control"] = "no-store"  # nobody keeps what may break off
    return response


def _unless_it_breaks(chunks: Iterator[bytes], environ: "WSGIEnvironment") -> Iterator[bytes]:
    """The chunks; what fails now can only be told by a broken connection."""
    try:
        yield from chunks
    except Departed:
        break_off(environ)
    except SpeechError as error:
        logger.warning("an answer broke off: %s", error.message)
        break_off(environ)


def _told(response: Response, verdict: Verdict, timing: dict[str, float]) -> Response:
    response.headers["X-Cache"] = verdict
    response.headers["Server-Timing"] = ", ".join(
        f"{name};dur={value:.1f}" for name, value in timing.items()
    )
    _note(cache=verdict)
    return response


def _note(**facts: object) -> None:
    """For the request's log line."""
    request.environ[NOTES].update(facts)
