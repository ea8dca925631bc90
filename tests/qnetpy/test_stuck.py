"""`qnet abort`, and what the log says of it."""

from __future__ import annotations

import errno
import logging
from typing import cast

import pytest

from qnetpy.stuck import Stuck
from qnetpy.testing.world import World
from resmgr.fuse.formats import Opcode
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault


def test_a_name_that_is_not_led_on_waits_for_its_node() -> None:
    """/net is asked for b, or is asked again and again while b is down."""
    rig = Rig()
    rig.fs.faults.append(Fault("lookup", hang=True))
    unique = rig.start(Opcode.LOOKUP, 1, b"b~redundant\0")
    qnet = World(1).start("a").qnet
    qnet.nodes.add("b", 0.0)
    stuck = Stuck(qnet, lambda: [(0, "/net", rig.machine)])

    told = stuck.waiting({}, 1000, True)
    (request,) = cast(list[dict[str, object]], told["requests"])
    assert (request["node"], request["state"]) == ("b", "known")
    assert [row["waiting"] for row in cast(list[dict[str, object]], told["nodes"])] == [1]
    assert stuck.abort({"ids": [str(unique)]}, 1000, True)["aborted"] == [str(unique)]
    assert rig.answers[unique].error == -errno.EHOSTDOWN


def test_a_name_of_several_lines_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.fs.faults.append(Fault("lookup", hang=True))
    unique = rig.start(Opcode.LOOKUP, 1, b"x\nforged\0")
    stuck = Stuck(World(1).start("a").qnet, lambda: [(0, "/net", rig.machine)])

    with caplog.at_level(logging.INFO, "qnetpy.stuck"):
        assert stuck.abort({"ids": [str(unique)]}, 1000, True) == {"aborted": [str(unique)], "unknown": []}

    assert rig.answers[unique].error == -errno.ECANCELED
    (said,) = [record.getMessage() for record in caplog.records if record.name == "qnetpy.stuck"]
    assert said.endswith(r"lookup of '/net/x\nforged'")
