"""Random histories of two clients and a local process of the server, against docs/protocol/coherence.md.

    python -m tests.resmgr.fuse.test_history FIRST COUNT [SECONDS]

What the server holds is written down at each change. What a client sees, by a stat, a listing, or an open and read, must be what the server
held at some moment that the page allows: for contents of a file from when the open began, for names and attributes `BOUND` before that,
without the link up to a second after its last sign of life; never older than what the client itself did; and never what the server never
held.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import pytest

from resmgr.channel import Kernel
from resmgr.fuse.options import FuseOptions
from resmgr.testing.memfs import MemFs
from resmgr.testing.memtree import Inode
from resmgr.testing.virtual import VirtualDispatch
from tests.resmgr.fuse.caching import SUSPECT, Asking, CachingKernel, Link
from tests.suites.journal import Broken, Journal, Look

NAMES = [b"n%d" % number for number in range(8)]
DELAY = 0.01
BOUND = 0.05
"""The way of an event: at most three messages of DELAY (an answer under way, the next question, its answer) and the server's pace."""


class History:
    """One world from one seed. *mute*: the server tells no changes, as if that were broken; *unasked*: it recalls no delegations."""

    def __init__(self, seed: int, *, mute: bool = False, unasked: bool = False, faults: bool = True) -> None:
        self.rng = random.Random(f"history/{seed}")
        self.world = VirtualDispatch(seed)
        self.dispatch = self.world.node("here")
        self.kernel = Kernel(self.dispatch, "here")
        self.fs = MemFs(self.kernel)
        self.journal = Journal()
        self._entries: dict[bytes, int] = {}
        self._held: dict[int, bytes] = {}
        self.seen = 0
        self.mute = mute
        self.unasked = unasked
        self.spares = bool(seed % 2)
        """As hostfs: a client is not told what it did itself, which its answers say."""
        self.calm = bool(seed & 2)
        """Few files are mostly read, over and over."""
        self.scans = bool(seed & 8)
        """Programs read all there is, one after another."""
        self.names = NAMES if self.scans else NAMES[:2] if self.calm else NAMES[:4]
        self.pauses = (0.0, 0.02, 0.06) if self.scans else (0.0, 0.0005, 0.003, 0.01) if self.calm else (0.0, 0.0005, 0.003, 0.02, 0.1)
        for name in self.names if self.scans else NAMES[:1]:
            self.fs.add(b"d/" + name, b"first")
        self._listen()
        # What is not leased is believed for no time at all: then every stale answer comes of a lease.
        self.strict = bool(seed & 4)
        """Without delegations, an open finds what a name leads to then; else what it led to a moment before."""
        options = FuseOptions(attr_valid=0, entry_valid=0, negative_valid=0, delegations=0 if self.strict else 1 if self.scans else 64)
        self.clients = [_Client(self, number, options) for number in range(2)]
        self.faults = faults
        self._count = 0

    def _listen(self) -> None:
        watch = self.fs.watch()
        watch.muted = self.mute
        watch.spares = self.spares
        self.fs.delegate().muted = self.unasked
        name, inode = self.fs.on_name, self.fs.on_inode
        assert name is not None
        assert inode is not None

        def on_name(directory: Inode, what: bytes, kind: int) -> None:
            name(directory, what, kind)
            self._write_down()

        def on_inode(what: Inode, kind: int) -> None:
            inode(what, kind)
            self._holds(what)
            self._write_down()

        self.fs.on_name, self.fs.on_inode = on_name, on_inode
        self._write_down()

    def _write_down(self) -> None:
        directory = self.fs.root.entries.get(b"d")
        if directory is None:
            return
        now, there = self.dispatch.now(), directory[0].entries
        for inode, _ in there.values():
            self._holds(inode)
        for name in NAMES:
            ino = there[name][0].ino if name in there else None
            if ino != self._entries.get(name) or name not in self.journal.names:
                self.journal.named(name, now, now, ino)
        self._entries = {name: inode.ino for name, (inode, _) in there.items()}

    def _holds(self, inode: Inode) -> None:
        """Also of those that have no name any more, or another one."""
        now, data = self.dispatch.now(), bytes(inode.data)
        if self._held.get(inode.ino) != data:
            self._held[inode.ino] = data
            self.journal.held(inode.ino, now, now, data)

    def unique(self) -> bytes:
        """Contents that were never written before."""
        self._count += 1
        return b"%d;" % self._count * self.rng.randrange(1, 40)

    def run(self, seconds: float) -> None:
        for client in self.clients:
            client.go_on()
        self._locally()
        if self.faults:
            self._trouble()
        self.world.run_for(seconds)
        for client in self.clients:
            client.link.heal()
        self.world.run_for(10)

    def _locally(self) -> None:
        """A process of the server changes something."""
        rng = self.rng
        directory = self.fs.find(b"d")
        kind, name = rng.randrange(6), rng.choice(self.names)
        if kind < 3 and name in directory.entries:
            # It waits like any other program while clients are asked.
            self._write(directory.entries[name][0])
            return
        if kind < 3:
            self.fs.add(b"d/" + name, self.unique())
        elif name in directory.entries and kind == 3:
            self.fs.drop(directory, name)
        elif name in directory.entries and kind == 4:
            # Over another, as editors do: in one step, which is written down when it is done.
            other = rng.choice(self.names if self.scans else NAMES[:4])
            if other != name:
                inode, cookie = directory.entries.pop(name)
                replaced = directory.entries.get(other)
                directory.entries[other] = (inode, cookie)
                if replaced is not None:
                    replaced[0].nlink -= 1
                assert self.fs.on_name is not None
                self.fs.touch(directory, data=True)
                self.fs.touch(inode)
                self.fs.on_name(directory, name, 0x40)
                self.fs.on_name(directory, other, 0x80)
        self._next()

    def _next(self) -> None:
        self.dispatch.call_at(self.dispatch.now() + self.rng.expovariate(8 if self.scans else 3 if self.calm else 20), self._locally)

    def _write(self, inode: Inode) -> None:
        data = self.unique()
        delegations = self.fs.delegations
        assert delegations is not None

        def change() -> None:
            inode.data[:] = data
            self.fs.touch(inode, data=True)
            self._next()

        delegations.locally(inode, change)

    def _trouble(self) -> None:
        rng = self.rng
        if rng.randrange(6):
            link = rng.choice(self.clients).link
            if link.cut_at is None:
                link.cut()
                self.dispatch.call_at(self.dispatch.now() + rng.choice((0.2, 0.9, 1.5, 2.9, 3.5, 6)), link.heal)
        else:
            self._restart()
        self.dispatch.call_at(self.dispatch.now() + rng.uniform(1, 6), self._trouble)

    def _restart(self) -> None:
        chid, old = self.fs.manager.channel.chid, self.fs
        old.destroy()
        self.fs = MemFs(self.kernel, chid=chid)
        self.fs.root = old.root
        self.fs._next_ino, self.fs._change, self.fs._next_cookie = old._next_ino, old._change, old._next_cookie
        self._listen()


