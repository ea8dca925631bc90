"""How a program is placed: limits, priority, the terminal it runs on, stopping, and what the audit log says of all that."""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import os
import pwd
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
import trio

from resmgr.access import Grant, MappedUser, UserRule
from resmgr.dispatch import Buffer
from resmgr.procmgr import launch, manager, message
from resmgr.procmgr.launch import shut
from resmgr.procmgr.message import SPAWN_DETACHED, SPAWN_PTY, SPAWN_ROOT, SPAWN_STDERR, SPAWN_STDOUT, UNLIMITED, Ended, Scheduling, Spawn
from resmgr.procmgr.rules import CommandPattern, Refusal, SpawnRule, SpawnRules
from tests.resmgr.procmgr.test_manager import NOBODY, Client, Failed, Far, Running, World, children, descriptors, needs_root, world

pytestmark = pytest.mark.host


async def output(here: World, script: str, **more: object) -> str:
    running = await Client(here).spawn("sh", "-c", script, **more)  # type: ignore[arg-type]  # field names are checked by the call
    text = (await running.read_all()).decode()
    await running.wait()
    return text


async def test_soft_limits_are_the_clients_where_hard_ones_allow() -> None:
    limits = ((0, 4000), (1, 1 << 30), (3, 4 << 20), (4, 0), (7, 77), (9, UNLIMITED))
    async with world() as here:
        text = await output(here, "ulimit -S -t; ulimit -S -f; ulimit -S -s; ulimit -S -c; ulimit -S -n; ulimit -S -v", limits=limits)
        assert text.split() == ["4000", str(1 << 21), "4096", "0", "77", "unlimited"]
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert (await output(here, "ulimit -S -n; ulimit -H -n", limits=((7, UNLIMITED),))).split() == [str(hard)] * 2
        assert (await output(here, "ulimit -S -n; echo $_q", environment=(b"_q=kept",))).split()[1] == "kept"


async def test_priority() -> None:
    async with world() as here:
        script = "cut -d' ' -f19,41 /proc/self/stat"
        assert (await output(here, script, nice=7)).split()[0] == "7"
        assert (await output(here, script, scheduling=Scheduling.BATCH)).split()[1] == "3"
        assert (await output(here, script, scheduling=Scheduling.IDLE, nice=2)).split() == ["2", "5"]
        assert (await (await Client(here).spawn("no-such", nice=2)).wait()) == Ended(127, None)


@needs_root
async def test_a_raised_priority_needs_root_or_a_rule() -> None:
    async with world(SpawnRules((SpawnRule(nice=-5),)), grants=[Grant("spawn")]) as here:
        script = "while [ $(cut -d' ' -f19 /proc/self/stat) != -5 ]; do :; done; echo raised"
        assert await output(here, script, nice=-5) == "raised\n"
        far = Far(here, uid=1)
        spawn = Spawn((b"/bin/sh", b"-c", script.encode()), flags=SPAWN_STDOUT, nice=-5)
        handle, _ = message.parse_spawned((await far.send(message.pack_spawn(spawn)))[1])
        assert (await far.send(message.pack_read(handle, 1, 0, 100)))[1] == b"raised\n"
        with pytest.raises(Failed, match="EPERM"):
            await far.send(message.pack_spawn(spawn._replace(nice=-6)))
        assert here.manager.refusals[Refusal.PRIORITY_NOT_ALLOWED] == 1


async def test_a_terminal_of_the_node() -> None:
    """A pseudo-terminal stands for one: the program has it as its controlling terminal, and nothing else."""
    async with world() as here:
        master, slave = os.openpty()
        name = os.ttyname(slave)
        os.set_blocking(master, False)
        try:
            client = Client(here)
            script = "tty; echo here >/dev/tty; ls /proc/self/fd | wc -l; echo end; read _"
            running = await client.spawn("sh", "-c", script, flags=SPAWN_STDERR, terminal=name.encode())
            text = b""

            def said() -> bool:
                nonlocal text
                with contextlib.suppress(BlockingIOError):
                    text += os.read(master, 1000)
                return b"end" in text

            await here.until(said)
            assert text.decode().split() == [name, "here", "4", "end"]
            os.write(master, b"\n")
            assert await running.wait() == Ended(0, None)
            assert await running.read_all(2) == b""
            lost = await client.spawn("true", flags=SPAWN_STDERR, terminal=b"/dev/no-such-terminal")
            assert await lost.read_all(2) == b"qnet: here: /dev/no-such-terminal is no terminal\n"
            assert await lost.wait() == Ended(126, None)
        finally:
            os.close(master)
            os.close(slave)


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


