"""How a Gradio app under test behaves, and what it has been asked."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

Fault = Literal[
    "",  # none
    "error",  # gr.Error, whose message Gradio shows
    "silent_error",  # any other exception, whose message it hides unless show_error is on
    "hang",  # never answers
    "exit",  # the process ends in the middle of the call
    "none",  # answers None
    "badpath",  # answers with a file that does not exist
    "empty",  # a file of 0 bytes
    "headonly",  # a WAV header and no samples
    "truncated",  # the first half of a file
    "notaudio",  # HTML in a file named .wav
]


@dataclass(frozen=True)
class Behaviour:
    """The switches. A call waits while held, then takes its time, then fails or answers."""

    synth_ms: float = 0
    synth_ms_per_char: float = 0
    ms_audio_per_char: float = 60
    fail_first: int = 0
    fail: Fault = ""
    hold: bool = False

    def __post_init__(self) -> None:
        if self.fail not in get_args(Fault):
            raise ValueError(f"unknown fault {self.fail!r}")

    def seconds(self, text: str) -> float:
        """How long speaking `text` takes."""
        return (self.synth_ms + self.synth_ms_per_char * len(text)) / 1000


@dataclass(eq=False)
class Call:
    """One call; `started` and `ended` are CLOCK_MONOTONIC, which all processes share."""

    number: int
    text: str
    arguments: Mapping[str, Any]
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    outcome: Literal["running", "answered", "failed"] = "running"


class ResetError(Exception):
    """The journal was reset while the call was under way."""


class Journal:
    """All calls since the last reset, and the gate that holds them."""

    def __init__(self, initial: Behaviour) -> None:
        self._initial = self.behaviour = initial
        self._calls: list[Call] = []
        self._held: list[Call] = []
        self._releases = 0
        self._max_active = 0
        self._changed = threading.Condition()

    @contextmanager
    def call(self, text: str, arguments: Mapping[str, Any]) -> Iterator[Call]:
        """Record a call for as long as the block runs."""
        with self._changed:
            call = Call(len(self._calls) + 1, text, arguments)
            self._calls.append(call)
            self._max_active = max(self._max_active, self._active)
        try:
            yield call
            call.outcome = "answered"
        except BaseException:
            call.outcome = "failed"
            raise
        finally:
            with self._changed:
                call.ended = time.monotonic()
                self._changed.notify_all()

    def wait_for_release(self, call: Call) -> None:
        """Return when the gate is open, or opened for this call: first come, first released."""
        with self._changed:
            self._held.append(call)
            try:
                self._changed.wait_for(lambda: self._may_pass(call))
            finally:
                self._held = [held for held in self._held if held is not call]
            self._raise_if_abandoned(call)
            self._releases -= self.behaviour.hold
            self._changed.notify_all()

    def pass_time(self, call: Call, seconds: float | None) -> None:
        """Let time pass (None: for ever), or raise ResetError as soon as the journal is reset."""
        with self._changed:
            self._changed.wait_for(lambda: call not in self._calls, timeout=seconds)
            self._raise_if_abandoned(call)

    def change(self, *, reset: bool = False, release: int = 0, **behaviour: Any) -> None:
        """Reset, then switch, then release; ValueError or TypeError for what does not exist."""
        with self._changed:
            if reset:
                self._forget()
            self.behaviour = replace(self.behaviour, **behaviour)
            self._releases += release
            self._changed.notify_all()

    def state(self) -> dict[str, Any]:
        """The switches and the counts, ready for JSON."""
        with self._changed:
            return {
                "behaviour": asdict(self.behaviour),
                "count": len(self._calls),
                "active": self._active,
                "max_active": self._max_active,
                "held": len(self._held),
            }

    def calls(self) -> list[dict[str, Any]]:
        """The calls since the reset, oldest first, ready for JSON."""
        with self._changed:
            return [asdict(call) for call in self._calls]

    @property
    def _active(self) -> int:
        return sum(call.ended is None for call in self._calls)

    def _may_pass(self, call: Call) -> bool:
        if call not in self._calls or not self.behaviour.hold:
            return True
        return self._releases > 0 and self._held[0] is call

    def _raise_if_abandoned(self, call: Call) -> None:
        if call not in self._calls:
            raise ResetError

    def _forget(self) -> None:
        abandoned = self._calls
        self._calls, self._held = [], []
        self._releases = self._max_active = 0
        self.behaviour = self._initial
        self._changed.notify_all()
        # A call that lingered would hold Gradio's only slot into the next test.
        self._changed.wait_for(lambda: all(call.ended for call in abandoned), timeout=5)
