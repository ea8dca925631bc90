"""SHA-3 (FIPS 202): the permutation Keccak-f[1600] and the sponge over it."""

from __future__ import annotations

import attrs

from resmgr.dispatch import Buffer

_MASK = (1 << 64) - 1


def _round_constants() -> tuple[int, ...]:
    """Bits of a shift register, at the places 2**j - 1 of each word (section 3.2.5)."""
    register, constants = 1, []
    for _ in range(24):
        constant = 0
        for place in range(7):
            if register & 1:
                constant |= 1 << (1 << place) - 1
            register = register << 1 ^ (0x171 if register & 0x80 else 0)
        constants.append(constant)
    return tuple(constants)


def _offsets() -> tuple[tuple[int, int, int], ...]:
    """The walk of rho and pi: (from, to, turn) of the 24 lanes that move (sections 3.2.2 and 3.2.3)."""
    moves, x, y = [], 1, 0
    for step in range(24):
        onward = y, (2 * x + 3 * y) % 5
        moves.append((x + 5 * y, onward[0] + 5 * onward[1], (step + 1) * (step + 2) // 2 % 64))
        x, y = onward
    return tuple(moves)


_CONSTANTS = _round_constants()
_MOVES = _offsets()


def permute(lanes: list[int]) -> list[int]:
    """Keccak-f[1600] of 25 lanes, lane (x, y) at x + 5y."""
    for constant in _CONSTANTS:
        columns = [lanes[x] ^ lanes[x + 5] ^ lanes[x + 10] ^ lanes[x + 15] ^ lanes[x + 20] for x in range(5)]
        sides = [columns[x - 1] ^ ((columns[(x + 1) % 5] << 1 | columns[(x + 1) % 5] >> 63) & _MASK) for x in range(5)]
        lanes = [lane ^ sides[at % 5] for at, lane in enumerate(lanes)]
        moved = list(lanes)
        for source, target, turn in _MOVES:
            lane = lanes[source]
            moved[target] = (lane << turn | lane >> 64 - turn) & _MASK
        lanes = [moved[row + x] ^ (~moved[row + (x + 1) % 5] & moved[row + (x + 2) % 5]) for row in range(0, 25, 5) for x in range(5)]
        lanes[0] ^= constant
    return lanes


@attrs.frozen
class Sha3:
    """One of the family, by the size of its digest in bytes."""

    size: int

    @property
    def block(self) -> int:
        """Bytes: the sponge's rate."""
        return 200 - 2 * self.size

    def digest(self, message: Buffer) -> bytes:
        rate = self.block
        data = bytearray(message)
        data += b"\6" + bytes(-(len(data) + 1) % rate)
        data[-1] |= 0x80
        lanes = [0] * 25
        for at in range(0, len(data), rate):
            for lane in range(rate // 8):
                lanes[lane] ^= int.from_bytes(data[at + 8 * lane : at + 8 * lane + 8], "little")
            lanes = permute(lanes)
        return b"".join(lane.to_bytes(8, "little") for lane in lanes)[: self.size]


SHA3_224, SHA3_256, SHA3_384, SHA3_512 = Sha3(28), Sha3(32), Sha3(48), Sha3(64)
