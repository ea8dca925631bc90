"""Key files of a node and of an authority. Layout, modes and failures: docs/protocol/identity.md.

    DIR/                   0700
      node.key             0600  X25519 private key (PKCS #8, PEM)
      node.crt             0644  the node's certificate (PEM), followed by its issuer's if an issuer signed it
      roots.crt            0644  one or more root certificates (PEM)
      cluster.secret       0600  64 hexadecimal digits
      join.key             0600  the key of a machine that is about to join
      issuer.key           0600  Ed25519 private key, only on nodes with the role `issuer`
      issuer.crt           0644  the certificates with which this node issues, one for each root
      authority/           0700  only on machines that issue certificates
        root.key           0600  Ed25519 private key (PKCS #8, PEM)
        root.crt           0644
        cluster.secret     0600

A secret that others may read, that is a symbolic link, or that belongs to somebody else is refused, not repaired: it may be known to others
already. Files appear whole (written aside, synced, renamed). Everything here blocks on the disk; call it at start or in a worker thread.
"""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from qnetpy.identity.authority import (
    NODE_VALIDITY,
    ROOT_VALIDITY,
    SECRET_SIZE,
    Authority,
    IssuingPower,
    NodeIdentity,
    certify_issuer,
    issue_identity,
    make_authority,
)
from qnetpy.identity.certificate import (
    Certificate,
    CertificateError,
    Issuer,
    Root,
    parse_certificate,
    parse_issuer,
    parse_pem_certificates,
    parse_root,
)
from qnetpy.identity.files import StoreError as StoreError
from qnetpy.identity.files import make_directory, read, write
from resmgr.errors import Misuse

AUTHORITY = "authority"
NODE_KEY = "node.key"
NODE_CERTIFICATE = "node.crt"
PENDING_KEY = "join.key"
ISSUER_KEY = "issuer.key"
ISSUER_CERTIFICATE = "issuer.crt"
ROOTS = "roots.crt"
SECRET = "cluster.secret"
ROOT_KEY = "root.key"
ROOT_CERTIFICATE = "root.crt"
KEY_COMMAND_SECONDS = 30.0
"""How long a command that prints a key may take."""
BUNDLE_MARK = "# qnet node identity: keep secret\n"
SECRET_BEGIN = "-----BEGIN QNET CLUSTER SECRET-----"
SECRET_END = "-----END QNET CLUSTER SECRET-----"
BAD_KEY = (ValueError, TypeError, UnsupportedAlgorithm, InternalError)
"""What the parser of keys raises for what is none. InternalError: one of a length that its kind cannot have."""


def create_cluster(directory: Path, name: str, now: float, validity: float = ROOT_VALIDITY) -> Authority:
    """Make the cluster *name* and keep its authority under *directory*. *now*: seconds since the epoch. EEXIST when there is one."""
    authority = make_authority(name, now, validity)
    place = directory / AUTHORITY
    if os.path.lexists(place / ROOT_KEY):
        raise StoreError(errno.EEXIST, f"{place}: there is a cluster authority already; it is never overwritten")
    make_directory(directory)
    make_directory(place)
    write(place / SECRET, _pack_secret(authority.secret), 0o600)
    write(place / ROOT_CERTIFICATE, _pem(authority.root), 0o644)
    write(place / ROOT_KEY, _pack_key(Ed25519PrivateKey.from_private_bytes(authority.root_private)), 0o600)
    return authority


def replace_authority(directory: Path, authority: Authority) -> None:
    """Put another root in place of the authority's under *directory*; the key before is kept as root.key.old until the next time."""
    place = directory / AUTHORITY
    os.replace(place / ROOT_KEY, place / f"{ROOT_KEY}.old")
    os.replace(place / ROOT_CERTIFICATE, place / f"{ROOT_CERTIFICATE}.old")
    write(place / ROOT_CERTIFICATE, _pem(authority.root), 0o644)
    write(place / ROOT_KEY, _pack_key(Ed25519PrivateKey.from_private_bytes(authority.root_private)), 0o600)


def load_authority(directory: Path) -> Authority:
    """The authority under *directory*; ENOENT where there is none."""
    place = directory / AUTHORITY
    key = _load_key(place / ROOT_KEY)
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(errno.EINVAL, f"{place / ROOT_KEY}: not an Ed25519 key")
    (root, *more) = _load_roots(place / ROOT_CERTIFICATE)
    if more or key.public_key().public_bytes_raw() != root.key:
        raise StoreError(errno.EINVAL, f"{place / ROOT_CERTIFICATE}: does not belong to {ROOT_KEY}")
    return Authority(root, key.private_bytes_raw(), _unpack_secret(place / SECRET, read(place / SECRET, private=True)))


def issue_node(directory: Path, node_name: str, roles: Iterable[str], validity: float = NODE_VALIDITY, *, now: float) -> bytes:
    """Issue a new key and certificate from the authority under *directory*: the bundle that `install_bundle` takes on the node.

    The bundle holds private keys: it goes to a file of mode 0600 or through an encrypted channel, nowhere else.
    """
    return pack_bundle(issue_identity(load_authority(directory), node_name, roles, now, validity))


