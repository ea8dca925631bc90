"""`qnet restart` with a daemon of another version: what it says is read as far as that goes."""

from __future__ import annotations

import pytest

from qnetpy.cli.restart import _places


@pytest.mark.parametrize("told", [None, {}, ["/net"], [["/net"]], [["/net", "0", 5]], [[1, 0, 5]], [["/net", 0, 5, 6]], [None]])
def test_what_is_said_in_another_way_ends_no_restart(told: object) -> None:
    assert _places(told) == []


def test_where_mounts_are() -> None:
    assert _places([["/net", 0, 55], 7, ["/mnt", 0, 56]]) == [("/net", 0, 55), ("/mnt", 0, 56)]
