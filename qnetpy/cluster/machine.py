"""One node of a cluster: a process that is init (PID 1) in its own mount, network, UTS, IPC and PID namespaces.

What is the node's own: /etc (its hostname, hosts, users and /etc/qnet; all else there points to this machine's files), /tmp, /var/tmp,
/run, /dev/shm, /proc, /sys, /net, /root and, when the topology has users, /home. /etc, /tmp, /var/tmp, /root and /home are its disk:
they live in the supervisor's tmpfs and survive the node's death. /run does not. Everything else is this machine's, read-only except for
the directories listed as writable, so no command on a node, and no remote one, can harm the machine that plays it.

Init runs the boot commands one after another, tells the supervisor what came of each, then waits; it is told to shut down by a word on
its socket, or by the socket's end. When init is gone the kernel kills every process of the node, drops its mounts (aborting FUSE
connections) and destroys its interfaces. Nothing of a node is registered anywhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence

from qnetpy.cluster import linux
from qnetpy.cluster.entry import environment

Json = object
PRIVATE = ("tmp", "var/tmp", "run")
COMMAND_OUTPUT_MAX = 64 * 1024
BOOT_SECONDS = 30.0


def install_disk(disk: str, node: str, hosts: str, users: Sequence[tuple[str, int]], keys: str | None) -> None:
    """Make the node's disk once: /etc with its own files, and empty /tmp, /var/tmp and /home."""
    etc = f"{disk}/etc"
    os.makedirs(etc)
    for name in os.listdir("/etc"):
        os.symlink(f"/.machine/etc/{name}", f"{etc}/{name}")
    own = {"hostname": f"{node}\n", "hosts": hosts, "passwd": _read("/etc/passwd"), "group": _read("/etc/group")}
    for user, uid in users:
        own["passwd"] += f"{user}:x:{uid}:{uid}::/home/{user}:/bin/sh\n"
        own["group"] += f"{user}:x:{uid}:\n"
    for name, text in own.items():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{etc}/{name}")
        with open(f"{etc}/{name}", "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{etc}/qnet")
    if keys is not None:
        shutil.copytree(keys, f"{etc}/qnet")
    for name in PRIVATE[:2]:
        os.makedirs(f"{disk}/{name}")
        os.chmod(f"{disk}/{name}", 0o1777)
    # Others may pass: this machine's Python may live in its root's home, and users of the node run it from there.
    os.mkdir(f"{disk}/root", 0o711)
    os.mkdir(f"{disk}/home", 0o755)
    for user, uid in users:
        os.mkdir(f"{disk}/home/{user}", 0o700)
        try:
            os.chown(f"{disk}/home/{user}", uid, uid)
        except OSError as error:
            raise OSError(
                error.errno, f"user {user} (uid {uid}) does not exist in this user namespace; run as root or install uidmap"
            ) from error


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _cover(target: str, options: str = "mode=0755") -> None:
    linux.mount("tmpfs", target, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)


