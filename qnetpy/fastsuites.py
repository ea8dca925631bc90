"""Which of Qnet's cipher suites this machine does fast, by what its processor says of itself: those come first when a node offers them.

AES-GCM needs two instructions: a round of AES and a carry-less multiplication. With both it is faster than ChaCha20-Poly1305 on every
processor that has them; without, AES in software is several times slower and leaks its key to whoever shares the cache. Asked of the
kernel and not measured: a measurement at start costs milliseconds, varies with whoever else runs, and makes two starts of a node differ.
"""

from __future__ import annotations

from pathlib import Path

from stack.crypto.algorithms import AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305

CPUINFO = "/proc/cpuinfo"
_AES = ({"aes", "pclmulqdq"}, {"aes", "pmull"})
"""On x86 and on ARM."""
_NAMES = ("flags", "Features")


def processor_flags(path: str = CPUINFO) -> frozenset[str]:
    """Of the first processor; empty when the kernel does not tell."""
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() in _NAMES:
            return frozenset(value.split())
    return frozenset()


def fast_suites(flags: frozenset[str]) -> tuple[str, ...]:
    """All suites, the fastest first."""
    if any(needed <= flags for needed in _AES):
        return AES_128_GCM.name, CHACHA20_POLY1305.name, AES_256_GCM.name
    return CHACHA20_POLY1305.name, AES_128_GCM.name, AES_256_GCM.name
