"""What the blueprints share: the cache extension, and the way to the components."""

from dataclasses import dataclass

from flask import current_app
from flask_caching import Cache

from tts_service.cache import BoundedCache
from tts_service.captions import Captions
from tts_service.dispatcher import Dispatcher
from tts_service.hits import Hits
from tts_service.keys import ApiKeys
from tts_service.metrics import Metrics
from tts_service.proxies import Proxies
from tts_service.rates import Rates
from tts_service.self_test import SelfTest
from tts_service.shared_cache import SharedCache
from tts_service.synthesizer import Synthesizer
from tts_service.uploads import Uploads
from tts_service.voices import VoiceCatalogue

cache = Cache()


@dataclass(frozen=True, slots=True)
class Services:
    """The components of one application."""

    voices: VoiceCatalogue
    uploads: Uploads
    cache: BoundedCache
    shared_cache: SharedCache | None
    dispatcher: Dispatcher
    synthesizer: Synthesizer
    self_test: SelfTest
    metrics: Metrics
    keys: ApiKeys
    rates: Rates | None
    proxies: Proxies
    hits: Hits
    captions: Captions


def services() -> Services:
    """The current application's components."""
    components = current_app.extensions["tts_service"]
    assert isinstance(components, Services)
    return components
