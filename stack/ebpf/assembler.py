"""An assembler for eBPF (Linux: Documentation/bpf/standardization/instruction-set.rst), with labels.

    code, registers    offset        immediate
    +----+----+--------+-------------+---------------------------+
    | op | dst:4 src:4 | 16 bits     | 32 bits                   |
    +----+-------------+-------------+---------------------------+

Registers are 64 bits: R0 result, R1 to R5 arguments (lost in a call), R6 to R9 kept, R10 the frame pointer, above 512 bytes of stack that
are addressed with negative offsets. Jumps name labels. Loads of a map's address take two places.

The verifier of the kernel checks what a program does (`stack.ebpf.program`); here only what would be another instruction than was meant is
refused: an immediate, offset or jump that does not fit.
"""

from __future__ import annotations

import enum
import struct
import sys

import attrs

from resmgr.errors import Misuse

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)
_PACKED = struct.Struct("=BBhi")
SIZE = _PACKED.size
_LITTLE = sys.byteorder == "little"

_LDX, _ST, _STX, _ALU32, _JMP, _ALU64 = 1, 2, 3, 4, 5, 7
_MEM = 0x60
_ATOMIC = 0xC0
_X = 8
_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1
_CALL, _EXIT = 0x85, 0x95


class Width(enum.IntEnum):
    """Of a load or store; names as in the kernel: 1, 2, 4, 8 bytes."""

    B = 0x10
    H = 0x08
    W = 0x00
    DW = 0x18


class Alu(enum.IntEnum):
    ADD = 0x00
    SUB = 0x10
    MUL = 0x20
    DIV = 0x30
    OR = 0x40
    AND = 0x50
    LSH = 0x60
    RSH = 0x70
    MOD = 0x90
    XOR = 0xA0
    MOV = 0xB0
    ARSH = 0xC0


class Jump(enum.IntEnum):
    """Conditions; those from GT to LE compare without sign."""

    EQ = 0x10
    GT = 0x20
    GE = 0x30
    SET = 0x40
    NE = 0x50
    SGT = 0x60
    SGE = 0x70
    LT = 0xA0
    LE = 0xB0
    SLT = 0xC0
    SLE = 0xD0


@attrs.frozen
class Code:
    """A program: 8 bytes per instruction. `text` has a line for each, for whoever reads the verifier's complaint."""

    instructions: bytes
    text: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.instructions) // SIZE


