"""The whole machine: what shares a packet, what overtakes what, credit, close, several paths, and authenticated nonsense."""

from __future__ import annotations

import struct
from random import Random

import pytest

from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.constants import ACK_THRESHOLD, BASE_PAYLOAD, MAX_ACK_DELAY, MAX_MESSAGE, MAX_PATHS, SMALL_RESERVE
from qnetpy.link.transport.events import CloseCode, Closed, MessageReceived, MtuChanged, PathFound, PathLost
from qnetpy.link.transport.items import Ack, Close, Credit, Data, Item, Packet, Padding, Ping, Start, decode
from qnetpy.link.transport.machine import Transport
from qnetpy.link.transport.routes import EXCLUSIVE, PREFERRED, REDUNDANT, route
from qnetpy.link.transport.testing import Faults, Pair
from resmgr.errors import BadMessage, Misuse


def transport(**options: object) -> Transport:
    machine = Transport(TransportConfig(**options), 0.0)  # type: ignore[arg-type]  # names are checked by the class
    machine.add_path(0, 1200, 0.0)
    return machine


def settled(max_payload: int = 1400, faults: Faults | None = None, config: TransportConfig | None = None) -> Pair:
    """A pair that has exchanged credit and searched its MTU."""
    pair = Pair(config)
    pair.join(0, (faults or Faults(), faults or Faults()), Random(1), max_payload)
    pair.run(0.2, lambda: False)
    for end in pair.ends:
        end.events()
    for events in pair.events:
        events.clear()
    return pair


def kinds(packet: bytes) -> list[str]:
    return [type(item).__name__ for item in decode(packet).items]


# What shares a packet


def test_first_packet_carries_credit_and_message() -> None:
    machine = transport()
    machine.send(1, [b"hello"], 10, 0.0)

    assert [kinds(packet) for packet in machine.transmit(0, 0.0, 64)[1]] == [["Credit", "Start"]]
    assert machine.transmit(0, 0.0, 64) == (1, [])


def test_small_messages_share_a_packet_and_the_ack_rides_with_them() -> None:
    pair = settled()
    one, two = pair.ends
    for stream in range(5):
        one.send(stream, [b"request"], 10, pair.now)
    pn, packets = one.transmit(0, pair.now, 64)
    assert [kinds(packet) for packet in packets] == [["Start"] * 5]

    two.receive(0, [(pn, packets[0])], pair.now)
    assert len(two.events()) == 5
    assert two.transmit(0, pair.now, 64)[1] == [], "the ACK waits for something to ride with"
    two.send(9, [b"answer"], 10, pair.now)
    assert [kinds(packet) for packet in two.transmit(0, pair.now, 64)[1]] == [["Ack", "Start"]]
    assert two.next_timeout() != pytest.approx(pair.now + MAX_ACK_DELAY)


def test_ack_alone_after_its_delay() -> None:
    pair = settled()
    one, two = pair.ends
    one.send(1, [b"request"], 10, pair.now)
    pn, packets = one.transmit(0, pair.now, 64)
    two.receive(0, [(pn, packets[0])], pair.now)

    assert two.next_timeout() == pair.now + MAX_ACK_DELAY
    two.handle_timeout(pair.now + MAX_ACK_DELAY)
    _, answer = two.transmit(0, pair.now + MAX_ACK_DELAY, 64)
    assert [kinds(packet) for packet in answer] == [["Ack"]]
    (ack,) = decode(answer[0]).items
    assert isinstance(ack, Ack)
    assert ack.delay == pytest.approx(MAX_ACK_DELAY, abs=2e-5)


def test_one_ack_for_a_batch_and_at_once_for_many_or_for_a_gap() -> None:
    pair = settled()
    one, two = pair.ends
    one.send(1, [bytes(1400 * 30)], 10, pair.now)
    pn, packets = one.transmit(0, pair.now, 20)
    numbered = list(enumerate(packets, pn))
    two.receive(0, numbered[:ACK_THRESHOLD], pair.now)
    answer = two.transmit(0, pair.now, 64)[1]
    assert [kinds(packet) for packet in answer] == [["Ack"]]

    two.receive(0, numbered[ACK_THRESHOLD : ACK_THRESHOLD + 1], pair.now)
    assert two.transmit(0, pair.now, 64)[1] == []
    two.receive(0, numbered[ACK_THRESHOLD + 2 : ACK_THRESHOLD + 3], pair.now)
    (packet,) = two.transmit(0, pair.now, 64)[1]
    (ack,) = decode(packet).items
    assert isinstance(ack, Ack)
    assert len(ack.ranges) == 2


