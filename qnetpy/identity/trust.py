"""What a node believes beyond its certificate: which roots count, and whom somebody revoked. Signed statements that only ever add up. Pure.

    REVOKE   the key of a node, and its issuing power if it had one. By an issuer, or by a root
    ROOT     another root of the cluster. By a root that is trusted
    RETIRE   that root counts no more. By a root that is trusted, not by itself

Statements travel between nodes in any order and by any way; who has the same set believes the same, so there is no master copy and two
issuers that revoke at the same moment do not contradict each other. What an issuer says counts against nodes that issuers enrolled, never
against nodes whose certificate comes from a root: those are the issuers. So a stolen issuer cannot lock the others out, and a root revokes
it. Then only those of its certificates and statements go on to count that the root's statement lists as kept. docs/protocol/membership.md
has the bytes.

No clock is involved: a wrong one neither delays a revocation nor brings anybody back.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Sequence

import attrs
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from qnetpy.identity.authority import Authority, IssuingPower
from qnetpy.identity.certificate import (
    CERTIFICATE_MAX,
    Certificate,
    CertificateError,
    Issuer,
    Root,
    parse_issuer,
    parse_root,
    verify_issuer,
)
from qnetpy.identity.names import is_name
from resmgr.errors import BadMessage, Misuse

VERSION = 1
STATEMENTS_MAX = 4096
"""Statements kept. Stops stolen issuers from filling every node's memory and disk; beyond it nothing is accepted but from a root."""
ROOT_STATEMENTS_MAX = 2 * STATEMENTS_MAX
ISSUER_STATEMENTS_MAX = 512
"""Of one issuing key. Stops a stolen issuer from taking the places of the others; beyond it the root speaks in its place."""
BYTES_MAX = 3 << 20
ROOT_BYTES_MAX = (4 << 20) - (64 << 10)
"""The same two limits in bytes: whoever joins gets all of them in one message of 4 MiB."""
ROOTS_MAX = 4
KEPT_MAX = 1500
"""Certificates and statements of a revoked issuer that go on to count; only a root's REVOKE of an issuing power has any."""
STATEMENT_MAX = 32768
SIGNED = b"qnet statement 1"
ID_SIZE = 16
KEY_ID_SIZE = 20
_HEAD = struct.Struct(">BBQ")
_NO_ISSUER = bytes(KEY_ID_SIZE)


class Crowded(BadMessage):
    """There is no place for a statement. Says nothing against who told it, and costs no look at its signature."""


class Kind(enum.IntEnum):
    REVOKE = 1
    ROOT = 2
    RETIRE = 3


@attrs.frozen
class Revoked:
    """Whom a REVOKE is about."""

    name: str
    static_key: bytes = attrs.field(repr=bytes.hex)
    issuer_id: bytes = b""
    """Key id of its issuing power; empty when it had none."""
    kept: frozenset[bytes] = frozenset()
    """Of what that issuer signed: serial numbers of certificates and ids of statements, 16 bytes each, that count all the same."""


@attrs.frozen
class Statement:
    """One statement, as parsed and not verified."""

    kind: Kind
    time: int
    """When it was made, by the maker's clock; for people, and to send older ones first."""
    cluster: str
    subject: Revoked | Root | bytes
    """Of REVOKE, ROOT; of RETIRE the key id of the root."""
    issuer: Issuer | None
    """Who signed it; None: the root `root_id`."""
    root_id: bytes
    data: bytes = attrs.field(repr=False)

    @property
    def id(self) -> bytes:
        return hashlib.sha256(self.data).digest()[:ID_SIZE]

    @property
    def by(self) -> str:
        """Who says so, for people."""
        return "the root" if self.issuer is None else self.issuer.node


