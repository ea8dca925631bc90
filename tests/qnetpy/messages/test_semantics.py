"""Every row of docs/reference/message-passing.md in every setting, and that page and rows are the same.

python -m tests.qnetpy.messages.test_semantics     print the tables as the rows have them
"""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
import trio

from tests.qnetpy.messages import rows_ends, rows_events, rows_sends, rows_unblock
from tests.qnetpy.messages.rig import SETTINGS, LocalSockets, TooLate, TwoNodes, rig
from tests.qnetpy.messages.row import COLUMN_NAMES, NOT_HERE, Row, Rows

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "message-passing.md"
SECTIONS: tuple[Rows, ...] = (
    rows_sends.sends,
    rows_sends.data,
    rows_sends.refusals,
    rows_unblock.unblocks,
    rows_unblock.pulses,
    rows_events.events,
    rows_events.priorities,
    rows_ends.ends,
    rows_ends.nodes,
)
ROWS = [row for section in SECTIONS for row in section.rows]
CASES = [(row, setting) for row in ROWS for setting in SETTINGS if row.expected(setting) != NOT_HERE]
AWAY = [row for row in ROWS if row.expected("lossy") != NOT_HERE and row.run not in rows_events.TASKS]
CRASHED = {-errno.EHOSTDOWN, -errno.EBADF, -errno.ESRCH, -errno.ENOTCONN}
"""How a send may end when a node has lost power."""
ANSWERED = {-errno.EINTR, -errno.ENOENT, -errno.EAGAIN, -errno.EMSGSIZE, -errno.EHOSTUNREACH, -errno.ENOTSUP}
"""And how the rows end without."""
NOTHING_LEAVES = {
    rows_sends.no_process,
    rows_sends.no_node,
    rows_sends.too_big,
    rows_sends.many_descriptors,
    rows_unblock.bad_pulse,
    rows_unblock.after_close,
    rows_events.bad_registration,
    rows_ends.first_send_after_death,
}
"""Rows in which nothing is sent to a program that is there: without a link."""
BLOCKING = {
    rows_unblock.cancelled: "KeyboardInterrupt",
    rows_unblock.cancelled_answered: "KeyboardInterrupt",
    rows_ends.daemon_ends: "ENOTCONN, COIDDEATH, then ENOTCONN",
}
"""What a program without Trio sees that is not what the table says of one node."""
ROW_NAMES = [row.run.__name__ for row in ROWS]


def tables() -> str:
    """The tables of the page."""
    lines: list[str] = []
    for section in SECTIONS:
        lines += [f"## {section.section}", "", f"| case | {' | '.join(COLUMN_NAMES)} |", f"|{'---|' * (1 + len(COLUMN_NAMES))}"]
        lines += [f"| {row.case} | {' | '.join(row.results)} |" for row in section.rows]
        lines.append("")
    lines += ["## Programs without Trio", "", "| case | one node |", "|---|---|"]
    lines += [f"| {row.case} | {BLOCKING[row.run]} |" for row in ROWS if row.run in BLOCKING]
    return "\n".join(lines)


def test_the_page_has_the_rows() -> None:
    page = PAGE.read_text()
    assert page[page.index("\n## ") + 1 :].rstrip() == tables().rstrip(), "python -m tests.qnetpy.messages.test_semantics"
    assert len(set(ROW_NAMES)) == len(ROWS)
    assert len({row.case for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("row", "setting"), CASES, ids=[f"{ROW_NAMES[ROWS.index(row)]}-{setting}" for row, setting in CASES])
async def test_row(row: Row, setting: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with rig(setting, tmp_path) as there:
            expected = BLOCKING.get(row.run) if setting == "blocking" else None
            assert await row.run(there) == (expected or row.expected(setting))
            if isinstance(there, LocalSockets):
                assert there.used_direct() == (setting == "direct" and row.run not in NOTHING_LEAVES)
            assert there.client_is_dead or all(len(sent.statuses) == 1 for sent in there.sent)


@pytest.mark.sim
@pytest.mark.parametrize("row", AWAY, ids=[ROW_NAMES[ROWS.index(row)] for row in AWAY])
async def test_row_with_crashes(row: Row, tmp_path: Path) -> None:
    """A node loses power at some moment of the row: then every send of a client that is left has one end, with an errno that fits, and its
    node keeps nothing of it.
    """
    for seed in range(3):
        generator = random.Random(f"{seed}/{row.case}")
        victim = "b" if row.run in rows_unblock.AWAITED else generator.choice("ab")
        moment = generator.choice((0.0, 0.0002, 0.001, 0.005, 0.02, 0.1)) * generator.random()
        print(f"seed {seed}: {victim} loses power after {moment:.6f} s")
        async with rig("lossy", tmp_path, seed) as there:
            assert isinstance(there, TwoNodes)

            def crash(there: TwoNodes = there, victim: str = victim) -> None:
                if not (there.a if victim == "a" else there.b).dead:
                    there.crash(victim)

            there.world.at(there.world.now + moment, crash)
            there.patience = 6.0
            with trio.move_on_after(60):
                try:
                    await row.run(there)
                except (TooLate, AssertionError, IndexError, LookupError):
                    crash()
            there.world.run(5.0)
            if not there.client_is_dead:
                for sent in there.sent:
                    assert len(sent.statuses) == 1, f"a send to the dead node ended {len(sent.statuses)} times"
                    assert sent.statuses[0] >= 0 or sent.statuses[0] in CRASHED | ANSWERED, errno.errorcode[-sent.statuses[0]]
            else:
                for sent in there.sent:
                    assert len(sent.statuses) <= 1
            there.assert_empty(victim)


if __name__ == "__main__":
    print(tables())
