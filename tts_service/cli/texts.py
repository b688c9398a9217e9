"""From a file's bytes to its text, whatever its encoding is."""

import codecs
from typing import Final

from tts_service.cli.commands import Failed

#: Byte order marks, the longer ones first: UTF-32's begins like UTF-16's.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: What Chinese books come in where it is not UTF-8; GBK and GB2312 are parts of it.
_FALLBACKS: Final = ("utf-8", "gb18030")


def read_text(data: bytes, name: str, encoding: str | None = None) -> str:
    """The text: by `encoding`, by its byte order mark, as UTF-8, or as GB18030.

    Raises Failed, which calls the file `name`.
    """
    marked = next((way for mark, way in _MARKS if data.startswith(mark)), None)
    ways = [encoding] if encoding else [marked] if marked else _FALLBACKS
    for way in ways:
        try:
            text = data.decode(way)
        except UnicodeError:
            continue
        except LookupError:
            raise Failed(f"There is no encoding called {way!r}.") from None
        if "\0" in text:  # UTF-16 without its mark, or no text at all
            break
        return text
    known = encoding or marked or "UTF-8, UTF-16 with a byte order mark, or GB18030"
    raise Failed(f"{name} is no text in {known}; --encoding names another one.")
