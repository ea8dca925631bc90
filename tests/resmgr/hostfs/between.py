"""Four nodes in one process, on virtual time: `a` asks, `b` and `c` serve a real directory each, `d` is just there. Every pair has a link,
which can be cut."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from resmgr.access import Export, Policy, UserRule
from resmgr.channel import CHID_COPIES, PID_SYSTEM, Credentials, Kernel, Nd, Remote
from resmgr.copymsg import TICKET, Fetch, Take, pack_fetch, pack_offer, pack_take
from resmgr.hostfs.manager import HostFs
from resmgr.iomsg import Target
from resmgr.peer import Peer
from resmgr.testing.ioclient import IoClient
from resmgr.testing.memory import MemoryLink
from resmgr.testing.virtual import VirtualDispatch
from resmgr.users import Accounts

NUMBERS = {"a": 1, "b": 2, "c": 3, "d": 4}
CHID = 300
EVERYTHING = (Export("/", ["read", "write"]),)
ROOT = (UserRule("identity", root="root"),)


class Net:
    """The network module of one node."""

    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}

    def remote(self, nd: Nd) -> Remote | int:
        names = {number: name for name, number in NUMBERS.items()}
        return self.peers.get(names[nd], errno.EHOSTDOWN)

    def find(self, name: str) -> Nd | None:
        return Nd(NUMBERS[name]) if name in self.peers else None


class Four:
    def __init__(self, root: Path, seed: int = 1) -> None:
        self.world = VirtualDispatch(seed)
        self.kernels = {name: Kernel(self.world.node(name), name) for name in NUMBERS}
        self.nets = {name: Net() for name in NUMBERS}
        self.links: dict[frozenset[str], MemoryLink] = {}
        for name, kernel in self.kernels.items():
            kernel.network = self.nets[name]
            kernel.node_by_name = self.nets[name].find
            kernel.name_of_node = lambda nd: next((name for name, number in NUMBERS.items() if number == nd), "")
        for one, other in itertools.combinations(NUMBERS, 2):
            self.join(one, other)
        self.roots: dict[str, Path] = {}
        self.fs: dict[str, HostFs] = {}
        for name in ("b", "c"):
            self.roots[name] = root / name
            self.roots[name].mkdir()
            self.serve(name)

    def serve(self, name: str) -> None:
        fs = HostFs(self.kernels[name], self.policy(), root=str(self.roots[name]), chid=CHID)
        fs.offers.listen()
        self.fs[name] = fs

    def policy(self, exports: tuple[Export, ...] = EVERYTHING) -> Policy:
        return Policy(Accounts(self.world.now), users=ROOT, exports=exports)

    def join(self, one: str, other: str) -> None:
        kernels = self.kernels
        link = MemoryLink(kernels[one].dispatch, kernels[other].dispatch, self.world.random(f"{one}{other}"), 0.002)
        link.left.peer = Peer(kernels[one], link.left, nd=Nd(NUMBERS[other]), node=other)
        link.right.peer = Peer(kernels[other], link.right, nd=Nd(NUMBERS[one]), node=one)
        self.nets[one].peers[other] = link.left.peer
        self.nets[other].peers[one] = link.right.peer
        self.links[frozenset((one, other))] = link

    def cut(self, one: str, other: str) -> None:
        del self.nets[one].peers[other]
        del self.nets[other].peers[one]
        self.links.pop(frozenset((one, other))).cut(errno.EHOSTDOWN)

    def run(self, goal: Callable[[], bool]) -> None:
        self.world.run_until(goal)

    def client(self, at: str = "a", uid: int = 0) -> IoClient:
        return IoClient(self.kernels[at], Credentials(uid, uid), run=self.run)

    @staticmethod
    def files(name: str) -> Target:
        return Target(NUMBERS[name], PID_SYSTEM, CHID)

    @staticmethod
    def copies(name: str) -> Target:
        return Target(NUMBERS[name], PID_SYSTEM, CHID_COPIES)

    def open(self, client: IoClient, node: str, path: bytes, flags: int = os.O_RDONLY) -> int:
        return client.open(path, flags, target=self.files(node)).ocb

    def offer(self, client: IoClient, ocb: int, start: int, length: int, taker: str = "c") -> bytes:
        _, ticket = client.send(self.files("b"), (pack_offer(ocb, start, length, taker),), TICKET + 1)
        return bytes(ticket)

    def fetch(self, client: IoClient, ocb: int, fetch: Fetch) -> int:
        return client.send(self.files("c"), (pack_fetch(ocb, fetch),), 0)[0]

    def take(self, client: IoClient, take: Take) -> bytes:
        return bytes(client.send(self.copies("b"), (pack_take(take),))[1])

    def close(self) -> None:
        for fs in self.fs.values():
            fs.destroy()
