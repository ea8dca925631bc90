"""`run_process` and `open_process` against a real process manager."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing

from qnetpy.processes.aio import PIPE, READ_PART, READS, Address, open_process, run_process
from resmgr.channel import Credentials
from resmgr.errors import ResmgrError
from resmgr.procmgr import message
from tests.qnetpy.test_on import ends, node

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is let go of has little time."""
    monkeypatch.setattr("resmgr.procmgr.process.GRACE", 0.1)


async def test_what_a_program_says_and_how_it_ends(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        told = await run_process(["sh", "-c", "cat; echo err >&2"], node="n1", stdin=b"in", capture_stdout=True, capture_stderr=True)
        assert (told.returncode, told.stdout, told.stderr) == (0, b"in", b"err\n")
        assert (await run_process("exit 7", shell=True, node="n1", check=False)).returncode == 7
        assert (await run_process("kill -TERM $$", shell=True, node="", check=False)).returncode == -signal.SIGTERM
        with pytest.raises(subprocess.CalledProcessError) as failed:
            await run_process(["sh", "-c", "echo x; exit 3"], node="n1", capture_stdout=True)
        assert (failed.value.returncode, failed.value.output) == (3, b"x\n")
        assert (await run_process(["no-such-program"], node="n1", check=False)).returncode == 127
        # It reads nothing: what we had for it goes nowhere, as in Trio.
        assert (await run_process(["true"], node="n1", stdin=bytes(1 << 20))).returncode == 0
        await ends(system)


@pytest.mark.parametrize("known", [True, False])
async def test_what_a_program_without_input_says_at_once_and_later(known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a node that does not know what a brief start is."""
    if not known:
        monkeypatch.setattr(message, "SPAWN_BRIEF", 1 << 15)

    async def said(script: str) -> tuple[int, bytes, bytes]:
        told = await run_process(script, shell=True, node="n1", capture_stdout=True, capture_stderr=True, check=False)
        return told.returncode, told.stdout, told.stderr

    async with node(tmp_path) as system:
        assert await said("echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")
        assert await said("echo a; echo b >&2; exec >&-; sleep 0.1; echo c >&2; kill -9 $$") == (-9, b"a\n", b"b\nc\n")
        assert len((await said("head -c 3000000 /dev/zero"))[1]) == 3000000
        assert await said("(sleep 0.1; echo late) & echo soon; exit 4") == (4, b"soon\nlate\n", b"")
        await ends(system)


async def test_how_it_is_started(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        script = "pwd; umask; ulimit -S -c; ulimit -S -n; cut -d' ' -f19 /proc/self/stat; echo $A $B; tty"
        told = await run_process(
            script,
            shell=True,
            node="n1",
            cwd=tmp_path,
            env={"A": "1", "B": "2 3"},
            umask=0o27,
            limits={4: 0, 7: 99},
            priority=3,
            capture_stdout=True,
            check=False,
        )
        assert told.stdout == f"{tmp_path}\n0027\n0\n99\n3\n1 2 3\nnot a tty\n".encode()
        mask = os.umask(0o31)
        try:
            assert (await run_process(["sh", "-c", "umask"], node="n1", capture_stdout=True)).stdout == b"0031\n"
        finally:
            os.umask(mask)
        async with await open_process(["sh", "-c", "stty size; read x; echo got $x"], node="n1", tty=(20, 30)) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is None
            said = await process.stdout.receive_some()
            await process.stdin.send_all(b"line\n")
            said += b"".join([part async for part in process.stdout])
            assert said.split() == [b"20", b"30", b"line", b"got", b"line"]
            assert await process.wait() == 0
        await ends(system)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"priority": 20}, "is no nice value"), ({"shell": True}, "one text")],
)
async def test_what_means_nothing_is_told_before_anything_is_started(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        await open_process(["true"], node="n1", **options)  # type: ignore[arg-type]  # that is what is tried
    with pytest.raises(ValueError, match="empty"):
        await open_process([], node="n1")


async def test_a_program_that_does_not_read_stops_who_sends_and_nothing_is_lost(tmp_path: Path) -> None:
    async with node(tmp_path), await open_process(["cat"], node="n1", stdin=PIPE, stdout=PIPE) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        sent = os.urandom(6 << 20)
        with trio.move_on_after(0.3) as stopped:
            await stdin.send_all(sent)
        # Nobody reads: it does not get further than the pipes and what may be under way. What was not cancelled arrives.
        assert stopped.cancelled_caught
        first = await stdout.receive_some(10)
        assert first == sent[:10]


async def test_half_close_ends_the_input_and_not_the_output(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        async with await open_process(["sort"], node="n1", stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(b"b\na\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.stdout.receive_some)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await process.stdout.receive_some()
                nursery.cancel_scope.cancel()
            await process.stdin.send_eof()
            with pytest.raises(trio.ClosedResourceError):
                await process.stdin.send_all(b"c\n")
            assert await process.stdout.receive_some(1) == b"a"
            assert b"".join([part async for part in process.stdout]) == b"\nb\n"
            assert await process.wait() == 0
        await ends(system)


async def test_a_reader_that_stops_stops_the_program(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        script = "i=0; while :; do dd if=/dev/zero bs=65536 count=1 2>/dev/null; i=$((i+1)); echo $i >count; done"
        async with await open_process(script, shell=True, node="n1", cwd=tmp_path, stdout=PIPE) as process:
            assert process.stdout is not None
            await process.stdout.receive_some(1)
            counts = []
            for _ in range(100):
                await trio.sleep(0.02)
                counts.append((tmp_path / "count").read_text())
                if counts[-5:] == counts[-1:] * 5:
                    break
            assert counts[-5:] == counts[-1:] * 5
            assert int(counts[-1]) * 65536 <= (READS + 1) * READ_PART + (1 << 20)
            await process.stdout.aclose()
            process.kill()
            assert await process.wait() == -signal.SIGKILL
        await ends(system)


async def test_signals_reach_the_group(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        async with await open_process(["sh", "-c", "sleep 4242 & echo; wait"], node="n1", stdout=PIPE) as process:
            assert process.stdout is not None
            await process.stdout.receive_some()
            assert process.poll() is None
            process.terminate()
            assert await process.wait() == -signal.SIGTERM
            # The child that holds the stream has ended too.
            with trio.fail_after(5):
                assert await process.stdout.receive_some() == b""
            process.kill()
        await ends(system)


async def test_cancelling_ends_it_as_it_was_told(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        trap = "trap 'echo told >said; exit 0' TERM; echo >ready; while :; do sleep 0.01; done"
        with trio.move_on_after(20) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_ready, tmp_path / "ready", scope)
                await run_process(trap, shell=True, node="n1", cwd=tmp_path)
        assert scope.cancelled_caught
        assert await trio.Path(tmp_path / "said").read_text() == "told\n"
        await ends(system)


async def cancel_when_ready(file: Path, scope: trio.CancelScope) -> None:
    while not file.exists():  # noqa: ASYNC110, ASYNC240  # what is waited for happens outside this program
        await trio.sleep(0.01)
    scope.cancel()


async def test_letting_go_hangs_it_up(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        async with await open_process(["sh", "-c", "echo; exec sleep 4242"], node="n1", stdout=PIPE) as process:
            assert process.stdout is not None
            await process.stdout.receive_some()
        with pytest.raises(ResmgrError) as lost:
            await process.wait()
        assert lost.value.errno == errno.ECANCELED
        await ends(system)


async def test_a_node_that_goes_is_told_to_all_who_wait(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        process = await open_process(["sleep", "4242"], node="n1", stdin=PIPE, stdout=PIPE)
        running = trio.Event()

        async def run() -> None:
            running.set()
            with pytest.raises(ResmgrError) as lost:
                await run_process(["sleep", "4242"], node="n1", capture_stdout=True)
            assert lost.value.errno == errno.ENOTCONN

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await running.wait()
            await trio.testing.wait_all_tasks_blocked(0.1)
            system.close()
        assert process.stdout is not None
        assert process.stdin is not None
        with pytest.raises(ResmgrError) as lost:
            await process.wait()
        assert lost.value.errno == errno.ENOTCONN
        for broken in (process.stdout.receive_some(), process.stdin.send_all(b"x")):
            with pytest.raises(trio.BrokenResourceError):
                await broken
        await process.aclose()


async def test_who_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(tmp_path) as system:
        for name, number in (("n2", errno.ENOENT), ("a/b", errno.EINVAL)):
            with pytest.raises(ResmgrError) as refused:
                await run_process(["true"], node=name)
            assert refused.value.errno == number
        # Over a kernel of one's own, as an embedded node has one.
        via = Address(system.kernel, Credentials(os.geteuid(), os.getegid(), (), os.getpid()))
        assert (await run_process(["true"], node="n1", via=via)).returncode == 0
    monkeypatch.setenv("QNET_RUN_DIR", str(tmp_path))
    with pytest.raises(ConnectionRefusedError):
        await run_process(["true"], node="n1")
