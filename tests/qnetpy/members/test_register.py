"""The register: what is remembered of nodes, and what follows from it."""

from __future__ import annotations

import random

import pytest

from qnetpy.identity.authority import Authority, issue_certificate, make_authority
from qnetpy.identity.certificate import Certificate
from qnetpy.identity.trust import Kind, Revoked, Trust, make_statement
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
    assert register.note(old, [b"r" * 20]), "what it is ready for is news"
    member = register.get("n2")
    assert member is not None
    assert member.not_after == new.not_after
    assert member.ready == {authority.root.key_id, b"r" * 20}
    another = certificate(authority, "n2x")
    register.note(issue_certificate(authority, "n2", another.static_key, [], NOW, DAY))
    member = register.get("n2")
    assert member is not None
    assert member.static_key == another.static_key, "another machine of that name"
    assert member.ready == {authority.root.key_id}


def test_who_lacks_a_certificate_under_a_root(authority: Authority) -> None:
    register, trust = Register(), Trust("garden", [authority.root])
    for name, validity in (("a", DAY), ("b", DAY), ("c", 60.0), ("d", DAY)):
        register.note(certificate(authority, name, validity))
    new = b"n" * 20
    register.note(certificate(authority, "a"), [new])
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
    register.note(first.kept.identity.certificate, (), [one.issuer])
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
    register.note(store.kept.identity.certificate, [b"r" * 20], [store.kept.powers[0].issuer])
    register.keep_roots([authority.root.key_id])
    (member,) = register
    assert member.ready == {authority.root.key_id}
    assert len(member.issuing) == 1
    register.keep_roots([b"r" * 20])
    (member,) = register
    assert (member.ready, member.issuing) == (frozenset(), frozenset())


def test_it_does_not_grow_without_end(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnetpy.members.register.MEMBERS_MAX", 3)
    register = Register()
    for number in range(5):
        register.note(certificate(authority, f"n{number}", (number + 1) * DAY))
    assert sorted(member.name for member in register) == ["n2", "n3", "n4"]
    assert [*parse_register(pack_register(register))] == [*register]
