"""The audit log: lines, rotation by others and by itself, and that what is refused, or done by clients of this node, moves nothing out."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from resmgr.access import MappedUser
from resmgr.procmgr import audit
from resmgr.procmgr.attempts import wanted
from resmgr.procmgr.audit import KEPT, LINE_MAX, REFUSALS_BURST, REFUSALS_RATE, WORD_MAX, WORDS_MAX, AuditLog, Fact, words
from resmgr.procmgr.message import SPAWN_MAX, Spawn

pytestmark = pytest.mark.host


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(log: AuditLog, facts: Mapping[str, Fact], local: bool = False) -> None:
    failures: list[OSError | None] = []
    log.write("allowed", facts, failures.append, local=local)
    (failure,) = failures
    if failure is not None:
        raise failure


def test_a_line_for_each_thing(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(str(path), lambda: 1700000000.25, lambda: 0.0)
    write(log, {"id": 1, "command": words((b"sh", b"a\nb", b"\xff\x1b[2J"))})
    log.told("ended", {"id": 1, "status": 0})
    assert lines(path)[0] == {"time": 1700000000.25, "event": "allowed", "id": 1, "command": ["sh", "a\nb", "\\udcff\x1b[2J"]}
    assert path.read_bytes().isascii()
    assert b"\x1b" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.rename(tmp_path / "audit.old")
    log.told("ended", {"id": 2})
    assert [line["id"] for line in lines(path)] == [2]
    log.close()


def test_it_is_moved_when_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SIZE_MAX", 200)
    path = tmp_path / "audit"
    log = AuditLog(str(path), lambda: 0.0, lambda: 0.0)
    for number in range(60):
        log.told("ended", {"id": number})
    log.close()
    assert len(os.listdir(tmp_path)) == KEPT + 1
    kept = [path, *(tmp_path / f"audit.{number}" for number in range(1, KEPT + 1))]
    assert all(file.stat().st_size <= 200 for file in kept)
    ids = [line["id"] for file in reversed(kept) for line in lines(file)]
    assert ids == list(range(60 - len(ids), 60))


def test_what_cannot_be_written_is_an_error_before_and_a_line_of_the_log_after(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(str(tmp_path / "none" / "audit"), lambda: 0.0, lambda: 0.0)
    with pytest.raises(FileNotFoundError):
        write(log, {})
    log.told("ended", {})
    assert "No such file" in caplog.text
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        write(AuditLog(str(tmp_path / "link"), lambda: 0.0, lambda: 0.0), {})
    assert not os.path.exists(tmp_path / "elsewhere")


def test_refusals_have_a_rate_and_move_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many and as long as a node can make them, for an hour: all files of refusals are full of its own; the deed is where it was."""
    monkeypatch.setattr(audit, "SIZE_MAX", 1 << 16)
    monkeypatch.setattr(audit, "SIDE_SIZE_MAX", 1 << 16)
    path = tmp_path / "audit"
    now = [0.0]
    log = AuditLog(str(path), lambda: 0.0, lambda: now[0])
    write(log, {"id": 1, "command": ["the deed"]})
    spawn = Spawn((b"/usr/bin/sudo", *[b"\xff" * 512] * 63), user=b"\xff" * 65000, directory=b"/" + b"\xff" * 65000)
    facts = wanted(spawn, MappedUser(1, 1))
    for _ in range(200):
        log.refused("bad", facts)
    there = path.with_name("audit-refused").stat().st_size
    assert there <= REFUSALS_BURST
    assert log.dropped > 150
    log.refused("good", {"why": "x"})
    for second in range(0, 3600, 3):
        now[0] = float(second)
        log.refused("bad", facts)
    log.close()
    assert [line.get("command") for line in lines(path)] == [["the deed"]]
    assert any("unwritten" in line for line in lines(path.with_name("audit-refused")))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < REFUSALS_BURST + 3600 * REFUSALS_RATE + 1000


def test_what_clients_of_this_node_do_moves_nothing_of_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SIDE_SIZE_MAX", 1000)
    path = tmp_path / "audit"
    log = AuditLog(str(path), lambda: 0.0, lambda: 0.0)
    write(log, {"id": 1})
    for number in range(200):
        write(log, {"id": number}, local=True)
        log.told("ended", {"id": number}, local=True)
    log.close()
    assert [line["id"] for line in lines(path)] == [1]
    assert len(os.listdir(tmp_path)) == 1 + 1 + audit.SIDE_KEPT


@pytest.mark.parametrize("byte", [b"\xff", b"\x01", b"x", b"\\", "ä".encode()])
def test_a_line_is_bounded_and_tells_the_command(byte: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(str(path), lambda: 0.0, lambda: 0.0)
    long = byte * (SPAWN_MAX // 8 // len(byte))
    spawn = Spawn(
        (b"/usr/bin/tool", b"first", long, long), (b"A=1", long + b"=1"), user=long, directory=b"/" + long, terminal=b"/dev/" + long
    )
    write(log, wanted(spawn, MappedUser(1, 1)))
    write(log, {**wanted(spawn, MappedUser(1, 1)), "roles": ["long" * 10000], "fingerprint": "x" * 10000})
    log.close()
    assert all(len(line) < LINE_MAX for line in path.read_bytes().splitlines())
    for line in lines(path):
        command = line["command"]
        assert isinstance(command, list)
        assert command[:2] == ["/usr/bin/tool", "first"]
    variables = lines(path)[0]["variables"]
    assert isinstance(variables, list)
    assert variables[0] == "A"


def test_long_commands_are_cut_and_say_so() -> None:
    told = words((b"x" * (WORD_MAX + 1), *[b"y"] * WORDS_MAX))
    assert told[0] == "x" * WORD_MAX + "..."
    assert told[-1] == "(1 more)"
    assert len(told) == WORDS_MAX + 1
    assert words((b"x", *[b"z" * WORD_MAX] * 10))[-1] == "(7 more)"
