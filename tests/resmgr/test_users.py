"""Look-ups of accounts that take their time: whoever needs the answer waits, everybody else goes on."""

from __future__ import annotations

import errno
import os
import pwd
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from resmgr.access import Export, Policy
from resmgr.channel import ND_LOCAL, PID_SYSTEM, ClientInfo, Connection, Credentials, Kernel, Message, Nd, Pending
from resmgr.dispatch import Buffer, Dispatch
from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.usergroups import UserGroups
from resmgr.hostfs.manager import HostFs
from resmgr.iomsg import Connect
from resmgr.iorequest import ConnectRequest
from resmgr.lookups import Lookups, Work
from resmgr.peer import Peer
from resmgr.runner import open_dispatch
from resmgr.serving import Limits
from resmgr.testing.fuserig import Rig
from resmgr.testing.memory import MemoryLink
from resmgr.testing.virtual import VirtualDispatch
from resmgr.users import ACCOUNTS_MAX, ASKED_MAX, ASKED_PER_ASKER, EXPIRY, OLD_MAX, PATIENCE, Accounts, LookingUp

UID = 4001


class Later(Lookups):
    """Look-ups that end when the test says so."""

    def __init__(self) -> None:
        super().__init__("later")
        self.jobs: list[Work] = []

    def submit(self, user: object, work: Work) -> bool:
        self.jobs.append(work)
        return True

    def answer(self) -> None:
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job(None)


def slow(dispatch: Dispatch) -> tuple[Accounts, Later]:
    accounts, later = Accounts(dispatch.now), Later()
    accounts.ask_in_threads(dispatch)
    accounts._lookups = later
    return accounts, later


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except LookingUp:
        return "waits"
    except OSError as error:
        return error.errno


def test_an_answer_is_fresh_then_old_then_gone() -> None:
    dispatch = VirtualDispatch(1)
    accounts, later = slow(dispatch)
    root = pwd.getpwuid(0).pw_name
    told: list[object] = []
    with pytest.raises(LookingUp) as looking:
        accounts.user_now(0)
    looking.value.then(lambda: told.append(accounts.user_now(0)))
    assert outcome(lambda: accounts.user_now(0)) == "waits"
    assert len(later.jobs) == 1, "one question, however many ask"
    later.answer()
    dispatch.run_for(0.1)
    assert [getattr(account, "name", None) for account in told] == [root]
    dispatch.run_for(EXPIRY)
    assert accounts.user_now(0) is told[0]
    assert len(later.jobs) == 1, "old: used, and asked for again"
    dispatch.run_for(PATIENCE + 1)
    assert accounts.user_now(0) is told[0]
    assert accounts.counters["account_lookups_late"] == 1
    dispatch.run_for(OLD_MAX)
    assert outcome(lambda: accounts.user_now(0)) == errno.ETIMEDOUT
    assert len(later.jobs) == 1, "whom nobody answers is not asked again and again"
    later.answer()
    dispatch.run_for(0.1)
    assert getattr(accounts.user_now(0), "name", None) == root
    assert outcome(lambda: accounts.group_now("77")) == "waits"
    later.answer()
    dispatch.run_for(0.1)
    assert accounts.group_now("77") == 77
    assert accounts.user(0) == accounts.user_now(0)


