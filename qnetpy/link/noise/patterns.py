"""Handshake patterns XX and IK with their psk modifiers (revision 34, sections 7.5 and 9), and protocol names (section 8)."""

from __future__ import annotations

import re

import attrs

from qnetpy.link.noise.functions import CIPHERS, HASHES, Cipher, Hash


@attrs.frozen
class Pattern:
    """`premessages` says which static keys are known beforehand (initiator's, responder's); `messages` alternate, the initiator's first."""

    name: str
    premessages: tuple[bool, bool]
    messages: tuple[tuple[str, ...], ...]

    @property
    def uses_psk(self) -> bool:
        return any("psk" in tokens for tokens in self.messages)


XX = Pattern("XX", (False, False), (("e",), ("e", "ee", "s", "es"), ("s", "se")))
IK = Pattern("IK", (False, True), (("e", "es", "s", "ss"), ("e", "ee", "se")))
PATTERNS = {"XX": XX, "IK": IK}


@attrs.frozen
class Protocol:
    """What a protocol name stands for."""

    name: str
    pattern: Pattern
    cipher: Cipher
    hash: Hash


def modify(pattern: Pattern, modifiers: tuple[str, ...]) -> Pattern:
    """*pattern* with a psk token put in for each of *modifiers*: psk0 before the first message, pskN after the Nth (section 9.3)."""
    messages = list(pattern.messages)
    for modifier in modifiers:
        place = int(modifier.removeprefix("psk"))
        if place == 0:
            messages[0] = ("psk", *messages[0])
        else:
            messages[place - 1] = (*messages[place - 1], "psk")
    return Pattern(pattern.name + "+".join(modifiers), pattern.premessages, tuple(messages))


def parse_name(name: str) -> Protocol:
    """The protocol called *name*, such as Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s. LookupError, as a sentence, when we do not have it."""
    match = re.fullmatch(r"Noise_([A-Z]+)((?:psk\d(?:\+psk\d)*)?)_25519_(\w+)_(\w+)", name, re.ASCII)
    if match is None or match[1] not in PATTERNS or match[3] not in CIPHERS or match[4] not in HASHES:
        raise LookupError(f"there is no Noise protocol {name} here")
    pattern = PATTERNS[match[1]]
    modifiers = tuple(match[2].split("+")) if match[2] else ()
    if any(int(modifier[3:]) > len(pattern.messages) for modifier in modifiers) or len(set(modifiers)) != len(modifiers):
        raise LookupError(f"there is no Noise protocol {name} here")
    return Protocol(name, modify(pattern, modifiers), CIPHERS[match[3]], HASHES[match[4]])
