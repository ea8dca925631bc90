"""Fuzz targets of global names: a member that says anything to a replica, and events read by programs."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from resmgr.errors import BadMessage
from resmgr.names import protocol, replicawire
from resmgr.names.choice import choose
from resmgr.names.protocol import NameChange, Record
from resmgr.names.replica import NAMES_PER_NODE, Replica
from resmgr.nodes import protocol as nodes


def replica(messages: Sequence[bytes]) -> None:
    """Messages of one member, between a good one's. An empty one ends and begins its link."""
    view: set[Record] = set()

    def changed(kind: NameChange, record: Record) -> None:
        assert (record in view) == (kind is NameChange.WITHDRAWN)
        view.symmetric_difference_update((record,))

    here = Replica(changed, Counter())
    good = replicawire.pack(1, 0, [replicawire.Put(1, b"clock", 1, 1, 0, 0)])
    for name, nd in (("good", 1), ("evil", 2)):
        here.peer_up(name, nd, True, 0.0)
    assert here.receive("good", good, 0.0) == 0
    for message in messages:
        if not message:
            here.peer_down("evil")
            assert {one.node for one in view} == {"good"}
            here.peer_up("evil", 2, True, 0.0)
            continue
        code = here.receive("evil", message, 0.0)
        assert code in (0, errno.EBADMSG, errno.EAGAIN, errno.ENOSPC)
        if code == 0:
            told = replicawire.parse(message)
            assert replicawire.pack(*told) == message
        assert view == set(here.records())
        assert {one.nd for one in view if one.node == "evil"} <= {2}
        assert len(here) <= 1 + NAMES_PER_NODE
        assert choose(here, b"clock@good", "here") is not None
    here.peer_down("evil")
    assert {one.name for one in view} == {b"clock"}


def told(data: bytes) -> None:
    """An answer to READ, as events of names or of nodes, and the path that somebody opens."""
    for event in subscription.split(data):
        with suppress(BadMessage):
            name = protocol.parse_event(event)
            assert protocol.parse_event(protocol.pack_event(name)) == name
        with suppress(BadMessage):
            node = nodes.parse_event(event)
            assert nodes.parse_event(nodes.pack_event(node)) == node
    with suppress(OSError):
        choose(Replica(lambda kind, record: None, Counter()), data, "here")
