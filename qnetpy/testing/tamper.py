"""What a man in the middle does to the frames that pass him: pure, for `qnetpy.testing.middleman` and whoever drives it in virtual time.

He holds cables, each with two ends, and hears a frame at one end; honest, he sends it out at the other. While he acts (`ACTS`, by name)
he sends what the act makes of it: beside the frame, before it, or in its place. He has no key; he knows our formats, remembers what he
heard, and notes which session indices are sent to whom. What each act gets: docs/protocol/attacks.md.

Altered copies go out before the frame that they are made from, which is the harder order for whoever must tell them apart.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import attrs

from qnetpy.link.wire import DATA, DATA_HEADER, HANDSHAKE_HEADER, HANDSHAKES
from stack.wire.ethernet import HEADER_SIZE

ETHERTYPE = 0x88B5
MADE_PART = 0.3
"""Part of the frames that get a made one beside them."""
LOST_PART = 0.05
"""Part of the frames in whose place something useless goes."""
KEPT = 1024
"""Frames remembered of each kind, DATA and handshake."""
INDICES_KEPT = 64
DELAY = 0.03
SHUFFLE = 0.005
LATE = (0.5, 2.5)


@attrs.frozen
class Sending:
    """A frame to send at one end, after so many seconds."""

    end: int
    frame: bytes
    delay: float = 0.0


class Tamper:
    """See the head of this file. Cable c has the ends 2c and 2c + 1; the same side of all cables leads to the same nodes."""

    def __init__(self, cables: int, seed: int, ethertype: int = ETHERTYPE) -> None:
        self.random = random.Random(seed)
        self.did: Counter[str] = Counter()
        """Frames made, kept back or altered, by act."""
        self.act = "honest"
        self._ends = 2 * cables
        self._ethertype = ethertype.to_bytes(2, "big")
        self._heard: list[tuple[int, bytes]] = []
        self._handshakes: list[tuple[int, bytes]] = []
        self._addresses: dict[int, bytes] = {}
        self._indices: dict[bytes, list[int]] = {}
        self._bit = 0
        self._length = 0
        self._kind = 0

    def heard(self, end: int, frame: bytes) -> list[Sending]:
        """What to send for a frame that came in at *end*."""
        honest = Sending(end ^ 1, frame)
        if len(frame) < HEADER_SIZE + DATA_HEADER.size or frame[12:14] != self._ethertype:
            return [honest]
        self._remember(end, frame)
        made = ACTS[self.act](self, end, frame) if self.act != "honest" else None
        if made is None:
            return [honest]
        self.did[self.act] += 1
        return made

    def _remember(self, end: int, frame: bytes) -> None:
        self._addresses[end] = frame[:12]
        kind = frame[HEADER_SIZE]
        kept = self._handshakes if kind in HANDSHAKES else self._heard
        if len(kept) < KEPT:
            kept.append((end, frame))
        elif self.random.random() < 0.2:
            kept[self.random.randrange(KEPT)] = end, frame
        if kind == DATA:
            indices = self._indices.setdefault(frame[:6], [])
            index = DATA_HEADER.unpack_from(frame, HEADER_SIZE)[3]
            if index not in indices:
                indices.append(index)
                del indices[:-INDICES_KEPT]

    # Parts of acts

    def beside(self, end: int, frame: bytes, make: Callable[[], Sending]) -> list[Sending] | None:
        """What is made, then the frame itself; for MADE_PART of the frames."""
        return [make(), Sending(end ^ 1, frame)] if self.random.random() < MADE_PART else None

    def instead(self, *made: Sending) -> list[Sending] | None:
        return list(made) if self.random.random() < LOST_PART else None

    def header_size(self, frame: bytes) -> int:
        return HANDSHAKE_HEADER.size if frame[HEADER_SIZE] in HANDSHAKES else DATA_HEADER.size

    def flipped(self, frame: bytes, bit: int) -> bytes:
        """*bit* counts from behind the Ethernet header."""
        data = bytearray(frame)
        data[HEADER_SIZE + bit // 8] ^= 1 << bit % 8
        return bytes(data)

    def station(self) -> bytes:
        """A made-up single station."""
        return bytes((self.random.randrange(256) & 0xFC | 2,)) + self.random.randbytes(5)

    def with_data(self, frame: bytes, *, path: int | None = None, index: int | None = None, to: bytes | None = None) -> bytes:
        """A DATA frame with another path number, session index or Ethernet addresses."""
        kind, old_path, length, old_index, number = DATA_HEADER.unpack_from(frame, HEADER_SIZE)
        header = DATA_HEADER.pack(kind, old_path if path is None else path, length, old_index if index is None else index, number)
        return (frame[:12] if to is None else to) + frame[12:HEADER_SIZE] + header + frame[HEADER_SIZE + DATA_HEADER.size :]

    def index_of(self, station: bytes, other_than: int) -> int | None:
        """A session index that somebody used to *station*."""
        found = [index for index in self._indices.get(station, ()) if index != other_than]
        return self.random.choice(found) if found else None

    def next_kind(self) -> int:
        self._kind = (self._kind + 1) % 256
        return self._kind

    def next_bit(self, bits: int) -> int:
        self._bit += 1
        return self._bit % bits

    def next_length(self, size: int) -> int:
        """Every length in turn, from nothing behind the Ethernet header to one byte too few."""
        self._length += 1
        return HEADER_SIZE + self._length % (size - HEADER_SIZE)

    def ends(self) -> Iterator[int]:
        yield from range(self._ends)

    # Acts

    def drop(self, end: int, frame: bytes) -> list[Sending] | None:
        return [] if self.random.random() < 0.2 else None

    def silence(self, end: int, frame: bytes) -> list[Sending] | None:
        return []

    def one_way(self, end: int, frame: bytes) -> list[Sending] | None:
        return [] if end % 2 else None

    def delay(self, end: int, frame: bytes) -> list[Sending] | None:
        return [Sending(end ^ 1, frame, DELAY)]

    def reorder(self, end: int, frame: bytes) -> list[Sending] | None:
        return [Sending(end ^ 1, frame, self.random.random() * SHUFFLE)]

    def repeat(self, end: int, frame: bytes) -> list[Sending] | None:
        return [Sending(end ^ 1, frame)] * 2

    def late(self, end: int, frame: bytes) -> list[Sending] | None:
        """The same once more when newer ones have come, and newer keys."""
        return self.beside(end, frame, lambda: Sending(end ^ 1, frame, self.random.uniform(*LATE)))

    def old(self, end: int, frame: bytes) -> list[Sending] | None:
        """Something recorded, of any session, kind and cable, to where it went then."""
        then, recorded = self.random.choice(self._heard)
        return self.beside(end, frame, lambda: Sending(then ^ 1, recorded))

    def reflect(self, end: int, frame: bytes) -> list[Sending] | None:
        """Back to its sender as if from its receiver."""
        return self.beside(end, frame, lambda: Sending(end, frame[6:12] + frame[:6] + frame[12:]))

    def echo(self, end: int, frame: bytes) -> list[Sending] | None:
        """Back to its sender as if from itself."""
        return self.beside(end, frame, lambda: Sending(end, frame[6:12] + frame[6:12] + frame[12:]))

    def cut(self, end: int, frame: bytes) -> list[Sending] | None:
        return self.beside(end, frame, lambda: Sending(end ^ 1, frame[: self.next_length(len(frame))].ljust(60, b"\0")))

    def header(self, end: int, frame: bytes) -> list[Sending] | None:
        """One bit of the header, each in turn."""
        return self.beside(end, frame, lambda: Sending(end ^ 1, self.flipped(frame, self.next_bit(8 * self.header_size(frame)))))

    def body(self, end: int, frame: bytes) -> list[Sending] | None:
        """One bit behind the header, the last 16 bytes as likely as the rest."""
        bits = 8 * (len(frame) - HEADER_SIZE)
        low = self.random.choice([8 * self.header_size(frame), max(8 * self.header_size(frame), bits - 128)])
        return (
            self.beside(end, frame, lambda: Sending(end ^ 1, self.flipped(frame, self.random.randrange(low, bits)))) if low < bits else None
        )

    def kind(self, end: int, frame: bytes) -> list[Sending] | None:
        """Another type byte: each in turn."""
        return self.beside(
            end, frame, lambda: Sending(end ^ 1, frame[:HEADER_SIZE] + bytes((self.next_kind(),)) + frame[HEADER_SIZE + 1 :])
        )

    def corrupt(self, end: int, frame: bytes) -> list[Sending] | None:
        """A damaged frame in place of the frame."""
        return self.instead(Sending(end ^ 1, self.flipped(frame, self.random.randrange(8 * (len(frame) - HEADER_SIZE)))))

    def session(self, end: int, frame: bytes) -> list[Sending] | None:
        """In another session of the same receiver, of another peer or of older keys."""
        if frame[HEADER_SIZE] != DATA:
            return None
        index = self.index_of(frame[:6], DATA_HEADER.unpack_from(frame, HEADER_SIZE)[3])
        return None if index is None else self.beside(end, frame, lambda: Sending(end ^ 1, self.with_data(frame, index=index)))

    def direction(self, end: int, frame: bytes) -> list[Sending] | None:
        """To its own sender, in the session in which that one receives."""
        if frame[HEADER_SIZE] != DATA:
            return None
        index = self.index_of(frame[6:12], 0)
        back = frame[6:12] + frame[:6]
        return None if index is None else self.beside(end, frame, lambda: Sending(end, self.with_data(frame, index=index, to=back)))

    def path(self, end: int, frame: bytes) -> list[Sending] | None:
        """Under another path number."""
        if frame[HEADER_SIZE] != DATA:
            return None
        number = self.random.choice([0, 1, 2, 3, self.random.randrange(256)])
        return self.beside(end, frame, lambda: Sending(end ^ 1, self.with_data(frame, path=number)))

    def cable(self, end: int, frame: bytes) -> list[Sending] | None:
        """Over another cable, with the addresses that are used there, instead of its own."""
        others = [other for other in self.ends() if other != end and other % 2 == end % 2 and other in self._addresses]
        if not others or self.random.random() > MADE_PART:
            return None
        other = self.random.choice(others)
        return [Sending(other ^ 1, self._addresses[other] + frame[12:])]

    def spoof(self, end: int, frame: bytes) -> list[Sending] | None:
        """The same from another station: one that is there, or one that nobody has."""
        source = self.random.choice([self.station(), *(address[:6] for address in self._addresses.values())])
        return self.beside(end, frame, lambda: Sending(end ^ 1, frame[:6] + source + frame[12:]))

    def moved(self, end: int, frame: bytes) -> list[Sending] | None:
        """Every frame from a station that nobody has."""
        return [Sending(end ^ 1, frame[:6] + self.station() + frame[12:])]

    def group(self, end: int, frame: bytes) -> list[Sending] | None:
        """As if it came from everybody, or to everybody."""
        copy = self.random.choice([frame[:6] + b"\3\0\0\0\0\1" + frame[12:], b"\xff" * 6 + frame[6:]])
        return self.beside(end, frame, lambda: Sending(end ^ 1, copy))

    def handshakes(self, end: int, frame: bytes) -> list[Sending] | None:
        """A recorded handshake frame of any time: as it was, from elsewhere, turned round, altered."""
        if not self._handshakes:
            return None
        then, recorded = self.random.choice(self._handshakes)
        back = recorded[6:12] + recorded[:6] + recorded[12:]
        altered = self.flipped(recorded, self.random.randrange(8 * (len(recorded) - HEADER_SIZE)))
        elsewhere = recorded[:6] + self.station() + recorded[12:]
        made = self.random.choice(
            [Sending(then ^ 1, recorded), Sending(then ^ 1, altered), Sending(then ^ 1, elsewhere), Sending(then, back)]
        )
        return self.beside(end, frame, lambda: made)

    def noise(self, end: int, frame: bytes) -> list[Sending] | None:
        junk = frame[:HEADER_SIZE] + self.random.randbytes(self.random.randrange(46, 600))
        return self.beside(end, frame, lambda: Sending(end ^ 1, junk))

    def everything(self, end: int, frame: bytes) -> list[Sending] | None:
        """Any of the acts that leave a link alive."""
        return ACTS[self.random.choice(MILD)](self, end, frame)


ACTS: dict[str, Callable[[Tamper, int, bytes], list[Sending] | None]] = {
    "drop": Tamper.drop,
    "silence": Tamper.silence,
    "one-way": Tamper.one_way,
    "delay": Tamper.delay,
    "reorder": Tamper.reorder,
    "repeat": Tamper.repeat,
    "late": Tamper.late,
    "old": Tamper.old,
    "reflect": Tamper.reflect,
    "echo": Tamper.echo,
    "cut": Tamper.cut,
    "header": Tamper.header,
    "body": Tamper.body,
    "type": Tamper.kind,
    "corrupt": Tamper.corrupt,
    "session": Tamper.session,
    "direction": Tamper.direction,
    "path": Tamper.path,
    "cable": Tamper.cable,
    "spoof": Tamper.spoof,
    "moved": Tamper.moved,
    "group": Tamper.group,
    "handshakes": Tamper.handshakes,
    "noise": Tamper.noise,
    "everything": Tamper.everything,
}
MILD: Sequence[str] = [name for name in ACTS if name not in ("silence", "one-way", "delay", "drop", "moved", "everything")]
"""Acts of which one frame in some is the victim: with all of them at once a link still goes on."""
