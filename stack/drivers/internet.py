"""An internet in memory: UDP between stacks of one process, under virtual time or real. The simulator's second bearer, beside the hub.

A port is to its stack what the UDP driver is (`stack.drivers.udp`): an Ethernet interface whose stations are IP endpoints, numbered by the
same table. Datagrams go from endpoint to endpoint through whatever is between: nothing, or a router that translates addresses at either
end. What is lost on the way, and how late the rest is, is the business of fault wrappers around ports.

    internet = Internet(dispatch)
    stack.load(internet.module(), "address=10.0.0.1")
    home = internet.router("192.0.2.7")
    stack.load(internet.module(home), "address=192.168.0.2")

A router gives each endpoint behind it a port of its own on its public address, the same towards everybody, and lets in only what comes from
where something was sent to within `LIFE` (RFC 4787: endpoint-independent mapping, address- and port-dependent filtering). `forget` makes it
lose its table, as when it is switched off and on, or when an operator's router is short of ports: the endpoints have other ones afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from resmgr.dispatch import Dispatch
from stack.core.module import Context, Kind, Module, Random
from stack.drivers.hub import Hub, HubPort
from stack.drivers.udp_socket.table import EndpointTable
from stack.frame import Frame
from stack.wire.endpoint import MTU_MIN, PORT_DEFAULT, Endpoint, SockAddr, endpoint, from_sockaddr
from stack.wire.ethernet import ETHERTYPE_EXPERIMENTAL, HEADER_SIZE

LATENCY_DEFAULT = 100e-6
MTU_DEFAULT = 1472
"""Of an Ethernet, less the headers of IPv4 and UDP."""
LIFE = 30.0
"""Seconds for which a router lets answers in: what ordinary ones do at least."""
FIRST_PORT = 40001
"""That a router gives."""
PORTS = 20_000


NOT_BY_NAME = "an internet joins stacks of one program, which makes it and loads what `Internet.module` gives"
"""What to say to who asks for it by name."""


@attrs.frozen
class InternetOptions:
    """Options of an internet's module. `address`: of this machine, IPv4 or IPv6."""

    address: str
    name: str = "udp0"
    port: int = PORT_DEFAULT
    mtu: int = attrs.field(default=MTU_DEFAULT, validator=[attrs.validators.ge(MTU_MIN), attrs.validators.le(65507)])
    ethertype: int = ETHERTYPE_EXPERIMENTAL


class Router:
    """Translates addresses for the ports behind it. Made by `Internet.router`."""

    def __init__(self, public: str, dispatch: Dispatch) -> None:
        self.public = public
        self._dispatch = dispatch
        self._outside: dict[Endpoint, int] = {}
        self._inside: dict[int, InternetPort] = {}
        self._let_in: dict[tuple[int, Endpoint], float] = {}
        self._next = 0

    def out(self, port: InternetPort, to: Endpoint) -> Endpoint:
        """A datagram of *port* passes to *to*: whom it comes from, as the world sees it."""
        number = self._outside.get(port.local_endpoint)
        if number is None:
            number = FIRST_PORT + self._next % PORTS
            self._next += 1
            self._outside[port.local_endpoint] = number
        self._inside[number] = port
        self._let_in[number, to] = self._dispatch.now() + LIFE
        return Endpoint(self.public, number)

    def inward(self, number: int, source: Endpoint) -> InternetPort | None:
        """Whom a datagram from *source* to that port of ours is for; None: nobody asked for it."""
        if self._let_in.get((number, source), 0.0) < self._dispatch.now():
            return None
        return self._inside.get(number)

    def forget(self) -> None:
        """Lose the table. Ports that were given are not given again soon."""
        self._outside.clear()
        self._inside.clear()
        self._let_in.clear()


