"""What a handshake comes to: the peer, the events, the reasons of failure and the sentence for each."""

from __future__ import annotations

import enum

import attrs

from qnetpy.identity import certificate as certificates
from qnetpy.identity.certificate import Certificate
from qnetpy.link.session import Role, Session
from qnetpy.link.wire import Address

SKEW_TOLD = 60.0
"""Seconds by which clocks must differ before a sentence mentions it."""


class Reason(enum.Enum):
    """Why a handshake failed; the value is the name of the counter. Those with a status number are told to the other end."""

    NO_ANSWER = "no_answer"
    UNCONFIRMED = "unconfirmed"
    EXPIRED = "bad_certificate_expired"
    NOT_YET_VALID = "bad_certificate_not_yet_valid"
    WRONG_CLUSTER = "bad_certificate_wrong_cluster"
    BAD_SIGNATURE = "bad_certificate_signature"
    MALFORMED = "bad_certificate_malformed"
    WRONG_NAME = "bad_certificate_name"
    WRONG_KEY = "bad_certificate_key"
    OWN_NAME = "own_name"
    DUPLICATE_NAME = "duplicate_name"
    NO_SUITE = "no_suite"
    REFUSED = "refused"
    SUPERSEDED = "superseded"
    PROTOCOL = "protocol_error"
    BUSY = "attempts_full"


STATUS: dict[Reason, int] = {
    Reason.EXPIRED: 1,
    Reason.NOT_YET_VALID: 2,
    Reason.WRONG_CLUSTER: 3,
    Reason.BAD_SIGNATURE: 4,
    Reason.MALFORMED: 5,
    Reason.WRONG_NAME: 6,
    Reason.WRONG_KEY: 7,
    Reason.OWN_NAME: 8,
    Reason.DUPLICATE_NAME: 9,
    Reason.NO_SUITE: 10,
    Reason.REFUSED: 11,
    Reason.SUPERSEDED: 12,
    Reason.PROTOCOL: 13,
}
"""Numbers on the wire; 0 is success."""
_REASONS = {number: reason for reason, number in STATUS.items()}

_TOLD = {
    Reason.EXPIRED: "says that our certificate has expired",
    Reason.NOT_YET_VALID: "says that our certificate is not valid yet",
    Reason.WRONG_CLUSTER: "does not trust the root of our certificate: another cluster, or a root that was replaced",
    Reason.BAD_SIGNATURE: "says that our certificate has a bad signature",
    Reason.MALFORMED: "cannot read our certificate",
    Reason.WRONG_NAME: "says that our certificate is not for the name we gave",
    Reason.WRONG_KEY: "says that our key is not the one in our certificate",
    Reason.OWN_NAME: "has the same name as this node: two nodes with one name",
    Reason.DUPLICATE_NAME: "is connected to another node with our name: two nodes with one name",
    Reason.NO_SUITE: "has no cipher suite in common with us",
    Reason.REFUSED: "refuses this node",
    Reason.SUPERSEDED: "was busy with another handshake with us",
    Reason.PROTOCOL: "did not understand our handshake",
}


@attrs.frozen
class PeerHint:
    """Whom to call: an address, and the name when it is known. Nothing in it is trusted."""

    address: Address
    name: str = ""


@attrs.frozen
class PeerIdentity:
    """Who a peer is, as proven."""

    name: str
    roles: frozenset[str]
    static_key: bytes = attrs.field(repr=bytes.hex)
    boot_id: bytes = attrs.field(repr=bytes.hex)
    certificate: Certificate


@attrs.frozen
class Established:
    """Both ends have proven who they are and hold the keys of `session`. It replaces any earlier session with this peer."""

    peer: PeerIdentity
    session: Session
    role: Role
    address: Address
    """Where the peer was reached, for the first path."""
    transport_id: int
    """The connection that the session carries; equal on both ends."""
    continued: bool
    """True: a rekey, the connection with this id goes on. False: a new one; any older one with this peer is gone at the other end."""
    restarted: bool
    """The peer's boot id is not the one it had when we last met."""
    mtu: int
    """The smaller of both ends' limits."""
    features: int
    """Those that both ends have."""
    clock_skew: float
    """Seconds by which the peer's clock is ahead of ours."""
    attempt: int
    """The attempt that this ends, whichever end's handshake it was; 0 when there was none."""


@attrs.frozen
class Failed:
    """A handshake came to nothing. `sentence` is complete, for a log line."""

    reason: Reason
    sentence: str
    name: str
    """As proven or hoped for; may be empty."""
    address: Address
    attempt: int
    """What `initiate` returned; 0 when the other end began."""
    told: bool = False
    """The other end says so of us, and has proven who it is."""
    repeated: bool = False
    """The same was said of that address already: people need not hear it again."""

    def again(self) -> Failed:
        return attrs.evolve(self, repeated=True)


Event = Established | Failed


def reason_of(error: certificates.CertificateError) -> Reason:
    """The reason for a certificate's failure."""
    match error:
        case certificates.Expired():
            return Reason.EXPIRED
        case certificates.NotYetValid():
            return Reason.NOT_YET_VALID
        case certificates.WrongCluster():
            return Reason.WRONG_CLUSTER
        case certificates.BadSignature():
            return Reason.BAD_SIGNATURE
        case certificates.WrongName():
            return Reason.WRONG_NAME
        case _:
            return Reason.MALFORMED


def reason_of_status(status: int) -> Reason:
    """The reason that the other end gave; a number we do not know is REFUSED."""
    return _REASONS.get(status, Reason.REFUSED)


def told_sentence(who: str, reason: Reason, skew: float) -> str:
    return f"{who} {_TOLD[reason]}{skew_text(skew)}"


def skew_text(skew: float) -> str:
    """A remark on clocks, when they differ by more than people tolerate."""
    if abs(skew) < SKEW_TOLD:
        return ""
    return f" (its clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} ours)"


def place(address: Address) -> str:
    """An address for people: `eth0 02:00:00:00:00:01`."""
    interface, station = address
    return f"{interface} {station.hex(':')}"
