"""The router of docs/howto/routed-flows.md, exactly as the page has it: on hubs in virtual time, and between namespaces over an engine."""

from __future__ import annotations

import socket
import sys
from types import ModuleType

import pytest

from resmgr.system import System
from stack.core.errors import ModuleError
from stack.core.loaded import Loaded
from stack.core.module import Module
from stack.core.specific import specific_module
from stack.core.stack import Stack
from stack.l2.forward.fastpath import FastPath
from stack.testing.machines import Machine, World
from stack.wire.checksum import ones_sum
from tests import howto
from tests.stack.l2.forward.conftest import Town, settle, station
from tests.stack.l2.forward.test_routed import packet4, packet6

MAC = "02:00:00:00:01:01"


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Module[object]:
    module = ModuleType("router_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(howto.files("routed-flows.md")["your/router.py"], "router.py", "exec"), module.__dict__)
    found = module.__dict__["MODULE"]
    assert isinstance(found, Module)
    return found


def ask(loaded: Loaded, command: str, route: str) -> None:
    found = specific_module(loaded.attached)
    assert found is not None
    loaded.guard.ask("request", found.set_specific, command, {"route": route})


def told(loaded: Loaded) -> dict[str, object]:
    found = specific_module(loaded.attached)
    assert found is not None
    return dict(found.get_specific())


def send(near: Machine, middle: Machine, ethertype: int, *packets: bytes) -> None:
    head = middle.macs["en0"] + near.macs["en0"] + ethertype.to_bytes(2, "big")
    near.stack.output(near.interface("en0"), [head + one for one in packets])


def test_packets_are_routed_and_what_was_set_survives(router: Module[object]) -> None:
    world = World(3)
    near, middle, far, other = (
        world.machine("near", 0),
        world.machine("middle", 0, 1, 2),
        world.machine("far", 1),
        world.machine("other", 2),
    )
    heard, elsewhere = far.tap("en0"), other.tap("en0")
    for one in (far, other):
        one.stack.promiscuous(one.interface("en0"), "ears")
    loaded = middle.stack.load(router, f'route="10.9.0.0/16 en1 {MAC}",route="fd00:1::/64 en1 {MAC}",restart=3')
    send(near, middle, 0x0800, packet4(), packet4(ttl=1), packet4(options=b"\1\1\1\0"))
    send(near, middle, 0x86DD, packet6())
    world.dispatch.run_for(0.1)
    assert [one[:12] for one in heard] == [bytes.fromhex(MAC.replace(":", "")) + middle.macs["en1"]] * 2
    assert heard[0][22] == 8
    assert ones_sum(heard[0][14:34]) == 0xFFFF
    assert heard[1][21] == 8
    assert told(loaded)["counters"] == {"not_routed": 2}
    ask(loaded, "route", f"10.9.1.0/24 en2 {MAC}")
    send(near, middle, 0x0800, packet4())
    world.dispatch.run_for(0.1)
    assert (len(heard), len(elsewhere)) == (2, 1), "the longest prefix counts"
    ask(loaded, "unroute", f"fd00:1::/64 en1 {MAC}")
    before = told(loaded)["routes"]
    with pytest.raises(ModuleError, match="is no route"):
        ask(loaded, "route", "somewhere")

    def boom() -> None:
        raise RuntimeError("boom")

    loaded.dispatch.call_soon(boom)
    world.dispatch.run_for(1.5)
    (again,) = [one for one in middle.stack.loaded if one.module.name == "router"]
    assert again is not loaded
    assert told(again)["routes"] == before == [f"10.9.1.0/24 en2 {MAC}", f"10.9.0.0/16 en1 {MAC}"]
    send(near, middle, 0x0800, packet4())
    world.dispatch.run_for(0.1)
    assert (len(heard), len(elsewhere)) == (2, 2)
    middle.stack.unload(again)
    assert sum(middle.stack.failures().values()) == 1, "boom"


@pytest.mark.priv
@pytest.mark.parametrize("engine", ["kernel", "threads"])
async def test_an_engine_takes_over_again_and_again(router: Module[object], town: Town, engine: str) -> None:
    stack = Stack(System(town.dispatch, "n"), bytes)
    routes = ",".join(f'route="10.9.{number}.0/24 p{number} {station(number).hex(":")}"' for number in (0, 1))
    with town.middle.entered():
        ports = [stack.load("packet", f"ifname=p{number}").interface for number in range(2)]
        loaded = stack.load(router, f"engine={engine},{routes}")
    socks = []
    for number, host in enumerate(town.hosts[:2]):
        ip, port = host.namespace.ip, ports[number]
        assert port is not None
        ip("addr", "add", f"10.9.{number}.1/24", "dev", f"h{number}")
        ip("neigh", "add", f"10.9.{number}.254", "lladdr", port.mac.hex(":"), "dev", f"h{number}")
        ip("route", "add", "0.0.0.0/0", "via", f"10.9.{number}.254")
        with host.namespace.entered():
            socks.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    near, far = socks
    fast = loaded.attached.__dict__["engine"]
    assert isinstance(fast, FastPath)
    with near, far:
        far.bind(("10.9.1.1", 7))
        assert await settle(lambda: all(port.how for port in fast.statistics().ports.values())), fast.statistics()
        for _ in range(3):
            before = fast.statistics().frames

            def heard() -> bool:
                near.sendto(b"hello", ("10.9.1.1", 7))
                return fast.statistics().frames >= before + 10  # noqa: B023  # used before the next turn

            assert await settle(heard), fast.statistics()
            # The engine has forgotten it: the next packet that comes by marks it again.
            assert ports[0] is not None
            fast.unroute(ports[0])
            assert fast.statistics().flows == 0
    stack.close()
    assert town.dispatch.statistics().descriptors == 0
