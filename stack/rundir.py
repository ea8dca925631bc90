"""Where an instance of io-pkt keeps its lock and its local socket, and whether that place is to be trusted.

Somebody else may make a directory in /tmp before we do. A server that locks there could be made to write another file, and a client that
connects there would tell its requests to whoever listens. So both ends look at the place first (`distrusted`): it must be root's or
their own, and nobody else may write there. A client also believes in what root gave away: a directory in one of root's, where nobody else
can put anything (`io-pkt -U` gives its own to a user).

In a user namespace root, as all who have no number there, looks like the kernel's overflow user. There a client believes in what has no
owner it knows if that is true of each directory above, too, and none of them can be written by group or others: then nobody but who owns
the machine's root directory has made the way there.
"""

from __future__ import annotations

import errno
import os
import stat

SOCKET = "socket"
"""Name of the local socket in the run directory."""
OTHERS_WRITE = 0o022
"""Permissions of group and others that let them put something there."""


def default_run_dir(instance: int) -> str:
    """`/run/io-pktN` for root; under $XDG_RUNTIME_DIR, or /tmp with the user's number, for others."""
    if os.geteuid() == 0:
        return root_run_dir(instance)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/io-pkt{instance}" if runtime else f"/tmp/io-pkt{instance}-{os.geteuid()}"


def root_run_dir(instance: int) -> str:
    """That of the instance which root started."""
    return f"/run/io-pkt{instance}"


def distrusted(path: str, others: tuple[int, ...] = (), *, given: bool = False) -> str:
    """Why the run directory *path* is not to be used by this process, as the end of a sentence; empty when it is. *others*: users that
    are as good as our own; *given*: so is anybody to whom root gave it. FileNotFoundError and NotADirectoryError when there is none.
    """
    trusted = (0, os.geteuid(), *others)
    place = os.path.abspath(path)
    link = os.lstat(place)
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in trusted:
        return f"is a link of user {link.st_uid}"
    own = os.stat(place)
    if not stat.S_ISDIR(own.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
    if own.st_mode & OTHERS_WRITE:
        return f"can be written by others than its owner (mode {own.st_mode & 0o7777:04o})"
    above = os.stat(os.path.dirname(os.path.realpath(place)))
    by_root = given and above.st_uid == 0 and not above.st_mode & OTHERS_WRITE
    if given and own.st_uid not in trusted and _all_unknown(os.path.realpath(place)):
        return ""
    if own.st_uid not in trusted and not by_root:
        return f"belongs to somebody else (user {own.st_uid})"
    if above.st_mode & OTHERS_WRITE and not above.st_mode & stat.S_ISVTX:
        return "lies where others can put another in its place"
    return ""


def _all_unknown(place: str) -> bool:
    """Whether *place* and all above it belong to users without a number in this user namespace, and can be written by these alone."""
    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            unknown = int(file.read())
        with open("/proc/self/uid_map", "rb") as table:
            known = [range(int(first), int(first) + int(count)) for first, _, count in (line.split() for line in table)]
    except (OSError, ValueError):
        return False
    if any(unknown in numbers for numbers in known):
        return False
    while True:
        status = os.stat(place)
        if status.st_uid != unknown or status.st_mode & OTHERS_WRITE:
            return False
        if place == "/":
            return True
        place = os.path.dirname(place)
