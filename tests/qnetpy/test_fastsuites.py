"""Which ciphers come first, by the flags of processors that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from qnetpy.fastsuites import fast_suites, processor_flags

X86 = "processor : 0\nmodel name : some\nflags\t\t: fpu sse2 {}\n\nprocessor : 1\nflags : nothing\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {} crc32\n"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (X86.format("aes pclmulqdq"), "aes-128-gcm"),
        (X86.format("aes"), "chacha20-poly1305"),
        (ARM.format("aes pmull sha1"), "aes-128-gcm"),
        (ARM.format(""), "chacha20-poly1305"),
        ("", "chacha20-poly1305"),
    ],
)
def test_the_processor_decides(tmp_path: Path, text: str, first: str) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    suites = fast_suites(processor_flags(str(file)))
    assert suites[0] == first
    assert sorted(suites) == ["aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"]


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    assert processor_flags(str(tmp_path / "none")) == frozenset()
