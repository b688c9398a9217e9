"""How a Gradio app is started; read on both sides of the process border."""

from dataclasses import dataclass, field
from pathlib import Path

from servers.journal import Behaviour


@dataclass(frozen=True)
class Options:
    """`signature` is a key of `SIGNATURES`; `form` one of `FORMS`, or None for the program's own.

    `folder` holds everything that the process writes.
    """

    signature: str
    port: int
    control_port: int
    folder: Path
    form: str | None = None
    auth: tuple[str, str] | None = None
    concurrency: int = 1
    queue_size: int | None = None
    show_error: bool = False
    root_path: str | None = None
    behaviour: Behaviour = field(default_factory=Behaviour)
