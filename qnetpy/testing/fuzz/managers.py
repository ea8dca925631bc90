"""What is fuzzed of resource managers: locks, waiting and commands of devices by several clients, and attaching to the pathname space."""

from __future__ import annotations

import errno
import os
import struct

from resmgr.attachments import Attachments
from resmgr.channel import PID_SYSTEM, Connection, Credentials, Kernel, Nd
from resmgr.dispatch import Buffer
from resmgr.ids import CHID_ATTACH
from resmgr.iofunc.node import Directory, Node, Setting, TreeManager
from resmgr.iomsg import Connect, Entry
from resmgr.iorequest import ConnectRequest
from resmgr.system import System
from resmgr.testing.devices import Pipe, Slow
from resmgr.testing.virtual import VirtualDispatch

ITEMS_MAX = 64
CLIENTS = 3
NAMES = (b"pipe", b"slow", b"value")
_HANDLE = struct.Struct("!Q")


def devices(items: list[bytes]) -> None:
    """Messages of three clients who have three devices open. An item: what (1), then the message. What: its lowest two bits are the client
    (3: the device has an event of its own), the next two whose handle is put in (3: none, the message is as it is); bit 4: the client gives
    the message up at once; bit 5: it leaves, and comes back."""
    kernel = Kernel(VirtualDispatch(1), "here")
    pipe, slow = Pipe(), Slow()
    nodes: dict[bytes, Node] = {b"pipe": pipe, b"slow": slow, b"value": Setting(lambda: b"x", lambda text: None, 0o666)}
    manager = TreeManager(kernel, Directory(nodes), name="devices")
    clients = [_Client(kernel, manager) for _ in range(CLIENTS)]
    for item in items[:ITEMS_MAX]:
        if not item:
            continue
        what, data = item[0], bytearray(item[1:])
        number = what & 3
        if number == CLIENTS:
            pipe.data += data[: pipe.room]
            pipe.urgent = bool(what & 4)
            pipe.notify()
            for later in slow.asked:
                later.answer(bytes(data))
            continue
        client = clients[number]
        if what & 32:
            client.connection.close()
            client = clients[number] = _Client(kernel, manager)
        whose = what >> 2 & 3
        if whose < len(NAMES) and len(data) >= 16:
            _HANDLE.pack_into(data, 8, client.handles[whose])
        client.send(bytes(data), bool(what & 16))
    for client in clients:
        client.connection.close()
        assert not client.waiting, "a client that left still waits"
    assert not manager.manager.table.handles
    assert not manager.opened.locks.locks.held
    assert not manager.opened.locks.locks.waiting
    assert manager.counters["failed"] == 0


class _Client:
    def __init__(self, kernel: Kernel, manager: TreeManager) -> None:
        self.connection: Connection = kernel.connect(Nd(0), PID_SYSTEM, manager.channel.chid, Credentials(0, 0))
        self.waiting = 0
        self.handles: list[int] = []
        for name in NAMES:
            access = os.O_RDONLY if name == b"slow" else os.O_RDWR
            self.connection.submit((ConnectRequest(Connect.OPEN, access, 0, name).pack(),), 4096, self._opened)

    def _opened(self, status: int, reply: Buffer) -> None:
        self.handles.append(Entry.parse(reply).ocb)

    def send(self, data: bytes, give_up: bool) -> None:
        self.waiting += 1
        pending = self.connection.submit((data,), 4096, self._done)
        if pending is not None and give_up:
            pending.unblock()

    def _done(self, status: int, reply: Buffer) -> None:
        self.waiting -= 1
        assert status != -errno.EIO


def attaching(items: list[bytes]) -> None:
    """Requests of programs that attach themselves. An item: whose (1: uid 0 or 1000), the message."""
    system = System(VirtualDispatch(1), "here")
    managers = system.managers = Attachments(
        system.kernel, system.paths, system.accounts, lambda: system.policy, lambda: system.attach_rules
    )
    connections = [system.kernel.connect(Nd(0), PID_SYSTEM, CHID_ATTACH, Credentials(uid, uid, (), 77)) for uid in (0, 1000)]
    answers: list[int] = []
    for item in items[:ITEMS_MAX]:
        if item:
            connections[item[0] & 1].submit((item[1:],), 4096, lambda status, reply: answers.append(status))
    assert len(answers) == len([item for item in items[:ITEMS_MAX] if item])
    assert len(list(managers.rows())) <= ITEMS_MAX
    for connection in connections:
        connection.close()
    assert not list(managers.rows())
