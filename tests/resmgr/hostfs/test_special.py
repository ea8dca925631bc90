"""Which devices and FIFOs a client of another node may open, what of them it may do, and OPENs that wait, in virtual time."""

from __future__ import annotations

import errno
import os
import select
import stat
from pathlib import Path

import pytest

from resmgr.access import DEVICES_DEFAULT, Export
from resmgr.errors import ResmgrError
from resmgr.hostfs import fifo
from resmgr.hostfs.special import is_terminal, serves
from resmgr.hostfs.watch import can_wait, ready
from resmgr.iofunc import terminal
from resmgr.iomsg import NONBLOCK, Connect
from resmgr.iorequest import ConnectRequest, pack_devctl, pack_read
from resmgr.testing.hostdir import HostDirectory

NULL, MEM, KMSG = os.makedev(1, 3), os.makedev(1, 1), os.makedev(1, 11)


def fails(code: int) -> pytest.RaisesExc[ResmgrError]:
    return pytest.raises(ResmgrError, match=os.strerror(code))


def device(host: HostDirectory, name: str, rdev: int, kind: int = stat.S_IFCHR) -> None:
    (host.root / name).parent.mkdir(exist_ok=True)
    os.mknod(host.root / name, kind | 0o666, rdev)
    os.chmod(host.root / name, 0o666)


@pytest.fixture
def tree(host: HostDirectory) -> HostDirectory:
    """/d for all, /rest read-only, /t for terminals, /k for /dev/kmsg."""
    for name in ("d", "rest", "t", "k"):
        device(host, f"{name}/null", NULL)
        device(host, f"{name}/mem", MEM)
        device(host, f"{name}/disk", os.makedev(7, 0), stat.S_IFBLK)
        device(host, f"{name}/kmsg", KMSG)
        device(host, f"{name}/tty", os.makedev(5, 0))
        device(host, f"{name}/ptmx", os.makedev(5, 2))
        os.mkfifo(host.root / name / "fifo")
        os.chmod(host.root / name / "fifo", 0o666)
    host.fs.set_policy(
        host.policy(
            (
                Export("/d", ["read", "write"]),
                Export("/rest", ["read"]),
                Export("/t", ["read", "write"], devices=["terminals"]),
                Export("/k", ["read"], devices=["/dev/km?g"]),
            )
        )
    )
    return host


def opens(host: HostDirectory, path: str, flags: int = os.O_RDONLY) -> str:
    """The error's name, or what it is."""
    client = host.remote("b")
    try:
        entry = client.open(path.encode(), flags | os.O_NONBLOCK)
    except ResmgrError as error:
        return errno.errorcode[error.errno or 0]
    client.close(entry.target, entry.ocb)
    return "open"


def test_an_export_serves_what_its_words_say(tree: HostDirectory) -> None:
    both = os.O_RDWR
    assert [opens(tree, f"d/{name}", both) for name in ("null", "fifo")] == ["open", "open"]
    assert [opens(tree, f"d/{name}") for name in ("mem", "disk", "kmsg", "ptmx", "tty")] == ["EACCES"] * 4 + ["ENXIO"]
    # Read-only: what takes nothing away.
    assert [opens(tree, f"rest/{name}") for name in ("null", "fifo")] == ["open", "EROFS"]
    assert [opens(tree, f"rest/{name}", os.O_WRONLY) for name in ("null", "fifo")] == ["EROFS", "EROFS"]
    assert [opens(tree, f"t/{name}", both) for name in ("null", "fifo", "mem", "kmsg", "tty")] == ["EACCES"] * 4 + ["ENXIO"]
    assert [opens(tree, f"k/{name}") for name in ("null", "mem", "disk", "ptmx")] == ["EACCES"] * 4
    if Path("/dev/kmsg").exists():
        assert opens(tree, "k/kmsg") == "open"
    assert tree.fs.counters["devices_refused"] == 17
    # A local client is judged by the kernel alone.
    entry = tree.client().open(b"rest/null", os.O_RDWR)
    assert entry.ocb
    with fails(errno.ENXIO):
        tree.client().open(b"rest/tty", os.O_RDWR)


def test_words() -> None:
    words = frozenset(DEVICES_DEFAULT)
    null = os.stat("/dev/null")
    assert serves(words, null)
    assert not serves(frozenset(), null)
    assert serves(frozenset({"/dev/nul*"}), null)
    assert not serves(frozenset({"/dev/zero", "/nowhere"}), null)
    assert serves(frozenset({"all"}), null)
    assert is_terminal(os.makedev(136, 3))
    assert is_terminal(os.makedev(5, 2))
    assert not is_terminal(MEM)
    assert Export("/", devices=["all"]).devices == {"all"}
    with pytest.raises(ValueError, match="'ttyS0' is none of all, fifos, memory, terminals, nor an absolute path"):
        Export("/", devices=["ttyS0"])


