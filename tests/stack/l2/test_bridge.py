"""The bridge as a pure machine: who gets which frame, what is learned, and what is bounded."""

from __future__ import annotations

import pytest

from resmgr.errors import Misuse
from stack.frame import Frame
from stack.l2.bridge import PORTS_MAX, Bridge, Decision
from stack.l2.stations import STATIC_MAX, Learned, Stations
from stack.l2.storm import StormControl
from stack.testing.driver import frame
from stack.wire.ethernet import BROADCAST

MACS = [bytes((2, 0, 0, 0, 0, number)) for number in range(1, 5)]
"""Of our ports 1 to 4."""
BRIDGE = bytes((2, 0, 0, 0, 0, 0x99))
STATIONS = [bytes((2, 0, 0, 0, 1, number)) for number in range(8)]


def bridge(ports: int = 3, **options: object) -> Bridge:
    made = Bridge(BRIDGE, **options)  # type: ignore[arg-type]  # the options are ints and bools
    for number in range(ports):
        made.add(MACS[number])
    return made


def to(destination: bytes, source: bytes, mark: bytes = b"x") -> bytes:
    return frame(destination, source, mark)


def out(decision: Decision) -> dict[int, list[Frame]]:
    assert not decision.bpdus
    return decision.out


def test_an_unknown_station_is_searched_everywhere_else() -> None:
    batch: list[Frame] = [to(STATIONS[1], STATIONS[0])]
    decision = bridge().received(1, batch, 0.0)
    assert out(decision) == {2: batch, 3: batch}
    assert not decision.up


def test_a_known_station_gets_its_frames_alone() -> None:
    machine = bridge()
    machine.received(2, [to(BROADCAST, STATIONS[1])], 0.0)
    batch: list[Frame] = [to(STATIONS[1], STATIONS[0], b"1"), to(STATIONS[1], STATIONS[0], b"2")]
    assert out(machine.received(1, batch, 0.0)) == {2: batch}
    assert machine.news == [(STATIONS[1], 2), (STATIONS[0], 1)]


def test_a_station_that_moves_is_followed() -> None:
    machine = bridge()
    machine.received(2, [to(BROADCAST, STATIONS[1])], 0.0)
    machine.received(3, [to(BROADCAST, STATIONS[1])], 1.0)
    assert list(out(machine.received(1, [to(STATIONS[1], STATIONS[0])], 2.0))) == [3]


def test_what_is_behind_the_same_port_stays_there() -> None:
    machine = bridge()
    machine.received(1, [to(BROADCAST, STATIONS[1])], 0.0)
    decision = machine.received(1, [to(STATIONS[1], STATIONS[0])], 0.0)
    assert not decision.out
    assert machine.ports[1].drops == {"same_port": 1}


def test_groups_go_up_where_they_came_in_and_on_to_all() -> None:
    batch: list[Frame] = [to(BROADCAST, STATIONS[0])]
    decision = bridge().received(1, batch, 0.0)
    assert decision.up == {1: batch}
    assert out(decision) == {2: batch, 3: batch}
    assert not decision.own
    assert bridge(station=True).received(1, batch, 0.0).own == batch


def test_what_is_for_a_member_goes_up_on_that_member() -> None:
    batch: list[Frame] = [to(MACS[1], STATIONS[0])]
    decision = bridge().received(1, batch, 0.0)
    assert decision.up == {2: batch}
    assert not decision.out


def test_what_is_for_the_bridge_goes_to_the_bridge() -> None:
    batch: list[Frame] = [to(BRIDGE, STATIONS[0])]
    decision = bridge().received(1, batch, 0.0)
    assert decision.own == batch
    assert not decision.out


def test_reserved_groups_are_not_forwarded() -> None:
    machine = bridge()
    machine.ports[1].tree = True
    for last in range(16):
        group = bytes.fromhex("0180c20000") + bytes((last,))
        decision = machine.received(1, [to(group, STATIONS[0])], 0.0)
        assert not decision.out
        assert bool(decision.bpdus) is (last == 0)
        assert list(decision.up) == ([] if last == 0 else [1])
    assert out(machine.received(1, [to(bytes.fromhex("0180c2000010"), STATIONS[0])], 0.0))


