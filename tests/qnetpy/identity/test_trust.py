"""Statements: format, who may say what, and that any order of the same statements gives the same belief."""

from __future__ import annotations

import itertools
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from qnetpy.enrol.wire import GRANT_MAX
from qnetpy.identity.authority import Authority, IssuingPower, certify_issuer, issue_certificate, make_authority
from qnetpy.identity.certificate import CERTIFICATE_MAX, Certificate
from qnetpy.identity.trust import (
    ISSUER_STATEMENTS_MAX,
    KEPT_MAX,
    ROOT_BYTES_MAX,
    ROOT_STATEMENTS_MAX,
    ROOTS_MAX,
    SIGNED,
    Crowded,
    Kind,
    Revoked,
    Statement,
    Trust,
    make_statement,
    parse_statement,
    serial_id,
)
from resmgr.errors import BadMessage, Misuse

NOW = 1_800_000_000.0


def power(authority: Authority, node: str, seed: int) -> IssuingPower:
    private = random.Random(seed).randbytes(32)
    public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    return IssuingPower(certify_issuer(authority, node, public, NOW), private)


def key(number: int) -> bytes:
    return X25519PrivateKey.from_private_bytes(bytes((number,)) * 32).public_key().public_bytes_raw()


class Garden:
    """A cluster with a root, issuers i1 and i2, and nodes that each of the three has enrolled."""

    def __init__(self) -> None:
        self.root = make_authority("garden", NOW, random=random.Random(1).randbytes)
        self.i1, self.i2 = power(self.root, "i1", 11), power(self.root, "i2", 12)
        self.by_root = self.certificate(self.root, "r", 1)
        self.by_i1 = self.certificate(self.i1, "a", 2)
        self.by_i2 = self.certificate(self.i2, "b", 3)
        self.new = make_authority("garden", NOW + 1, random=random.Random(2).randbytes, secret=self.root.secret)

    def certificate(self, by: Authority | IssuingPower, name: str, number: int) -> Certificate:
        return issue_certificate(by, name, key(number), [], NOW, random=random.Random(number).randbytes)

    def trust(self, *statements: Statement) -> Trust:
        trust = Trust("garden", [self.root.root])
        for statement in statements:
            trust.add(statement)
        return trust

    def revoke(
        self, by: Authority | IssuingPower, certificate: Certificate, issuer_id: bytes = b"", kept: frozenset[bytes] = frozenset()
    ) -> Statement:
        return make_statement(by, Kind.REVOKE, Revoked(certificate.name, certificate.static_key, issuer_id, kept), NOW)


@pytest.fixture(scope="module")
def garden() -> Garden:
    return Garden()


def test_format(garden: Garden) -> None:
    for statement in (
        garden.revoke(garden.i1, garden.by_i1),
        garden.revoke(garden.root, garden.by_i1, issuer_id=garden.i1.issuer.key_id, kept=frozenset({bytes(16), b"x" * 16})),
        make_statement(garden.root, Kind.ROOT, garden.new.root, NOW),
        make_statement(garden.new, Kind.RETIRE, garden.root.root.key_id, NOW),
    ):
        assert parse_statement(statement.data) == statement
        for end in range(len(statement.data)):
            with pytest.raises(BadMessage):
                parse_statement(statement.data[:end])
        with pytest.raises(BadMessage):
            parse_statement(statement.data + b"\0")


@given(data=st.binary(max_size=400))
def test_nonsense(data: bytes) -> None:
    for begin in (b"", b"\x01\x01" + bytes(8) + b"\x01g"):
        try:
            parse_statement(begin + data)
        except BadMessage:
            pass


def test_every_bit_is_signed(garden: Garden) -> None:
    data = garden.revoke(garden.i1, garden.by_i1).data
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        trust = garden.trust()
        with pytest.raises(BadMessage):
            trust.add(parse_statement(bytes(changed)))
        assert trust.accepts(garden.by_i1)


