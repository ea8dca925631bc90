"""Mapping of users, export scopes and node-level verbs."""

from __future__ import annotations

import errno
import grp
import os
import pwd

import pytest

from resmgr.access import NOBODY_USER, Export, Grant, MappedUser, Policy, UserRule, Verb
from resmgr.channel import ClientInfo, Credentials, Nd
from resmgr.errors import Misuse
from resmgr.users import ACCOUNTS_MAX, Accounts

ACCOUNTS = Accounts(lambda: 0.0)
RW = {Verb.READ, Verb.WRITE}


def client(
    node: str = "b", uid: int = 1000, gid: int = 1000, roles: tuple[str, ...] = (), nd: int = 3, groups: tuple[int, ...] = ()
) -> ClientInfo:
    return ClientInfo(Nd(nd), node, frozenset(roles), Credentials(uid, gid, groups), 1)


def member() -> tuple[str, int, int]:
    """(user, uid, gid) of some account that is in a group besides its primary one, or the primary one where there is none."""
    for group in grp.getgrall():
        for name in group.gr_mem:
            try:
                user = pwd.getpwnam(name)
            except KeyError:
                continue
            if user.pw_uid:
                return name, user.pw_uid, group.gr_gid
    user = next(user for user in pwd.getpwall() if user.pw_uid)
    return user.pw_name, user.pw_uid, user.pw_gid


def test_local_clients_are_themselves() -> None:
    policy = Policy(ACCOUNTS, users=[UserRule("none")])
    assert policy.user(client(nd=0, uid=0, gid=5, groups=(7,))) == MappedUser(0, 5, (7,))
    assert policy.verbs(client(nd=0), b"/etc") == RW
    assert policy.may(client(nd=0), Verb.SPAWN)


def test_by_default_nothing_is_allowed() -> None:
    policy = Policy(ACCOUNTS)
    assert policy.verbs(client(), b"/") == set()
    assert policy.verbs(client(), b"/etc/passwd") == set()
    assert not policy.scope(client()).visible
    for verb in (Verb.SEND, Verb.SPAWN, Verb.ADMINISTER):
        assert not policy.may(client(), verb)
    with pytest.raises(Misuse):
        policy.may(client(), Verb.READ)


def test_identity_believes_the_uid_and_nothing_else() -> None:
    policy = Policy(ACCOUNTS)
    assert policy.user(client(uid=0)) == NOBODY_USER
    assert policy.user(client(uid=54321, gid=0, groups=(0, 42))) == MappedUser(54321, 65534)
    name, uid, gid = member()
    mapped = policy.user(client(uid=uid, gid=gid, groups=(0,)))
    assert isinstance(mapped, MappedUser)
    assert {mapped.gid, *mapped.groups} == set(os.getgrouplist(name, pwd.getpwnam(name).pw_gid))
    assert mapped.gid == gid
    not_its_own = policy.user(client(uid=uid, gid=4242))
    assert isinstance(not_its_own, MappedUser)
    assert not_its_own.gid == pwd.getpwnam(name).pw_gid


def test_root_only_if_said() -> None:
    for rule, wanted in (
        (UserRule("identity"), 65534),
        (UserRule("identity", root="root"), 0),
        (UserRule("identity", root="daemon"), pwd.getpwnam("daemon").pw_uid),
        (UserRule("table", users={1000: "root"}), 65534),
        (UserRule("table", users={0: "root"}), 0),
        (UserRule("all:root"), 0),
        (UserRule("all:daemon"), pwd.getpwnam("daemon").pw_uid),
        (UserRule("all:1234"), 1234),
        (UserRule("squash"), 65534),
    ):
        mapped = Policy(ACCOUNTS, users=[rule]).user(client(uid=0, gid=0))
        assert isinstance(mapped, MappedUser)
        assert mapped.uid == wanted, rule


def test_the_number_that_means_unchanged_is_nobodys() -> None:
    """set*id(2) take 0xffffffff for "leave as it is": a node that claims it must not find us as root."""
    for rule in (UserRule(), UserRule("table"), UserRule("squash"), UserRule("all:root"), UserRule("table", users={0xFFFFFFFF: "root"})):
        assert Policy(ACCOUNTS, users=[rule]).user(client(uid=0xFFFFFFFF, gid=0xFFFFFFFF)) == errno.EPERM
    assert Policy(ACCOUNTS).user(client(uid=0xFFFFFFFE, gid=0xFFFFFFFF)) == MappedUser(0xFFFFFFFE, 65534)


