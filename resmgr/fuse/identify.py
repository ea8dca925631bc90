"""Tokens of open files: with these their servers open them again (`reopen`).

A regular file that has been open for AFTER is asked for its token (IDENTIFY); a server that knows no tokens is asked once.
"""

from __future__ import annotations

import errno
from functools import partial
from stat import S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer, Timer
from resmgr.fuse.openfile import File
from resmgr.fuse.request import LOST
from resmgr.iomsg import REQUEST, TOKEN_MAX, Io

if TYPE_CHECKING:
    from resmgr.fuse.core import Core

AFTER: Final = 0.1
"""Seconds after which a file that is still open is asked for its token: most are closed by then."""
AT_ONCE: Final = 256
TRANSIENT: Final = LOST | {-errno.EAGAIN}
"""The node is down, or it, or its daemon, went away again while it was asked, or has no room."""


class Identify:
    """Of one mount. *at_once*: programs count on tokens, so they are asked for without waiting."""

    def __init__(self, core: Core, at_once: bool) -> None:
        self._core = core
        self._after = 0.0 if at_once else AFTER
        self._young: list[File] = []
        self.asking = 0
        """Questions that are under way."""
        self._timer: Timer | None = None

    def opened(self, file: File) -> None:
        """A file was opened: if it stays so, it gets a token."""
        if file.node.server.no_tokens or file.node.mode & 0o170000 != S_IFREG:
            return
        self._young.append(file)
        if file.node.server.gives_tokens:
            file.as_opened = file.node.version()
        if self._timer is None:
            self._timer = self._core.dispatch.call_at(self._core.dispatch.now() + self._after, self._ask)

    def ask_all(self) -> None:
        """Ask for the tokens of all files that were just opened."""
        while self._young:
            if self._timer is not None:
                self._timer.cancel()
            self._ask()

    def _ask(self) -> None:
        self._timer = None
        core = self._core
        batch, self._young = self._young[:AT_ONCE], self._young[AT_ONCE:]
        for file in batch:
            if core.files.get(file.fh) is file and not (file.dead or file.token or file.node.server.no_tokens):
                self.asking += 1
                done = partial(self._identified, file, file.connection)
                file.connection.submit((REQUEST.pack(Io.IDENTIFY, 0, 0, file.ocb),), TOKEN_MAX, done)
        if self._young:
            self._timer = core.dispatch.call_at(core.dispatch.now() + AFTER, self._ask)

    def _identified(self, file: File, connection: Connection, status: int, reply: Buffer) -> None:
        self.asking -= 1
        if file.connection is not connection or status in TRANSIENT:
            return
        if status == -errno.ENOSYS:
            file.node.server.no_tokens = True
        elif status >= 0 and 0 < len(reply) <= TOKEN_MAX:
            file.token = bytes(reply)
            file.node.server.gives_tokens = True
        file.as_opened = None

    def close(self) -> None:
        """The mount is gone. Idempotent."""
        self._young.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
