"""What `qnet top` and `qnet abort` ask the daemon: requests of mounts that wait, and their end.

    {"do": "waiting"}  ->  {"self": NODE, "requests": [{"id", "operation", "path", "mount", "node", "state", "seconds", "uid", "pid",
                            "signalled"}], "left_out": N, "nodes": [{"node", "state", "seconds", "waiting", "oldest", "files", "unwritten",
                            "messages_sent", "messages_received", "bytes_sent"}]}
    {"do": "abort", "ids": ["14", ...]}  ->  {"aborted": [...], "unknown": [...]}

A user is told of his own requests, and ends only these; root and the daemon's user all. `unwritten` are bytes that programs were told are
written and of which the node has not said so; they and the counters of nodes are nobody's secret. An id is the kernel's number of the
request, with `MOUNT.` in front if it is not of the mount of the configuration.

A program whose request waits for another node is told EHOSTDOWN; one that waits for a manager of this node ECANCELED, since many programs
take EINTR for "try again".
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from qnetpy.nodes import Node
from qnetpy.qnet import Qnet
from qnetpy.qos import SEPARATOR
from resmgr.fuse.machine import Machine
from resmgr.fuse.request import Outstanding
from resmgr.fuse.stuck import abort, unwritten
from resmgr.ids import node_of

log = logging.getLogger(__name__)

TOLD_MAX = 1000
"""Requests told at once, the oldest. What is left out is counted."""
IDS_MAX = 256
"""Requests ended by one message."""
Mounts = Callable[[], Sequence[tuple[int, str, Machine]]]
"""The mounts that are there: a number that no other had before, where, and who serves them."""


def waits(mounts: Sequence[tuple[int, str, Machine]]) -> Iterator[tuple[str, str, Outstanding]]:
    """Id, mount and request of all that wait."""
    for number, point, machine in mounts:
        for request in machine.status():
            yield f"{number}.{request.unique}" if number else str(request.unique), point, request


def summary(qnet: Qnet, mounts: Sequence[tuple[int, str, Machine]]) -> dict[str, dict[str, object]]:
    """By node: how many requests wait for it and for how many seconds the oldest does. For `qnet status`, which everybody may ask."""
    found: dict[str, list[float]] = {}
    for _, _, request in waits(mounts):
        found.setdefault(_name(qnet, request)[0], []).append(request.age)
    return {name: {"requests": len(ages), "oldest": round(max(ages), 3)} for name, ages in sorted(found.items())}


def _name(qnet: Qnet, request: Outstanding) -> tuple[str, Node | None]:
    """The node that has to answer: of what /net itself was asked, or keeps asking, the one whose name was to be followed."""
    number = node_of(request.server[0])
    node = qnet.nodes.by_nd(number) if number else qnet.nodes.get(request.first.partition(SEPARATOR)[0])
    if node is None:
        return f"node {number}" if number else qnet.identity.name, None
    return node.name, node


class Stuck:
    """The control channel's `waiting` and `abort`."""

    def __init__(self, qnet: Qnet, mounts: Mounts) -> None:
        self._qnet = qnet
        self._mounts = mounts

    def waiting(self, request: Mapping[str, object], uid: int, everything: bool) -> Mapping[str, object]:
        mounts = self._mounts()
        found = []
        for ident, point, one in waits(mounts):
            if everything or one.uid == uid:
                name, node = _name(self._qnet, one)
                found.append(
                    {
                        "id": ident,
                        "operation": one.operation.lower(),
                        "path": one.path,
                        "mount": point,
                        "node": name,
                        "state": "here" if node is None else node.state.value,
                        "seconds": round(one.age, 3),
                        "uid": one.uid,
                        "pid": one.pid,
                        "signalled": one.interrupted,
                    }
                )
        return {
            "self": self._qnet.identity.name,
            "requests": found[:TOLD_MAX],
            "left_out": max(0, len(found) - TOLD_MAX),
            "nodes": self._nodes(mounts),
        }

    def _nodes(self, mounts: Sequence[tuple[int, str, Machine]]) -> list[dict[str, object]]:
        qnet = self._qnet
        now = qnet.now()
        waiting = summary(qnet, mounts)
        behind: dict[int, tuple[int, int]] = {}
        for _, _, machine in mounts:
            for nd, (files, size) in unwritten(machine).items():
                before = behind.get(node_of(nd), (0, 0))
                behind[node_of(nd)] = before[0] + files, before[1] + size
        rows = []
        for node in sorted(qnet.nodes, key=lambda node: node.name):
            link = qnet.machine.links.get(node.name)
            counted = None if link is None else link.transport.statistics()
            files, size = behind.get(node.nd, (0, 0))
            rows.append(
                {
                    "node": node.name,
                    "state": node.state.value,
                    "seconds": round(now - node.since, 3),
                    "reason": node.reason,
                    "waiting": 0,
                    "oldest": 0.0,
                    "files": files,
                    "unwritten": size,
                    "messages_sent": 0 if counted is None else counted.messages_sent,
                    "messages_received": 0 if counted is None else counted.messages_received,
                    "bytes_sent": 0 if counted is None else sum(path.bytes_sent for path in counted.paths.values()),
                }
                | _renamed(waiting.get(node.name))
            )
        return rows

    def abort(self, request: Mapping[str, object], uid: int, everything: bool) -> Mapping[str, object]:
        ids = request.get("ids")
        if not isinstance(ids, list) or len(ids) > IDS_MAX or not all(isinstance(one, str) for one in ids):
            return {"error": f"a list of at most {IDS_MAX} ids is needed"}
        mounts = self._mounts()
        machines = {point: machine for _, point, machine in mounts}
        wanted = dict.fromkeys(ids)
        ended = []
        for ident, point, one in list(waits(mounts)):
            if ident not in wanted or not (everything or one.uid == uid):
                continue
            code = errno.ECANCELED if _name(self._qnet, one)[1] is None and not one.server[0] else errno.EHOSTDOWN
            if abort(machines[point], one.unique, code):
                ended.append(ident)
                log.info("user %d ends a request of process %d: %s of %r", uid, one.pid, one.operation.lower(), point + one.path)
        return {"aborted": ended, "unknown": [ident for ident in wanted if ident not in ended]}


def _renamed(summed: dict[str, object] | None) -> dict[str, object]:
    return {} if summed is None else {"waiting": summed["requests"], "oldest": summed["oldest"]}
