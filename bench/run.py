"""`make bench`: our figures beside those of what people use instead, from the same run on the same wire, as ratios.

Two nodes (namespaces) with one veth pair between them, offloads off, so that frames of the MTU's size cross. Peers run on the same two
nodes over the same pair: a blocking TCP ping-pong in Python and pyzmq REQ/REP for messages, both in clear text; sshfs with aes128-gcm for
files. Ours is encrypted always. Each figure is the median of several runs that take turns with the peer's.

Placement. `one core`: both programs and both daemons on CPU 0; steady, ranks by the work that is done. `split`: one node on CPU 0, the
other on CPU 1; what waking a sleeping process on another core costs dominates it, and varies from machine to machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import attrs

sys.path.insert(0, str(Path(__file__).parent))

import peers

from qnetpy.cluster.handle import Cluster, running
from qnetpy.cluster.harness import ClusterError
from resmgr.compiled import describe

PROBE = str(Path(__file__).with_name("probe.py"))
CLIENT, SERVER = "n1", "n2"
MTUS = (1500, 9000)
PARTS = ("messages", "files", "programs", "pipe", "links", "paths", "peers")
TOPOLOGY = """
title = "bench"
[links.wire]
kind = "veth"
mtu = {mtu}
[config.access.spawn]
nodes = ["*"]
[[config.access.exports]]
path = "/tmp"
verbs = ["read", "write"]
[nodes.n1]
[nodes.n2]
"""
BEARERS = ("ethernet", "udp")
UDP = """
[config.qnet]
bearers = ["udp"]
peers = [{address = "10.77.0.1"}]
"""
LONG = """
title = "bench"
[links.near]
kind = "bridge"
mtu = {mtu}
[links.far]
kind = "bridge"
mtu = {mtu}
[config.access.spawn]
nodes = ["*"]
[[config.access.exports]]
path = "/tmp"
verbs = ["read", "write"]
[nodes.n1]
links = ["near"]
[nodes.n2]
links = ["far"]
[nodes.cable]
links = ["near", "far"]
boot = []
shutdown = []
"""
"""The wire is two, and what carries frames from one to the other takes its time (`relay.py`)."""
LONG_ADDRESS = {CLIENT: "10.78.0.1", SERVER: "10.78.0.2"}
RELAY = str(Path(__file__).with_name("relay.py"))
NONE: dict[str, float] = {"cpu_seconds": 0.0, "context_switches": 0.0}


@attrs.frozen
class Result:
    """One line of the table. Without a peer, ours is compared with ours in another state. `code`: what daemons run."""

    what: str
    unit: str
    ours: float
    peer: str = ""
    theirs: float | None = None
    ours_p99: float | None = attrs.field(default=None, kw_only=True)
    theirs_p99: float | None = attrs.field(default=None, kw_only=True)
    target: str = attrs.field(default="", kw_only=True)
    met: bool | None = attrs.field(default=None, kw_only=True)
    note: str = attrs.field(default="", kw_only=True)
    mtu: int = attrs.field(default=0, kw_only=True)
    placement: str = attrs.field(default="one core", kw_only=True)
    code: str = attrs.field(default="", kw_only=True)
    bearer: str = attrs.field(default="ethernet", kw_only=True)
    delay_ms: float = attrs.field(default=0.0, kw_only=True)
    """Each way."""
    ours_usage: dict[str, float] = attrs.field(default=NONE, kw_only=True)
    theirs_usage: dict[str, float] = attrs.field(default=NONE, kw_only=True)

    @property
    def ratio(self) -> float | None:
        """Ours to the peer's, above 1 is better for rates and worse for times."""
        return self.ours / self.theirs if self.theirs else None

    def told(self) -> dict[str, object]:
        """For JSON."""
        return attrs.asdict(self) | {"ratio": self.ratio}


class Figures(TypedDict, total=False):
    """What a probe prints."""

    p50: float
    p99: float
    seconds: float
    rate: float
    alone_p50: float
    alone_p99: float


Measured = tuple[Figures, dict[str, float]]


