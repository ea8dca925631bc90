"""Removals that the kernel was told are done while their messages are still on the way (docs/decisions/fuse-removals.md).

`Removals` decides which: those of which nothing that is known here speaks against it. `Removing` is the account of one directory. Requests
that could notice (`traits.AFTER_REMOVALS`) wait for those that are on the way when they come.

The message is sent by a request of its own, which the kernel knows nothing of; what it makes of the nodes, and what may be believed of it,
comes with its answer, as for a removal that is waited for. Until then its name is being changed from here (`changing`), so nothing of it is
believed, and nobody is told.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from errno import EAGAIN, EHOSTDOWN, ENOENT
from stat import S_IFLNK, S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.dispatch import Buffer, Timer
from resmgr.fuse import changing, formats, owned
from resmgr.fuse.arrivals import Arrivals
from resmgr.fuse.changes import NEVER
from resmgr.fuse.formats import BODY, Opcode, name_at, names_at
from resmgr.fuse.lease import single
from resmgr.fuse.request import Request, told
from resmgr.fuse.walk import CONNECT, ENTRY_MAX
from resmgr.iomsg import Connect

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node
    from resmgr.fuse.servers import User

logger = logging.getLogger(__name__)

AGAIN_AFTER: Final = 0.02
AGAIN_MAX: Final = 250
"""One that is answered EAGAIN is sent again after so many seconds, and so many times (5 s) before that is its error."""
BURST: Final = 1.0
"""Seconds after a removal in which the same user's next one is one of many."""
USERS_MAX: Final = 256
"""Users of whom it is known when they removed something. Stops ever new ones from filling memory."""
WARY: Final = 60.0
"""Seconds after one failed in which those in its directory are waited for."""
LINGER: Final = 3.0
"""Seconds for which the connections of a mount that is gone are kept for those that are on the way."""
_PLAIN: Final = frozenset((S_IFREG, S_IFLNK))
_BY_NAME: Final = frozenset((int(Opcode.LOOKUP), int(Opcode.UNLINK)))
_UNLINK: Final = int(Opcode.UNLINK)
_RMDIR: Final = int(Opcode.RMDIR)
_RENAME: Final = int(Opcode.RENAME)
_RENAME2: Final = int(Opcode.RENAME2)
_STATFS: Final = int(Opcode.STATFS)


class Removing(Arrivals):
    """Of one directory: `names` are on the way to be removed; `error` is one that nobody was told of yet; `wary`: until when none more
    begins, since one failed."""

    __slots__ = ("error", "names", "wary")

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[bytes, int] = {}
        self.error = 0
        self.wary = 0.0

    def take_error(self) -> int:
        error, self.error = self.error, 0
        return error


