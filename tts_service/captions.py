"""Captions of finished answers: kept in the cache, at URLs of their own."""

import re

from tts_service import records
from tts_service.cache import SpeechCache
from tts_service.cues import Cue, from_json, to_json
from tts_service.keys import ApiKeys

PATH = "/audio/speech/captions"
WEB_VTT, SUB_RIP = "text/vtt", "application/x-subrip"
_SUFFIXES = {WEB_VTT: "vtt", SUB_RIP: "srt"}
_NAME = re.compile("[0-9a-f]{32}")


class Captions:
    """Cues by the key of their answer. Whoever knows the URL may read them, so without a key it
    cannot be worked out where keys are set."""

    def __init__(self, cache: SpeechCache, keys: ApiKeys) -> None:
        self._cache = cache
        self._keys = keys

    def links(self, answer: str) -> list[str]:
        """What the `Link` headers say; RFC 8288. The URLs are relative to the host."""
        name = self._name(answer)
        return [
            f'</v1{PATH}/{name}.{suffix}>; rel="captions"; type="{kind}"'
            for kind, suffix in _SUFFIXES.items()
        ]

    def keep(self, answer: str, digest: str, cues: list[Cue]) -> bool:
        """Keep the cues of the answer with this key and digest; False if there is no room."""
        key = self._key(self._name(answer))
        packed, _ = records.pack(to_json(cues), {"of": digest})
        return self._cache.get(key) == packed or self._cache.set(key, packed)

    def are_kept(self, answer: str, digest: str) -> bool:
        """Whether they are there, and of this very answer: one that was spoken anew under the
        same key has other times. It counts as a use, so that they stay as long as the answer."""
        packed = self._cache.get(self._key(self._name(answer)))
        return packed is not None and records.view(packed)[2].get("of") == digest

    def find(self, name: str) -> list[Cue] | None:
        """The cues at the URL with this name, if they are there."""
        if not _NAME.fullmatch(name):
            return None
        record = records.unpack(self._cache.get(self._key(name)))
        return None if record is None else from_json(record.body)

    def _name(self, answer: str) -> str:
        return self._keys.sealed(answer)

    def _key(self, name: str) -> str:
        return f"captions:{name}"
