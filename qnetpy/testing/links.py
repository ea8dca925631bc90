"""LinkMachines on a net of cables in virtual time: real keys, real frames, no dispatch. Nodes have one interface per cable.

For tests of links; whole nodes are in `qnetpy.testing.world`. Every key is watched: a nonce that comes twice raises.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random

import attrs

from qnetpy.identity.authority import NodeIdentity, issue_identity, make_authority
from qnetpy.link.handshake import HandshakeMachine
from qnetpy.link.link import Link, LinkPath
from qnetpy.link.machine import LinkMachine
from qnetpy.link.outcome import Failed
from qnetpy.link.session import RekeyPolicy
from qnetpy.link.testing import WatchedCrypto
from qnetpy.link.wire import Address
from resmgr.dispatch import Buffer

ETHERTYPE = 0x88B5
WALL = 1_800_000_000.0
HEAD = 14


class Owner:
    """Upcalls of one node, written down."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.paths: list[str] = []
        self.links: dict[str, Link] = {}
        self.got: list[bytes] = []
        self.refusals: list[Failed] = []
        self.solicitations: list[tuple[Address, bytes]] = []
        self.on_message: Callable[[Link, bytes], None] | None = None
        self.on_route: Callable[[int], None] | None = None

    def link_up(self, link: Link, restarted: bool) -> None:
        self.log.append(f"{link.name} up{' restarted' if restarted else ''}")
        self.links[link.name] = link

    def link_suspect(self, link: Link, reason: str) -> None:
        self.log.append(f"{link.name} suspect: {reason}")

    def link_back(self, link: Link) -> None:
        self.log.append(f"{link.name} back")

    def link_down(self, link: Link, reason: str) -> None:
        self.log.append(f"{link.name} down: {reason}")
        del self.links[link.name]

    def calling(self, name: str) -> None:
        self.log.append(f"{name} calling")

    def unreachable(self, name: str, why: str) -> None:
        self.log.append(f"{name} unreachable")

    def path_changed(self, link: Link, address: Address, what: str) -> None:
        self.paths.append(f"{link.name} {address[0]} {what}")

    def message(self, link: Link, stream: int, priority: int, data: Buffer, route: int) -> None:
        self.got.append(bytes(data))
        if self.on_route is not None:
            self.on_route(route)
        if self.on_message is not None:
            self.on_message(link, bytes(data))

    def solicited(self, address: Address, frame: memoryview) -> None:
        self.solicitations.append((address, bytes(frame)))

    def refused(self, failed: Failed) -> None:
        self.refusals.append(failed)


@attrs.define(eq=False)
class Station:
    """A node on the net."""

    name: str
    machine: LinkMachine
    owner: Owner
    ports: dict[str, tuple[bytes, str]]
    """Interface: address, cable."""
    mtus: dict[str, int]
    sent: Counter[str]
    wakes: int = 0
    on: bool = True


