"""What is inside a decrypted packet: items of fixed layout, one after another, big-endian. docs/protocol/transport.md draws them.

The first byte of a packet may carry the bit URGENT. The machine reads DATA, START and ACK with the structs below directly, because an
object per item would cost more than the rest of its work; `decode` is the same grammar as values, for the tracer and the tests.
Everything here that reads bytes raises BadMessage and nothing else.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import attrs

from qnetpy.link.transport.constants import (
    ACK_DELAY_UNIT,
    KIND_ACK,
    KIND_CHALLENGE,
    KIND_CLOSE,
    KIND_CREDIT,
    KIND_DATA,
    KIND_PADDING,
    KIND_PATH,
    KIND_PING,
    KIND_RESPONSE,
    KIND_START,
    MAX_MESSAGE,
    MAX_REASON,
    MAX_STATION,
    PRIORITY_MAX,
    ROUTED,
    TOKEN_SIZE,
    URGENT,
)
from resmgr.errors import BadMessage

ACK_HEAD: Final = struct.Struct(">BBHQI")
"""kind, number of further ranges, delay in 16 us, largest number, numbers directly below it that are acknowledged too. For each further
range, going down, two numbers of 32 bits: how many are missing (at least 1), how many follow that are acknowledged (at least 1)."""
DATA_HEAD: Final = struct.Struct(">BBHQII")
"""kind, priority, length, message id, offset, size of the whole message; then length bytes."""
START_HEAD: Final = struct.Struct(">BBHQIIQI")
"""As DATA with offset 0; then stream, and how far back the id of the stream's previous message is (0: none that matters)."""
CREDIT: Final = struct.Struct(">BQ")
"""kind, total credit since the beginning."""
CLOSE_HEAD: Final = struct.Struct(">BBH")
"""kind, bytes of reason, code; then the reason in UTF-8."""
CHALLENGE_HEAD: Final = struct.Struct(f">BBB{TOKEN_SIZE}s")
"""kind, the sender's port, bytes of its address, token; then the address."""
RESPONSE: Final = struct.Struct(f">B{TOKEN_SIZE}s")
"""kind, token of the CHALLENGE that it answers."""
PATH: Final = struct.Struct(">BBBI")
"""kind, path, state, how many such items the sender has made before about that path."""
ROUTE: Final = struct.Struct(">BB")
"""policy, the sender's port: behind a START head with the bit ROUTED."""
POLICIES_MAX: Final = 3

PING_BYTE: Final = bytes([KIND_PING])


class PathState(enum.IntEnum):
    """What a PATH item says of a path, as far as its sender is concerned."""

    CLOSED = 0
    """Not used any more; may be opened again."""
    DOWN = 1
    UP = 2
    GONE = 3
    """The same, and the sender's address does not exist any more."""


@attrs.frozen
class Padding:
    """Ends the packet: whatever follows is ignored."""

    length: int
    """Bytes, with the kind byte."""

    def pack(self) -> bytes:
        return bytes(self.length)


@attrs.frozen
class Ping:
    """Nothing, but it is acknowledged."""

    def pack(self) -> bytes:
        return PING_BYTE


@attrs.frozen
class Ack:
    """Packet numbers that arrived on this path."""

    delay: float
    """Seconds between the arrival of the largest and this ACK."""
    ranges: tuple[tuple[int, int], ...]
    """Half-open, ascending, not touching."""

    def pack(self) -> bytes:
        return pack_ack([bound for pair in self.ranges for bound in pair], self.delay)


@attrs.frozen
class Data:
    """A fragment of a message that is not its first."""

    priority: int
    message: int
    offset: int
    total: int
    payload: bytes

    def pack(self) -> bytes:
        return DATA_HEAD.pack(KIND_DATA, self.priority, len(self.payload), self.message, self.offset, self.total) + self.payload


@attrs.frozen
class Start:
    """The first fragment of a message, with what is needed to deliver it."""

    priority: int
    message: int
    total: int
    stream: int
    behind: int
    """Message id minus the id of the stream's previous message, 0 when that is known to be delivered."""
    payload: bytes
    route: tuple[int, int] | None = None
    """Policy and the sender's port, when the message is not for the ordinary paths."""

    def pack(self) -> bytes:
        priority = self.priority if self.route is None else self.priority | ROUTED
        head = START_HEAD.pack(KIND_START, priority, len(self.payload), self.message, 0, self.total, self.stream, self.behind)
        return head + (b"" if self.route is None else ROUTE.pack(*self.route)) + self.payload


