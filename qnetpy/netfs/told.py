"""What a node is said to be, as extended attributes: `user.qnet.state` of its name `/net/B`, and a line about each node as one of `/net`.

All of it is what this node knows at that moment: nobody is asked, so nothing waits. An attribute is listed only where there is something to
say. Texts without a newline at the end; docs/protocol/node.md, "Attributes of names", has what they mean.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import attrs

from qnetpy.nodes import Node
from resmgr.iomsg import OF_NAMES

VALUE_MAX = 4096
"""Bytes of a value; what is beyond, whole lines, is not told."""
NODES_MAX = 512
"""Nodes of which `/net` lists an attribute each: names of 63 bytes, so that the list is shorter than Linux takes. Others can be asked
for."""
_OF_NODES = OF_NAMES + b"node."


@attrs.frozen
class Way:
    """One path to a node: `place` as `eth0 02:00:00:00:00:01`, round trip in seconds."""

    place: str
    state: str
    rtt: float

    @property
    def usable(self) -> bool:
        return self.state == "usable"


@attrs.frozen
class Told:
    """What there is to say of a node. `since`: seconds of the wall clock. `suite`: the cipher of the link, empty without one."""

    state: str
    since: float
    boot: bytes = b""
    reason: str = ""
    roles: frozenset[str] = frozenset()
    policy: str = ""
    starts: int = 0
    ways: Sequence[Way] = ()
    suite: str = ""
    version: str = ""

    @classmethod
    def of(cls, node: Node, since: float, policy: str, ways: Sequence[Way], suite: str, version: str) -> Told:
        return cls(node.state.value, since, node.boot_id, node.reason, node.roles, policy, node.starts, ways, suite, version)

    def values(self) -> dict[bytes, bytes]:
        """Name of each attribute to its value."""
        working = [way for way in self.ways if way.usable] or list(self.ways)
        texts = {
            "state": self.state,
            "since": _when(self.since),
            "boot": self.boot.hex(),
            "reason": self.reason,
            "roles": " ".join(sorted(self.roles)),
            "policy": self.policy,
            "starts": str(self.starts) if self.starts else "",
            "address": "\n".join(way.place for way in working),
            "rtt": f"{min(way.rtt for way in working):.6f}" if working else "",
            "paths": "\n".join(f"{way.place} {way.state} {way.rtt:.6f}" for way in self.ways),
            "suites": self.suite,
            "version": self.version,
        }
        return {OF_NAMES + name.encode(): _cut(text) for name, text in texts.items() if text}

    def line(self) -> bytes:
        """All that matters of it in one line."""
        words = [f"state={self.state}", f"since={_when(self.since)}"]
        working = [way for way in self.ways if way.usable]
        if working:
            words.append(f"rtt={min(way.rtt for way in working):.6f}")
        if self.reason:
            words.append(f"reason={self.reason}")
        return _cut(" ".join(words).replace("\n", " "))


def of_all(nodes: Mapping[str, Told]) -> dict[bytes, bytes]:
    """The attributes of /net itself. *nodes*: in the order in which they matter."""
    return {_OF_NODES + name.encode(): told.line() for name, told in nodes.items()}


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _cut(text: str) -> bytes:
    """As bytes, no more than VALUE_MAX; whole lines if there are several."""
    value = text.encode(errors="replace")
    if len(value) <= VALUE_MAX:
        return value
    value = value[:VALUE_MAX]
    lines, newline, _ = value.rpartition(b"\n")
    return lines if newline else value.decode(errors="ignore").encode()
