"""Answers that are made piece by piece, so that a table of thousands of rows does not keep frames waiting until it is written.

`Rows` (`stack.core.specific`) make a row when it is looked at; here they are looked at one by one, and what comes out is JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from stack.core.specific import Row, Rows, plain


def _text(row: Row) -> str | Row:
    """In one piece, where its module answers for it."""
    return json.dumps(plain(row), default=str)


def _as_it_is(row: Row) -> str | Row:
    """Of ours; it may have tables in it."""
    return row


def pieces(value: object) -> Iterator[str]:
    """*value* as JSON in pieces, each of which is short if no row of a table in it is long. Joined they are the text."""
    if isinstance(value, Rows):
        yield "["
        separator = ""
        for row in value.turned(_text if value.of_module else _as_it_is):
            yield separator
            yield from (row,) if isinstance(row, str) else pieces(row)
            separator = ", "
        yield "]"
    elif isinstance(value, Mapping):
        yield "{"
        separator = ""
        for key, one in value.items():
            yield f"{separator}{json.dumps(str(key))}: "
            yield from pieces(one)
            separator = ", "
        yield "}"
    else:
        yield json.dumps(value, default=str)