def pack_bundle(identity: NodeIdentity) -> bytes:
    """One PEM text with key, certificate, roots and secret."""
    return b"".join(
        (
            BUNDLE_MARK.encode(),
            _pack_key(X25519PrivateKey.from_private_bytes(identity.static_private)),
            chain_pem(identity.certificate),
            *(_pem(root) for root in identity.roots),
            f"{SECRET_BEGIN}\n{identity.secret.hex()}\n{SECRET_END}\n".encode(),
        )
    )


def unpack_bundle(bundle: bytes, origin: str = "bundle") -> NodeIdentity:
    """The reverse. StoreError with EINVAL when a part is missing, broken or does not fit the rest."""
    try:
        text = bundle.decode("ascii")
        key = load_pem_private_key(text[text.index("-----BEGIN PRIVATE KEY") :].encode(), None)
        secret = bytes.fromhex(text[text.index(SECRET_BEGIN) + len(SECRET_BEGIN) : text.index(SECRET_END)])
    except BAD_KEY as error:
        raise StoreError(errno.EINVAL, f"{origin}: not a node bundle") from error
    if not isinstance(key, X25519PrivateKey):
        raise StoreError(errno.EINVAL, f"{origin}: the key is not an X25519 key")
    try:
        certificate, roots = take_chain(parse_pem_certificates(bundle))
        if not roots:
            raise StoreError(errno.EINVAL, f"{origin}: holds no root certificate")
        return NodeIdentity(certificate, key.private_bytes_raw(), tuple(map(parse_root, roots)), secret)
    except (CertificateError, Misuse) as error:
        raise StoreError(errno.EINVAL, f"{origin}: {error}") from error


def install_bundle(directory: Path, bundle: bytes, *, replace: bool = False, origin: str = "bundle") -> NodeIdentity:
    """Make this machine the node of *bundle*, which was read from *origin*: check it, then write the files of *directory*, the certificate
    last. EEXIST when this machine is another node already, unless *replace*: its private key would be gone."""
    identity = unpack_bundle(bundle, origin)
    if not replace:
        check_vacant(directory, identity.cluster, identity.name)
    save_identity(directory, identity)
    return identity


def check_vacant(directory: Path, cluster: str = "", name: str = "") -> None:
    """EEXIST when *directory* holds an identity, except that of node *name* of *cluster*. One that cannot be read counts as another's."""
    if not os.path.lexists(directory / NODE_KEY):
        return
    try:
        found = load_identity(directory)
    except StoreError as error:
        raise StoreError(errno.EEXIST, f"{directory} holds keys already, and they are broken ({error.strerror})") from error
    if (found.cluster, found.name) != (cluster, name):
        raise StoreError(errno.EEXIST, f"this machine is node {found.name} of cluster {found.cluster} already ({directory})")


def save_identity(directory: Path, identity: NodeIdentity, *, keep_key: bool = False) -> None:
    """Write the files of a node; those of an earlier identity are replaced. *keep_key*: the private key is there already, or is not ours to
    keep (it comes from a command)."""
    make_directory(directory)
    if not keep_key:
        write(directory / NODE_KEY, _pack_key(X25519PrivateKey.from_private_bytes(identity.static_private)), 0o600)
    write(directory / SECRET, _pack_secret(identity.secret), 0o600)
    write(directory / ROOTS, b"".join(_pem(root) for root in identity.roots), 0o644)
    write(directory / NODE_CERTIFICATE, chain_pem(identity.certificate), 0o644)


def load_identity(directory: Path, key_command: str = "") -> NodeIdentity:
    """The node identity under *directory*. StoreError: ENOENT (no such file), EACCES (wrong mode, owner), EINVAL (broken, mismatch).

    *key_command*: what prints the private key (PKCS #8, PEM), in place of node.key. Validity is not checked here: an expired node still
    starts, says so, and can be renewed.
    """
    key = load_node_key(directory, key_command)
    secret = _unpack_secret(directory / SECRET, read(directory / SECRET, private=True))
    roots = _load_roots(directory / ROOTS)
    try:
        certificate, more = take_chain(parse_pem_certificates(read(directory / NODE_CERTIFICATE, private=False)))
        if more:
            raise Misuse("holds something else than one certificate and its issuer's")
        return NodeIdentity(certificate, key, tuple(roots), secret)
    except (CertificateError, Misuse, ValueError) as error:
        raise StoreError(errno.EINVAL, f"{directory / NODE_CERTIFICATE}: {error}") from error


def load_node_key(directory: Path, key_command: str = "") -> bytes:
    """The node's X25519 private key, 32 bytes, from its file or from a command."""
    if key_command:
        key, origin = _key_of_command(key_command), "key_command"
    else:
        key, origin = _load_key(directory / NODE_KEY), str(directory / NODE_KEY)
    if not isinstance(key, X25519PrivateKey):
        raise StoreError(errno.EINVAL, f"{origin}: not an X25519 key")
    return key.private_bytes_raw()


