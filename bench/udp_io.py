"""The two bearers beside each other: what a frame costs through the packet driver and through the UDP driver, whole drivers, no protocol.

    sudo python bench/udp_io.py burst | flow

Makes anonymous network namespaces with veth pairs, offloads off on both ends, so that every datagram crosses as one frame; with "GRO" the
receiving end merges what came, as the drivers of network cards do. `burst`: both
ends on one core, drivers taken in turn within each round, lower quartile of the rounds in microseconds per frame; the kernel does much of
the receiver's work within the sender's call, so compare the sums. `flow`: two processes on two cores, the sender as fast as it can but
never more than WINDOW frames ahead of what the receiver has counted.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Never

from packet_io import inside, ip, veth

from qnetpy.cluster.netlink import offloads_off
from stack.drivers.packet import PacketDriver, PacketOptions
from stack.drivers.udp import UdpDriver
from stack.drivers.udp_socket.options import UdpOptions
from stack.frame import Frame
from stack.wire.endpoint import Endpoint

TYPE = 0x88B5
WINDOW = 2000
SECONDS = 2.0
OFFLOADS = {"udp, segments": "auto", "udp, segments, GRO": "auto", "udp, one by one": "off"}
SIOCETHTOOL, ETHTOOL_SGRO = 0x8946, 0x2C
Driver = PacketDriver | UdpDriver


class Watch:
    """As much of a dispatch as a driver needs that is called by hand."""

    def __init__(self) -> None:
        self.readable: dict[int, Callable[[], None]] = {}
        self.writable: dict[int, Callable[[], None]] = {}

    def now(self) -> float:
        return time.monotonic()

    def attach_fd(self, fd: int, readable: Callable[[], None]) -> None:
        self.readable[fd] = readable

    def call_at(self, when: float, call: Callable[[], None]) -> Never:
        raise AssertionError("only data sockets are looked at")

    def want_write(self, fd: int, writable: Callable[[], None] | None) -> None:
        if writable is None:
            self.writable.pop(fd, None)
        else:
            self.writable[fd] = writable


class Count:
    """A port that counts."""

    def __init__(self) -> None:
        self.frames = self.bytes = self.drops = 0

    def deliver(self, frames: list[Frame]) -> None:
        self.frames += len(frames)
        self.bytes += sum(map(len, frames))

    def changed(self) -> None:
        pass

    def count(self, reason: str, number: int = 1) -> None:
        self.drops += number


class End:
    def __init__(self, form: str, namespace: int, interface: str) -> None:
        self.watch, self.port = Watch(), Count()

        def open_it() -> Driver:
            if form == "packet":
                return PacketDriver(self.watch, PacketOptions(interface))  # type: ignore[arg-type]
            return UdpDriver(self.watch, UdpOptions(offload=OFFLOADS[form]))  # type: ignore[arg-type]

        made = inside(namespace, open_it)
        assert isinstance(made, PacketDriver | UdpDriver)
        self.driver: Driver = made
        self.driver.start(self.port)
        self.driver.accept(frozenset((TYPE,)))
        # The first descriptor is that of the socket for frames, or for IPv4; others are for news of interfaces and for IPv6.
        self.fd, self.receive = next(iter(self.watch.readable.items()))


class Pair:
    def __init__(self, form: str, mtu: int) -> None:
        a, b = veth(mtu)
        self.spaces = a, b
        for space, name, address in ((a, "va", "10.9.0.1/24"), (b, "vb", "10.9.0.2/24")):
            inside(space, lambda name=name, address=address: ip("address", "add", address, "dev", name))  # type: ignore[misc]
            inside(space, lambda name=name: offloads_off(name))  # type: ignore[misc]
        if form.endswith("GRO"):
            inside(b, lambda: coalesce("vb"))
        self.a, self.b = End(form, a, "va"), End(form, b, "vb")
        self.mtu = self.a.driver.mtu
        station = self.b.driver.mac
        if isinstance(self.a.driver, UdpDriver):
            found = self.a.driver.station(Endpoint("10.9.0.2", 34997))
            assert found is not None
            station = found
        self.head = station + self.a.driver.mac + struct.pack("!H", TYPE)
        self.times: list[tuple[float, float]] = []

    def round(self, frames: list[Frame]) -> None:
        clock, port = time.perf_counter, self.b.port
        want = port.frames + len(frames)
        began = clock()
        self.a.driver.transmit(frames)
        sent = clock()
        receiving = 0.0
        while port.frames < want and clock() - sent < 1.0:
            before = clock()
            self.b.receive()
            receiving += clock() - before
        self.times.append(((sent - began) / len(frames) * 1e6, receiving / len(frames) * 1e6))


FORMS = ("packet", "udp, segments", "udp, segments, GRO", "udp, one by one")


def coalesce(interface: str) -> None:
    """Let the receiving device merge frames that came one by one, as network cards' drivers do. ethtool -K gro on."""
    value = array.array("I", (ETHTOOL_SGRO, 1))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), value.buffer_info()[0]))