def test_an_issuer_revokes_what_issuers_enrolled_and_no_more(garden: Garden) -> None:
    assert not garden.trust(garden.revoke(garden.i1, garden.by_i1)).accepts(garden.by_i1)
    assert not garden.trust(garden.revoke(garden.i1, garden.by_i2)).accepts(garden.by_i2)
    assert garden.trust(garden.revoke(garden.i1, garden.by_root)).accepts(garden.by_root)
    assert not garden.trust(garden.revoke(garden.root, garden.by_root)).accepts(garden.by_root)
    whole = Revoked("x", key(9), b"y" * 20)
    for kind, subject in ((Kind.ROOT, garden.new.root), (Kind.RETIRE, garden.root.root.key_id), (Kind.REVOKE, whole)):
        with pytest.raises(Misuse, match="root key"):
            make_statement(garden.i1, kind, subject, NOW)


def test_a_revoked_key_is_refused_under_every_certificate(garden: Garden) -> None:
    trust = garden.trust(garden.revoke(garden.i1, garden.by_i1))
    renewed = issue_certificate(garden.i2, "a", garden.by_i1.static_key, [], NOW + 100)
    again = issue_certificate(garden.i2, "a", key(77), [], NOW + 100)
    assert not trust.accepts(renewed)
    assert trust.accepts(again), "the same name with another key"


def test_a_stranger_is_not_believed(garden: Garden) -> None:
    other = make_authority("garden", NOW, random=random.Random(3).randbytes)
    foreign = make_authority("field", NOW, random=random.Random(4).randbytes)
    for statement in (
        garden.revoke(other, garden.by_i1),
        garden.revoke(power(other, "i1", 9), garden.by_i1),
        garden.revoke(foreign, garden.by_i1),
        make_statement(other, Kind.ROOT, other.root, NOW),
        make_statement(garden.root, Kind.ROOT, foreign.root, NOW),
        make_statement(garden.root, Kind.RETIRE, garden.root.root.key_id, NOW),
    ):
        trust = garden.trust()
        with pytest.raises(BadMessage):
            trust.add(statement)
        assert (trust.roots, trust.statements) == ((garden.root.root,), [])


def test_a_revoked_issuer_takes_only_what_it_made_up_with_it(garden: Garden) -> None:
    made_up = garden.certificate(garden.i1, "ghost", 8)
    said, lied = garden.revoke(garden.i1, garden.by_i2), garden.revoke(garden.i1, garden.certificate(garden.i2, "c", 4))
    against = garden.revoke(
        garden.root, garden.by_root, issuer_id=garden.i1.issuer.key_id, kept=frozenset({serial_id(garden.by_i1), said.id})
    )
    trust = garden.trust(said, against)

    assert trust.accepts(garden.by_i1), "known when it was revoked"
    assert not trust.accepts(made_up)
    assert not trust.accepts(garden.by_i2), "revoked by a statement that is kept"
    assert trust.add(lied) is False
    assert trust.accepts(garden.certificate(garden.i2, "c", 4))
    assert trust.revoked_issuer(garden.i1.issuer) is against
    assert trust.revoked_issuer(garden.i2.issuer) is None


def test_any_order_gives_the_same_belief(garden: Garden) -> None:
    said, lied = garden.revoke(garden.i1, garden.by_i2), garden.revoke(garden.i1, garden.certificate(garden.i2, "c", 4))
    against = garden.revoke(garden.root, garden.by_root, issuer_id=garden.i1.issuer.key_id, kept=frozenset({said.id}))
    other = garden.revoke(garden.i2, garden.by_i1)
    digests = {garden.trust(*order).digest() for order in itertools.permutations((said, lied, against, other))}
    assert len(digests) == 1


def test_roots_overlap_and_one_is_retired(garden: Garden) -> None:
    trust = garden.trust(garden.revoke(garden.i1, garden.by_i1))
    add, retire = (
        make_statement(garden.root, Kind.ROOT, garden.new.root, NOW + 1),
        make_statement(garden.new, Kind.RETIRE, garden.root.root.key_id, NOW + 2),
    )
    with pytest.raises(BadMessage, match="not trusted"):
        trust.add(retire)
    assert trust.add(add)
    assert not trust.add(add)
    assert [root.key_id for root in trust.roots] == [garden.root.root.key_id, garden.new.root.key_id]
    assert trust.add(retire)
    assert [root.key_id for root in trust.roots] == [garden.new.root.key_id]
    with pytest.raises(BadMessage):
        trust.add(add)
    assert [one.kind for one in trust.statements] == [Kind.RETIRE], "what hung on the old root went with it"
    again = Trust("garden", trust.roots, trust.statements)
    assert again.digest() == trust.digest()


