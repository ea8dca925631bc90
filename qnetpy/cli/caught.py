"""Signals that a command passes on, as something to wait for beside everything else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGCONT)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""The second of these ends us, whatever the program does."""


def _nothing(number: int, frame: FrameType | None) -> None:
    """The wakeup descriptor says it."""


class Caught:
    """For a `with` block in the main thread: these signals do nothing but make `fileno` readable. One that was ignored stays so."""

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        self._before: dict[signal.Signals, Any] = {}  # the type of a handler has no name
        self._read = self._write = -1

    def __enter__(self) -> Caught:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before = {number: signal.signal(number, _nothing) for number in self._numbers}
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        return self._read

    def take(self) -> bytes:
        """The numbers of those that came."""
        try:
            return os.read(self._read, 64)
        except BlockingIOError:
            return b""

    def stop(self) -> None:
        """Stop this process as if nobody caught SIGTSTP; returns when somebody continues it, or at once if nobody could."""
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