def make_statement(power: Authority | IssuingPower, kind: Kind, subject: Revoked | Root | bytes, wall: float) -> Statement:
    """A signed statement. Misuse for one that nobody would believe, or that is too long."""
    issuer = None if isinstance(power, Authority) else power.issuer
    if issuer is not None and not _is_plain(kind, subject):
        raise Misuse("that takes the root key: run it where the root key is")
    if isinstance(subject, Revoked):
        payload = _pack_revoked(subject)
    else:
        payload = subject.der if isinstance(subject, Root) else subject
    root_id = power.root.key_id if isinstance(power, Authority) else power.issuer.root_id
    signed = (
        _HEAD.pack(VERSION, kind, max(0, int(wall)))
        + _text(power.cluster)
        + _long(payload)
        + _long(b"" if issuer is None else issuer.der)
        + root_id
    )
    private = Ed25519PrivateKey.from_private_bytes(power.root_private if isinstance(power, Authority) else power.private)
    data = signed + private.sign(SIGNED + signed)
    if len(data) > STATEMENT_MAX:
        raise Misuse("the statement is too long")
    return parse_statement(data)


def parse_statement(data: bytes) -> Statement:
    """BadMessage for what is no statement. Signatures are not looked at, except a root's own."""
    if not _HEAD.size + 64 < len(data) <= STATEMENT_MAX:
        raise BadMessage("statement: length")
    version, number, time = _HEAD.unpack_from(data)
    if version != VERSION or number not in set(Kind):
        raise BadMessage("statement: not understood")
    body = data[:-64]
    cluster, place = _take_text(body, _HEAD.size)
    payload, place = _take(body, place)
    above, place = _take(body, place)
    if place + KEY_ID_SIZE != len(body) or len(above) > CERTIFICATE_MAX:
        raise BadMessage("statement: length")
    kind = Kind(number)
    issuer = parse_issuer(above) if above else None
    root_id = body[place:]
    if issuer is not None and (issuer.root_id != root_id or issuer.cluster != cluster):
        raise BadMessage("statement: of two clusters or roots")
    subject: Revoked | Root | bytes
    if kind is Kind.REVOKE:
        subject = _parse_revoked(payload)
    elif kind is Kind.ROOT:
        subject = parse_root(payload)
    else:
        subject = payload
        if len(payload) != KEY_ID_SIZE:
            raise BadMessage("statement: length")
    return Statement(kind, time, cluster, subject, issuer, root_id, bytes(data))


