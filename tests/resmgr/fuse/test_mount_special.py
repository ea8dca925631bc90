"""Devices and FIFOs of this machine, served by hostfs and used by unmodified programs through a real mount."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resmgr.testing.fusemount import Served
from tests.resmgr.waiting import until

pytestmark = pytest.mark.priv


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The root directory of this machine, mounted."""
    mountpoint = tmp_path_factory.mktemp("special") / "mnt"
    mountpoint.mkdir()
    served = Served(mountpoint, {}, Path("/"))
    yield served
    served.close()


class Fifo:
    """One FIFO by its two ways: `near` of this machine, `far` through the mount."""

    def __init__(self, mount: Served, near: Path) -> None:
        self.near = near
        self.far = far(mount, near)
        os.mkfifo(near, 0o666)


def far(mount: Served, path: Path | str) -> Path:
    return Path(f"{mount.path}{path}")


@pytest.fixture
def fifo(mount: Served, tmp_path: Path) -> Fifo:
    return Fifo(mount, tmp_path / "fifo")


@pytest.fixture
def terminal(mount: Served) -> Iterator[tuple[int, Path]]:
    """The master of a new pseudo terminal, and its slave's path through the mount."""
    master, slave = os.openpty()
    yield master, far(mount, os.ttyname(slave))
    for fd in (master, slave):
        try:
            os.close(fd)
        except OSError:
            pass


