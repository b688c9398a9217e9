"""Speech as server-sent events, in OpenAI's words.

Source: the `SpeechAudioDeltaEvent` and `SpeechAudioDoneEvent` of OpenAI's API reference.
"""

import base64
import json
import logging
from collections.abc import Iterator
from typing import Any

from tts_service.errors import SpeechError
from tts_service.synthesizer import Departed, Plan

logger = logging.getLogger(__name__)

#: Bytes of sound in one event: many clients refuse a line above 64 KiB, asyncio's streams do.
_LONGEST = 24 * 1024


def as_events(chunks: Iterator[bytes], plan: Plan) -> Iterator[bytes]:
    """The chunks as events, then the end; or, when speaking fails, an error as the last.

    An empty chunk stays one. Raises Departed: there is nobody to tell.
    """
    size = 0
    try:
        for chunk in chunks:
            size += len(chunk)
            yield b"".join(_deltas(chunk))
    except Departed:
        raise
    except SpeechError as error:
        logger.warning("a stream ended early: %s", error.message)
        yield _event({"type": "error", **error.body})
        return
    # Nobody counts tokens here: characters in and bytes out are what can be told.
    usage = {"input_tokens": len(plan.text), "output_tokens": size}
    usage["total_tokens"] = sum(usage.values())
    yield _event({"type": "speech.audio.done", "usage": usage})


def _deltas(chunk: bytes) -> Iterator[bytes]:
    for start in range(0, len(chunk), _LONGEST):
        audio = base64.b64encode(chunk[start : start + _LONGEST]).decode()
        yield _event({"type": "speech.audio.delta", "audio": audio})


def _event(fields: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()
