"""Bytes of the kernel protocol, against offsets and sizes of include/uapi/linux/fuse.h."""

from __future__ import annotations

import os
import random
import struct

import pytest

from resmgr.errors import BadMessage
from resmgr.fuse import formats
from resmgr.fuse.formats import Format

SIZES = {
    "IN_HEADER": 40,
    "OUT_HEADER": 16,
    "INIT_IN": 16,
    "INIT_OUT": 64,
    "GETATTR_IN": 16,
    "SETATTR_IN": 88,
    "MKNOD_IN": 16,
    "MKDIR_IN": 8,
    "RENAME_IN": 8,
    "RENAME2_IN": 16,
    "LINK_IN": 8,
    "OPEN_IN": 8,
    "CREATE_IN": 16,
    "RELEASE_IN": 24,
    "FLUSH_IN": 24,
    "READ_IN": 40,
    "WRITE_IN": 40,
    "FSYNC_IN": 16,
    "ACCESS_IN": 8,
    "INTERRUPT_IN": 8,
    "FORGET_IN": 8,
    "BATCH_FORGET_IN": 8,
    "FORGET_ONE": 16,
    "FALLOCATE_IN": 32,
    "LSEEK_IN": 24,
    "COPY_IN": 56,
    "GETXATTR_IN": 8,
    "SETXATTR_IN": 8,
    "STATX_IN": 24,
    "ENTRY_OUT": 128,
    "ENTRY_REPLY": 16 + 128,
    "ATTR_REPLY": 16 + 104,
    "CREATE_REPLY": 16 + 128 + 16,
    "OPEN_REPLY": 16 + 16,
    "WRITE_REPLY": 16 + 8,
    "STATFS_REPLY": 16 + 80,
    "STATX_REPLY": 16 + 32 + 256,
    "LSEEK_REPLY": 16 + 8,
    "GETXATTR_REPLY": 16 + 8,
    "DIRENT": 24,
    "INVAL_INODE": 16 + 24,
    "INVAL_ENTRY": 16 + 16,
}


def layout(name: str) -> Format:
    found = getattr(formats, name)
    assert isinstance(found, Format)
    return found


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_kernels(name: str) -> None:
    assert layout(name).size == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_every_format_returns_what_was_packed(name: str) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    form = layout(name)
    count = len(form.parse(bytes(form.size)))
    for _ in range(50):
        values = tuple(source.randrange(1 << 15) for _ in range(count))

        assert form.parse(b"xyz" + form.pack(*values), 3) == values


@pytest.mark.parametrize("name", SIZES)
def test_every_format_refuses_every_shorter_length(name: str) -> None:
    form = layout(name)
    for length in range(form.size):
        with pytest.raises(BadMessage):
            form.parse(bytes(length))


def test_header_of_a_request() -> None:
    raw = bytes.fromhex("30000000 01000000 0200000000000000 0100000000000000 e8030000 e9030000 39300000 0000 0000".replace(" ", ""))

    assert formats.IN_HEADER.parse(raw) == (48, 1, 2, 1, 1000, 1001, 12345, 0, 0)


def test_an_error_reply_carries_the_negative_errno() -> None:
    assert formats.error_reply(7, 2) == struct.pack("=IiQ", 16, -2, 7)


def test_attributes_split_times_and_keep_negative_ones() -> None:
    attr = (5, 0o100644, 2, 10, 20, 0, 1234, 8, 4096, 1_500_000_001, -1, 3, 9)

    fields = formats.attr_fields(attr, 77, 0o100600)

    assert fields == (77, 1234, 8, 1, -1, 0, 500_000_001, 999_999_999, 3, 0o100600, 2, 10, 20, 0, 4096, 0)


def test_device_numbers_survive_the_way_through_32_bits() -> None:
    for major, minor in ((1, 3), (10, 229), (259, 65_537), (4095, (1 << 20) - 1)):
        number = os.makedev(major, minor)

        assert formats.device_64(formats.device_32(number)) == number


def test_device_32_is_the_kernels_encoding() -> None:
    assert formats.device_32(os.makedev(8, 300)) == (300 & 0xFF) | (8 << 8) | ((300 & ~0xFF) << 12)


@pytest.mark.parametrize("bad", [b"", b"name", b"\0", b"a/b\0", b".\0", b"..\0", b"a\0b"])
def test_a_name_must_be_one_entry_of_a_directory(bad: bytes) -> None:
    with pytest.raises(BadMessage):
        formats.name_at(b"head" + bad, 4)
    with pytest.raises(BadMessage):
        formats.names_at(b"head" + bad, 4, 1 if bad != b"a\0b" else 2)


def test_names() -> None:
    assert formats.name_at(b"xx\xff name\0", 2) == b"\xff name"
    assert formats.names_at(b"xxold\0new\0", 2, 2) == [b"old", b"new"]
    assert formats.strings_at(b"link\0../x/y\0", 0, 2) == [b"link", b"../x/y"]


def test_batch_forget() -> None:
    body = bytes(40) + formats.BATCH_FORGET_IN.pack(2) + struct.pack("=QQQQ", 3, 1, 4, 2)

    assert formats.forgets(body) == [(3, 1), (4, 2)]
    for length in range(len(body)):
        with pytest.raises(BadMessage):
            formats.forgets(body[:length])


def test_batch_forget_with_an_absurd_count_reserves_nothing() -> None:
    with pytest.raises(BadMessage):
        formats.forgets(bytes(40) + formats.BATCH_FORGET_IN.pack(0xFFFFFFFF))


def test_notifications() -> None:
    assert formats.inval_inode(9) == struct.pack("=IiQQqq", 40, 2, 0, 9, -1, 0)
    assert formats.inval_entry(1, b"B") == struct.pack("=IiQQII", 34, 3, 0, 1, 1, 0) + b"B\0"


def test_value_at_takes_a_name_and_what_it_says() -> None:
    whole = b"user.a\0value"
    assert formats.value_at(whole, 0, 5) == (b"user.a", b"value")
    assert formats.value_at(b"user.a\0a\0b", 0, 3) == (b"user.a", b"a\0b")
    for length in range(len(whole)):
        with pytest.raises(BadMessage):
            formats.value_at(whole[:length], 0, 5)
    with pytest.raises(BadMessage):
        formats.value_at(b"\0value", 0, 5)


def test_statx_reply_is_the_kernels_structure() -> None:
    attr = (7, 0o100644, 2, 1, 3, 0, 10, 8, 4096, 1_000_000_002, -1, 5, 5)
    reply = formats.statx_reply(9, (1, 2), formats.attr_fields(attr, 7, attr[1]), -1)
    assert struct.unpack_from("=IiQ", reply) == (304, 0, 9)
    assert struct.unpack_from("=QII", reply, 16) == (1, 2, 0)
    assert struct.unpack_from("=IIQIIIH", reply, 48) == (0xFFF, 4096, 0, 2, 1, 3, 0o100644)
    assert struct.unpack_from("=QQQQ", reply, 48 + 32) == (7, 10, 8, 0)
    assert [struct.unpack_from("=qI", reply, 112 + 16 * place) for place in range(4)] == [
        (1, 2),
        (-1, 999_999_999),
        (0, 5),
        (-1, 999_999_999),
    ]
    assert struct.unpack_from("=I", formats.statx_reply(9, (1, 2), formats.attr_fields(attr, 7, attr[1]), None), 48) == (0x7FF,)
