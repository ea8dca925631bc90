"""Links in virtual time: how they come up, end, renew their keys, and what bounds them. Paths are in test_paths.py."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from qnetpy.link.calls import CALLS_MAX, RETRY_REFUSED, RETRY_STRANGER, STRANGERS_MAX
from qnetpy.link.machine import BURST, BURST_BRIEF, BURST_BYTES, BURST_LEAST
from qnetpy.link.outcome import Reason
from qnetpy.link.session import RekeyPolicy
from qnetpy.link.wire import CONFIRM, DATA, DATA_HEADER, FINAL, INITIATION, RESPONSE
from qnetpy.testing.links import ETHERTYPE, HEAD, Net, Station, two_cables


def kinds(net: Net, since: float = 0.0) -> Counter[int]:
    return Counter(frame[HEAD] for when, _, _, frame in net.frames if when >= since)


def pair(rekey: RekeyPolicy | None = None) -> tuple[Net, Station, Station]:
    net = Net()
    a, b = net.add("a", 1, rekey=rekey), net.add("b", 2, rekey=rekey)
    net.up(a, b)
    return net, a, b


# Coming up


def test_both_hint_at_once_and_one_link_comes_of_it() -> None:
    net, a, b = pair()
    assert a.owner.log == ["b up"]
    assert b.owner.log == ["a up"]
    assert a.owner.links["b"].transport_id == b.owner.links["a"].transport_id
    net.send(a, "b", b"there")
    net.send(b, "a", b"back" * 10_000)
    net.run(0.5)
    assert b.owner.got == [b"there"]
    assert a.owner.got == [b"back" * 10_000]


def test_one_hint_is_enough() -> None:
    net = Net()
    a, b = net.add("a", 1), net.add("b", 2)
    net.hint(b, a)
    net.run(1.0)
    assert a.owner.log == ["b up"]
    assert b.owner.log == ["a up"]


def test_hints_that_cannot_be_a_node_are_ignored() -> None:
    net = Net()
    a = net.add("a", 1)
    own, _ = a.ports["en0"]
    for address in (("en0", own), ("en9", bytes((2, 0, 0, 0, 0, 9))), ("en0", b"\xff" * 6), ("en0", bytes((1, 0, 94, 0, 0, 1)))):
        a.machine.hint(address, net.now)
    net.flush(a)
    assert not net.frames
    assert a.machine.sizes()["hints"] == 0


def test_an_address_without_an_answer_is_called_ever_more_rarely_and_still_found_later() -> None:
    net = Net()
    a = net.add("a", 1)
    a.machine.hint(("en0", bytes((2, 0, 0, 0, 0, 2))), net.now)
    net.flush(a)
    begin = net.now
    net.run(600.0)
    early = sum(when < begin + 60 for when, _, _, _ in net.frames)
    late = sum(when > begin + 540 for when, _, _, _ in net.frames)
    assert early > late > 5
    assert late < 20
    assert a.wakes < 400

    b = net.add("b", 2)
    assert net.run(RETRY_STRANGER + 10.0, lambda: "b" in a.owner.links)
    assert b.owner.log == ["a up"]


def test_a_hint_that_comes_again_is_called_at_once_but_not_all_the_time() -> None:
    net = Net()
    a = net.add("a", 1)
    address = ("en0", bytes((2, 0, 0, 0, 0, 2)))
    a.machine.hint(address, net.now)
    net.run(300.0)
    before = net.now
    for _ in range(200):
        a.machine.hint(address, net.now)
        net.flush(a)
        net.run(0.05)
    # 10 seconds of announcements: one call of 8 s and a bit of the next one, a frame every half a second.
    assert 20 < len([when for when, _, _, _ in net.frames if when >= before]) < 40


def test_a_withdrawn_stranger_is_not_called_any_more() -> None:
    net = Net()
    a = net.add("a", 1)
    address = ("en0", bytes((2, 0, 0, 0, 0, 2)))
    a.machine.hint(address, net.now)
    net.flush(a)
    net.run(1.0)
    a.machine.unhint(address, net.now)
    count = len(net.frames)
    net.run(100.0)
    assert len(net.frames) == count
    assert a.machine.sizes()["hints"] == a.machine.sizes()["calls"] == 0


# Calls that several want


def test_withdrawing_one_of_two_addresses_does_not_end_the_call_to_the_node() -> None:
    net, a, b = two_cables()
    b.on = False
    assert net.run(5.0, lambda: a.owner.log[-1] == "b down: silent")
    net.run(0.5)  # called at both addresses, as one attempt
    assert a.machine.sizes()["calls"] == 1
    a.machine.interface_gone("en0", net.now)
    del a.ports["en0"]
    net.stations.pop("b")
    net.run(60.0)
    again = net.add("b", 2, ("one", "two"))
    assert net.run(10.0, lambda: "b" in a.owner.links), "the other address was forgotten"
    assert again.owner.links


def test_a_link_that_goes_down_while_it_renews_its_keys_is_called_again() -> None:
    net, a, b = pair(rekey=RekeyPolicy(after=2.0, stagger=0.0))
    net.block = lambda sender, cable, frame: frame[HEAD] != DATA  # no handshake gets through
    net.run(3.0)
    assert a.machine.sizes()["calls"] == 1
    net.block = lambda sender, cable, frame: True
    assert net.run(5.0, lambda: not a.owner.links and not b.owner.links)
    net.block = lambda sender, cable, frame: False
    assert net.run(8.0, lambda: bool(a.owner.links and b.owner.links))


# Names


def test_a_second_node_with_a_name_that_is_connected_is_refused_while_the_first_lives() -> None:
    net, a, _ = pair()
    twin = net.add("b", 3, identity=net.other_key("b"), key="twin")
    net.hint(a, twin)
    net.hint(twin, a)
    net.run(20.0)
    assert a.owner.log == ["b up"]
    assert {failed.reason for failed in a.owner.refusals} == {Reason.DUPLICATE_NAME}
    assert {failed.reason for failed in twin.owner.refusals} == {Reason.DUPLICATE_NAME}
    assert len(a.owner.refusals) <= 2, "told again and again"
    assert a.machine.handshake_counters["duplicate_name"] >= 1

    # When the first is gone, the name is free.
    net.stations["b"].on = False
    assert net.run(3.0 + RETRY_REFUSED + 2.0, lambda: "a" in twin.owner.links)


def test_a_node_with_our_own_name_is_refused() -> None:
    net = Net()
    a = net.add("a", 1)
    twin = net.add("a", 2, identity=net.other_key("a"), key="twin")
    net.hint(a, twin)
    net.hint(twin, a)
    net.run(20.0)
    assert not a.owner.log
    assert not twin.owner.log
    for station in (a, twin):
        assert {failed.reason for failed in station.owner.refusals} == {Reason.OWN_NAME}
        assert len(station.owner.refusals) <= 2


# Ends


def test_silence_is_suspect_after_one_second_and_down_after_three() -> None:
    net, a, b = pair()
    b.on = False
    begin = net.now
    heard = a.owner.links["b"].transport.last_received
    assert net.run(2.0, lambda: a.owner.log[-1] == "b suspect: silent")
    assert net.now == pytest.approx(heard + 1.0, abs=0.001)
    assert net.run(4.0, lambda: a.owner.log[-1] == "b down: silent")
    assert net.now == pytest.approx(heard + 3.0, abs=0.001)
    assert net.now <= begin + 3.0
    assert a.machine.sizes() == {"links": 0, "sessions": 0, "hints": 1, "calls": 1, "half_open": 0, "timers": 0, "paths": 0}


def test_a_pause_shorter_than_that_loses_nothing() -> None:
    net, a, b = pair()
    net.block = lambda sender, cable, frame: True
    for number in range(20):
        net.send(a, "b", bytes([number]) * 5000)
    net.run(2.5)
    assert a.owner.log[-1] == "b suspect: silent"
    net.block = lambda sender, cable, frame: False
    net.run(1.0)
    assert a.owner.log == ["b up", "b suspect: silent", "b back"]
    assert b.owner.got == [bytes([number]) * 5000 for number in range(20)]


def test_when_only_one_way_works_both_ends_give_up_together() -> None:
    net, a, b = pair()
    net.block = lambda sender, cable, frame: sender == "a"
    begin = net.now
    assert net.run(5.0, lambda: not b.owner.links)
    assert net.run(0.1, lambda: not a.owner.links)
    assert net.now - begin < 3.3
    assert a.owner.log[-1] == "b down: hears nothing from us"


def test_goodbye_is_believed_at_once_though_two_of_three_copies_are_lost() -> None:
    net, a, b = pair()
    closing: list[bytes] = []

    def block(sender: str, cable: str, frame: bytes) -> bool:
        closing.append(frame)
        return len(closing) <= 2

    net.block = block
    b.machine.close(net.now)
    net.flush(b)
    b.on = False
    assert net.run(0.1, lambda: a.owner.log[-1] == "b down: left")
    assert b.owner.log[-1] == "a down: left"
    assert b.machine.sizes()["links"] == b.machine.sizes()["sessions"] == b.machine.sizes()["hints"] == 0


def test_after_goodbye_the_machine_is_dead() -> None:
    net, a, b = pair()
    b.machine.close(net.now)
    net.flush(b)
    count = len(net.frames)
    b.machine.close(net.now)
    net.hint(b, a)
    net.run(5.0)
    assert not [frame for _, sender, _, frame in net.frames[count:] if sender == "b"]


def test_a_restart_ends_the_old_link_and_begins_a_new_one() -> None:
    net, a, b = pair()
    old = a.owner.links["b"]
    again = net.add("b", 2)
    net.hint(again, a)
    assert net.run(1.0, lambda: len(a.owner.log) == 3)
    assert a.owner.log == ["b up", "b down: restarted", "b up restarted"]
    assert not old.alive
    net.send(a, "b", b"to the new one")
    a.machine.send(old, 1, [b"to the old one"], 10, net.now)
    net.run(0.5)
    assert again.owner.got == [b"to the new one"]
    assert not b.owner.got


def test_a_link_can_be_dropped() -> None:
    net, a, b = pair()
    a.machine.drop(a.owner.links["b"], "revoked", net.now)
    net.flush(a)
    assert a.owner.log[-1] == "b down: revoked"
    assert net.run(0.1, lambda: b.owner.log[-1] == "a down: revoked")


# Keys


def test_keys_are_renewed_while_there_is_traffic_all_the_time_and_nothing_is_lost() -> None:
    net, a, b = pair(rekey=RekeyPolicy(after=1.0, stagger=0.5, grace=0.5))
    sessions = set()
    for number in range(700):
        net.send(a, "b", number.to_bytes(4, "big") * 300)
        net.run(0.01)
        current = a.owner.links["b"].sessions.current
        assert current is not None
        sessions.add(current.local_index)
    net.run(0.5)
    assert len(sessions) >= 4
    assert [int.from_bytes(data[:4], "big") for data in b.owner.got] == list(range(700))
    assert a.owner.log == ["b up"]
    assert a.machine.sizes()["sessions"] <= 2


def test_data_right_behind_a_confirm_is_under_keys_that_are_known_by_then() -> None:
    """CONFIRM and the DATA behind it come in one batch, at the start and with every renewal. None of it is lost."""
    net, a, b = pair(RekeyPolicy(after=0.5, stagger=0.1, grace=1.0))
    for _ in range(40):
        net.send(a, "b", bytes(3000))
        net.send(b, "a", bytes(3000))
        net.run(0.05)
    assert kinds(net)[FINAL] + kinds(net)[RESPONSE] > 4
    for station, to in ((a, "b"), (b, "a")):
        assert station.machine.counters["unknown_session"] == 0
        assert [path.packets_lost for path in station.owner.links[to].transport.statistics().paths.values()] == [0]


def test_what_old_keys_refused_is_still_told() -> None:
    net, a, b = pair(rekey=RekeyPolicy(after=1.0, stagger=0.5, grace=0.5))
    net.send(a, "b", b"heard by somebody else too")
    net.run(0.1)
    copy = next(frame for _, sender, _, frame in net.frames if sender == "a" and frame[HEAD] == DATA)
    forged = copy[: HEAD + 8] + (1 << 40).to_bytes(8, "big") + copy[HEAD + 16 :]
    for number, frame in enumerate((copy, copy, forged), 1):
        b.machine.receive("en0", [frame], HEAD, net.now)
        assert sum(b.machine.drops().values()) == number
    told = b.machine.drops()
    assert told == {"replayed": 2, "bad_tag": 1}
    first = set(b.machine.sessions())
    assert net.run(5.0, lambda: not first & set(b.machine.sessions()))
    assert b.machine.drops() == told


def test_keys_are_renewed_by_number_of_frames() -> None:
    net, a, b = pair(rekey=RekeyPolicy(frames=200, grace=0.5))
    first = a.owner.links["b"].sessions.current
    net.send(a, "b", b"f" * 400_000)
    net.run(3.0)
    assert a.owner.links["b"].sessions.current is not first
    assert len(b.owner.got) == 1


def test_keys_that_cannot_be_renewed_are_used_up_and_the_link_ends() -> None:
    net, a, b = pair(rekey=RekeyPolicy(after=2.0, stagger=0.0, reject_after=20.0))
    begin = net.now
    net.block = lambda sender, cable, frame: frame[HEAD] != DATA
    assert net.run(30.0, lambda: not a.owner.links and not b.owner.links)
    assert net.now - begin < 22.0
    assert "b down: keys are too old" in a.owner.log or "a down: keys are too old" in b.owner.log
    net.block = lambda sender, cable, frame: False
    assert net.run(10.0, lambda: bool(a.owner.links and b.owner.links))


def test_a_lost_confirmation_of_new_keys_harms_nobody() -> None:
    net, a, b = pair(rekey=RekeyPolicy(after=1.0, stagger=0.0, grace=0.5))
    net.block = lambda sender, cable, frame: frame[HEAD] == FINAL and net.random.random() < 0.8
    for number in range(300):
        net.send(a, "b", bytes([number % 256]) * 10)
        net.send(b, "a", bytes([number % 256]) * 10)
        net.run(0.02)
    net.run(2.0)
    assert len(a.owner.got) == len(b.owner.got) == 300
    assert a.owner.log == ["b up"]


def test_who_is_told_of_new_keys_and_cannot_confirm_them_is_heard_under_the_old() -> None:
    """Whoever is between lets no CONFIRM pass, or changes where FINALs come from: the caller does not know that its keys are good."""
    net, a, b = pair(rekey=RekeyPolicy(after=1.0, stagger=0.0, grace=0.5))
    net.block = lambda sender, cable, frame: frame[HEAD] == CONFIRM
    for number in range(600):
        net.send(a, "b", bytes([number % 256]) * 10)
        net.send(b, "a", bytes([number % 256]) * 10)
        net.run(0.02)
        assert not a.owner.links["b"].suspect
        assert not b.owner.links["a"].suspect
    assert kinds(net)[CONFIRM] > 10
    assert len(a.owner.got) > 590
    assert len(b.owner.got) > 590
    for station in (a, b):
        assert station.machine.counters["unknown_session"] == 0
        assert station.machine.sizes()["sessions"] <= 5
    net.block = lambda sender, cable, frame: False
    before = set(a.machine.sessions())
    assert net.run(12.0, lambda: not before & set(a.machine.sessions()))
    assert (a.owner.log, b.owner.log) == (["b up"], ["a up"])


def test_keys_and_ciphers_are_renewed_at_both_ends_at_once_while_every_fifth_frame_is_lost() -> None:
    net, a, b = pair(rekey=RekeyPolicy(after=1.0, stagger=0.0, grace=1.0))
    net.block = lambda sender, cable, frame: net.random.random() < 0.2
    suites, indices = set(), set()
    ciphers = ["aes-128-gcm", "chacha20-poly1305", "aes-256-gcm"]
    for number in range(600):
        if number % 150 == 75:
            for station in (a, b):
                station.machine._handshake.set_suites([ciphers[number // 150 % 3]])
                for link in station.owner.links.values():
                    link.sessions.renew("suite")
        for near, far in ((a, "b"), (b, "a")):
            net.send(near, far, number.to_bytes(4, "big") * 200)
        net.run(0.02)
        current = a.owner.links["b"].sessions.current
        assert current is not None
        suites.add(current.suite)
        indices.add(current.local_index)
    net.block = lambda sender, cable, frame: False
    net.run(5.0)
    for station in (a, b):
        assert [int.from_bytes(data[:4], "big") for data in sorted(station.owner.got)] == list(range(600))
    assert a.owner.log == ["b up"], "a link went down"
    assert len(indices) >= 6
    assert suites == set(ciphers)


# Floods


def test_bogus_frames_cost_a_counter_each_and_a_live_link_goes_on() -> None:
    net, a, b = pair()
    random = Random(5)
    mac = a.ports["en0"][0]
    index = next(iter(a.machine._sessions))
    sizes = a.machine.sizes()
    batch = []
    for number in range(600):
        head = mac + bytes((2, 9, 9, 9)) + random.randbytes(2) + ETHERTYPE.to_bytes(2, "big")
        batch.append(
            random.choice(
                [
                    head + random.randbytes(random.randrange(80)),
                    head + DATA_HEADER.pack(DATA, number % 256, 40, random.getrandbits(32), number) + random.randbytes(40),
                    head + DATA_HEADER.pack(DATA, number % 256, 40, index, number + 1000) + random.randbytes(40),
                    head + bytes((random.choice([INITIATION, FINAL, 4, 5, 6]),)) + random.randbytes(300),
                ]
            )
        )
    for _ in range(10):
        a.machine.receive("en0", batch, HEAD, net.now)
        net.flush(a)
        net.run(0.01)
    net.send(b, "a", b"through all this")
    net.run(0.5)
    assert a.owner.got == [b"through all this"]
    assert a.owner.log == ["b up"]
    assert a.machine.counters["unknown_session"] > 100
    assert a.machine.counters["malformed"] > 100
    assert a.machine.sizes() == sizes
    current = a.owner.links["b"].sessions.current
    assert current is not None
    assert current.counters.bad_tag > 100
    assert len(current._windows) <= 2


def test_a_flood_of_announcements_is_bounded_in_memory_and_frames() -> None:
    net = Net()
    a = net.add("a", 1)
    for number in range(3 * STRANGERS_MAX):
        a.machine.hint(("en0", b"\x02\x07" + number.to_bytes(4, "big")), net.now)
    net.flush(a)
    sizes = a.machine.sizes()
    assert sizes["hints"] <= STRANGERS_MAX
    assert sizes["calls"] <= CALLS_MAX
    assert a.machine.counters["hints_full"] > 0
    begin, count = net.now, len(net.frames)
    net.run(20.0)
    assert (len(net.frames) - count) / (net.now - begin) < 4 * CALLS_MAX
    # A node that is really there is found in spite of it, as it calls us.
    b = net.add("b", 2)
    net.hint(b, a)
    assert net.run(3.0, lambda: "b" in a.owner.links)


def test_announcing_and_withdrawing_at_once_leaves_nothing() -> None:
    net = Net()
    a = net.add("a", 1)
    for number in range(2000):
        address = ("en0", b"\x02\x07" + number.to_bytes(4, "big"))
        a.machine.hint(address, net.now)
        if number >= CALLS_MAX:
            a.machine.unhint(address, net.now)
    sizes = a.machine.sizes()
    assert sizes["hints"] == sizes["calls"] == CALLS_MAX
    assert len(a.machine._calls._waiting) == 0


def test_a_frame_from_a_group_address_is_not_answered() -> None:
    net = Net()
    a, b = net.add("a", 1), net.add("b", 2)
    net.hint(b, a)
    initiation = next(frame for _, _, _, frame in net.frames if frame[HEAD] == INITIATION)
    net2 = len(net.frames)
    a.machine.receive("en0", [initiation[:6] + b"\xff" * 6 + initiation[12:]], HEAD, net.now)
    net.flush(a)
    assert len(net.frames) == net2
    assert a.machine.counters["group_source"] == 1


# Cost


def transfer(mtu: int) -> tuple[Net, Station, Station]:
    """A has 20 messages of 900,000 bytes for b, and an open window."""
    net = Net()
    a, b = net.add("a", 1, mtu=mtu), net.add("b", 2, mtu=mtu)
    net.up(a, b)
    net.send(a, "b", b"w" * 3_000_000)
    net.run(3.0)
    link = a.owner.links["b"]
    for _ in range(20):
        a.machine.send(link, 1, [b"v" * 900_000], 10, net.now)
    return net, a, b


def turn(net: Net, station: Station, brief: bool = False) -> list[bytes]:
    """What one call of `transmit` gives, put on the cable."""
    frames = [frame for _, batch in station.machine.transmit(net.now, brief) for frame in batch]
    for frame in frames:
        net.inject("lan", frame)
    return frames


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_a_large_transfer_gives_way_after_each_burst(mtu: int) -> None:
    net, a, b = transfer(mtu)
    sizes = []
    for _ in range(50):
        sizes.append(len(turn(net, a)))
        net.run(0.0005)
    assert BURST_LEAST <= max(sizes) <= BURST
    assert max(sizes) * mtu <= BURST_BYTES + BURST_LEAST * 100
    assert net.run(5.0, lambda: len(b.owner.got) == 21)


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_a_small_message_beside_a_transfer_is_in_the_next_frame(mtu: int) -> None:
    """And when the rest of the burst is about to come anyway, few frames go with it."""
    net, a, b = transfer(mtu)
    for _ in range(5):
        turn(net, a)
        assert a.machine.pending
    a.machine.send(a.owner.links["b"], 2, [b"small"], 10, net.now)
    frames = turn(net, a, brief=True)
    assert len(frames) <= BURST_BRIEF
    assert a.machine.pending, "the rest of the transfer"
    began = len(b.owner.got)
    net.run(net.latency * 1.5)
    assert b"small" in b.owner.got[began : began + 2], (
        "beside what was on the wire already, one large message at most, before anything else"
    )


def test_signs_of_life_do_not_wait_for_a_transfer() -> None:
    """20 MB wait all the time: a ping is in the next frame and is answered at once, and a peer that is silent is noticed as any other."""
    net, a, b = transfer(1500)
    link = a.owner.links["b"]
    b.owner.on_message = lambda _, data: a.machine.send(link, 1, [data], 10, net.now)
    for _ in range(10):
        turn(net, a)
        a.machine._ping(link, net.now)
        asked = net.now
        assert turn(net, a)
        net.run(2.5 * net.latency)
        assert link.transport.last_received > asked
        assert link.transport.backlog() > 10_000_000
    net.block = lambda sender, cable, frame: sender == "b"
    silent = net.now
    assert net.run(5.0, lambda: "b" not in a.owner.links)
    assert 2.9 < net.now - silent < 3.1


def test_an_idle_link_costs_two_frames_each_heartbeat() -> None:
    net, a, b = pair()
    frames, wakes = len(net.frames), a.wakes + b.wakes
    net.run(300.0)
    assert len(net.frames) - frames <= 300 / 0.3 * 2 + 50
    assert a.wakes + b.wakes - wakes <= 300 / 0.3 * 4 + 50


def test_what_a_turn_costs_does_not_depend_on_the_number_of_links() -> None:
    net = Net()
    hub = net.add("hub", 1)
    others = [net.add(f"n{number:02}", number + 2) for number in range(40)]
    for other in others:
        net.hint(other, hub)
    assert net.run(3.0, lambda: len(hub.owner.links) == 40)
    net.run(1.0)
    hub.machine.next_timeout()
    for link in hub.owner.links.values():
        # Whoever's deadline is computed now gets another one.
        link.heartbeat /= 64
    before = dict(hub.machine._due._wanted)
    hub.machine.send(hub.owner.links["n07"], 1, [b"one"], 10, net.now)
    list(hub.machine.transmit(net.now))
    hub.machine.next_timeout()
    hub.machine.next_timeout()
    assert [link.name for link, when in hub.machine._due._wanted.items() if when != before[link]] == ["n07"]
    hub.machine._touched += hub.owner.links.values()
    hub.machine.next_timeout()
    assert len([link for link, when in hub.machine._due._wanted.items() if when != before[link]]) == 40
