"""Names and addresses that people type for interfaces: what means nothing is a sentence, before anything is made."""

from __future__ import annotations

import errno
import random

import pytest

from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.errors import ModuleError
from stack.core.names import check_linux_name, check_name, station_address
from stack.core.stack import Stack


@pytest.mark.parametrize("name", ["en0", "vlan5", "eth0.100", "br-4f", "x", "a" * 31, "veth@1", "e:1", "_x"])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "a" * 32, "a b", "a/b", "..", "a\n", "a,b", "#1", "a=b", "é", "-x", "a~b", 'a"', "\x1b[2J"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ModuleError, match="cannot be an interface's name") as raised:
        check_name(name)
    assert raised.value.errno == errno.EINVAL
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(("name", "good"), [("eth0", True), ("ä" * 7, True), ("ä" * 8, False), ("a" * 15, True), ("a" * 16, False)])
def test_names_of_linux_have_bytes(name: str, good: bool) -> None:
    if good:
        check_linux_name(name, "x")
        return
    with pytest.raises(ModuleError, match=r"x: '.*' cannot be the name of a Linux interface"):
        check_linux_name(name, "x")


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "a:b", "a\tb", "\x07"])
def test_what_linux_takes_for_no_name(name: str) -> None:
    with pytest.raises(ModuleError, match="cannot be the name"):
        check_linux_name(name, "x")


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("bridge", "mac=01:00:00:00:00:01"),
        ("agr", "mac=ff:ff:ff:ff:ff:ff"),
        ("pcap", "read=/dev/null,mac=33:33:00:00:00:01"),
        ("vxlan", "vni=1,remote=10.0.0.1,mac=01:00:00:00:00:01"),
        ("bridge", "mac=x"),
        ("bridge", "name=a b"),
        ("lo", "name=../x"),
        ("agr", "name=" + "a" * 40),
    ],
)
def test_no_driver_takes_them(module: str, options: str) -> None:
    stack = Stack(System(VirtualDispatch(1), "n"), random.Random(1).randbytes)
    with pytest.raises(ModuleError, match=r"address of a group|is not a MAC address|cannot be an interface's name") as raised:
        stack.load(module, options)
    assert raised.value.errno == errno.EINVAL
    assert (stack.loaded, stack.interfaces) == ((), ())


def test_addresses() -> None:
    assert station_address("02-00-00-00-00-01", "x") == bytes((2, 0, 0, 0, 0, 1))
