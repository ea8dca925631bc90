"""Certificates: what openssl sees, what verification refuses, and that only Malformed comes from bad bytes."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from qnetpy.identity.authority import Authority, issue_certificate, issue_identity, make_authority
from qnetpy.identity.certificate import (
    CERTIFICATE_MAX,
    BadSignature,
    CertificateError,
    Expired,
    Malformed,
    NotYetValid,
    WrongCluster,
    WrongName,
    parse_certificate,
    parse_root,
    verify,
)
from qnetpy.identity.names import is_name
from resmgr.errors import BadMessage, Misuse

NOW = 1_800_000_000.0
DAY = 86400.0


@pytest.fixture
def authority() -> Authority:
    return make_authority("garden", NOW, random=random.Random(1).randbytes)


def test_openssl_reads_what_we_wrote_and_checks_the_chain(authority: Authority, tmp_path: Path) -> None:
    identity = issue_identity(authority, "n1", ["admin", "files"], NOW)
    node, root = tmp_path / "node.crt", tmp_path / "root.crt"
    node.write_bytes(identity.certificate.parsed.public_bytes(Encoding.PEM))
    root.write_bytes(authority.root.parsed.public_bytes(Encoding.PEM))
    text = subprocess.run(["openssl", "x509", "-in", node, "-text", "-noout"], capture_output=True, text=True, check=True).stdout
    for line in ("O = garden, OU = admin, OU = files, CN = n1", "X25519", "Key Agreement", "CA:FALSE", "Signature Algorithm: ED25519"):
        assert line in text
    key = "".join(line.strip() for line in text.split("pub:")[1].splitlines()[1:4])
    assert bytes.fromhex(key.replace(":", "")) == identity.certificate.static_key
    chain = ["openssl", "verify", "-attime", str(int(NOW)), "-CAfile", str(root), str(node)]
    assert subprocess.run(chain, capture_output=True, text=True, check=True).stdout.strip() == f"{node}: OK"


def test_a_certificate_says_what_was_issued(authority: Authority) -> None:
    certificate = issue_identity(authority, "n1", ["files", "admin", "files"], NOW, 30 * DAY).certificate
    assert (certificate.name, certificate.cluster, certificate.roles) == ("n1", "garden", frozenset({"admin", "files"}))
    assert certificate.not_before == NOW - 300
    assert certificate.not_after == NOW + 30 * DAY
    assert parse_certificate(certificate.der) == certificate
    assert verify(certificate, [authority.root], NOW, "n1") is authority.root
    fingerprint = certificate.fingerprint.split(":")
    assert len(fingerprint) == 32


def test_validity_ends_with_the_root() -> None:
    authority = make_authority("garden", NOW, validity=DAY)
    assert issue_identity(authority, "n1", [], NOW, 30 * DAY).certificate.not_after == NOW + DAY


def test_the_bounds_of_validity_are_inclusive(authority: Authority) -> None:
    certificate = issue_identity(authority, "n1", [], NOW, DAY).certificate
    verify(certificate, [authority.root], NOW + DAY)
    verify(certificate, [authority.root], NOW - 300)
    with pytest.raises(Expired, match="certificate of n1 expired on 2027-01-16"):
        verify(certificate, [authority.root], NOW + DAY + 1)
    with pytest.raises(NotYetValid, match="one of the clocks is wrong"):
        verify(certificate, [authority.root], NOW - 301)


def test_nothing_is_issued_outside_the_validity_of_the_root(authority: Authority) -> None:
    for wall in (NOW - DAY, NOW + 21 * 365.25 * DAY):
        with pytest.raises(Misuse, match="root of cluster garden is not valid now"):
            issue_identity(authority, "n1", [], wall)


def test_an_expired_root_is_named(authority: Authority) -> None:
    certificate = issue_identity(authority, "n1", [], NOW, 30 * DAY).certificate
    short = attrs.evolve(authority.root, not_after=NOW)
    with pytest.raises(Expired, match="root of cluster garden"):
        verify(certificate, [short], NOW + 1)


def test_another_root_is_another_cluster_even_under_the_same_name(authority: Authority) -> None:
    for name in ("garden", "yard"):
        certificate = issue_identity(make_authority(name, NOW), "n1", [], NOW).certificate
        with pytest.raises(WrongCluster, match=f"of a cluster {name}"):
            verify(certificate, [authority.root], NOW)
    with pytest.raises(WrongCluster, match="our cluster: none"):
        verify(certificate, [], NOW)


def test_either_of_two_roots_will_do(authority: Authority) -> None:
    second = make_authority("garden", NOW)
    roots = [authority.root, second.root]
    assert verify(issue_identity(second, "n1", [], NOW).certificate, roots, NOW) is second.root
    assert verify(issue_identity(authority, "n1", [], NOW).certificate, roots, NOW) is authority.root


def test_a_root_of_another_cluster_name_vouches_for_nobody(authority: Authority) -> None:
    """The O of root and node must agree, so that a root trusted for one cluster cannot name nodes of another."""
    certificate = issue_identity(authority, "n1", [], NOW).certificate
    with pytest.raises(WrongCluster):
        verify(certificate, [attrs.evolve(authority.root, cluster="yard")], NOW)


def test_wrong_name(authority: Authority) -> None:
    with pytest.raises(WrongName, match="expected node n2, found node n1"):
        verify(issue_identity(authority, "n1", [], NOW).certificate, [authority.root], NOW, "n2")


def test_no_changed_byte_is_accepted(authority: Authority) -> None:
    """Flip each byte in turn: it does not parse, or does not verify. Only CertificateError comes out."""
    good = issue_identity(authority, "n1", ["files"], NOW).certificate.der
    refused: set[type] = set()
    for index in range(len(good)):
        bad = bytearray(good)
        bad[index] ^= 1 << (index % 8)
        try:
            verify(parse_certificate(bytes(bad)), [authority.root], NOW)
        except CertificateError as error:
            refused.add(type(error))
        else:
            pytest.fail(f"byte {index} changed and the certificate was accepted")
    assert {Malformed, BadSignature, WrongCluster} <= refused


def test_a_name_changed_after_signing_is_a_bad_signature(authority: Authority) -> None:
    good = issue_identity(authority, "nodeone", [], NOW).certificate.der
    with pytest.raises(BadSignature):
        verify(parse_certificate(good.replace(b"nodeone", b"nodetwo")), [authority.root], NOW)


def test_truncation_and_noise(authority: Authority) -> None:
    good = issue_identity(authority, "n1", [], NOW).certificate.der
    for length in range(len(good)):
        with pytest.raises(Malformed):
            parse_certificate(good[:length])
    chance = random.Random(7)
    for length in range(0, CERTIFICATE_MAX + 2, 7):
        with pytest.raises(Malformed):
            parse_certificate(chance.randbytes(length))
    with pytest.raises(Malformed, match="too long"):
        parse_certificate(bytes(CERTIFICATE_MAX + 1))
    assert issubclass(Malformed, BadMessage)


def test_root_and_node_are_not_exchangeable(authority: Authority) -> None:
    node = issue_identity(authority, "n1", [], NOW).certificate
    with pytest.raises(Malformed):
        parse_certificate(authority.root.der)
    with pytest.raises(Malformed, match="not a root"):
        parse_root(node.der)


def test_a_root_that_another_signed_is_refused(authority: Authority) -> None:
    """Same names and key, signed by a stranger."""
    parsed = authority.root.parsed
    builder = x509.CertificateBuilder(
        parsed.issuer,
        parsed.subject,
        parsed.public_key(),
        5,
        parsed.not_valid_before_utc,
        parsed.not_valid_after_utc,
        list(parsed.extensions),
    )
    with pytest.raises(BadSignature, match="not signed by itself"):
        parse_root(builder.sign(Ed25519PrivateKey.generate(), None).public_bytes(Encoding.DER))


def test_an_unknown_critical_extension_is_refused(authority: Authority) -> None:
    parsed = issue_identity(authority, "n1", [], NOW).certificate.parsed
    odd = x509.Extension(x509.ObjectIdentifier("1.2.3.4"), True, x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x"))
    for extra, accepted in ((odd, False), (x509.Extension(odd.oid, False, odd.value), True)):
        builder = x509.CertificateBuilder(
            parsed.issuer, parsed.subject, parsed.public_key(), 5, parsed.not_valid_before_utc, parsed.not_valid_after_utc,
            [*parsed.extensions, extra],
        )  # fmt: skip
        der = builder.sign(Ed25519PrivateKey.from_private_bytes(authority.root_private), None).public_bytes(Encoding.DER)
        if accepted:
            verify(parse_certificate(der), [authority.root], NOW)
        else:
            with pytest.raises(Malformed, match="critical"):
                parse_certificate(der)


@pytest.mark.parametrize("name", ["", "N1", "-a", "a-", "a.b", "a b", "é", "a" * 64, "a\n", "../x"])
def test_bad_names_are_not_issued(authority: Authority, name: str) -> None:
    assert not is_name(name)
    with pytest.raises(Misuse):
        issue_identity(authority, name, [], NOW)
    with pytest.raises(Misuse):
        make_authority(name, NOW)
    with pytest.raises(Misuse):
        issue_identity(authority, "n1", [name], NOW)


def test_the_largest_names_fit(authority: Authority) -> None:
    assert all(map(is_name, ("a", "1", "a-b", "a" * 63)))
    big = make_authority("c" * 63, NOW)
    certificate = issue_identity(big, "n" * 63, [f"{i}" * 30 for i in range(8)], NOW).certificate
    assert len(certificate.der) <= CERTIFICATE_MAX
    with pytest.raises(Misuse, match="too long"):
        issue_identity(big, "n" * 63, [f"{i}" * 63 for i in range(8)], NOW)
    with pytest.raises(Misuse, match="at most 8"):
        issue_identity(big, "n1", [f"r{i}" for i in range(9)], NOW)


def test_a_key_is_bound_to_its_certificate(authority: Authority) -> None:
    one, two = (issue_identity(authority, name, [], NOW) for name in ("n1", "n2"))
    with pytest.raises(Misuse, match="does not belong to the certificate of n2"):
        attrs.evolve(one, certificate=two.certificate)
    with pytest.raises(Misuse, match="31 bytes"):
        attrs.evolve(one, secret=bytes(31))


def test_secrets_are_not_printed(authority: Authority) -> None:
    identity = issue_identity(authority, "n1", [], NOW)
    shown = repr(identity) + repr(authority) + str(identity)
    for secret in (identity.static_private, identity.secret, authority.root_private):
        assert repr(secret) not in shown
        assert secret.hex() not in shown


def test_the_same_randomness_gives_the_same_cluster() -> None:
    """The simulator makes identities from a seed."""
    one, two = (
        issue_certificate(
            make_authority("c", NOW, random=random.Random(3).randbytes), "n", bytes(range(32)), [], NOW, random=random.Random(4).randbytes
        )
        for _ in range(2)
    )
    assert one.der == two.der