class Background:
    """*call* in a thread; `result` waits for what it gave, an OSError included."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._found: list[Any] = []
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._call())
        except OSError as error:
            self._found.append(error.errno)

    @property
    def over(self) -> bool:
        self._thread.join(0.06)
        return bool(self._found)

    def result(self) -> Any:
        self._thread.join(10)
        assert self._found, "still waits"
        return self._found[0]


def test_memory(mount: Served) -> None:
    dev = far(mount, "/dev")
    assert (dev / "null").read_bytes() == b""
    (dev / "null").write_bytes(bytes(100_000))
    with open(dev / "zero", "rb", buffering=0) as zero:
        assert zero.read(300_000) == bytes(300_000)
    with open(dev / "urandom", "rb", buffering=0) as random:
        assert len(set(random.read(300_000))) == 256
        assert select.select([random], [], [], 0)[0] == [random]
    full = os.open(dev / "full", os.O_RDWR)
    assert os.read(full, 5) == bytes(5)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        os.write(full, b"x")
    os.close(full)
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        os.open(dev / "tty", os.O_RDWR)
    if os.access("/dev/kmsg", os.R_OK):
        logs = [os.open(path / "kmsg", os.O_RDONLY | os.O_NONBLOCK) for path in (dev, Path("/dev"))]
        assert os.read(logs[0], 8192) == os.read(logs[1], 8192), "one record"
        for fd in logs:
            os.close(fd)
    # What programs say of it: a file, as everything that only its server can open.
    said = subprocess.run(
        [
            "sh",
            "-c",
            f"test -c {dev}/null || echo file; head -c 5 {dev}/zero | wc -c; dd if={dev}/zero bs=100k count=3 2>/dev/null | wc -c",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert said.split() == ["file", "5", "307200"]


@pytest.mark.parametrize("ways", ["near far", "far near", "far far"])
def test_each_end_of_a_fifo_waits_for_the_other(mount: Served, fifo: Fifo, ways: str) -> None:
    reader, writer = (getattr(fifo, way) for way in ways.split())
    reading = Background(lambda: os.open(reader, os.O_RDONLY))
    assert not reading.over
    out = os.open(writer, os.O_WRONLY)
    fd = reading.result()
    os.close(fd)
    os.close(out)
    # Another one: the server hears of a close some time after it.
    other = Fifo(mount, fifo.near.with_name("other"))
    reader, writer = (getattr(other, way) for way in ways.split())
    writing = Background(lambda: os.open(writer, os.O_WRONLY))
    assert not writing.over
    fd = os.open(reader, os.O_RDONLY)
    out = writing.result()
    # Silent so far: there is a writer, and nothing to read.
    read = Background(lambda: os.read(fd, 100))
    assert not read.over
    assert os.write(out, b"hello") == 5
    assert read.result() == b"hello"
    end = Background(lambda: os.read(fd, 100))
    assert not end.over
    os.close(out)
    assert end.result() == b"", "the end of the last writer is the end of the data"
    assert os.read(fd, 100) == b""
    os.close(fd)


def test_fifos_without_waiting(fifo: Fifo) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        os.open(fifo.far, os.O_WRONLY | os.O_NONBLOCK)
    fd = os.open(fifo.far, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(fd, 10) == b"", "nobody writes"
    out = os.open(fifo.far, os.O_WRONLY | os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        os.read(fd, 10)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(0) == []
    room = os.write(out, bytes(1 << 20))
    assert room == 65536
    with pytest.raises(BlockingIOError):
        os.write(out, b"x")
    assert poll.poll(0) == [(fd, select.POLLIN)]
    poll.register(out, select.POLLOUT)
    assert len(os.read(fd, 4000)) == 4000
    with pytest.raises(BlockingIOError):
        # Not 4000 of them: what fits PIPE_BUF is written as one or not at all.
        os.write(out, bytes(4096))
    assert len(os.read(fd, 65536)) == 61536
    assert poll.poll(0) == [(out, select.POLLOUT)]
    poll.unregister(out)
    os.close(out)
    assert poll.poll(10_000) == [(fd, select.POLLHUP)]
    os.close(fd)
    # One that is both needs nobody.
    both = os.open(fifo.far, os.O_RDWR)
    os.write(both, b"abc")
    assert os.read(both, 9) == b"abc"
    os.close(both)


@pytest.mark.parametrize("wait", ["select", "epoll"])
def test_news_of_a_fifo_wakes(fifo: Fifo, wait: str) -> None:
    fd = os.open(fifo.far, os.O_RDONLY | os.O_NONBLOCK)
    out = os.open(fifo.near, os.O_WRONLY)
    epoll = select.epoll()
    epoll.register(fd, select.EPOLLIN)
    for _ in range(3):
        waiting = Background(lambda: epoll.poll(10) if wait == "epoll" else select.select([fd], [], [], 10)[0])
        assert not waiting.over
        os.write(out, b"x")
        assert waiting.result() in ([fd], [(fd, select.EPOLLIN)])
        assert os.read(fd, 9) == b"x"
    epoll.close()
    os.close(out)
    os.close(fd)


@pytest.mark.parametrize("way", ["near", "far"])
def test_nobody_reads_any_more(fifo: Fifo, way: str) -> None:
    fd = os.open(getattr(fifo, way), os.O_RDONLY | os.O_NONBLOCK)
    out = os.open(fifo.far, os.O_WRONLY)
    filling = Background(lambda: os.write(out, bytes(70_000)))
    assert not filling.over
    os.close(fd)
    assert filling.result() == 65536, "what went, before nobody could read the rest"
    # Python ignores SIGPIPE; others die of it.
    with pytest.raises(BrokenPipeError):
        os.write(out, b"x")
    os.close(out)


def test_writers_do_not_wait_for_each_other(fifo: Fifo) -> None:
    """The kernel locks the inode for a write: one that waits must not hold up another program's."""
    holder = os.open(fifo.near, os.O_RDWR | os.O_NONBLOCK)
    out = os.open(fifo.far, os.O_WRONLY)
    filling = Background(lambda: os.write(out, bytes(70_000)))
    assert not filling.over
    other = os.open(fifo.far, os.O_WRONLY | os.O_NONBLOCK)
    assert os.fstat(other).st_ino == os.fstat(out).st_ino
    with pytest.raises(BlockingIOError):
        os.write(other, b"x")
    assert os.path.samestat(fifo.far.stat(), os.fstat(out))
    for fd in (other, os.open(fifo.far, os.O_WRONLY)):
        os.close(fd)
    assert len(os.read(holder, 65536)) == 65536
    assert filling.result() == 70_000
    os.close(out)
    os.close(holder)


