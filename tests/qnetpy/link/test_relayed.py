"""Handshakes of honest nodes that somebody carries to where others are, and members that are where others are: who keeps which address.

In virtual time with real frames. docs/protocol/link.md, "Whose an address is".
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from qnetpy.identity.authority import issue_identity, make_authority
from qnetpy.link.calls import CALLS_MAX, RETRY_KNOWN, Hint, Waiting
from qnetpy.link.constants import ATTEMPT_TIMEOUT, RENEW_AFTER
from qnetpy.link.testing import WALL, Caller, Wire, address, agreed
from qnetpy.link.wire import DATA, FINAL, INITIATION, RESPONSE, Address
from qnetpy.testing.links import HEAD, Net, Station

Block = Callable[[str, str, bytes], bool]


def mac(station: Station, interface: str = "en0") -> bytes:
    return station.ports[interface][0]


def carried(net: Net, a: Station, m: Station, there: bytes, *, data: bool = False) -> Block:
    """Handshake frames of *a* to *m* arrive as if from *there*, and those of *m* to *there* go to *a*; with *data*, DATA as well."""

    def block(sender: str, cable: str, frame: bytes) -> bool:
        if frame[HEAD] == DATA and not data:
            return False
        if sender == a.name and frame[:6] == mac(m):
            net.inject(cable, frame[:6] + there + frame[12:])
            return True
        if sender == m.name and frame[:6] == there:
            net.inject(cable, mac(a) + frame[6:])
        return False

    return block


def owner(m: Station, there: bytes) -> str:
    return m.machine._calls.owner(("en0", there))


def trio() -> tuple[Net, Station, Station, Station]:
    net = Net()
    return net, net.add("a", 1), net.add("c", 3), net.add("b", 7)


@pytest.mark.parametrize("data", [False, True])
def test_new_keys_that_are_asked_for_from_anothers_address_take_it_from_nobody(data: bool) -> None:
    net, a, c, m = trio()
    net.up(a, c, m)
    before = m.machine.handshake_counters["established"]
    net.block = carried(net, a, m, mac(c), data=data)
    a.machine.rekey("asked by the test")
    assert net.run(5.0, lambda: m.machine.handshake_counters["established"] > before)
    net.run(3.0)
    assert owner(m, mac(c)) == "c"
    assert m.machine._calls.addresses("c") == [("en0", mac(c))]
    assert owner(m, mac(a)) == "a"
    net.block = lambda sender, cable, frame: False
    c.on = False
    net.run(6.0)
    assert "c" not in m.owner.links
    c.on = True
    net.block = lambda sender, cable, frame: sender == "c" and frame[HEAD] == INITIATION
    assert net.run(RETRY_KNOWN + 2.0, lambda: "c" in m.owner.links), "it was not called any more"


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("data", [False, True])
def test_a_first_contact_that_is_carried_there_takes_nothing_and_the_caller_is_reached(up: bool, data: bool) -> None:
    net, a, c, m = trio()
    net.up(c, m)
    if not up:
        c.on = False
        net.run(6.0)
        assert "c" not in m.owner.links
    net.block = carried(net, a, m, mac(c), data=data)
    net.hint(a, m)
    assert net.run(2.0, lambda: "a" in m.owner.links and "b" in a.owner.links)
    net.run(2.0)
    assert owner(m, mac(c)) == "c"
    assert owner(m, mac(a)) == ("" if data else "a"), "its own address, which it names, if it is not kept from there"
    net.send(m, "a", b"to a")
    net.send(a, "b", b"to m")
    net.run(1.0)
    assert (a.owner.got, m.owner.got) == ([b"to a"], [b"to m"])
    assert [line for line in m.owner.log if line.startswith("a ")] == ["a up"]


def test_where_nobody_was_met_somebody_can_still_be_called() -> None:
    net, a, c, m = trio()
    net.block = carried(net, a, m, mac(c))
    net.hint(a, m)
    assert net.run(2.0, lambda: "a" in m.owner.links)
    net.run(1.0)
    assert owner(m, mac(c)) == ""
    net.block = lambda sender, cable, frame: sender == "c" and frame[HEAD] == INITIATION
    net.hint(m, c)
    assert net.run(2.0, lambda: "c" in m.owner.links)
    assert owner(m, mac(c)) == "c"


def test_a_member_that_is_where_another_answers_does_not_get_its_address() -> None:
    """Two cards with one address on a hub; both hear everything."""
    net = Net()
    c, m = net.add("c", 3), net.add("b", 7)
    net.up(c, m)
    a = net.add("a", 3)
    net.hint(a, m)
    assert net.run(2.0, lambda: "a" in m.owner.links)
    net.run(2.0)
    assert mac(a) == mac(c)
    assert m.machine.counters["claimed_station"] >= 1
    assert owner(m, mac(c)) == "c"
    assert len(m.owner.links["c"].paths) == len(m.owner.links["a"].paths) == 1
    a.on = False
    c.on = False
    net.run(6.0)
    c.on = True
    net.block = lambda sender, cable, frame: sender == "c" and frame[HEAD] == INITIATION
    assert net.run(ATTEMPT_TIMEOUT + RETRY_KNOWN + 2.0, lambda: "c" in m.owner.links)


def test_a_card_that_goes_into_another_machine_is_that_ones_while_its_old_node_is_up() -> None:
    net = Net()
    c, m = net.add("c", 3, ("one", "two")), net.add("b", 7, ("one", "two"))
    net.up(c, m)
    net.run(3.0)
    there = mac(c)
    del c.ports["en0"]
    c.machine.interface_gone("en0", net.now)
    net.flush(c)
    a = net.add("a", 3, ("one",))
    assert mac(a) == there
    net.hint(a, m)
    assert net.run(3.0, lambda: owner(m, there) == "a")
    assert "c" in m.owner.links


def test_a_machine_that_is_another_node_now_is_that_ones_though_nobody_said_goodbye() -> None:
    net, _, c, m = trio()
    net.up(c, m)
    c.on = False
    a = net.add("d", 3)
    net.hint(a, m)
    assert net.run(1.0, lambda: "d" in m.owner.links)
    assert net.run(3.0 + 2 * ATTEMPT_TIMEOUT + RETRY_KNOWN, lambda: owner(m, mac(c)) == "d")
    assert m.machine._calls.addresses("c") == []


# Answers from elsewhere


A, B, DEAD, NOBODY = address(1), address(2), address(3), address(9)


class Turned(Wire):
    """The first *copies* RESPONSEs to A come from *source* a moment before they come from B."""

    def __init__(self, source: Address, copies: int = 1000) -> None:
        super().__init__(1)
        self.source = source
        self.copies = copies

    def send(self, source: Address, destination: Address, frame: bytes) -> None:
        if frame[0] == RESPONSE and destination == A and self.copies:
            self.copies -= 1
            self.inject(self.source, destination, frame)
        super().send(source, destination, frame)


def callers(wire: Wire) -> tuple[Caller, Caller]:
    authority = make_authority("garden", WALL, random=random.Random(1).randbytes)
    a, b = (Caller(wire, issue_identity(authority, name, [], WALL), where) for name, where in (("a", A), ("b", B)))
    return a, b


def test_an_answer_from_where_nobody_was_called_holds_nothing_up() -> None:
    wire = Turned(NOBODY)
    a, b = callers(wire)
    a.call(B, "b")
    wire.run(0.1)
    assert agreed(a, b)
    assert a.established()[0].address == B
    assert a.machine.counters["other_source"] == 1
    assert not [frame for _, _, to, frame in wire.log if to == NOBODY]


def test_an_answer_from_another_address_of_the_call_holds_it_up_until_the_next_initiation() -> None:
    wire = Turned(DEAD, 1)
    a, b = callers(wire)
    a.call(DEAD, "b")
    a.call(B, "b")
    wire.run(RENEW_AFTER + 1.0)
    assert agreed(a, b)
    assert not a.failures()
    assert a.established()[0].address == B
    finals = {to for _, source, to, frame in wire.log if source == A and frame[0] == FINAL}
    assert finals == {DEAD, B}


# Whose turn it is


def test_who_is_announced_for_the_first_time_does_not_wait_for_all_who_did_not_answer() -> None:
    net = Net()
    a, b, c = (net.add(name, number) for number, name in enumerate("abc", 1))
    for number in range(2 * CALLS_MAX):
        a.machine.hint(("en0", b"\x02\x07" + number.to_bytes(4, "big")), net.now)
    net.run(2 * ATTEMPT_TIMEOUT + 1.0)
    net.hint(b, a)
    assert net.run(1.0, lambda: "b" in a.owner.links)
    assert len(a.machine._calls._waiting) >= CALLS_MAX, "they are to be called again"
    net.block = lambda sender, cable, frame: sender == "c" and frame[HEAD] == INITIATION
    net.hint(a, c)
    assert net.run(ATTEMPT_TIMEOUT + 1.0, lambda: "c" in a.owner.links)


def test_both_kinds_take_turns() -> None:
    waiting = Waiting()
    for number in range(4):
        waiting.add(Hint(("en0", bytes((number,))), 0.0, unanswered=1))
    for number in range(10, 12):
        waiting.add(Hint(("en0", bytes((number,))), 0.0))
    assert ("en0", bytes((10,))) in waiting
    waiting.discard(("en0", bytes((3,))))
    order = [waiting.pop().address[1][0] for _ in range(len(waiting))]
    assert order == [10, 0, 11, 1, 2]
