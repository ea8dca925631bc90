"""Whom to call, and when again: addresses where nodes may be (hints), the handshake attempts under way, and who waits for which.

An address is a *stranger's* until a node was authenticated there; then it is a *known* one's, and is remembered with the node's name.
Anybody on the cable can announce strangers: they are bounded in number, in calls at a time, and called ever more rarely. But a stranger
may be a node that is up, on a cable that did not work until now: all are called once more when a link begins, and
while they are few as often as known ones where a node that is up has no path. A known
address is called again within seconds, so that a healed network is noticed; within a minute once discovery has withdrawn it, since after
a long partition no announcement may be under way on either side. The node there may be another by now, and does not answer who calls it by
another name: after a call that came to nothing the next one is for whoever is there, and so in turn.

One attempt may serve several callers (two addresses of one node; a link that renews its keys and a hint): it is abandoned when the last of
them leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import attrs

from qnetpy.link.constants import ATTEMPT_TIMEOUT
from qnetpy.link.deadlines import Deadlines
from qnetpy.link.handshake import HandshakeMachine
from qnetpy.link.outcome import Failed, PeerHint, Reason
from qnetpy.link.wire import Address

STRANGERS_MAX: Final = 4096
"""Addresses without a known node. Stops a flood of announcements from filling memory; the one not called for longest goes first."""
CALLS_MAX: Final = 256
"""Strangers called at once. Stops the same flood from making us send and compute without end: about two frames a second and call."""
ADDRESSES_MAX: Final = 16
"""Known addresses of one node. Stops a member that moves about from filling memory; the oldest goes first."""
RETRY_SOON: Final = 0.5
"""Seconds from one call to the next at least, whatever the reason of it."""
RETRY_FIRST: Final = 2.0
RETRY_KNOWN: Final = 5.0
RETRY_STRANGER: Final = 60.0
"""Seconds until an address is called again after nobody answered: at first, and at most for known ones and strangers. It doubles."""
STRANGERS_FEW: Final = 16
"""Strangers that are called as often as known addresses where a node that is up has no path. If there are more, the wait grows with their
number: they cost as much as so many, a frame a second each."""
STIR_EVERY: Final = 10.0
"""Seconds from one time that a link makes us call all strangers soon to the next. Stops a member that comes and goes from having us call
without end."""
RETRY_REFUSED: Final = 15.0
"""The same after a refusal that only a person can change."""
UNANSWERED: Final = frozenset({Reason.NO_ANSWER, Reason.UNCONFIRMED, Reason.SUPERSEDED, Reason.BUSY})
OF_CERTIFICATES: Final = frozenset({Reason.EXPIRED, Reason.NOT_YET_VALID, Reason.WRONG_CLUSTER, Reason.BAD_SIGNATURE, Reason.REFUSED})
"""Refusals that may end when this node shows another certificate, or trusts another root."""


class Caller(Protocol):
    """Who waits for an attempt: a hint or a link. `attempt` is its number, 0 while there is none."""

    attempt: int


@attrs.define(eq=False)
class Hint:
    """An address that may be a node's."""

    address: Address
    retry_at: float
    attempt: int = 0
    name: str = ""
    """Of the node that was authenticated here."""
    called_at: float = -RETRY_FIRST
    unanswered: int = 0
    """Calls in a row that nobody answered."""
    anyone: bool = False
    """The next call is for whoever is there: the last one was for the node of that name, and came to nothing."""
    told: Reason | None = None
    """The refusal that people have heard of."""
    refused: bool = False
    """The last call ended by a refusal about certificates."""
    announced: bool = False
    """Discovery announces it."""
    withdrawn: bool = False
    """Discovery does not announce it any more."""
    counted: bool = False
    """Its call is one of CALLS_MAX."""


class Waiting:
    """Strangers to call when fewer calls are under way, longest first. Those who were never called and those who did not answer take turns:
    however many of the others there are, one of either kind is next but one."""

    def __init__(self) -> None:
        self._fresh: dict[Address, Hint] = {}
        self._again: dict[Address, Hint] = {}
        self._last_fresh = False

    def __len__(self) -> int:
        return len(self._fresh) + len(self._again)

    def __contains__(self, address: Address) -> bool:
        return address in self._fresh or address in self._again

    def add(self, hint: Hint) -> None:
        (self._again if hint.unanswered else self._fresh)[hint.address] = hint

    def discard(self, address: Address) -> None:
        self._fresh.pop(address, None)
        self._again.pop(address, None)

    def pop(self) -> Hint:
        """The next."""
        self._last_fresh = bool(self._fresh) and not (self._last_fresh and self._again)
        line = self._fresh if self._last_fresh else self._again
        return line.pop(next(iter(line)))


