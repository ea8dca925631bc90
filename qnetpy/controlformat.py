"""What a command says to the node's control channel (`control`) and how it reads the reply. Imports only what starts quickly."""

from __future__ import annotations

import json

REPLY_MAX = 1 << 20
"""Reply buffer of the commands."""


def pack_request(verb: str, **arguments: object) -> bytes:
    return json.dumps({**arguments, "do": verb}).encode()


def unpack_reply(data: bytes) -> dict[str, object]:
    """The facts of a reply. ValueError when the daemon is of another version and says something else."""
    match json.loads(data):
        case dict(facts):
            return facts
        case other:
            raise ValueError(f"not a table of facts: {other!r}")
