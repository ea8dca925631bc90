"""The provider that docs/howto/crypto-provider.md shows, loaded as a module. Its contract is what tests/stack/test_howto.py runs."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.stack import Stack
from stack.crypto.algorithms import AES_128_GCM
from stack.crypto.api import Hardware
from tests import howto


def test_the_provider_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    page = ModuleType("crypto_provider_of_the_page")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    exec(compile(howto.files("crypto-provider.md")["your/card.py"], "card.py", "exec"), page.__dict__)
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