@attrs.frozen
class Credit:
    """Receiver to sender: the sum of message sizes and costs that may have been started."""

    total: int

    def pack(self) -> bytes:
        return CREDIT.pack(KIND_CREDIT, self.total)


@attrs.frozen
class Close:
    """The sender of this is gone."""

    code: int
    reason: str

    def pack(self) -> bytes:
        text = self.reason.encode()[:MAX_REASON]
        return CLOSE_HEAD.pack(KIND_CLOSE, len(text), self.code) + text


@attrs.frozen
class Challenge:
    """Show that you get what I send to you on this path."""

    port: int
    """Number of the sender's interface; 0: not told."""
    token: bytes
    station: bytes
    """The sender's address on this path, as it knows it itself; empty: it does not."""

    def pack(self) -> bytes:
        return CHALLENGE_HEAD.pack(KIND_CHALLENGE, self.port, len(self.station), self.token) + self.station


@attrs.frozen
class Response:
    """The answer to a CHALLENGE, on the same path."""

    token: bytes

    def pack(self) -> bytes:
        return RESPONSE.pack(KIND_RESPONSE, self.token)


@attrs.frozen
class PathNews:
    """The sender's state of a path; goes over any path."""

    path: int
    state: PathState
    sequence: int

    def pack(self) -> bytes:
        return PATH.pack(KIND_PATH, self.path, self.state, self.sequence)


Item = Padding | Ping | Ack | Data | Start | Credit | Close | Challenge | Response | PathNews


@attrs.frozen
class Packet:
    """A whole plaintext as values."""

    urgent: bool
    items: tuple[Item, ...]

    def pack(self) -> bytes:
        whole = b"".join(item.pack() for item in self.items)
        return bytes([whole[0] | URGENT]) + whole[1:] if self.urgent else whole


def pack_ack(bounds: list[int], delay: float) -> bytes:
    """ACK of the ranges in *bounds* (flat, ascending, half-open: the form of RangeSet), not empty, at most 256 of them."""
    units = int(delay / ACK_DELAY_UNIT)
    if units > 0xFFFF:
        units = 0xFFFF
    top = bounds[-1] - 1
    count = (len(bounds) >> 1) - 1
    head = ACK_HEAD.pack(KIND_ACK, count, units, top, top - bounds[-2])
    if not count:
        return head
    lengths = []
    for i in range(len(bounds) - 2, 0, -2):
        lengths.append(bounds[i] - bounds[i - 1])
        lengths.append(bounds[i - 1] - bounds[i - 2])
    return head + struct.pack(f">{2 * count}I", *lengths)


def read_ack(packet: bytes, at: int) -> tuple[float, list[tuple[int, int]], int]:
    """The ACK at *at*: delay in seconds, inclusive ranges (low, high) ascending, and where the next item begins."""
    try:
        _, count, units, top, below = ACK_HEAD.unpack_from(packet, at)
        at += 16
        low = top - below
        if low < 0:
            raise BadMessage("ACK range below 0")
        ranges = [(low, top)]
        if count:
            lengths = struct.unpack_from(f">{2 * count}I", packet, at)
            at += 8 * count
            for i in range(0, 2 * count, 2):
                missing = lengths[i]
                length = lengths[i + 1]
                if not missing or not length:
                    raise BadMessage("empty ACK range")
                high = low - missing - 1
                low = high - length + 1
                if low < 0:
                    raise BadMessage("ACK range below 0")
                ranges.append((low, high))
            ranges.reverse()
    except struct.error:
        raise BadMessage("truncated ACK") from None
    return units * ACK_DELAY_UNIT, ranges, at


def read_close(packet: bytes, at: int) -> tuple[int, str, int]:
    """The CLOSE at *at*: code, reason (printable, whatever was sent), and where the next item begins."""
    try:
        _, length, code = CLOSE_HEAD.unpack_from(packet, at)
    except struct.error:
        raise BadMessage("truncated CLOSE") from None
    at += 4
    if length > MAX_REASON or at + length > len(packet):
        raise BadMessage("CLOSE reason length")
    text = bytes(packet[at : at + length]).decode("utf-8", "replace")
    return code, "".join(c if c.isprintable() else "?" for c in text), at + length


