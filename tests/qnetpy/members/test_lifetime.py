"""When certificates are due and when people are warned."""

from __future__ import annotations

import math
import random

import pytest

from qnetpy.identity.authority import Authority, issue_certificate, make_authority
from qnetpy.identity.trust import Kind, make_statement
from qnetpy.members.keyring import Keyring
from qnetpy.members.lifetime import DAY, Want, check_as_good, due, is_cut, pause, wants, warning
from qnetpy.testing.members import enrolled
from resmgr.errors import Misuse

NOW = 1_800_000_000.0
YEAR = 365.25 * DAY


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("garden", NOW, random=random.Random(1).randbytes)


def keyring(authority: Authority, *roles: str, validity: float = YEAR) -> Keyring:
    return Keyring(enrolled(authority, "n1", NOW, random.Random(2).randbytes, roles=roles, validity=validity).kept)


def test_what_is_as_good_as_the_one_before(authority: Authority) -> None:
    (power,) = enrolled(authority, "i", NOW, random.Random(2).randbytes, roles=["issuer"]).kept.powers
    roots, key = [authority.root], bytes(range(32))
    year = YEAR
    old = issue_certificate(power, "a", key, ["user"], NOW, year)
    later = NOW + 2 * year / 3
    for good in (issue_certificate(power, "a", key, ["user"], later, length) for length in (year, year - 60.0, 2 * year, 90 * year)):
        check_as_good(old, good, roots)
    for length, roles, why in (
        (year, [], "roles"),
        (year / 4, ["user"], "earlier"),
        (year / 2, ["user"], "lives"),
        (year, ["user", "x"], "roles"),
    ):
        with pytest.raises(Misuse, match=why):
            check_as_good(old, issue_certificate(power, "a", key, roles, later, length), roots)
    cut = issue_certificate(power, "a", key, ["user"], NOW, 90 * year)
    assert is_cut(cut, roots)
    check_as_good(cut, issue_certificate(power, "a", key, ["user"], NOW + 3.4 * year, year), roots)
    with pytest.raises(Misuse, match="lives"):
        check_as_good(cut, issue_certificate(power, "a", key, ["user"], NOW + 4.2 * year, year / 2), roots)


def test_two_thirds_of_a_life(authority: Authority) -> None:
    one = keyring(authority)
    assert not due(one.identity.certificate, NOW + YEAR * 0.66)
    assert due(one.identity.certificate, NOW + YEAR * 0.67)
    assert wants(one, NOW) == []
    assert wants(one, NOW + YEAR * 0.67) == [Want(authority.root.key_id, False)]
    assert due(keyring(authority, validity=60.0).identity.certificate, NOW + 41.0)
    assert not due(keyring(authority, validity=60.0).identity.certificate, NOW + 39.0), (
        "the time before it was issued is no part of its life"
    )


def test_an_issuer_wants_its_power_too(authority: Authority) -> None:
    issuer = keyring(authority, "issuer")
    assert wants(issuer, NOW) == []
    issuer.powers = ()
    assert wants(issuer, NOW) == [Want(authority.root.key_id, True)]


def test_a_newer_root_is_wanted_at_once(authority: Authority) -> None:
    one = keyring(authority)
    new = make_authority("garden", NOW, random=random.Random(3).randbytes, secret=authority.secret)
    assert one.learn([make_statement(authority, Kind.ROOT, new.root, NOW).data])[0]
    assert wants(one, NOW) == [Want(new.root.key_id, False)]
    assert wants(one, NOW + YEAR * 0.67) == [Want(new.root.key_id, False), Want(authority.root.key_id, False)]


def test_looks_are_as_frequent_as_the_life_is_short(authority: Authority) -> None:
    assert pause(keyring(authority)) == 600.0
    assert pause(keyring(authority, validity=600.0)) == 12.0
    assert pause(keyring(authority, validity=5.0)) == 1.0


def test_people_are_warned_once_for_each_mark(authority: Authority) -> None:
    certificate = keyring(authority).identity.certificate
    told, heard = math.inf, []
    for day in range(366):
        mark = warning(certificate, told, NOW + day * DAY)
        if mark is not None:
            told = mark
            heard.append((day, mark / DAY))
    assert heard == [(336, 30.0), (359, 7.0), (365, 1.0)]
    short = keyring(authority, validity=2 * DAY).identity.certificate
    assert warning(short, math.inf, NOW) is None, "a certificate of two days is not about to end when it is new"
    assert warning(short, math.inf, NOW + 1.5 * DAY) == DAY
