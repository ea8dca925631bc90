"""Conditions on what nodes say of themselves."""

from __future__ import annotations

import random

import pytest

from qnetpy.cli.output import CommandError
from qnetpy.cli.where import NESTED_MAX, Facts, condition

NODE: Facts = {
    "name": "web1",
    "cpus": 4,
    "load": 0.5,
    "memory": 8 << 30,
    "free": 2 << 30,
    "processes": 90,
    "uptime": 3600,
    "arch": "x86_64",
    "os": "linux",
    "release": "6.1.0",
    "roles": frozenset({"build", "admin"}),
}


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("cpus>=4", True),
        ("cpus > 4", False),
        ("cpus!=4", False),
        ("free >= 2G", True),
        ("free>2048M", False),
        ("memory=8g", True),
        ("load<0.75", True),
        ("arch=x86_64", True),
        ("arch==arm64", False),
        ("name ~ 'web*'", True),
        ("name ~ db*", False),
        ("roles=build", True),
        ("role = root", False),
        ("roles != root", True),
        ("roles != build", False),
        ("roles ~ 'adm*'", True),
        ("not cpus>=4", False),
        ("not not cpus>=4", True),
        ("cpus>=8 or load<1 and arch=x86_64", True),
        ("(cpus>=8 or load<1) and arch=arm64", False),
        ("cpus>=4, load<1", True),
        ('os = "linux"', True),
        ("uptime<3600", False),
    ],
)
def test_conditions(text: str, true: bool) -> None:
    assert condition(text)(NODE) is true


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a fact is missing at the end"),
        ("cpus", "what to compare cpus with is missing"),
        ("cpus >=", "a value is missing"),
        ("cpus >= many", "cpus is a number"),
        ("cpus ~ 4", "cpus is a number"),
        ("arch > x", "arch is a text"),
        ("colour = red", "no node says 'colour' of itself"),
        ("cpus >= 4 load < 1", "there is no meaning in 'load' here"),
        ("(cpus >= 4", "a bracket is not closed"),
        ("cpus >= (4", "a value has to follow"),
        ("'cpus' >= 4", "no node says"),
        ("name = 'web", "is not understood"),
        ("(" * 2000, "more than 50 brackets"),
        ("cpus and 4", "a comparison has to follow cpus"),
    ],
)
def test_what_is_no_condition(text: str, said: str) -> None:
    with pytest.raises(CommandError, match=said.replace("(", "\\(")) as caught:
        condition(text)
    assert caught.value.status == 2


def test_anything_is_a_condition_or_an_error() -> None:
    rng = random.Random(3)
    words = ["cpus", ">=", "4", "(", ")", "and", "or", "not", ",", "name", "~", "'a'", "roles", "!=", "2G", "=", "\\", '"']
    for _ in range(3000):
        text = " ".join(rng.choices(words, k=rng.randrange(12)))
        try:
            condition(text)(NODE)
        except CommandError:
            pass
    assert condition("(" * (NESTED_MAX - 1) + "cpus=4" + ")" * (NESTED_MAX - 1))(NODE)
