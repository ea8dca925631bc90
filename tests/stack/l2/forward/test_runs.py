"""Runs of the kernel's own TCP through a bridge, by the stack's task: whole where all can carry them, cut before whoever cannot."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys

import pytest
import trio

from resmgr.system import System
from stack.core.hooks import ORDER_TAP, Point
from stack.core.ifnet import Interface
from stack.core.stack import Stack
from stack.frame import Frame
from stack.wire.run import Run
from tests.stack.l2.forward.conftest import Town, settle
from tests.stack.l2.forward.test_bridge import bridge_of

pytestmark = pytest.mark.priv
SIZE = 20_000_000
LISTENING = """import hashlib, socket
s = socket.create_server(('10.9.0.2', 7)); print(flush=True); c = s.accept()[0]; h = hashlib.sha256()
while d := c.recv(1 << 18): h.update(d)
c.close(); print(h.hexdigest())"""
CALLING = f"""import random, socket
s = socket.create_connection(('10.9.0.2', 7), 5); s.settimeout(20); s.sendall(random.Random(3).randbytes({SIZE})); s.close()"""


def talk(town: Town) -> str:
    with town.hosts[1].namespace.entered():
        server = subprocess.Popen([sys.executable, "-c", LISTENING], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    server.stdout.readline()
    with town.hosts[0].namespace.entered():
        subprocess.run([sys.executable, "-c", CALLING], check=True, timeout=60)
    return server.communicate(timeout=60)[0].strip()


@pytest.mark.parametrize(
    ("engine", "tapped", "wrapped"),
    [("none", False, False), ("kernel", False, False), ("none", True, False), ("none", False, True)],
)
async def test_a_stream(town: Town, engine: str, tapped: bool, wrapped: bool) -> None:
    """With a tap, frames are seen as on a wire; so they are by a recorder around a driver. Content is right in every form."""
    stack = Stack(System(town.dispatch, "n"), lambda size: b"\x5a" * size)
    with town.middle.entered():
        for number in range(2):
            stack.load("packet", f"ifname=p{number}", wrap=[("tracer", "")] if wrapped else [])
        driver = bridge_of(stack, f"add=p0,add=p1,engine={engine}")
    assert await settle(lambda: all(port.up for port in stack.interfaces))
    seen: list[int] = []

    def tap(interface: Interface, frames: list[Frame]) -> list[Frame]:
        assert not any(isinstance(one, Run) for one in frames)
        seen.append(max(map(len, frames)))
        return frames

    if tapped:
        stack.add_hook(Point.IN, tap, order=ORDER_TAP, name="tap", everything=True)
    for number in (0, 1):
        host, name = town.hosts[number], f"h{number}"
        host.namespace.ip("addr", "add", f"10.9.0.{number + 1}/24", "dev", name)
    digest = await trio.to_thread.run_sync(talk, town)
    assert digest == hashlib.sha256(random.Random(3).randbytes(SIZE)).hexdigest()
    told = [stack.statistics().interfaces[name] for name in ("p0", "p1")]
    drivers = [one.info for one in told]
    whole = not (tapped or wrapped)
    assert (int(drivers[0].get("runs left whole", 0)) > 100) is (not wrapped)
    assert (int(drivers[1].get("runs sent whole", 0)) > 100) is whole
    assert not tapped or max(seen) <= 1514
    if whole:
        assert told[0].rx_frames < SIZE / 1448, "it does not come frame by frame"
    assert "rx_unfinished" not in told[0].drops
    assert driver.up
    stack.close()
    assert town.dispatch.statistics().descriptors == 0
