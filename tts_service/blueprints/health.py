"""Whether it lives, whether it can speak, and how it is."""

from dataclasses import asdict
from typing import Any

from flask import Blueprint

from tts_service.extensions import services

health = Blueprint("health", __name__)


@health.get("/health")
def report() -> dict[str, Any]:
    """How everything is. Always 200: it reports."""
    found = services()
    is_connected = found.dispatcher.is_connected()
    cache = asdict(found.cache.stats())
    return {
        "status": "ok" if is_connected else "degraded",
        "gradio_client": "connected" if is_connected else "disconnected",
        "cache": {"size": cache["entries"], "max_size": cache["max_entries"], **cache},
        "redis": None if found.shared_cache is None else found.shared_cache.report(),
        "queue": {
            "segments": found.dispatcher.queue_length(),
            "requests": found.dispatcher.pending(),
        },
        "backends": found.dispatcher.report(),
        "self_test": found.self_test.report(),
    }


@health.get("/health/live")
def live() -> dict[str, str]:
    """The process serves; nothing else is touched."""
    return {"status": "live"}


@health.get("/health/ready")
def ready() -> dict[str, str]:
    """A backend answers, proved just now; otherwise 503 with the reason."""
    services().dispatcher.check_ready()
    return {"status": "ready"}
