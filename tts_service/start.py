"""What both doors (gunicorn.conf.py, wsgi.py) do around the start of a server."""

import ctypes
import errno
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flask import Flask

from tts_service.demo_backend import launcher
from tts_service.extensions import Services
from tts_service.front import OWN
from tts_service.logs import without_credentials
from tts_service.self_test import Reply
from tts_service.voices import VoiceCatalogue

logger = logging.getLogger(__name__)

#: mallopt(3): the number of a parameter, its value, and the variable by which an operator sets it.
_MEMORY = (
    (-8, 2, "MALLOC_ARENA_MAX"),
    (-1, 1 << 20, "MALLOC_TRIM_THRESHOLD_"),
    (-3, 1 << 20, "MALLOC_MMAP_THRESHOLD_"),
)


class CannotStart(Exception):
    """The service cannot be started; the message tells the operator what to do."""


def share_memory_among_threads() -> None:
    """Have this process and its children allocate from few arenas, and give back what is free.

    By itself glibc gives nearly each thread an arena of its own, and keeps in each what was once
    needed there: with eighty threads that encode now and then, many times what they need together.
    And once it has seen large blocks come and go, such as an encoder's, it keeps up to twice their
    size at the end of each arena, at most 64 MB. A C library without arenas (musl) has no such
    settings, and no such need.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value, variable in _MEMORY:
            if variable not in os.environ:  # else the operator knows better
                mallopt(parameter, value)


def require_free_port(host: str, port: int) -> None:
    """Raises CannotStart if somebody listens there already, or the address is not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotStart(
                f"Port {port} on {host} is taken. Stop what listens there, or choose another: "
                f"PORT={port + 1}"
            ) from None
        raise CannotStart(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from None


def start_demo_backend() -> "launcher.DemoBackend | None":
    """The embedded demo backend, for a service that was given none; its address becomes
    GRADIO_URL for this process and its children. None where it is not installed.

    Raises CannotStart.
    """
    if not launcher.is_installed():
        logger.warning(
            "GRADIO_URL is not set, and the demo backend is not installed "
            "(requirements-demo.txt): every request will be answered 503"
        )
        return None
    logger.warning("GRADIO_URL is not set: starting the embedded demo backend, a robot's voice")
    try:
        demo = launcher.start()
    except launcher.DemoBackendFailed as error:
        raise CannotStart(str(error)) from None
    os.environ["GRADIO_URL"] = demo.url
    return demo


def welcome(
    settings: Mapping[str, Any], changed: Mapping[str, str], *, has_demo: bool = False
) -> None:
    """Log what is configured, what is missing, where it listens, and a line that brings speech.

    `settings`: all, by name; `changed`: those that differ from their defaults, fit to be shown.
    """
    names = _voice_names(settings)
    lines = {
        "backends": _backends(settings, has_demo=has_demo),
        "voices": f"{len(names)}: {_shortened(', '.join(names))}" if names else "none",
        "cache": _cache(settings),
        "access": _access(settings),
        "processes": f"{settings['WEB_CONCURRENCY']}, of {settings['THREADS']} threads each",
        "also set": "  ".join(
            f"{name}={_shortened(value)}" for name, value in changed.items() if name not in _SHOWN
        ),
    }
    logger.info("The speech gateway, as it is configured:")
    for name, told in lines.items():
        if told:
            logger.info("  %-9s  %s", name, told)
    for warning in _warnings(settings, names):
        logger.warning("%s", warning)
    for line in _invitation(settings):
        logger.info("%s", line)


#: Settings that the lines above tell of in their own way.
_SHOWN = frozenset(
    {
        *("GRADIO_URL", "GRADIO_API_NAME", "PROMPTS_DIR", "MODEL_PROMPT_MAP", "MAX_CACHE_SIZE"),
        *("MAX_CACHE_BYTES", "CACHE_TTL", "REDIS_URL", "API_KEYS", "RATE_LIMIT", "CORS_ORIGINS"),
        *("TRUSTED_PROXIES", "HOST", "PORT", "WEB_CONCURRENCY", "THREADS"),
    }
)
_LONGEST_SHOWN = 100


def _backends(settings: Mapping[str, Any], *, has_demo: bool) -> str:
    if has_demo:
        return "the embedded demo, a robot's voice, until GRADIO_URL is set"
    urls = [without_credentials(url) for url in settings["GRADIO_URL"]]
    return f"{', '.join(urls)} by {settings['GRADIO_API_NAME']}" if urls else "none"


def _cache(settings: Mapping[str, Any]) -> str:
    if not (settings["MAX_CACHE_SIZE"] and settings["MAX_CACHE_BYTES"]):
        own = "none"
    else:
        own = (
            f"{settings['MAX_CACHE_SIZE']} entries and {settings['MAX_CACHE_BYTES'] / 2**20:.3g} "
            f"MiB in each process, for {settings['CACHE_TTL'] / 3600:.3g} hours"
        )
    url = settings["REDIS_URL"]
    return f"{own}; shared through {without_credentials(url)}" if url else own


def _access(settings: Mapping[str, Any]) -> str:
    keys, origins, proxies = (
        settings[name] for name in ("API_KEYS", "CORS_ORIGINS", "TRUSTED_PROXIES")
    )
    told = [
        f"{len(keys)} key{'s' * (len(keys) != 1)}" if keys else "no key needed",
        f"at most {settings['RATE_LIMIT']}" if settings["RATE_LIMIT"] else "no rate limit",
        f"web pages of {', '.join(origins)}" if origins else "",
        f"behind {', '.join(proxies)}" if proxies else "",
    ]
    return "; ".join(filter(None, told))


def _voice_names(settings: Mapping[str, Any]) -> list[str]:
    return VoiceCatalogue(
        settings["PROMPTS_DIR"],
        settings["MODEL_PROMPT_MAP"],
        settings["DEFAULT_PROMPT_AUDIO_PATH"],
    ).names()


def _warnings(settings: Mapping[str, Any], names: list[str]) -> Iterator[str]:
    """What is missing, or hardly meant."""
    default = settings["DEFAULT_PROMPT_AUDIO_PATH"]
    if not names:
        yield f"There is no recording in {settings['PROMPTS_DIR']}: no voice can be asked for."
    if not default.is_file():
        yield f"{default} is missing: a request that names no voice will be answered 500."
    for name, path in settings["MODEL_PROMPT_MAP"].items():
        if not path.is_file():
            yield f"The recording of the voice {name!r} is missing: {path}."
    if not settings["API_KEYS"] and not _is_local(settings["HOST"]):
        yield "API_KEYS is not set: whoever reaches this port may have something spoken."
    if settings["WEB_CONCURRENCY"] > 1 and not settings["REDIS_URL"]:
        limit = ", and RATE_LIMIT is counted by each" if settings["RATE_LIMIT"] else ""
        yield (
            "REDIS_URL is not set: each worker has a cache of its own and speaks what another "
            f"has spoken{limit}."
        )


def _is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _invitation(settings: Mapping[str, Any]) -> list[str]:
    host = settings["HOST"]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104 - compared only
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{settings['PORT']}"
    key = ' -H "Authorization: Bearer $API_KEY"' if settings["API_KEYS"] else ""
    page = f"at {url}/ in a browser, or " if settings["PAGE"] else ""
    return [
        f"Listening at {url}/v1; hear it {page}with:",
        f"  curl {url}/v1/audio/speech{key} -H 'Content-Type: application/json' "
        """-d '{"input": "你好，世界。 Hello, world."}' -o hello.wav""",
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def start_in_background(load: Callable[[], Flask | None]) -> threading.Thread:
    """Connect and run the self-test in a daemon thread, which can keep the process neither from
    serving nor from stopping.

    `load` waits for the application and gives it; None if it will not come.
    """
    thread = threading.Thread(target=lambda: _begin(load()), name="self-test", daemon=True)
    thread.start()
    return thread


def leave() -> None:
    """End this process, now that its requests are answered.

    Not by `sys.exit`: the interpreter would first join gradio_client's threads, and one that
    waits for a hanging backend would hold it up for half a minute.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _begin(app: Flask | None) -> None:
    if app is None:
        return
    found = app.extensions["tts_service"]
    assert isinstance(found, Services)
    found.dispatcher.start()
    found.self_test.run(lambda fields: _post(app, fields))


def _post(app: Flask, fields: dict[str, str]) -> Reply:
    """One request through the whole application."""
    keys: tuple[str, ...] = app.config["API_KEYS"]
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    client = app.test_client()
    ours = {OWN: True}
    with client.post(
        "/v1/audio/speech", json=fields, headers=headers, environ_overrides=ours
    ) as response:
        told = response.get_json(silent=True) or {}
        return Reply(
            response.status_code,
            response.headers.get("X-Cache"),
            len(response.data),
            told.get("error", {}).get("message"),
        )
