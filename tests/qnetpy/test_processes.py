"""`qnet pidin`, `sin` and `slay` as a user meets them, on one node: real commands, a real process manager."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.qnetpy.test_on import node

pytestmark = pytest.mark.host


async def qnet(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    with trio.fail_after(30):
        result = await trio.run_process(
            [sys.executable, "-m", "qnetpy.cli.main", *words], capture_stdout=True, capture_stderr=True, check=False
        )
    assert result.returncode == status, result
    return subprocess.CompletedProcess(result.args, result.returncode, result.stdout.decode(), result.stderr.decode())


async def sleeper() -> trio.Process:
    """A process with a name that nobody else has."""
    name = f"slp{os.getpid()}"
    process = await trio.lowlevel.open_process([name, "100"], executable="/bin/sleep")
    with trio.fail_after(10):
        while await trio.Path(f"/proc/{process.pid}/cmdline").read_bytes() != name.encode() + b"\0" + b"100\0":  # noqa: ASYNC110  # what is waited for happens outside this program
            await trio.sleep(0.005)
    return process


async def test_processes_are_listed_and_slain(tmp_path: Path) -> None:
    async with node(tmp_path):
        process = await sleeper()
        name = f"slp{os.getpid()}"
        lines = (await qnet("pidin", name)).stdout.splitlines()
        assert lines[0].split() == ["PID", "PPID", "USER", "STATE", "NICE", "THREADS", "MEMORY", "TIME", "COMMAND"]
        assert lines[1].split()[:2] == [str(process.pid), str(os.getpid())]
        assert lines[1].endswith(f" {name} 100")
        (fact,) = json.loads((await qnet("pidin", "--json", str(process.pid))).stdout)
        assert (fact["node"], fact["name"], fact["arguments"], fact["uid"]) == ("n1", "sleep", [name, "100"], os.geteuid())
        assert (await qnet("pidin", "-u", "no-such-user", name, status=1)).stdout.count("\n") == 1
        assert f"\n{process.pid} " in (await qnet("pidin", "--sort", "cpu")).stdout
        assert "processes," in (await qnet("sin")).stdout.splitlines()[-1]

        assert (await qnet("slay", "-s", "STOP", name)).stdout == f"n1: {process.pid} sleep ({fact['user']}): SIGSTOP\n"
        assert json.loads((await qnet("pidin", "--json", name)).stdout)[0]["state"] == "stopped"
        result = await qnet("slay", "--json", str(process.pid), "-s9")
        assert [(one["pid"], one["signal"], one["error"]) for one in json.loads(result.stdout)] == [(process.pid, "SIGKILL", None)]
        with trio.fail_after(10):
            assert await process.wait() == -signal.SIGKILL
        assert (await qnet("slay", name, status=1)).stderr == f"qnet slay: there is no process {name}\n"


async def test_the_short_form_of_a_signal_and_wrong_ones(tmp_path: Path) -> None:
    async with node(tmp_path):
        process = await sleeper()
        await qnet("slay", "-1", str(process.pid))
        with trio.fail_after(10):
            assert await process.wait() == -signal.SIGHUP
        for words in (["-s", "NONE", "x"], ["-s", "99", "x"], ["-9"], ["0"]):
            assert (await qnet("slay", *words, status=2)).stderr.count("\n") == 1


async def test_a_number_that_means_another_process_meanwhile_is_left_alone(tmp_path: Path) -> None:
    from resmgr.client import Client
    from resmgr.errors import ResmgrError
    from resmgr.procmgr.client import kill, processes

    async with node(tmp_path):
        process = await sleeper()

        def attempt() -> None:
            with Client(tmp_path / "socket") as client:
                (row,) = (row for row in processes(client, 0) if row.pid == process.pid)
                with pytest.raises(ResmgrError, match="No such process"):
                    kill(client, 0, row.pid, signal.SIGKILL, row.began + 1)
                kill(client, 0, row.pid, signal.SIGTERM, row.began)

        await trio.to_thread.run_sync(attempt)
        with trio.fail_after(10):
            assert await process.wait() == -signal.SIGTERM


async def test_what_a_node_says_of_itself(tmp_path: Path) -> None:
    async with node(tmp_path):
        (fact,) = json.loads((await qnet("sin", "info", "--json")).stdout)
        assert (fact["node"], fact["arch"]) == ("n1", os.uname().machine)
        assert "CPUS" in (await qnet("sin", "info", "-n", "n1")).stdout
        assert (await qnet("sin", "-n", "n9", status=1)).stderr == "qnet sin: no node n9 is up; try: qnet ls\n"
        assert "no node says" in (await qnet("pidin", "--where", "colour=red", status=2)).stderr
