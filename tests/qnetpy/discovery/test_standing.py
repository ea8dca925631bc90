"""An address stands until the last source that names it withdraws it."""

from __future__ import annotations

from qnetpy.discovery.hint import Hint
from qnetpy.discovery.standing import Standing


def hint(token: int, mac: int, interface: str = "en0") -> Hint:
    return Hint(interface, bytes((2, 0, 0, 0, 0, mac)) if mac else b"", 0x88B5, bytes((token,)) * 16, 0.0)


AT_ONE, AT_TWO = ("en0", hint(1, 1).mac), ("en0", hint(1, 2).mac)


def test_the_last_who_withdraws_it_counts() -> None:
    standing = Standing()
    assert standing.said(hint(1, 1)) is None
    assert standing.said(hint(2, 1)) is None
    assert standing.said(hint(2, 1)) is None, "said again"
    assert standing.gone(hint(1, 1)) is None
    assert standing.gone(hint(1, 1)) is None, "nobody says so any more"
    assert standing.gone(hint(2, 1)) == AT_ONE
    assert len(standing) == 0


def test_who_moves_leaves() -> None:
    standing = Standing()
    standing.said(hint(1, 1))
    assert standing.said(hint(1, 2)) == AT_ONE
    assert standing.said(hint(2, 2)) is None
    assert standing.said(hint(1, 0)) is None, "the other says so still"
    assert standing.gone(hint(1, 0)) is None
    assert standing.said(hint(2, 0)) == AT_TWO
    assert len(standing) == 0


def test_interfaces_are_apart() -> None:
    standing = Standing()
    standing.said(hint(1, 1))
    standing.said(hint(1, 1, "en1"))
    assert standing.gone(hint(1, 1)) == AT_ONE
    assert len(standing) == 1