def test_what_waits_is_bounded(fifo: Fifo) -> None:
    """By the bytes of one client: the 17th write of a megabyte is as if it were not to wait."""
    holder = os.open(fifo.near, os.O_RDWR | os.O_NONBLOCK)
    outs = [os.open(fifo.far, os.O_WRONLY) for _ in range(17)]
    os.write(holder, bytes(65536))
    writing = [Background(lambda fd=fd: os.write(fd, bytes(1 << 20))) for fd in outs]  # type: ignore[misc]  # the default is the type
    until(lambda: any(one._found for one in writing))
    os.close(holder)
    found = [one.result() for one in writing]
    # Two of them if the kernel cuts none short, since their heads count.
    assert found.count(errno.EAGAIN) in (1, 2)
    assert found.count(errno.EPIPE) == 17 - found.count(errno.EAGAIN)
    for fd in outs:
        os.close(fd)


def test_who_writes_to_nobody_is_killed(fifo: Fifo) -> None:
    fd = os.open(fifo.far, os.O_RDONLY | os.O_NONBLOCK)
    script = f"exec 5>{fifo.far}; read go; exec cat /dev/zero >&5"
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, restore_signals=True) as program:
        assert program.stdin is not None
        until(lambda: not reads_end(fd))
        os.close(fd)
        program.stdin.write(b"\n")
        program.stdin.close()
        assert program.wait(10) == -signal.SIGPIPE


def reads_end(fd: int) -> bool:
    try:
        return os.read(fd, 1) == b""
    except BlockingIOError:
        return False


INTERRUPTED = """
import os, signal, sys
def caught(*_):
    if sys.argv[3] == "read":
        raise TimeoutError
signal.signal(signal.SIGALRM, caught)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    fd = os.open(sys.argv[1], int(sys.argv[2]))
    print(os.read(fd, 10) if sys.argv[3] == "read" else os.write(fd, bytes(100_000)))
except TimeoutError:
    print("interrupted")
"""


