"""API keys: whether a request's Authorization header bears one of those that are set."""

import hmac

from tts_service.errors import InvalidApiKey


class ApiKeys:
    """The keys that are set; none: everybody may speak."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = [key.encode() for key in keys]

    def check(self, authorization: str) -> None:
        """Return if the header's value will do. Raises InvalidApiKey."""
        if not self._keys:
            return
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise InvalidApiKey("An API key is required: Authorization: Bearer <key>.")
        if not self._has(given.strip().encode()):
            raise InvalidApiKey("Incorrect API key provided.")

    def _has(self, given: bytes) -> bool:
        """Compared with every key, each in constant time: how long it takes tells nothing."""
        verdicts = [hmac.compare_digest(given, key) for key in self._keys]
        return any(verdicts)
