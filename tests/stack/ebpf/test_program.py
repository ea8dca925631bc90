"""Programs, maps and links in this kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from resmgr.errors import Misuse
from stack.ebpf.assembler import R0, R1, R2, R3, R6, R10, Alu, Assembler, Code, Jump, Width
from stack.ebpf.constants import EXIST, NOEXIST, XDP_DATA, XDP_DATA_END, Helper, MapType, Xdp, XdpMode
from stack.ebpf.map import Map, possible_cpus
from stack.ebpf.program import Program, ProgramRefused, XdpLink
from stack.testing.namespace import Veth

pytestmark = pytest.mark.priv

FRAME = bytes(range(64))


def returning(action: int) -> Code:
    assembler = Assembler()
    assembler.constant(R0, action)
    assembler.exit()
    return assembler.assemble()


def counting(table: Map) -> Code:
    """Adds 1 to entry 0 of *table*, and passes what is long enough."""
    asm = Assembler()
    asm.move(R6, R1)
    asm.store_constant(Width.W, R10, -4, 0)
    asm.move(R2, R10)
    asm.compute(Alu.ADD, R2, -4)
    asm.map(R1, table.fd)
    asm.call(Helper.MAP_LOOKUP)
    asm.branch(Jump.EQ, R0, 0, "drop")
    asm.constant(R1, 1)
    asm.add_to(R0, 0, R1)
    asm.load(Width.W, R2, R6, XDP_DATA)
    asm.load(Width.W, R3, R6, XDP_DATA_END)
    asm.compute(Alu.ADD, R2, 20)
    asm.branch_register(Jump.GT, R2, R3, "drop")
    asm.constant(R0, Xdp.PASS)
    asm.exit()
    asm.label("drop")
    asm.constant(R0, Xdp.DROP)
    asm.exit()
    return asm.assemble()


def descriptors() -> set[str]:
    return {f"{fd}={os.readlink(f'/proc/self/fd/{fd}')}" for fd in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{fd}").is_symlink()}


def test_a_program_runs_and_shares_a_map() -> None:
    with Map(MapType.ARRAY, 4, 8, 1, "count") as table, Program(counting(table), "counting") as program:
        assert program.run(FRAME).result == Xdp.PASS
        assert program.run(FRAME[:16]).result == Xdp.DROP
        assert table.lookup(bytes(4)) == (2).to_bytes(8, sys.byteorder)
        run = program.run(FRAME, times=1000)
        assert run.frame == FRAME
        assert 0 <= run.seconds < 1e-3
        assert table.lookup(bytes(4)) == (1002).to_bytes(8, sys.byteorder)


def test_each_processor_has_a_value_of_its_own() -> None:
    with Map(MapType.PERCPU_ARRAY, 4, 12, 2) as table:
        values = table.lookup_cpus(bytes(4))
        assert values == [bytes(12)] * possible_cpus()
        table.update(bytes(4), b"twelve bytes")
        assert table.lookup_cpus(bytes(4)) == [b"twelve bytes"] * possible_cpus()


def test_a_call_does_not_open_the_library_of_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """That costs 20 times what the call itself does."""
    with Map(MapType.HASH, 4, 4, 3) as table:
        monkeypatch.setattr(ctypes, "CDLL", None)
        table.update(bytes(4), b"aaaa")
        assert table.lookup(bytes(4)) == b"aaaa"
        assert table.delete(bytes(4))


def test_entries_come_and_go() -> None:
    with Map(MapType.HASH, 6, 4, 3, "a name that is too long / and strange") as table:
        assert table.lookup(b"absent") is None
        assert list(table.items()) == []
        table.update(b"first1", b"aaaa", NOEXIST)
        table.update(b"first1", b"bbbb", EXIST)
        with pytest.raises(FileExistsError):
            table.update(b"first1", b"cccc", NOEXIST)
        with pytest.raises(FileNotFoundError):
            table.update(b"second", b"cccc", EXIST)
        assert table.lookup(b"first1") == b"bbbb"
        table.update(b"second", b"cccc")
        table.update(b"third3", b"dddd")
        with pytest.raises(OSError) as full:
            table.update(b"fourth", b"eeee")
        assert full.value.errno == errno.E2BIG
        assert dict(table.items()) == {b"first1": [b"bbbb"], b"second": [b"cccc"], b"third3": [b"dddd"]}
        assert table.delete(b"second")
        assert not table.delete(b"second")
        with pytest.raises(Misuse):
            table.update(b"short", b"aaaa")
        with pytest.raises(Misuse):
            table.update(b"first1", b"too long")
        with pytest.raises(Misuse):
            table.lookup(b"x")


@pytest.mark.parametrize("count", [255, 256, 257, 3000])
def test_all_entries_are_fetched_in_parts(count: int) -> None:
    with Map(MapType.HASH, 4, 8, 4096) as table:
        expected = {struct.pack("=I", number): [struct.pack("=Q", number * 7)] for number in range(count)}
        for key, [value] in expected.items():
            table.update(key, value)
        assert dict(table.items()) == expected


def test_what_the_verifier_refuses_is_told_with_our_text() -> None:
    asm = Assembler()
    asm.load(Width.W, R2, R1, XDP_DATA)
    asm.load(Width.B, R0, R2, 0)
    asm.exit()
    with pytest.raises(ProgramRefused, match=r"invalid access to packet") as refused:
        Program(asm.assemble(), "careless")
    assert "; r0 = B [r2+0]" in str(refused.value)
    assert "careless" in str(refused.value)


@pytest.mark.parametrize("mode", list(XdpMode))
def test_a_link_holds_the_program_for_as_long_as_it_is_open(veth: Veth, mode: XdpMode) -> None:
    before = descriptors()
    with veth.a.entered(), Program(returning(Xdp.DROP), "dropping") as program:
        index = socket.if_nametoindex("va")
        link = XdpLink(program, index, mode)
        shown = subprocess.check_output(["ip", "link", "show", "va"], text=True)
        assert (" xdpgeneric " if mode is XdpMode.GENERIC else " xdp ") in shown
        with pytest.raises(OSError) as busy:
            XdpLink(program, index, mode)
        assert busy.value.errno == errno.EBUSY
        link.close()
        link.close()
        assert "xdp" not in subprocess.check_output(["ip", "link", "show", "va"], text=True)
        with pytest.raises(OSError):
            XdpLink(program, 999999, mode)
    assert descriptors() == before
