"""Order, shares, streams and credit of outgoing messages."""

from __future__ import annotations

from random import Random

from qnetpy.link.transport.constants import INITIAL_CREDIT, LOWER_SHARE, MESSAGE_COST, QUANTUM, SMALL_MESSAGE, SMALL_RESERVE, TURN
from qnetpy.link.transport.outgoing import Outbox
from qnetpy.link.transport.outmessage import OutMessage

PACKET = 1000


def box(credit: int = 1 << 40) -> Outbox:
    outbox = Outbox()
    outbox.credit = credit
    return outbox


def push(outbox: Outbox, size: int, stream: int = 1, priority: int = 10) -> OutMessage:
    message = OutMessage(outbox.plain, stream, priority, [bytes(size)])
    outbox.push(message)
    return message


def serve(outbox: Outbox) -> tuple[OutMessage, int, int] | None:
    """One packet's worth."""
    message = outbox.plain.pick()
    if message is None:
        return None
    span = message.span()
    assert span is not None
    start, stop = span[0], min(span[1], span[0] + PACKET)
    message.took(start, stop)
    outbox.plain.served(message, stop - start)
    return message, start, stop


def test_higher_priority_goes_first_between_any_two_packets() -> None:
    outbox = box()
    low = push(outbox, 50_000, stream=1, priority=5)
    assert [serve(outbox), serve(outbox)] == [(low, 0, 1000), (low, 1000, 2000)]

    high = push(outbox, 2500, stream=2, priority=6)

    served = [serve(outbox) for _ in range(4)]
    assert [entry[0] for entry in served if entry] == [high, high, high, low]


def test_lower_priorities_share_one_part_in_turn() -> None:
    outbox = box()
    sizes = {priority: push(outbox, 8 << 20, stream=priority, priority=priority) for priority in (0, 7, 20, 63)}
    sent = dict.fromkeys(sizes, 0)
    for _ in range(20_000):
        served = serve(outbox)
        assert served is not None
        sent[served[0].priority] += served[2] - served[1]
        if sent[63] == 8 << 20:
            break

    lower = sent[0] + sent[7] + sent[20]
    assert 0.8 < lower * LOWER_SHARE / (sent[63] - LOWER_SHARE * QUANTUM) < 1.2
    assert max(sent[0], sent[7], sent[20]) - min(sent[0], sent[7], sent[20]) <= 2 * PACKET


def test_small_messages_overtake_large_ones_of_their_priority_but_not_for_ever() -> None:
    outbox = box()
    large = push(outbox, 1 << 20, stream=1)
    assert serve(outbox) is not None
    small = push(outbox, 64, stream=2)
    assert serve(outbox) == (small, 0, 64)

    for stream in range(3, 4000):
        push(outbox, 1000, stream=stream)
    waited = 0
    while True:
        served = serve(outbox)
        assert served is not None
        if served[0] is large:
            break
        waited += 1
    assert waited * PACKET <= (LOWER_SHARE + 1) * QUANTUM