async def test_a_stop_and_going_on() -> None:
    async with world() as here:
        running = await Client(here).spawn("sleep", "100")
        await running.signal(signal.SIGTSTP)
        await here.until(lambda: state(running.pid) == "T")
        await running.signal(signal.SIGCONT)
        await here.until(lambda: state(running.pid) == "S")
        caught = await Client(here).spawn("sh", "-c", "trap 'echo stop' TSTP; echo; while :; do sleep 0.01; done")
        await caught.read()
        await caught.signal(signal.SIGTSTP)
        assert await caught.read() == b"stop\n"
        assert state(caught.pid) != "T"


async def typed(running: Running, data: bytes, marker: bytes) -> None:
    await running.write(data)
    await running.read_until(marker)


async def test_what_is_typed_stops_a_program_alone_on_its_terminal_and_whoever_waits_is_told() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sh", "-c", "echo ready; exec sleep 100", flags=SPAWN_PTY)
        await running.read_until(b"ready")
        await here.until(lambda: b"sleep" in Path(f"/proc/{running.pid}/cmdline").read_bytes())
        told: list[Ended] = []

        def waited(status: int, data: Buffer) -> None:
            if status == 0:
                told.append(message.parse_ended(data))

        client.submit([message.pack_wait(running.handle, True)], 4, waited)
        await running.write(b"abc")
        await running.write(b"\x1a")
        await here.until(lambda: bool(told))
        assert told == [Ended(None, signal.SIGTSTP, stopped=True)]
        await here.until(lambda: state(running.pid) == "T")
        await running.signal(signal.SIGCONT)
        await here.until(lambda: state(running.pid) == "S")
        await running.write(b"\x03")
        assert await running.wait() == Ended(None, signal.SIGINT)


async def test_a_shell_on_a_terminal_stops_its_jobs_itself() -> None:
    async with world() as here:
        client = Client(here)
        running = await client.spawn("sh", flags=SPAWN_PTY, environment=(b"TERM=dumb", b"PS1=$ ", b"ENV="))
        told: list[Ended] = []

        def waited(status: int, data: Buffer) -> None:
            if status == 0:
                told.append(message.parse_ended(data))

        client.submit([message.pack_wait(running.handle, True)], 4, waited)
        await typed(running, b"set -m; echo a$((1+1))\n", b"a2")
        await running.write(b"sleep 100\n")
        await here.until(lambda: comm_of_foreground(running.pid) == "sleep")
        await running.write(b"\x1a")
        await typed(running, b"echo b$((1+1))\n", b"b2")
        assert told == []
        assert state(running.pid) != "T"


