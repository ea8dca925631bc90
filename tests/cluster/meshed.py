"""What most files of cluster tests begin with: nodes that serve each other's root, and a cluster in which everybody sees the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qnetpy.testing import cluster as kit


def serving(*nodes: str, title: str = "", path: str = "/tmp", tables: str = "") -> str:
    """A topology of *nodes*, each of which lets root of the others read and write *path*. *tables*: more of it, as TOML."""
    named = f'title = "{title}"\n' if title else ""
    lines = ["[[config.access.users]]", 'mapping = "identity"', 'root = "root"']
    lines += ["[[config.access.exports]]", f'path = "{path}"', 'verbs = ["read", "write"]']
    lines += [f"[nodes.{node}]" for node in nodes]
    return named + tables + "\n".join(lines) + "\n"


def needs_net() -> None:
    """Skip the test, or the tests of the fixture, where nodes can have no /net."""
    lacking = kit.missing(fuse=True)
    if lacking:
        pytest.skip(f"needs namespaces: {lacking}")


@contextmanager
def seen(topology: str) -> Iterator[kit.Cluster]:
    """Start *topology*, and wait until each node sees all others. Skips as `needs_net`."""
    needs_net()
    with kit.cluster(topology) as running:
        for node in running.nodes:
            running.run(node, "qnet", "nodes", "--wait", ",".join(other for other in running.nodes if other != node))
        yield running
