"""This process in /proc is nobody else's business.

The kernel lets every thread of a process look at all of that process, whatever user the thread acts as: the daemon's open files, maps and
links would be readable to each client that may read /proc. So the directories of its threads (`/proc/N`, also those that /proc does not
list) do not exist for clients.

The question is asked after the name was opened. A thread of ours that is there then was there before; one that has ended has left a
directory in which nothing works any more.
"""

from __future__ import annotations

import errno
import os


def refuse_own(names: list[bytes]) -> None:
    """ENOENT when one of *names*, the way to something in /proc, is a thread of this process. Any thread, any user."""
    if any(map(own, names)):
        raise FileNotFoundError(errno.ENOENT, "the daemon itself")


def own(name: bytes) -> bool:
    """Whether /proc/*name* is this process, or a thread of it."""
    return name.isdigit() and os.path.exists(b"/proc/self/task/" + name)
