"""Parts of the packet driver that need no interface: the BPF program and the sender."""

from __future__ import annotations

import ctypes
import errno
import mmap
import random
import socket
import struct
from collections.abc import Iterator
from itertools import product

import pytest
import trio
import trio.lowlevel

from resmgr.runner import TrioDispatch, open_dispatch
from stack.core.statistics import Counters, Drop
from stack.drivers.af_packet.filter import program
from stack.drivers.af_packet.output import Output
from stack.drivers.af_packet.sender import PLAIN_MAX, SLOTS, Sender
from stack.filter.bpf import machine
from stack.filter.bpf.assembler import Code
from stack.filter.bpf.attach import attach
from stack.frame import Frame
from stack.testing.runs import tcp_run
from stack.wire.run import Run

FOR_US, BROADCAST, MULTICAST, OTHER_HOST, OUTGOING = range(5)


def run(code: Code, frame: bytes, packet_type: int) -> bool:
    """Whether the frame passes."""
    return machine.run(code, frame, packet_type) > 0


def frame_of(kind: int, tags: tuple[int, ...]) -> bytes:
    return bytes(12) + b"".join(struct.pack("!HH", tpid, 7) for tpid in tags) + struct.pack("!H", kind) + bytes(40)


@pytest.mark.parametrize("wanted", [frozenset({0x88B5}), frozenset({0x88B5, 0x88B6, 0x0806}), frozenset(range(0x2000, 0x2040))])
def test_program_passes_wanted_types_behind_tags(wanted: frozenset[int]) -> None:
    code = program(wanted)
    assert all(jump < 256 for _, *jumps, _ in code for jump in jumps)
    tpids = (0x8100, 0x88A8, 0x9100)
    runs = [(), *product(tpids), *product(tpids, tpids)]
    for tags in runs:
        for kind in (*sorted(wanted)[:3], max(wanted), 0x0800, 0x1FFF, 0x2040):
            assert run(code, frame_of(kind, tags), FOR_US) == (kind in wanted), (tags, hex(kind))
    for tags in product(tpids, tpids, tpids):
        assert not run(code, frame_of(min(wanted), tags), FOR_US)
    one = frame_of(min(wanted), ())
    assert [run(code, one, kind) for kind in range(5)] == [True, True, True, False, False]
    for length in range(14):
        assert not run(code, one[:length], FOR_US)


def test_program_for_all_none_and_too_many() -> None:
    for everything in (None, frozenset(range(0x2000, 0x2041))):
        code = program(everything)
        assert run(code, frame_of(0x0800, ()), BROADCAST)
        assert not run(code, frame_of(0x0800, ()), OUTGOING)
        assert not run(code, frame_of(0x0800, ()), OTHER_HOST)
    assert not run(program(frozenset()), frame_of(0x0800, ()), MULTICAST)


@pytest.mark.host
def test_the_kernel_takes_the_programs() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for wanted in (None, frozenset[int](), frozenset({1}), frozenset(range(0x2000, 0x2040)), frozenset(range(0x2000, 0x3000))):
            attach(sock, program(wanted))


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A datagram socket pair stands in for the device: it keeps boundaries and order, and answers EAGAIN when it is full."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


def received(far: socket.socket) -> list[bytes]:
    got = []
    while True:
        try:
            got.append(far.recv(1 << 16))
        except BlockingIOError:
            return got


def send_all(sender: Sender, far: socket.socket, frames: list[Frame]) -> list[bytes]:
    """Send everything; the socket pair holds fewer than a batch, so EAGAIN comes in the middle of it."""
    got: list[bytes] = []
    start = 0
    while start < len(frames):
        sent, code = sender.send(frames, start)
        assert code in (0, errno.EAGAIN)
        start += sent
        got += received(far)
    return got