def comm_of_foreground(pid: int) -> str:
    """The program in the foreground of the terminal of *pid*."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        group = file.read().rpartition(")")[2].split()[5]
    try:
        return Path(f"/proc/{group}/comm").read_text().strip()
    except OSError:
        return ""


def audited(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@needs_root
async def test_each_attempt_is_in_the_audit_log_before_it_happens(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    rules = SpawnRules((SpawnRule(commands=tuple(map(CommandPattern.parse, ("/bin/sh", "/bin/sleep *")))),))
    async with world(rules, grants=[Grant("spawn", nodes=["n2"])], audit=str(path)) as here:
        here.manager.fingerprint = lambda node: f"print of {node}"
        far = Far(here, uid=0, roles=["build"])
        text = await far.run(f"tail -n1 {path} 2>&1; exit 3")
        assert "Permission denied" in text
        with pytest.raises(Failed, match="EPERM"):
            await far.send(message.pack_spawn(Spawn((b"/bin/cat", b"/etc/passwd"))))
        with pytest.raises(Failed, match="EPERM"):
            await Far(here, uid=0, node="n3").send(message.pack_spawn(Spawn((b"/bin/sh",))))
        _, pid = message.parse_spawned((await far.send(message.pack_spawn(Spawn((b"/bin/sleep", b"9"), flags=SPAWN_DETACHED))))[1])
        await far.send(message.pack_kill(pid, signal.SIGKILL))
        await here.until(lambda: len(audited(path)) == 7)
        await (await Client(here).spawn("true", flags=0)).wait()
        await here.until(lambda: len(audited(path.with_name("audit-local"))) == 3)
    # When a program is seen to have ended does not depend on what others ask for meanwhile.
    told = sorted(audited(path), key=lambda line: 1 if line.get("id") == 1 else 2)
    allowed = told[0]
    assert isinstance(allowed.pop("time"), float)
    assert allowed == {
        "event": "allowed",
        "id": 1,
        "node": "n2",
        "fingerprint": "print of n2",
        "roles": ["build"],
        "claimed_uid": 0,
        "claimed_gid": 100,
        "client_pid": 99,
        "uid": NOBODY,
        "as": "",
        "command": ["/bin/sh", "-c", f"tail -n1 {path} 2>&1; exit 3"],
        "directory": "",
        "variables": [],
        "nice": 0,
        "how": [],
    }
    assert (told[1]["event"], told[1]["id"], told[1]["user"], told[1]["uid"]) == ("started", 1, pwd.getpwuid(NOBODY).pw_name, NOBODY)
    assert (told[2]["event"], told[2]["id"], told[2]["status"], told[2]["signal"]) == ("ended", 1, 3, None)
    assert (told[3]["event"], told[3]["how"]) == ("allowed", ["detached"])
    assert [line["event"] for line in told[4:]] == ["started", "signal", "ended"]
    assert (told[5]["pid"], told[5]["signal"], told[6]["signal"]) == (pid, signal.SIGKILL, signal.SIGKILL)
    first, second = audited(path.with_name("audit-refused"))
    assert (first["event"], first["reason"], first["command"]) == ("refused", "command_not_allowed", ["/bin/cat", "/etc/passwd"])
    assert (second["event"], second["node"], second["reason"]) == ("refused", "n3", "not_granted")


async def test_nothing_is_started_that_cannot_be_audited(tmp_path: Path) -> None:
    async with world(audit=str(tmp_path / "none" / "audit")) as here:
        with pytest.raises(Failed, match="EIO"):
            await Client(here).spawn("touch", str(tmp_path / "done"))
        assert here.manager.refusals[Refusal.NO_AUDIT] == 1
        with pytest.raises(Failed, match="EIO"):
            await Client(here).send(message.pack_kill(os.getpid(), 0))
    assert os.listdir(tmp_path) == []


async def test_a_log_that_cannot_be_written_to_stops_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO that nobody reads: starts and signals wait, or fail after a while; everything else goes on."""
    path = tmp_path / "audit"
    os.mkfifo(f"{path}-local")
    async with world(audit=str(path)) as here:
        client, started, signalled = Client(here), list[int](), list[int]()
        spawn = message.pack_spawn(Spawn((b"/bin/sleep", b"100")))
        client.submit((spawn,), message.SPAWNED.size, lambda status, data: started.append(status))
        client.submit((message.pack_kill(os.getpid(), 0),), 0, lambda status, data: signalled.append(status))
        for _ in range(20):
            await client.send(message.pack_facts(), reply_len=4096)
        assert (started, signalled, here.manager.spawned) == ([], [], 0)
        reader = os.open(f"{path}-local", os.O_RDONLY | os.O_NONBLOCK)
        await here.until(lambda: bool(started and signalled))
        assert (started[0] >= 0, signalled, here.manager.spawned) == (True, [0], 1)
        events = [json.loads(line)["event"] for line in os.read(reader, 65536).splitlines()]
        assert events[:2] == ["allowed", "signal"]
        os.close(reader)
        write = os.write

        def slowly(fd: int, data: bytes) -> int:
            return len(data) if b'"event"' in data and threading.Event().wait(0.5) is False else write(fd, data)

        monkeypatch.setattr(manager, "PATIENCE", 0.1)
        monkeypatch.setattr(os, "write", slowly)
        for request in (spawn, message.pack_kill(os.getpid(), 9)):
            with pytest.raises(Failed, match="EIO"):
                await client.send(request, reply_len=message.SPAWNED.size)
        assert here.manager.spawned == 1
        assert here.manager.refusals[Refusal.NO_AUDIT] == 2
        monkeypatch.undo()