def test_bridges_around_see_each_other_through_one_without_a_tree() -> None:
    machine = bridge()
    bpdu = to(bytes.fromhex("0180c2000000"), STATIONS[0])
    decision = machine.received(1, [bpdu], 0.0)
    assert out(decision) == {2: [bpdu], 3: [bpdu]}
    assert decision.up == {1: [bpdu]}
    machine.ports[3].tree = True
    assert not machine.received(1, [bpdu], 0.0).out, "with a tree anywhere they end here"


def test_our_own_addresses_are_never_learned_from_the_wire() -> None:
    machine = bridge()
    assert not machine.received(1, [to(STATIONS[1], MACS[1])], 0.0).out
    assert not machine.received(1, [to(STATIONS[1], BRIDGE)], 0.0).out
    assert machine.ports[1].drops == {"own_source": 2}
    assert not len(machine.stations)


def test_a_group_as_the_source_is_dropped() -> None:
    machine = bridge()
    assert not machine.received(1, [to(STATIONS[1], BROADCAST)], 0.0).out
    assert machine.ports[1].drops == {"bad_source": 1}


def test_frames_that_are_cut_short_are_dropped() -> None:
    machine = bridge()
    for length in range(14):
        assert not machine.received(1, [to(STATIONS[1], STATIONS[0])[:length]], 0.0).out
    assert machine.ports[1].drops == {"too_short": 14}


def test_a_blocked_port_forwards_nothing_but_is_ours() -> None:
    machine = bridge()
    machine.received(2, [to(BROADCAST, STATIONS[1])], 0.0)
    machine.ports[1].forwarding = machine.ports[1].learning = False
    batch: list[Frame] = [to(STATIONS[1], STATIONS[0]), to(MACS[0], STATIONS[0]), to(BROADCAST, STATIONS[0])]
    decision = machine.received(1, batch, 0.0)
    assert decision.up == {1: batch[1:]}
    assert not decision.out
    assert machine.ports[1].drops == {"blocked": 1}
    assert STATIONS[0] not in machine.stations.known
    assert out(machine.received(3, [to(BROADCAST, STATIONS[3])], 0.0)).keys() == {2}


def test_flags() -> None:
    machine = bridge()
    machine.ports[1].learn = False
    machine.ports[3].discover = False
    assert out(machine.received(1, [to(STATIONS[1], STATIONS[0])], 0.0)).keys() == {2}
    assert out(machine.received(1, [to(BROADCAST, STATIONS[0])], 0.0)).keys() == {2, 3}
    assert not machine.stations.known


def test_a_span_port_gets_a_copy_of_everything_and_says_nothing() -> None:
    machine = bridge()
    machine.ports[3].spans = True
    machine.received(2, [to(BROADCAST, STATIONS[1])], 0.0)
    batch: list[Frame] = [to(STATIONS[1], STATIONS[0]), to(MACS[0], STATIONS[0])]
    assert out(machine.received(1, batch, 0.0)) == {2: batch[:1], 3: batch}
    assert not machine.received(3, batch, 0.0).out
    assert machine.ports[3].drops == {"span_port": 2}


def test_what_our_stack_sends_leaves_where_the_station_is() -> None:
    machine = bridge()
    machine.received(2, [to(BROADCAST, STATIONS[1])], 0.0)
    known: list[Frame] = [to(STATIONS[1], MACS[0])]
    assert machine.sent(1, known).out == {2: known}
    unknown: list[Frame] = [to(STATIONS[2], MACS[0])]
    assert machine.sent(1, unknown).out == {1: unknown, 2: unknown, 3: unknown}
    assert machine.sent(0, known).out == {2: known}
    own: list[Frame] = [to(MACS[1], MACS[0])]
    assert machine.sent(1, own).up == {2: own}
    short: list[Frame] = [b"short"]
    assert not machine.sent(0, short).out
    machine.ports[2].forwarding = False
    reserved: list[Frame] = [to(bytes.fromhex("0180c2000002"), MACS[1])]
    assert machine.sent(2, reserved).out == {2: reserved}
    assert not machine.sent(0, reserved).out
    assert not machine.sent(1, known).out
    assert not machine.sent(0, known).out
    assert machine.ports[1].drops == {"blocked": 1}
    assert machine.drops == {"too_short": 1, "no_port": 1, "blocked": 1}


