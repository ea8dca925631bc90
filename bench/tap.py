"""What a TCP stream between two Linux machines gets through drivers of ours, beside Linux's bridge: docs/stack/drivers.md.

    sudo python bench/tap.py [MEGABYTES]

Two anonymous network namespaces. Between them, in turn: a Linux bridge with veth pairs; the same with all offloads off, so that frames of
1514 bytes cross; two taps joined in one process of ours, with and without runs of segments from Linux; two packet drivers joined likewise.
All sides of all share this machine's cores; median of five rounds, each form in turn.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import trio

from qnetpy.cluster.netlink import offloads_off
from resmgr.runner import TrioDispatch, open_dispatch
from stack.core.driver import Driver
from stack.drivers.packet import PacketDriver, PacketOptions
from stack.drivers.tap import TapDriver, TapOptions
from stack.frame import Frame
from stack.testing.namespace import Namespace

ROUNDS = 5


class Relay:
    """A port that gives what arrives to another driver."""

    def __init__(self, to: Driver) -> None:
        self._to = to
        self.drops = 0

    def deliver(self, frames: list[Frame]) -> None:
        self._to.transmit(frames)

    def changed(self) -> None:
        pass

    def count(self, reason: str, number: int = 1) -> None:
        self.drops += number


def carry(near: Namespace, far: Namespace, size: int) -> float:
    """Seconds for *size* bytes from one to the other. Blocking sockets, each in a thread, outside of any dispatch."""
    with far.entered():
        server = socket.create_server(("10.8.0.2", 0))
    with near.entered():
        client = socket.socket()

    def receive() -> None:
        connection, _ = server.accept()
        buffer = bytearray(1 << 20)
        while connection.recv_into(buffer):
            pass
        connection.close()

    thread = threading.Thread(target=receive)
    thread.start()
    block = bytes(1 << 20)
    began = time.perf_counter()
    client.connect(server.getsockname())
    for _ in range(size >> 20):
        client.sendall(block)
    client.shutdown(socket.SHUT_WR)
    thread.join()
    took = time.perf_counter() - began
    client.close()
    server.close()
    return took


def address(namespace: Namespace, link: str, number: int) -> None:
    namespace.ip("address", "add", f"10.8.0.{number}/24", "dev", link)


def veths(ends: list[Namespace], switch: Namespace, plain: bool) -> None:
    for number, end in enumerate(ends, 1):
        switch.ip("link", "add", f"p{number}", "type", "veth", "peer", "name", f"e{number}")
        if plain:
            with switch.entered():
                for name in (f"p{number}", f"e{number}"):
                    offloads_off(name)
        switch.move(f"e{number}", end)
        end.ip("link", "set", f"e{number}", "up")
        switch.ip("link", "set", f"p{number}", "up")
        address(end, f"e{number}", number)


def bridge(plain: bool, size: int) -> float:
    ends, switch = [Namespace.make(), Namespace.make()], Namespace.make()
    switch.ip("link", "add", "br0", "type", "bridge")
    switch.ip("link", "set", "br0", "up")
    veths(ends, switch, plain)
    for number in (1, 2):
        switch.ip("link", "set", f"p{number}", "master", "br0")
    try:
        return carry(*ends, size)
    finally:
        for one in (*ends, switch):
            one.close()


async def ours(kind: str, size: int) -> float:
    ends, switch = [Namespace.make(), Namespace.make()], Namespace.make()
    async with open_dispatch() as dispatch:
        drivers = packets(dispatch, ends, switch, kind) if "packet" in kind else taps(dispatch, ends, "runs" in kind)
        for driver, other in zip(drivers, reversed(drivers), strict=True):
            driver.start(Relay(other))
            driver.promiscuous(True)
            driver.accept(None)
        while not all(driver.up for driver in drivers):  # noqa: ASYNC110  # what is awaited is the kernel
            await trio.sleep(0.01)
        took = await trio.to_thread.run_sync(in_child, ends, size)
        for driver in drivers:
            driver.detach()
    for one in (*ends, switch):
        one.close()
    return took


def in_child(ends: list[Namespace], size: int) -> float:
    """In a process of its own: the machines' programs must not share an interpreter with the stack."""
    words = [sys.executable, __file__, "--carry", *(str(end.fd) for end in ends), str(size)]
    result = subprocess.run(words, capture_output=True, text=True, check=True, pass_fds=[end.fd for end in ends], env=os.environ)
    return float(result.stdout)


def taps(dispatch: TrioDispatch, ends: list[Namespace], runs: bool) -> list[TapDriver | PacketDriver]:
    made: list[TapDriver | PacketDriver] = []
    for number, end in enumerate(ends, 1):
        with end.entered():
            made.append(TapDriver(dispatch, TapOptions("t0", runs=runs), bytes((2, 0, 0, 0, 1, number))))
        address(end, "t0", number)
    return made


def packets(dispatch: TrioDispatch, ends: list[Namespace], switch: Namespace, kind: str) -> list[TapDriver | PacketDriver]:
    veths(ends, switch, "plain" in kind)
    with switch.entered():
        return [PacketDriver(dispatch, PacketOptions(f"p{number}")) for number in (1, 2)]


def main(size: int) -> None:
    forms: dict[str, Callable[[], float]] = {
        "Linux bridge, offloads on": lambda: bridge(False, size),
        "Linux bridge, offloads off": lambda: bridge(True, size),
        "two taps, runs of segments": lambda: trio.run(ours, "tap runs", size),
        "two taps, single frames": lambda: trio.run(ours, "tap", size),
        "two packet drivers, offloads on": lambda: trio.run(ours, "packet", size),
        "two packet drivers, offloads off": lambda: trio.run(ours, "packet plain", size),
    }
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            found[name].append(size / form() / 1e6)
    print("| between two machines | MB/s | lowest | highest |\n|---|---|---|---|")
    for name, rates in found.items():
        print(f"| {name} | {statistics.median(rates):.0f} | {min(rates):.0f} | {max(rates):.0f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--carry"]:
        print(carry(Namespace(int(sys.argv[2])), Namespace(int(sys.argv[3])), int(sys.argv[4])))
    else:
        main(int(sys.argv[1] if len(sys.argv) > 1 else "64") << 20)
