"""The packed entries of a listing: what is found in them, and what does not parse."""

from __future__ import annotations

import contextlib
import random
from stat import S_IFREG

import pytest

from resmgr.errors import BadMessage
from resmgr.fuse.listed import Chunk
from resmgr.iomsg import COOKIE_END, Attr, DirEntry, pack_dirent


def entry(name: bytes, size: int, cookie: int) -> bytes:
    return pack_dirent(DirEntry(name, 99, cookie, S_IFREG, Attr(99, S_IFREG | 0o644, 1, 0, 0, 0, size, 0, 4096, 0, 0, 0, 0)))


def packed(count: int) -> bytes:
    return b"".join(entry(b"name%d" % number, number, number + 1) for number in range(count))


def test_chunk_finds_what_it_was_made_of() -> None:
    data = packed(9) + entry(b"last", 0, COOKIE_END)
    chunk = Chunk(data, 1.0)

    assert set(chunk.offsets) == {b"name%d" % number for number in range(9)} | {b"last"}
    assert chunk.last == COOKIE_END
    assert Attr.parse(data, chunk.offsets[b"name4"]).size == 4


def test_chunk_cut_short_raises_bad_message_only() -> None:
    data = packed(3)
    whole = {0, *(len(packed(count)) for count in (1, 2, 3))}
    for length in range(len(data) + 1):
        if length in whole:
            Chunk(data[:length], 0.0)
        else:
            with pytest.raises(BadMessage):
                Chunk(data[:length], 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_chunk_of_noise_raises_bad_message_only(seed: int) -> None:
    print("seed", seed)
    chosen = random.Random(seed)
    for _ in range(200):
        data = bytearray(packed(4))
        for _ in range(chosen.randrange(1, 6)):
            data[chosen.randrange(len(data))] = chosen.randrange(256)
        with contextlib.suppress(BadMessage):
            Chunk(bytes(data), 0.0)
