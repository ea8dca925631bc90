"""Several paths of one link: opened, validated, left and found again, in virtual time with real frames."""

from __future__ import annotations

from random import Random

import pytest

from qnetpy.link.link import NUMBERS, NUMBERS_RENEW
from qnetpy.link.paths import PATHS_MAX
from qnetpy.link.session import RekeyPolicy
from qnetpy.link.transport.items import Challenge
from qnetpy.link.transport.routes import EXCLUSIVE, PREFERRED, REDUNDANT, route
from qnetpy.link.wire import DATA, DATA_HEADER
from qnetpy.testing.links import ETHERTYPE, HEAD, Net, Station, first, path, two_cables

PING = b"\x01"


def bytes_on(net: Net, since: int, sender: str) -> dict[str, int]:
    """What *sender* has put on each cable since that frame."""
    on: dict[str, int] = {}
    for _, name, cable, frame in net.frames[since:]:
        if name == sender and frame[HEAD] == DATA:
            on[cable] = on.get(cable, 0) + len(frame)
    return on


def addresses(station: Station, to: str) -> set[tuple[str, bytes]]:
    return {path.address for path in station.owner.links[to].paths.values()}


# Opening


def test_both_cables_become_paths_with_one_number_at_both_ends() -> None:
    _, a, b = two_cables()
    here, there = a.owner.links["b"].paths, b.owner.links["a"].paths
    assert set(here) == set(there)
    for number, ours in here.items():
        cable = a.ports[ours.address[0]][1]
        assert b.ports[there[number].address[0]][1] == cable
        assert ours.asked
        assert there[number].asked


def test_two_cards_on_one_cable_are_four_paths() -> None:
    net = Net()
    a, b = net.add("a", 1, ("lan", "lan")), net.add("b", 2, ("lan", "lan"))
    net.up(a, b)
    for one, two in ((a, b), (b, a)):
        for mine in one.ports:
            for theirs in two.ports:
                one.machine.hint((mine, two.ports[theirs][0]), net.now)
                net.flush(one)
    net.run(6.0)
    assert len(a.owner.links["b"].paths) == len(b.owner.links["a"].paths) == 4
    net.send(a, "b", b"x" * 300_000)
    assert net.run(1.0, lambda: bool(b.owner.got))


def test_a_path_that_is_not_answered_carries_nothing_and_is_tried_ever_more_rarely() -> None:
    net = Net()
    a, b = net.add("a", 1, ("one", "two")), net.add("b", 2, ("one", "two"))
    net.block = lambda sender, cable, frame: sender == "b" and cable == "two" and frame[HEAD] == DATA
    net.hint(a, b, "en0")
    assert net.run(1.0, lambda: bool(a.owner.links))
    net.hint(a, b, "en1")
    net.hint(b, a, "en1")
    a.machine._calls.learned(("en1", b.ports["en1"][0]), "b", net.now)  # as a handshake there does
    net.run(2.0)
    net.send(a, "b", b"x" * 100_000)
    assert net.run(0.1, lambda: bool(b.owner.got)), "part of it went where nobody answers"
    net.run(30.0)
    begin = len(net.frames)
    net.run(60.0)
    challenges = [frame for _, sender, cable, frame in net.frames[begin:] if sender == "a" and cable == "two" and len(frame) > 1200]
    assert 3 < len(challenges) < 60
    net.block = lambda sender, cable, frame: False
    assert net.run(40.0, lambda: len(addresses(a, "b")) == 2 and all(path.asked for path in a.owner.links["b"].paths.values()))
    assert a.owner.log == ["b up"]


