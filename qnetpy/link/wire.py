"""Frames of a link: what follows the Ethernet header. Formats only; the byte diagrams are in docs/protocol/link.md.

DATA is sorted per batch, since its cost is paid per frame; handshake frames are small records. Everything but the fixed headers is opaque
here: it is parsed after authentication, by `qnetpy.link.hello`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import attrs

from qnetpy.link.constants import MAC_SIZE, STAMP_SIZE, SUITE_SLOTS, TAG_SIZE, VERSION
from qnetpy.link.ethernet import source
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

Address = tuple[str, bytes]
"""Where a frame came from or goes to: our interface's name and the link-level station (a MAC address). Opaque to the protocol."""

DATA: Final = 1
INITIATION: Final = 2
RESPONSE: Final = 3
FINAL: Final = 4
CONFIRM: Final = 5
COOKIE: Final = 6
SOLICITATION: Final = 7
HANDSHAKES: Final = frozenset({INITIATION, RESPONSE, FINAL, CONFIRM, COOKIE})

ETHERNET_HEADER: Final = 14
DATA_HEADER: Final = struct.Struct("!BBHIQ")
"""Type, path, length of what follows, receiver's session index, packet number. The additional data of the AEAD."""
NONCE: Final = struct.Struct("!IQ")
"""Path, packet number."""
HANDSHAKE_HEADER: Final = struct.Struct(f"!BBHIIBBH{SUITE_SLOTS}s")
"""Type, version, length of what follows, sender's index, receiver's index, pattern, reserved, reserved, suites offered."""
DATA_OVERHEAD: Final = DATA_HEADER.size + TAG_SIZE
"""Bytes that sealing adds to a packet, beside the Ethernet header."""

PATTERN_XX: Final = 1
PATTERN_IK: Final = 2


class Arrivals:
    """DATA frames of one batch for one session and one path, in order of arrival. The buffers are the batch's."""

    __slots__ = ("bodies", "headers", "index", "numbers", "path")

    def __init__(self, index: int, path: int) -> None:
        self.index = index
        self.path = path
        self.numbers: Sequence[int] = ()
        self.headers: Sequence[Buffer] = ()
        self.bodies: Sequence[Buffer] = ()
        """Ciphertext and tag."""


class Sorted:
    """A batch taken apart. `handshakes` and `solicitations` are (place in the batch, frame without its Ethernet header); `malformed` is a
    count."""

    __slots__ = ("data", "handshakes", "malformed", "solicitations")

    def __init__(self) -> None:
        self.data: list[Arrivals] = []
        self.handshakes: list[tuple[int, memoryview]] = []
        self.solicitations: list[tuple[int, memoryview]] = []
        self.malformed = 0


def sort_frames(frames: Sequence[memoryview], offset: int = ETHERNET_HEADER) -> Sorted:
    """Take a batch of frames apart; *offset* is where the Ethernet header ends. Never raises for what the frames hold.

    Bytes beyond the length that a header gives are padding and ignored. The usual batches, one DATA frame (a message, its answer) and all
    DATA of one session and path, are found out with a few calls for the whole batch.
    """
    result = Sorted()
    body = offset + DATA_HEADER.size
    if len(frames) == 1:
        frame = frames[0]
        if len(frame) >= body + TAG_SIZE:
            kind, path, length, index, number = DATA_HEADER.unpack_from(frame, offset)
            end = body + length
            if kind == DATA and length >= TAG_SIZE and end <= len(frame):
                arrivals = Arrivals(index, path)
                arrivals.numbers, arrivals.headers, arrivals.bodies = (number,), (frame[offset:body],), (frame[body:end],)
                result.data.append(arrivals)
                return result
    if len(frames) > 2 and min(map(len, frames)) >= body + TAG_SIZE:
        unpack = DATA_HEADER.unpack_from
        types, paths, lengths, indexes, numbers = zip(*[unpack(frame, offset) for frame in frames], strict=True)
        if (
            types.count(DATA) == len(frames) == paths.count(paths[0]) == indexes.count(indexes[0])
            and min(lengths) >= TAG_SIZE
        ):  # fmt: skip
            arrivals = Arrivals(indexes[0], paths[0])
            arrivals.numbers = numbers
            arrivals.headers = [frame[offset:body] for frame in frames]
            # A frame shorter than its length gives a short body, and then does not authenticate.
            arrivals.bodies = [frame[body : body + length] for frame, length in zip(frames, lengths, strict=True)]
            result.data.append(arrivals)
            return result
    _sort_mixed(frames, offset, result)
    return result


