"""What each user of a manager has at the moment, and how much it may have: things, bytes under way, work per second.

A user is a uid on a node. A record lives as long as there is something to remember in it. A node says itself who its users are and may name
as many as it likes, so all users of another node together have a share of what there is (`NODE_SHARE`), the rate of one user, and one turn.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Hashable

import attrs

from resmgr.bucket import TokenBucket
from resmgr.channel import ND_LOCAL
from resmgr.errors import ResmgrError

USERS_MAX = 4096
"""Records; stops a node that claims one user after another from filling memory."""

NODE_SHARE = 4
"""Another node's users together may have this part of things, of bytes and of records: a quarter."""

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

    @property
    def client(self) -> Hashable:
        """Who takes turns with others: the user, or all users of another node."""
        return self.user if self.user[0] == ND_LOCAL else self.user[0]


class Accounts:
    """All users. `refused` counts by limit."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.things = 0
        self.inflight = 0
        self.refused = {"things": 0, "inflight": 0, "users": 0}
        self._accounts: dict[User, Account] = {}
        self._records: Counter[int] = Counter()
        self._things: Counter[int] = Counter()
        self._inflight: Counter[int] = Counter()
        """By node."""
        self._buckets: dict[int, TokenBucket] = {}
        """Of other nodes."""

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, user: User, now: float) -> Account:
        """The user's record. ENFILE when there are too many users."""
        account = self._accounts.get(user)
        if account is None:
            if self._crowded(user[0]):
                self._forget(now)
            if self._crowded(user[0]):
                self.refused["users"] += 1
                raise ResmgrError(errno.ENFILE, "too many users at once")
            bucket = self._buckets.get(user[0]) or TokenBucket(self.limits.rate, self.limits.burst)
            if user[0] != ND_LOCAL:
                self._buckets[user[0]] = bucket
            self._records[user[0]] += 1
            account = self._accounts[user] = Account(user, bucket)
        return account

    def _crowded(self, node: int) -> bool:
        return len(self._accounts) >= USERS_MAX or (node != ND_LOCAL and self._records[node] >= USERS_MAX // NODE_SHARE)

    def _forget(self, now: float) -> None:
        for one in list(self._accounts.values()):
            node = one.user[0]
            # A bucket that is shared remembers what was used when the record is gone.
            if not one.things and not one.inflight and (node != ND_LOCAL or one.bucket.full(now)):
                del self._accounts[one.user]
                _take(self._records, node, 1)
        for node in [node for node, bucket in self._buckets.items() if node not in self._records and bucket.full(now)]:
            del self._buckets[node]

    def add(self, account: Account) -> None:
        """One thing more. EMFILE or ENFILE."""
        limits, node = self.limits, account.user[0]
        shared = node != ND_LOCAL and self._things[node] >= limits.things_all // NODE_SHARE
        if account.things >= limits.things or self.things >= limits.things_all or shared:
            self.refused["things"] += 1
            raise ResmgrError(errno.EMFILE if account.things >= limits.things else errno.ENFILE)
        account.things += 1
        self.things += 1
        self._things[node] += 1

    def remove(self, account: Account, count: int = 1) -> None:
        account.things -= count
        self.things -= count
        _take(self._things, account.user[0], count)

    def begin(self, account: Account, size: int) -> None:
        """*size* bytes more under way. EAGAIN; what is larger than the limit by itself may be under way alone."""
        limits, node = self.limits, account.user[0]
        shared = self._inflight[node] if node != ND_LOCAL else 0
        if (
            (account.inflight and account.inflight + size > limits.inflight)
            or (self.inflight and self.inflight + size > limits.inflight_all)
            or (shared and shared + size > limits.inflight_all // NODE_SHARE)
        ):
            self.refused["inflight"] += 1
            raise ResmgrError(errno.EAGAIN, "too much is under way: wait for answers")
        account.inflight += size
        self.inflight += size
        self._inflight[node] += size

    def end(self, account: Account, size: int) -> None:
        account.inflight -= size
        self.inflight -= size
        _take(self._inflight, account.user[0], size)


def _take(counted: Counter[int], node: int, number: int) -> None:
    counted[node] -= number
    if not counted[node]:
        del counted[node]
