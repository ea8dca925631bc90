"""The keyring of a node: its certificates, its issuing powers, what it trusts, whom it has met. State and its rules; no messages, no clock.

While two roots overlap a node holds a certificate under each. It shows the one under the older root, which every node trusts, also one
that was off when the newer root was made; when the older root is retired it shows the other. A peer that does not know the root of the one
that is shown makes it show the other.

The certificate that was replaced last is kept as `before`, until it ends: who signed its successor may be revoked before the machine with
the root key has seen that, and then nobody can tell it from one that a thief made. Shown again, it lets the node in, and gets it another.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from qnetpy.identity.authority import IssuingPower, NodeIdentity
from qnetpy.identity.certificate import Certificate, CertificateError, Issuer, verify
from qnetpy.identity.trust import Revoked, Statement, Trust, parse_statement
from qnetpy.members.register import Register, pack_register, parse_register
from qnetpy.members.store import Kept
from resmgr.errors import BadMessage, Misuse

CLOCKS_DIFFER = 86400.0
"""Seconds by which nodes' clocks may be wrong before it hurts anybody."""


class Keyring:
    """See the head of this file. `identity` is what the handshake shows and trusts."""

    def __init__(self, kept: Kept) -> None:
        self.identity: NodeIdentity = kept.identity
        self.next: Certificate | None = kept.next
        self.before: Certificate | None = kept.before
        self.powers: tuple[IssuingPower, ...] = kept.powers
        self.trust = Trust(kept.identity.cluster, kept.identity.roots, kept.statements)
        self.register: Register = parse_register(kept.register) if kept.register else Register()
        self.register.keep_roots(root.key_id for root in self.trust.roots)

    @property
    def name(self) -> str:
        return self.identity.name

    def kept(self) -> Kept:
        """What to store."""
        register = pack_register(self.register) if len(self.register) else b""
        return Kept(self.identity, self.next, self.before, self.powers, tuple(self.trust.statements), register)

    # Certificates

    def certificates(self) -> list[Certificate]:
        """Ours, the one that is shown first."""
        return [self.identity.certificate, *([] if self.next is None else [self.next])]

    def under(self, root_id: bytes) -> Certificate | None:
        return next((one for one in self.certificates() if one.root_id == root_id), None)

    def ready(self) -> dict[bytes, float]:
        """Key ids of the roots under which we have a certificate that counts, and when that ends."""
        return {one.root_id: one.not_after for one in self.certificates() if self.trust.accepts(one)}

    def proof(self, wall: float) -> Certificate | None:
        """The certificate with which another can be asked for: one that counts and has not ended; None when we have none."""
        spare = self._spare()
        found = [one for one in self.certificates() if self._counts(one)] + ([] if spare is None else [spare])
        return next((one for one in found if one.not_after > wall), None)

    def _spare(self) -> Certificate | None:
        """The one before, if it counts. Not when our key was revoked, whoever signed it and whoever said so: that is meant for us."""
        before = self.before
        if before is None or not self._counts(before) or self.trust.key_revoked(before.static_key):
            return None
        return before

    def good(self, certificate: Certificate) -> bool:
        """Whether a node's certificate is genuine and counts, at some time: clocks differ, and when it ends the register knows."""
        try:
            verify(certificate, self.trust.roots, certificate.not_before)
        except CertificateError:
            return False
        return self.trust.accepts(certificate)

    def _counts(self, certificate: Certificate) -> bool:
        return (
            certificate.root_id in {root.key_id for root in self.trust.roots}
            and certificate.static_key == self.identity.certificate.static_key
            and self.trust.accepts(certificate)
        )

    @property
    def newest_root_id(self) -> bytes:
        return self.trust.roots[-1].key_id

    def power(self, root_id: bytes) -> IssuingPower | None:
        """What we issue with under that root; None when nothing, or when it was revoked."""
        for power in self.powers:
            if power.issuer.root_id == root_id and self.trust.revoked_issuer(power.issuer) is None:
                return power
        return None

    def any_power(self) -> IssuingPower | None:
        """What we issue with under the oldest root that we can issue under."""
        return next((power for root in self.trust.roots if (power := self.power(root.key_id)) is not None), None)

    def install(self, certificate: Certificate, issuer: Issuer | None, issuer_private: bytes, wall: float) -> None:
        """A certificate that was issued to us, and one for issuing if we asked for that. CertificateError or Misuse for what is not good
        or not ours; then nothing changes."""
        verify(certificate, self.trust.roots, wall, self.name)
        if not self.trust.accepts(certificate):
            raise Misuse("the issuer of the certificate was revoked")
        if certificate.static_key != self.identity.certificate.static_key:
            raise Misuse("the certificate that was issued is for another key")
        if issuer is not None:
            power = IssuingPower(issuer, issuer_private)
            if issuer.node != self.name or issuer.root_id != certificate.root_id:
                raise Misuse("the issuer's certificate that was given is another node's")
            order = [root.key_id for root in self.trust.roots]
            others = [old for old in self.powers if old.issuer.root_id != issuer.root_id and old.private == issuer_private]
            self.powers = tuple(
                sorted((*others, power), key=lambda one: order.index(one.issuer.root_id) if one.issuer.root_id in order else -1)
            )
        self._keep_before(self.under(certificate.root_id), certificate, wall)
        if certificate.root_id == self.identity.certificate.root_id:
            self.identity = attrs.evolve(self.identity, certificate=certificate)
        else:
            self.next = certificate

    def _keep_before(self, old: Certificate | None, new: Certificate, wall: float) -> None:
        """*new* takes the place of *old*. Better than that is one of another signer, which is revoked for itself."""
        self.drop_ended(wall)
        if old is None or not self._counts(old):
            return
        if self.before is None or old.signer_id != new.signer_id or self.before.signer_id == new.signer_id:
            self.before = old

    def drop_ended(self, wall: float) -> None:
        """Forget `before` when it has ended, for a day: a clock may be wrong for a moment."""
        if self.before is not None and self.before.not_after < wall - CLOCKS_DIFFER:
            self.before = None

    def show_before(self, wall: float) -> bool:
        """Show the one before, and keep the one that is shown in its place: somebody knows something against that, and we do not, or it has
        ended. False when there is none that is good."""
        spare = self._spare()
        if spare is None or spare.not_after <= wall:
            return False
        self.before = self._show(spare)
        return True

    def show_other(self, wall: float) -> bool:
        """Show the certificate under the other root. False when there is none, or it has ended."""
        if self.next is None or self.next.not_after <= wall:
            return False
        self.next = self._show(self.next)
        return True

    def _show(self, certificate: Certificate) -> Certificate:
        """Show that from now on. Returns what was shown."""
        before = self.identity.certificate
        self.identity = attrs.evolve(self.identity, certificate=certificate)
        return before

    # Statements

    def learn(self, statements: Iterable[bytes]) -> tuple[list[Statement], list[BadMessage]]:
        """Believe what may be believed. Returns what was new, and why anything was not believed. `identity` may be another afterwards."""
        fresh: list[Statement] = []
        refused: list[BadMessage] = []
        for data in statements:
            try:
                statement = parse_statement(data)
                if self.trust.add(statement):
                    fresh.append(statement)
            except BadMessage as error:
                refused.append(error)
        if fresh:
            self._settle()
        if any(isinstance(one.subject, Revoked) and one.subject.issuer_id for one in fresh):
            self.register.unsure(self.trust)
        return fresh, refused

    def _settle(self) -> None:
        """Roots may be others, and issuers revoked: certificates and powers that count no more go, unless it is all we have."""
        trusted = {root.key_id for root in self.trust.roots}
        before = self._spare()
        good: list[Certificate] = []
        for one in self.certificates():
            if self._counts(one):
                good.append(one)
            elif before is not None and before.root_id == one.root_id:
                good.append(before)
                before = None
        if not good and before is not None:
            good, before = [before], None
        if not good:
            good = [self.identity.certificate]
        self.before = before
        self.identity = attrs.evolve(self.identity, certificate=good[0], roots=self.trust.roots)
        self.next = good[1] if len(good) > 1 else None
        self.powers = tuple(power for power in self.powers if power.issuer.root_id in trusted)
        self.register.keep_roots(trusted)


def problem(certificate: Certificate, keyring: Keyring, wall: float) -> str:
    """Why *certificate* is no good here and now; empty when it is."""
    try:
        verify(certificate, keyring.trust.roots, wall)
    except CertificateError as error:
        return str(error)
    statement = keyring.trust.revoked(certificate)
    return "" if statement is None else f"node {certificate.name} was revoked by {statement.by}"
