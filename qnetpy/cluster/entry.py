"""Running a program in the namespaces of a node: `qnet cluster exec`, and what `Cluster.run` starts for each command.

A trial starts thousands of programs on nodes, so this costs little more than the interpreter: it imports what is part of that, asks the
supervisor in bytes that are written down here, and `command_line` starts it without site (docs/decisions/quick-start.md).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what signal is made of, without enum
import _socket
import os
import sys

from qnetpy.cluster import linux
from resmgr.compiled import ROOT, VARIABLE

TYPE_CHECKING = False  # as in resmgr.compiled
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ASK = '{"do": "enter", "node": "%s"}'
ENTERED = b'{"ok": true, "kinds": ['
SECONDS = 60.0
ANSWER_MAX = 4096
FDS_MAX = 8
START = "import sys; sys.path.insert(0, sys.argv[1]); from qnetpy.cluster.entry import main; main(sys.argv[2:])"


def command_line(path: str, node: str, argv: Sequence[str], user: str | None = None) -> list[str]:
    """What runs *argv* on *node* of the cluster in directory *path*, as `qnet cluster exec` does."""
    return [sys.executable, "-S", "-P", "-c", START, ROOT, path, user or "", node, *argv]


def main(words: Sequence[str]) -> None:
    """The program of `command_line`. Does not return: there is nothing to take apart."""
    path, user, node, *argv = words
    try:
        found = quick(path, node)
        status = enter(path, {"do": "enter", "node": node}, argv, user or None) if found is None else run(found, argv, node, user or None)
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        from qnetpy.cluster import control

        if not isinstance(error, control.ControlError):
            raise
        status = 1
        os.write(2, f"qnet cluster: exec: {error}\n".encode())
    os._exit(status)


def quick(path: str, node: str) -> list[tuple[int, int]] | None:
    """The namespaces of *node*, as `control.ask` has them, and no module imported for it. None for whatever is not as expected: that is for
    `control.ask`, which says what is wrong. Blocks as that does."""
    if not (node.isascii() and node.replace("-", "").isalnum()):
        return None
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        client.settimeout(SECONDS)
        folder = os.open(path, os.O_DIRECTORY | os.O_PATH | os.O_CLOEXEC)
        try:
            client.connect(f"/proc/self/fd/{folder}/control")
        finally:
            os.close(folder)
        client.send((ASK % node).encode())
        data, ancillary, _, _ = client.recvmsg(ANSWER_MAX, _socket.CMSG_SPACE(4 * FDS_MAX), _socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    finally:
        client.close()
    raw = b"".join(item[2] for item in ancillary)
    fds = [int.from_bytes(raw[at : at + 4], sys.byteorder) for at in range(0, len(raw), 4)]
    kinds = data[len(ENTERED) :].partition(b"]")[0].split(b", ") if data.startswith(ENTERED) else []
    if not fds or len(kinds) != len(fds):
        for fd in fds:
            os.close(fd)
        return None
    return [(int(kind), fd) for kind, fd in zip(kinds, fds, strict=True)]


def environment(node: str) -> dict[str, str]:
    """What commands of a node start with. Which code it runs is this process's choice (`resmgr.compiled`)."""
    path = os.pathsep.join((os.path.dirname(sys.executable), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"))
    own = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh", "HOSTNAME": node}
    return own | {name: os.environ[name] for name in (VARIABLE,) if name in os.environ}


def enter(path: str, request: Mapping[str, object], argv: Sequence[str], user: str | None = None, cwd: str | None = None) -> int:
    """Run *argv* inside the namespaces that *request* asks for, with this process's standard streams and terminal; its exit status.

    The program is a child of this process in everything but its namespaces: Ctrl-C reaches it from the terminal, and it is killed when this
    process dies. Must be called in a process with one thread; it does not come back to its own namespaces.
    """
    from qnetpy.cluster import control

    answer, fds = control.ask(path, request)
    kinds = answer["kinds"]
    assert isinstance(kinds, list)
    return run(list(zip(kinds, fds, strict=True)), argv, str(request.get("node", "fabric")), user, cwd)


def run(namespaces: Sequence[tuple[int, int]], argv: Sequence[str], node: str, user: str | None = None, cwd: str | None = None) -> int:
    """Run *argv* in *namespaces*, kind and descriptor of each in joining order. See `enter`."""
    for kind, fd in namespaces:
        linux.setns(fd, kind)
        os.close(fd)
    # The terminal sends its signals to both of us: this one waits for what the other makes of them.
    for number in (_signal.SIGINT, _signal.SIGQUIT):
        _signal.signal(number, _signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        _program(argv, node, user, cwd)
    for number in (_signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, lambda number, _frame: os.kill(child, number))
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            # Ctrl-Z: stop as well, so that the shell takes over; and go on together.
            os.kill(os.getpid(), _signal.SIGSTOP)
            os.kill(child, _signal.SIGCONT)
            continue
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def _program(argv: Sequence[str], node: str, user: str | None, cwd: str | None) -> None:
    """In the child: become the user and the program. Does not return."""
    status = 127
    try:
        for number in (_signal.SIGINT, _signal.SIGQUIT, _signal.SIGPIPE):
            _signal.signal(number, _signal.SIG_DFL)
        env = {**environment(node), **{name: os.environ[name] for name in ("TERM", "COLUMNS", "LINES") if name in os.environ}}
        if user is not None:
            import pwd

            try:
                found = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
            except KeyError:
                raise OSError(0, f"no user {user!r} on node {node}") from None
            os.initgroups(found.pw_name, found.pw_gid)
            os.setgid(found.pw_gid)
            os.setuid(found.pw_uid)
            env.update(HOME=found.pw_dir, USER=found.pw_name, LOGNAME=found.pw_name)
        linux.die_with_parent()
        os.chdir(cwd or "/")
        os.execvpe(argv[0], list(argv), env)
    except FileNotFoundError:
        message = f"{argv[0]}: no such program or directory on node {node}"
    except PermissionError as error:
        message, status = f"{argv[0]}: {(error.strerror or str(error)).lower()}", 126
    except OSError as error:
        message = error.strerror or str(error)
    finally:
        try:
            os.write(2, f"qnet cluster exec: {message}\n".encode())
        except (OSError, UnboundLocalError):
            pass
        os._exit(status)
