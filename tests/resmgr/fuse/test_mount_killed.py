"""A daemon that is killed while the kernel waits to do what it was told: nobody waits any longer than dying takes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from resmgr.testing.fusemount import Served
from tests.resmgr.waiting import until

pytestmark = pytest.mark.priv

Serve = Callable[..., Served]
SIZE = 1 << 20
"""More than an OPEN brings."""
READER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print(0, flush=True)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
for line in sys.stdin:
    try:
        print(len(os.pread(fd, 4096, int(line))), flush=True)
    except OSError as error:
        print(-error.errno, flush=True)
"""


def told(process: subprocess.Popen[bytes]) -> int:
    """What it says, soon."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 10.0)[0], "it still waits"
    return int(process.stdout.readline())


@contextmanager
def reader(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that reads 4096 bytes at each place that it is told, and says how many there were, or what was wrong."""
    with subprocess.Popen([sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert told(process) == 0
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[bytes], place: int) -> None:
    assert process.stdin is not None
    process.stdin.write(b"%d\n" % place)
    process.stdin.flush()


@contextmanager
def aborted_at_last(served: Served) -> Iterator[None]:
    """Whatever is found, nothing may hang on it for ever."""
    namespace = os.open(f"/proc/{served.process.pid}/ns/mnt", os.O_RDONLY)
    try:
        yield
    finally:
        subprocess.run(
            ["nsenter", f"--mount=/proc/self/fd/{namespace}", "umount", "-f", "-l", str(served.mountpoint)],
            pass_fds=[namespace],
            stderr=subprocess.DEVNULL,
            check=False,
        )
        os.close(namespace)


def in_the_kernel(pid: int) -> bool:
    """Whether a thread of the process waits deaf to signals."""
    return any((thread / "stat").read_text().rpartition(")")[2].split()[0] == "D" for thread in Path(f"/proc/{pid}/task").iterdir())


@pytest.fixture(params=["drop", "expire"])
def order(request: pytest.FixtureRequest) -> str:
    """How pages go: by who opens the file, or by a notification."""
    return str(request.param)


@contextmanager
def waiting_for_a_read(serve: Serve, order: str) -> Iterator[tuple[Served, list[int], subprocess.Popen[bytes]]]:
    """A mount whose server answers no READ, the helpers of its daemon, one of which waits for such a READ, and the program that reads."""
    served = serve()
    served.order("write", path="file", data="x" * SIZE)
    until(lambda: len(helpers_of(served)) == 2)
    helpers = helpers_of(served)
    with aborted_at_last(served), reader(served.path / "file") as program:
        served.fault(operation="read", hang=True, deaf=True)
        ask(program, SIZE // 2)
        until(lambda: served.order("status") != [])
        served.order(order, path="/file")
        until(lambda: any(in_the_kernel(helper) for helper in helpers))
        assert not in_the_kernel(served.process.pid)
        yield served, helpers, program


def helpers_of(served: Served) -> list[int]:
    found = served.order("helpers")
    assert isinstance(found, list)
    return found


def all_gone(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{process}").exists() for process in processes)


def ask_unseen(served: Served, program: subprocess.Popen[bytes]) -> None:
    """It asks a daemon that does not look."""
    served.process.send_signal(signal.SIGSTOP)
    ask(program, SIZE // 4 * 3)
    until(lambda: "filemap_get_pages" in Path(f"/proc/{program.pid}/stack").read_text())


def test_a_read_that_nobody_will_answer_holds_up_nobody(serve: Serve, order: str) -> None:
    with waiting_for_a_read(serve, order) as (served, helpers, program):
        served.process.send_signal(signal.SIGKILL)
        assert told(program) < 0
        served.process.wait(10)
        until(lambda: all_gone(helpers))


def test_nor_does_one_that_nobody_had_read_yet(serve: Serve, order: str) -> None:
    with waiting_for_a_read(serve, order) as (served, helpers, program), reader(served.path / "file") as second:
        ask_unseen(served, second)
        served.process.send_signal(signal.SIGKILL)
        assert told(program) < 0
        assert told(second) < 0
        until(lambda: all_gone(helpers))


def test_pages_are_dropped_and_no_server_hears_of_it(serve: Serve) -> None:
    served = serve()
    served.order("write", path="file", data="x" * SIZE)
    until(lambda: len(helpers_of(served)) == 2)
    with reader(served.path / "file") as program:
        for _ in range(2):
            ask(program, SIZE // 2)
            assert told(program) == 4096
        served.order("messages")
        for _ in range(3):
            served.order("drop", path="/file")
            until(lambda: served.order("telling") == 0)
            ask(program, SIZE // 2)
            assert told(program) == 4096
        messages = served.order("messages")
        assert isinstance(messages, dict)
        assert (messages["read"], messages.get("open")) == (3, None)
    assert len(helpers_of(served)) == 2
    assert served.order("unmount") is None


def test_without_the_process_a_notification_drops_them(serve: Serve) -> None:
    served = serve()
    served.order("write", path="file", data="x" * SIZE)
    until(lambda: len(helpers_of(served)) == 2)
    with reader(served.path / "file") as program:
        for left in (1, 0):
            os.kill(helpers_of(served)[-1], signal.SIGKILL)
            until(lambda left=left: len(helpers_of(served)) == left)  # type: ignore[misc]
            ask(program, SIZE // 2)
            assert told(program) == 4096
            served.order("messages")
            served.order("drop", path="/file")
            until(lambda: served.order("telling") == 0)
            ask(program, SIZE // 2)
            assert told(program) == 4096
            messages = served.order("messages")
            assert isinstance(messages, dict)
            assert messages["read"] == 1


def test_nor_when_all_are_killed_as_with_a_machine(serve: Serve) -> None:
    """Read-ahead that nobody had read yet belongs to no program that could take it back."""
    with waiting_for_a_read(serve, "drop") as (served, helpers, program), reader(served.path / "file") as second:
        ask_unseen(served, second)
        for process in *helpers, served.process.pid, program.pid, second.pid:
            os.kill(process, signal.SIGKILL)
        until(lambda: all_gone(helpers))


def test_processes_that_are_stopped_are_replaced(serve: Serve) -> None:
    """What they were to tell the kernel it is told all the same."""
    served = serve(entry_valid=60, attr_valid=60)
    served.order("write", path="file", data="x" * SIZE)
    until(lambda: len(helpers_of(served)) == 2)
    helpers = helpers_of(served)
    assert (served.path / "file").stat().st_size == SIZE
    with reader(served.path / "file") as program:
        ask(program, SIZE // 2)
        assert told(program) == 4096
        for process in helpers:
            os.kill(process, signal.SIGSTOP)
        served.order("messages")
        served.order("drop", path="/file")
        served.order("invalidate", path="file")
        assert served.order("telling") == 2

        until(lambda: served.order("telling") == 0)
        ask(program, SIZE // 2)
        assert told(program) == 4096
        assert (served.path / "file").stat().st_size == SIZE
        messages = served.order("messages")
        assert isinstance(messages, dict)
        assert (messages["read"], messages["lookup"]) == (1, 1)
    until(lambda: all_gone(helpers))
    until(lambda: len(helpers_of(served)) == 2)
    statistics = served.order("statistics")
    assert isinstance(statistics, dict)
    assert statistics["events"]["notifiers_replaced"] == 2
