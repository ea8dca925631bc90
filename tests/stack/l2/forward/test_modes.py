"""What belongs to one engine alone: modes of XDP, choosing, ports that cannot be, what is left of a process that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from resmgr.errors import Misuse
from resmgr.system import System
from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.ebpf.constants import XdpMode
from stack.l2.engine import PORTS_MAX
from stack.l2.forward.carrier import Carrier
from stack.l2.forward.fastpath import FastPath
from stack.l2.forward.kernel import KernelCarrier
from stack.l2.forward.kinds import kinds
from stack.l2.forward.worker import HANDED_MAX, PIECE_MAX
from stack.testing.namespace import Namespace
from tests.stack.l2.forward.conftest import Bridged, Town, frame, settle, station

pytestmark = pytest.mark.priv

only_kernel = pytest.mark.parametrize("bridged", ["kernel"], indirect=True)
only_native = pytest.mark.parametrize("bridged", ["kernel-native"], indirect=True)
only_threads = pytest.mark.parametrize("bridged", ["threads"], indirect=True)


@only_native
async def test_the_mode_follows_what_the_others_accept(bridged: Bridged) -> None:
    """Frames pass before, between and after; nothing comes twice."""

    def hows() -> list[str]:
        return [port.how for port in bridged.engine.statistics().ports.values()]

    sent = [frame(1, 0, number.to_bytes(4, "big") * 20) for number in range(60)]
    bridged.hosts[0].send(*sent[:20])
    await bridged.heard(1, 20)
    bridged.hosts[2].set_feature("gro", False)
    assert await settle(lambda: hows() == ["xdp generic", "xdp generic", "xdp native"])
    bridged.hosts[0].send(*sent[20:40])
    await bridged.heard(1, 40)
    bridged.hosts[2].set_feature("gro", True)
    assert await settle(lambda: hows() == ["xdp native"] * 3)
    bridged.hosts[0].send(*sent[40:])
    assert await bridged.heard(1, 60) == sent


@only_kernel
async def test_a_port_that_has_a_program_already_says_so(bridged: Bridged) -> None:
    """Of another engine here, or of another process's: then the kernel refuses."""

    def reasons(stack: Stack, port: Interface) -> tuple[str, ...]:
        other = FastPath(stack, "kernel", kinds(bridged.town.dispatch))
        other.add(port)
        told = other.statistics().ports["p0"].off
        other.close()
        return told

    assert reasons(bridged.stack, bridged.ports[0]) == ("p0 is a port of another forwarding engine (kernel) already",)
    elsewhere = Stack(System(bridged.town.dispatch, "m"), bytes)
    with bridged.town.middle.entered():
        port = elsewhere.load("packet", "ifname=p0").interface
    assert port is not None
    [reason] = reasons(elsewhere, port)
    assert "cannot put a program on p0: Device or resource busy" in reason
    elsewhere.close()
    bridged.hosts[0].send(frame(1, 0, b"still carried"))
    await bridged.heard(1, 1)


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("bridged", ["kernel", "threads"], indirect=True)
async def test_a_kernel_s_own_tcp_passes(bridged: Bridged, runs: bool) -> None:
    """Hosts of this kind leave checksums to the hardware: frames carry half of one, which must not go out as it is. With *runs* they leave
    cutting into segments to it, too."""
    for host in bridged.hosts:
        host.set_feature("gro", True)  # bare frames would be accepted, too
    for number in (0, 1):
        namespace, name = bridged.hosts[number].namespace, f"h{number}"
        namespace.ip("addr", "add", f"10.9.0.{number + 1}/24", "dev", name)
        bridged.hosts[number].set_feature("tso", runs)
        bridged.hosts[number].set_feature("gso", runs)
    listening = "import socket; s = socket.create_server(('10.9.0.2', 7)); print(flush=True); c = s.accept()[0]; n = 0\n"
    listening += "while d := c.recv(65536): n += len(d)\nc.close(); print(n)"
    calling = "import socket; s = socket.create_connection(('10.9.0.2', 7), 5); s.sendall(bytes(3000000)); s.close()"

    def talk() -> str:
        with bridged.hosts[1].namespace.entered():
            server = subprocess.Popen([sys.executable, "-c", listening], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        server.stdout.readline()
        with bridged.hosts[0].namespace.entered():
            subprocess.run([sys.executable, "-c", calling], check=True, timeout=20)
        return server.communicate(timeout=20)[0]

    assert (await trio.to_thread.run_sync(talk)).strip() == "3000000"
    port = bridged.engine.statistics().ports["p0"]
    if runs and port.how != "thread 0":
        assert port.up["long"] > 30, "XDP cannot carry runs: the stack cuts them"
    else:
        assert port.in_bytes > 3000000
        assert (port.in_frames < 1000) is runs
        assert "long" not in port.up


@only_threads
async def test_a_flow_that_becomes_known_does_not_overtake_itself(bridged: Bridged) -> None:
    """The stack is busy while the first frames wait for it; the station is known before the next ones come."""
    bridged.engine.forget(station(0))
    before = bridged.engine.statistics().ports["p0"].up.get("source", 0)
    sent = [frame(1, 0, number.to_bytes(4, "big") * 20) for number in range(200)]
    bridged.hosts[0].send(*sent[:50])
    _wait_here(lambda: bridged.engine.statistics().ports["p0"].up.get("source", 0) == before + 50)
    bridged.engine.learned(station(0), bridged.ports[0])
    bridged.hosts[0].send(*sent[50:100])
    _wait_here(lambda: bridged.engine.statistics().ports["p0"].up.get("order", 0) == 50)
    bridged.hosts[2].send(frame(1, 2, b"another flow overtakes"))
    _wait_here(lambda: bridged.engine.statistics().ports["p2"].in_frames == 1)
    assert len(bridged.hosts[1].hear()) == 1
    got = await bridged.heard(1, 101)
    assert got[1:] == sent[:100]
    bridged.hosts[0].send(*sent[100:])
    assert (await bridged.heard(1, 201))[1:] == sent
    assert bridged.engine.statistics().ports["p0"].in_frames >= 100


@only_threads
async def test_a_flood_of_strangers_has_a_bound(bridged: Bridged) -> None:
    """While the stack does not look, no more than HANDED_MAX frames wait for it; the others are counted."""
    flood = [b"\2\0\0\0\1\1" + b"\2\0\0\x09" + number.to_bytes(2, "big") + b"\x88\xb5" + bytes(50) for number in range(3000)]
    for start in range(0, 3000, 100):
        bridged.hosts[0].send(*flood[start : start + 100])

    def accounted() -> bool:
        port = bridged.engine.statistics().ports["p0"]
        return sum(port.up.values()) + port.dropped.get("overrun", 0) == 3000 + 1

    _wait_here(accounted)
    port = bridged.engine.statistics().ports["p0"]
    dropped = port.dropped["waiting_full"] + port.dropped.get("overrun", 0)
    assert 3000 - HANDED_MAX <= dropped < 3000
    assert len(await bridged.heard(1, 3000 - dropped)) == 3000 - dropped


@only_threads
async def test_one_port_s_flood_waits_in_turn_with_the_others(bridged: Bridged) -> None:
    """What two ports have waiting for the stack goes up a piece of each in turn."""
    flood = [b"\2\0\0\0\1\1" + b"\2\0\0\x09" + number.to_bytes(2, "big") + b"\x88\xb5" + bytes(50) for number in range(600)]
    for start in range(0, 600, 100):
        bridged.hosts[0].send(*flood[start : start + 100])
    alone = b"\2\0\0\0\1\1" + b"\2\0\0\x08\0\0" + b"\x88\xb5" + bytes(50)
    bridged.hosts[2].send(alone)
    _wait_here(lambda: sum(bridged.engine.statistics().ports["p0"].up.values()) >= 600)
    _wait_here(lambda: bridged.engine.statistics().ports["p2"].up.get("source", 0) > 0)
    heard = await bridged.heard(1, 601)
    assert heard.index(alone) <= PIECE_MAX
    assert [one for one in heard if one != alone] == flood


def _wait_here(until: Callable[[], bool]) -> None:
    """The dispatch does not run meanwhile: threads and the kernel do."""
    limit = time.monotonic() + 5
    while not until():
        assert time.monotonic() < limit
        time.sleep(0.001)


async def test_a_driver_without_linux_interface_and_one_that_is_wrapped(town: Town, tmp_path: Path) -> None:
    stack = Stack(System(town.dispatch, "n"), bytes)
    hub = Hub(town.dispatch)
    made: list[str] = []
    opened = {name: _noting(made, name, make) for name, make in kinds(town.dispatch).items()}
    engine = FastPath(stack, "auto", opened)
    memory = stack.load(hub.module(), "mac=02:00:00:00:00:77").interface
    assert memory is not None
    engine.add(memory)
    assert engine.statistics().ports["en0"].off == ("the driver of en0 lends no Linux interface",)
    assert made == [], "an engine is opened for links in memory"
    with town.middle.entered():
        wrapped = stack.load("packet", "ifname=p0", wrap=[("fault", "drop=0%"), ("pcap", f"file={tmp_path}/p0")]).interface
        plain = stack.load("packet", "ifname=p1").interface
    assert wrapped is not None
    assert plain is not None
    engine.add(wrapped)
    engine.add(plain)
    assert engine.statistics().ports["p0"].off == ("pcap is around the driver",), "the outermost, as the user calls it"
    engine.off(wrapped, "hook of the bridge's own")
    stack.add_hook(Point.IN, lambda interface, frames: frames).revoke()
    assert engine.statistics().ports["p0"].off == ("pcap is around the driver", "hook of the bridge's own")
    assert await settle(lambda: engine.statistics().ports["p1"].off == ())
    assert (made, engine.name) == (["threads"], "threads"), "veth: threads carry runs of segments"
    for number in range(PORTS_MAX - 3):
        port = stack.load(hub.module(), f"mac=02:00:00:00:01:{number:02x},name=x{number}").interface
        assert port is not None
        engine.add(port)
    last = stack.load(hub.module(), "mac=02:00:00:00:02:00,name=last").interface
    assert last is not None
    with pytest.raises(Misuse):
        engine.add(last)
    stack.close()
    assert engine.statistics().ports == {}
    engine.close()


def _noting(made: list[str], name: str, make: Callable[[], Carrier]) -> Callable[[], Carrier]:
    def open_it() -> Carrier:
        made.append(name)
        return make()

    return open_it


async def test_auto_takes_what_can_be_had_and_says_why(town: Town) -> None:
    stack = Stack(System(town.dispatch, "n"), bytes)
    with town.middle.entered():
        port = stack.load("packet", "ifname=p0").interface
    assert port is not None

    def refused() -> NoReturn:
        raise OSError(1, "no right to do so")

    for wanted, name, why in (
        ("auto", "kernel", "threads: no right to do so"),
        ("threads", "none", "threads: no right to do so"),
    ):
        engine = FastPath(stack, wanted, {**kinds(town.dispatch), "threads": refused})
        engine.add(port)
        assert (engine.name, engine.statistics().why) == (name, why)
        if name == "none":
            assert engine.statistics().ports["p0"].off == (f"no engine: {why}",)
        engine.close()
    engine = FastPath(stack, "none", kinds(town.dispatch))
    engine.add(port)
    assert engine.statistics().ports["p0"].off == ("no engine: none is wanted",)
    engine.close()
    with pytest.raises(Misuse, match="there is no engine turbo"):
        FastPath(stack, "turbo", kinds(town.dispatch))
    stack.close()


async def test_the_modes_can_be_forced(town: Town) -> None:
    stack = Stack(System(town.dispatch, "n"), bytes)
    with town.middle.entered():
        ports = [stack.load("packet", f"ifname=p{number}").interface for number in range(2)]
    carrier = KernelCarrier(town.dispatch, XdpMode.NATIVE)
    engine = FastPath(stack, "kernel", {"kernel": lambda: carrier})
    for port in ports:
        assert port is not None
        engine.add(port)
    assert [port.how for port in engine.statistics().ports.values()] == ["xdp generic"] * 2, "the far ends accept no bare frames"
    town.hosts[0].set_feature("gro", True)
    assert await settle(lambda: [port.how for port in engine.statistics().ports.values()] == ["xdp generic", "xdp native"])
    engine.close()
    stack.close()
    assert town.dispatch.statistics().descriptors == 0


@pytest.mark.parametrize("engine", ["kernel", "threads"])
def test_a_process_that_is_killed_leaves_nothing(places: tuple[list[Namespace], Namespace], engine: str) -> None:
    program = textwrap.dedent(
        f"""
        import trio
        from resmgr.runner import open_dispatch
        from resmgr.system import System
        from stack.core.stack import Stack
        from stack.l2.forward.fastpath import FastPath
        from stack.l2.forward.kinds import kinds

        async def main():
            async with open_dispatch() as dispatch:
                stack = Stack(System(dispatch, "n"), bytes)
                path = FastPath(stack, "{engine}", kinds(dispatch))
                for name in ("p0", "p1"):
                    path.add(stack.load("packet", "ifname=" + name).interface)
                print([port.how for port in path.statistics().ports.values()], flush=True)
                await trio.sleep_forever()

        trio.run(main)
        """
    )
    _, middle = places
    with middle.entered():
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert ("xdp" if engine == "kernel" else "thread") in process.stdout.readline()
    assert ("xdp" in middle.output("link", "show")) is (engine == "kernel")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert "xdp" not in middle.output("link", "show")
