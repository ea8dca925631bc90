"""What this machine must allow for whole nodes to run on it, checked by trying, and said in one line each.

As root: namespaces and /dev/fuse. As an ordinary user: user namespaces, and /dev/fuse open to everybody (as distributions ship it).
"""

from __future__ import annotations

import os

from qnetpy.cluster import linux


def missing(fuse: bool = True) -> list[str]:
    """What is missing, with what to do about it; empty when nothing is. Tries the namespaces in a child, so nothing stays."""
    lacks = []
    refused = _refused()
    if refused:
        from qnetpy.cluster import guardian

        lacks.append(f"{refused}; {guardian.refusal()}")
    if fuse:
        try:
            os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            lacks.append("/dev/fuse does not exist: the kernel needs FUSE; try: modprobe fuse")
        except OSError as error:
            lacks.append(f"/dev/fuse: {(error.strerror or str(error)).lower()}; run as root, or: chmod 666 /dev/fuse")
    return lacks


def _refused() -> str:
    """What the kernel says against the namespaces of a node, or nothing."""
    kinds = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWPID
    if os.geteuid() != 0:
        kinds |= linux.CLONE_NEWUSER
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            linux.unshare(kinds)
        except OSError as error:
            os.write(writing, (error.strerror or str(error)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read().decode()
    os.waitpid(child, 0)
    return text