class Net:
    """Cables with nodes. `block(sender, cable, frame)` decides what is lost; `taps` see every frame."""

    def __init__(self, seed: int = 1) -> None:
        self.random = Random(seed)
        self.now = 100.0
        self.crypto = WatchedCrypto()
        self.authority = make_authority("net", WALL, random=self.random.randbytes)
        self.identities: dict[str, NodeIdentity] = {}
        self.stations: dict[str, Station] = {}
        self.block: Callable[[str, str, bytes], bool] = lambda sender, cable, frame: False
        self.frames: list[tuple[float, str, str, bytes]] = []
        self.latency = 20e-6
        self._queue: list[tuple[float, int, str, str, bytes]] = []
        self._count = 0

    def identity(self, name: str) -> NodeIdentity:
        if name not in self.identities:
            self.identities[name] = self.other_key(name)
        return self.identities[name]

    def other_key(self, name: str) -> NodeIdentity:
        """A certificate of that name with a new key."""
        return issue_identity(self.authority, name, [], WALL, random=self.random.randbytes)

    def add(
        self,
        name: str,
        number: int,
        cables: tuple[str, ...] = ("lan",),
        *,
        identity: NodeIdentity | None = None,
        rekey: RekeyPolicy | None = None,
        mtu: int = 1500,
        key: str = "",
    ) -> Station:
        """Switch a node on; *key* is its name on the net when two have one name."""
        owner = Owner()
        who = self.identity(name) if identity is None else identity
        boot_id = self.random.randbytes(16)
        chance = Random(self.random.getrandbits(64))

        def make(machine: LinkMachine) -> HandshakeMachine:
            wall: Callable[[], float] = lambda: WALL + self.now  # noqa: E731  # two words
            return HandshakeMachine(who, machine, boot_id, self.crypto, chance.randbytes, wall, mtu=machine.mtu)

        machine = LinkMachine(name, make, ETHERTYPE, owner, rekey=rekey)
        ports = {f"en{index}": (bytes((2, 0, 0, 0, index, number)), cable) for index, cable in enumerate(cables)}
        station = Station(name, machine, owner, ports, dict.fromkeys(ports, mtu), Counter())
        self.stations[key or name] = station
        for interface, (mac, _) in ports.items():
            machine.interface(interface, mac, mtu, True, self.now)
        return station

    def carrier(self, station: Station, interface: str, up: bool) -> None:
        mac, _ = station.ports[interface]
        station.machine.interface(interface, mac, station.mtus[interface], up, self.now)
        self.flush(station)

    def hint(self, station: Station, other: Station, interface: str = "en0") -> None:
        mac, _ = other.ports[interface]
        station.machine.hint((interface, mac), self.now)
        self.flush(station)

    def send(self, station: Station, to: str, data: bytes, stream: int = 1) -> None:
        station.machine.send(station.owner.links[to], stream, [data], 10, self.now)
        self.flush(station)

    def flush(self, station: Station) -> None:
        for _ in range(1000):
            for interface, frames in station.machine.transmit(self.now):
                _, cable = station.ports[interface]
                for frame in frames:
                    assert len(frame) <= station.mtus[interface] + HEAD
                    station.sent[interface] += 1
                    self.frames.append((self.now, station.name, cable, frame))
                    if not self.block(station.name, cable, frame):
                        self.inject(cable, frame)
            if not station.machine.pending:
                return
        raise AssertionError("always something pending")

    def inject(self, cable: str, frame: bytes) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + self.latency, self._count, cable, "", frame))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        end = self.now + seconds
        while True:
            if until is not None and until():
                return True
            times = [(self._queue[0][0], "")] if self._queue else []
            for key, station in self.stations.items():
                when = station.machine.next_timeout()
                if station.on and when is not None:
                    times.append((max(when, self.now), key))
            when, key = min(times, default=(end + 1, ""))
            if when > end:
                self.now = end
                return until is None or until()
            self.now = when
            if key:
                station = self.stations[key]
                station.wakes += 1
                station.machine.handle_timeout(self.now)
                self.flush(station)
                following = station.machine.next_timeout()
                assert following is None or following > self.now, f"{key}: the timer stands still at {self.now}"
                continue
            arrived: list[tuple[str, bytes]] = []
            while self._queue and self._queue[0][0] <= self.now:
                _, _, cable, _, frame = heapq.heappop(self._queue)
                arrived.append((cable, frame))
            for station in list(self.stations.values()):
                for interface, (mac, cable) in station.ports.items():
                    frames = [frame.ljust(60, b"\0") for on, frame in arrived if on == cable and frame[:6] == mac]
                    if frames and station.on:
                        station.machine.receive(interface, frames, HEAD, self.now)
                        self.flush(station)

    def up(self, *stations: Station) -> None:
        """Everybody hints at everybody, on every cable that they share; all links come up."""
        for one in stations:
            for two in stations:
                for interface in one.ports:
                    if one is not two and two.ports.get(interface, (b"", ""))[1] == one.ports[interface][1]:
                        self.hint(one, two, interface)
        assert self.run(5.0, lambda: all(len(station.owner.links) == len(stations) - 1 for station in stations))
        self.run(0.5)


def path(station: Station, to: str, interface: str) -> LinkPath:
    """The path of that interface of a station that has one node there."""
    (found,) = (path for path in station.owner.links[to].paths.values() if path.address[0] == interface)
    return found


def first(station: Station, to: str) -> str:
    """The interface over which the node would be reached now."""
    best = station.owner.links[to].best
    assert best is not None
    return best.address[0]


def two_cables(rekey: RekeyPolicy | None = None) -> tuple[Net, Station, Station]:
    """Nodes a and b on cables `one` and `two`, with a path over each."""
    net = Net()
    a, b = net.add("a", 1, ("one", "two"), rekey=rekey), net.add("b", 2, ("one", "two"), rekey=rekey)
    net.up(a, b)
    net.run(3.0)
    assert all(end.owner.links[to].transport.usable(number) for end, to in ((a, "b"), (b, "a")) for number in end.owner.links[to].paths)
    assert len(a.owner.links["b"].paths) == len(b.owner.links["a"].paths) == 2
    return net, a, b