def test_an_interface_that_is_added_later_is_used_and_one_that_goes_is_not_missed() -> None:
    net = Net()
    a, b = net.add("a", 1, ("one", "two")), net.add("b", 2, ("one", "two"))
    a.machine.interface_gone("en1", net.now)
    net.hint(a, b, "en0")
    assert net.run(2.0, lambda: bool(a.owner.links and b.owner.links))
    assert len(a.owner.links["b"].paths) == 1
    net.carrier(a, "en1", True)
    net.hint(b, a, "en1")
    assert net.run(2.0, lambda: len(a.owner.links["b"].paths) == len(b.owner.links["a"].paths) == 2)
    net.run(0.2)
    a.machine.interface_gone("en0", net.now)
    net.flush(a)
    for number in range(20):
        net.send(b, "a", bytes([number]) * 10_000)
    assert net.run(0.1, lambda: len(a.owner.got) == 20)
    net.carrier(a, "en0", True)
    net.run(1.0)
    assert all(a.owner.links["b"].transport.usable(number) for number in a.owner.links["b"].paths)
    assert a.owner.log == ["b up"]


def test_a_challenge_that_somebody_sent_on_from_elsewhere_makes_no_path() -> None:
    net, a, b = two_cables()
    number = b.owner.links["a"].number()
    session = b.owner.links["a"].sessions.current
    assert number is not None
    assert session is not None
    own = b.ports["en0"][0]
    challenge = Challenge(1, bytes(8), own).pack().ljust(1200, b"\0")
    relay = a.ports["en0"][0] + bytes((2, 6, 6, 6, 6, 6)) + ETHERTYPE.to_bytes(2, "big")
    before = addresses(a, "b")
    for frame in session.seal(relay, number, 0, [challenge]):
        net.inject("one", frame)
    net.run(0.1)
    assert a.machine.counters["spoofed_path"] == 1
    assert addresses(a, "b") == before


def claim(net: Net, liar: Station, to: Station, station: bytes) -> None:
    """*liar* says on its path to *to* that its address is *station*."""
    way = path(liar, to.name, "en0")
    liar.owner.links[to.name].transport.challenge(way.number, net.random.randbytes(8), station, net.now)
    net.send(liar, to.name, b"x")
    net.run(0.01)


@pytest.mark.parametrize("spoofs", [False, True])
def test_a_member_that_sees_what_is_sent_to_others_has_to_send_in_their_name_to_be_there(spoofs: bool) -> None:
    """On a hub, or a switch that floods. With another's source address it is for the network to say who is where."""
    net = Net()
    a, liar = net.add("a", 1), net.add("c", 3)
    net.up(a, liar)
    others = bytes((2, 0, 0, 0, 0, 0x77))
    own = liar.ports["en0"][0]
    net.block = lambda sender, cable, frame: sender == "c" and frame[HEAD] == DATA and spoofs
    claim_at = len(net.frames)
    claim(net, liar, a, others)
    if spoofs:
        net.inject("one", net.frames[claim_at][3])  # the claim itself was sent in his own name
        net.run(0.01)
    seen = len(net.frames)
    for _ in range(200):
        net.run(0.005)
        fresh, seen = net.frames[seen:], len(net.frames)
        for _, sender, cable, frame in fresh:
            if sender == "a" and frame[:6] == others:
                net.inject(cable, own + frame[6:])
            elif spoofs and sender == "c":
                net.inject(cable, frame[:6] + others + frame[12:])
    there = ("en0", others) in {path.address for path in a.owner.links["c"].paths.values() if path.state.valid}
    assert there == spoofs
    assert a.machine._calls.owner(("en0", others)) == ("c" if spoofs else "")
    assert bool(a.machine.counters["spoofed_path"]) == (not spoofs)


def test_a_member_that_claims_to_be_where_others_are_does_not_cut_them_off() -> None:
    net = Net()
    a, b, liar = net.add("a", 1), net.add("b", 2), net.add("c", 3)
    net.up(a, b, liar)
    claim(net, liar, a, b.ports["en0"][0])
    claim(net, liar, b, a.ports["en0"][0])
    net.block = lambda sender, cable, frame: sender != "c" and frame[5] != 3
    assert net.run(60.0, lambda: "b" not in a.owner.links and "a" not in b.owner.links)
    assert "c" in a.owner.links
    net.block = lambda sender, cable, frame: False
    assert net.run(20.0, lambda: "b" in a.owner.links and "a" in b.owner.links), "they did not call each other again"
    assert a.machine.counters["claimed_station"] == b.machine.counters["claimed_station"] == 1
    assert len(a.owner.links["c"].paths) == len(b.owner.links["c"].paths) == 1


