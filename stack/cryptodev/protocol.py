"""Requests to `/dev/crypto` (docs/stack/crypto.md): the data of devctl messages, and the text that reading the device gives.

Network byte order. Formats only: what a field means for an algorithm is checked by the manager. Hostile bytes raise BadMessage and
nothing else.

    SESSION  hardware u8, tag size u8, length of the name u8, 0, length of the key u16 | name | key
    FREE     session u32
    BATCH    session u32, operation u8, 0, items u16 | items times: associated data u32, data u32 | nonces | associated data, data, ...

and the reply to BATCH: a length (u32) for each item, NOTHING for one that was refused, then the results.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence

import attrs

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

PATH = b"/dev/crypto"
ITEMS_MAX = 1024
"""Items of one request."""
BATCH_MAX = 1 << 20
"""Bytes of one request: what a client may make the daemon hold for it at once."""
NAME_MAX = 64
KEY_MAX = 1024
NOTHING = (1 << 32) - 1


class Command(enum.IntEnum):
    """devctl commands."""

    SESSION = 1
    FREE = 2
    BATCH = 3


class Operation(enum.IntEnum):
    """What a batch does. VERIFY: data is the tag, associated data the message; the result is empty."""

    SEAL = 1
    OPEN = 2
    ENCRYPT = 3
    DECRYPT = 4
    TAG = 5
    VERIFY = 6
    DIGEST = 7


HARDWARE = ("any", "only", "never")
_SESSION = struct.Struct("!BBBxH")
_FREE = struct.Struct("!I")
BATCH_HEAD = struct.Struct("!IBxH")
LENGTHS = struct.Struct("!II")
_LENGTH = struct.Struct("!I")


@attrs.frozen
class SessionRequest:
    """`hardware` is one of HARDWARE, `tag_size` 0 for whole tags."""

    name: str
    key: bytes = attrs.field(repr=False)
    tag_size: int = 0
    hardware: str = "any"

    def pack(self) -> bytes:
        name = self.name.encode()
        return _SESSION.pack(HARDWARE.index(self.hardware), self.tag_size, len(name), len(self.key)) + name + self.key

    @classmethod
    def parse(cls, data: Buffer) -> SessionRequest:
        try:
            hardware, tag_size, length, key_length = _SESSION.unpack_from(data)
        except struct.error:
            raise BadMessage("session request cut short") from None
        start = _SESSION.size
        if hardware >= len(HARDWARE) or not 0 < length <= NAME_MAX or key_length > KEY_MAX:
            raise BadMessage("session request has an unknown choice or a name or key that is too long")
        if len(data) != start + length + key_length:
            raise BadMessage("session request has another length than it says")
        name = bytes(data[start : start + length])
        if not name.isascii():
            raise BadMessage("session request's name is not ASCII")
        return cls(name.decode(), bytes(data[start + length :]), tag_size, HARDWARE[hardware])


def pack_free(session: int) -> bytes:
    return _FREE.pack(session)


def parse_free(data: Buffer) -> int:
    """The session."""
    if len(data) != _FREE.size:
        raise BadMessage("free has another length than it should")
    (session,) = _FREE.unpack(data)
    return int(session)


def parse_batch_head(data: Buffer) -> tuple[int, int, int]:
    """session, operation, items of a BATCH, of which the rest may be missing."""
    try:
        session, operation, items = BATCH_HEAD.unpack_from(data)
    except struct.error:
        raise BadMessage("batch cut short") from None
    if items > ITEMS_MAX or operation not in _OPERATIONS:
        raise BadMessage("batch has too many items, or an unknown operation")
    return session, operation, items


_OPERATIONS = frozenset(int(one) for one in Operation)


@attrs.frozen
class Batch:
    """Views into the request."""

    nonces: list[memoryview]
    aads: list[memoryview]
    items: list[memoryview]


def pack_batch(
    session: int, operation: Operation, nonces: Sequence[Buffer], aads: Sequence[Buffer], items: Sequence[Buffer]
) -> list[Buffer]:
    """The parts of a BATCH. *nonces* and *aads* are empty lists where the operation has none."""
    count = len(items)
    lengths = b"".join(LENGTHS.pack(len(aads[at]) if aads else 0, len(items[at])) for at in range(count))
    parts: list[Buffer] = [BATCH_HEAD.pack(session, operation, count) + lengths, *nonces]
    for at in range(count):
        if aads:
            parts.append(aads[at])
        parts.append(items[at])
    return parts


def parse_batch(data: Buffer, items: int, nonce_size: int) -> Batch:
    """What follows the head of a BATCH of *items* items with nonces of *nonce_size* bytes."""
    view = memoryview(data)
    at = BATCH_HEAD.size
    end = at + items * LENGTHS.size
    if end > len(view):
        raise BadMessage("batch's table cut short")
    lengths = list(LENGTHS.iter_unpack(view[at:end]))
    at = end
    # Compared before anything is cut: lengths that lie cost nothing.
    if len(view) - at != items * nonce_size + sum(aad + item for aad, item in lengths):
        raise BadMessage("batch has another length than it says")
    nonces = [view[at + number * nonce_size : at + (number + 1) * nonce_size] for number in range(items)]
    at += items * nonce_size
    aads, cut = [], []
    for aad, item in lengths:
        aads.append(view[at : at + aad])
        cut.append(view[at + aad : at + aad + item])
        at += aad + item
    return Batch(nonces, aads, cut)


def pack_results(results: Iterable[Buffer | None]) -> bytes:
    """The reply to a BATCH."""
    listed = list(results)
    lengths = b"".join(_LENGTH.pack(NOTHING if one is None else len(one)) for one in listed)
    return b"".join((lengths, *(one for one in listed if one is not None)))


def parse_results(data: Buffer, items: int) -> list[bytes | None]:
    """The results of *items* items."""
    view = memoryview(data)
    at = items * _LENGTH.size
    if at > len(view):
        raise BadMessage("results cut short")
    results: list[bytes | None] = []
    for (length,) in _LENGTH.iter_unpack(view[:at]):
        if length == NOTHING:
            results.append(None)
            continue
        one = bytes(view[at : at + length])
        if len(one) != length:
            raise BadMessage("result cut short")
        results.append(one)
        at += length
    if at != len(view):
        raise BadMessage("results are followed by something")
    return results


def reply_size(operation: int, items: int, payload: int, each: int) -> int:
    """Bytes of the reply to a batch whose data are *payload* bytes: results as long as the data, or *each* bytes for tags and digests."""
    if operation in (Operation.TAG, Operation.DIGEST):
        return items * (_LENGTH.size + each)
    if operation == Operation.VERIFY:
        return items * _LENGTH.size
    return items * (_LENGTH.size + (each if operation == Operation.SEAL else 0)) + payload


@attrs.frozen
class Listed:
    """One line of the device's text: an algorithm and who serves it now. Sizes in bytes, 0 where it has none."""

    kind: str
    name: str
    key_min: int
    key_max: int
    nonce: int
    tag: int
    provider: str

    def line(self) -> str:
        return f"{self.kind} {self.name} key {self.key_min} {self.key_max} nonce {self.nonce} tag {self.tag} by {self.provider}"


def parse_listing(text: bytes) -> list[Listed]:
    """What reading the device gave. BadMessage for another text."""
    found = []
    for line in text.decode("ascii", "replace").splitlines():
        words = line.split()
        try:
            kind, name, _, key_min, key_max, _, nonce, _, tag, _, provider = words
            found.append(Listed(kind, name, int(key_min), int(key_max), int(nonce), int(tag), provider))
        except ValueError:
            raise BadMessage("not a list of algorithms") from None
    return found
