"""Texts to be spoken, and how long their answers are at the stand-in."""

import itertools
from collections.abc import Iterator
from itertools import islice

_BYTES_PER_CHARACTER = 24_000 * 2 * 60 // 1000  # 60 ms of 24 kHz mono 16-bit
_WAV_HEADER = 44  # bytes


def wav_bytes(text: str) -> int:
    """The length of the answer to a text of one segment."""
    return _WAV_HEADER + _BYTES_PER_CHARACTER * len(text)


def one_word(characters: int) -> str:
    """A text of one segment, whatever its length: there is no place to cut it at."""
    return ("0123456789" * (characters // 10 + 1))[:characters]


def new_words(characters: int) -> Iterator[str]:
    """Texts of one word with so many characters, none of them twice."""
    return (f"{number:0{characters}d}" for number in itertools.count())


def sentences(count: int, subject: str = "Sentence") -> Iterator[str]:
    """Texts of `count` sentences about `subject`, none of them twice, nor what it is cut into;
    50 characters each where `subject` has eight."""
    number = itertools.count()
    while True:
        some = islice(number, count)
        yield " ".join(f"{subject} {i:05d} has words up to its own mark {i:05d}." for i in some)


def numbered(kind: str) -> Iterator[str]:
    """Short texts of one length, one segment each, none of them twice."""
    return (f"{kind} {number:07d}" for number in range(10_000_000))
