"""What membership keeps beyond a restart: certificates, issuing powers, roots, statements, the register. The files of
docs/protocol/identity.md.

Every call blocks on the disk, except at the start in worker threads. Nothing here decides anything.
"""

from __future__ import annotations

import base64
import errno
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import attrs

from qnetpy.identity import files
from qnetpy.identity.authority import Authority, IssuingPower, NodeIdentity
from qnetpy.identity.certificate import Certificate, CertificateError, parse_pem_certificates
from qnetpy.identity.keyfiles import (
    NODE_KEY,
    StoreError,
    chain_pem,
    load_authority,
    load_identity,
    load_powers,
    replace_authority,
    save_identity,
    save_powers,
    take_chain,
)
from qnetpy.identity.trust import ROOT_STATEMENTS_MAX, STATEMENT_MAX, Statement, parse_statement
from qnetpy.members.register import parse_register
from resmgr.errors import BadMessage

log = logging.getLogger(__name__)
NEXT = "next.crt"
BEFORE = "before.crt"
STATEMENTS = "statements.pem"
REGISTER = "members.json"
STATEMENTS_FILE_MAX = 2 * ROOT_STATEMENTS_MAX * STATEMENT_MAX
REGISTER_FILE_MAX = 64 << 20
BEGIN = "-----BEGIN QNET STATEMENT-----"
END = "-----END QNET STATEMENT-----"


@attrs.frozen
class Kept:
    """Everything of one node that outlives its daemon."""

    identity: NodeIdentity
    """With the certificate that is shown, and the roots that are trusted."""
    next: Certificate | None = None
    """A certificate under a newer root, shown when the older root is retired."""
    before: Certificate | None = None
    """One that was replaced and is good yet, for the case that who signed its successor is revoked."""
    powers: tuple[IssuingPower, ...] = ()
    statements: tuple[Statement, ...] = ()
    register: bytes = b""
    """As `pack_register` gives it; empty where no register is kept."""


class Store(Protocol):
    """Where `Kept` is kept, and the root key where this machine has it."""

    def save(self, kept: Kept) -> None:
        """StoreError when it could not be."""
        ...

    def authority(self) -> Authority | None:
        """The root key, read for one use; None where there is none. StoreError when it is exposed or broken."""
        ...

    def replace_authority(self, authority: Authority) -> None:
        """Another root key in place of the one before, which is kept aside."""
        ...

    def erase(self) -> None:
        """Forget who this node is."""
        ...


class DirectoryStore:
    """A `Store` in a directory of key files (`qnetpy.identity.keyfiles`)."""

    def __init__(self, directory: Path, key_command: str = "") -> None:
        self._directory = directory
        self._key_command = key_command
        self._written: Kept | None = None
        self._lock = threading.Lock()

    def load(self) -> Kept:
        """StoreError as `load_identity`, and for the files that only membership has."""
        folder = self._directory
        identity = load_identity(folder, self._key_command)
        following, before = _read_chain(folder / NEXT), _read_chain(folder / BEFORE)
        statements: list[Statement] = []
        if os.path.lexists(folder / STATEMENTS):
            try:
                statements = unpack_statements(files.read(folder / STATEMENTS, private=False, limit=STATEMENTS_FILE_MAX))
            except BadMessage as error:
                raise StoreError(errno.EINVAL, f"{folder / STATEMENTS}: {error}") from error
        register = b""
        if os.path.lexists(folder / REGISTER):
            register = _read_register(folder / REGISTER)
            try:
                parse_register(register or b"[]")
            except ValueError as error:
                raise StoreError(errno.EINVAL, f"{folder / REGISTER}: {error}; without that file it begins anew") from error
        self._written = Kept(identity, following, before, tuple(load_powers(folder)), tuple(statements), register)
        return self._written

    def save(self, kept: Kept) -> None:
        with self._lock:
            self._save(kept)

    def _save(self, kept: Kept) -> None:
        folder, before = self._directory, self._written
        if before is None or before.identity != kept.identity:
            save_identity(folder, kept.identity, keep_key=bool(self._key_command) or os.path.lexists(folder / NODE_KEY))
        _save_chain(folder / NEXT, kept.next, None if before is None else before.next)
        _save_chain(folder / BEFORE, kept.before, None if before is None else before.before)
        if kept.powers and (before is None or before.powers != kept.powers):
            save_powers(folder, kept.powers)
        if before is None or before.statements != kept.statements:
            files.write(folder / STATEMENTS, pack_statements(kept.statements), 0o644)
        if kept.register and (before is None or before.register != kept.register):
            files.write(folder / REGISTER, kept.register, 0o644)
        self._written = kept

    def authority(self) -> Authority | None:
        try:
            return load_authority(self._directory)
        except StoreError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def replace_authority(self, authority: Authority) -> None:
        replace_authority(self._directory, authority)

    def erase(self) -> None:
        erase_identity(self._directory)


def _read_chain(path: Path) -> Certificate | None:
    if not os.path.lexists(path):
        return None
    try:
        certificate, _ = take_chain(parse_pem_certificates(files.read(path, private=False)))
    except CertificateError as error:
        raise StoreError(errno.EINVAL, f"{path}: {error}") from error
    return certificate


def _save_chain(path: Path, certificate: Certificate | None, written: Certificate | None) -> None:
    if certificate is None:
        path.unlink(missing_ok=True)
    elif certificate != written:
        files.write(path, chain_pem(certificate), 0o644)


def _read_register(path: Path) -> bytes:
    """Empty when it is too long: the node starts, and the register begins anew. That file is put aside."""
    try:
        return files.read(path, private=False, limit=REGISTER_FILE_MAX)
    except StoreError as error:
        if error.errno != errno.EFBIG:
            raise
    aside = path.with_name(f"{path.name}.old")
    try:
        os.replace(path, aside)
    except OSError as error:
        raise StoreError(error.errno or errno.EIO, f"{path}: {error.strerror}") from error
    log.error("%s is longer than %d bytes: it begins anew, and is kept as %s", path, REGISTER_FILE_MAX, aside)
    return b""


def erase_identity(directory: Path) -> None:
    """Remove a node's files, its private keys first. An authority stays."""
    for name in ("node.key", "issuer.key", "cluster.secret", "node.crt", NEXT, BEFORE, "issuer.crt", "roots.crt", STATEMENTS, REGISTER):
        try:
            (directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(error.errno or errno.EIO, f"{directory / name}: {error.strerror}") from error


def pack_statements(statements: Iterable[Statement]) -> bytes:
    """As text, each between BEGIN and END."""
    blocks = []
    for statement in statements:
        text = base64.b64encode(statement.data).decode()
        lines = [text[place : place + 64] for place in range(0, len(text), 64)]
        blocks.append("\n".join((BEGIN, *lines, END, "")))
    return "".join(blocks).encode()


def unpack_statements(data: bytes) -> list[Statement]:
    """The reverse. BadMessage."""
    try:
        text = data.decode("ascii")
        before, *blocks = text.split(BEGIN)
        ends = [block.partition(END) for block in blocks]
        if before.strip() or any(not end or rest.strip() for _, end, rest in ends):
            raise BadMessage("not statements")
        return [parse_statement(base64.b64decode("".join(block.split()), validate=True)) for block, _, _ in ends]
    except ValueError as error:
        raise BadMessage("not statements") from error
