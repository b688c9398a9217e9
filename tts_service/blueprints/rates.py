"""`RATE_LIMIT` before the views that cost synthesis or change something, by Flask-Limiter."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from flask import Blueprint, Flask, Response, g, request
from flask_limiter import Limiter, RateLimitExceeded

from tts_service.blueprints.errors import tell
from tts_service.errors import InvalidApiKey, RateLimited
from tts_service.extensions import services
from tts_service.front import OWN
from tts_service.rates import SCOPE, Rates, Standing, as_client


def limit_rates(app: Flask, rates: Rates, costly: Mapping[Blueprint, Sequence[str]]) -> None:
    """Limit these methods of these blueprints, all together, for each key or address.

    They are counted before their keys are looked at: whoever tries keys out is stopped, too.
    """
    options: dict[str, Any] = {"windows": rates.windows}
    limiter = Limiter(
        client,
        app=app,
        strategy="fixed-window",
        storage_uri="tts://",
        storage_options=options,
    )
    limiter.request_filter(lambda: OWN in request.environ)
    for blueprint, methods in costly.items():
        limiter.shared_limit(rates.text, SCOPE, methods=list(methods))(blueprint)

    @app.errorhandler(RateLimitExceeded)
    def refuse(_: RateLimitExceeded) -> Response:
        g.standing = standing = rates.standing(client())
        return tell(RateLimited(standing.refusal, retry_after=standing.seconds))

    @app.after_request
    def tell_standing(response: Response) -> Response:
        if limiter.current_limits:  # it was counted
            standing: Standing = g.get("standing") or rates.standing(client())
            response.headers.update(standing.headers)
        return response


def client() -> str:
    """Who is counted: whoever bears a key, wherever from; else, the address."""
    with suppress(InvalidApiKey):
        key = services().keys.check(request.headers.get("Authorization", ""))
        if key is not None:
            return key
    return as_client(request.remote_addr or "")
