"""The key exchange by a code: SPAKE2 on Ed25519 (the library `spake2`), and the channel that it opens.

One run tells whoever does not know the code whether one guess is right, and nothing else; who only listens learns nothing. The joiner
confirms first, so the end that made the code sees a wrong guess before it has shown anything against which guesses could be checked. Both
messages of the exchange, with everything around them, are in the derived keys: changed on the way, the confirmation fails.

Costs 7 ms to begin and 10 ms to finish: the daemon does it in a worker thread.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qnetpy.enrol.code import Code
from qnetpy.enrol.wire import HEADER, TAG_SIZE, Kind, frame
from resmgr.errors import BadMessage

JOINER = b"qnet join 1 joiner"
INVITER = b"qnet join 1 inviter"
"""Identities of the two ends in SPAKE2's transcript."""
Random = Callable[[int], bytes]


class Pake:
    """One end of one exchange. `message` goes to the other end; `finish` takes the other's."""

    def __init__(self, code: Code, joiner: bool, random: Random) -> None:
        # Here, because it computes its tables when it is imported (50 ms), which a daemon that never invites need not pay.
        import spake2

        side = spake2.SPAKE2_A if joiner else spake2.SPAKE2_B
        self._run = side(code.password, idA=JOINER, idB=INVITER, entropy_f=random)
        self._joiner = joiner
        self.message: bytes = self._run.start()

    def finish(self, message: bytes, transcript: bytes) -> Keys:
        """The keys, from the other end's *message* and everything that was said so far, in order. BadMessage for what is no point of the
        group. That the code was another one shows only at the confirmation."""
        import spake2
        from spake2.ed25519_basic import NotOnCurve

        try:
            shared: bytes = self._run.finish(message)
        except (ValueError, AssertionError, NotOnCurve, spake2.SPAKEError) as error:
            raise BadMessage("enrolment: not a message of the key exchange") from error
        return derive(shared, transcript, self._joiner)


@attrs.frozen
class Keys:
    """What a finished exchange gives: the two confirmations, and the two directions of the channel."""

    own: bytes = attrs.field(repr=False)
    """What this end shows."""
    expected: bytes = attrs.field(repr=False)
    binding: bytes = attrs.field(repr=False)
    """Of this exchange alone, and known to both ends: what proofs are bound to."""
    send: Channel = attrs.field(repr=False)
    receive: Channel = attrs.field(repr=False)

    def confirmed(self, shown: bytes) -> bool:
        """Whether the other end has the same keys, which means the same code and the same transcript."""
        return hmac.compare_digest(shown, self.expected)


def derive(shared: bytes, transcript: bytes, joiner: bool) -> Keys:
    """Keys from SPAKE2's 32 bytes: HKDF-SHA256, salted with the hash of the transcript."""
    salt = hashlib.sha256(transcript).digest()

    def key(label: bytes) -> bytes:
        return HKDF(SHA256(), 32, salt, b"qnet join 1 " + label).derive(shared)

    confirm = [key(b"confirm joiner"), key(b"confirm inviter")]
    seal = [Channel(key(b"seal joiner")), Channel(key(b"seal inviter"))]
    if not joiner:
        confirm.reverse()
        seal.reverse()
    return Keys(confirm[0], confirm[1], key(b"binding"), seal[0], seal[1])


class Channel:
    """One direction: ChaCha20-Poly1305, the nonce counts frames, the frame's header is authenticated with it."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._count = 0

    def seal(self, kind: Kind, body: bytes) -> bytes:
        """A whole frame."""
        header = HEADER.pack(kind << 24 | len(body) + TAG_SIZE)
        return frame(kind, self._cipher.encrypt(self._nonce(), body, header))

    def open(self, kind: Kind, sealed: bytes) -> bytes:
        """The body of the next frame of that direction. BadMessage when it is not authentic."""
        header = HEADER.pack(kind << 24 | len(sealed))
        try:
            return self._cipher.decrypt(self._nonce(), sealed, header)
        except InvalidTag as error:
            raise BadMessage("enrolment: not authentic") from error

    def _nonce(self) -> bytes:
        self._count += 1
        return self._count.to_bytes(12, "big")
