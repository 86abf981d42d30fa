"""Text of models, data, servers and files on its way to a terminal or page: shown as it is, and never obeyed.

A terminal obeys control characters: they move the cursor, hide, overwrite and recolour what stands there, and set the
clipboard. Overrides of the direction of writing show words in another order than they are read in.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

# C0 but for newline and tab, DEL, C1, line and paragraph separators, marks that reorder or annotate, surrogates.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_PASSWORD = re.compile(r"(?<=://)[^/?#\s@]*(?:@[^/?#\s@]*)*@")
_MARKUP = re.compile(r"([\\`*_<>\[\]|#&~$])")
HIDDEN = "***"  # stands for a password


def visible(text: str) -> str:
    r"""The text with each control character spelled out, so that what shows it has nothing to obey.

    Newlines and tabs stay. JSON stays the same JSON: what it may hold unescaped is spelled as JSON spells it.

    >>> visible("\x1b[31mred\r\n") == r"\x1b[31mred" + "\n"
    True
    >>> visible("abc\u202e.exe") == r"abc\u202e.exe"
    True
    """
    return _OBEYED.sub(lambda found: _spelled(found[0]), text.replace("\r\n", "\n"))


def one_line(text: str, limit: int = 300) -> str:
    r"""The text made visible in one line of at most `limit` characters, so that it cannot pass for a line of ours.

    >>> one_line("no room\n  Error: all is lost")
    'no room Error: all is lost'
    """
    line = visible(" ".join(text[: 4 * limit].split()))
    return line if len(line) <= limit else f"{line[: limit - 4]} ..."


def in_markdown(text: str) -> str:
    r"""The text in one line that stays in its place in Markdown: no line breaks, no markup, no HTML, no control.

    >>> in_markdown("[a](b)\n# c")
    '\\[a\\](b) \\# c'
    """
    return _MARKUP.sub(r"\\\1", visible(" ".join(text.split())))


def without_passwords(text: str) -> str:
    """The text with what stands before the host of an address hidden.

    >>> without_passwords("https://me:secret@host/v1")
    'https://***@host/v1'
    """
    return _PASSWORD.sub(f"{HIDDEN}@", text)


def hide_passwords(value: Any) -> Any:
    """What JSON can hold, `without_passwords` in any of its texts."""
    if isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, Mapping):
        return {key: hide_passwords(item) for key, item in value.items()}
    return [hide_passwords(item) for item in value] if isinstance(value, (list, tuple)) else value


def say(text: object = "", *, error: bool = False, red: bool = False) -> None:
    """Print a line, made visible: the one way from this package to a terminal.

    error  to stderr
    red    in red, where that is a terminal
    """
    stream = sys.stderr if error else sys.stdout
    line = visible(str(text))
    _write(stream, f"\x1b[31m{line}\x1b[0m" if red and stream.isatty() else line)


def _write(stream: TextIO, line: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _spelled(character: str) -> str:
    code = ord(character)
    if character == "\r":
        return r"\r"
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"
