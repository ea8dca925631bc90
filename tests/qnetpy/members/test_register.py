"""The register: what is remembered of nodes, and what follows from it."""

from __future__ import annotations

import json
import random

import pytest

from qnetpy.identity.authority import Authority, issue_certificate, make_authority
from qnetpy.identity.certificate import Certificate
from qnetpy.identity.trust import Kind, Revoked, Trust, make_statement, serial_id
from qnetpy.members.register import Register, pack_register, parse_register
from qnetpy.testing.members import enrolled

NOW = 1_800_000_000.0
DAY = 86400.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("garden", NOW, random=random.Random(1).randbytes)


def certificate(authority: Authority, name: str, validity: float = DAY) -> Certificate:
    return enrolled(authority, name, NOW, random.Random(name).randbytes, validity=validity).kept.identity.certificate


def test_a_name_is_taken_as_long_as_a_certificate_may_be_in_use(authority: Authority) -> None:
    register, trust = Register(), Trust("garden", [authority.root])
    n2 = certificate(authority, "n2")
    assert register.note(n2)
    assert not register.note(n2)
    assert register.taken("n2", trust, NOW)
    assert not register.taken("n2", trust, NOW + 2 * DAY)
    assert not register.taken("n3", trust, NOW)
    trust.add(make_statement(authority, Kind.REVOKE, Revoked("n2", n2.static_key), NOW))
    assert not register.taken("n2", trust, NOW)


def test_an_older_certificate_does_not_hide_the_latest(authority: Authority) -> None:
    register = Register()
    old = certificate(authority, "n2")
    new = issue_certificate(authority, "n2", old.static_key, [], NOW, 9 * DAY)
    register.note(new)
    assert register.note(old, {b"r" * 20: NOW + DAY}), "what it is ready for is news"
    member = register.get("n2")
    assert member is not None
    assert member.not_after == new.not_after
    assert member.ready == {authority.root.key_id: new.not_after, b"r" * 20: NOW + DAY}
    another = certificate(authority, "n2x")
    register.note(issue_certificate(authority, "n2", another.static_key, [], NOW, DAY))
    member = register.get("n2")
    assert member is not None
    assert member.static_key == another.static_key, "another machine of that name"
    assert set(member.ready) == {authority.root.key_id}


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_that_end_together_every_node_takes_the_same_for_the_latest(authority: Authority, turned: bool) -> None:
    first = certificate(authority, "n2")
    both = [first, issue_certificate(authority, "n2", first.static_key, ["files"], NOW, DAY, random.Random(9).randbytes)]
    assert both[0].not_after == both[1].not_after
    register = Register()
    for one in reversed(both) if turned else both:
        register.note(one)
    member = register.get("n2")
    assert member is not None
    latest = max(both, key=serial_id)
    assert (member.serial, member.roles) == (serial_id(latest), latest.roles)
    assert [one.serial for one in member.earlier] == [serial_id(min(both, key=serial_id))]


def test_a_certificate_under_a_root_counts_until_it_ends(authority: Authority) -> None:
    register, trust = Register(), Trust("garden", [authority.root])
    new = b"n" * 20
    register.note(certificate(authority, "a", 9 * DAY), {new: NOW + DAY})
    for known in (register, parse_register(pack_register(register))):
        assert known.lacking(new, trust, NOW + DAY) == []
        assert known.lacking(new, trust, NOW + DAY + 1) == ["a"]
    register.note(certificate(authority, "a", 9 * DAY), {new: NOW + 2 * DAY})
    register.note(certificate(authority, "a", 9 * DAY), {new: NOW + DAY})
    assert register.lacking(new, trust, NOW + 2 * DAY) == [], "the latest that it has counts"


