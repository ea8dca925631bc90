"""`qnet bench --only links`: programs that embed a node, beside Erlang distribution over TLS, pyzmq in clear text, and nebula.

What one hop less makes of the figures of `messages`: both programs are nodes (docs/howto/embed.md), so a message passes from one task to
the other with nothing between but the two stacks and the wire. One core: both ends on CPU 0. Split: one each.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import link_peers
from run import CLIENT, NONE, SERVER, Bench, Figures, Measured, Result

from qnetpy.cluster.handle import Cluster

PROGRAM = str(Path(__file__).with_name("embedded.py"))
SIZES = (64, 1024, 65536)
BULK = 1 << 20
BULK_COUNT = 256
REQUESTS = 20_000
WIDTH = 16
GIBIBYTE = 1 << 30
BESIDE = ("alone_p50", "alone_p99", "p50", "p99", "rate")
BESIDE_MAX = 2000.0
"""µs that a transfer may add to the p99 of small messages."""
TOPOLOGY = """
title = "bench of links"
[links.wire]
kind = "veth"
mtu = {mtu}
[nodes.n1]
boot = []
shutdown = []
[nodes.n2]
boot = []
shutdown = []
"""


class Links(Bench):
    """Measures on two nodes without daemons."""

    interfaces: tuple[str, ...] = ("eth0",)

    def running_code(self) -> str:
        """What programs that embed a node run: Python source, or compiled modules."""
        code = "import qnetpy.qnet; from resmgr.compiled import describe, running; print(describe(len(running())))"
        return self.cluster.run(CLIENT, sys.executable, "-c", code).stdout.strip().partition(",")[0]

    def place(self, placement: str) -> None:
        self.placement = placement
        self.cpus = {CLIENT: 0, SERVER: 0 if placement == "one core" else 1}

    @contextlib.contextmanager
    def embedded(self) -> Iterator[None]:
        with self.cluster.running(SERVER, *self.embedding(SERVER), "serve") as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                process.kill()
                raise SystemExit(f"bench: embedded node: {process.communicate()[1].decode(errors='replace').strip()}")
            yield

    def embedding(self, node: str) -> list[str]:
        """The words that start a program which is *node*."""
        interfaces = [word for name in self.interfaces for word in ("--interface", name)]
        return [sys.executable, PROGRAM, "--cpu", str(self.cpus[node]), *interfaces]

    def ours(self, verb: str, count: int, size: int, where: str = SERVER) -> Callable[[int], Measured]:
        def measure(_: int) -> Measured:
            with self.embedded():
                words = [*self.embedding(CLIENT), verb, where, str(count), str(size)]
                figures: Figures = json.loads(self.cluster.run(CLIENT, *words, seconds=120).stdout)
                return figures, NONE

        return measure

    def zmq(self, address: str, count: int) -> Callable[[int], Measured]:
        return lambda _: (self.probe(CLIENT, "zmq", address, str(count)), NONE)

    def beside(self) -> None:
        """Messages of 64 bytes while a transfer of 1 GiB goes on between the same programs, in either direction."""
        for verb, way in (("beside-out", "as the questions"), ("beside-in", "as the answers")):
            found = [self.ours(verb, GIBIBYTE // BULK, BULK)(number)[0] for number in range(self.runs)]
            middle = {name: statistics.median(figures[name] for figures in found) for name in BESIDE}  # type: ignore[literal-required]
            self.here(
                Result(
                    f"embedded: message 64 B and back, beside 1 GiB the same way {way}",
                    "us",
                    middle["p50"],
                    "without it",
                    middle["alone_p50"],
                    ours_p99=middle["p99"],
                    theirs_p99=middle["alone_p99"],
                    target=f"p99 +{BESIDE_MAX:g}",
                    met=middle["p99"] - middle["alone_p99"] < BESIDE_MAX,
                    note=f"transfer {middle['rate']:.0f} MB/s",
                )
            )

    def run_all(self, count: int) -> None:
        erlang = link_peers.Erlang(self.cluster, CLIENT, SERVER)

        def theirs(function: str, *numbers: int) -> Callable[[int], Measured]:
            def measure(_: int) -> Measured:
                with erlang.serving(self.cpus[SERVER]):
                    figures: Figures = erlang.ask(self.cpus[CLIENT], function, *numbers)  # type: ignore[assignment]  # the program prints these keys
                    return figures, NONE

            return measure

        address = self.cluster.address(SERVER)
        for placement, target in (("one core", 1.4), ("split", 0.8)):
            self.place(placement)
            for size in SIZES:
                goal = ("<=", target) if size == 64 else None
                rounds = count if size < 65536 else count // 5
                what = f"embedded: message {size} B and back"
                self.compare(
                    what, "Erlang TLS", self.ours("round-trips", rounds, size), theirs("round_trips", rounds, size), "p50", "us", goal
                )
                if size == 64:
                    with self.server("serve-zmq"):
                        self.compare(what, "pyzmq", self.ours("round-trips", rounds, size), self.zmq(address, count), "p50", "us")
        what = f"embedded: requests of 64 B, {WIDTH} in flight"
        self.compare(what, "Erlang TLS", self.ours("in-flight", REQUESTS, 64), theirs("in_flight", REQUESTS, 64, WIDTH), "rate", "/s", None)
        what = "embedded: messages of 1 MiB"
        goal = (">=", 1.0) if self.mtu <= 1500 else None
        self.compare(what, "Erlang TLS", self.ours("bulk", BULK_COUNT, BULK), theirs("bulk", BULK_COUNT, BULK), "rate", "MB/s", goal)
        self.beside()
        with link_peers.nebula(self.cluster, (CLIENT, SERVER), self.cpus, self.mtu) as address:

            def iperf(_: int) -> Measured:
                return {"rate": link_peers.iperf(self.cluster, CLIENT, SERVER, self.cpus, address)}, NONE

            goal = (">=", 3.0) if self.mtu <= 1500 else None
            self.compare(what, "nebula, iperf3", self.ours("bulk", BULK_COUNT, BULK), iperf, "rate", "MB/s", goal)


def measure(cluster: Cluster, mtu: int, runs: int, report: Callable[..., None], count: int) -> None:
    """All of it on a running cluster of TOPOLOGY."""
    Links(cluster, mtu, runs, report).run_all(count)
