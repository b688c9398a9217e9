"""Speech as server-sent events, in OpenAI's words.

Source: the `SpeechAudioDeltaEvent` and `SpeechAudioDoneEvent` of OpenAI's API reference.
`speech.audio.segment` is our own: clients that do not know an event's type pass over it.
"""

import base64
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from tts_service.cues import Cue
from tts_service.errors import SpeechError
from tts_service.synthesizer import Departed, Plan

logger = logging.getLogger(__name__)

#: Bytes of sound in one event: many clients refuse a line above 64 KiB, asyncio's streams do.
_LONGEST = 24 * 1024


def no_cues(_first: int) -> list[Cue]:
    """For those who did not ask for any."""
    return []


def as_events(
    chunks: Iterator[bytes], plan: Plan, cues: Callable[[int], list[Cue]] = no_cues
) -> Iterator[bytes]:
    """The chunks as events, then the end; or, when speaking fails, an error as the last.

    `cues(first)` tells those known by now, from the first on: each goes out before the chunk in
    which its segment begins. An empty chunk stays one. Raises Departed: there is nobody to tell.
    """
    size = told = 0
    try:
        for chunk in chunks:
            news = cues(told)
            yield b"".join((*_segments(news, told), *_deltas(chunk)))
            told += len(news)
            size += len(chunk)
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


def _segments(cues: list[Cue], first: int) -> Iterator[bytes]:
    for index, cue in enumerate(cues, first):
        times = {"start": cue.start / 1000, "end": cue.end / 1000}
        yield _event({"type": "speech.audio.segment", "index": index, "text": cue.text, **times})


def _deltas(chunk: bytes) -> Iterator[bytes]:
    for start in range(0, len(chunk), _LONGEST):
        audio = base64.b64encode(chunk[start : start + _LONGEST]).decode()
        yield _event({"type": "speech.audio.delta", "audio": audio})


def _event(fields: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()