class Trust:
    """What this node believes. `roots` are oldest first. Not verified again: what is given at the start was checked when it was added."""

    def __init__(self, cluster: str, roots: Sequence[Root], statements: Iterable[Statement] = ()) -> None:
        self.cluster = cluster
        self.roots: tuple[Root, ...] = tuple(roots)
        self._statements: dict[bytes, Statement] = {statement.id: statement for statement in statements}
        self._revocations: dict[bytes, list[Statement]] = {}
        self._issuers: dict[bytes, Statement] = {}
        self._retired: set[bytes] = set()
        self._bytes = 0
        self._by_issuer: Counter[bytes] = Counter()
        self._index()

    # What is believed

    @property
    def statements(self) -> list[Statement]:
        """In the order in which another node must hear of them: older first."""
        return sorted(self._statements.values(), key=lambda statement: (statement.time, statement.id))

    def revoked(self, certificate: Certificate) -> Statement | None:
        """The statement by which *certificate* does not count, if there is one."""
        for statement in self._revocations.get(certificate.static_key, ()):
            if statement.issuer is None or certificate.issuer is not None:
                return statement
        if certificate.issuer is not None:
            against = self._issuers.get(certificate.issuer.key_id)
            if against is not None and serial_id(certificate) not in _kept(against):
                return against
        return None

    def counts(self, signer_id: bytes, serial: bytes) -> bool:
        """Whether the certificate of that serial number (`serial_id`) counts, as far as its signer goes."""
        against = self._issuers.get(signer_id)
        return against is None or serial in _kept(against)

    def revoked_issuer(self, issuer: Issuer) -> Statement | None:
        """The statement by which *issuer* issues no more."""
        return self._issuers.get(issuer.key_id)

    def issuer_revoked(self, key_id: bytes) -> bool:
        """Whether a root revoked the issuing power with that key."""
        return key_id in self._issuers

    def accepts(self, certificate: Certificate) -> bool:
        return self.revoked(certificate) is None

    def key_revoked(self, static_key: bytes) -> bool:
        """Whether somebody revoked that key of a node, whatever certificate it has."""
        return static_key in self._revocations

    def revocations(self) -> list[Statement]:
        """Every REVOKE, older first."""
        return [statement for statement in self.statements if statement.kind is Kind.REVOKE]

    # What others know

    def digest(self) -> bytes:
        """32 bytes, equal on two nodes when they have the same statements."""
        return hashlib.sha256(b"".join(sorted(self._statements))).digest()

    def ids(self) -> list[bytes]:
        return sorted(self._statements)

    def unknown_to(self, ids: Iterable[bytes]) -> list[Statement]:
        """What somebody with *ids* lacks, in the order to tell it."""
        theirs = set(ids)
        return [statement for statement in self.statements if statement.id not in theirs]

    def knows(self, statement: Statement) -> bool:
        return statement.id in self._statements

    def room(self, issuer: Issuer | None, size: int) -> bool:
        """Whether there is a place for a statement of *size* bytes by *issuer*, or by a root."""
        if issuer is None:
            return len(self._statements) < ROOT_STATEMENTS_MAX and self._bytes + size <= ROOT_BYTES_MAX
        return (
            len(self._statements) < STATEMENTS_MAX
            and self._bytes + size <= BYTES_MAX
            and self._by_issuer[issuer.key_id] < ISSUER_STATEMENTS_MAX
        )

    # Change

    def add(self, statement: Statement) -> bool:
        """Believe it. False when it is known, or is void by what is known. BadMessage when whoever signed it may not say so; then nothing
        changes. `roots` may be others afterwards."""
        if statement.id in self._statements:
            return False
        if not self.room(statement.issuer, len(statement.data)):
            raise Crowded("statement: there are too many already")
        self._check(statement)
        if self._void(statement):
            return False
        if statement.kind is Kind.ROOT and isinstance(statement.subject, Root):
            if len(self.roots) >= ROOTS_MAX:
                raise BadMessage("statement: there are too many roots already")
            if statement.subject.key_id not in {root.key_id for root in self.roots}:
                self.roots = (*self.roots, statement.subject)
        self._statements[statement.id] = statement
        if statement.kind is Kind.RETIRE:
            self.roots = tuple(root for root in self.roots if root.key_id != statement.subject)
        self._index()
        return True

    def _check(self, statement: Statement) -> None:
        """Who signed it may say it. BadMessage."""
        if statement.cluster != self.cluster:
            raise BadMessage("statement: of another cluster")
        if statement.issuer is not None:
            if not _is_plain(statement.kind, statement.subject):
                raise BadMessage("statement: an issuer may not say that")
            try:
                verify_issuer(statement.issuer, self.roots)
            except CertificateError as error:
                raise BadMessage(f"statement: {error}") from error
            key = statement.issuer.key
        else:
            root = next((root for root in self.roots if root.key_id == statement.root_id), None)
            if root is None:
                raise BadMessage("statement: of a root that is not trusted")
            key = root.key
        if isinstance(statement.subject, Revoked) and statement.subject.kept and not statement.subject.issuer_id:
            raise BadMessage("statement: keeps what no issuer signed")
        if statement.kind is Kind.ROOT and isinstance(statement.subject, Root) and statement.subject.cluster != self.cluster:
            raise BadMessage("statement: a root of another cluster")
        if statement.kind is Kind.RETIRE and statement.subject == statement.root_id:
            raise BadMessage("statement: a root does not retire itself")
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(statement.data[-64:], SIGNED + statement.data[:-64])
        except InvalidSignature as error:
            raise BadMessage("statement: bad signature") from error

    def _void(self, statement: Statement) -> bool:
        """Made by an issuer that a root revoked, and not among what that kept; or a root that was retired."""
        if statement.kind is Kind.ROOT and isinstance(statement.subject, Root) and statement.subject.key_id in self._retired:
            return True
        against = None if statement.issuer is None else self._issuers.get(statement.issuer.key_id)
        return against is not None and statement.id not in _kept(against)

    def _index(self) -> None:
        """Everything that follows from the statements. Those that are void, or of roots that are gone, are dropped."""
        trusted = {root.key_id for root in self.roots}
        kept = {
            name: statement for name, statement in self._statements.items() if statement.root_id in trusted or statement.kind is Kind.RETIRE
        }
        self._retired = {one.subject for one in kept.values() if one.kind is Kind.RETIRE and isinstance(one.subject, bytes)}
        revokes = [(one, one.subject) for one in kept.values() if isinstance(one.subject, Revoked)]
        self._issuers = {subject.issuer_id: one for one, subject in revokes if subject.issuer_id}
        self._statements = {name: one for name, one in kept.items() if not self._void(one)}
        self._bytes = sum(len(one.data) for one in self._statements.values())
        self._by_issuer = Counter(one.issuer.key_id for one in self._statements.values() if one.issuer is not None)
        self._revocations = {}
        for one, subject in revokes:
            if one.id in self._statements:
                self._revocations.setdefault(subject.static_key, []).append(one)


