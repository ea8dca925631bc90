"""Removals that the kernel was told are done while their messages are still on the way (docs/decisions/fuse-removals.md).

`Removals` decides which: those of which nothing that is known here speaks against it. `Removing` is the account of one directory. Requests
that could notice, or that others could take for a sign (`traits.AFTER_REMOVALS`), wait for those that are on the way when they come.

The message is sent by a request of its own, which the kernel knows nothing of; what it makes of the nodes, and what may be believed of it,
comes with its answer, as for a removal that is waited for. Until then its name is being changed from here (`changing`), so nothing of it is
believed, and nobody is told.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from errno import EAGAIN, EHOSTDOWN, ENOENT, ENOSYS
from stat import S_IFLNK, S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.dispatch import Buffer, Timer
from resmgr.fuse import changing, formats, owned
from resmgr.fuse.arrivals import Arrivals
from resmgr.fuse.formats import BODY, O_APPEND, O_DSYNC, O_TRUNC, WRITE_CACHE, Opcode, name_at
from resmgr.fuse.lease import single
from resmgr.fuse.request import RESEND_AFTER, RESEND_FOR, Request, told
from resmgr.fuse.walk import CONNECT, ENTRY_MAX, RETRIES_MAX
from resmgr.iomsg import REMOVE, Connect

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.formats import AttrTuple
    from resmgr.fuse.inode import Node
    from resmgr.fuse.lease import Lease
    from resmgr.fuse.servers import Server, User

logger = logging.getLogger(__name__)

BURST: Final = 1.0
"""Seconds after a removal in which the same user's next one is one of many."""
ROOMY: Final = 1 << 16
"""Bytes from which on a file's removal is waited for: it may be what makes room for the next write."""
USERS_MAX: Final = 256
"""Users of whom it is known when they removed something. Stops ever new ones from filling memory; errors of a directory, too."""
WARY: Final = 60.0
"""Seconds after one failed in which those in its directory are waited for."""
LINGER: Final = 3.0
"""Seconds for which the connections of a mount that is gone are kept for those that are on the way."""
_PLAIN: Final = frozenset((S_IFREG, S_IFLNK))
_BY_NAME: Final = frozenset((int(Opcode.LOOKUP), int(Opcode.UNLINK)))
_LOOKUP: Final = int(Opcode.LOOKUP)
_OPEN: Final = int(Opcode.OPEN)
_UNLINK: Final = int(Opcode.UNLINK)
_WRITE: Final = int(Opcode.WRITE)
_FLUSH: Final = int(Opcode.FLUSH)
_OF_DIRECTORY: Final = frozenset(
    map(int, (Opcode.LOOKUP, Opcode.UNLINK, Opcode.GETATTR, Opcode.STATX, Opcode.OPENDIR, Opcode.READDIR, Opcode.READDIRPLUS))
)
"""Of those that wait, they do so for what is removed from their directory; `_BY_NAME` for their name; others for all of their server."""
_CLOSING: Final = frozenset((_FLUSH, int(Opcode.RELEASE)))
"""Wait if something was locked through the file; FLUSH also if it was written. OPEN waits if it empties the file, WRITE if it is seen at
once by who waits for it: at the end of a file, by O_SYNC, to a FIFO or device."""


class Failed:
    """A removal that was said to be done and failed: of *name*, the file *ino*, which is perhaps still there."""

    __slots__ = ("at", "code", "ino", "name")

    def __init__(self, name: bytes, ino: int, code: int, at: float) -> None:
        self.name = name
        self.ino = ino
        self.code = code
        self.at = at


class Removing(Arrivals):
    """Of one directory: `names` are on the way to be removed; `errors` are those that their users were not told of yet; `wary`: until when
    none more begins, since one failed."""

    __slots__ = ("errors", "names", "wary")

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[bytes, int] = {}
        self.errors: dict[User, Failed] = {}
        self.wary = 0.0


class Sent(Arrivals):
    """Of one server: those on the way, by their numbers."""

    __slots__ = ("removals",)

    def __init__(self) -> None:
        super().__init__()
        self.removals: dict[int, _Removal] = {}


