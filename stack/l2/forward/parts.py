"""What the parts of a port's XDP program share: its maps, their values, and the end of the way of a frame that is carried.

Registers that are kept: R6 the context, R7 the entry of the station or flow, R8 the output port, R9 the length of the frame.

    stack: -8   destination address, 6 bytes and 2 of zero: a key      -24  index of a port
           -16  source address, likewise                               -28  index of a counter
           -72  key of a flow, FLOW_KEY.size bytes
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import attrs

from stack.ebpf.assembler import R0, R1, R2, R3, R6, R7, R8, R9, R10, Alu, Assembler, Jump, Width
from stack.ebpf.constants import Helper, Xdp
from stack.l2.engine import PORTS_MAX
from stack.l2.forward.carrier import Reason

STATION = struct.Struct("=IIQ")
"""Value of a station: port; when it last sent a frame that was too long to be carried, in units of 2**UNIT_SHIFT ns; at what nanosecond
of CLOCK_MONOTONIC a frame from it was last carried. 0: never."""
KEY = struct.Struct("=6s2x")
PORT = struct.Struct("=II6s2x")
"""Value of a port: 1 if it is on, longest frame, its own address if flows come in here, else zeroes."""
CARRIED = struct.Struct("=QQ")
"""Frames and bytes from one port to another."""
REASONS = struct.Struct(f"={len(Reason)}Q")
FLOW_KEY = struct.Struct("=II16s16s")
"""Of a routed flow: port, IP version, source and destination; IPv4's in the first 4 bytes."""
FLOW = struct.Struct("=IIQ6s6s4xQQ")
"""Value of a flow: as of a station, with the output port; new destination and source address; frames and bytes."""
UNIT_SHIFT = 30
ORDER_UNITS = 4
"""For 3 to 4 s after a station sent a run of segments, which goes up, all of its frames do: the others would overtake it."""
USED_STEP_NS = 1_000_000_000
"""A station's time is written this seldom: processors that carry for it do not take the entry from each other for every frame."""

DESTINATION_AT, SOURCE_AT, PORT_AT, COUNTER_AT, FLOW_AT = -8, -16, -24, -28, -72
LONG_AT = 4
USED_AT = 8


@attrs.frozen
class Maps:
    """Descriptors of the maps of a bridge."""

    stations: int
    outputs: int
    ports: int
    carried: int
    reasons: int
    flows: int


def lookup(asm: Assembler, table: int, key: int, absent: str) -> None:
    """R0 = the value of the key at that place of the stack, or go to *absent*."""
    asm.map(R1, table)
    asm.move(R2, R10)
    asm.compute(Alu.ADD, R2, key)
    asm.call(Helper.MAP_LOOKUP)
    asm.branch(Jump.EQ, R0, 0, absent)


def carry(asm: Assembler, port: int, maps: Maps, change: Callable[[Assembler], None] | None = None) -> None:
    """From *port* to R8, if that is on and takes it, in order; R7 notes it. *change* makes another frame of it at the last moment."""
    in_order, fresh, done = asm.fresh(), asm.fresh(), asm.fresh()
    asm.move(R1, R6)
    asm.call(Helper.XDP_BUFFER_LENGTH)
    asm.move(R9, R0)
    asm.store(Width.W, R10, PORT_AT, R8)
    lookup(asm, maps.ports, PORT_AT, Reason.OUTPUT_OFF.name)
    asm.load(Width.W, R1, R0, 0)
    asm.branch(Jump.EQ, R1, 0, Reason.OUTPUT_OFF.name)
    asm.load(Width.W, R1, R0, 4)
    if change is not None:
        # What is routed has no tag, which would not count.
        asm.compute(Alu.SUB, R1, 4)
    asm.branch_register(Jump.GT, R9, R1, "long")

    asm.call(Helper.KTIME_COARSE)
    asm.load(Width.W, R1, R7, LONG_AT)
    asm.branch(Jump.EQ, R1, 0, in_order)
    asm.move(R2, R0)
    asm.compute(Alu.RSH, R2, UNIT_SHIFT)
    asm.combine(Alu.SUB, R2, R1)
    asm.branch(Jump.LT, R2, ORDER_UNITS, Reason.ORDER.name)
    asm.label(in_order)
    asm.load(Width.DW, R1, R7, USED_AT)
    asm.move(R2, R0)
    asm.combine(Alu.SUB, R2, R1)
    asm.branch(Jump.LT, R2, USED_STEP_NS, fresh)
    asm.store(Width.DW, R7, USED_AT, R0)
    asm.label(fresh)
    if change is not None:
        change(asm)

    asm.map(R1, maps.outputs)
    asm.move(R2, R8)
    # If the port went away meanwhile: what was changed is nobody's here.
    asm.constant(R3, Xdp.PASS if change is None else Xdp.DROP)
    asm.call(Helper.REDIRECT_MAP)
    asm.branch(Jump.NE, R0, Xdp.REDIRECT, Reason.OUTPUT_OFF.name if change is None else Reason.NOT_SENT.name)

    asm.move(R1, R8)
    asm.compute(Alu.ADD, R1, port * PORTS_MAX)
    asm.store(Width.W, R10, COUNTER_AT, R1)
    lookup(asm, maps.carried, COUNTER_AT, done)
    asm.load(Width.DW, R1, R0, 0)
    asm.compute(Alu.ADD, R1, 1)
    asm.store(Width.DW, R0, 0, R1)
    asm.load(Width.DW, R1, R0, 8)
    asm.combine(Alu.ADD, R1, R9)
    asm.store(Width.DW, R0, 8, R1)
    asm.label(done)
    asm.constant(R0, Xdp.REDIRECT)
    asm.exit()
