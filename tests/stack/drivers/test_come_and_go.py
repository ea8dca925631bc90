"""Every driver, with every wrapper around it, is loaded and unloaded again and again under traffic, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import random
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.system import System
from stack.core.stack import Stack
from stack.frame import Frame
from stack.testing.driver import TYPE, frame
from stack.testing.namespace import Namespace
from stack.wire import pcap
from stack.wire.ethernet import BROADCAST

pytestmark = pytest.mark.priv

TIMES = 20
"""Each alone comes a thousand times: tests/stack/core."""
WORKERS_MAX = 8
"""Threads that wait for work are kept for some seconds."""
WARM = 5
"""Rounds after which what is kept for good is there."""


@pytest.fixture
async def dispatch() -> AsyncIterator[TrioDispatch]:
    async with open_dispatch() as made:
        yield made


def held() -> tuple[int, int]:
    """Descriptors and mappings of sockets of this process."""
    gc.collect()
    maps = sum("socket:" in line or "/dev/zero" in line for line in Path("/proc/self/maps").read_text().splitlines())
    return len(os.listdir("/proc/self/fd")), maps


async def settled(dispatch: TrioDispatch) -> None:
    """What is closed in worker threads is closed."""
    with trio.fail_after(5):
        while dispatch.statistics().blocking_now:  # noqa: ASYNC110  # what is awaited are worker threads
            await trio.sleep(0.002)


@pytest.mark.parametrize("name", ["packet", "tap", "veth", "vxlan", "pcap", "lo", "udp"])
async def test_a_driver_comes_and_goes(dispatch: TrioDispatch, namespace: Namespace, tmp_path: Path, name: str) -> None:
    namespace.ip("link", "set", "lo", "up")
    namespace.ip("link", "add", "va", "type", "veth", "peer", "name", "vb")
    for end in ("va", "vb"):
        namespace.ip("link", "set", end, "up")
    namespace.ip("address", "add", "10.9.0.1/24", "dev", "va")
    group = frame(BROADCAST, b"\2\0\0\0\0\2", bytes(50))
    (tmp_path / "read").write_bytes(pcap.pack_header() + pcap.pack_record(0, group) * 100)
    options = {
        "packet": "ifname=va",
        "tap": "ifname=t0",
        "veth": "ifname=q0,peer=q1",
        "vxlan": "vni=42,remote=10.9.0.2",
        "pcap": f"read={tmp_path}/read,write={tmp_path}/write,loop=0,fast",
        "lo": "",
        "udp": "port=34997",
    }
    wrap = [
        ("pcap", f"file={tmp_path}/wrap"),
        ("rate", "tx=100M,rx=100M"),
        ("tracer", f"file={tmp_path}/trace"),
        ("fault", "delay=1ms,jitter=2ms"),
    ]
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    heard = []

    def handler(_: object, frames: list[Frame]) -> None:
        heard.append(len(frames))

    stack.register_ethertype(TYPE, handler)
    with namespace.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.bind(("vb", 0))
    before = held()
    for number in range(TIMES):
        if number == WARM:
            await settled(dispatch)
            before = held()
        with namespace.entered():
            loaded = stack.load(name, options[name], wrap=wrap)
        interface = loaded.interface
        assert interface is not None
        if name != "udp":
            asked = stack.promiscuous(interface, "test")
            asked.revoke()
        for _ in range(3):
            sender.send(group)
            stack.output(interface, [group] * 5)
            await trio.sleep(0.001)
        stack.unload(loaded)
        assert stack.interfaces == ()
    await settled(dispatch)
    assert held() == before
    assert threading.active_count() <= WORKERS_MAX
    if name in ("packet", "pcap", "lo"):
        assert heard
    with namespace.entered():
        assert {there for _, there in socket.if_nameindex()} == {"lo", "va", "vb"}
    sender.close()
    stack.close()
    assert dispatch.statistics().descriptors == 0
