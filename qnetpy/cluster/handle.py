"""A running cluster in the hands of a program: `with running(Path("clusters/three")) as nodes: nodes.run("n1", "ls", "/net")`.

The cluster hangs on this process: when it ends in whatever way, the kernel ends the cluster. Several can run at once, each with a name of
its own; nothing in one sees another.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from qnetpy.cluster import control, entry, harness, keys, state, topology

SECONDS = 30.0


class Cluster:
    """A running cluster. Every call blocks; from Trio call it with `trio.to_thread.run_sync`."""

    def __init__(self, plan: topology.Plan) -> None:
        self.plan = plan
        self.name = plan.name
        self.path = state.directory(plan.name)
        self._spaces: set[str] = set()

    @property
    def nodes(self) -> list[str]:
        return list(self.plan.nodes)

    def address(self, node: str, index: int = 0) -> str:
        """IPv4 address of a node's interface eth*index*."""
        return self.plan.nodes[node].ports[index].address

    def command(self, node: str, *argv: str, user: str | None = None) -> list[str]:
        """The command line that runs *argv* on *node*, for whoever starts processes in another way."""
        return entry.command_line(self.path, node, argv, user)

    def run(
        self, node: str, *argv: str, input: str | None = None, user: str | None = None, seconds: float = SECONDS, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node and wait for it. With *check*, another exit status than 0 raises CalledProcessError with its output."""
        result = subprocess.run(
            self.command(node, *argv, user=user),
            input=input,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            errors="replace",
        )
        if check and result.returncode != 0:
            raise AssertionError(f"{node}: {' '.join(argv)}: exit status {result.returncode}\n{result.stdout}{result.stderr}".rstrip())
        return result

    @contextlib.contextmanager
    def running(self, node: str, *argv: str, user: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A command on a node that runs meanwhile, with pipes for its streams; killed at the end if it still runs."""
        with subprocess.Popen(
            self.command(node, *argv, user=user), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def kill(self, node: str) -> None:
        """Power off."""
        control.ask(self.path, {"do": "kill", "node": node})

    def start(self, node: str) -> None:
        """Power on, and wait until it has booted."""
        answer, _ = control.ask(self.path, {"do": "start", "node": node})
        assert not answer["failed"], answer["failed"]
        if self._spaces:
            self._spaces |= self._namespaces()

    def link_down(self, node: str, link: str | None = None) -> None:
        """Take the carrier away from a node's interfaces, or from that on *link*."""
        control.ask(self.path, {"do": "link", "node": node, "link": link, "up": False})

    def link_up(self, node: str, link: str | None = None) -> None:
        control.ask(self.path, {"do": "link", "node": node, "link": link, "up": True})

    def status(self) -> dict[str, object]:
        return control.ask(self.path, {"do": "status"})[0]

    def processes(self) -> list[int]:
        """Pids, as this machine numbers them, of every process in the namespaces of this cluster, supervisor and inits included.

        After the end of the cluster: those that outlived it, which must be none. A namespace lives as long as a process of it.
        """
        if not self._spaces:
            with contextlib.suppress(control.ControlError):
                self._spaces = self._namespaces()
        found = []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit() and os.readlink(f"/proc/{name}/ns/net") in self._spaces:
                    found.append(int(name))
        return found

    def _namespaces(self) -> set[str]:
        status = self.status()
        supervisor, nodes = status["pid"], status["nodes"]
        assert isinstance(nodes, dict)
        return {os.readlink(f"/proc/{pid}/ns/net") for pid in (supervisor, *(node["pid"] for node in nodes.values() if node["pid"]))}

    @contextlib.contextmanager
    def capture(self, link: str, file: Path) -> Iterator[None]:
        """Record a link into a pcap file meanwhile."""
        argv = [sys.executable, "-P", "-m", "qnetpy.cli.main", "cluster", "capture", "--name", self.name, link, str(file)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("recording"), "the capture did not start"
            try:
                yield
            finally:
                process.terminate()
                process.wait()


@contextlib.contextmanager
def running(source: Path | str, writable: Sequence[Path] = ()) -> Iterator[Cluster]:
    """Start the topology of a file or folder, or of a TOML text, for the time of the block."""
    title = source.name if isinstance(source, Path) else "test"
    taken = set(state.names())
    name = next(name for number in itertools.count() if (name := f"{title}-{os.getpid()}-{number}") not in taken)
    plan = topology.read(source, name) if isinstance(source, Path) else topology.plan(topology.parse(source, title), name, title)
    plan = keys.fit(plan)
    process = harness.start(plan, keys.make, leash=True, writable=[str(path) for path in writable])
    try:
        cluster = Cluster(plan)
        cluster.processes()
        yield cluster
    finally:
        harness.end(process, state.directory(name))
