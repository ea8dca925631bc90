"""The driver and the wrapper that docs/howto/driver.md shows are what it says: they are taken from the page and must keep the contract."""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from resmgr.runner import open_dispatch
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.module import Module
from stack.core.options import parse_options
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.testing.driver import check_driver, frame
from stack.testing.pair import Pair
from stack.testing.virtualpair import VirtualPair
from stack.wire.ethernet import BROADCAST

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "driver.md"


@pytest.mark.host
async def test_the_driver_of_the_page_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    page = ModuleType("driver_of_the_page")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    exec(compile(code, str(PAGE), "exec"), page.__dict__)
    module = page.__dict__["MODULE"]
    assert isinstance(module, Module)
    async with open_dispatch() as dispatch:
        ends = []
        for near, far, mac in (("a", "b", "02:00:00:00:00:0a"), ("b", "a", "02:00:00:00:00:0b")):
            options = parse_options(module.options, f"path={tmp_path}/{near},peer={tmp_path}/{far},mac={mac}", "unixlink")
            ends.append(page.__dict__["UnixLink"](dispatch, options))
        await check_driver(Pair(*ends))
        assert dispatch.statistics().descriptors == 0
    assert os.listdir(tmp_path) == []


async def test_the_wrapper_of_the_page_keeps_the_contract_and_loses_every_nth(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[-1]
    page = ModuleType("wrapper_of_the_page")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    exec(compile(code, str(PAGE), "exec"), page.__dict__)
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch)
    ends = [hub.port(f"en{number}", bytes((2, 0, 0, 0, 0, number))) for number in range(2)]
    outer = []
    for end in ends:
        wrapper = page.__dict__["Nth"](parse_options(page.__dict__["NthOptions"], "n=1000000", "nth"))
        wrapper.around(end)
        outer.append(wrapper)

    await check_driver(VirtualPair(dispatch, *outer))
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    monkeypatch.setitem(sys.modules, "page_package", ModuleType("page_package"))
    monkeypatch.setitem(sys.modules, "page_package.nth", page)
    loaded = stack.load(hub.module(), "mac=02:00:00:00:00:03", wrap=[("page_package.nth", "n=3")])
    assert loaded.interface is not None
    stack.output(loaded.interface, [frame(BROADCAST, loaded.interface.mac, bytes(50))] * 10)
    assert loaded.interface.drops == {"nth_lost": 3}
    assert loaded.interface.statistics.info["nth"] == 3
    stack.close()
