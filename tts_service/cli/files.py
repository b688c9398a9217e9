"""Output files: there when they are complete, and not before."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tts_service.cli.options import STDIO


@contextmanager
def complete_or_not(output: str) -> Generator[BinaryIO]:
    """Where to write: beside the file, under a name that ends in `.part`, which takes the file's
    place at the end; if that is not reached, it is removed. Standard output, and what is no
    ordinary file, is written to directly. Raises OSError."""
    path = Path(output)
    if output == STDIO:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
    else:
        part = path.with_name(f"{path.name}.part")
        try:
            with part.open("w+b") as file:
                yield file
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def write_complete(path: Path, text: str) -> None:
    """A text file in UTF-8, all of it at once. Raises OSError."""
    with complete_or_not(os.fspath(path)) as file:
        file.write(text.encode())
