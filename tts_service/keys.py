"""API keys: whether a request's Authorization header bears one of those that are set."""

import hashlib
import hmac

from tts_service.errors import InvalidApiKey


class ApiKeys:
    """The keys that are set; none: everybody may speak."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._names = {key.encode(): f"key:{_hashed(key)}" for key in keys}
        self._seal = hashlib.sha256(repr(sorted(self._names)).encode()).digest()

    def check(self, authorization: str) -> str | None:
        """A name for whoever bears the key in the header's value, made of its hash; None where no
        keys are set. Raises InvalidApiKey."""
        if not self._names:
            return None
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise InvalidApiKey("An API key is required: Authorization: Bearer <key>.")
        name = self._name(given.strip().encode())
        if name is None:
            raise InvalidApiKey("Incorrect API key provided.")
        return name

    def sealed(self, name: str) -> str:
        """32 hexadecimal digits that stand for `name`: the same wherever the same keys are set,
        and not to be guessed by whoever has not all of them."""
        return hmac.digest(self._seal, name.encode(), "sha256")[:16].hex()

    def _name(self, given: bytes) -> str | None:
        """Compared with every key, each in constant time: how long it takes tells nothing."""
        names = [name for key, name in self._names.items() if hmac.compare_digest(given, key)]
        return names[0] if names else None


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]
