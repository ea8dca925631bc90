"""What joins simulated nodes: a hub or an internet that knows which node each port is of, loses what a partition loses, and can be read.

A partition here is of ordered pairs of nodes, so it may be of one direction only, and need not be the same for any two. In the trace of a
world each batch is a line: who sends to whom, which frames, and a checksum of them. Handshake frames are counted as they pass, so that
something can be made to happen between two of them, which no random moment would hit.

An ephemeral key is seen in the clear; one that comes with two messages would be a nonce of Noise used twice, and raises. DATA is not looked
at here but where it is sealed (`qnetpy.link.testing.WatchedCrypto`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from zlib import crc32

from qnetpy.link import wire
from qnetpy.link.constants import MAC_SIZE
from qnetpy.link.cookie import ClusterMac
from qnetpy.link.testing import NonceReused
from resmgr.errors import BadMessage
from resmgr.testing.virtual import VirtualDispatch
from stack.drivers.hub import Hub, HubPort
from stack.drivers.internet import Internet, InternetPort
from stack.wire.endpoint import Endpoint
from stack.wire.ethernet import HEADER_SIZE, is_group

NAMES = {
    wire.DATA: "DATA",
    wire.INITIATION: "INITIATION",
    wire.RESPONSE: "RESPONSE",
    wire.FINAL: "FINAL",
    wire.CONFIRM: "CONFIRM",
    wire.COOKIE: "COOKIE",
    wire.SOLICITATION: "SOLICITATION",
}
KEY_SIZE = 32
Watch = Callable[[int], None]


class Watched:
    """What a hub and an internet of a world have in common."""

    def __init__(self, dispatch: VirtualDispatch, name: str, on_handshakes: Watch, mac: ClusterMac | None) -> None:
        self.name = name
        self._mac = mac
        self.owners: dict[bytes, str] = {}
        """The node of a port, by the port's address."""
        self.severed: set[tuple[str, str]] = set()
        """Of nodes: what the first sends does not reach the second."""
        self._ephemeral: dict[bytes, int] = {}
        """By ephemeral key, where *mac* tells real handshakes from damaged ones: a checksum of the message that it came with."""
        self._virtual = dispatch
        self._on_handshakes = on_handshakes

    def own(self, mac: bytes, node: str) -> None:
        self.owners[mac] = node

    def joined(self, sender: bytes, receiver: bytes) -> bool:
        """Whether frames pass from one port to another."""
        return not self.severed or (self.owners.get(sender, ""), self.owners.get(receiver, "")) not in self.severed

    def seen(self, sender: HubPort, frames: list[bytes]) -> None:
        """For the trace and for whoever waits for handshakes."""
        handshakes = [frame for frame in frames if len(frame) > HEADER_SIZE and frame[HEADER_SIZE] not in (wire.DATA, wire.SOLICITATION)]
        if handshakes:
            for frame in handshakes:
                self._look_at(frame[HEADER_SIZE:])
            self._on_handshakes(len(handshakes))
        if self._virtual.trace is not None:
            self._virtual.note(f"{self.name} {self.owners.get(sender.mac, sender.mac.hex())} {describe(frames)}")

    def _look_at(self, data: bytes) -> None:
        try:
            frame, covered, macs = wire.parse_handshake(data)
        except BadMessage:
            return  # a fault wrapper has changed it
        if self._mac is not None and frame.type in (wire.INITIATION, wire.RESPONSE) and self._mac.check(covered, macs[:MAC_SIZE]):
            checksum = crc32(frame.body)
            if self._ephemeral.setdefault(frame.body[:KEY_SIZE], checksum) != checksum:
                raise NonceReused(f"two {NAMES[frame.type]}s with one ephemeral key")


class WatchedHub(Watched, Hub):
    """An Ethernet of a world."""

    def __init__(self, dispatch: VirtualDispatch, name: str, on_handshakes: Watch, mac: ClusterMac | None) -> None:
        Watched.__init__(self, dispatch, name, on_handshakes, mac)
        Hub.__init__(self, dispatch)

    def spread(self, sender: HubPort, frames: list[bytes]) -> None:
        self.seen(sender, frames)
        if self.severed:
            to_groups = [frame for frame in frames if is_group(frame)]
            passing = [frame for frame in frames if not is_group(frame) and self.joined(sender.mac, frame[:6])]
            for port in self.ports if to_groups else ():
                if port is not sender and self.joined(sender.mac, port.mac):
                    port.arrive(to_groups)
            self.frames += len(frames) - len(passing)
            frames = passing
        if frames:
            Hub.spread(self, sender, frames)


class WatchedInternet(Watched, Internet):
    """An internet of a world."""

    def __init__(self, dispatch: VirtualDispatch, name: str, on_handshakes: Watch, mac: ClusterMac | None) -> None:
        Watched.__init__(self, dispatch, name, on_handshakes, mac)
        Internet.__init__(self, dispatch)

    def spread(self, sender: HubPort, frames: list[bytes]) -> None:
        self.seen(sender, frames)
        Internet.spread(self, sender, frames)

    def find(self, sender: InternetPort, source: Endpoint, to: Endpoint) -> InternetPort | None:
        there = Internet.find(self, sender, source, to)
        return there if there is None or self.joined(sender.mac, there.mac) else None


def describe(frames: list[bytes]) -> str:
    """`INITIATION 2 DATA 7f3a90c1`: kinds of frames, how many of each, and a checksum of all."""
    kinds = Counter(NAMES.get(frame[HEADER_SIZE], "noise") if len(frame) > HEADER_SIZE else "noise" for frame in frames)
    told = " ".join(name if count == 1 else f"{count} {name}" for name, count in kinds.items())
    return f"{told} {crc32(b''.join(frames)):08x}"
