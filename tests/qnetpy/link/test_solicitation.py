"""The frame: parse, build, round trip, truncation; what its mac covers; and the stamp that the kernel's program looks at."""

from __future__ import annotations

import random

import pytest

from qnetpy.link import wire as w
from qnetpy.link.constants import GROUP, STAMP_SIZE
from qnetpy.link.ethernet import is_individual
from qnetpy.link.solicitation import HEADER, REST_SIZE, SIZE, Solicitation, Solicitations, parse_solicitation
from qnetpy.link.stamp import stamp, stamp_key
from qnetpy.link.wire import BadVersion
from resmgr.errors import BadMessage

SECRET, BOOT, OTHER_BOOT = bytes(range(32)), bytes(range(16)), bytes(range(1, 17))
SALT, STATION = bytes.fromhex("0102030405060708"), bytes.fromhex("020000000001")
KEYS = Solicitations(SECRET)


def made() -> Solicitation:
    return KEYS.make(SALT, BOOT, STATION)


def test_the_bytes_are_those_of_the_specification() -> None:
    data = made().pack()
    assert data.hex() == (
        "070100240102030405060708"  # type, version, length, salt
        "4dd2c86b94ce6a91"
        "5712badca0052068227e3e0a3862c68d"
        "3d056b14"
    )
    assert len(data) == SIZE == 40


def test_round_trip_with_and_without_padding() -> None:
    data = made().pack()
    for padded in (data, data + bytes(6), data.ljust(1500, b"\xff")):
        assert parse_solicitation(memoryview(padded)) == made()
        assert parse_solicitation(padded).pack() == data


def test_truncation_at_every_length() -> None:
    data = made().pack()
    for length in range(len(data)):
        with pytest.raises(BadMessage):
            parse_solicitation(data[:length])


def test_wrong_headers() -> None:
    rest = made().pack()[HEADER.size :]
    for kind, length in ((w.INITIATION, REST_SIZE), (0, REST_SIZE), (w.SOLICITATION, REST_SIZE - 1), (w.SOLICITATION, REST_SIZE + 1)):
        with pytest.raises(BadMessage):
            parse_solicitation(HEADER.pack(kind, 1, length) + rest + bytes(8))
    with pytest.raises(BadVersion):
        parse_solicitation(HEADER.pack(w.SOLICITATION, 2, REST_SIZE) + rest)


def test_every_bit_and_the_station_are_under_the_mac() -> None:
    data = made().pack()
    assert KEYS.check(parse_solicitation(data), STATION)
    for bit in range(8 * HEADER.size, 8 * (len(data) - STAMP_SIZE)):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        assert not KEYS.check(parse_solicitation(wrong), STATION)
    for bit in range(48):
        other = bytearray(STATION)
        other[bit // 8] ^= 1 << bit % 8
        assert not KEYS.check(parse_solicitation(data), bytes(other))


def test_another_cluster_does_not_know_it() -> None:
    other = Solicitations(bytes(32))
    assert not other.check(made(), STATION)
    assert not other.is_from(made(), BOOT)


def test_the_mark_tells_a_boot_to_those_who_know_it() -> None:
    assert KEYS.is_from(made(), BOOT)
    assert not KEYS.is_from(made(), OTHER_BOOT)
    again = KEYS.make(bytes(8), BOOT, STATION)
    assert again.mark != made().mark
    assert KEYS.is_from(again, BOOT)


def test_the_stamp_is_that_of_salt_mark_and_mac() -> None:
    one = made()
    assert one.stamp == stamp(stamp_key(SECRET), one.salt + one.mark + one.mac)


def test_an_observer_sees_the_same_of_all_boots_and_clusters() -> None:
    """No byte behind the header stays the same, whoever sends."""
    chance = random.Random(1)
    frames = [Solicitations(SECRET).make(chance.randbytes(8), BOOT, STATION).pack() for _ in range(64)]
    assert len({frame[: HEADER.size] for frame in frames}) == 1
    assert all(len({frame[place] for frame in frames}) > 30 for place in range(HEADER.size, SIZE))


def test_a_batch_is_sorted() -> None:
    frame = bytes(14) + made().pack().ljust(46, b"\0")
    for batch in ([frame], [frame, frame, frame], [frame, bytes(60)]):
        found = w.sort_frames([memoryview(one) for one in batch])
        assert [place for place, _ in found.solicitations] == list(range(batch.count(frame)))
        assert {parse_solicitation(one) for _, one in found.solicitations} == {made()}
        assert found.malformed == len(batch) - batch.count(frame)
    assert w.sort_frames([memoryview(frame[:29])]).malformed == 1


def test_the_group_is_a_group_of_nobodys() -> None:
    assert not is_individual(GROUP)
    assert GROUP[0] & 2, "locally administered"
