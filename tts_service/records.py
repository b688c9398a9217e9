"""What enters a cache: sound as bytes, with the little that must be known about it.

    magic   4 bytes, with the version of this layout
    digest  16 bytes, BLAKE2b of what follows
    length  4 bytes, big-endian, of the notes
    notes   a JSON object
    body    the sound

The digest makes a strong ETag, and shows damage in a store that others can write to.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

_MAGIC = b"TTS1"
_HEAD = struct.Struct(">4s16sI")


@dataclass(frozen=True, slots=True)
class Record:
    """A body, its digest (hexadecimal), and notes about it."""

    body: bytes
    digest: str
    notes: dict[str, Any]


def pack(body: bytes, notes: dict[str, Any] | None = None) -> tuple[bytes, Record]:
    """The record's bytes, and the record itself."""
    notes = notes or {}
    told = json.dumps(notes, separators=(",", ":")).encode()
    digest = _digest(told, body)
    packed = b"".join((_HEAD.pack(_MAGIC, digest, len(told)), told, body))
    return packed, Record(body, digest.hex(), notes)


def head(packed: bytes) -> bytes:
    """What tells a record from all others: those with the same head have the same digest."""
    return packed[: _HEAD.size]


def view(packed: bytes) -> tuple[str, memoryview, dict[str, Any]]:
    """The digest, the body and the notes of a record of our own, without a copy."""
    _, digest, length = _HEAD.unpack_from(packed)
    start = _HEAD.size + length
    return digest.hex(), memoryview(packed)[start:], json.loads(packed[_HEAD.size : start].decode())


def unpack(packed: bytes | None, *, verify: bool = False) -> Record | None:
    """The record in `packed`; None if it is none, or damaged.

    `verify` compares the digest, which costs about a millisecond for each megabyte.
    """
    if packed is None or len(packed) < _HEAD.size:
        return None
    magic, digest, length = _HEAD.unpack_from(packed)
    told, body = packed[_HEAD.size : _HEAD.size + length], packed[_HEAD.size + length :]
    if magic != _MAGIC or (verify and _digest(told, body) != digest):
        return None
    try:
        notes = json.loads(told)
    except (ValueError, RecursionError):  # the latter only on purpose
        return None
    return Record(body, digest.hex(), notes) if isinstance(notes, dict) else None


def _digest(told: bytes, body: bytes) -> bytes:
    digest = hashlib.blake2b(told, digest_size=16)
    digest.update(body)
    return digest.digest()
