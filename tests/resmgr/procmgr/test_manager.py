"""The process manager through a kernel, with real processes: streams, ends, signals, terminals, rights, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pwd
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from resmgr.access import Grant, MappedUser, Policy, UserRule
from resmgr.channel import CHID_PROCMGR, ND_LOCAL, PID_SYSTEM, ClientInfo, Connection, Credentials, Kernel, Nd, Pending, ReadDone
from resmgr.dispatch import Buffer
from resmgr.procmgr import manager, message
from resmgr.procmgr.launch import account as find_account
from resmgr.procmgr.launch import environment, shut
from resmgr.procmgr.manager import PROCESSES_PER_CLIENT_MAX, ProcessManager
from resmgr.procmgr.message import SPAWN_DETACHED, SPAWN_PTY, SPAWN_STDERR, SPAWN_STDIN, SPAWN_STDOUT, Ended, Spawn
from resmgr.procmgr.rules import CommandPattern, Refusal, SpawnRule, SpawnRules
from resmgr.procmgr.stream import READS_MAX
from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.users import Accounts

pytestmark = pytest.mark.host
ALL = SPAWN_STDIN | SPAWN_STDOUT | SPAWN_STDERR
ROOT = os.geteuid() == 0
NOBODY = 65534
needs_root = pytest.mark.skipif(not ROOT, reason="becoming another user needs root")


class Failed(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(errno.errorcode[code])
        self.code = code


class Client:
    """A local client: sends and waits."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.connection: Connection = world.kernel.connect(
            ND_LOCAL, PID_SYSTEM, CHID_PROCMGR, Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid())
        )

    def submit(self, parts: Sequence[Buffer], reply_len: int, done: Callable[[int, Buffer], None]) -> list[Pending | None]:
        pending: list[Pending | None] = []
        self.world.dispatch.enter(lambda: pending.append(self.connection.submit(parts, reply_len, done)))
        return pending

    async def send(self, *parts: Buffer, reply_len: int = 0) -> tuple[int, bytes]:
        ended = trio.Event()
        result: list[tuple[int, bytes]] = []

        def done(status: int, data: Buffer) -> None:
            result.append((status, bytes(data)))
            ended.set()

        self.submit(parts, reply_len, done)
        with trio.fail_after(20):
            await ended.wait()
        status, data = result[0]
        if status < 0:
            raise Failed(-status)
        return status, data

    async def spawn(self, *arguments: str, flags: int = ALL, **more: object) -> Running:
        spawn = Spawn(tuple(os.fsencode(argument) for argument in arguments), flags=flags)._replace(**more)  # type: ignore[arg-type]  # field names are checked by the call
        _, data = await self.send(message.pack_spawn(spawn), reply_len=message.SPAWNED.size)
        return Running(self, *message.parse_spawned(data))

    def close(self) -> None:
        self.world.dispatch.enter(self.connection.close)


@attrs.define
class Running:
    """A spawned process, seen by its client."""

    client: Client
    handle: int
    pid: int
    numbers: dict[int, int] = attrs.field(factory=lambda: {0: 0, 1: 0, 2: 0})

    def number(self, stream: int) -> int:
        self.numbers[stream] += 1
        return self.numbers[stream] - 1

    async def read(self, stream: int = 1, size: int = 65536) -> bytes:
        request = message.pack_read(self.handle, stream, self.number(stream), size)
        return (await self.client.send(request, reply_len=size))[1]

    async def read_all(self, stream: int = 1) -> bytes:
        parts = []
        while data := await self.read(stream):
            parts.append(data)
        return b"".join(parts)

    async def read_until(self, text: bytes) -> bytes:
        data = b""
        while text not in data:
            more = await self.read()
            assert more, f"ended after {data!r}"
            data += more
        return data

    async def write(self, data: bytes = b"", last: bool = False) -> int:
        return (await self.client.send(message.pack_write(self.handle, self.number(0), last), data))[0]

    async def wait(self) -> Ended:
        return message.parse_ended((await self.client.send(message.pack_wait(self.handle), reply_len=4))[1])

    async def signal(self, number: int) -> None:
        await self.client.send(message.pack_signal(self.handle, number))

    async def close(self) -> None:
        await self.client.send(message.pack_close(self.handle))


