"""One job in a thread that ends with it: what it makes of itself (rights, namespaces, root) is nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_own_thread(name: str, work: Callable[[], T]) -> T:
    """What *work* returns or raises. Blocks until then. It costs about 0.1 ms."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
