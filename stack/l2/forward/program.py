"""The XDP program of a port. Its theory of operation is docs/stack/forwarding.md; what it asks stands there in a table, in this order.

What its parts share, registers and places on the stack too, is in `stack.l2.forward.parts`; routed flows in `routedprogram`.

Loads from the frame are of two bytes, which every processor can do at any even address.
"""

from __future__ import annotations

from stack.ebpf.assembler import R0, R1, R2, R3, R4, R6, R7, R8, R10, Alu, Assembler, Code, Jump, Width
from stack.ebpf.constants import XDP_DATA, XDP_DATA_END, Helper, Xdp
from stack.l2.engine import PORTS_MAX
from stack.l2.forward.carrier import DROPPED, Reason
from stack.l2.forward.parts import DESTINATION_AT, LONG_AT, PORT_AT, SOURCE_AT, UNIT_SHIFT, Maps, carry, lookup
from stack.l2.forward.routedprogram import routed
from stack.wire.ethernet import HEADER_SIZE


def forwarding(port: int, maps: Maps) -> Code:
    """The program for *port*."""
    asm = Assembler()
    asm.move(R6, R1)
    asm.load(Width.W, R2, R1, XDP_DATA)
    asm.load(Width.W, R3, R1, XDP_DATA_END)
    asm.move(R4, R2)
    asm.compute(Alu.ADD, R4, HEADER_SIZE)
    asm.branch_register(Jump.GT, R4, R3, Reason.SHORT.name)
    asm.load(Width.B, R4, R2, 0)
    asm.branch(Jump.SET, R4, 1, Reason.GROUP.name)
    for place, key in ((0, DESTINATION_AT), (6, SOURCE_AT)):
        for half in (0, 2, 4):
            asm.load(Width.H, R4, R2, place + half)
            asm.store(Width.H, R10, key + half, R4)
        asm.store_constant(Width.H, R10, key + 6, 0)

    asm.store_constant(Width.W, R10, PORT_AT, port)
    lookup(asm, maps.ports, PORT_AT, Reason.OFF.name)
    asm.load(Width.W, R1, R0, 0)
    asm.branch(Jump.EQ, R1, 0, Reason.OFF.name)
    asm.load(Width.DW, R1, R0, 8)
    asm.load(Width.DW, R2, R10, DESTINATION_AT)
    asm.branch_register(Jump.EQ, R1, R2, "routed")

    lookup(asm, maps.stations, SOURCE_AT, Reason.SOURCE.name)
    asm.move(R7, R0)
    asm.load(Width.W, R1, R7, 0)
    asm.branch(Jump.NE, R1, port, Reason.SOURCE.name)

    lookup(asm, maps.stations, DESTINATION_AT, Reason.DESTINATION.name)
    asm.load(Width.W, R8, R0, 0)
    asm.branch(Jump.EQ, R8, port, Reason.SAME_PORT.name)
    asm.branch(Jump.GE, R8, PORTS_MAX, Reason.DESTINATION.name)

    carry(asm, port, maps)

    asm.label("routed")
    routed(asm, port, maps)

    _endings(asm, port, maps)
    return asm.assemble()


def _endings(asm: Assembler, port: int, maps: Maps) -> None:
    """One for each reason not to carry; they join where the counter is raised."""
    asm.label("long")
    asm.call(Helper.KTIME_COARSE)
    asm.compute(Alu.RSH, R0, UNIT_SHIFT)
    asm.store(Width.W, R7, LONG_AT, R0)
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
        Reason.FLOW,
        Reason.FOREIGN,
        Reason.NOT_SENT,
    )
    for reason in here:
        asm.label(reason.name)
        asm.constant(R7, Xdp.DROP if reason in DROPPED else Xdp.PASS)
        asm.constant(R8, reason * 8)
        asm.jump("count")
    asm.label("count")
    asm.store_constant(Width.W, R10, PORT_AT, port)
    lookup(asm, maps.reasons, PORT_AT, "end")
    asm.combine(Alu.ADD, R0, R8)
    asm.load(Width.DW, R1, R0, 0)
    asm.compute(Alu.ADD, R1, 1)
    asm.store(Width.DW, R0, 0, R1)
    asm.label("end")
    asm.move(R0, R7)
    asm.exit()
