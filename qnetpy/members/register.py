"""The register: which nodes this node has issued certificates to or has met, and with which keys. Values; kept by nodes that may issue.

It answers three questions: is a name taken; which keys does a node have, so that it can be revoked while it is off; and does every node
have a certificate under the new root already. It is a memory and proves nothing: what counts is what certificates and statements say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping

import attrs

from qnetpy.identity.certificate import Certificate, Issuer
from qnetpy.identity.trust import Trust, serial_id

EARLIER_MAX = 4
"""Certificates of one node and key that are remembered beside the latest."""
MEMBERS_MAX = 65535
"""Nodes remembered, as many as a node table has; the one whose certificate ends first is forgotten, issuers last."""


@attrs.frozen
class Seen:
    """A certificate that a node has or had beside its latest."""

    serial: bytes
    signer_id: bytes
    not_after: float


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
    ready: Mapping[bytes, float] = attrs.Factory(dict)
    """Key ids of roots under which it has a certificate, and when the latest of each ends. Only of roots that are trusted:
    `Register.keep_roots`."""
    issuing: frozenset[tuple[bytes, bytes]] = frozenset()
    """Every issuing power that a node of that name had, whatever its own key was: key id, and key id of the root that certified it."""
    earlier: tuple[Seen, ...] = ()
    """Others for the same key that were seen, the last first: the node may show one of them yet, or never have got the latest."""

    def issuer_ids(self, trust: Trust) -> list[bytes]:
        """Key ids of those of its issuing powers that count: under a root that is trusted, and not revoked."""
        roots = {root.key_id for root in trust.roots}
        return sorted({key_id for key_id, root_id in self.issuing if root_id in roots and not trust.issuer_revoked(key_id)})


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

    def note(self, certificate: Certificate, ready: Mapping[bytes, float] | None = None, issuers: Iterable[Issuer] = ()) -> bool:
        """A certificate was issued, or its node was met. *ready* and *issuers* add to what is known. Whether anything is new. Of two that
        end at the same moment the one with the greater serial number is the latest, whichever was seen first."""
        before = self._members.get(certificate.name)
        same = before is not None and before.static_key == certificate.static_key
        roots = dict(before.ready) if before is not None and same else {}
        for root_id, end in (*(ready or {}).items(), (certificate.root_id, certificate.not_after)):
            roots[root_id] = max(end, roots.get(root_id, end))
        own = _powers(issuers) | (before.issuing if before is not None else frozenset())
        serial = serial_id(certificate)
        if before is not None and same and (before.not_after, before.serial) > (certificate.not_after, serial):
            # A link shows the certificate of its last handshake, which may not be the latest.
            after = attrs.evolve(before, ready=roots, issuing=own, earlier=_with(before, serial, certificate))
        else:
            after = Member(
                certificate.name,
                certificate.static_key,
                certificate.roles,
                certificate.not_after,
                serial,
                certificate.signer_id,
                roots,
                own,
                _without(before, serial) if before is not None and same else (),
            )
        learned = self._note_issuer(certificate)
        if after == before:
            return learned
        self._members[certificate.name] = after
        if len(self._members) > MEMBERS_MAX:
            self.forget(min(self, key=lambda member: (bool(member.issuing), member.not_after)).name)
        return True

    def _note_issuer(self, certificate: Certificate) -> bool:
        """Which issuing power a node has shows in what it signed: whoever revokes it must know."""
        issuer = certificate.issuer
        member = None if issuer is None else self._members.get(issuer.node)
        if issuer is None or member is None or _powers([issuer]) <= member.issuing:
            return False
        self._members[issuer.node] = attrs.evolve(member, issuing=member.issuing | _powers([issuer]))
        return True

    def keep_roots(self, roots: Iterable[bytes]) -> None:
        """Forget what hangs on any other root."""
        ids = frozenset(roots)
        for member in self:
            issuing = frozenset(pair for pair in member.issuing if pair[1] in ids)
            ready = {root_id: end for root_id, end in member.ready.items() if root_id in ids}
            if ready != member.ready or issuing != member.issuing:
                self._members[member.name] = attrs.evolve(member, ready=ready, issuing=issuing)

    def unsure(self, trust: Trust) -> None:
        """An issuing power was revoked, and with it certificates that were never seen here: who has one under which root must be heard
        anew. Of whoever was revoked it is remembered."""
        for member in self:
            if not revoked(member, trust):
                self._members[member.name] = attrs.evolve(member, ready={})

    def issues_with(self, key_id: bytes) -> str:
        """The node that has or had that issuing power; empty when none is known."""
        return next((member.name for member in self if any(key_id == own for own, _ in member.issuing)), "")

    def forget(self, name: str) -> bool:
        return self._members.pop(name, None) is not None

    def taken(self, name: str, trust: Trust, wall: float) -> bool:
        """Whether a certificate for *name* may still be in use."""
        member = self._members.get(name)
        return member is not None and member.not_after >= wall and not revoked(member, trust)

    def lacking(self, root_id: bytes, trust: Trust, wall: float) -> list[str]:
        """Nodes with a certificate that is good, and none under that root: none yet, or one that has ended."""
        return sorted(
            member.name for member in self if member.ready.get(root_id, -math.inf) < wall <= member.not_after and not revoked(member, trust)
        )


def revoked(member: Member, trust: Trust) -> bool:
    """Whether its key was revoked, by anybody who may."""
    return trust.key_revoked(member.static_key)


def _with(member: Member, serial: bytes, certificate: Certificate) -> tuple[Seen, ...]:
    """The earlier certificates of *member* and that one."""
    if serial in (member.serial, *(one.serial for one in member.earlier)):
        return member.earlier
    return (Seen(serial, certificate.signer_id, certificate.not_after), *member.earlier)[:EARLIER_MAX]


def _without(member: Member, serial: bytes) -> tuple[Seen, ...]:
    """All known certificates of *member*, as earlier ones than the one of that serial number."""
    latest = Seen(member.serial, member.signer_id, member.not_after)
    return tuple(one for one in (latest, *member.earlier) if one.serial != serial)[:EARLIER_MAX]


def _powers(issuers: Iterable[Issuer]) -> frozenset[tuple[bytes, bytes]]:
    return frozenset((issuer.key_id, issuer.root_id) for issuer in issuers)


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
            "ready": sorted([root.hex(), end] for root, end in member.ready.items()),
            "issuing": sorted([key_id.hex(), root_id.hex()] for key_id, root_id in member.issuing),
            "earlier": [[one.serial.hex(), one.signer_id.hex(), one.not_after] for one in member.earlier],
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
                # Roots without an end are heard of anew.
                {bytes.fromhex(one[0]): float(one[1]) for one in row["ready"] if isinstance(one, list)},
                frozenset((bytes.fromhex(key_id), bytes.fromhex(root_id)) for key_id, root_id in row["issuing"]),
                tuple(Seen(bytes.fromhex(serial), bytes.fromhex(signer), float(end)) for serial, signer, end in row.get("earlier", ())),
            )
            for row in json.loads(data)
        )
    except (IndexError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a register of members") from error
