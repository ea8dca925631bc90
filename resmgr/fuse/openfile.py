"""Open files: the server's open control block behind what the kernel knows by a file handle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.fuse.held import Held

if TYPE_CHECKING:
    from resmgr.fuse.forgotten import Forgotten
    from resmgr.fuse.inode import Node, Version
    from resmgr.fuse.polling import Armed


class File:
    """An open file: the server's OCB, and first bytes that came with the reply to open."""

    __slots__ = (
        "armed",
        "as_opened",
        "connection",
        "data",
        "data_at",
        "data_ends",
        "dead",
        "error",
        "fh",
        "flags",
        "forgotten",
        "held",
        "locked",
        "node",
        "ocb",
        "opened",
        "synced",
        "token",
        "unseen",
        "waiting",
        "writes",
        "written",
    )

    def __init__(self, fh: int, node: Node, connection: Connection, ocb: int, flags: int) -> None:
        self.fh = fh
        self.node = node
        self.connection = connection
        self.ocb = ocb
        self.flags = flags
        self.data: Buffer | None = None
        self.data_at = 0.0
        self.data_ends = False
        """`data` ended at the end of the file."""
        self.armed: Armed | None = None
        """Waits at the server for what pollers want."""
        self.locked = False
        """Something may be locked through it."""
        self.writes = 0
        """WRITE messages under way."""
        self.written = 0
        """WRITEs that were acknowledged so far."""
        self.synced = 0
        """Of these, before the last fsync that succeeded."""
        self.dead = False
        """The OCB is not valid any more."""
        self.opened = 1
        """How often it was, counting the first time: by this who sent a message knows whether the OCB is another one since."""
        self.forgotten: Forgotten | None = None
        """How often in a row its server did not know the OCB."""
        self.token = b""
        """With which its server opens it again; none: it does not."""
        self.as_opened: Version | None = None
        """Without a token: what it was when it was opened, if that still says which file it is."""
        self.held = Held()
        """Locks taken through it."""
        self.error = 0
        """errno of a write whose caller was not told; the next WRITE or FSYNC tells it, and each FLUSH before that."""
        self.unseen = False
        """`error` is that of a write through this file, and nobody was told yet."""
        self.waiting: list[Callable[[], None]] = []
        """Called when `writes` is 0 again."""

    @property
    def roots(self) -> bool:
        """Whether it is root's, whoever uses it: root has opened it and handed it on, or was root then."""
        return self.connection.credentials.uid == 0

    def show_error(self, looks: bool) -> int:
        """The errno to tell by a close, which others who share the open file are told as well. *looks*: somebody looks at it."""
        if looks:
            self.unseen = False
        return self.error

    def take_error(self) -> int:
        """The errno to tell now, which is then told."""
        code, self.error = self.error, 0
        self.unseen = False
        return code
