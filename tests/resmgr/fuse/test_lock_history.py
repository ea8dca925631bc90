"""Programs of two clients and of the server's machine that add to a number under a lock, with links that are late, cut and down.

    python -m tests.resmgr.fuse.test_lock_history FIRST COUNT [SECONDS]

Each one opens the file, locks it, reads the number, writes one more, and unlocks. Who was told that all of that is done has added one; who
was told an error may have. If two ever had the lock at a time, or one read what its kernel had kept from before, a number is missing.
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from resmgr.channel import Kernel
from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import FuseOptions
from resmgr.iofunc.locks import END, UNLOCK, WRITE, Owner, Waiter
from resmgr.testing.memfs import MemFs
from resmgr.testing.virtual import VirtualDispatch
from tests.resmgr.fuse.caching import Asking, CachingKernel, Link

DELAY = 0.01
DIGITS = 8
LAST = (1 << 63) - 1
LOCAL = Owner(-5, 0, 1, False)


class Broken(AssertionError):
    """A number is missing, or there is one too many."""


class Counting:
    """One world from one seed. *unasked*: delegations are not recalled, as if that were broken."""

    def __init__(self, seed: int, *, faults: bool = True, unasked: bool = False) -> None:
        self.rng = random.Random(f"counting/{seed}")
        self.world = VirtualDispatch(seed)
        self.dispatch = self.world.node("here")
        self.kernel = Kernel(self.dispatch, "here")
        self.fs = MemFs(self.kernel)
        self.fs.add(b"d/n", b"0" * DIGITS)
        self.unasked = unasked
        self._serve()
        self.links = [Link(self.dispatch, random.Random(f"link/{self.rng.random()}"), DELAY) for _ in range(2)]
        options = FuseOptions(attr_valid=0, entry_valid=0, negative_valid=0)
        self.clients = [CachingKernel(self.kernel, link, self.fs.target, options) for link in self.links]
        for client in self.clients:
            client.machine.delegated.quiet = 0.0
            client.machine.own_locks.pause = 0.02
        self.faults = faults
        self.done = self.perhaps = self.local = 0
        self._under_way: list[list[bool]] = []
        self.rare = seed % 3
        """Others than the first client come now and then only."""

    def _serve(self) -> None:
        self.fs.watch().spares = True
        self.fs.delegate().muted = self.unasked

    def run(self, seconds: float) -> None:
        for number, client in enumerate(self.clients):
            # Several programs of each client, or one.
            for owner in range(1, 3 if self.world.seed & 4 else 2):
                self._go_on(client, number, number * 10 + owner)
        self._locally()
        if self.faults:
            self._trouble()
        self.world.run_for(seconds)
        for link in self.links:
            link.heal()
        self.world.run_for(0.5)
        value = int(self.fs.find(b"d/n").data)
        self.perhaps += sum(written for (written,) in self._under_way)
        if not self.done <= value <= self.done + self.perhaps:
            raise Broken(f"seed {self.world.seed}: {self.done} were added for certain, {self.perhaps} perhaps, and there are {value}")

    def _pause(self, number: int) -> float:
        return self.rng.expovariate(100 if not number or not self.rare else 0.5 * self.rare)

    def _go_on(self, client: CachingKernel, number: int, owner: int) -> None:
        written = [False]
        self._under_way.append(written)

        def done(result: object) -> None:
            self._under_way = [one for one in self._under_way if one is not written]
            if not isinstance(result, OSError):
                self.done += 1
            elif written[0]:
                self.perhaps += 1
            self.dispatch.call_at(self.dispatch.now() + self._pause(number), lambda: self._go_on(client, number, owner))

        client.run(_add(client, owner, written), done)

    def _locally(self) -> None:
        inode, fs = self.fs.find(b"d/n"), self.fs
        delegations = fs.delegations
        assert delegations is not None

        def opened() -> None:
            delegations.opened.add(inode)
            result = delegations.locks.locks.lock(inode, LOCAL, WRITE, 0, END, 1, locked)
            if not isinstance(result, Waiter):
                locked(result)

        def locked(code: int) -> None:
            assert code == 0
            value = int(inode.data)
            self.dispatch.call_at(self.dispatch.now() + self.rng.uniform(0, 0.01), lambda: write(value))

        def write(value: int) -> None:
            inode.data[:] = b"%0*d" % (DIGITS, value + 1)
            fs.touch(inode, data=True)
            self.done += 1
            self.local += 1
            delegations.opened.discard(inode)
            delegations.locks.locks.lock(inode, LOCAL, UNLOCK, 0, END)
            self.dispatch.call_at(self.dispatch.now() + self._pause(2), self._locally)

        delegations.locally(inode, opened)

    def _trouble(self) -> None:
        link = self.rng.choice(self.links)
        if link.cut_at is None:
            link.cut()
            self.dispatch.call_at(self.dispatch.now() + self.rng.choice((0.2, 0.9, 1.5, 2.9, 3.5, 6)), link.heal)
        self.dispatch.call_at(self.dispatch.now() + self.rng.uniform(1, 8), self._trouble)

    def here(self) -> int:
        """Locks that were granted without the server."""
        return sum(client.machine.drops["locks_here"] for client in self.clients)


def _add(client: CachingKernel, owner: int, written: list[bool]) -> Asking:
    """As a program does it that opens the file, locks it, reads, writes and closes."""
    parent = yield from client._lookup(1, b"d")
    assert isinstance(parent, int)
    nodeid = yield from client._lookup(parent, b"n")
    assert isinstance(nodeid, int)
    answer = yield Opcode.OPEN, nodeid, formats.OPEN_IN.pack(os.O_RDWR, 0)
    if answer.error:
        raise OSError(-answer.error, "open")
    fh, node = answer.fh, client.node(nodeid)
    if not answer.open_flags & formats.FOPEN_KEEP_CACHE:
        node.pages = None
    code = 0
    try:
        answer = yield Opcode.SETLKW, nodeid, formats.LK_IN.pack(fh, owner, 0, LAST, WRITE, owner, 0)
        if answer.error:
            raise OSError(-answer.error, "lock")
        if node.pages is None:
            answer = yield Opcode.READ, nodeid, formats.READ_IN.pack(fh, 0, DIGITS, 0, 0, 0)
            if answer.error:
                raise OSError(-answer.error, "read")
            node.pages = answer.body
        data = b"%0*d" % (DIGITS, int(node.pages) + 1)
        written[0] = True
        node.pages = data
        answer = yield Opcode.WRITE, nodeid, formats.WRITE_IN.pack(fh, 0, DIGITS, 0, 0, 0) + data
        code = -answer.error
        if code:
            node.pages = None
        answer = yield Opcode.SETLK, nodeid, formats.LK_IN.pack(fh, owner, 0, LAST, UNLOCK, owner, 0)
        code = code or -answer.error
    except OSError as error:
        code = error.errno or 0
    answer = yield Opcode.FLUSH, nodeid, formats.FLUSH_IN.pack(fh, owner)
    code = code or -answer.error
    if code:
        node.pages = None
    yield Opcode.RELEASE, nodeid, formats.RELEASE_IN.pack(fh, 0, 0, 0)
    if code:
        raise OSError(code, "write")
    return None


def play(seed: int, seconds: float = 20.0, *, faults: bool = True, unasked: bool = False) -> Counting:
    world = Counting(seed, faults=faults, unasked=unasked)
    world.run(seconds)
    return world


@pytest.mark.sim
@pytest.mark.parametrize("seed", range(6))
def test_nothing_that_was_added_is_missing(seed: int) -> None:
    world = play(seed, 12.0)
    assert world.done > 20


def test_locks_are_granted_here_and_the_checker_sees_when_they_are_not_recalled() -> None:
    world = play(1, 10.0, faults=False)
    assert world.here() > 20
    assert world.local
    found = 0
    for seed in range(4):
        try:
            play(seed, 10.0, faults=False, unasked=True)
        except Broken:
            found += 1
    assert found >= 2


if __name__ == "__main__":
    first, count = int(sys.argv[1]), int(sys.argv[2])
    for number in range(first, first + count):
        played = play(number, float(sys.argv[3]) if len(sys.argv) > 3 else 20.0)
        print(f"seed {number}: {played.done} added, {played.local} of them locally, {played.here()} locks granted by clients", flush=True)
