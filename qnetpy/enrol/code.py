"""Invitation codes: nine characters for people, `k7p-3mt-9xq`.

    public part (3)   which invitation: it routes, and is told before anything is proven
    secret part (5)   25 random bits; what the password-authenticated key exchange is about
    check (1)         over the eight before it, so that a slip of the tongue is found before it costs a try

The alphabet is Crockford's base 32: no `i l o u`, and what sounds or looks alike is read as what was meant. The check is a sum over GF(32)
in which each place has its own weight: it finds every single wrong character and every swap of two. It is no part of the public part,
since it would tell five bits of the secret.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PUBLIC_SIZE = 3
SECRET_SIZE = 5
SIZE = PUBLIC_SIZE + SECRET_SIZE + 1
GROUP = 3
"""Characters between hyphens."""
_MEANT = {"o": "0", "i": "1", "l": "1"}
_POLYNOMIAL = 0b100101
"""x^5 + x^2 + 1, in which x is a generator of GF(32)."""


class BadCode(ValueError):
    """What was typed is no code. The text is a sentence for people."""


@attrs.frozen
class Code:
    """An invitation's code. Its text is a secret: it is shown once, by the command that made it, and never logged."""

    text: str = attrs.field(repr=False)
    """SIZE characters of ALPHABET, without hyphens."""

    @property
    def public(self) -> str:
        """The part that routes."""
        return self.text[:PUBLIC_SIZE]

    @property
    def password(self) -> bytes:
        """What both ends put into the key exchange."""
        return self.text.encode()

    def spoken(self) -> str:
        """As people see it, in groups."""
        return "-".join(self.text[place : place + GROUP] for place in range(0, SIZE, GROUP))


def make_code(random: Callable[[int], bytes], public: str | None = None) -> Code:
    """A new code from *random*, which gives that many random bytes; with *public*, one that routes there."""
    numbers = [byte & 31 for byte in random(PUBLIC_SIZE + SECRET_SIZE)]
    text = "".join(ALPHABET[number] for number in numbers)
    if public is not None:
        text = public + text[PUBLIC_SIZE:]
    return Code(text + _check(text))


def parse_code(typed: str) -> Code:
    """What somebody typed: any case, with or without hyphens and blanks. BadCode says what is wrong with it."""
    letters = [_MEANT.get(letter, letter) for letter in typed.lower() if letter not in "- \t\n"]
    wrong = [letter for letter in letters if letter not in ALPHABET]
    if wrong:
        raise BadCode(f"a code has no {wrong[0]!r} in it")
    if len(letters) != SIZE:
        raise BadCode(f"a code has {SIZE} characters, such as k7p-3mt-9xq; this one has {len(letters)}")
    text = "".join(letters)
    if _check(text[:-1]) != text[-1]:
        raise BadCode("the code has a typing error in it; nothing was tried")
    return Code(text)


def _check(text: str) -> str:
    """The check character of eight others."""
    total = 0
    for letter in reversed(text):
        total = _times_x(total ^ ALPHABET.index(letter))
    return ALPHABET[total]


def _times_x(value: int) -> int:
    value <<= 1
    return value ^ _POLYNOMIAL if value & 32 else value
