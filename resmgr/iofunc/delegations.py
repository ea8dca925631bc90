"""Delegations of open files, at the server: who has one, who was asked to give it back, who waits for that. Sans-IO.

A delegation belongs to an open control block, and says that nobody changes what that has open before its client was asked (docs/protocol/
delegation.md). `Outer`, the kernel of a machine's files, knows when somebody else wants to: it is asked for each delegation and calls
`recall`. A client that does not give back in `patience` seconds has lost it: `lost` is called with the open control block.

Requests that meet one wait (`wait`): they are tried again when any was given back, and every AGAIN seconds, since what is in the way may be
another program's; longer than the patience and a second they do not wait.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

import attrs

from resmgr.channel import Message
from resmgr.dispatch import Dispatch, Timer
from resmgr.iofunc.handle import Client, Handle

PATIENCE: Final = 3.0
"""Seconds. A client believes nothing after a second of silence, and gives everything back when it hears its server again."""
OF_CLIENT: Final = 256
"""Delegations of one connection, of one node and of all: more are refused. Each is a lease of the kernel; and a program that changes all
files of the machine has to wait for as many answers."""
OF_NODE: Final = 1024
IN_ALL: Final = 4096
LATE: Final = 1.0
"""Seconds after which one is given back late, though in time: a client that hears its server gives back at once. Stops one that always
takes its time from holding everybody up again and again."""
REST: Final = 60.0
"""Seconds in which a node gets none that has given one back late, or not in time. So a program that goes through all its files waits once
or twice, not for each."""
AGAIN: Final = 0.05
WAITING_OF_NODE: Final = 256
WAITING_MAX: Final = 1024
"""Requests of a node, and in all, that wait; more are EAGAIN. Stops who asks without end from filling memory, from taking the places of
others, and the time, since each is tried again and again."""

C = TypeVar("C", bound=Client)


class Outer(Protocol):
    """Has a say in who may have a delegation."""

    def take(self, handle: Handle) -> bool:
        """Whether what *handle* has open is delegated from now on: whoever wants to change it has to wait, and `recall` is called."""
        ...

    def give(self, handle: Handle) -> None:
        """It is not any more."""
        ...


@attrs.frozen
class Recalled:
    """A delegation that was not given back yet: whose, of which file, since when (`Dispatch.now`)."""

    node: str
    uid: int
    ino: int
    since: float


class _Delegation(Generic[C]):
    __slots__ = ("client", "handle", "ino", "key", "since", "timer")

    def __init__(self, client: C, handle: Handle, key: Hashable, ino: int) -> None:
        self.client = client
        self.handle = handle
        self.key = key
        self.ino = ino
        self.since = 0.0
        self.timer: Timer | None = None
        """Set while it is recalled."""


class Delegations(Generic[C]):
    """Of one manager. *tell* tells a client that the delegation of the file with an inode number is recalled; *counters* gets what
    happened."""

    def __init__(
        self,
        dispatch: Dispatch,
        outer: Outer,
        tell: Callable[[C, int], None],
        lost: Callable[[Handle], None],
        counters: dict[str, int],
    ) -> None:
        self.patience = PATIENCE
        self._dispatch = dispatch
        self._outer = outer
        self._tell = tell
        self._lost = lost
        self._counters = counters
        for name in ("granted", "refused", "recalled", "late", "timed_out", "waits", "waits_full"):
            counters["delegations_" + name] = 0
        self._of_handle: dict[Handle, _Delegation[C]] = {}
        self._of_key: dict[Hashable, dict[_Delegation[C], None]] = {}
        self._of_client: Counter[C] = Counter()
        self._of_node: Counter[int] = Counter()
        self._slow: dict[int, float] = {}
        """Nodes that have given back late, or not in time, and until when they get none."""
        self._waiting: dict[Message, Callable[[], None]] = {}
        self._waiting_of: Counter[int] = Counter()
        """By node."""
        self._since: dict[Message, float] = {}
        """When those that wait, or are being tried again, began to."""
        self._timer: Timer | None = None
        self._soon = False

    def __len__(self) -> int:
        return len(self._of_handle)

    # ---- given and given back

    def offer(self, client: C, handle: Handle, key: Hashable, ino: int) -> bool:
        """Whether *client* has a delegation from now on of what *handle*, its own, has open: *key* among the manager's objects, which it
        knows by the inode number *ino*."""
        nd = client.info.nd
        full = self._of_client[client] >= OF_CLIENT or self._of_node[nd] >= OF_NODE or len(self) >= IN_ALL
        slow = nd in self._slow and self._dispatch.now() < self._slow[nd]
        recalled = any(other.timer is not None for other in self._of_key.get(key, ()))
        if client.gone or handle.closed or full or slow or recalled or handle in self._of_handle or not self._outer.take(handle):
            self._counters["delegations_refused"] += 1
            return False
        self._counters["delegations_granted"] += 1
        delegation = self._of_handle[handle] = _Delegation(client, handle, key, ino)
        self._of_key.setdefault(key, {})[delegation] = None
        self._of_client[client] += 1
        self._of_node[nd] += 1
        if handle.at_close is None:
            handle.at_close = {}
        handle.at_close[self] = self._closed
        return True

    def back(self, handle: Handle) -> None:
        """Its client gives back the delegation of *handle*, if it has one."""
        delegation = self._of_handle.get(handle)
        if delegation is not None:
            self._returned(delegation)

    def has(self, key: Hashable) -> bool:
        """Whether anybody has a delegation of that object."""
        return key in self._of_key

    def recall(self, key: Hashable) -> None:
        """Somebody wants to change that object."""
        for delegation in list(self._of_key.get(key, ())):
            self._recall(delegation)

    def recall_of(self, handle: Handle) -> None:
        """The same, of the object that *handle* has open: only this delegation."""
        delegation = self._of_handle.get(handle)
        if delegation is not None:
            self._recall(delegation)

    def _recall(self, delegation: _Delegation[C]) -> None:
        if delegation.timer is None:
            self._counters["delegations_recalled"] += 1
            now = delegation.since = self._dispatch.now()
            delegation.timer = self._dispatch.call_at(now + self.patience, partial(self._timed_out, delegation))
            self._tell(delegation.client, delegation.ino)

    def _timed_out(self, delegation: _Delegation[C]) -> None:
        """Its node may not give back the others either: all are asked for at once."""
        self._counters["delegations_timed_out"] += 1
        nd = delegation.client.info.nd
        self._gets_none(nd)
        self._end(delegation)
        self._lost(delegation.handle)
        for other in [other for other in self._of_handle.values() if other.client.info.nd == nd]:
            self._recall(other)

    def _gets_none(self, nd: int) -> None:
        now = self._dispatch.now()
        self._slow = {other: until for other, until in self._slow.items() if now < until}
        self._slow[nd] = now + REST

    def _closed(self, handle: Handle) -> None:
        delegation = self._of_handle.get(handle)
        if delegation is None:
            return
        if delegation.client.gone:
            self._end(delegation)
        else:
            self._returned(delegation)

    def _returned(self, delegation: _Delegation[C]) -> None:
        if delegation.timer is not None and self._dispatch.now() - delegation.since > LATE:
            self._counters["delegations_late"] += 1
            self._gets_none(delegation.client.info.nd)
        self._end(delegation)

    def _end(self, delegation: _Delegation[C]) -> None:
        handle, client = delegation.handle, delegation.client
        del self._of_handle[handle]
        others = self._of_key[delegation.key]
        del others[delegation]
        if not others:
            del self._of_key[delegation.key]
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]
        self._of_node[client.info.nd] -= 1
        if not self._of_node[client.info.nd]:
            del self._of_node[client.info.nd]
        if handle.at_close is not None:
            handle.at_close.pop(self, None)
        if delegation.timer is not None:
            delegation.timer.cancel()
        self._outer.give(handle)
        if self._waiting and not self._soon:
            self._soon = True
            self._dispatch.call_soon(self._ended)

    def recalled(self) -> list[Recalled]:
        """What is waited for, the oldest first."""
        found = [
            Recalled(one.client.info.node, one.client.info.credentials.uid, one.ino, one.since)
            for one in self._of_handle.values()
            if one.timer is not None
        ]
        return sorted(found, key=lambda one: one.since)

    # ---- who waits

    def wait(self, message: Message, again: Callable[[], None], key: Hashable | None = None) -> None:
        """*message* meets a delegation, of *key* if that is known, or something of its kind: *again* is called when it may be tried again.
        It may call this again. BlockingIOError when it has waited long enough."""
        now = self._dispatch.now()
        since = self._since.setdefault(message, now)
        if key is not None:
            self.recall(key)
        nd = message.info.nd
        if len(self._waiting) >= WAITING_MAX or self._waiting_of[nd] >= WAITING_OF_NODE:
            self._counters["delegations_waits_full"] += 1
        elif now - since <= self.patience + 1.0:
            self._waiting[message] = again
            self._waiting_of[nd] += 1
            message.on_unblock = partial(self._give_up, message)
            self._counters["delegations_waits"] += since == now
            if self._timer is None:
                self._timer = self._dispatch.call_at(now + AGAIN, self._tick)
            return
        del self._since[message]
        raise BlockingIOError(errno.EAGAIN, "somebody has it and does not give it back")

    def waits(self, message: Message) -> bool:
        """Whether *message* has waited, and is perhaps being tried again."""
        return message in self._since

    def _give_up(self, message: Message) -> None:
        if self._waiting.pop(message, None) is not None:
            self._waiting_of[message.info.nd] -= 1
        if not message.answered:
            message.error(errno.EINTR)

    def _ended(self) -> None:
        self._soon = False
        self._retry()

    def _tick(self) -> None:
        self._timer = None
        self._retry()
        if self._since and self._timer is None:
            self._timer = self._dispatch.call_at(self._dispatch.now() + AGAIN, self._tick)

    def _retry(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._waiting_of.clear()
        for message, again in waiting.items():
            message.on_unblock = None
            if not message.answered:
                again()
        for message in [message for message in self._since if message.answered]:
            del self._since[message]

    def close(self) -> None:
        """The manager ends, its handles are closed by others. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()
        self._since.clear()
