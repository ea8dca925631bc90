"""The cluster authority: makes the root and issues node certificates. Values only; files are `qnetpy.identity.keyfiles`'s.

The root is an Ed25519 key with a self-signed certificate. Whoever holds it may name nodes and roles; no server takes part, and the root is
not needed for the cluster to run. It can give an issuing power to a node: an Ed25519 key of that node with a certificate (path length 0),
good for the certificates of nodes that are no issuers themselves. So the root's key stays where it is, and the cluster renews and invites
without it. The cluster secret, 32 random bytes that every member has, is no proof of identity: it keeps strangers from getting any answer
at all (docs/protocol/identity.md).
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from qnetpy.identity.certificate import (
    CERTIFICATE_MAX,
    ISSUER_PREFIX,
    ROLE_ISSUER,
    Certificate,
    Issuer,
    Root,
    date,
    parse_certificate,
    parse_issuer,
    parse_root,
)
from qnetpy.identity.names import ROLES_MAX, is_name
from resmgr.errors import Misuse

SECRET_SIZE = 32
ROOT_VALIDITY = 20 * 365.25 * 86400.0
ISSUER_VALIDITY = 5 * 365.25 * 86400.0
NODE_VALIDITY = 365.25 * 86400.0
BACKDATE = 300.0
"""A certificate is valid from this long before it was issued, so that a new node's clock may be a little late."""
SERIAL_SIZE = 16
"""Random bytes of a serial number; RFC 5280 section 4.1.2.2 allows 20 with the first bit clear."""

Random = Callable[[int], bytes]


@attrs.frozen
class Authority:
    """What issues certificates: the root's private key (32 bytes), its certificate, and the cluster secret."""

    root: Root
    root_private: bytes = attrs.field(repr=False)
    secret: bytes = attrs.field(repr=False)

    @property
    def cluster(self) -> str:
        return self.root.cluster


@attrs.frozen
class IssuingPower:
    """What a node with the role `issuer` issues with: its own Ed25519 key and the certificate a root gave for it."""

    issuer: Issuer
    private: bytes = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        if Ed25519PrivateKey.from_private_bytes(self.private).public_key().public_bytes_raw() != self.issuer.key:
            raise Misuse(f"the private key does not belong to the issuer's certificate of {self.issuer.node}")

    @property
    def cluster(self) -> str:
        return self.issuer.cluster


@attrs.frozen
class NodeIdentity:
    """Everything a node needs to prove who it is and to check others. Lives in memory; never printed whole."""

    certificate: Certificate
    static_private: bytes = attrs.field(repr=False)
    """X25519 private key, 32 bytes; belongs to `certificate.static_key`."""
    roots: tuple[Root, ...]
    """Roots to trust: one, or two while one replaces the other."""
    secret: bytes = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        public = X25519PrivateKey.from_private_bytes(self.static_private).public_key().public_bytes_raw()
        if public != self.certificate.static_key:
            raise Misuse(f"the private key does not belong to the certificate of {self.certificate.name}")
        if len(self.secret) != SECRET_SIZE:
            raise Misuse(f"the cluster secret is {len(self.secret)} bytes, not {SECRET_SIZE}")

    @property
    def name(self) -> str:
        return self.certificate.name

    @property
    def cluster(self) -> str:
        return self.certificate.cluster

    @property
    def roles(self) -> frozenset[str]:
        return self.certificate.roles


def make_authority(
    cluster: str, wall: float, validity: float = ROOT_VALIDITY, random: Random = os.urandom, secret: bytes | None = None
) -> Authority:
    """A new cluster: root key, root certificate, cluster secret; with *secret*, another root for a cluster that has one. *wall* in seconds
    since the epoch. Misuse for a bad name."""
    if not is_name(cluster):
        raise Misuse(f"{cluster!r} is no name for a cluster: letters, digits and hyphens, at most 63")
    private = Ed25519PrivateKey.from_private_bytes(random(32))
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster), x509.NameAttribute(NameOID.COMMON_NAME, "qnet cluster root")]
    )
    key_id = x509.SubjectKeyIdentifier.from_public_key(private.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(_serial(random))
        .not_valid_before(_moment(wall - BACKDATE))
        .not_valid_after(_moment(wall + validity))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(key_id, critical=False)
        .sign(private, None)
    )
    return Authority(
        parse_root(certificate.public_bytes(Encoding.DER)), private.private_bytes_raw(), random(SECRET_SIZE) if secret is None else secret
    )


