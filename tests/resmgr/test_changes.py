"""Changes of a directory told to a program: typed events, in order, and their end."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio

from resmgr.access import Policy, UserRule
from resmgr.changes import Change, Changes, Event, watch_directory
from resmgr.channel import Credentials
from resmgr.errors import ResmgrError
from resmgr.runner import open_dispatch
from resmgr.system import System
from resmgr.users import Accounts

HERE = Credentials(os.getuid(), os.getgid())


async def collect(changes: Changes, count: int) -> list[Event]:
    found: list[Event] = []
    with trio.fail_after(10):
        async for event in changes:
            found.append(event)
            if len(found) == count:
                break
    return found


def test_events_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_dispatch() as dispatch:
            system = System(dispatch, "here")
            system.set_policy(Policy(Accounts(dispatch.now), users=(UserRule("identity", root="root"),), exports=(), grants=()))
            system.serve_files(str(tmp_path))
            directory = tmp_path / "d"
            directory.mkdir()
            with await watch_directory(system.kernel, HERE, b"/d") as changes:
                (directory / "made").mkdir()
                (directory / "file").write_bytes(b"x")
                (directory / "file").rename(directory / "other")
                (directory / "other").unlink()
                events = await collect(changes, 7)
                assert [(event.change, event.name) for event in events] == [
                    (Change.CREATED, b"made"),
                    (Change.CREATED, b"file"),
                    (Change.MODIFIED, b"file"),
                    (Change.WRITTEN, b"file"),
                    (Change.MOVED_FROM, b"file"),
                    (Change.MOVED_TO, b"other"),
                    (Change.DELETED, b"other"),
                ]
                assert [event.directory for event in events] == [True] + [False] * 6
                assert events[4].cookie == events[5].cookie != 0
                (directory / "made").rmdir()
                directory.rmdir()
                rest = await collect(changes, 2)
                assert rest[0].change is Change.DELETED
                assert rest[1].change & Change.ENDED
                with trio.fail_after(10), pytest.raises(StopAsyncIteration):
                    await anext(changes)
            (tmp_path / "plain").write_bytes(b"")
            for path, code in ((b"/plain", errno.ENOTDIR), (b"/none", errno.ENOENT)):
                with pytest.raises(ResmgrError) as refused:
                    await watch_directory(system.kernel, HERE, path)
                assert refused.value.errno == code
            system.close()

    trio.run(main)


def test_what_cannot_be_told_says_so() -> None:
    async def main() -> None:
        async with open_dispatch() as dispatch:
            system = System(dispatch, "here")
            system.set_policy(Policy(Accounts(dispatch.now), users=(UserRule("identity", root="root"),), exports=(), grants=()))
            system.serve_files("/proc")
            with pytest.raises(ResmgrError) as refused:
                await watch_directory(system.kernel, HERE, b"/sys")
            assert refused.value.errno == errno.EOPNOTSUPP
            system.close()

    trio.run(main)
