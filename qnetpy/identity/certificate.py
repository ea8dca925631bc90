"""Certificates: X.509 (RFC 5280) with X25519 subject keys (RFC 8410), signed by the cluster's Ed25519 root. Parse and verify; no files.

`openssl x509 -text` shows everything that counts: O is the cluster, CN the node, each OU a role, the subject public key the node's static
Noise key. A node certificate is signed by a root, or by an issuer: a node whose own Ed25519 key a root certified for that. So a chain is
root and node, or root, issuer and node. What a certificate says beyond that is refused when it is critical and ignored otherwise. Layout
and checks: docs/protocol/identity.md.
"""

from __future__ import annotations

import datetime
import hashlib
import warnings
from collections.abc import Sequence

import attrs
from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from qnetpy.identity.names import ROLES_MAX, is_name
from resmgr.errors import BadMessage

CERTIFICATE_MAX = 896
"""Bytes of DER accepted and issued, a node's certificate together with its issuer's (usual: 350 each). Stops a peer that makes us parse
megabytes, and keeps handshake frames under 1,280 bytes."""
ROLE_ISSUER = "issuer"
"""The role of nodes that may issue. Only a root gives it: an issuer cannot make issuers."""
ISSUER_PREFIX = "qnet issuer "
"""Common name of an issuer's certificate, followed by the node's name. It is the whole subject, since it stands in every certificate that
the issuer signs; the cluster is its signer's."""

_UNREADABLE = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
    InternalError,
    CryptographyDeprecationWarning,
)
"""What the parser raises for bytes it does not like, early or when a field is looked at."""
_KNOWN_EXTENSIONS = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)


class CertificateError(BadMessage):
    """A certificate does not prove what it should. The text is a sentence for people; the class says which check failed."""


class Malformed(CertificateError):
    """Not a certificate of the form above."""


class WrongCluster(CertificateError):
    """Signed by a root we do not trust, or for another cluster."""


class BadSignature(CertificateError):
    """Names one of our roots as issuer, but that root did not sign it."""


class Expired(CertificateError):
    """Its validity has ended."""


class NotYetValid(CertificateError):
    """Its validity has not begun, or a clock is wrong."""


class WrongName(CertificateError):
    """It is another node's certificate."""


@attrs.frozen
class Issuer:
    """A node's certificate for issuing, as parsed, not verified. `key_id` names it in the certificates it signs, `root_id` its root."""

    cluster: str
    node: str
    key: bytes = attrs.field(repr=bytes.hex)
    """Ed25519 public key, 32 bytes."""
    key_id: bytes = attrs.field(repr=bytes.hex)
    root_id: bytes = attrs.field(repr=bytes.hex)
    not_before: float
    not_after: float
    der: bytes = attrs.field(repr=False)
    parsed: x509.Certificate = attrs.field(repr=False, eq=False, hash=False)


@attrs.frozen
class Certificate:
    """A node certificate as parsed, not verified. `not_before` and `not_after` are seconds since the epoch, both inclusive."""

    name: str
    cluster: str
    roles: frozenset[str]
    static_key: bytes = attrs.field(repr=bytes.hex)
    """The node's X25519 public key, 32 bytes."""
    not_before: float
    not_after: float
    serial: int
    signer_id: bytes = attrs.field(repr=bytes.hex)
    """Key id of the root or issuer that signed it; empty when it does not say."""
    der: bytes = attrs.field(repr=False)
    parsed: x509.Certificate = attrs.field(repr=False, eq=False, hash=False)
    issuer: Issuer | None = None
    """The issuer that signed it; None: a root did."""

    @property
    def chain(self) -> bytes:
        """What proves it to who has the root: DER of the certificate, followed by the issuer's."""
        return self.der if self.issuer is None else self.der + self.issuer.der

    @property
    def root_id(self) -> bytes:
        """Key id of the root that it hangs on."""
        return self.signer_id if self.issuer is None else self.issuer.root_id

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, as `openssl x509 -fingerprint -sha256` prints it."""
        return self.parsed.fingerprint(hashes.SHA256()).hex(":").upper()


@attrs.frozen
class Root:
    """A cluster root as parsed and found to have signed itself. `key_id` names it in the certificates it signs."""

    cluster: str
    key: bytes = attrs.field(repr=bytes.hex)
    key_id: bytes = attrs.field(repr=bytes.hex)
    not_before: float
    not_after: float
    certifies_issuers: bool
    """Its path length allows an issuer below it."""
    der: bytes = attrs.field(repr=False)
    parsed: x509.Certificate = attrs.field(repr=False, eq=False, hash=False)


def fingerprint(key: bytes) -> str:
    """A public key for people: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(key).hexdigest()[:16]


