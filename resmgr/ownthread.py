"""Threads where the system may have no room for one: a limit of processes is reached, by whomever, or memory is used up.

`in_own_thread`: one job in a thread that ends with it. What it makes of itself (rights, namespaces, root) is nobody else's.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def new_thread(name: str, run: Callable[[], object]) -> threading.Thread | None:
    """A thread that runs *run* and does not keep the process from ending; None: there is no room for one."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def no_room() -> OSError:
    """What whoever needed one is told."""
    return OSError(errno.EAGAIN, "no room for a thread: a limit of processes or of memory is reached")


def in_own_thread(name: str, work: Callable[[], T]) -> T:
    """What *work* returns or raises; OSError (EAGAIN) if there is no room for it. Blocks until then. It costs about 0.1 ms."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = new_thread(name, run)
    if thread is None:
        raise no_room()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
