"""The part of a port's XDP program that carries routed flows: what stands in the table of docs/stack/forwarding.md, in this order.

It begins where a frame is for the port's own address, and ends with the frame on its way, or at the reason for which it goes up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from stack.ebpf.assembler import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Alu, Assembler, Jump, Width
from stack.ebpf.constants import XDP_DATA, XDP_DATA_END, Helper
from stack.l2.engine import PORTS_MAX
from stack.l2.forward.carrier import Reason
from stack.l2.forward.parts import FLOW_AT, FLOW_KEY, Maps, carry, lookup
from stack.wire.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6, HEADER_SIZE
from stack.wire.ip import EXTENSION_HEADERS

IPV4_END, IPV6_END = 34, 54
_MACS_AT, _FRAMES_AT, _BYTES_AT = 16, 32, 40
_FOREIGN = Reason.FOREIGN.name


def _in_memory(value: int) -> int:
    """A 16-bit field of the wire, as a load of two bytes has it."""
    return int.from_bytes(value.to_bytes(2, "big"), sys.byteorder)


def routed(asm: Assembler, port: int, maps: Maps) -> None:
    """See the head of this file."""
    asm.move(R1, R6)
    asm.call(Helper.XDP_BUFFER_LENGTH)
    asm.move(R9, R0)
    _begin(asm, HEADER_SIZE)
    asm.load(Width.H, R4, R2, 12)
    asm.branch(Jump.EQ, R4, _in_memory(ETHERTYPE_IPV6), "ipv6")
    asm.branch(Jump.NE, R4, _in_memory(ETHERTYPE_IPV4), _FOREIGN)
    _ipv4_key(asm, port)
    _look_up_and_carry(asm, port, maps, _change_ipv4)
    asm.label("ipv6")
    _ipv6_key(asm, port)
    _look_up_and_carry(asm, port, maps, _change_ipv6)


def _begin(asm: Assembler, size: int) -> None:
    """R2 = the frame, which has *size* bytes at least; R3 its end."""
    asm.load(Width.W, R2, R6, XDP_DATA)
    asm.load(Width.W, R3, R6, XDP_DATA_END)
    asm.move(R4, R2)
    asm.compute(Alu.ADD, R4, size)
    asm.branch_register(Jump.GT, R4, R3, _FOREIGN)


def _whole(asm: Assembler, length_at: int, ahead: int) -> None:
    """The packet ends in the frame, of which R3 is the end of the first buffer only: *ahead* bytes before what its length counts."""
    asm.load(Width.H, R5, R2, length_at)
    asm.big_endian(R5, 16)
    asm.move(R4, R5)
    asm.compute(Alu.ADD, R4, ahead)
    asm.branch_register(Jump.GT, R4, R9, _FOREIGN)


def _key(asm: Assembler, port: int, version: int) -> None:
    for place in range(0, FLOW_KEY.size, 8):
        asm.store_constant(Width.DW, R10, FLOW_AT + place, 0)
    asm.store_constant(Width.W, R10, FLOW_AT, port)
    asm.store_constant(Width.W, R10, FLOW_AT + 4, version)


def _ipv4_key(asm: Assembler, port: int) -> None:
    _begin(asm, IPV4_END)
    asm.load(Width.B, R4, R2, HEADER_SIZE)
    asm.branch(Jump.NE, R4, 0x45, _FOREIGN)
    asm.load(Width.H, R4, R2, HEADER_SIZE + 6)
    asm.branch(Jump.SET, R4, _in_memory(0x3FFF), _FOREIGN)
    asm.load(Width.B, R4, R2, HEADER_SIZE + 8)
    asm.branch(Jump.LT, R4, 2, _FOREIGN)
    asm.constant(R1, 0)
    for place in range(HEADER_SIZE, IPV4_END, 2):
        asm.load(Width.H, R4, R2, place)
        asm.combine(Alu.ADD, R1, R4)
    for _ in range(2):
        asm.move(R4, R1)
        asm.compute(Alu.RSH, R4, 16)
        asm.compute(Alu.AND, R1, 0xFFFF)
        asm.combine(Alu.ADD, R1, R4)
    asm.branch(Jump.NE, R1, 0xFFFF, _FOREIGN)
    _whole(asm, HEADER_SIZE + 2, HEADER_SIZE)
    asm.branch(Jump.LT, R5, IPV4_END - HEADER_SIZE, _FOREIGN)
    _key(asm, port, 4)
    _copy(asm, HEADER_SIZE + 12, FLOW_AT + 8, 4)
    _copy(asm, HEADER_SIZE + 16, FLOW_AT + 24, 4)


def _ipv6_key(asm: Assembler, port: int) -> None:
    _begin(asm, IPV6_END)
    asm.load(Width.B, R4, R2, HEADER_SIZE)
    asm.compute(Alu.RSH, R4, 4)
    asm.branch(Jump.NE, R4, 6, _FOREIGN)
    asm.load(Width.B, R4, R2, HEADER_SIZE + 6)
    for header in sorted(EXTENSION_HEADERS):
        asm.branch(Jump.EQ, R4, header, _FOREIGN)
    asm.load(Width.B, R4, R2, HEADER_SIZE + 7)
    asm.branch(Jump.LT, R4, 2, _FOREIGN)
    _whole(asm, HEADER_SIZE + 4, IPV6_END)
    _key(asm, port, 6)
    _copy(asm, HEADER_SIZE + 8, FLOW_AT + 8, 32)


def _copy(asm: Assembler, place: int, to: int, size: int) -> None:
    for half in range(0, size, 2):
        asm.load(Width.H, R4, R2, place + half)
        asm.store(Width.H, R10, to + half, R4)


def _look_up_and_carry(asm: Assembler, port: int, maps: Maps, change: Callable[[Assembler], None]) -> None:
    lookup(asm, maps.flows, FLOW_AT, Reason.FLOW.name)
    asm.move(R7, R0)
    asm.load(Width.W, R8, R7, 0)
    asm.branch(Jump.GE, R8, PORTS_MAX, Reason.FLOW.name)
    carry(asm, port, maps, change)


def _change_addresses(asm: Assembler) -> None:
    for half in range(0, 12, 2):
        asm.load(Width.H, R4, R7, _MACS_AT + half)
        asm.store(Width.H, R2, half, R4)
    asm.constant(R1, 1)
    asm.add_to(R7, _FRAMES_AT, R1)
    asm.add_to(R7, _BYTES_AT, R9)


def _change_ipv4(asm: Assembler) -> None:
    """The checksum as RFC 1624 has it for a TTL that is one less."""
    done = asm.fresh()
    _begin(asm, IPV4_END)
    _change_addresses(asm)
    asm.load(Width.H, R4, R2, HEADER_SIZE + 10)
    asm.compute(Alu.ADD, R4, _in_memory(0x0100))
    asm.branch(Jump.LT, R4, 0xFFFF, done)
    asm.compute(Alu.ADD, R4, 1)
    asm.label(done)
    asm.store(Width.H, R2, HEADER_SIZE + 10, R4)
    _one_less(asm, HEADER_SIZE + 8)


def _change_ipv6(asm: Assembler) -> None:
    _begin(asm, IPV6_END)
    _change_addresses(asm)
    _one_less(asm, HEADER_SIZE + 7)


def _one_less(asm: Assembler, place: int) -> None:
    asm.load(Width.B, R4, R2, place)
    asm.compute(Alu.SUB, R4, 1)
    asm.store(Width.B, R2, place, R4)
