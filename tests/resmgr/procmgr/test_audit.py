"""The audit log: lines, rotation by others and by itself, and that a node cannot fill it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from resmgr.procmgr import audit
from resmgr.procmgr.audit import REFUSALS_BURST, WORD_MAX, WORDS_MAX, AuditLog, words

pytestmark = pytest.mark.host


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_for_each_thing(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(str(path), lambda: 1700000000.25, lambda: 0.0)
    log.write("allowed", id=1, command=words((b"sh", b"a\nb", b"\xff\x1b[2J")))
    log.told("ended", id=1, status=0)
    assert lines(path)[0] == {"time": 1700000000.25, "event": "allowed", "id": 1, "command": ["sh", "a\nb", "\\udcff\x1b[2J"]}
    assert path.read_bytes().isascii()
    assert b"\x1b" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.rename(tmp_path / "audit.old")
    log.told("ended", id=2)
    assert [line["id"] for line in lines(path)] == [2]
    log.close()


def test_it_is_moved_when_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SIZE_MAX", 200)
    path = tmp_path / "audit"
    log = AuditLog(str(path), lambda: 0.0, lambda: 0.0)
    for number in range(10):
        log.told("ended", id=number)
    log.close()
    assert path.stat().st_size <= 200
    assert lines(path)[-1]["id"] == 9
    assert (tmp_path / "audit.1").stat().st_size <= 200


def test_what_cannot_be_written_is_an_error_before_and_a_line_of_the_log_after(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(str(tmp_path / "none" / "audit"), lambda: 0.0, lambda: 0.0)
    with pytest.raises(FileNotFoundError):
        log.write("allowed")
    log.told("ended")
    assert "No such file" in caplog.text
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        AuditLog(str(tmp_path / "link"), lambda: 0.0, lambda: 0.0).write("allowed")
    assert not os.path.exists(tmp_path / "elsewhere")


def test_refusals_of_a_node_have_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    now = [0.0]
    log = AuditLog(str(path), lambda: 0.0, lambda: now[0])
    for _ in range(500):
        log.refused("bad", reason="not_granted")
    log.refused("good", reason="not_granted")
    assert len(lines(path)) == int(REFUSALS_BURST) + 1
    assert log.dropped == 500 - int(REFUSALS_BURST)
    now[0] = 1.0
    log.refused("bad", reason="not_granted")
    assert lines(path)[-1]["unwritten"] == 500 - int(REFUSALS_BURST)
    log.close()


def test_long_commands_are_cut_and_say_so() -> None:
    told = words((b"x" * (WORD_MAX + 1), *[b"y"] * WORDS_MAX))
    assert told[0] == "x" * WORD_MAX + "..."
    assert told[-1] == "(1 more)"
    assert len(told) == WORDS_MAX + 1
