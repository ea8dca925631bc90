"""The Internet checksum (RFC 1071): of IP headers, TCP, UDP and ICMP.

The sum of 16-bit words in one's complement is the number that the bytes spell, modulo 0xFFFF. A long division would cost 7 µs for 1500
bytes, a loop over words 50. Instead the number is folded: 2 ** bits is 1 modulo 0xFFFF when bits is a multiple of 16, so the upper half may
be added to the lower, again and again: 1.2 µs.
"""

from __future__ import annotations

from stack.frame import Frame

FOLDS = tuple((bits, (1 << bits) - 1) for bits in (1 << power for power in range(19, 6, -1)))
"""Where a number is folded, widest first, up to 128 KiB."""


def folded(number: int) -> int:
    """*number* modulo 0xFFFF, but 0xFFFF unless it is 0."""
    for bits, mask in FOLDS:
        if number > mask:
            number = (number >> bits) + (number & mask)
    return number % 0xFFFF or (0xFFFF if number else 0)


def ones_sum(data: Frame, start: int = 0) -> int:
    """One's complement sum of the 16-bit big-endian words of *data*, an odd byte padded with zero, plus *start*. 0 only for all zeroes."""
    return folded((int.from_bytes(data, "big") << (len(data) & 1) * 8) + start)


def checksum(data: Frame, start: int = 0) -> int:
    """What goes into the checksum field, which must be zero in *data*. *start*: a sum to begin with, as of a pseudo header."""
    return 0xFFFF - ones_sum(data, start)


def udp_checksum(data: Frame, start: int = 0) -> int:
    """The same for UDP over IP, where 0 says that there is none."""
    return checksum(data, start) or 0xFFFF


def pseudo_sum(addresses: Frame, protocol: int, length: int) -> int:
    """Sum of the pseudo header of TCP and UDP: *addresses* are source and destination, 8 bytes in IPv4 and 32 in IPv6."""
    return ones_sum(addresses, protocol + (length >> 16) + (length & 0xFFFF))