class World:
    """A kernel with a process manager on a real dispatch."""

    def __init__(self, dispatch: TrioDispatch, policy: Policy, rules: SpawnRules | None, namespace: str | None, audit: str = "") -> None:
        self.dispatch = dispatch
        self.kernel = Kernel(dispatch, "here")
        self.manager = ProcessManager(self.kernel, dispatch, policy, rules, namespace=namespace, audit=audit)

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not condition():  # noqa: ASYNC110  # what is waited for happens outside this program
                await trio.sleep(0.005)


def policy(**rules: object) -> Policy:
    return Policy(Accounts(time.monotonic), **rules)  # type: ignore[arg-type]  # keywords of Policy


@asynccontextmanager
async def world(rules: SpawnRules | None = None, namespace: str | None = None, audit: str = "", **policies: object) -> AsyncIterator[World]:
    """Checks on the way out that no descriptor, zombie or child is left."""
    before, before_children = descriptors(), children()
    async with open_dispatch() as dispatch:
        here = World(dispatch, policy(**policies), rules, namespace, audit)
        try:
            yield here
        finally:
            here.manager.close()
    assert descriptors() == before
    assert children() == before_children


def descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return {fd: target for fd, target in found.items() if not target.startswith("/proc/")}


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_output_and_status() -> None:
    async with world() as here:
        running = await Client(here).spawn("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
        assert await running.read_all(1) == b"out\n"
        assert await running.read_all(2) == b"err\n"
        assert await running.wait() == Ended(7, None)
        assert await running.read(1) == b""
        await running.close()
        with pytest.raises(Failed, match="EBADF"):
            await running.wait()
        assert list(here.manager.facts()) == []


async def test_death_by_signal() -> None:
    async with world() as here:
        running = await Client(here).spawn("sleep", "100")
        await running.signal(signal.SIGTERM)
        assert await running.wait() == Ended(None, signal.SIGTERM)
        with pytest.raises(Failed, match="ESRCH"):
            await running.signal(signal.SIGTERM)


async def test_signals_reach_the_whole_group() -> None:
    async with world() as here:
        running = await Client(here).spawn("sh", "-c", "sleep 100 & echo $!; wait")
        child = int(await running.read())
        await running.signal(signal.SIGTERM)
        assert await running.wait() == Ended(None, signal.SIGTERM)
        await here.until(lambda: not alive(child))


async def test_what_cannot_be_executed_says_so_as_a_shell_does() -> None:
    async with world() as here:
        client = Client(here)
        missing = await client.spawn("no-such-program")
        assert b"not found" in await missing.read_all(2)
        assert await missing.wait() == Ended(127, None)
        assert await (await client.spawn("/etc/passwd")).wait() == Ended(126, None)
        assert await (await client.spawn("true", directory=b"/no/such")).wait() == Ended(126, None)
        for program in ("-c", "--"):
            with pytest.raises(Failed, match="EINVAL"):
                await client.spawn(program)
        with pytest.raises(Failed, match="EINVAL"):
            await client.spawn("true", directory=b"tmp")


async def test_input_reaches_the_program_whole_and_in_order() -> None:
    """Large, with several WRITEs under way, out of order; the program is slow to start reading."""
    data = random.Random(1).randbytes(3_000_000)
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sh", "-c", "sleep 0.1; cat")
        pieces = [data[at : at + 700_000] for at in range(0, len(data), 700_000)]
        received = bytearray()

        async def write(number: int) -> None:
            request = message.pack_write(running.handle, number, number == len(pieces) - 1)
            assert (await client.send(request, pieces[number]))[0] == len(pieces[number])

        async with trio.open_nursery() as nursery:
            for number in reversed(range(len(pieces))):
                nursery.start_soon(write, number)
                await trio.lowlevel.checkpoint()
            received += await running.read_all()
        assert bytes(received) == data
        assert await running.wait() == Ended(0, None)


async def test_reads_under_way_are_answered_in_the_order_of_their_numbers() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sh", "-c", "for i in 0 1 2 3; do echo $i; sleep 0.02; done")
        answers: dict[int, bytes] = {}

        async def read(number: int) -> None:
            answers[number] = (await client.send(message.pack_read(running.handle, 1, number, 2), reply_len=2))[1]

        async with trio.open_nursery() as nursery:
            for number in (3, 1, 0, 4, 2, 5):
                nursery.start_soon(read, number)
        assert answers == {0: b"0\n", 1: b"1\n", 2: b"2\n", 3: b"3\n", 4: b"", 5: b""}


async def test_a_client_that_does_not_read_stops_the_program() -> None:
    async with world() as here:
        running = await Client(here).spawn("sh", "-c", "head -c 2000000 /dev/zero; echo done >&2")
        await trio.sleep(0.2)  # that nothing comes is what is tested
        assert alive(running.pid)
        assert len(await running.read_all(1)) == 2_000_000
        assert await running.read_all(2) == b"done\n"


async def test_a_program_that_does_not_read_ends_the_writing() -> None:
    async with world() as here:
        running = await Client(here).spawn("sh", "-c", "exec <&-; sleep 0.1")
        with pytest.raises(Failed, match="EPIPE"):
            await running.write(bytes(2_000_000))
        with pytest.raises(Failed, match="EPIPE"):
            await running.write(b"more")
        assert await running.wait() == Ended(0, None)


async def test_half_close_of_input() -> None:
    async with world() as here:
        running = await Client(here).spawn("sort")
        assert await running.write(b"b\na\n") == 4
        assert await running.write(last=True) == 0
        assert await running.read_all() == b"a\nb\n"
        with pytest.raises(Failed, match="EPIPE"):
            await running.write(b"late")


async def test_streams_that_are_not_carried_are_null() -> None:
    async with world() as here:
        running = await Client(here).spawn("sh", "-c", "cat; echo lost >&2; echo kept", flags=SPAWN_STDOUT)
        assert await running.read_all() == b"kept\n"
        with pytest.raises(Failed, match="EBADF"):
            await running.read(2)
        with pytest.raises(Failed, match="EBADF"):
            await running.write(b"x")


async def test_the_program_gets_a_clean_world() -> None:
    """Environment, directory, umask, descriptors, session, signals."""
    script = "env | sort; pwd; umask; ls -l /proc/self/fd | wc -l; cut -d' ' -f5,6 /proc/$$/stat; echo $$; grep SigIgn /proc/self/status"
    os.environ["QNETPY_TEST_LEAK"] = "1"
    leak, other = os.pipe()
    os.set_inheritable(leak, True)
    try:
        async with world() as here:
            wanted = (
                b"TERM=vt100",
                b"LANG=C",
                b"LD_PRELOAD=/x.so",
                b"PATH=/evil",
                b"HOME=/evil",
                b"ENV=/evil",
                b"a-b=1",
                b"IFS=x",
                b"X=1=2",
            )
            running = await Client(here).spawn("sh", "-c", script, environment=wanted, directory=b"/usr", umask=0o27)
            lines = (await running.read_all()).decode().splitlines()
            assert await running.read_all(2) == b""
    finally:
        del os.environ["QNETPY_TEST_LEAK"]
        os.close(leak)
        os.close(other)
    account = pwd.getpwuid(os.geteuid())
    variables = dict(line.split("=", 1) for line in lines[:-6])
    assert variables.pop("PATH").startswith("/usr/local/")
    assert variables.pop("PWD") == "/usr"
    variables.pop("OLDPWD", None)
    assert variables == {
        "TERM": "vt100",
        "LANG": "C",
        "X": "1=2",
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell,
    }
    assert lines[-6] == "/usr"
    assert lines[-5] == "0027"
    # ls opens the directory itself: 0, 1, 2, 3 and the line with the total.
    assert int(lines[-4]) == 5
    assert lines[-3].split() == [lines[-2]] * 2
    # Signals 32 and 33 are the C library's own; who started the tests may have left them ignored, and nobody can change that.
    assert int(lines[-1].split()[1], 16) & ~(3 << 31) == 0


async def test_a_stream_that_is_closed_ends_who_writes_there() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sh", "-c", "yes; echo $? >&2")
        assert (await running.read()).startswith(b"y\n")
        await client.send(message.pack_close(running.handle, 1))
        assert await running.read_all(2) == b"%d\n" % (128 + signal.SIGPIPE)
        with pytest.raises(Failed, match="EBADF"):
            await client.send(message.pack_close(running.handle, 1))


async def test_a_terminal() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sh", flags=SPAWN_PTY, rows=25, columns=81, environment=(b"TERM=dumb", b"PS1=$ "))
        await running.write(b"stty size; tty; test -t 0 && test -t 1 && test -t 2 && echo $((40+2)) >/dev/tty\n")
        text = await running.read_until(b"42")
        assert b"25 81" in text
        assert b"/dev/pts/" in text
        await client.send(message.pack_winsize(running.handle, 30, 90))
        await running.write(b"stty size; cat\n")
        assert b"30 90" in await running.read_until(b"30 90")
        # The foreground group gets what is sent, the shell stays.
        await here.until(lambda: comm(running.pid) == "cat")
        await running.signal(signal.SIGINT)
        await here.until(lambda: comm(running.pid) == "sh")
        await running.write(b"echo ag''ain\n")
        await running.read_until(b"again\r\n")
        await running.write(b"cat\n")
        await here.until(lambda: comm(running.pid) == "cat")
        await running.write(b"\x03")
        await here.until(lambda: comm(running.pid) == "sh")
        await running.write(b"exit 3\n")
        await running.read_all()
        assert await running.wait() == Ended(3, None)


def comm(leader: int) -> str:
    """The name of the process in the foreground of *leader*'s terminal."""
    with open(f"/proc/{leader}/stat", encoding="ascii") as file:
        group = int(file.read().rpartition(")")[2].split()[5])
    try:
        with open(f"/proc/{group}/comm", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


@pytest.mark.parametrize("text", [b"", b"whole\n", b"part"])
async def test_end_of_input_on_a_terminal(text: bytes) -> None:
    async with world() as here:
        running = await Client(here).spawn("cat", flags=SPAWN_PTY)
        await running.write(text, last=True)
        assert (await running.read_all()).startswith(text.replace(b"\n", b"\r\n"))
        assert await running.wait() == Ended(0, None)


async def test_more_input_than_a_terminal_takes() -> None:
    """The terminal's queue is 4 KiB; the program starts to read late."""
    lines = b"".join(b"%d\n" % number for number in range(3000))
    async with world() as here:
        running = await Client(here).spawn("sh", "-c", "stty -echo; echo ready; sleep 0.2; cat", flags=SPAWN_PTY)
        await running.read_until(b"ready\r\n")
        received = b""

        async def write() -> None:
            assert await running.write(lines, last=True) == len(lines)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            received = await running.read_all()
        assert received == lines.replace(b"\n", b"\r\n")


async def test_a_hang_up_ends_what_runs_on_the_terminal() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sh", "-c", "sleep 100 & echo $!; wait", flags=SPAWN_PTY)
        child = int(await running.read_until(b"\n"))
        assert alive(child)
        client.close()
        await here.until(lambda: not alive(child) and not alive(running.pid))
        await here.until(lambda: not list(here.manager.facts()))


async def test_when_its_client_goes_a_process_gets_hangup_and_then_is_killed() -> None:
    async with world() as here:
        client, other = Client(here), Client(here)
        polite = await client.spawn("sh", "-c", "trap 'echo bye >&2; exit 0' HUP; echo; sleep 100 & wait")
        stubborn = await client.spawn("sh", "-c", "trap '' HUP; sleep 100 & echo $!; while :; do sleep 0.05; done")
        stays = await other.spawn("sleep", "100")
        await polite.read()
        child = int(await stubborn.read())
        began = time.monotonic()
        client.close()
        await here.until(lambda: not alive(polite.pid))
        assert time.monotonic() - began < 1.0
        assert alive(stubborn.pid)
        await here.until(lambda: not alive(stubborn.pid) and not alive(child))
        assert 1.0 < time.monotonic() - began < 4.0
        await here.until(lambda: [fact.pid for fact in here.manager.facts()] == [stays.pid])
        await other.send(message.pack_close(stays.handle))


async def test_a_client_that_goes_while_its_program_starts() -> None:
    async with world() as here:
        client = Client(here)
        spawn = message.pack_spawn(Spawn((b"sleep", b"100"), flags=SPAWN_DETACHED))
        statuses: list[int] = []
        client.submit([spawn], 12, lambda status, _: statuses.append(status))
        client.close()
        await here.until(lambda: here.manager.spawned == 1 and not list(here.manager.facts()))
        assert statuses
        assert statuses[0] < 0


async def test_a_detached_process_outlives_its_client() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sh", "-c", "exec sleep 100", flags=SPAWN_DETACHED)
        client.close()
        await here.until(lambda: [fact.state for fact in here.manager.facts()] == ["running"])
        assert alive(running.pid)
        await Client(here).send(message.pack_kill(running.pid, signal.SIGKILL))
        await here.until(lambda: not list(here.manager.facts()))


async def test_the_end_of_the_manager_ends_its_processes() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sh", "-c", "trap '' HUP; echo; while :; do sleep 0.05; done")
        await running.read()
        statuses: list[int] = []
        client.submit([message.pack_wait(running.handle)], 4, lambda status, _: statuses.append(status))
        began = time.monotonic()
        here.manager.close()
        assert time.monotonic() - began < 0.5
        assert not alive(running.pid)
        assert statuses == [-errno.ESRCH]


@pytest.mark.priv
@needs_root
async def test_programs_see_the_mounts_of_their_users_not_the_daemons(tmp_path: Path) -> None:
    """A file system is mounted there and not here, as it is when a daemon hides its own mounts from itself."""
    script = f"mount -t tmpfs none {tmp_path}; echo seen > {tmp_path}/file; echo; exec sleep 100"
    keeper = await trio.lowlevel.open_process(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE)
    assert keeper.stdout is not None
    try:
        async with keeper.stdout:
            await keeper.stdout.receive_some(1)
        async with world(namespace=f"/proc/{keeper.pid}/ns/mnt") as here:
            running = await Client(here).spawn("cat", f"{tmp_path}/file")
            assert await running.read_all() == b"seen\n"
            assert await (await Client(here).spawn("cat", "file", directory=bytes(tmp_path))).wait() == Ended(0, None)
        assert os.listdir(tmp_path) == []
        async with world(namespace="/proc/self/no-such-namespace") as here:
            with pytest.raises(Failed, match="ENOENT"):
                await Client(here).spawn("true")
    finally:
        keeper.kill()
        await keeper.wait()


async def test_handles_are_the_clients_own() -> None:
    async with world() as here:
        running = await Client(here).spawn("sleep", "100")
        thief = attrs.evolve(running, client=Client(here))
        for attempt in (thief.read, thief.write, thief.wait, thief.close):
            with pytest.raises(Failed, match="EBADF"):
                await attempt()
        with pytest.raises(Failed, match="EBADF"):
            await thief.signal(9)
        assert alive(running.pid)


async def test_an_unblocked_read_takes_no_output_along() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("cat")
        statuses: list[int] = []
        pending = client.submit([message.pack_read(running.handle, 1, 0, 10)], 10, lambda status, _: statuses.append(status))
        assert pending[0] is not None
        here.dispatch.enter(pending[0].unblock)
        assert statuses == [-errno.EINTR]
        await running.write(b"kept")
        assert await running.read() == b"kept"


async def test_caps() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sleep", "100")
        for number in range(READS_MAX):
            client.submit([message.pack_read(running.handle, 1, number, 1)], 1, lambda *_: None)
        for number in (0, READS_MAX, 1 << 31):
            with pytest.raises(Failed, match="EINVAL"):
                await client.send(message.pack_read(running.handle, 1, number, 1), reply_len=1)
        with pytest.raises(Failed, match="E2BIG"):
            await client.send(message.pack_spawn(Spawn((b"x" * message.SPAWN_MAX,))))
        for _ in range(PROCESSES_PER_CLIENT_MAX - 1):
            await client.spawn("true", flags=0)
        with pytest.raises(Failed, match="EAGAIN"):
            await client.spawn("true", flags=0)
        assert here.manager.refusals[Refusal.TOO_MANY] == 1
        await (await Client(here).spawn("true", flags=0)).wait()


async def test_fifty_at_once_leave_nothing() -> None:
    async with world() as here:
        client = Client(here)
        outputs: dict[int, bytes] = {}

        async def run(number: int) -> None:
            running = await client.spawn("sh", "-c", f"cat; echo {number} >&2; exit {number}")
            await running.write(b"%d" % number, last=True)
            outputs[number] = await running.read_all() + await running.read_all(2)
            assert await running.wait() == Ended(number, None)
            await running.close()

        before, others = descriptors(), set(children())
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(run, number)
        print(f"50 programs in {(time.monotonic() - began) * 1e3:.0f} ms")
        assert outputs == {number: b"%d%d\n" % (number, number) for number in range(50)}
        assert descriptors() == before
        await here.until(lambda: set(children()) <= others)


def children() -> list[int]:
    """Living children of this process and zombies."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and parent(int(name)) == os.getpid()]


def parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


async def test_garbage_is_answered_and_counted() -> None:
    rng = random.Random(8)
    good = message.pack_spawn(Spawn((b"true",)))
    async with world() as here:
        client = Client(here)
        with pytest.raises(Failed, match="ENOSYS"):
            await client.send(message.HEADER.pack(0x2FF, 0, 0, 0))
        for length in range(len(good)):
            with pytest.raises(Failed, match="EBADMSG"):
                await client.send(good[:length])
        assert here.manager.refusals[Refusal.BAD_MESSAGE] == len(good)
        for _ in range(300):
            kind = rng.choice(list(message.Proc)[1:])
            request = message.HEADER.pack(kind, rng.randrange(4), rng.randrange(4), rng.randrange(3)) + rng.randbytes(rng.randrange(20))
            with contextlib.suppress(Failed):
                await client.send(request, reply_len=100)
        for pid in (1 << 31, (1 << 32) - 1):
            with pytest.raises(Failed, match="EINVAL"):
                await client.send(message.pack_kill(pid, 0))
        assert here.manager.mistakes == 0


async def test_a_mistake_of_ours_fails_one_request(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def wrong(*_: object) -> None:
        raise OverflowError("wrong")

    async with world() as here:
        monkeypatch.setattr(manager, "send_to_process", wrong)
        with pytest.raises(Failed, match="EIO"):
            await Client(here).send(message.pack_kill(os.getpid(), 0))
        monkeypatch.setattr(message, "parse_spawn", wrong)
        with pytest.raises(Failed, match="EIO"):
            await Client(here).spawn("true")
        monkeypatch.undo()
        assert await (await Client(here).spawn("true")).wait() == Ended(0, None)
        assert here.manager.mistakes == 2
    assert "a mistake in the process manager" in caplog.text


async def test_the_list_of_processes() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sleep", "100")
        rows: dict[int, message.Row] = {}
        after = 0
        while True:
            count, data = await client.send(message.pack_list(after), reply_len=2048)
            found = message.parse_rows(data)
            assert len(found) == count
            if not found:
                break
            rows.update((row.pid, row) for row in found)
            assert found[0].pid > after
            after = found[-1].pid
        row = rows[running.pid]
        assert (row.name, row.command.replace(b"\0", b" "), row.uid) == (b"sleep", b"sleep 100", os.geteuid())
        assert rows[os.getpid()].memory > 1 << 20


class Far:
    """A client on another node, as its messages reach this kernel. Also the other node's half of each of its messages."""

    def __init__(self, here: World, *, uid: int, node: str = "n2", roles: Sequence[str] = (), scoid: int = 7) -> None:
        self.here = here
        self.info = ClientInfo(Nd(1), node, frozenset(roles), Credentials(uid, 100, (0, 4), 99), scoid)

    async def send(self, *parts: bytes, reply_len: int = 4096, first: int = 40) -> tuple[int, bytes]:
        data = b"".join(parts)
        ended = trio.Event()
        result: list[tuple[int, bytes]] = []
        here = self.here

        class Answerer:
            def answer(self, status: int, parts: Sequence[Buffer], descriptors: Sequence[int]) -> None:
                result.append((status, b"".join(parts)))
                ended.set()

            def pull(self, offset: int, length: int, done: ReadDone) -> None:
                piece = data[offset : offset + length]
                here.dispatch.call_soon(lambda: done(len(piece), piece))

            def push(self, offset: int, data: Buffer) -> None:
                raise AssertionError("not used by the process manager")

        channel = here.kernel.find_channel(PID_SYSTEM, CHID_PROCMGR)
        assert channel is not None

        def deliver() -> None:
            here.kernel.deliver(channel, self.info, data[:first], len(data), reply_len, 10, Answerer())

        here.dispatch.enter(deliver)
        with trio.fail_after(20):
            await ended.wait()
        status, reply = result[0]
        if status < 0:
            raise Failed(-status)
        return status, reply

    async def run(self, script: str, user: bytes = b"") -> str:
        """Output of a shell script."""
        spawn = Spawn((b"/bin/sh", b"-c", script.encode()), flags=SPAWN_STDOUT, user=user)
        handle, _ = message.parse_spawned((await self.send(message.pack_spawn(spawn)))[1])
        text = b""
        number = 0
        while data := (await self.send(message.pack_read(handle, 1, number, 4096)))[1]:
            text += data
            number += 1
        await self.send(message.pack_close(handle))
        return text.decode()


async def test_nobody_from_another_node_may_spawn_unless_it_is_granted(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as here:
        far = Far(here, uid=0)
        for attempt in (message.pack_spawn(Spawn((b"true",))), message.pack_list(0), message.pack_kill(os.getpid(), 0)):
            with pytest.raises(Failed, match="EPERM"):
                await far.send(attempt)
        assert here.manager.refusals[Refusal.NOT_GRANTED] == 3
        assert here.manager.spawned == 0
    assert "refused: not_granted; client on node 'n2', its uid 0, pid 99" in caplog.text
    async with world(grants=[Grant("spawn", nodes=["n3"])]) as here:
        with pytest.raises(Failed, match="EPERM"):
            await Far(here, uid=0).send(message.pack_spawn(Spawn((b"true",))))


@needs_root
async def test_programs_run_as_the_mapped_user(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> None:
    caplog.set_level(logging.INFO, logger="resmgr.procmgr")
    daemon = pwd.getpwnam("daemon")
    script = (
        "id -u; id -g; id -G; grep -E '^(Uid|Gid|CapEff|CapPrm)' /proc/self/status; touch /qnetpy-must-not-be 2>/dev/null && echo wrote"
    )
    before = os.getgroups()
    os.setgroups([0, 4])
    request.addfinalizer(lambda: os.setgroups(before))
    async with world(grants=[Grant("spawn")]) as here:
        # Root of another node is nobody; groups that a node claims are not believed.
        lines = (await Far(here, uid=0).run(script)).splitlines()
        assert lines[:3] == [str(NOBODY)] * 3
        assert lines[3:5] == ["Uid:\t" + "\t".join([str(NOBODY)] * 4), "Gid:\t" + "\t".join([str(NOBODY)] * 4)]
        assert [int(line.split()[1], 16) for line in lines[5:7]] == [0, 0]
        assert len(lines) == 7
        lines = (await Far(here, uid=daemon.pw_uid).run(script)).splitlines()
        assert lines[:3] == [str(daemon.pw_uid), str(daemon.pw_gid), str(daemon.pw_gid)]
        with pytest.raises(Failed, match="EPERM"):
            await Far(here, uid=daemon.pw_uid).run("true", user=b"root")
        with pytest.raises(Failed, match="EACCES"):
            await Far(here, uid=54321).run("true")
    assert "spawn of '/bin/sh' as uid 65534: pid" in caplog.text
    assert "failed: [Errno 13] no such account on this node; client on node 'n2', its uid 54321" in caplog.text


@needs_root
async def test_root_takes_a_mapping_and_a_rule() -> None:
    users = [UserRule("identity", root="root")]
    async with world(users=users, grants=[Grant("spawn")]) as here:
        with pytest.raises(Failed, match="EPERM"):
            await Far(here, uid=0).run("id -u")
        assert here.manager.refusals[Refusal.USER_NOT_ALLOWED] == 1
    async with world(SpawnRules((SpawnRule(users=frozenset({0})),)), users=users, grants=[Grant("spawn")]) as here:
        assert await Far(here, uid=0).run("id -u") == "0\n"
        assert await Far(here, uid=0).run("id -un; id -gn; id -Gn; echo $HOME", user=b"daemon") == "daemon\ndaemon\ndaemon\n/usr/sbin\n"
        with pytest.raises(Failed, match="EPERM"):
            await Far(here, uid=1).run("id -u")


@needs_root
async def test_a_list_of_commands() -> None:
    rules = SpawnRules((SpawnRule(commands=(CommandPattern.parse("/usr/bin/id"),)),))
    async with world(rules, grants=[Grant("spawn")]) as here:
        far = Far(here, uid=1)
        await far.send(message.pack_spawn(Spawn((b"/usr/bin/id", b"-u"))))
        for program in (b"id", b"/bin/sh", b"/usr/bin/../bin/id"):
            with pytest.raises(Failed, match="EPERM"):
                await far.send(message.pack_spawn(Spawn((program,))))
        assert here.manager.refusals[Refusal.COMMAND_NOT_ALLOWED] == 3


def comm_of(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="ascii") as file:
        return file.read().strip()
    return ""


@needs_root
async def test_a_terminal_belongs_to_its_user() -> None:
    async with world(grants=[Grant("spawn")]) as here:
        far = Far(here, uid=1)
        spawn = Spawn((b"sh", b"-c", b"stat -c %u $(tty); echo x > /dev/tty"), flags=SPAWN_PTY)
        handle, _ = message.parse_spawned((await far.send(message.pack_spawn(spawn)))[1])
        text, number = b"", 0
        while data := (await far.send(message.pack_read(handle, 1, number, 4096)))[1]:
            text, number = text + data, number + 1
        assert text == b"1\r\nx\r\n"


def test_locked_and_expired_accounts(tmp_path: object) -> None:
    shadow = f"{tmp_path}/shadow"
    with open(shadow, "w", encoding="ascii") as file:
        file.write("a:*:1::::::\nb:!:1::::::\nc:!$6$x:1::::::\nd:$6$x:1:::::100:\nab:!:1::::::\n")
    day = 86400.0
    assert [bool(shut(name, 99.9 * day, shadow)) for name in "abcdx"] == [False, True, True, False, False]
    assert [bool(shut(name, 100 * day, shadow)) for name in "ad"] == [False, True]
    assert shut("a", 0.0, f"{tmp_path}/missing") == ""


def test_the_environment_is_filtered() -> None:
    account = find_account(MappedUser(os.geteuid(), os.getegid()), b"")
    wanted = (b"LD_LIBRARY_PATH=x", b"BASH_FUNC_f%%=() { :; }", b"GLIBC_TUNABLES=x", b"1A=x", b"OK=", b"LC_ALL=C")
    result = environment(Spawn((b"x",), wanted), account)
    assert {name for name in result if name not in (b"HOME", b"USER", b"LOGNAME", b"SHELL", b"PATH")} == {b"OK", b"LC_ALL"}
