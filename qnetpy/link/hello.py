"""What handshake messages say: the payloads inside Noise, and the body of CONFIRM. Formats only; docs/protocol/link.md has the diagrams.

These bytes are parsed only after they were found authentic: a Hello by the cluster secret, an Offer by the peer's static key.
"""

from __future__ import annotations

import struct

import attrs

from qnetpy.identity.certificate import CERTIFICATE_MAX
from qnetpy.identity.names import is_name
from resmgr.errors import BadMessage

HELLO = struct.Struct("!Q16s64s64s")
OFFER = struct.Struct("!BBHIQQQI16sH")
VERDICT = struct.Struct("!B7xQ")


@attrs.frozen
class Hello:
    """First part of an INITIATION: who calls whom. `sequence` grows with each INITIATION of one boot of the caller."""

    sequence: int
    boot_id: bytes = attrs.field(repr=bytes.hex)
    caller: str
    called: str
    """Empty when the caller knows an address only."""

    def pack(self) -> bytes:
        return HELLO.pack(self.sequence, self.boot_id, self.caller.encode(), self.called.encode())


def parse_hello(data: bytes) -> tuple[Hello, bytes]:
    """The Hello and what follows it. BadMessage."""
    if len(data) < HELLO.size:
        raise BadMessage("hello: cut short")
    sequence, boot_id, caller, called = HELLO.unpack_from(data)
    return Hello(sequence, boot_id, _name(caller, "caller"), _name(called, "called") if any(called) else ""), data[HELLO.size :]


@attrs.frozen
class Offer:
    """What one end brings to the session."""

    status: int
    """0, or why the sender refuses (`qnetpy.link.outcome.Reason`)."""
    suite: int
    """RESPONSE: the suite chosen among those offered; elsewhere 0."""
    mtu: int
    """Longest Ethernet payload that the sender takes on the interface of the handshake; the transport probes what really passes."""
    features: int
    """Bits of optional behaviour; both ends use what both have set. None is defined in version 1."""
    transport_id: int
    """Of the connection that the sender holds with this boot of the receiver; 0: none."""
    sequence: int
    """The sender's INITIATIONs up to this one are old: it waits for an answer to none of them."""
    wall: int
    """The sender's clock, seconds since the epoch. To explain what a certificate's dates seem to say; decides nothing."""
    index: int
    """The sender's session index again, where it is authenticated."""
    boot_id: bytes = attrs.field(repr=bytes.hex)
    certificate: bytes = attrs.field(repr=False)

    def pack(self) -> bytes:
        return (
            OFFER.pack(
                self.status,
                self.suite,
                self.mtu,
                self.features,
                self.transport_id,
                self.sequence,
                self.wall,
                self.index,
                self.boot_id,
                len(self.certificate),
            )
            + self.certificate
        )


def parse_offer(data: bytes) -> Offer:
    """BadMessage for anything else."""
    if len(data) < OFFER.size:
        raise BadMessage("offer: cut short")
    status, suite, mtu, features, transport_id, sequence, wall, index, boot_id, length = OFFER.unpack_from(data)
    if length > CERTIFICATE_MAX or len(data) != OFFER.size + length:
        raise BadMessage("offer: length of the certificate")
    return Offer(status, suite, mtu, features, transport_id, sequence, wall, index, boot_id, data[OFFER.size :])


def pack_verdict(status: int, wall: int) -> bytes:
    """Body of a CONFIRM before its mac: status and the sender's clock, as in an Offer."""
    return VERDICT.pack(status, wall)


def parse_verdict(data: bytes) -> tuple[int, int]:
    if len(data) != VERDICT.size:
        raise BadMessage("confirm: length")
    status, wall = VERDICT.unpack(data)
    return status, wall


def _name(field: bytes, what: str) -> str:
    try:
        name = field.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise BadMessage(f"hello: {what} is no name") from error
    if not is_name(name):
        raise BadMessage(f"hello: {what} is no name")
    return name
