"""A bar on a terminal, with the time that is left; nothing anywhere else."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click


class Progress:
    """Of `total` parts, of whatever kind, some were there before: they tell nothing about how long
    the rest will take."""

    def __init__(self, total: int, there: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._left = total - there
        self._made = 0
        self._clock = clock
        self._began = clock()
        self.update: Callable[[int, str], object] = lambda _parts, _told: None

    def made(self, parts: int) -> None:
        """So many more are made now."""
        self._made += parts
        self._left -= parts
        self.update(parts, self._time_left())

    def _time_left(self) -> str:
        took = self._clock() - self._began
        if self._left <= 0 or not self._made:
            return ""
        return f"{duration(took / self._made * self._left)} left"


@contextmanager
def progress(total: int, there: int = 0) -> Generator[Progress]:
    """A bar on standard error, if that is a terminal."""
    found = Progress(total, there)
    if not sys.stderr.isatty():
        yield found
        return
    with click.progressbar(
        length=total, file=sys.stderr, show_eta=False, item_show_func=lambda told: told or ""
    ) as bar:
        bar.update(there)
        found.update = lambda parts, told: bar.update(parts, told)
        yield found


def duration(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"
