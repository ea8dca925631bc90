"""Users of other nodes by their names: what is told, what is believed, and what becomes of who is not known."""

from __future__ import annotations

import errno
import pwd
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import pytest

from resmgr.access import NOBODY_USER, MappedUser, Policy, UserRule
from resmgr.channel import CHID_ROSTER, PID_SYSTEM, ClientInfo, Credentials, Kernel, Message, Nd, Remote
from resmgr.errors import BadMessage
from resmgr.ids import CHIDS_DAEMONS
from resmgr.owners import NOBODY
from resmgr.peer import Peer
from resmgr.roster import ENTRIES_MAX, GROUP, USER, Entry, matched, pack_page, pack_question, parse_page, parse_question, read_entries
from resmgr.rosters import AGAIN, FRESH, OLD, PATIENCE, WAITING_MAX, Rosters
from resmgr.testing.formats import refuses_cuts, survives_changes
from resmgr.testing.ioclient import fails
from resmgr.testing.memory import MemoryLink
from resmgr.testing.virtual import VirtualDispatch
from resmgr.users import Accounts, LookingUp

T = TypeVar("T")
DAEMON, MAIL = pwd.getpwnam("daemon"), pwd.getpwnam("mail")
THEIRS = [
    Entry(USER, 0, "root"),
    Entry(USER, 1000, "daemon"),
    Entry(USER, 1001, "mail"),
    Entry(USER, 1002, "only-there"),
    Entry(USER, 1003, "root"),
    Entry(GROUP, 500, "daemon"),
    Entry(GROUP, 501, "mail"),
]


class Two:
    """Node b, which maps by names, and a, whose accounts are *theirs*."""

    def __init__(self) -> None:
        self.world = VirtualDispatch(1)
        self.theirs: list[Entry] | OSError = list(THEIRS)
        self.a, self.b = (Kernel(self.world.node(name), name) for name in "ab")
        self.reads = 0
        self.telling = Rosters(self.a, self._read)
        self.asking = Rosters(self.b)
        self.accounts = Accounts(self.b.dispatch.now)
        self.accounts.far = self.asking
        self.peer: Peer | None = None
        self.b.network = self
        self.b.node_by_name = lambda name: Nd(1) if name == "a" and self.peer is not None else None
        self.join()

    def _read(self) -> list[Entry]:
        self.reads += 1
        if isinstance(self.theirs, OSError):
            raise self.theirs
        return self.theirs

    def remote(self, nd: Nd) -> Remote | int:
        return errno.EHOSTDOWN if self.peer is None else self.peer

    def join(self) -> None:
        self.link = MemoryLink(self.a.dispatch, self.b.dispatch, self.world.random("link"), 0.002)
        self.link.left.peer = Peer(self.a, self.link.left, nd=Nd(2), node="b")
        self.peer = self.link.right.peer = Peer(self.b, self.link.right, nd=Nd(1), node="a")

    def cut(self) -> None:
        self.peer = None
        self.link.cut(errno.EHOSTDOWN)

    def policy(self, rule: UserRule | None = None) -> Policy:
        return Policy(self.accounts, users=[UserRule("names") if rule is None else rule])

    def user(self, uid: int, gid: int = 5000, rule: UserRule | None = None) -> MappedUser | int:
        return self.waited(lambda: self.policy(rule).user(client(uid, gid)))

    def waited(self, call: Callable[[], T]) -> T:
        """What *call* says when it need not wait any more."""
        for _ in range(20):
            try:
                return call()
            except LookingUp as looking:
                ready: list[bool] = []
                looking.then(lambda: ready.append(True))  # noqa: B023  # called in this turn of the loop
                assert self.world.run_until(lambda: bool(ready), limit=self.world.time + 60.0)  # noqa: B023  # as above
        raise AssertionError("it looks up for ever")


def client(uid: int, gid: int = 5000) -> ClientInfo:
    return ClientInfo(Nd(1), "a", frozenset(), Credentials(uid, gid), 1)


