"""Frames of enrolment, on a byte stream (TCP). Formats only; docs/protocol/enrolment.md has the layout and the order.

    type (1)  length (3)  body

What is sealed is parsed only after it authenticated. Every parser raises BadMessage and nothing else.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence

import attrs

from qnetpy.enrol.code import ALPHABET, PUBLIC_SIZE
from qnetpy.identity.certificate import CERTIFICATE_MAX
from qnetpy.identity.names import is_name
from resmgr.errors import BadMessage, Misuse

MAGIC = b"qnetjoin"
VERSION = 1
HEADER = struct.Struct(">I")
"""Type in the highest byte, length of the body in the others."""
PAKE_SIZE = 33
"""Of a SPAKE2 message: one byte for the side, 32 for a point of the curve."""
CONFIRM_SIZE = 32
SECRET_SIZE = 32
KEY_SIZE = 32
PROOF_SIZE = 32
TAG_SIZE = 16
DETAIL_MAX = 400
"""Bytes of a sentence for people."""
ROOTS_MAX = 4
STATEMENTS_MAX = 8192
STATEMENT_MAX = 32768
BODY_MAX = 512
"""Longest body of every frame but GRANT. Stops a stranger who announces megabytes."""
GRANT_MAX = 1 << 22
"""Longest GRANT, which comes from who has proven to know the code."""
_HELLO = struct.Struct(f">8sB{PUBLIC_SIZE}s{PAKE_SIZE}s")


class Kind(enum.IntEnum):
    """Type of a frame."""

    HELLO = 1
    REFUSED = 2
    CHALLENGE = 3
    CONFIRM = 4
    ACCEPT = 5
    REQUEST = 6
    GRANT = 7
    DENIED = 8
    DONE = 9


class Refusal(enum.IntEnum):
    """Why a REFUSED."""

    UNKNOWN = 1
    WRONG = 2
    KILLED = 3
    USED = 4
    BUSY = 5
    VERSION = 6
    MALFORMED = 7


class Denial(enum.IntEnum):
    """Why a DENIED: the code was right, and there is still no certificate."""

    NAME_TAKEN = 1
    BAD_NAME = 2
    CANNOT_ISSUE = 3


@attrs.frozen
class Hello:
    version: int
    public: str
    """Public part of the code; of ALPHABET."""
    pake: bytes = attrs.field(repr=False)


@attrs.frozen
class Refused:
    reason: Refusal
    left: int
    """Tries that the invitation has left."""


@attrs.frozen
class Accept:
    confirmation: bytes = attrs.field(repr=False)
    question: bytes = attrs.field(repr=bytes.hex)
    """An X25519 public key drawn for this exchange, with which the joiner proves to have its own private key."""


@attrs.frozen
class Request:
    static_key: bytes = attrs.field(repr=bytes.hex)
    """X25519 public key of the machine that joins."""
    proof: bytes = attrs.field(repr=False)
    """That it has the private key (`qnetpy.enrol.possession`)."""
    name: str
    """The name it would like; empty when it has none."""


@attrs.frozen
class Grant:
    """Everything a node needs beside its own key."""

    secret: bytes = attrs.field(repr=False)
    chain: bytes
    """Its certificate, with the issuer's if there is one."""
    roots: tuple[bytes, ...]
    statements: tuple[bytes, ...]
    """Revocations and changes of roots (`qnetpy.identity.trust`)."""


@attrs.frozen
class Denied:
    reason: Denial
    detail: str


def frame(kind: Kind, body: bytes) -> bytes:
    """One frame. Misuse for a body that no receiver takes."""
    if len(body) > GRANT_MAX:
        raise Misuse(f"a body of {len(body)} bytes; the limit is {GRANT_MAX}")
    return HEADER.pack(kind << 24 | len(body)) + body


def pack_hello(hello: Hello) -> bytes:
    return _HELLO.pack(MAGIC, hello.version, hello.public.encode(), hello.pake)


def parse_hello(body: bytes) -> Hello:
    """Of another version too, whose public part and pake may mean anything: the answer to it is REFUSED."""
    if len(body) < 9 or body[:8] != MAGIC:
        raise BadMessage("hello: not of this protocol")
    if body[8] != VERSION:
        return Hello(body[8], "", b"")
    if len(body) != _HELLO.size:
        raise BadMessage("hello: length")
    _, version, public, pake = _HELLO.unpack(body)
    text = public.decode("latin-1")
    if any(letter not in ALPHABET for letter in text):
        raise BadMessage("hello: public part")
    return Hello(version, text, pake)


def pack_refused(refused: Refused) -> bytes:
    return bytes((refused.reason, min(refused.left, 255)))