def pending_key(directory: Path) -> bytes:
    """The X25519 private key, 32 bytes, of a node that is about to join: the one of the try before, or a new one. It is kept until
    `forget_pending`, so that a code which was spent on an answer that got lost is still good for this machine."""
    path = directory / PENDING_KEY
    if os.path.lexists(path):
        key = _load_key(path)
        if isinstance(key, X25519PrivateKey):
            return key.private_bytes_raw()
    key = X25519PrivateKey.generate()
    make_directory(directory)
    write(path, _pack_key(key), 0o600)
    return key.private_bytes_raw()


def forget_pending(directory: Path) -> None:
    """The machine has joined."""
    (directory / PENDING_KEY).unlink(missing_ok=True)


def public_key(private: bytes) -> bytes:
    """The X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _key_of_command(command: str) -> object:
    try:
        result = subprocess.run(
            shlex.split(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=KEY_COMMAND_SECONDS, check=False
        )
    except (OSError, ValueError) as error:
        raise StoreError(errno.EINVAL, f"key_command: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise StoreError(errno.ETIMEDOUT, f"key_command: did not end within {KEY_COMMAND_SECONDS:g} s") from error
    if result.returncode != 0:
        said = result.stderr.decode(errors="replace").strip().splitlines()
        raise StoreError(errno.EINVAL, f"key_command: ended with {result.returncode}" + (f": {said[-1]}" if said else ""))
    try:
        return load_pem_private_key(result.stdout, None)
    except BAD_KEY as error:
        raise StoreError(errno.EINVAL, "key_command: did not print a private key in PEM form") from error


def make_power(directory: Path, node: str, now: float) -> IssuingPower:
    """Let *node* issue: a new key beside the authority under *directory*, certified by its root."""
    private = Ed25519PrivateKey.generate()
    authority = load_authority(directory)
    power = IssuingPower(certify_issuer(authority, node, private.public_key().public_bytes_raw(), now), private.private_bytes_raw())
    save_powers(directory, [power])
    return power


def save_powers(directory: Path, powers: Sequence[IssuingPower]) -> None:
    """Write what this node issues with: one key, and a certificate for each root."""
    (private,) = {power.private for power in powers}
    write(directory / ISSUER_KEY, _pack_key(Ed25519PrivateKey.from_private_bytes(private)), 0o600)
    write(directory / ISSUER_CERTIFICATE, b"".join(_pem(power.issuer) for power in powers), 0o644)


def load_powers(directory: Path) -> list[IssuingPower]:
    """What this node issues with, one for each root; none where it does not issue."""
    if not os.path.lexists(directory / ISSUER_KEY):
        return []
    key = _load_key(directory / ISSUER_KEY)
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(errno.EINVAL, f"{directory / ISSUER_KEY}: not an Ed25519 key")
    path = directory / ISSUER_CERTIFICATE
    try:
        found = [parse_issuer(der) for der in parse_pem_certificates(read(path, private=False))]
        return [IssuingPower(issuer, key.private_bytes_raw()) for issuer in found]
    except (CertificateError, Misuse) as error:
        raise StoreError(errno.EINVAL, f"{path}: {error}") from error


def take_chain(ders: Sequence[bytes]) -> tuple[Certificate, list[bytes]]:
    """A node certificate with its issuer's, and what stands behind them. CertificateError."""
    certificate, rest = parse_certificate(ders[0]), list(ders[1:])
    if rest:
        try:
            issuer = parse_issuer(rest[0])
        except CertificateError:
            return certificate, rest
        return attrs.evolve(certificate, issuer=issuer), rest[1:]
    return certificate, rest


def chain_pem(certificate: Certificate) -> bytes:
    """A node certificate and its issuer's, as PEM."""
    return _pem(certificate) + (b"" if certificate.issuer is None else _pem(certificate.issuer))


def _load_roots(path: Path) -> list[Root]:
    try:
        return [parse_root(der) for der in parse_pem_certificates(read(path, private=False))]
    except CertificateError as error:
        raise StoreError(errno.EINVAL, f"{path}: {error}") from error


def _load_key(path: Path) -> object:
    try:
        return load_pem_private_key(read(path, private=True), None)
    except BAD_KEY as error:
        raise StoreError(errno.EINVAL, f"{path}: not a private key in PEM form") from error


def _pack_secret(secret: bytes) -> bytes:
    return f"{secret.hex()}\n".encode()


def _unpack_secret(path: Path, data: bytes) -> bytes:
    try:
        secret = bytes.fromhex(data.decode("ascii"))
    except ValueError as error:
        raise StoreError(errno.EINVAL, f"{path}: not hexadecimal digits") from error
    if len(secret) != SECRET_SIZE:
        raise StoreError(errno.EINVAL, f"{path}: {len(secret)} bytes, not {SECRET_SIZE}")
    return secret


def _pack_key(key: X25519PrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(certificate: Certificate | Root | Issuer) -> bytes:
    return certificate.parsed.public_bytes(Encoding.PEM)
