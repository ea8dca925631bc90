"""What the kernel hands to packet sockets unfinished: streams of the kernel's own TCP and UDP, as a module of the stack must see them."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator
from typing import Literal

import pytest
import trio

from resmgr.runner import TrioDispatch, open_dispatch
from stack.drivers.af_packet.receiver import Recv, Ring
from stack.drivers.packet import PacketDriver, PacketOptions
from stack.frame import Frame
from stack.linux.constants import PACKET_VNET_HDR, SOL_PACKET
from stack.testing.driver import TYPE, RecordingPort, frame
from stack.testing.namespace import Veth
from stack.testing.pair import settle
from stack.wire import virtio_net
from stack.wire.checksum import checksum, ones_sum, pseudo_sum
from stack.wire.ethernet import Ethernet
from stack.wire.segmentation import SEGMENTS_MAX
from stack.wire.virtio_net import VirtioNet

pytestmark = pytest.mark.priv

Rx = Literal["ring", "recv"]
TYPE_IPV4 = 0x0800
SIZE = 3_000_000


@pytest.fixture
async def dispatch() -> AsyncIterator[TrioDispatch]:
    async with open_dispatch() as made:
        yield made


class Listener(RecordingPort):
    """Checks every IPv4 frame as a receiver on a wire would, and puts together what TCP streams and UDP datagrams carry."""

    def __init__(self, mtu: int) -> None:
        super().__init__()
        self.mtu = mtu
        self.stream: dict[int, bytes] = {}
        self.datagrams: list[bytes] = []
        self.lengths: set[int] = set()
        self.tags: set[tuple[tuple[int, int], ...]] = set()
        self.batches = []

    def deliver(self, frames: list[Frame]) -> None:
        self.batches.append(len(frames))
        for one in frames:
            self._check(bytes(one))

    def _check(self, one: bytes) -> None:
        header = Ethernet.parse(one)
        assert len(one) <= header.size + self.mtu
        ip = one[header.size :]
        ip = ip[: int.from_bytes(ip[2:4], "big")]
        assert ones_sum(ip[:20]) == 0xFFFF
        segment = ip[20:]
        if ip[9] not in (6, 17):
            return
        assert ones_sum(segment, pseudo_sum(ip[12:20], ip[9], len(segment))) == 0xFFFF
        self.lengths.add(len(ip))
        if ip[9] == 6:
            self.stream[int.from_bytes(segment[4:8], "big")] = segment[(segment[12] >> 4) * 4 :]
        else:
            self.datagrams.append(segment[8:])
            self.tags.add(header.tags)

    def carried(self) -> bytes:
        return b"".join(data for _, data in sorted(self.stream.items()))


def addresses(veth: Veth) -> None:
    for namespace, name, address in ((veth.a, "va", "10.9.0.1/24"), (veth.b, "vb", "10.9.0.2/24")):
        namespace.ip("address", "add", address, "dev", name)
        namespace.ip("link", "set", "lo", "up")


def listen(dispatch: TrioDispatch, veth: Veth, rx: Rx, options: PacketOptions | None = None) -> tuple[PacketDriver, Listener]:
    with veth.b.entered():
        driver = PacketDriver(dispatch, options or PacketOptions("vb", rx=rx))
    port = Listener(driver.mtu)
    driver.start(port)
    driver.accept(frozenset((TYPE_IPV4,)))
    return driver, port


@pytest.mark.parametrize("rx", ["ring", "recv"])
async def test_a_stream_of_the_kernels_own_tcp(dispatch: TrioDispatch, veth: Veth, rx: Rx) -> None:
    """The kernel hands runs of up to 64 KiB to the veth pair, with partial checksums: none of that is seen above the driver."""
    addresses(veth)
    driver, port = listen(dispatch, veth, rx)
    data = random.Random(1).randbytes(SIZE)
    with veth.b.entered():
        server = trio.socket.socket()
    with veth.a.entered():
        client = trio.socket.socket()
    await server.bind(("10.9.0.2", 0))
    server.listen(1)

    async def send() -> None:
        await client.connect(server.getsockname())
        view = memoryview(data)
        while view:
            # In portions that the ring's socket can take while the node does not look.
            view = view[await client.send(view[:200_000]) :]
        client.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        connection, _ = await server.accept()
        while await connection.recv(1 << 20):
            pass
        connection.close()
    assert await settle(lambda: len(port.carried()) == SIZE)
    assert port.carried() == data
    assert port.drops == {}
    assert max(port.lengths) == 1500
    info = driver.info()
    assert int(info["runs taken apart"]) > 10
    assert int(info["checksums completed"]) > 0
    driver.detach()
    server.close()
    client.close()


@pytest.mark.parametrize("rx", ["ring", "recv"])
async def test_runs_of_udp_datagrams(dispatch: TrioDispatch, veth: Veth, rx: Rx) -> None:
    addresses(veth)
    driver, port = listen(dispatch, veth, rx)
    data = random.Random(2).randbytes(20_100)
    with veth.a.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
        sender.sendto(data, ("10.9.0.2", 9))
        sender.sendto(b"single", ("10.9.0.2", 9))
    assert await settle(lambda: len(port.datagrams) >= 22)
    assert b"".join(port.datagrams[:21]) == data
    assert [len(one) for one in port.datagrams] == [1000] * 20 + [100, 6]
    driver.detach()


@pytest.mark.parametrize("rx", ["ring", "recv"])
async def test_a_run_of_tiny_segments_is_not_thousands_of_frames(dispatch: TrioDispatch, veth: Veth, rx: Rx) -> None:
    """A neighbour who has CAP_NET_RAW may say any size: one message of 64 KB in segments of 32 bytes."""
    addresses(veth)
    driver, port = listen(dispatch, veth, rx)
    payload = bytes(32 * (SEGMENTS_MAX + 1))
    ip = struct.pack("!BxHIBBxx4s4s", 0x45, 40 + len(payload), 0, 64, 6, b"\n\t\0\1", b"\n\t\0\2")
    head = driver.mac + bytes.fromhex("02000000000a0800") + ip
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x10, 100, 0, 0)
    tiny = VirtioNet(virtio_net.NEEDS_CSUM, virtio_net.GSO_TCPV4, 54, 32, 34, 16).pack()
    with veth.a.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.bind(("va", 0))
        for _ in range(10):
            sender.send(tiny + head + tcp + payload)
    assert await settle(lambda: port.drops.get("rx_tiny_segments", 0) == 10)
    assert port.batches == []
    driver.detach()


@pytest.mark.parametrize("rx", ["ring", "recv"])
async def test_tags_are_put_back_in_front_of_everything(dispatch: TrioDispatch, veth: Veth, rx: Rx) -> None:
    """Tagged and untagged frames of all sizes, one after another: contents and order are as sent."""
    with veth.a.entered():
        a = PacketDriver(dispatch, PacketOptions("va"))
    with veth.b.entered():
        b = PacketDriver(dispatch, PacketOptions("vb", rx=rx))
    port = RecordingPort()
    a.start(RecordingPort())
    b.start(port)
    b.accept(frozenset((TYPE,)))
    assert await settle(lambda: a.up and b.up)
    draw = random.Random(3)
    sent = []
    for number in range(300):
        tags = draw.choice([(), ((0x8100, 5),), ((0x8100, 0xA000),), ((0x88A8, 3), (0x8100, 4))])
        size = draw.choice([46, 100, 1492 if tags[1:] else 1500])
        sent.append(frame(b.mac, a.mac, struct.pack("!I", number) + draw.randbytes(size - 4), TYPE, tags))
    for start in range(0, 300, 30):
        a.transmit(list(sent[start : start + 30]))
    assert await settle(lambda: len(port.frames) == 300)
    assert port.frames == sent
    assert int(b.info()["tags put back"]) == sum(one[12:14] != b"\x88\xb5" for one in sent)
    a.detach()
    b.detach()


async def test_a_frame_with_three_tags_is_delivered_as_it_is(dispatch: TrioDispatch, veth: Veth) -> None:
    """The kernel takes one of them out; the stack must still count it as what it is."""
    driver, _ = listen(dispatch, veth, "ring")
    seen: list[bytes] = []
    port = driver._port
    assert port is not None
    port.deliver = lambda frames: seen.extend(map(bytes, frames))  # type: ignore[method-assign]  # the port of this test
    driver.accept(None)
    with veth.a.entered():
        sender = PacketDriver(dispatch, PacketOptions("va"))
    sender.start(RecordingPort())
    assert await settle(lambda: sender.up and driver.up)
    thrice = frame(driver.mac, sender.mac, bytes(60), TYPE, ((0x8100, 1), (0x8100, 2), (0x8100, 3)))
    sender.transmit([thrice])
    assert await settle(lambda: thrice in seen)
    driver.detach()
    sender.detach()


@pytest.mark.parametrize("rx", ["ring", "recv"])
async def test_a_frame_that_is_received_is_where_the_kernel_put_it(dispatch: TrioDispatch, veth: Veth, rx: Rx) -> None:
    """No copy between the ring and the protocol, for tagged frames and for those whose checksum is completed too: all are views of it."""
    addresses(veth)
    with veth.b.entered():
        driver = PacketDriver(dispatch, PacketOptions("vb", rx=rx))
    owners: list[bool] = []
    receiver = driver._receiver
    memory = receiver._memory if isinstance(receiver, Ring) else receiver._cells.memory.obj if isinstance(receiver, Recv) else None

    def deliver(frames: list[Frame]) -> None:
        owners.extend(isinstance(one, memoryview) and one.obj is memory for one in frames)

    port = RecordingPort()
    port.deliver = deliver  # type: ignore[method-assign]  # the port of this test
    driver.start(port)
    driver.accept(frozenset((TYPE, TYPE_IPV4)))
    with veth.a.entered():
        sender = PacketDriver(dispatch, PacketOptions("va"))
        sender.start(RecordingPort())
        assert await settle(lambda: sender.up and driver.up)
        sender.transmit([frame(driver.mac, sender.mac, bytes(100), TYPE, ((0x8100, 5),)), frame(driver.mac, sender.mac, bytes(100))])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(bytes(100), ("10.9.0.2", 9))
    assert await settle(lambda: len(owners) >= 3)
    assert all(owners)
    assert {"tags put back", "checksums completed"} <= driver.info().keys()
    sender.detach()
    driver.detach()


def udp_frame(destination: bytes, source: bytes, data: bytes, tags: tuple[tuple[int, int], ...]) -> tuple[bytes, int]:
    """A UDP datagram whose checksum is partial, and where its UDP header is."""
    addresses = bytes((10, 9, 0, 1, 10, 9, 0, 2))
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(data), 1, 0x4000, 64, 17, 0) + addresses
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    udp = struct.pack("!HHHH", 1000, 9, 8 + len(data), pseudo_sum(addresses, 17, 8 + len(data)))
    head = Ethernet(destination, source, TYPE_IPV4, tags).pack()
    return head + ip + udp + data, len(head) + len(ip)


@pytest.mark.parametrize("rx", ["ring", "recv"])
@pytest.mark.parametrize("tags", [(), ((0x8100, 5),), ((0x88A8, 7), (0x8100, 8))])
async def test_tagged_frames_that_are_unfinished(dispatch: TrioDispatch, veth: Veth, rx: Rx, tags: tuple[tuple[int, int], ...]) -> None:
    """Tags, partial checksums and runs of datagrams in one frame, as a virtual machine with a VLAN sends them."""
    driver, port = listen(dispatch, veth, rx)
    data = random.Random(4).randbytes(9_500)
    with veth.a.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.bind(("va", 0))
        assert await settle(lambda: driver.up)
        single, start = udp_frame(driver.mac, b"\2\0\0\0\0\x0a", data[:1000], tags)
        sender.send(VirtioNet(virtio_net.NEEDS_CSUM, 0, 0, 0, start, 6).pack() + single)
        run, start = udp_frame(driver.mac, b"\2\0\0\0\0\x0a", data, tags)
        sender.send(VirtioNet(virtio_net.NEEDS_CSUM, virtio_net.GSO_UDP_L4, start + 8, 1000, start, 6).pack() + run)
    assert await settle(lambda: len(port.datagrams) >= 11)
    assert port.datagrams[0] == data[:1000]
    assert b"".join(port.datagrams[1:]) == data
    assert port.drops == {}
    assert port.tags == {tags}
    driver.detach()
