"""For tests: both ends of an enrolment with a wire between them that a test may meddle with."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from qnetpy.enrol.code import Code, make_code
from qnetpy.enrol.invitation import Invitation, Invitations
from qnetpy.enrol.inviter import Exchange, grant_once
from qnetpy.enrol.joiner import Joiner, Outcome
from qnetpy.enrol.possession import public_key
from qnetpy.enrol.wire import Denied, Grant, Request
from qnetpy.identity.authority import issue_certificate, make_authority

WALL = 1_800_000_000.0
PRIVATE = bytes(range(32))
KEY = public_key(PRIVATE)
Meddle = Callable[[bytes], bytes]


def as_it_is(data: bytes) -> bytes:
    return data


class Inn:
    """The inviting node: an authority, invitations, and what its people heard. *names* are taken."""

    def __init__(self, seed: int = 1, names: frozenset[str] = frozenset()) -> None:
        self.names = names
        self.keys: dict[bytes, str] = {}
        """Public keys of nodes, and their names."""
        self.random = random.Random(seed)
        self.authority = make_authority("garden", WALL, random=self.random.randbytes)
        self.invitations = Invitations()
        self.counters: Counter[str] = Counter()
        self.heard: list[tuple[str, str, str]] = []
        self.issued = 0

    def invite(self, name: str = "", uses: int = 1) -> Code:
        code = make_code(self.random.randbytes)
        assert self.invitations.add(Invitation(code, name, frozenset({"member"}), uses, 600.0, 86400.0), 0.0)
        return code

    def exchange(self, source: str = "10.0.0.2", now: float = 0.0) -> Exchange:
        return Exchange(self.invitations, self.issue, self.tell, self.random.randbytes, self.counters, source, now)

    def issue(self, invitation: Invitation, request: Request) -> Grant | Denied:
        def make(name: str) -> Grant:
            self.issued += 1
            certificate = issue_certificate(self.authority, name, request.static_key, invitation.roles, WALL, random=self.random.randbytes)
            self.keys[request.static_key] = name
            return Grant(self.authority.secret, certificate.chain, (self.authority.root.der,), (b"statement",))

        return grant_once(self.invitations, invitation, request, lambda name: name in self.names, lambda key: self.keys.get(key, ""), make)

    def tell(self, what: str, invitation: Invitation, source: str, more: str) -> None:
        self.heard.append((what, source, more))


def compute(exchange: Exchange) -> None:
    """What the worker thread does."""
    if exchange.job is not None:
        job, exchange.job = exchange.job, None
        try:
            exchange.computed(job())
        except Exception as error:
            exchange.computed(error)


def converse(
    joiner: Joiner, exchange: Exchange, up: Meddle = as_it_is, down: Meddle = as_it_is, now: float = 0.0, done: bool = True
) -> Outcome | None:
    """Carry bytes both ways until nothing moves. *up*, *down*: what happens to each piece on its way."""
    while joiner.out or exchange.out or exchange.job is not None:
        for data in joiner.out[:]:
            joiner.out.remove(data)
            exchange.receive(up(data), now)
        compute(exchange)
        for data in exchange.out[:]:
            exchange.out.remove(data)
            joiner.receive(down(data))
        if isinstance(joiner.outcome, Grant) and done:
            exchange.receive(up(joiner.stored()), now)
            done = False
    return joiner.outcome
