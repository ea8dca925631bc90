"""Which server a command means: `[NODE/]NAME`, a path from /, or with -g the name of owners on any node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from qnetpy.cli.output import CommandError

if TYPE_CHECKING:
    from resmgr.client import Client, Connection


@contextmanager
def opened(
    name: str, *, config: str | None, everywhere: bool, timeout: float | None, command: str, wait: float = 0.0
) -> Iterator[Connection]:
    """A connection to it, through the daemon of this node. CommandError for one that is not there; *command*: whose hints these are."""
    import errno

    from qnetpy.cli import choice, daemon
    from resmgr.errors import ResmgrError
    from resmgr.names.client import name_open

    # A name without a slash is found at home; with one, what stands before it is a node; a path from / is taken as it is.
    node, _, own = name.rpartition("/") if not name.startswith("/") else ("", "", name)
    if not own:
        raise CommandError(f"{name!r} is no server's name", f"qnet {command} NODE/NAME, or NAME for one on this node", 2)
    if everywhere and node:
        raise CommandError("a global name has no node before it", f"qnet {command} -g {own}@{node}", 2)
    choice.check(node)
    with daemon.connect(config) as client:
        try:
            scope: Literal["local", "global"] = "global" if everywhere else "local"
            connection = name_open(client, own, node=node, scope=scope, timeout=timeout, wait=wait)
        except ResmgrError as error:
            choice.explain(node, error)
            where = f" on node {node}" if node else ""
            if error.errno == errno.ENOENT and node and not _is_up(client, node):
                raise CommandError(f"no node {node} is up", "qnet ls") from error
            if error.errno == errno.ENOENT and everywhere:
                raise CommandError(f"no node that is up has the global name {own!r}", "qnet name, which lists them") from error
            if error.errno == errno.ENOENT:
                raise CommandError(f"nobody has attached the name {own!r}{where}", "qnet name, there, which lists them") from error
            raise CommandError(f"{name}: {(error.strerror or str(error)).lower()}") from error
        yield connection


def _is_up(client: Client, node: str) -> bool:
    from resmgr.errors import ResmgrError
    from resmgr.procmgr.client import node_descriptor

    try:
        node_descriptor(client, node)
    except ResmgrError:
        return False
    return True
