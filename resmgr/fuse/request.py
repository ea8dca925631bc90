"""One kernel request and, one after another, the messages that it takes to answer it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from resmgr.channel import Connection, Pending
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse import changing
from resmgr.fuse.inode import Node
from resmgr.iomsg import STATUS_REDIRECT, Io

if TYPE_CHECKING:
    from resmgr.fuse.changing import Change
    from resmgr.fuse.core import Core
    from resmgr.fuse.openfile import File
    from resmgr.fuse.overdue import Span
    from resmgr.fuse.owned import LeasedName

Step = Callable[["Request", int, Buffer], None]
STALE: Final = frozenset((-errno.ESTALE, -errno.EBADF, -errno.ESRCH))
"""What a base handle of a server that came back, or went away, is answered with."""
GONE: Final = frozenset((-errno.EHOSTDOWN, -errno.EHOSTUNREACH, -errno.ESRCH))
"""What messages are answered whose server, or its node, is not there, or went away while they were on the way. Of these the connection
dies, perhaps a moment later, and its files are opened again with their locks (`reopen`)."""
LOST: Final = GONE | {-errno.EBADF}
"""The same of messages to what is open: its server may be there again, and not know it."""
RESEND_AFTER: Final = 0.02
RESEND_FOR: Final = 5.0
"""What its program was told is done, and is answered EAGAIN, is sent again after so many seconds, for so many before that is its error."""
ERRNO_MAX: Final = 511
"""The kernel takes no answer with a larger one; those from 512 on are its own."""
_OTHERWISE = {errno.EBADF: errno.ESTALE, errno.ESRCH: errno.EIO, errno.ENOSYS: errno.EOPNOTSUPP}


def told(status: int) -> int:
    """The errno to tell a program for a negative *status*.

    Its descriptor is not bad, the server behind it is another one. ENOSYS is what one server says of one of its files, but the kernel
    would take it for what the whole mount can do, and never send that operation again for anybody.
    """
    code = -status
    return _OTHERWISE.get(code, code) if code <= ERRNO_MAX else errno.EIO


@attrs.frozen
class Outstanding:
    """A request that the kernel waits for. `age` in seconds since it came; `server`, that has to answer now, is (nd, pid, chid). If that
    is the mounted manager, which may have said that whom it leads to is not there, `first` is the name at its root that leads there."""

    unique: int
    operation: str
    age: float
    path: str
    server: tuple[int, int, int]
    uid: int
    pid: int
    interrupted: bool
    first: str = ""


class Request:
    """State of a request; what the fields of its current message mean is told at `Core.on_base`."""

    __slots__ = (
        "again",
        "answered",
        "at",
        "at_server",
        "base",
        "came",
        "changes",
        "connection",
        "core",
        "extra",
        "file",
        "fixed",
        "flags",
        "held",
        "hops",
        "interrupted",
        "kind",
        "name",
        "node",
        "on_interrupt",
        "opcode",
        "opened",
        "other",
        "overdue",
        "own",
        "path",
        "pending",
        "pid",
        "raw",
        "reply_len",
        "retries",
        "second",
        "span",
        "step",
        "subtype",
        "undisturbed",
        "unique",
        "unsure",
        "user",
        "via",
    )

    def __init__(self, core: Core, unique: int, opcode: int, node: Node, user: tuple[int, int], pid: int, at: float) -> None:
        self.core = core
        self.unique = unique
        self.opcode = opcode
        self.node = node
        self.user = user
        self.pid = pid
        self.at = at
        self.came = at
        """When the kernel asked; `at` is when it began to be carried out."""
        self.answered = False
        self.interrupted = False
        self.raw: bytes | None = None
        """As the kernel sent it; kept only where it may have to be carried out again (`patience`)."""
        self.unsure = False
        """It was on the way when its node went down: it may have been carried out."""
        self.held = False
        """Memory of the waiting program is being read or written: not to be answered before that is over."""
        self.on_interrupt: Callable[[], None] | None = None
        """What waits here, and for no server, is given up by this."""
        self.pending: Pending | None = None
        self.at_server = False
        """`pending` is the message that carries it out, not one of a walk before."""
        self.file: File | None = None
        """The open file that its message is to, and..."""
        self.other: File | None = None
        """...one that it names besides, on the same server."""
        self.opened = 0
        """How often these had been opened when it was sent."""
        self.span: Span | None = None
        """What it changes of its file's contents, if it is one of those that may do so after they were given up."""
        self.overdue: Callable[[], None] | None = None
        """Called when the server has answered after all (`overdue`)."""
        self.base: Node | None = None
        """The directory whose handle the message carries; None: no handle that could be got again."""
        self.second: Node | None = None
        """A second directory whose handle the message carries (RENAME, LINK)."""
        self.via: tuple[int, bytes] | None = None
        """After a redirect: base handle and path on the server it led to."""
        self.retries = 0
        self.hops = 0
        self.extra = 0
        """A number of the operation's own."""
        self.name = b""
        """The name that the request is about, for operations in a directory."""
        self.changes: tuple[Change, ...] = ()
        """What it changes, until it is changed."""
        self.own: list[LeasedName] | None = None
        """Of these, names in leased directories, while it is under way (`owned`)."""
        self.undisturbed: list[LeasedName] = []
        """Of these, those of which nothing else was heard until it was answered."""
        self.again: Callable[[], None] | None = None
        """Begins the operation anew after a walk; None: the same message is sent again."""
        self.connection: Connection
        self.kind = 0
        self.subtype = 0
        self.flags = 0
        self.fixed = b""
        self.path = b""
        self.reply_len = 0
        self.step: Step

    def named(self, node: Node) -> bool:
        """Whether its message was about *node* by the name that this has here still: a program may have given it another one since."""
        return self.via is not None or (self.base is node.parent and self.path == node.name)

    def done(self, status: int, reply: Buffer) -> None:
        """Completion of a message with a base handle: send it again, throw its answer away, or take the operation's next step."""
        sent = self.pending is not None
        self.pending = None
        self.at_server = False
        core = self.core
        if sent and status in GONE:
            self.unsure = True
        if self.answered:
            core.late(self, status, reply)
            self._over()
        elif status in STALE and self.base is not None and not (self.unsure and self.changes):
            core.stale(self, status)
        else:
            try:
                if status == STATUS_REDIRECT and self.kind == Io.CONNECT:
                    core.redirected(self, reply)
                else:
                    self.step(self, status, reply)
            except BadMessage:
                core.bad_reply(self)

    def file_done(self, status: int, reply: Buffer) -> None:
        """Completion of a message to an open file, which is never sent again; its step runs even if the request was given up."""
        if status in GONE and self.pending is not None:
            self.unsure = True
        self.pending = None
        self.at_server = False
        if self.answered and self.changes:
            changing.late(self)
        if status == -errno.EBADF and self.file is not None and self.core.reopening.forgot(self.file, self.other, self.opened):
            # It was not carried out, so this is not as unsure as if its node had gone.
            status = -errno.EHOSTDOWN
        try:
            self.step(self, status, reply)
        except BadMessage:
            self.core.bad_reply(self)
        self._over()

    def _over(self) -> None:
        if self.overdue is not None and self.pending is None:
            over, self.overdue = self.overdue, None
            over()
