"""Quality of service: which paths messages to a node take, as people write it. docs/protocol/node.md, "Policies".

    loadbalance  redundant  preferred:en1  exclusive:en1     a choice, in the configuration
    B~preferred:en1                                          a node and a choice, wherever a program names a node, as in QNX

Interfaces are this node's. What a choice becomes, `qnetpy.link.transport.policy` says.
"""

from __future__ import annotations

from typing import NamedTuple

from qnetpy.link.transport import routes

SEPARATOR = "~"
WITH_INTERFACE = frozenset({routes.EXCLUSIVE, routes.PREFERRED})


class QosError(ValueError):
    """A choice that says nothing; the text is for people."""


class Choice(NamedTuple):
    """A policy, and the interface that it names (empty if it names none)."""

    policy: int
    interface: str = ""

    def __str__(self) -> str:
        name = routes.NAMES[self.policy]
        return f"{name}:{self.interface}" if self.interface else name


LOADBALANCE = Choice(routes.LOADBALANCE)


def parse_choice(text: str) -> Choice:
    """`preferred:en1` and the like. QosError."""
    name, colon, interface = text.partition(":")
    if name not in routes.NAMES:
        raise QosError(f"{name!r} is no policy; there are: {', '.join(routes.NAMES)}")
    number = routes.NAMES.index(name)
    if number in WITH_INTERFACE and not interface:
        raise QosError(f"{name} needs an interface: {name}:en0")
    if number not in WITH_INTERFACE and colon:
        raise QosError(f"{name} takes no interface, and there is {interface!r}")
    if not all(character.isprintable() and character not in "/~: " for character in interface):
        raise QosError(f"{interface!r} is no name of an interface")
    return Choice(number, interface)


def split(name: str) -> tuple[str, str | None]:
    """A node's name, and the choice behind it if there is one."""
    node, separator, choice = name.partition(SEPARATOR)
    return node, choice if separator else None
