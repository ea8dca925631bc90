"""Who may see and signal what: the rights of a user and never more, rules, and what another node has not started."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmgr.access import Grant, MappedUser, UserRule
from resmgr.procmgr import listing, message, nodefacts
from resmgr.procmgr.asuser import as_user
from resmgr.procmgr.listing import rows_for
from resmgr.procmgr.message import SPAWN_PTY, SPAWN_STDOUT, Ended, Spawn
from resmgr.procmgr.nodefacts import NodeFacts
from resmgr.procmgr.rules import CommandPattern, Refusal, SpawnRule, SpawnRules
from tests.resmgr.procmgr.test_manager import Client, Failed, Far, alive, comm_of, needs_root, world

pytestmark = pytest.mark.host
USER = MappedUser(1, 1)
BECOME_ROOT = "import os; os.setuid(0); print('up', flush=True); import time; time.sleep(100)"


@needs_root
async def test_signals_by_pid_reach_ones_own_processes_only() -> None:
    async with world(grants=[Grant("spawn")]) as here:
        local, far = Client(here), Far(here, uid=1)
        roots = await local.spawn("sleep", "100")
        own = message.parse_spawned((await far.send(message.pack_spawn(Spawn((b"sleep", b"100"), flags=0))))[1])
        await here.until(lambda: comm_of(own[1]) == "sleep")
        with pytest.raises(Failed, match="EPERM"):
            await far.send(message.pack_kill(roots.pid, signal.SIGKILL))
        await far.send(message.pack_kill(own[1], signal.SIGKILL))
        assert message.parse_ended((await far.send(message.pack_wait(own[0])))[1]) == Ended(None, signal.SIGKILL)
        assert alive(roots.pid)
        for pid, number, code in ((1 << 22, 9, "ESRCH"), (0, 9, "EINVAL"), (own[1], 65, "EINVAL")):
            with pytest.raises(Failed, match=code):
                await far.send(message.pack_kill(pid, number))


async def start(far: Far, *command: bytes, flags: int = SPAWN_STDOUT) -> tuple[int, int]:
    return message.parse_spawned((await far.send(message.pack_spawn(Spawn(command, flags=flags))))[1])


def gone(pid: int) -> bool:
    return not alive(pid)


@pytest.fixture
def set_uid() -> Iterator[bytes]:
    """An interpreter that runs as root, whoever starts it; in a place where set-uid bits count."""
    place = Path("/var/lib") / f"qnetpy-{os.getpid()}"
    place.mkdir(mode=0o755)
    try:
        shutil.copy(os.path.realpath(sys.executable), place / "run")
        (place / "run").chmod(0o4755)
        yield os.fsencode(place / "run")
    finally:
        shutil.rmtree(place)


@needs_root
async def test_a_program_that_has_become_roots_is_out_of_reach(set_uid: bytes) -> None:
    """Its user could not signal it; neither can his client, by any message, nor by going away."""
    os.environ.pop("PYTHONHOME", None)
    async with world(grants=[Grant("spawn")]) as here:
        far = Far(here, uid=1)
        env = (b"PYTHONHOME=" + os.fsencode(sys.base_prefix),)
        for flags in (SPAWN_STDOUT, SPAWN_PTY):
            spawn = Spawn((set_uid, b"-c", BECOME_ROOT.encode()), env, flags)
            handle, pid = message.parse_spawned((await far.send(message.pack_spawn(spawn)))[1])
            assert b"up" in (await far.send(message.pack_read(handle, 1, 0, 100)))[1]
            for attempt in (message.pack_signal(handle, signal.SIGKILL), message.pack_kill(pid, signal.SIGKILL)):
                with pytest.raises(Failed, match="EPERM"):
                    await far.send(attempt)
            assert alive(pid)
            if flags == SPAWN_STDOUT:
                process = here.manager._processes[handle]
                here.dispatch.enter(process.close)
                here.dispatch.enter(process.kill)
                assert alive(pid)
            os.kill(pid, signal.SIGKILL)
            await here.until(functools.partial(gone, pid))


@needs_root
def test_whose_rights_a_thread_has() -> None:
    """Those of the user and no more; nor may he signal it, though it is a thread of the daemon."""
    child = subprocess.Popen(["sleep", "100"])
    own = subprocess.Popen(["sleep", "100"], user=1, group=1, extra_groups=[])
    try:
        with pytest.raises(PermissionError):
            as_user(USER, lambda: os.kill(child.pid, signal.SIGTERM))
        with pytest.raises(PermissionError):
            as_user(USER, lambda: os.open("/etc/shadow", os.O_RDONLY))
        status = as_user(USER, lambda: Path("/proc/thread-self/status").read_text(encoding="utf-8"))
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        real, effective, saved, _ = facts["Uid"].split()
        assert effective == "1"
        assert real == saved
        assert int(real) not in (0, 1)
        assert facts["Groups"].strip() == ""
        assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == 0
        as_user(USER, lambda: os.kill(own.pid, signal.SIGTERM))
        assert own.wait(10) == -signal.SIGTERM
        assert os.getresuid() == (0, 0, 0)
        # Numbers that the kernel would take for "as it is", or that this thread takes itself.
        for uid in (0xFFFFFFFF, 0xFFFFFFFE, 1 << 32):
            with pytest.raises(PermissionError):
                as_user(MappedUser(uid, 1), os.getpid)
    finally:
        for process in (child, own):
            process.kill()
            process.wait()


@pytest.fixture
def sleeper(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody's program, that no client has started."""
    uid: int = request.param
    process = subprocess.Popen(["sleep", "100"], user=uid, group=uid, extra_groups=[])
    yield process
    process.kill()
    process.wait()


