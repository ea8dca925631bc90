"""`/proc/qnetstats`: what `qnet status` shows, as a file in JSON (QNX: a text of counters).

It is served by a tree that takes the place of the machine's own /proc in the pathname space: read through a daemon's rights, that one would
show other nodes what no user may see. Clients of other nodes need an export with the verb read that covers the file, as for any other.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping

from resmgr.access import MappedUser, Verb
from resmgr.channel import ND_LOCAL, ClientInfo
from resmgr.iofunc.node import local_or_nobody
from resmgr.iofunc.static import tree
from resmgr.system import System

PATH = b"/proc/qnetstats"


class StatsFile:
    """Serves the file until `close`. *facts* is asked at each opening."""

    def __init__(self, system: System, facts: Callable[[], Mapping[str, object]]) -> None:
        self._system = system
        self._facts = facts
        self._tree = tree(system.kernel, {"qnetstats": self._text}, name="proc", user=self._reader)
        self._attached = system.paths.attach(b"proc", self._tree.target)
        system.guard(self._tree.channel)

    def _reader(self, info: ClientInfo) -> MappedUser | int:
        if info.nd != ND_LOCAL and Verb.READ not in self._system.policy.verbs(info, PATH):
            return errno.EACCES
        return local_or_nobody(info)

    def _text(self) -> bytes:
        return json.dumps(self._facts(), indent=1, default=str).encode() + b"\n"

    def close(self) -> None:
        self._system.paths.detach(self._attached)
        self._tree.destroy()
