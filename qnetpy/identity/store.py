"""Key files: the only file of the identity package that touches the disk. Layout, modes and failures: docs/protocol/identity.md.

    DIR/                   0700
      node.key             0600  X25519 private key (PKCS #8, PEM)
      node.crt             0644  the node's certificate (PEM)
      roots.crt            0644  one or more root certificates (PEM)
      cluster.secret       0600  64 hexadecimal digits
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
import stat
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from qnetpy.identity.authority import NODE_VALIDITY, ROOT_VALIDITY, SECRET_SIZE, Authority, NodeIdentity, issue_identity, make_authority
from qnetpy.identity.certificate import Certificate, CertificateError, Root, parse_certificate, parse_pem_certificates, parse_root
from resmgr.errors import Misuse, ResmgrError

AUTHORITY = "authority"
NODE_KEY = "node.key"
NODE_CERTIFICATE = "node.crt"
ROOTS = "roots.crt"
SECRET = "cluster.secret"
ROOT_KEY = "root.key"
ROOT_CERTIFICATE = "root.crt"
BUNDLE_MARK = "# qnet node identity: keep secret\n"
SECRET_BEGIN = "-----BEGIN QNET CLUSTER SECRET-----"
SECRET_END = "-----END QNET CLUSTER SECRET-----"
FILE_MAX = 64 * 1024
"""Bytes read of any key file."""


class StoreError(ResmgrError):
    """A key file is missing, exposed, broken or does not fit the others; `strerror` is a sentence that names the file."""


def create_cluster(directory: Path, name: str, now: float, validity: float = ROOT_VALIDITY) -> Authority:
    """Make the cluster *name* and keep its authority under *directory*. *now*: seconds since the epoch. EEXIST when there is one."""
    authority = make_authority(name, now, validity)
    place = directory / AUTHORITY
    if os.path.lexists(place / ROOT_KEY):
        raise StoreError(errno.EEXIST, f"{place}: there is a cluster authority already; it is never overwritten")
    _make_directory(directory)
    _make_directory(place)
    _write(place / SECRET, _pack_secret(authority.secret), 0o600)
    _write(place / ROOT_CERTIFICATE, _pem(authority.root), 0o644)
    _write(place / ROOT_KEY, _pack_key(Ed25519PrivateKey.from_private_bytes(authority.root_private)), 0o600)
    return authority


def load_authority(directory: Path) -> Authority:
    """The authority under *directory*; ENOENT where there is none."""
    place = directory / AUTHORITY
    key = _load_key(place / ROOT_KEY)
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(errno.EINVAL, f"{place / ROOT_KEY}: not an Ed25519 key")
    (root, *more) = _load_roots(place / ROOT_CERTIFICATE)
    if more or key.public_key().public_bytes_raw() != root.key:
        raise StoreError(errno.EINVAL, f"{place / ROOT_CERTIFICATE}: does not belong to {ROOT_KEY}")
    return Authority(root, key.private_bytes_raw(), _unpack_secret(place / SECRET, _read(place / SECRET, private=True)))


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
            _pem(identity.certificate),
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
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StoreError(errno.EINVAL, f"{origin}: not a node bundle") from error
    if not isinstance(key, X25519PrivateKey):
        raise StoreError(errno.EINVAL, f"{origin}: the key is not an X25519 key")
    try:
        der, *roots = parse_pem_certificates(bundle)
        if not roots:
            raise StoreError(errno.EINVAL, f"{origin}: holds no root certificate")
        return NodeIdentity(parse_certificate(der), key.private_bytes_raw(), tuple(map(parse_root, roots)), secret)
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


def save_identity(directory: Path, identity: NodeIdentity) -> None:
    """Write the files of a node; those of an earlier identity are replaced."""
    _make_directory(directory)
    _write(directory / NODE_KEY, _pack_key(X25519PrivateKey.from_private_bytes(identity.static_private)), 0o600)
    _write(directory / SECRET, _pack_secret(identity.secret), 0o600)
    _write(directory / ROOTS, b"".join(_pem(root) for root in identity.roots), 0o644)
    _write(directory / NODE_CERTIFICATE, _pem(identity.certificate), 0o644)


def load_identity(directory: Path) -> NodeIdentity:
    """The node identity under *directory*. StoreError: ENOENT (no such file), EACCES (wrong mode, owner), EINVAL (broken, mismatch).

    Validity is not checked here: an expired node still starts, says so, and can be renewed.
    """
    key = _load_key(directory / NODE_KEY)
    if not isinstance(key, X25519PrivateKey):
        raise StoreError(errno.EINVAL, f"{directory / NODE_KEY}: not an X25519 key")
    secret = _unpack_secret(directory / SECRET, _read(directory / SECRET, private=True))
    roots = _load_roots(directory / ROOTS)
    try:
        (der,) = parse_pem_certificates(_read(directory / NODE_CERTIFICATE, private=False))
        return NodeIdentity(parse_certificate(der), key.private_bytes_raw(), tuple(roots), secret)
    except (CertificateError, Misuse, ValueError) as error:
        raise StoreError(errno.EINVAL, f"{directory / NODE_CERTIFICATE}: {error}") from error


def _load_roots(path: Path) -> list[Root]:
    try:
        return [parse_root(der) for der in parse_pem_certificates(_read(path, private=False))]
    except CertificateError as error:
        raise StoreError(errno.EINVAL, f"{path}: {error}") from error


def _load_key(path: Path) -> object:
    try:
        return load_pem_private_key(_read(path, private=True), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
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


def _pem(certificate: Certificate | Root) -> bytes:
    return certificate.parsed.public_bytes(Encoding.PEM)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(error.errno or errno.EIO, f"{path}: {error.strerror}") from error
    status = path.stat()
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise StoreError(errno.EACCES, f"{path}: others may write here; make it 0700 (chmod 700 {path})")


def _read(path: Path, private: bool) -> bytes:
    """All of *path*; a private file must be ours and closed to others, and is checked on the descriptor that is read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if private else 0))
    except OSError as error:
        text = "is a symbolic link, which a private file must not be" if error.errno == errno.ELOOP else error.strerror
        raise StoreError(error.errno or errno.EIO, f"{path}: {text}") from error
    try:
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(errno.EINVAL, f"{path}: not a regular file")
        if private and mode & 0o077:
            raise StoreError(errno.EACCES, f"{path}: mode is {mode:04o} and others may use it; it must be 0600 (chmod 600 {path})")
        if private and status.st_uid not in (0, os.geteuid()):
            raise StoreError(errno.EACCES, f"{path}: belongs to user {status.st_uid}; it must be owned by root or the user of the daemon")
        data = os.read(fd, FILE_MAX + 1)
    finally:
        os.close(fd)
    if len(data) > FILE_MAX:
        raise StoreError(errno.EFBIG, f"{path}: too long for a key file")
    return data


def _write(path: Path, data: bytes, mode: int) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(fd, mode)
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StoreError(error.errno or errno.EIO, f"{path}: {error.strerror}") from error
