"""What io-pkt -U and -P make of a process: asked of the kernel, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stack.rights import CAPABILITIES, Scheduling, User, parse_capability, parse_group, parse_scheduling, parse_user

SHOW = """
import os, sys, threading
from stack.rights import User, become
keep = sys.argv[1].split(",") if sys.argv[1] else []
become(User(4242, 4343, (4343, 4444)), keep)
def show():
    for line in open("/proc/thread-self/status"):
        if line.startswith(("Uid", "Gid", "Groups", "Cap")):
            print(line.strip().replace("\\t", " "))
show()
thread = threading.Thread(target=show)
thread.start()
thread.join()
try:
    os.setuid(0)
    print("root again")
except PermissionError:
    print("no way back")
sys.stdout.flush()
os.execvp("grep", ["grep", "CapEff", "/proc/self/status"])
"""


@pytest.mark.priv
@pytest.mark.parametrize("keep", [(), ("NET_RAW",), ("NET_RAW", "BPF")])
def test_a_process_becomes_somebody_else_for_good(keep: tuple[str, ...]) -> None:
    shown = subprocess.run([sys.executable, "-c", SHOW, ",".join(keep)], capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = sum(1 << CAPABILITIES.index(one) for one in keep)
    every = [
        "Uid: 4242 4242 4242 4242",
        "Gid: 4343 4343 4343 4343",
        "Groups: 4343 4444",
        "CapInh: 0000000000000000",
        f"CapPrm: {wanted:016x}",
        f"CapEff: {wanted:016x}",
        f"CapBnd: {wanted:016x}",
        "CapAmb: 0000000000000000",
    ]
    assert shown[:8] == every
    assert shown[8:16] == every, "threads that are started later are the same"
    assert shown[16] == "no way back"
    assert shown[17] == "CapEff:\t0000000000000000", "a program that it starts has nothing"


@pytest.mark.host
def test_the_list_of_capabilities_is_the_kernels() -> None:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        assert int(file.read()) < len(CAPABILITIES), "a capability that has no name here would stay in the bounding set"
    assert CAPABILITIES.index("NET_RAW") == 13
    assert CAPABILITIES.index("SYS_NICE") == 23
    assert CAPABILITIES.index("CHECKPOINT_RESTORE") == 40


@pytest.mark.host
def test_an_ordinary_user_cannot_become_another() -> None:
    code = "import os; from stack.rights import User, become; os.setuid(4242); become(User(5, 5), ())"
    if os.geteuid() != 0:
        code = code.replace("os.setuid(4242); ", "")
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "cannot become user 5 with group 5: Operation not permitted; -U needs root" in failed.stderr


SCHEDULE = """
import os, sys, threading
from stack.rights import parse_scheduling, schedule
schedule(parse_scheduling(sys.argv[1]))
def show():
    print(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK, os.sched_getparam(0).sched_priority, os.getpriority(os.PRIO_PROCESS, 0))
show()
thread = threading.Thread(target=show)
thread.start()
thread.join()
"""


@pytest.mark.priv
@pytest.mark.parametrize(
    ("text", "here", "thread"),
    [("nice:7", "0 0 7", "0 0 7"), ("5", f"{os.SCHED_RR} 5 0", "0 0 0"), ("fifo:3", f"{os.SCHED_FIFO} 3 0", "0 0 0")],
)
def test_how_the_kernel_schedules_it(text: str, here: str, thread: str) -> None:
    shown = subprocess.run([sys.executable, "-c", SCHEDULE, text], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown == [here, thread], "threads of its own do not keep the processor from everybody"


def test_users_groups_and_priorities_as_text() -> None:
    assert parse_user("0:0") == User(0, 0, (0,))
    assert parse_user("root:5,6").groups == (5, 6)
    assert parse_user("root").gid == 0
    assert parse_group("7") == 7
    assert parse_group("root") == 0
    assert parse_capability("cap_net_raw") == parse_capability("NET_RAW") == "NET_RAW"
    assert parse_scheduling("21") == parse_scheduling("rr:21") == Scheduling("rr", 21)
    for wrong in ("", "rr:", "rr:0", "rr:100", "nice:20", "nice:-21", "x:1", "fifo:1.5"):
        with pytest.raises(ValueError, match=r"."):
            parse_scheduling(wrong)
