"""`/metrics`, for Prometheus."""

from flask import Blueprint, Response

from tts_service.extensions import services
from tts_service.metrics import CONTENT_TYPE

metrics = Blueprint("metrics", __name__)


@metrics.get("/metrics")
def expose() -> Response:
    """Everything that is counted, of all workers."""
    found = services()
    stats = found.cache.stats()
    found.metrics.note_cache(stats.entries, stats.bytes)
    return Response(found.metrics.exposition(), content_type=CONTENT_TYPE)