def test_a_claim_keeps_nobody_from_calling_a_stranger_there() -> None:
    net = Net()
    a, b, liar = net.add("a", 1), net.add("b", 2), net.add("c", 3)
    net.up(a, liar)
    claim(net, liar, a, b.ports["en0"][0])
    assert len(a.owner.links["c"].paths) == 2, "it is tried"
    net.hint(a, b)
    assert net.run(1.0, lambda: "b" in a.owner.links)
    net.run(10.0)
    assert len(a.owner.links["c"].paths) == 1, "nobody answered there with c's keys"


def test_a_node_that_is_met_at_another_address_than_its_own_is_found_at_its_own() -> None:
    """Its claim is true: the path is opened, answered, and only then is the address known."""
    net = Net()
    a, b = net.add("a", 1, ("lan", "lan")), net.add("b", 2, ("lan", "lan"))
    a.machine.interface_gone("en1", net.now)
    b.machine.interface_gone("en1", net.now)
    net.hint(a, b)
    assert net.run(2.0, lambda: bool(a.owner.links and b.owner.links))
    own = b.ports["en1"][0]
    claim(net, b, a, own)
    assert a.machine._calls.owner(("en0", own)) == "", "known by a claim"
    net.carrier(b, "en1", True)
    assert net.run(5.0, lambda: a.machine._calls.owner(("en0", own)) == "b")


def test_a_path_brings_one_claim() -> None:
    net = Net()
    a, liar = net.add("a", 1), net.add("c", 3)
    net.up(a, liar)
    for number in range(50):
        claim(net, liar, a, bytes((2, 9, 9, 9, 9, number)))
    assert a.machine.counters["other_station"] == 1
    assert len(a.owner.links["c"].paths) == 2


def test_packets_under_other_numbers_are_counted_and_dropped() -> None:
    net, a, b = two_cables()
    link = b.owner.links["a"]
    session = link.sessions.current
    assert session is not None
    prefix = path(b, "a", "en0").prefix
    unused = next(number for number in range(1, NUMBERS, 2) if number not in link.paths)
    ours = next(number for number in range(2, NUMBERS, 2) if number not in link.paths)
    for number, packet in ((unused, PING), (ours, Challenge(1, bytes(8), b"").pack())):
        for frame in session.seal(prefix, number, 0, [packet]):
            net.inject("one", frame)
    net.run(0.1)
    assert a.machine.counters["unknown_path"] == 1
    assert a.machine.counters["path_number"] == 1
    assert set(a.owner.links["b"].paths) == set(link.paths)


def test_a_member_that_opens_paths_without_end_is_bounded_and_makes_us_seal_no_number_twice() -> None:
    net, a, b = two_cables()
    b.on = False
    session = b.owner.links["a"].sessions.current
    assert session is not None
    number = 0
    for round_ in range(3):
        for path_number in range(1, NUMBERS, 2):
            station = bytes((2, 7, 7, 7, round_, path_number))
            prefix = a.ports["en0"][0] + station + ETHERTYPE.to_bytes(2, "big")
            number += 1_000_000
            for frame in session.seal(prefix, path_number, number, [Challenge(1, bytes(8), station).pack()]):
                net.inject("one", frame)
            net.run(0.002)  # an exception here would be the end of the node
        for _ in range(8):
            number += 1
            for frame in session.seal(path(b, "a", "en0").prefix, 0, number, [PING]):
                net.inject("one", frame)
            net.run(0.5)
    assert len(a.owner.links["b"].paths) <= PATHS_MAX
    assert len(a.owner.links["b"].tried) <= PATHS_MAX
    assert len(a.machine._calls.addresses("b")) <= 2
    assert a.machine.counters["too_many_paths"] > 0
    assert a.machine.counters["path_number"] > 0


