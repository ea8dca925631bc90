"""What a node that may issue does: certificates for those who join and those who renew, revocations, another root. No messages, no clock.

Certificates of issuer nodes come from the root key alone, everybody else's from the issuing power of this node. So a stolen issuer makes
no issuers, and the root key is read only for what takes it: an issuer's renewal, a change of roots, a revocation of an issuer.
`OfficeError` is a sentence for people, with the errno that a node which asked gets.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from qnetpy.enrol.wire import Grant
from qnetpy.identity.authority import NODE_VALIDITY, Authority, IssuingPower, certify_issuer, issue_certificate, make_authority
from qnetpy.identity.certificate import ROLE_ISSUER, Certificate, CertificateError, Root, parse_chain
from qnetpy.identity.files import StoreError
from qnetpy.identity.trust import KEPT_MAX, Kind, Revoked, Statement, make_statement
from qnetpy.members.keyring import CLOCKS_DIFFER, Keyring, problem
from qnetpy.members.lifetime import is_cut, life
from qnetpy.members.possession import key_id, proves
from qnetpy.members.store import Store
from qnetpy.members.wire import NO_KEY, Renew, Renewed
from resmgr.errors import Misuse

Random = Callable[[int], bytes]
REVOKE_SIZE = 2048
"""Bytes that an issuer's statement never has."""


