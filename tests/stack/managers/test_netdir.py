"""/dev/io-net: a file per interface, for this machine's programs and for nodes with an export."""

from __future__ import annotations

import errno
import json
import random

import pytest

from resmgr.access import Export, Policy
from resmgr.channel import Credentials
from resmgr.system import System
from resmgr.testing.ioclient import IoClient, fails
from resmgr.testing.virtual import VirtualDispatch
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.managers.netdir import NetDirectory


@pytest.mark.parametrize("prefix", ["", "/alt"])
def test_interfaces_come_and_go_as_files(prefix: str) -> None:
    dispatch = VirtualDispatch(1)
    system = System(dispatch, "n")
    stack = Stack(system, random.Random(1).randbytes, prefix=prefix)
    directory = NetDirectory(stack)
    hub = Hub(dispatch)
    path = f"{prefix}/dev/io-net".lstrip("/").encode()
    client = IoClient(system.kernel, Credentials(1000, 1000))
    assert client.names(path) == set()
    stack.load(hub.module(), "mac=02:00:00:00:00:01")
    second = stack.load(hub.module(), "mac=02:00:00:00:00:02,name=en1")
    assert client.names(path) == {b"en0", b"en1"}
    told = json.loads(client.get(path + b"/en1"))
    assert (told["name"], told["mac"], told["rx_frames"]) == ("en1", "02:00:00:00:00:02", 0)
    stack.unload(second)
    assert client.names(path) == {b"en0"}
    with fails(errno.ENOENT):
        client.get(path + b"/en1")
    directory.close()
    with fails(errno.ENOENT):
        client.get(path + b"/en0")
    stack.close()
    system.close()


def test_two_stacks_on_one_node_have_their_own() -> None:
    dispatch = VirtualDispatch(1)
    system = System(dispatch, "n")
    hub = Hub(dispatch)
    stacks = [Stack(system, random.Random(n).randbytes, f"io-pkt{n}", prefix=("", "/alt")[n]) for n in range(2)]
    directories = [NetDirectory(stack) for stack in stacks]
    for number, stack in enumerate(stacks):
        stack.load(hub.module(), f"mac=02:00:00:00:00:0{number},name=en{number}")
    client = IoClient(system.kernel, Credentials(0, 0))
    assert client.names(b"dev/io-net") == {b"en0"}
    assert client.names(b"alt/dev/io-net") == {b"en1"}
    directories[0].close()
    assert client.names(b"alt/dev/io-net") == {b"en1"}
    directories[1].close()
    for stack in stacks:
        stack.close()
    system.close()


def test_who_of_other_nodes_may_read() -> None:
    system = System(VirtualDispatch(1), "n")
    directory = NetDirectory(Stack(system, random.Random(1).randbytes))
    from resmgr.channel import ClientInfo, Nd

    far = ClientInfo(Nd(2), "far", frozenset(), Credentials(0, 0), 1)
    assert directory.reader(far) == errno.EACCES
    system.set_policy(Policy(system.accounts, exports=[Export("/dev/io-net")]))
    assert not isinstance(directory.reader(far), int)
    system.set_policy(Policy(system.accounts, exports=[Export("/tmp")]))
    assert directory.reader(far) == errno.EACCES