def test_of_a_file_that_does_not_say_when_they_end_it_is_heard_anew(authority: Authority) -> None:
    register, trust = Register(), Trust("garden", [authority.root])
    register.note(certificate(authority, "a"))
    rows = json.loads(pack_register(register))
    rows[0]["ready"] = [authority.root.key_id.hex()]
    assert parse_register(json.dumps(rows).encode()).lacking(authority.root.key_id, trust, NOW) == ["a"]
    wrong: list[object] = [[[]], [["zz", 1.0]], [["00", "x"]], 5]
    for nonsense in wrong:
        rows[0]["ready"] = nonsense
        with pytest.raises(ValueError):
            parse_register(json.dumps(rows).encode())


def test_who_lacks_a_certificate_under_a_root(authority: Authority) -> None:
    register, trust = Register(), Trust("garden", [authority.root])
    for name, validity in (("a", DAY), ("b", DAY), ("c", 60.0), ("d", DAY)):
        register.note(certificate(authority, name, validity))
    new = b"n" * 20
    register.note(certificate(authority, "a"), {new: NOW + DAY})
    register.forget("d")
    assert register.lacking(new, trust, NOW + 1) == ["b", "c"]
    assert register.lacking(new, trust, NOW + 3600) == ["b"], "c has expired and cannot come back by itself"
    assert register.lacking(authority.root.key_id, trust, NOW) == []


def test_an_issuing_power_is_known_by_what_it_signed(authority: Authority) -> None:
    store = enrolled(authority, "i", NOW, random.Random(3).randbytes, roles=["issuer"])
    (power,) = store.kept.powers
    register = Register()
    register.note(store.kept.identity.certificate)
    register.note(enrolled(authority, "g", NOW, random.Random(4).randbytes, by=power).kept.identity.certificate)
    member = register.get("i")
    assert member is not None
    assert member.issuing == {(power.issuer.key_id, authority.root.key_id)}


def test_every_issuing_power_of_a_name_is_remembered(authority: Authority) -> None:
    trust, register = Trust("garden", [authority.root]), Register()
    first, second = (enrolled(authority, "i", NOW, random.Random(seed).randbytes, roles=["issuer"]) for seed in (5, 6))
    (one,), (two,) = first.kept.powers, second.kept.powers
    register.note(first.kept.identity.certificate, None, [one.issuer])
    register.note(second.kept.identity.certificate)
    register.note(enrolled(authority, "g", NOW, random.Random(7).randbytes, by=two).kept.identity.certificate)
    for known in (register, parse_register(pack_register(register))):
        member = known.get("i")
        assert member is not None
        assert member.static_key == second.kept.identity.certificate.static_key
        assert member.issuer_ids(trust) == sorted([one.issuer.key_id, two.issuer.key_id])
        assert known.issues_with(one.issuer.key_id) == "i"
    assert member is not None
    old = Revoked("i", first.kept.identity.certificate.static_key, one.issuer.key_id)
    trust.add(make_statement(authority, Kind.REVOKE, old, NOW))
    assert member.issuer_ids(trust) == [two.issuer.key_id]


def test_what_hangs_on_a_root_that_is_gone_is_forgotten(authority: Authority) -> None:
    store = enrolled(authority, "i", NOW, random.Random(8).randbytes, roles=["issuer"])
    register = Register()
    register.note(store.kept.identity.certificate, {b"r" * 20: NOW + DAY}, [store.kept.powers[0].issuer])
    register.keep_roots([authority.root.key_id])
    (member,) = register
    assert set(member.ready) == {authority.root.key_id}
    assert len(member.issuing) == 1
    register.keep_roots([b"r" * 20])
    (member,) = register
    assert (member.ready, member.issuing) == ({}, frozenset())


def test_it_does_not_grow_without_end(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnetpy.members.register.MEMBERS_MAX", 3)
    register = Register()
    for number in range(5):
        register.note(certificate(authority, f"n{number}", (number + 1) * DAY))
    assert sorted(member.name for member in register) == ["n2", "n3", "n4"]
    assert [*parse_register(pack_register(register))] == [*register]
