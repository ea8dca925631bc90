"""Two nodes and what their daemons hold: descriptors, threads, memory. For tests of what must not be left behind."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import wait_for

TOPOLOGY = 'title = "two"\nusers = [{ name = "alice", uid = 4001 }]\n[nodes.a]\n[nodes.b]\n'
SLACK = 10
"""Descriptors that a daemon may have more than before: its own files, not those of clients."""


@attrs.frozen
class Daemon:
    pid: int

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def resident(self) -> int:
        """Bytes."""
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def idle_again(self, before: int) -> float:
        """Wait until it has no more descriptors than *before* but for its own; the seconds that it took."""
        return wait_for(lambda: self.descriptors() <= before + SLACK, what=f"{self.descriptors()} descriptors, {before} before")


@attrs.frozen
class Two:
    cluster: kit.Cluster
    daemons: dict[str, Daemon] = attrs.field(factory=dict)
    spaces: dict[str, str] = attrs.field(factory=dict)
    """Nodes by their UTS namespaces."""

    def find(self) -> None:
        """Wait until each node sees the other, and look which processes the daemons are."""
        for node, other in ("a", "b"), ("b", "a"):
            self.cluster.run(node, "qnet", "nodes", "--wait", other)
        if not self.spaces:
            for node in self.cluster.nodes:
                self.spaces[self.cluster.run(node, "readlink", "/proc/self/ns/uts").stdout.strip()] = node
        self.daemons.clear()
        for pid in self.cluster.processes():
            # Others may end meanwhile.
            with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/cmdline", "rb") as file:
                space = self.spaces.get(os.readlink(f"/proc/{pid}/ns/uts"))
                # A namespace of another cluster may have the number of one that was here before a node's power was cut.
                if space is not None and b"stack.core.main" in file.read():
                    self.daemons[space] = Daemon(pid)


@contextmanager
def two_nodes(options: str = "") -> Iterator[Two]:
    """*options*: of their mounts."""
    with kit.cluster(f'{TOPOLOGY}[config.qnet.mount]\noptions = "{options}"\n') as running:
        two = Two(running)
        two.find()
        yield two