def burst() -> None:
    os.sched_setaffinity(0, {0})
    print("| MTU | burst | driver | transmit µs | receive µs | sum | of packet |\n|---|---|---|---|---|---|---|")
    for mtu in (1500, 9000):
        pairs = {form: Pair(form, mtu) for form in FORMS}
        payload = {form: pair.head + bytes(pair.mtu) for form, pair in pairs.items()}
        for count in (1, 8, 32, 128):
            for pair in pairs.values():
                pair.times.clear()
            for _ in range(150):
                for form, pair in pairs.items():
                    pair.round([payload[form]] * count)
            base = 0.0
            for form, pair in pairs.items():
                sent, got = (sorted(column)[len(column) // 4] for column in zip(*pair.times, strict=True))
                base = base or sent + got
                print(f"| {mtu} | {count} | {form} | {sent:.2f} | {got:.2f} | {sent + got:.2f} | {(sent + got) / base:.2f} |", flush=True)


def flow() -> None:
    print("| MTU | driver | MB/s | frames/s | lost | of packet |\n|---|---|---|---|---|---|")
    for mtu in (1500, 9000):
        best: dict[str, tuple[float, float, int]] = {}
        for _ in range(3):
            for form in FORMS:
                result = one_flow(form, mtu)
                best[form] = max(best.get(form, result), result)
        for form, (rate, frames, lost) in best.items():
            print(f"| {mtu} | {form} | {rate:.0f} | {frames:.0f} | {lost} | {rate / best['packet'][0]:.2f} |", flush=True)


def one_flow(form: str, mtu: int) -> tuple[float, float, int]:
    pair = Pair(form, mtu)
    shared = mmap.mmap(-1, 4096)
    words = memoryview(shared).cast("Q")
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {1})
        poll = select.epoll()
        poll.register(pair.b.fd, select.EPOLLIN)
        while not words[0]:
            if poll.poll(0.05):
                pair.b.receive()
            words[1] = pair.b.port.frames
            words[2] = pair.b.port.bytes
        os._exit(0)
    os.sched_setaffinity(0, {0})
    frames: list[Frame] = [pair.head + bytes(pair.mtu)] * 128
    sent, began = 0, time.perf_counter()
    stuck = began
    lost = 0
    while time.perf_counter() - began < SECONDS:
        if sent - words[1] - lost > WINDOW:
            if time.perf_counter() - stuck > 0.02:
                lost = sent - words[1]
            os.sched_yield()
            continue
        pair.a.driver.transmit(frames)
        sent += len(frames)
        for call in list(pair.a.watch.writable.values()):
            call()
        stuck = time.perf_counter()
    took = time.perf_counter() - began
    got, size = words[1], words[2]
    words[0] = 1
    os.waitpid(child, 0)
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
    for space in pair.spaces:
        os.close(space)
    return size / took / 1e6, got / took, sent - got


if __name__ == "__main__":
    {"burst": burst, "flow": flow}[sys.argv[1] if len(sys.argv) > 1 else "burst"]()
