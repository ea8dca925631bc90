"""A node's own managers: what makes one of them stumble fails for its client, and the node goes on."""

from __future__ import annotations

import errno
import functools
from pathlib import Path

import pytest

from resmgr.channel import ND_LOCAL, PID_SYSTEM, Channel, Connection, Credentials, Message
from resmgr.ids import CHID_ATTACH, CHID_NAMES, CHID_NODES, CHID_PATHMGR, CHID_PROCMGR, CHID_REPLICA
from resmgr.procmgr.rules import SpawnRules
from resmgr.runner import open_dispatch
from resmgr.system import System

pytestmark = [pytest.mark.host, pytest.mark.mistakes]


async def test_a_mistake_in_a_manager_of_the_node_fails_one_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def wrong(message: Message) -> None:
        raise OverflowError("wrong")

    async with open_dispatch() as dispatch:
        system = System(dispatch, "here")
        system.serve_files(str(tmp_path), b"files")
        system.serve_processes(SpawnRules())
        system.listen(tmp_path / "socket")
        own: list[Channel] = []
        for chid in (CHID_PATHMGR, CHID_PROCMGR, CHID_NODES, CHID_NAMES, CHID_REPLICA, CHID_ATTACH):
            channel = system.kernel.find_channel(PID_SYSTEM, chid)
            assert channel is not None
            own.append(channel)
        assert system.files is not None
        own.append(system.files.channel)
        statuses: list[int] = []

        def send(connection: Connection) -> None:
            connection.submit([b"x"], 0, lambda status, _: statuses.append(status))

        for channel in own:
            channel.handler = wrong
            connection = system.kernel.connect(ND_LOCAL, channel.pid, channel.chid, Credentials(0, 0))
            dispatch.enter(functools.partial(send, connection))
        assert statuses == [-errno.EIO] * len(own)
        assert sum(system.shield.failures.values()) == len(own)
        dispatch.enter(system.close)
    assert "OverflowError in wrong" in caplog.text
