"""The provider that docs/howto/crypto-provider.md shows is taken from the page, loaded as a module, and must keep the contract."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.stack import Stack
from stack.crypto.algorithms import AES_128_GCM
from stack.crypto.api import Hardware

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "crypto-provider.md"


def test_the_provider_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    code, test = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    page = ModuleType("crypto_provider_of_the_page")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    exec(compile(code, str(PAGE), "exec"), page.__dict__)
    exec(compile(test, str(PAGE), "exec"), page.__dict__)
    page.__dict__["test_the_contract"]()

    dispatch = VirtualDispatch(1)
    system = System(dispatch, "here")
    stack = Stack(system, lambda size: bytes(size))
    loaded = stack.load(page.__dict__["MODULE"])
    session = stack.crypto.aead(AES_128_GCM, bytes(16))
    before = session.seal_many([bytes(12)], [b"text"], [b""])
    assert session.provider == "openssl"
    assert stack.crypto.use("card").moved == 1
    assert stack.crypto.aead(AES_128_GCM, bytes(16), hardware=Hardware.ONLY).provider == "card"
    assert session.seal_many([bytes(12)], [b"text"], [b""]) == before
    stack.unload(loaded)
    assert session.provider == "openssl"
    assert session.seal_many([bytes(12)], [b"text"], [b""]) == before
    assert "card" not in stack.crypto.names
    stack.close()
    system.close()
