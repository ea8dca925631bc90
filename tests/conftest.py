"""What holds for all tests, and the network namespaces that many use."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

# The tests, and what they start, run Python source unless the compiled modules are asked for: before anything of ours is imported.
os.environ.setdefault("QNETPY_COMPILED", "off")

from stack.testing.namespace import Namespace, Veth


def wait_for_carrier(namespace: Namespace, link: str) -> None:
    end = time.monotonic() + 30
    while " state UP " not in namespace.output("-oneline", "link", "show", "dev", link):
        assert time.monotonic() < end, f"{link} has no carrier after 30 s"
        time.sleep(0.005)


@pytest.fixture
def veth() -> Iterator[Veth]:
    pair = Veth(Namespace.make(), Namespace.make())
    try:
        pair.a.ip("link", "add", "va", "address", "02:00:00:00:00:0a", "type", "veth", "peer", "name", "vb", "address", "02:00:00:00:00:0b")
        pair.a.move("vb", pair.b)
        pair.a.ip("link", "set", "va", "up")
        pair.b.ip("link", "set", "vb", "up")
        # What is sent before the kernel has seen to the carrier of both ends is dropped without a word.
        for end, name in ((pair.a, "va"), (pair.b, "vb")):
            wait_for_carrier(end, name)
        yield pair
    finally:
        pair.a.close()
        pair.b.close()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """An empty namespace."""
    made = Namespace.make()
    yield made
    made.close()
