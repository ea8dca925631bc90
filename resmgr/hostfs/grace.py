"""Locks of other nodes' programs over a restart of this daemon (docs/protocol/failures.md).

When the daemon ends, however it does, the kernel's locks that it held for its clients are free. Clients take theirs again as soon as the
node is back, by files that they have opened again (REOPEN). So that nobody is quicker, it is written down, in the node's run directory,
which nodes have something locked in which files; for GRACE seconds the next daemon holds up every lock of these files that is not one
set again. Programs of this machine ask its kernel for locks, not us: they do not wait. Claims of nodes that were away before (`claims`)
are noted, too, and nobody waits for these.

The record is added to when a node locks a file of which it is not noted, and written anew a second after something was given up; a lock
that is taken and given up over and over costs nothing. A file of another boot means nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable

from resmgr.dispatch import Dispatch, Timer
from resmgr.hostfs.claims import CLAIMS_MAX, NODE_MAX, Claims, File

logger = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds: clients find a node that is back within two, and open again what they had locked at once."""
ENTRIES_MAX = CLAIMS_MAX
"""Files that are noted of all nodes, NODE_MAX of one: bounds the record. Locks beyond have no grace period, and are lost."""
RECORD_MAX = 4 << 20
"""Bytes of the record that are read."""
TIDY_AFTER = 1.0
BROKEN_AFTER = 0.25
"""Seconds in which claims that do not stand any more are written down together: a node that comes back late with a thousand locks would
have the record written a thousand times. A daemon that is killed in these grants such a claim after its next start."""

Entry = tuple[int, int, str, bool]
"""st_dev, st_ino, the name of a node, whether it has something locked there now; else it has only a claim."""


class Grace:
    """What is locked from other nodes, and what was when the daemon ended before. Dispatch context; files are written in a thread."""

    def __init__(self, dispatch: Dispatch, path: str, boot: bytes, noted: Iterable[Entry], claims: Claims) -> None:
        """*path*: the record. *boot*: of this machine. *noted*: what `read` found there; it becomes *claims*."""
        self._dispatch = dispatch
        self._path = path
        self._boot = boot.hex()
        self._claims = claims
        self._to_write: list[tuple[int, list[Entry]]] = []
        self._writing = False
        self._held: dict[Hashable, Entry] = {}
        """By who holds it."""
        self._waiting: dict[File, list[Callable[[], None]]] = {}
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._tidied = float("-inf")
        self._noted = _within_caps(noted)
        self._of_node = _locked_by(self._noted)
        self._left: dict[File, set[str]] = {}
        """Who may want locks again, by file."""
        # Those that were locked last, so that they are the last to be forgotten.
        for device, inode, node, locked in sorted(self._noted, key=_is_locked):
            claims.lost((device, inode), node, dispatch.now())
            if locked:
                self._left.setdefault((device, inode), set()).add(node)
        self._end = dispatch.call_at(dispatch.now() + GRACE, self._over) if self._left else None

    def waits_for(self, device: int, inode: int) -> bool:
        """Whether a lock of a file, other than one set again, has to wait for those who had one."""
        return (device, inode) in self._left

    def done(self, device: int, inode: int, node: str) -> None:
        """*node* has all its locks of a file again."""
        file = device, inode
        nodes = self._left.get(file)
        if nodes is not None:
            nodes.discard(node)
            if not nodes:
                del self._left[file]
                self._go_on(file)

    def wait(self, file: File, then: Callable[[], None]) -> Callable[[], None]:
        """Call *then* when nobody is held up any more. What is returned takes that back."""
        self._waiting.setdefault(file, []).append(then)

        def forget() -> None:
            waiting = self._waiting.get(file, [])
            if then in waiting:
                waiting.remove(then)

        return forget

    def _go_on(self, file: File) -> None:
        for then in self._waiting.pop(file, ()):
            then()

    def took(self, place: Hashable, device: int, inode: int, node: str) -> None:
        """*place* holds a lock now, for *node*; it may be empty: this one."""
        if place in self._held or not node:
            return
        entry = self._held[place] = (device, inode, node, True)
        if entry not in self._noted and self._of_node.total() < ENTRIES_MAX and self._of_node[node] < NODE_MAX:
            self._noted.add(entry)
            self._of_node[node] += 1
            self._write(os.O_APPEND, [entry])

    def gave(self, place: Hashable) -> None:
        """*place* holds nothing any more."""
        if self._held.pop(place, None) is not None and self._timer is None:
            self._tidy_at(self._dispatch.now() + TIDY_AFTER)

    def broken(self) -> None:
        """A claim that is noted does not stand any more for whatever its node had. At once for the first of many, then together: the whole
        record is written anew."""
        now = self._dispatch.now()
        if now - self._tidied >= BROKEN_AFTER:
            self._tidy()
        elif self._timer is None or self._timer_at > now + BROKEN_AFTER:
            if self._timer is not None:
                self._timer.cancel()
            self._tidy_at(now + BROKEN_AFTER)

    def close(self) -> None:
        """The daemon ends: what is noted stays so. Idempotent."""
        for timer in self._timer, self._end:
            if timer is not None:
                timer.cancel()
        self._timer = self._end = None
        self._waiting.clear()
        if not self._writing:
            self._write_all()

    def _over(self) -> None:
        self._end = None
        self._left.clear()
        self._tidy()
        for file in list(self._waiting):
            self._go_on(file)

    def _tidy_at(self, when: float) -> None:
        self._timer_at = when
        self._timer = self._dispatch.call_at(when, self._tidy)

    def _tidy(self) -> None:
        self._tidied = self._dispatch.now()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left = ((*file, node, True) for file, nodes in self._left.items() for node in nodes)
        wanted = _within_caps((*left, *self._held.values(), *((*claim, False) for claim in self._claims.untouched())))
        if wanted != self._noted:
            self._noted = wanted
            self._of_node = _locked_by(wanted)
            self._write(os.O_TRUNC, list(wanted))

    def _write(self, how: int, entries: list[Entry]) -> None:
        if how == os.O_TRUNC:
            # It says all that was to be added.
            self._to_write.clear()
        self._to_write.append((how, entries))
        self._begin()

    def _begin(self) -> None:
        if self._to_write and not self._writing:
            self._writing = True
            self._dispatch.call_blocking(self._write_all, self._written)

    def _written(self, result: object) -> None:
        self._writing = False
        self._begin()

    def _write_all(self) -> None:
        while self._to_write:
            how, entries = self._to_write.pop(0)
            _write(self._path, self._boot, how, entries)