def split_chain(data: bytes) -> list[bytes]:
    """The DER values that stand one after another in *data*, at most two. Malformed when they do not end where it ends."""
    found: list[bytes] = []
    if len(data) > CERTIFICATE_MAX:
        raise Malformed("certificate: too long")
    while data:
        # A SEQUENCE of 128 to 65535 bytes, which every certificate is.
        size = 3 + data[2] if data[:2] == b"\x30\x81" and len(data) > 2 else 0
        if data[:2] == b"\x30\x82" and len(data) > 3:
            size = 4 + int.from_bytes(data[2:4], "big")
        if not size or size > len(data) or len(found) == 2:
            raise Malformed("certificate: not DER of X.509")
        found.append(data[:size])
        data = data[size:]
    if not found:
        raise Malformed("certificate: not DER of X.509")
    return found


def parse_chain(data: bytes) -> Certificate:
    """The node certificate that *data* begins with, and its issuer's when that follows. Malformed for anything else."""
    der, *above = split_chain(data)
    certificate = parse_certificate(der)
    return attrs.evolve(certificate, issuer=parse_issuer(above[0])) if above else certificate


def parse_certificate(der: bytes) -> Certificate:
    """The node certificate in *der*. Malformed for anything else."""
    parsed = _load(der)
    cluster, name, roles = _subject(parsed)
    if not is_name(name):
        raise Malformed("certificate: the common name is not a node name")
    if _is_authority(parsed):
        raise Malformed("certificate: this is a root, not a node's certificate")
    try:
        key = parsed.public_key()
    except _UNREADABLE as error:
        raise Malformed("certificate: unreadable public key") from error
    if not isinstance(key, X25519PublicKey):
        raise Malformed("certificate: the public key is not an X25519 key")
    return Certificate(
        name=name,
        cluster=cluster,
        roles=roles,
        static_key=key.public_bytes_raw(),
        not_before=parsed.not_valid_before_utc.timestamp(),
        not_after=parsed.not_valid_after_utc.timestamp(),
        serial=parsed.serial_number,
        signer_id=_signer_id(parsed),
        der=der,
        parsed=parsed,
    )


def parse_root(der: bytes) -> Root:
    """The root certificate in *der*; its own signature is checked. Malformed or BadSignature."""
    parsed = _load(der)
    cluster, _, _ = _subject(parsed)
    if not _is_authority(parsed):
        raise Malformed("certificate: this is not a root")
    key = _signing_key(parsed)
    try:
        key.verify(parsed.signature, parsed.tbs_certificate_bytes)
    except InvalidSignature as error:
        raise BadSignature(f"the root certificate of cluster {cluster} is not signed by itself") from error
    return Root(
        cluster=cluster,
        key=key.public_bytes_raw(),
        key_id=x509.SubjectKeyIdentifier.from_public_key(key).digest,
        not_before=parsed.not_valid_before_utc.timestamp(),
        not_after=parsed.not_valid_after_utc.timestamp(),
        certifies_issuers=_path_length(parsed) >= 1,
        der=der,
        parsed=parsed,
    )