class OfficeError(ValueError):
    """What was asked is not done here. The text is a sentence for people."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.errno = code


class Office:
    """See the head of this file. *wall* is always the present time in seconds since the epoch."""

    def __init__(self, keyring: Keyring, store: Store, random: Random) -> None:
        self._keyring = keyring
        self._store = store
        self._random = random

    @property
    def may_issue(self) -> bool:
        """This node has an issuing power that counts. The root key is not looked for."""
        return self._keyring.any_power() is not None

    # Certificates

    def check(self, roles: frozenset[str]) -> None:
        """OfficeError when a node with *roles* cannot be given a certificate here."""
        self._power(roles, None)

    def grant(self, name: str, static_key: bytes, roles: frozenset[str], validity: float, wall: float) -> Grant:
        """Everything that a node which joins needs beside its key."""
        power = self._power(roles, None)
        certificate = self._issue(power, name, static_key, roles, validity, wall)
        self._keyring.register.note(certificate)
        trust = self._keyring.trust
        return Grant(
            self._keyring.identity.secret,
            certificate.chain,
            tuple(root.der for root in trust.roots),
            tuple(statement.data for statement in trust.statements),
        )

    def renew(self, name: str, static_key: bytes, wanted: Renew, wall: float) -> Renewed:
        """A later certificate for the node *name*, which has proven to have that key: with the roles of the one it has, and as long."""
        keyring = self._keyring
        try:
            shown = parse_chain(wanted.chain)
        except CertificateError as error:
            raise OfficeError(errno.EINVAL, str(error)) from error
        if (shown.name, shown.static_key) != (name, static_key):
            raise OfficeError(errno.EACCES, f"node {name} has shown a certificate that is not its own")
        wrong = problem(shown, keyring, wall)
        if wrong:
            raise OfficeError(errno.EACCES, wrong)
        power = self._power(shown.roles, wanted.root_id)
        length = NODE_VALIDITY if is_cut(shown, keyring.trust.roots) else life(shown)
        certificate = self._issue(power, shown.name, shown.static_key, shown.roles, length, wall)
        issuer = None
        if wanted.issuer_key != NO_KEY:
            if ROLE_ISSUER not in shown.roles or not isinstance(power, Authority):
                raise OfficeError(errno.EACCES, f"node {shown.name} has not the role {ROLE_ISSUER}")
            self._check_issuing_key(shown, wanted)
            try:
                issuer = certify_issuer(power, shown.name, wanted.issuer_key, wall, random=self._random)
            except (Misuse, ValueError) as error:
                raise OfficeError(errno.EINVAL, str(error)) from error
        keyring.register.note(certificate, {shown.root_id: shown.not_after}, () if issuer is None else (issuer,))
        return Renewed(certificate.chain, b"" if issuer is None else issuer.der)

    def _check_issuing_key(self, shown: Certificate, wanted: Renew) -> None:
        """One issuing key for one node, which has it: whoever revokes the node revokes all that it can sign, and nothing of others."""
        keyring, key = self._keyring, wanted.issuer_key
        if not proves(wanted.proof, key, shown, wanted.root_id):
            raise OfficeError(errno.EACCES, f"node {shown.name} has not proven to have the key that it wants to issue with")
        own = key_id(key)
        owner = keyring.register.issues_with(own)
        if owner not in ("", shown.name) or own in {root.key_id for root in keyring.trust.roots}:
            raise OfficeError(errno.EACCES, f"node {shown.name} wants to issue with the key of {owner or 'a root'}")
        if keyring.trust.issuer_revoked(own):
            raise OfficeError(errno.EACCES, f"node {shown.name} wants to issue with a key that was revoked")
        member = keyring.register.get(shown.name)
        others = [] if member is None else [one for one in member.issuer_ids(keyring.trust) if one != own]
        if others and shown.name != keyring.name:
            raise OfficeError(
                errno.EACCES, f"node {shown.name} issues with another key already; try: qnet revoke {shown.name}, and let it join again"
            )

    def _issue(
        self, power: Authority | IssuingPower, name: str, static_key: bytes, roles: frozenset[str], validity: float, wall: float
    ) -> Certificate:
        try:
            return issue_certificate(power, name, static_key, roles, wall, validity, self._random)
        except (Misuse, ValueError) as error:
            raise OfficeError(errno.EINVAL, str(error)) from error

    def _power(self, roles: frozenset[str], root_id: bytes | None) -> Authority | IssuingPower:
        """What signs certificates with *roles*, under that root or (None) the oldest possible."""
        if ROLE_ISSUER not in roles:
            power = self._keyring.any_power() if root_id is None else self._keyring.power(root_id)
            if power is not None:
                return power
        authority = self._authority()
        if authority is None or (root_id is not None and authority.root.key_id != root_id):
            if ROLE_ISSUER in roles:
                raise OfficeError(errno.EPERM, f"certificates with the role {ROLE_ISSUER} are made where the root key is, not here")
            raise OfficeError(
                errno.EPERM, f"node {self._keyring.name} does not issue certificates; ask on a node with the role {ROLE_ISSUER}"
            )
        return authority

    def _authority(self) -> Authority | None:
        try:
            return self._store.authority()
        except StoreError as error:
            raise OfficeError(errno.EACCES, str(error.strerror)) from error

    # Revocation

    def revoke(self, name: str, met: Certificate | None, wall: float) -> list[Statement]:
        """The statements that end node *name*; *met* is its certificate if it is up. One for each issuing power that it had or has: what it
        enrolled with them goes on to count, and what it enrols from now on does not."""
        keyring = self._keyring
        if name == keyring.name:
            raise OfficeError(errno.EINVAL, "a node does not revoke itself; try: qnet leave")
        member = keyring.register.get(name)
        key = met.static_key if met is not None else member.static_key if member is not None else None
        if key is None:
            raise OfficeError(errno.ENOENT, f"node {name} is not up, and this node never met it; run it on a node that did")
        roles = met.roles if met is not None else member.roles if member is not None else frozenset[str]()
        # An issuer's word ends no certificate that the root signed, and the node may have kept one from before.
        roots = {root.key_id for root in keyring.trust.roots}
        signers = set[bytes]() if met is None else {met.signer_id}
        if member is not None and member.static_key == key:
            signers |= {member.signer_id, *(old.signer_id for old in member.earlier if old.not_after >= wall - CLOCKS_DIFFER)}
        by_root = not signers.isdisjoint(roots)
        issuing: IssuingPower | None = None
        if ROLE_ISSUER not in roles and not by_root:
            # Of the newest root, if there are two: what the older one's issuers said ends with it.
            issuing = keyring.power(keyring.newest_root_id) or keyring.any_power()
        full = issuing is not None and not keyring.trust.room(issuing.issuer, REVOKE_SIZE)
        power: Authority | IssuingPower | None = self._authority() if issuing is None or full else issuing
        if power is None and full:
            raise OfficeError(errno.ENOSPC, "there is no room for what this node says; run it on another issuer, or where the root key is")
        if power is None:
            what = f"node {name} is an issuer" if ROLE_ISSUER in roles else f"the root signed the certificate of node {name}"
            raise OfficeError(errno.EPERM, f"{what}: that takes the root key; run it where the root key is")
        issuer_ids = [] if member is None else member.issuer_ids(keyring.trust)
        if issuer_ids and not isinstance(power, Authority):
            power = self._root_key()
        try:
            made = [
                make_statement(
                    power, Kind.REVOKE, Revoked(name, key, one, self._kept(one, key, issuer_ids, wall) if one else frozenset()), wall
                )
                for one in issuer_ids or [b""]
            ]
        except Misuse as error:
            raise OfficeError(errno.EPERM, str(error)) from error
        if not keyring.trust.room(made[0].issuer, sum(len(one.data) for one in made)):
            raise OfficeError(
                errno.ENOSPC, "there is no room for more statements in this cluster; try: qnet root rotate, which ends the old ones"
            )
        return made

    def _kept(self, issuer_id: bytes, key: bytes, together: Sequence[bytes], wall: float) -> frozenset[bytes]:
        """What that issuer signed and this node has seen: it was not made up afterwards. Certificates alone, those first that were seen
        first: whoever stole the key may have said of anybody that he is revoked before it was noticed. *together*: issuing powers that are
        revoked with it, whose word takes nobody's place."""
        keyring = self._keyring
        gone = {
            one.subject.static_key
            for one in keyring.trust.revocations()
            if isinstance(one.subject, Revoked) and (one.issuer is None or one.issuer.key_id not in together)
        }
        members = [one for one in keyring.register if one.static_key != key and one.static_key not in gone]
        serials = [one.serial for one in members if one.signer_id == issuer_id]
        # What a node may show yet, though it has a later one, has the places that are left.
        since = wall - CLOCKS_DIFFER
        serials += [old.serial for one in members for old in one.earlier if old.signer_id == issuer_id and old.not_after >= since]
        return frozenset(serials[:KEPT_MAX])

    def said_by(self, name: str) -> set[str]:
        """Whom that node revoked."""
        member, trust = self._keyring.register.get(name), self._keyring.trust
        ids = set() if member is None else {key_id for key_id, _ in member.issuing}
        return {
            one.subject.name
            for one in trust.revocations()
            if isinstance(one.subject, Revoked) and one.issuer is not None and one.issuer.key_id in ids
        }

    def revoked_names(self) -> set[str]:
        """Who is revoked, by whomever."""
        return {one.subject.name for one in self._keyring.trust.revocations() if isinstance(one.subject, Revoked)}

    # Roots

    def rotate(self, wall: float) -> tuple[Statement, Authority]:
        """Another root beside the one of this cluster: the statement by which every node trusts it, and its key. First the statement is
        stored, then the key takes the place of the old one (`Store.replace_authority`)."""
        authority = self._root_key()
        roots = self._keyring.trust.roots
        if len(roots) > 1:
            raise OfficeError(
                errno.EBUSY, "two roots overlap already; try: qnet root status, and qnet root retire when all nodes are ready"
            )
        if authority.root.key_id not in {root.key_id for root in roots}:
            raise OfficeError(errno.EINVAL, "the root key of this machine is not of a root that this node trusts")
        new = make_authority(authority.cluster, wall, random=self._random, secret=authority.secret)
        return make_statement(authority, Kind.ROOT, new.root, wall), new

    def retire(self, wall: float) -> list[Statement]:
        """The statements by which the root counts no more whose key this machine does not have (any more). The last one ends it; those
        before say again what would end with it, of nodes that may have a certificate under the other root."""
        authority = self._root_key()
        ids = [root.key_id for root in self._keyring.trust.roots]
        others = [key_id for key_id in ids if key_id != authority.root.key_id]
        if not others or authority.root.key_id not in ids:
            raise OfficeError(errno.EINVAL, "there is only one root")
        own = self._keyring.under(authority.root.key_id)
        if own is None or own.not_after <= wall:
            raise OfficeError(
                errno.EBUSY, f"this node has no certificate under that root{' yet' if own is None else ' that has not ended'}"
            )
        again = [make_statement(authority, Kind.REVOKE, one.subject, one.time) for one in self._outliving(others[0], authority.root.key_id)]
        return [*again, make_statement(authority, Kind.RETIRE, others[0], wall)]

    def _outliving(self, old: bytes, new: bytes) -> list[Statement]:
        """Revocations under the root *old* of nodes that may have got a certificate under *new*: this node knows that they had one, or they
        were revoked when that root was there, or so shortly before that clocks may differ."""
        trust, register = self._keyring.trust, self._keyring.register
        introduced = [
            one.time for one in trust.statements if one.kind is Kind.ROOT and isinstance(one.subject, Root) and one.subject.key_id == new
        ]
        since = min(introduced, default=0) - CLOCKS_DIFFER
        ready = {one.static_key for one in register if new in one.ready}
        said = {one.subject for one in trust.revocations() if one.root_id == new}
        return [
            one
            for one in trust.revocations()
            if one.root_id == old
            and isinstance(one.subject, Revoked)
            and one.subject not in said
            and (one.time >= since or one.subject.static_key in ready)
        ]

    def _root_key(self) -> Authority:
        authority = self._authority()
        if authority is None:
            raise OfficeError(errno.EPERM, "the root key is not on this machine")
        return authority
