"""What every command prints: errors of one line, tables for people, JSON for programs. Imports nothing heavy.

Much of it was said by others: names of servers, paths, programs, what other nodes call things. A terminal obeys what is printed, so tables,
facts and errors show what is not printable as `\\x1b`; JSON does by itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

CLEAR = "\033[H\033[2J"
Fact = object
"""Something JSON can say: str, int, float, bool, None, lists and dicts of them."""


class CommandError(Exception):
    """A command could not do its work. The text says what failed, where and why; *hint* is what to try."""

    def __init__(self, message: str, hint: str = "", status: int = 1) -> None:
        super().__init__(shown(f"{message}; try: {hint}" if hint else message))
        self.status = status


def shown(text: str | bytes) -> str:
    """On one line, and nothing that a terminal would take for a command."""
    words = text if isinstance(text, str) else text.decode(errors="backslashreplace")
    if words.isprintable():
        return words
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" if one < "\u0100" else f"\\u{ord(one):04x}" for one in words)


def user(uid: int, here: bool) -> str:
    """The account's name; a number of another machine stays one."""
    if here or uid == 0:
        import pwd

        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            pass
    return str(uid)


def said(error: OSError) -> str:
    """`/dev/fuse: permission denied` for an OSError."""
    why = (error.strerror or str(error)).lower()
    if error.filename is None:
        return why
    name = error.filename if isinstance(error.filename, bytes) else str(error.filename)
    return f"{shown(name)}: {why}"


def as_json(fact: Fact) -> str:
    import json

    return json.dumps(fact, indent=2, sort_keys=True, default=str)


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Columns as wide as their widest cell; no trailing blanks."""
    cells = [[shown(str(cell)) for cell in row] for row in ([header, *rows] if header else rows)]
    if not cells:
        return ""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def facts(pairs: Mapping[str, object]) -> str:
    """`name: value` lines, values aligned."""
    width = max((len(name) for name in pairs), default=0)
    return "\n".join(f"{name + ':':<{width + 1}} {shown(str(value))}" for name, value in pairs.items())


def environment(name: str, default: str) -> str:
    """An environment variable, or *default* when it is unset or empty."""
    return os.environ.get(name) or default


def begin_picture() -> None:
    """Where a person watches, each picture takes the place of the last one."""
    if sys.stdout.isatty():
        print(CLEAR, end="")


def scaled(value: float) -> str:
    """`1.5k`, `12M`: three digits."""
    for unit in ("", "k", "M", "G"):
        if value < 999.5 or unit == "G":
            return f"{value:.0f}{unit}" if value >= 99.5 or not unit else f"{value:.3g}{unit}"
        value /= 1000
    return ""
