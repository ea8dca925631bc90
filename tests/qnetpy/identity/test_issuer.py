"""Issuing nodes: chains of root, issuer and node; what only a root may; and openssl's opinion of all of it."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qnetpy.identity.authority import (
    ISSUER_VALIDITY,
    Authority,
    IssuingPower,
    certify_issuer,
    issue_certificate,
    issue_identity,
    make_authority,
)
from qnetpy.identity.certificate import (
    CERTIFICATE_MAX,
    BadSignature,
    Expired,
    Malformed,
    NotYetValid,
    WrongCluster,
    parse_chain,
    parse_issuer,
    parse_root,
    split_chain,
    verify,
)
from qnetpy.identity.files import StoreError
from qnetpy.identity.keyfiles import (
    create_cluster,
    install_bundle,
    issue_node,
    load_identity,
    load_powers,
    make_power,
    pack_bundle,
    save_identity,
    save_powers,
    unpack_bundle,
)
from resmgr.errors import Misuse

NOW = 1_800_000_000.0
DAY = 86400.0
KEY = X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()


def power(authority: Authority, node: str = "n1", seed: int = 5, validity: float = ISSUER_VALIDITY) -> IssuingPower:
    private = random.Random(seed).randbytes(32)
    public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    return IssuingPower(certify_issuer(authority, node, public, NOW, validity), private)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("garden", NOW, random=random.Random(1).randbytes)


def test_a_chain_is_verified_and_travels_in_one_piece(authority: Authority) -> None:
    certificate = issue_certificate(power(authority), "n2", KEY, ["files"], NOW)

    assert verify(certificate, [authority.root], NOW, "n2") is authority.root
    assert certificate.root_id == authority.root.key_id
    assert parse_chain(certificate.chain) == certificate
    assert len(certificate.chain) < CERTIFICATE_MAX
    assert certificate.issuer is not None
    assert certificate.issuer.node == "n1"
    assert parse_issuer(certificate.issuer.der) == certificate.issuer


def test_a_chain_cut_anywhere_or_with_more_is_malformed(authority: Authority) -> None:
    chain = issue_certificate(power(authority), "n2", KEY, [], NOW).chain
    whole = len(split_chain(chain)[0])
    for end in range(len(chain)):
        if end == whole:
            assert parse_chain(chain[:end]).issuer is None
            continue
        with pytest.raises(Malformed):
            parse_chain(chain[:end])
    for more in (b"\0", b"\x30", chain[:whole], chain):
        with pytest.raises(Malformed):
            parse_chain(chain + more)
    for wrong in (b"", b"\x30\x80", chain[whole:] + chain[:whole], chain[:whole] + authority.root.der):
        with pytest.raises(Malformed):
            parse_chain(wrong)


def test_the_issuer_has_to_be_the_right_one(authority: Authority) -> None:
    good = issue_certificate(power(authority), "n2", KEY, [], NOW)
    with pytest.raises(WrongCluster):
        verify(attrs.evolve(good, issuer=None), [authority.root], NOW)
    with pytest.raises(BadSignature, match="not signed by the issuer"):
        verify(attrs.evolve(good, issuer=power(authority, "n3", 6).issuer), [authority.root], NOW)
    other = make_authority("garden", NOW, random=random.Random(2).randbytes)
    with pytest.raises(WrongCluster):
        verify(issue_certificate(power(other), "n2", KEY, [], NOW), [authority.root], NOW)
    thief = power(other)
    claims = attrs.evolve(thief.issuer, root_id=authority.root.key_id)
    with pytest.raises(BadSignature, match="bad signature"):
        verify(attrs.evolve(issue_certificate(thief, "n2", KEY, [], NOW), issuer=claims), [authority.root], NOW)


def test_an_issuer_makes_no_issuers(authority: Authority) -> None:
    with pytest.raises(Misuse, match="where the root key is"):
        issue_certificate(power(authority), "n2", KEY, ["issuer"], NOW)
    # Made all the same, by somebody who took the check out: as a root would, under the key of an issuer.
    stolen = power(authority)
    forged = Authority(
        attrs.evolve(authority.root, key_id=stolen.issuer.key_id, parsed=stolen.issuer.parsed, not_before=NOW - DAY),
        stolen.private,
        bytes(32),
    )
    certificate = attrs.evolve(issue_certificate(forged, "n2", KEY, ["issuer"], NOW), issuer=stolen.issuer)
    with pytest.raises(BadSignature, match="only a root gives"):
        verify(certificate, [authority.root], NOW)
    with pytest.raises(Malformed, match="not an issuer's"):
        certify_issuer(forged, "n3", Ed25519PrivateKey.generate().public_key().public_bytes_raw(), NOW)


def test_times_of_every_link_of_the_chain_count(authority: Authority) -> None:
    short = power(authority, validity=DAY)
    certificate = issue_certificate(short, "n2", KEY, [], NOW)
    assert certificate.not_after == NOW + DAY, "never after its signer's"
    with pytest.raises(Expired):
        verify(certificate, [authority.root], NOW + 2 * DAY)
    with pytest.raises(NotYetValid):
        verify(certificate, [authority.root], NOW - DAY)
    with pytest.raises(Misuse, match="n1 issues is not valid now"):
        issue_certificate(short, "n2", KEY, [], NOW + 2 * DAY)


def test_a_root_of_an_earlier_version_has_no_issuers(authority: Authority) -> None:
    old = attrs.evolve(authority, root=attrs.evolve(authority.root, certifies_issuers=False))
    with pytest.raises(Misuse, match="qnet root rotate"):
        power(old)
    with pytest.raises(BadSignature, match="does not allow issuers"):
        verify(issue_certificate(power(authority), "n2", KEY, [], NOW), [old.root], NOW)


def test_names_that_make_the_chain_too_long_are_refused() -> None:
    big = make_authority("c" * 63, NOW)
    issuing = power(big, "i" * 40)
    assert len(issue_certificate(issuing, "n" * 20, KEY, [], NOW).chain) <= CERTIFICATE_MAX
    with pytest.raises(Misuse, match="896 are allowed"):
        issue_certificate(issuing, "n" * 63, KEY, [f"{i}" * 40 for i in range(8)], NOW)


def test_files_of_an_issuer(tmp_path: Path) -> None:
    create_cluster(tmp_path, "garden", NOW)
    install_bundle(tmp_path, issue_node(tmp_path, "n1", ["issuer"], now=NOW))
    assert load_powers(tmp_path) == []
    made = make_power(tmp_path, "n1", NOW)
    assert load_powers(tmp_path) == [made]
    assert (tmp_path / "issuer.key").stat().st_mode & 0o777 == 0o600
    member = issue_identity(make_authority("x", NOW), "n2", [], NOW)
    chained = attrs.evolve(member, certificate=issue_certificate(made, "n2", member.certificate.static_key, [], NOW))
    save_identity(tmp_path / "other", chained)
    assert load_identity(tmp_path / "other") == chained
    assert unpack_bundle(pack_bundle(chained)) == chained
    (tmp_path / "issuer.key").chmod(0o644)
    with pytest.raises(StoreError, match="chmod 600"):
        load_powers(tmp_path)


def test_a_key_from_a_command(tmp_path: Path) -> None:
    create_cluster(tmp_path, "garden", NOW)
    identity = install_bundle(tmp_path, issue_node(tmp_path, "n1", [], now=NOW))
    vault = tmp_path / "vault"
    (tmp_path / "node.key").rename(vault)
    assert load_identity(tmp_path, f"cat {vault}") == identity
    for command, why in (
        ("false", "ended with 1"),
        ("echo no key", "did not print a private key"),
        (f"cat {tmp_path}/nothing", "nothing: No such file"),
        (f"{tmp_path}/no-such-command", "key_command"),
        ("'", "key_command"),
    ):
        with pytest.raises(StoreError, match=why):
            load_identity(tmp_path, command)
    save_identity(tmp_path, identity, keep_key=True)
    assert not (tmp_path / "node.key").exists(), "the key is not ours to keep"


@pytest.mark.host
def test_openssl_reads_and_verifies_what_we_make(authority: Authority, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    assert openssl is not None, "openssl is not installed; see .ci/packages"
    create_cluster(tmp_path, "garden", NOW)
    install_bundle(tmp_path, issue_node(tmp_path, "n1", ["issuer"], now=NOW))
    made = make_power(tmp_path, "n1", NOW)
    member = issue_identity(make_authority("x", NOW), "n2", [], NOW)
    root = parse_root(load_identity(tmp_path).roots[0].der)
    chained = attrs.evolve(
        member, roots=(root,), certificate=issue_certificate(made, "n2", member.certificate.static_key, ["printer"], NOW)
    )
    there = tmp_path / "other"
    save_identity(there, chained)
    save_powers(there, [made])

    def verified(certificate: Path, *options: str) -> str:
        command = [
            openssl,
            "verify",
            "-attime",
            str(int(NOW)),
            "-x509_strict",
            "-CAfile",
            str(there / "roots.crt"),
            *options,
            str(certificate),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stdout + result.stderr

    assert verified(there / "node.crt", "-untrusted", str(there / "issuer.crt")).endswith(": OK\n")
    assert verified(there / "node.crt", "-untrusted", str(there / "node.crt")).endswith(": OK\n"), "the chain is in the file itself"
    assert verified(there / "issuer.crt").endswith(": OK\n")
    assert "OK" not in verified(there / "node.crt"), "without its issuer it hangs on nothing"
    text = subprocess.run(
        [openssl, "x509", "-in", str(there / "issuer.crt"), "-noout", "-text"], capture_output=True, text=True, check=True
    ).stdout
    for line in ("CN = qnet issuer n1", "CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign", "ED25519"):
        assert line in text
