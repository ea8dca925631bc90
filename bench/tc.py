"""What a tc program would carry in place of XDP, beside the Linux bridge and our engines. docs/decisions/forwarding.md has figures.

    sudo python bench/tc.py [--rounds N]

Namespaces and generators are those of `bench/forwarding.py`. The tc program asks of a frame what the XDP program asks (both stations, the
ports, the length unless it is a run of segments), counts it and redirects it; it is attached by a link (tcx, Linux 6.6). `heard`: with the
packet driver's situation besides, a promiscuous packet socket on each port, which sees a frame before tc does. So a socket filter has to
ask the same again, for every frame, to keep what is carried from coming up too.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager

import trio

from bench.forwarding import MAC, SECONDS, Form, Place, bridged, opened, stream
from stack.ebpf.assembler import R0, R1, R2, R3, R4, R6, R8, R9, R10, Alu, Assembler, Code, Jump, Width
from stack.ebpf.constants import LINK_CREATE, PROG_TYPE_SOCKET_FILTER, MapType
from stack.ebpf.map import Map
from stack.ebpf.program import Program
from stack.ebpf.syscall import bpf

PROG_TYPE_SCHED_CLS, ATTACH_TCX_INGRESS = 3, 46
REDIRECT, LOAD_BYTES, MAP_LOOKUP = 23, 26, 1
SO_ATTACH_BPF = 50
LENGTH, DATA, DATA_END, SEGMENTS = 0, 76, 80, 164
"""Places in struct __sk_buff."""
PASS = 0
TO, FROM, OUTPUT = -8, -16, -24
LONGEST = 1518


def look_up(asm: Assembler, table: int, key: int, absent: str) -> None:
    asm.map(R1, table)
    asm.move(R2, R10)
    asm.compute(Alu.ADD, R2, key)
    asm.call(MAP_LOOKUP)
    asm.branch(Jump.EQ, R0, 0, absent)


def both_stations(asm: Assembler, port: int, stations: int) -> None:
    """R8 = the output port, or go to `up`."""
    look_up(asm, stations, FROM, "up")
    asm.load(Width.W, R1, R0, 0)
    asm.branch(Jump.NE, R1, port, "up")
    look_up(asm, stations, TO, "up")
    asm.load(Width.W, R8, R0, 0)
    asm.branch(Jump.EQ, R8, port, "up")
    asm.store(Width.W, R10, OUTPUT, R8)


def carrying(port: int, stations: int, ports: int, counters: int) -> Code:
    asm = Assembler()
    asm.move(R6, R1)
    asm.load(Width.W, R2, R1, DATA)
    asm.load(Width.W, R3, R1, DATA_END)
    asm.move(R4, R2)
    asm.compute(Alu.ADD, R4, 14)
    asm.branch_register(Jump.GT, R4, R3, "up")
    asm.load(Width.B, R4, R2, 0)
    asm.branch(Jump.SET, R4, 1, "up")
    for place, key in ((0, TO), (6, FROM)):
        for half in (0, 2, 4):
            asm.load(Width.H, R4, R2, place + half)
            asm.store(Width.H, R10, key + half, R4)
        asm.store_constant(Width.H, R10, key + 6, 0)
    both_stations(asm, port, stations)
    look_up(asm, ports, OUTPUT, "up")
    asm.load(Width.W, R9, R0, 0)
    asm.load(Width.W, R1, R6, SEGMENTS)
    asm.branch(Jump.NE, R1, 0, "fits")
    asm.load(Width.W, R1, R6, LENGTH)
    asm.load(Width.W, R2, R0, 4)
    asm.branch_register(Jump.GT, R1, R2, "up")
    asm.label("fits")
    look_up(asm, counters, OUTPUT, "up")
    asm.load(Width.DW, R1, R0, 0)
    asm.compute(Alu.ADD, R1, 1)
    asm.store(Width.DW, R0, 0, R1)
    asm.load(Width.DW, R1, R0, 8)
    asm.load(Width.W, R2, R6, LENGTH)
    asm.combine(Alu.ADD, R1, R2)
    asm.store(Width.DW, R0, 8, R1)
    asm.move(R1, R9)
    asm.constant(R2, 0)
    asm.call(REDIRECT)
    asm.exit()
    asm.label("up")
    asm.constant(R0, PASS)
    asm.exit()
    return asm.assemble()


def not_carried(port: int, stations: int) -> Code:
    """The filter of a packet socket: whole, or nothing when tc will carry it."""
    asm = Assembler()
    asm.move(R6, R1)
    for place, key in ((0, TO), (6, FROM)):
        asm.store_constant(Width.DW, R10, key, 0)
        asm.move(R1, R6)
        asm.constant(R2, place)
        asm.move(R3, R10)
        asm.compute(Alu.ADD, R3, key)
        asm.constant(R4, 6)
        asm.call(LOAD_BYTES)
    both_stations(asm, port, stations)
    asm.constant(R0, 0)
    asm.exit()
    asm.label("up")
    asm.constant(R0, 0x40000)
    asm.exit()
    return asm.assemble()


@contextmanager
def tc_carries(place: Place, heard: bool) -> Iterator[Callable[[], int]]:
    """Yields how many frames it carried."""
    with ExitStack() as stack, place.middle.entered():
        make = stack.enter_context
        stations, ports = make(Map(MapType.HASH, 8, 16, 8192)), make(Map(MapType.ARRAY, 4, 8, 32))
        counters = make(Map(MapType.PERCPU_ARRAY, 4, 16, 32))
        for number in (0, 1):
            index = socket.if_nametoindex(f"p{number}")
            stations.update(MAC[number] + bytes(2), struct.pack("=IIQ", number, 0, 0))
            ports.update(struct.pack("=I", number), struct.pack("=II", index, LONGEST))
            program = make(Program(carrying(number, stations.fd, ports.fd, counters.fd), "tc", PROG_TYPE_SCHED_CLS, flags=0))
            link, _ = bpf(LINK_CREATE, struct.pack("=IIIII4xQ", program.fd, index, ATTACH_TCX_INGRESS, 0, 0, 0))
            stack.callback(os.close, link)
            if heard:
                sock = make(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
                screen = make(Program(not_carried(number, stations.fd), "heard", PROG_TYPE_SOCKET_FILTER, flags=0))
                sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, screen.fd)
                sock.setsockopt(263, 1, struct.pack("=iHH8s", index, 1, 0, b""))  # PACKET_ADD_MEMBERSHIP: promiscuous
                sock.bind((f"p{number}", 3))

        def carried() -> int:
            values = [counters.lookup_cpus(struct.pack("=I", number)) or [] for number in (0, 1)]
            return sum(struct.unpack("=QQ", one)[0] for cpus in values for one in cpus)

        yield carried


@asynccontextmanager
async def tc(heard: bool, gro: bool) -> AsyncIterator[Place]:
    place = Place.make(gro)
    for number, namespace in enumerate((place.h0, place.h1)):
        namespace.ip("address", "add", f"10.9.0.{number + 1}/24", "dev", f"h{number}")
        # No bridge is there that would flood who asks for an address.
        namespace.ip("neigh", "add", f"10.9.0.{2 - number}", "lladdr", MAC[1 - number].hex(":"), "dev", f"h{number}")
    with tc_carries(place, heard) as carried:
        yield place
        assert carried() > 100
    place.close()


@asynccontextmanager
async def known(engine: str) -> AsyncIterator[Place]:
    """For frames: the two stations are known."""
    form = Form(engine, False, engine)
    async with opened(form):
        assert form.place is not None
        yield form.place


Opened = Callable[[], AbstractAsyncContextManager[Place]]
FRAMES: dict[str, Opened] = {
    "linux bridge": lambda: known("linux"),
    "XDP, generic": lambda: known("kernel-generic"),
    "tc": lambda: tc(False, False),
    "tc, heard": lambda: tc(True, False),
}
STREAMS: dict[str, Opened] = {
    "linux bridge": lambda: bridged("linux"),
    "threads": lambda: bridged("threads"),
    "XDP, generic": lambda: bridged("kernel"),
    "tc": lambda: tc(False, True),
    "tc, heard": lambda: tc(True, True),
}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    run = trio.to_thread.run_sync
    figures: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, make in FRAMES.items():
            async with make() as place:
                for size in (64, 1500):
                    _, received, seconds = await run(place.run, "send", size, SECONDS)
                    figures.setdefault(f"{size} B, thousand/s", {}).setdefault(name, []).append(received / seconds / 1000)
        for name, make in STREAMS.items():
            async with make() as place:
                figures.setdefault("one TCP, MB/s", {}).setdefault(name, []).append(await run(stream, place))
    for what, forms in figures.items():
        print(what)
        base = forms["linux bridge"]
        for name, values in forms.items():
            ratio = statistics.median(one / two for one, two in zip(values, base, strict=True))
            print(f"  {name:<13} {statistics.median(values):>8,.0f}  {ratio:.2f}   " + " ".join(f"{one:,.0f}" for one in values))


if __name__ == "__main__":
    trio.run(main)