def test_narrower_exports_inherit_and_those_of_one_place_add_up(tree: HostDirectory) -> None:
    tree.fs.set_policy(
        tree.policy(
            (
                Export("/", ["read", "write"], devices=["all"]),
                Export("/d", ["read", "write"], devices=["terminals"]),
                Export("/d", ["read", "write"], devices=["memory"]),
            )
        )
    )
    assert [opens(tree, f"d/{name}") for name in ("null", "fifo", "mem")] == ["open", "EACCES", "EACCES"]
    assert opens(tree, "k/null") == "open"


def test_what_is_read_and_asked(tree: HostDirectory) -> None:
    client = tree.remote("b")
    null = client.open(b"d/null", os.O_RDWR)
    assert client.read(null.target, null.ocb, 0, 100) == b""
    assert client.write(null.target, null.ocb, 0, b"abc") == 3
    with fails(errno.ENOTTY):
        client.send(null.target, (pack_devctl(null.ocb, terminal.GET_ATTRIBUTES.number),), 36)
    with fails(errno.EINVAL):
        client.send(null.target, (pack_devctl(null.ocb, terminal.SET_WINDOW.number, b"1"),))
    # A number whose data hold a pointer (BLKPG): never.
    with fails(errno.ENOTTY):
        client.send(null.target, (pack_devctl(null.ocb, 0x1269, bytes(64)),))
    only = client.open(b"rest/null")
    with fails(errno.EROFS):
        client.send(only.target, (pack_devctl(only.ocb, terminal.SET_WINDOW.number, bytes(8)),))
    with fails(errno.EBADF):
        client.write(only.target, only.ocb, 0, b"x")
    with fails(errno.EAGAIN):
        out = os.open(tree.root / "d/fifo", os.O_RDWR)
        fifo = client.open(b"d/fifo", os.O_RDONLY | os.O_NONBLOCK)
        client.send(fifo.target, (pack_read(fifo.ocb, 0, 10, NONBLOCK),), 10)
    os.close(out)


def test_an_open_waits_without_a_thread_and_is_given_up(tree: HostDirectory) -> None:
    path = tree.root / "d/fifo"
    client = tree.remote("b")
    connection = client.connection(tree.fs.target)
    message = ConnectRequest(Connect.OPEN, os.O_WRONLY, 0, b"d/fifo").pack()
    answers: list[int] = []
    pending = connection.submit((message,), 4096, lambda status, reply: answers.append(status))
    tree.dispatch.run_for(1.0)
    waiting = tree.fs.special.fifos
    assert (answers, len(waiting), tree.fs.counters["threaded"]) == ([], 1, 0)
    assert pending is not None
    pending.unblock()
    tree.dispatch.run_for(0.1)
    assert (answers, len(waiting)) == ([-errno.EINTR], 0)
    connection.submit((message,), 4096, lambda status, reply: answers.append(status))
    tree.dispatch.run_for(1.0)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    tree.dispatch.run_for(fifo.LATE)
    assert answers[1:] == [0]
    os.close(reader)
    # New rules end it, as they end what is open.
    os.mkfifo(tree.root / "d/other")
    reading = ConnectRequest(Connect.OPEN, os.O_RDONLY, 0, b"d/other").pack()
    client = tree.remote("b")
    client.connection(tree.fs.target).submit((reading,), 4096, lambda status, reply: answers.append(status))
    tree.dispatch.run_for(0.1)
    tree.fs.set_policy(tree.policy())
    tree.dispatch.run_for(0.1)
    assert (answers[2:], len(waiting)) == ([-errno.EBADF], 0)


def test_opens_that_wait_are_bounded(tree: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fifo, "OPENS_PER_CLIENT", 3)
    client = tree.remote("b")
    connection = client.connection(tree.fs.target)
    message = ConnectRequest(Connect.OPEN, os.O_RDONLY, 0, b"d/fifo").pack()
    answers: list[int] = []
    for _ in range(5):
        connection.submit((message,), 4096, lambda status, reply: answers.append(status))
    tree.dispatch.run_for(0.1)
    assert answers == [-errno.EAGAIN] * 2
    assert tree.fs.counters["fifo_opens_full"] == 2
    before = len(os.listdir("/proc/self/fd"))
    connection.close()
    tree.dispatch.run_for(0.1)
    assert len(os.listdir("/proc/self/fd")) == before - 6, "descriptor and name of each"


def test_conditions() -> None:
    read, write = os.pipe()
    assert can_wait(read)
    assert (ready(read), ready(write)) == (0, select.POLLOUT)
    os.close(write)
    assert ready(read) == select.POLLHUP
    os.close(read)
    with open("/dev/null") as null:
        assert not can_wait(null.fileno())


def test_the_table_of_commands_is_flat_and_the_kernels() -> None:
    assert terminal.GET_ATTRIBUTES.size == 36
    assert terminal.TERMINAL[0x5405].size == 18
    for number, command in terminal.TERMINAL.items():
        if number >> 16:
            assert command.size == number >> 16 & 0x3FFF
            assert bool(command.gives.size) == bool(number >> 31), "direction"
    # What would change this process, or hand out descriptors.
    assert not {0x540E, 0x5410, 0x541D, 0x5422, 0x5423, 0x5441, 0x541E, 0x541F} & terminal.TERMINAL.keys()