def listed(*commands: str, **more: object) -> SpawnRules:
    return SpawnRules((SpawnRule(commands=tuple(map(CommandPattern.parse, commands)), **more),))  # type: ignore[arg-type]  # keywords of SpawnRule


async def pids(far: Far) -> set[int]:
    return {row.pid for row in message.parse_rows((await far.send(message.pack_list(0), reply_len=1 << 20))[1])}


@needs_root
@pytest.mark.parametrize("sleeper", [1], indirect=True)
async def test_who_may_only_start_some_programs_sees_and_signals_only_what_his_node_has_started(sleeper: subprocess.Popen[bytes]) -> None:
    async with world(listed("/usr/bin/sleep *", users=frozenset({1})), grants=[Grant("spawn")]) as here:
        far, elsewhere = Far(here, uid=1), Far(here, uid=1, node="n3", scoid=8)
        own = (await start(far, b"/usr/bin/sleep", b"100"))[1]
        theirs = (await start(elsewhere, b"/usr/bin/sleep", b"100"))[1]
        assert await pids(far) == {own}
        for pid in (sleeper.pid, theirs):
            with pytest.raises(Failed, match="EPERM"):
                await far.send(message.pack_kill(pid, signal.SIGKILL))
        assert here.manager.refusals[Refusal.SIGNAL_NOT_ALLOWED] == 2
        await far.send(message.pack_kill(own, signal.SIGTERM))
        # Nobody may act as whom no rule names.
        for attempt in (message.pack_kill(own, 0), message.pack_list(0)):
            with pytest.raises(Failed, match="EPERM"):
                await Far(here, uid=2).send(attempt)
        assert here.manager.refusals[Refusal.USER_NOT_ALLOWED] == 2
        assert sleeper.poll() is None
        here.manager.rules = listed("/usr/bin/sleep *", users=frozenset({1}), signal=True)
        assert {sleeper.pid, theirs} <= await pids(far)
        await far.send(message.pack_kill(sleeper.pid, signal.SIGTERM))
    assert sleeper.wait(10) == -signal.SIGTERM


@needs_root
@pytest.mark.parametrize("sleeper", [0], indirect=True)
async def test_root_is_signalled_only_by_whom_a_rule_lets_be_root(sleeper: subprocess.Popen[bytes]) -> None:
    async with world(users=[UserRule("identity", root="root")], grants=[Grant("spawn")]) as here:
        far = Far(here, uid=0)
        for attempt in (message.pack_kill(sleeper.pid, signal.SIGKILL), message.pack_list(0)):
            with pytest.raises(Failed, match="EPERM"):
                await far.send(attempt)
        assert sleeper.poll() is None
        here.manager.rules = SpawnRules((SpawnRule(users=frozenset({0})),))
        await far.send(message.pack_kill(sleeper.pid, signal.SIGTERM))
    assert sleeper.wait(10) == -signal.SIGTERM


@pytest.mark.priv
@needs_root
def test_a_list_hides_what_proc_hides() -> None:
    """In a mount namespace whose /proc shows a user only what is his own. Whoever looks sees himself, so the daemon is in each list."""
    script = (
        "import os, subprocess; from resmgr.access import MappedUser; from resmgr.procmgr.listing import rows_for;"
        "from resmgr.procmgr.message import parse_rows;"
        "own = subprocess.Popen(['sleep', '100'], user=1, group=1, extra_groups=[]); roots = subprocess.Popen(['sleep', '100']);"
        "told = [{row.pid for row in parse_rows(rows_for(MappedUser(uid, uid), None, 0, 1 << 20)[1])} for uid in (0, 1)];"
        "[(one.kill(), one.wait()) for one in (own, roots)]; assert {own.pid, roots.pid} <= told[0], told;"
        "assert told[1] == {own.pid, os.getpid()}, told"
    )
    mount = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    words = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", mount, "sh", sys.executable, "-c", script]
    subprocess.run(words, check=True, timeout=20)
    assert rows_for(USER, None, 0, 1 << 20)[0] > 2


async def test_facts_are_read_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = 0

    def read() -> NodeFacts:
        nonlocal readings
        readings += 1
        return NodeFacts(1, 2, 0.5, 3, 4, 5, "linux", "6", "x")

    monkeypatch.setattr(nodefacts, "read", read)
    async with world() as here:
        told: list[bytes] = []
        for client in [Client(here) for _ in range(20)]:
            client.submit([message.pack_facts()], 4096, lambda status, data: told.append(bytes(data)))
        await here.until(lambda: len(told) == 20)
        assert {nodefacts.parse(data).cpus for data in told} == {1}
    assert readings == 1


async def test_lists_of_one_asker_take_turns_and_have_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way = most = done = 0

    def read(*_: object) -> tuple[int, bytes]:
        nonlocal under_way, most, done
        under_way += 1
        most = max(most, under_way)
        os.sched_yield()
        under_way -= 1
        done += 1
        return 0, b""

    monkeypatch.setattr(listing, "rows_for", read)
    async with world() as here:
        client = Client(here)
        answers: list[int] = []
        for _ in range(200):
            client.submit([message.pack_list(0)], 4096, lambda status, _: answers.append(status))
        await here.until(lambda: len(answers) == 200)
        assert most == 1
        assert 0 < done < 200
        assert set(answers) == {0, -11}
