"""What the service asks of a backend: one server that can speak."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tts_service.audio import Audio
from tts_service.backends.binding import Binding
from tts_service.errors import BackendError, NoBackend
from tts_service.voices import Voice


class BackendUnreachable(NoBackend):
    """The backend was not reached: nothing was spoken, another try is free."""


class BackendLost(BackendError):
    """The connection broke, or the server froze, while it was speaking."""


class ModelChanged(BackendError):
    """The server was restarted and now serves another model than the segment is meant for."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of input that is spoken in one go, and by whom."""

    text: str
    voice: Voice
    identity: str  # of the model that shall speak
    #: The backend's own parameters, by name, already checked against its description.
    params: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """One server. Every method may be called by several threads at a time."""

    @property
    def name(self) -> str:
        """Its address, without credentials."""

    def describe(self) -> Binding:
        """What it serves and how it is called; connects where that was not done yet, or the
        server was restarted since. Raises BackendUnreachable, BackendError, BackendMisfit."""

    def synthesize(
        self, segment: Segment, timeout: float, arrived: Callable[[], None] = lambda: None
    ) -> Audio:
        """The segment, spoken, within `timeout` seconds.

        `arrived` is called, by any thread, when the server has the segment in its queue: a call
        that begins after that is spoken after it.

        Raises BackendUnreachable, BackendLost, ModelChanged, BackendTimeout, BackendError,
        BackendMisfit, PromptMissing, RecordingReplaced.
        """

    def ping(self) -> None:
        """Return if the server answers now. Raises BackendUnreachable."""

    def abandon(self) -> None:
        """End every call that is under way: each raises BackendLost."""

    def close(self) -> None:
        """Give back connections and threads."""
