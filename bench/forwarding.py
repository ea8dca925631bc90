"""What forwarding between two ports costs: our engines beside the Linux bridge, in one run. docs/stack/forwarding.md has figures.

    sudo chrt -f 1 python bench/forwarding.py [--rounds N] [--only NAME,...]

Three network namespaces: h0 - p0, p1 - h1, with the bridge in the middle. Forms are taken in turn within each round, so that noise of the
machine hits all alike; medians are shown. Needs the right to make namespaces.

    rate       frames per second at h1 while h0 sends as fast as it can. `sockets`: from sendmmsg on a packet socket, as the frames of a
               host come; on a veth pair the sender's processor does all the work up to the far end. `frames`: bare frames that the
               kernel makes itself (a test run of an XDP program with live frames): the fastest generator that needs no module
    loss-free  the highest paced rate of `sockets`, of a search in steps of 10 %, at which all frames of 0.3 s arrive
    added      half of what a round trip h0 - h1 through the bridge takes longer than over one cable, p50, both ends
               asleep in recv, on one processor
    stream     MB/s of one TCP connection of the kernel's own between h0 and h1 with all offloads on, through the bridge module itself
               (and not the relay of the other figures): `--stream`, which measures nothing else
"""

from __future__ import annotations

import argparse
import ctypes
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from resmgr.runner import open_dispatch
from resmgr.system import System
from stack.core.hooks import ORDER_BRIDGE, Point
from stack.core.ifnet import Interface
from stack.core.stack import Stack
from stack.ebpf.assembler import R0, R1, R2, Assembler
from stack.ebpf.constants import PROG_TEST_RUN
from stack.ebpf.program import Program
from stack.ebpf.syscall import bpf
from stack.frame import Frame
from stack.l2.forward.fastpath import FastPath
from stack.l2.forward.kinds import kinds
from stack.linux import mmsg
from stack.testing.namespace import Namespace

TYPE = 0x88B5
BATCH = 64
MAC = [b"\2\0\0\0\1\0", b"\2\0\0\0\1\1"]
LIVE_FRAMES = 1 << 1
SECONDS = 0.4


def frame(size: int, destination: int = 1, source: int = 0) -> bytes:
    return (MAC[destination] + MAC[source] + TYPE.to_bytes(2, "big")).ljust(size, b"\x5a")


# The far ends: each a process of its own, in its namespace.


def far(arguments: list[str]) -> None:
    what, namespace, core, name, *rest = arguments
    libc = ctypes.CDLL(None)
    if libc.setns(int(namespace), 0x40000000) < 0:
        raise SystemExit("cannot enter the namespace")
    os.sched_setaffinity(0, {int(core)})
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    sock.setsockopt(263, 23, 1)
    sock.setsockopt(socket.SOL_SOCKET, 32, 16 << 20)
    sock.bind((name, 0 if what in ("send", "live") else TYPE))
    {"send": send, "live": live, "reflect": reflect, "ask": ask}[what](sock, name, *map(float, rest))


def send(sock: socket.socket, name: str, size: float, seconds: float, rate: float) -> None:
    """Prints how many frames went out and in what time. *rate* 0: as fast as it goes."""
    data = bytearray(frame(int(size)))
    iovecs = bytearray(mmsg.IOVEC.pack(mmsg.address(data), int(size)) * BATCH)
    made = mmsg.headers(BATCH, mmsg.address(iovecs))
    headers = ctypes.c_void_p(mmsg.address(made))
    sendmmsg, fd = ctypes.CDLL(None).sendmmsg, sock.fileno()
    sent, began = 0, time.perf_counter()
    count = BATCH if rate == 0 else 16
    while (now := time.perf_counter() - began) < seconds:
        if rate and sent > now * rate:
            continue
        sent += max(0, sendmmsg(fd, headers, count, 0))
    print(sent, time.perf_counter() - began)