@pytest.mark.host
@pytest.mark.parametrize("count", [0, 1, PLAIN_MAX, PLAIN_MAX + 1, SLOTS, SLOTS + 1, 5 * SLOTS + 3])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, None])
def test_sender_sends_in_order_through_a_socket_that_fills_up(
    sockets: tuple[socket.socket, socket.socket], count: int, kind: type[Frame] | None
) -> None:
    near, far = sockets
    sender = Sender(near, 1514)
    wanted = [number.to_bytes(2, "big") * (number % 700 + 1) for number in range(count)]
    kinds = [kind or (bytes, bytearray, memoryview)[number % 3] for number in range(count)]
    frames: list[Frame] = [make(one) for make, one in zip(kinds, wanted, strict=True)]
    assert send_all(sender, far, frames) == wanted


@pytest.mark.host
def test_sender_copies_nothing_that_tells_where_it_lies(sockets: tuple[socket.socket, socket.socket]) -> None:
    """The kernel is given the addresses of the frames themselves: in a ring, of a bytearray, of bytes. Views of bytes are copied."""
    near, far = sockets
    ring = mmap.mmap(-1, 1 << 16)
    view = memoryview(ring)
    view[:] = random.Random(1).randbytes(1 << 16)
    sender = Sender(near, 1514)
    parts: list[Frame] = [view[start : start + 100] for start in range(0, 4000, 400)]
    frames: list[Frame] = [*parts, bytearray(b"array"), b"bytes"]
    wanted = list(map(bytes, frames))
    assert send_all(sender, far, frames) == wanted
    assert (sender.copied, sender.copies) == (0, False)
    held = sender._fill(frames)
    base = ctypes.addressof(ctypes.c_char.from_buffer(view))
    assert [sender._iovecs[2 * place] - base for place in range(len(parts))] == list(range(0, 4000, 400))
    del held, parts, frames
    view.release()
    ring.close()
    assert send_all(sender, far, [memoryview(b"a view of bytes")] * 5) == [b"a view of bytes"] * 5
    assert sender.copied == 5


@pytest.mark.host
def test_sender_tells_what_went_wrong_and_where(sockets: tuple[socket.socket, socket.socket]) -> None:
    near, far = sockets
    sender = Sender(near, 1514)
    frames: list[Frame] = [b"%d" % number for number in range(1000)]
    sent, code = sender.send(frames, 3)
    while code == 0:
        more, code = sender.send(frames, 3 + sent)
        sent += more
    assert code == errno.EAGAIN
    assert received(far) == frames[3 : 3 + sent]
    far.close()
    assert sender.send(frames, 0) == (0, errno.ECONNREFUSED)
    assert sender.send(frames[:2], 0) == (0, errno.ENOTCONN)


class Ends:
    """An `Output` on one end of a socket pair, under a dispatch that the test turns itself."""

    def __init__(self, near: socket.socket, dispatch: TrioDispatch, limit: int) -> None:
        self.drops = Counters()
        self.output = Output(dispatch, near, near, 1500, limit, self.drops.count)
        dispatch.attach_fd(near.fileno(), lambda: None)


def numbered(first: int, count: int) -> list[Frame]:
    return [bytearray(number.to_bytes(4, "big") * 25) for number in range(first, first + count)]


@pytest.mark.host
async def test_frames_wait_for_a_slow_device_in_order_and_are_copied(sockets: tuple[socket.socket, socket.socket]) -> None:
    near, far = sockets
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    async with open_dispatch() as dispatch:
        ends = Ends(near, dispatch, 1000)
        sent: list[bytes] = []
        for first, count in ((0, 50), (50, 1), (51, 300)):
            frames = numbered(first, count)
            sent.extend(map(bytes, frames))
            ends.output.transmit(frames)
            for frame in frames:
                frame[:] = bytes(len(frame))  # type: ignore[index]  # these are bytearrays
        assert ends.output.waiting > 200
        got: list[bytes] = []
        with trio.fail_after(5):
            while len(got) < len(sent):
                got += received(far)
                await trio.lowlevel.checkpoint()
        assert got == sent
        assert ends.output.waiting == 0
        assert ends.drops == {}
        turns = dispatch.statistics().turns
        await trio.sleep(0.02)
        assert dispatch.statistics().turns - turns < 3, "nobody waits for a descriptor that can be written"