class Bench:
    """Measures on one running cluster."""

    def __init__(
        self, cluster: Cluster, mtu: int, runs: int, report: Callable[[Result], None], bearer: str = "ethernet", delay_ms: float = 0.0
    ) -> None:
        self.cluster = cluster
        self.mtu = mtu
        self.runs = runs
        self.report = report
        self.bearer = bearer
        self.delay_ms = delay_ms
        self.cpus = {CLIENT: 0, SERVER: 0}
        self.placement = "one core"
        self.code = self.running_code()

    def address(self, node: str) -> str:
        """Of IP, for the peers."""
        return LONG_ADDRESS[node] if self.delay_ms else self.cluster.address(node)

    def running_code(self) -> str:
        """What the daemons run: Python source, or compiled modules."""
        told = {
            describe(int(json.loads(self.cluster.run(node, "qnet", "status", "--json").stdout)["compiled_modules"]))
            for node in (CLIENT, SERVER)
        }
        return " and ".join(sorted(told))

    def place(self, placement: str) -> None:
        """Pin the daemons, all their threads, and whatever is started from now on."""
        self.placement = placement
        self.cpus = {CLIENT: 0, SERVER: 0 if placement == "one core" or (os.cpu_count() or 1) < 2 else 1}
        for node, cpu in self.cpus.items():
            self.cluster.run(node, "sh", "-c", f"taskset -a -p -c {cpu} $(cat /run/qnet/lock) >/dev/null")

    def probe(self, node: str, *words: str, seconds: float = 120.0) -> Figures:
        figures: Figures = json.loads(self.cluster.run(node, *self.command(node, *words), seconds=seconds).stdout)
        return figures

    def command(self, node: str, *words: str) -> list[str]:
        return [sys.executable, PROBE, "--cpu", str(self.cpus[node]), *words]

    @contextlib.contextmanager
    def server(self, verb: str) -> Iterator[None]:
        with self.cluster.running(SERVER, *self.command(SERVER, verb)) as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                process.kill()
                raise SystemExit(f"bench: {verb}: {process.communicate()[1].decode(errors='replace').strip()}")
            yield

    def usage(self) -> dict[tuple[str, str], tuple[str, float, int]]:
        found = {}
        for node in (CLIENT, SERVER):
            text = self.cluster.run(node, sys.executable, PROBE, "usage").stdout
            for pid, (command, seconds, switches) in json.loads(text)["processes"].items():
                found[node, pid] = (command, seconds, switches)
        return found

    def measured(self, node: str, *words: str) -> Measured:
        """A probe's figures, and what the long-running processes of both nodes used meanwhile."""
        before = self.usage()
        return self.probe(node, *words), self.used_since(before)

    def used_since(self, before: dict[tuple[str, str], tuple[str, float, int]]) -> dict[str, float]:
        """Processor seconds and context switches of the processes that were there then."""
        seconds = switches = 0.0
        for key, (_, used, switched) in self.usage().items():
            if key in before:
                seconds += used - before[key][1]
                switches += switched - before[key][2]
        return {"cpu_seconds": round(seconds, 3), "context_switches": switches}

    def compare(
        self,
        what: str,
        peer: str,
        ours: Callable[[int], Measured],
        theirs: Callable[[int], Measured],
        field: str,
        unit: str,
        target: tuple[str, float] | None = None,
    ) -> None:
        """Run both in turn and report medians, with the last run's use of the machine. *target*: `<=` or `>=` and the ratio."""
        found: dict[str, list[Figures]] = {"ours": [], "theirs": []}
        used: dict[str, dict[str, float]] = {}
        for number in range(self.runs):
            for side, call in (("ours", ours), ("theirs", theirs)):
                figures, used[side] = call(number)
                found[side].append(figures)

        def median(side: str, name: str) -> float | None:
            values = [float(figures[name]) for figures in found[side] if name in figures]  # type: ignore[literal-required]
            return statistics.median(values) if values else None

        our, their = median("ours", field), median("theirs", field)
        assert our is not None
        assert their is not None
        ratio = our / their
        met = None if target is None else ratio <= target[1] if target[0] == "<=" else ratio >= target[1]
        self.here(
            Result(
                what,
                unit,
                our,
                peer,
                their,
                ours_p99=median("ours", "p99"),
                theirs_p99=median("theirs", "p99"),
                target="" if target is None else f"{target[0]} {target[1]:g}",
                met=met,
                ours_usage=used["ours"],
                theirs_usage=used["theirs"],
            )
        )

    def here(self, result: Result) -> None:
        """Report a figure of this cluster as it is placed now."""
        self.report(
            attrs.evolve(result, mtu=self.mtu, placement=self.placement, code=self.code, bearer=self.bearer, delay_ms=self.delay_ms)
        )

    def messages(self, count: int) -> None:
        address = self.address(SERVER)
        for placement in ("one core", "split"):
            self.place(placement)
            with self.server("serve-tcp"), self.server("serve-zmq"), self.server("serve-name"):

                def probe(verb: str, where: str) -> Callable[[int], Measured]:
                    return lambda _: self.measured(CLIENT, verb, where, str(count))

                for what, verb, target in (
                    ("message 64 B, to the far daemon", "daemon", ("<=", 2.0)),
                    ("message 64 B, to a far program", "name", None),
                ):
                    self.compare(what, "pyzmq", probe(verb, SERVER), probe("zmq", address), "p50", "us", target)
                    self.compare(what, "TCP", probe(verb, SERVER), probe("tcp", address), "p50", "us")


