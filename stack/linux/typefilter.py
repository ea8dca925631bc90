"""Classic BPF programs that let frames of wanted ethertypes wake the node, whichever descriptor they come by.

The type is that behind at most two VLAN tags. The kernel takes the outermost tag out of a frame before a packet socket sees it, so most
tagged frames look untagged there.
"""

from __future__ import annotations

from collections.abc import Mapping

from stack.filter.bpf.assembler import JEQ, JSET, LD_B_ABS, LD_H_ABS, LD_W_ABS, LDX_IMM, RET, WHOLE, Assembler, Code
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TAGS_MAX, TPIDS

TYPES_MAX = 64
"""More ethertypes than this are not told apart in the kernel."""


def station_program(ethertypes: frozenset[int] | None, station: bytes | None) -> Code:
    """Where the kernel tells no packet types: pass *ethertypes* (None: all) to *station* and to groups; to anybody if that is None."""
    if ethertypes is not None and not ethertypes:
        return ((RET, 0, 0, 0),)
    asm = Assembler()
    if station is not None:
        asm.op(LD_B_ABS, 0)
        asm.branch(JSET, 1, "ours")
        asm.op(LD_W_ABS, 2)
        asm.branch(JEQ, int.from_bytes(station[2:], "big"), None, "drop")
        asm.op(LD_H_ABS, 0)
        asm.branch(JEQ, int.from_bytes(station[:2], "big"), None, "drop")
        asm.label("ours")
    everything = ethertypes is None or len(ethertypes) > TYPES_MAX
    by_type(asm, frozenset() if everything else ethertypes or frozenset(), {}, WHOLE if everything else 0)
    return asm.assemble()


def by_type(asm: Assembler, passed: frozenset[int], screened: Mapping[int, Code], other: int) -> None:
    """The rest of a program, with its label "drop": *passed* types pass, those of *screened* are decided by the program there, *other* is
    returned for all the rest."""
    # X follows the place where the payload would begin.
    for depth in range(TAGS_MAX + 1):
        asm.op(LDX_IMM, HEADER_SIZE + TAG_SIZE * depth)
        asm.op(LD_H_ABS, HEADER_SIZE - 2 + TAG_SIZE * depth)
        if depth < TAGS_MAX:
            tagged = f"tag {depth}"
            for tpid in sorted(TPIDS):
                asm.branch(JEQ, tpid, tagged)
            asm.jump("type")
            asm.label(tagged)
    asm.label("type")
    for kind in screened:
        asm.branch(JEQ, kind, f"screen {kind}")
    for kind in sorted(passed - screened.keys()):
        asm.branch(JEQ, kind, "pass")
    asm.op(RET, other)
    asm.label("pass")
    asm.op(RET, WHOLE)
    asm.label("drop")
    asm.op(RET, 0)
    for kind, code in screened.items():
        asm.label(f"screen {kind}")
        asm.code(code)
