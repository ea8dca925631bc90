"""Invitations of a node: which codes are open, how often each was tried, who may try at all. Pure.

An invitation ends by its last use, by its third wrong try, by its time, or by hand. It is remembered until its time is over all the same,
so that whoever comes with the right code later hears why it is no good: somebody else used it, or somebody guessed. An exchange that is
not brought to its confirmation is no try, since it tells nothing about a guess; it costs us work, and is bounded by the budgets.

A source is an IPv4 address, or a /64 of IPv6, of which one machine may have as many addresses as it likes (`group`). One that was wrong
waits before it may try again, and is not answered any more after some wrong tries; all sources together have a budget of wrong tries, so
that nobody gets more guesses by asking for more invitations or from more addresses.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import Counter, deque

import attrs

from qnetpy.enrol.code import Code
from qnetpy.enrol.wire import Refusal, Refused
from resmgr.bucket import TokenBucket

TRIES = 3
"""Wrong tries that kill an invitation."""
INVITATIONS_MAX = 64
"""Invitations remembered. Stops a script that invites in a loop; 64 codes of 25 bits with three tries each are one guess in 170,000."""
USES_MAX = 256
TTL_DEFAULT = 600.0
TTL_MAX = 86400.0
SOURCES_MAX = 1024
"""Sources with a history. Stops a flood from many addresses; the longest unheard is forgotten, the total budget is not."""
WRONG_PAUSE = 2.0
"""Seconds after a wrong try in which its source is not answered. People need longer; a loop does not get three tries in a millisecond."""
WRONG_PER_SOURCE = 6
WRONG_TOTAL = 30
WRONG_PERIOD = 600.0
"""Wrong tries of one source, and of all, within so many seconds; beyond, nobody (else) gets a try until that is over."""
HELLO_RATE = 5.0
HELLO_BURST = 10.0
"""Exchanges begun per second in all, above a burst: 20 ms of a worker thread each."""
HELLO_PER_SOURCE = 6.0
"""Burst of one source; it gets one more each second."""


def group(source: str) -> str:
    """What counts as one source with that address: an IPv4 address, a /64 of IPv6. A link-local IPv6 address stands for itself, since all
    machines of a cable are in one /64 there. Anything else stands for itself too."""
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return source
    if address.version == 4 or address.is_link_local:
        return source
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


class State(enum.Enum):
    OPEN = "open"
    USED = "used"
    KILLED = "killed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@attrs.define(eq=False)
class Invitation:
    """One code and what became of it."""

    code: Code = attrs.field(repr=False)
    name: str
    """The node's name; empty: as the machine that joins says."""
    roles: frozenset[str]
    uses: int
    """How many machines may still come."""
    expires: float
    """Monotonic."""
    validity: float
    """Seconds for which the certificates are good."""
    state: State = State.OPEN
    left: int = TRIES
    granted: dict[bytes, str] = attrs.Factory(dict)
    """Static keys that got a certificate, and their names: the same machine may ask again when the answer was lost."""
    wrong: list[str] = attrs.Factory(list)
    """Sources of wrong tries."""
    joined: list[str] = attrs.Factory(list)
    """Names of the machines that said they have stored what they got."""


@attrs.define
class _Source:
    hellos: TokenBucket = attrs.Factory(lambda: TokenBucket(1.0, HELLO_PER_SOURCE))
    wrong: list[float] = attrs.Factory(list)


