"""Answers in pieces: the same JSON, and no piece longer than a row."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from stack.core.specific import Rows
from stack.managers.slices import pieces

VALUES: list[object] = [None, 1, 'a"b', [], {}, [1, {"x": 2}], {"a": {"b": [True]}, "c": "d"}, {"é": "ü"}]


def rows(number: int) -> Rows:
    return Rows(range(number), lambda item: {"row": item} if item % 3 else None)


@pytest.mark.parametrize("value", VALUES)
def test_joined_they_are_the_text(value: object) -> None:
    assert json.loads("".join(pieces(value))) == value


def test_rows_are_made_one_at_a_time() -> None:
    made: list[int] = []

    def row(item: int) -> Mapping[str, object]:
        made.append(item)
        return {"row": item}

    found = pieces({"x": 1, "table": Rows(range(1000), row), "y": 2})
    assert made == []
    text = ""
    while '"row": 5' not in text:
        piece = next(found)
        assert len(piece) < 20
        text += piece
    assert made == list(range(6))
    assert json.loads(text + "".join(found)) == {"x": 1, "table": [{"row": number} for number in range(1000)], "y": 2}


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_rows_that_are_gone_are_left_out(number: int) -> None:
    left = [{"row": item} for item in range(number) if item % 3]
    assert json.loads("".join(pieces(rows(number)))) == left
    assert rows(number) == left == list(rows(number))
    assert rows(number) == rows(number) != rows(number + 3)
    assert len(rows(number)) == number
