"""Lines that others can cause have a budget, and what was not written is told."""

from __future__ import annotations

import logging

from stack.core.logs import BURST, KINDS_MAX, RATE, Budget, written


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def line(text: str, *args: object, name: str = "a") -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, __file__, 1, text, args, None)


def test_a_kind_has_a_budget_that_refills() -> None:
    clock = Clock()
    budget = Budget(clock)
    passed = [budget.filter(line("refused: %s", number)) for number in range(BURST + 30)]
    assert passed == [True] * BURST + [False] * 30
    assert budget.filter(line("another")), "other kinds are not concerned"
    assert budget.filter(line("refused: %s", 1, name="b"))

    clock.now += 1 / RATE
    record = line("refused: %s", "once more")
    assert budget.filter(record)
    assert record.getMessage() == "refused: once more (30 more like it before)"
    assert not budget.filter(line("refused: %s", 2))
    clock.now += 1e6
    after = [budget.filter(line("refused: %s", number)) for number in range(BURST + 1)]
    assert after == [True] * BURST + [False]


def test_a_line_with_percent_signs_that_follows_lost_ones_is_whole() -> None:
    budget = Budget(clock := Clock())
    for _ in range(BURST + 2):
        budget.filter(line("said %s", "x"))
    clock.now = 1.0
    record = line("said %s", "100%s")
    assert budget.filter(record)
    assert record.getMessage() == "said 100%s (2 more like it before)"


def test_kinds_are_bounded() -> None:
    budget = Budget(Clock())
    passed = sum(budget.filter(line(f"kind {number}")) for number in range(10 * KINDS_MAX))
    assert passed == KINDS_MAX + BURST


def test_a_log_that_is_there_is_left_as_it_is_and_ours_goes_with_us() -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    filters = [list(handler.filters) for handler in handlers]
    with written(True, Clock()):
        assert root.handlers == handlers
    assert [handler.filters for handler in handlers] == filters
    root.handlers.clear()
    try:
        with written(True, Clock()):
            assert [type(one) for handler in root.handlers for one in handler.filters] == [Budget]
            assert root.level == logging.INFO
        assert (root.handlers, root.level) == ([], level)
    finally:
        root.handlers[:] = handlers
