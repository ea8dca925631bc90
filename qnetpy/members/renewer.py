"""Gets this node's certificates renewed: looks now and then whether one is due, issues it here if this node can, and asks others if not."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable

import attrs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qnetpy.identity.certificate import ROLE_ISSUER, Certificate, CertificateError, date, parse_chain, parse_issuer
from qnetpy.members import lifetime, wire
from qnetpy.members.keyring import Keyring
from qnetpy.members.office import Office, OfficeError
from qnetpy.members.possession import issuing_key, prove
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.errors import BadMessage, Misuse

log = logging.getLogger(__name__)
RENEW_EVERY = 1.0
"""Seconds between two certificates for one node. Stops a node that asks in a loop from using our time for signing."""
SPREAD = 2.0
"""Seconds within which nodes ask after something has changed for all of them, each at its own moment."""
REPLY_MAX = 2048
Reply = Callable[[int, Buffer], None]


@attrs.frozen
class Peers:
    """Whom to ask, and how: `send(name, message, reply_len, done)`."""

    issuers: Callable[[], list[str]]
    send: Callable[[str, bytes, int, Reply], None]


class Renewer:
    """*renewed* is called when there is a new certificate, *looked* at each look with the wall time; it returns the longest pause."""

    def __init__(
        self,
        dispatch: Dispatch,
        keyring: Keyring,
        office: Office,
        random: Callable[[int], bytes],
        counters: Counter[str],
        peers: Peers,
        renewed: Callable[[], None],
        looked: Callable[[float], float],
    ) -> None:
        self._dispatch = dispatch
        self._keyring = keyring
        self._office = office
        self._random = random
        self._counters = counters
        self._peers = peers
        self._renewed = renewed
        self._looked = looked
        self._asking = False
        self._warned = math.inf
        self._timer: Timer | None = None
        self._timer_at = math.inf
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def soon(self) -> None:
        """Look at a moment of our own within SPREAD."""
        self.look_at(self._dispatch.now() + self._chance() * SPREAD)

    def look_at(self, when: float) -> None:
        """Look then, or earlier: nobody else's news puts off a look that is due."""
        if self._closed or (self._timer is not None and self._timer_at <= when):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._dispatch.call_at(when, self._look)

    def _look(self) -> None:
        """Everything that is done because of time."""
        self._timer = None
        wall = self._dispatch.wall()
        self._warn(wall)
        pause = min(lifetime.pause(self._keyring), self._looked(wall))
        self._keyring.drop_ended(wall)
        wants = lifetime.wants(self._keyring, wall)
        proof = self._keyring.proof(wall)
        if wants and not self._asking and proof is not None:
            self._renew(wants[0], proof, wall)
        if self._timer is None:
            self.look_at(self._dispatch.now() + pause * (0.75 + self._chance() / 2))

    def _renew(self, want: lifetime.Want, own: Certificate, wall: float) -> None:
        """*own*: the certificate of ours that is shown for it."""
        keyring = self._keyring
        mine = next((power.private for power in keyring.powers if not keyring.trust.issuer_revoked(power.issuer.key_id)), b"")
        private = mine or issuing_key(keyring.identity.static_private)
        public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw() if want.issuing else wire.NO_KEY
        proof = prove(private, own, want.root_id) if want.issuing else wire.NO_PROOF
        request = wire.Renew(want.root_id, own.chain, public, proof)
        try:
            renewed = self._office.renew(own.name, own.static_key, request, wall)
        except OfficeError:
            able = self._peers.issuers()
            self._asking = bool(able)
            self._ask(able, request, private)
        else:
            self._install(renewed, request, private, own.name)

    def _ask(self, able: list[str], request: wire.Renew, private: bytes) -> None:
        """Ask nodes that may issue, one after another in random order, until one does."""
        if not able or self._closed:
            self._asking = False
            return
        name = able.pop(int(self._chance() * len(able)))

        def answered(status: int, reply: Buffer) -> None:
            if status < 0:
                self._counters["renewals_failed"] += 1
                self._ask(able, request, private)
                return
            try:
                renewed = wire.parse_renewed(bytes(reply))
            except BadMessage as error:
                self._counters["malformed"] += 1
                log.warning("node %s issued a certificate that is no good: %s", name, error)
                self._ask(able, request, private)
                return
            if self._install(renewed, request, private, name):
                self._asking = False
            else:
                self._ask(able, request, private)

        self._peers.send(name, wire.pack_renew(request), REPLY_MAX, answered)

    def _install(self, renewed: wire.Renewed, request: wire.Renew, private: bytes, by: str) -> bool:
        """Whether it is what was asked for."""
        if self._closed:
            return False
        try:
            certificate = parse_chain(renewed.chain)
            if certificate.root_id != request.root_id:
                raise Misuse("it is under another root than was asked for")
            lifetime.check_as_good(parse_chain(request.chain), certificate, self._keyring.trust.roots)
            issuer = parse_issuer(renewed.issuer) if renewed.issuer else None
            if (issuer is None) != (request.issuer_key == wire.NO_KEY):
                raise Misuse("there is a certificate to issue with and none was asked for" if issuer else "there is none to issue with")
            self._keyring.install(certificate, issuer, private, self._dispatch.wall())
        except (CertificateError, Misuse) as error:
            self._counters["renewals_failed"] += 1
            log.warning("node %s issued a certificate that is no good: %s", by, error)
            return False
        self._warned = math.inf
        log.info("new certificate by %s, valid until %s", by, date(certificate.not_after))
        self._renewed()
        self.look_at(self._dispatch.now() + RENEW_EVERY + self._chance())
        return True

    def _warn(self, wall: float) -> None:
        certificate = self._keyring.identity.certificate
        mark = lifetime.warning(certificate, self._warned, wall)
        if mark is not None:
            self._warned = mark
            log.warning("%s", ends(certificate, wall))

    def _chance(self) -> float:
        return int.from_bytes(self._random(2), "big") / 65536


def ends(certificate: Certificate, wall: float) -> str:
    """What to say of a certificate that ends soon, or has ended."""
    left = certificate.not_after - wall
    if left <= 0:
        return (
            f"the certificate of this node expired on {date(certificate.not_after)}: no other node accepts it; "
            f"try: qnet invite --name {certificate.name} on a node that may, and here: qnet join CODE --replace"
        )
    return (
        f"the certificate of this node ends in {left / 86400:.1f} days ({date(certificate.not_after)}) and could not be renewed: "
        f"a node with the role {ROLE_ISSUER} must be up"
    )
