"""`qnet on` as a user meets it: the real command against a real daemon's process manager, through pipes and through a terminal."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qnetpy.cli.terminal import Escape, Raw, Size, size
from resmgr import iomsg
from resmgr.access import Policy
from resmgr.procmgr.client import ENTRY_TARGET, LOOKUP
from resmgr.procmgr.rules import SpawnRules
from resmgr.runner import open_dispatch
from resmgr.system import System

pytestmark = pytest.mark.host
ON = [sys.executable, "-m", "qnetpy.cli.main", "on"]


@asynccontextmanager
async def node(run_dir: Path) -> AsyncIterator[System]:
    """A daemon's process manager and local socket, in this process."""
    async with open_dispatch() as dispatch:
        system = System(dispatch, "n1")
        system.set_policy(Policy(system.accounts))
        system.serve_processes(SpawnRules())
        system.listen(run_dir / "socket")
        os.environ["QNET_RUN_DIR"] = str(run_dir)
        try:
            yield system
        finally:
            del os.environ["QNET_RUN_DIR"]
            system.close()


async def on(*words: str, data: bytes = b"", options: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(30):
        return await trio.run_process(
            [*ON, *options, "n1", "--", *words], stdin=data, capture_stdout=True, capture_stderr=True, check=False
        )


async def ends(system: System, patience: float = 5.0) -> None:
    """Until the node holds no process any more."""
    assert system.processes is not None
    with trio.fail_after(patience):
        while list(system.processes.facts()):  # noqa: ASYNC110  # what is waited for happens outside this program
            await trio.sleep(0.01)


async def test_output_and_status(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        result = await on("sh", "-c", "echo out; echo err >&2; exit 7")
        assert (result.returncode, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
        result = await on("sh", "-c", "kill -TERM $$")
        assert (result.returncode, result.stdout, result.stderr) == (128 + signal.SIGTERM, b"", b"")
        assert (await on("uname", "-n")).stdout == os.uname().nodename.encode() + b"\n"
        for options, program, status, why in (
            ([], "no-such-program", 127, "no-such-program: not found"),
            (["-p", "5"], "no-such-program", 127, "no-such-program: not found"),
            ([], "/no/such", 127, "/no/such: not found"),
            ([], "/etc/passwd", 126, "/etc/passwd: permission denied"),
            (["--cwd", "/nowhere"], "true", 126, "/nowhere: no such file or directory"),
            (["--cwd", "/etc/passwd"], "true", 126, "/etc/passwd: not a directory"),
        ):
            result = await on(program, options=options)
            assert (result.returncode, result.stderr.decode()) == (status, f"qnet: n1: {why}\n")
        assert (await on("sh", "-c", "echo ${OLDPWD-unset}", options=["--cwd", "/usr"])).stdout == b"unset\n"
        await ends(system)


async def test_arguments_arrive_as_given(tmp_path: Path) -> None:
    async with node(tmp_path):
        words = ["-x", "a b", "", "*", "$HOME", "'", "--", "\udcff", "-t"]
        result = await on("printf", "[%s]", *words)
        assert result.stdout == b"".join(b"[" + os.fsencode(word) + b"]" for word in words)


async def test_options_before_and_after_the_node(tmp_path: Path) -> None:
    async with node(tmp_path):
        for command in (
            ["--cwd", "/usr", "-e", "A=1", "n1", "sh", "-c", "pwd; echo $A"],
            ["n1", "--cwd", "/usr", "-e", "A=1", "--", "sh", "-c", "pwd; echo $A"],
            ["-T", "n1", "-e", "A=1", "--cwd=/usr", "--", "sh", "-c", "pwd; echo $A"],
        ):
            result = await trio.run_process([*ON, *command], capture_stdout=True)
            assert result.stdout == b"/usr\n1\n"


async def test_a_large_tree_through_a_pipe_both_ways(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(20_000_000)
    async with node(tmp_path):
        began = time.monotonic()
        result = await on("cat", data=data)
        print(f"20 MB there and back: {time.monotonic() - began:.2f} s")
        assert result.returncode == 0
        assert result.stdout == data


async def test_half_close(tmp_path: Path) -> None:
    async with node(tmp_path):
        assert (await on("sort", data=b"b\na\n")).stdout == b"a\nb\n"
        assert (await on("sh", "-c", "cat; echo more", data=b"x\n")).stdout == b"x\nmore\n"
        assert (await on("cat", options=["--no-input"], data=b"never read")).stdout == b""


async def test_a_reader_that_leaves_ends_the_program(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        process = await trio.lowlevel.open_process([*ON, "n1", "yes"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdout is not None
        async with process.stdout:
            assert (await process.stdout.receive_some(4))[:2] == b"y\n"
        with trio.fail_after(10):
            assert await process.wait() == 128 + signal.SIGPIPE
        await ends(system)


async def test_a_program_that_stops_reading_ends_the_writer(tmp_path: Path) -> None:
    async with node(tmp_path):
        shell = f"(yes; echo $? >&2) | {' '.join(ON)} n1 -- head -n1"
        with trio.fail_after(10):
            result = await trio.run_process(["sh", "-c", shell], capture_stdout=True, capture_stderr=True)
        assert (result.stdout, result.stderr) == (b"y\n", b"%d\n" % (128 + signal.SIGPIPE))


async def test_the_writer_ends_though_the_program_goes_on(tmp_path: Path) -> None:
    async with node(tmp_path):
        shell = f"(yes; echo stopped >&2) | {' '.join(ON)} n1 -- sh -c 'exec <&-; echo; sleep 100'"
        process = await trio.lowlevel.open_process(
            ["sh", "-c", shell], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stderr is not None
        assert process.stdout is not None
        try:
            with trio.fail_after(10):
                async with process.stderr, process.stdout:
                    assert await process.stderr.receive_some(100) == b"stopped\n"
            assert process.poll() is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def test_a_slow_reader_of_output_does_not_stop_input_and_errors(tmp_path: Path) -> None:
    async with node(tmp_path):
        process = await trio.lowlevel.open_process(
            [*ON, "n1", "--", "sh", "-c", "head -c 5000000 /dev/zero & cat >&2; wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with trio.fail_after(10):
            async with process.stdout, process.stderr:
                await process.stdin.send_all(b"through\n")
                assert await process.stderr.receive_some(100) == b"through\n"
                await process.stdin.aclose()
                count = 0
                async for data in process.stdout:
                    count += len(data)
            assert count == 5_000_000
            assert await process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
async def test_signals_are_passed_on(tmp_path: Path, number: signal.Signals) -> None:
    script = "trap 'echo INT; exit 1' INT; trap 'echo TERM; exit 1' TERM; trap 'echo USR1; exit 1' USR1; echo; while :; do sleep 0.01; done"
    async with node(tmp_path) as system:
        process = await trio.lowlevel.open_process([*ON, "n1", "--", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with trio.fail_after(10):
            async with process.stdout:
                assert await process.stdout.receive_some(1) == b"\n"
                process.send_signal(number)
                assert await process.stdout.receive_some(10) == number.name[3:].encode() + b"\n"
            assert await process.wait() == 1
        await ends(system)


async def test_a_second_interrupt_leaves_a_program_that_ignores_the_first(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        script = "trap 'echo no' INT; echo; while :; do sleep 0.01; done"
        process = await trio.lowlevel.open_process([*ON, "n1", "--", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with trio.fail_after(10):
            async with process.stdout:
                await process.stdout.receive_some(1)
                process.send_signal(signal.SIGINT)
                assert await process.stdout.receive_some(10) == b"no\n"
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 255
        await ends(system)


async def test_the_command_killed_takes_the_program_along(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        process = await trio.lowlevel.open_process([*ON, "n1", "--", "sh", "-c", "echo $$; exec sleep 100"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with trio.fail_after(10):
            async with process.stdout:
                pid = int(await process.stdout.receive_some(20))
                process.kill()
                await process.wait()
        await ends(system)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_the_daemon_gone_is_one_line_and_255(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        process = await trio.lowlevel.open_process(
            [*ON, "n1", "--", "sh", "-c", "echo; sleep 100"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with trio.fail_after(10):
            async with process.stdout, process.stderr:
                await process.stdout.receive_some(1)
                assert system.server is not None
                system.server.close()
                assert await process.wait() == 255
                assert await process.stderr.receive_some(1000) == b"qnet on: the daemon of this node went away; try: qnet status\n"


async def test_errors_are_one_line_and_255(tmp_path: Path) -> None:
    async with node(tmp_path):
        result = await trio.run_process([*ON, "n9", "true"], capture_stderr=True, check=False)
        assert (result.returncode, result.stderr) == (255, b"qnet on: no node n9 is up; try: qnet ls\n")
        result = await on("true", options=["--cwd", "relative"])
        assert (result.returncode, result.stderr.count(b"\n")) == (255, 1)
        assert (await on("id", "-u", options=["-u", "65534"])).stdout == (b"65534\n" if os.geteuid() == 0 else b"")
        result = await on("true", options=["-u", "4294967297"])
        assert (result.returncode, result.stderr.count(b"\n")) == (255, 1)
        result = await on("true", options=["-u", "no-such-user"])
        assert (result.returncode, result.stderr) == (
            255,
            b"qnet on: n1 has no account of the name no-such-user that may be used; try: getent passwd, on n1; its log says why\n",
        )
        result = await on("true", options=["-t", "/dev/nosuch"])
        assert (result.returncode, result.stderr) == (126, b"qnet: n1: /dev/nosuch is no terminal\n")
        result = await on("true", options=["-e", "=x"])
        assert (result.returncode, result.stderr.count(b"\n")) == (255, 1)
    result = await trio.run_process(
        [*ON, "n1", "true"], capture_stderr=True, check=False, env={**os.environ, "QNET_RUN_DIR": str(tmp_path / "none")}
    )
    assert (result.returncode, result.stderr) == (255, b"qnet on: this node is not up; try: qnet up\n")


async def test_several_nodes_of_which_one_is_down(tmp_path: Path) -> None:
    async with node(tmp_path):
        command = [*ON, "n1,n9", "--", "sh", "-c", "cat; echo err >&2"]
        result = await trio.run_process(command, stdin=b"x\n" * 200_000, capture_stdout=True, capture_stderr=True, check=False)
        assert (result.returncode, result.stdout) == (255, b"n1: x\n" * 200_000)
        assert result.stderr == b"qnet on: no node n9 is up; try: qnet ls\nn1: err\n"
        result = await trio.run_process([*ON, "--no-input", "n1,n1", "cat"], stdin=b"x", capture_stdout=True)
        assert result.stdout == b""
        # A program that reads no more ends the writer, and a reader that leaves ends the programs.
        shell = f"(yes; echo $? >&2) | {' '.join(ON)} n1,n1 -- sh -c 'head -n1; exec yes' | head -n1"
        with trio.fail_after(10):
            result = await trio.run_process(["sh", "-c", shell], capture_stdout=True, capture_stderr=True)
        assert result.stdout == b"n1: y\n"
        assert b"%d" % (128 + signal.SIGPIPE) in result.stderr


async def test_who_reads_nothing_of_several_nodes_can_still_be_left(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        output, writing = os.pipe()
        process = await trio.lowlevel.open_process(
            [*ON, "n1,n1", "--", "sh", "-c", "trap : INT; echo >&2; yes"], stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE
        )
        os.close(writing)
        assert process.stderr is not None
        try:
            with trio.fail_after(10):
                async with process.stderr:
                    assert await process.stderr.receive_some(100) == b"n1: \n"
                    size = fcntl.fcntl(output, fcntl.F_GETPIPE_SZ)
                    while struct.unpack("i", fcntl.ioctl(output, termios.FIONREAD, bytes(4)))[0] < size:  # noqa: ASYNC110  # until it is full
                        await trio.sleep(0.005)
                    process.send_signal(signal.SIGINT)
                    process.send_signal(signal.SIGTERM)
                    assert await process.wait() == 255
                    assert await process.stderr.receive_some(1000) == b"qnet on: left n1: the program there gets SIGHUP\n"
        finally:
            os.close(output)
        await ends(system)


async def test_detached(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        result = await on("sleep", "100", options=["-d"])
        pid = int(result.stdout)
        await trio.sleep(0.1)  # that nothing happens to it is what is tested
        assert system.processes is not None
        assert [(fact.pid, fact.state) for fact in system.processes.facts()] == [(pid, "running")]
        os.kill(pid, signal.SIGKILL)
        await ends(system)
        for program, status, said in (("no-such-program", 127, b"not found"), ("/etc/passwd", 126, b"cannot be executed")):
            result = await on(program, options=["-d"])
            assert (result.returncode, result.stdout) == (status, b"")
            assert said in result.stderr
        result = await on("true", options=["-d"])
        assert result.returncode == 0
        assert int(result.stdout)


async def test_fifty_commands_at_once(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        found: list[bytes] = []

        async def one(number: int) -> None:
            found.append((await on("sh", "-c", f"cat; exit {number}", data=b"%d" % number)).stdout)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
        assert sorted(map(int, found)) == list(range(50))
        await ends(system)


class Screen:
    """A user's terminal with `qnet on` in it."""

    def __init__(self, *words: str, program: Sequence[str] = ON) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [*program, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.set_blocking(self.master, False)
        self.text = b""
        self.all = b""

    async def until(self, text: bytes) -> None:
        with trio.fail_after(10):
            while text not in self.text:
                await trio.lowlevel.wait_readable(self.master)
                with contextlib.suppress(BlockingIOError):
                    data = os.read(self.master, 4096)
                    self.text += data
                    self.all += data
        self.text = self.text[self.text.index(text) + len(text) :]

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    async def status(self) -> int:
        with trio.fail_after(10):
            while self.process.poll() is None:  # noqa: ASYNC110  # a process of the standard library
                await trio.sleep(0.01)
        return self.process.returncode

    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


async def test_a_terminal_is_one_on_the_other_side(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        screen = Screen("n1", "-e", "PS1=ready> ", "--", "sh")
        try:
            await screen.until(b"ready> ")
            assert not screen.restored()
            screen.type(b"stty size; echo t=$TERM\r")
            await screen.until(b"33 77\r\n")
            fcntl.ioctl(screen.master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 88, 0, 0))
            await screen.until(b"ready> ")
            # The size travels by a signal, which nobody can wait for from here: ask until it has arrived.
            with trio.fail_after(10):
                while b"44 88" not in screen.text:
                    screen.text = b""
                    screen.type(b"stty size\r")
                    await screen.until(b"ize\r\n")
                    while b"ready> " not in screen.text:
                        await trio.lowlevel.wait_readable(screen.master)
                        screen.text += os.read(screen.master, 4096)
            screen.type(b"sleep 100\r")
            await screen.until(b"100\r\n")
            await trio.sleep(0.1)  # until it sleeps; typed too soon, the shell takes it
            screen.type(b"\x03")
            await screen.until(b"ready> ")
            screen.type(b"exit 5\r")
            assert await screen.status() == 5
            assert screen.restored()
        finally:
            screen.close()
        await ends(system)


async def test_the_escape_leaves(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        screen = Screen("n1", "--", "sh", "-c", "echo up; exec sleep 100")
        try:
            await screen.until(b"up")
            screen.type(b"\r~?")
            await screen.until(b"  ~~   ~ itself\r\n")
            screen.type(b"x\r~.")
            assert await screen.status() == 255
            await screen.until(b"qnet on: left n1: the program there gets SIGHUP\r\n")
            assert screen.restored()
        finally:
            screen.close()
        await ends(system)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_the_terminal_is_restored_after_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    async with node(tmp_path) as system:
        screen = Screen("n1", "--", "sh", "-c", "echo up; exec sleep 100")
        try:
            await screen.until(b"up")
            screen.process.send_signal(number)
            assert await screen.status() == 128 + number
            assert screen.restored()
        finally:
            screen.close()
        await ends(system)


async def test_the_terminal_is_restored_when_the_daemon_goes(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        screen = Screen("n1", "--", "sh", "-c", "echo up; exec sleep 100")
        try:
            await screen.until(b"up")
            assert system.server is not None
            system.server.close()
            assert await screen.status() == 255
            assert screen.restored()
            await screen.until(b"qnet on: the daemon of this node went away")
        finally:
            screen.close()


def test_escape() -> None:
    escape = Escape()
    assert escape.feed(b"a~.b\r") == (b"a~.b\r", False)
    assert escape.feed(b"~") == (b"", False)
    assert escape.feed(b"~x\r~") == (b"~x\r", False)
    assert escape.feed(b"y~") == (b"~y~", False)
    assert escape.feed(b"\n~.more") == (b"\n", True)
    assert Escape().feed(b"~.") == (b"", True)


def test_raw_mode_of_what_is_no_terminal() -> None:
    with open(os.devnull, "rb") as null, Raw(null.fileno()):
        assert size(null.fileno()) == Size(24, 80)


def test_the_look_up_is_the_one_of_iomsg() -> None:
    assert iomsg.request(iomsg.Io.CONNECT, iomsg.Connect.LOOKUP) == LOOKUP
    entry = iomsg.Entry(iomsg.Target(3, 1, 1), 0, 0, None, rest=b"x")
    assert ENTRY_TARGET.unpack_from(entry.pack()) == (3, 1, 1)
    assert errno.ENOENT == 2


def test_it_loads_nothing_heavy() -> None:
    code = "import sys, qnetpy.cli.on, qnetpy.cli.pump; print([m for m in ('trio', 'attr', 'stack', 'cryptography') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("option", ["-t", "-T"])
async def test_a_stop_typed_stops_both_sides_and_fg_continues_both(tmp_path: Path, option: str) -> None:
    """In a shell with job control, as people have it: the terminal is raw with -t, so what is typed arrives there first."""
    async with node(tmp_path) as system:
        screen = Screen(program=["env", "PS1=prompt> ", "ENV=", "sh", "-i"])
        try:
            await screen.until(b"prompt> ")
            command = " ".join(ON)
            screen.type(f"{command} {option} n1 -- sh -c 'echo rea$((1))dy; exec sleep 100'; echo status=$?\n".encode())
            await screen.until(b"rea1dy")
            assert system.processes is not None
            (fact,) = system.processes.facts()
            proc = trio.Path(f"/proc/{fact.pid}/cmdline")

            async def until(wanted: str) -> None:
                with trio.fail_after(10):
                    while (state(fact.pid), await proc.read_bytes()) != (wanted, b"sleep\x00100\x00"):  # noqa: ASYNC110  # what is waited for happens outside this program
                        await trio.sleep(0.005)

            for _ in range(2):
                await until("S")
                screen.type(b"\x1a")
                await screen.until(b"prompt> ")
                await until("T")
                screen.type(b"echo a$((1))b\n")
                await screen.until(b"a1b")
                screen.type(b"fg\n")
                await screen.until(b"fg")
                await until("S")
            screen.type(b"\x03")
            await screen.until(b"prompt> ")
            await ends(system)
        finally:
            screen.close()


async def test_in_the_background_the_terminal_is_left_alone(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        assert system.processes is not None
        screen = Screen(program=["env", "PS1=prompt> ", "ENV=", "sh", "-i"])
        try:
            await screen.until(b"prompt> ")
            shells = termios.tcgetattr(screen.slave)
            # Started there it runs, as a program of this machine would, and is ended as one.
            screen.type(f"{' '.join(ON)} n1 -- sh -c 'echo star$((1))ted; sleep 100' &\n".encode())
            await screen.until(b"star1ted")
            screen.type(b"jobs; kill %1; wait; echo wai$((1))ted\n")
            await screen.until(b"Running")
            await screen.until(b"wai1ted")
            await ends(system)
            # Ctrl-Z, bg, fg: everything goes on, the terminal is raw in the foreground only.
            screen.type(f"{' '.join(ON)} n1 -- sh -c 'echo star$((2))ted; read line; echo line $line; read line'\n".encode())
            await screen.until(b"star2ted")
            screen.type(b"\x1a")
            await screen.until(b"prompt> ")
            (fact,) = system.processes.facts()
            screen.type(b"bg\n")
            with trio.fail_after(10):
                while state(fact.pid) != "S":  # noqa: ASYNC110  # what is waited for happens outside this program
                    await trio.sleep(0.005)
            assert termios.tcgetattr(screen.slave) == shells
            screen.type(b"fg\n")
            await screen.until(b"fg")
            with trio.fail_after(10):
                while termios.tcgetattr(screen.slave)[3] & termios.ICANON:  # noqa: ASYNC110  # likewise
                    await trio.sleep(0.005)
            screen.type(b"typed\r")
            await screen.until(b"line typed")
            # A program that ignores Ctrl-C: how to leave is said once.
            screen.type(b"\x03")
            await screen.until(b"prompt> ")
            screen.type(f"{' '.join(ON)} n1 -- sh -c 'trap : INT; echo star$((3))ted; while :; do sleep 0.01; done'\n".encode())
            await screen.until(b"star3ted")
            screen.type(b"\x03\x03\x03")
            await screen.until(b"(Enter, then ~. leaves, whatever the program does)\r\n")
            screen.type(b"\r~.")
            await screen.until(b"left n1")
            await screen.until(b"prompt> ")
            assert termios.tcgetattr(screen.slave) == shells
            assert b"Traceback" not in screen.all
            await ends(system)
        finally:
            screen.close()


async def test_the_escape_stops_only_here_when_a_shell_runs_there(tmp_path: Path) -> None:
    async with node(tmp_path) as system:
        screen = Screen(program=["env", "PS1=prompt> ", "ENV=", "sh", "-i"])
        try:
            await screen.until(b"prompt> ")
            screen.type(f"{' '.join(ON)} -t n1 -e 'PS1=far$((1))x ' -- sh -i\n".encode())
            await screen.until(b"far1x ")
            screen.type(b"\r~\x1a")
            await screen.until(b"prompt> ")
            screen.type(b"fg\n")
            await screen.until(b"fg")
            screen.type(b"echo back-$((40+2))\r")
            await screen.until(b"back-42")
            screen.type(b"exit\r")
            await screen.until(b"prompt> ")
            await ends(system)
        finally:
            screen.close()


def test_escapes_that_stop_are_counted() -> None:
    escape = Escape()
    assert (escape.feed(b"~\x1ax"), escape.stops) == ((b"x", False), 1)
    assert (escape.feed(b"~\x1a"), escape.stops) == ((b"~\x1a", False), 1)
