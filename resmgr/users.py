"""This machine's account database: names to numbers and supplementary groups, cached with expiry.

A look-up may read files or ask a directory service, so answers are kept for `EXPIRY` seconds; the dispatch pays for one look-up per
account and expiry, not for one per request. Unknown accounts are remembered as unknown for as long.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable

import attrs

EXPIRY = 60.0
ACCOUNTS_MAX = 4096
"""Remembered answers. A node that claims every uid in turn would otherwise fill memory; when full, everything is forgotten."""


@attrs.frozen
class Account:
    """One user of this machine: `groups` are all groups that it is a member of, the primary one included."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


class Accounts:
    """Cached look-ups. *now* is monotonic seconds. Unknown names and numbers give None."""

    def __init__(self, now: Callable[[], float], expiry: float = EXPIRY) -> None:
        self._now = now
        self._expiry = expiry
        self._users: dict[int | str, tuple[float, Account | None]] = {}
        self._groups: dict[str, tuple[float, int | None]] = {}

    def user(self, who: int | str) -> Account | None:
        """The account with this uid or name. A name of digits that is no account's name is taken as a uid."""
        now = self._now()
        known = self._users.get(who)
        if known is not None and known[0] > now:
            return known[1]
        if len(self._users) >= ACCOUNTS_MAX:
            self._users.clear()
        account = _find_user(who)
        self._users[who] = (now + self._expiry, account)
        return account

    def group(self, name: str) -> int | None:
        """The gid of a group given by name or by digits."""
        now = self._now()
        known = self._groups.get(name)
        if known is not None and known[0] > now:
            return known[1]
        if len(self._groups) >= ACCOUNTS_MAX:
            self._groups.clear()
        gid: int | None
        try:
            gid = grp.getgrnam(name).gr_gid
        except KeyError:
            gid = int(name) if name.isdecimal() else None
        self._groups[name] = (now + self._expiry, gid)
        return gid

    def forget(self) -> None:
        """Look everything up again from now on (the configuration was reloaded)."""
        self._users.clear()
        self._groups.clear()


def _find_user(who: int | str) -> Account | None:
    try:
        record = pwd.getpwuid(who) if isinstance(who, int) else pwd.getpwnam(who)
    except (KeyError, OverflowError, ValueError):
        return _find_user(int(who)) if isinstance(who, str) and who.isdecimal() else None
    try:
        groups = tuple(sorted({record.pw_gid, *os.getgrouplist(record.pw_name, record.pw_gid)}))
    except OSError:
        groups = (record.pw_gid,)
    return Account(record.pw_name, record.pw_uid, record.pw_gid, groups)