class Removals:
    """Of one mount. Counts in `Core.drops`: `removed_behind`, `removals_failed`, `removals_again`, `waited_for_removals`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.limit = core.options.removals
        self.all = Arrivals()
        self._sent: dict[int, _Removal] = {}
        """By the numbers of `all`."""
        self._last: dict[User, float] = {}
        """When each user's last removal was done."""
        self._linger: Timer | None = None

    def __len__(self) -> int:
        return len(self._sent)

    # ---- what is removed

    def removed(self, user: User) -> None:
        """*user* has removed something."""
        if user not in self._last and len(self._last) >= USERS_MAX:
            self._last.clear()
        self._last[user] = self._core.dispatch.now()

    def take(self, request: Request) -> bool:
        """Answer an UNLINK, and send it, if nothing speaks against it; or with the error of an earlier one. False: neither."""
        directory, core = request.node, self._core
        if error := unsaid(directory):
            core.error(request, error)
            return True
        if not self._certain(request):
            return False
        removing = directory.removing
        if removing is None:
            removing = directory.removing = Removing()
        _Removal(self, request, removing).begin()
        core.drops["removed_behind"] += 1
        core.at_home = True
        core.error(request, 0)
        return True

    def _certain(self, request: Request) -> bool:
        """Whether its server will remove it, as far as is known here."""
        directory, name, user = request.node, request.name, request.user
        lease = directory.lease
        if lease is None or user not in lease.changers or not lease.live or not lease.whole or len(self._sent) >= self.limit:
            return False
        if request.at - self._last.get(user, NEVER) > BURST or (directory.removing is not None and directory.removing.wary > request.at):
            return False
        child = directory.children.get(name)
        if child is None or directory.parent is None or lease.sticky or name in lease.own:
            return False
        oldest = request.at - self._core.leases.seconds
        if not child.name_sure or child.name_sure <= oldest or not child.attr_sure or child.attr_sure <= oldest:
            return False
        if child.mode & 0o170000 not in _PLAIN or not single(child) or child.files or child.locks or not lease.has(child):
            return False
        if not (child.sure_for is None or child.sure_for == user):
            return False
        connection = directory.server.connections.get(user)
        return connection is not None and connection in directory.handles

    # ---- what waits

    def before(self, request: Request, view: memoryview) -> Arrivals | None:
        """What the request, of which *view* are the kernel's bytes, has to wait for; None: nothing."""
        opcode, directory = request.opcode, request.node
        if opcode == _STATFS:
            return self.all if self._sent else None
        removing = _under_way(directory)
        if removing is not None and (opcode not in _BY_NAME or name_at(view, BODY) in removing.names):
            return removing
        if opcode == _RMDIR:
            return _under_way(directory.children.get(name_at(view, BODY)))
        if opcode == _RENAME:
            return self._of_rename(directory, view, formats.RENAME_IN.parse(view, BODY)[0], formats.RENAME_IN.size)
        if opcode == _RENAME2:
            return self._of_rename(directory, view, formats.RENAME2_IN.parse(view, BODY)[0], formats.RENAME2_IN.size)
        return None

    def _of_rename(self, old: Node, view: memoryview, new_id: int, size: int) -> Arrivals | None:
        old_name, new_name = names_at(view, BODY + size, 2)
        new = self._core.nodes.get(new_id)
        found = _under_way(old.children.get(old_name))
        if found is None and new is not None:
            found = _under_way(new) or _under_way(new.children.get(new_name))
        return found

    # ---- what has arrived

    def sent(self, removal: _Removal) -> int:
        """*removal* is on the way; its number."""
        number = self.all.number()
        self._sent[number] = removal
        return number

    def arrived(self, number: int) -> None:
        """That removal was answered."""
        del self._sent[number]
        self.all.arrived(next(iter(self._sent), 0))

    # ---- the end

    def give_up(self) -> None:
        """What is on the way is not waited for any more: whether it is done is not known."""
        for removal in self._sent.values():
            removal.failed(EHOSTDOWN)

    def close(self, done: Callable[[], None]) -> None:
        """The mount is gone: *done* is called when all have arrived, after LINGER at the latest."""
        if not self._sent:
            done()
            return

        def over() -> None:
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
                done()

        dispatch = self._core.dispatch
        self._linger = dispatch.call_at(dispatch.now() + LINGER, over)
        self.all.wait(over)


class _Removal:
    """One removal, until its server has answered."""

    __slots__ = ("core", "number", "removals", "removing", "request", "tries", "within")

    def __init__(self, removals: Removals, asked: Request, removing: Removing) -> None:
        self.core = core = asked.core
        self.removals = removals
        self.removing = removing
        self.request = Request(core, 0, _UNLINK, asked.node, asked.user, asked.pid, asked.at)
        self.request.name = asked.name
        self.number = removals.sent(self)
        self.within = removing.number()
        self.tries = 0

    def begin(self) -> None:
        request = self.request
        self.removing.names[request.name] = self.within
        changing.changes_name(request, request.node, request.name)
        self._send()

    def _send(self) -> None:
        request = self.request
        request.answered = False
        self.core.on_base(request, request.node, CONNECT, Connect.UNLINK, 0, b"", request.name, ENTRY_MAX, self._answered)

    def _answered(self, request: Request, status: int, reply: Buffer) -> None:
        core, directory, name = self.core, request.node, request.name
        if status == -EAGAIN and self.tries < AGAIN_MAX:
            self.tries += 1
            core.drops["removals_again"] += 1
            core.dispatch.call_at(core.dispatch.now() + AGAIN_AFTER, self._send)
            return
        request.answered = True
        changing.changed(request)
        if status >= 0 or status == -ENOENT:
            child = directory.children.get(name)
            if child is not None:
                core.nodes.unname(child, directory, name)
            owned.believe(request)
            self.removals.removed(request.user)
        else:
            self.failed(told(status))
        removing = self.removing
        del removing.names[name]
        removing.arrived(next(iter(removing.names.values()), 0))
        if not removing.names and not removing.wary and directory.removing is removing:
            directory.removing = None
        self.removals.arrived(self.number)

    def failed(self, code: int) -> None:
        """It was not carried out, or nobody knows."""
        request, core = self.request, self.core
        self.removing.error = self.removing.error or code
        self.removing.wary = core.dispatch.now() + WARY
        core.drops["removals_failed"] += 1
        path = (request.node.path().rstrip(b"/") + b"/" + request.name).decode("utf-8", "backslashreplace")
        logger.error("removal of %r was said to be done and failed: %s", path, os.strerror(code))


def _under_way(node: Node | None) -> Removing | None:
    """What is being removed from *node*, if anything is."""
    if node is None or node.removing is None or not node.removing.names:
        return None
    return node.removing


def unsaid(directory: Node | None) -> int:
    """The error of a removal from *directory* that nobody was told of; it is told now. 0: none."""
    return 0 if directory is None or directory.removing is None else directory.removing.take_error()
