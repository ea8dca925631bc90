"""Shields: who answers for a callback that a part of the program gave to the kernel.

A node is one process with many parts, and a message between two of them is a plain call: without a shield, what a server's handler raises
falls on whoever sent, and what a client's completion raises on whoever answered. A channel and a connection belong to the part that was
running when they were made (`Kernel.running`), and so do the handlers, pulses and completions; each is called through the shield of its
part, which lets no exception out. What belongs to nobody is called as it is: its exceptions are mistakes of the node itself.
A node's own managers are a part, too (`OwnShield`): one message that makes one of them stumble must not end the node for everybody.

    a handler raised             the client gets EIO, unless it was answered
    the network module raised    as if it had answered EIO
    an unblock raised            the client gets EINTR, unless it was answered
    a pulse, a completion, a death, a read raised    nobody else hears of it

The other parts are the stack's modules: `stack.core.isolation.Guard` is a shield.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVarTuple

if TYPE_CHECKING:
    from resmgr.channel import Answerer, Channel, Message, Pending, ReadDone
    from resmgr.dispatch import Buffer

log = logging.getLogger(__name__)
Ts = TypeVarTuple("Ts")


class Shield(Protocol):
    """See the head of this file."""

    def run(self, what: str, call: Callable[[*Ts], object], *args: *Ts) -> bool:
        """Call *call*; *what* names it for people. What it raises is counted and goes no further. Whether it raised nothing."""
        ...

    def opened(self, channel: Channel) -> None:
        """*channel* is this part's, until `closed`."""
        ...

    def closed(self, channel: Channel) -> None: ...


class Running:
    """Called, it says which part's callback is running; None: what runs belongs to none."""

    def __init__(self) -> None:
        self._known: list[Callable[[], Shield | None]] = []

    def __call__(self) -> Shield | None:
        for known in self._known:
            shield = known()
            if shield is not None:
                return shield
        return None

    def ask(self, known: Callable[[], Shield | None]) -> Callable[[], None]:
        """From now on *known* is asked, which knows of some parts; until what is returned is called."""
        self._known.insert(0, known)
        return lambda: self._known.remove(known)


class OwnShield:
    """Of the managers that a node has of its own: what they raise is a mistake of ours. It is told in the log, with its traceback, and the
    node goes on."""

    def __init__(self) -> None:
        self.mistakes = 0

    def run(self, what: str, call: Callable[[*Ts], object], *args: *Ts) -> bool:
        try:
            call(*args)
        except Exception:
            self.mistakes += 1
            log.exception("%s: a mistake in %s; only this request has failed", what, getattr(call, "__qualname__", call))
            return False
        return True

    def opened(self, channel: Channel) -> None:
        """Whoever makes one closes it."""

    def closed(self, channel: Channel) -> None:
        """See `opened`."""


def shielded_message(shield: Shield, message: Message) -> None:
    """Give *message* to its handler. The client never waits for a handler that failed."""
    if not shield.run("channel: message", message.channel.handler, message) and not message.answered:
        message.error(errno.EIO)


def shielded_read(shield: Shield, done: ReadDone) -> ReadDone:
    """*done*, to be called from wherever the bytes come."""

    def run(count: int, data: Buffer) -> None:
        shield.run("channel: read", done, count, data)

    return run


def shielded_relay(shield: Shield, relay: Callable[[], Pending | None], answerer: Answerer) -> Pending | None:
    """A message goes into the network by *relay*. *answerer* is told when that fails; it may have been told before, and then ignores it."""
    pending: list[Pending | None] = [None]

    def run() -> None:
        pending[0] = relay()

    if not shield.run("network: message", run):
        answerer.answer(-errno.EIO, (), ())
    return pending[0]
