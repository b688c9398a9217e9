"""`/v1/audio/speech/captions/…`: when what is said in an answer, for players.

No key is asked for: `<track src>` cannot send one, and to know the URL takes one.
"""

from collections.abc import Callable

from flask import Blueprint, Response, request

from tts_service.blueprints.client import as_asked
from tts_service.captions import PATH, SUB_RIP, WEB_VTT
from tts_service.cues import Cue, sub_rip, web_vtt
from tts_service.errors import CaptionsNotFound
from tts_service.extensions import services
from tts_service.front import CACHE_CONTROL

captions = Blueprint("captions", __name__, url_prefix=PATH)


@captions.get("/<name>.vtt")
def show_web_vtt(name: str) -> Response:
    """As WebVTT, for `<track>`."""
    return _captions(name, web_vtt, f"{WEB_VTT}; charset=utf-8")


@captions.get("/<name>.srt")
def show_sub_rip(name: str) -> Response:
    """As SRT, for players and editors."""
    return _captions(name, sub_rip, SUB_RIP)


def _captions(name: str, written: Callable[[list[Cue]], str], content_type: str) -> Response:
    cues = services().captions.find(name)
    if cues is None:
        raise CaptionsNotFound(
            "No captions are kept here: their answer is not finished yet, or they have left the "
            "cache. Ask for the speech again, with timestamps."
        )
    response = Response(written(cues), content_type=content_type)
    response.add_etag()
    response.headers["Cache-Control"] = CACHE_CONTROL
    return as_asked(response, request.environ)