@pytest.mark.host
async def test_the_queue_ends_and_clear_forgets(sockets: tuple[socket.socket, socket.socket]) -> None:
    near, far = sockets
    async with open_dispatch() as dispatch:
        ends = Ends(near, dispatch, 20)
        frames = numbered(0, 500)
        ends.output.transmit(frames[:400])
        assert ends.output.waiting == 20
        passed = 400 - ends.drops["tx_queue_full"] - 20
        ends.output.transmit(frames[400:])
        assert ends.drops == {"tx_queue_full": 480 - passed}
        ends.output.clear()
        assert (ends.output.waiting, ends.drops[Drop.LINK_DOWN]) == (0, 20)
        assert received(far) == frames[:passed]
        ends.output.transmit(frames[:1])
        assert received(far) == frames[:1]


@pytest.mark.host
async def test_an_error_takes_one_frame_and_the_others_go_on(sockets: tuple[socket.socket, socket.socket]) -> None:
    """A frame that the socket refuses (here: larger than its buffer) is dropped under a name; those behind it are sent."""
    near, far = sockets
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    async with open_dispatch() as dispatch:
        ends = Ends(near, dispatch, 20)
        ends.output.set_mtu(60000)
        for count in (2, 6):
            frames: list[Frame] = [b"%d" % number for number in range(count)]
            ends.output.transmit([*frames[:1], bytes(50000), *frames[1:]])
            assert received(far) == frames
        assert ends.drops == {Drop.TOO_LONG: 2}
        far.close()
        ends.output.transmit([b"x", b"y"])
        assert ends.drops["tx_refused"] == 2


@pytest.mark.host
async def test_runs_wait_in_order_with_frames_and_count_as_their_segments(sockets: tuple[socket.socket, socket.socket]) -> None:
    near, far = sockets
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    async with open_dispatch() as dispatch:
        ends = Ends(near, dispatch, 400)
        sent: list[bytes] = []
        for number in range(40):
            run = Run.make(*tcp_run(bytes([number]) * 3000, 1000))
            plain = bytes([number]) * 100
            ends.output.transmit_runs([plain, run])
            sent += [plain, run.header.pack() + run]
            run[:] = bytes(len(run))
        waiting = ends.output.waiting
        assert waiting > 100
        got: list[bytes] = []
        with trio.fail_after(5):
            while len(got) < len(sent):
                got += received(far)
                await trio.lowlevel.checkpoint()
        assert got == sent
        assert (ends.output.waiting, ends.output.runs, ends.drops) == (0, 40, {})
        ends.output.transmit_runs([Run.make(*tcp_run(bytes(3000), 1461))])
        assert ends.drops == {"too_long": 3}
        for _ in range(300):
            ends.output.transmit_runs([Run.make(*tcp_run(bytes(3000), 1000))])
        assert 400 <= ends.output.waiting <= 402
        assert ends.drops["tx_queue_full"] % 3 == 0


class Refusing(socket.socket):
    """Stands in for a kernel that does not take a run as it is."""

    def sendmsg(self, *_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.host
@pytest.mark.parametrize("before", [0, 3])
async def test_a_run_that_is_refused_is_cut_and_each_segment_goes_once(sockets: tuple[socket.socket, socket.socket], before: int) -> None:
    """The socket for frames fills up in the middle of the segments."""
    near, far = sockets
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    runs = [Run.make(*tcp_run(bytes([number]) * 10000, 1000)) for number in range(3)]
    frames = [*numbered(0, before), *runs, *numbered(before, 2)]
    wanted = [bytes(one) for frame in frames for one in (frame.segments() if isinstance(frame, Run) else (frame,))]
    with Refusing(socket.AF_UNIX, socket.SOCK_DGRAM) as refusing:
        async with open_dispatch() as dispatch:
            drops = Counters()
            dispatch.attach_fd(near.fileno(), lambda: None)
            output = Output(dispatch, near, refusing, 1500, 400, drops.count)
            output.transmit_runs(frames)
            assert (output.waiting - 2) % 10, "in the middle of a run"
            got: list[bytes] = []
            with trio.fail_after(5):
                while output.waiting:
                    got += received(far)
                    await trio.lowlevel.checkpoint()
            assert got + received(far) == wanted
            assert drops == {}
