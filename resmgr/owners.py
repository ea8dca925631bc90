"""Owners of files as one client is told them, and what its numbers mean here: the user mapping backwards, and forwards for chown.

Under `identity` there is nothing to translate. Else numbers are the client's own: `ls -l` on its node finds its own names for them, and
what a program has just made belongs to whom it runs as.

- a `table`, or that of equal `names`, is read backwards: the local account's number is told as the number there that is mapped to it; of
  several the asking user's own, then the lowest. The same for groups;
- the user as whom the client acts is told as the client's own number, its group as its own group. So under `all:USER` the files of USER are
  everybody's own, as everybody is USER;
- 0 is 0 both ways, unless the table says otherwise: root there names root here. It gives nothing, since who acts as root is another matter;
- all others are nobody's: what the map does not know is told as `NOBODY`, and a chown to it is EINVAL, as in a user namespace. A chown to
  nobody is one to the account that stands for nobody here.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

import attrs

NOBODY = 65534
NOGROUP = 65534
"""Every Linux has these for what has no number of its own (/proc/sys/kernel/overflowuid)."""


@attrs.frozen
class Owners:
    """`*_out`: numbers here to numbers there; `*_in` the other way."""

    users_out: Mapping[int, int]
    users_in: Mapping[int, int]
    groups_out: Mapping[int, int]
    groups_in: Mapping[int, int]

    def user_out(self, uid: int) -> int:
        return self.users_out.get(uid, NOBODY)

    def group_out(self, gid: int) -> int:
        return self.groups_out.get(gid, NOGROUP)

    def user_in(self, uid: int) -> int:
        """OSError EINVAL for a number that is nobody here."""
        return _known(self.users_in, uid, "user")

    def group_in(self, gid: int) -> int:
        """As `user_in`."""
        return _known(self.groups_in, gid, "group")


def _known(numbers: Mapping[int, int], number: int, what: str) -> int:
    found = numbers.get(number)
    if found is None:
        raise OSError(errno.EINVAL, f"{what} {number} of that node is nobody here")
    return found


def both_ways(table: Mapping[int, int], claimed: int, acting: int, nobody: int) -> tuple[dict[int, int], dict[int, int]]:
    """(out, in) of a *table* (number there to number here) for a client that claims *claimed* and acts as *acting*. *nobody*: the number
    here that stands for nobody."""
    there = dict(table)
    if acting != nobody:
        there.setdefault(claimed, acting)
    there.setdefault(0, 0)
    there.setdefault(NOBODY, nobody)
    here: dict[int, int] = {}
    for number in sorted(there, reverse=True):
        here[there[number]] = number
    if there.get(claimed) == acting != nobody:
        here[acting] = claimed
    if 0 not in table:
        here.setdefault(0, 0)
    here[nobody] = NOBODY
    return here, there
