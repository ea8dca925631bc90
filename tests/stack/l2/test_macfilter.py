"""Filters by MAC address: rules, masks, order, and the hooks on both ways."""

from __future__ import annotations

import pytest

from stack.core.errors import ModuleError
from stack.core.hooks import Point
from stack.core.loaded import Loaded
from stack.core.module import Kind
from stack.core.specific import specific_module
from stack.frame import Frame
from stack.l2.macfilter import RULES_MAX, MacFilter, parse_rule
from stack.testing.driver import frame
from stack.testing.machines import Machine, World
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


def ask(loaded: Loaded, command: str, **arguments: object) -> None:
    found = specific_module(loaded.attached)
    assert found is not None
    loaded.guard.ask("request", found.set_specific, command, arguments)


def told(loaded: Loaded) -> dict[str, object]:
    found = specific_module(loaded.attached)
    assert found is not None
    facts = found.get_specific()
    return {"default": facts["default"], "rules": [row["rule"] for row in facts["rules"]]}  # type: ignore[attr-defined]  # facts are for JSON


def macfilter(machine: Machine) -> Loaded:
    (found,) = [one for one in machine.stack.loaded if one.module.name == "macfilter"]
    return found


def test_rules_change_while_frames_go() -> None:
    world = World(1)
    a, b = world.machine("a", 0), world.machine("b", 0)
    loaded = b.stack.load("stack.l2.macfilter", "")
    rule = f"block  in on en0 src {a.macs['en0'].hex(':')}"

    def arrives() -> bool:
        before = len(b.seen)
        a.send("en0", b.macs["en0"])
        world.dispatch.run_for(0.1)
        return len(b.seen) > before

    assert arrives()
    ask(loaded, "rule", rule=rule)
    assert not arrives()
    ask(loaded, "default", value="block")
    ask(loaded, "delrule", rule=rule)
    assert not arrives()
    ask(loaded, "rule", rule=f"pass in on en0 src {a.macs['en0'].hex(':')}")
    ask(loaded, "rule", rule="pass out on en1")
    assert arrives()
    ask(loaded, "flushrule", interface="en0")
    assert told(loaded) == {"default": "block", "rules": ["pass out on en1"]}
    assert not arrives()
    ask(loaded, "default", value="pass")
    assert arrives()
    assert loaded.guard.failures == {}
    b.stack.unload(loaded)
    assert b.stack.hooks() == []


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("rule", {"rule": "dance"}, "is no rule"),
        ("rule", {}, "rule is missing"),
        ("delrule", {"rule": "block in on en0"}, "there is no rule 'block in on en0'"),
        ("default", {"value": "maybe"}, "pass or block"),
        ("flushrule", {"interface": 5}, "interface is missing"),
        ("dance", {}, "there is no request dance"),
    ],
)
def test_a_wrong_request_changes_nothing(command: str, arguments: dict[str, object], said: str) -> None:
    machine = World(1).machine("a", 0)
    loaded = machine.stack.load("stack.l2.macfilter", "rule=pass in on en0")
    with pytest.raises(ModuleError, match=said):
        ask(loaded, command, **arguments)
    assert told(loaded) == {"default": "pass", "rules": ["pass in on en0"]}
    assert loaded.guard.failures == {}


def test_rules_have_a_bound_at_run_time_too() -> None:
    machine = World(1).machine("a", 0)
    loaded = machine.stack.load("stack.l2.macfilter", "")
    for _ in range(RULES_MAX):
        ask(loaded, "rule", rule="pass in on en1")
    with pytest.raises(ModuleError, match="more than 1024"):
        ask(loaded, "rule", rule="pass in on en2")
    facts = specific_module(loaded.attached)
    assert facts is not None
    assert len(facts.get_specific()["rules"]) == RULES_MAX  # type: ignore[arg-type]  # facts are for JSON


def test_no_frame_goes_past_while_rules_change() -> None:
    """Who carries frames past the hooks looks whenever one comes or goes: it must see the filter all the time."""
    machine = World(2).machine("a", 0, 1)
    seen: list[set[Point]] = []

    def look() -> None:
        seen.append({entry.point for entry, module in machine.stack.hooks() if module == "macfilter" and entry.sees("en0")})

    loaded = machine.stack.load("stack.l2.macfilter", 'rule="block in on en0",rule="block out on en0"')
    machine.stack.on_hooks(look)
    ask(loaded, "rule", rule="block in on en1")
    ask(loaded, "flushrule", interface="en1")
    ask(loaded, "default", value="block")
    ask(loaded, "default", value="pass")
    assert len(seen) >= 4
    assert all(points == {Point.IN, Point.OUT} for points in seen)
    assert len([entry for entry, _ in machine.stack.hooks() if entry.name == "macfilter"]) == 2
    machine.stack.unload(loaded)
    assert seen[-1] == set()


def test_what_was_set_at_run_time_survives_a_restart() -> None:
    """A station that was shut out is not let in again because a callback raised."""
    world = World(1)
    a, b = world.machine("a", 0), world.machine("b", 0)
    loaded = b.stack.load("stack.l2.macfilter", "rule=block out on en0 dst ff:ff:ff:ff:ff:ff,restart=3")
    ask(loaded, "rule", rule=f"pass in on en0 src {a.macs['en0'].hex(':')}")
    ask(loaded, "flushrule", interface="en9")
    ask(loaded, "default", value="block")
    ask(loaded, "delrule", rule="block out on en0 dst ff:ff:ff:ff:ff:ff")
    before = told(loaded)

    def boom() -> None:
        raise RuntimeError("boom")

    loaded.dispatch.call_soon(boom)
    world.dispatch.run_for(1.5)
    again = macfilter(b)
    assert again is not loaded
    assert told(again) == before == {"default": "block", "rules": [f"pass in on en0 src {a.macs['en0'].hex(':')}"]}
    a.send("en0", b.macs["en0"])
    world.machine("c", 0).send("en0", b.macs["en0"])
    world.dispatch.run_for(1)
    assert [one[6:12] for _, one in b.seen] == [a.macs["en0"]]


def test_a_rule_for_an_interface_that_is_not_there_says_so_and_holds_when_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    world = World(2)
    a, b = world.machine("a", 0), world.machine("b", 0)
    loaded = b.stack.load("stack.l2.macfilter", 'rule="block in on en0",rule="block in on late0"')
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [
        "b: macfilter: there is no interface late0; its rules hold when it comes"
    ]
    found = specific_module(loaded.attached)
    assert found is not None

    def present() -> list[object]:
        return [row["present"] for row in found.get_specific()["rules"]]  # type: ignore[attr-defined]  # facts are for JSON

    assert present() == [True, False]
    b.stack.load(world.hubs[0].module(), "name=late0,mac=02:00:00:00:00:77")
    assert present() == [True, True]
    a.send("en0", bytes.fromhex("020000000077"))
    world.dispatch.run_for(0.1)
    assert b.interface("late0").drops == {"blocked_in": 1}
    ask(loaded, "rule", rule="block out on en0")
    assert len(caplog.records) == len([one for one in caplog.records if "late0; its" not in one.getMessage()]) + 1, "it is said once"
