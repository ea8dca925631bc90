"""Runs classic BPF in Python, as the kernel does: for tests, and for drivers below which there is no kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from resmgr.errors import Misuse
from stack.filter.bpf import assembler as b
from stack.filter.bpf.assembler import Instruction
from stack.frame import Frame

_LOADS = {b.LD_W_ABS: 4, b.LD_H_ABS: 2, b.LD_B_ABS: 1, b.LD_W_IND: 4, b.LD_H_IND: 2, b.LD_B_IND: 1}
_INDEXED = frozenset((b.LD_W_IND, b.LD_H_IND, b.LD_B_IND))
_MASK = 0xFFFFFFFF


def _zero() -> int:
    return 0


def run(code: Sequence[Instruction], frame: Frame, packet_type: int = 0, random: Callable[[], int] = _zero) -> int:
    """What the program returns: how many bytes of the frame to keep, 0 for none. Misuse for an instruction that is none."""
    accumulator = index = place = 0
    memory = [0] * 16
    while True:
        kind, true, false, k = code[place]
        place += 1
        if kind in _LOADS:
            if k == b.AD_PKTTYPE:
                accumulator = packet_type
            elif k == b.AD_RANDOM:
                accumulator = random() & _MASK
            else:
                at, size = k + (index if kind in _INDEXED else 0), _LOADS[kind]
                if at + size > len(frame):
                    return 0
                accumulator = int.from_bytes(frame[at : at + size], "big")
        elif kind in b.CONDITIONAL:
            place += true if _holds(kind, accumulator, index if kind == b.JEQ_X else k) else false
        elif kind == b.JA:
            place += k
        elif kind == b.RET:
            return k
        elif kind in (b.LDX_IMM, b.LDX_MEM, b.TAX):
            index = k if kind == b.LDX_IMM else memory[k] if kind == b.LDX_MEM else accumulator
        elif kind in (b.ST, b.STX):
            memory[k] = accumulator if kind == b.ST else index
        else:
            accumulator = _computed(kind, accumulator, index, k, memory, len(frame)) & _MASK


def _holds(kind: int, accumulator: int, operand: int) -> bool:
    if kind in (b.JEQ, b.JEQ_X):
        return accumulator == operand
    if kind == b.JGT:
        return accumulator > operand
    if kind == b.JGE:
        return accumulator >= operand
    return bool(accumulator & operand)


def _computed(kind: int, accumulator: int, index: int, k: int, memory: list[int], length: int) -> int:
    match kind:
        case b.LD_IMM:
            return k
        case b.LD_LEN:
            return length
        case b.LD_MEM:
            return memory[k]
        case b.TXA:
            return index
        case b.ADD_K:
            return accumulator + k
        case b.SUB_K:
            return accumulator - k
        case b.LSH_K:
            return accumulator << k
        case b.RSH_K:
            return accumulator >> k
        case b.AND_K:
            return accumulator & k
        case b.ADD_X:
            return accumulator + index
        case b.OR_X:
            return accumulator | index
        case b.XOR_X:
            return accumulator ^ index
    raise Misuse(f"no instruction: {kind:#x}")
