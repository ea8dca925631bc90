"""The classic BPF program that decides in the kernel which frames wake the node (socket(7), SO_ATTACH_FILTER).

Passes frames for this machine (packet types host, broadcast, multicast) whose type, behind at most two VLAN tags, is wanted. The kernel
takes the outermost tag out of a frame before a packet socket sees it, so most tagged frames look untagged here.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from stack.drivers.af_packet.constants import SO_ATTACH_FILTER
from stack.wire.ethernet import TAG_SIZE, TAGS_MAX, TPIDS

LD_H_ABS, LD_B_ABS = 0x28, 0x30
JEQ, JGE, RET = 0x15, 0x35, 0x06
AD_PKTTYPE = 0xFFFFF000 + 4
"""SKF_AD_OFF + SKF_AD_PKTTYPE: the kernel's packet type instead of a byte of the frame."""
PACKET_OTHERHOST = 3
"""From here on types mean: not for us (other host, outgoing, loopback)."""
PASS = 0x40000
TYPES_MAX = 64
"""More ethertypes than this are not told apart in the kernel: jumps of classic BPF reach 255 instructions."""

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, k; jumps are relative to the next instruction."""


def program(ethertypes: frozenset[int] | None) -> list[Instruction]:
    """Instructions that pass *ethertypes* (None: all)."""
    if ethertypes is not None and not ethertypes:
        return [(RET, 0, 0, 0)]
    for_us: list[Instruction] = [(LD_B_ABS, 0, 0, AD_PKTTYPE), (JGE, 0, 1, PACKET_OTHERHOST), (RET, 0, 0, 0)]
    if ethertypes is None or len(ethertypes) > TYPES_MAX:
        return [*for_us, (RET, 0, 0, PASS)]
    wanted = sorted(ethertypes)
    tags: list[Instruction] = []
    # Behind each tag: no tag, jump over the remaining look-ups; a tag, load the next type.
    per_tag = len(TPIDS) + 2
    for depth in range(TAGS_MAX):
        over = (TAGS_MAX - depth - 1) * per_tag
        for number, tpid in enumerate(sorted(TPIDS)):
            tags.append((JEQ, len(TPIDS) - number, 0, tpid))
        tags.append((0x05, 0, 0, over + 1))
        tags.append((LD_H_ABS, 0, 0, 12 + TAG_SIZE * (depth + 1)))
    match: list[Instruction] = [(JEQ, len(wanted) - number, 0, kind) for number, kind in enumerate(wanted)]
    return [*for_us, (LD_H_ABS, 0, 0, 12), *tags, *match, (RET, 0, 0, 0), (RET, 0, 0, PASS)]


def attach(sock: socket.socket, ethertypes: frozenset[int] | None) -> None:
    """Make *sock* pass these ethertypes only; replaces the program before, atomically."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program(ethertypes))
    memory = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code) // 8, ctypes.addressof(memory)))
