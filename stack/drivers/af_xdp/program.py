"""The XDP program of the `xdp` driver: what the stack wants goes to the socket of its queue, everything else to the kernel's own stack.

Wanted is a frame whose type, behind at most TAGS_MAX tags, is accepted and that is for us: our address, a group, or any when promiscuous.
What the driver accepts is in two maps, which change under traffic: the program stays.

    stack: -4 ethertype, the key of a lookup; -8 the number 0
"""

from __future__ import annotations

import struct

from stack.ebpf.assembler import R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Alu, Assembler, Code, Jump, Width
from stack.ebpf.constants import XDP_DATA, XDP_DATA_END, XDP_RX_QUEUE, Helper, Xdp
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TAGS_MAX, TPIDS

SETTINGS = struct.Struct("=IIII")
"""All ethertypes, promiscuous, our address as its first four and its last two bytes, each in the machine's order."""
TYPE_KEY = struct.Struct("=I")
TYPES_MAX = 4096


def settings(everything: bool, promiscuous: bool, mac: bytes) -> bytes:
    high, low = struct.unpack("=IH", mac)
    return SETTINGS.pack(everything, promiscuous, high, low)


def receiving(sockets: int, types: int, configuration: int) -> Code:
    """The program for these maps. R6 context, R7 data, R8 its end, R9 settings."""
    asm = Assembler()
    asm.move(R6, R1)
    asm.load(Width.W, R7, R1, XDP_DATA)
    asm.load(Width.W, R8, R1, XDP_DATA_END)
    asm.store_constant(Width.W, R10, -8, 0)
    asm.map(R1, configuration)
    asm.move(R2, R10)
    asm.compute(Alu.ADD, R2, -8)
    asm.call(Helper.MAP_LOOKUP)
    asm.branch(Jump.EQ, R0, 0, "pass")
    asm.move(R9, R0)
    asm.move(R1, R7)
    asm.compute(Alu.ADD, R1, HEADER_SIZE)
    asm.branch_register(Jump.GT, R1, R8, "pass")
    _addressee(asm)
    asm.label("for us")
    asm.load(Width.W, R1, R9, 0)
    asm.branch(Jump.NE, R1, 0, "take")
    _type(asm)
    asm.label("typed")
    asm.store(Width.W, R10, -4, R3)
    asm.map(R1, types)
    asm.move(R2, R10)
    asm.compute(Alu.ADD, R2, -4)
    asm.call(Helper.MAP_LOOKUP)
    asm.branch(Jump.EQ, R0, 0, "pass")
    asm.label("take")
    asm.load(Width.W, R2, R6, XDP_RX_QUEUE)
    asm.map(R1, sockets)
    asm.constant(R3, Xdp.PASS)
    asm.call(Helper.REDIRECT_MAP)
    asm.exit()
    asm.label("pass")
    asm.constant(R0, Xdp.PASS)
    asm.exit()
    return asm.assemble()


def _addressee(asm: Assembler) -> None:
    """On to `for us`, or `pass`."""
    asm.load(Width.W, R1, R9, 4)
    asm.branch(Jump.NE, R1, 0, "for us")
    asm.load(Width.B, R1, R7, 0)
    asm.branch(Jump.SET, R1, 1, "for us")
    # Two bytes at a time: any processor can.
    for place, where in ((0, 8), (2, 10), (4, 12)):
        asm.load(Width.H, R1, R7, place)
        asm.load(Width.H, R2, R9, where)
        asm.branch_register(Jump.NE, R1, R2, "pass")


def _type(asm: Assembler) -> None:
    """R3 = the type behind the tags, or `pass`."""
    for tags in range(TAGS_MAX + 1):
        asm.move(R4, R7)
        asm.compute(Alu.ADD, R4, HEADER_SIZE + TAG_SIZE * tags)
        asm.branch_register(Jump.GT, R4, R8, "pass")
        asm.load(Width.H, R3, R4, -2)
        asm.big_endian(R3, 16)
        for tpid in sorted(TPIDS):
            asm.branch(Jump.EQ, R3, tpid, f"tag {tags}")
        asm.jump("typed")
        asm.label(f"tag {tags}")
    asm.jump("pass")
