"""What was locked since a node lost its locks (docs/protocol/failures.md). Pure.

A node whose connection ended, or whose server's daemon did, may set its locks again (RECLAIM) as long as nobody had what conflicts with
them meanwhile. So each pair of file and node that lost something has a *claim*, which notes what was granted since. What the node had is
not kept: it says that itself, and after a restart, or for a file that was delegated to it, nobody else knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from resmgr.iofunc.locks import END, READ, UNLOCK, WRITE, Range, replaced

NODE_MAX: Final = 1024
"""Claims of one node: stops one that locks many files, and leaves, from taking the room of others. The oldest go, and their locks."""
CLAIMS_MAX: Final = 16384
"""Claims of all nodes."""
RANGES_MAX: Final = 64
"""Ranges that a claim notes of one kind of locks. More are as good as everything."""

File = tuple[int, int]
"""st_dev, st_ino."""
Kind = tuple[bool, bool, bool]
"""Of locks that see each other: whether the kernel is told, whether the clients may write, whether flock."""
_EVERYTHING: Final[list[Range]] = [(0, END, WRITE)]


class _Claim:
    __slots__ = ("blind", "since", "taken")

    def __init__(self) -> None:
        self.since = 0.0
        self.blind = False
        """Somebody granted locks himself: they may be anything that the kernel is told."""
        self.taken: dict[Kind, list[Range]] = {}
        """What was granted since, of READ and WRITE the stronger."""

    @property
    def untouched(self) -> bool:
        return not self.taken and not self.blind

    def of(self, kind: Kind) -> list[Range]:
        return self.taken.get(kind, _EVERYTHING if self.blind and kind[0] else [])


class Claims:
    """Of one file system. *now* is in seconds of the caller's clock."""

    def __init__(self) -> None:
        self._of: dict[File, dict[str, _Claim]] = {}
        self._files: dict[str, dict[File, None]] = {}
        """Of each node, the oldest claim first."""
        self._order: dict[tuple[File, str], None] = {}
        """All claims, the oldest first."""

    def lost(self, file: File, node: str, now: float) -> None:
        """*node* has lost what it had of *file*, which may have been everything: nobody else had anything."""
        claim = self._made(file, node, now)
        claim.blind = False
        claim.taken.clear()

    def lost_ranges(self, file: File, kind: Kind, node: str, ranges: Iterable[Range], now: float) -> None:
        """*node* has lost *ranges*. Until now they were its own, so whoever had them before does not count."""
        claim = self._made(file, node, now)
        taken = claim.of(kind)
        if taken:
            for start, end, _ in ranges:
                taken = replaced(taken, UNLOCK, start, end)
            claim.taken[kind] = taken

    def granted(self, file: File, kind: Kind, lock: int, start: int, end: int) -> bool:
        """Somebody was given a lock that he did not claim; *lock* is READ or WRITE. Whether `untouched` has less."""
        less = False
        for claim in self._of.get(file, {}).values():
            less = less or claim.untouched
            before = claim.of(kind)
            after = replaced(before, lock, start, end)
            if lock == READ:
                for low, high, held in before:
                    if held == WRITE and low < end and start < high:
                        after = replaced(after, WRITE, max(low, start), min(high, end))
            claim.taken[kind] = after if len(after) <= RANGES_MAX else _EVERYTHING
        return less

    def lent(self, file: File) -> bool:
        """Somebody grants all locks of *file* that the kernel is told of himself. Whether `untouched` has less."""
        less = False
        for claim in self._of.get(file, {}).values():
            less = less or claim.untouched
            claim.blind = True
            claim.taken = {kind: taken for kind, taken in claim.taken.items() if not kind[0]}
        return less

    def allows(self, file: File, kind: Kind, node: str, lock: int, start: int, end: int) -> bool:
        """Whether *node* may set a lock again."""
        claim = self._of.get(file, {}).get(node)
        if claim is None:
            return False
        return not any(low < end and start < high and (lock == WRITE or held == WRITE) for low, high, held in claim.of(kind))

    def others(self, file: File, node: str, after: float) -> bool:
        """Whether anybody but *node* has a claim of *file* that is newer than *after*."""
        return any(who != node and claim.since > after for who, claim in self._of.get(file, {}).items())

    def untouched(self) -> Iterator[tuple[int, int, str]]:
        """File and node of each claim that still stands for whatever the node had; the newest first."""
        for file, node in reversed(self._order):
            if self._of[file][node].untouched:
                yield (*file, node)

    def _made(self, file: File, node: str, now: float) -> _Claim:
        claims = self._of.setdefault(file, {})
        claim = claims.get(node)
        if claim is None:
            claim = claims[node] = _Claim()
        claim.since = now
        files = self._files.setdefault(node, {})
        files.pop(file, None)
        files[file] = None
        self._order.pop((file, node), None)
        self._order[file, node] = None
        if len(files) > NODE_MAX:
            self._forget(next(iter(files)), node)
        if len(self._order) > CLAIMS_MAX:
            self._forget(*next(iter(self._order)))
        return claim

    def _forget(self, file: File, node: str) -> None:
        del self._order[file, node]
        del self._of[file][node]
        if not self._of[file]:
            del self._of[file]
        del self._files[node][file]
        if not self._files[node]:
            del self._files[node]
