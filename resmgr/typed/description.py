"""What a server says of its interface to whoever asks, without knowing its classes: `qnet describe`.

    asked with    a head of type 0x7FFF; interface and version 0
    answer        a head of type 0xFFFF | name | 0 1 | JSON: {"requests": [{"number", "name", "about", "fields", "reply", "reply_fields"}]}

`fields` are [name, type] in their order, types in words; `reply` is the name of the class that answers, null where nothing does. A server
that does not know the question answers what it answers to any other interface, which is the same without JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.typed.head import DESCRIBE, FORM, HEAD, MAGIC, NAME_MAX, OTHER, REPLY_MAX, parse_head

REQUESTS_MAX = 4096
"""Of a description that is taken."""

Fields = tuple[tuple[str, str], ...]
"""Name and type of each, in their order."""


class Described(NamedTuple):
    """A request and what answers it; no `reply`: nothing."""

    number: int
    name: str
    about: str
    fields: Fields
    reply: str | None
    reply_fields: Fields


class Description(NamedTuple):
    """An interface. `requests` is None where the server does not tell."""

    name: str
    version: int
    id: int
    requests: tuple[Described, ...] | None


def pack_question() -> bytes:
    return HEAD.pack(MAGIC, FORM, 0, 0, 0, DESCRIBE)


def pack_description(requests: Sequence[Described]) -> bytes:
    """What follows the name; nothing if that would be too long for a client."""
    text = json.dumps({"requests": [one._asdict() for one in requests]}, ensure_ascii=False, separators=(",", ":")).encode()
    return b"\0" + text if len(text) < REPLY_MAX - HEAD.size - NAME_MAX - 1 else b""


def parse_description(view: Buffer) -> Description:
    """The answer to `pack_question`. BadMessage."""
    interface, version, number = parse_head(view)
    if number != OTHER:
        raise BadMessage("an answer to something else")
    name, told, text = bytes(view[HEAD.size :]).partition(b"\0")
    requests = _parse_requests(text) if told else None
    return Description(name[:NAME_MAX].decode(errors="replace"), version, interface, requests)


def _parse_requests(text: bytes) -> tuple[Described, ...]:
    try:
        rows = json.loads(text)["requests"]
        if not isinstance(rows, list) or len(rows) > REQUESTS_MAX:
            raise BadMessage("a description of too many requests")
        return tuple(_parse_request(row) for row in rows)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadMessage("not a description") from None


def _parse_request(row: dict[str, object]) -> Described:
    number, reply = row["number"], row["reply"]
    if not isinstance(number, int) or not (reply is None or isinstance(reply, str)):
        raise BadMessage("not a description")
    reply_fields = _parse_fields(row["reply_fields"])
    return Described(number, _text(row["name"]), _text(row["about"]), _parse_fields(row["fields"]), reply, reply_fields)


def _parse_fields(rows: object) -> Fields:
    if not isinstance(rows, list):
        raise BadMessage("not a description")
    fields = []
    for row in rows:
        name, kind = row
        fields.append((_text(name), _text(kind)))
    return tuple(fields)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadMessage("not a description")
    return value
