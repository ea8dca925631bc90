"""Multicast groups: which group addresses an interface's card must let through besides broadcast. BSD's `ether_addmulti`.

Who speaks to a group joins it, with `Stack.join`; the driver is told the groups of all who did. Drivers deliver what they hear of any
group: a membership makes a card listen that would not. A driver that has such a card has `groups`, and is then a `Grouping`; others hear
everything.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeGuard

from resmgr.errors import Misuse
from stack.capability import capability
from stack.core.driver import Driver
from stack.core.errors import ModuleError, refusal
from stack.core.isolation import RAISED
from stack.wire.ethernet import MAC_SIZE, is_group, mac_text

if TYPE_CHECKING:
    from stack.core.ifnet import Interface

GROUPS_MAX = 256
"""Of an interface. More are refused: whoever needs them is a bridge, which is promiscuous."""


class Grouping(Driver, Protocol):
    """A driver whose card must be told groups."""

    def groups(self, wanted: frozenset[bytes]) -> None:
        """From now on hear these groups, and no longer those that were asked for before. OSError of the system."""
        ...


def grouping_driver(driver: Driver) -> Grouping | None:
    """*driver*, or the one that is wrapped in it, if it must be told."""
    return capability(driver, _can)


def _can(driver: object) -> TypeGuard[Grouping]:
    return hasattr(driver, "groups")


def join_group(interface: Interface, group: bytes) -> Callable[[], None]:
    """For the stack: one more member of *group* on *interface*. Returns what ends the membership. ModuleError when the system refuses."""
    if len(group) != MAC_SIZE or not is_group(group):
        raise Misuse(f"{group.hex(':')} is no group address")
    members = interface.groups
    if group not in members and len(members) >= GROUPS_MAX:
        raise ModuleError(errno.ENOSPC, f"{interface.name} is in {GROUPS_MAX} groups already")
    driver = grouping_driver(interface.driver)
    if driver is not None and group not in members:
        try:
            interface.ask("groups", driver.groups, frozenset((*members, group)))
        except RAISED as error:
            raise refusal(f"{interface.name} cannot join group {mac_text(group)}", error) from error
    members[group] = members.get(group, 0) + 1

    def leave() -> None:
        members[group] -= 1
        if not members[group]:
            del members[group]
            if driver is not None and interface.attached:
                interface.let_go("groups", driver.groups, frozenset(members))

    return leave
