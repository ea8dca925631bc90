"""When a node says that it is there, and whom it believes: the machine, under made-up time."""

from __future__ import annotations

import random
from itertools import pairwise

import attrs
import pytest

from qnetpy.discovery import solicitor as s
from qnetpy.discovery.solicitor import Solicitor
from qnetpy.link.constants import GROUP
from qnetpy.link.solicitation import Solicitations, parse_solicitation
from qnetpy.link.wire import Address

SECRET = bytes(range(32))
KEYS = Solicitations(SECRET)
OWN_BOOT, BOOT, LATER_BOOT = (bytes((number,)) * 16 for number in (1, 2, 3))
OWN = bytes.fromhex("020000000001")


def station(number: int) -> bytes:
    return bytes.fromhex("0200000000") + bytes((number,)) if number < 256 else b"\x02\x01" + number.to_bytes(4, "big")


@attrs.define
class Rig:
    chance: random.Random
    machine: Solicitor
    now: float = 100.0
    sent: list[tuple[float, Address, bytes]] = attrs.Factory(list)
    fresh: list[tuple[float, Address]] = attrs.Factory(list)
    gone: list[tuple[float, Address]] = attrs.Factory(list)

    def take(self) -> None:
        self.sent += [(self.now, to, frame) for to, frame in self.machine.transmit()]
        fresh, gone = self.machine.hints()
        self.fresh += [(self.now, address) for address in fresh]
        self.gone += [(self.now, address) for address in gone]

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (when := self.machine.next_timeout()) is not None and when <= end:
            self.now = max(when, self.now)
            self.machine.handle_timeout(self.now)
            self.take()
            following = self.machine.next_timeout()
            assert following is None or following > self.now, "the timer stands still"
        self.now = end

    def frame(self, boot: bytes = BOOT, number: int = 2) -> bytes:
        return KEYS.make(self.chance.randbytes(8), boot, station(number)).pack()

    def hear(self, frame: bytes, number: int = 2, boot_there: bytes = b"", interface: str = "en0") -> None:
        self.machine.heard((interface, station(number)), frame, boot_there, self.now)
        self.take()

    @property
    def times(self) -> list[float]:
        return [when for when, _, _ in self.sent]


@pytest.fixture
def rig() -> Rig:
    chance = random.Random(1)
    made = Rig(chance, Solicitor(KEYS, lambda: OWN_BOOT, chance.randbytes))
    made.machine.interface("en0", OWN, True, made.now)
    return made


def test_first_at_once_then_ever_more_rarely_then_a_steady_beat(rig: Rig) -> None:
    rig.run(120.0)
    first, waits = rig.times[0] - 100.0, [later - earlier for earlier, later in pairwise(rig.times)]
    assert 0.0 <= first <= s.SPREAD
    for wait, least in zip(waits, (*s.WAITS, *[s.BEAT] * len(waits)), strict=False):
        assert least <= wait <= least * (1.0 + s.JITTER)
    assert len(set(waits)) == len(waits)
    assert {to for _, to, _ in rig.sent} == {("en0", GROUP)}
    assert len({frame for _, _, frame in rig.sent}) == len(rig.sent)
    assert KEYS.check(parse_solicitation(rig.sent[0][2]), OWN)


def test_nothing_is_sent_without_carrier_and_all_begins_anew_with_it(rig: Rig) -> None:
    rig.run(30.0)
    rig.machine.interface("en0", OWN, True, rig.now)
    count = len(rig.sent)
    rig.machine.interface("en0", OWN, False, rig.now)
    assert rig.machine.next_timeout() is None
    rig.machine.seek(rig.now)
    rig.run(60.0)
    assert len(rig.sent) == count
    for address in (OWN, station(9)):
        back = rig.now
        rig.machine.interface("en0", address, True, rig.now)
        rig.run(1.5)
        assert len([when for when in rig.times if when >= back]) == 3
        assert KEYS.check(parse_solicitation(rig.sent[-1][2]), address)


def test_each_interface_for_itself(rig: Rig) -> None:
    rig.run(5.0)
    rig.machine.interface("en1", station(9), True, rig.now)
    began, count = rig.now, len(rig.sent)
    rig.run(1.2)
    assert [to for when, to, _ in rig.sent[count:] if when > began].count(("en1", GROUP)) == 3
    rig.machine.interface_gone("en1")
    count = len(rig.sent)
    rig.run(30.0)
    assert {to for _, to, _ in rig.sent[count:]} == {("en0", GROUP)}


