"""Lines in which users take turns: places, order, and root's own."""

from __future__ import annotations

from resmgr.channel import ClientInfo, Credentials, Nd
from stack.managers.requestline import ROOT, RequestLine, user_of


def test_users_take_turns_and_their_own_order_holds() -> None:
    line: RequestLine[str] = RequestLine(3, 10)
    for name in ("a1", "a2", "a3", "b1", "c1", "c2"):
        assert line.add((0, ord(name[0])), name)
    assert len(line) == 6
    assert [line.take() for _ in range(6)] == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert line.take() is None


def test_what_is_not_ready_is_left_where_it_is() -> None:
    line: RequestLine[str] = RequestLine(3, 10)
    for name in ("a1", "a2", "b1"):
        line.add((0, ord(name[0])), name)
    asked: list[str] = []

    def ready(name: str) -> bool:
        asked.append(name)
        return name in ("a2", "b1")

    assert [line.take(ready) for _ in range(3)] == ["a2", "b1", None]
    assert asked == ["a1", "a2", "b1", "a1"]
    assert (len(line), line.take()) == (1, "a1")


def test_places() -> None:
    line: RequestLine[int] = RequestLine(4, 6)
    assert [line.add((0, 1000), number) for number in range(5)] == [True] * 4 + [False]
    assert [line.add((0, 1001), number) for number in range(3)] == [True, True, False]
    assert [line.add(ROOT, number) for number in range(5)] == [True] * 4 + [False], "root has its places whatever others have"
    assert (line.refused, len(line)) == (3, 10)
    line.take()
    assert line.add((0, 1001), 9)


def test_users_of_another_node_are_one() -> None:
    def info(nd: int, uid: int) -> ClientInfo:
        return ClientInfo(Nd(nd), "far" if nd else "", frozenset(), Credentials(uid, uid), 1)

    assert user_of(info(0, 0)) == ROOT
    assert user_of(info(0, 5)) != user_of(info(0, 6))
    assert user_of(info(3, 5)) == user_of(info(3, 6)) != user_of(info(4, 5))
    assert user_of(info(3, 0)) != ROOT
