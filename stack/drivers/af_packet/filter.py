"""The classic BPF programs that decide in the kernel which frames wake the node, and through which socket.

Frames for this machine (packet types host, broadcast, multicast) whose type is wanted (`stack.linux.typefilter`). An ethertype with a
screen (`stack.core.screen`) is decided by the screen's programs, one for each of the driver's two sockets.
"""

from __future__ import annotations

from collections.abc import Mapping

from stack.core.screen import Screen
from stack.filter.bpf.assembler import AD_PKTTYPE, JGE, LD_B_ABS, RET, WHOLE, Assembler, Code
from stack.linux.typefilter import TYPES_MAX, by_type

PACKET_OTHERHOST = 3
"""From here on types mean: not for us (other host, outgoing, loopback)."""


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


def _program(passed: frozenset[int], screened: Mapping[int, Code], other: int, others: bool = False) -> Code:
    asm = Assembler()
    asm.op(LD_B_ABS, AD_PKTTYPE)
    asm.branch(JGE, PACKET_OTHERHOST + 1 if others else PACKET_OTHERHOST, "drop")
    by_type(asm, passed, screened, other)
    return asm.assemble()