def test_a_name_that_is_asked_for_causes_one_now_but_not_too_often(rig: Rig) -> None:
    rig.run(35.0)
    count = len(rig.sent)
    for _ in range(100):
        rig.machine.seek(rig.now)
    rig.take()
    assert rig.times[count:] == [rig.now]
    rig.run(s.SEEK_LEAST)
    assert len(rig.sent) - count == 3, "and it begins anew"
    rig.machine.seek(rig.now)
    rig.take()
    assert len(rig.sent) - count == 3, "the last was a moment ago"


def test_who_asks_is_called_and_forgotten_when_silent(rig: Rig) -> None:
    rig.hear(rig.frame())
    assert rig.fresh == [(100.0, ("en0", station(2)))]
    rig.run(50.0)
    rig.hear(rig.frame())
    assert len(rig.fresh) == 2, "each time that it asks"
    rig.run(59.0)
    assert not rig.gone
    assert len(rig.machine) == 1
    rig.run(1.0)
    assert rig.gone == [(210.0, ("en0", station(2)))]
    assert len(rig.machine) == 0
    assert not rig.machine.counters


def test_who_is_linked_with_that_boot_is_left_in_peace(rig: Rig) -> None:
    rig.run(30.0)
    count = len(rig.sent)
    for _ in range(100):
        rig.hear(rig.frame(), boot_there=BOOT)
    assert not rig.fresh
    assert len(rig.sent) == count
    assert not rig.machine.counters


def test_a_beat_of_who_is_linked_keeps_it_from_being_withdrawn(rig: Rig) -> None:
    rig.hear(rig.frame())
    for _ in range(12):
        rig.run(10.0)
        rig.hear(rig.frame(), boot_there=BOOT)
    assert not rig.gone


def test_another_boot_where_somebody_is_linked_is_told_of_us_alone(rig: Rig) -> None:
    rig.run(30.0)
    count = len(rig.sent)
    rig.hear(rig.frame(LATER_BOOT), boot_there=BOOT)
    assert not rig.fresh
    (_, to, frame), *more = rig.sent[count:]
    assert not more
    assert to == ("en0", station(2))
    other = Solicitor(KEYS, lambda: LATER_BOOT, rig.chance.randbytes)
    other.interface("en0", station(2), True, rig.now)
    other.heard(("en0", OWN), frame, b"", rig.now)
    assert other.hints()[0] == [("en0", OWN)], "who was restarted calls"
    linked = Solicitor(KEYS, lambda: BOOT, rig.chance.randbytes)
    linked.interface("en0", station(2), True, rig.now)
    linked.heard(("en0", OWN), frame, OWN_BOOT, rig.now)
    assert linked.hints()[0] == []
    assert linked.transmit() == [], "who was not does nothing"


def test_what_a_stranger_sends_takes_nobodys_place(rig: Rig) -> None:
    stranger = Solicitations(bytes(32))
    for number in range(300):
        rig.hear(stranger.make(rig.chance.randbytes(8), BOOT, station(number)).pack(), number)
        rig.hear(rig.frame(), 3000 + number)  # a real one, from another station
        rig.hear(b"\x07\x01" + rig.chance.randbytes(38))
    assert rig.machine.counters == {"bad_mac": 600, "malformed": 300}
    assert rig.machine.sizes() == {"askers": 0, "solicitations_seen": 0}
    rig.hear(rig.frame())
    assert rig.fresh == [(rig.now, ("en0", station(2)))]


def test_copies_lead_nowhere_and_take_no_budget(rig: Rig) -> None:
    frame = rig.frame()
    for _ in range(1000):
        rig.hear(frame)
    assert len(rig.fresh) == 1
    assert rig.machine.counters == {"repeated": 999}
    for _ in range(s.ASKER_BURST - 1):
        rig.hear(rig.frame())
    assert len(rig.fresh) == s.ASKER_BURST


