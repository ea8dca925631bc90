"""Membership for simulated nodes: what a node keeps is a value in memory that outlives its boots, and the root key is where the test puts
it."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qnetpy.identity.authority import (
    NODE_VALIDITY,
    Authority,
    IssuingPower,
    NodeIdentity,
    Random,
    certify_issuer,
    issue_certificate,
    issue_identity,
)
from qnetpy.identity.certificate import ROLE_ISSUER, parse_chain, parse_root
from qnetpy.identity.trust import parse_statement
from qnetpy.members.membership import Membership
from qnetpy.members.store import Kept


@attrs.define
class MemoryStore:
    """A `Store`. `root_key`: this machine has it."""

    kept: Kept
    root_key: Authority | None = None
    saves: int = 0
    erased: bool = False

    def save(self, kept: Kept) -> None:
        self.kept = kept
        self.saves += 1

    def authority(self) -> Authority | None:
        return self.root_key

    def replace_authority(self, authority: Authority) -> None:
        self.root_key = authority

    def erase(self) -> None:
        self.erased = True


def enrolled(
    authority: Authority,
    name: str,
    wall: float,
    random: Random,
    *,
    roles: Iterable[str] = (),
    by: IssuingPower | None = None,
    validity: float = NODE_VALIDITY,
) -> MemoryStore:
    """What a node has after it joined: with the role `issuer` an issuing power of its own, otherwise a certificate that *by* signed, or
    the root."""
    identity = issue_identity(authority, name, roles, wall, validity, random)
    if by is not None:
        certificate = issue_certificate(by, name, identity.certificate.static_key, roles, wall, validity, random)
        return MemoryStore(Kept(attrs.evolve(identity, certificate=certificate)))
    powers: tuple[IssuingPower, ...] = ()
    if ROLE_ISSUER in roles:
        private = random(32)
        public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        powers = (IssuingPower(certify_issuer(authority, name, public, wall, random=random), private),)
    return MemoryStore(Kept(identity, powers=powers))


def joined(membership: Membership, name: str, wall: float, random: Random, roles: Iterable[str] = ()) -> MemoryStore:
    """What a node has that joins now, at the node that *membership* is of, with a new key."""
    private = random(32)
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    grant = membership.office.grant(name, public, frozenset(roles), NODE_VALIDITY, wall)
    membership.save()
    identity = NodeIdentity(parse_chain(grant.chain), private, tuple(map(parse_root, grant.roots)), grant.secret)
    return MemoryStore(Kept(identity, statements=tuple(map(parse_statement, grant.statements))))
