"""OpenAI's SDK on a pipe: reads one command a line, does it, and tells what came of it, as JSON.

Runs under any version of `openai`, so it knows nothing else of this project; sdk_process.py says
what the commands are.
"""

import asyncio
import base64
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import openai

Facts = dict[str, Any]


def tell(facts: Facts) -> None:
    print(json.dumps(facts), flush=True)


def answer(command: Facts) -> Facts:
    began = time.monotonic()
    try:
        facts: Facts = DEEDS[command["do"]](command)
    except openai.APIError as error:
        facts = {"error": refusal(error)}
    return {**facts, "took": time.monotonic() - began}


def settings(command: Facts) -> Facts:
    url = f"{command['url']}/v1"
    retries = command["retries"]
    return {"base_url": url, "api_key": command["key"], "max_retries": retries, "timeout": 60}


def refusal(error: openai.APIError) -> Facts:
    return {
        "names": [kind.__name__ for kind in type(error).__mro__],
        "message": error.message,
        "status": getattr(error, "status_code", None),
        "request_id": getattr(error, "request_id", None),
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }


# -- deeds -----------------------------------------------------------------------------------------


def speak(command: Facts) -> Facts:
    if command["how"] == "async":
        return asyncio.run(speak_async(command))
    speech = openai.OpenAI(**settings(command)).audio.speech
    asked = {**command["fields"], "extra_headers": {"X-Request-ID": command["request_id"]}}
    if command["how"] == "whole":
        made = speech.create(**asked)
        return {**digest(made.content), "type": made.response.headers["content-type"]}
    with speech.with_streaming_response.create(**asked) as response:
        facts = WAYS[command["how"]](response, command)
        return {**facts, "type": response.headers["content-type"]}


async def speak_async(command: Facts) -> Facts:
    """A stream and a whole answer at the same time, which must be the same bytes."""
    async with openai.AsyncOpenAI(**settings(command)) as client:
        whole, (facts, kind) = await asyncio.gather(
            client.audio.speech.create(**command["fields"]), stream_async(client, command)
        )
    assert digest(whole.content).items() <= facts.items(), (len(whole.content), facts)
    return {**facts, "type": kind}


async def stream_async(client: openai.AsyncOpenAI, command: Facts) -> tuple[Facts, str]:
    streamed = client.audio.speech.with_streaming_response
    async with streamed.create(**command["fields"]) as response:
        pieces = [piece async for piece in response.iter_bytes()]
        return joined(pieces), response.headers["content-type"]


def models(command: Facts) -> Facts:
    return {"ids": [model.id for model in openai.OpenAI(**settings(command)).models.list()]}


def model(command: Facts) -> Facts:
    found = openai.OpenAI(**settings(command)).models.retrieve(command["id"])
    return {"object": found.object, "owned_by": found.owned_by}


# -- ways to take the sound ------------------------------------------------------------------------


def digest(data: bytes) -> Facts:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def joined(pieces: list[bytes]) -> Facts:
    return {**digest(b"".join(pieces)), "chunks": len(pieces)}


def chunks(response: Any, command: Facts) -> Facts:
    pieces = response.iter_bytes()
    first = [next(pieces)]
    came = time.monotonic()
    return {**joined([*first, *pieces]), "first": came}


def file(response: Any, command: Facts) -> Facts:
    response.stream_to_file(command["path"])
    return digest(Path(command["path"]).read_bytes())


def events(response: Any, command: Facts) -> Facts:
    lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    all_events = [json.loads(line.removeprefix("data: ")) for line in lines]
    sound = [base64.b64decode(event["audio"]) for event in all_events if "audio" in event]
    kinds = [event["type"] for event in all_events]
    return {**digest(b"".join(sound)), "events": kinds, "last": all_events[-1]}


DEEDS = {"speak": speak, "models": models, "model": model}
WAYS = {"chunks": chunks, "file": file, "events": events}

if __name__ == "__main__":
    tell({"version": openai.__version__})
    for line in sys.stdin:
        tell(answer(json.loads(line)))
