"""Supplementary groups of the users of a mount, which the kernel's requests do not carry.

The first request of a user waits until the account database has told its groups; they are asked for again whenever a connection is made
for it, which uses the groups told before if the answer takes its time. Root's groups decide nothing, so root waits no longer than the
database may take: its files are there when a directory service is not.
"""

from __future__ import annotations

from resmgr.errors import ResmgrError
from resmgr.users import ACCOUNTS_MAX, Accounts, LookingUp

ASKER = "mount"


class UserGroups:
    """See the head of this file. Dispatch context."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self.known: dict[int, tuple[int, ...]] = {}
        """By uid: users that need not wait."""

    def learn(self, uid: int) -> None:
        """Have *uid* in `known`. Raises what `Accounts.user_now` raises."""
        try:
            account = self._accounts.user_now(uid, ASKER)
        except LookingUp:
            raise
        except ResmgrError:
            if uid != 0:
                raise
            account = None
        if len(self.known) >= ACCOUNTS_MAX and uid not in self.known:
            self.known.clear()
        self.known[uid] = () if account is None else account.groups

    def of(self, uid: int, gid: int) -> tuple[int, ...]:
        """For a new connection of a user that was learnt."""
        try:
            self.learn(uid)
        except ResmgrError:
            # What was told before holds.
            pass
        return self.known.get(uid, ())
