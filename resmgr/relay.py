"""The halves of a message whose other end is elsewhere: where its answer goes, how it is unblocked, and who carries it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from resmgr.dispatch import Buffer
from resmgr.ids import Nd

if TYPE_CHECKING:
    from resmgr.channel import Connection

Descriptors = Sequence[int]
ReadDone = Callable[[int, Buffer], None]


class Answerer(Protocol):
    """The client's half of a message: where answers, pulls and pushes go. `answer` comes once and last."""

    def answer(self, status: int, parts: Sequence[Buffer], descriptors: Descriptors) -> None: ...

    def pull(self, offset: int, length: int, done: ReadDone) -> None: ...

    def push(self, offset: int, data: Buffer) -> None: ...


class _Gone:
    """The client's half of a message whose client is no longer blocked on it."""

    def answer(self, status: int, parts: Sequence[Buffer], descriptors: Descriptors) -> None:
        """Nobody waits."""

    def pull(self, offset: int, length: int, done: ReadDone) -> None:
        done(-errno.ESRCH, b"")

    def push(self, offset: int, data: Buffer) -> None:
        """Nobody waits."""


GONE: Final[Answerer] = _Gone()


class Pending(Protocol):
    """A send under way."""

    def unblock(self) -> None:
        """Ask the server to let go. `done` still comes exactly once: with -EINTR, or with the answer if that was quicker."""
        ...


class Passing(Protocol):
    """Takes a message with descriptors that is for another node. ENOTSUP if it has no use for it."""

    def __call__(
        self, connection: Connection, data: Buffer, priority: int, answerer: Answerer, descriptors: Descriptors
    ) -> Pending | None: ...


class Remote(Protocol):
    """Carries connections whose server is not in this kernel: another node, or another process on this node."""

    def relay(
        self,
        connection: Connection,
        data: Buffer,
        msglen: int,
        reply_len: int,
        priority: int,
        answerer: Answerer,
        descriptors: Descriptors,
    ) -> Pending | None:
        """Carry one message, of which *data* is the beginning (at least FIRST_PART_DEFAULT bytes or all); the rest is pulled.

        None if it was answered before this returned.
        """
        ...

    def pulse(self, connection: Connection, code: int, value: int, priority: int) -> int: ...

    def detach(self, connection: Connection) -> None:
        """*connection* is closed. Sends under way on it have been ended towards their clients or are unblocked by this."""
        ...


class Network(Protocol):
    """What a network module registers: finds the remote for a node descriptor."""

    def remote(self, nd: Nd) -> Remote | int:
        """The carrier for *nd*, or the errno with which sends to it fail now (EHOSTDOWN, EHOSTUNREACH)."""
        ...