def test_flows_stay_in_order() -> None:
    machine = bridge()
    for number in (1, 2):
        machine.received(2, [to(BROADCAST, STATIONS[number])], 0.0)
    batch: list[Frame] = [to(STATIONS[1 + number % 2], STATIONS[0], bytes((number,))) for number in range(20)]
    left = out(machine.received(1, batch, 0.0))[2]
    for station in (1, 2):
        marks = [one[14] for one in left if one[:6] == STATIONS[station]]
        assert marks == sorted(marks)
        assert len(marks) == 10


def test_storms_are_bounded_per_port_and_kind() -> None:
    machine = bridge()
    machine.ports[1].storm = StormControl(100)
    flood: list[Frame] = [to(BROADCAST, STATIONS[0])] * 50
    assert len(out(machine.received(1, flood, 10.0))[2]) == 10
    assert machine.ports[1].drops == {"storm": 40}
    assert len(out(machine.received(1, [to(STATIONS[1], STATIONS[0])] * 50, 10.0))[2]) == 10
    assert len(out(machine.received(1, flood, 10.05))[2]) == 5
    assert len(out(machine.received(2, flood[:1], 10.0))[3]) == 1


def test_made_up_addresses_fill_what_they_may() -> None:
    machine = bridge(maximum=20)
    machine.ports[1].most = 5
    for number in range(50):
        machine.received(1, [to(BROADCAST, bytes((2, 1, 0, 0, 0, number)))], 0.0)
    assert len(machine.stations) == 5
    assert machine.ports[1].drops == {"displaced": 45}
    for number in range(50):
        machine.received(2, [to(BROADCAST, bytes((2, 2, 0, 0, 0, number)))], 0.0)
    assert len(machine.stations) == 20
    flushed = len(machine.stations.flush(1))
    machine.received(1, [to(BROADCAST, STATIONS[0])], 0.0)
    assert len(machine.stations) == 20 - flushed + 1


def test_ageing() -> None:
    elsewhere: dict[bytes, float] = {}
    stations = Stations(10, 100.0, elsewhere.get)
    stations.learn(STATIONS[0], 1, 0.0)
    stations.learn(STATIONS[1], 1, 50.0)
    stations.add_static(STATIONS[2], 1, 0.0)
    assert stations.expire(99.0) == []
    assert stations.expire(100.0) == [STATIONS[0]]
    elsewhere[STATIONS[1]] = 20.0
    assert stations.expire(160.0) == []
    del elsewhere[STATIONS[1]]
    assert stations.expire(239.0) == []
    assert stations.expire(240.0) == [STATIONS[1]]
    assert list(stations.known) == [STATIONS[2]]


def test_static_stations_neither_move_nor_age_and_have_a_bound() -> None:
    stations = Stations(1, 0.0)
    for number in range(STATIC_MAX):
        assert stations.add_static(number.to_bytes(6, "big"), 1, 0.0)
    assert not stations.add_static(STATIONS[0], 1, 0.0)
    assert stations.add_static((0).to_bytes(6, "big"), 2, 0.0)
    assert stations.learn((0).to_bytes(6, "big"), 3, 1.0) is Learned.KNOWN
    assert stations.known[(0).to_bytes(6, "big")].port == 2
    assert stations.learn(STATIONS[0], 3, 1.0) is Learned.NEWS
    assert len(stations.flush(statics=True)) == STATIC_MAX + 1


def test_ports_have_a_bound() -> None:
    machine = bridge(0)
    for number in range(PORTS_MAX):
        machine.add(bytes((2, 0, 0, 0, 2, number)))
    with pytest.raises(Misuse):
        machine.add(MACS[0])
    machine.remove(7)
    assert machine.add(MACS[0]).number == 7


def test_a_batch_that_a_filter_has_emptied_and_one_with_short_frames() -> None:
    made = bridge()
    for decision in (made.received(1, [], 1.0), made.sent(1, [])):
        assert (decision.out, decision.up, decision.own, decision.bpdus) == ({}, {}, [], [])
    one, other = bytes((2, 0, 0, 0, 9, 1)), bytes((2, 0, 0, 0, 9, 2))
    batch: list[Frame] = [to(BROADCAST, one, b"1"), b"short", to(BROADCAST, other, b"2"), b"", to(BROADCAST, one, b"3"), b"short"]
    decision = made.received(1, batch, 1.0)
    assert [bytes(one)[-1:] for one in out(decision)[2]] == [b"1", b"3", b"2"]
    assert made.ports[1].drops["too_short"] == 3
    assert len(batch) == 6
