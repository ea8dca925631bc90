"""Batches in worker threads, a part at a time: between two parts a thread lets go of the interpreter lock.

Calls of C let go of it for large items only (`LETS_GO`). A thread that goes through a thousand small ones keeps it, asked for it every 5 ms
at most, and the dispatch waits as long, again and again, with all frames: with two such threads 10 ms in a tenth of all turns, 47 at worst.
In parts of `PART` it is 0.5 at worst, and a batch takes as long as before.

One item is not cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from resmgr.dispatch import Buffer
from stack.crypto.jobs import INLINE, ITEM

S = TypeVar("S")
R = TypeVar("R")

PART = INLINE
"""What the dispatch does itself keeps others waiting as long."""
LETS_GO = 2048
"""Bytes of an item from which on `cryptography` and `hashlib` let go of the lock."""
NEVER = 1 << 62
"""The same of what never does."""


def in_parts(
    items: Sequence[Buffer], call: Callable[[S, slice], list[R]], heads: Sequence[Buffer] = (), lets_go: int = LETS_GO
) -> Callable[[S], list[R]]:
    """*call* for all *items*, and the *heads* that they have in another list, in parts of them if they are worth more than one."""
    parts: list[slice] = []
    begin = size = 0
    for at, one in enumerate(items):
        # What lets go by itself needs no part of its own.
        size += ITEM + (len(one) if len(one) < lets_go else 0) + (len(heads[at]) if heads else 0)
        if size >= PART:
            parts.append(slice(begin, at + 1))
            begin, size = at + 1, 0
    if begin < len(items) or not parts:
        parts.append(slice(begin, len(items)))

    def run(session: S) -> list[R]:
        made = list(call(session, parts[0]))
        for part in parts[1:]:
            time.sleep(0)
            made += call(session, part)
        return made

    return run
