"""Messages between the daemons of a cluster about membership, on `(0, PID_SYSTEM, CHID_MEMBERS)`. Formats only.

    operation (1)  body

The sender is who its certificate says; nothing in the body claims it. Parsers raise BadMessage and nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

import attrs

from qnetpy.identity.certificate import CERTIFICATE_MAX
from qnetpy.identity.trust import ID_SIZE, KEY_ID_SIZE, ROOT_STATEMENTS_MAX, ROOTS_MAX, STATEMENT_MAX
from qnetpy.members.possession import PROOF_SIZE
from resmgr.errors import BadMessage

REQUEST_MAX = 65536
REPLY_MAX = 32 + ID_SIZE * ROOT_STATEMENTS_MAX
DIGEST_SIZE = 32
NO_KEY = bytes(32)
NO_PROOF = bytes(PROOF_SIZE)


class Op(enum.IntEnum):
    SYNC = 1
    TELL = 2
    RENEW = 3
    LEAVE = 4


@attrs.frozen
class Sync:
    """What I know, and which certificates I have."""

    digest: bytes
    chains: tuple[bytes, ...] = ()
    """Each with its issuer's."""


@attrs.frozen
class Known:
    """The answer: what the other knows. `ids` is empty when the digests are equal."""

    digest: bytes
    ids: tuple[bytes, ...] = ()


@attrs.frozen
class Renew:
    """Asks for a certificate under *root_id*, with the name, key and roles of the one that the sender has."""

    root_id: bytes
    chain: bytes
    """The sender's certificate of now, with its issuer's: the link may have shown an older one."""
    issuer_key: bytes = NO_KEY
    """Ed25519 public key that the sender wants to issue with; zeros: none."""
    proof: bytes = NO_PROOF
    """That the sender has that key (`qnetpy.members.possession`)."""


@attrs.frozen
class Renewed:
    """The answer: the certificate with its issuer's, and the sender's own as an issuer, or nothing."""

    chain: bytes
    issuer: bytes = b""


def pack_sync(sync: Sync) -> bytes:
    return bytes((Op.SYNC,)) + sync.digest + bytes((len(sync.chains),)) + b"".join(map(_long, sync.chains))


def parse_sync(data: bytes) -> Sync:
    head = 2 + DIGEST_SIZE
    if len(data) < head or data[0] != Op.SYNC or data[head - 1] > ROOTS_MAX:
        raise BadMessage("sync: length")
    place, chains = head, []
    for _ in range(data[head - 1]):
        chain, place = _take(data, place, CERTIFICATE_MAX)
        chains.append(chain)
    if place != len(data):
        raise BadMessage("sync: length")
    return Sync(data[1 : head - 1], tuple(chains))


def pack_known(known: Known) -> bytes:
    return known.digest + b"".join(known.ids)


def parse_known(data: bytes) -> Known:
    if len(data) < DIGEST_SIZE or (len(data) - DIGEST_SIZE) % ID_SIZE or len(data) > REPLY_MAX:
        raise BadMessage("known: length")
    return Known(data[:DIGEST_SIZE], tuple(_cut(data[DIGEST_SIZE:], ID_SIZE)))


def pack_tells(statements: Sequence[bytes]) -> list[bytes]:
    """As many messages as it takes, none longer than REQUEST_MAX."""
    messages: list[bytes] = []
    body = b""
    for statement in statements:
        entry = _long(statement)
        if body and 1 + len(body) + len(entry) > REQUEST_MAX:
            messages.append(bytes((Op.TELL,)) + body)
            body = b""
        body += entry
    return [*messages, bytes((Op.TELL,)) + body] if body else messages


def parse_tell(data: bytes) -> list[bytes]:
    if len(data) < 3 or data[0] != Op.TELL:
        raise BadMessage("tell: length")
    place, found = 1, []
    while place < len(data):
        statement, place = _take(data, place, STATEMENT_MAX)
        found.append(statement)
    return found


def pack_renew(renew: Renew) -> bytes:
    return bytes((Op.RENEW,)) + renew.root_id + renew.issuer_key + renew.proof + _long(renew.chain)


def parse_renew(data: bytes) -> Renew:
    key = 1 + KEY_ID_SIZE
    fixed = key + 32 + PROOF_SIZE
    if len(data) < fixed or data[0] != Op.RENEW:
        raise BadMessage("renew: length")
    chain, place = _take(data, fixed, CERTIFICATE_MAX)
    if place != len(data):
        raise BadMessage("renew: length")
    return Renew(data[1:key], chain, data[key : key + 32], data[key + 32 : fixed])


def pack_renewed(renewed: Renewed) -> bytes:
    return _long(renewed.chain) + _long(renewed.issuer)


def parse_renewed(data: bytes) -> Renewed:
    chain, place = _take(data, 0, CERTIFICATE_MAX)
    issuer, place = _take(data, place, CERTIFICATE_MAX)
    if place != len(data) or not chain:
        raise BadMessage("renewed: length")
    return Renewed(chain, issuer)


def pack_leave() -> bytes:
    return bytes((Op.LEAVE,))


def parse_leave(data: bytes) -> None:
    if data != pack_leave():
        raise BadMessage("leave: length")


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[place : place + size] for place in range(0, len(data), size))


def _long(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _take(data: bytes, place: int, limit: int) -> tuple[bytes, int]:
    end = place + 2 + int.from_bytes(data[place : place + 2], "big")
    if place + 2 > len(data) or end > len(data) or end - place - 2 > limit:
        raise BadMessage("membership: length")
    return data[place + 2 : end], end
