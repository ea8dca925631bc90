"""`qnet name` against a daemon's system in this process: what it lists, what it refuses, and what it does not load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from resmgr.aio import enter
from resmgr.channel import Message, Nd
from resmgr.runner import open_dispatch
from resmgr.system import System

pytestmark = pytest.mark.host


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[System]:
    async with open_dispatch() as dispatch:
        system = System(dispatch, "here")
        system.listen(path / "socket")
        try:
            yield system
        finally:
            system.close()


async def qnet(path: Path, *arguments: str, status: int = 0) -> str:
    """What it prints; on standard error when it must fail."""
    with trio.fail_after(20):
        result = await trio.run_process(
            [sys.executable, "-m", "qnetpy.cli.main", *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={"QNET_RUN_DIR": str(path), "PATH": "/bin:/usr/bin"},
            cwd=Path(__file__).parents[3],
        )
    assert result.returncode == status, result
    return (result.stderr if status else result.stdout).decode()


async def test_names_of_both_scopes_are_listed_with_their_owners(tmp_path: Path) -> None:
    async with running(tmp_path) as system:
        names = system.names
        assert names is not None
        assert await qnet(tmp_path, "name") == "no names are attached\n"
        channel = system.kernel.channel(Message.reply)

        def attach() -> None:
            assert names.attach(b"clock", channel) == 0
            assert names.attach_global(b"clock", channel) == 0
            assert names.attach_global(b"l\xf6g", channel) == 0
            system.nodes.up("there", Nd(5), b"b" * 16)

        enter(system.kernel, attach)
        lines = (await qnet(tmp_path, "name")).splitlines()
        assert [line.split() for line in lines] == [
            ["NAME", "SCOPE", "NODE", "PID", "CHANNEL", "USER"],
            ["clock", "local", "here", "(this", "node)", "1", str(channel.chid), "root"],
            ["clock", "global", "here", "(this", "node)", "1", str(channel.chid), "root"],
            ["l\\xf6g", "global", "here", "(this", "node)", "1", str(channel.chid), "root"],
        ]
        facts = json.loads(await qnet(tmp_path, "name", "--json"))
        first = facts["names"][0]
        assert (first["name"], first["scope"], first["node"]) == ("clock", "local", "here")
        replica = facts["replica"]
        assert (replica["global"], replica["generation"], [one["node"] for one in replica["nodes"]]) == (2, 2, ["there"])
        assert len(json.loads(await qnet(tmp_path, "name", "clock", "--json"))["names"]) == 2
        assert len(json.loads(await qnet(tmp_path, "name", "--list", "l*", "--json"))["names"]) == 1
        assert len(json.loads(await qnet(tmp_path, "name", "--local", "--json"))["names"]) == 1


async def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path):
        for arguments, said in (
            (("name", "-g"), "-g and --lease are for a name that is attached"),
            (("name", "-g", "--local", "x"), "a name for all nodes must take messages from them"),
            (("send", "-g", "b/x", "y"), "a global name has no node before it; try: qnet send -g x@b"),
        ):
            assert said in await qnet(tmp_path, *arguments, status=2)
        assert "no node that is up has the global name 'x'" in await qnet(tmp_path, "send", "-g", "x", "y", status=1)
        assert "'a/b': invalid argument" in await qnet(tmp_path, "name", "-g", "a/b", status=1)


def test_it_starts_without_what_it_does_not_need() -> None:
    code = (
        "import sys, qnetpy.cli.name, resmgr.names.client, resmgr.nodes.client; "
        "print([m for m in ('trio', 'attr', 'stack', 'cryptography') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
