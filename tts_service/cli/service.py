"""The service as the commands ask it: over HTTP, wherever it is, with patience."""

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

import httpx

from tts_service.cli.commands import Failed, one_line

SPEECH: Final = "/v1/audio/speech"
#: Seconds between two tries where the service does not say when to come back.
DELAYS: Final = (1, 2, 4, 8, 16, 30, 30, 30)
_LONGEST_DELAY: Final = 60.0
_READY_TRIES: Final = 5
_READY_DELAY: Final = 2.0  # seconds
#: A sentence may wait for its turn; the service itself gives up sooner.
TIMEOUT: Final = httpx.Timeout(600, connect=10)

T = TypeVar("T")
Fields = Mapping[str, Any]


class Answer(NamedTuple):
    """The sound of a whole answer, and where it came from (`X-Cache`)."""

    body: bytes
    verdict: str


class Refused(Failed):
    """The service answered with an error; `param` names the field, if it is one's fault."""

    def __init__(self, response: httpx.Response) -> None:
        told = _error_in(response)
        super().__init__(told.get("message") or f"The service answered {_status(response)}.")
        self.status = response.status_code
        self.code = told.get("code")
        self.param = told.get("param")
        self.retry_after = _seconds(response.headers.get("Retry-After"))


class Unreachable(Failed):
    """The service did not answer, or not to the end."""

    retry_after = None


class Service:
    """Asks through `http`. May be used by several threads at a time.

    What is refused only for now (429, 503 with a full queue) is asked again, when the service says
    so and a bounded number of times; once something was spoken, so is everything that may pass:
    a service that restarts, a backend that is away.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._has_spoken = False
        self._given_up = threading.Event()

    def speak(self, fields: Fields) -> Answer:
        """A whole answer. Raises Refused, Unreachable."""

        def ask() -> Answer:
            with self._asked("POST", SPEECH, fields) as response:
                return Answer(b"".join(_read(response)), response.headers.get("X-Cache", ""))

        return self._patiently(ask)

    @contextmanager
    def stream(self, fields: Fields) -> Generator[Generator[bytes]]:
        """The chunks of an answer as they come. Raises Refused; Unreachable, also when it breaks
        off."""

        def ask() -> tuple[Generator[bytes], bytes]:
            chunks = self._chunks(fields)
            return chunks, next(chunks, b"")

        chunks, first = self._patiently(ask)
        try:
            yield _chained(first, chunks)
        finally:
            chunks.close()

    def get(self, path: str) -> Any:
        """A JSON answer. Raises Refused, Unreachable."""
        with self._asked("GET", path) as response:
            response.read()
            try:
                return response.json()
            except ValueError:
                raise Unreachable(f"{response.url} is not this service: no JSON.") from None

    def slots(self) -> int:
        """How many sentences its backends speak at a time; at least 1."""
        backends = self.get("/health").get("backends", [])
        slots: int = sum(backend.get("slots", 1) for backend in backends)
        return max(1, slots)

    def require_ready(self) -> None:
        """Return if a backend answers; raises Refused with the reason, Unreachable."""
        for _ in range(_READY_TRIES - 1):
            try:
                self.get("/health/ready")
            except Refused as error:
                if error.status != 503 or self._given_up.wait(_READY_DELAY):
                    raise
            else:
                return
        self.get("/health/ready")

    def give_up(self) -> None:
        """Wait for no further try, in any thread."""
        self._given_up.set()

    def _chunks(self, fields: Fields) -> Generator[bytes]:
        with self._asked("POST", SPEECH, fields) as response:
            yield from _read(response)

    @contextmanager
    def _asked(
        self, method: str, path: str, fields: Fields | None = None
    ) -> Generator[httpx.Response]:
        try:
            with self._http.stream(method, path, json=fields) as response:
                if not response.is_success:
                    response.read()
                    raise Refused(response)
                yield response
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(_why(error, self._http.base_url)) from None

    def _patiently(self, ask: Callable[[], T]) -> T:
        for delay in DELAYS:
            try:
                answer = ask()
            except (Refused, Unreachable) as error:
                if not self._may_pass(error):
                    raise
                wait = min(error.retry_after or delay, _LONGEST_DELAY)
                if self._given_up.wait(wait):
                    raise
            else:
                self._has_spoken = True
                return answer
        return ask()

    def _may_pass(self, error: Refused | Unreachable) -> bool:
        if isinstance(error, Unreachable):
            return self._has_spoken
        is_busy = error.status == 429 or error.code == "overloaded"
        return is_busy or (error.status == 503 and self._has_spoken)


def _read(response: httpx.Response) -> Generator[bytes]:
    """The body. Raises Unreachable when it breaks off."""
    try:
        yield from response.iter_bytes()
    except (httpx.TransportError, BrokenPipeError):  # the latter where it is in this process
        raise Unreachable("The answer broke off: the service's log tells why.") from None


def _chained(first: bytes, rest: Generator[bytes]) -> Generator[bytes]:
    yield first
    yield from rest


def _error_in(response: httpx.Response) -> dict[str, Any]:
    try:
        told = response.json()["error"]
    except (ValueError, LookupError, TypeError):
        return {}
    return told if isinstance(told, dict) else {}


def _status(response: httpx.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}".strip()


def _seconds(value: str | None) -> float | None:
    try:
        return max(0.1, float(value or ""))
    except ValueError:
        return None


def _why(error: Exception, url: httpx.URL) -> str:
    return f"The service at {url} does not answer: {one_line(error) or type(error).__name__}."
