"""Bytes of a file to its text: gzip is undone, UTF-16 and UTF-32 are told by their mark, anything else is named."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from pathlib import Path

from poise.errors import DataError

_GZIP = b"\x1f\x8b"
_MARKS = (  # the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BEGINNINGS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook: unpack it, or save its sheet as .csv"),
    (b"BZh", "compressed with bzip2: unpack it (`bunzip2`), or compress it with gzip"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it (`unxz`), or compress it with gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it (`unzstd`), or compress it with gzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"PAR1", "a Parquet file: let its name end in .parquet"),
    (b"ARROW1", "an Arrow file: write it as Parquet (`Dataset.to_parquet` of the datasets package)"),
    (b"SQLite format 3", "an SQLite database: write its table as .csv"),
    (b"%PDF", "a PDF document, which has no rows"),
    (b"\x89HDF", "an HDF5 file: write its table as Parquet"),
)
_LOOKED_AT = 1 << 16  # bytes, enough to tell text from other content
_MOST_NULLS = 0.001  # of the characters: text has none, but for a damaged place
_OF_A_BYTE = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is not UTF-8


def unpacked(path: Path, content: bytes) -> bytes:
    """The content without gzip, whatever the file is called; raises DataError if a part is missing or damaged."""
    named = path.name.endswith(".gz")
    if not named and not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        what = describe(content) if named and not content.startswith(_GZIP) else ""
        reason = f"but {what}" if what else f"({error}): fetch it again"
        raise DataError(f"{path} is not a complete gzip file {reason}") from error


def describe(content: bytes) -> str:
    """What a file is that is not text, with the way out; empty for text.

    >>> describe(b"PAR1....")
    'a Parquet file: let its name end in .parquet'
    """
    for beginning, what in _BEGINNINGS:
        if content.startswith(beginning):
            return what
    if content.startswith(tuple(mark for mark, _ in _MARKS)):
        return ""
    return _of_nulls(content[:_LOOKED_AT])


def decoded(path: Path, content: bytes) -> str:
    """The text of a file; a byte that is not UTF-8 stays as a surrogate, so that its row alone is lost.

    Raises DataError that says what the file is, if it is not text.
    """
    if what := describe(content):
        raise DataError(f"{path} is {what}")
    for mark, name in _MARKS:
        if content.startswith(mark):
            return _decoded_as(path, content[len(mark) :], name)
    return content.decode(errors="surrogateescape")


def foreign_byte(text: str) -> str:
    r"""The first byte of a text that is not UTF-8, as people see it; empty if there is none.

    >>> foreign_byte(b"caf\xe9".decode(errors="surrogateescape"))
    "byte 0xe9, which is 'é' in Latin-1"
    """
    found = _OF_A_BYTE.search(text)
    if found is None:
        return ""
    escaped = ord(found[0]) - 0xDC00
    return f"byte {escaped:#x}, which is {bytes([escaped]).decode('latin-1')!r} in Latin-1"


def _decoded_as(path: Path, content: bytes, name: str) -> str:
    try:
        return content.decode(name, errors="surrogateescape" if name == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} begins with the byte-order mark of {name.upper()} but is not ({error}): fetch it again"
        ) from error


def _of_nulls(beginning: bytes) -> str:
    """What zero bytes say: text has none, and UTF-16 has one beside each letter of English."""
    nulls = beginning.count(0)
    if nulls <= _MOST_NULLS * len(beginning):
        return ""
    even, odd = beginning[::2].count(0), beginning[1::2].count(0)
    if max(even, odd) > 0.3 * len(beginning) / 2 and min(even, odd) < 0.02 * len(beginning):
        name = "UTF-16LE" if odd > even else "UTF-16BE"
        return f"probably {name}, without a byte-order mark: convert it with `iconv -f {name} -t UTF-8`"
    return "binary, not text: give rows as .jsonl, .json, .csv or .parquet"