def live(sock: socket.socket, name: str, size: float, seconds: float, rate: float) -> None:
    asm = Assembler()
    asm.constant(R1, socket.if_nametoindex(name))
    asm.constant(R2, 0)
    asm.call(23)  # bpf_redirect
    asm.exit()
    assert R0 == 0
    program = Program(asm.assemble(), "generate", flags=0)
    data = ctypes.create_string_buffer(frame(int(size)), int(size))
    context = ctypes.create_string_buffer(struct.pack("=6I", 0, int(size), 0, 1, 0, 0), 24)
    sent, began = 0, time.perf_counter()
    times = 1 << 14
    while time.perf_counter() - began < seconds:
        attribute = struct.pack(
            "=IIIIQQIIIIQQIII",
            program.fd,
            0,
            int(size),
            0,
            ctypes.addressof(data),
            0,
            times,
            0,
            24,
            0,
            ctypes.addressof(context),
            0,
            LIVE_FRAMES,
            0,
            64,
        )
        bpf(PROG_TEST_RUN, attribute + bytes(4))
        sent += times
    print(sent, time.perf_counter() - began)


def reflect(sock: socket.socket, name: str) -> None:
    """Every question goes back, with its number."""
    sock.setblocking(True)
    print("ready", flush=True)
    while True:
        question = sock.recv(2048)
        sock.send(question[6:12] + question[:6] + question[12:])


def ask(sock: socket.socket, name: str, count: float) -> None:
    """Prints the median in µs. An answer that is late is not taken for the next one's."""
    sock.settimeout(0.5)
    trips = []
    for number in range(int(count)):
        question = frame(64)[:14] + number.to_bytes(4, "big") + bytes(46)
        began = time.perf_counter()
        sock.send(question)
        try:
            while sock.recv(2048)[14:18] != question[14:18]:
                pass
        except TimeoutError:
            continue
        trips.append(time.perf_counter() - began)
    print(statistics.median(trips) * 1e6 if trips else float("nan"), len(trips))


# The middle


@attrs.frozen
class Place:
    h0: Namespace
    middle: Namespace
    h1: Namespace

    @classmethod
    def make(cls, gro: bool) -> Place:
        """*gro*: the far ends accept bare frames, so that XDP may run native."""
        place = cls(Namespace.make(), Namespace.make(), Namespace.make())
        for number, namespace in enumerate((place.h0, place.h1)):
            place.middle.ip("link", "add", f"p{number}", "type", "veth", "peer", "name", f"h{number}", "address", MAC[number].hex(":"))
            place.middle.move(f"h{number}", namespace)
            for where, name in ((place.middle, f"p{number}"), (namespace, f"h{number}")):
                where.ip("link", "set", name, "up")
                with where.entered():
                    subprocess.run(["sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1"], check=False)
                    subprocess.run(["ethtool", "-K", name, "gro", "on" if gro or where is place.middle else "off"], check=True)
        return place

    def learn_in_bridge(self) -> None:
        """Both stations are known to the Linux bridge, for ever, as they are to ours."""
        for number in (0, 1):
            with self.middle.entered():
                subprocess.run(["bridge", "fdb", "add", MAC[number].hex(":"), "dev", f"p{number}", "master", "static"], check=True)

    def close(self) -> None:
        for namespace in (self.h0, self.middle, self.h1):
            namespace.close()

    def received(self) -> int:
        """Frames that have come to h1."""
        line = next(line for line in self.h1.output("-s", "-o", "link", "show", "h1").split("RX:")[1:])
        return int(line.split("\\")[1].split()[1])

    def start(self, what: str, number: int, core: int, *rest: float) -> subprocess.Popen[str]:
        namespace = (self.h0, self.h1)[number]
        command = [sys.executable, __file__, "--far", what, str(namespace.fd), str(core), f"h{number}", *map(str, rest)]
        return subprocess.Popen(command, pass_fds=[namespace.fd], stdout=subprocess.PIPE, text=True)

    def run(self, what: str, size: int, seconds: float, rate: float = 0) -> tuple[int, int, float]:
        """Sent, received, seconds."""
        before = self.received()
        process = self.start(what, 0, 0, size, seconds, rate)
        output, _ = process.communicate()
        if process.returncode:
            return 0, 0, 1.0
        sent, took = output.split()
        last = -1
        while (now := self.received()) != last:
            last = now
            time.sleep(0.02)
        return int(sent), now - before, float(took)

    def round_trip(self) -> float:
        mirror = self.start("reflect", 1, 0)
        assert mirror.stdout is not None
        mirror.stdout.readline()
        output, _ = self.start("ask", 0, 0, 2000).communicate()
        mirror.kill()
        mirror.wait()
        return float(output.split()[0])