def test_path_numbers_are_used_once_under_a_key_and_new_keys_give_more() -> None:
    net, a, b = two_cables(rekey=RekeyPolicy(grace=0.2))
    link = a.owner.links["b"]
    seen: dict[int, set[int]] = {}
    for step in range(400):
        mac = bytes((2, 0, 0, 5, step >> 8, step & 255))
        a.ports["en1"] = (mac, "two")
        a.machine.interface("en1", mac, 1500, True, net.now)
        net.flush(a)
        net.run(0.05)
        session = link.sessions.current
        assert session is not None
        seen.setdefault(session.local_index, set()).update(link.paths)
        assert session.paths_seen() < NUMBERS_RENEW + 20
    assert len(seen) > 5
    assert a.machine.counters["paths_used_up"] == 0
    net.run(2.0)
    net.send(a, "b", b"still here")
    assert net.run(0.2, lambda: bool(b.owner.got))
    assert a.owner.log == ["b up"]
    assert len(link.paths) == len(b.owner.links["a"].paths) == 2


def test_path_numbers_that_are_used_up_are_not_used_again_while_no_new_keys_can_be_had() -> None:
    net, a, _ = two_cables()
    net.block = lambda sender, cable, frame: frame[HEAD] != DATA
    link = a.owner.links["b"]
    for step in range(300):
        mac = bytes((2, 0, 0, 5, step >> 8, step & 255))
        a.ports["en1"] = (mac, "two")
        a.machine.interface("en1", mac, 1500, True, net.now)  # a nonce that comes twice raises
        net.flush(a)
        net.run(0.01)
    assert a.machine.counters["paths_used_up"] > 0
    net.block = lambda sender, cable, frame: False
    assert net.run(15.0, lambda: len(link.paths) == 2 and all(path.asked for path in link.paths.values()))
    assert a.owner.log == ["b up"]


def test_another_address_of_ours_is_a_new_path_and_the_old_one_ends() -> None:
    """The card is exchanged: new address, same cable."""
    net = Net()
    a, b = net.add("a", 1), net.add("b", 2)
    net.up(a, b)
    new = bytes((2, 0, 0, 0, 0, 77))
    a.ports["en0"] = (new, "lan")
    a.machine.interface("en0", new, 1500, True, net.now)
    net.flush(a)
    net.send(b, "a", b"first")
    net.run(1.0)
    assert addresses(b, "a") == {("en0", new)}
    assert a.owner.got == [b"first"]
    assert a.owner.log == ["b up"]


def test_another_mtu_of_our_interface_holds_at_once_both_ways() -> None:
    net = Net()
    a, b = net.add("a", 1, mtu=9000), net.add("b", 2, mtu=9000)
    net.up(a, b)
    net.send(a, "b", b"z" * 500_000)
    net.run(0.5)
    assert max(len(frame) for _, _, _, frame in net.frames) > 5000
    a.mtus["en0"] = 1500
    a.machine.interface("en0", a.ports["en0"][0], 1500, True, net.now)
    net.flush(a)
    net.send(a, "b", b"q" * 500_000)  # `flush` asserts that no frame is longer
    assert net.run(2.0, lambda: len(b.owner.got) == 2)
    a.mtus["en0"] = 9000
    a.machine.interface("en0", a.ports["en0"][0], 9000, True, net.now)
    net.flush(a)
    net.run(1.0)
    since = len(net.frames)
    net.send(a, "b", b"y" * 500_000)
    assert net.run(2.0, lambda: len(b.owner.got) == 3)
    assert max(len(frame) for _, _, _, frame in net.frames[since:]) > 5000


# Failing and coming back