@needs_root
async def test_a_program_of_the_list_that_its_user_could_change_is_not_started(tmp_path: Path) -> None:
    """It fits the pattern, and is a link of the user's to a shell."""
    place = Path("/tmp") / f"qnetpy-{os.getpid()}"
    place.mkdir(mode=0o755)
    try:
        os.chown(place, 1, 1)
        (place / "tool").symlink_to("/bin/sh")
        rules = SpawnRules((SpawnRule(commands=(CommandPattern.parse(f"{place}/*"),)),))
        async with world(rules, grants=[Grant("spawn")], audit=str(tmp_path / "audit")) as here:
            spawn = message.pack_spawn(Spawn((os.fsencode(place / "tool"), b"-c", b"true"), flags=0))
            with pytest.raises(Failed, match="EPERM"):
                await Far(here, uid=1).send(spawn)
            await Far(here, uid=2).send(spawn)
        told = audited(tmp_path / "audit")
        assert told[1]["event"] == "failed"
        assert "could be changed by the user" in str(told[1]["why"])
    finally:
        (place / "tool").unlink()
        place.rmdir()


@needs_root
async def test_what_a_listed_program_makes_is_not_everybodys() -> None:
    rules = SpawnRules((SpawnRule(commands=(CommandPattern.parse("/bin/sh"),)),))
    script = (b"/bin/sh", b"-c", b"umask")
    for wanted, umask in ((0, b"0022\n"), (0o77, b"0077\n")):
        async with world(rules, grants=[Grant("spawn")]) as here:
            far = Far(here, uid=1)
            spawn = message.pack_spawn(Spawn(script, flags=SPAWN_STDOUT, umask=wanted))
            handle, _ = message.parse_spawned((await far.send(spawn))[1])
            assert (await far.send(message.pack_read(handle, 1, 0, 100)))[1] == umask


@needs_root
async def test_nothing_of_the_daemon_leaks_into_a_program_of_another_user(request: pytest.FixtureRequest) -> None:
    """Descriptors, environment, groups: those of the account and of the message, and no others."""
    members = [pwd.getpwnam(name) for group in grp.getgrall() for name in group.gr_mem]
    account = next((one for one in members if not shut(one.pw_name, time.time()) and one.pw_uid), pwd.getpwuid(1))
    os.environ["QNETPY_TEST_LEAK"] = "1"
    request.addfinalizer(lambda: os.environ.pop("QNETPY_TEST_LEAK"))
    leak = os.open("/etc/passwd", os.O_RDONLY)
    request.addfinalizer(lambda: os.close(leak))
    os.set_inheritable(leak, True)
    users = [UserRule(f"all:{account.pw_name}")]
    script = "for one in /proc/$$/fd/*; do readlink $one; done; echo; tr '\\0' '\\n' </proc/$$/environ | cut -d= -f1 | sort; echo; id -G"
    async with world(grants=[Grant("spawn")], users=users) as here:
        told = await Far(here, uid=1).run(script)
    descriptors, names, groups = told.strip().split("\n\n")
    # The shell keeps its own descriptors of the loop above 9 only while it redirects.
    assert [one.partition(":")[0] for one in descriptors.splitlines()] == ["/dev/null", "pipe", "/dev/null"]
    assert set(names.splitlines()) <= {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "PWD", "OLDPWD", "_", "SHLVL"}
    assert set(map(int, groups.split())) == set(os.getgrouplist(account.pw_name, account.pw_gid))


async def test_the_clients_files_as_root_need_a_mount_of_them() -> None:
    async with world(grants=[Grant("spawn")]) as here:
        with pytest.raises(Failed, match=errno.errorcode[errno.EOPNOTSUPP]):
            await Far(here, uid=1).send(message.pack_spawn(Spawn((b"true",), flags=SPAWN_ROOT)))
        # At home it is what every program has.
        assert await (await Client(here).spawn("true", flags=SPAWN_ROOT)).wait() == Ended(0, None)


async def test_one_whose_account_cannot_be_looked_up_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    real = launch.account

    def account(user: MappedUser, wanted: bytes) -> launch.Account:
        if wanted == b"hangs":
            answers.wait(20)
        return real(user, b"")

    monkeypatch.setattr(launch, "account", account)
    async with world() as here:
        client = Client(here)
        statuses: list[int] = []
        for _ in range(20):
            spawn = message.pack_spawn(Spawn((b"true",), flags=0, user=b"hangs"))
            client.submit([spawn], message.SPAWNED.size, lambda status, _: statuses.append(status))
        assert await (await Client(here).spawn("true", flags=0)).wait() == Ended(0, None)
        assert statuses == []
        answers.set()
        await here.until(lambda: len(statuses) == 20)
        assert set(statuses) == {0}