def _within_caps(entries: Iterable[Entry]) -> set[Entry]:
    """The first of *entries* that may be noted; what is locked is not noted as a claim besides."""
    found: set[Entry] = set()
    of_node: Counter[str] = Counter()
    for entry in entries:
        if entry not in found and (*entry[:3], True) not in found and len(found) < ENTRIES_MAX and of_node[entry[2]] < NODE_MAX:
            found.add(entry)
            of_node[entry[2]] += 1
    return found


def _locked_by(entries: Iterable[Entry]) -> Counter[str]:
    """How many files each node has something locked in."""
    return Counter(entry[2] for entry in entries if entry[3])


def _is_locked(entry: Entry) -> bool:
    return entry[3]


def read(path: str, boot: bytes) -> set[Entry]:
    """What is noted at *path* of this boot; nothing if that cannot be read. Blocks."""
    found: set[Entry] = set()
    try:
        with open(path, "rb") as file:
            lines = file.read(RECORD_MAX).splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            booted, device, inode, node, *more = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if booted == boot.hex() and isinstance(device, int) and isinstance(inode, int) and isinstance(node, str):
            found.add((device, inode, node, more[:1] != [False]))
    return found


def _write(path: str, boot: str, how: int, entries: list[Entry]) -> None:
    anew = how == os.O_TRUNC
    # The daemon may end at any time, and the old record is better than none.
    to = f"{path}.new" if anew else path
    try:
        if not entries:
            os.unlink(path)
            return
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | how, 0o600)
        try:
            os.write(fd, b"".join(json.dumps((boot, *entry)).encode() + b"\n" for entry in entries))
        finally:
            os.close(fd)
        if anew:
            os.rename(to, path)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("what other nodes have locked could not be noted in %s: %s", path, error.strerror)