class Assembler:
    """Collects instructions; `assemble` yields the program. A label is any text, defined once."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, int, int, str, str]] = []
        """code, registers, offset, immediate, the label that replaces the offset, text."""
        self._labels: dict[str, int] = {}
        self._unique = 0

    def __len__(self) -> int:
        return len(self._lines)

    # Moving and computing

    def move(self, target: int, source: int) -> None:
        self._emit(_ALU64 | Alu.MOV | _X, target, source, text=f"r{target} = r{source}")

    def constant(self, target: int, value: int) -> None:
        """A value of 32 bits, extended with its sign."""
        self._emit(_ALU64 | Alu.MOV, target, immediate=value, text=f"r{target} = {value}")

    def compute(self, operation: Alu, target: int, value: int) -> None:
        """64 bits, with a constant."""
        self._emit(_ALU64 | operation, target, immediate=value, text=f"r{target} {operation.name.lower()}= {value}")

    def combine(self, operation: Alu, target: int, source: int) -> None:
        """64 bits, with a register."""
        self._emit(_ALU64 | operation | _X, target, source, text=f"r{target} {operation.name.lower()}= r{source}")

    def big_endian(self, target: int, bits: int) -> None:
        """A number as it is on the wire (16, 32 or 64 bits of it) into the machine's order, or back."""
        if bits not in (16, 32, 64):
            raise Misuse(f"{bits} bits cannot be swapped")
        self._emit(_ALU32 | 0xD0 | _X, target, immediate=bits, text=f"r{target} = be{bits}(r{target})")

    # Memory

    def load(self, width: Width, target: int, base: int, offset: int) -> None:
        """target = *(base + offset), extended with zeros."""
        self._emit(_LDX | _MEM | width, target, base, offset, text=f"r{target} = {width.name} [r{base}{offset:+}]")

    def store(self, width: Width, base: int, offset: int, source: int) -> None:
        self._emit(_STX | _MEM | width, base, source, offset, text=f"{width.name} [r{base}{offset:+}] = r{source}")

    def store_constant(self, width: Width, base: int, offset: int, value: int) -> None:
        self._emit(_ST | _MEM | width, base, 0, offset, value, text=f"{width.name} [r{base}{offset:+}] = {value}")

    def add_to(self, base: int, offset: int, source: int) -> None:
        """Atomically, 64 bits: *(base + offset) += source."""
        self._emit(_STX | _ATOMIC | Width.DW, base, source, offset, int(Alu.ADD), text=f"lock DW [r{base}{offset:+}] += r{source}")

    def map(self, target: int, descriptor: int) -> None:
        """The address of a map, for helpers."""
        self._emit(_LD_IMM64, target, _PSEUDO_MAP_FD, immediate=descriptor, text=f"r{target} = map {descriptor}")
        self._emit(0, 0, text="")

    # Flow

    def label(self, name: str) -> None:
        if name in self._labels:
            raise Misuse(f"label {name} is there already")
        self._labels[name] = len(self._lines)

    def fresh(self) -> str:
        """A label that nobody has."""
        self._unique += 1
        return f"#{self._unique}"

    def jump(self, label: str) -> None:
        self._emit(_JMP, 0, label=label, text=f"goto {label}")

    def branch(self, condition: Jump, register: int, value: int, label: str) -> None:
        """To *label* if the register compares so with a constant, 64 bits; else on."""
        self._emit(_JMP | condition, register, immediate=value, label=label, text=f"if r{register} {condition.name} {value} goto {label}")

    def branch_register(self, condition: Jump, left: int, right: int, label: str) -> None:
        self._emit(_JMP | condition | _X, left, right, label=label, text=f"if r{left} {condition.name} r{right} goto {label}")

    def call(self, helper: int) -> None:
        """R1 to R5 are arguments and lost; R0 is the result."""
        self._emit(_CALL, 0, immediate=helper, text=f"call {getattr(helper, 'name', helper)}")

    def exit(self) -> None:
        """Return R0."""
        self._emit(_EXIT, 0, text="exit")

    def assemble(self) -> Code:
        """The program. Misuse for a label that is not there or too far."""
        out = []
        for number, (code, registers, offset, immediate, label, _) in enumerate(self._lines):
            if label:
                if label not in self._labels:
                    raise Misuse(f"a jump to {label}, which is not there")
                offset = self._labels[label] - number - 1
                if not -(1 << 15) <= offset < 1 << 15:
                    raise Misuse(f"a jump to {label}, which is {offset} instructions away")
            out.append(_PACKED.pack(code, registers, offset, immediate))
        return Code(b"".join(out), tuple(line[-1] for line in self._lines))

    def _emit(self, code: int, target: int, source: int = 0, offset: int = 0, immediate: int = 0, label: str = "", text: str = "") -> None:
        if not (0 <= target <= R10 and 0 <= source <= R10):
            raise Misuse(f"there is no such register: {text}")
        if not -(1 << 15) <= offset < 1 << 15:
            raise Misuse(f"the offset does not fit into 16 bits: {text}")
        if not -(1 << 31) <= immediate < 1 << 32:
            raise Misuse(f"the value does not fit into 32 bits: {text}")
        if immediate >= 1 << 31:
            # Only where 32 bits are meant: elsewhere the sign would be extended into another number.
            if code & 7 != _ST or code & 0x18 == Width.DW:
                raise Misuse(f"the value does not fit into 31 bits and a sign: {text}")
            immediate -= 1 << 32
        registers = target | source << 4 if _LITTLE else target << 4 | source
        self._lines.append((code, registers, offset, immediate, label, text))
