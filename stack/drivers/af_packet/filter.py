"""The classic BPF programs that decide in the kernel which frames wake the node, and through which socket.

Frames for this machine (packet types host, broadcast, multicast) whose type, behind at most two VLAN tags, is wanted. The kernel takes the
outermost tag out of a frame before a packet socket sees it, so most tagged frames look untagged here. An ethertype with a screen
(`stack.core.screen`) is decided by the screen's programs, one for each of the driver's two sockets.
"""

from __future__ import annotations

from collections.abc import Mapping

from stack.core.screen import Screen
from stack.filter.bpf.assembler import (
    AD_PKTTYPE,
    JEQ,
    JGE,
    JSET,
    LD_B_ABS,
    LD_H_ABS,
    LD_W_ABS,
    LDX_IMM,
    RET,
    WHOLE,
    Assembler,
    Code,
)
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TAGS_MAX, TPIDS

PACKET_OTHERHOST = 3
"""From here on types mean: not for us (other host, outgoing, loopback)."""
TYPES_MAX = 64
"""More ethertypes than this are not told apart in the kernel."""


def program(ethertypes: frozenset[int] | None, screens: Mapping[int, Screen] | None = None, others: bool = False) -> Code:
    """Of the main socket: pass *ethertypes* (None: all); those with a screen as its `main` says. *others*: also for other stations."""
    screened = {kind: screen.main for kind, screen in (screens or {}).items() if ethertypes is None or kind in ethertypes}
    if ethertypes is not None and not ethertypes:
        return ((RET, 0, 0, 0),)
    everything = ethertypes is None or len(ethertypes) > TYPES_MAX
    return _program(frozenset() if everything else ethertypes or frozenset(), screened, WHOLE if everything else 0, others)


def side_program(ethertypes: frozenset[int] | None, screens: Mapping[int, Screen]) -> Code:
    """Of the side socket: what the screens send there."""
    return _program(frozenset(), {kind: screen.side for kind, screen in screens.items() if ethertypes is None or kind in ethertypes}, 0)


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
    _by_type(asm, frozenset() if everything else ethertypes or frozenset(), {}, WHOLE if everything else 0)
    return asm.assemble()


def _program(passed: frozenset[int], screened: Mapping[int, Code], other: int, others: bool = False) -> Code:
    asm = Assembler()
    asm.op(LD_B_ABS, AD_PKTTYPE)
    asm.branch(JGE, PACKET_OTHERHOST + 1 if others else PACKET_OTHERHOST, "drop")
    _by_type(asm, passed, screened, other)
    return asm.assemble()


def _by_type(asm: Assembler, passed: frozenset[int], screened: Mapping[int, Code], other: int) -> None:
    """The rest of a program, with its label "drop"."""
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
