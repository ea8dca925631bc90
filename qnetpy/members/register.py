"""The register: which nodes this node has issued certificates to or has met, and with which keys. Values; kept by nodes that may issue.

It answers three questions: is a name taken; which keys does a node have, so that it can be revoked while it is off; and does every node
have a certificate under the new root already. It is a memory and proves nothing: what counts is what certificates and statements say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import attrs

from qnetpy.identity.certificate import Certificate
from qnetpy.identity.trust import Trust, serial_id

MEMBERS_MAX = 65535
"""Nodes remembered, as many as a node table has; the one whose certificate ends first is forgotten."""


@attrs.frozen
class Member:
    """One certificate of a node, the latest seen, and what is known of the node beside it."""

    name: str
    static_key: bytes = attrs.field(repr=bytes.hex)
    roles: frozenset[str]
    not_after: float
    serial: bytes
    signer_id: bytes
    """Key id of the issuer or root that signed it."""
    ready: frozenset[bytes] = frozenset()
    """Key ids of roots under which it has a certificate."""
    issuer_id: bytes = b""
    """Key id of its own issuing power, when it was certified here."""


class Register:
    """Members by name."""

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self._members = {member.name: member for member in members}

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def get(self, name: str) -> Member | None:
        return self._members.get(name)

    def note(self, certificate: Certificate, ready: Iterable[bytes] = (), issuer_id: bytes = b"") -> bool:
        """A certificate was issued, or its node was met. *ready* and *issuer_id* add to what is known. Whether anything is new."""
        before = self._members.get(certificate.name)
        same = before is not None and before.static_key == certificate.static_key
        roots = frozenset((*ready, certificate.root_id)) | (before.ready if before is not None and same else frozenset())
        own = issuer_id or (before.issuer_id if before is not None and same else b"")
        if before is not None and same and before.not_after > certificate.not_after:
            # A link shows the certificate of its last handshake, which may not be the latest.
            after = attrs.evolve(before, ready=roots, issuer_id=own)
        else:
            after = Member(
                certificate.name,
                certificate.static_key,
                certificate.roles,
                certificate.not_after,
                serial_id(certificate),
                certificate.signer_id,
                roots,
                own,
            )
        learned = self._note_issuer(certificate)
        if after == before:
            return learned
        self._members[certificate.name] = after
        if len(self._members) > MEMBERS_MAX:
            self.forget(min(self, key=lambda member: member.not_after).name)
        return True

    def _note_issuer(self, certificate: Certificate) -> bool:
        """Which issuing power a node has shows in what it signed: whoever revokes it must know."""
        issuer = certificate.issuer
        member = None if issuer is None else self._members.get(issuer.node)
        if issuer is None or member is None or member.issuer_id:
            return False
        self._members[issuer.node] = attrs.evolve(member, issuer_id=issuer.key_id)
        return True

    def forget(self, name: str) -> bool:
        return self._members.pop(name, None) is not None

    def taken(self, name: str, trust: Trust, wall: float) -> bool:
        """Whether a certificate for *name* may still be in use."""
        member = self._members.get(name)
        return member is not None and member.not_after >= wall and not revoked(member, trust)

    def lacking(self, root_id: bytes, trust: Trust, wall: float) -> list[str]:
        """Nodes with a certificate that is good, and none under that root yet."""
        return sorted(
            member.name for member in self if root_id not in member.ready and member.not_after >= wall and not revoked(member, trust)
        )


def revoked(member: Member, trust: Trust) -> bool:
    """Whether its key was revoked, by anybody who may."""
    return trust.key_revoked(member.static_key)


def pack_register(register: Register) -> bytes:
    """As JSON, for the file."""
    rows = [
        {
            "name": member.name,
            "key": member.static_key.hex(),
            "roles": sorted(member.roles),
            "not_after": member.not_after,
            "serial": member.serial.hex(),
            "signer": member.signer_id.hex(),
            "ready": sorted(root.hex() for root in member.ready),
            "issuer": member.issuer_id.hex(),
        }
        for member in register
    ]
    return json.dumps(rows, indent=0).encode() + b"\n"


def parse_register(data: bytes) -> Register:
    """ValueError for anything else."""
    try:
        return Register(
            Member(
                str(row["name"]),
                bytes.fromhex(row["key"]),
                frozenset(map(str, row["roles"])),
                float(row["not_after"]),
                bytes.fromhex(row["serial"]),
                bytes.fromhex(row["signer"]),
                frozenset(bytes.fromhex(root) for root in row["ready"]),
                bytes.fromhex(row["issuer"]),
            )
            for row in json.loads(data)
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a register of members") from error
