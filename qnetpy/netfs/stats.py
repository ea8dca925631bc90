"""`/proc/qnetstats`: the counters of a node's Qnet as text, a name and a value on each line, as QNX has it; and `/proc/qnetstats.json`:
everything that `qnet status` shows.

Names are QNX's where the same thing is counted (`nd_up`, `net_client`, `outbound_msgs`, ...), others say what they are; what belongs to one
node or reason stands behind a dot. `grep '^drop' /net/*/proc/qnetstats` works.

They come after what the machine's own /proc has, as far as that is served. Clients of other nodes need an export with the verb read that
covers the files, as for any other.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from resmgr.access import MappedUser, Verb
from resmgr.channel import ND_LOCAL, ClientInfo
from resmgr.iofunc.node import local_or_nobody
from resmgr.iofunc.static import tree
from resmgr.pathspace import Attach
from resmgr.system import System

PATH = b"/proc/qnetstats"
PATHS = ("messages_sent", "messages_received", "resent_bytes", "backlog")
"""Of a node's link, told for each node."""
PACKETS = (("sent", "tx_pkts"), ("received", "rx_pkts"), ("lost", "tx_lost"), ("late", "rx_seq_order"), ("timeouts", "tx_timeouts"))
"""Of all paths together."""
MOUNTS = (("requests", "fuse"), ("errors", "fuse_error"), ("events", "fuse_event"))
"""What the kernel asked of all mounts, and what became of it (docs/protocol/fuse.md)."""
SIZES = (("connections_out", "net_client"), ("connections_in", "net_server"), ("outgoing", "outbound_msgs"), ("incoming", "server_msgs"))


class StatsFile:
    """Serves the files until `close`. *facts* is asked at each opening."""

    def __init__(self, system: System, facts: Callable[[], Mapping[str, object]]) -> None:
        self._system = system
        self._facts = facts
        files = {"qnetstats": self._text, "qnetstats.json": self._json}
        self._tree = tree(system.kernel, files, name="proc", user=self._reader)
        self._attached = system.paths.attach(b"proc", self._tree.target, Attach.AFTER)
        system.guard(self._tree.channel)

    def _reader(self, info: ClientInfo) -> MappedUser | int:
        if info.nd != ND_LOCAL and Verb.READ not in self._system.policy.verbs(info, PATH):
            return errno.EACCES
        return local_or_nobody(info)

    def _json(self) -> bytes:
        return json.dumps(self._facts(), indent=1, default=str).encode() + b"\n"

    def _text(self) -> bytes:
        lines = [f"{name} {value}\n" for name, value in figures(self._facts())]
        if self._system.processes is not None:
            lines += [f"{name} {value}\n" for name, value in self._system.processes.figures()]
        return "".join(lines).encode()

    def close(self) -> None:
        self._system.paths.detach(self._attached)
        self._tree.destroy()


def figures(facts: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The lines, from the facts of `qnet status`."""
    for name in ("node", "cluster", "seconds"):
        yield name, facts.get(name)
    nodes = [node for node in _list(facts.get("nodes")) if isinstance(node, dict)]
    for name, states in (("nd_up", ("up",)), ("nd_suspect", ("suspect",)), ("nd_down", ("down",))):
        yield name, sum(node["state"] in states for node in nodes)
    yield "nd_changed", sum(node["starts"] for node in nodes)
    sizes = _counted(facts.get("sizes"))
    for key, name in SIZES:
        yield name, sizes.pop(key, 0)
    links = {node["name"]: node["link"] for node in nodes if isinstance(node["link"], dict)}
    for key, name in PACKETS:
        yield name, sum(path[key] for link in links.values() for path in _list(link["paths"]) if isinstance(path, dict))
    for node in nodes:
        yield f"node.{node['name']}", node["state"]
        link = links.get(node["name"])
        for key in PATHS if link is not None else ():
            yield f"{key}.{node['name']}", link[key] if link is not None else 0
    for prefix, group in (("handshake", "handshake"), ("drop", "drops"), ("failure", "failures"), ("files", "files")):
        for name, count in sorted(_counted(facts.get(group)).items()):
            yield f"{prefix}.{name}", count
    for name, count in sorted(sizes.items()):
        yield f"size.{name}", count
    for key, prefix in MOUNTS:
        total: Counter[str] = Counter()
        for mount in _list(facts.get("mounts")):
            total.update(_counted(mount.get(key)) if isinstance(mount, dict) else {})
        for name, count in sorted(total.items()):
            yield f"{prefix}.{name.replace(' ', '.')}", count


def _list(found: object) -> list[object]:
    return found if isinstance(found, list) else []


def _counted(found: object) -> dict[str, int]:
    return dict(found) if isinstance(found, Mapping) else {}