def test_who_waits_too_long_and_who_asks_too_much() -> None:
    dispatch = VirtualDispatch(1)
    accounts, later = slow(dispatch)
    told: list[object] = []
    for asker in range(ASKED_MAX // ASKED_PER_ASKER):
        for number in range(ASKED_PER_ASKER):
            uid = 10_000 * (asker + 1) + number
            with pytest.raises(LookingUp) as looking:
                accounts.user_now(uid, asker)
        looking.value.then(partial(lambda uid, asker: told.append(outcome(lambda: accounts.user_now(uid, asker))), uid, asker))
        assert outcome(partial(accounts.user_now, 1, asker)) == errno.EAGAIN
    assert outcome(lambda: accounts.user_now(1, "another")) == errno.EAGAIN
    dispatch.run_for(PATIENCE + 1)
    assert told == [errno.ETIMEDOUT] * (ASKED_MAX // ASKED_PER_ASKER)
    later.answer()
    dispatch.run_for(0.1)
    assert not accounts._asked
    assert not accounts._askers
    assert outcome(lambda: accounts.user_now(1, "another")) == "waits"
    accounts.close()
    later.answer()
    dispatch.run_for(PATIENCE)
    assert not accounts._known.get(("user", 1))


def test_a_node_whose_look_ups_hang_holds_up_nobody_who_asks_the_same() -> None:
    dispatch = VirtualDispatch(1)
    accounts, later = slow(dispatch)
    told: list[object] = []

    def ask(asker: int) -> None:
        with pytest.raises(LookingUp) as looking:
            accounts.user_now(0, asker)
        looking.value.then(lambda: told.append(asker))

    ask(2)
    hanging = later.jobs.pop()
    dispatch.run_for(PATIENCE + 1)
    assert outcome(lambda: accounts.user_now(0, 2)) == errno.ETIMEDOUT
    ask(3)
    ask(3)
    assert len(later.jobs) == 1
    later.answer()
    dispatch.run_for(0.1)
    assert told == [2, 3, 3]
    known = accounts.user_now(0, 2)
    assert known is not None
    # The one that hung says nothing new, and until it ends it is one of those that its asker may have.
    assert accounts._askers == {2: 1}
    hanging(None)
    dispatch.run_for(0.1)
    assert accounts.user_now(0, 3) is known
    assert not accounts._asked
    assert not accounts._askers


def test_who_may_ask_no_more_waits_for_what_another_asked() -> None:
    dispatch = VirtualDispatch(1)
    accounts, later = slow(dispatch)
    for number in range(ASKED_PER_ASKER):
        assert outcome(partial(accounts.user_now, 10_000 + number, 2)) == "waits"
    assert outcome(lambda: accounts.user_now(0, 3)) == "waits"
    assert outcome(lambda: accounts.user_now(0, 2)) == "waits"
    assert len(later.jobs) == ASKED_PER_ASKER + 1
    accounts.close()


def test_a_node_that_claims_every_uid_makes_us_forget_the_oldest_only() -> None:
    accounts = Accounts(lambda: 0.0)
    for uid in range(100_000, 100_000 + ACCOUNTS_MAX):
        accounts._keep(("user", uid), None, 0.0)
    root = accounts.user(0)
    accounts._keep(("user", 99_999), None, 0.0)
    assert accounts._known[("user", 0)][1] is root
    assert len(accounts._known) == ACCOUNTS_MAX
    assert ("user", 100_001) not in accounts._known
    assert ("user", 100_002) in accounts._known


# ---- a client of another node


class Linked:
    """A client on node a, a server on node b that lets nobody in before the account is known."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.clock = VirtualDispatch(1)
        self.accounts, self.later = slow(self.clock)
        self.client, self.server = Kernel(self.clock, "a"), Kernel(self.clock.node("b"), "b")
        link = MemoryLink(self.clock, self.server.dispatch, self.clock.random("link"))
        near = Peer(self.client, link.left, nd=Nd(2), node="b")
        self.peer = Peer(self.server, link.right, nd=Nd(9), node="a", authorize=self.admit, limits=limits)
        link.left.peer, link.right.peer = near, self.peer
        self.client.network = self
        self.near = near
        self.got: list[bytes] = []
        self.pulses: list[int] = []
        self.channel = self.server.channel(self.handle, on_pulse=lambda pulse: self.pulses.append(pulse.code), pid=PID_SYSTEM)
        self.answers: list[int] = []

    def remote(self, nd: Nd) -> Peer | int:
        return self.near if nd == 2 else errno.EHOSTUNREACH

    def admit(self, info: ClientInfo, pid: int, chid: int) -> int:
        return 0 if self.accounts.user_now(info.credentials.uid, info.nd) is None else errno.EPERM

    def handle(self, message: Message) -> None:
        self.got.append(bytes(message.data))
        message.reply(len(self.got))

    def connect(self, uid: int = UID) -> Connection:
        return self.client.connect(Nd(2), PID_SYSTEM, self.channel.chid, Credentials(uid, uid))

    def send(self, connection: Connection, data: bytes) -> Pending | None:
        pending = connection.submit((data,), 64, lambda status, reply: self.answers.append(status))
        self.clock.run_for(0.5)
        return pending

    def settle(self) -> None:
        self.later.answer()
        self.clock.run_for(0.5)


def test_messages_and_pulses_of_an_account_that_is_looked_up_wait_in_order() -> None:
    linked = Linked()
    connection = linked.connect()
    connection.pulse(3)
    linked.send(connection, b"one")
    linked.send(connection, b"two")
    assert (linked.got, linked.answers) == ([], [])
    linked.settle()
    assert (linked.got, sorted(linked.answers), linked.pulses) == ([b"one", b"two"], [1, 2], [3])
    assert linked.peer.statistics().held == 0
    assert linked.peer.statistics().connections_in == 1


def test_a_client_that_gives_up_leaves_or_waits_in_vain() -> None:
    linked = Linked()
    connection = linked.connect()
    pending = linked.send(connection, b"one")
    assert pending is not None
    pending.unblock()
    linked.clock.run_for(0.5)
    assert linked.answers == [-errno.EINTR]
    leaving = linked.connect()
    leaving.pulse(3)
    linked.clock.run_for(0.5)
    leaving.close()
    linked.clock.run_for(0.5)
    linked.settle()
    assert (linked.got, linked.pulses) == ([], []), "nobody is there who would close that connection again"
    assert linked.peer.statistics().connections_in == 0
    late = linked.connect(UID + 1)
    linked.send(late, b"late")
    linked.clock.run_for(PATIENCE)
    assert linked.answers[1:] == [-errno.ETIMEDOUT]
    linked.send(linked.connect(UID + 2), b"x")
    linked.peer.down(errno.EHOSTDOWN)
    linked.settle()
    assert linked.got == []


def test_what_waits_is_bounded() -> None:
    linked = Linked(Limits(pending=2))
    connection = linked.connect()
    for number in range(3):
        linked.send(connection, b"%d" % number)
        connection.pulse(number)
    linked.clock.run_for(0.5)
    assert linked.answers == [-errno.EAGAIN]
    linked.settle()
    assert (linked.got, linked.pulses) == ([b"0", b"1"], [0, 1])
    assert linked.peer.statistics().dropped == {"pulse before its account is known": 1}


# ---- a user of /net


def test_the_first_request_of_a_user_of_a_mount_waits_for_its_groups() -> None:
    rig = Rig()
    accounts, later = slow(rig.dispatch)
    rig.machine._groups = UserGroups(accounts)
    user = pwd.getpwnam("nobody")
    rig.uid = user.pw_uid
    waiting = [rig.start(Opcode.GETATTR, 1, bytes(16)) for _ in range(3)]
    assert rig.machine.statistics().events["waited_for_account"] == 3
    rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, 0, 0, 0, 0, 0, 0, 0) + formats.INTERRUPT_IN.pack(waiting[2]))
    rig.run(5)
    assert {unique: answer.error for unique, answer in rig.answers.items()} == {waiting[2]: -errno.EINTR}
    later.answer()
    rig.run(0.1)
    assert [rig.answers[unique].error for unique in waiting] == [0, 0, -errno.EINTR]
    assert rig.machine._groups.of(user.pw_uid, user.pw_gid) == tuple(sorted({user.pw_gid, *os.getgrouplist("nobody", user.pw_gid)}))
    assert rig.ask(Opcode.GETATTR, 1, bytes(16)).error == 0
    rig.uid = 4001
    late = rig.start(Opcode.GETATTR, 1, bytes(16))
    rig.run(PATIENCE + 1)
    assert rig.answers[late].error == -errno.ETIMEDOUT
    rig.uid = 0
    root = rig.start(Opcode.GETATTR, 1, bytes(16))
    rig.run(PATIENCE + 1)
    assert rig.answers[root].error == 0, "what groups root has decides nothing"


# ---- real threads


def test_a_directory_service_that_hangs_stops_no_other_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of another node is mapped to an account that nobody tells us; a client of this one reads meanwhile."""
    told, asked = threading.Event(), threading.Event()
    find = pwd.getpwuid

    def hanging(uid: int) -> pwd.struct_passwd:
        if uid == UID:
            asked.set()
            told.wait(20)
        return find(uid)

    monkeypatch.setattr(pwd, "getpwuid", hanging)
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_bytes(b"x")

    async def run() -> None:
        async with open_dispatch() as dispatch:
            kernel = Kernel(dispatch, "n")
            accounts = Accounts(dispatch.now)
            accounts.ask_in_threads(dispatch)
            fs = HostFs(kernel, Policy(accounts, exports=[Export("/")]), root=str(tmp_path))
            answers: list[tuple[str, int]] = []
            arrived = trio.Event(), trio.Event()
            lookup = ConnectRequest(Connect.LOOKUP, 0, 0, b"file").pack()

            def ask(name: str, uid: int, nd: int) -> None:
                connection = kernel.connect(ND_LOCAL, PID_SYSTEM, fs.channel.chid, Credentials(uid, uid))
                connection.info = attrs.evolve(connection.info, nd=Nd(nd), node="b" if nd else "")

                def done(status: int, reply: Buffer) -> None:
                    answers.append((name, status))
                    if len(answers) in (100, 101):
                        arrived[len(answers) - 100].set()

                def submit() -> None:
                    connection.submit((lookup,), 4096, done)

                dispatch.enter(submit)

            ask("far", UID, 7)
            await trio.to_thread.run_sync(asked.wait, 20)
            for _ in range(100):
                ask("here", 0, 0)
            with trio.fail_after(10):
                await arrived[0].wait()
            assert answers == [("here", 0)] * 100
            told.set()
            with trio.fail_after(20):
                await arrived[1].wait()
            assert answers[100] == ("far", 0)
            accounts.close()
            fs.destroy()

    trio.run(run)
