"""The door for gunicorn (`wsgi:app`); `python wsgi.py` opens it without gunicorn."""

import signal
import sys
from types import FrameType

from werkzeug.serving import run_simple

from config import (
    Config,
    ConfigError,
    changed,
    read_config,
    secrets_in,
    warn_of_unknown_names,
)
from tts_service import create_app
from tts_service.logs import configure
from tts_service.start import (
    CannotStart,
    leave,
    require_free_port,
    start_demo_backend,
    start_in_background,
    welcome,
)


def load_config() -> Config:
    """The settings, with logging set up by them; ends the process if they are wrong."""
    try:
        config = read_config()
    except ConfigError as error:
        sys.exit(f"These settings cannot be understood:\n{error}")
    configure(config.LOG_LEVEL, config.LOG_FORMAT, secrets_in(config))
    return config


def main() -> None:
    """Serve from this process, on Werkzeug's threaded server."""
    signal.signal(signal.SIGTERM, _end)
    config = load_config()
    warn_of_unknown_names()
    demo = None
    try:
        require_free_port(config.HOST, config.PORT)
        demo = None if config.GRADIO_URL else start_demo_backend()
        config = load_config()  # the demo backend's address is in it now
        app = create_app(config)
        start_in_background(lambda: app)
        welcome(dict(config), changed(config), has_demo=demo is not None)
        run_simple(config.HOST, config.PORT, app, threaded=True)
    except CannotStart as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass
    finally:
        if demo is not None:
            demo.stop()
    leave()


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
else:
    app = create_app(load_config())
