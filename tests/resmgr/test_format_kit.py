"""The checks for parsers see a parser that is wrong."""

from __future__ import annotations

import pytest

from resmgr.errors import BadMessage
from resmgr.testing.formats import refuses_cuts, survives_changes


def parse(data: bytes) -> int:
    """A length, then as many bytes."""
    if not data or len(data) != data[0] + 1:
        raise BadMessage("cut short")
    return len(data)


def test_cuts() -> None:
    refuses_cuts(parse, b"\3abc")
    refuses_cuts(lambda data: data, b"abc", lambda length: True)
    with pytest.raises(AssertionError, match="0 of 3 bytes"):
        refuses_cuts(lambda data: data, b"abc")
    with pytest.raises(IndexError):
        refuses_cuts(lambda data: data[5], b"abc")
    with pytest.raises(BadMessage):
        refuses_cuts(parse, b"\3abc", lambda length: length == 2)


def test_changes() -> None:
    assert set(survives_changes(parse, b"\3abc", seed=1)) == {4}
    assert len(survives_changes(parse, b"\3abc", seed=1, times=100)) < 100, "some were refused"
    with pytest.raises(ZeroDivisionError):
        survives_changes(lambda data: 1 // (data[0] == 3), b"\3abc", seed=1)