def parse_issuer(der: bytes) -> Issuer:
    """The issuer's certificate in *der*. Malformed for anything else."""
    parsed = _load(der)
    try:
        subject = [(attribute.oid, attribute.value) for attribute in parsed.subject]
        clusters = [attribute.value for attribute in parsed.issuer if attribute.oid == NameOID.ORGANIZATION_NAME]
    except _UNREADABLE as error:
        raise Malformed("certificate: unreadable subject") from error
    name = str(subject[0][1]) if len(subject) == 1 and subject[0][0] == NameOID.COMMON_NAME else ""
    cluster, node = str(clusters[0]) if len(clusters) == 1 else "", name.removeprefix(ISSUER_PREFIX)
    if not _is_authority(parsed) or _path_length(parsed) != 0 or node == name or not is_name(node) or not is_name(cluster):
        raise Malformed("certificate: this is not an issuer's")
    key = _signing_key(parsed)
    return Issuer(
        cluster=cluster,
        node=node,
        key=key.public_bytes_raw(),
        key_id=x509.SubjectKeyIdentifier.from_public_key(key).digest,
        root_id=_signer_id(parsed),
        not_before=parsed.not_valid_before_utc.timestamp(),
        not_after=parsed.not_valid_after_utc.timestamp(),
        der=der,
        parsed=parsed,
    )


