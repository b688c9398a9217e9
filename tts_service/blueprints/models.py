"""The lists of models that clients fill their menus from, in every shape they ask for."""

from typing import Any

from flask import Blueprint

from tts_service.errors import ModelNotFound
from tts_service.extensions import services

models = Blueprint("models", __name__)

#: OpenAI's speech models: clients offer them by themselves, and they speak with the default voice.
STOCK_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")


@models.get("/models")
def list_models() -> dict[str, Any]:
    """OpenAI's list of models: every voice, and the stock models."""
    return {"object": "list", "data": [_model(name) for name in _names()]}


@models.get("/models/<path:name>")
def get_model(name: str) -> dict[str, Any]:
    """One model. 404 `model_not_found`."""
    if name not in _names():
        raise ModelNotFound(f"The model {name!r} does not exist.", param="model")
    return _model(name)


@models.get("/audio/models")
def list_audio_models() -> dict[str, Any]:
    """Open WebUI's list of models."""
    return {"models": [{"id": name} for name in _names()]}


def _names() -> list[str]:
    voices = services().voices.names()
    return [*voices, *(name for name in STOCK_MODELS if name not in voices)]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tts-service"}
