"""What each user of a manager has at the moment, and how much it may have: things, bytes under way, work per second.

A user is a uid on a node. A record lives as long as there is something to remember in it.
"""

from __future__ import annotations

import errno

import attrs

from resmgr.bucket import TokenBucket
from resmgr.errors import ResmgrError

USERS_MAX = 4096
"""Records; stops a node that claims one user after another from filling memory."""

User = tuple[int, int]
"""Node descriptor, uid as that node says it."""


@attrs.frozen
class Limits:
    """*things* and *inflight* (bytes) for one user and for all together; *rate* units of work per second and user, *burst* at once."""

    things: int
    things_all: int
    inflight: int
    inflight_all: int
    rate: float
    burst: float


@attrs.define(eq=False)
class Account:
    """Of one user."""

    user: User
    bucket: TokenBucket
    things: int = 0
    inflight: int = 0


class Accounts:
    """All users. `refused` counts by limit."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.things = 0
        self.inflight = 0
        self.refused = {"things": 0, "inflight": 0, "users": 0}
        self._accounts: dict[User, Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, user: User, now: float) -> Account:
        """The user's record. ENFILE when there are too many users."""
        account = self._accounts.get(user)
        if account is None:
            if len(self._accounts) >= USERS_MAX:
                self._forget(now)
            if len(self._accounts) >= USERS_MAX:
                self.refused["users"] += 1
                raise ResmgrError(errno.ENFILE, "too many users at once")
            account = self._accounts[user] = Account(user, TokenBucket(self.limits.rate, self.limits.burst))
        return account

    def _forget(self, now: float) -> None:
        idle = [one for one in self._accounts.values() if not one.things and not one.inflight and one.bucket.full(now)]
        for one in idle:
            del self._accounts[one.user]

    def add(self, account: Account) -> None:
        """One thing more. EMFILE or ENFILE."""
        if account.things >= self.limits.things or self.things >= self.limits.things_all:
            self.refused["things"] += 1
            raise ResmgrError(errno.EMFILE if account.things >= self.limits.things else errno.ENFILE)
        account.things += 1
        self.things += 1

    def remove(self, account: Account, count: int = 1) -> None:
        account.things -= count
        self.things -= count

    def begin(self, account: Account, size: int) -> None:
        """*size* bytes more under way. EAGAIN; what is larger than the limit by itself may be under way alone."""
        limits = self.limits
        if (account.inflight and account.inflight + size > limits.inflight) or (
            self.inflight and self.inflight + size > limits.inflight_all
        ):
            self.refused["inflight"] += 1
            raise ResmgrError(errno.EAGAIN, "too much is under way: wait for answers")
        account.inflight += size
        self.inflight += size

    def end(self, account: Account, size: int) -> None:
        account.inflight -= size
        self.inflight -= size
