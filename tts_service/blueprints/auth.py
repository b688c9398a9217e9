"""API keys: who may have something spoken, or change something."""

from flask import request

from tts_service.extensions import services


def require_key() -> None:
    """Let the request pass if no keys are set, or it bears one of them. Raises InvalidApiKey.

    For `before_request` of the blueprints that cost synthesis.
    """
    if request.method != "OPTIONS":  # a browser's preflight carries no key
        services().keys.check(request.headers.get("Authorization", ""))


def require_key_to_change() -> None:
    """The same, but whoever only reads needs none. For blueprints that change something."""
    if request.method not in ("GET", "HEAD"):
        require_key()
