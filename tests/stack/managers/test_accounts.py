"""Limits per user: things, bytes under way, users, work per second."""

from __future__ import annotations

import errno

import pytest

from resmgr.errors import ResmgrError
from stack.managers.accounts import NODE_SHARE, USERS_MAX, Accounts, Limits

LIMITS = Limits(2, 3, 100, 150, 10.0, 20.0)
WIDE = Limits(4, 16, 400, 800, 10.0, 20.0)


def test_things_are_counted_for_each_and_for_all() -> None:
    accounts = Accounts(LIMITS)
    one, two = accounts.of((0, 1), 0.0), accounts.of((0, 2), 0.0)
    assert one is not two
    assert accounts.of((0, 1), 9.0) is one
    accounts.add(one)
    accounts.add(one)
    for account, code in ((one, errno.EMFILE), (two, 0), (two, errno.ENFILE)):
        if code:
            with pytest.raises(ResmgrError) as raised:
                accounts.add(account)
            assert raised.value.errno == code
        else:
            accounts.add(account)
    accounts.remove(one, 2)
    accounts.add(two)
    assert (one.things, two.things, accounts.things, accounts.refused["things"]) == (0, 2, 2, 2)


def test_bytes_under_way() -> None:
    accounts = Accounts(LIMITS)
    one, two, three = (accounts.of((0, uid), 0.0) for uid in range(3))
    accounts.begin(one, 1000)  # alone, it may be of any size
    for account in (one, two):
        with pytest.raises(ResmgrError) as raised:
            accounts.begin(account, 1)
        assert raised.value.errno == errno.EAGAIN
    accounts.end(one, 1000)
    accounts.begin(one, 100)
    accounts.begin(two, 50)
    with pytest.raises(ResmgrError):
        accounts.begin(three, 1)
    accounts.end(two, 50)
    accounts.begin(three, 1)
    assert (accounts.inflight, accounts.refused["inflight"]) == (101, 3)


def test_users_are_bounded_and_idle_ones_forgotten() -> None:
    accounts = Accounts(LIMITS)
    busy = [accounts.of((0, uid), 0.0) for uid in range(USERS_MAX)]
    for account in busy:
        account.things = 1
    with pytest.raises(ResmgrError) as raised:
        accounts.of((0, USERS_MAX), 0.0)
    assert raised.value.errno == errno.ENFILE
    busy[0].things = 0
    busy[1].things = 0
    assert busy[1].bucket.take(0.0, 20.0)
    fresh = accounts.of((0, USERS_MAX), 0.0)
    assert len(accounts) == USERS_MAX
    assert accounts.of((0, 1), 0.0) is busy[1], "what it used of its rate is remembered"
    assert accounts.of((0, USERS_MAX), 0.0) is fresh


def test_a_node_that_names_many_users_has_the_share_of_a_node() -> None:
    accounts = Accounts(WIDE)
    many = [accounts.of((7, uid), 0.0) for uid in range(USERS_MAX // NODE_SHARE)]
    for account in many:
        account.things = 1
    with pytest.raises(ResmgrError):
        accounts.of((7, USERS_MAX), 0.0)
    for account in many:
        account.things = 0
    for account in many[:4]:
        accounts.add(account)
    accounts.begin(many[0], 150)
    with pytest.raises(ResmgrError) as raised:
        accounts.add(many[5])
    assert raised.value.errno == errno.ENFILE
    with pytest.raises(ResmgrError) as raised:
        accounts.begin(many[5], 51)
    assert raised.value.errno == errno.EAGAIN
    # They have one rate and one turn together; neither this node's users nor another's are held up.
    assert many[0].bucket.take(0.0, 20.0)
    assert not many[9].bucket.take(0.0)
    assert many[0].client == many[9].client
    clients = set()
    for user in ((0, 1), (0, 2), (8, 1)):
        account = accounts.of(user, 0.0)
        accounts.add(account)
        accounts.begin(account, 200)
        assert account.bucket.take(0.0, 20.0)
        clients.add(account.client)
    assert len(clients) == 3
    # What it used of its rate is not forgotten with its records.
    accounts.end(many[0], 150)
    for account in many[:4]:
        accounts.remove(account)
    accounts._forget(0.0)
    assert not accounts.of((7, 1), 0.0).bucket.take(0.0)
