"""`run` and `Popen` against a real process manager: blocking, so in a thread beside it."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from qnetpy.processes import DEVNULL, PIPE, STDOUT, Popen, run
from resmgr.errors import ResmgrError
from tests.qnetpy.test_on import ends, node

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is let go of has little time."""
    monkeypatch.setattr("resmgr.procmgr.process.GRACE", 0.1)


async def beside(run_dir: Path, what: Callable[[], None]) -> None:
    """*what*, in a thread, while this one is the node. Nothing is left there afterwards, and no thread here."""
    async with node(run_dir) as system:
        with trio.fail_after(60):
            await trio.to_thread.run_sync(what)
        await ends(system)
    for thread in threading.enumerate():
        if thread.name == "qnet-process":
            await trio.to_thread.run_sync(thread.join, 5.0)
            assert not thread.is_alive()


async def test_run(tmp_path: Path) -> None:
    def blocking() -> None:
        told = run(["sh", "-c", "cat; echo err >&2; exit 7"], node="n1", input=b"in", capture_output=True)
        assert (told.returncode, told.stdout, told.stderr) == (7, b"in", b"err\n")
        assert run("echo x; echo y >&2", shell=True, node="", stdout=PIPE, stderr=STDOUT, text=True).stdout.split() == ["x", "y"]
        assert run(["sort"], node="n1", input="b\na\n", capture_output=True, text=True).stdout == "a\nb\n"
        assert run("kill -9 $$", shell=True, node="n1").returncode == -signal.SIGKILL
        with pytest.raises(subprocess.CalledProcessError):
            run(["false"], node="n1", check=True)
        with pytest.raises(subprocess.TimeoutExpired) as late:
            run(["sh", "-c", "echo early; exec sleep 4242"], node="n1", stdout=PIPE, timeout=0.2)
        assert late.value.output == b"early\n"
        data = os.urandom(5 << 20)
        assert run(["cat"], node="n1", input=data, capture_output=True).stdout == data
        # Nothing to read, and nobody who writes.
        assert run(["cat"], node="n1", stdout=DEVNULL).returncode == 0
        with pytest.raises(ResmgrError) as refused:
            run(["true"], node="n2")
        assert refused.value.errno == errno.ENOENT

    await beside(tmp_path, blocking)


async def test_what_a_program_without_input_says_at_once_and_later(tmp_path: Path) -> None:
    def blocking() -> None:
        assert run(["sh", "-c", "echo out; echo err >&2; exit 3"], node="n1", capture_output=True).stderr == b"err\n"
        with pytest.raises(subprocess.CalledProcessError) as failed:
            run(["sh", "-c", "echo out; kill -9 $$"], node="n1", stdout=PIPE, stderr=DEVNULL, check=True)
        assert (failed.value.returncode, failed.value.output, failed.value.stderr) == (-signal.SIGKILL, b"out\n", None)
        told = run(["sh", "-c", "echo a; echo b >&2; exec >&-; sleep 0.1; echo c >&2; exit 5"], node="n1", capture_output=True)
        assert (told.returncode, told.stdout, told.stderr) == (5, b"a\n", b"b\nc\n")
        assert len(run("head -c 3000000 /dev/zero", shell=True, node="n1", capture_output=True).stdout) == 3000000
        # It has ended, and another holds its stream.
        assert run("(sleep 0.1; echo late) & echo soon", shell=True, node="n1", capture_output=True, text=True).stdout == "soon\nlate\n"
        with pytest.raises(subprocess.TimeoutExpired) as late:
            run(["sh", "-c", "echo early; exec sleep 4242"], node="n1", capture_output=True, timeout=0.1)
        assert (late.value.output, late.value.stderr, late.value.timeout) == (b"early\n", b"", 0.1)

    await beside(tmp_path, blocking)


async def test_streams_are_descriptors(tmp_path: Path) -> None:
    def blocking() -> None:
        file = tmp_path / "out"
        file.write_text("c\nb\n")
        with open(file) as source, open(tmp_path / "sorted", "wb") as target:
            assert run(["sort"], node="n1", stdin=source, stdout=target).returncode == 0
        assert (tmp_path / "sorted").read_text() == "b\nc\n"
        # One program's output is another's input, the second of them here.
        with Popen(["sh", "-c", "echo one; echo two"], node="n1", stdout=PIPE) as first:
            assert first.stdout is not None
            assert subprocess.run(["wc", "-l"], stdin=first.stdout, capture_output=True, check=True).stdout.strip() == b"2"
        with Popen(["cat"], node="n1", stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 0.05)[0] == []
            process.stdin.write(b"x\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 10)[0] == [process.stdout]
            assert process.stdout.readline() == b"x\n"
            assert process.poll() is None
        assert process.returncode == 0

    await beside(tmp_path, blocking)


async def test_a_reader_that_leaves_is_seen_as_at_home(tmp_path: Path) -> None:
    def blocking() -> None:
        with Popen(["yes"], node="n1", stdout=PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(2) == b"y\n"
            process.stdout.close()
            assert process.wait(10) == -signal.SIGPIPE
        with Popen(["true"], node="n1", stdin=PIPE) as process:
            assert process.stdin is not None
            assert process.wait(10) == 0
            with pytest.raises(BrokenPipeError):
                process.stdin.write(bytes(1 << 20))

    await beside(tmp_path, blocking)


async def test_signals_and_letting_go(tmp_path: Path) -> None:
    def blocking() -> None:
        with Popen(["sleep", "4242"], node="n1") as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
            process.terminate()
            assert process.wait(10) == -signal.SIGTERM
            process.kill()
        process = Popen(["sleep", "4242"], node="n1")
        process.close()
        with pytest.raises(ResmgrError) as gone:
            process.wait(10)
        assert gone.value.errno == errno.ECANCELED
        process.close()
        with Popen("stty size; read x; echo $x", shell=True, node="n1", stdin=PIPE, stdout=PIPE, tty=(7, 9)) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"7 9\r\n"
            process.stdin.write(b"line\n")
            process.stdin.flush()
            assert process.stdout.read() == b"line\r\nline\r\n"

    await beside(tmp_path, blocking)


async def test_a_daemon_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(tmp_path) as system:
        process = await trio.to_thread.run_sync(lambda: Popen(["sleep", "4242"], node="n1", stdout=PIPE))
        system.close()
        assert process.stdout is not None
        assert await trio.to_thread.run_sync(process.stdout.read) == b""
        with pytest.raises(ResmgrError) as lost:
            await trio.to_thread.run_sync(process.wait)
        assert lost.value.errno == errno.ENOTCONN
        process.stdout.close()
    monkeypatch.setenv("QNET_RUN_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ConnectionRefusedError, match="not up"):
        run(["true"], node="n1")
