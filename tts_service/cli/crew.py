"""Several at a time: threads that take one job after the other."""

import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Job, Result]):
    """What became of a job: its result, or why there is none."""

    job: Job
    result: Result | Exception


class Crew(Generic[Job, Result]):
    """`size` threads do `work` for each of `jobs`, in their order, and only a few ahead of whoever
    reads the outcomes. They are daemons: they cannot keep a process from its end."""

    def __init__(self, work: Callable[[Job], Result], jobs: Iterable[Job], size: int) -> None:
        self._work = work
        self._jobs = iter(jobs)
        self._taking = threading.Lock()
        self._may_begin = threading.Semaphore(2 * size)
        self._stopped = threading.Event()
        self._outcomes: queue.SimpleQueue[Outcome[Job, Result] | None] = queue.SimpleQueue()
        self._size = self._working = size
        for _ in range(size):
            threading.Thread(target=self._run, name="crew", daemon=True).start()

    def next(self, *, wait: bool = True) -> Outcome[Job, Result] | None:
        """The next outcome, in the order in which they come. None: all have come, or, unless it
        shall be waited for, there is none yet."""
        while self._working:
            try:
                outcome = self._outcomes.get(block=wait)
            except queue.Empty:
                return None
            if outcome is not None:
                self._may_begin.release()
                return outcome
            self._working -= 1
        return None

    @property
    def is_done(self) -> bool:
        """Whether there is no further outcome."""
        return not self._working

    def stop(self) -> None:
        """Begin no further job. What is under way has an outcome still."""
        self._stopped.set()
        self._may_begin.release(self._size)

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            outcome: Outcome[Job, Result]
            try:
                outcome = Outcome(job, self._work(job))
            except Exception as error:  # noqa: BLE001 - whoever reads the outcomes judges it
                outcome = Outcome(job, error)
            self._outcomes.put(outcome)
        self._outcomes.put(None)

    def _next_job(self) -> Job | None:
        self._may_begin.acquire()
        with self._taking:
            return None if self._stopped.is_set() else next(self._jobs, None)