def test_recordings_of_one_station_cost_one_call_a_minute(rig: Rig) -> None:
    for _ in range(3600):
        rig.run(1.0)
        rig.hear(rig.frame())
    assert s.ASKER_BURST + 55 <= len(rig.fresh) <= s.ASKER_BURST + 61
    assert rig.machine.counters["asker_too_often"] == 3600 - len(rig.fresh)


def test_all_stations_together_are_bounded_and_so_is_memory(rig: Rig) -> None:
    for number in range(10_000):
        rig.hear(rig.frame(number=10 + number), 10 + number)
        rig.now += 1e-3
    # Ten seconds: it begins anew meanwhile at most.
    assert s.TOTAL_BURST + 9 * s.TOTAL_RATE <= len(rig.fresh) <= s.TOTAL_BURST + 11 * s.TOTAL_RATE
    assert rig.machine.counters["too_often"] == 10_000 - len(rig.fresh)
    assert rig.machine.sizes() == {"askers": s.ASKERS_MAX, "solicitations_seen": s.SEEN_MAX}
    assert len(rig.fresh) - len(rig.gone) == len(rig.machine)
    rig.run(s.LIFETIME + 1.0)
    assert rig.machine.sizes()["askers"] == 0
    assert sorted(address for _, address in rig.fresh) == sorted(address for _, address in rig.gone)


def test_ours_is_not_heard(rig: Rig) -> None:
    rig.machine.interface("en1", station(9), True, rig.now)
    rig.run(0.1)
    for _, (interface, _), frame in list(rig.sent):
        at = OWN if interface == "en0" else station(9)
        for heard_on in ("en0", "en1"):
            rig.machine.heard((heard_on, at), frame, b"", rig.now)
    moved = KEYS.make(bytes(8), OWN_BOOT, station(77)).pack()
    rig.hear(moved, 77)
    assert not rig.fresh
    assert rig.machine.counters == {"own": 5}


def test_nothing_from_groups_nobody_or_where_we_do_not_look(rig: Rig) -> None:
    for source in (GROUP, bytes(6), b"\xff" * 6):
        rig.machine.heard(("en0", source), KEYS.make(bytes(8), BOOT, source).pack(), b"", rig.now)
    rig.hear(rig.frame(), interface="en7")
    rig.hear(b"\x07\x02" + rig.frame()[2:])
    assert rig.machine.counters == {"malformed": 4, "bad_version": 1}
    assert not rig.fresh


def test_an_interface_takes_with_it_who_was_heard_there(rig: Rig) -> None:
    rig.machine.interface("en1", station(9), True, rig.now)
    rig.hear(rig.frame())
    rig.hear(rig.frame(number=3), 3, interface="en1")
    rig.machine.interface_gone("en1")
    rig.take()
    assert [address for _, address in rig.gone] == [("en1", station(3))]
    rig.machine.interface_gone("en1")


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_in_whatever_order(seed: int) -> None:
    """Random calls: nothing raises, every timer moves on, every hint is withdrawn in the end."""
    chance = random.Random(seed)
    rig = Rig(chance, Solicitor(KEYS, lambda: OWN_BOOT, chance.randbytes))
    frames = [rig.frame(chance.choice([BOOT, LATER_BOOT, OWN_BOOT]), chance.randrange(5)) for _ in range(40)]
    for _ in range(600):
        act, name = chance.randrange(7), chance.choice(["en0", "en1"])
        if act == 0:
            rig.machine.interface(name, station(chance.randrange(5)), chance.random() < 0.7, rig.now)
        elif act == 1 and chance.random() < 0.2:
            rig.machine.interface_gone(name)
        elif act == 2:
            rig.machine.seek(rig.now)
        elif act == 3:
            rig.now += chance.random() * 5
            rig.machine.handle_timeout(rig.now)
        else:
            frame = bytearray(chance.choice(frames))
            if chance.random() < 0.2:
                frame[chance.randrange(40)] ^= 1 << chance.randrange(8)
            rig.hear(bytes(frame), chance.randrange(5), chance.choice([b"", BOOT, LATER_BOOT]), name)
        rig.take()
        when = rig.machine.next_timeout()
        assert when is None or when >= rig.now - 5.0
    rig.run(100.0)
    assert len(rig.machine) == 0
    assert {address for _, address in rig.fresh} == {address for _, address in rig.gone}
