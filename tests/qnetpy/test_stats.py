"""`/proc/qnetstats`: a file that tells what is known at each opening, in a /proc that has nothing else."""

from __future__ import annotations

import errno
import json

from qnetpy.netfs.stats import StatsFile
from resmgr.channel import Credentials
from resmgr.system import System
from resmgr.testing.ioclient import IoClient, fails
from resmgr.testing.virtual import VirtualDispatch


def test_the_file_tells_the_facts_of_each_opening() -> None:
    dispatch = VirtualDispatch(1)
    system = System(dispatch, "n1")
    facts: dict[str, object] = {"node": "n1", "drops": {}}
    stats = StatsFile(system, lambda: facts)
    client = IoClient(system.kernel, Credentials(1000, 1000))

    assert client.names(b"proc") == {b"qnetstats"}
    assert json.loads(client.get(b"proc/qnetstats")) == facts
    facts["drops"] = {"bad_tag": 3}
    assert json.loads(client.get(b"proc/qnetstats")) == facts
    with fails(errno.ENOENT):
        client.get(b"proc/1")
    server = client.lookup(b"proc/qnetstats").target
    assert system.guarded(server.pid, server.chid)

    stats.close()
    with fails(errno.ENOENT):
        client.get(b"proc/qnetstats")
    system.close()
