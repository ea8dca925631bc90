"""What a daemon writes down of its mounts, and what the next one makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from qnetpy.netfs import record
from qnetpy.netfs.record import Left

MOUNTS = [Left("/net", (0, 55)), Left('/mnt/two "words\n', (0, 56))]


def test_what_a_process_that_is_gone_had_is_left(tmp_path: Path) -> None:
    told = [(one.point, one.device) for one in MOUNTS]
    code = f"from qnetpy.netfs.record import *; write_down({str(tmp_path)!r}, [Left(*one) for one in {told!r}])"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

    assert record.left(str(tmp_path)) == MOUNTS


def test_what_a_process_has_that_works_is_not(tmp_path: Path) -> None:
    record.write_down(str(tmp_path), MOUNTS)

    assert record.left(str(tmp_path)) == []
    assert record.made(str(tmp_path)) == MOUNTS
    lines = [json.loads(line) for line in (tmp_path / record.FILE).read_bytes().splitlines()]
    # Another process has the number now.
    (tmp_path / record.FILE).write_text("".join(json.dumps({**line, "began": "1"}) + "\n" for line in lines))
    assert record.left(str(tmp_path)) == MOUNTS
    (tmp_path / record.FILE).write_text("".join(json.dumps({**line, "began": "1", "boot": "another"}) + "\n" for line in lines))
    assert record.left(str(tmp_path)) == []


def test_a_zombie_does_not_work(tmp_path: Path) -> None:
    code = f"from qnetpy.netfs.record import *; write_down({str(tmp_path)!r}, [Left('/net', (0, 55))])"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert record.left(str(tmp_path)) == MOUNTS[:1]
    finally:
        child.wait()


def test_what_does_not_parse_is_left_out_and_nothing_is_written_when_nothing_is_mounted(tmp_path: Path) -> None:
    assert record.left(str(tmp_path)) == []
    (tmp_path / record.FILE).write_bytes(b"[]\n{}\nnull\n\xff\n" + b"x" * record.RECORD_MAX)
    assert record.left(str(tmp_path)) == []
    # Numbers that are none, and more depth than a parser has.
    record.write_down(str(tmp_path), MOUNTS[:1])
    line = (tmp_path / record.FILE).read_bytes()
    pid = b'"pid": %d' % os.getpid()
    (tmp_path / record.FILE).write_bytes(line.replace(pid, b'"pid": 1e400') + b"[" * 30000 + b"\n" + line.replace(pid, b'"pid": -5'))
    assert record.left(str(tmp_path)) == MOUNTS[:1]

    record.write_down(str(tmp_path), [])
    record.write_down(str(tmp_path), [])
    assert os.listdir(tmp_path) == []