def test_the_last_packet_of_a_full_window_asks_for_an_ack() -> None:
    pair = settled()
    one = pair.ends[0]
    one.send(1, [bytes(10 << 20)], 10, pair.now)
    _, packets = one.transmit(0, pair.now, 10_000)

    window = one.statistics().paths[0]
    assert window.window - window.in_flight < 1400
    assert [packet[0] >> 7 for packet in packets] == [0] * (len(packets) - 1) + [1]
    assert all(len(packet) <= 1400 for packet in packets)


def test_ping_and_acks_pass_a_full_window() -> None:
    pair = settled()
    one, two = pair.ends
    one.send(1, [bytes(10 << 20)], 10, pair.now)
    one.transmit(0, pair.now, 10_000)
    assert one.transmit(0, pair.now, 10_000)[1] == []

    one.ping(pair.now)
    two.ping(pair.now)
    pn, packets = two.transmit(0, pair.now, 1)
    one.receive(0, list(enumerate(packets, pn)), pair.now)

    assert one.last_received == pair.now
    assert [kinds(packet) for packet in one.transmit(0, pair.now, 64)[1]] == [["Ack", "Ping"]]


def test_numbers_follow_each_other() -> None:
    machine = transport()
    machine.send(1, [bytes(20_000)], 10, 0.0)
    expected = 0
    for limit in (1, 3, 2, 64):
        pn, packets = machine.transmit(0, 0.0, limit)
        assert pn == expected
        assert len(packets) <= limit
        expected += len(packets)
    assert expected == 17


# Priorities


