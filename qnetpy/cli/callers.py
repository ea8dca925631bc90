"""The programs behind requests that wait, as `qnet top` and `qnet abort` name them.

The kernel names threads; what people know is the process. Only files of /proc are read that never wait for the program itself (`comm` and
`status`; `cmdline` waits for a lock that a stuck program may hold).
"""

from __future__ import annotations

from qnetpy.cli.output import CommandError

Row = dict[str, object]


def process(thread: int) -> int:
    """The process that *thread* belongs to; the thread itself when it is not there any more."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except (OSError, ValueError):
        pass
    return thread


def command(pid: int) -> str:
    """The program's name; `-` when it is not there any more, or has no number here."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n").decode(errors="backslashreplace")
    except OSError:
        return "-"


def rows(found: object) -> list[Row]:
    """The requests of an answer to `waiting`, with `pid` the process, `thread` and `command`."""
    if not isinstance(found, list) or not all(isinstance(one, dict) and isinstance(one.get("pid"), int) for one in found):
        raise CommandError("the daemon is of another version", "qnet down, then qnet up")
    named = []
    for one in found:
        pid = process(one["pid"])
        named.append(one | {"thread": one["pid"], "pid": pid, "command": command(pid)})
    return named
