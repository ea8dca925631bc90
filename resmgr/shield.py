"""Shields: who answers for a callback that a part of the program gave to the kernel.

A node is one process with many parts, and a message between two of them is a plain call: without a shield, what a server's handler raises
falls on whoever sent, and what a client's completion raises on whoever answered. A channel and a connection belong to the part that was
running when they were made (`Kernel.running`), and so do the handlers, pulses and completions; each is called through the shield of its
part, which lets no exception out. In the kernel of a node, what belongs to no part is the node's own, and `OwnShield` answers for it: the
managers of paths, files, names, nodes, attachments and processes, with their timers and threads (`resmgr.owndispatch`). In the kernel of a
program it is the program's, and called as it is: a mistake there ends the program, with a traceback.

    a handler raised             the client gets EIO, unless it was answered
    the network module raised    as if it had answered EIO
    an unblock raised            the client gets EINTR, unless it was answered
    a pulse, a completion, a death, a read, a timer, the result of a thread raised    nobody else hears of it

Parts are the stack's modules: `stack.core.isolation.Guard` is their shield.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeVarTuple

if TYPE_CHECKING:
    from resmgr.channel import Answerer, Channel, Message, Pending, ReadDone
    from resmgr.dispatch import Buffer

log = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

PLACES_MAX: Final = 64
"""Places in the source that are told apart in `OwnShield.failures`; the rest are counted as `other`, and logged no more."""


class Shield(Protocol):
    """See the head of this file."""

    def run(self, what: str, call: Callable[[*Ts], object], *args: *Ts) -> bool:
        """Call *call*; *what* names it for people. What it raises is counted and goes no further. Whether it raised nothing."""
        ...

    def opened(self, channel: Channel) -> None:
        """*channel* is this part's, until `closed`."""
        ...

    def closed(self, channel: Channel) -> None: ...


class OwnShield:
    """Of what is the node's own, and nobody's module. `failures` counts exceptions by what raised and where; the first of each is logged
    with its traceback. Whoever can make a manager raise can do it again and again, so the others are only counted.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.failures: Counter[str] = Counter()

    def run(self, what: str, call: Callable[[*Ts], object], *args: *Ts) -> bool:
        """`Shield.run`."""
        try:
            call(*args)
        except Exception as error:
            self.failure(what, error)
            return False
        return True

    def failure(self, what: str, error: Exception) -> None:
        """Count and tell *error*, which goes no further."""
        name = f"{what}: {_place(error)}"
        if name not in self.failures and len(self.failures) >= PLACES_MAX:
            name = "other"
        self.failures[name] += 1
        if self.failures[name] == 1:
            log.error("%s: exception in %s; further ones there are only counted", self.node, name, exc_info=error)

    def opened(self, channel: Channel) -> None:
        """The node closes its channels itself."""

    def closed(self, channel: Channel) -> None:
        """See `opened`."""


def _place(error: Exception) -> str:
    """Its kind, and the line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    code = trace.tb_frame.f_code
    return f"{type(error).__name__} in {code.co_name} ({os.path.basename(code.co_filename)}:{trace.tb_lineno})"


class Running:
    """Called, it says which part's callback is running; None: what runs belongs to none."""

    def __init__(self) -> None:
        self._known: list[Callable[[], Shield | None]] = []
        self.own: OwnShield | None = None
        """Answers for what belongs to no part. A node has one, a program not."""

    def __call__(self) -> Shield | None:
        for known in self._known:
            shield = known()
            if shield is not None:
                return shield
        return self.own

    def ask(self, known: Callable[[], Shield | None]) -> Callable[[], None]:
        """From now on *known* is asked, which knows of some parts; until what is returned is called."""
        self._known.insert(0, known)
        return lambda: self._known.remove(known)


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
