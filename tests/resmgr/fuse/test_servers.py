"""Servers by address, and a node that names ever new ones."""

from __future__ import annotations

import pytest

from resmgr.channel import Connection, Credentials, Kernel, Nd
from resmgr.errors import BadMessage
from resmgr.fuse.servers import SERVERS_OF_NODE, SWEEP_REST, KernelResolver, Server, Servers
from resmgr.iomsg import Target
from resmgr.testing.virtual import VirtualDispatch

ND = 2
USER = (0, 0)


class Known:
    """Servers of one mount, of which those in `used` are in use."""

    def __init__(self) -> None:
        self.world = VirtualDispatch(0)
        dispatch = self.world.node("here")
        kernel = Kernel(dispatch, "here")
        self.used: set[Server] = set()
        self.gone: list[Connection] = []
        self.servers = Servers(KernelResolver(kernel), Target(0, 1, 1), dispatch.now, lambda: self.used)
        self.servers.on_death = self.gone.append
        self.via = {nd: kernel.connect(Nd(nd), 1, 300, Credentials(0, 0, (), 1)) for nd in (ND, ND + 1)}

    def says(self, number: int, nd: int = ND) -> Connection:
        """A node says that its server *number* has something."""
        return self.servers.translate(self.via[nd], (0, 9, number), USER)


@pytest.fixture
def known() -> Known:
    return Known()


def test_those_of_which_nothing_is_known_are_forgotten(known: Known) -> None:
    kept = known.says(1)
    known.used.add(known.servers.of(kept))
    first = known.says(2)
    for number in range(3, 4 * SERVERS_OF_NODE):
        known.says(number)
        if number % (SERVERS_OF_NODE // 2) == 0:
            known.world.run_for(SWEEP_REST)
    assert known.says(1) is kept
    assert first.closed
    assert first in known.gone
    assert not known.servers.lives(first)
    assert known.says(2) is not first


def test_a_node_that_names_too_many_is_not_believed_and_others_are(known: Known) -> None:
    for number in range(1, SERVERS_OF_NODE + 1):
        known.used.add(known.servers.of(known.says(number)))
    with pytest.raises(BadMessage):
        known.says(SERVERS_OF_NODE + 1)
    assert not known.says(1).closed, "what was met before is still known"
    assert not known.says(1, ND + 1).closed
    with pytest.raises(BadMessage):
        known.says(3 * SERVERS_OF_NODE)
    known.used.clear()
    known.world.run_for(SWEEP_REST)
    assert not known.says(3 * SERVERS_OF_NODE).closed
