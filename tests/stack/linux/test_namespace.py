"""Going to another network namespace and back."""

from __future__ import annotations

import os
import socket

import pytest

from stack.linux.namespace import inside
from stack.testing.namespace import Namespace

pytestmark = pytest.mark.priv


def test_there_and_back(namespace: Namespace) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    namespace.ip("link", "add", "only-here", "type", "veth", "peer", "name", "other")
    with inside(namespace.fd):
        assert socket.if_nametoindex("only-here")
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
    with pytest.raises(ZeroDivisionError), inside(namespace.fd):
        _ = 1 // 0
    assert os.stat("/proc/thread-self/ns/net").st_ino == before


def test_no_move_where_it_is_already() -> None:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    with inside(own):
        pass
    os.close(own)


def test_what_is_no_namespace(tmp_path: os.PathLike[str]) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="network namespace"), inside(descriptor):
        pass
    os.close(descriptor)
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
