"""Two nodes in one process: the rig plays the kernel of one, whose mount is a real directory that the other serves. Time and the way
between them are virtual; the way can be cut, also at a given message, and come back to the same server, another one, or another boot of
its machine."""

from __future__ import annotations

import errno
import itertools
import struct
from collections.abc import Callable
from pathlib import Path

from resmgr.access import Export, Policy, UserRule
from resmgr.channel import PID_SYSTEM, Kernel, Message, Nd, Remote
from resmgr.fuse.machine import Machine
from resmgr.fuse.options import FuseOptions
from resmgr.fuse.servers import KernelResolver
from resmgr.hostfs import grace
from resmgr.hostfs.manager import HostFs
from resmgr.hostfs.objects import HostClient
from resmgr.hostfs.reopen import Reopening
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.handletable import HANDLE_BITS
from resmgr.iomsg import Connect, Io, Target
from resmgr.peer import Peer
from resmgr.testing.fuserig import PID, Answer, Rig
from resmgr.testing.memory import MemoryLink
from resmgr.testing.virtual import VirtualDispatch
from resmgr.users import Accounts

ND = 2
CHID = 300
AWAY = 1.5
"""Seconds until the way is there again."""
LIMIT = 30.0
"""Seconds in which every request is answered."""


class Far(Rig):
    """Plays the kernel of a node whose mount is a directory of another one."""

    def __init__(self, root: Path, options: FuseOptions | None = None, seed: int = 0) -> None:
        self.root = root
        self.record = f"{root}.locks"
        Path(self.record).unlink(missing_ok=True)
        self.world = VirtualDispatch(seed)
        self.dispatch = self.world.node("here")
        self.there = self.world.node("there")
        self.kernel = Kernel(self.dispatch, "here")
        self.kernel.network = self
        self.key = bytes(32)
        self.boots = 0
        self.booted = 0.0
        """When the power came back last."""
        self.on_disk: dict[Path, bytes] = {}
        self.peer: Peer | None = None
        self.messages_seen = 0
        self.cut_at = 0
        self.on_cut: Callable[[], None] = lambda: None
        self.serve()
        self.connect()
        self.machine = Machine(self.dispatch, KernelResolver(self.kernel), Target(ND, PID_SYSTEM, CHID), options, b"/net")
        self.answers: dict[int, Answer] = {}
        self.notifications = []
        self.uid = 0
        self.pid = PID
        self._uniques = itertools.count(2, 2)
        self.machine.on_output = self._collect

    def remote(self, nd: Nd) -> Remote | int:
        return errno.EHOSTDOWN if self.peer is None else self.peer

    def serve(self) -> None:
        self.far = Kernel(self.there, "there")
        policy = Policy(Accounts(self.world.now), users=(UserRule("identity", root="root"),), exports=(Export("/", ["read", "write"]),))
        self.host = HostFs(self.far, policy, root=str(self.root), chid=CHID)
        # As if its handles had the numbers of those before: a client's old ones must not be used though its server would not find them.
        self.host.manager.table._next = (CHID << HANDLE_BITS) + 1
        self.host.reopening.key = self.key
        boot = struct.pack("!16x") if not self.boots else struct.pack("!Q8x", self.boots)
        again = self.host.reopening = Reopening(self.host, self.key, boot)
        self.host.locks.remember(self.record, boot, grace.read(self.record, boot))
        self.host.manager._connect[Connect.REOPEN] = again.reopen
        self.host.manager._io[Io.IDENTIFY] = again.identify
        sync = self.host.manager._io[Io.SYNC]

        def synced(message: Message, client: HostClient, handle: Handle, flags: int) -> None:
            sync(message, client, handle, flags)
            self.on_disk = {path: path.read_bytes() for path in self.root.iterdir() if path.is_file() and not path.is_symlink()}

        self.host.manager._io[Io.SYNC] = synced

    def lose_power(self) -> None:
        """What was written and not synced is not there; names are."""
        self.booted = self.dispatch.now()
        for path in self.root.iterdir():
            if path.is_file() and not path.is_symlink():
                with open(path, "r+b") as file:
                    file.truncate(0)
                    file.write(self.on_disk.get(path, b""))

    def connect(self) -> None:
        self.link = MemoryLink(self.dispatch, self.there, self.world.random(f"link {self.messages_seen}"), 0.002)
        self.link.tap = self._tap
        self.peer = self.link.left.peer = Peer(self.kernel, self.link.left, nd=Nd(ND), node="there")
        self.link.right.peer = Peer(self.far, self.link.right, nd=Nd(9), node="here")

    def _tap(self, message: bytes) -> None:
        self.messages_seen += 1
        if self.messages_seen == self.cut_at:
            # This one still arrives, nothing after it.
            self.there.call_soon(self.on_cut)

    def cut(self) -> None:
        self.peer = None
        self.link.cut(errno.EHOSTDOWN)

    def forget(self) -> None:
        """All that is open for other nodes is closed there; their connections stay."""
        self.host.set_policy(self.host.policy)

    def fail(self, fault: str, away: float = AWAY) -> None:
        """The way is cut now and there again after *away*; or ("forgotten") nothing is, but that the server knows nothing that is open."""
        if self.peer is None:
            return
        if fault == "forgotten":
            self.forget()
            return
        self.cut()
        if fault != "link":
            self.host.destroy()
            if fault == "boot":
                self.boots += 1
                self.lose_power()
            self.dispatch.call_at(self.dispatch.now() + away / 2, self.serve)
        self.dispatch.call_at(self.dispatch.now() + away, self.connect)

    def ask(self, opcode: int, node: int, body: bytes = b"", seconds: float = LIMIT) -> Answer:
        unique = self.start(opcode, node, body)
        self.world.run_until(lambda: unique in self.answers, limit=seconds)
        return self.answers[unique]

    def close(self) -> None:
        self.machine.close()
        self.host.destroy()
