"""The wrapper that docs/howto/driver.md shows, within a stack. Its contract, and the driver's, are what tests/stack/test_howto.py runs."""

from __future__ import annotations

import random
import sys
from types import ModuleType

import pytest

from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.testing.driver import frame
from stack.wire.ethernet import BROADCAST
from tests import howto


def test_the_wrapper_of_the_page_loses_every_nth(monkeypatch: pytest.MonkeyPatch) -> None:
    page = ModuleType("your.nth")
    monkeypatch.setitem(sys.modules, "your", ModuleType("your"))
    monkeypatch.setitem(sys.modules, page.__name__, page)
    exec(compile(howto.files("driver.md")["your/nth.py"], "nth.py", "exec"), page.__dict__)
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch)
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    loaded = stack.load(hub.module(), "mac=02:00:00:00:00:03", wrap=[("your.nth", "n=3")])
    assert loaded.interface is not None
    stack.output(loaded.interface, [frame(BROADCAST, loaded.interface.mac, bytes(50))] * 10)
    assert loaded.interface.drops == {"nth_lost": 3}
    assert loaded.interface.statistics.info["nth"] == 3
    stack.close()