def parse_pem_certificates(pem: bytes) -> list[bytes]:
    """The DER of every certificate in *pem*, in order. Malformed when there is none or one is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            return [certificate.public_bytes(Encoding.DER) for certificate in x509.load_pem_x509_certificates(pem)]
    except _UNREADABLE as error:
        raise Malformed("no certificate in PEM form") from error


def verify(certificate: Certificate, roots: Sequence[Root], wall: float, name: str | None = None) -> Root:
    """Check *certificate*, with its issuer if it has one, against *roots* at wall time *wall* and, if given, for being *name*'s. Returns
    the root that it hangs on.

    Order of checks, so that the error names the first cause: root, signatures, validity, name. Raises WrongCluster, BadSignature, Expired,
    NotYetValid, WrongName. Whether it was revoked is `qnetpy.identity.trust`'s to say.
    """
    issuer, who = certificate.issuer, f"the certificate of {certificate.name}"
    root = next((root for root in roots if root.key_id == certificate.root_id and root.cluster == certificate.cluster), None)
    if root is None:
        ours = ", ".join(sorted({root.cluster for root in roots})) or "none"
        raise WrongCluster(f"{who} is of a cluster {certificate.cluster} whose root we do not have (our cluster: {ours})")
    signer: Root | Issuer = root
    if issuer is not None:
        verify_issuer(issuer, roots)
        if issuer.key_id != certificate.signer_id or issuer.cluster != certificate.cluster:
            raise BadSignature(f"{who} was not signed by the issuer that it comes with ({issuer.node})")
        if ROLE_ISSUER in certificate.roles:
            raise BadSignature(f"{who} has the role {ROLE_ISSUER}, which only a root gives, and is signed by {issuer.node}")
        signer = issuer
    _check_signature(signer, certificate.parsed, who)
    above: list[tuple[str, float, float]] = [(who, certificate.not_before, certificate.not_after)]
    if issuer is not None:
        above.append((f"the certificate with which {issuer.node} issues", issuer.not_before, issuer.not_after))
    above.append((f"the root of cluster {root.cluster}", root.not_before, root.not_after))
    for what, _, end in above:
        if wall > end:
            raise Expired(f"{what} expired on {date(end)}; it is now {date(wall)} here")
    for what, begin, _ in above:
        if wall < begin:
            raise NotYetValid(f"{what} is valid from {date(begin)} on, and it is {date(wall)} here: one of the clocks is wrong")
    if name is not None and name != certificate.name:
        raise WrongName(f"expected node {name}, found node {certificate.name}")
    return root


def verify_issuer(issuer: Issuer, roots: Sequence[Root]) -> Root:
    """Check who signed *issuer*, not its time. Returns the root. WrongCluster or BadSignature."""
    root = next((root for root in roots if root.key_id == issuer.root_id and root.cluster == issuer.cluster), None)
    if root is None:
        raise WrongCluster(f"the issuer {issuer.node} is of a cluster {issuer.cluster} whose root we do not have")
    if not root.certifies_issuers:
        raise BadSignature(f"the root of cluster {root.cluster} does not allow issuers")
    _check_signature(root, issuer.parsed, f"the certificate with which {issuer.node} issues")
    return root


def _check_signature(signer: Root | Issuer, signed: x509.Certificate, what: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(signer.key).verify(signed.signature, signed.tbs_certificate_bytes)
    except InvalidSignature as error:
        raise BadSignature(f"{what} has a bad signature") from error


def date(wall: float) -> str:
    """Seconds since the epoch for people, in UTC."""
    try:
        return datetime.datetime.fromtimestamp(wall, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "an impossible date"


def _load(der: bytes) -> x509.Certificate:
    if len(der) > CERTIFICATE_MAX:
        raise Malformed("certificate: too long")
    try:
        with warnings.catch_warnings():
            # The parser only warns of oddities (a negative serial number, an algorithm's superfluous parameters): to us they are errors.
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            parsed = x509.load_der_x509_certificate(der)
            extensions = parsed.extensions
            version = parsed.version
            algorithm = parsed.signature_algorithm_oid
    except _UNREADABLE as error:
        raise Malformed("certificate: not DER of X.509") from error
    if version is not x509.Version.v3:
        raise Malformed("certificate: not version 3")
    if algorithm != SignatureAlgorithmOID.ED25519:
        raise Malformed("certificate: not signed with Ed25519")
    if any(extension.critical and extension.oid not in _KNOWN_EXTENSIONS for extension in extensions):
        raise Malformed("certificate: a critical extension is not known")
    return parsed


def _subject(parsed: x509.Certificate) -> tuple[str, str, frozenset[str]]:
    """Cluster, common name and roles of the subject."""
    try:
        values = [(attribute.oid, attribute.value) for attribute in parsed.subject]
    except _UNREADABLE as error:
        raise Malformed("certificate: unreadable subject") from error
    texts = [(oid, value) for oid, value in values if isinstance(value, str)]
    clusters = [value for oid, value in texts if oid == NameOID.ORGANIZATION_NAME]
    names = [value for oid, value in texts if oid == NameOID.COMMON_NAME]
    roles = [value for oid, value in texts if oid == NameOID.ORGANIZATIONAL_UNIT_NAME]
    if len(clusters) != 1 or not is_name(clusters[0]):
        raise Malformed("certificate: not exactly one cluster (O) in the subject")
    if len(names) != 1:
        raise Malformed("certificate: not exactly one common name in the subject")
    if len(roles) > ROLES_MAX or not all(map(is_name, roles)):
        raise Malformed("certificate: roles (OU) that are no names, or too many")
    return clusters[0], names[0], frozenset(roles)


def _is_authority(parsed: x509.Certificate) -> bool:
    try:
        return parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _path_length(parsed: x509.Certificate) -> int:
    """How many authorities there may be below this one."""
    length = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    return 255 if length is None else length


def _signing_key(parsed: x509.Certificate) -> Ed25519PublicKey:
    try:
        key = parsed.public_key()
    except _UNREADABLE as error:
        raise Malformed("certificate: unreadable public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Malformed("certificate: the public key of a root or issuer is not an Ed25519 key")
    return key


def _signer_id(parsed: x509.Certificate) -> bytes:
    """Key id of who signed it; empty when it does not say."""
    try:
        return parsed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier or b""
    except x509.ExtensionNotFound:
        return b""