def parse_refused(body: bytes) -> Refused:
    if len(body) != 2 or body[0] not in set(Refusal):
        raise BadMessage("refused: not understood")
    return Refused(Refusal(body[0]), body[1])


def pack_accept(accept: Accept) -> bytes:
    return accept.confirmation + accept.question


def parse_accept(body: bytes) -> Accept:
    if len(body) != CONFIRM_SIZE + KEY_SIZE:
        raise BadMessage("accept: length")
    return Accept(body[:CONFIRM_SIZE], body[CONFIRM_SIZE:])


def pack_request(request: Request) -> bytes:
    return request.static_key + request.proof + _short(request.name.encode())


def parse_request(body: bytes) -> Request:
    place = KEY_SIZE + PROOF_SIZE
    if len(body) < place + 1 or len(body) != place + 1 + body[place]:
        raise BadMessage("request: length")
    try:
        name = body[place + 1 :].decode("ascii")
    except UnicodeDecodeError as error:
        raise BadMessage("request: name") from error
    if name and not is_name(name):
        raise BadMessage("request: name")
    return Request(body[:KEY_SIZE], body[KEY_SIZE:place], name)


def pack_grant(grant: Grant) -> bytes:
    return grant.secret + _long(grant.chain) + _list(grant.roots) + _list(grant.statements)


def parse_grant(body: bytes) -> Grant:
    if len(body) < SECRET_SIZE:
        raise BadMessage("grant: cut short")
    chain, place = _take(body, SECRET_SIZE, CERTIFICATE_MAX)
    roots, place = _take_list(body, place, ROOTS_MAX, CERTIFICATE_MAX)
    statements, place = _take_list(body, place, STATEMENTS_MAX, STATEMENT_MAX)
    if place != len(body) or not roots:
        raise BadMessage("grant: length")
    return Grant(body[:SECRET_SIZE], chain, roots, statements)


def pack_denied(denied: Denied) -> bytes:
    return bytes((denied.reason,)) + _long(denied.detail.encode()[:DETAIL_MAX])


def parse_denied(body: bytes) -> Denied:
    if not body or body[0] not in set(Denial):
        raise BadMessage("denied: not understood")
    detail, place = _take(body, 1, DETAIL_MAX)
    if place != len(body):
        raise BadMessage("denied: length")
    text = detail.decode(errors="replace")
    return Denied(Denial(body[0]), "".join(letter if letter.isprintable() else "?" for letter in text))


class Frames:
    """Cuts a byte stream into frames. *limit*: longest body of a kind that is longer than BODY_MAX."""

    def __init__(self, grants: bool = False) -> None:
        self._buffer = bytearray()
        self._grants = grants

    def feed(self, data: bytes) -> list[tuple[Kind, bytes]]:
        """The frames that *data* completes: kind and body. BadMessage for an unknown kind or a length beyond the cap, at its header."""
        buffer = self._buffer
        buffer += data
        found: list[tuple[Kind, bytes]] = []
        while len(buffer) >= HEADER.size:
            (word,) = HEADER.unpack_from(buffer)
            kind, length = word >> 24, word & 0xFFFFFF
            if kind not in set(Kind):
                raise BadMessage("enrolment: unknown frame")
            if length > (GRANT_MAX if self._grants and kind == Kind.GRANT else BODY_MAX):
                raise BadMessage("enrolment: frame too long")
            if len(buffer) < HEADER.size + length:
                break
            found.append((Kind(kind), bytes(buffer[HEADER.size : HEADER.size + length])))
            del buffer[: HEADER.size + length]
        return found

    @property
    def waiting(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._buffer)


def _short(data: bytes) -> bytes:
    return bytes((len(data),)) + data


def _long(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _list(entries: Sequence[bytes]) -> bytes:
    return len(entries).to_bytes(2, "big") + b"".join(map(_long, entries))


def _take(body: bytes, place: int, limit: int) -> tuple[bytes, int]:
    """A value of two bytes of length, and what is behind it."""
    length = int.from_bytes(body[place : place + 2], "big")
    end = place + 2 + length
    if length > limit or end > len(body):
        raise BadMessage("enrolment: length")
    return body[place + 2 : end], end


def _take_list(body: bytes, place: int, count_max: int, limit: int) -> tuple[tuple[bytes, ...], int]:
    if place + 2 > len(body):
        raise BadMessage("enrolment: cut short")
    count = int.from_bytes(body[place : place + 2], "big")
    if count > count_max:
        raise BadMessage("enrolment: too many")
    place += 2
    entries: list[bytes] = []
    for _ in range(count):
        entry, place = _take(body, place, limit)
        entries.append(entry)
    return tuple(entries), place
