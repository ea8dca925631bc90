"""Invitation codes: what people type, and which slips are found before a try is spent."""

from __future__ import annotations

import os
import random

import pytest

from qnetpy.enrol.code import ALPHABET, SIZE, BadCode, Code, make_code, parse_code


def test_a_code_is_read_as_it_was_shown() -> None:
    for seed in range(200):
        code = make_code(random.Random(seed).randbytes)
        assert len(code.text) == SIZE
        assert parse_code(code.spoken()) == code
        assert code.spoken().startswith(code.public + "-")


def test_people_may_type_it_in_their_way() -> None:
    code = make_code(lambda size: bytes((0, 1, 20, 5, 6, 7, 8, 9))[:size])

    assert code.text.startswith("01m56789")
    spoken = code.spoken()
    for typed in (
        spoken.upper(),
        spoken.replace("-", ""),
        spoken.replace("-", " "),
        spoken.replace("0", "o", 1),
        spoken.replace("1", "l", 1),
        f" {spoken}\n",
    ):
        assert parse_code(typed) == code


def test_every_wrong_character_and_every_swap_is_found() -> None:
    chance = random.Random(1)
    for _ in range(20):
        text = make_code(chance.randbytes).text
        for place in range(SIZE):
            for letter in ALPHABET:
                if letter != text[place]:
                    with pytest.raises(BadCode, match="typing error"):
                        parse_code(text[:place] + letter + text[place + 1 :])
        for place in range(SIZE - 1):
            swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
            if swapped != text:
                with pytest.raises(BadCode, match="typing error"):
                    parse_code(swapped)


@pytest.mark.parametrize(
    ("typed", "why"), [("", "9 characters"), ("k7p-3mt-9x", "has 8"), ("k7p-3mt-9xu", "no 'u'"), ("k7p/3mt-9xq", "no '/'")]
)
def test_what_is_no_code_is_said(typed: str, why: str) -> None:
    with pytest.raises(BadCode, match=why):
        parse_code(typed)


def test_a_code_can_be_made_for_a_public_part() -> None:
    assert make_code(os.urandom, "abc").public == "abc"


def test_a_code_is_not_printed_by_accident() -> None:
    assert "zzz" not in repr(Code("zzzzzzzzz"))


def test_codes_use_all_their_bits() -> None:
    seen = [make_code(random.Random(seed).randbytes).text for seed in range(500)]
    for place in range(SIZE):
        assert {text[place] for text in seen} == set(ALPHABET)
