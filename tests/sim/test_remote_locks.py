"""Locks and waiting of clients on two other nodes, over links whose messages overtake each other and which end at any moment: whatever
happens, nobody who is gone holds anything, nobody who waits is forgotten, and no two hold what excludes."""

from __future__ import annotations

import errno
import os
import random

import pytest

from resmgr.channel import PID_SYSTEM, Connection, Credentials, Kernel, Nd, Pending, Remote
from resmgr.dispatch import Buffer
from resmgr.handlelist import pack_close
from resmgr.iofunc.locks import READ, UNLOCK, WRITE
from resmgr.iofunc.node import Directory, Node, TreeManager
from resmgr.iomsg import LOCK_SET, LOCK_WAIT, NOTIFY_ARM, POLL_IN, Connect, Entry
from resmgr.iorequest import ConnectRequest, pack_notify, pack_read, pack_write
from resmgr.lockrequest import LOCK_END, LockRequest, pack_lock
from resmgr.peer import Peer
from resmgr.testing.devices import Pipe
from resmgr.testing.memory import MemoryLink
from resmgr.testing.virtual import VirtualDispatch

SERVER = Nd(9)


class Far:
    """A node with one client of the server's device, until its link is cut; then it comes back by another link."""

    def __init__(self, world: VirtualDispatch, server: Kernel, chid: int, number: int) -> None:
        self.world = world
        self.server = server
        self.chid = chid
        self.number = number
        self.kernel = Kernel(world.node(f"far{number}"), f"far{number}")
        self.peer: Remote | None = None
        self.kernel.network = self
        self.links = 0
        self.come()

    def remote(self, nd: Nd) -> Remote | int:
        return self.peer if self.peer is not None else errno.EHOSTDOWN

    def come(self) -> None:
        self.links += 1
        link = self.link = MemoryLink(self.kernel.dispatch, self.server.dispatch, self.world.random(f"link {self.number}/{self.links}"))
        link.left.peer = self.peer = Peer(self.kernel, link.left, nd=SERVER, node="server")
        link.right.peer = Peer(self.server, link.right, nd=Nd(self.number), node=self.kernel.node_name, roles=frozenset({"user"}))
        self.connection: Connection = self.kernel.connect(SERVER, PID_SYSTEM, self.chid, Credentials(0, 0))
        self.ocb = 0
        self.pending: list[Pending] = []
        self.answers: list[int] = []
        self.sent = 0
        self.connection.submit((ConnectRequest(Connect.OPEN, os.O_RDWR, 0, b"p").pack(),), 4096, self._opened)

    def _opened(self, status: int, reply: Buffer) -> None:
        if status >= 0:
            self.ocb = Entry.parse(reply).ocb

    def cut(self) -> None:
        self.link.cut(errno.EHOSTDOWN)
        assert len(self.answers) == self.sent, "a client of a node that is down still waits"
        self.connection.close()
        self.peer = None

    def ask(self, message: bytes) -> None:
        self.sent += 1
        pending = self.connection.submit((message,), 100, lambda status, reply: self.answers.append(status))
        if pending is not None:
            self.pending.append(pending)


def play(seed: int) -> None:
    rng = random.Random(seed)
    world = VirtualDispatch(seed)
    server = Kernel(world.node("server"), "server")
    pipe = Pipe()
    nodes: dict[bytes, Node] = {b"p": pipe}
    manager = TreeManager(server, Directory(nodes), name="devices")
    locks = manager.opened.locks.locks
    clients = [Far(world, server, manager.channel.chid, number) for number in (1, 2, 3)]
    world.run_for(1)
    for _ in range(40):
        client = rng.choice(clients)
        kind = rng.randrange(10)
        if kind == 0:
            client.cut()
            world.run_for(0.05)
            held = [owner for table in locks._tables.values() for owner in (*table.held, *(one.owner for one in table.waiters))]
            assert not any(owner.node == client.number for owner in held), (seed, "who is down holds something")
            client.come()
            world.run_for(1)
        elif kind == 1:
            for pending in client.pending:
                pending.unblock()
        elif kind == 2:
            client.ask(pack_notify(client.ocb, NOTIFY_ARM, POLL_IN))
        elif kind == 3:
            client.ask(pack_read(client.ocb, 0, 4))
        elif kind == 4:
            client.ask(pack_write(client.ocb, 0, 4) + b"data")
        else:
            low = rng.randrange(6)
            whole = rng.random() < 0.2
            start, end = (0, LOCK_END) if whole else (low, low + rng.randrange(1, 4))
            operation = rng.choice((LOCK_SET, LOCK_WAIT))
            request = LockRequest(operation, rng.choice((READ, WRITE, UNLOCK)), start, end, rng.randrange(2), 0, whole)
            client.ask(pack_lock(client.ocb, request))
        world.run_for(rng.choice((0.0, 0.003, 0.05)))
        _exclusive(manager)
    # Who closes what he has open is done with all of it, and those who still wait get their turn.
    for client in clients:
        client.ask(pack_close(client.ocb))
        world.run_for(1)
        assert len(client.answers) == client.sent, (seed, "a message was not answered")
    assert not locks.held
    assert not locks.waiting
    assert not manager.opened._parking._of_client
    assert not manager.opened._parking._of_handle
    assert manager.counters["failed"] == 0


def _exclusive(manager: TreeManager) -> None:
    for table in manager.opened.locks.locks._tables.values():
        ranges = [(owner, *one) for owner, held in table.held.items() for one in held]
        for owner, start, end, kind in ranges:
            for other, low, high, their in ranges:
                assert owner == other or start >= high or low >= end or (kind, their) == (READ, READ), "two hold what excludes"


@pytest.mark.sim
def test_locks_over_links_that_end() -> None:
    for seed in range(int(os.environ.get("SEEDS", "60"))):
        play(seed)
