"""The fork server: what it starts cannot be told from what a fork of the daemon starts, and belongs to the daemon."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmgr.access import MappedUser
from resmgr.procmgr import forkserver, launch
from resmgr.procmgr.forking import ForkServer
from resmgr.procmgr.launch import Account, Launched, Terms
from resmgr.procmgr.message import SPAWN_PTY, SPAWN_STDERR, SPAWN_STDIN, SPAWN_STDOUT, Scheduling, Spawn

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root"),
]
NOBODY = Account(MappedUser(65534, 65534, (65534, 7)), b"nobody", b"/no/such/home", b"/bin/sh")
FACTS = b"""
id -u; id -g; id -G; umask; pwd; env | grep -v ^_= | grep -v ^OLDPWD= | sort; ulimit -S -a; ulimit -H -a
grep -E "^(Sig|Cap|Uid|Gid|NoNewPrivs|Seccomp)" /proc/$$/status | grep -v SigQ
cat /proc/$$/oom_score_adj
read pid name state parent pgrp session tty rest < /proc/$$/stat
test $pgrp = $$ && test $session = $$ && echo leads; test $tty != 0 && echo tty; ps -o ni=,cls= -p $$
for fd in /proc/$$/fd/*; do echo "${fd##*/}"; done | sort -n | head -3; readlink /proc/$$/ns/mnt
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    assert server.ready()
    yield server
    server.close()


def end(launched: Launched) -> tuple[bytes, bytes, int]:
    """Standard output, standard error, and how it ended, once all is said. It is our child, so we can wait for it."""
    if launched.stdin >= 0:
        os.close(launched.stdin)
    _, status = os.waitpid(launched.pid, 0)
    said = []
    for fd in (launched.stdout, launched.stderr):
        data = b""
        if fd >= 0:
            # EIO: a terminal whose program has ended.
            with contextlib.suppress(OSError):
                while part := os.read(fd, 65536):
                    data += part
            os.close(fd)
        said.append(data)
    os.close(launched.pidfd)
    return said[0], said[1], os.waitstatus_to_exitcode(status)


def run(server: ForkServer | None, spawn: Spawn, account: Account = NOBODY) -> tuple[bytes, bytes, int]:
    return end(launch.start(spawn, account, Terms((1024, 4096)), server))


def shell(script: bytes, **more: object) -> Spawn:
    return Spawn((b"/bin/sh", b"-c", script), (b"A=1", b"LD_PRELOAD=/tmp/no.so"), SPAWN_STDOUT | SPAWN_STDERR)._replace(**more)  # type: ignore[arg-type]  # field names are checked by the call


@pytest.mark.parametrize(
    "spawn",
    [
        shell(FACTS),
        shell(FACTS, directory=b"/usr", umask=0o077),
        shell(FACTS, nice=5, limits=((4, 0), (7, 77), (3, 1 << 20), (9, (1 << 64) - 1))),
        shell(FACTS, scheduling=Scheduling.IDLE),
        shell(FACTS, scheduling=Scheduling.BATCH, nice=1),
    ],
    ids=["plain", "directory", "limits", "idle", "batch"],
)
def test_programs_cannot_tell_who_forked(server: ForkServer, spawn: Spawn) -> None:
    ours, theirs = run(server, spawn), run(None, spawn)
    assert ours == theirs
    assert ours[0].startswith(b"65534\n65534\n65534 7\n")
    assert b"leads" in ours[0]
    assert b"LD_PRELOAD" not in ours[0]


def test_nor_with_a_terminal(server: ForkServer) -> None:
    spawn = shell(FACTS + b"tty; stty size; cat <&1 >/dev/null & kill $!", flags=SPAWN_PTY, rows=33, columns=44)
    said = [text.replace(b"\r\n", b"\n").partition(b"/dev/pts")[0] for text, _, _ in (run(server, spawn), run(None, spawn))]
    assert said[0] == said[1]
    assert b"\ntty\n" in said[0]


def test_failures_are_said_as_a_shell_says_them(server: ForkServer, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    plain = tmp_path / "plain"
    plain.write_bytes(b"echo plain $1\nexit 3\n")
    plain.chmod(0o755)
    for parent in tmp_path.parents:
        if not os.stat(parent).st_mode & 1:
            os.chmod(parent, os.stat(parent).st_mode | 0o011)
    for spawn, said, words, status in (
        (Spawn((b"no-such",)), b"", b"not found", 127),
        (Spawn((b"/no/such",)), b"", b"not found", 127),
        (Spawn((b"/etc/passwd",)), b"", b"ermission denied", 126),
        (Spawn((b"true",), directory=b"/no/such"), b"", b"/no/such", 126),
        (Spawn((b"true",), (), SPAWN_STDERR, terminal=b"/dev/null"), b"", b"/dev/null", 126),
        (Spawn((os.fsencode(plain), b"words")), b"plain words\n", b"", 3),
    ):
        output, errors, code = run(server, spawn)
        assert (output, code) == (said, status), errors
        assert words in errors


def test_an_identity_that_cannot_be_is_an_errno(server: ForkServer) -> None:
    stranger = Account(MappedUser(65534, 65534, tuple(range(70000))), b"nobody", b"/", b"/bin/sh")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        run(server, Spawn((b"true",)), stranger)
    assert caught.value.errno == errno.EINVAL
    assert set(os.listdir("/proc/self/fd")) == before
    assert run(server, Spawn((b"true",)))[2] == 0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    states = [Path(f"/proc/{child}/stat").read_text().split()[2] for child in children]
    assert "Z" not in states, "the child that failed was not reaped"


def test_one_that_was_killed_is_started_again(server: ForkServer) -> None:
    process = server._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(OSError):
        run(server, Spawn((b"true",)))
    assert run(server, shell(b"exit 4"))[2] == 4


def test_without_it_programs_start_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    server = ForkServer()
    assert not server.ready()
    assert run(server, shell(b"id -u"))[0] == b"65534\n"


def test_it_ends_with_its_socket_and_programs_stay(server: ForkServer) -> None:
    other = ForkServer()
    assert other.ready()
    launched = launch.start(Spawn((b"cat",), (), SPAWN_STDIN | SPAWN_STDOUT), NOBODY, Terms((1024, 4096)), other)
    other.close()
    os.write(launched.stdin, b"still")
    assert end(launched) == (b"still", b"", 0)


def test_it_loads_only_what_it_needs() -> None:
    heavy = ("typing", "re", "subprocess")
    code = f"import sys; exec(open(sys.argv[1]).read(), dict(__name__='x')); print([m for m in {heavy} if m in sys.modules])"
    command = [sys.executable, "-I", "-S", "-c", code, forkserver.__file__]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_signals_reach_it_through_the_daemon_only(server: ForkServer) -> None:
    launched = launch.start(Spawn((b"sleep", b"60"), (), SPAWN_STDIN), NOBODY, Terms((1024, 4096)), server)
    signal.pidfd_send_signal(launched.pidfd, signal.SIGTERM)
    assert end(launched)[2] == -signal.SIGTERM