class Removals:
    """Of one mount. Counts in `Core.drops`: `removed_behind`, `removals_failed`, `removals_again`, `waited_for_removals`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.limit = core.options.removals
        self._sent: dict[Server, Sent] = {}
        self.count = 0
        """On the way."""
        self._closing: Callable[[], None] | None = None
        self._last: dict[User, tuple[float, Node]] = {}
        """When each user's last removal was done, and where."""
        self.plain: set[Server] = set()
        """Servers that know no REMOVE."""
        self._linger: Timer | None = None
        self.over = False
        """The mount's connections are closed."""

    # ---- what is removed

    def removed(self, directory: Node, user: User) -> None:
        """*user* has removed something from *directory*."""
        if user not in self._last and len(self._last) >= USERS_MAX:
            self._last.clear()
        self._last[user] = (self._core.dispatch.now(), directory)

    def take(self, request: Request) -> bool:
        """Answer an UNLINK, and send it, if nothing speaks against it."""
        directory, core = request.node, self._core
        if not self._certain(request):
            lease = directory.lease
            again = self._one_of_many(request) and self._last[request.user][1] is directory
            if again and lease is not None and self._possible(directory, lease):
                core.alone.ask(lease, request.at)
            return False
        removing = directory.removing
        if removing is None:
            removing = directory.removing = Removing()
        _Removal(self, request, removing, directory.children[request.name].attr).begin()
        core.drops["removed_behind"] += 1
        core.at_home = True
        core.error(request, 0)
        return True

    def _possible(self, directory: Node, lease: Lease) -> bool:
        """Whether anything of *directory*, which *lease* is of, may be told removed before it is."""
        return lease.live and lease.whole and not lease.sticky and directory.parent is not None and directory.server not in self.plain

    def _certain(self, request: Request) -> bool:
        """Whether its server will remove it, as far as is known here."""
        directory, name, user = request.node, request.name, request.user
        lease = directory.lease
        if lease is None or user not in lease.changers or not self._possible(directory, lease) or self.count >= self.limit:
            return False
        if not self._one_of_many(request) or (directory.removing is not None and directory.removing.wary > request.at):
            return False
        child = directory.children.get(name)
        if child is None or name in lease.own or child.attr[6] >= ROOMY:
            return False
        oldest = request.at - self._core.leases.seconds
        if not child.name_sure or child.name_sure <= oldest or not child.attr_sure or child.attr_sure <= oldest:
            return False
        if child.mode & 0o170000 not in _PLAIN or not single(child) or child.files or child.locks or not lease.has(child):
            return False
        if not (child.sure_for is None or child.sure_for == user):
            return False
        connection = directory.server.connections.get(user)
        return connection is not None and connection in directory.handles and self._core.alone.holds(lease, request.at)

    def _one_of_many(self, request: Request) -> bool:
        last = self._last.get(request.user)
        return last is not None and request.at - last[0] <= BURST

    def done(self, request: Request) -> None:
        """Answer an UNLINK that was waited for and done: with the error of an earlier one, if what that was to remove is still there."""
        core, directory, user = self._core, request.node, request.user
        failed = _unsaid(directory, user, request.at)
        if failed is None or failed.name == request.name:
            unsaid(directory, user, request.at)
            core.error(request, 0)
            return

        def looked(asked: Request, status: int, reply: Buffer) -> None:
            asked.answered = True
            if not request.answered and _unsaid(directory, user, request.at) is failed:
                unsaid(directory, user, request.at)
                core.error(request, failed.code if _still(asked, failed, status, reply) else 0)
            else:
                core.error(request, 0)

        request.on_interrupt = lambda: core.error(request, 0)
        asked = Request(core, 0, _LOOKUP, directory, user, request.pid, core.dispatch.now())
        core.on_base(asked, directory, CONNECT, Connect.LOOKUP, 0, b"", failed.name, ENTRY_MAX, looked)

    # ---- what waits

    def before(self, request: Request, view: memoryview) -> Arrivals | None:
        """What the request, of which *view* are the kernel's bytes, has to wait for; None: nothing."""
        opcode, node = request.opcode, request.node
        if opcode in _OF_DIRECTORY:
            removing = node.removing
            if removing is None or not removing.names or (opcode in _BY_NAME and name_at(view, BODY) not in removing.names):
                return None
            return removing
        if opcode in _CLOSING:
            file = self._core.files.get(formats.FH_IN.parse(view, BODY)[0])
            if file is None or not (file.locked or (file.written and opcode == _FLUSH)):
                return None
        elif opcode == _OPEN:
            if not formats.OPEN_IN.parse(view, BODY)[0] & O_TRUNC:
                return None
        elif opcode == _WRITE and not self._tells(node, view):
            return None
        return self._sent.get(node.server)

    def _tells(self, node: Node, view: memoryview) -> bool:
        """Whether others may take that WRITE for a sign, whatever becomes of its file afterwards."""
        fh, _, _, how, _, flags = formats.WRITE_IN.parse(view, BODY)
        if how & WRITE_CACHE:
            return False
        file = self._core.files.get(fh)
        if file is not None:
            flags |= file.flags
        return bool(flags & (O_APPEND | O_DSYNC)) or node.mode & 0o170000 != S_IFREG

    # ---- what has arrived

    def sent(self, removal: _Removal) -> Sent:
        """*removal* is on the way."""
        server = removal.server
        sent = self._sent.get(server)
        if sent is None:
            sent = self._sent[server] = Sent()
        self.count += 1
        return sent

    def arrived(self, server: Server) -> None:
        """One of *server*'s was answered."""
        self.count -= 1
        if not self._sent[server].removals:
            del self._sent[server]
        if self._closing is not None and not self.count:
            self._over()

    # ---- the end

    def give_up(self) -> None:
        """What is on the way is not waited for any more: whether it is done is not known."""
        for sent in self._sent.values():
            for removal in sent.removals.values():
                removal.failed(EHOSTDOWN)

    def close(self, done: Callable[[], None]) -> None:
        """The mount is gone: *done* is called when all have arrived, after LINGER at the latest."""
        if not self.count:
            done()
            return
        self._closing = done
        self._linger = self._core.dispatch.call_at(self._core.dispatch.now() + LINGER, self._over)

    def _over(self) -> None:
        self.over = True
        done, self._closing = self._closing, None
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if done is not None:
            done()


