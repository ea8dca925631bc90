"""Detached programs that outlive their daemon, in the audit log."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from resmgr.procmgr import message, outliving
from resmgr.procmgr.message import SPAWN_DETACHED, Spawn
from resmgr.procmgr.outliving import Program, parse
from resmgr.runner import open_dispatch
from tests.resmgr.procmgr.test_manager import Client, World, policy

pytestmark = pytest.mark.host


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ends(path: Path) -> list[dict[str, object]]:
    return [line for line in lines(path) if line["event"] == "ended"]


@asynccontextmanager
async def daemon(audit: Path) -> AsyncIterator[World]:
    """One after another; what is detached goes on."""
    async with open_dispatch() as dispatch:
        here = World(dispatch, policy(), None, None, str(audit))
        yield here
        here.manager.close()


def end(pid: int) -> None:
    """Its parent is this process, which the next daemon is not: reaped as init would."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def start(client: Client, seconds: bytes) -> int:
    _, data = await client.send(message.pack_spawn(Spawn((b"/bin/sleep", seconds), flags=SPAWN_DETACHED)), reply_len=message.SPAWNED.size)
    return message.parse_spawned(data)[1]


async def test_the_end_of_a_detached_program_is_told_by_the_next_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit, local, kept = tmp_path / "audit", tmp_path / "audit-local", tmp_path / "audit-detached"
    async with daemon(audit) as here:
        seen, while_down, later, other_boot = [await start(Client(here), b"100") for _ in range(4)]
        os.kill(seen, signal.SIGKILL)
        await here.until(lambda: len(ends(local)) == 1)
        await here.until(lambda: len(json.loads(kept.read_text())["programs"]) == 3)
    end(while_down)
    async with daemon(audit) as here:
        await here.until(lambda: len(ends(local)) == 2)
        assert ends(local)[1]["pid"] == while_down
        assert ends(local)[1]["unseen"] is True
        end(later)
        await here.until(lambda: len(ends(local)) == 3)
        assert ends(local)[2]["pid"] == later
        assert isinstance(ends(local)[2]["started"], float)
        await here.until(lambda: [row["pid"] for row in json.loads(kept.read_text())["programs"]] == [other_boot])
    monkeypatch.setattr(outliving, "_boot", lambda: "another")
    async with daemon(audit) as here:
        await here.until(lambda: len(ends(local)) == 4)
        assert ends(local)[3]["pid"] == other_boot
    end(other_boot)
    assert kept.stat().st_mode & 0o777 == 0o600


def test_what_is_no_list_of_programs_is_none() -> None:
    row = {"id": 1, "pid": 2, "began": 3, "started": 4.0, "local": True}
    whole = json.dumps({"boot": "b", "programs": [row]}).encode()
    assert parse(whole, "b") == ([Program(1, 2, 3, 4.0, True)], True)
    assert parse(whole, "c")[1] is False
    wrong: list[object] = [[], {}, {"boot": "b"}, {"boot": "b", "programs": 1}, {"boot": "b", "programs": [1]}]
    wrong += [{"boot": "b", "programs": [row | {name: "x"}]} for name in row]
    for told in wrong:
        with pytest.raises(ValueError, match="list of programs"):
            parse(json.dumps(told).encode(), "b")
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"."):
            parse(whole[:length], "b")