def serial_id(certificate: Certificate) -> bytes:
    """A certificate's serial number as a list of kept ones names it."""
    return certificate.serial.to_bytes(ID_SIZE, "big") if certificate.serial < 1 << 8 * ID_SIZE else bytes(ID_SIZE)


def _is_plain(kind: Kind, subject: Revoked | Root | bytes) -> bool:
    """What an issuer may say: that a key of a node counts no more, and nothing beside it."""
    return kind is Kind.REVOKE and isinstance(subject, Revoked) and not subject.issuer_id and not subject.kept


def _kept(statement: Statement) -> frozenset[bytes]:
    return statement.subject.kept if isinstance(statement.subject, Revoked) else frozenset()


def _pack_revoked(revoked: Revoked) -> bytes:
    if len(revoked.kept) > KEPT_MAX:
        raise Misuse(f"at most {KEPT_MAX} certificates of an issuer can be kept")
    kept = sorted(revoked.kept)
    return _text(revoked.name) + revoked.static_key + (revoked.issuer_id or _NO_ISSUER) + len(kept).to_bytes(2, "big") + b"".join(kept)


def _parse_revoked(payload: bytes) -> Revoked:
    name, place = _take_text(payload, 0)
    fixed = 32 + KEY_ID_SIZE + 2
    if len(payload) < place + fixed:
        raise BadMessage("revocation: cut short")
    key, issuer_id = payload[place : place + 32], payload[place + 32 : place + 32 + KEY_ID_SIZE]
    count = int.from_bytes(payload[place + fixed - 2 : place + fixed], "big")
    rest = payload[place + fixed :]
    if count > KEPT_MAX or len(rest) != count * ID_SIZE:
        raise BadMessage("revocation: length")
    kept = frozenset(rest[start : start + ID_SIZE] for start in range(0, len(rest), ID_SIZE))
    return Revoked(name, key, b"" if issuer_id == _NO_ISSUER else issuer_id, kept)


def _text(text: str) -> bytes:
    data = text.encode("ascii")
    return bytes((len(data),)) + data


def _long(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _take_text(data: bytes, place: int) -> tuple[str, int]:
    if place >= len(data) or place + 1 + data[place] > len(data):
        raise BadMessage("statement: cut short")
    end = place + 1 + data[place]
    text = data[place + 1 : end].decode("latin-1")
    if not is_name(text):
        raise BadMessage("statement: not a name")
    return text, end


def _take(data: bytes, place: int) -> tuple[bytes, int]:
    end = place + 2 + int.from_bytes(data[place : place + 2], "big")
    if place + 2 > len(data) or end > len(data):
        raise BadMessage("statement: cut short")
    return data[place + 2 : end], end