def test_a_user_is_who_has_the_same_name() -> None:
    two = Two()
    user = two.user(1000, 500)
    assert isinstance(user, MappedUser)
    assert (user.uid, user.gid) == (DAEMON.pw_uid, DAEMON.pw_gid)
    # A group there is his first one only if he is its member here.
    assert two.user(1000, 501) == user
    mail = two.user(1001)
    assert isinstance(mail, MappedUser)
    assert mail.uid == MAIL.pw_uid
    assert two.asking.counters["roster_asked"] == 1


@pytest.mark.parametrize("uid", [0, 1002, 1003, 4242, DAEMON.pw_uid, NOBODY])
def test_who_has_no_name_here_is_nobody_and_nobody_is_root_by_name(uid: int) -> None:
    two = Two()
    assert two.user(uid) == NOBODY_USER
    assert two.user(uid, rule=UserRule("names", nobody="mail")) == two.user(1001)


def test_root_is_whom_the_rule_names() -> None:
    assert Two().user(0, rule=UserRule("names", root="daemon")) == Two().user(1000)
    assert Two().user(1003, rule=UserRule("names", root="daemon")) == NOBODY_USER


def test_owners_are_told_and_given_by_name() -> None:
    two = Two()
    owners = two.waited(lambda: two.policy().owners(client(1000, 500)))
    assert owners is not None
    assert [owners.user_out(uid) for uid in (DAEMON.pw_uid, MAIL.pw_uid, 0, 4242)] == [1000, 1001, 0, NOBODY]
    assert [owners.group_out(gid) for gid in (DAEMON.pw_gid, MAIL.pw_gid)] == [500, 501]
    assert owners.user_in(1001) == MAIL.pw_uid
    assert owners.group_in(501) == MAIL.pw_gid
    for number in (1002, 4242):
        with pytest.raises(OSError, match="nobody here"):
            owners.user_in(number)


def test_a_new_account_is_asked_for_when_it_first_comes_but_not_each_time() -> None:
    two = Two()
    assert two.user(2000) == NOBODY_USER
    assert isinstance(two.theirs, list)
    two.theirs.append(Entry(USER, 2000, "mail"))
    two.theirs.remove(Entry(USER, 1001, "mail"))
    for _ in range(10):
        assert two.user(2000) == NOBODY_USER
    assert two.asking.counters["roster_asked"] == 1
    two.world.run_for(60.0)
    assert two.user(2000) == MappedUser(MAIL.pw_uid, MAIL.pw_gid, two.accounts.user("mail").groups[1:])  # type: ignore[union-attr]  # it exists
    assert two.asking.counters["roster_asked"] == 2


def test_a_table_gets_old() -> None:
    two = Two()
    two.user(1000)
    known = two.user(1001)
    two.cut()
    two.world.run_for(FRESH + 1)
    assert two.user(1001) == known, "while there is no newer one"
    two.world.run_for(OLD)
    with fails(errno.EHOSTDOWN):
        two.user(1001)
    two.join()
    assert two.user(1001) == known


def test_a_node_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    two = Two()
    held: list[Message] = []
    two.telling.channel.handler = held.append
    began = two.world.time
    with fails(errno.ETIMEDOUT):
        two.user(1000)
    assert PATIENCE <= two.world.time - began < PATIENCE + 1
    assert two.asking.counters["roster_late"] == 1
    # Nobody waits again for a while.
    with fails(errno.ETIMEDOUT):
        two.policy().user(client(1000))
    two.world.run_for(AGAIN)
    two.telling.channel.handler = two.telling._receive
    assert isinstance(two.user(1000), MappedUser)


def test_a_node_that_tells_nothing_has_nobody() -> None:
    two = Two()
    two.telling.tells = False
    assert two.user(1000) == NOBODY_USER
    assert two.asking.counters["roster_refused"] == 1
    two = Two()
    two.telling.channel.destroy()
    assert two.user(1000) == NOBODY_USER