class _Client:
    """Programs of one client, one after another, and what they saw."""

    def __init__(self, history: History, number: int, options: FuseOptions) -> None:
        self.history = history
        self.rng = random.Random(f"{history.rng.random()}/{number}")
        self.link = Link(history.dispatch, random.Random(f"link/{history.rng.random()}"), DELAY)
        self.kernel = CachingKernel(history.kernel, self.link, history.fs.target, options)
        # All of them change all the time.
        self.kernel.machine.delegated.quiet = 0.0
        self.last_cut = float("-inf")
        self._open: list[tuple[int, int]] = []
        """The directory, while what is in it is read."""
        self._to_read: list[bytes] = []

    def go_on(self) -> None:
        history, rng = self.history, self.rng
        began = history.dispatch.now()
        if self.link.cut_at is not None:
            self.last_cut = self.link.cut_at
        name = rng.choice(history.names)
        kind = 4 if history.calm and rng.randrange(10) else rng.randrange(12)
        operation: Asking
        check: Callable[[object, float], None]
        if self._open:
            if self._to_read:
                name = self._to_read.pop(0)
                operation, check = self.kernel.read(b"d", name), lambda seen, since: self._read(name, seen, since)
            else:
                operation, check = self.kernel.closedir(*self._open.pop()), lambda seen, since: None
        elif history.scans and rng.randrange(3):
            operation, check = self.kernel.listdir(b"d", self._open), self._scan
        elif kind < 4:
            operation, check = self.kernel.stat(b"d", name), lambda seen, since: self._stat(name, seen, since)
        elif kind < 7:
            operation, check = self.kernel.read(b"d", name), lambda seen, since: self._read(name, seen, since)
        elif kind < 9:
            operation, check = self.kernel.listdir(b"d"), self._list
        elif kind < 10:
            data = history.unique()
            operation, check = self.kernel.write(b"d", name, data), lambda seen, since: self._did(name, data, since)
        elif kind < 11:
            operation, check = self.kernel.unlink(b"d", name), lambda seen, since: self._did(name, None, since)
        else:
            other = rng.choice([other for other in (history.names if history.scans else NAMES[:4]) if other != name])
            operation, check = self.kernel.rename(b"d", name, other), lambda seen, since: self._did(name, None, since)

        def done(result: object) -> None:
            if isinstance(result, OSError):
                # An error is always allowed to be told where there was trouble; what it did, if it did anything, is not known.
                pass
            else:
                history.seen += 1
                check(result, began)
            history.dispatch.call_at(history.dispatch.now() + rng.choice(history.pauses), self.go_on)

        self.kernel.run(operation, done)

    def _bound(self, began: float) -> float:
        """How old what is leased may be at *began*."""
        cut = self.link.cut_at
        if cut is None:
            cut = self.last_cut
            if began - cut > SUSPECT + 4 * BOUND + 10:
                return BOUND
        return BOUND + max(0.0, min(began - cut, SUSPECT)) if began >= cut else BOUND

    def _look(self, began: float) -> Look:
        return Look(began, self.history.dispatch.now(), self._bound(began), self)

    def _broken(self, what: str, possible: object) -> Broken:
        now = self.history.dispatch.now()
        return Broken(f"seed {self.history.world.seed}, at {now:.4f}: {what}; possible: {possible}")

    def _stat(self, name: bytes, seen: object, began: float) -> None:
        sizes = self.history.journal.sizes(name, self._look(began))
        if seen not in sizes:
            raise self._broken(f"stat of {name.decode()} says {seen}", sizes)

    def _read(self, name: bytes, seen: object, began: float) -> None:
        look = self._look(began)
        if seen is None:
            if not self.history.journal.absent(name, look):
                raise self._broken(f"{name.decode()} is not there", self.history.journal.objects(name, look))
        elif seen not in (possible := self.history.journal.texts(name, look, believed=not self.history.strict)):
            raise self._broken(f"{name.decode()} reads {seen!r}", possible)

    def _list(self, seen: object, began: float) -> None:
        # A listing is not of one moment; but each name in it is.
        assert isinstance(seen, list)
        for name in NAMES:
            there = self.history.journal.there(name, self._look(began))
            if (name in seen) not in there:
                raise self._broken(f"{name.decode()} is {'listed' if name in seen else 'not listed'}", there)

    def _scan(self, seen: object, began: float) -> None:
        self._list(seen, began)
        assert isinstance(seen, list)
        self._to_read = [name for name in seen if name in NAMES]

    def _did(self, name: bytes, data: bytes | None, began: float) -> None:
        """This client changed *name*: what it sees of it from now on is not older than that."""
        journal = self.history.journal
        for change in journal.names[name].changes:
            if change.began >= began and change.value is None and data is None:
                change.by = self
                return
        for ino in journal.objects(name, Look(began, self.history.dispatch.now())):
            for held in () if ino is None else journal.data[ino].changes:
                if held.began >= began and held.value == data:
                    held.by = self