@pytest.mark.parametrize("slow", [0.0, 0.05, 0.5])
async def test_what_is_starting_when_the_manager_ends_is_ended(slow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is slower than the manager waits."""
    real, begun, ended = launch.start, threading.Event(), threading.Event()

    def start(*args: object) -> launch.Launched:
        begun.set()
        threading.Event().wait(slow)
        return real(*args)  # type: ignore[arg-type]  # the same call

    def discard(launched: launch.Launched) -> None:
        launch.discard(launched)
        ended.set()

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(manager, "discard", discard)
    async with world() as here:
        before = children()
        client = Client(here)
        for _ in range(3):
            client.submit([message.pack_spawn(Spawn((b"sleep", b"100"), flags=0))], message.SPAWNED.size, lambda *_: None)
        assert await trio.to_thread.run_sync(begun.wait, 10)
        here.manager.close()
        if slow == 0.5:
            assert await trio.to_thread.run_sync(ended.wait, 10)
        assert children() == before


async def test_a_program_that_cannot_be_kept_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many")

    async with world() as here:
        before = children()
        monkeypatch.setattr(manager, "Process", wrong)
        with pytest.raises(Failed, match="EMFILE"):
            await Client(here).spawn("sleep", "100")
        await here.until(lambda: children() == before)
        monkeypatch.undo()
        assert await (await Client(here).spawn("true")).wait() == Ended(0, None)


async def test_two_hundred_at_once_leave_nothing() -> None:
    """From several connections, each with as many as one may have. Descriptors, children and zombies are as before (`world` looks, too)."""
    async with world() as here:
        clients = [Client(here) for _ in range(4)]
        found: set[bytes] = set()
        before, others = descriptors(), set(children())

        async def run(client: Client, number: int) -> None:
            running = await client.spawn("sh", "-c", f"cat; echo {number}")
            await running.write(b"in ", last=True)
            found.add(await running.read_all())
            assert await running.wait() == Ended(0, None)
            await running.close()

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(run, clients[number % 4], number)
        assert found == {b"in %d\n" % number for number in range(200)}
        assert here.manager.spawned == 200
        assert descriptors() == before
        await here.until(lambda: set(children()) <= others)
        assert dict(here.manager.figures())["processes"] == 0


STEPS = ("spawn sent", "spawned", "reading", "writing", "waiting", "input ended", "stopped", "signalled", "stream closed", "ended")


async def die_at(here: World, step: str) -> None:
    """A client that goes away when it is at *step*."""
    client = Client(here)
    spawn = message.pack_spawn(Spawn((b"sh", b"-c", b"echo; cat >/dev/null; sleep 100")))
    if step == "spawn sent":
        client.submit([spawn], message.SPAWNED.size, lambda status, data: None)
    else:
        running = await client.spawn("sh", "-c", "true" if step == "ended" else "echo; cat >/dev/null; sleep 100")
    if step == "reading":
        client.submit([message.pack_read(running.handle, 2, 0, 100)], 100, lambda status, data: None)
    elif step == "writing":
        # More than the pipe takes, to a program that does not read.
        await running.signal(signal.SIGSTOP)
        client.submit([message.pack_write(running.handle, 0, False), bytes(4 << 20)], 0, lambda status, data: None)
    elif step == "waiting":
        client.submit([message.pack_wait(running.handle, True)], 4, lambda status, data: None)
    elif step == "input ended":
        await running.write(last=True)
    elif step in ("stopped", "signalled"):
        await running.signal(signal.SIGTSTP if step == "stopped" else signal.SIGTERM)
    elif step == "stream closed":
        await client.send(message.pack_close(running.handle, 1))
    elif step == "ended":
        await running.wait()
    client.close()


async def test_a_client_that_dies_at_any_step_leaves_nothing() -> None:
    async with world() as here:
        before, others = descriptors(), set(children())
        async with trio.open_nursery() as nursery:
            for step in STEPS:
                nursery.start_soon(die_at, here, step)
        assert list(here.manager.facts())
        await here.until(lambda: not list(here.manager.facts()) and not dict(here.manager.figures())["processes_starting"])
        await here.until(lambda: set(children()) <= others)
        assert descriptors() == before
