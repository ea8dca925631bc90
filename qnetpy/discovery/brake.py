"""How much of what is said over mDNS is listened to: all, unless reading it takes too much of the processor. Pure.

A responder reads and parses in Python what anybody on the link sends, a tenth of a millisecond for each packet, and holds the interpreter
meanwhile, which the links need. So its time has a budget, SHARE of a core after a BURST. Who uses it up is heard in part only: a program in
the kernel takes packets at random and drops the rest before anybody is woken. At random, so that honest announcements among a million lies
get the same chance as the lies, again and again.
"""

from __future__ import annotations

from stack.filter.bpf import assembler as b
from stack.filter.bpf.assembler import WHOLE, Assembler, Code

LOOK = 0.25
"""Seconds between looks at the time that was used."""
SHARE = 0.1
"""Of a core, in the long run: about 1,000 announcements a second at 0.1 ms each."""
BURST = 0.5
"""Seconds of processor time that may be used at once: a start takes a third of it."""
PART_MIN = 1 / 4096
"""Of the packets, that is still listened to: 25 of 100,000 a second."""


class Brake:
    """See the head of this file."""

    def __init__(self) -> None:
        self.part = 1.0
        """Of the packets, to be listened to."""
        self._budget = BURST

    def look(self, used: float, passed: float) -> bool:
        """*used* seconds of processor time went in the last *passed* seconds. Whether `part` is another one now."""
        before = self.part
        self._budget = min(BURST, max(0.0, self._budget + SHARE * passed - used))
        share = used / passed if passed > 0.0 else 0.0
        if not self._budget and share > SHARE:
            self.part = max(PART_MIN, self.part * SHARE / share)
        elif share < SHARE / 2:
            self.part = min(1.0, 2.0 * self.part)
        return self.part != before


def program(part: float) -> Code:
    """Lets that part of the packets through."""
    asm = Assembler()
    if part < 1.0:
        asm.op(b.LD_W_ABS, b.AD_RANDOM)
        asm.branch(b.JGE, int(part * 2**32), "drop")
    asm.op(b.RET, WHOLE)
    if part < 1.0:
        asm.label("drop")
        asm.op(b.RET, 0)
    return asm.assemble()