def _sort_mixed(frames: Sequence[memoryview], offset: int, result: Sorted) -> None:
    groups: dict[tuple[int, int], tuple[list[int], list[Buffer], list[Buffer]]] = {}
    body = offset + DATA_HEADER.size
    for place, frame in enumerate(frames):
        if len(frame) < body:
            result.malformed += 1
            continue
        kind, path, length, index, number = DATA_HEADER.unpack_from(frame, offset)
        if kind in HANDSHAKES:
            result.handshakes.append((place, frame[offset:]))
        elif kind == SOLICITATION:
            result.solicitations.append((place, frame[offset:]))
        elif kind != DATA or length < TAG_SIZE or len(frame) < body + length:
            result.malformed += 1
        else:
            numbers, headers, bodies = groups.setdefault((index, path), ([], [], []))
            numbers.append(number)
            headers.append(frame[offset:body])
            bodies.append(frame[body : body + length])
    for (index, path), (numbers, headers, bodies) in groups.items():
        arrivals = Arrivals(index, path)
        arrivals.numbers, arrivals.headers, arrivals.bodies = numbers, headers, bodies
        result.data.append(arrivals)


def sources_of(views: Sequence[memoryview], offset: int, arrivals: Arrivals) -> dict[int, bytes]:
    """By packet number, the station that a frame of the batch says it comes from; of copies the first counts."""
    sources: dict[int, bytes] = {}
    for view in views:
        if len(view) >= offset + DATA_HEADER.size:
            kind, path, _, index, number = DATA_HEADER.unpack_from(view, offset)
            if kind == DATA and path == arrivals.path and index == arrivals.index:
                sources.setdefault(number, source(view))
    return sources


@attrs.frozen
class HandshakeFrame:
    """A handshake frame, its header parsed and nothing else. `body` is what lies between header and mac."""

    type: int
    sender: int
    """Index that the sender of this frame chose; 0 in COOKIE."""
    receiver: int
    """Index that the receiver of this frame chose; 0 in INITIATION."""
    pattern: int
    suites: bytes
    """Suite numbers offered, in order of preference, zeros at the end; all zeros except in INITIATION."""
    body: bytes = attrs.field(repr=bytes.hex)

    def header(self) -> bytes:
        return HANDSHAKE_HEADER.pack(
            self.type, VERSION, len(self.body) + macs_size(self.type), self.sender, self.receiver, self.pattern, 0, 0, self.suites
        )

    def pack(self) -> bytes:
        """Header and body: what the first mac covers."""
        return self.header() + self.body


def macs_size(kind: int) -> int:
    """Bytes of the macs at the end of a frame of that type; an INITIATION's are mac1, mac2 and the stamp."""
    return 2 * MAC_SIZE + STAMP_SIZE if kind == INITIATION else MAC_SIZE


def parse_handshake(data: Buffer) -> tuple[HandshakeFrame, bytes, bytes]:
    """A handshake frame without Ethernet header: the frame, the bytes its macs are over, and the macs. Padding is cut. BadMessage."""
    data = bytes(data)
    if len(data) < HANDSHAKE_HEADER.size:
        raise BadMessage("handshake: header cut short")
    kind, version, length, sender, receiver, pattern, zero, nought, suites = HANDSHAKE_HEADER.unpack_from(data)
    if kind not in HANDSHAKES:
        raise BadMessage("handshake: type")
    if version != VERSION:
        raise BadVersion(f"handshake: version {version}, ours is {VERSION}")
    end = HANDSHAKE_HEADER.size + length
    start = end - macs_size(kind)
    if len(data) < end or start < HANDSHAKE_HEADER.size:
        raise BadMessage("handshake: length")
    if zero or nought or pattern not in (PATTERN_XX, PATTERN_IK):
        raise BadMessage("handshake: pattern or reserved field")
    if any(suites) != (kind == INITIATION) or (receiver == 0) != (kind == INITIATION) or (sender == 0) != (kind == COOKIE):
        raise BadMessage("handshake: field that does not belong to the type")
    return HandshakeFrame(kind, sender, receiver, pattern, suites, data[HANDSHAKE_HEADER.size : start]), data[:start], data[start:end]


class BadVersion(BadMessage):
    """A handshake of another protocol version."""