def test_loss_of_carrier_moves_all_traffic_of_both_ends_within_a_round_trip_and_nothing_is_lost() -> None:
    net, a, b = two_cables()
    messages = [bytes([number]) * 40_000 for number in range(30)]
    for message in messages:
        net.send(a, "b", message)
        net.send(b, "a", message)
    net.run(0.0003)
    used = first(a, "b")
    net.block = lambda sender, cable, frame: cable == a.ports[used][1]
    net.carrier(a, used, False)
    begin = net.now
    assert net.run(0.1, lambda: len(b.owner.got) == len(a.owner.got) == len(messages))
    assert net.now - begin < 0.02
    assert a.owner.got == b.owner.got == messages
    assert a.owner.log == ["b up"]
    assert b.owner.log == ["a up"]
    since = len(net.frames)
    net.run(5.0)
    assert not [frame for _, _, cable, frame in net.frames[since:] if cable == a.ports[used][1]], "both know that it is down"
    net.block = lambda sender, cable, frame: False
    net.carrier(a, used, True)
    assert net.run(0.05, lambda: all(a.owner.links["b"].transport.usable(number) for number in a.owner.links["b"].paths))
    assert net.run(0.05, lambda: all(b.owner.links["a"].transport.usable(number) for number in b.owner.links["a"].paths))


def test_loss_of_the_only_carrier_is_suspect_at_once_and_its_return_is_noticed() -> None:
    net = Net()
    a, b = net.add("a", 1), net.add("b", 2)
    net.up(a, b)
    net.carrier(a, "en0", False)
    assert a.owner.log[-1] == "b suspect: carrier of en0 lost"
    net.send(a, "b", b"waits")
    net.run(2.0)
    net.carrier(a, "en0", True)
    net.run(0.1)
    assert a.owner.log[-1] == "b back"
    assert b.owner.got == [b"waits"]


@pytest.mark.parametrize("ways", [("a", "b"), ("a",), ("b",)], ids=["both ways", "only to a", "only to b"])
def test_a_cable_that_goes_dead_in_use_is_left_within_three_probe_timeouts(ways: tuple[str, ...]) -> None:
    net, a, b = two_cables()
    dead = a.ports[first(a, "b")][1]
    net.block = lambda sender, cable, frame: cable == dead and sender in ways
    net.send(a, "b", b"over there" * 3000)
    net.send(b, "a", b"and back" * 3000)
    begin = net.now
    assert net.run(2.0, lambda: bool(a.owner.got and b.owner.got))
    assert net.now - begin < 0.1
    net.run(5.0)
    assert a.owner.log == ["b up"]
    assert b.owner.log == ["a up"]
    for end, to in ((a, "b"), (b, "a")):
        link = end.owner.links[to]
        states = {path.address[0]: link.transport.usable(number) for number, path in link.paths.items()}
        assert sum(states.values()) == 1, "a path that works one way is none"
    net.block = lambda sender, cable, frame: False
    assert net.run(1.0, lambda: all(a.owner.links["b"].transport.usable(number) for number in a.owner.links["b"].paths))


def test_a_cable_that_goes_dead_unused_is_known_before_it_is_needed() -> None:
    net, a, b = two_cables()
    used = a.ports[first(a, "b")][1]
    net.block = lambda sender, cable, frame: cable != used
    for _ in range(100):
        net.send(a, "b", b"busy")
        net.run(0.01)
    assert [line for line in a.owner.paths if "does not answer" in line]
    assert [line for line in b.owner.paths if "does not answer" in line]


def test_all_cables_pulled_and_given_back_lose_nothing() -> None:
    net, a, b = two_cables()
    sent = []
    for number in range(60):
        data = number.to_bytes(2, "big") * 5000
        sent.append(data)
        net.send(a, "b", data)
        net.run(0.001)
        if number == 20:
            net.block = lambda sender, cable, frame: True
        if number == 40:
            net.run(1.5)
            net.block = lambda sender, cable, frame: False
    assert net.run(2.0, lambda: len(b.owner.got) == len(sent))
    assert b.owner.got == sent
    assert not [line for line in a.owner.log + b.owner.log if "down" in line]


