"""The one parser of options: every type, every error a sentence with the key and what would do."""

from __future__ import annotations

import errno
from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.errors import ModuleError, OptionError
from stack.core.module import Kind, Module
from stack.core.options import BitRate, Duration, Percent, Size, describe_options, parse_options
from stack.core.stack import Stack
from stack.l2.aggregate import AgrOptions
from stack.l2.bridge_options import BridgeOptions


@attrs.frozen
class Everything:
    text: str = ""
    number: int = attrs.field(default=0, validator=attrs.validators.le(0xFFFF))
    share: Percent = Percent(0.0)
    wait: Duration = Duration(0.0)
    room: Size = Size(0)
    speed: BitRate | None = None
    ratio: float = 0.0
    on_fire: bool = False
    mode: Literal["fast", "safe"] = "safe"
    peers: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    name: str | None = None


@attrs.frozen
class Needy:
    ifname: str
    verbose: bool = False


@attrs.frozen
class Nothing:
    pass


def parse(text: str) -> Everything:
    return parse_options(Everything, text, "mod")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Everything()),
        ("text=a=b c", Everything(text="a=b c")),
        ('text="a,b",number=1', Everything(text="a,b", number=1)),
        ('text=""', Everything()),
        ("text=", Everything()),
        ("number=0x88b5", Everything(number=0x88B5)),
        ("number=-3", Everything(number=-3)),
        ("share=5%", Everything(share=Percent(0.05))),
        ("share=0.5", Everything(share=Percent(0.5))),
        ("wait=20ms", Everything(wait=Duration(0.02))),
        ("wait=1.5s", Everything(wait=Duration(1.5))),
        ("wait=2m", Everything(wait=Duration(120.0))),
        ("wait=0", Everything()),
        ("room=64k", Everything(room=Size(65536))),
        ("room=4096", Everything(room=Size(4096))),
        ("speed=10M", Everything(speed=BitRate(1e7))),
        ("ratio=1.5", Everything(ratio=1.5)),
        ("on_fire", Everything(on_fire=True)),
        ("on-fire=off", Everything()),
        ("mode=fast", Everything(mode="fast")),
        ("peers=a,peers=b,ports=1", Everything(peers=("a", "b"), ports=(1,))),
        ("name=en", Everything(name="en")),
    ],
)
def test_values(text: str, expected: Everything) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("numbr=1", "mod: there is no option numbr; did you mean number?"),
        ("zzz", "mod: there is no option zzz; there are text, number, share, wait, room"),
        ("number", "mod: option number needs a value: number=N"),
        ("number=12x", "mod: number=12x: expected a whole number, like 12 or 0x88b5"),
        ("number=70000", "mod: 'number' must be <= 65535: 70000"),
        ("number=1,number=2", "mod: option number is given twice"),
        ("share=5", "mod: share=5: expected a share between 0 and 1, or with a percent sign, like 5%"),
        ("share=nan", "mod: share=nan: expected a finite number"),
        ("share=101%", "mod: share=101%: expected a share"),
        ("wait=20", "mod: wait=20: expected a quantity, like 20ms, 1.5s or 2m (the unit is needed)"),
        ("wait=20 ms", "mod: wait=20 ms: expected a quantity"),
        ("room=-1", "mod: room=-1: expected a quantity, like 4096, 64k or 8M"),
        ("speed=fast", "mod: speed=fast: expected a quantity, like 64k, 10M or 1G (bits per second)"),
        ("ratio=x", "mod: ratio=x: expected a number, like 1.5"),
        ("on_fire=maybe", "mod: on_fire=maybe: expected on or off"),
        ("mode=slow", "mod: mode=slow: expected one of fast, safe"),
        ("text=a,,number=1", "mod: cannot read options from ',number=1' on"),
        ("text=a,", "mod: nothing follows the last comma"),
        ('text="a', "mod: cannot read options from"),
        ("=1", "mod: cannot read options from"),
        (" ", "mod: cannot read options from"),
        ("text=" + "x" * 5000, "mod: more than 4096 characters"),
    ],
)
def test_errors_are_sentences(text: str, sentence: str) -> None:
    with pytest.raises(OptionError) as raised:
        parse(text)
    assert str(raised.value).startswith(sentence)
    assert isinstance(raised.value, ModuleError)
    assert raised.value.errno == 22