def certify_issuer(
    authority: Authority, node: str, key: bytes, wall: float, validity: float = ISSUER_VALIDITY, random: Random = os.urandom
) -> Issuer:
    """The certificate with which the node *node* issues under its Ed25519 public key *key*, never valid beyond the root."""
    root = authority.root
    if not is_name(node):
        raise Misuse(f"{node!r} is no name for a node: lower-case letters, digits and hyphens, at most 63")
    if not root.certifies_issuers:
        raise Misuse(f"the root of cluster {root.cluster} does not allow issuers: its path length is 0; qnet root rotate makes another")
    _check_time(root, wall)
    public = Ed25519PublicKey.from_public_bytes(key)
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, ISSUER_PREFIX + node)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(root.parsed.subject)
        .public_key(public)
        .serial_number(_serial(random))
        .not_valid_before(_moment(max(wall - BACKDATE, root.not_before)))
        .not_valid_after(_moment(min(wall + validity, root.not_after)))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(root.key_id, None, None), critical=False)
        .sign(Ed25519PrivateKey.from_private_bytes(authority.root_private), None)
    )
    return parse_issuer(certificate.public_bytes(Encoding.DER))


def issue_certificate(
    power: Authority | IssuingPower, name: str, static_key: bytes, roles: Iterable[str], wall: float, validity: float = NODE_VALIDITY,
    random: Random = os.urandom,
) -> Certificate:  # fmt: skip
    """A certificate for the node *name* with the X25519 public key *static_key*, valid for *validity* seconds and never beyond its
    signer's."""
    granted = sorted(set(roles))
    if not is_name(name):
        raise Misuse(f"{name!r} is no name for a node: lower-case letters, digits and hyphens, at most 63")
    if len(granted) > ROLES_MAX or not all(map(is_name, granted)):
        raise Misuse(f"roles are names, at most {ROLES_MAX}: {', '.join(granted)}")
    if validity <= 0:
        raise Misuse("validity must be more than nothing")
    signer, private, issuer = (
        (power.root, power.root_private, None) if isinstance(power, Authority) else (power.issuer, power.private, power.issuer)
    )
    if issuer is not None and ROLE_ISSUER in granted:
        raise Misuse(f"the role {ROLE_ISSUER} is given where the root key is, not by the issuer {issuer.node}")
    _check_time(signer, wall)
    subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, power.cluster)]
    subject += [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role) for role in granted]
    subject += [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(signer.parsed.subject)
        .public_key(X25519PublicKey.from_public_bytes(static_key))
        .serial_number(_serial(random))
        .not_valid_before(_moment(max(wall - BACKDATE, signer.not_before)))
        .not_valid_after(_moment(min(wall + validity, signer.not_after)))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier(signer.key_id, None, None), critical=False)
        .sign(Ed25519PrivateKey.from_private_bytes(private), None)
    )
    der = certificate.public_bytes(Encoding.DER)
    size = len(der) + (0 if issuer is None else len(issuer.der))
    if size > CERTIFICATE_MAX:
        raise Misuse(
            f"the names of cluster, node and roles are too long: the certificate would have {size} bytes, and {CERTIFICATE_MAX} are allowed"
        )
    return attrs.evolve(parse_certificate(der), issuer=issuer)


def _check_time(signer: Root | Issuer, wall: float) -> None:
    if not signer.not_before <= wall < signer.not_after:
        what = f"the root of cluster {signer.cluster}" if isinstance(signer, Root) else f"the certificate with which {signer.node} issues"
        raise Misuse(f"{what} is not valid now: it is {date(wall)} here")


def issue_identity(
    authority: Authority, name: str, roles: Iterable[str], wall: float, validity: float = NODE_VALIDITY, random: Random = os.urandom
) -> NodeIdentity:
    """A new static key and its certificate, complete with root and cluster secret: what a node is given to become a member."""
    private = X25519PrivateKey.from_private_bytes(random(32))
    certificate = issue_certificate(authority, name, private.public_key().public_bytes_raw(), roles, wall, validity, random)
    return NodeIdentity(certificate, private.private_bytes_raw(), (authority.root,), authority.secret)


def _serial(random: Random) -> int:
    return int.from_bytes(random(SERIAL_SIZE), "big") or 1


def _moment(wall: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(wall), datetime.UTC)


def _usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )
