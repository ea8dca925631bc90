"""The XDP program of a port. Its theory of operation is docs/stack/forwarding.md; what it asks stands there in a table, in this order.

Registers that are kept: R6 the context, R7 the source's entry, R8 the output port, R9 the length of the frame.

    stack: -8   destination address, 6 bytes and 2 of zero: a key      -24  index of a port
           -16  source address, likewise                               -28  index of a counter

Loads from the frame are of two bytes, which every processor can do at any even address.
"""

from __future__ import annotations

import struct

import attrs

from stack.ebpf.assembler import R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Alu, Assembler, Code, Jump, Width
from stack.ebpf.constants import XDP_DATA, XDP_DATA_END, Helper, Xdp
from stack.l2.engine import PORTS_MAX
from stack.l2.forward.carrier import Reason

STATION = struct.Struct("=IIQ")
"""Value of a station: port; when it last sent a frame that was too long to be carried, in units of 2**UNIT_SHIFT ns; at what nanosecond
of CLOCK_MONOTONIC a frame from it was last carried. 0: never."""
KEY = struct.Struct("=6s2x")
PORT = struct.Struct("=II")
"""Value of a port: 1 if it is on, longest frame."""
CARRIED = struct.Struct("=QQ")
"""Frames and bytes from one port to another."""
REASONS = struct.Struct(f"={len(Reason)}Q")
UNIT_SHIFT = 30
ORDER_UNITS = 4
"""For 3 to 4 s after a station sent a run of segments, which goes up, all of its frames do: the others would overtake it."""
USED_STEP_NS = 1_000_000_000
"""A station's time is written this seldom: processors that carry for it do not take the entry from each other for every frame."""

_DESTINATION, _SOURCE, _PORT, _COUNTER = -8, -16, -24, -28
_HEADER_SIZE = 14
_LONG_AT = 4


@attrs.frozen
class Maps:
    """Descriptors of the maps of a bridge."""

    stations: int
    outputs: int
    ports: int
    carried: int
    reasons: int


def forwarding(port: int, maps: Maps) -> Code:
    """The program for *port*."""
    asm = Assembler()
    asm.move(R6, R1)
    asm.load(Width.W, R2, R1, XDP_DATA)
    asm.load(Width.W, R3, R1, XDP_DATA_END)
    asm.move(R4, R2)
    asm.compute(Alu.ADD, R4, _HEADER_SIZE)
    asm.branch_register(Jump.GT, R4, R3, Reason.SHORT.name)
    asm.load(Width.B, R4, R2, 0)
    asm.branch(Jump.SET, R4, 1, Reason.GROUP.name)
    for place, key in ((0, _DESTINATION), (6, _SOURCE)):
        for half in (0, 2, 4):
            asm.load(Width.H, R4, R2, place + half)
            asm.store(Width.H, R10, key + half, R4)
        asm.store_constant(Width.H, R10, key + 6, 0)

    asm.store_constant(Width.W, R10, _PORT, port)
    _lookup(asm, maps.ports, _PORT, Reason.OFF.name)
    asm.load(Width.W, R1, R0, 0)
    asm.branch(Jump.EQ, R1, 0, Reason.OFF.name)

    _lookup(asm, maps.stations, _SOURCE, Reason.SOURCE.name)
    asm.move(R7, R0)
    asm.load(Width.W, R1, R7, 0)
    asm.branch(Jump.NE, R1, port, Reason.SOURCE.name)

    _lookup(asm, maps.stations, _DESTINATION, Reason.DESTINATION.name)
    asm.load(Width.W, R8, R0, 0)
    asm.branch(Jump.EQ, R8, port, Reason.SAME_PORT.name)
    asm.branch(Jump.GE, R8, PORTS_MAX, Reason.DESTINATION.name)

    asm.move(R1, R6)
    asm.call(Helper.XDP_BUFFER_LENGTH)
    asm.move(R9, R0)
    asm.store(Width.W, R10, _PORT, R8)
    _lookup(asm, maps.ports, _PORT, Reason.OUTPUT_OFF.name)
    asm.load(Width.W, R1, R0, 0)
    asm.branch(Jump.EQ, R1, 0, Reason.OUTPUT_OFF.name)
    asm.load(Width.W, R1, R0, 4)
    asm.branch_register(Jump.GT, R9, R1, "long")

    asm.call(Helper.KTIME_COARSE)
    asm.load(Width.W, R1, R7, _LONG_AT)
    asm.branch(Jump.EQ, R1, 0, "in order")
    asm.move(R2, R0)
    asm.compute(Alu.RSH, R2, UNIT_SHIFT)
    asm.combine(Alu.SUB, R2, R1)
    asm.branch(Jump.LT, R2, ORDER_UNITS, Reason.ORDER.name)
    asm.label("in order")
    asm.load(Width.DW, R1, R7, 8)
    asm.move(R2, R0)
    asm.combine(Alu.SUB, R2, R1)
    asm.branch(Jump.LT, R2, USED_STEP_NS, "fresh")
    asm.store(Width.DW, R7, 8, R0)
    asm.label("fresh")

    asm.move(R1, R8)
    asm.compute(Alu.ADD, R1, port * PORTS_MAX)
    asm.store(Width.W, R10, _COUNTER, R1)
    _lookup(asm, maps.carried, _COUNTER, "redirect")
    asm.load(Width.DW, R1, R0, 0)
    asm.compute(Alu.ADD, R1, 1)
    asm.store(Width.DW, R0, 0, R1)
    asm.load(Width.DW, R1, R0, 8)
    asm.combine(Alu.ADD, R1, R9)
    asm.store(Width.DW, R0, 8, R1)
    asm.label("redirect")
    asm.map(R1, maps.outputs)
    asm.move(R2, R8)
    asm.constant(R3, Xdp.PASS)
    asm.call(Helper.REDIRECT_MAP)
    asm.exit()

    _endings(asm, port, maps)
    return asm.assemble()


def _lookup(asm: Assembler, table: int, key: int, absent: str) -> None:
    """R0 = the value of the key at that place of the stack, or go to *absent*."""
    asm.map(R1, table)
    asm.move(R2, R10)
    asm.compute(Alu.ADD, R2, key)
    asm.call(Helper.MAP_LOOKUP)
    asm.branch(Jump.EQ, R0, 0, absent)


def _endings(asm: Assembler, port: int, maps: Maps) -> None:
    """One for each reason not to carry; they join where the counter is raised."""
    asm.label("long")
    asm.call(Helper.KTIME_COARSE)
    asm.compute(Alu.RSH, R0, UNIT_SHIFT)
    asm.store(Width.W, R7, _LONG_AT, R0)
    asm.jump(Reason.LONG.name)
    here = (
        Reason.SHORT,
        Reason.GROUP,
        Reason.OFF,
        Reason.SOURCE,
        Reason.DESTINATION,
        Reason.OUTPUT_OFF,
        Reason.LONG,
        Reason.SAME_PORT,
        Reason.ORDER,
    )
    for reason in here:
        asm.label(reason.name)
        asm.constant(R7, Xdp.DROP if reason is Reason.SAME_PORT else Xdp.PASS)
        asm.constant(R8, reason * 8)
        asm.jump("count")
    asm.label("count")
    asm.store_constant(Width.W, R10, _PORT, port)
    _lookup(asm, maps.reasons, _PORT, "end")
    asm.combine(Alu.ADD, R0, R8)
    asm.load(Width.DW, R1, R0, 0)
    asm.compute(Alu.ADD, R1, 1)
    asm.store(Width.DW, R0, 0, R1)
    asm.label("end")
    asm.move(R0, R7)
    asm.exit()
