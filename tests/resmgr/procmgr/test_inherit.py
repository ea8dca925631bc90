"""What a program gets of the process that starts it: a stand-in for the daemon is given every advantage, and must keep them for itself."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import subprocess
import sys

import pytest

from resmgr.access import MappedUser
from resmgr.procmgr.inherit import catch_ignored_signals, spared_from_oom
from resmgr.procmgr.launch import SCRIPT, Launched, Launcher, Terms
from resmgr.procmgr.message import SPAWN_STDOUT, UMASK_DEFAULT, Spawn

OPEN_FILES = 321
RAISED = 8
"""By how much the stand-in has raised its hard limit."""
SHOW = """ulimit -Sn; ulimit -Hn; nice; cat /proc/self/oom_score_adj; umask
sed -n 's/^\\(SigIgn\\|SigBlk\\|CapAmb\\|CapInh\\):[[:space:]]*//p' /proc/self/status
awk '{print $41}' /proc/self/stat; grep Cpus_allowed_list /proc/self/status | cut -f2"""


def spawn_here() -> list[str]:
    """As the daemon does it: lines that the program printed."""
    catch_ignored_signals()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0)
    launcher = Launcher()
    results: queue.SimpleQueue[Launched | Exception] = queue.SimpleQueue()
    user = MappedUser(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    spawn = Spawn((b"/bin/sh", b"-c", SHOW.encode()), flags=SPAWN_STDOUT, umask=UMASK_DEFAULT, directory=b"/")
    launcher.launch(user, spawn, Terms((soft, hard - RAISED)), lambda: None, results.put)
    launched = results.get(timeout=20)
    if isinstance(launched, Exception):
        raise launched
    os.set_blocking(launched.stdout, True)
    with os.fdopen(launched.stdout) as output:
        lines = output.read().split("\n")
    os.waitpid(launched.pid, 0)
    launcher.close(5)
    return lines


@pytest.mark.priv
def test_advantages_end_with_the_daemon_and_restrictions_go_on() -> None:
    cpu = min(os.sched_getaffinity(0))
    resource_hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def advantages() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, resource_hard))
        os.setpriority(os.PRIO_PROCESS, 0, -7)
        with contextlib.suppress(PermissionError), open("/proc/self/oom_score_adj", "w") as file:
            # Of root without CAP_SYS_RESOURCE the kernel does not take it; the script is tried below in any case.
            file.write("-500")
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2, signal.SIGTERM))
        os.sched_setaffinity(0, {cpu})

    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=60, check=False, preexec_fn=advantages
    )  # in the child of a test: nothing else of this process runs threads
    assert done.returncode == 0, done.stderr
    own, lines = json.loads(done.stdout)
    assert own["nice"] == -7, "the stand-in has not got what it should keep for itself"
    soft, hard, nice, oom, umask, blocked, ignored, inheritable, ambient, policy, cpus = lines[:11]
    assert (soft, hard) == (str(OPEN_FILES), str(resource_hard - RAISED))
    assert (nice, oom, umask, policy) == ("0", "0", "0022", "0")
    # 32 and 33 are the C library's own.
    assert int(ignored, 16) & ~(3 << 31) == 0
    assert int(blocked, 16) == int(ambient, 16) == 0
    assert inheritable
    assert cpus == str(cpu), "a daemon that is confined confines its programs"


def test_the_script_gives_up_protection_from_the_out_of_memory_killer() -> None:
    def other_score() -> None:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("300")

    for flags, score in ((b"", b"300"), (b"o", b"0")):
        done = subprocess.run(
            [b"/bin/sh", b"-c", SCRIPT, b"qnet", flags, b"/", b"100", b"/bin/cat", b"/bin/cat", b"/proc/self/oom_score_adj"],
            stdout=subprocess.PIPE,
            check=True,
            preexec_fn=other_score,  # no thread of this process does anything
        )
        assert done.stdout.strip() == score


@pytest.mark.priv
def test_a_daemon_that_is_worse_off_has_programs_that_are_no_better() -> None:
    def burdens() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, 5)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("300")

    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=60, check=False, preexec_fn=burdens)
    assert done.returncode == 0, done.stderr
    own, lines = json.loads(done.stdout)
    assert own == {"nice": 5, "spared": False}
    assert lines[2:4] == ["5", "300"]


if __name__ == "__main__":
    own = {"nice": os.getpriority(os.PRIO_PROCESS, 0), "spared": spared_from_oom()}
    print(json.dumps([own, spawn_here()]))
