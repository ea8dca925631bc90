"""Which owner of a global name whoever opens it gets: what stands behind the name in its path. Pure. docs/protocol/names.md."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from resmgr.names.protocol import Record
from resmgr.names.replica import Named, Replica

ROUND_ROBIN = b"roundrobin"
LEAST_LOAD = b"leastload"


def split(text: bytes) -> tuple[bytes, bytes, bytes]:
    """(name, node, policy) of `NAME`, `NAME@NODE` or `NAME~POLICY`. OSError(EINVAL) for a policy that is none."""
    name, at, node = text.partition(b"@")
    if at:
        if not node:
            raise OSError(errno.EINVAL, "no node behind @")
        return name, node, b""
    name, tilde, policy = text.partition(b"~")
    if tilde and policy not in (ROUND_ROBIN, LEAST_LOAD):
        raise OSError(errno.EINVAL, "no such choice: there are roundrobin and leastload")
    return name, b"", policy


def choose(replica: Replica, text: bytes, own: str) -> Record | None:
    """The owner that *text* means; None if there is none. *own*: this node's name."""
    name, node, policy = split(text)
    named = replica.find(name)
    if named is None:
        return None
    owners = list(named.owners.values())
    if node:
        where = node.decode(errors="surrogateescape")
        owners = [one for one in owners if (one.node or own) == where]
    sound = [one for one in owners if not one.node or not replica.peers[one.node].suspect]
    owners = sound or owners
    if not owners:
        return None
    if not node and not policy:
        here = [one for one in owners if not one.node]
        return here[0] if here else min(owners, key=lambda one: replica.load_of(one.node))
    if policy == LEAST_LOAD:
        least = min(replica.load_of(one.node) for one in owners)
        owners = [one for one in owners if replica.load_of(one.node) == least]
    return _next(named, owners)


def _next(named: Named, owners: Sequence[Record]) -> Record:
    named.turn += 1
    return owners[(named.turn - 1) % len(owners)]
