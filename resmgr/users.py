"""This machine's account database: names to numbers and supplementary groups, remembered for a while.

A look-up may read files or ask a directory service, which may take its time or never answer. So the dispatch does not make it: `user_now`
and `group_now` answer from memory, and what is not there is asked for in a thread while the request that needs it waits:

    fresh (EXPIRY)      the answer
    old (OLD_MAX)       the answer, and it is asked for again
    unknown, older      LookingUp: `then` calls back when there is an answer, or after PATIENCE
    no answer so long   ETIMEDOUT, until there is one
    too many asked for  EAGAIN, for all or for one asker, who is a node or this machine's programs

Each asker asks for himself, though another asks the same already, whose questions may hang: the first answer is all askers'.

Unknown accounts are remembered as unknown for as long. `user` and `group` are for those who set something up: they look up where they are
called, as the others do before `ask_in_threads`, which under virtual time never comes.
"""

from __future__ import annotations

import errno
import functools
import grp
import os
import pwd
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Protocol

import attrs

from resmgr.dispatch import Dispatch, Timer
from resmgr.errors import ResmgrError
from resmgr.lookups import Lookups

if TYPE_CHECKING:
    from resmgr.channel import Message

EXPIRY = 60.0
OLD_MAX = 600.0
"""Seconds for which an answer is fresh, and for which it is used while nobody answers the question again."""
PATIENCE = 10.0
"""Seconds that a request waits."""
ACCOUNTS_MAX = 4096
"""Remembered answers. A node that claims every uid in turn would otherwise fill memory; when full, the oldest is forgotten."""
ASKED_MAX = 256
ASKED_PER_ASKER = 64
"""Look-ups without an answer."""

_USER = "user"
_GROUP = "group"
_Key = tuple[str, int | str]


@attrs.frozen
class Account:
    """One user of this machine: `groups` are all groups that it is a member of, the primary one included."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


@attrs.frozen
class FarTable:
    """What numbers of another node mean here, by equal names: number there to number here."""

    users: Mapping[int, int]
    groups: Mapping[int, int]


class FarAccounts(Protocol):
    """Users of other nodes by their names (`resmgr.rosters`)."""

    def table(self, node: str) -> FarTable:
        """Raises LookingUp while it is asked for, and `ResmgrError` when it cannot be known."""
        ...

    def again(self, node: str) -> None:
        """A number of *node* is not in its table: raises LookingUp if a newer one is asked for."""
        ...


_Value = Account | int | None


class LookingUp(ResmgrError):
    """The account is being looked up. A manager that cannot wait answers with the errno, which is EAGAIN."""

    def __init__(self, waiting: list[Callable[[], None]]) -> None:
        super().__init__(errno.EAGAIN, "the account is being looked up")
        self._waiting = waiting

    def then(self, call: Callable[[], None]) -> None:
        """Have *call* called (in dispatch context) when it makes sense to ask again: that may fail, but does not raise this for the same
        account again."""
        self._waiting.append(call)


def retry(message: Message, error: LookingUp, handle: Callable[[Message], None]) -> None:
    """Give *message* to its manager's *handle* again when the account is known, unless its client gives up before."""
    if message.answered:
        return

    def again() -> None:
        message.on_unblock = None
        if not message.answered:
            handle(message)

    message.on_unblock = lambda: message.error(errno.EINTR)
    error.then(again)


class _Asked:
    """A look-up of one asker without an answer."""

    __slots__ = ("answered", "asker", "late", "timer", "waiting")

    def __init__(self, asker: Hashable) -> None:
        self.asker = asker
        self.answered = False
        """Perhaps by another's look-up; read by threads."""
        self.waiting: list[Callable[[], None]] = []
        self.late = False
        self.timer: Timer | None = None