def test_a_list_that_cannot_be_read_is_no_empty_list() -> None:
    two = Two()
    two.theirs = OSError(errno.EIO, "no directory service")
    with fails(errno.ETIMEDOUT):
        two.user(1000)
    two.theirs = THEIRS
    two.world.run_for(AGAIN)
    assert isinstance(two.user(1000), MappedUser)


def test_more_questions_than_may_wait_for_the_list_are_refused() -> None:
    two = Two()
    connection = two.b.connect(Nd(1), PID_SYSTEM, CHID_ROSTER, Credentials(NOBODY, NOBODY))
    told: Counter[int] = Counter()
    ended: list[Callable[[object], None]] = []
    two.a.dispatch.call_blocking = lambda call, done, *_: ended.append(done)  # type: ignore[method-assign]  # a list that takes its time
    for _ in range(WAITING_MAX + 3):
        connection.submit((pack_question(0),), 65536, lambda status, _: told.update((status,)))
    two.world.run_for(5.0)
    assert told == {-errno.EAGAIN: 3}
    assert two.telling.counters["roster_full"] == 3
    ended.pop()(THEIRS)
    two.world.run_for(5.0)
    assert told == {-errno.EAGAIN: 3, 0: WAITING_MAX}
    assert two.telling.counters["roster_told"] == WAITING_MAX


@pytest.mark.parametrize("answer", [b"\1", bytes(7), b"\3\1\0\0\0\1a", b"\1\1\xff\xff\xff\xffa", b"\1\1\0\0\0\1\xff", b"\1\2\0\0\0\1a\n"])
def test_nonsense_is_not_believed(answer: bytes) -> None:
    two = Two()
    two.telling.channel.handler = lambda message: message.reply(0, answer)
    with fails(errno.ETIMEDOUT):
        two.user(1000)
    assert two.asking.counters["roster_bad"] == 1
    assert two.peer is not None
    two.world.run_for(1.0)
    assert two.peer.statistics().connections_out == 0


@pytest.mark.parametrize("index", [1, 2, 5, ENTRIES_MAX + 1])
def test_pages_that_lead_nowhere_end(index: int) -> None:
    """Another place than behind what was told: what came until then counts."""
    two = Two()
    asked: list[int] = []

    def page(message: Message) -> None:
        asked.append(parse_question(message.data))
        message.reply(index, pack_page([Entry(USER, 1000, "daemon")], 0)[1])

    two.telling.channel.handler = page
    assert isinstance(two.user(1000), MappedUser)
    assert len(asked) <= 2


def test_long_lists_come_in_pages() -> None:
    two = Two()
    two.theirs = [Entry(USER, 10_000 + number, f"user-{number:060}") for number in range(3000)] + THEIRS
    assert isinstance(two.user(1000), MappedUser)
    assert two.reads == 1
    assert two.telling.counters["roster_told"] >= 3


def test_formats() -> None:
    assert parse_question(pack_question(7)) == 7
    refuses_cuts(parse_question, pack_question(7))
    with pytest.raises(BadMessage):
        parse_question(pack_question(ENTRIES_MAX + 1))
    status, page = pack_page(THEIRS, 0)
    assert (status, parse_page(page)) == (0, THEIRS)
    ends = {len(pack_page(THEIRS[:count], 0)[1]) for count in range(len(THEIRS))}
    refuses_cuts(parse_page, page, lambda length: length in ends)
    survives_changes(parse_page, page, 1)
    assert parse_page(pack_page(read_entries(), 0)[1])
    assert CHID_ROSTER in CHIDS_DAEMONS
    assert PID_SYSTEM == 1


def test_matching() -> None:
    ours = [Entry(USER, 7, "anna"), Entry(USER, 8, "bert"), Entry(USER, 0, "zero"), Entry(GROUP, 9, "anna")]
    theirs = [
        Entry(USER, 1, "anna"),
        Entry(USER, 2, "anna"),
        Entry(USER, 1, "bert"),
        Entry(USER, 3, "zero"),
        Entry(GROUP, 4, "anna"),
        Entry(GROUP, 5, "bert"),
    ]
    assert matched(theirs, ours) == ({1: 7}, {4: 9})
