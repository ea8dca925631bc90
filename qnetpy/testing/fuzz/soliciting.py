"""The solicitor, and an enemy who has the cluster secret: whatever comes in whatever order, what he gets is within the budgets."""

from __future__ import annotations

import random

from qnetpy.discovery.solicitor import TOTAL_BURST, TOTAL_RATE, Solicitor
from qnetpy.link.constants import GROUP
from qnetpy.link.solicitation import SALT_SIZE, Solicitations
from qnetpy.link.wire import Address

STEPS_MAX = 200
BOOTS = tuple(bytes((number,)) * 16 for number in range(4))
"""Ours is the first."""


def _station(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number & 15))


def soliciting(steps: list[bytes]) -> None:
    """A step: what (1), how much (1), then bytes. What: 0 let time pass, 1 an interface of ours is there or not, 2 it goes, 3 a name is
    asked for, 4 a frame that a member makes, 5 one of those again, from elsewhere, 6 one of those changed, 7 the bytes."""
    keys = Solicitations(bytes(32))
    chance = random.Random(1)
    machine = Solicitor(keys, lambda: BOOTS[0], chance.randbytes)
    now, made, called = 100.0, [keys.make(bytes(SALT_SIZE), BOOTS[1], _station(1)).pack()], 0
    standing: set[Address] = set()
    machine.interface("en0", _station(0), True, now)
    for step in steps[:STEPS_MAX]:
        if len(step) < 2:
            continue
        what, much, rest = step[0] & 7, step[1], step[2:]
        name, boot_there = ("en0", "en1")[step[0] >> 3 & 1], (b"", *BOOTS[1:])[step[0] >> 4 & 3]
        source = (name, _station(much))
        asked: Address | None = None
        if what == 0:
            now += much / 8
            machine.handle_timeout(now)
        elif what == 1:
            machine.interface(name, _station(much), bool(much & 16), now)
        elif what == 2:
            machine.interface_gone(name)
        elif what == 3:
            machine.seek(now)
        else:
            asked = source
            if what == 4:
                made.append(keys.make(rest[:SALT_SIZE].ljust(SALT_SIZE, b"\0"), BOOTS[much >> 4 & 3], source[1]).pack())
            frame = bytearray(made[(len(made) - 1) if what == 4 else much % len(made)])
            if what == 6 and len(rest) > 1:
                frame[rest[0] % len(frame)] ^= rest[1]
            machine.heard(source, rest if what == 7 else bytes(frame), boot_there, now)
        fresh, gone = machine.hints()
        called += len(fresh)
        standing = (standing | set(fresh)) - set(gone)
        assert set(fresh) <= {asked}, "only who asked is called"
        assert all(to[1] == GROUP or to == asked for to, _ in machine.transmit()), "only who asked is answered"
        assert len(machine) == len(standing)
        assert called <= TOTAL_BURST + TOTAL_RATE * (now - 100.0)
        when = machine.next_timeout()
        assert when is None or when > now - 32.0
    for name in ("en0", "en1"):
        machine.interface_gone(name)
    assert set(machine.hints()[1]) == standing
    assert machine.next_timeout() is None
