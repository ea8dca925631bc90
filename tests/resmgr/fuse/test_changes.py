"""The log of what was changed when: resmgr.fuse.changes. Where it forgets, everything counts as changed."""

from __future__ import annotations

import pytest

from resmgr.fuse import changes
from resmgr.fuse.changes import Logs
from resmgr.fuse.inode import Node
from resmgr.fuse.nodes import NodeTable
from resmgr.fuse.servers import Server

DIRECTORY = (7, 0o040755, 2, 0, 0, 0, 0, 0, 4096, 0, 0, 0, 0)


def directories(count: int) -> list[Node]:
    server = Server((0, 1, 1), 0)
    table = NodeTable(server, lambda node: None, lambda parent, name: None)
    return [table.enter(table.root, b"d%d" % number, server, DIRECTORY) for number in range(count)]


def test_what_was_asked_before_a_change_or_with_it_is_not_believed() -> None:
    logs = Logs()
    one, other = directories(2)
    assert not logs.since(one, b"a", 0.0)
    logs.changed(one, b"a", 5.0)
    logs.heard(one, b"b", 6.0)
    assert [logs.since(one, b"a", at) for at in (4.0, 5.0, 5.1)] == [True, True, False]
    assert [logs.since(one, b"b", at) for at in (6.0, 6.1)] == [True, False]
    assert [logs.heard_since(one, name, 0.0) for name in (b"a", b"b", b"c")] == [False, True, False]
    assert not logs.since(one, b"c", 0.0)
    assert not logs.since(other, b"a", 0.0)
    assert logs.of(one)[0] == {b"a": 5.0, b"b": 6.0}


def test_everything_in_a_directory_may_have_changed() -> None:
    logs = Logs()
    one, other = directories(2)
    logs.changed(one, b"a", 9.0)
    logs.all(one, 10.0)
    assert logs.since(one, b"a", 10.0)
    assert logs.heard_since(one, b"never heard of", 10.0)
    assert not logs.since(one, b"a", 10.1)
    assert not logs.since(other, b"a", 0.0)


def test_too_many_names_of_one_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "NAMES_MAX", 4)
    logs = Logs()
    one, other = directories(2)
    for number in range(6):
        logs.heard(one, b"%d" % number, 1.0 + number)
    assert len(logs.of(one)[0]) == 2
    assert logs.since(one, b"0", 4.9)
    assert not logs.since(one, b"0", 5.1)
    assert logs.heard_since(one, b"0", 4.9)
    assert not logs.since(other, b"0", 0.0)


def test_too_many_names_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "TOTAL_MAX", 50)
    logs = Logs()
    many = directories(40)
    for number, directory in enumerate(many):
        logs.changed(directory, b"a", float(number))
        logs.heard(directory, b"b", number + 0.5)
        assert logs.count <= 50
    for number, directory in enumerate(many):
        assert logs.since(directory, b"a", float(number))
        assert logs.since(directory, b"b", number + 0.5)
    assert many[0].log is None
    assert many[-1].log is not None
    assert not logs.since(many[0], b"a", 38.0), "what was asked after all that is forgotten"
    for directory in many:
        logs.forget(directory)
    assert logs.count == 0
