"""The service's description of itself, and a page to read it and try it."""

from flask import Blueprint, Response, current_app, make_response, render_template

from tts_service.blueprints.policy import under_policy
from tts_service.extensions import services
from tts_service.openapi import Terms, document_text

openapi = Blueprint("openapi", __name__)


@openapi.get("/openapi.json")
def describe_service() -> Response:
    """The OpenAPI document, by the settings and voices of now."""
    return Response(document_text(_terms()), mimetype="application/json")


@openapi.get("/docs")
def show_docs() -> Response:
    """The page; it reads the document by itself."""
    return under_policy(make_response(render_template("docs.html")))


def _terms() -> Terms:
    settings = current_app.config
    return Terms(
        max_input_chars=settings["MAX_INPUT_CHARS"],
        default_format=settings["DEFAULT_RESPONSE_FORMAT"],
        needs_key=bool(settings["API_KEYS"]),
        limits_rate=bool(settings["RATE_LIMIT"]),
        voices=tuple(services().voices.names()),
    )
