"""What a row of the table of message passing is: a case, what comes of it in each column, and the program that sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from tests.qnetpy.messages.rig import COLUMNS, Rig

Run = Callable[[Rig], Awaitable[str]]
COLUMN_NAMES = ("one process", "one node", "away")
NOT_HERE = "-"
"""In a column in which the case cannot be."""


@attrs.frozen
class Row:
    case: str
    results: tuple[str, str, str]
    """By column."""
    run: Run

    def expected(self, setting: str) -> str:
        return self.results[COLUMN_NAMES.index(COLUMNS[setting])]


class Rows:
    """The rows of one section."""

    def __init__(self, section: str) -> None:
        self.section = section
        self.rows: list[Row] = []

    def __call__(self, case: str, *results: str) -> Callable[[Run], Run]:
        """*results*: what the program says, once for all columns, or one for each."""
        assert len(results) in (1, 3), case
        one, node, away = results if len(results) == 3 else results * 3

        def register(run: Run) -> Run:
            self.rows.append(Row(case, (one, node, away), run))
            return run

        return register
