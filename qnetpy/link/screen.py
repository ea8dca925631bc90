"""What of our ethertype is worth a look: the two classic BPF programs that a driver runs on each frame (`stack.core.screen`). Pure.

    main    DATA of a session that we have
    side    handshake frames, SOLICITATIONs, and whatever makes no sense, so that it is counted by its reason

While the guard (`qnetpy.link.guard`) is on, the side queue gets only INITIATIONs and SOLICITATIONs with a good stamp and handshake frames
for an index of ours, none of them one that was repeated over and over, and the main queue no packet that is known to be a copy. The rest is
shed and sampled. Formats and reasons: docs/protocol/link.md, "Under attack".
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from qnetpy.link.constants import HANDSHAKE_FRAME_MAX, MAC_SIZE, STAMP_SIZE, VERSION
from qnetpy.link.wire import CONFIRM, COOKIE, DATA, FINAL, HANDSHAKE_HEADER, INITIATION, RESPONSE, SOLICITATION, macs_size
from stack.filter.bpf import assembler as b
from stack.filter.bpf.assembler import SAMPLE_SIZE, WHOLE, Assembler, Code, member

INDICES_MAX = 1200
"""More indices than this are not told apart in the kernel, whose programs have at most 4,096 instructions: then every index passes."""
HOT_MAX = 1024
FLOORS_MAX = 16
SAMPLE_OF = 256
_PATH, _LENGTH, _INDEX, _NUMBER_HIGH, _NUMBER_LOW = 1, 2, 4, 8, 12
_RECEIVER = 8
STAMPED = 2 * MAC_SIZE
"""Bytes that a stamp is of, and stands behind: the two macs of an INITIATION; salt, mark and mac of a SOLICITATION."""
SOLICITATION_HEADER = bytes((SOLICITATION, VERSION)) + (STAMPED + STAMP_SIZE).to_bytes(2, "big")
_FOUND = 14
"""A word of memory that the stamp does not use."""


@attrs.frozen
class View:
    """What the programs are made from."""

    indices: frozenset[int]
    """Session indices of ours that frames may carry: of sessions, of handshakes, and some that are drawn for the next ones."""
    stamp: Code
    """`qnetpy.link.stamp.stamp_code` of the cluster."""
    guarded: bool = False
    hot: frozenset[int] = frozenset()
    """Stamps of INITIATIONs and SOLICITATIONs, and first words of mac1 of other handshake frames, that were repeated too often."""
    floors: Mapping[tuple[int, int], int] = attrs.field(factory=dict)
    """By session index and path: lower packet numbers are copies."""

    @property
    def checks_indices(self) -> bool:
        return len(self.indices) <= INDICES_MAX


def programs(view: View) -> tuple[Code, Code]:
    """Main and side."""
    return _main(view), _side(view) if view.guarded else _calm_side(view)


def _main(view: View) -> Code:
    asm = Assembler()
    asm.op(b.LD_B_IND, 0)
    asm.branch(b.JEQ, DATA, None, "no")
    _data(asm, view, "yes", "no")
    asm.label("yes")
    asm.op(b.RET, WHOLE)
    asm.label("no")
    asm.op(b.RET, 0)
    return asm.assemble()


def _calm_side(view: View) -> Code:
    asm = Assembler()
    asm.op(b.LD_B_IND, 0)
    asm.branch(b.JEQ, DATA, None, "yes")
    _data(asm, view, "no", "yes")
    asm.label("yes")
    asm.op(b.RET, WHOLE)
    asm.label("no")
    asm.op(b.RET, 0)
    return asm.assemble()


def _data(asm: Assembler, view: View, ours: str, other: str) -> None:
    """A DATA frame: to *ours* when its index is ours and its number not below a floor."""
    _floors(asm, view, ours, other)
    _lookup(asm, view, ours, other)


def _lookup(asm: Assembler, view: View, ours: str, other: str) -> None:
    """A = an index."""
    if view.checks_indices:
        member(asm, tuple(view.indices), ours, other)
    else:
        asm.jump(ours)


def _floors(asm: Assembler, view: View, ours: str, other: str) -> None:
    """A DATA frame of a session with floors: decided. Others go on, with A = its index."""
    asm.op(b.LD_W_IND, _INDEX)
    by_index: dict[int, dict[int, int]] = {}
    for (index, path), floor in view.floors.items():
        by_index.setdefault(index, {})[path] = floor
    for index, paths in by_index.items():
        another = asm.fresh()
        asm.branch(b.JEQ, index, None, another)
        asm.op(b.LD_B_IND, _PATH)
        for path in paths:
            asm.branch(b.JEQ, path, f"path {index} {path}")
        asm.jump(ours)
        for path, floor in paths.items():
            asm.label(f"path {index} {path}")
            low = asm.fresh()
            asm.op(b.LD_W_IND, _NUMBER_HIGH)
            asm.branch(b.JGT, floor >> 32, ours)
            asm.branch(b.JEQ, floor >> 32, low, other)
            asm.label(low)
            asm.op(b.LD_W_IND, _NUMBER_LOW)
            asm.branch(b.JGE, floor & 0xFFFFFFFF, ours, other)
        asm.label(another)


def _side(view: View) -> Code:
    asm = Assembler()
    asm.op(b.LD_B_IND, 0)
    asm.branch(b.JEQ, INITIATION, "initiation")
    asm.branch(b.JEQ, SOLICITATION, "solicitation")
    asm.branch(b.JEQ, DATA, "data")
    for kind in (RESPONSE, FINAL, CONFIRM, COOKIE):
        asm.branch(b.JEQ, kind, "handshake")
    asm.jump("shed")
    asm.label("data")
    _floors(asm, view, "main", "shed")
    asm.jump("lookup")
    asm.label("handshake")
    asm.op(b.LD_W_IND, _RECEIVER)
    asm.label("lookup")
    _lookup(asm, view, "known", "shed")
    asm.label("known")
    asm.op(b.LD_B_IND, 0)
    asm.branch(b.JEQ, DATA, "main")
    _to_mac(asm, RESPONSE)
    asm.op(b.LD_W_IND, 0)
    asm.jump("hot")
    asm.label("solicitation")
    asm.op(b.LD_W_IND, 0)
    asm.branch(b.JEQ, int.from_bytes(SOLICITATION_HEADER), None, "shed")
    asm.op(b.TXA)
    asm.op(b.ADD_K, len(SOLICITATION_HEADER))
    asm.op(b.TAX)
    asm.jump("stamped")
    asm.label("initiation")
    _to_mac(asm, INITIATION)
    asm.label("stamped")
    asm.op(b.LD_W_IND, STAMPED)
    asm.op(b.ST, _FOUND)
    asm.code(view.stamp)
    asm.op(b.LDX_MEM, _FOUND)
    asm.branch(b.JEQ_X, 0, None, "shed")
    asm.label("hot")
    member(asm, tuple(view.hot), "shed", "yes")
    asm.label("yes")
    asm.op(b.RET, WHOLE)
    asm.label("shed")
    asm.op(b.LD_W_ABS, b.AD_RANDOM)
    asm.op(b.AND_K, SAMPLE_OF - 1)
    asm.branch(b.JEQ, 0, None, "gone")
    asm.op(b.RET, SAMPLE_SIZE)
    asm.label("gone")
    asm.op(b.RET, 0)
    asm.label("main")
    asm.op(b.RET, 0)
    return asm.assemble()


def _to_mac(asm: Assembler, kind: int) -> None:
    """Check version and length, and make X the place of mac1. What lies beyond the frame ends the program."""
    asm.op(b.LD_B_IND, 1)
    asm.branch(b.JEQ, VERSION, None, "shed")
    asm.op(b.LD_H_IND, _LENGTH)
    asm.branch(b.JGE, macs_size(kind), None, "shed")
    asm.branch(b.JGT, HANDSHAKE_FRAME_MAX - HANDSHAKE_HEADER.size, "shed")
    asm.op(b.ADD_X)
    asm.op(b.ADD_K, HANDSHAKE_HEADER.size - macs_size(kind))
    asm.op(b.TAX)


def identity(frame: memoryview, offset: int) -> int | None:
    """By what a handshake frame, or a SOLICITATION, is told from others, as the program does it (`View.hot`); None for frames that are none
    or too short."""
    if len(frame) < offset + HANDSHAKE_HEADER.size:
        return None
    if frame[offset] == SOLICITATION:
        place = offset + len(SOLICITATION_HEADER) + STAMPED
        return int.from_bytes(frame[place : place + STAMP_SIZE], "big") if len(frame) >= place + STAMP_SIZE else None
    kind = frame[offset]
    end = offset + HANDSHAKE_HEADER.size + int.from_bytes(frame[offset + _LENGTH : offset + _LENGTH + 2], "big")
    if kind == INITIATION:
        start = end - STAMP_SIZE
    elif kind in (RESPONSE, FINAL, CONFIRM, COOKIE):
        start = end - MAC_SIZE
    else:
        return None
    if start < offset + HANDSHAKE_HEADER.size or end > len(frame):
        return None
    return int.from_bytes(frame[start : start + 4], "big")