class Internet(Hub):
    """See the head of this file. `lost`: datagrams that nobody was there for, by reason."""

    def __init__(self, dispatch: Dispatch, *, latency: float = LATENCY_DEFAULT) -> None:
        super().__init__(dispatch, latency=latency)
        self.lost: dict[str, int] = {}
        self._reached: dict[Endpoint, InternetPort] = {}
        """Ports that have a public address."""
        self._routers: dict[str, Router] = {}

    def router(self, public: str) -> Router:
        """A router with that public address."""
        made = self._routers[public] = Router(public, self._dispatch)
        return made

    def module(self, router: Router | None = None) -> Module[InternetOptions]:  # type: ignore[override]  # options of its own
        """A driver module whose interfaces are at this internet, behind *router* or with a public address."""

        def attach(context: Context, options: InternetOptions) -> InternetPort:
            port = InternetPort(self, context.dispatch, options, context.random, router)
            self.plug(port)
            return port

        return Module("internet", Kind.DRIVER, InternetOptions, attach)

    def plug(self, port: HubPort) -> None:
        super().plug(port)
        if isinstance(port, InternetPort) and port.router is None:
            self._reached[port.local_endpoint] = port

    def unplug(self, port: HubPort) -> None:
        super().unplug(port)
        if isinstance(port, InternetPort):
            self._reached.pop(port.local_endpoint, None)

    def spread(self, sender: HubPort, frames: list[bytes]) -> None:
        """For ports: carry datagrams to where their stations are."""
        assert isinstance(sender, InternetPort)
        self.frames += len(frames)
        for station, batch in by_station(frames).items():
            to = sender.endpoint(station)
            if to is None:
                sender.count_drop("tx_no_endpoint", len(batch))
                continue
            source = sender.local_endpoint if sender.router is None else sender.router.out(sender, to)
            there = self.find(sender, source, to)
            if there is None or there is sender:
                self.lost["nobody_there"] = self.lost.get("nobody_there", 0) + len(batch)
            else:
                there.arrive_from(source, batch)

    def find(self, sender: InternetPort, source: Endpoint, to: Endpoint) -> InternetPort | None:
        """The port to which a datagram of *sender* comes that the world sees coming from *source*."""
        router = self._routers.get(to.address)
        return self._reached.get(to) if router is None else router.inward(to.port, source)


class InternetPort(HubPort):
    """One machine's UDP port: see `stack.core.driver.Driver` and `stack.core.endpoints.Endpoints`."""

    def __init__(self, internet: Internet, dispatch: Dispatch, options: InternetOptions, random: Random, router: Router | None) -> None:
        self._table: EndpointTable[None] = EndpointTable(random(16))
        self.local_endpoint = endpoint(options.address, options.port)
        self.router = router
        self.port = options.port
        self._ethertype = options.ethertype.to_bytes(2, "big")
        super().__init__(internet, dispatch, options.name, self._table.hash(f"own {options.address}"), options.mtu)

    def info(self) -> Mapping[str, str | int]:
        kept, used, heard = self._table.sizes()
        return {**super().info(), "driver": "internet", "endpoints kept": kept, "used": used, "heard": heard}

    # Endpoints

    def station(self, endpoint: Endpoint) -> bytes | None:
        if endpoint.is_ipv6 != self.local_endpoint.is_ipv6 or not endpoint.is_callable() or endpoint == self.local_endpoint:
            return None
        entry = self._table.keep(endpoint.sockaddr, None)
        return None if entry is None else entry.station

    def release(self, endpoint: Endpoint) -> None:
        self._table.let_go(endpoint.sockaddr)

    def endpoint(self, station: bytes) -> Endpoint | None:
        entry = self._table.by_station.get(station)
        return None if entry is None else from_sockaddr(entry.sockaddr)

    def local(self) -> tuple[Endpoint, ...]:
        return (self.local_endpoint,) if self.up else ()

    def local_interfaces(self) -> tuple[str, ...]:
        return (self.name,)

    # Datagrams

    def transmit(self, frames: list[Frame]) -> None:
        carried = [frame for frame in frames if frame[12:HEADER_SIZE] == self._ethertype]
        if len(carried) != len(frames):
            self.count_drop("tx_not_carried", len(frames) - len(carried))
        for frame in carried:
            entry = self._table.by_station.get(bytes(frame[:6]))
            if entry is not None:
                self._table.use(entry)
        super().transmit(carried)

    def arrive_from(self, source: Endpoint, frames: list[bytes]) -> None:
        """For the internet: datagrams from *source*, with the Ethernet headers that they left with."""
        sockaddr: SockAddr = source.sockaddr
        entry = self._table.by_address.get(sockaddr) or self._table.heard(sockaddr, None)
        if entry is None:
            self.count_drop("rx_collision", len(frames))
            return
        fitting = [frame for frame in frames if len(frame) <= self.mtu + HEADER_SIZE]
        if len(fitting) != len(frames):
            self.count_drop("rx_too_long", len(frames) - len(fitting))
        header = self.mac + entry.station + self._ethertype
        self.arrive([header + frame[HEADER_SIZE:] for frame in fitting])

    def count_drop(self, reason: str, number: int) -> None:
        self._port.count(reason, number)


def by_station(frames: list[bytes]) -> dict[bytes, list[bytes]]:
    """Frames by whom they are for, each in order."""
    found: dict[bytes, list[bytes]] = {}
    for frame in frames:
        found.setdefault(frame[:6], []).append(frame)
    return found
