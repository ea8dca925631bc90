"""An assembler for classic BPF (Linux: Documentation/networking/filter.rst), with labels and jumps of any length.

The machine has an accumulator A, an index X and 16 words of memory. All instructions are 8 bytes: code, two jumps counted from the next
instruction, and a constant. Conditional jumps reach 255 instructions; where a label is further away, the assembler puts an unconditional
jump, which reaches anywhere, behind the condition. Jumps go forward only, so a program always ends.

A finished program is position-independent: it can be put behind others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from resmgr.errors import Misuse

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, k."""
Code = tuple[Instruction, ...]

LD_W_ABS, LD_H_ABS, LD_B_ABS = 0x20, 0x28, 0x30
"""A = word, half word or byte at k of the frame, big-endian. A load beyond the end of the frame ends the program with 0."""
LD_W_IND, LD_H_IND, LD_B_IND = 0x40, 0x48, 0x50
"""The same at X + k."""
LD_IMM, LD_LEN, LD_MEM, LDX_IMM, LDX_MEM, ST, STX = 0x00, 0x80, 0x60, 0x01, 0x61, 0x02, 0x03
ADD_K, SUB_K, LSH_K, RSH_K, AND_K = 0x04, 0x14, 0x64, 0x74, 0x54
ADD_X, OR_X, XOR_X = 0x0C, 0x4C, 0xAC
JA, JEQ, JGT, JGE, JSET, JEQ_X = 0x05, 0x15, 0x25, 0x35, 0x45, 0x1D
"""JGT and JGE compare without sign."""
RET, TAX, TXA = 0x06, 0x07, 0x87
AD_PKTTYPE, AD_RANDOM = 0xFFFFF000 + 4, 0xFFFFF000 + 56
"""Instead of a place in the frame: the kernel's packet type, and 32 random bits (SKF_AD_OFF + ...)."""
MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS: the kernel takes no longer program."""
WHOLE = 0x40000
"""To return for a frame or datagram that is wanted: more bytes than it has."""
SAMPLE_SIZE = 64
"""To return for a frame of which a sample is enough, so that it can be counted."""
CONDITIONAL = frozenset((JEQ, JGT, JGE, JSET, JEQ_X))
REACH = 255
_PIECE = -1
"""In place of an instruction: a finished piece."""


class Assembler:
    """Collects instructions; `assemble` yields the program. A label is any text, defined once, used before."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, str | None, str | None]] = []
        self._labels: dict[str, int] = {}
        self._pieces: dict[int, Code] = {}
        self._unique = 0

    def __len__(self) -> int:
        return len(self._lines)

    def op(self, code: int, k: int = 0) -> None:
        self._lines.append((code, k & 0xFFFFFFFF, None, None))

    def branch(self, code: int, k: int, true: str | None = None, false: str | None = None) -> None:
        """A conditional jump; None goes on with the next instruction."""
        self._lines.append((code, k & 0xFFFFFFFF, true or "", false or ""))

    def jump(self, label: str) -> None:
        self._lines.append((JA, 0, label, None))

    def label(self, name: str) -> None:
        if name in self._labels:
            raise Misuse(f"label {name} is there already")
        self._labels[name] = len(self._lines)

    def fresh(self) -> str:
        """A label that nobody has."""
        self._unique += 1
        return f"#{self._unique}"

    def code(self, code: Code) -> None:
        """A finished program or piece of one; what it does not return from goes on behind it."""
        self._pieces[len(self._lines)] = code
        self._lines.append((_PIECE, 0, None, None))

    def assemble(self) -> Code:
        """The program. Misuse for a label that is not there or behind its jump."""
        lines = self._lines
        sizes = [len(self._pieces[number]) if line[0] == _PIECE else 1 for number, line in enumerate(lines)]
        conditions = [number for number, line in enumerate(lines) if line[0] in CONDITIONAL]
        # Sizes grow until every far jump has its trampolines; two rounds are usual.
        while True:
            places = [0, *accumulate(sizes)]
            grown = False
            for number in conditions:
                _, _, true, false = lines[number]
                far = sum(self._distance(number, label, places) > REACH - 2 for label in (true, false) if label)
                if 1 + far > sizes[number]:
                    sizes[number] = 1 + far
                    grown = True
            if not grown:
                break
        out: list[Instruction] = []
        for number, (code, k, true, false) in enumerate(lines):
            if code == _PIECE:
                out += self._pieces[number]
            elif code == JA:
                out.append((JA, 0, 0, self._distance(number, true or "", places)))
            elif code in CONDITIONAL:
                out += self._conditional(number, code, k, (true or "", false or ""), places, sizes[number])
            else:
                out.append((code, 0, 0, k))
        return tuple(out)

    def _distance(self, number: int, label: str, places: list[int]) -> int:
        """From behind the line (with its trampolines) to the label."""
        target = self._labels.get(label)
        if target is None or target <= number:
            raise Misuse(f"a jump to {label}, which is not ahead")
        return places[target] - places[number + 1]

    def _conditional(self, number: int, code: int, k: int, labels: tuple[str, str], places: list[int], size: int) -> list[Instruction]:
        tramps: list[Instruction] = []
        jumps: list[int] = []
        extra = size - 1
        for label in labels:
            if not label:
                jumps.append(extra)
                continue
            distance = self._distance(number, label, places)
            if distance > REACH - 2 and len(tramps) < extra:
                jumps.append(len(tramps))
                tramps.append((JA, 0, 0, distance + extra - len(tramps) - 1))
            else:
                jumps.append(distance + extra)
        while len(tramps) < extra:
            tramps.append((JA, 0, 0, extra - len(tramps) - 1))
        return [(code, jumps[0], jumps[1], k), *tramps]


def member(asm: Assembler, values: Sequence[int], true: str, false: str, bucket: int = 16) -> None:
    """Go to *true* when A is one of *values*, else to *false*: a binary search down to buckets, which are compared one by one.

    About 1.3 instructions per value; log2(n / bucket) + bucket / 2 are run.
    """
    _search(asm, sorted(set(values)), true, false, bucket)


def _search(asm: Assembler, values: list[int], true: str, false: str, bucket: int) -> None:
    if len(values) <= bucket:
        hit = asm.fresh()
        for value in values[:-1]:
            asm.branch(JEQ, value, hit)
        if values:
            asm.branch(JEQ, values[-1], hit, false)
            asm.label(hit)
            asm.jump(true)
        else:
            asm.jump(false)
        return
    middle = len(values) // 2
    upper = asm.fresh()
    asm.branch(JGE, values[middle], upper)
    _search(asm, values[:middle], true, false, bucket)
    asm.label(upper)
    _search(asm, values[middle:], true, false, bucket)
