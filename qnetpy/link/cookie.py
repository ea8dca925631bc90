"""The macs at the end of handshake frames, and cookies: WireGuard's scheme (sections 5.3 and 5.4.7 of its paper) with the cluster secret
where WireGuard has the responder's public key.

mac1 shows that the sender has the cluster secret, for the price of one hash; who has not is not answered. mac2 is keyed with a cookie,
which the responder makes from the source address and a secret that it draws anew every two minutes: it shows that the sender received a
frame at its address a short while ago. Making and checking a cookie needs no memory of who asked.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from qnetpy.link.constants import COOKIE_NONCE_SIZE, COOKIE_SECRET_LIFETIME, COOKIE_SIZE, MAC_SIZE, TAG_SIZE
from qnetpy.link.wire import Address
from resmgr.errors import BadMessage

SEALED_COOKIE_SIZE = COOKIE_NONCE_SIZE + COOKIE_SIZE + TAG_SIZE
_SECRET_SIZE = 32
_ZERO_NONCE = bytes(12)


def mac(key: bytes, data: bytes) -> bytes:
    """Keyed BLAKE2s of MAC_SIZE bytes (RFC 7693)."""
    return hashlib.blake2s(data, digest_size=MAC_SIZE, key=key).digest()


class ClusterMac:
    """mac1, and the sealing of cookies: what needs the cluster secret and nothing else."""

    def __init__(self, secret: bytes) -> None:
        self._mac_key = hashlib.blake2s(secret, person=b"qnetmac1").digest()
        self._cookie_key = hashlib.blake2s(secret, person=b"qnetcook").digest()

    def make(self, data: bytes) -> bytes:
        return mac(self._mac_key, data)

    def check(self, data: bytes, value: bytes) -> bool:
        return hmac.compare_digest(mac(self._mac_key, data), value)

    def seal_cookie(self, cookie: bytes, first_mac: bytes, nonce: bytes) -> bytes:
        """Body of a COOKIE frame that answers the INITIATION with *first_mac*. *nonce*: COOKIE_NONCE_SIZE random bytes."""
        return nonce + ChaCha20Poly1305(self._one_time_key(first_mac, nonce)).encrypt(_ZERO_NONCE, cookie, first_mac)

    def open_cookie(self, body: bytes, first_mac: bytes) -> bytes:
        """The cookie. BadMessage when it does not answer the INITIATION with *first_mac*."""
        if len(body) != SEALED_COOKIE_SIZE:
            raise BadMessage("cookie: length")
        nonce, sealed = body[:COOKIE_NONCE_SIZE], body[COOKIE_NONCE_SIZE:]
        try:
            return ChaCha20Poly1305(self._one_time_key(first_mac, nonce)).decrypt(_ZERO_NONCE, sealed, first_mac)
        except InvalidTag as error:
            raise BadMessage("cookie: authentication failed") from error

    def _one_time_key(self, first_mac: bytes, nonce: bytes) -> bytes:
        return hashlib.blake2s(nonce + first_mac, key=self._cookie_key).digest()


class CookieJar:
    """Makes cookies and honours those made with this secret or the one before. Memory: two secrets."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._secret = self._before = random(_SECRET_SIZE)
        self._drawn = 0.0

    def make(self, source: Address, now: float) -> bytes:
        self._turn(now)
        return _cookie(self._secret, source)

    def check(self, source: Address, data: bytes, value: bytes, now: float) -> bool:
        """Whether *value* is the mac2 over *data* (the frame up to mac2) under a cookie that we gave to *source*."""
        if not any(value):
            return False
        self._turn(now)
        return any(hmac.compare_digest(mac(_cookie(secret, source), data), value) for secret in (self._secret, self._before))

    def _turn(self, now: float) -> None:
        age = now - self._drawn
        if age >= COOKIE_SECRET_LIFETIME:
            self._before = self._secret if age < 2 * COOKIE_SECRET_LIFETIME else self._random(_SECRET_SIZE)
            self._secret = self._random(_SECRET_SIZE)
            self._drawn = now


def _cookie(secret: bytes, source: Address) -> bytes:
    interface, station = source
    return hashlib.blake2s(interface.encode() + b"\0" + station, digest_size=COOKIE_SIZE, key=secret).digest()
