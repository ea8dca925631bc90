"""/proc through the file server: processes as the mapped user sees them, and nothing of the server itself."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmgr.access import Export
from resmgr.hostfs import ownproc
from resmgr.hostfs.manager import HostFs
from resmgr.iomsg import WANT_HANDLE, Connect
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import fails

pytestmark = pytest.mark.priv

DAEMON = pwd.getpwnam("daemon")


@pytest.fixture
def proc(tmp_path: Path, host: HostDirectory) -> Iterator[HostDirectory]:
    """The machine's root directory, of which /proc is exported."""
    fs = HostFs(host.kernel, host.policy(), root="/")
    served = HostDirectory(Path("/"), host.dispatch, host.kernel, fs)
    fs.set_policy(served.policy((Export("/proc", ["read"]), Export("/tmp", ["read"]))))
    yield served
    fs.destroy()


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process of user daemon."""
    with subprocess.Popen(["sleep", "1000"], user="daemon", group="daemon", extra_groups=[], env={"SECRET": "1"}) as running:
        try:
            yield running.pid
        finally:
            running.kill()


def test_processes_are_seen_with_the_users_own_rights(proc: HostDirectory, sleeper: int) -> None:
    own, other = proc.remote("b", DAEMON.pw_uid, gid=DAEMON.pw_gid), proc.remote("b", 4002, gid=4002)
    place = b"proc/%d" % sleeper
    for far in (own, other):
        assert far.get(place + b"/cmdline") == b"sleep\x001000\x00"
        assert b"%d" % sleeper in far.names(b"proc")
    assert own.get(place + b"/environ") == b"SECRET=1\x00"
    assert bytes(own.name(Connect.READLINK, place + b"/exe")).endswith(b"sleep")
    with fails(errno.EACCES):
        other.get(place + b"/environ")
    with fails(errno.EACCES):
        other.name(Connect.READLINK, place + b"/exe")
    # Magic links are told and never followed.
    for path in (b"/root/etc/passwd", b"/cwd/etc", b"/fd/0/x"):
        with fails(errno.ELOOP):
            own.lookup(place + path)
    link = own.lookup(place + b"/root", flags=WANT_HANDLE)
    with fails(errno.ENOTDIR):
        own.lookup(b"etc", link.handle)


def test_the_server_itself_is_not_there(proc: HostDirectory) -> None:
    """The kernel would let each thread of the server look at all of it, whoever it acts as."""
    ready, done = threading.Event(), threading.Event()

    def thread() -> None:
        ready.set()
        done.wait()

    helper = threading.Thread(target=thread)
    helper.start()
    ready.wait()
    numbers = [os.getpid(), helper.native_id or 0]
    far = proc.remote("b", 4001, gid=4001)
    base = far.lookup(b"proc")
    try:
        for number in numbers:
            name = b"%d" % number
            assert name not in far.names(b"proc")
            for path in (b"proc/" + name, b"proc/" + name + b"/maps", b"proc/" + name + b"/task/" + name + b"/fd"):
                with fails(errno.ENOENT):
                    far.lookup(path)
                with fails(errno.ENOENT):
                    far.open(path)
            for path in (name, name + b"/fd"):
                with fails(errno.ENOENT):
                    far.lookup(path, base.handle)
                with fails(errno.ENOENT):
                    far.name(Connect.READLINK, path + b"/cwd", base.handle)
                with fails(errno.ENOENT):
                    far.open(path, os.O_DIRECTORY, handle=base.handle)
        with fails(errno.ELOOP):
            far.lookup(b"proc/self/maps")
    finally:
        done.set()
        helper.join()
    # A number elsewhere is a name like any other.
    (Path("/tmp") / str(os.getpid())).mkdir(exist_ok=True)
    assert far.lookup(b"tmp/%d" % os.getpid()).handle
    (Path("/tmp") / str(os.getpid())).rmdir()


@pytest.mark.parametrize("how", ["open", "lookup"])
def test_a_thread_that_begins_while_its_name_is_opened_is_not_there(
    proc: HostDirectory, sleeper: int, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its number is asked about after the directory is open, too."""
    real = os.open
    begun: set[bytes] = set()

    def opened(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = real(path, flags, mode, dir_fd=dir_fd)
        if path == b"%d" % sleeper:
            begun.add(b"%d" % sleeper)
        return fd

    far = proc.remote("b", 4001, gid=4001)
    base = far.lookup(b"proc")
    name = b"%d" % sleeper
    assert far.lookup(name, base.handle).handle
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(ownproc, "own", begun.__contains__)
    with fails(errno.ENOENT):
        if how == "open":
            far.open(name, os.O_DIRECTORY, handle=base.handle)
        else:
            far.lookup(name, base.handle)
    assert begun


def test_it_is_asked_in_threads(proc: HostDirectory, sleeper: int) -> None:
    """A read of /proc may wait for pages that this process is to bring."""
    far = proc.remote("b", 4001, gid=4001)
    before = proc.fs.counters["threaded"]
    entry = far.lookup(b"proc/%d" % sleeper)
    opened = far.open(b"status", handle=entry.handle)
    far.read(opened.target, opened.ocb, 0, 4096)
    far.stat(opened.target, opened.ocb)
    assert proc.fs.counters["threaded"] - before >= 4