class Calls:
    """See the head of this file. *usable*: is that address' interface up? *linked*: does a live link make a call to that hint needless?
    *wanting*: has a node to which there is a live link no path on that interface?"""

    def __init__(
        self,
        handshake: HandshakeMachine,
        usable: Callable[[Address], bool],
        linked: Callable[[Hint], bool],
        wanting: Callable[[str], bool],
        counters: Counter[str],
    ) -> None:
        self._handshake = handshake
        self._usable = usable
        self._linked = linked
        self._wanting = wanting
        self._counters = counters
        self._strangers: dict[Address, Hint] = {}
        self._known: dict[Address, Hint] = {}
        self._by_name: dict[str, dict[Address, Hint]] = {}
        self._callers: dict[int, list[Caller]] = {}
        self._due: Deadlines[Address] = Deadlines()
        self._waiting = Waiting()
        self._calling = 0
        self._stirred_at = float("-inf")
        self._identity_at = float("-inf")
        """Since when we show and trust what we do."""

    def __len__(self) -> int:
        return len(self._strangers) + len(self._known)

    # Hints

    def get(self, address: Address) -> Hint | None:
        return self._known.get(address) or self._strangers.get(address)

    def owner(self, address: Address) -> str:
        """The node that was authenticated at *address*; empty: none."""
        hint = self._known.get(address)
        return "" if hint is None else hint.name

    def hint(self, address: Address, now: float) -> Hint:
        """A node may be at *address*: call it, now if that is not too often."""
        hint = self.get(address)
        if hint is None:
            if len(self._strangers) >= STRANGERS_MAX:
                self._counters["hints_full"] += 1
                self._forget(next((old for old in self._strangers.values() if not old.attempt), next(iter(self._strangers.values()))))
            hint = self._strangers[address] = Hint(address, now)
        hint.withdrawn = False
        hint.announced = True
        if hint.told is None:
            self._sooner(hint, now)
        if hint.attempt:
            self._handshake.hasten(hint.attempt, now)
        self._call(hint, now)
        return hint

    def unhint(self, address: Address) -> None:
        """Discovery withdrew *address*."""
        hint = self.get(address)
        if hint is not None:
            hint.announced = False
        if hint is not None and hint.name:
            hint.withdrawn = True
        elif hint is not None:
            self._forget(hint)

    def met(self, address: Address, name: str, now: float) -> None:
        """A handshake with the node *name* went to *address*. Whoever carried the frames may have had it go there, so that takes no address
        of another node; `learned` does."""
        if self.owner(address) in ("", name):
            self.learned(address, name, now)

    def learned(self, address: Address, name: str, now: float) -> None:
        """The node *name* was authenticated at *address*."""
        hint = self.get(address)
        if hint is None:
            hint = Hint(address, now)
        elif hint.name != name:
            self._unname(hint)
        self._strangers.pop(address, None)
        self._waiting.discard(address)
        hint.name, hint.told, hint.unanswered, hint.refused, hint.anyone = name, None, 0, False, False
        hint.retry_at = now + RETRY_FIRST
        self._known[address] = hint
        named = self._by_name.setdefault(name, {})
        named.pop(address, None)
        named[address] = hint
        if len(named) > ADDRESSES_MAX:
            self._forget(next(iter(named.values())))
        self._due.discard(address)

    def gone(self, address: Address, name: str, now: float) -> None:
        """The node *name* says that it is not at *address* any more. Others may be."""
        hint = self._known.get(address)
        if hint is not None and hint.name == name:
            self._forget(hint)
            if hint.announced:
                # Discovery says otherwise, perhaps rightly at some time: as a stranger it is called now and then.
                hint.told, hint.unanswered, hint.refused = None, 0, False
                hint.retry_at = now + RETRY_FIRST
                self._strangers[address] = hint
                self._call(hint, now)

    def addresses(self, name: str) -> list[Address]:
        """Where that node was authenticated, latest last."""
        return list(self._by_name.get(name, ()))

    def link_up(self, now: float) -> None:
        """A node is there that was not: call strangers who did not answer again, each as soon as it may be."""
        if now < self._stirred_at:
            return
        self._stirred_at = at = max(now, self._stirred_at + STIR_EVERY)
        for hint in [hint for hint in self._strangers.values() if hint.unanswered and hint.told is None]:
            self._sooner(hint, at)
            self._call(hint, now)

    def lost(self, name: str, now: float) -> None:
        """There is no link to that node any more: call it everywhere."""
        for hint in list(self._by_name.get(name, {}).values()):
            self._sooner(hint, now)
            self._call(hint, now)

    def identity_changed(self, now: float) -> None:
        """This node shows another certificate, or trusts other roots: who was refused for the old ones is called once more, soon. No call
        begins before the next `handle_timeout`."""
        self._identity_at = now
        for hint in self._all():
            if hint.refused and not hint.attempt:
                self._sooner(hint, now)
                self._due.set(hint.address, hint.retry_at)

    def interface_up(self, interface: str, now: float) -> None:
        for hint in [hint for hint in self._all() if hint.address[0] == interface]:
            self._sooner(hint, now)
            self._call(hint, now)

    def interface_gone(self, interface: str) -> None:
        """Nobody can be called there. Where nodes were met is remembered: the interface, or another card, may come back to that cable."""
        for hint in [hint for hint in self._all() if hint.address[0] == interface]:
            if hint.name:
                self.leave(hint)
                self._due.discard(hint.address)
            else:
                self._forget(hint)

    def clear(self) -> None:
        for hint in list(self._all()):
            self._forget(hint)

    def _all(self) -> Iterator[Hint]:
        yield from self._known.values()
        yield from self._strangers.values()

    def _forget(self, hint: Hint) -> None:
        self._unname(hint)
        self._strangers.pop(hint.address, None)
        self._waiting.discard(hint.address)
        self._due.discard(hint.address)
        self.leave(hint)

    def _unname(self, hint: Hint) -> None:
        self._known.pop(hint.address, None)
        named = self._by_name.get(hint.name)
        if named is not None:
            named.pop(hint.address, None)
            if not named:
                del self._by_name[hint.name]
        hint.name = ""

    def _sooner(self, hint: Hint, at: float) -> None:
        hint.retry_at = min(hint.retry_at, max(at, hint.called_at + RETRY_SOON))

    # Calls

    def _call(self, hint: Hint, now: float) -> None:
        """Call the address if it is time and there is need; otherwise see to it that it is looked at again."""
        if hint.attempt or hint.address in self._waiting or not self._usable(hint.address) or self._linked(hint):
            # The end of the attempt or of the link, or the interface, brings it back.
            self._due.discard(hint.address)
        elif now < hint.retry_at:
            self._due.set(hint.address, hint.retry_at)
        elif not hint.name and self._calling >= CALLS_MAX:
            self._waiting.add(hint)
        else:
            hint.called_at = now
            hint.retry_at = now + RETRY_SOON
            hint.counted = not hint.name
            self._calling += hint.counted
            self.join(hint, PeerHint(hint.address, "" if hint.anyone else hint.name), now)

    def join(self, caller: Caller, whom: PeerHint, now: float) -> None:
        """Begin a handshake for *caller*, or join the one to the same node."""
        number = caller.attempt = self._handshake.initiate(whom, now)
        self._callers.setdefault(number, []).append(caller)

    def leave(self, caller: Caller) -> None:
        """*caller* does not want its attempt any more."""
        callers = self._callers.get(caller.attempt)
        if callers is not None:
            callers.remove(caller)
            if not callers:
                del self._callers[caller.attempt]
                self._handshake.abandon(caller.attempt)
            self._released(caller)
        caller.attempt = 0

    def ended(self, attempt: int) -> list[Caller]:
        """The attempt has had its event: who waited for it, free again."""
        callers = self._callers.pop(attempt, [])
        for caller in callers:
            self._released(caller)
            caller.attempt = 0
        return callers

    def _released(self, caller: Caller) -> None:
        if isinstance(caller, Hint) and caller.counted:
            caller.counted = False
            self._calling -= 1

    def failed(self, hint: Hint, event: Failed, now: float) -> None:
        """A call to that address came to nothing: when is the next one due?"""
        hint.refused = event.reason in OF_CERTIFICATES
        if event.reason not in (Reason.SUPERSEDED, Reason.BUSY):
            hint.anyone = not hint.anyone
        if event.reason is Reason.SUPERSEDED or (hint.refused and hint.called_at < self._identity_at):
            hint.retry_at = now + RETRY_SOON
        elif event.reason in UNANSWERED:
            hint.retry_at = now + min(RETRY_FIRST * 2.0 ** min(hint.unanswered, 10), self._longest_wait(hint))
            hint.unanswered += 1
        else:
            hint.retry_at = now + RETRY_REFUSED

    def _longest_wait(self, hint: Hint) -> float:
        """Seconds between calls that nobody answers."""
        if hint.name:
            return RETRY_STRANGER if hint.withdrawn else RETRY_KNOWN
        wait = self._stranger_wait()
        return wait if wait < RETRY_STRANGER and self._wanting(hint.address[0]) else RETRY_STRANGER

    def _stranger_wait(self) -> float:
        """The same for a stranger that may be a node that is up."""
        period = (ATTEMPT_TIMEOUT + RETRY_KNOWN) * max(1.0, len(self._strangers) / STRANGERS_FEW)
        return min(period - ATTEMPT_TIMEOUT, RETRY_STRANGER)

    # Time

    def next_timeout(self) -> float | None:
        return self._due.first()

    def handle_timeout(self, now: float) -> None:
        for address in self._due.due(now):
            hint = self.get(address)
            if hint is not None:
                self._call(hint, now)

    def resume(self, hints: list[Hint], now: float) -> None:
        """After `ended`: look at these hints again, and give strangers that wait their turn."""
        for hint in hints:
            if self.get(hint.address) is hint:
                self._call(hint, now)
        while self._waiting and self._calling < CALLS_MAX:
            self._call(self._waiting.pop(), now)