class _Removal:
    """One removal, until its server has answered."""

    __slots__ = ("core", "ino", "meant", "number", "removals", "removing", "request", "sent", "server", "within")

    def __init__(self, removals: Removals, asked: Request, removing: Removing, attr: AttrTuple) -> None:
        self.core = core = asked.core
        self.removals = removals
        self.removing = removing
        self.request = Request(core, 0, _UNLINK, asked.node, asked.user, asked.pid, asked.at)
        self.request.name = asked.name
        self.ino = attr[0]
        self.meant = REMOVE.pack(attr[0], attr[11])
        """What it is about: a file with this inode number that was there when it was changed last, as far as is known here."""
        # A directory may be found to be another's meanwhile.
        self.server = asked.node.server
        self.sent = removals.sent(self)
        self.number = self.sent.number()
        self.sent.removals[self.number] = self
        self.within = removing.number()

    def begin(self) -> None:
        request = self.request
        self.removing.names[request.name] = self.within
        changing.changes_name(request, request.node, request.name)
        self._send()

    def _send(self) -> None:
        request = self.request
        request.answered = False
        # Where its handle is not valid any more, others have been let in: it is not sent by another one.
        request.retries = RETRIES_MAX
        base, name = request.node, request.name
        if base.server in self.removals.plain:
            self.core.on_base(request, base, CONNECT, Connect.UNLINK, 0, b"", name, ENTRY_MAX, self._answered)
        else:
            self.core.on_base(request, base, CONNECT, Connect.REMOVE, 0, self.meant, name, ENTRY_MAX, self._answered)

    def _again(self) -> None:
        if self.removals.over:
            self._answered(self.request, -EHOSTDOWN, b"")
        else:
            self._send()

    def _answered(self, request: Request, status: int, reply: Buffer) -> None:
        core, directory, name = self.core, request.node, request.name
        if status == -EAGAIN and core.dispatch.now() - request.at < RESEND_FOR:
            core.drops["removals_again"] += 1
            core.dispatch.call_at(core.dispatch.now() + RESEND_AFTER, self._again)
            return
        if status == -ENOSYS and directory.server not in self.removals.plain:
            self.removals.plain.add(directory.server)
            self._send()
            return
        request.answered = True
        changing.changed(request)
        if status >= 0 or status == -ENOENT:
            child = directory.children.get(name)
            if child is not None:
                core.nodes.unname(child, directory, name)
            owned.believe(request)
            self.removals.removed(directory, request.user)
        else:
            self.failed(told(status))
        removing = self.removing
        del removing.names[name]
        removing.arrived(next(iter(removing.names.values()), 0))
        if not removing.names and not removing.wary and directory.removing is removing:
            directory.removing = None
        core.nodes.settle(directory)
        del self.sent.removals[self.number]
        self.sent.arrived(next(iter(self.sent.removals), 0))
        self.removals.arrived(self.server)

    def failed(self, code: int) -> None:
        """It was not carried out, or nobody knows."""
        request, core = self.request, self.core
        if len(self.removing.errors) < USERS_MAX:
            self.removing.errors.setdefault(request.user, Failed(request.name, self.ino, code, core.dispatch.now()))
        self.removing.wary = core.dispatch.now() + WARY
        core.drops["removals_failed"] += 1
        path = (request.node.path().rstrip(b"/") + b"/" + request.name).decode("utf-8", "backslashreplace")
        logger.error("removal of %r was said to be done and failed: %s", path, os.strerror(code))


def unsaid(directory: Node | None, user: User, now: float) -> int:
    """The error of a removal from *directory*, not older than WARY, that *user* was not told of; it is told now. 0: none."""
    failed = _unsaid(directory, user, now)
    if directory is not None and directory.removing is not None:
        directory.removing.errors.pop(user, None)
    return 0 if failed is None else failed.code


def _unsaid(directory: Node | None, user: User, now: float) -> Failed | None:
    removing = None if directory is None else directory.removing
    failed = None if removing is None else removing.errors.get(user)
    return failed if failed is not None and now - failed.at < WARY else None


def _still(asked: Request, failed: Failed, status: int, reply: Buffer) -> bool:
    """Whether, as the answer to a LOOKUP of its name says, what was to be removed is there, or that cannot be known."""
    if status != 0:
        return status != -ENOENT
    found, attr = asked.core.entry(asked, reply)
    if found.handle:
        asked.core.handles.close_later(found.connection, found.handle)
    return found.server is asked.node.server and attr[0] == failed.ino
