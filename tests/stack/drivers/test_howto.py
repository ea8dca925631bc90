"""The driver that docs/howto/driver.md shows is a driver: it is taken from the page and must keep the contract."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import trio

from resmgr.runner import open_dispatch
from stack.core.module import Module
from stack.core.options import parse_options
from stack.testing.driver import check_driver

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "driver.md"


class Pair:
    def __init__(self, a: object, b: object) -> None:
        self.a = a
        self.b = b

    async def settle(self, until: Callable[[], bool], seconds: float) -> bool:
        with trio.move_on_after(seconds):
            while not until():  # noqa: ASYNC110  # what is awaited is the kernel: there is no event to wait for
                await trio.sleep(0.002)
            return True
        return False


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
        await check_driver(Pair(*ends))  # type: ignore[arg-type]  # the page's classes have no static types here
        assert dispatch.statistics().descriptors == 0
    assert os.listdir(tmp_path) == []
