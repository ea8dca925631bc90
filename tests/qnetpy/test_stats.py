"""`/proc/qnetstats` and its JSON: files that tell what is known at each opening, in a /proc that has nothing else."""

from __future__ import annotations

import errno
import json

from qnetpy.facts import nodes
from qnetpy.netfs.stats import StatsFile, figures
from qnetpy.testing.world import World
from resmgr.access import Export, Grant, Policy, Verb
from resmgr.channel import CHID_PATHMGR, PID_SYSTEM, Credentials
from resmgr.iomsg import Connect
from resmgr.iorequest import ConnectRequest
from resmgr.system import System
from resmgr.testing.ioclient import IoClient, fails
from resmgr.testing.virtual import VirtualDispatch


def test_the_file_tells_the_facts_of_each_opening() -> None:
    dispatch = VirtualDispatch(1)
    system = System(dispatch, "n1")
    facts: dict[str, object] = {"node": "n1", "drops": {}}
    stats = StatsFile(system, lambda: facts)
    client = IoClient(system.kernel, Credentials(1000, 1000))

    assert client.names(b"proc") == {b"qnetstats", b"qnetstats.json"}
    assert json.loads(client.get(b"proc/qnetstats.json")) == facts
    facts["drops"] = {"bad_tag": 3}
    assert json.loads(client.get(b"proc/qnetstats.json")) == facts
    assert client.get(b"proc/qnetstats").startswith(b"node n1\n")
    assert client.get(b"proc/qnetstats").endswith(b"\ndrop.bad_tag 3\n")
    with fails(errno.ENOENT):
        client.get(b"proc/1")
    server = client.lookup(b"proc/qnetstats").target
    assert system.guarded(server.pid, server.chid)

    stats.close()
    with fails(errno.ENOENT):
        client.get(b"proc/qnetstats")
    system.close()


def test_the_text_has_a_figure_on_each_line() -> None:
    world = World(1)
    world.join("a", "b", "c")
    a, _, c = world.start("a"), world.start("b"), world.start("c")
    assert world.until(world.settled)
    c.stop()
    assert world.until(lambda: {node.state.value for node in a.qnet.nodes} == {"up", "down"})

    lines = dict(figures({"node": "a", "sizes": a.qnet.sizes(), "drops": a.qnet.machine.drops(), **nodes(a.qnet)}))
    assert (lines["nd_up"], lines["nd_down"], lines["node.b"], lines["node.c"]) == (1, 1, "up", "down")
    for name in ("tx_pkts", "rx_pkts", "messages_sent.b"):
        assert isinstance(lines[name], int)
    assert lines["tx_pkts"] != 0
    assert all(" " not in name for name in lines)


def test_what_the_kernel_asked_of_all_mounts_is_summed() -> None:
    mounts = [
        {"point": "/net", "requests": {"LOOKUP": 2, "opcode 77": 1}, "errors": {"LOOKUP ENOENT": 1}, "events": {"lease_hits": 3}},
        {"point": "/mnt", "requests": {"LOOKUP": 5}, "errors": {}, "events": {}},
    ]

    lines = dict(figures({"node": "a", "mounts": mounts}))

    assert lines["fuse.LOOKUP"] == 7
    assert (lines["fuse.opcode.77"], lines["fuse_error.LOOKUP.ENOENT"], lines["fuse_event.lease_hits"]) == (1, 1, 3)


def test_another_node_needs_an_export_that_covers_it() -> None:
    world = World(1)
    world.join("a", "b")
    a, b = world.start("a"), world.start("b")
    assert world.until(world.settled)
    stats = StatsFile(b.system, lambda: {"node": "b"})
    path = ConnectRequest(Connect.LOOKUP, 0, 0, b"proc/qnetstats").pack()

    def look() -> int:
        told: list[int] = []
        a.connect("b", PID_SYSTEM, CHID_PATHMGR).submit([path], 4096, lambda status, reply: told.append(status))
        assert world.until(lambda: bool(told))
        return told[0]

    assert look() == 0
    b.system.set_policy(Policy(b.system.accounts, exports=(Export("/tmp"),), grants=(Grant(Verb.SEND),)))
    assert look() == -errno.EACCES
    stats.close()
