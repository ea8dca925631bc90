"""What holds for all tests, and the network namespaces that many use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# The tests, and what they start, run Python source unless the compiled modules are asked for: before anything of ours is imported.
os.environ.setdefault("QNETPY_COMPILED", "off")

from resmgr.procmgr.inherit import catch_ignored_signals
from stack.testing.namespace import Namespace, Veth


def pytest_configure() -> None:
    # Programs that tests start and interrupt would inherit what a shell's `&` and nohup have ignored.
    catch_ignored_signals()


@contextmanager
def wired() -> Iterator[Veth]:
    """A cable whose ends have carrier."""
    pair = Veth(Namespace.make(), Namespace.make())
    try:
        pair.a.ip("link", "add", "va", "address", "02:00:00:00:00:0a", "type", "veth", "peer", "name", "vb", "address", "02:00:00:00:00:0b")
        pair.a.move("vb", pair.b)
        pair.a.ip("link", "set", "va", "up")
        pair.b.ip("link", "set", "vb", "up")
        pair.a.wait_for("va", "UP")
        pair.b.wait_for("vb", "UP")
        yield pair
    finally:
        pair.a.close()
        pair.b.close()


@pytest.fixture
def veth() -> Iterator[Veth]:
    with wired() as pair:
        yield pair


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """An empty namespace."""
    made = Namespace.make()
    yield made
    made.close()
