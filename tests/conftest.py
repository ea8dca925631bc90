"""What holds for all tests, and the network namespaces that many use."""

from __future__ import annotations

import gc
import logging
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


def pytest_collection_finish() -> None:
    # Modules and tests stay to the end; to look at all of them for garbage again and again takes longer than many a test.
    gc.collect()
    gc.freeze()


class Mistakes(logging.Handler):
    """What the shield of a node in this process kept from leaving."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(self.format(record))


@pytest.fixture(autouse=True)
def no_mistakes(request: pytest.FixtureRequest) -> Iterator[None]:
    """A node goes on after a mistake of its own; a test of it does not, unless it makes one on purpose (mark `mistakes`)."""
    mistakes = Mistakes()
    logger = logging.getLogger("resmgr.shield")
    logger.addHandler(mistakes)
    yield
    logger.removeHandler(mistakes)
    if request.node.get_closest_marker("mistakes") is None:
        assert not mistakes.told, mistakes.told[0]


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
