"""A gateway from OpenAI's speech API to voices behind Gradio. `create_app` puts it together."""

import re

from flask import Flask
from flask.json.provider import DefaultJSONProvider
from flask_cors import CORS

from tts_service.backends.gradio import GradioBackend
from tts_service.blueprints.captions import captions
from tts_service.blueprints.errors import errors
from tts_service.blueprints.health import health
from tts_service.blueprints.metrics import metrics
from tts_service.blueprints.models import models
from tts_service.blueprints.openapi import openapi
from tts_service.blueprints.page import page
from tts_service.blueprints.rates import limit_rates
from tts_service.blueprints.speech import speech
from tts_service.blueprints.voices import voices
from tts_service.cache import BoundedCache, SpeechCache
from tts_service.captions import Captions
from tts_service.claims import Claims
from tts_service.cli import register
from tts_service.dispatcher import Dispatcher
from tts_service.extensions import Services, cache
from tts_service.front import Front
from tts_service.hits import Hits
from tts_service.keys import ApiKeys
from tts_service.metrics import Metrics
from tts_service.proxies import Proxies
from tts_service.rates import RATE_HEADERS, Rates, Windows
from tts_service.records import unpack
from tts_service.self_test import SelfTest
from tts_service.shared_cache import SharedCache
from tts_service.synthesizer import Synthesizer
from tts_service.tiers import Tiers
from tts_service.uploads import Uploads
from tts_service.voices import VoiceCatalogue

__all__ = ["create_app"]


#: What is for people to look at, and the setting that switches it.
_PAGES = {openapi: "DOCS", page: "PAGE"}
#: What costs synthesis or changes something: `RATE_LIMIT` is for these methods.
_COSTLY = {speech: ("GET", "HEAD", "POST"), voices: ("POST", "DELETE")}


def create_app(config: object) -> Flask:
    """The application. `config` has the settings as attributes (config.py), or is a class of
    such objects. Nothing connects and no thread starts before the first request."""
    settings = config() if isinstance(config, type) else config
    pages = [blueprint for blueprint, name in _PAGES.items() if getattr(settings, name)]
    app = Flask(__name__, static_folder="static" if pages else None)
    app.config.from_object(settings)
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_BODY_BYTES"]
    assert isinstance(app.json, DefaultJSONProvider)
    app.json.ensure_ascii = False  # voices and messages are to be read
    app.json.sort_keys = False
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.extensions["tts_service"] = services = _build(app)
    for blueprint in (captions, errors, health, metrics, models, speech, voices, *pages):
        app.register_blueprint(blueprint)
    if services.rates is not None:
        limit_rates(app, services.rates, _COSTLY)
    register(app, create_app)
    _allow_origins(app)
    app.wsgi_app = Front(  # type: ignore[method-assign] # Flask's way to wrap it
        app.wsgi_app, metrics=services.metrics, proxies=services.proxies
    )
    return app


def _allow_origins(app: Flask) -> None:
    """Let web pages of the configured origins call, and read what SDKs look for."""
    if app.config["CORS_ORIGINS"]:
        told = ["X-Request-ID", "Retry-After", "X-Cache", "Server-Timing", "ETag", "Content-Range"]
        told += ["Link", *RATE_HEADERS]
        # Compiled, or some would be taken for patterns: http://[::1]:3000 has brackets.
        origins = [
            origin if origin == "*" else re.compile(re.escape(origin) + "$", re.IGNORECASE)
            for origin in app.config["CORS_ORIGINS"]
        ]
        CORS(app, origins=origins, expose_headers=told, max_age=600, always_send=False)