@attrs.define
class Form:
    name: str
    gro: bool
    engine: str
    place: Place | None = None
    path: FastPath | None = None
    figures: dict[str, list[float]] = attrs.Factory(dict)

    def add(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)


FORMS = [
    ("linux bridge", True, "linux"),
    ("kernel, native", True, "kernel-native"),
    ("kernel, generic", False, "kernel-generic"),
    ("threads", False, "threads"),
    ("no engine", False, "none"),
]


@asynccontextmanager
async def opened(form: Form) -> AsyncIterator[None]:
    form.place = place = Place.make(form.gro)
    if form.engine == "linux":
        place.middle.ip("link", "add", "br0", "type", "bridge")
        for name in ("p0", "p1"):
            place.middle.ip("link", "set", name, "master", "br0")
        place.middle.ip("link", "set", "br0", "up")
        place.learn_in_bridge()
        yield
        place.close()
        return
    async with open_dispatch() as dispatch:
        stack = Stack(System(dispatch, "bench"), os.urandom)
        with place.middle.entered():
            ports = [stack.load("packet", f"ifname=p{number}").interface for number in (0, 1)]
        path = FastPath(stack, form.engine, kinds(dispatch))
        bridge = Relay(stack, path, [port for port in ports if port is not None])
        await trio.sleep(0.1)
        form.path = path
        yield
        bridge.close()
        stack.close()
    place.close()


STREAM_FORMS = [("linux bridge", "linux"), ("threads", "threads"), ("kernel", "kernel"), ("no engine", "none"), ("no engine, cut", "cut")]
"""`cut`: a recorder's hook is there, before which runs are cut; what a run costs where it must not stay whole."""
LISTEN = """import socket, sys, time
s = socket.create_server(('10.9.0.2', 7)); print(flush=True); c = s.accept()[0]
m = memoryview(bytearray(1 << 18)); n = 0; began = time.perf_counter()
while d := c.recv_into(m): n += d
print(n / (time.perf_counter() - began) / 1e6)"""
TALK = """import socket, sys, time
s = socket.create_connection(('10.9.0.2', 7), 5); d = bytes(1 << 18); end = time.perf_counter() + float(sys.argv[1])
while time.perf_counter() < end: s.sendall(d)
s.close()"""


def stream(place: Place) -> float:
    """MB/s."""
    with place.h1.entered():
        server = subprocess.Popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    server.stdout.readline()
    with place.h0.entered():
        subprocess.run([sys.executable, "-c", TALK, "2"], check=True, timeout=30)
    return float(server.communicate(timeout=30)[0])


@asynccontextmanager
async def bridged(engine: str) -> AsyncIterator[Place]:
    place = Place.make(True)
    for number, namespace in enumerate((place.h0, place.h1)):
        namespace.ip("address", "add", f"10.9.0.{number + 1}/24", "dev", f"h{number}")
    if engine == "linux":
        place.middle.ip("link", "add", "br0", "type", "bridge")
        for name in ("p0", "p1"):
            place.middle.ip("link", "set", name, "master", "br0")
        place.middle.ip("link", "set", "br0", "up")
        yield place
        place.close()
        return
    async with open_dispatch() as dispatch:
        stack = Stack(System(dispatch, "bench"), os.urandom)
        with place.middle.entered():
            for number in (0, 1):
                stack.load("packet", f"ifname=p{number}")
            stack.load("bridge", f"add=p0,add=p1,engine={'none' if engine == 'cut' else engine}")
        if engine == "cut":
            stack.add_hook(Point.IN, lambda interface, frames: frames, name="recorder")
        yield place
        stack.close()
    place.close()


async def streams(rounds: int) -> None:
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, engine in STREAM_FORMS:
            # One at a time: a stack that waits for frames takes processor time for it.
            async with bridged(engine) as place:
                figures.setdefault(name, []).append(await trio.to_thread.run_sync(stream, place))
    base = figures["linux bridge"]
    print("| form | MB/s | of the bridge |\n|---|---|---|")
    for name, values in figures.items():
        ratio = statistics.median(one / two for one, two in zip(values, base, strict=True))
        print(f"| {name} | {statistics.median(values):,.0f} | {ratio:.2f} |")