def test_what_somebody_lacks_is_told_older_first(garden: Garden) -> None:
    one = garden.revoke(garden.i1, garden.by_i1)
    two = make_statement(garden.i1, Kind.REVOKE, Revoked("b", key(3)), NOW - 50)
    trust = garden.trust(one, two)
    assert trust.unknown_to([]) == [two, one]
    assert trust.unknown_to([two.id]) == [one]
    assert trust.ids() == sorted([one.id, two.id])


def lies(by: IssuingPower, count: int, first: int = 20) -> list[Statement]:
    return [make_statement(by, Kind.REVOKE, Revoked("x", key(number)), NOW) for number in range(first, first + count)]


def test_a_flood_of_statements_is_bounded(garden: Garden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnetpy.identity.trust.STATEMENTS_MAX", 3)
    monkeypatch.setattr("qnetpy.identity.trust.ROOT_STATEMENTS_MAX", 5)
    trust = garden.trust(*lies(garden.i1, 3))
    with pytest.raises(Crowded, match="too many"):
        trust.add(garden.revoke(garden.i1, garden.by_i1))
    assert trust.add(garden.revoke(garden.root, garden.by_i1)), "a root is still heard"


def test_one_issuer_does_not_take_the_places_of_others(garden: Garden) -> None:
    many = [
        make_statement(garden.i1, Kind.REVOKE, Revoked("x", number.to_bytes(32, "big")), NOW) for number in range(ISSUER_STATEMENTS_MAX + 1)
    ]
    trust = garden.trust(*many[:-1])
    with pytest.raises(Crowded):
        trust.add(many[-1])
    assert trust.add(garden.revoke(garden.i2, garden.by_i1)), "another issuer is heard"
    assert ISSUER_STATEMENTS_MAX < KEPT_MAX / 2
    assert garden.trust(many[-1]).knows(many[-1])
    trust.add(garden.revoke(garden.root, garden.by_root, issuer_id=garden.i1.issuer.key_id))
    assert len(trust.statements) == 2, "all of it goes with the issuer"


def test_an_issuer_keeps_nothing(garden: Garden) -> None:
    """Ids that mean nothing would be 24 KB in every node's memory for each statement."""
    kept = frozenset(number.to_bytes(16, "big") for number in range(KEPT_MAX))
    with pytest.raises(Misuse, match="root key"):
        garden.revoke(garden.i1, garden.by_i2, kept=kept)
    plain = garden.revoke(garden.root, garden.by_i2, kept=kept)
    with pytest.raises(BadMessage, match="no issuer"):
        garden.trust().add(plain)
    issuer = garden.i1.issuer.der
    body = plain.data[: -64 - 20 - 2] + len(issuer).to_bytes(2, "big") + issuer + garden.i1.issuer.root_id
    signature = Ed25519PrivateKey.from_private_bytes(garden.i1.private).sign(SIGNED + body)
    with pytest.raises(BadMessage, match="may not say that"):
        garden.trust().add(parse_statement(body + signature))


def test_statements_are_bounded_in_bytes(garden: Garden, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = lies(garden.i1, 2)
    monkeypatch.setattr("qnetpy.identity.trust.BYTES_MAX", len(first.data) + len(second.data) - 1)
    trust = garden.trust(first)
    with pytest.raises(Crowded):
        trust.add(second)
    assert trust.add(garden.revoke(garden.root, garden.by_i1))
    monkeypatch.setattr("qnetpy.identity.trust.ROOT_BYTES_MAX", len(first.data))
    with pytest.raises(Crowded):
        trust.add(garden.revoke(garden.root, garden.by_i2))


def test_all_statements_fit_into_the_message_that_a_node_joins_by() -> None:
    assert GRANT_MAX >= ROOT_BYTES_MAX + 2 * ROOT_STATEMENTS_MAX + (ROOTS_MAX + 1) * (CERTIFICATE_MAX + 2) + 64
    assert GRANT_MAX < 1 << 24
