"""Files opened ahead: what a program that reads one file of a directory after another will open next (docs/decisions/fuse-open-ahead.md).

An OPEN waits for its server, since only that knows what was written until then. A delegation (docs/protocol/delegation.md) says so as well:
nobody changes the file before this mount was asked. So a thread that goes through a directory's files, as cp -r, tar, grep -r and compilers
do, has the next ones opened for it, each with its first bytes and a request for a delegation. What is delegated is what the server would
say when the program comes; it is handed out then, and closed with the program's last close. What is not is closed at once.

Which come next: files follow each other as they were listed, by their names, or by their inode numbers (`sequence`); directories, and files
with several names, are passed over.
A thread that has the directory open is expected to go on from its first file, another one from its third.

Handed out is what

- was asked for at most `VALID` seconds ago, and delegated, and was not recalled since;
- lies in a directory that is leased as it was then, in which nothing of that name was heard of, or changed from here;
- was opened for the same user, for no more than reading.

Otherwise the server is asked as ever.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from itertools import islice
from stat import S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection, Pending
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse.entries import Found
from resmgr.fuse.formats import O_ACCMODE, O_APPEND, O_SYNC, O_TRUNC, AttrTuple
from resmgr.fuse.inode import Node, same_type
from resmgr.fuse.lease import Lease
from resmgr.fuse.listed import Chunk
from resmgr.fuse.sequence import Order, Sequence
from resmgr.fuse.walk import CONNECT, ENTRY_MAX
from resmgr.iomsg import OPEN, OPEN_DELEGATE, REQUEST, Connect, Io

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.request import Request
    from resmgr.fuse.servers import User

VALID: Final = 0.5
"""Seconds for which a file that was opened ahead may be handed out."""
WINDOW_FIRST: Final = 2
"""Files opened ahead of one thread at first. They double when the thread had to wait all the same, to `FuseOptions.open_ahead` at most."""
OPEN_MAX: Final = 32
"""Files opened ahead in one mount, each with at most `FuseOptions.prefetch` bytes."""
RUNS_MAX: Final = 16
"""Threads, each with a directory, whose opens are remembered; the one used longest ago goes."""
STEPS_MIN: Final = 2
"""Files that followed the one before, after which a thread that does not have the directory open is expected to go on."""
PASSED_MAX: Final = 16
"""Names between two files that are passed over."""
KNOWN_MAX: Final = 1 << 14
"""Names of a directory beyond which they are not looked through: it would take the daemon too long."""
NAMES_PER_OPEN: Final = 64
"""Names that are looked through anew for each OPEN, on the average: bounds what a thread costs that reads files of a large directory out of
order."""
REFUSED_MAX: Final = 4
"""Files of a run that were not delegated, without one between that was, after which no more are opened ahead of it for `REFUSED_OPENS`."""
REFUSED_OPENS: Final = 256
"""Files that the thread opens itself before another try: its server may have been busy."""
_MORE: Final = O_ACCMODE | O_TRUNC | O_SYNC | O_APPEND
"""Open flags of which what is opened ahead has none."""


class Foreseen:
    """A file that was opened ahead: on the way until `found`; `taken` is what waits for it then."""

    __slots__ = ("at", "attr", "connection", "data", "dead", "directory", "found", "lease", "name", "pending", "run", "taken", "user")

    def __init__(self, run: Run, directory: Node, name: bytes, lease: Lease, connection: Connection, user: User, at: float) -> None:
        self.run = run
        self.directory = directory
        self.name = name
        self.lease = lease
        self.connection = connection
        self.user = user
        self.at = at
        self.pending: Pending | None = None
        self.found: Found | None = None
        self.attr: AttrTuple | None = None
        self.dead = False
        """Nobody is to have it: what comes is closed."""
        self.taken: Callable[[], None] | None = None


class Run:
    """One thread that opens files of one directory."""

    __slots__ = (
        "ahead",
        "chunk",
        "known",
        "last",
        "listed",
        "opens",
        "order",
        "refused",
        "refused_until",
        "rests",
        "steps",
        "used",
        "window",
    )

    def __init__(self) -> None:
        self.listed: Sequence | None = None
        """Names of the directory, as far as they are known; None: nobody needed them yet."""
        self.chunk: Chunk | None = None
        """The last part of the listing they were read from, if they were."""
        self.known = 0
        """How many names were known then."""
        self.opens = 0
        self.rests = 0
        """Up to how many `opens` names are not read again."""
        self.last: bytes | None = None
        """The file that was opened last."""
        self.order = Order.LISTED
        self.steps = 0
        """Files in a row that followed the one before."""
        self.ahead: dict[bytes, Foreseen] = {}
        self.window = WINDOW_FIRST
        self.refused = 0
        self.refused_until = 0
        """Up to how many `opens` nothing is opened ahead."""
        self.used = 0.0


class OpenAhead:
    """All runs of one mount. Counts in `Core.drops`: `open_ahead_asked`, `open_ahead_hits`, `open_ahead_unused`, `open_ahead_refused`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._most = core.options.open_ahead if core.options.delegations else 0
        self._runs: dict[tuple[int, Node], Run] = {}
        """By thread and directory, the one used last at the end."""
        self.places: dict[tuple[Node, bytes], Foreseen] = {}
        """Everything that was opened ahead and may be handed out."""
        core.awake.keep(self._tidy, self._all)

    def __len__(self) -> int:
        """Files that are opened ahead."""
        return len(self.places)

    # ---- asked by the operations

    def take(self, request: Request, flags: int, then: Callable[[Found, AttrTuple, float], None], otherwise: Callable[[], None]) -> bool:
        """Whether the OPEN *request* with *flags* was expected: *then* is called with what was opened, its attributes and when it was asked
        for, at once or when that is known, or *otherwise* if the server has to be asked after all."""
        node = request.node
        if node.parent is None:
            return False
        one = self.places.get((node.parent, node.name))
        if one is None:
            return False
        if flags & _MORE:
            # It would be held up by this.
            self._drop(one, True)
            return False
        if one.user != request.user:
            return False
        if one.found is None and request.at - one.at <= VALID:
            one.run.window = min(one.run.window * 2, self._most)
            self._remove(one)
            request.connection = one.connection
            # Signals, aborts and deadlines take it for the request's own message.
            request.pending = one.pending
            one.taken = lambda: self._arrived(request, one, then, otherwise)
            return True
        if not self._good(one, node, request.at):
            self._drop(one)
            return False
        self._remove(one)
        self._hand_out(one, then)
        return True

    def opened(self, request: Request, flags: int) -> None:
        """A file is opened by *request*'s thread, with *flags*. What will follow is opened."""
        node = request.node
        directory = node.parent
        if flags & _MORE or not request.pid or directory is None or not self._most or node.via is not None:
            return
        key = (request.pid, directory)
        run = self._runs.pop(key, None)
        if run is None:
            run = Run()
            if len(self._runs) >= RUNS_MAX:
                self._throw(self._runs.pop(next(iter(self._runs))))
        self._runs[key] = run
        before, run.last, run.used = run.last, node.name, request.at
        run.opens += 1
        self._core.awake.watch()
        lists = run.steps < STEPS_MIN and self._lists(request.pid, directory)
        if run.refused >= REFUSED_MAX and run.opens >= run.refused_until:
            run.refused = REFUSED_MAX - 1
        if run.refused >= REFUSED_MAX or (before is None and not lists):
            return
        connection = directory.server.connections.get(request.user)
        if connection is None or not self._follows(run, directory, connection, before, node.name):
            self._throw(run)
            run.window, run.steps = WINDOW_FIRST, 0
            return
        run.steps += 1
        if lists or run.steps >= STEPS_MIN:
            self._ask(run, request, directory, connection)

    def recalled(self, connection: Connection, ino: int) -> None:
        """Somebody wants to change the file."""
        for one in [one for one in self.places.values() if one.connection is connection and one.attr is not None and one.attr[0] == ino]:
            self._drop(one, True)

    def changed(self, directory: Node, name: bytes) -> None:
        """Something of that name is about to be changed from here, or was."""
        one = self.places.get((directory, name))
        if one is not None:
            self._drop(one, True)

    def forget_connection(self, connection: Connection) -> None:
        """The server behind *connection* is not there any more."""
        for one in [one for one in self.places.values() if one.connection is connection]:
            self._drop(one)

    def close(self) -> None:
        """The mount is gone. Idempotent."""
        self._all()
        self._runs.clear()

    # ---- what follows

    def _lists(self, pid: int, directory: Node) -> bool:
        """Whether thread *pid* has the directory open, so that it is probably gone through."""
        return any(one.pid == pid for one in self._core.opened.get(directory, ()))

    def _follows(self, run: Run, directory: Node, connection: Connection, before: bytes | None, name: bytes) -> bool:
        """Whether *name* is the next file after *before*, or the first; in which order that is is remembered."""
        for _ in range(2):
            listed = run.listed
            if listed is not None and name in listed and (listed.start is None if before is None else before in listed):
                for order in [run.order, *Order]:
                    first = 0 if before is None else listed.at(before, order) + 1
                    last = listed.at(name, order)
                    if not first <= last <= first + PASSED_MAX:
                        continue
                    between = listed.names(order)[first:last]
                    if not any(self._readable(directory, connection, one) for one in between):
                        run.order = order
                        return True
                if listed.whole:
                    return False
            if not self._read_names(run, directory, connection, before):
                return False
        return False

    def _read_names(self, run: Run, directory: Node, connection: Connection, start: bytes | None) -> bool:
        """Read the names of the directory that are known, those from *start* on if there are many; whether there may be others than before.
        What was listed for LOOKUPs comes in few large parts; names that the kernel asked for are read again when there are a half more."""
        if run.opens < run.rests:
            return False
        record = None if not directory.ahead else directory.ahead.get(connection)
        chunks = [] if record is None else record.chunks
        if start is not None and not any(start in one.offsets for one in chunks):
            chunks = []
        chunk = chunks[0] if chunks else None
        known = sum(len(one.offsets) for one in chunks) if chunks else len(directory.children)
        listed = run.listed
        again = listed is not None and not listed.whole and listed.start != start
        if (chunk is run.chunk and (chunk is not None or known <= run.known * 1.5) and not again) or known > KNOWN_MAX:
            return False
        run.chunk, run.known, run.rests = chunk, known, run.opens + known // NAMES_PER_OPEN
        if chunks:
            numbers = {name: ino for one in reversed(chunks) for name, ino in one.numbers()}
        else:
            numbers = {name: child.ino for name, child in directory.children.items()}
        run.listed = Sequence(numbers, start)
        return True

    def _readable(self, directory: Node, connection: Connection, name: bytes) -> bool:
        """Whether *name* is, as far as is known, a file that may be opened ahead."""
        child = directory.children.get(name)
        if child is not None:
            attr = child.attr
        else:
            record = None if not directory.ahead else directory.ahead.get(connection)
            known = (
                None if record is None else record.find(name, self._core.dispatch.now() - self._core.options.attr_valid, self._core.logs)
            )
            if known is None:
                return False
            attr = known[0]
        return S_IFMT(attr[1]) == S_IFREG and attr[2] <= 1

    def _following(self, run: Run, directory: Node, connection: Connection, name: bytes) -> Iterator[bytes]:
        """Files that are probably opened after *name*, in that order."""
        listed = run.listed
        if listed is None or name not in listed:
            return
        passed = 0
        names = listed.names(run.order)
        for position in range(listed.at(name, run.order) + 1, len(names)):
            one = names[position]
            if self._readable(directory, connection, one):
                passed = 0
                yield one
            elif (passed := passed + 1) > PASSED_MAX:
                return

    def _ask(self, run: Run, request: Request, directory: Node, connection: Connection) -> None:
        """Open what follows the request's file, once half of what was is used up."""
        window = min(run.window, self._most)
        for _ in range(2):
            expected = list(islice(self._following(run, directory, connection, request.node.name), window))
            if len(expected) == window or not self._read_names(run, directory, connection, request.node.name):
                break
        for name in [name for name in run.ahead if name not in expected]:
            self._drop(run.ahead[name])
        if len(run.ahead) * 2 > window:
            return
        core = self._core
        lease = directory.lease
        handle = directory.handles.get(connection)
        if lease is None:
            if core.leases.wanted(directory) and expected:
                # It was never met by a message that would have asked for that.
                core.leases.ask(directory, request.node, connection)
            return
        if (
            not core.delegated.takes_ahead()
            or not lease.live
            or not lease.whole
            or lease.connection is not connection
            or handle is None
            or connection.closed
        ):
            return
        for name in expected:
            if name not in run.ahead and len(self.places) < OPEN_MAX:
                self._open(run, directory, name, lease, connection, handle, request)

    def _open(self, run: Run, directory: Node, name: bytes, lease: Lease, connection: Connection, handle: int, request: Request) -> None:
        core = self._core
        now = core.dispatch.now()
        known = directory.children.get(name)
        if (directory, name) in self.places or lease.overtaken(name, now - core.delegated.quiet) or lease.own.get(name):
            return
        prefetch = core.options.prefetch
        if known is not None:
            if not lease.has(known) or core.delegated.holds(known) or known.via is not None or known.files:
                # It is opened without its server, or somebody may write it.
                return
            if known.pages is not None:
                prefetch = 0
        directory.used = now
        one = Foreseen(run, directory, name, lease, connection, request.user, now)
        run.ahead[name] = self.places[directory, name] = one
        core.drops["open_ahead_asked"] += 1
        message = REQUEST.pack(CONNECT, Connect.OPEN, OPEN_DELEGATE, handle) + OPEN.pack(0, 0, prefetch) + name
        one.pending = connection.submit((message,), ENTRY_MAX + prefetch, lambda status, reply: self._came(one, status, reply))

    def _came(self, one: Foreseen, status: int, reply: Buffer) -> None:
        core = self._core
        if not status:
            try:
                found = core.parse_entry(one.connection, one.user, reply)
            except BadMessage:
                core.drops["bad_reply"] += 1
            else:
                self._opened_as(one, found)
        if one.found is None and not one.dead:
            one.dead = True
            one.run.refused += 1
            one.run.refused_until = one.run.opens + REFUSED_OPENS
            core.drops["open_ahead_refused"] += 1
            if one.taken is None:
                self._remove(one)
        if one.taken is not None:
            taken, one.taken = one.taken, None
            taken()

    def _opened_as(self, one: Foreseen, found: Found) -> None:
        """It was opened: kept if it is delegated, else closed."""
        core = self._core
        if found.handle:
            core.handles.close_later(found.connection, found.handle)
        attr = found.attr
        regular = attr is not None and S_IFMT(attr[1]) == S_IFREG and found.connection is one.connection
        if attr is None or not found.delegated or not regular or one.dead or core.delegated.recalled_since(one.connection, attr[0], one.at):
            self._close(found)
            return
        one.attr = attr
        one.found = found._replace(data=bytes(found.data))
        one.run.refused = 0

    # ---- handed out

    def _arrived(
        self, request: Request, one: Foreseen, then: Callable[[Found, AttrTuple, float], None], otherwise: Callable[[], None]
    ) -> None:
        """What *request* waits for has come, or will not."""
        request.pending = None
        if request.answered or one.found is None or not self._good(one, request.node, request.at):
            if one.found is not None:
                self._close(one.found)
            if not request.answered:
                if request.interrupted:
                    self._core.error(request, errno.EINTR)
                    return
                request.at = self._core.dispatch.now()
                otherwise()
            return
        self._hand_out(one, then)

    def _hand_out(self, one: Foreseen, then: Callable[[Found, AttrTuple, float], None]) -> None:
        assert one.found is not None
        assert one.attr is not None
        self._core.drops["open_ahead_hits"] += 1
        then(one.found, one.attr, one.at)

    def _good(self, one: Foreseen, node: Node, now: float) -> bool:
        """Whether what was opened is what the server would say of *node*."""
        core = self._core
        lease, attr = one.lease, one.attr
        return (
            attr is not None
            and now - one.at <= VALID
            and attr[0] == node.ino
            and same_type(node, attr)
            and core.delegated.believes(node, lease, one.connection, one.at)
            and core.awake.check()
            and not one.dead
        )

    # ---- the end of it

    def _remove(self, one: Foreseen) -> None:
        self.places.pop((one.directory, one.name), None)
        one.run.ahead.pop(one.name, None)

    def _drop(self, one: Foreseen, waits: bool = False) -> None:
        """Nobody is to have it. *waits*: somebody may wait for its being closed."""
        self._remove(one)
        if one.dead:
            return
        one.dead = True
        self._core.drops["open_ahead_unused"] += 1
        if one.found is not None:
            self._close(one.found, None if waits else (one.directory, one.name))

    def _close(self, found: Found, place: tuple[Node, bytes] | None = None) -> None:
        """At once: of what is delegated others may wait for its close; with *place*, its name, when somebody does, or a moment later."""
        if not found.ocb or found.connection.closed:
            return
        if place is None:
            found.connection.submit((REQUEST.pack(Io.CLOSE, 0, 0, found.ocb),), 0, _ignore)
        else:
            self._core.handles.close_lazily(found.connection, found.ocb, place)

    def _throw(self, run: Run) -> None:
        for one in list(run.ahead.values()):
            self._drop(one)

    def _all(self) -> None:
        for one in list(self.places.values()):
            self._drop(one)

    def _tidy(self, now: float) -> bool:
        """What nobody came for is closed, and who does not read any more is forgotten."""
        for one in [one for one in self.places.values() if now - one.at > VALID]:
            if one.found is None and one.pending is not None:
                # It may hang, and keep a thread of its server.
                one.pending.unblock()
            self._drop(one)
        for key in [key for key, run in self._runs.items() if now - run.used > VALID and not run.ahead]:
            del self._runs[key]
        return bool(self._runs)


def _ignore(status: int, reply: Buffer) -> None:
    """Nobody is to be told: if the server does not know it, it is gone."""
