"""gunicorn's settings; it reads this file from its working directory by itself."""

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from config import ConfigError, changed, read_config, secrets_in, warn_of_unknown_names
from tts_service.logs import logging_config
from tts_service.start import (
    CannotStart,
    leave,
    require_free_port,
    share_memory_among_threads,
    start_demo_backend,
    start_in_background,
    welcome,
)

_METRICS = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own name for it
_METRICS_PREFIX = "tts-metrics-"

try:
    _config = read_config()
except ConfigError as error:
    sys.exit(f"These settings cannot be understood:\n{error}")

bind = f"{_config.HOST}:{_config.PORT}"
workers = _config.WEB_CONCURRENCY
# gthread keeps connections alive; a request that waits holds one thread.
worker_class = "tts_service.worker.SpeechWorker" if _config.FAST_HITS else "gthread"
threads = _config.THREADS
# Files are needed for more than clients: a worker without any left could not even let one go.
worker_connections = threads + min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
limit_request_line = 0 if _config.FAST_HITS else 8190  # SpeechWorker has a bound of its own
keepalive = 75  # longer than nginx and PaaS routers keep theirs, so that they close first
timeout = 60
graceful_timeout = 30
control_socket_disable = True
logconfig_dict = logging_config(_config.LOG_LEVEL, _config.LOG_FORMAT, secrets_in(_config))
# Nobody may rename a request's path or scheme by a header; TRUSTED_PROXIES tells clients apart.
forwarded_allow_ips = ""
if Path("/dev/shm").is_dir():  # noqa: S108 - gunicorn's own advice: no disk under the heartbeat
    worker_tmp_dir = "/dev/shm"  # noqa: S108

share_memory_among_threads()

_BOOT_SECONDS = 60
_demo = None


def on_starting(server):
    """Before anything listens: the port, and the demo backend where there is no other."""
    global _demo
    warn_of_unknown_names()
    if _config.WEB_CONCURRENCY > 1 and _METRICS not in os.environ:
        os.environ[_METRICS] = tempfile.mkdtemp(prefix=_METRICS_PREFIX)
    is_upgrade = server.master_pid != 0  # after SIGUSR2 the old master's sockets are taken over
    try:
        if not is_upgrade:
            require_free_port(_config.HOST, _config.PORT)
        if not _config.GRADIO_URL:
            _demo = start_demo_backend()
    except CannotStart as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(1)


def when_ready(server):
    welcome(dict(_config), changed(_config), has_demo=_demo is not None)


def post_fork(server, worker):
    """Only starts a thread: this runs before the worker handles signals or loads anything."""
    start_in_background(lambda: _loaded_app(worker))


def worker_exit(server, worker):
    if worker.booted:  # else the exit code tells gunicorn that it could not start
        leave()


def child_exit(server, worker):
    if _METRICS in os.environ:
        mark_process_dead(worker.pid)


def on_exit(server):
    if _demo is not None:
        _demo.stop()
    folder = Path(os.environ.get(_METRICS, ""))
    if folder.name.startswith(_METRICS_PREFIX):  # ours, not the operator's
        shutil.rmtree(folder, ignore_errors=True)


def _loaded_app(worker):
    """The worker's application, once the worker has loaded it."""
    deadline = time.monotonic() + _BOOT_SECONDS
    while not worker.booted:
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)
    return worker.app.wsgi()
