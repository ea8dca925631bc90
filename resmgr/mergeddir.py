"""Directories that the path manager owns, whose entries are its own names and those of the servers below.

Not among the compiled modules: these are classes of `resmgr.iofunc.handle`'s, which is open to anybody's managers and so is not compiled.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from resmgr.channel import Channel, ClientInfo, Connection, Kernel, Pending, ReadDone
from resmgr.dispatch import Buffer
from resmgr.handlelist import pack_close
from resmgr.iofunc.handle import Client, Handle
from resmgr.iomsg import Attr

OWN = 1 << 63
"""Cookies of a merged directory: 0 is the start, OWN + n the n-th of the path manager's own names, a smaller number the first server's own
cookie. Whatever else (a further server's, or one that needs the top bit) gets a number with ALIAS, kept with the open directory."""
ALIAS = 1 << 62


class PathClient(Client):
    __slots__ = ()


Way = Channel | Connection
"""To a server of this kernel, or, in the client's name, to one in another process. Such a connection is used for one thing, then closed."""


class Part:
    """A server's half of a merged directory: the way to it, and what it opened for us, on the client's behalf."""

    __slots__ = ("number", "way")

    def __init__(self, way: Way, number: int) -> None:
        self.way = way
        self.number = number


class MergedDirectory(Handle):
    """A base handle or OCB of a directory that the path manager owns. `parts` are closed with it."""

    __slots__ = ("alias_of", "aliases", "attr", "covered", "info", "kernel", "names", "opened", "parts", "path", "shown")

    def __init__(
        self,
        kernel: Kernel,
        info: ClientInfo,
        path: bytes,
        names: list[bytes],
        covered: frozenset[bytes],
        attr: Attr,
        parts: list[Part],
        opened: bool,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.info = info
        self.path = path
        self.names = names
        self.covered = covered
        """Attached names, also those that this client does not see: they hide what servers below have."""
        self.attr = attr
        self.parts = parts
        self.opened = opened
        self.shown: set[bytes] = set()
        """Names that were told of servers in other processes, which cannot be asked on the way."""
        self.aliases: list[tuple[int, int]] = []
        self.alias_of: dict[tuple[int, int], int] = {}

    def cookie(self, whose: int, theirs: int) -> int:
        """What to tell for the cookie *theirs* of part *whose* (1 is the first)."""
        if whose == 1 and 0 < theirs < OWN:
            return theirs
        alias = self.alias_of.get((whose, theirs))
        if alias is None:
            alias = self.alias_of[whose, theirs] = len(self.aliases)
            self.aliases.append((whose, theirs))
        return OWN | ALIAS | alias

    def place(self, cookie: int) -> tuple[int, int]:
        """(part, its cookie) that a told cookie means; part 0 are the own names. EINVAL for one that was never told."""
        if cookie == 0:
            return 0, 0
        if not cookie & OWN:
            if not self.parts:
                raise OSError(errno.EINVAL, "cookie")
            return 1, cookie
        number = cookie & ~OWN
        if not number & ALIAS:
            return 0, number
        number &= ~ALIAS
        if number >= len(self.aliases):
            raise OSError(errno.EINVAL, "cookie")
        return self.aliases[number]

    def release(self) -> None:
        for part in self.parts:
            let_go(self.kernel, part, self.info)


class _Asking:
    """The answer to a message that the path manager sends to a server in a client's name."""

    __slots__ = ("done",)

    def __init__(self, done: Callable[[int, bytes], None]) -> None:
        self.done = done

    def answer(self, status: int, parts: Sequence[Buffer], descriptors: Sequence[int]) -> None:
        self.done(status, b"".join(parts))

    def pull(self, offset: int, length: int, done: ReadDone) -> None:
        done(0, b"")

    def push(self, offset: int, data: Buffer) -> None:
        """Replies to what is asked here come in one piece."""


def ask(kernel: Kernel, way: Way, info: ClientInfo, data: bytes, reply_len: int, done: Callable[[int, bytes], None]) -> Pending | None:
    """Send *data* as if *info* did. None: it is answered already."""
    if isinstance(way, Connection):
        return way.submit((data,), reply_len, lambda status, reply: done(status, bytes(reply)))
    message = kernel.deliver(way, info, data, len(data), reply_len, 10, _Asking(done))
    return None if message.answered else message


def let_go(kernel: Kernel, part: Part, info: ClientInfo) -> None:
    """Close what *part* has open."""
    if isinstance(part.way, Connection):
        kernel.own_dispatch.call_soon(part.way.close)
    else:
        ask(kernel, part.way, info, pack_close(part.number), 0, lambda status, reply: None)
