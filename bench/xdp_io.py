"""The `xdp` driver beside `packet`: frames per second that a stack receives, processor time per frame, and round trips.

    sudo chrt -f 1 python bench/xdp_io.py [--rounds N]

Two namespaces, one veth pair, one stack with a protocol that counts. The generator (`bench/forwarding.py`) has a processor of its own and
sends as fast as it goes, by socket or as bare frames; forms are taken in turn, medians are shown. On a veth pair AF_XDP has no zero copy:
the kernel copies each frame into our memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import trio

from resmgr.runner import open_dispatch
from resmgr.system import System
from stack.core.ifnet import Interface
from stack.core.stack import Stack
from stack.frame import Frame
from stack.testing.namespace import Namespace

GENERATOR = Path(__file__).with_name("forwarding.py")
MAC = [b"\2\0\0\0\1\0", b"\2\0\0\0\1\1"]
TYPE = 0x88B5
SECONDS = 0.4
FORMS = ("packet", "xdp native", "xdp generic")


class Counter:
    """The protocol: counts, or sends back."""

    def __init__(self, stack: Stack, reflect: bool = False) -> None:
        self.frames = 0
        self.reflect = reflect
        self.stack = stack
        stack.register_ethertype(TYPE, self.received)

    def received(self, interface: Interface, frames: list[Frame]) -> None:
        self.frames += len(frames)
        if self.reflect:
            self.stack.output(interface, [b"".join((one[6:12], one[:6], one[12:])) for one in frames])


def generator(namespace: Namespace, what: str, *rest: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(GENERATOR), "--far", what, str(namespace.fd), "0", "h0", *map(str, rest)]
    return subprocess.Popen(command, pass_fds=[namespace.fd], stdout=subprocess.PIPE, text=True)


def cable() -> tuple[Namespace, Namespace]:
    far, near = Namespace.make(), Namespace.make()
    near.ip("link", "add", "p0", "address", MAC[1].hex(":"), "type", "veth", "peer", "name", "h0", "address", MAC[0].hex(":"))
    near.move("h0", far)
    near.ip("link", "set", "p0", "up")
    far.ip("link", "set", "h0", "up")
    with near.entered():
        # Without it an end of a veth that has no XDP program loses bare frames.
        subprocess.run(["ethtool", "-K", "p0", "gro", "on"], check=True)
    return far, near


async def one(form: str, what: str, size: int) -> tuple[float, float]:
    """Frames per second and µs of our processor time per frame; for `ask`: the median round trip in µs, twice."""
    far, near = cable()
    async with open_dispatch() as dispatch:
        stack = Stack(System(dispatch, "bench"), os.urandom)
        with near.entered():
            driver, _, mode = form.partition(" ")
            stack.load(driver, "ifname=p0" + (f",xdp={mode}" if mode else ""))
        counter = Counter(stack, what == "ask")
        await trio.sleep(0.1)
        rest = (1500,) if what == "ask" else (size, SECONDS, 0)
        cpu = time.process_time()
        process = await trio.to_thread.run_sync(generator, far, what, *rest)
        output = await trio.to_thread.run_sync(lambda: process.communicate()[0])
        await trio.sleep(0.1)
        cpu = time.process_time() - cpu
        stack.close()
    far.close()
    near.close()
    numbers = [float(word) for word in output.split()]
    if what == "ask":
        return numbers[0], numbers[0]
    return counter.frames / numbers[1], cpu / max(1, counter.frames) * 1e6


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    figures: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for what, size in (("send", 64), ("send", 1500), ("live", 64), ("live", 1500), ("ask", 64)):
            for form in FORMS:
                figures.setdefault((what, size, form), []).append(await one(form, what, size))
    print("| generator | frame | driver | received /s | of packet | µs of processor per frame |\n|---|---|---|---|---|---|")
    for (what, size, form), values in figures.items():
        rate, cost = (statistics.median(column) for column in zip(*values, strict=True))
        base = statistics.median(value[0] for value in figures[what, size, "packet"])
        ratio = f"{rate / base:.2f}" if base else "-"
        if what == "ask":
            print(f"| round trip | {size} | {form} | {rate:.1f} µs | {ratio} | |")
        else:
            print(f"| {'sockets' if what == 'send' else 'frames'} | {size} | {form} | {rate:,.0f} | {ratio} | {cost:.2f} |")


if __name__ == "__main__":
    trio.run(main)
