"""`/`: the page for people, who type, listen, and add voices."""

from flask import Blueprint, Response, current_app, make_response, render_template

from tts_service.blueprints.policy import under_policy

page = Blueprint("page", __name__)


@page.get("/")
def show_page() -> Response:
    """The page; what it shows it asks for by the same routes as any other client."""
    settings = current_app.config
    response = make_response(
        render_template(
            "index.html",
            longest_text=settings["MAX_INPUT_CHARS"],
            needs_key=bool(settings["API_KEYS"]),
            has_docs=bool(settings.get("DOCS", True)),
        )
    )
    response.headers["Cache-Control"] = "no-cache"  # settings may change with a restart
    return under_policy(response)
