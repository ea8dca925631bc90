"""When a node's certificates are due, and when people are told. Pure.

A certificate is renewed at two thirds of its life, and again and again from then on until it succeeded; people hear of it when 30, 7 and 1
days are left, which with certificates of a year means that it failed for three months.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from qnetpy.identity.authority import BACKDATE, NODE_VALIDITY
from qnetpy.identity.certificate import ROLE_ISSUER, Certificate, Issuer, Root, date
from qnetpy.members.keyring import Keyring
from resmgr.errors import Misuse

PART = 2 / 3
"""Of its life, after which a certificate is renewed."""
DAY = 86400.0
WARNINGS = (30 * DAY, 7 * DAY, DAY, 0.0)
"""Seconds before the end at which people are warned, if the certificate lived longer than that when it was new; and at the end."""
LIFE_SLACK = BACKDATE + 2.0
"""Seconds by which a life may be shorter: its begin may be cut at its signer's, and moments are whole seconds."""
RETRY_PART = 1 / 50
"""Of a certificate's life, between looks at it and between tries."""
RETRY_MIN = 1.0
RETRY_MAX = 600.0


@attrs.frozen
class Want:
    """A certificate is due: under which root, and whether the issuing power is due with it."""

    root_id: bytes
    issuing: bool


def due(certificate: Certificate | Issuer, wall: float) -> bool:
    """Whether two thirds of its life are over."""
    return wall >= certificate.not_after - (1 - PART) * life(certificate)


def life(certificate: Certificate | Issuer) -> float:
    """Seconds from when it was issued to its end; its begin lies a little before."""
    return max(0.0, certificate.not_after - certificate.not_before - BACKDATE)


def is_cut(certificate: Certificate, roots: Sequence[Root]) -> bool:
    """Whether it ends with its signer, which says nothing of how long it should be."""
    signer = certificate.issuer or next((root for root in roots if root.key_id == certificate.root_id), None)
    return signer is not None and certificate.not_after == signer.not_after


def check_as_good(old: Certificate, new: Certificate, roots: Sequence[Root]) -> None:
    """Misuse when *new* is less than the *old* that it renews: other roles, an earlier end, a shorter life. After one that was cut at its
    signer's end comes one of the usual length; one that is cut itself may have any."""
    if new.roles != old.roles:
        raise Misuse(f"it has other roles: {', '.join(sorted(new.roles)) or 'none'}")
    if is_cut(new, roots):
        return
    was_cut = is_cut(old, roots)
    if new.not_after < old.not_after and not was_cut:
        raise Misuse(f"it ends earlier than the one before, on {date(new.not_after)}")
    due_life = min(life(old), NODE_VALIDITY) if was_cut else life(old)
    if life(new) < due_life - LIFE_SLACK:
        raise Misuse(f"it lives {life(new) / DAY:.1f} days, and {due_life / DAY:.1f} are due")


def wants(keyring: Keyring, wall: float) -> list[Want]:
    """What is due now, the newest root first."""
    found: list[Want] = []
    for root in reversed(keyring.trust.roots):
        newest = root is keyring.trust.roots[-1]
        certificate, power = keyring.under(root.key_id), keyring.power(root.key_id)
        issues = ROLE_ISSUER in keyring.identity.roles and root.certifies_issuers
        issuing = issues and (power is None or due(power.issuer, wall))
        missing = newest and (certificate is None or issuing)
        if missing or (certificate is not None and (due(certificate, wall) or not keyring.trust.accepts(certificate))):
            found.append(Want(root.key_id, issuing))
    return found


def pause(keyring: Keyring) -> float:
    """Seconds between looks, and between tries: a small part of the life of the certificate that lives shortest."""
    shortest = min(map(life, keyring.certificates()))
    return min(max(shortest * RETRY_PART, RETRY_MIN), RETRY_MAX)


def warning(certificate: Certificate, told: float, wall: float) -> float | None:
    """The mark of WARNINGS that was passed and not told: *told* is the last that was, `inf` for none. None: nothing to say."""
    passed = [mark for mark in WARNINGS if certificate.not_after - wall <= mark < life(certificate)]
    mark = min(passed, default=None)
    return mark if mark is not None and mark < told else None