class Invitations:
    """The table. `counters`: what was refused, by reason."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._by_public: dict[str, Invitation] = {}
        self._sources: dict[str, _Source] = {}
        self._wrong: deque[float] = deque()
        self._hellos = TokenBucket(HELLO_RATE, HELLO_BURST)

    def all(self) -> list[Invitation]:
        """Those that are remembered, oldest first."""
        return list(self._by_public.values())

    def get(self, public: str) -> Invitation | None:
        return self._by_public.get(public)

    @property
    def open(self) -> bool:
        """Whether somebody may still come with a code, for the first or (its answer was lost) the second time."""
        return any(invitation.state in (State.OPEN, State.USED) for invitation in self._by_public.values())

    def add(self, invitation: Invitation, now: float) -> bool:
        """Open it. False when there are too many, or one with that public part."""
        self.expire(now)
        if len(self._by_public) >= INVITATIONS_MAX or invitation.code.public in self._by_public:
            return False
        self._by_public[invitation.code.public] = invitation
        return True

    def cancel(self, public: str) -> bool:
        """End it by hand. False when there is none that is open."""
        invitation = self._by_public.get(public)
        if invitation is None or invitation.state is not State.OPEN:
            return False
        invitation.state = State.CANCELLED
        return True

    def expire(self, now: float) -> list[Invitation]:
        """Forget those whose time is over. Returns those that nobody had used up or killed."""
        over = [invitation for invitation in self._by_public.values() if invitation.expires <= now]
        for invitation in over:
            del self._by_public[invitation.code.public]
        unused = [invitation for invitation in over if invitation.state is State.OPEN]
        for invitation in unused:
            invitation.state = State.EXPIRED
        return unused

    def next_timeout(self) -> float | None:
        return min((invitation.expires for invitation in self._by_public.values()), default=None)

    def begin(self, public: str, source: str, now: float) -> Invitation | Refused:
        """Somebody at *source* wants to try a code that routes to *public*: which invitation, or why not. Only what will be computed uses
        the budget of all."""
        self.expire(now)
        if not self._may_try(source, now):
            return Refused(Refusal.BUSY, 0)
        invitation = self._by_public.get(public)
        if invitation is None:
            self.counters["unknown_code"] += 1
            return Refused(Refusal.UNKNOWN, 0)
        if invitation.state not in (State.OPEN, State.USED):
            return self.refusal(invitation)
        return invitation if self._may_compute(now) else Refused(Refusal.BUSY, 0)

    def refusal(self, invitation: Invitation) -> Refused:
        """What is said of an invitation that has ended."""
        self.counters["ended_code"] += 1
        return Refused(
            {State.KILLED: Refusal.KILLED, State.USED: Refusal.USED}.get(invitation.state, Refusal.UNKNOWN),
            0,
        )

    def wrong(self, invitation: Invitation, source: str, now: float) -> Refused:
        """A confirmation showed another code: a try is gone. What to say."""
        self.counters["wrong_code"] += 1
        self._wrong.append(now)
        entry = self._source(source)
        entry.wrong.append(now)
        if invitation.state not in (State.OPEN, State.USED):
            # Others were quicker, in exchanges that had begun while it was alive.
            return self.refusal(invitation)
        invitation.left -= 1
        invitation.wrong.append(source)
        if invitation.left == 0:
            invitation.state = State.KILLED
            self.counters["killed"] += 1
            return Refused(Refusal.KILLED, 0)
        return Refused(Refusal.WRONG, invitation.left)

    def right(self, invitation: Invitation) -> Refused | None:
        """A confirmation was right. None: go on; otherwise the invitation ended meanwhile."""
        return None if invitation.state in (State.OPEN, State.USED) else self.refusal(invitation)

    def use(self, invitation: Invitation, static_key: bytes, name: str) -> bool:
        """Count a use by that key. A key that used it before, under the same name, may again. False: all uses are gone."""
        if static_key in invitation.granted:
            return invitation.granted[static_key] == name
        if invitation.state is not State.OPEN:
            return False
        invitation.granted[static_key] = name
        invitation.uses -= 1
        if invitation.uses == 0:
            invitation.state = State.USED
        return True

    def _may_try(self, source: str, now: float) -> bool:
        while self._wrong and self._wrong[0] <= now - WRONG_PERIOD:
            self._wrong.popleft()
        if len(self._wrong) >= WRONG_TOTAL:
            self.counters["wrong_total"] += 1
            return False
        entry = self._source(source)
        entry.wrong = [when for when in entry.wrong if when > now - WRONG_PERIOD]
        if len(entry.wrong) >= WRONG_PER_SOURCE or (entry.wrong and now < entry.wrong[-1] + WRONG_PAUSE):
            self.counters["wrong_source"] += 1
            return False
        if not entry.hellos.take(now):
            self.counters["rate_source"] += 1
            return False
        return True

    def _may_compute(self, now: float) -> bool:
        if not self._hellos.take(now):
            self.counters["rate_total"] += 1
            return False
        return True

    def _source(self, source: str) -> _Source:
        source = group(source)
        entry = self._sources.pop(source, None)
        if entry is None:
            if len(self._sources) >= SOURCES_MAX:
                del self._sources[next(iter(self._sources))]
            entry = _Source()
        self._sources[source] = entry
        return entry