class Accounts:
    """*now* is monotonic seconds. Unknown names and numbers give None."""

    def __init__(self, now: Callable[[], float], expiry: float = EXPIRY) -> None:
        self._now = now
        self._expiry = expiry
        self._known: dict[_Key, tuple[float, _Value]] = {}
        """When it was looked up, and the answer; the oldest first."""
        self._asked: dict[_Key, dict[Hashable, _Asked]] = {}
        self._askers: Counter[Hashable] = Counter()
        """Look-ups that have not ended, whether or not another's was the answer."""
        self.far: FarAccounts | None = None
        """Set where users of other nodes can be asked for."""
        self._dispatch: Dispatch | None = None
        self._lookups: Lookups | None = None
        self.counters = {"account_lookups": 0, "account_lookups_late": 0, "account_lookups_refused": 0}

    def ask_in_threads(self, dispatch: Dispatch) -> None:
        """From now on `user_now` and `group_now` do not block."""
        self._dispatch = dispatch
        self._lookups = Lookups("account-lookup")

    def close(self) -> None:
        """Nobody is asked any more, nor answered who waits. Idempotent."""
        if self._lookups is not None:
            self._lookups.close()
        asked, self._asked = self._asked, {}
        self._askers.clear()
        for askers in asked.values():
            self._done(askers)

    def user(self, who: int | str) -> Account | None:
        """The account with this uid or name. A name of digits that is no account's name is taken as a uid. May block."""
        value = self._here((_USER, who))
        return value if isinstance(value, Account) else None

    def group(self, name: str) -> int | None:
        """The gid of a group given by name or by digits. May block."""
        value = self._here((_GROUP, name))
        return value if isinstance(value, int) else None

    def user_now(self, who: int | str, asker: Hashable = 0) -> Account | None:
        """`user`, without blocking: see the head of this file for what it may raise. Dispatch context."""
        value = self._at_once((_USER, who), asker)
        return value if isinstance(value, Account) else None

    def group_now(self, name: str, asker: Hashable = 0) -> int | None:
        """`group`, in the same way."""
        value = self._at_once((_GROUP, name), asker)
        return value if isinstance(value, int) else None

    def _here(self, key: _Key) -> _Value:
        now = self._now()
        known = self._known.get(key)
        if known is not None and now - known[0] < self._expiry:
            return known[1]
        self.counters["account_lookups"] += 1
        return self._keep(key, _look_up(key), now)

    def _keep(self, key: _Key, value: _Value, now: float) -> _Value:
        self._known.pop(key, None)
        if len(self._known) >= ACCOUNTS_MAX:
            del self._known[next(iter(self._known))]
        self._known[key] = now, value
        return value

    def _at_once(self, key: _Key, asker: Hashable) -> _Value:
        if self._lookups is None:
            return self._here(key)
        known = self._known.get(key)
        age = OLD_MAX if known is None else self._now() - known[0]
        if known is not None and age < self._expiry:
            return known[1]
        asked = self._asked.get(key, {}).get(asker)
        if asked is None:
            asked = self._ask(key, asker)
        if known is not None and age < OLD_MAX:
            return known[1]
        if asked is None:
            raise ResmgrError(errno.EAGAIN, "too many accounts are being looked up")
        if asked.late:
            raise ResmgrError(errno.ETIMEDOUT, "the account database does not answer")
        raise LookingUp(asked.waiting)

    def _ask(self, key: _Key, asker: Hashable) -> _Asked | None:
        """None: too many are asked for already. Who may ask no more waits for another's answer, if there is another who asked the same."""
        lookups, dispatch = self._lookups, self._dispatch
        assert lookups is not None
        assert dispatch is not None
        if self._askers.total() >= ASKED_MAX or self._askers[asker] >= ASKED_PER_ASKER:
            for other in self._asked.get(key, {}).values():
                if not other.late:
                    return other
            self.counters["account_lookups_refused"] += 1
            return None
        self.counters["account_lookups"] += 1
        asked = _Asked(asker)
        self._asked.setdefault(key, {})[asker] = asked
        self._askers[asker] += 1
        asked.timer = dispatch.call_at(dispatch.now() + PATIENCE, lambda: self._late(asked))

        def work(failure: OSError | None) -> None:
            value = None if asked.answered else _look_up(key)
            dispatch.call_from_thread(functools.partial(self._answered, key, asked, value))

        lookups.submit(asker, work)
        return asked

    def _answered(self, key: _Key, asked: _Asked, value: _Value) -> None:
        left = self._askers.pop(asked.asker, 1) - 1
        if left:
            self._askers[asked.asker] = left
        if asked.answered:
            return
        askers = self._asked.pop(key)
        self._done(askers)
        self._keep(key, value, self._now())
        for one in askers.values():
            self._tell(one)

    @staticmethod
    def _done(askers: dict[Hashable, _Asked]) -> None:
        for one in askers.values():
            one.answered = True
            if one.timer is not None:
                one.timer.cancel()

    def _late(self, asked: _Asked) -> None:
        asked.late = True
        self.counters["account_lookups_late"] += 1
        self._tell(asked)

    @staticmethod
    def _tell(asked: _Asked) -> None:
        waiting = asked.waiting[:]
        asked.waiting.clear()
        for call in waiting:
            call()


def _look_up(key: _Key) -> _Value:
    kind, who = key
    return _find_group(str(who)) if kind == _GROUP else _find_user(who)


def _find_group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return int(name) if name.isdecimal() else None


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
