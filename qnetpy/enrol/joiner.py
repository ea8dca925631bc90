"""The joining end of one enrolment, as a machine on a byte stream. Sans-IO; docs/protocol/enrolment.md is the page.

It confirms first, checks the inviter's confirmation, and only then tells its public key and proves to have the private one. An end that
does not know the code gets one guess by that, like everybody; what it could make a joiner believe is nothing.
"""

from __future__ import annotations

import enum

from qnetpy.enrol.code import Code
from qnetpy.enrol.pake import Keys, Pake, Random
from qnetpy.enrol.possession import prove, public_key
from qnetpy.enrol.wire import (
    VERSION,
    Denied,
    Frames,
    Grant,
    Hello,
    Kind,
    Refusal,
    Refused,
    Request,
    frame,
    pack_hello,
    pack_request,
    parse_accept,
    parse_denied,
    parse_grant,
    parse_refused,
)
from resmgr.errors import BadMessage


class Failure(enum.Enum):
    """Why there is no grant, when the other end did not say a reason of its own."""

    PROTOCOL = "it does not speak the protocol"
    IMPOSTOR = "it does not know the code"
    """Its confirmation was wrong: somebody between us, or a stranger that announces itself. It had one guess."""
    CLOSED = "it closed the connection"


Outcome = Grant | Refused | Denied | Failure


class Joiner:
    """One try. `out` collects what to send; `outcome` is None until it is over. After a Grant: store it, then `stored`."""

    def __init__(self, code: Code, private_key: bytes, name: str, random: Random) -> None:
        """*private_key*: the X25519 key of this machine, 32 bytes; it stays here. *name*: what it would like to be called. Takes 7 ms."""
        self.outcome: Outcome | None = None
        self._private = private_key
        self._public = public_key(private_key)
        self._name = name
        self._pake = Pake(code, joiner=True, random=random)
        self._frames = Frames(grants=True)
        self._hello = frame(Kind.HELLO, pack_hello(Hello(VERSION, code.public, self._pake.message)))
        self.out: list[bytes] = [self._hello]
        self._keys: Keys | None = None
        self._expected: frozenset[Kind] = frozenset({Kind.CHALLENGE})
        self.guessed = False
        """We have confirmed: whoever is there has had a guess at the code."""

    def receive(self, data: bytes) -> None:
        """Bytes from the other end; raises nothing for what they are."""
        try:
            for kind, body in self._frames.feed(data):
                if self.outcome is not None:
                    return
                self._frame(kind, body)
        except BadMessage:
            self.outcome = Failure.PROTOCOL

    def closed(self) -> None:
        """The other end is gone."""
        if self.outcome is None:
            self.outcome = Failure.CLOSED

    def stored(self) -> bytes:
        """What to say when the grant is on the disk."""
        assert self._keys is not None
        return self._keys.send.seal(Kind.DONE, b"")

    def _frame(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.REFUSED and self._expected <= {Kind.CHALLENGE, Kind.ACCEPT}:
            self.outcome = parse_refused(body)
        elif kind not in self._expected:
            raise BadMessage("enrolment: not expected now")
        elif kind is Kind.CHALLENGE:
            self._keys = self._pake.finish(body, self._hello + frame(Kind.CHALLENGE, body))
            self.guessed = True
            self.out.append(frame(Kind.CONFIRM, self._keys.own))
            self._expected = frozenset({Kind.ACCEPT})
        else:
            assert self._keys is not None
            self._answer(self._keys, kind, body)

    def _answer(self, keys: Keys, kind: Kind, body: bytes) -> None:
        if kind is Kind.ACCEPT:
            accept = parse_accept(body)
            if not keys.confirmed(accept.confirmation):
                self.outcome = Failure.IMPOSTOR
                return
            request = Request(self._public, prove(self._private, accept.question, keys.binding), self._name)
            self.out.append(keys.send.seal(Kind.REQUEST, pack_request(request)))
            self._expected = frozenset({Kind.GRANT, Kind.DENIED})
        elif kind is Kind.GRANT:
            self.outcome = parse_grant(keys.receive.open(kind, body))
        else:
            self.outcome = parse_denied(keys.receive.open(kind, body))


def sentence(refused: Refused) -> str:
    """What a REFUSED means, for the person who typed the code."""
    match refused.reason:
        case Refusal.WRONG:
            return f"the code is wrong; {refused.left} more {'try' if refused.left == 1 else 'tries'} until the invitation ends"
        case Refusal.KILLED:
            return "the invitation was ended by three wrong tries, perhaps somebody else's: ask for a new code"
        case Refusal.USED:
            return "the code was used already: ask for a new one, and if it was not you, tell the person who invited you"
        case Refusal.UNKNOWN:
            return "no such invitation there: the code is from another machine, too old, or not right"
        case Refusal.BUSY:
            return "too many wrong or half-finished tries there: wait and try again"
        case Refusal.VERSION:
            return "it speaks another version of the protocol: use the same version of qnetpy on both machines"
        case Refusal.MALFORMED:
            return "it did not understand us"
