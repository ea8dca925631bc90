"""What is asked of a running io-pkt: one well-known channel of the node, JSON in, JSON out. docs/stack/manager.md has every request.

    {"do": "facts"}                                             modules, interfaces, registrations, counters
    {"do": "mount", "module": M, "kind": K, "options": O, "wrap": [[NAME, OPTIONS], ...]}
    {"do": "umount", "what": W}                                 an interface, a module, what it was mounted by, or its number
    {"do": "destroy", "interface": IF}                          as umount, for interfaces only
    {"do": "interface", "interface": IF, "up": B, "mtu": N}     switch it, limit its MTU; what is absent stays
    {"do": "specific", "interface": IF, "command": C, "arguments": {...}}    `stack.core.specific`; without a command: only its facts
    {"do": "specific", "module": W, ...}                        the same of a protocol, named as for umount
    {"do": "crypto"}                                            who does the ciphers, who could, live sessions
    {"do": "use-crypto", "name": P}                             have the provider P do them: live sessions move

Answers to facts, crypto and specific are made a part at a time while frames go on: they are not of one moment.

The channel is `(0, PID_SYSTEM, CHID_STACK)`. A request that is not done is answered with `{"error": sentence, "errno": N}`: EINVAL for one
that makes no sense, ENOSYS for an unknown one, EMSGSIZE for one that is too long, EAGAIN when too many wait, else what stands against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from resmgr.channel import Message
from stack.core.specific import Named, Rows, plain

CHID_STACK = 4
"""Of PID_SYSTEM; see docs/protocol/node.md for the others."""
REQUEST_MAX = 8192
"""A request is a name and options (4 KB at most); longer ones are refused unread."""
REPLY_MAX = 1 << 20
"""Reply buffer of who asks: facts about 256 interfaces fit."""


def pack_request(verb: str, **arguments: object) -> bytes:
    return json.dumps({**arguments, "do": verb}).encode()


def pack_reply(facts: Mapping[str, object]) -> bytes:
    return json.dumps(facts, default=_plain).encode()


def _plain(value: object) -> object:
    return plain(value) if isinstance(value, Rows | Named) else str(value)


def refuse(message: Message, code: int, sentence: str) -> None:
    """Answer *message*, if nobody has, with an errno and why."""
    if not message.answered:
        message.reply(0, pack_reply({"error": sentence, "errno": code}))


def unpack_request(data: bytes) -> dict[str, object] | None:
    """None for what is no request."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("do"), str) else None


def unpack_reply(data: bytes) -> dict[str, object]:
    """ValueError for an answer of a manager of another version."""
    match json.loads(data):
        case dict(facts):
            return facts
        case other:
            raise ValueError(f"not a table of facts: {other!r}")