@attrs.frozen
class Chosen:
    """With a validator that raises more than a sentence."""

    word: str = attrs.field(default="a", validator=attrs.validators.in_(("a", "b")))


@attrs.frozen
class Wordless:
    word: str = ""

    def __attrs_post_init__(self) -> None:
        if self.word:
            raise ValueError


def test_a_validators_sentence_and_no_more() -> None:
    with pytest.raises(OptionError) as raised:
        parse_options(Chosen, "word=c", "mod")
    assert str(raised.value) == "mod: 'word' must be in ('a', 'b') (got 'c')"
    with pytest.raises(OptionError, match=r"mod: the options make no sense together"):
        parse_options(Wordless, "word=c", "mod")


def test_words_are_told_as_words() -> None:
    assert ("timeout=fast|slow", "fast") in describe_options(AgrOptions, "agr")
    assert ("proto=rstp|stp", "rstp") in describe_options(BridgeOptions, "bridge")


def test_required_and_none() -> None:
    assert parse_options(Needy, "verbose,ifname=eth0", "packet") == Needy("eth0", True)
    with pytest.raises(OptionError, match=r"packet: option ifname is missing: ifname=TEXT"):
        parse_options(Needy, "verbose", "packet")
    with pytest.raises(OptionError, match=r"lo: there is no option x: lo takes none"):
        parse_options(Nothing, "x", "lo")


def test_description() -> None:
    assert describe_options(Needy, "m") == [("ifname=TEXT", "required"), ("verbose", "")]
    assert ("mode=fast|safe", "safe") in describe_options(Everything, "m")


@attrs.frozen
class Odd:
    table: dict[str, int] = attrs.field(factory=dict)


@attrs.frozen
class Pair:
    two: tuple[int, str] = (1, "")


@attrs.frozen
class Nameless:
    path: "Path"  # type: ignore[name-defined]  # noqa: F821, UP037  # a type that is imported for checkers only


@attrs.define
class Untyped:
    number = attrs.field(default=1)  # type: ignore[var-annotated]  # that is the point


class Plain:
    pass


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (Odd, "Odd.table: dict cannot be an option"),
        (Pair, "Pair.two: of tuples only tuple[X, ...] can be an option"),
        (Nameless, "the types of Nameless cannot be read: NameError: name 'Path' is not defined"),
        (Untyped, "Untyped.number: without a type, it cannot be an option"),
        (Plain, "Plain is not an attrs class"),
        (None, "None is not an attrs class"),
    ],
)
def test_a_class_that_is_none_of_options_is_the_modules_mistake(cls: type[object], sentence: str) -> None:
    module = Module("mine", Kind.PROTOCOL, cls, lambda context, options: pytest.fail("it was attached"))
    for use in (lambda: Stack(System(VirtualDispatch(1), "n"), bytes).load(module), module.usage):
        with pytest.raises(OptionError) as raised:
            use()
        assert str(raised.value) == f"mine has wrong options of its own: {sentence}"
        assert raised.value.errno == errno.EINVAL


@attrs.frozen
class Private:
    _size: int = 1


def test_a_private_field_is_a_key_without_its_underscore() -> None:
    assert parse_options(Private, "size=3", "mine") == Private(3)
    assert describe_options(Private, "mine") == [("size=N", "1")]


@given(st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        parse(text)
    except OptionError as error:
        sentence = str(error)
    else:
        sentence = ""
    assert sentence.isprintable(), repr(sentence)


@given(st.integers(), st.text(st.characters(exclude_characters='"', exclude_categories=["Cs"])), st.lists(st.integers(), max_size=3))
def test_what_is_written_is_read(number: int, text: str, ports: list[int]) -> None:
    number &= 0xFFFF
    written = ",".join([f"number={number}", f'text="{text}"', *(f"ports={port}" for port in ports)])
    assert parse(written) == Everything(number=number, text=text, ports=tuple(ports))
