"""Devices of a manager used by unmodified programs through a real mount: waiting, O_NONBLOCK, select, poll and epoll, ioctl."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resmgr.testing.devices import CLEAR, GET_ROOM, SET_ROOM, SWAP
from resmgr.testing.fusemount import Served
from tests.resmgr.waiting import until

pytestmark = pytest.mark.priv

Serve = Callable[..., Served]


@pytest.fixture
def mount(serve: Serve) -> Served:
    return serve(Path("-"))


@pytest.fixture
def pipe(mount: Served) -> Iterator[int]:
    fd = os.open(mount.path / "pipe", os.O_RDWR)
    yield fd
    os.close(fd)


def later(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(0.05, call)
    thread.start()
    return thread


def arms(mount: Served) -> int:
    told = mount.order("waits")
    assert isinstance(told, int)
    return told


def test_a_read_waits_and_a_signal_ends_it(mount: Served, pipe: int) -> None:
    thread = later(lambda: mount.order("put", data="hello"))
    assert os.read(pipe, 100) == b"hello"
    thread.join()
    reader = subprocess.Popen([*mount.inside, "cat", str(mount.mountpoint / "pipe")], stdout=subprocess.PIPE)
    until(lambda: arms(mount) == 1)
    reader.send_signal(signal.SIGINT)
    assert reader.wait(5) == -signal.SIGINT
    reader.communicate()
    until(lambda: arms(mount) == 0)


def test_nonblocking(mount: Served, pipe: int) -> None:
    os.set_blocking(pipe, False)
    with pytest.raises(BlockingIOError):
        os.read(pipe, 10)
    assert os.write(pipe, bytes(99)) == 16
    with pytest.raises(BlockingIOError):
        os.write(pipe, b"x")
    assert os.read(pipe, 99) == bytes(16)
    # What the descriptor says now counts, not how it was opened.
    os.set_blocking(pipe, True)
    thread = later(lambda: mount.order("put", data="x"))
    assert os.read(pipe, 10) == b"x"
    thread.join()


def by_select(fd: int, timeout: float) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


def by_poll(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    found = poll.poll(timeout * 1000)
    assert found in ([], [(fd, select.POLLIN)])
    return bool(found)


def by_epoll(fd: int, timeout: float) -> bool:
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN)
        return bool(epoll.poll(timeout))


@pytest.mark.parametrize("wait", [by_select, by_poll, by_epoll])
def test_waiting_for_input(mount: Served, pipe: int, wait: Callable[[int, float], bool]) -> None:
    assert not wait(pipe, 0.02)
    begin = time.monotonic()
    thread = later(lambda: mount.order("put", data="hello"))
    assert wait(pipe, 10)
    assert time.monotonic() - begin < 5
    thread.join()
    assert wait(pipe, 0), "level-triggered"
    assert os.read(pipe, 10) == b"hello"
    assert not wait(pipe, 0)


def test_room_and_urgent_news(mount: Served, pipe: int) -> None:
    poll = select.poll()
    poll.register(pipe, select.POLLOUT | select.POLLPRI)
    assert poll.poll(0) == [(pipe, select.POLLOUT)]
    os.write(pipe, bytes(16))
    assert poll.poll(0) == []
    thread = later(lambda: mount.order("urgent"))
    assert poll.poll(10_000) == [(pipe, select.POLLPRI)]
    thread.join()
    other = os.open(mount.path / "pipe", os.O_RDONLY)
    thread = later(lambda: os.read(other, 99))
    poll.modify(pipe, select.POLLOUT)
    assert poll.poll(10_000) == [(pipe, select.POLLOUT)]
    thread.join()
    os.close(other)


def test_one_epoll_for_many_and_edges(mount: Served) -> None:
    descriptors = [os.open(mount.path / "pipe", os.O_RDONLY | os.O_NONBLOCK) for _ in range(50)]
    with select.epoll() as epoll:
        for fd in descriptors:
            epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        assert epoll.poll(0.01) == []
        mount.order("put", data="x")
        seen: set[int] = set()

        def all_seen() -> bool:
            seen.update(fd for fd, _ in epoll.poll(1))
            return len(seen) == 50

        until(all_seen)
        assert os.read(descriptors[0], 9) == b"x"
    for fd in descriptors:
        os.close(fd)
    until(lambda: arms(mount) == 0)


def test_files_are_ready_and_closing_ends_the_waiting(mount: Served, pipe: int) -> None:
    with open(mount.path / "value", "rb") as value:
        assert select.select([value], [], [], 0)[0] == [value]
    second = os.open(mount.path / "pipe", os.O_RDONLY)
    assert not by_poll(second, 0.01)
    until(lambda: arms(mount) == 1)
    os.close(second)
    until(lambda: arms(mount) == 0)


def test_the_end_of_the_server_wakes(mount: Served, pipe: int) -> None:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    thread = later(lambda: mount.order("gone"))
    assert poll.poll(10_000) == [(pipe, select.POLLERR)]
    thread.join()
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        os.read(pipe, 1)


def test_ioctl(mount: Served, pipe: int) -> None:
    assert struct.unpack("I", fcntl.ioctl(pipe, GET_ROOM.number, bytes(4))) == (16,)
    fcntl.ioctl(pipe, SET_ROOM.number, struct.pack("I", 99))
    assert struct.unpack("I", fcntl.ioctl(pipe, GET_ROOM.number, bytes(4))) == (99,)
    assert struct.unpack("HH", fcntl.ioctl(pipe, SWAP.number, struct.pack("HH", 1, 2))) == (2, 1)
    os.write(pipe, b"abc")
    fcntl.ioctl(pipe, CLEAR.number)
    os.set_blocking(pipe, False)
    with pytest.raises(BlockingIOError):
        os.read(pipe, 1)
    for number in (0x5401, 0x80047163, 0x7163):
        with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
            fcntl.ioctl(pipe, number, bytes(64))
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        fcntl.ioctl(pipe, SET_ROOM.number, struct.pack("I", 0))
    assert not os.isatty(pipe)


def test_a_manager_can_be_a_terminal(mount: Served) -> None:
    fd = os.open(mount.path / "screen", os.O_RDWR)
    assert os.isatty(fd)
    assert tuple(os.get_terminal_size(fd)) == (80, 24)
    termios.tcsetwinsize(fd, (3, 4))
    assert termios.tcgetwinsize(fd) == (3, 4)
    settings = termios.tcgetattr(fd)
    settings[3] = termios.ECHO
    termios.tcsetattr(fd, termios.TCSANOW, settings)
    assert termios.tcgetattr(fd) == settings
    os.close(fd)


WAIT_IN_C = """
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>
int main(int count, char **arguments) {
    char data[64];
    unsigned room = 0;
    int fd = open(arguments[1], O_RDWR | O_NONBLOCK);
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    if (read(fd, data, sizeof data) != -1 || ioctl(fd, _IOR('q', 1, unsigned), &room)) return 1;
    printf("%u %d\\n", room, poll(&wait, 1, 0));
    fflush(stdout);
    if (poll(&wait, 1, 10000) != 1) return 2;
    printf("%.*s\\n", (int)read(fd, data, sizeof data), data);
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_program_in_c(mount: Served, tmp_path: Path) -> None:
    source = tmp_path / "wait.c"
    source.write_text(WAIT_IN_C)
    subprocess.run(["cc", "-o", tmp_path / "wait", source], check=True)
    command = [*mount.inside, str(tmp_path / "wait"), str(mount.mountpoint / "pipe")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "16 0\n"
        mount.order("put", data="hello")
        assert program.stdout.readline() == "hello\n"
    assert program.returncode == 0