def build_root(root: str, disk: str, visible: Sequence[str], writable: Sequence[str], users: bool) -> None:
    """Compose the node's file tree at *root* and move into it. Must run in a new mount namespace, as PID 1 of a new PID namespace.

    *visible* are directories of this machine that must be there even where the node's own would hide them (the Python environment);
    *writable* those that nodes may change (the user's working directory).
    """
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("qnet-node", root, "tmpfs", linux.MS_NODEV, "mode=0755")
    own = {"proc", "sys", "etc", "tmp", "run", "net", "root", ".machine", *(["home"] if users else [])}
    shared = []
    for entry in os.scandir("/"):
        if entry.name in own:
            continue
        target = f"{root}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        elif entry.is_dir():
            os.mkdir(target)
            try:
                linux.bind(entry.path, target)
            except OSError:
                # A directory that this user may not even look at (lost+found): leave the empty place.
                continue
            shared.append(target)
    os.makedirs(f"{root}/.machine/etc")
    linux.bind("/etc", f"{root}/.machine/etc")
    for target in (*shared, f"{root}/.machine/etc"):
        if target != f"{root}/dev":
            linux.read_only(target)
    for name in (*PRIVATE, "etc", "net", "proc", "sys", "root", *(["home"] if users else [])):
        os.makedirs(f"{root}/{name}", exist_ok=True)
    for name in ("etc", "tmp", "var/tmp", "root", *(["home"] if users else [])):
        linux.bind(f"{disk}/{name}", f"{root}/{name}")
    _cover(f"{root}/run")
    if os.path.isdir(f"{root}/dev/shm"):
        _cover(f"{root}/dev/shm", "mode=1777")
    linux.mount("proc", f"{root}/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    linux.mount("sysfs", f"{root}/sys", "sysfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    hidden = tuple(f"/{name}/" for name in (*PRIVATE, "root", *(["home"] if users else [])))
    for path in visible:
        if path.startswith(hidden):
            os.makedirs(root + path, exist_ok=True)
            linux.bind(path, root + path)
            linux.read_only(root + path)
    for path in writable:
        os.makedirs(root + path, exist_ok=True)
        linux.bind(path, root + path)
    linux.change_root(root)
    # As on a machine: what is mounted later is seen in mount namespaces that follow this one, the daemon's among them.
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SHARED)


def run_command(argv: Sequence[str], env: Mapping[str, str], seconds: float) -> tuple[int, str]:
    """Run *argv* as a child of init, reaping whatever else ends meanwhile. Returns exit status (128 + signal when killed) and output."""
    output, theirs = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _become(argv, env, theirs)
    os.close(theirs)
    text = bytearray()
    poll = select.poll()
    poll.register(output, select.POLLIN)
    import time

    end = time.monotonic() + seconds
    status: int | None = None
    while status is None:
        left = end - time.monotonic()
        if left <= 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(output)
            return 124, text.decode(errors="replace") + f"\n(no end after {seconds:g} s)"
        # A daemon may have inherited the pipe: its end is not the command's end. Look for both.
        if poll.poll(min(left * 1000, 20)):
            text = (text + os.read(output, 65536))[-COMMAND_OUTPUT_MAX:]
        status = reap(child)
    while poll.poll(0) and (data := os.read(output, 65536)):
        text = (text + data)[-COMMAND_OUTPUT_MAX:]
    os.close(output)
    return status, text.decode(errors="replace")


def _become(argv: Sequence[str], env: Mapping[str, str], output: int) -> None:
    """In a fresh child: run the command; never returns."""
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvpe(argv[0], list(argv), dict(env))
    except BaseException as error:
        os.write(2, f"{argv[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def reap(wanted: int) -> int | None:
    """Collect every child that ended; the exit status of *wanted* if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == wanted:
            found = os.waitstatus_to_exitcode(status)
            if found < 0:
                found = 128 - found


def init_main(channel: socket.socket, node: str, boot: Sequence[Sequence[str]], shutdown: Sequence[Sequence[str]]) -> None:
    """The life of a node's init after its tree stands. *channel* is a sequenced-packet socket to the supervisor. Does not return."""

    def tell(**what: Json) -> None:
        with contextlib.suppress(OSError):
            channel.send(json.dumps(what).encode())

    env = environment(node)
    awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    word = channel.recv(64)
    if word != b"boot":
        os._exit(1)
    for argv in boot:
        status, output = run_command(argv, env, BOOT_SECONDS)
        tell(ran=list(argv), status=status, output=output)
        if status != 0:
            break
    else:
        tell(up=True)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(awake, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == awake:
                os.read(awake, 4096)
                reap(0)
            elif channel.recv(64) == b"stop":
                for argv in shutdown:
                    run_command(argv, env, 5.0)
                os._exit(0)
            else:
                os._exit(0)
