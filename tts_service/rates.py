"""How often a client may ask: `RATE_LIMIT`, counted in windows of time.

A window begins with its first request. With Redis all workers and machines count together; without
it, and while it is lost, each process counts for itself.
"""

import hashlib
import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from limits import RateLimitItem, parse_many
from limits.storage import Storage

from tts_service.shared_cache import SharedCache

#: One for everything that is limited: who has used it up by links cannot go on by voices.
SCOPE = "requests"
#: How a client stands, in the names of OpenAI's API.
RATE_HEADERS = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
_LONGEST_WINDOW = 366 * 24 * 60 * 60
#: Windows that one process keeps; the oldest are forgotten first.
_MOST_WINDOWS = 100_000


def parse_rates(text: str) -> tuple[RateLimitItem, ...]:
    """The limits in `60/minute` or `10/second; 1000/day`, the shortest window first.

    Raises ValueError.
    """
    try:
        limits = sorted(dict.fromkeys(parse_many(text)))
    except ValueError:
        raise ValueError(
            "expected a number of requests and a time, as in 60/minute, 5 per 10 seconds "
            "or 10/second;1000/day"
        ) from None
    if any(limit.amount < 1 or limit.get_expiry() > _LONGEST_WINDOW for limit in limits):
        raise ValueError("at least one request, in at most a year")
    return tuple(limits)


def as_client(address: str) -> str:
    """Who counts as one client, by address: of IPv6 a whole /64, which one customer has."""
    try:
        network = ipaddress.ip_network(f"{address}/64", strict=False)
    except ValueError:  # IPv4, or none at all
        return f"address:{_hashed(address)}"
    return f"address:{_hashed(str(network))}"


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a client stands in the window that leaves it the least."""

    limit: RateLimitItem
    remaining: int
    seconds: float  # until the window ends

    @property
    def refusal(self) -> str:
        """What a client is told that has nothing left."""
        name, times = self.limit.GRANULARITY.name, self.limit.multiples
        window = name if times == 1 else f"{times} {name}s"
        return (
            f"Rate limit reached: {self.limit.amount} requests per {window}. "
            f"Please try again in {_duration(self.seconds)}."
        )

    @property
    def headers(self) -> Mapping[str, str]:
        """The same for the client to read, in the forms of OpenAI's API."""
        told = (str(self.limit.amount), str(self.remaining), _duration(self.seconds))
        return dict(zip(RATE_HEADERS, told, strict=True))


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `1s`, `6m0s`, `23h59m59s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h" * bool(hours) + f"{minutes}m" * bool(hours or minutes) + f"{rest}s"


class Windows:
    """Counters, each of which begins anew some seconds after its first count.

    `shared` counts for everybody as long as it can be asked; what this process counts by itself
    never waits for anything.
    """

    def __init__(
        self,
        shared: SharedCache | None = None,
        *,
        most: int = _MOST_WINDOWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shared = shared
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        # By length: of those that last equally long, the oldest ends first.
        self._own: dict[int, OrderedDict[str, tuple[int, float]]] = {}

    def count(self, key: str, length: int) -> tuple[int, float]:
        """One more: how many there are now, and for how many more seconds."""
        counted = self.shared.count(f"rate:{key}", length) if self.shared else None
        return counted or self._count(key, length)

    def look(self, key: str) -> tuple[int, float]:
        """The same without counting."""
        counted = self.shared.counted(f"rate:{key}") if self.shared else None
        return counted or self._look(key)

    def __len__(self) -> int:
        return sum(map(len, self._own.values()))

    def _count(self, key: str, length: int) -> tuple[int, float]:
        with self._lock:
            now = self._clock()
            alike = self._own.setdefault(length, OrderedDict())
            self._drop_ended(alike, now)
            count, ends = alike.get(key, (0, now + length))
            alike[key] = count + 1, ends
            return count + 1, ends - now

    def _look(self, key: str) -> tuple[int, float]:
        with self._lock:
            now = self._clock()
            found = (alike[key] for alike in self._own.values() if key in alike)
            count, ends = next(found, (0, now))
            return (count, ends - now) if ends > now else (0, 0.0)

    def _drop_ended(self, alike: OrderedDict[str, tuple[int, float]], now: float) -> None:
        while alike:
            key, (_, ends) = next(iter(alike.items()))
            if ends > now and len(alike) < self._most:
                break
            del alike[key]


class Rates:
    """The limits, and how clients stand with them."""

    def __init__(self, text: str, windows: Windows) -> None:
        """Raises ValueError for a text that `parse_rates` refuses."""
        self.limits = parse_rates(text)
        self.text = "; ".join(map(str, self.limits))
        self.windows = windows

    @property
    def may_wait(self) -> bool:
        """Whether to count means to ask Redis."""
        return self.windows.shared is not None

    def take(self, client: str) -> Standing | None:
        """Count a request; None if it is one too many."""
        if any(seen.remaining == 0 for seen in self._look(client)):
            return None
        counted = [
            (limit, *self.windows.count(limit.key_for(client, SCOPE), limit.get_expiry()))
            for limit in self.limits
        ]
        if any(count > limit.amount for limit, count, _ in counted):  # others were faster
            return None
        return _tightest([_standing(*each) for each in counted])

    def standing(self, client: str) -> Standing:
        """How a client stands now."""
        return _tightest(self._look(client))

    def _look(self, client: str) -> list[Standing]:
        return [
            _standing(limit, *self.windows.look(limit.key_for(client, SCOPE)))
            for limit in self.limits
        ]


def _standing(limit: RateLimitItem, count: int, seconds: float) -> Standing:
    return Standing(limit, max(0, limit.amount - count), seconds)


def _tightest(standings: list[Standing]) -> Standing:
    return min(standings, key=lambda each: (each.remaining, -each.seconds))


class WindowStorage(Storage):
    """The windows as Flask-Limiter asks for them: `tts://`, with `windows` as an option."""

    STORAGE_SCHEME = ["tts"]  # noqa: RUF012 - as the base class has it

    def __init__(self, uri: str | None = None, *, windows: Windows, **_: object) -> None:
        super().__init__(uri)
        self._windows = windows

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError  # none is raised

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        assert amount == 1, "a request counts once"
        return self._windows.count(key, expiry)[0]

    def get(self, key: str) -> int:
        return self._windows.look(key)[0]

    def get_expiry(self, key: str) -> float:
        return time.time() + self._windows.look(key)[1]

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        raise NotImplementedError

    def clear(self, key: str) -> None:
        raise NotImplementedError