@contextlib.contextmanager
def cluster_of(mtu: int, bearer: str = "ethernet", delay_ms: float = 0.0, options: str = "") -> Iterator[Cluster]:
    """Two nodes that have found each other. With a delay a third one is the cable between them. *options* of /net."""
    mount = f"[config.qnet.mount]\noptions = {json.dumps(options)}\n" if options else ""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(running((LONG if delay_ms else TOPOLOGY).format(mtu=mtu) + (UDP if bearer == "udp" else "") + mount))
        if delay_ms:
            for node, address in LONG_ADDRESS.items():
                cluster.run(node, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            words = (sys.executable, RELAY, str(delay_ms / 1e3), "eth0", "eth1")
            relay = stack.enter_context(cluster.running("cable", *words))
            assert relay.stdout is not None
            if relay.stdout.readline() != b"ready\n":
                relay.kill()
                raise SystemExit(f"bench: {relay.communicate()[1].decode(errors='replace').strip()}")
        until_found(cluster)
        yield cluster


def until_found(cluster: Cluster, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while SERVER not in cluster.run(CLIENT, "ls", "/net", check=False).stdout.split():
        if time.monotonic() > end:
            raise SystemExit(f"bench: {CLIENT} did not find {SERVER} within {seconds:g} s")
        time.sleep(0.05)


HEADER = (
    "what",
    "MTU",
    "placement",
    "ours",
    "p99",
    "peer",
    "theirs",
    "p99",
    "ratio",
    "target",
    "note",
    "CPU s",
    "switches",
    "CPU s",
    "switches",
)


def row(result: Result) -> list[str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"

    mark = {None: "", True: f"{result.target} met", False: f"{result.target} MISSED"}[result.met]
    cells = [
        result.what,
        str(result.mtu or "") + (" udp" if result.bearer == "udp" else "") + (f" +{result.delay_ms:g} ms" if result.delay_ms else ""),
        result.placement,
        f"{number(result.ours)} {result.unit}",
        number(result.ours_p99),
    ]
    theirs = "" if result.theirs is None else f"{number(result.theirs)} {result.unit}"
    cells += [result.peer, theirs, number(result.theirs_p99), "" if result.ratio is None else f"{result.ratio:.2f}", mark]
    cells += [result.note]
    for used in (result.ours_usage, result.theirs_usage):
        cells += [f"{used['cpu_seconds']:.2f}", f"{used['context_switches']:.0f}"]
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    import files
    import link_peers
    import links
    import paths
    import programs
    import scale

    parser = argparse.ArgumentParser(prog="qnet bench", description="our figures beside the peers', from the same run")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    parser.add_argument("--only", choices=PARTS, help="only this part")
    parser.add_argument("--mtu", type=int, action="append", help="only at this MTU; may be repeated (default: 1500 and 9000)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each measurement, of which the median counts")
    parser.add_argument("--count", type=int, default=3000, metavar="N", help="round trips per run")
    parser.add_argument("--pipe", type=int, default=1024, metavar="MIB", help="with --only pipe: how much goes through it")
    parser.add_argument("--columns", default="", metavar="NAMES", help="of files, only these: names with commas, as stat,small,find")
    parser.add_argument("--without", action="append", default=[], choices=("sshfs", "9P", "local"), help="of files, without this peer")
    parser.add_argument("--options", default="", metavar="TEXT", help="of messages and files: mount options of /net, as attr_valid=60")
    parser.add_argument("--bearer", choices=BEARERS, default="ethernet", help="of messages and files: how frames travel")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="of messages and files: the wire takes so long each way")
    args = parser.parse_args(argv)
    # The pipe is a part of the programs, and can be measured alone.
    parts = (args.only,) if args.only else tuple(part for part in PARTS if part != "pipe")
    lacking = [peers.missing() if {"files", "programs", "pipe"} & set(parts) else "", link_peers.missing() if "links" in parts else ""]
    if packages := " ".join(filter(None, lacking)):
        print(f"qnet bench: the peers are missing; try: apt-get install {packages}, or --only messages", file=sys.stderr)
        return 1
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        print("  ".join(cell for cell in row(result)[:11] if cell), file=sys.stderr, flush=True)

    try:
        for mtu in args.mtu or MTUS:
            if {"messages", "files", "programs", "pipe"} & set(parts):
                with cluster_of(mtu, args.bearer, args.delay, args.options) as cluster:
                    bench = Bench(cluster, mtu, args.runs, report, args.bearer, args.delay)
                    if "messages" in parts:
                        bench.messages(args.count)
                    if "files" in parts:
                        files.measure(bench, list(filter(None, args.columns.split(","))), args.without)
                    if "programs" in parts:
                        programs.measure(bench, CLIENT, SERVER)
                    if "pipe" in parts:
                        programs.measure_pipe(bench, CLIENT, SERVER, args.pipe << 20)
            if "links" in parts:
                with running(links.TOPOLOGY.format(mtu=mtu)) as cluster:
                    links.measure(cluster, mtu, args.runs, report, args.count)
            if "paths" in parts:
                paths.measure(mtu, args.runs, report)
        if "peers" in parts:
            scale.measure(report)
    except (ClusterError, AssertionError) as error:
        print(f"qnet bench: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([result.told() for result in results], indent=2))
    else:
        from qnetpy.cli.output import table

        print("CPU s and switches: processor seconds and context switches of the daemons (and servers) of both nodes, ours then theirs")
        print(
            "local: the same work at home on the far node; its note has the peers' ratios to it, and `at best` is its own ratio to sshfs\n"
        )
        print(table([row(result) for result in results], HEADER))
        print(f"\ndaemons: {' and '.join(sorted({result.code for result in results}))}")
    return 0


if __name__ == "__main__":
    # The other files import this one by its name.
    sys.modules["run"] = sys.modules["__main__"]
    sys.exit(main())