def test_a_large_one_keeps_its_share_where_there_is_always_a_small_one() -> None:
    outbox = box()
    sent = {True: 0, False: 0}
    for stream in range(2, 200):
        push(outbox, SMALL_MESSAGE, stream=stream)
    # None of it is under way yet.
    large = push(outbox, 1 << 20, stream=1)
    for stream in range(200, 3000):
        push(outbox, SMALL_MESSAGE, stream=stream)
        for _ in range(-(-SMALL_MESSAGE // PACKET)):
            served = serve(outbox)
            assert served is not None
            sent[served[0] is large] += served[2] - served[1]
        if large.span() is None:
            break
    assert 0.8 < sent[True] * LOWER_SHARE / (sent[False] - LOWER_SHARE * QUANTUM) < 1.2


def test_large_messages_alike_go_one_after_the_other_a_turn_at_most() -> None:
    outbox = box()
    one, two = push(outbox, TURN, stream=1), push(outbox, TURN, stream=2)
    huge = push(outbox, 3 * TURN, stream=3), push(outbox, 3 * TURN, stream=4)
    order = [served[0] for served in iter(lambda: serve(outbox), None)]

    runs = [message for index, message in enumerate(order) if not index or order[index - 1] is not message]
    mib = -(-TURN // PACKET)
    assert runs[:2] == [one, two]
    assert order[:mib] == [one] * mib
    # The huge ones alternate, a turn each.
    turns = [message for message in runs[2:] if order.count(message) > mib]
    assert set(turns) == set(huge)
    assert 6 <= len(turns) <= 8


def test_a_shorter_one_overtakes_longer_ones_which_keep_a_share() -> None:
    outbox = box()
    long = push(outbox, 8 * TURN, stream=1)
    for _ in range(3):
        assert serve(outbox) is not None
    short = push(outbox, 2 * SMALL_MESSAGE, stream=2)
    count = -(-2 * SMALL_MESSAGE // PACKET)
    assert [served[0] for served in (serve(outbox) for _ in range(count)) if served] == [short] * count

    sent = {True: 0, False: 0}
    for stream in range(3, 8 * LOWER_SHARE):
        # There is always a shorter one.
        message = push(outbox, 4 * QUANTUM, stream=stream)
        while message.span() is not None:
            served = serve(outbox)
            assert served is not None
            sent[served[0] is long] += served[2] - served[1]
    assert 0.7 < sent[True] * LOWER_SHARE / sent[False] < 1.3


def test_messages_of_a_stream_are_opened_in_order_and_name_the_one_before() -> None:
    outbox = box()
    first = push(outbox, 10, priority=1)
    second = push(outbox, 10, priority=60)
    other = push(outbox, 10, stream=2, priority=0)

    order = [served[0] for served in iter(lambda: serve(outbox), None)]

    assert order == [first, second, other]
    assert (first.id, second.id) == (1, 2)
    assert second.predecessor is first
    outbox.acked(second, 0, 10)
    third = push(outbox, 10)
    assert third.predecessor is second, "acknowledged but not yet delivered"
    outbox.acked(first, 0, 10)
    assert third.predecessor is None
    serve(outbox)
    outbox.acked(third, 0, 10)
    outbox.acked(other, 0, 10)
    assert outbox.streams() == outbox.backlog == outbox.messages == outbox.plain.mask == 0


def test_lost_bytes_go_first_and_without_what_is_acknowledged() -> None:
    outbox = box()
    message = push(outbox, 10_000)
    for _ in range(6):
        serve(outbox)
    outbox.acked(message, 2000, 3000)
    outbox.lost(message, 1000, 4000)

    spans = [(served[1], served[2]) for served in iter(lambda: serve(outbox), None)]

    assert spans[:2] == [(1000, 2000), (3000, 4000)]
    assert spans[2:] == [(start, start + 1000) for start in range(6000, 10_000, 1000)]


def test_late_acknowledgement_saves_the_retransmission() -> None:
    outbox = box()
    message = push(outbox, 2000)
    assert serve(outbox) == (message, 0, 1000)
    assert serve(outbox) == (message, 1000, 2000)
    outbox.lost(message, 0, 1000)
    outbox.acked(message, 0, 1000)

    assert serve(outbox) is None
    assert outbox.plain.mask == 0
    outbox.acked(message, 1000, 2000)
    assert outbox.backlog == 0


def test_empty_message_is_sent_again_when_lost() -> None:
    outbox = box()
    message = push(outbox, 0)
    assert serve(outbox) == (message, 0, 0)
    assert serve(outbox) is None
    outbox.lost(message, 0, 0)
    assert serve(outbox) == (message, 0, 0)
    outbox.acked(message, 0, 0)
    assert outbox.messages == 0


def test_large_messages_leave_credit_for_small_ones() -> None:
    outbox = box(INITIAL_CREDIT + SMALL_RESERVE)
    large = push(outbox, INITIAL_CREDIT)
    assert serve(outbox) is None, "would use the reserve"
    assert outbox.credit_blocked

    small = push(outbox, 64, stream=2)
    assert serve(outbox) == (small, 0, 64)

    outbox.credit += 10_000
    assert serve(outbox) == (large, 0, 1000)


def test_credit_counts_each_message() -> None:
    outbox = box(3 * (MESSAGE_COST + 10))
    for stream in range(5):
        push(outbox, 10, stream=stream)

    assert len(list(iter(lambda: serve(outbox), None))) == 3
    assert outbox.opened == outbox.credit


def test_parts_are_joined_without_copying_large_ones() -> None:
    random = Random(3)
    parts = [random.randbytes(size) for size in (7, 0, SMALL_MESSAGE, 1, 50_000)]
    whole = b"".join(parts)
    message = OutMessage(Outbox().plain, 1, 2, [parts[0], memoryview(parts[1]), bytearray(parts[2]), parts[3], parts[4]])

    assert message.total == len(whole)
    for start, stop in [(0, 7), (0, 8), (6, 9), (1, len(whole)), (SMALL_MESSAGE + 7, SMALL_MESSAGE + 8)]:
        assert bytes(message.piece(start, stop)) == whole[start:stop]
    message.id = 5
    # Across parts, within one, to the end of one, of the last.
    for start, count, size in [(3, 20, 1000), (1, 2, 3), (7, 16, 1024), (8, 10, 1000), (SMALL_MESSAGE + 8, 50, 1000)]:
        packets = message.cut(start, count, size)
        assert [len(packet) for packet in packets] == [20 + size] * count
        assert b"".join(packet[20:] for packet in packets) == whole[start : start + count * size]


def test_parts_of_wider_items_count_as_bytes() -> None:
    wide = memoryview(bytes(16)).cast("I")

    assert OutMessage(Outbox().plain, 1, 2, [wide]).total == 16
    assert OutMessage(Outbox().plain, 1, 2, [wide, b"x"]).total == 17
