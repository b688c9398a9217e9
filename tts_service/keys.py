"""API keys: whether a request's Authorization header bears one of those that are set."""

import hashlib
import hmac

from tts_service.errors import InvalidApiKey


class ApiKeys:
    """The keys that are set; none: everybody may speak."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = [key.encode() for key in keys]
        self._seal = hashlib.sha256(repr(sorted(self._keys)).encode()).digest()

    def check(self, authorization: str) -> None:
        """Return if the header's value will do. Raises InvalidApiKey."""
        if not self._keys:
            return
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise InvalidApiKey("An API key is required: Authorization: Bearer <key>.")
        if not self._has(given.strip().encode()):
            raise InvalidApiKey("Incorrect API key provided.")

    def sealed(self, name: str) -> str:
        """32 hexadecimal digits that stand for `name`: the same wherever the same keys are set,
        and not to be guessed by whoever has not all of them."""
        return hmac.digest(self._seal, name.encode(), "sha256")[:16].hex()

    def _has(self, given: bytes) -> bool:
        """Compared with every key, each in constant time: how long it takes tells nothing."""
        verdicts = [hmac.compare_digest(given, key) for key in self._keys]
        return any(verdicts)
