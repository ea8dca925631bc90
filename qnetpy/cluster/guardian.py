"""The process above a cluster: `python -m qnetpy.cluster.guardian DIRECTORY LOCKFD`, started by `qnet cluster up`.

It stays in this machine's mount namespace, makes the user namespace (when it is not root) and the others, starts the supervisor as PID 1 of
a new PID namespace, waits for its end and removes the cluster's directory. So whatever is killed with -9:

- a process of a node: that process;
- a node's init: that node, with all its processes, mounts and interfaces;
- the supervisor: every node, by the kernel, since it is init of the PID namespace above theirs; the guardian removes the directory;
- the guardian: the supervisor, by its parent-death signal, and so everything; the next `up` or `down` removes the directory.

LOCKFD is the cluster's lock (`qnetpy.cluster.state`), inherited and held by being open. Facts for the starter go to standard output.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys

from qnetpy.cluster import linux, state
from qnetpy.cluster.supervisor import Supervisor, fact

FABRIC = linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC


def guard(path: str) -> int:
    """Enter the namespaces, start the supervisor, clean up after it. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    user_namespace = os.geteuid() != 0
    try:
        if user_namespace:
            enter_user_namespace()
        linux.unshare(FABRIC)
    except OSError as error:
        fact(error=f"{error.strerror}; {refusal()}")
        state.remove(path)
        return 1
    child = os.fork()
    if child == 0:
        status = 1
        try:
            linux.die_with_parent()
            linux.unshare(linux.CLONE_NEWNS)
            Supervisor(path, user_namespace).run()
            status = 0
        except OSError as error:
            fact(error=error.strerror or str(error))
        finally:
            os._exit(status)
    # The starter waits for the end of these: only the supervisor may hold them.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: os.kill(child, signal.SIGTERM))
    _, status = os.waitpid(child, 0)
    state.remove(path)
    return os.waitstatus_to_exitcode(status)


def enter_user_namespace() -> None:
    """Become root of a new user namespace. With `newuidmap` and a range in /etc/subuid other users exist in it too, else only root."""
    uid, gid = os.geteuid(), os.getegid()
    ranges = [_subordinate("/etc/subuid", uid), _subordinate("/etc/subgid", uid)]
    helper = subordinate_users()
    ready, go = os.pipe()
    mapper = os.fork() if helper else 0
    if helper and mapper == 0:
        os.close(go)
        os.read(ready, 1)
        target = str(os.getppid())
        failed = 0
        for tool, own, extra in (("newuidmap", uid, ranges[0]), ("newgidmap", gid, ranges[1])):
            first, count = extra or ("0", "0")
            failed |= subprocess.run([tool, target, "0", str(own), "1", "1", first, count], check=False).returncode
        os._exit(1 if failed else 0)
    linux.unshare(linux.CLONE_NEWUSER)
    os.close(go)
    os.close(ready)
    if helper and os.waitpid(mapper, 0)[1] == 0:
        return
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def subordinate_users() -> bool:
    """Whether this ordinary user can have other users in a user namespace: the package uidmap and ranges for it."""
    uid = os.geteuid()
    ranges = _subordinate("/etc/subuid", uid) and _subordinate("/etc/subgid", uid)
    return bool(ranges and shutil.which("newuidmap") and shutil.which("newgidmap"))


def _subordinate(path: str, uid: int) -> tuple[str, str] | None:
    """The first range of user *uid* in /etc/subuid or /etc/subgid: (first, count)."""
    import pwd

    with contextlib.suppress(OSError, KeyError):
        names = {str(uid), pwd.getpwuid(uid).pw_name}
        with open(path) as file:
            for line in file:
                owner, _, numbers = line.strip().partition(":")
                first, _, count = numbers.partition(":")
                if owner in names and first.isdigit() and count.isdigit():
                    return first, count
    return None


def refusal() -> str:
    """Why the kernel may refuse namespaces here, as far as it can be told."""
    checks = (
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"),
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces is 0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns is 1"),
    )
    for path, value, text in checks:
        with contextlib.suppress(OSError), open(path) as file:
            if file.read().strip() == value:
                return f"{text}; run as root, or have root change it"
    return "run as root, or allow user namespaces (a container needs the right to make them)"


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1]))