def test_a_signal_ends_the_waiting_and_takes_nothing(fifo: Fifo) -> None:
    def run(flags: int, what: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", INTERRUPTED, fifo.far, str(flags), what], capture_output=True, text=True, check=True
        ).stdout.strip()

    for flags in (os.O_RDONLY, os.O_WRONLY):
        assert run(flags, "read") == "interrupted", "in open"
    fd = os.open(fifo.near, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(fd, 1) == b"", "the opens that were given up have left no writer"
    out = os.open(fifo.near, os.O_WRONLY)
    assert run(os.O_RDONLY, "read") == "interrupted"
    os.write(out, b"kept")
    assert os.read(fd, 10) == b"kept"
    assert run(os.O_WRONLY, "write") == "65536", "what had gone before the signal"
    assert len(os.read(fd, 100_000)) == 65536
    for descriptor in (out, fd):
        os.close(descriptor)


def test_many_readers_cost_no_threads(mount: Served, fifo: Fifo) -> None:
    holder = os.open(fifo.near, os.O_RDWR)
    readers = [os.open(fifo.far, os.O_RDONLY | os.O_NONBLOCK) for _ in range(64)]
    for fd in readers:
        os.set_blocking(fd, True)
    threads = len(os.listdir(f"/proc/{mount.process.pid}/task"))
    reading = [Background(lambda fd=fd: os.read(fd, 1)) for fd in readers]  # type: ignore[misc]  # the default is the type
    assert not reading[-1].over
    assert len(os.listdir(f"/proc/{mount.process.pid}/task")) == threads
    assert far(mount, "/dev/null").read_bytes() == b"", "others go on"
    os.write(holder, bytes(range(64)))
    assert sorted(bytes(read.result())[0] for read in reading) == list(range(64))
    for fd in (*readers, holder):
        os.close(fd)


def test_a_terminal(terminal: tuple[int, Path]) -> None:
    master, path = terminal
    fd = os.open(path, os.O_RDWR)
    assert os.isatty(fd)
    # A line at a time, echoed, as the far line discipline does it.
    reading = Background(lambda: os.read(fd, 100))
    os.write(master, b"hel")
    assert not reading.over
    os.write(master, b"lo\n")
    assert reading.result() == b"hello\n"
    assert os.read(master, 100) == b"hello\r\n"
    assert os.write(fd, b"x\n") == 2
    assert os.read(master, 100) == b"x\r\n"
    tty.setraw(fd, termios.TCSAFLUSH)
    assert termios.tcgetattr(fd) == termios.tcgetattr(master)
    assert not termios.tcgetattr(master)[3] & termios.ECHO
    termios.tcsetwinsize(fd, (33, 44))
    assert termios.tcgetwinsize(master) == (33, 44)
    termios.tcdrain(fd)
    os.write(master, b"old")
    termios.tcflush(fd, termios.TCIFLUSH)
    os.set_blocking(fd, False)
    with pytest.raises(BlockingIOError):
        os.read(fd, 10)
    until(lambda: select.select([], [fd], [], 0)[1] == [fd])
    assert select.select([fd], [], [], 0)[0] == []
    waiting = Background(lambda: select.select([fd], [], [], 10)[0])
    assert not waiting.over
    os.write(master, b"new")
    assert waiting.result() == [fd]
    assert os.read(fd, 10) == b"new"
    exclusive = array.array("i", [0])
    fcntl.ioctl(fd, 0x540C)
    fcntl.ioctl(fd, 0x80045440, exclusive)
    assert exclusive[0] == 1
    # Not at home, either, unless it is the caller's controlling terminal; and what would make it one is refused.
    for number in (termios.TIOCGPGRP, termios.TIOCSCTTY, termios.TIOCSPGRP):
        with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
            fcntl.ioctl(fd, number, array.array("i", [0]))
    os.set_blocking(fd, True)
    reading = Background(lambda: os.read(fd, 10))
    assert not reading.over
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    os.close(master)
    assert reading.result() in (b"", errno.EIO), "hung up"
    assert poll.poll(10_000)[0][1] & select.POLLHUP
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.write(fd, b"x")
    os.close(fd)


def test_reads_that_wait_for_so_much_or_so_long(terminal: tuple[int, Path]) -> None:
    master, path = terminal
    fd = os.open(path, os.O_RDWR)
    tty.setraw(fd)

    def set_rule(least: int, tenths: int) -> None:
        attributes = termios.tcgetattr(fd)
        attributes[6][termios.VMIN], attributes[6][termios.VTIME] = least, tenths
        termios.tcsetattr(fd, termios.TCSANOW, attributes)

    def timed(size: int) -> tuple[bytes, bool]:
        begin = time.monotonic()
        return os.read(fd, size), time.monotonic() - begin >= 0.1

    set_rule(0, 0)
    assert os.read(fd, 10) == b""
    set_rule(0, 1)
    assert timed(10) == (b"", True)
    reading = Background(lambda: os.read(fd, 10))
    os.write(master, b"x")
    assert reading.result() == b"x"
    set_rule(3, 0)
    os.write(master, b"ab")
    reading = Background(lambda: os.read(fd, 10))
    assert not reading.over
    os.write(master, b"cd")
    assert reading.result() == b"abcd"
    # A read of less than VMIN waits for that.
    reading = Background(lambda: os.read(fd, 2))
    assert not reading.over
    os.write(master, b"ef")
    assert reading.result() == b"ef"
    set_rule(3, 1)
    reading = Background(lambda: timed(10))
    assert not reading.over
    os.write(master, b"gh")
    assert reading.result() == (b"gh", True)
    set_rule(200, 0)
    os.write(master, b"left")
    reading = Background(lambda: os.read(fd, 300))
    assert not reading.over
    os.close(master)
    assert reading.result() in (b"left", b"", errno.EIO)
    assert Background(lambda: os.read(fd, 300)).result() in (b"", errno.EIO)
    os.close(fd)


def test_a_new_terminal_of_the_other_machine(mount: Served) -> None:
    """/dev/ptmx there: the pair is that machine's."""
    master = os.open(far(mount, "/dev/ptmx"), os.O_RDWR)
    number = array.array("I", [0])
    fcntl.ioctl(master, 0x80045430, number)
    fcntl.ioctl(master, 0x40045431, array.array("i", [0]))
    slave = os.open(f"/dev/pts/{number[0]}", os.O_RDWR | os.O_NOCTTY)
    os.write(slave, b"x\n")
    assert os.read(master, 10) == b"x\r\n"
    termios.tcsetwinsize(master, (7, 8))
    assert termios.tcgetwinsize(slave) == (7, 8)
    os.close(master)
    until(lambda: bool(select.select([slave], [], [], 0)[0]))
    os.close(slave)


BAD_POINTERS = """
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <termios.h>
#include <unistd.h>
int main(int count, char **arguments) {
    int fd = open(arguments[1], O_RDWR);
    char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct winsize window = {1, 1, 1, 1};
    munmap(page + 4096, 4096);
    printf("%d", isatty(fd));
    ioctl(fd, TIOCGWINSZ, 0x10);
    printf(" %d", errno);
    errno = 0;
    ioctl(fd, TIOCGWINSZ, page + 4096 - 4);
    printf(" %d", errno);
    errno = 0;
    ioctl(fd, TIOCSWINSZ, page + 4096);
    printf(" %d", errno);
    mprotect(page, 4096, PROT_READ);
    errno = 0;
    ioctl(fd, TIOCGWINSZ, page);
    printf(" %d", errno);
    errno = 0;
    ioctl(fd, TIOCGWINSZ, &window);
    printf(" %d %d\\n", errno, window.ws_row);
    return 0;
}
"""


def test_addresses_that_a_program_must_not_give(mount: Served, terminal: tuple[int, Path], tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text(BAD_POINTERS)
    subprocess.run(["cc", "-w", "-o", tmp_path / "bad", source], check=True)
    said = subprocess.run([tmp_path / "bad", terminal[1]], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["1", *[str(errno.EFAULT)] * 4, "0", "0"]
    # Memory that has to be read from this very mount first, by the process that copies.
    (tmp_path / "page").write_bytes(b"\x09\0\x08\0" + bytes(4092))
    mapped = (
        "import ctypes, mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); f = open(sys.argv[2], 'r+b'); "
        "m = mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE); at = ctypes.addressof(ctypes.c_char.from_buffer(m)); "
        "print(ctypes.CDLL(None).ioctl(fd, ctypes.c_ulong(0x5414), ctypes.c_void_p(at)), *os.get_terminal_size(fd))"
    )
    command: list[str | Path] = [sys.executable, "-c", mapped, terminal[1], far(mount, tmp_path / "page")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == ["0", "8", "9"]


def test_what_the_kernel_cannot_wait_for(mount: Served) -> None:
    """Threads do it: disks, and devices without poll."""

    def found(path: Path) -> bytes | int | None:
        try:
            with open(path, "rb", buffering=0) as disk:
                return os.pread(disk.fileno(), 8192, 512)
        except OSError as error:
            return error.errno

    for name in os.listdir("/sys/block"):
        assert found(Path("/dev", name)) == found(far(mount, Path("/dev", name)))
    latency = far(mount, "/dev/cpu_dma_latency")
    if latency.exists():
        fd = os.open(latency, os.O_RDWR)
        assert len(os.read(fd, 4)) == 4
        assert os.write(fd, b"\x10\x27\0\0") == 4
        assert select.select([fd], [fd], [], 0)[:2] == ([fd], [fd])
        os.close(fd)


def test_a_fifo_made_through_the_mount(mount: Served, tmp_path: Path) -> None:
    os.mkfifo(far(mount, tmp_path / "made"))
    script = (
        f"echo hello >{far(mount, tmp_path)}/made & cat {tmp_path}/made; wait; echo back >{tmp_path}/made & cat {far(mount, tmp_path)}/made"
    )
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=20).stdout == "hello\nback\n"