class Relay:
    """What a bridge does with two known stations, for frames that come up."""

    def __init__(self, stack: Stack, path: FastPath, ports: list[Interface]) -> None:
        self.stack, self.path, self.ports = stack, path, ports
        self.hook = stack.add_hook(Point.IN, self.relay, order=ORDER_BRIDGE, name="bridge0", everything=True, counts=True)
        self.open = [stack.promiscuous(port, "bridge0") for port in ports]
        for number, port in enumerate(ports):
            path.add(port)
            path.learned(MAC[number], port)

    def relay(self, interface: Interface, frames: list[Frame]) -> list[Frame]:
        self.stack.output(self.ports[interface is self.ports[0]], [one for one in frames if one[12:14] == b"\x88\xb5"])
        return []

    def close(self) -> None:
        self.path.close()
        for one in (self.hook, *self.open):
            one.revoke()


def loss_free(place: Place, size: int, top: float) -> float:
    """Frames per second."""
    rate = top
    while rate > 1000:
        sent, received, seconds = place.run("send", size, 0.3, rate)
        if sent and received >= sent and sent >= 0.9 * rate * seconds:
            return sent / seconds
        rate *= 0.9
    return 0.0


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--stream", action="store_true", help="one TCP connection, and nothing else")
    parser.add_argument("--far", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.far:
        far(options.far)
        return
    if options.stream:
        await streams(options.rounds)
        return
    forms = [Form(*one) for one in FORMS if not options.only or one[0].split(",")[0] in options.only or one[0] in options.only]
    run = trio.to_thread.run_sync
    direct: list[float] = []
    async with AsyncExitStack() as stack:
        for form in forms:
            await stack.enter_async_context(opened(form))
        for _ in range(options.rounds):
            direct.append(await run(straight))
            for form in forms:
                place = form.place
                assert place is not None
                for size in (64, 1500):
                    for kind, what in (("sockets", "send"), ("frames", "live")):
                        sent, received, seconds = await run(place.run, what, size, SECONDS)
                        form.add(f"{kind} {size}", received / seconds)
                        form.add(f"{kind} {size} lost", 1 - received / sent if sent else float("nan"))
                    form.add(f"loss-free {size}", await run(loss_free, place, size, form.figures[f"sockets {size}"][-1]))
                form.add("trip", await run(place.round_trip))
                form.add("added", (form.figures["trip"][-1] - direct[-1]) / 2)
        print(f"one cable: {statistics.median(direct):.1f} µs")
        report(forms)
        for form in forms:
            if form.path is not None:
                print(form.name, {name: (port.how, port.off) for name, port in form.path.statistics().ports.items()})


def straight() -> float:
    """A round trip over one cable."""
    place = Place(Namespace.make(), Namespace.make(), Namespace.make())
    place.h0.ip("link", "add", "h0", "address", MAC[0].hex(":"), "type", "veth", "peer", "name", "h1", "address", MAC[1].hex(":"))
    place.h0.move("h1", place.h1)
    place.h0.ip("link", "set", "h0", "up")
    place.h1.ip("link", "set", "h1", "up")
    try:
        return place.round_trip()
    finally:
        place.close()


def report(forms: list[Form]) -> None:
    def middle(form: Form, name: str) -> float:
        return statistics.median(form.figures[name])

    base = next((form for form in forms if form.engine == "linux"), None)
    print("| frame | form | sockets /s | of the bridge | frames /s | of the bridge | loss-free /s | of the bridge |")
    print("|---|---|---|---|---|---|---|---|")
    for size in (64, 1500):
        for form in forms:
            cells = []
            for name in (f"sockets {size}", f"frames {size}", f"loss-free {size}"):
                ratio = (
                    [one / two for one, two in zip(form.figures[name], base.figures[name], strict=True) if two] if base is not None else []
                )
                cells += [f"{middle(form, name):,.0f}", f"{statistics.median(ratio):.2f}" if ratio else "-"]
            print(f"| {size} | {form.name} | {' | '.join(cells)} |")
    print("\n| form | round trip, µs | added per hop, µs |\n|---|---|---|")
    for form in forms:
        print(f"| {form.name} | {middle(form, 'trip'):.1f} | {middle(form, 'added'):.1f} |")


if __name__ == "__main__":
    trio.run(main)