def test_small_messages_during_a_64_mib_transfer_wait_a_bounded_number_of_packets() -> None:
    faults = Faults(rate=1e9, delay=20e-6, queue=128 << 10)
    pair = settled(faults=faults)
    for stream in range(64):
        pair.send(0, stream, bytes(1 << 20))
    waits: list[float] = []
    asked: dict[int, float] = {}

    def ask() -> None:
        asked[pair.steps] = pair.now
        pair.send(0, 1000 + len(asked), struct.pack(">d", pair.now) + bytes(56), priority=20)
        if len(asked) < 50:
            pair.at(pair.now + 1e-3, ask)

    def answered(end: int, event: MessageReceived, now: float) -> None:
        if len(event.data) == 64:
            waits.append(now - struct.unpack_from(">d", event.data)[0])

    pair.on_message = answered
    pair.at(pair.now + 2e-3, ask)
    assert pair.run(pair.now + 5.0)
    assert len(waits) == 50
    # Nothing is sent ahead of it but what is in flight already: the delay budget of the controller and the queue.
    packets = sorted(wait * 1e9 / 1460 for wait in waits)
    assert packets[-1] < 300, packets
    assert packets[len(packets) // 2] < 200, packets


def test_lowest_priority_moves_under_a_flood_of_the_highest() -> None:
    pair = settled(faults=Faults(rate=125e6))
    low = bytes(100_000)
    pair.send(0, 1, low, priority=0)
    for stream in range(2, 30):
        pair.send(0, stream, bytes(1 << 20), priority=63)
    pair.run(pair.now + 5.0)

    order = [event.priority for event in pair.received[1]]
    assert order.index(0) <= 6


# Credit


def test_credit_limits_what_is_open_and_everything_arrives() -> None:
    window = MAX_MESSAGE + SMALL_RESERVE
    pair = settled(8900, Faults(rate=2e9), TransportConfig(receive_window=window))
    data = bytes(12 << 20)
    for stream in range(12):
        pair.send(0, stream, data)
    done = pair.run(pair.now + 5.0)

    assert done
    assert len(pair.received[1]) == 12
    statistics = pair.ends[0].statistics()
    assert statistics.credit_blocked > 0
    assert 0 < pair.peak_held <= window
    assert pair.ends[1].statistics().held == 0


def test_messages_wait_for_the_first_credit() -> None:
    machine = transport()
    machine.send(1, [bytes(2 << 20)], 10, 0.0)
    assert [kinds(packet) for packet in machine.transmit(0, 0.0, 64)[1]] == [["Credit"]]

    machine.receive(0, [(0, Credit(70 << 20).pack())], 0.0)
    assert len(machine.transmit(0, 0.0, 64)[1]) > 5


def test_lost_credit_is_sent_again() -> None:
    pair = Pair()
    pair.join(0, (Faults(), Faults(dark=((0.0, 0.02),))), Random(1), 1400)
    pair.send(0, 1, bytes(2 << 20))

    assert pair.run(2.0)
    assert pair.wires[0, 1].dropped["dark"]


def test_older_credit_that_comes_late_takes_nothing_back() -> None:
    machine = transport()
    machine.receive(0, [(1, Credit(70 << 20).pack()), (0, Credit(10).pack())], 0.0)
    machine.send(1, [bytes(2 << 20)], 10, 0.0)

    assert len(machine.transmit(0, 0.0, 64)[1]) > 5


# MTU


def test_mtu_drops_to_1300_in_mid_flow_and_comes_back() -> None:
    faults = Faults(rate=1e9, mtu_changes=((0.21, 1300), (0.5, 9000)))
    pair = settled(8900, faults, TransportConfig(mtu_retry=0.5))
    assert pair.ends[0].statistics().paths[0].payload == 8900
    data = Random(3).randbytes(16 << 20)
    pair.send(0, 1, data)
    assert pair.run(3.0)
    assert bytes(pair.received[1][0].data) == data
    assert pair.now < 0.3, "a black hole costs milliseconds"
    pair.run(0.45, lambda: False)
    sizes = [event.payload for event in pair.events[0] if isinstance(event, MtuChanged)]
    assert sizes[0] == BASE_PAYLOAD
    assert 1268 <= sizes[-1] <= 1300

    pair.run(2.0, lambda: False)
    assert pair.ends[0].statistics().paths[0].payload == 8900


def test_each_direction_finds_its_own_size() -> None:
    pair = Pair()
    pair.join(0, (Faults(mtu=1444), Faults()), Random(1), 8900)
    pair.run(1.0, lambda: False)

    assert 1412 <= pair.ends[0].statistics().paths[0].payload <= 1444
    assert pair.ends[1].statistics().paths[0].payload == 8900


# Several paths


def two_paths(faults: Faults, number: int = 0) -> Pair:
    """Ports 1 and 2 at both ends; *number* is the route of what has none."""
    pair = Pair()
    for path in (0, 1):
        pair.join(path, (faults, faults), Random(path), 1400)
        for end in pair.ends:
            end.route = number
    pair.run(0.2, lambda: False)
    return pair


def test_loadbalance_uses_the_sum() -> None:
    times = {}
    for name, number in (("one", route(EXCLUSIVE, 1)), ("both", 0)):
        pair = two_paths(Faults(rate=50e6), number)
        began = pair.now
        pair.send(0, 1, bytes(10 << 20))
        assert pair.run(2.0)
        times[name] = pair.now - began

    assert times["both"] < 0.6 * times["one"]


@pytest.mark.parametrize(("number", "bad"), [(0, 0), (0, 1), (route(PREFERRED, 1), 0), (route(PREFERRED, 2), 1), (route(REDUNDANT), 0)])
def test_silent_path_moves_its_data_within_three_probe_timeouts(number: int, bad: int) -> None:
    pair = two_paths(Faults(rate=50e6), number)
    data = Random(2).randbytes(10 << 20)
    pair.send(0, 1, data)
    pair.run(0.25, lambda: False)
    for end in (0, 1):
        pair.wires[bad, end].faults = Faults(dark=((0.0, 1.0),))
    dark = pair.now
    pair.run(3.0, lambda: PathLost(bad) in pair.events[0])
    assert pair.now - dark < 0.3
    assert pair.run(3.0)

    assert pair.now < 0.8
    assert [bytes(event.data) for event in pair.received[1]] == [data]
    pair.run(2.0, lambda: False)
    assert PathFound(bad) in pair.events[0], "it is used again when it answers"
    assert not any(path.suspect for path in pair.ends[0].statistics().paths.values())


@pytest.mark.parametrize("pause", [0.001, 0.005, 0.02, 0.05])
@pytest.mark.parametrize("bad", [0, 1])
def test_who_sends_a_little_all_the_time_notices_a_silent_path_too(pause: float, bad: int) -> None:
    """What is sent meanwhile does not put the probe timeout off."""
    pair = two_paths(Faults(), route(PREFERRED, bad + 1))
    late: list[float] = []
    pair.on_message = lambda end, event, now: late.append(now - float(bytes(event.data)))

    def send() -> None:
        pair.send(0, 1, repr(pair.now).encode())
        if pair.now < end:
            pair.at(pair.now + pause, send)

    end = pair.now + 1.5
    send()
    pair.run(pair.now + 0.3, lambda: False)
    for side in (0, 1):
        pair.wires[bad, side].faults = Faults(dark=((0.0, 9.0),))
    dark = pair.now
    assert pair.run(dark + 0.5, lambda: PathLost(bad) in pair.events[0])
    assert pair.run(3.0)
    assert max(late) < 0.5


@pytest.mark.parametrize("spike", [0.03, 0.1, 0.4])
def test_a_path_that_falls_silent_after_a_pause_is_left_within_half_a_second(spike: float) -> None:
    """A process that had no processor for a while answers late: what comes after varies by as much."""
    pair = two_paths(Faults(rate=50e6))
    for path in (0, 1):
        pair.ends[0].path(path).rtt.update(spike, 0.0, pair.now)
    bad = pair.ends[0].order()[0]
    for end in (0, 1):
        pair.wires[bad, end].faults = Faults(dark=((0.0, 60.0),))
    pair.send(0, 1, b"whole")
    began = pair.now
    assert pair.run(5.0, lambda: PathLost(bad) in pair.events[0])
    assert pair.now - began < 0.5
    assert [bytes(event.data) for event in pair.received[1]] == [b"whole"]


def test_a_far_path_is_not_suspected_for_being_far() -> None:
    """Of 200 ms, beside one of 0.1 ms that carries nothing for this message."""
    pair = Pair()
    pair.join(0, (Faults(delay=0.1), Faults(delay=0.1)), Random(1))
    pair.join(1, (Faults(), Faults()), Random(2))
    pair.run(2.0, lambda: False)
    for number in range(20):
        pair.at(pair.now + number * 0.3, lambda: pair.send(0, 1, b"far", route=route(EXCLUSIVE, 1)))
    pair.run(8.0, lambda: len(pair.received[1]) == 20)
    assert len(pair.received[1]) == 20
    assert PathLost(0) not in pair.events[0]


def test_removed_path_hands_its_data_over() -> None:
    pair = two_paths(Faults(rate=50e6))
    pair.send(0, 1, bytes(1 << 20))
    pair.run(0.205, lambda: False)
    for end in pair.ends:
        end.remove_path(0, pair.now)
        end.remove_path(77, pair.now)
    assert pair.run(1.0)
    assert len(pair.received[1]) == 1
    assert pair.ends[1].statistics().no_such_path > 0, "packets that were under way are counted"


def test_ends_that_told_each_other_that_the_last_path_is_down_find_it_again() -> None:
    pair = two_paths(Faults())
    for end in pair.ends:
        end.path_up(1, False, pair.now)
    pair.run(pair.now + 0.1, lambda: False)
    assert [end.statistics().paths[1].state for end in pair.ends] == ["down", "down"]
    for end in pair.ends:
        end.remove_path(0, pair.now)
    pair.send(0, 1, b"waits")
    for end in pair.ends:
        end.path_up(1, True, pair.now)
    assert pair.run(pair.now + 0.1), [end.statistics().paths[1].state for end in pair.ends]


@pytest.mark.parametrize("size", [64, 100_000])
def test_a_wish_is_kept_and_told_for_the_answer(size: int) -> None:
    pair = two_paths(Faults())
    for port in (1, 2):
        before = [pair.wires[path, 0].bytes for path in (0, 1)]
        pair.send(0, 1, bytes(size), route=route(EXCLUSIVE, port))
        assert pair.run(pair.now + 1.0)
        used = [pair.wires[path, 0].bytes - first for path, first in zip((0, 1), before, strict=True)]
        assert used[port - 1] > size
        assert used[2 - port] < 100
        assert pair.received[1][-1].route == route(EXCLUSIVE, port, theirs=True)


def test_small_messages_of_another_lane_do_not_wait_for_bulk() -> None:
    pair = two_paths(Faults(rate=20e6))
    pair.send(0, 1, bytes(10 << 20), route=route(PREFERRED, 1))
    pair.run(pair.now + 0.05, lambda: False)
    began = pair.now
    pair.send(0, 2, b"small", route=route(EXCLUSIVE, 2))
    assert pair.run(pair.now + 0.1, lambda: any(event.stream == 2 for event in pair.received[1]))
    assert pair.now - began < 0.005


def test_a_transfer_does_not_wait_for_a_slow_path_at_its_end() -> None:
    """100 ms and 0.1 ms away: whatever is left when the fast one is full is sooner there by waiting."""
    pair = Pair()
    pair.join(0, (Faults(rate=10e6), Faults(rate=10e6)), Random(1), 1400)
    pair.join(1, (Faults(rate=10e6, delay=0.1), Faults(rate=10e6, delay=0.1)), Random(2), 1400)
    pair.run(2.0, lambda: False)
    for _ in range(20):
        began = pair.now
        count = len(pair.received[1])
        pair.send(0, 1, bytes(60_000))
        assert pair.run(pair.now + 1.0, lambda count=count: len(pair.received[1]) > count)  # type: ignore[misc]  # bound early
        assert pair.now - began < 0.02


def test_path_added_after_the_only_one_died() -> None:
    pair = settled(faults=Faults(rate=50e6))
    pair.send(0, 1, bytes(1 << 20))
    pair.run(pair.now + 1e-3, lambda: False)
    for end in (0, 1):
        pair.wires[0, end].faults = Faults(dark=((0.0, 99.0),))
    pair.run(pair.now + 1.0, lambda: False)
    assert PathLost(0) in pair.events[0]
    pair.join(1, (Faults(), Faults()), Random(1), 1400)

    assert pair.run(pair.now + 1.0)
    assert len(pair.received[1]) == 1


# Close, misuse


def test_close_reaches_the_peer_and_ends_both() -> None:
    pair = settled()
    one, two = pair.ends
    one.send(1, [bytes(100_000)], 10, pair.now)
    final = one.close("going down", pair.now)
    assert [(path, decode(packet).items) for path, _, packet in final] == [(0, (Close(0, "going down"),))]
    assert one.close("again", pair.now) == []
    assert one.next_timeout() is None
    assert one.transmit(0, pair.now, 64)[1] == []

    two.receive(0, [(final[0][1], final[0][2])], pair.now)
    assert two.events() == [Closed(True, CloseCode.NORMAL, "going down")]
    assert two.closed
    assert two.next_timeout() is None
    assert two.transmit(0, pair.now, 64)[1] == []
    two.receive(0, [(999, Ping().pack())], pair.now)
    assert two.statistics().after_close == 1
    with pytest.raises(Misuse):
        two.send(1, [b"x"], 10, pair.now)


def test_misuse() -> None:
    machine = transport()
    with pytest.raises(Misuse):
        machine.send(1, [b"x"], 64, 0.0)
    with pytest.raises(Misuse):
        machine.send(1, [b"x"], -1, 0.0)
    with pytest.raises(Misuse):
        machine.send(1, [bytes(MAX_MESSAGE), b"x"], 1, 0.0)
    with pytest.raises(Misuse):
        machine.add_path(0, 1400, 0.0)
    with pytest.raises(Misuse):
        machine.add_path(1, BASE_PAYLOAD - 1, 0.0)
    for path in range(1, MAX_PATHS):
        machine.add_path(path, 1400, 0.0)
    with pytest.raises(Misuse):
        machine.add_path(MAX_PATHS, 1400, 0.0)
    with pytest.raises(ValueError, match="tolerant"):
        transport(congestion="vegas")
    with pytest.raises(ValueError, match="receive_window"):
        transport(receive_window=1000)


# Authenticated nonsense


@pytest.mark.parametrize(
    ("packet", "code", "why"),
    [
        (b"", CloseCode.PROTOCOL_ERROR, "truncated"),
        (b"\x0a", CloseCode.PROTOCOL_ERROR, "unknown item"),
        (b"\x03\x01", CloseCode.PROTOCOL_ERROR, "truncated"),
        (Ack(0.0, ((5, 9),)).pack(), CloseCode.PROTOCOL_ERROR, "never sent"),
        (Start(1, 1, MAX_MESSAGE, 1, 0, b"x").pack() + Start(1, 2, MAX_MESSAGE, 1, 0, b"x").pack(), CloseCode.CREDIT_EXCEEDED, "credit"),
        (Start(1, 1 << 60, 0, 1, 0, b"").pack(), CloseCode.TOO_MANY_MESSAGES, "undelivered"),
        (Data(1, 1, 4, 9, b"abc").pack() + Data(1, 1, 4, 8, b"abc").pack(), CloseCode.PROTOCOL_ERROR, "size"),
    ],
)
def test_protocol_error_closes_with_a_named_reason(packet: bytes, code: CloseCode, why: str) -> None:
    machine = transport()
    machine.transmit(0, 0.0, 64)
    machine.receive(0, [(0, packet), (1, b"\xff")], 0.0)

    (event,) = machine.events()
    assert isinstance(event, Closed)
    assert (event.by_peer, event.code) == (False, code)
    assert why in event.reason
    assert machine.statistics().protocol_errors == 1
    (last,) = machine.transmit(0, 0.0, 64)[1]
    assert decode(last).items == (Close(code, event.reason),)
    assert machine.transmit(0, 0.0, 64)[1] == []
    assert machine.next_timeout() is None


def test_unknown_close_code_is_shown_as_protocol_error() -> None:
    machine = transport()
    machine.receive(0, [(0, Close(4711, "from the future").pack())], 0.0)

    assert machine.events() == [Closed(True, CloseCode.PROTOCOL_ERROR, "from the future")]


@pytest.mark.parametrize("seed", range(40))
def test_mutated_packets_never_raise_and_never_pass_what_decode_refuses(seed: int) -> None:
    random = Random(seed)
    for _ in range(60):
        machine = transport()
        machine.send(1, [bytes(5000)], 10, 0.0)
        machine.transmit(0, 0.0, 64)
        items: list[Item] = [
            Ack(0.0, ((0, 2), (3, 4))),
            Start(1, 1, 3000, 1, 0, bytes(500)),
            Data(1, 1, 500, 3000, bytes(700)),
            Start(1, 2, 4, 2, 1, b"abcd"),
            Ping(),
            Credit(1 << 25),
            Close(0, "x"),
            Padding(3),
        ]
        random.shuffle(items)
        packet = bytearray(Packet(False, tuple(items[: random.randrange(1, 6)])).pack())
        for _ in range(random.randrange(4)):
            packet[random.randrange(min(len(packet), 40))] = random.getrandbits(8)
        if random.random() < 0.3:
            del packet[random.randrange(len(packet)) :]
        plain = bytes(packet)
        machine.receive(0, [(random.randrange(1 << 40), plain)], 0.0)
        closed = any(isinstance(event, Closed) for event in machine.events())
        try:
            decode(plain)
        except BadMessage:
            assert closed, plain.hex()
        machine.transmit(0, 0.0, 64)
        machine.handle_timeout(1.0)


def test_packet_numbers_far_apart_do_not_fill_memory() -> None:
    machine = transport()
    for start in range(0, 100_000, 10):
        machine.receive(0, [(start * 7, Ping().pack())], 0.0)
    assert machine.statistics().paths[0].received_ranges <= 128
    (packet,) = machine.transmit(0, 0.0, 1)[1]
    assert len(packet) < BASE_PAYLOAD
