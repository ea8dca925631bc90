"""`qnet bench --only paths`: two paths between two nodes that are embedded in programs, beside Multipath TCP of the kernel in clear text.

Sum: two cables, a token bucket of RATE in front of each end, so that the wire and not the processor is the limit. Failure: two switches and
a program that asks without a pause; the path that it uses loses its carrier at one node, or goes silent there with the carrier on (a
bucket that lets nothing through). What counts is the longest time between two answers around each failure.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from links import Links
from run import CLIENT, NONE, SERVER, Figures, Measured, Result

from qnetpy.cluster.handle import Cluster, running

MPTCP = str(Path(__file__).with_name("mptcp.py"))
RATE = "200mbit"
BUCKET = ("tbf", "rate", RATE, "burst", "32kb", "latency", "10ms")
SILENT = ("tbf", "rate", "8bit", "burst", "60", "latency", "1ms")
"""Takes frames of up to 60 bytes, and of these one a minute."""
INTERFACES = ("eth0", "eth1")
WIRES = dict(zip(INTERFACES, ("lan", "san"), strict=True))
BULK = 1 << 20
BULK_COUNT = 96
FAILURES = 6
"""Of each kind."""
PAUSE = 1.5
"""Seconds between a failure and its end, and after that."""
TOPOLOGY = """
title = "bench of paths"
[links.lan]
kind = "{kind}"
mtu = {mtu}
[links.san]
kind = "{kind}"
mtu = {mtu}
[nodes.n1]
boot = []
shutdown = []
[nodes.n2]
boot = []
shutdown = []
"""


class PathBench(Links):
    """Measures on two nodes with two links and without daemons, one node per core."""

    interfaces = INTERFACES

    def __init__(self, cluster: Cluster, mtu: int, runs: int, report: Callable[[Result], None]) -> None:
        super().__init__(cluster, mtu, runs, report)
        self.place("split")
        for node in (CLIENT, SERVER):
            cluster.run(node, "ip", "mptcp", "limits", "set", "subflow", "2", "add_addr_accepted", "2")
        cluster.run(SERVER, "ip", "mptcp", "endpoint", "add", cluster.address(SERVER, 1), "dev", INTERFACES[1], "signal")

    # Sum

    def traffic(self, node: str, interface: str, *bucket: str) -> None:
        """Put a token bucket in front of an interface, or take it away."""
        words = ["replace", "dev", interface, "root", *bucket] if bucket else ["del", "dev", interface, "root"]
        self.cluster.run(node, "tc", "qdisc", *words)

    def mptcp_stream(self, paths: int) -> Callable[[int], Measured]:
        def measure(_: int) -> Measured:
            self.cluster.run(CLIENT, "ip", "mptcp", "limits", "set", "subflow", str(paths - 1), "add_addr_accepted", str(paths - 1))
            with self.mptcp():
                words = [sys.executable, MPTCP, "--cpu", str(self.cpus[CLIENT]), "stream", self.cluster.address(SERVER)]
                figures: Figures = json.loads(self.cluster.run(CLIENT, *words, str(BULK_COUNT), str(BULK), seconds=120).stdout)
                return figures, NONE

        return measure

    def sums(self) -> None:
        for node in (CLIENT, SERVER):
            for interface in INTERFACES:
                self.traffic(node, interface, *BUCKET)
        what = f"embedded: messages of 1 MiB, {RATE} a path,"
        ours = {
            paths: self.ours("stream", BULK_COUNT, BULK, where=f"{SERVER}~exclusive:{INTERFACES[0]}" if paths == 1 else SERVER)
            for paths in (1, 2)
        }
        self.compare(f"{what} one path", "MPTCP", ours[1], self.mptcp_stream(1), "rate", "MB/s")
        self.compare(f"{what} two paths", "one path", ours[2], ours[1], "rate", "MB/s", (">=", 1.8))
        self.compare("MPTCP: two paths", "one path", self.mptcp_stream(2), self.mptcp_stream(1), "rate", "MB/s")
        for node in (CLIENT, SERVER):
            for interface in INTERFACES:
                self.traffic(node, interface)

    # Failure

    @contextlib.contextmanager
    def mptcp(self) -> Iterator[None]:
        with self.cluster.running(SERVER, sys.executable, MPTCP, "--cpu", str(self.cpus[SERVER]), "serve") as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                process.kill()
                raise SystemExit(f"bench: mptcp: {process.communicate()[1].decode(errors='replace').strip()}")
            yield

    def busier(self) -> str:
        """The interface that the client's node sends on."""

        def sent() -> list[int]:
            names = [f"/sys/class/net/{name}/statistics/tx_packets" for name in INTERFACES]
            return [int(word) for word in self.cluster.run(CLIENT, "cat", *names).stdout.split()]

        before, after = sent(), sent()
        return max(zip(INTERFACES, before, after, strict=True), key=lambda entry: entry[2] - entry[1])[0]

    def carrier(self, interface: str) -> Callable[[], None]:
        """Pull it at the server's node; the call that is returned plugs it in again."""
        self.cluster.link_down(SERVER, WIRES[interface])
        return lambda: self.cluster.link_up(SERVER, WIRES[interface])

    def silence(self, interface: str) -> Callable[[], None]:
        """Both directions, as a switch that forwards no more."""
        for node in (CLIENT, SERVER):
            self.traffic(node, interface, *SILENT)

        def end() -> None:
            for node in (CLIENT, SERVER):
                self.traffic(node, interface)

        return end

    def failures(self, trouble: Callable[[str], Callable[[], None]], *words: str) -> tuple[list[float], dict[str, int]]:
        """Longest pause around each of FAILURES failures in the stream of a client program, in ms, and what else it says."""
        spans = []
        seconds = int(FAILURES * (2 * PAUSE + 2.0))
        with self.cluster.running(CLIENT, *words, str(seconds), "64") as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"steady\n":
                process.kill()
                raise SystemExit(f"bench: steady: {process.communicate()[1].decode(errors='replace').strip()}")
            time.sleep(PAUSE)
            for _ in range(FAILURES):
                interface = self.busier()
                begin = time.monotonic()
                end = trouble(interface)
                time.sleep(PAUSE)
                spans.append((begin, time.monotonic()))
                end()
                time.sleep(PAUSE)
            output, errors = process.communicate(timeout=60)
        if process.returncode:
            raise SystemExit(f"bench: steady: {errors.decode(errors='replace').strip()}")
        told = json.loads(output)
        longest = [
            max((gap * 1e3 for when, gap in told["gaps"] if begin <= when and when - gap <= end), default=0.0) for begin, end in spans
        ]
        return longest, {name: told[name] for name in ("lost", "doubled", "failed") if name in told}

    def failover(self) -> None:
        ours = [*self.embedding(CLIENT), "steady", SERVER]
        theirs = [sys.executable, MPTCP, "--cpu", str(self.cpus[CLIENT]), "steady", self.cluster.address(SERVER)]
        for name, trouble, limit in (("carrier pulled", self.carrier, 100.0), ("silent", self.silence, 500.0)):
            with self.embedded():
                mine, told = self.failures(trouble, *ours)
            with self.mptcp():
                yours, _ = self.failures(trouble, *theirs)
            wrong = ", ".join(f"{number} {what}" for what, number in told.items() if number)
            self.here(
                Result(
                    f"embedded: longest pause when a path is {name}, {FAILURES} times",
                    "ms",
                    statistics.median(mine),
                    "MPTCP",
                    statistics.median(yours),
                    ours_p99=max(mine),
                    theirs_p99=max(yours),
                    target=f"< {limit:g}, nothing lost or doubled",
                    met=max(mine) < limit and not wrong,
                    note=wrong,
                )
            )


def measure(mtu: int, runs: int, report: Callable[[Result], None]) -> None:
    """All of it, on clusters of its own."""
    with running(TOPOLOGY.format(kind="veth", mtu=mtu)) as cluster:
        PathBench(cluster, mtu, runs, report).sums()
    with running(TOPOLOGY.format(kind="bridge", mtu=mtu)) as cluster:
        PathBench(cluster, mtu, runs, report).failover()
