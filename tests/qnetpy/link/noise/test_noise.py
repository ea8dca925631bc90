"""Noise: published vectors, an independent implementation, and what a forged, cut or misplaced message does."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from noise.connection import Keypair, NoiseConnection

from qnetpy.link.noise.cipherstate import CipherState
from qnetpy.link.noise.functions import BadHandshake, public_key
from qnetpy.link.noise.handshakestate import HandshakeState
from qnetpy.link.noise.patterns import PATTERNS, modify, parse_name
from resmgr.errors import BadMessage, Misuse

Vector: TypeAlias = "dict[str, str | bool | list[str] | list[dict[str, str]]]"

# Published with cacophony (XX) and snow (the others), for the patterns that links use.
EMBEDDED: list[Vector] = json.loads((Path(__file__).parent / "vectors.json").read_text())
FOLDER = Path(__file__).parents[5] / "shared/data/noise"
FILES = ("cacophony.txt", "snow.txt", "snow-extended.txt", "noise-c-basic.txt")


def name_of(vector: Vector) -> str:
    return str(vector.get("protocol_name") or vector["name"])


def published() -> Iterator[Vector]:
    """Vectors of files that lie beside the project on some machines; tests pass without them."""
    for file in FILES:
        if (FOLDER / file).exists():
            for vector in json.loads((FOLDER / file).read_text())["vectors"]:
                try:
                    parse_name(name_of(vector))
                except LookupError:
                    continue
                yield vector


def end(vector: Vector, initiator: bool) -> HandshakeState:
    side, other = ("init", "resp") if initiator else ("resp", "init")

    def value(key: str) -> bytes:
        text = vector.get(key, "")
        assert isinstance(text, str)
        return bytes.fromhex(text)

    ephemeral = value(f"{side}_ephemeral")
    psks = vector.get(f"{side}_psks") or ([vector[f"{side}_psk"]] if f"{side}_psk" in vector else [])
    assert isinstance(psks, list)
    return HandshakeState(
        parse_name(name_of(vector)),
        initiator,
        value(f"{side}_prologue"),
        value(f"{side}_static"),
        lambda size: ephemeral[:size],
        value(f"{side}_remote_static") or (public_key(value(f"{other}_static")) if value(f"{other}_static") else None),
        [bytes.fromhex(str(psk)) for psk in psks],
    )


def check(vector: Vector) -> None:
    ends = [end(vector, True), end(vector, False)]
    ciphers: list[list[CipherState]] = []
    messages = vector["messages"]
    assert isinstance(messages, list)
    for number, message in enumerate(messages):
        assert isinstance(message, dict)
        payload, ciphertext = bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"])
        sender, receiver = number % 2, 1 - number % 2
        if not ends[0].finished:
            assert ends[sender].write(payload) == ciphertext
            assert ends[receiver].read(ciphertext) == payload
            continue
        if not ciphers:
            ciphers = [[CipherState(one.protocol.cipher, key) for key in one.split()] for one in ends]
        assert ciphers[sender][0].encrypt(b"", payload) == ciphertext
        assert ciphers[receiver][1].decrypt(b"", ciphertext) == payload
    assert ciphers
    assert ends[0].transcript == ends[1].transcript
    if "handshake_hash" in vector:
        assert ends[0].transcript.hex() == vector["handshake_hash"]


@pytest.mark.parametrize("vector", EMBEDDED, ids=name_of)
def test_embedded_vectors(vector: Vector) -> None:
    check(vector)


def test_published_vectors() -> None:
    count = 0
    for vector in published():
        try:
            check(vector)
        except AssertionError as error:
            raise AssertionError(f"vector {name_of(vector)}") from error
        count += 1
    assert count == (112 if FOLDER.exists() else 0)


def pair(name: str, seed: int = 1) -> tuple[HandshakeState, HandshakeState]:
    chance = random.Random(seed)
    statics = [chance.randbytes(32) for _ in range(2)]
    publics = [public_key(static) for static in statics]
    protocol = parse_name(name)
    psks = [chance.randbytes(32)] * sum(message.count("psk") for message in protocol.pattern.messages)
    known = protocol.pattern.premessages[1]
    return (
        HandshakeState(protocol, True, b"prologue", statics[0], chance.randbytes, publics[1] if known else None, psks),
        HandshakeState(protocol, False, b"prologue", statics[1], chance.randbytes, None, psks),
    )


OURS = [
    f"Noise_{pattern}_25519_{cipher}_{digest}"
    for pattern in ("XX", "XXpsk0", "XXpsk3", "IK", "IKpsk0", "IKpsk2")
    for cipher in ("ChaChaPoly", "AESGCM")
    for digest in ("BLAKE2s", "SHA256")
]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("we_initiate", [True, False])
def test_an_independent_implementation_agrees(name: str, we_initiate: bool) -> None:
    chance = random.Random(f"{name} {we_initiate}")
    statics = [chance.randbytes(32) for _ in range(2)]
    publics = [public_key(static) for static in statics]
    protocol = parse_name(name)
    psks = [chance.randbytes(32)] if protocol.pattern.uses_psk else []
    known = protocol.pattern.premessages[1]
    ours, theirs = (0, 1) if we_initiate else (1, 0)
    one = HandshakeState(
        protocol, we_initiate, b"p", statics[ours], chance.randbytes, publics[theirs] if known and we_initiate else None, psks
    )
    two = NoiseConnection.from_name(name.encode())
    two.set_keypair_from_private_bytes(Keypair.STATIC, statics[theirs])
    if known and not we_initiate:
        two.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, publics[ours])
    two.set_prologue(b"p")
    if psks:
        two.set_psks(psks=psks)
    if we_initiate:
        two.set_as_responder()
    else:
        two.set_as_initiator()
    two.start_handshake()
    turn = we_initiate
    while not one.finished:
        payload = chance.randbytes(chance.randrange(100))
        if turn:
            assert bytes(two.read_message(one.write(payload))) == payload
        else:
            assert one.read(bytes(two.write_message(payload))) == payload
        turn = not turn
    assert one.transcript == two.get_handshake_hash()
    send, receive = (CipherState(protocol.cipher, key) for key in one.split())
    for payload in (b"", b"one", bytes(1000)):
        assert two.decrypt(send.encrypt(b"", payload)) == payload
        assert receive.decrypt(b"", two.encrypt(payload)) == payload
    assert one.remote_static == publics[theirs]


def run(one: HandshakeState, two: HandshakeState, damage: Callable[[int, bytes], None]) -> None:
    """A handshake in which *damage* sees each message before its receiver does."""
    sender, receiver = one, two
    while not one.finished:
        payload = bytes((one.position,)) * 20
        message = sender.write(payload)
        before = receiver.transcript, receiver.remote_static, receiver.position
        damage(one.position - 1 if sender is one else two.position - 1, message)
        assert (receiver.transcript, receiver.remote_static, receiver.position) == before
        assert receiver.read(message) == payload
        sender, receiver = receiver, sender
    assert one.split() == two.split()[::-1]
    assert one.derive(b"x") == two.derive(b"x") != one.derive(b"y")
    assert one.derive(b"x") not in one.split()


@pytest.mark.parametrize("name", ["Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s", "Noise_IKpsk0_25519_ChaChaPoly_BLAKE2s"])
def test_a_bad_message_changes_nothing(name: str) -> None:
    """Cut at every length, and with each byte changed: refused, and the handshake then goes on with the real message."""
    one, two = pair(name)

    def damage(position: int, message: bytes) -> None:
        receiver = two if position % 2 == 0 else one
        for length in range(len(message)):
            with pytest.raises(BadHandshake):
                receiver.read(message[:length])
            changed = bytearray(message)
            changed[length] ^= 0x40
            with pytest.raises(BadHandshake):
                receiver.read(bytes(changed))
        with pytest.raises(BadHandshake):
            receiver.read(message + b"\0")

    run(one, two, damage)
    assert issubclass(BadHandshake, BadMessage)


def test_a_public_key_of_small_order_is_refused() -> None:
    one, two = pair("Noise_XX_25519_ChaChaPoly_BLAKE2s")
    one.write(b"")
    two.read(bytes(32))
    with pytest.raises(BadHandshake, match="small order"):
        two.write(b"")


@pytest.mark.parametrize("difference", ["prologue", "psk", "name"])
def test_ends_that_differ_do_not_agree(difference: str) -> None:
    def state(initiator: bool) -> HandshakeState:
        odd = not initiator
        return HandshakeState(
            parse_name(f"Noise_XXpsk0_25519_ChaChaPoly_{'SHA256' if odd and difference == 'name' else 'BLAKE2s'}"),
            initiator,
            b"other" if odd and difference == "prologue" else b"prologue",
            bytes([1]) * 32,
            random.Random(initiator).randbytes,
            None,
            [bytes([9 if odd and difference == "psk" else 8]) * 32],
        )

    with pytest.raises(BadHandshake):
        state(False).read(state(True).write(b"hello"))


def test_misuse_is_told() -> None:
    one, two = pair("Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s")
    for call in (one.split, lambda: one.derive(b"x"), lambda: one.read(b""), lambda: two.write(b"")):
        with pytest.raises(Misuse):
            call()
    with pytest.raises(Misuse, match="too long"):
        one.write(bytes(65536))
    protocol = parse_name("Noise_IKpsk0_25519_ChaChaPoly_BLAKE2s")
    with pytest.raises(Misuse, match="public key"):
        HandshakeState(protocol, True, b"", bytes(32), random.Random(1).randbytes, None, [bytes(32)])
    with pytest.raises(Misuse, match="psks"):
        HandshakeState(protocol, True, b"", bytes(32), random.Random(1).randbytes, bytes(32))


def test_names() -> None:
    assert modify(PATTERNS["XX"], ("psk0", "psk3")).messages == (("psk", "e"), ("e", "ee", "s", "es"), ("s", "se", "psk"))
    assert parse_name("Noise_IKpsk2_25519_AESGCM_SHA256").pattern.messages[1][-1] == "psk"
    for name in (
        "",
        "Noise_NN_25519_ChaChaPoly_BLAKE2s",
        "Noise_XX_448_ChaChaPoly_BLAKE2s",
        "Noise_XXpsk4_25519_ChaChaPoly_BLAKE2s",
        "Noise_XXpsk0+psk0_25519_ChaChaPoly_BLAKE2s",
        "Noise_XX_25519_None_BLAKE2s",
    ):
        with pytest.raises(LookupError, match="no Noise protocol"):
            parse_name(name)


def test_rekey_and_the_end_of_nonces() -> None:
    cipher = parse_name("Noise_XX_25519_ChaChaPoly_BLAKE2s").cipher
    one, two = CipherState(cipher, bytes(32)), CipherState(cipher, bytes(32))
    one.rekey()
    with pytest.raises(BadHandshake):
        two.decrypt(b"", one.encrypt(b"", b"x"))
    two.rekey()
    two.nonce = 1
    assert two.decrypt(b"", one.encrypt(b"", b"y")) == b"y"
    one.nonce = 2**64 - 1
    with pytest.raises(Misuse, match="no nonces left"):
        one.encrypt(b"", b"")
    with pytest.raises(Misuse):
        CipherState(cipher).rekey()