def play(seed: int, seconds: float = 20.0, *, mute: bool = False, unasked: bool = False, faults: bool = True) -> History:
    history = History(seed, mute=mute, unasked=unasked, faults=faults)
    history.run(seconds)
    return history


@pytest.mark.sim
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 8, 11])
def test_history(seed: int) -> None:
    history = play(seed, 12.0)
    assert history.seen > 50


def test_leases_spare_questions_and_the_checker_sees_when_they_are_not_told() -> None:
    """Without the events the same histories must fail, or the checker sees nothing."""
    found = 0
    for seed in range(3):
        try:
            play(seed, 4.0, mute=True, faults=False)
        except Broken:
            found += 1
    assert found >= 2
    history = play(0, 4.0, faults=False)
    hits = sum(client.kernel.machine.drops["lease_hits"] for client in history.clients)
    assert hits > 20


def test_delegations_spare_opens_and_the_checker_sees_when_they_are_not_recalled() -> None:
    found = 0
    for seed in range(120):
        if seed & 2 and not seed & 4 and found < 2:
            try:
                play(seed, 20.0, unasked=True, faults=False)
            except Broken:
                found += 1
    assert found == 2
    history = play(2, 10.0, faults=False)
    assert sum(client.kernel.machine.drops["delegated_opens"] for client in history.clients) > 50


def test_files_are_opened_ahead_and_the_checker_sees_when_they_are_not_recalled() -> None:
    found = 0
    for seed in range(120):
        if seed & 8 and not seed & 4 and not found:
            try:
                play(seed, 20.0, unasked=True, faults=False)
            except Broken:
                found += 1
    assert found
    history = play(8, 10.0, faults=False)
    assert sum(client.kernel.machine.drops["open_ahead_hits"] for client in history.clients) > 50


if __name__ == "__main__":
    first, count = int(sys.argv[1]), int(sys.argv[2])
    for number in range(first, first + count):
        played = play(number, float(sys.argv[3]) if len(sys.argv) > 3 else 20.0)
        print(f"seed {number}: {played.seen} seen, {sum(len(one.changes) for one in played.journal.names.values())} changes", flush=True)
