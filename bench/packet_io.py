"""What receiving and sending on AF_PACKET costs from Python, form by form: the figures of docs/decisions/packet-io.md.

    sudo python bench/packet_io.py burst | pingpong

Makes two anonymous network namespaces with a veth pair; needs the right to do so. `burst`: everything on one core, forms taken in turn
within each round, so that noise of the machine hits all alike; the lower quartile of the rounds is shown. On a veth pair the kernel does
the receiver's work, up to the copy into a ring, within the sender's call: compare the sums. `pingpong`: two processes, sleeping in
epoll, on one core and on two.

The product's own classes are measured where they exist (ring, recv, send, sendmmsg); recvmmsg without what the kernel says beside a
frame, the ring of blocks (TPACKET_V3) and the copying sendmmsg are here only. A block that is not full comes 1 ms late at the earliest,
which `burst` does not count: `pingpong` shows it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from stack.drivers.af_packet import sender as sender_module
from stack.drivers.af_packet.filter import program
from stack.drivers.af_packet.receiver import Receiver, Recv, Ring
from stack.drivers.af_packet.sender import Sender
from stack.filter.bpf.attach import attach
from stack.frame import Frame
from stack.linux import mmsg
from stack.linux.constants import ETH_P_ALL, PACKET_IGNORE_OUTGOING, PACKET_RX_RING, SOL_PACKET

TYPE = 0x88B5
HEAD = b"\xff" * 6 + b"\2\0\0\0\0\1" + struct.pack("!H", TYPE)
NEWNET = 0x40000000
MEMORY = 4 << 20
LIBC = ctypes.CDLL(None, use_errno=True)


def new_namespace() -> int:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if LIBC.unshare(NEWNET) < 0:
        raise SystemExit("no right to make a network namespace")
    made = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    LIBC.setns(before, NEWNET)
    os.close(before)
    return made


def inside(namespace: int, call: Callable[[], object]) -> object:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    LIBC.setns(namespace, NEWNET)
    try:
        return call()
    finally:
        LIBC.setns(before, NEWNET)
        os.close(before)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def veth(mtu: int) -> tuple[int, int]:
    a, b = new_namespace(), new_namespace()
    inside(a, lambda: ip("link", "add", "va", "type", "veth", "peer", "name", "vb"))
    inside(a, lambda: ip("link", "set", "vb", "netns", f"/proc/{os.getpid()}/fd/{b}"))
    inside(a, lambda: ip("link", "set", "va", "mtu", str(mtu), "up"))
    inside(b, lambda: ip("link", "set", "vb", "mtu", str(mtu), "up"))
    return a, b


class RecvMmsg:
    """recvmmsg through ctypes into slots."""

    def __init__(self, sock: socket.socket, mtu: int) -> None:
        count, self.stride = 64, (mtu + 22 + 63) // 64 * 64
        slots, iovecs = bytearray(self.stride * count), bytearray(mmsg.IOVEC.size * count)
        for number in range(count):
            mmsg.IOVEC.pack_into(iovecs, number * mmsg.IOVEC.size, mmsg.address(slots) + number * self.stride, self.stride)
        headers = mmsg.headers(count, mmsg.address(iovecs))
        self.keep = (slots, iovecs, headers)
        self.view = memoryview(slots)
        self.lengths = memoryview(headers).cast("I")
        self.headers = ctypes.c_void_p(mmsg.address(headers))
        self.sock, self.call = sock, ctypes.PyDLL(None).recvmmsg
        sock.setsockopt(socket.SOL_SOCKET, 33, MEMORY)

    def take(self, limit: int) -> list[Frame]:
        count = self.call(self.sock.fileno(), self.headers, 64, 0x40, None)
        view, stride, lengths = self.view, self.stride, self.lengths
        return [view[number * stride : number * stride + lengths[16 * number + 14]] for number in range(count)]

    def give_back(self) -> None:
        pass


class BlockRing:
    """TPACKET_V3: the kernel packs frames into blocks, and gives a block when it is full or *timeout* ms old. All of a block at a time."""

    def __init__(self, sock: socket.socket, mtu: int, timeout: int = 1, block: int = 1 << 16) -> None:
        del mtu
        self.sock = sock
        count = MEMORY // block
        sock.setsockopt(SOL_PACKET, 10, 2)  # PACKET_VERSION, TPACKET_V3
        request = struct.pack("IIIIIII", block, count, 1 << 11, (block >> 11) * count, timeout, 0, 0)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
        self.view = memoryview(mmap.mmap(sock.fileno(), block * count))
        self.words = self.view.cast("I")
        self.block, self.count, self.next = block, count, 0
        self.taken: int | None = None

    def take(self, limit: int) -> list[Frame]:
        del limit
        base = self.next * self.block
        words, view = self.words, self.view
        if not words[base + 8 >> 2] & 1:
            return []
        number, place = words[base + 12 >> 2], base + words[base + 16 >> 2]
        frames: list[Frame] = []
        for _ in range(number):
            word = place >> 2
            begin = place + (words[word + 6] & 0xFFFF)
            frames.append(view[begin : begin + words[word + 3]])
            place += words[word]
        self.taken = base
        return frames

    def give_back(self) -> None:
        if self.taken is not None:
            self.words[self.taken + 8 >> 2] = 0
            self.next = (self.next + 1) % self.count
            self.taken = None


Taker = Receiver | RecvMmsg | BlockRing
RECEIVE: dict[str, Callable[[socket.socket, int], Taker]] = {
    "recv": lambda sock, mtu: Recv(sock, mtu, MEMORY),
    "recvmmsg": RecvMmsg,
    "ring": lambda sock, mtu: Ring(sock, mtu, MEMORY),
    "ring, V3": BlockRing,
}


def packet_socket(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    attach(sock, program(frozenset((TYPE,))))
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    return sock


def sending(form: str, sock: socket.socket, mtu: int) -> Callable[[list[Frame]], object]:
    sender = Sender(sock, mtu + 22)
    if form == "send":
        return lambda frames: sender._send_plain(frames, 0)
    copying = form == "sendmmsg, copying"

    def send(frames: list[Frame]) -> None:
        for start in range(0, len(frames), sender_module.SLOTS):
            part = frames[start : start + sender_module.SLOTS]
            if copying:
                for number, frame in enumerate(part):
                    sender._iovecs[2 * number] = sender._copy(frame, number)
                    sender._iovecs[2 * number + 1] = len(frame)
            else:
                sender._fill(part)
            sender._sendmmsg(sock.fileno(), sender._headers, len(part), 0x40)

    return send


class Combination:
    """A way to send and a way to receive on a veth pair of its own."""

    def __init__(self, transmit: str, receive: str, mtu: int) -> None:
        a, b = veth(mtu)
        self.transmit, self.receive = transmit, receive
        near, far = inside(a, lambda: packet_socket("va")), inside(b, lambda: packet_socket("vb"))
        assert isinstance(near, socket.socket)
        assert isinstance(far, socket.socket)
        self.sockets = near, far
        self.receiver = RECEIVE[receive](far, mtu)
        inside(a, lambda: near.bind(("va", 0)))
        inside(b, lambda: far.bind(("vb", ETH_P_ALL)))
        self.send = sending(transmit, near, mtu)
        os.close(a)
        os.close(b)
        self.times: list[tuple[float, float, float]] = []

    def round(self, frames: list[Frame], key: AESGCM, nonce: bytes) -> None:
        clock, receiver, count = time.perf_counter, self.receiver, len(frames)
        began = clock()
        self.send(frames)
        sent = clock()
        got = 0
        receiving = opening = 0.0
        while got < count and clock() - sent < 1.0:
            before = clock()
            batch = receiver.take(256)
            taken = clock()
            if not batch:
                time.sleep(0)
                continue
            for frame in batch:
                key.decrypt(nonce, frame[14:], HEAD)
            opened = clock()
            receiver.give_back()
            receiving += taken - before + clock() - opened
            opening += opened - taken
            got += len(batch)
        before = clock()
        receiver.take(256)
        receiver.give_back()
        receiving += clock() - before
        self.times.append(((sent - began) / count * 1e6, receiving / count * 1e6, opening / count * 1e6))


FORMS = (
    ("send", "ring"),
    ("send", "ring, V3"),
    ("sendmmsg", "ring, V3"),
    ("sendmmsg, copying", "ring"),
    ("sendmmsg", "ring"),
    ("send", "recv"),
    ("sendmmsg", "recv"),
    ("sendmmsg", "recvmmsg"),
)


def burst() -> None:
    os.sched_setaffinity(0, {0})
    key, nonce = AESGCM(bytes(16)), bytes(12)
    print("| MTU | burst | transmit | receive | transmit µs | receive µs | open µs | sum |\n|---|---|---|---|---|---|---|---|")
    for mtu in (1500, 9000):
        frame = HEAD + key.encrypt(nonce, bytes(mtu - 16), HEAD)
        combinations = [Combination(transmit, receive, mtu) for transmit, receive in FORMS]
        for count in (1, 2, 4, 8, 32, 128):
            for one in combinations:
                one.times.clear()
            for _ in range(100):
                for one in combinations:
                    one.round([frame] * count, key, nonce)
            for one in combinations:
                values = [sorted(column)[len(column) // 4] for column in zip(*one.times, strict=True)]
                cells = " | ".join(f"{value:.2f}" for value in (*values, sum(values)))
                print(f"| {mtu} | {count} | {one.transmit} | {one.receive} | {cells} |", flush=True)


def pingpong() -> None:
    print("| MTU | bytes | receive | cores | p50 µs | p99 µs | own CPU µs |\n|---|---|---|---|---|---|---|")
    for mtu, size in ((1500, 78), (9000, 9014)):
        for cores in ((0, 0), (0, 1)):
            for receive in RECEIVE:
                one_pingpong(mtu, size, cores, receive)


def one_pingpong(mtu: int, size: int, cores: tuple[int, int], receive: str) -> None:
    a, b = veth(mtu)
    stop = mmap.mmap(-1, 4096)
    ready, tell = os.pipe()

    def enter(namespace: int, interface: str, core: int) -> tuple[socket.socket, Taker, select.epoll]:
        LIBC.setns(namespace, NEWNET)
        os.sched_setaffinity(0, {core})
        sock = packet_socket(interface)
        receiver = RECEIVE[receive](sock, mtu)
        sock.bind((interface, ETH_P_ALL))
        epoll = select.epoll()
        epoll.register(sock.fileno(), select.EPOLLIN)
        out = packet_socket(interface)
        out.bind((interface, 0))
        return out, receiver, epoll

    child = os.fork()
    if child == 0:
        out, receiver, epoll = enter(b, "vb", cores[1])
        os.write(tell, b"r")
        while not stop[0]:
            if epoll.poll(0.1):
                for frame in receiver.take(256):
                    out.send(frame)
                receiver.give_back()
        os._exit(0)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.read(ready, 1)
    out, receiver, epoll = enter(a, "va", cores[0])
    frame = HEAD + bytes(size - len(HEAD))
    trips: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < 0.6:
        sent = time.perf_counter()
        out.send(frame)
        arrived = False
        while not arrived and epoll.poll(0.5):
            arrived = bool(receiver.take(256))
            receiver.give_back()
        trips.append(time.perf_counter() - sent)
    cpu = time.process_time() - cpu
    stop[0] = 1
    os.waitpid(child, 0)
    LIBC.setns(home, NEWNET)
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
    for descriptor in (a, b, home, ready, tell):
        os.close(descriptor)
    trips.sort()
    median, late = trips[len(trips) // 2] * 1e6, trips[len(trips) * 99 // 100] * 1e6
    print(f"| {mtu} | {size} | {receive} | {cores[0]}, {cores[1]} | {median:.1f} | {late:.1f} | {cpu / len(trips) * 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    {"burst": burst, "pingpong": pingpong}[sys.argv[1] if len(sys.argv) > 1 else "burst"]()
