"""HandshakeState (revision 34, section 5.3): writes and reads the messages of one handshake.

Differs from the specification in one thing that it leaves open: a message that fails to read changes nothing, so a forgery cannot end a
handshake. Ephemeral keys come from the *random* argument, so that a simulation can repeat a handshake byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qnetpy.link.noise.functions import DH_SIZE, TAG_SIZE, BadHandshake, dh, public_key
from qnetpy.link.noise.patterns import Protocol
from qnetpy.link.noise.symmetricstate import SymmetricState
from resmgr.errors import Misuse

MESSAGE_MAX = 65535
"""Section 3."""
PSK_SIZE = 32


class HandshakeState:
    """One end of one handshake. `finished` once all messages are through; then `split`, `transcript` and `derive` are of use."""

    __slots__ = (
        "_ephemeral", "_initiator", "_psks", "_random", "_remote_ephemeral", "_static", "_symmetric",
        "position", "protocol", "remote_static",
    )  # fmt: skip

    def __init__(
        self,
        protocol: Protocol,
        initiator: bool,
        prologue: bytes,
        static: bytes,
        random: Callable[[int], bytes],
        remote_static: bytes | None = None,
        psks: Sequence[bytes] = (),
    ) -> None:
        """*static* is our private key, *remote_static* the other's public key where the pattern needs it beforehand.

        One psk of 32 bytes per psk token, in order. Misuse when a key that the pattern needs is missing.
        """
        pattern = protocol.pattern
        self.protocol = protocol
        self._initiator = initiator
        self._static = static
        self._random = random
        self._ephemeral = b""
        self._remote_ephemeral = b""
        self.remote_static = remote_static if remote_static is not None else b""
        """The other's public key: given, or known after the message with its "s"."""
        self.position = 0
        """Messages written and read so far."""
        self._psks = tuple(psks)
        tokens = sum(message.count("psk") for message in pattern.messages)
        if len(self._psks) != tokens or any(len(psk) != PSK_SIZE for psk in self._psks):
            raise Misuse(f"noise: {protocol.name} needs {tokens} psks of {PSK_SIZE} bytes")
        self._symmetric = SymmetricState(protocol)
        self._symmetric.mix_hash(prologue)
        for known, ours in zip(pattern.premessages, (initiator, not initiator), strict=True):
            if known:
                key = public_key(static) if ours else self.remote_static
                if len(key) != DH_SIZE:
                    raise Misuse(f"noise: {protocol.name} needs the other's public key")
                self._symmetric.mix_hash(key)

    def copy(self) -> HandshakeState:
        """An independent twin, to try a message on."""
        twin = HandshakeState.__new__(HandshakeState)
        for name in HandshakeState.__slots__:
            setattr(twin, name, getattr(self, name))
        twin._symmetric = self._symmetric.copy()
        return twin

    @property
    def finished(self) -> bool:
        return self.position == len(self.protocol.pattern.messages)

    @property
    def transcript(self) -> bytes:
        """The handshake hash (section 11.2): equal on both ends, and unique to this handshake."""
        return self._symmetric.transcript

    def write(self, payload: bytes) -> bytes:
        """The next message, with *payload*. Misuse when it is the other's turn."""
        tokens = self._turn(ours=True)
        symmetric = self._symmetric
        psks = self._next_psks()
        parts: list[bytes] = []
        for token in tokens:
            if token == "e":
                if not self._ephemeral:
                    self._ephemeral = self._random(DH_SIZE)
                parts.append(public_key(self._ephemeral))
                self._mix_ephemeral(symmetric, parts[-1])
            elif token == "s":
                parts.append(symmetric.encrypt_and_hash(public_key(self._static)))
            elif token == "psk":
                symmetric.mix_key_and_hash(next(psks))
            else:
                self._mix_dh(symmetric, token, self._remote_ephemeral, self.remote_static)
        parts.append(symmetric.encrypt_and_hash(payload))
        message = b"".join(parts)
        if len(message) > MESSAGE_MAX:
            raise Misuse("noise: message too long")
        self.position += 1
        return message

    def read(self, message: bytes) -> bytes:
        """The payload of the other's next *message*. BadHandshake changes nothing. Misuse when it is our turn."""
        tokens = self._turn(ours=False)
        symmetric = self._symmetric.copy()
        psks = self._next_psks()
        ephemeral, static = self._remote_ephemeral, self.remote_static
        offset = 0

        def take(size: int) -> bytes:
            nonlocal offset
            if len(message) < offset + size:
                raise BadHandshake("noise: message cut short")
            offset += size
            return message[offset - size : offset]

        for token in tokens:
            if token == "e":
                ephemeral = take(DH_SIZE)
                self._mix_ephemeral(symmetric, ephemeral)
            elif token == "s":
                static = symmetric.decrypt_and_hash(take(DH_SIZE + (TAG_SIZE if symmetric.cipher.key is not None else 0)))
            elif token == "psk":
                symmetric.mix_key_and_hash(next(psks))
            else:
                self._mix_dh(symmetric, token, ephemeral, static)
        payload = symmetric.decrypt_and_hash(message[offset:])
        self._symmetric, self._remote_ephemeral, self.remote_static = symmetric, ephemeral, static
        self.position += 1
        return payload

    def split(self) -> tuple[bytes, bytes]:
        """Transport keys (to send with, to receive with)."""
        if not self.finished:
            raise Misuse("noise: split before the end of the handshake")
        first, second = self._symmetric.split()
        return (first, second) if self._initiator else (second, first)

    def derive(self, label: bytes) -> bytes:
        """See `SymmetricState.derive`."""
        if not self.finished:
            raise Misuse("noise: derive before the end of the handshake")
        return self._symmetric.derive(label)

    def _turn(self, ours: bool) -> tuple[str, ...]:
        if self.finished or (self.position % 2 == 0) is not (self._initiator is ours):
            raise Misuse("noise: message out of turn")
        return self.protocol.pattern.messages[self.position]

    def _mix_ephemeral(self, symmetric: SymmetricState, key: bytes) -> None:
        symmetric.mix_hash(key)
        if self.protocol.pattern.uses_psk:
            # Section 9.2: so that the psk never encrypts under the same key twice.
            symmetric.mix_key(key)

    def _mix_dh(self, symmetric: SymmetricState, token: str, ephemeral: bytes, static: bytes) -> None:
        """The first letter of a DH token is the initiator's key, the second the responder's."""
        ours, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        symmetric.mix_key(dh(self._ephemeral if ours == "e" else self._static, ephemeral if theirs == "e" else static))

    def _next_psks(self) -> Iterator[bytes]:
        """The psks of the message at `position` and after."""
        return iter(self._psks[sum(message.count("psk") for message in self.protocol.pattern.messages[: self.position]) :])
