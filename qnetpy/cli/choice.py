"""What a command says of a node's name with a choice of paths (`B~preferred:en1`) that means nothing."""

from __future__ import annotations

import errno

from qnetpy.cli.output import CommandError
from resmgr.errors import ResmgrError

MARK = "~"
"""Between the name and the choice: without it there is nothing to look at, which most programs need not load `qnetpy.qos` to know."""


def check(node: str, status: int = 1) -> None:
    """CommandError with exit status *status*, if what stands behind the name is no choice."""
    if MARK not in node:
        return
    from qnetpy import qos

    name, choice = qos.split(node)
    if choice is not None:
        try:
            qos.parse_choice(choice)
        except qos.QosError as error:
            raise CommandError(f"{node}: {error}", f"{name}~preferred:IF, with an interface that qnet status shows", status) from None


def explain(node: str, error: ResmgrError, status: int = 1) -> None:
    """CommandError, if *error* is about the choice."""
    if MARK not in node:
        return
    from qnetpy import qos

    name, choice = qos.split(node)
    if choice is not None and error.errno == errno.ENXIO:
        interface = qos.parse_choice(choice).interface
        raise CommandError(f"{node}: Qnet uses no interface {interface} on this node", "qnet status", status) from error
    if choice is not None and error.errno == errno.ENETDOWN:
        raise CommandError(f"{node}: {name} does not answer over that interface", "qnet ls -l", status) from error