def test_the_node_is_up_as_long_as_it_is_heard_on_any_path() -> None:
    net, a, b = two_cables()
    for cable in ("one", "two", "one"):
        net.block = lambda sender, on, frame, cable=cable: on == cable  # type: ignore[misc]  # bound early
        net.run(10.0)
    assert a.owner.log == ["b up"]
    assert b.owner.log == ["a up"]
    net.block = lambda sender, cable, frame: True
    assert net.run(4.0, lambda: a.owner.log[-1] == "b down: silent")


@pytest.mark.parametrize("seed", range(6))
def test_a_suspect_link_uses_whatever_cable_comes_back(seed: int) -> None:
    net = Net(seed)
    cables = ("one", "two", "three", "four")
    a, b = net.add("a", 1, cables), net.add("b", 2, cables)
    net.up(a, b)
    net.run(5.0)
    assert len(a.owner.links["b"].paths) == 4
    net.block = lambda sender, cable, frame: True
    net.run(1.5)
    net.block = lambda sender, cable, frame: cable != "three"
    net.send(a, "b", b"anybody?")
    assert net.run(1.0, lambda: bool(b.owner.got))
    assert not [line for line in a.owner.log + b.owner.log if "down" in line]


def test_a_copy_of_an_old_frame_from_elsewhere_changes_nothing() -> None:
    net, a, b = two_cables()
    net.send(b, "a", b"once")
    net.run(0.1)
    before = addresses(a, "b")
    for _, sender, _, frame in list(net.frames):
        if sender == "b" and frame[HEAD] == DATA:
            forged = frame[:6] + bytes((2, 6, 6, 6, 6, 6)) + frame[12:]
            a.machine.receive("en1", [forged], HEAD, net.now)
            changed = bytearray(forged)
            changed[HEAD + 1] = 9  # another path: does not authenticate
            a.machine.receive("en1", [bytes(changed)], HEAD, net.now)
    assert addresses(a, "b") == before
    assert a.owner.got == [b"once"]


# Policies


def only_on(net: Net, sender: Station, to: Station, number: int, size: int = 200_000) -> dict[str, int]:
    """What a message of that route puts on each cable."""
    since = len(net.frames)
    count = len(to.owner.got)
    sender.machine.send(sender.owner.links[to.name], 9, [bytes(size)], 10, net.now, number)
    net.flush(sender)
    net.run(1.0, lambda: len(to.owner.got) > count)
    return bytes_on(net, since, sender.name)


@pytest.mark.parametrize("interface", ["en0", "en1"])
@pytest.mark.parametrize("policy", [PREFERRED, EXCLUSIVE])
def test_preferred_and_exclusive_use_the_interface_that_they_name(policy: int, interface: str) -> None:
    net, a, b = two_cables()
    number = route(policy, a.machine.port_number(interface))
    on = only_on(net, a, b, number)
    wanted = a.ports[interface][1]
    assert on[wanted] > 200_000
    assert on.get("two" if wanted == "one" else "one", 0) < 1000


def test_preferred_goes_over_the_others_when_its_interface_fails_and_returns() -> None:
    net, a, b = two_cables()
    number = route(PREFERRED, a.machine.port_number("en1"))
    net.carrier(a, "en1", False)
    assert only_on(net, a, b, number)["one"] > 200_000
    net.carrier(a, "en1", True)
    net.run(0.1)
    assert only_on(net, a, b, number)["two"] > 200_000


def test_exclusive_waits_for_its_interface_and_others_go_on_meanwhile() -> None:
    net, a, b = two_cables()
    number = route(EXCLUSIVE, a.machine.port_number("en1"))
    link = a.owner.links["b"]
    net.carrier(a, "en1", False)
    assert link.transport.stuck(number)
    a.machine.send(link, 9, [b"waits"], 10, net.now, number)
    net.send(a, "b", b"goes")
    net.run(2.0)
    assert b.owner.got == [b"goes"]
    net.carrier(a, "en1", True)
    assert net.run(0.1, lambda: b.owner.got == [b"goes", b"waits"])


