"""The bridge itself over its engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from resmgr.system import System
from stack.core.module import Context, Kind, Module
from stack.core.specific import specific_driver
from stack.core.stack import Stack
from stack.l2.bridge_driver import BridgeDriver
from stack.l2.bridge_options import BridgeOptions
from stack.l2.forward import lacking, placed
from stack.l2.forward.fastpath import FastPath
from stack.l2.forward.kinds import kinds
from tests.stack.l2.forward.conftest import HOSTS, Town, frame, settle, station

pytestmark = pytest.mark.priv


def bridge_of(stack: Stack, options: str) -> BridgeDriver:
    interface = stack.load("bridge", options).interface
    assert interface is not None
    driver = specific_driver(interface.driver)
    assert isinstance(driver, BridgeDriver)
    return driver


def engine_of(driver: BridgeDriver) -> Mapping[str, Any]:
    told: Any = driver.get_specific()["engine"]
    return told  # type: ignore[no-any-return]  # facts for people


@pytest.mark.parametrize("engine", ["kernel", "threads", "none"])
async def test_a_bridge_learns_and_an_engine_carries(town: Town, engine: str) -> None:
    stack = Stack(System(town.dispatch, "n"), lambda size: b"\x5a" * size)
    with town.middle.entered():
        for number in range(HOSTS):
            stack.load("packet", f"ifname=p{number}")
        driver = bridge_of(stack, f"add=p0,add=p1,add=p2,engine={engine}")
        assert await settle(lambda: all(port.up for port in stack.interfaces))
        for number, host in enumerate(town.hosts):
            host.send(frame(0x99, number, b"hello"))
        assert await settle(lambda: len(driver.bridge.stations) >= HOSTS)
        sent = [frame(1, 0, number.to_bytes(4, "big") * 20) for number in range(200)]
        town.hosts[1].hear().clear()
        for start in range(0, 200, 20):
            town.hosts[0].send(*sent[start : start + 20])
            assert await settle(lambda start=start: len(town.hosts[1].hear()) >= start + 20)  # type: ignore[misc]  # a lambda with a default
        assert [one for one in town.hosts[1].hear() if one[:6] == station(1)] == sent
        told = engine_of(driver)
        assert told["name"] == engine
        assert told["frames"] == (0 if engine == "none" else 200)
        assert told["ports"]["p0"]["in"] == told["ports"]["p1"]["out"] == told["frames"]
        idle = driver.engine.idle(station(0))
        assert (idle is not None and idle < 3) is (engine != "none")
        driver.set_specific("stp", {"interface": "p1", "on": True})
        assert "spanning tree" in engine_of(driver)["ports"]["p1"]["off"]
        driver.set_specific("stp", {"interface": "p1", "on": False})
        assert "spanning tree" not in engine_of(driver)["ports"]["p1"]["off"]
        driver.set_specific("delete", {"interface": "p1"})
        assert set(engine_of(driver)["ports"]) == {"p0", "p2"}
    stack.close()
    assert "xdp" not in town.middle.output("link", "show")
    assert town.dispatch.statistics().descriptors == 0


@pytest.mark.parametrize("engine", ["kernel", "threads"])
async def test_a_station_that_had_no_place_is_offered_again(town: Town, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places for three stations: the one that speaks has one in the end, though it came first and gave its own up."""
    for module in (placed, lacking):
        monkeypatch.setattr(module, "OFFER_SECONDS", 0.1)

    def attach(context: Context, options: BridgeOptions) -> BridgeDriver:
        return BridgeDriver(context, options, FastPath(context.stack, engine, kinds(context.dispatch), stations=2))

    stack = Stack(System(town.dispatch, "n"), lambda size: b"\x5a" * size)
    with town.middle.entered():
        for number in range(HOSTS):
            stack.load("packet", f"ifname=p{number}")
        interface = stack.load(Module("bridge", Kind.DRIVER, BridgeOptions, attach), "add=p0,add=p1,add=p2").interface
        assert interface is not None
        assert await settle(lambda: all(port.up for port in stack.interfaces))
        driver = interface.driver
        assert isinstance(driver, BridgeDriver)
        for number, host in enumerate(town.hosts):
            host.send(frame(0x99, number, b"hello"))
            assert await settle(lambda number=number: len(driver.bridge.stations) == number + 1)  # type: ignore[misc]  # a lambda with a default
        first = engine_of(driver)
        assert (first["stations"], first["stations_refused"]) == (2, 1)
        assert first["frames"] == 0

        def carried() -> bool:
            town.hosts[0].send(frame(1, 0, b"there"))
            town.hosts[1].send(frame(0, 1, b"and back"))
            return bool(engine_of(driver)["frames"] > 100)

        assert await settle(carried), engine_of(driver)
        assert engine_of(driver)["stations"] == 2
        driver.set_specific("flush", {})
        assert engine_of(driver)["stations"] == 0
    stack.close()
    assert town.dispatch.statistics().descriptors == 0
