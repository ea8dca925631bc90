"""A protocol and a driver of a third party, exactly as docs/howto has them, in two processes of io-pkt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from qnetpy.cli.iopkt import ask_at, listed, numbers
from resmgr.client import Client
from resmgr.ids import CHID_PATHMGR, ND_LOCAL, PID_SYSTEM
from resmgr.iomsg import Connect, Entry
from resmgr.iorequest import ConnectRequest
from tests import howto


def test_the_pages_parser_takes_what_it_says_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("protocol_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(howto.files("protocol.md")["your/neighbours.py"], "protocol.md", "exec"), module.__dict__)
    parse, bad = module.__dict__["_parse"], module.__dict__["BadFrame"]
    whole = b"\x05hello"
    assert parse(whole) == parse(whole + bytes(40)) == "hello"
    for wrong in (*(whole[:length] for length in range(len(whole))), b"\0", b"\x41" + b"x" * 65, b"\x01\n"):
        with pytest.raises(bad):
            parse(wrong)


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.05)


@pytest.mark.host
def test_two_managers_with_modules_of_a_third_party(tmp_path: Path) -> None:
    for page in ("driver.md", "protocol.md"):
        howto.write(page, tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    started = []
    for near, far in (("a", "b"), ("b", "a")):
        words = ["--run-dir", str(tmp_path / f"run-{near}"), "-d", "your.unixlink"]
        words += [f"path={tmp_path}/{near},peer={tmp_path}/{far},mac=02:00:00:00:00:0{near}", "--fault", "drop=10%"]
        words += ["-p", "your.neighbours", f"name={near},every=20ms"]
        started.append(subprocess.Popen([sys.executable, "-m", "stack.core.main", *words], env=environment, stderr=subprocess.PIPE))
    sockets = [str(tmp_path / f"run-{near}" / "socket") for near in "ab"]
    try:
        eventually(lambda: all(map(os.path.exists, sockets)), 60.0)

        def heard(socket: str) -> int:
            return sum(numbers(one)["frames"] for one in listed(ask_at(socket, "facts")["ethertypes"]))

        eventually(lambda: all(heard(socket) > 10 for socket in sockets))
        assert has(sockets[0], b"dev/neighbours")
        ask_at(sockets[0], "umount", what="neighbours")
        assert not has(sockets[0], b"dev/neighbours")
        ask_at(sockets[0], "mount", module="your.neighbours", options="name=again,every=20ms,restart=3")
        eventually(lambda: heard(sockets[0]) > 10)
        for socket in sockets:
            found = ask_at(socket, "facts")
            assert found["failures"] == {}
            assert [one["name"] for one in listed(found["modules"])] == ["unixlink", "neighbours"]
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
    assert [process.communicate(timeout=20)[1] for process in started] == [b"", b""]
    assert [process.returncode for process in started] == [0, 0]
    assert not [name for name in os.listdir(tmp_path) if name in "ab"], "the driver left its sockets"


def has(socket: str, path: bytes) -> bool:
    """Whether the node at *socket* has that name."""
    with Client(socket) as client:
        connection = client.connect(ND_LOCAL, PID_SYSTEM, CHID_PATHMGR)
        try:
            reply = connection.send(ConnectRequest(Connect.LOOKUP, 0, 0, path).pack(), reply_len=8192, timeout=5.0)
        except OSError:
            return False
        return Entry.parse(bytes(reply.data)).attr is not None
