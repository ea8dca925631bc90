"""Which frames a program in the kernel passes where packet types are not told."""

from __future__ import annotations

from stack.filter.bpf import machine
from stack.filter.bpf.assembler import Code
from stack.linux.typefilter import station_program
from stack.testing.driver import OTHER_TYPE, TYPE, frame
from stack.wire.ethernet import BROADCAST

MAC = b"\x02\x12\x34\x56\x78\x9a"


def test_the_program_passes_what_is_for_the_station_or_a_group() -> None:
    def passes(code: Code, one: bytes) -> bool:
        return machine.run(code, one, 0) > 0

    code = station_program(frozenset((TYPE,)), MAC)
    near = MAC[:5] + b"\x78"
    for tags in ((), ((0x8100, 5),), ((0x88A8, 7), (0x8100, 8))):
        for destination, wanted in ((MAC, True), (BROADCAST, True), (b"\1\0\x5e\0\0\1", True), (near, False), (b"\6" + MAC[1:], False)):
            assert passes(code, frame(destination, near, bytes(50), TYPE, tags)) == wanted
            assert not passes(code, frame(destination, near, bytes(50), OTHER_TYPE, tags))
    assert passes(station_program(None, MAC), frame(MAC, near, b"", OTHER_TYPE))
    assert passes(station_program(frozenset((TYPE,)), None), frame(near, MAC, b""))
    assert not passes(station_program(frozenset(), None), frame(MAC, near, b""))
