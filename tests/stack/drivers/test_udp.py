"""The UDP driver on real sockets: loopback for the contract and for hostile datagrams, a cable between two namespaces for the rest."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.system import System
from stack.core.errors import ModuleError
from stack.core.options import parse_options
from stack.core.stack import Stack
from stack.core.statistics import Drop
from stack.drivers.udp import SOURCE_STALE, UdpDriver
from stack.drivers.udp_socket.options import UdpOptions
from stack.drivers.wrap.fault import FaultDriver
from stack.frame import Frame
from stack.testing.driver import TYPE, RecordingPort, Stations, check_driver, frame
from stack.testing.namespace import Veth
from stack.testing.pair import Pair, settle, through_fault
from stack.wire.endpoint import Endpoint, SockAddr

Offload = Literal["auto", "off"]
LOOPBACKS = ("127.0.0.1", "::1")


def know(one: UdpDriver, endpoint: Endpoint) -> bytes:
    station = one.station(endpoint)
    assert station is not None
    return station


class Ends:
    """Two drivers that know each other; `a_at_b` is a's station at b."""

    def __init__(self, a: UdpDriver, b: UdpDriver, start: bool = True, places: tuple[Endpoint, Endpoint] | None = None) -> None:
        self.a, self.b = a, b
        place_a, place_b = places or (a.local()[0], b.local()[0])
        self.a_at_b, self.b_at_a = know(b, place_a), know(a, place_b)
        self.port_a, self.port_b = RecordingPort(), RecordingPort()
        if start:
            for driver, port in ((a, self.port_a), (b, self.port_b)):
                driver.start(port)
                driver.accept(frozenset((TYPE,)))

    def frames(self, count: int, size: int = 100, salt: int = 0) -> list[Frame]:
        return [frame(self.b_at_a, self.a.mac, (number + salt).to_bytes(4, "big") * (size // 4)) for number in range(count)]

    def arrived(self, frames: list[Frame]) -> bool:
        """Exactly these frames are there at b, in order; forgets them."""
        seen = [self.b.mac + self.a_at_b + bytes(one[12:]) for one in frames]
        if self.port_b.frames != seen:
            return False
        self.port_b.frames.clear()
        return True

    def detach(self) -> None:
        self.a.detach()
        self.b.detach()


@pytest.fixture
async def dispatch() -> AsyncIterator[TrioDispatch]:
    async with open_dispatch() as made:
        yield made
        assert made.statistics().descriptors == 0


def loopback(
    dispatch: TrioDispatch, address: str = "127.0.0.1", offload: Offload = "auto", mtu: int | None = 1472, **more: Any
) -> UdpDriver:
    return UdpDriver(dispatch, UdpOptions((address,), port=0, ethertype=TYPE, mtu=mtu, offload=offload, **more))


@pytest.fixture
async def ends(dispatch: TrioDispatch) -> AsyncIterator[Ends]:
    made = Ends(loopback(dispatch), loopback(dispatch))
    yield made
    made.detach()


@pytest.mark.host
@pytest.mark.parametrize(("offload", "wrapped"), [("auto", False), ("off", False), ("auto", True)])
@pytest.mark.parametrize("address", LOOPBACKS)
async def test_contract(dispatch: TrioDispatch, address: str, offload: Offload, wrapped: bool) -> None:
    pair = Ends(loopback(dispatch, address, offload), loopback(dispatch, address, offload), start=False)
    ends = through_fault(dispatch, pair.a, pair.b) if wrapped else [pair.a, pair.b]
    await check_driver(Pair(*ends), Stations(pair.a_at_b, pair.b_at_a))


@pytest.mark.host
async def test_contract_with_a_large_mtu(dispatch: TrioDispatch) -> None:
    pair = Ends(loopback(dispatch, mtu=None), loopback(dispatch, mtu=None), start=False)
    assert pair.a.mtu == 65507
    await check_driver(Pair(pair.a, pair.b), Stations(pair.a_at_b, pair.b_at_a))


@pytest.mark.host
@pytest.mark.parametrize("size", [100, 1400, 1472])
async def test_segments_and_coalescing_are_used_and_copy_once_per_size(ends: Ends, size: int) -> None:
    for turn in range(6):
        sent = ends.frames(64, size, turn)
        ends.a.transmit(sent)
        assert await settle(lambda: len(ends.port_b.frames) == 64)
        assert ends.arrived(sent)
    a, b = ends.a.info(), ends.b.info()
    assert (a["transmit"], b["receive"]) == ("segments", "coalesced")
    assert (a["sent in segments"], b["received coalesced"]) == (6 * 64, 6 * 64)
    assert int(ends.a.info()["calls for them"]) <= 12
    # The first receive of that size is copied; where runs end in another size, so is one of those.
    assert int(b["copied"]) <= 64


@pytest.mark.host
async def test_without_offloads_every_datagram_is_one_call(dispatch: TrioDispatch) -> None:
    ends = Ends(loopback(dispatch, offload="off"), loopback(dispatch, offload="off"))
    sent = ends.frames(100, 1400)
    ends.a.transmit(sent)
    assert await settle(lambda: len(ends.port_b.frames) == 100)
    assert ends.arrived(sent)
    assert ends.a.info()["sent in segments"] == ends.b.info()["received coalesced"] == 0
    assert (ends.a.info()["transmit"], ends.b.info()["receive"]) == ("one by one", "one by one")
    ends.detach()


class Around:
    """A socket with something else instead of one of its calls."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.host
@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
async def test_a_device_that_cannot_segment_gets_them_one_by_one(ends: Ends, code: int) -> None:
    """The kernel refuses by an error; EIO it will always give, EINVAL may be for this size only."""
    socket_a = ends.a._channels[0].out
    plain = socket_a.sock

    class Refusing(Around):
        calls = 0

        def sendmsg(self, buffers: Any, ancillary: Any, flags: int, address: Any) -> int:
            self.calls += 1
            if len(buffers) > 1:
                raise OSError(code, "no")
            return plain.sendmsg(buffers, ancillary, flags, address)

    refusing: Any = Refusing(plain)
    socket_a.sock = refusing
    sent = ends.frames(10)
    ends.a.transmit(sent)
    ends.a.transmit(sent)
    assert await settle(lambda: len(ends.port_b.frames) == 20)
    assert ends.arrived(sent * 2)
    assert ends.port_a.drops == {}
    assert refusing.calls == (21 if code == errno.EIO else 22)
    assert ends.a.info()["transmit"] == ("one by one" if code == errno.EIO else "segments")
    socket_a.sock = plain


@pytest.mark.host
async def test_sizes_that_change_with_every_receive(ends: Ends) -> None:
    for turn, size in enumerate((400, 1200, 400, 60, 1472, 4, 800)):
        sent = [*ends.frames(20, size, turn), *ends.frames(1, 8, turn)]
        ends.a.transmit(sent)
        assert await settle(lambda: len(ends.port_b.frames) == 21), size
        assert ends.arrived(sent)


class Stranger:
    """A plain socket beside b."""

    def __init__(self, b: UdpDriver) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.to: SockAddr = b.local()[0].sockaddr

    def send(self, data: bytes) -> None:
        self.sock.sendto(data, self.to)


@pytest.fixture
async def stranger(ends: Ends) -> AsyncIterator[Stranger]:
    made = Stranger(ends.b)
    yield made
    made.sock.close()


@pytest.mark.host
async def test_hostile_datagrams(ends: Ends, stranger: Stranger) -> None:
    for size in (65507, 1473, 0, 1, 1472):
        stranger.send(b"z" * size)
    ends.a.transmit(ends.frames(1))
    assert await settle(lambda: len(ends.port_b.frames) == 4)
    assert [len(one) for one in ends.port_b.frames] == [14, 15, 14 + 1472, 114]
    assert ends.port_b.drops == {"rx_too_long": 2}
    station = ends.port_b.frames[0][6:12]
    assert ends.b.endpoint(station) == Endpoint("127.0.0.1", stranger.sock.getsockname()[1])
    assert ends.b.endpoint(b"\2\0\0\0\0\0") is None


@pytest.mark.host
async def test_hostile_datagrams_between_coalesced_ones(ends: Ends, stranger: Stranger) -> None:
    """While the receiver scatters into slots: a long one, an empty one and one that just does not fit a slot."""
    sent = ends.frames(64, 400)
    for _ in range(2):
        ends.a.transmit(sent)
    for size in (65507, 0, 401, 1472, 1473):
        stranger.send(b"z" * size)
        ends.a.transmit(sent)
    assert await settle(lambda: len(ends.port_b.frames) == 7 * 64 + 3)
    mine = [one for one in ends.port_b.frames if one[6:12] == ends.a_at_b]
    others = [one[14:] for one in ends.port_b.frames if one[6:12] != ends.a_at_b]
    assert mine == [ends.b.mac + ends.a_at_b + bytes(one[12:]) for one in sent] * 7
    assert others == [b"", b"z" * 401, b"z" * 1472]
    assert ends.port_b.drops == {"rx_too_long": 2}


@pytest.mark.host
async def test_a_stranger_is_answered_and_then_used(ends: Ends, stranger: Stranger) -> None:
    ends.port_b.on_frames = lambda frames: ends.b.transmit([bytes(one[6:12]) + bytes(one[:6]) + bytes(one[12:]) for one in frames])
    stranger.send(b"ping")
    stranger.sock.setblocking(False)
    assert await settle(lambda: ends.b.info()["used"] == 1)
    assert stranger.sock.recv(100) == b"ping"
    assert ends.b.info()["heard"] == 0


@pytest.mark.host
async def test_frames_to_nobody_are_counted(ends: Ends) -> None:
    ends.a.transmit([frame(b"\2\0\0\0\0\1", ends.a.mac, b"x")])
    ends.a.transmit([frame(b"\2\0\0\0\0\1", ends.a.mac, b"x"), *ends.frames(2), frame(b"\2\0\0\0\0\2", ends.a.mac, b"x")])
    assert await settle(lambda: len(ends.port_b.frames) == 2)
    assert ends.port_a.drops == {"tx_no_endpoint": 3}


@pytest.mark.host
async def test_who_may_be_called(dispatch: TrioDispatch) -> None:
    one = loopback(dispatch)
    assert one.station(one.local()[0]) is None, "ourselves"
    assert one.station(Endpoint("::1", 9)) is None, "no socket of that family"
    assert one.station(Endpoint("224.0.0.1", 9)) is None
    assert one.station(Endpoint("127.0.0.1", 0)) is None
    station = one.station(Endpoint("127.0.0.1", 9))
    assert station is not None
    assert one.station(Endpoint("127.0.0.1", 9)) == station
    one.release(Endpoint("127.0.0.1", 9))
    assert one.info()["endpoints kept"] == 1
    one.release(Endpoint("127.0.0.1", 9))
    assert one.info()["endpoints kept"] == 0
    one.detach()


@pytest.mark.host
async def test_what_waits_goes_out_in_order_and_the_rest_is_counted(dispatch: TrioDispatch) -> None:
    """A socket that takes nothing for a while, as when the device is slower than we."""
    ends = Ends(loopback(dispatch, queue=5), loopback(dispatch))
    out = ends.a._channels[0].out
    plain = out.sock

    class Full(Around):
        def sendmsg(self, *arguments: Any) -> int:
            raise BlockingIOError(errno.EAGAIN, "full")

    full: Any = Full(plain)
    out.sock = full
    sent = ends.frames(4)
    ends.a.transmit(sent[:1])
    ends.a.transmit(sent[1:])
    ends.a.transmit(ends.frames(3))
    assert ends.a.info()["transmit queue"] == 5
    assert ends.port_a.drops == {"tx_queue_full": 2}
    out.sock = plain
    assert await settle(lambda: len(ends.port_b.frames) == 5)
    assert ends.arrived([*sent, ends.frames(1)[0]])
    assert ends.a.info()["transmit queue"] == 0
    ends.detach()


@pytest.mark.host
async def test_overruns_are_counted(dispatch: TrioDispatch) -> None:
    ends = Ends(loopback(dispatch), loopback(dispatch, buffer=1 << 16))
    for _ in range(20):
        ends.a.transmit(ends.frames(64, 1400))
    assert await settle(lambda: len(ends.port_b.frames) > 0)
    lost = int(ends.b.info()["receive overruns"])
    assert 0 < lost < 40, "each run counts once"
    assert len(ends.port_b.frames) < 20 * 64
    assert ends.port_b.drops == {"rx_overrun": lost}
    ends.detach()


# On a cable


def open_on(dispatch: TrioDispatch, place: Any, **options: Any) -> UdpDriver:
    with place.entered():
        return UdpDriver(dispatch, UdpOptions(ethertype=TYPE, **options))


@pytest.fixture
async def wired(dispatch: TrioDispatch, veth: Veth) -> AsyncIterator[Ends]:
    """Drivers on all addresses of two machines: 10.9.0.1 and 10.9.0.2."""
    for place, name, address in ((veth.a, "va", "10.9.0.1/24"), (veth.b, "vb", "10.9.0.2/24")):
        place.ip("link", "set", name, "addrgenmode", "none")
        place.ip("address", "add", address, "dev", name)
    made = Ends(open_on(dispatch, veth.a), open_on(dispatch, veth.b))
    assert await settle(lambda: made.a.up and made.b.up)
    yield made
    made.detach()


@pytest.mark.priv
async def test_mtu_and_carrier_are_followed(wired: Ends, veth: Veth) -> None:
    assert wired.a.mtu == 1472
    assert str(wired.a.local()[0]) == "10.9.0.1:34997"
    assert wired.a.local_interfaces() == ("va",)
    sent = wired.frames(50, 1472)
    wired.a.transmit(sent)
    assert await settle(lambda: len(wired.port_b.frames) == 50)
    assert wired.arrived(sent)
    for place, name in ((veth.a, "va"), (veth.b, "vb")):
        place.ip("link", "set", name, "mtu", "9000")
    assert await settle(lambda: wired.a.mtu == wired.b.mtu == 8972)
    sent = wired.frames(20, 8972)
    wired.a.transmit(sent)
    assert await settle(lambda: len(wired.port_b.frames) == 20)
    assert wired.arrived(sent)
    changes = wired.port_a.changes
    veth.b.ip("link", "set", "vb", "down")
    assert await settle(lambda: not wired.a.up and not wired.b.up)
    assert wired.port_a.changes > changes
    wired.a.transmit(wired.frames(3))
    assert wired.port_a.drops == {Drop.LINK_DOWN: 3}
    veth.b.ip("link", "set", "vb", "up")
    assert await settle(lambda: wired.a.up and wired.b.up)
    wired.a.transmit(sent)
    assert await settle(lambda: len(wired.port_b.frames) == 20)


@pytest.mark.priv
async def test_a_datagram_that_the_path_does_not_take_is_counted_not_cut(wired: Ends, veth: Veth) -> None:
    """DF is set: what is longer than the device's MTU is refused here; runs of good ones beside it pass."""
    veth.a.ip("link", "set", "va", "mtu", "1300")
    wired.a.transmit(wired.frames(8, 1472))
    assert wired.port_a.drops == {Drop.TOO_LONG: 8}
    sent = wired.frames(8, 1272)
    wired.a.transmit(sent)
    assert await settle(lambda: len(wired.port_b.frames) == 8)
    assert wired.arrived(sent)


@pytest.mark.priv
async def test_a_change_of_our_address_is_a_change_of_address(wired: Ends, veth: Veth) -> None:
    before = wired.a.mac
    veth.a.ip("address", "add", "10.9.0.77/24", "dev", "va")
    assert await settle(lambda: wired.a.mac != before)
    both = wired.a.mac
    veth.a.ip("address", "delete", "10.9.0.1/24", "dev", "va")
    # With the first address goes what the kernel counts as secondary to it.
    veth.a.ip("address", "replace", "10.9.0.77/24", "dev", "va")
    assert await settle(lambda: [str(one) for one in wired.a.local()] == ["10.9.0.77:34997"])
    assert wired.a.mac not in (before, both)
    wired.a.transmit(wired.frames(1))
    assert await settle(lambda: len(wired.port_b.frames) == 1)
    assert str(wired.b.endpoint(wired.port_b.frames[0][6:12])) == "10.9.0.77:34997"
    veth.a.ip("address", "delete", "10.9.0.77/24", "dev", "va")
    assert await settle(lambda: not wired.a.up)
    wired.a.transmit(wired.frames(1))
    assert wired.port_a.drops == {Drop.LINK_DOWN: 1}


@pytest.mark.priv
async def test_an_endpoint_is_answered_from_the_address_that_it_wrote_to(wired: Ends, veth: Veth) -> None:
    """A firewall or a translator between lets nothing else pass."""
    veth.b.ip("address", "add", "10.9.0.99/24", "dev", "vb")
    with veth.a.entered():
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    plain.connect(("10.9.0.99", 34997))
    wired.port_b.on_frames = lambda frames: wired.b.transmit([bytes(one[6:12]) + bytes(one[:6]) + bytes(one[12:]) for one in frames])
    plain.send(b"ping")
    got: list[bytes] = []

    def answered() -> bool:
        try:
            got.append(plain.recv(100))
        except OSError:
            return False
        return True

    assert await settle(answered)
    assert got == [b"ping"]
    veth.b.ip("address", "delete", "10.9.0.99/24", "dev", "vb")
    assert await settle(lambda: len(wired.b.local()) == 1)
    station = next(iter(wired.b._table._used))
    wired.b.transmit([frame(station, wired.b.mac, b"from another")])
    assert wired.port_b.drops == {}, "an address that is gone is not insisted on"
    plain.close()


@pytest.mark.priv
async def test_broadcasts_are_not_for_us_and_unreachables_are_counted(wired: Ends, veth: Veth) -> None:
    with veth.a.entered():
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for place in ("10.9.0.255", "255.255.255.255"):
        try:
            plain.sendto(b"everybody", (place, 34997))
        except OSError as error:
            assert error.errno == errno.ENETUNREACH  # noqa: PT017  # 255.255.255.255 without a default route
    plain.close()
    wired.a.transmit(wired.frames(1))
    assert await settle(lambda: bool(wired.port_b.frames) and bool(wired.port_b.drops))
    assert wired.arrived(wired.frames(1))
    assert set(wired.port_b.drops) == {"rx_group"}
    nowhere = know(wired.a, Endpoint("203.0.113.1", 9))
    wired.a.transmit([frame(nowhere, wired.a.mac, b"x")])
    wired.a.transmit([frame(nowhere, wired.a.mac, b"x")] * 5)
    assert wired.port_a.drops["tx_unreachable"] == 6


@pytest.mark.priv
async def test_spoofed_sources_grow_nothing_and_push_out_nobody(wired: Ends, veth: Veth) -> None:
    """From thousands of ports, and as ourselves."""
    wired.a.transmit(wired.frames(1))
    assert await settle(lambda: wired.arrived(wired.frames(1)))
    with veth.a.entered():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    to = ("10.9.0.2", 0)
    for number in range(3000):
        port = (number + 1024).to_bytes(2, "big")
        raw.sendto(port + (34997).to_bytes(2, "big") + (8 + 4).to_bytes(2, "big") + bytes(2) + b"junk", to)
        if number % 100 == 99:
            await settle(lambda number=number: len(wired.port_b.frames) >= number)  # type: ignore[misc]
    raw.sendto(bytes(2) + (34997).to_bytes(2, "big") + (8 + 4).to_bytes(2, "big") + bytes(2) + b"zero", to)
    assert await settle(lambda: len(wired.port_b.frames) == 3000 and wired.port_b.drops == {"rx_bad_source": 1})
    assert wired.b.info()["heard"] == 1024
    wired.b.transmit([frame(wired.a_at_b, wired.b.mac, b"still there")])
    assert await settle(lambda: len(wired.port_a.frames) == 1)
    raw.close()


@pytest.mark.priv
async def test_ipv6_link_local_only(dispatch: TrioDispatch, veth: Veth) -> None:
    def address(place: Any, name: str) -> str:
        found: list[str] = []
        with place.entered():
            for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines():
                text, _, _, scope, flags, interface = line.split()
                if interface == name and scope == "20" and not int(flags, 16) & 0x40:
                    found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(text)))
        return found[0] if found else ""

    assert await settle(lambda: bool(address(veth.a, "va") and address(veth.b, "vb")), 5.0)
    a = open_on(dispatch, veth.a)
    b = open_on(dispatch, veth.b, bind=(f"{address(veth.b, 'vb')}%vb",))
    with veth.a.entered():
        there = Endpoint(b.local()[0].address, b.port, socket.if_nametoindex("va"))
    with veth.b.entered():
        here = Endpoint(a.local()[0].address, a.port, socket.if_nametoindex("vb"))
    ends = Ends(a, b, places=(here, there))
    assert a.mtu == b.mtu == 1452
    assert a.up
    assert b.up
    sent = ends.frames(100, 1452)
    a.transmit(sent)
    assert await settle(lambda: len(ends.port_b.frames) == 100)
    assert ends.arrived(sent)
    assert a.station(Endpoint(there.address, there.port)) is None, "a link-local address without its interface means nothing"
    ends.detach()


@pytest.mark.priv
async def test_a_link_local_address_whose_interface_is_made_anew(dispatch: TrioDispatch, veth: Veth) -> None:
    """It has another index then: the driver takes it, as the packet driver takes an interface of the same name."""
    address = "fe80::ff:fe00:a"
    one = open_on(dispatch, veth.a, bind=(f"{address}%va",))
    port = RecordingPort()
    one.start(port)
    one.accept(frozenset((TYPE,)))
    assert await settle(lambda: one.up, 5.0)
    before = one.local()[0].scope
    veth.a.ip("link", "delete", "va")
    assert await settle(lambda: not one.up)
    veth.a.ip("link", "add", "noise", "type", "veth", "peer", "name", "noise2")
    veth.a.ip("link", "add", "va", "address", "02:00:00:00:00:0a", "type", "veth", "peer", "name", "vc", "address", "02:00:00:00:00:0c")
    for name in ("va", "vc"):
        veth.a.ip("link", "set", name, "up")
    with veth.a.entered():
        assert await settle(lambda: one.up, 5.0)
    assert one.local()[0].scope != before
    with veth.a.entered():
        plain = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        other = socket.if_nametoindex("vc")

    def heard() -> bool:
        try:
            plain.sendto(b"hello", (address, one.port, 0, other))
        except OSError as error:
            assert error.errno == errno.EADDRNOTAVAIL  # noqa: PT017  # vc's own address is still checked for duplicates
        return bool(port.frames)

    assert await settle(heard, 5.0)
    assert set(port.frames) == {port.frames[0]}
    assert port.frames[0].endswith(b"hello")
    plain.close()
    one.detach()


@pytest.mark.priv
async def test_several_bound_addresses(dispatch: TrioDispatch, veth: Veth) -> None:
    """Each has its socket; who writes to one is answered from that one."""
    for place, name, addresses in ((veth.a, "va", ["10.9.0.1/24"]), (veth.b, "vb", ["10.9.0.2/24", "10.9.0.3/24"])):
        for address in addresses:
            place.ip("address", "add", address, "dev", name)
    a, b = open_on(dispatch, veth.a), open_on(dispatch, veth.b, bind=("10.9.0.2", "10.9.0.3"))
    ends = Ends(a, b)
    ends.port_b.on_frames = lambda frames: b.transmit([bytes(one[6:12]) + bytes(one[:6]) + bytes(one[12:]) for one in frames])
    for last in (3, 2):
        endpoint = Endpoint(f"10.9.0.{last}", b.port)
        a.transmit([frame(know(a, endpoint), a.mac, b"ping")])
        assert await settle(lambda: len(ends.port_a.frames) == 1)
        assert a.endpoint(ends.port_a.frames[0][6:12]) == endpoint
        ends.port_a.frames.clear()
        for entry in b._table.by_address.values():
            entry.heard_at -= 2 * SOURCE_STALE  # as if it had been quiet for that long
    ends.detach()


@pytest.mark.priv
async def test_a_bound_address_may_come_later(dispatch: TrioDispatch, veth: Veth) -> None:
    one = open_on(dispatch, veth.a, bind=("10.9.0.1",))
    one.start(RecordingPort())
    assert not one.up
    assert one.local() == ()
    veth.a.ip("address", "add", "10.9.0.1/24", "dev", "va")
    assert await settle(lambda: one.up)
    assert one.mtu == 1472
    one.detach()


# In a stack


@pytest.mark.host
async def test_in_a_stack_with_a_bad_link_around_it(dispatch: TrioDispatch) -> None:
    """The interface offers the endpoints of the innermost driver; frames go through the wrapper; unloading leaves nothing."""
    system = System(dispatch, "n")
    stack = Stack(system, os.urandom)
    got: list[bytes] = []
    stack.register_ethertype(TYPE, lambda interface, frames: got.extend(map(bytes, frames)))
    text = f"bind=127.0.0.1,port=0,ethertype={TYPE:#x},mtu=1400"
    loaded = [stack.load("udp", f"{text},name=udp{number}", wrap=[("fault", "drop=0")]) for number in range(2)]
    near, far = (one.interface for one in loaded)
    assert near is not None
    assert far is not None
    assert isinstance(near.driver, FaultDriver)
    assert isinstance(near.endpoints, UdpDriver)
    assert far.endpoints is not None
    station = near.endpoints.station(far.endpoints.local()[0])
    assert station is not None
    stack.output(near, [frame(station, near.mac, b"through")])
    assert await settle(lambda: len(got) == 1)
    assert got[0][:6] == far.mac
    assert stack.statistics().interfaces["udp0"].info["endpoints kept"] == 1
    near.driver.cut = True
    stack.output(near, [frame(station, near.mac, b"lost")])
    assert sum(near.drops.values()) == 1
    stack.close()
    system.close()


# Refusals


@pytest.mark.host
async def test_refusals_are_one_sentence(dispatch: TrioDispatch) -> None:
    first = loopback(dispatch)
    for options, sentence in (
        (UdpOptions(("here",)), "udp: bind=here: 'here' is not an IP address of this machine"),
        (UdpOptions(("fe80::1",)), "udp: bind=fe80::1: a link-local address needs its interface, like fe80::1%eth0"),
        (
            UdpOptions(("127.0.0.1",), port=first.port),
            f"udp: cannot use 127.0.0.1 port {first.port}: address already in use; another program, or another driver of this one, has it: "
            "choose another port=",
        ),
    ):
        with pytest.raises(ModuleError) as raised:
            UdpDriver(dispatch, options)
        assert str(raised.value) == sentence
    first.detach()
    first.detach()
    assert len(os.listdir("/proc/self/fd")) < 100


def test_options() -> None:
    assert parse_options(UdpOptions, "bind=10.0.0.1,bind=10.0.1.1,port=7,offload=off", "udp") == UdpOptions(
        ("10.0.0.1", "10.0.1.1"), port=7, offload="off"
    )
    for text, sentence in (
        ("prt=7", "udp: there is no option prt; did you mean port?"),
        ("port=65536", "udp: 'port' must be <= 65535: 65536"),
        ("mtu=100", "udp: 'mtu' must be >= 1200: 100"),
    ):
        with pytest.raises(ModuleError) as raised:
            parse_options(UdpOptions, text, "udp")
        assert str(raised.value) == sentence