def read_challenge(packet: bytes, at: int) -> tuple[Challenge, int]:
    """The CHALLENGE at *at*, and where the next item begins."""
    try:
        _, port, length, token = CHALLENGE_HEAD.unpack_from(packet, at)
    except struct.error:
        raise BadMessage("truncated CHALLENGE") from None
    at += CHALLENGE_HEAD.size
    if length > MAX_STATION or at + length > len(packet):
        raise BadMessage("CHALLENGE address length")
    return Challenge(port, token, bytes(packet[at : at + length])), at + length


def read_path(packet: bytes, at: int) -> tuple[PathNews, int]:
    """The PATH at *at*, and where the next item begins."""
    try:
        _, path, state, sequence = PATH.unpack_from(packet, at)
    except struct.error:
        raise BadMessage("truncated PATH") from None
    if state > PathState.GONE:
        raise BadMessage("PATH state")
    return PathNews(path, PathState(state), sequence), at + PATH.size


def read_route(packet: bytes, at: int) -> tuple[int, int]:
    """Policy and port at *at*."""
    try:
        policy, port = ROUTE.unpack_from(packet, at)
    except struct.error:
        raise BadMessage("truncated route") from None
    if policy > POLICIES_MAX:
        raise BadMessage("route policy")
    return policy, port


def check_fragment(priority: int, message: int, offset: int, total: int, length: int) -> None:
    """What holds for every DATA and START item."""
    if priority > PRIORITY_MAX:
        raise BadMessage("priority")
    if not message:
        raise BadMessage("message id 0")
    if total > MAX_MESSAGE:
        raise BadMessage("message too long")
    if offset + length > total:
        raise BadMessage("fragment beyond its message")
    if not length and total:
        raise BadMessage("empty fragment")


def check_start(offset: int, message: int, behind: int) -> None:
    if offset:
        raise BadMessage("START not at 0")
    if behind >= message:
        raise BadMessage("START behind nothing")


def decode(packet: bytes) -> Packet:
    """The whole plaintext as values."""
    if not packet:
        raise BadMessage("empty packet")
    items: list[Item] = []
    urgent = bool(packet[0] & URGENT)
    kind = packet[0] & ~URGENT
    at = 0
    size = len(packet)
    while True:
        try:
            if kind == KIND_DATA:
                _, priority, length, message, offset, total = DATA_HEAD.unpack_from(packet, at)
                at += DATA_HEAD.size
                _room(packet, at, length)
                check_fragment(priority, message, offset, total, length)
                if not offset:
                    raise BadMessage("DATA at 0")
                items.append(Data(priority, message, offset, total, bytes(packet[at : at + length])))
                at += length
            elif kind == KIND_START:
                _, priority, length, message, offset, total, stream, behind = START_HEAD.unpack_from(packet, at)
                at += START_HEAD.size
                route = None
                if priority & ROUTED:
                    priority ^= ROUTED
                    route = read_route(packet, at)
                    at += ROUTE.size
                _room(packet, at, length)
                check_fragment(priority, message, offset, total, length)
                check_start(offset, message, behind)
                items.append(Start(priority, message, total, stream, behind, bytes(packet[at : at + length]), route))
                at += length
            elif kind == KIND_ACK:
                delay, ranges, at = read_ack(packet, at)
                items.append(Ack(delay, tuple((low, high + 1) for low, high in ranges)))
            elif kind == KIND_PING:
                items.append(Ping())
                at += 1
            elif kind == KIND_CREDIT:
                items.append(Credit(CREDIT.unpack_from(packet, at)[1]))
                at += CREDIT.size
            elif kind == KIND_CLOSE:
                code, reason, at = read_close(packet, at)
                items.append(Close(code, reason))
            elif kind == KIND_CHALLENGE:
                challenge, at = read_challenge(packet, at)
                items.append(challenge)
            elif kind == KIND_RESPONSE:
                items.append(Response(RESPONSE.unpack_from(packet, at)[1]))
                at += RESPONSE.size
            elif kind == KIND_PATH:
                news, at = read_path(packet, at)
                items.append(news)
            elif kind == KIND_PADDING:
                items.append(Padding(size - at))
                at = size
            else:
                raise BadMessage("unknown item")
        except struct.error:
            raise BadMessage("truncated item") from None
        if at >= size:
            return Packet(urgent, tuple(items))
        kind = packet[at]


def _room(packet: bytes, at: int, length: int) -> None:
    if at + length > len(packet):
        raise BadMessage("fragment beyond its packet")