def test_redundant_goes_over_all_and_is_delivered_once_even_if_one_loses_everything() -> None:
    net, a, b = two_cables()
    on = only_on(net, a, b, route(REDUNDANT), 8000)
    assert min(on.values()) > 8000
    net.block = lambda sender, cable, frame: cable == "one" and sender == "a" and len(frame) > 200
    chance = Random(3)
    for number in range(50):
        began = net.now
        count = len(b.owner.got)
        a.machine.send(a.owner.links["b"], 9, [bytes([number]) * chance.choice([1, 500, 1400])], 10, net.now, route(REDUNDANT))
        net.flush(a)
        assert net.run(1.0, lambda count=count: len(b.owner.got) > count)  # type: ignore[misc]  # bound early
        assert net.now - began < 0.001, "it waited for a retransmission"
        net.run(0.01)
    assert len(b.owner.got) == 51


def test_an_answer_goes_the_way_of_its_question() -> None:
    net, a, b = two_cables()
    for interface in ("en0", "en1"):
        ways: list[int] = []
        b.owner.on_route = ways.append
        only_on(net, a, b, route(EXCLUSIVE, a.machine.port_number(interface)), 10)
        since = len(net.frames)
        b.machine.send(b.owner.links["a"], 3, [bytes(100_000)], 10, net.now, ways[0])
        net.flush(b)
        net.run(0.5)
        on = bytes_on(net, since, "b")
        wanted = a.ports[interface][1]
        assert on[wanted] > 100_000
        assert on.get("two" if wanted == "one" else "one", 0) < 1000


# Keys


def test_keys_are_renewed_while_paths_come_and_go() -> None:
    net, a, b = two_cables(rekey=RekeyPolicy(after=0.5, stagger=0.0, grace=0.3))
    chance = Random(4)
    sent = 0
    for step in range(300):
        net.send(a, "b", step.to_bytes(2, "big") * 2000)
        net.send(b, "a", step.to_bytes(2, "big") * 2000)
        sent += 1
        if chance.random() < 0.2:
            station, interface = chance.choice([a, b]), chance.choice(["en0", "en1"])
            net.carrier(station, interface, chance.random() < 0.6)
        net.run(0.02)
    for station in (a, b):
        for interface in ("en0", "en1"):
            net.carrier(station, interface, True)
    assert net.run(3.0, lambda: len(a.owner.got) == len(b.owner.got) == sent)
    assert [int.from_bytes(data[:2], "big") for data in b.owner.got] == list(range(sent))
    assert DATA_HEADER.size == 16


def test_a_challenge_that_somebody_brought_to_another_station_replaces_no_path_that_works() -> None:
    """a calls a station that he who is between made up; he takes the CHALLENGE to b."""
    net = Net()
    a, b = net.add("a", 1), net.add("b", 2)
    net.up(a, b)
    net.run(1.0)
    nobody = bytes((2, 0, 0, 9, 9, 9))
    link = a.owner.links["b"]
    a.machine._paths.open(link, ("en0", nobody), net.now)
    a.machine._mark(link)
    carried = 0
    for _ in range(50):
        seen = len(net.frames)
        net.flush(a)
        net.run(0.1)
        for _, sender, _, frame in net.frames[seen:]:
            if sender == "a" and frame[:6] == nobody:
                b.machine.receive("en0", [b.ports["en0"][0] + frame[6:]], HEAD, net.now)
                net.flush(b)
                carried += 1
        net.send(a, "b", b"to b")
        net.send(b, "a", b"to a")
    net.run(1.0)
    assert carried >= 5
    assert a.machine.counters["spoofed_path"] > 0
    assert (len(a.owner.got), len(b.owner.got)) == (50, 50)
    assert (a.owner.log, b.owner.log) == (["b up"], ["a up"])
    for station, to in ((a, "b"), (b, "a")):
        assert [(path.number, path.address[1]) for path in station.owner.links[to].paths.values()] == [
            (0, (b if station is a else a).ports["en0"][0])
        ]
