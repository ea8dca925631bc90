"""Filters by MAC address: rules, masks, order, and the hooks on both ways."""

from __future__ import annotations

import pytest

from stack.core.errors import ModuleError
from stack.core.module import Kind
from stack.frame import Frame
from stack.l2.macfilter import RULES_MAX, MacFilter, parse_rule
from stack.testing.driver import frame
from stack.testing.machines import World
from stack.wire.ethernet import BROADCAST

ONE, TWO = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def made(*rules: str, default: bool = True) -> MacFilter:
    return MacFilter([parse_rule(rule) for rule in rules], default)


def passes(filters: MacFilter, to: bytes, source: bytes, incoming: bool = True, interface: str = "en0") -> bool:
    return bool(filters.passed(interface, incoming, [frame(to, source, b"x")]))


def test_the_first_rule_that_fits_counts() -> None:
    filters = made("pass in on en0 src 02:00:00:00:00:01 dst 02:00:00:00:00:02", "block in on en0 src 02:00:00:00:00:01")
    assert passes(filters, TWO, ONE)
    assert not passes(filters, BROADCAST, ONE)
    assert passes(filters, BROADCAST, TWO)
    assert [rule.matched for rule in filters.rules] == [1, 1]


def test_masks() -> None:
    filters = made("block in on en0 src 02:00:00:00:00:00/ff:ff:ff:00:00:00", "block in on en0 dst 01:00:00:00:00:00/01:00:00:00:00:00")
    assert not passes(filters, TWO, ONE)
    assert passes(filters, TWO, bytes.fromhex("0a0000000001"))
    assert not passes(filters, BROADCAST, bytes.fromhex("0a0000000001"))


def test_direction_interface_and_default() -> None:
    filters = made("block out on en0 dst 02:00:00:00:00:02", "pass in on en1", default=False)
    assert not passes(filters, TWO, ONE, incoming=False)
    assert passes(filters, TWO, ONE, interface="en1")
    assert not passes(filters, TWO, ONE)
    assert not passes(made("block in on en0", default=True), TWO, ONE)


def test_order_and_short_frames() -> None:
    filters = made("block in on en0 src 02:00:00:00:00:02")
    batch: list[Frame] = [frame(BROADCAST, ONE if number % 3 else TWO, bytes((number,))) for number in range(30)]
    assert filters.passed("en0", True, batch) == [one for one in batch if one[6:12] == ONE]
    assert filters.passed("en0", True, [b"short"]) == []


@pytest.mark.parametrize(
    "text",
    ["", "block", "block in on", "drop in on en0", "block up on en0", "block in at en0", "block in on en0 src", "block in on en0 src x"]
    + ["block in on en0 src 02:00:00:00:00:01 src 02:00:00:00:00:01", "block in on en0 to 02:00:00:00:00:01"]
    + ["block in on en0 src 02:00:00:00:00:01/x"],
)
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match=r"no rule|not a MAC"):
        parse_rule(text)


def test_the_module() -> None:
    world = World(2)
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    bridge.stack.load("bridge", "add=en0,add=en1")
    rules = f'rule="block in on en0 src {a.macs["en0"].hex(":")}",rule="block out on en1 dst ff:ff:ff:ff:ff:ff"'
    loaded = bridge.stack.load("stack.l2.macfilter", rules, kind=Kind.PROTOCOL)
    a.send("en0", b.macs["en0"])
    bridge.send("en1", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == []
    assert bridge.interface("en0").drops == {"blocked_in": 1}
    assert bridge.interface("en1").drops == {"blocked_out": 1}
    bridge.stack.unload(loaded)
    sent = a.send("en0", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("en0", sent)]


def test_wrong_options_are_a_sentence() -> None:
    machine = World(1).machine("a", 0)
    with pytest.raises(ModuleError, match="macfilter: 'dance' is no rule"):
        machine.stack.load("stack.l2.macfilter", "rule=dance")
    assert RULES_MAX == 1024
