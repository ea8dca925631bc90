"""Programs on the other node, beside ssh: what a start costs, and how fast a pipe is. One node on each processor.

ssh is measured twice: cold, with a connection and its handshake for each command, and through a connection that is kept (ControlMaster).
Ours has a daemon that keeps the link, so the fair peer of a start is the second; the first is what people have who set nothing up.
A running program starts ssh as a process, for there is no other way to a kept connection; it sends a message to its daemon of ours.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import peers

from qnetpy.cluster.handle import Cluster

if TYPE_CHECKING:
    from run import Bench, Measured

STARTS = 15
PIPE = 1 << 30
COMMANDS = ("qnet pidin", "qnet sin", "qnet ls", "qnet name")
MASTER = f"{peers.FOLDER}/master"


def ssh(cluster: Cluster, server: str, *options: str) -> list[str]:
    """The beginning of a command that runs something on *server* as its root."""
    known = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentityAgent=none", "-o", "LogLevel=ERROR")
    return [
        *("ssh", "-F", "none", "-p", peers.PORT, "-i", f"{peers.FOLDER}/key", "-c", peers.CIPHER, *known),
        *(*options, f"root@{cluster.address(server)}"),
    ]


def timed(bench: Bench, client: str, verb: str, command: list[str], amount: int) -> Callable[[int], Measured]:
    return lambda number: bench.measured(client, verb, shlex.join(command), str(amount))


@contextlib.contextmanager
def served(bench: Bench, client: str, server: str) -> Iterator[None]:
    """Each node on its processor, and an ssh server that *client* may enter."""
    cluster = bench.cluster
    bench.place("split")
    with peers.sshd(cluster, client, server):
        cluster.run(server, "sh", "-c", f"for p in $(pgrep -x sshd); do taskset -a -p -c {bench.cpus[server]} $p >/dev/null; done")
        yield


def measure(bench: Bench, client: str, server: str, pipe: int = PIPE) -> None:
    """Starts and pipes on the running cluster of *bench*."""
    cluster = bench.cluster
    with served(bench, client, server):
        kept = ssh(cluster, server, "-o", f"ControlPath={MASTER}")
        ours = ["qnet", "on", server, "--"]

        def starts(command: list[str]) -> Callable[[int], Measured]:
            return timed(bench, client, "start", [*command, "true"], STARTS)

        bench.compare("start of a program", "ssh, cold", starts(ours), starts(ssh(cluster, server)), "p50", "ms", ("<=", 0.25))
        cluster.run(client, *kept[:-1], "-o", "ControlMaster=yes", "-o", "ControlPersist=yes", "-fN", kept[-1])
        try:
            bench.compare("start of a program", "ssh, kept connection", starts(ours), starts(kept), "p50", "ms")
            for verb, who in (("run", "a running program"), ("run-trio", "a running Trio program")):

                def run(number: int, verb: str = verb) -> Measured:
                    return bench.measured(client, verb, server, str(STARTS))

                bench.compare(f"start of a program by {who}", "ssh, kept connection", run, starts(kept), "p50", "ms", ("<=", 0.5))
            for command in COMMANDS:
                # As a shell starts them, and the same without what makes them start quickly.
                words = shlex.split(command)
                quick, plain = (
                    timed(bench, client, "start", start, STARTS)
                    for start in (words, [sys.executable, "-P", "-m", "qnetpy.cli.main", *words[1:]])
                )
                bench.compare(command, "the same by python -m", quick, plain, "p50", "ms")
        finally:
            cluster.run(client, *kept[:-1], "-O", "exit", kept[-1], check=False)
        _pipe(bench, client, server, pipe)


def measure_pipe(bench: Bench, client: str, server: str, pipe: int = PIPE) -> None:
    """The pipe alone."""
    with served(bench, client, server):
        _pipe(bench, client, server, pipe)


def _pipe(bench: Bench, client: str, server: str, pipe: int) -> None:
    ours, theirs = (
        timed(bench, client, "pipe", [*words, "cat"], pipe) for words in (["qnet", "on", server, "--"], ssh(bench.cluster, server))
    )
    target = (">=", 1.0) if bench.mtu >= 9000 else None
    bench.compare(f"pipe of {pipe >> 20} MiB through cat", "ssh", ours, theirs, "rate", "MB/s", target)
