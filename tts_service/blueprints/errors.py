"""Every error, whatever its cause and path, as OpenAI's error object."""

import logging
from functools import partial

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from tts_service.blueprints.client import take_in
from tts_service.errors import SpeechError
from tts_service.front import ASKED_PATH

logger = logging.getLogger(__name__)
errors = Blueprint("errors", __name__)


@errors.app_errorhandler(SpeechError)
def tell(error: SpeechError) -> Response:
    """One of ours: it knows its status and code."""
    response = jsonify(error.body)
    response.status_code = error.status
    response.headers.update(error.headers)
    return response


@errors.app_errorhandler(HTTPException)
def tell_http(error: HTTPException) -> Response:
    """One of the framework's: unknown path, wrong method, too large a body."""
    status = error.code or 500
    response = jsonify(_body(_said(error, status), status))
    response.status_code = status
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


@errors.app_errorhandler(Exception)
def tell_crash(error: Exception) -> Response:
    """A fault of ours: logged in full, told without detail."""
    logger.exception("%s %r crashed", request.method, request.path, exc_info=error)
    return tell(SpeechError("Internal error. The request id tells the operator where to look."))


@errors.after_app_request
def let_be_heard(response: Response) -> Response:
    """Many errors are answered while their request is still being sent."""
    if response.status_code >= 400:
        response.call_on_close(partial(take_in, request.environ))
    return response


def _body(message: str, status: int) -> dict[str, dict[str, str | None]]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _said(error: HTTPException, status: int) -> str:
    path = request.environ.get(ASKED_PATH, request.path)
    if status == 404:
        return f"There is nothing at {request.method} {path}."
    if status == 405:
        return f"{path} does not take {request.method}."
    if isinstance(error, RequestEntityTooLarge):
        return f"The request body is too large: at most {request.max_content_length} bytes."
    return error.description or error.name
