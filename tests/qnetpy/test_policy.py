"""[access] means what it says: nobody gets what no line grants."""

from __future__ import annotations

import tomllib

import pytest

from qnetpy import settings
from qnetpy.config import Access
from qnetpy.policy import announcers, policy, reserved_names
from qnetpy.settings import SettingsError
from resmgr.access import NOBODY_USER, MappedUser, Policy, Verb
from resmgr.channel import ClientInfo, Credentials, Nd
from resmgr.names.reserved import ReservedName
from resmgr.users import Accounts


def rules(text: str) -> Policy:
    return policy(settings.structure(Access, tomllib.loads(text)), Accounts(lambda: 0.0))


def client(uid: int, node: str = "n1", *roles: str) -> ClientInfo:
    return ClientInfo(Nd(7), node, frozenset(roles), Credentials(uid, uid), 1)


def test_without_a_line_others_read_as_themselves_and_start_nothing() -> None:
    made = rules("")

    assert made.verbs(client(1), b"/etc") == {Verb.READ}
    assert made.may(client(1), Verb.SEND)
    assert made.may(client(1), Verb.ANNOUNCE)
    assert not made.may(client(0), Verb.SPAWN)
    assert not made.may(client(0), Verb.ADMINISTER)
    assert made.user(client(0)) == NOBODY_USER
    assert isinstance(made.user(client(1)), MappedUser)


def test_grants_name_nodes_roles_or_everybody() -> None:
    made = rules('spawn = {nodes = ["n2"], roles = ["operator"]}\nsend = {nodes = []}\nadminister = {nodes = ["*"]}')

    assert [made.may(who, Verb.SPAWN) for who in (client(1), client(1, "n2"), client(1, "n3", "operator"))] == [False, True, True]
    assert not made.may(client(1), Verb.SEND)
    assert made.may(client(1), Verb.ADMINISTER)


def test_exports_and_users_are_passed_on() -> None:
    made = rules(
        'exports = [{path = "/srv", verbs = ["read", "write"], nodes = ["n2"]}]\nusers = [{mapping = "table", users = {1000 = "root"}}]'
    )

    assert made.verbs(client(1), b"/srv/x") == set()
    assert made.verbs(client(1, "n2"), b"/srv/x") == {Verb.READ, Verb.WRITE}
    assert made.verbs(client(1, "n2"), b"/etc") == set()
    mapped = made.user(client(1000))
    assert isinstance(mapped, MappedUser)
    assert mapped.uid == 0
    assert made.user(client(1001)) == NOBODY_USER


def test_devices_of_exports() -> None:
    made = rules('exports = [{path = "/"}, {path = "/dev", devices = ["terminals", "/dev/kmsg"]}, {path = "/mnt", devices = []}]')
    for path, devices in ((b"/etc", {"memory", "fifos"}), (b"/dev/pts", {"terminals", "/dev/kmsg"}), (b"/mnt", set())):
        assert made.scope(client(1), path).devices == devices
    with pytest.raises(SettingsError, match="access: devices: 'disks' is none of all, fifos, memory, terminals, nor an absolute path"):
        rules('exports = [{devices = ["disks"]}]')


def test_an_account_that_does_not_exist_is_an_error_of_the_file() -> None:
    with pytest.raises(SettingsError, match="no account 'nosuchuser' on this machine"):
        rules('users = [{mapping = "all:nosuchuser"}]')


def test_reserved_names() -> None:
    def reserved(text: str) -> tuple[ReservedName, ...]:
        return reserved_names(settings.structure(Access, tomllib.loads(text)), Accounts(lambda: 0.0))

    assert reserved("") == ()
    made = reserved('names = [{names = ["clock", "log.*"], users = ["1000", "daemon"]}, {names = ["root*"]}]')
    both = frozenset({1, 1000})
    assert made == (ReservedName("clock", both), ReservedName("log.*", both), ReservedName("root*", frozenset()))
    with pytest.raises(SettingsError, match=r"access\.names: no account 'no such'"):
        reserved('names = [{names = ["x"], users = ["no such"]}]')


def test_who_may_attach_global_names_and_whose_count() -> None:
    def attach(text: str) -> frozenset[int] | None:
        return announcers(settings.structure(Access, tomllib.loads(text)), Accounts(lambda: 0.0), 500)

    assert attach("") == frozenset({0, 500})
    assert attach('announce = {users = ["1000", "daemon"]}') == frozenset({0, 1, 500, 1000})
    assert attach('announce = {users = ["*"]}') is None
    with pytest.raises(SettingsError, match=r"announce\.users: no account 'no such'"):
        attach('announce = {users = ["no such"]}')
    made = rules('announce = {nodes = [], roles = ["server"]}')
    assert [made.may(who, Verb.ANNOUNCE) for who in (client(1), client(1, "n2", "server"))] == [False, True]
