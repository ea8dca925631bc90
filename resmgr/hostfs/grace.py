"""Locks of other nodes' programs over a restart of this daemon (docs/protocol/failures.md).

When the daemon ends, however it does, the kernel's locks that it held for its clients are free. Clients take theirs again as soon as the
node is back, by files that they have opened again (REOPEN). So that nobody is quicker, it is written down, in the node's run directory,
which nodes have something locked in which files; for GRACE seconds the next daemon holds up every new lock of these files that comes from
somebody else. Programs of this machine ask its kernel for locks, not us: they do not wait.

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

logger = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds: clients find a node that is back within two, and open again what they had locked at once."""
NODE_MAX = 1024
"""Files that are noted of one node: stops a node that locks many from taking the room of others. Locks beyond have no grace period."""
ENTRIES_MAX = 16384
"""Files that are noted of all nodes: bounds the record."""
RECORD_MAX = 4 << 20
"""Bytes of the record that are read."""
TIDY_AFTER = 1.0

Entry = tuple[int, int, str]
"""st_dev, st_ino, the name of a node that has something locked there."""


class Grace:
    """What is locked from other nodes, and what was when the daemon ended before. Dispatch context; files are written in a thread."""

    def __init__(self, dispatch: Dispatch, path: str, boot: bytes, noted: Iterable[Entry]) -> None:
        """*path*: the record. *boot*: of this machine. *noted*: what `read` found there."""
        self._dispatch = dispatch
        self._path = path
        self._boot = boot.hex()
        self._to_write: list[tuple[int, list[Entry]]] = []
        self._writing = False
        self._held: dict[Hashable, Entry] = {}
        """By who holds it."""
        self._waiting: list[Callable[[], None]] = []
        self._timer: Timer | None = None
        self._noted = _within_caps(noted)
        self._of_node = Counter(node for _, _, node in self._noted)
        self._left: dict[tuple[int, int], set[str]] = {}
        for device, inode, node in self._noted:
            self._left.setdefault((device, inode), set()).add(node)
        self._end = dispatch.call_at(dispatch.now() + GRACE, self._over) if self._left else None

    def holds_up(self, device: int, inode: int, node: str, reopened: bool) -> bool:
        """Whether a new lock of *node* (empty: this one) has to wait for those who had one. *reopened*: it comes through a file that was
        opened again."""
        nodes = self._left.get((device, inode))
        return nodes is not None and not (reopened and node in nodes)

    def wait(self, then: Callable[[], None]) -> Callable[[], None]:
        """Call *then* when nobody is held up any more. What is returned takes that back."""
        self._waiting.append(then)

        def forget() -> None:
            if then in self._waiting:
                self._waiting.remove(then)

        return forget

    def took(self, place: Hashable, entry: Entry) -> None:
        """*place* holds a lock now."""
        if place in self._held or not entry[2]:
            return
        self._held[place] = entry
        if entry not in self._noted and len(self._noted) < ENTRIES_MAX and self._of_node[entry[2]] < NODE_MAX:
            self._noted.add(entry)
            self._of_node[entry[2]] += 1
            self._write(os.O_APPEND, [entry])

    def gave(self, place: Hashable) -> None:
        """*place* holds nothing any more."""
        if self._held.pop(place, None) is not None and self._timer is None:
            self._timer = self._dispatch.call_at(self._dispatch.now() + TIDY_AFTER, self._tidy)

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
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()

    def _tidy(self) -> None:
        self._timer = None
        left = ((*place, node) for place, nodes in self._left.items() for node in nodes)
        wanted = _within_caps((*left, *self._held.values()))
        if wanted != self._noted:
            self._noted = wanted
            self._of_node = Counter(node for _, _, node in wanted)
            self._write(os.O_TRUNC, list(wanted))

    def _write(self, how: int, entries: list[Entry]) -> None:
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
    """The first of *entries* that may be noted."""
    found: set[Entry] = set()
    of_node: Counter[str] = Counter()
    for entry in entries:
        if entry not in found and len(found) < ENTRIES_MAX and of_node[entry[2]] < NODE_MAX:
            found.add(entry)
            of_node[entry[2]] += 1
    return found


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
            booted, device, inode, node = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if booted == boot.hex() and isinstance(device, int) and isinstance(inode, int) and isinstance(node, str):
            found.add((device, inode, node))
    return found


def _write(path: str, boot: str, how: int, entries: list[Entry]) -> None:
    try:
        if not entries:
            os.unlink(path)
            return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | how, 0o600)
        try:
            os.write(fd, b"".join(json.dumps((boot, *entry)).encode() + b"\n" for entry in entries))
        finally:
            os.close(fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("what other nodes have locked could not be noted in %s: %s", path, error.strerror)