def _build(app: Flask) -> Services:
    settings = app.config
    catalogue = VoiceCatalogue(
        settings["PROMPTS_DIR"],
        settings["MODEL_PROMPT_MAP"],
        settings["DEFAULT_PROMPT_AUDIO_PATH"],
    )
    uploads = Uploads(catalogue, settings["PROMPTS_DIR"], max_bytes=settings["MAX_VOICE_BYTES"])
    counts = Metrics()
    dispatcher = _dispatcher(app, counts)
    bounded = _bounded_cache(app)
    bounded.on_eviction = counts.note_eviction
    shared = _shared_cache(app, counts)
    memory: SpeechCache = bounded
    if shared is not None:
        memory = Tiers(bounded, shared, is_sound=lambda v: unpack(v, verify=True) is not None)
    synthesizer = Synthesizer(
        voices=catalogue,
        dispatcher=dispatcher,
        cache=memory,
        claims=Claims(shared),
        metrics=counts,
        default_format=settings["DEFAULT_RESPONSE_FORMAT"],
        segment_chars=settings["SEGMENT_CHARS"],
        segment_pause=settings["SEGMENT_PAUSE_MS"] / 1000,
        synth_timeout=settings["SYNTH_TIMEOUT"],
    )
    self_test = SelfTest(
        model=settings["SELF_TEST_MODEL"],
        text=settings["SELF_TEST_INPUT"],
        is_enabled=settings["SELF_TEST"],
        expects_hit=settings["MAX_CACHE_SIZE"] > 0 and settings["MAX_CACHE_BYTES"] > 0,
    )
    keys = ApiKeys(settings["API_KEYS"])
    limit = settings["RATE_LIMIT"]
    rates = Rates(limit, Windows(shared)) if limit else None
    proxies = Proxies(settings["TRUSTED_PROXIES"])
    hits = Hits(
        synthesizer,
        bounded,
        counts,
        keys=keys,
        max_input_chars=settings["MAX_INPUT_CHARS"],
        allows_origins=bool(settings["CORS_ORIGINS"]),
        proxies=proxies,
        rates=rates,
    )
    return Services(
        voices=catalogue,
        uploads=uploads,
        cache=bounded,
        shared_cache=shared,
        dispatcher=dispatcher,
        synthesizer=synthesizer,
        self_test=self_test,
        metrics=counts,
        keys=keys,
        rates=rates,
        proxies=proxies,
        hits=hits,
        captions=Captions(memory, keys),
    )


def _dispatcher(app: Flask, metrics: Metrics) -> Dispatcher:
    settings = app.config
    backends = [
        GradioBackend(
            url,
            api_name=settings["GRADIO_API_NAME"],
            params=settings["GRADIO_PARAMS"],
            auth=settings["GRADIO_AUTH"],
            token=settings["GRADIO_TOKEN"],
        )
        for url in settings["GRADIO_URL"]
    ]
    return Dispatcher(
        backends,
        concurrency=settings["GRADIO_CONCURRENCY"],
        connect_attempts=settings["GRADIO_CONNECT_ATTEMPTS"],
        connect_delay=settings["GRADIO_CONNECT_DELAY"],
        call_attempts=settings["GRADIO_CALL_ATTEMPTS"],
        call_delay=settings["GRADIO_CALL_DELAY"],
        synth_timeout=settings["SYNTH_TIMEOUT"],
        max_pending=settings["MAX_PENDING"],
        metrics=metrics,
    )


def _shared_cache(app: Flask, metrics: Metrics) -> SharedCache | None:
    if not app.config["REDIS_URL"]:
        return None
    return SharedCache(
        app.config["REDIS_URL"],
        verify=app.config["REDIS_TLS_VERIFY"],
        default_timeout=app.config["CACHE_TTL"],
        max_bytes=app.config["MAX_CACHE_BYTES"],
        metrics=metrics,
    )


def _bounded_cache(app: Flask) -> BoundedCache:
    settings = {
        "CACHE_TYPE": "tts_service.cache.BoundedCache",
        "CACHE_THRESHOLD": app.config["MAX_CACHE_SIZE"],
        "CACHE_DEFAULT_TIMEOUT": app.config["CACHE_TTL"],
        "MAX_CACHE_BYTES": app.config["MAX_CACHE_BYTES"],
    }
    cache.init_app(app, config=settings)
    # The object itself: outside of a request the extension would mean the last app initialised.
    bounded = app.extensions["cache"][cache]
    assert isinstance(bounded, BoundedCache)
    return bounded
