"""The user mapping read both ways: what a client is told of owners, and what its numbers mean."""

from __future__ import annotations

import pwd

import pytest

from resmgr.access import Export, MappedUser, Policy, UserRule, Verb
from resmgr.channel import ClientInfo, Credentials, Nd
from resmgr.owners import NOBODY, Owners
from resmgr.users import Accounts

DAEMON, MAIL = pwd.getpwnam("daemon"), pwd.getpwnam("mail")


def client(uid: int, gid: int = 5000, node: str = "b", nd: int = 3) -> ClientInfo:
    return ClientInfo(Nd(nd), node, frozenset(), Credentials(uid, gid), 1)


def owners(rule: UserRule, uid: int, gid: int = 5000) -> Owners:
    made = Policy(Accounts(lambda: 0.0), users=[rule]).owners(client(uid, gid))
    assert made is not None
    return made


def test_identity_and_clients_of_this_node_are_told_numbers_as_they_are() -> None:
    for rule in (UserRule(), UserRule(root="daemon"), UserRule("none")):
        assert Policy(Accounts(lambda: 0.0), users=[rule]).owners(client(1000)) is None
    assert Policy(Accounts(lambda: 0.0), users=[UserRule("squash")]).owners(client(1000, nd=0)) is None


def test_a_table_is_read_backwards_and_what_it_does_not_know_is_nobodys() -> None:
    rule = UserRule("table", users={1000: "daemon", 1001: "mail", 1002: "777"}, groups={500: "mail"})
    made = owners(rule, 1001, 500)
    assert [made.user_out(uid) for uid in (DAEMON.pw_uid, MAIL.pw_uid, 777, 0, 4242, NOBODY)] == [1000, 1001, 1002, 0, NOBODY, NOBODY]
    assert [made.group_out(gid) for gid in (MAIL.pw_gid, 0, 4242)] == [500, 0, NOBODY]
    assert [made.user_in(uid) for uid in (1000, 1001, 1002, 0, NOBODY)] == [DAEMON.pw_uid, MAIL.pw_uid, 777, 0, NOBODY]
    for number in (4242, DAEMON.pw_uid, MAIL.pw_uid):
        with pytest.raises(OSError, match="is nobody here"):
            made.user_in(number)
    with pytest.raises(OSError, match="group 4242 of that node is nobody here"):
        made.group_in(4242)


def test_of_several_numbers_a_user_is_told_his_own() -> None:
    rule = UserRule("table", users={1000: "daemon", 1005: "daemon", 900: "daemon"})
    assert owners(rule, 1005).user_out(DAEMON.pw_uid) == 1005
    assert owners(rule, 1000).user_out(DAEMON.pw_uid) == 1000
    assert owners(rule, 4242).user_out(DAEMON.pw_uid) == 900
    # His group is his own, too, though no table names it.
    assert owners(rule, 1005, 6000).group_out(DAEMON.pw_gid) == 6000


def test_who_is_nobody_does_not_see_nobodys_files_as_his_own() -> None:
    for rule in (UserRule("squash"), UserRule("table", users={1000: "daemon"})):
        made = owners(rule, 4242)
        assert made.user_out(NOBODY) == NOBODY
        with pytest.raises(OSError, match="nobody here"):
            made.user_in(4242)


def test_everybodys_files_are_everybodys_own() -> None:
    rule = UserRule("all:daemon")
    for uid in (0, 1000, 1001):
        made = owners(rule, uid, uid)
        assert (made.user_out(DAEMON.pw_uid), made.group_out(DAEMON.pw_gid)) == (uid, uid)
        assert made.user_in(uid) == DAEMON.pw_uid
        assert (made.user_out(MAIL.pw_uid), made.user_out(0)) == (NOBODY, 0)


def test_nobody_can_be_an_account() -> None:
    rule = UserRule("table", users={1000: "mail"}, nobody="daemon")
    policy = Policy(Accounts(lambda: 0.0), users=[rule, UserRule(nobody="mail")])
    for uid in (0, 4242):
        mapped = policy.user(client(uid))
        assert isinstance(mapped, MappedUser)
        assert mapped.uid == DAEMON.pw_uid
    made = owners(rule, 4242)
    assert made.user_out(DAEMON.pw_uid) == NOBODY
    assert made.user_in(NOBODY) == DAEMON.pw_uid
    root = Policy(Accounts(lambda: 0.0), users=[UserRule(nobody="mail")]).user(client(0))
    assert isinstance(root, MappedUser)
    assert root.uid == MAIL.pw_uid
    for wrong, why in (
        (UserRule(nobody="no-such"), "no account 'no-such'"),
        (UserRule("table", groups={1: "no-such"}), "no group 'no-such'"),
    ):
        with pytest.raises(ValueError, match=why):
            Policy(Accounts(lambda: 0.0), users=[wrong])


def test_exports_for_users_and_groups() -> None:
    policy = Policy(
        Accounts(lambda: 0.0),
        users=[UserRule("table", users={1000: "daemon", 1001: "mail"})],
        exports=[
            Export("/all", ["read"]),
            Export("/one", ["read"], users=["daemon"]),
            Export("/group", ["read"], users=["@mail", "4242"]),
            Export("/all/hidden", [], users=["mail"]),
            Export("/node", ["read"], nodes=["c"], users=["daemon"]),
        ],
    )

    def sees(uid: int, node: str = "b") -> set[str]:
        paths = ("/all", "/one", "/group", "/all/hidden", "/node")
        return {path for path in paths if Verb.READ in policy.verbs(client(uid, node=node), path.encode())}

    assert sees(1000) == {"/all", "/one", "/all/hidden"}
    assert sees(1001) == {"/all", "/group"}
    assert sees(1002) == {"/all", "/all/hidden"}
    assert sees(1000, "c") == {"/all", "/one", "/all/hidden", "/node"}
    with pytest.raises(ValueError, match="export /x: no group 'no-such' here"):
        Policy(Accounts(lambda: 0.0), exports=[Export("/x", users=["@no-such"])])
