"""A terminal of another node (/net/NODE/dev/...) in place of this program's own, for `qnet on -t`.

Standard input and output become a pseudo terminal of this machine, which the rest of the command uses as any terminal; what is typed and
shown is moved between that and the far terminal, which is in raw mode meanwhile. Nobody tells us when the far window changes its size,
so it is asked for every `LOOK` seconds; its hang-up is SIGHUP here, as if it were our own.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import termios
import threading
import tty
from types import TracebackType

from qnetpy.cli.output import CommandError
from qnetpy.cli.terminal import Raw, size

LOOK = 0.5
PART = 64 * 1024
LAST = 5.0
"""Seconds that the far terminal has to take what was said last."""


class Elsewhere:
    """For the length of a `with` block. CommandError (with *status*) when *path* cannot be opened or is no terminal."""

    def __init__(self, path: str, status: int) -> None:
        try:
            self._far = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            hint = 'devices = ["terminals"] in the export of that node' if error.errno in (errno.EACCES, errno.EROFS) else ""
            raise CommandError(f"{path}: {(error.strerror or str(error)).lower()}", hint, status) from error
        if not os.isatty(self._far):
            os.close(self._far)
            raise CommandError(f"{path} is not a terminal", "", status)
        self._raw = Raw(self._far)
        self._ended = threading.Event()
        self._own: list[int] = []
        self._master = -1
        self._shower: threading.Thread | None = None

    def __enter__(self) -> Elsewhere:
        self._master, slave = os.openpty()
        # Echo and lines are the other program's terminal's affair.
        tty.setraw(slave)
        self._fit()
        self._own = [os.dup(0), os.dup(1)]
        os.dup2(slave, 0)
        os.dup2(slave, 1)
        os.close(slave)
        self._raw.__enter__()
        threading.Thread(target=self._typed, daemon=True).start()
        self._shower = threading.Thread(target=self._shown, daemon=True)
        self._shower.start()
        return self

    def _fit(self) -> bool:
        """Give the pseudo terminal the size of the far one; whether that was news."""
        wanted = size(self._far)
        if size(self._master) == wanted:
            return False
        termios.tcsetwinsize(self._master, wanted[:2])
        return True

    def _typed(self) -> None:
        """Far terminal to this one."""
        try:
            while not self._ended.is_set():
                if self._fit():
                    os.kill(os.getpid(), signal.SIGWINCH)
                if select.select([self._far], [], [], LOOK)[0]:
                    data = os.read(self._far, PART)
                    if not data:
                        break
                    _write(self._master, data)
        except OSError:
            pass
        if not self._ended.is_set():
            os.kill(os.getpid(), signal.SIGHUP)

    def _shown(self) -> None:
        """This terminal to the far one. Ends when nobody has this one open any more."""
        try:
            while True:
                _write(self._far, os.read(self._master, PART))
        except OSError:
            pass

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        for fd, own in enumerate(self._own):
            os.dup2(own, fd)
            os.close(own)
        if self._shower is not None:
            self._shower.join(LAST)
        try:
            self._raw.restore()
        except OSError:
            # It was hung up.
            pass


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