def test_tables_and_the_first_rule_that_fits() -> None:
    policy = Policy(
        ACCOUNTS,
        users=[
            UserRule("none", nodes=["evil"]),
            UserRule("all:daemon", roles=["guest"]),
            UserRule("table", nodes=["b", "c"], users={1000: "daemon", 1001: "1234"}, groups={500: "daemon"}),
        ],
    )
    daemon = pwd.getpwnam("daemon").pw_uid
    assert policy.user(client("evil", roles=("guest",))) == errno.EPERM
    for info, uid in ((client("x", roles=("guest",)), daemon), (client("b"), daemon), (client("b", 1001), 1234), (client("c", 77), 65534)):
        mapped = policy.user(info)
        assert isinstance(mapped, MappedUser)
        assert mapped.uid == uid
    assert policy.user(client("x")) == errno.EPERM


def test_exports_add_up_and_the_longest_decides() -> None:
    policy = Policy(
        ACCOUNTS,
        exports=[
            Export("/srv", ["read"]),
            Export("/srv", ["write"], nodes=["b"]),
            Export("/srv/secret", []),
            Export("/srv/secret/open", ["read"], roles=["ops"]),
            Export("/", ["read"], nodes=["all"]),
        ],
    )
    assert policy.verbs(client("b"), b"/srv/x/y") == RW
    assert policy.verbs(client("c"), b"/srv/x") == {Verb.READ}
    assert policy.verbs(client("b"), b"/srv/secret/x") == set()
    assert policy.verbs(client("b", roles=("ops",)), b"/srv/secret/open/x") == {Verb.READ}
    assert policy.verbs(client("all"), b"/etc") == {Verb.READ}
    assert policy.verbs(client("c"), b"/srvx") == set()
    assert policy.scope(client("b"), b"/srv").verbs == RW
    scope = policy.scope(client("b", roles=("ops",))).walk([b"srv", b"secret"])
    assert scope is not None
    assert not scope.verbs
    assert scope.pinned(b"open")
    assert policy.scope(client("b")).walk([b"srv", b"secret"]) is None


def test_grants() -> None:
    policy = Policy(ACCOUNTS, grants=[Grant("spawn", nodes=["b"]), Grant("send"), Grant("administer", roles=["ops"])])
    assert policy.may(client("b"), Verb.SPAWN)
    assert not policy.may(client("c"), Verb.SPAWN)
    assert policy.may(client("c"), Verb.SEND)
    assert policy.may(client("c", roles=("ops",)), Verb.ADMINISTER)
    assert not policy.may(client("c"), Verb.ADMINISTER)


def test_wrong_rules_are_refused_when_made() -> None:
    with pytest.raises(ValueError, match="user mapping"):
        UserRule("everybody")
    with pytest.raises(ValueError, match="absolute"):
        Export("etc")
    with pytest.raises(ValueError, match="dot"):
        Export("/etc/../root")
    with pytest.raises(ValueError, match="belong to the node"):
        Export("/etc", ["spawn"])
    with pytest.raises(ValueError, match="belongs to an export"):
        Grant("read")
    with pytest.raises(ValueError, match="no account"):
        Policy(ACCOUNTS, users=[UserRule("all:no-such-user")])


def test_accounts_are_cached_bounded_and_expire() -> None:
    now = [0.0]
    accounts = Accounts(lambda: now[0], expiry=10)
    root = accounts.user("root")
    assert root is not None
    assert root.uid == 0
    assert accounts.user(0) == root
    assert accounts.user("root") is root
    now[0] = 11
    assert accounts.user("root") is not root
    for uid in range(100_000, 100_000 + ACCOUNTS_MAX + 10):
        assert accounts.user(uid) is None
    assert len(accounts._known) <= ACCOUNTS_MAX
    assert accounts.group("root") == 0
    assert accounts.group("77") == 77
    assert accounts.group("no-such-group") is None
