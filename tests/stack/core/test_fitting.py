"""What a link in memory carries, what a station hands up, and who of nested drivers is asked."""

from __future__ import annotations

from typing import TypeGuard

import pytest

from stack.capability import capability
from stack.core.fitting import fitting, is_accepted, is_wanted
from stack.frame import Frame
from stack.testing.driver import TYPE, frame
from stack.wire.ethernet import BROADCAST, HEADER_SIZE

MAC, OTHER = bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 2))


def test_what_fits() -> None:
    counted: list[str] = []
    plain = {size: frame(MAC, OTHER, bytes(size - HEADER_SIZE)) for size in (HEADER_SIZE, 1514, 1515, 1518)}
    tagged = {size: frame(MAC, OTHER, bytes(size - 18), TYPE, ((0x8100, 5),)) for size in (1514, 1518, 1519)}
    given: list[Frame] = [*plain.values(), *tagged.values(), b"", bytes(HEADER_SIZE - 1), memoryview(plain[1514])]
    assert fitting(given, 1500, counted.append) == [plain[14], plain[1514], tagged[1514], tagged[1518], plain[1514]]
    assert counted == ["too_long", "too_long", "too_long", "too_short", "too_short"]


@pytest.mark.parametrize(
    ("to", "others", "wanted"), [(MAC, False, True), (OTHER, False, False), (OTHER, True, True), (BROADCAST, False, True)]
)
def test_what_is_wanted(to: bytes, others: bool, wanted: bool) -> None:
    for ethertypes, of_type in ((None, True), (frozenset((TYPE,)), True), (frozenset((0x0800,)), False), (frozenset[int](), False)):
        assert is_wanted(frame(to, OTHER, b"x"), MAC, others, ethertypes) is (wanted and of_type)
        assert is_wanted(frame(to, OTHER, b"x", TYPE, ((0x8100, 5),)), MAC, others, ethertypes) is (wanted and of_type)


def test_tags_without_an_end_are_of_no_ethertype() -> None:
    odd = frame(MAC, OTHER, b"", 0x8100)
    assert is_accepted(odd, None)
    assert not is_accepted(odd, frozenset((TYPE, 0x8100)))


class Nested:
    def __init__(self, name: str, can: bool, inner: Nested | None = None) -> None:
        self.name, self.can = name, can
        if inner is not None:
            self.inner = inner


def can(driver: object) -> TypeGuard[Nested]:
    return isinstance(driver, Nested) and driver.can


def test_the_outermost_that_can_is_found() -> None:
    deep = Nested("a", False, Nested("b", True, Nested("c", True)))
    found = capability(deep, can)
    assert found is not None
    assert found.name == "b"
    assert capability(Nested("a", False), can) is None
    assert capability(None, can) is None
