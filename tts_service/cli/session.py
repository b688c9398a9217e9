"""Where the commands find the service: in this process, or at a URL."""

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import httpx
from flask import Flask, current_app

from tts_service.cli.commands import Failed
from tts_service.cli.service import TIMEOUT, Service
from tts_service.extensions import Services
from tts_service.start import CannotStart, start_demo_backend

#: Where the application keeps what makes another one like it.
EXTENSION: Final = "tts_service.cli"
CreateApp = Callable[[object], Flask]

#: In this process there is nobody to be kept out, and no router that waits for a first byte.
_OWN_SETTINGS: Final = {
    "API_KEYS": (),
    "RATE_LIMIT": None,
    "STREAM_AFTER": 0,
    "SELF_TEST": False,
}


@dataclass(frozen=True, slots=True)
class Target:
    """The service that was asked for: at `url` with `key`, or in this process."""

    url: str | None
    key: str | None


@contextmanager
def service(target: Target, *, speaks: bool = True) -> Generator[Service]:
    """The service that was asked for, and its end. Where it is in this process and must speak
    without GRADIO_URL, the demo backend is started for it. Raises Failed."""
    if target.url is not None:
        with _at(target.url, target.key) as found:
            yield found
        return
    with ExitStack() as stack:
        backends = current_app.config["GRADIO_URL"]
        if speaks and not backends:
            backends = stack.enter_context(demo_backend())
        yield stack.enter_context(in_process(GRADIO_URL=backends))


@contextmanager
def in_process(**settings: Any) -> Generator[Service]:
    """The service in this process, with these settings in place of its own."""
    app = current_app.extensions[EXTENSION](
        SimpleNamespace(**{**_settings(), **_OWN_SETTINGS, **settings})
    )
    found = app.extensions["tts_service"]
    assert isinstance(found, Services)
    # Not by the environment's proxies: they would be asked for a host that is only a name here.
    http = httpx.Client(
        transport=httpx.WSGITransport(app=app), base_url="http://local", trust_env=False
    )
    try:
        with http:
            yield Service(http)
    finally:
        with silence():
            found.dispatcher.close()
            if found.shared_cache is not None:
                found.shared_cache.close()


@contextmanager
def silence() -> Generator[None]:
    """Without the service's log: what is wrong is told otherwise, or wrong on purpose."""
    logger = logging.getLogger("tts_service")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def demo_backend() -> Generator[tuple[str, ...]]:
    """The demo backend's address, for as long as it runs. Raises Failed."""
    try:
        demo = start_demo_backend()
    except CannotStart as error:
        raise Failed(str(error)) from None
    if demo is None:
        raise Failed("There is no backend: set GRADIO_URL, or install requirements-dev.txt.")
    try:
        yield (demo.url,)
    finally:
        demo.stop()


@contextmanager
def _at(url: str, key: str | None) -> Generator[Service]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # SDKs are given the address with /v1, so people have it at hand.
    base = url.rstrip("/").removesuffix("/v1")
    with httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT) as http:
        yield Service(http)


def _settings() -> Mapping[str, Any]:
    return {name: value for name, value in current_app.config.items() if name.isupper()}
