"""One spawned process: its streams, its end, and the way it is made to end.

    RUNNING  --exit-->  ENDED  --CLOSE-->  freed
    RUNNING  --CLOSE, client gone-->  LEAVING (SIGHUP, after a grace SIGKILL, to the whole group)  -->  freed

The end is seen through a pidfd, without reaping: as long as the process is a zombie, its number and its group's number are nobody
else's, so signals cannot hit a stranger. It is reaped when the handle is freed.

Every signal is sent with the rights of the user that the program runs as (`signals`): a program that has become somebody else's, by a
set-uid bit, is as much out of its client's reach as it is out of that user's. Only when the node itself ends, its own rights end what it
started.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable

from resmgr.channel import Message
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.procmgr.launch import Launched
from resmgr.procmgr.message import SPAWN_DETACHED, SPAWN_PTY, Ended, Spawn, pack_ended
from resmgr.procmgr.signals import send_to_group
from resmgr.procmgr.stream import Inlet, Outlet

GRACE = 2.0
"""Seconds between the SIGHUP and the SIGKILL that a process gets when its client has gone."""
WAITS_MAX = 16
"""WAITs under way for one process."""


class State(enum.Enum):
    RUNNING = "running"
    ENDED = "ended"
    LEAVING = "leaving"
    FREED = "freed"


class Process:
    """A process that this node started for a client. All calls in dispatch context."""

    def __init__(
        self,
        dispatch: Dispatch,
        handle: int,
        launched: Launched,
        spawn: Spawn,
        freed: Callable[[Process], None],
        on_end: Callable[[Process], None] = lambda process: None,
    ) -> None:
        """*on_end* is called once, when it is known how the process ended; *freed* once, when it is reaped and every descriptor closed."""
        # First: when it fails nothing is owned yet.
        self._master = os.dup(launched.stdout) if launched.stdout >= 0 and spawn.flags & SPAWN_PTY else -1
        self.handle = handle
        self.pid = launched.pid
        self.account = launched.account
        self.detached = bool(spawn.flags & SPAWN_DETACHED)
        self.terminal = bool(spawn.flags & SPAWN_PTY)
        self.command = spawn.arguments
        self.started = dispatch.now()
        self.state = State.RUNNING
        self.ended: Ended | None = None
        self.inlet = Inlet(dispatch, launched.stdin, self.typed if self.terminal else None) if launched.stdin >= 0 else None
        self.outlets: dict[int, Outlet] = {}
        for stream, fd in ((1, launched.stdout), (2, launched.stderr)):
            if fd >= 0:
                self.outlets[stream] = Outlet(dispatch, fd)
        self._dispatch = dispatch
        self._pidfd = launched.pidfd
        self._freed = freed
        self._on_end = on_end
        self.on_settled: Callable[[], None] | None = None
        """Called once when the process has ENDED, after everybody else has been told."""
        self._waiting: list[Message] = []
        self._for_stops: list[Message] = []
        """Of those, the ones that are answered by a stop, too."""
        self._left = False
        """The client of a detached process has gone: nobody is left to ask how it ended."""
        self._timer: Timer | None = None
        dispatch.attach_fd(self._pidfd, self._exited)

    def wait(self, message: Message, stops: bool) -> None:
        """Answer with how the process ended, now or then; with *stops* also when it is stopped by what was typed."""
        if self.ended is not None:
            message.reply(0, pack_ended(self.ended))
        elif len(self._waiting) >= WAITS_MAX:
            message.error(errno.EAGAIN)
        else:
            self._waiting.append(message)
            if stops:
                self._for_stops.append(message)
            message.on_unblock = lambda: self._give_up(message)

    def signal(self, number: int) -> int:
        """To the process group; 0 or an errno. With a terminal, to the group in its foreground, as if typed."""
        if self.state is not State.RUNNING:
            return errno.ESRCH
        code = self._send(number)
        if number == signal.SIGTSTP and not code:
            # Whoever sends the signal knows.
            self._stop()
        return code

    def typed(self, data: Buffer) -> None:
        """What the terminal was given: if that is the character that stops programs, and the program is in the foreground, it stops."""
        try:
            settings = termios.tcgetattr(self._master)
            if settings[3] & termios.ISIG and settings[6][termios.VSUSP] in bytes(data) and self._stop():
                waiting, self._for_stops = self._for_stops, []
                for message in waiting:
                    self._waiting.remove(message)
                    message.reply(0, pack_ended(Ended(None, signal.SIGTSTP, stopped=True)))
        except (OSError, termios.error):
            pass

    def _stop(self) -> bool:
        """After a SIGTSTP. The process leads a session that nobody outside it waits for, so Linux does not stop it for that signal (POSIX:
        orphaned process groups). Unless it catches or ignores the signal, it is stopped by the other one; a shell on a terminal stops its
        jobs itself.
        """
        if self.state is not State.RUNNING or self._foreground() != self.pid or not _stops_by_default(self.pid):
            return False
        return not self._send_group(signal.SIGSTOP)

    def winsize(self, size: tuple[int, ...]) -> int:
        """rows, columns, width, height. The kernel sends SIGWINCH."""
        if self._master < 0:
            return errno.ENOTTY
        try:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", *size))
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def close_stream(self, number: int) -> bool:
        """End one stream; False if it is not there."""
        end: Inlet | Outlet | None
        if number == 0:
            end, self.inlet = self.inlet, None
        else:
            end = self.outlets.pop(number, None)
        if end is not None:
            end.close()
        return end is not None

    def close(self) -> None:
        """The client needs it no more: free it if it has ended, else make it end. A detached process goes on, without its streams."""
        self._close_streams()
        if self.state is State.ENDED:
            self._free()
        elif self.state is State.RUNNING and self.detached:
            self._left = True
        elif self.state is State.RUNNING:
            self.state = State.LEAVING
            self._send_group(signal.SIGHUP)
            self._send_group(signal.SIGCONT)
            self._timer = self._dispatch.call_at(self._dispatch.now() + GRACE, self.kill)

    def kill(self) -> None:
        """SIGKILL to the whole group, now; freed as soon as the process is dead."""
        self._close_streams()
        self._send_group(signal.SIGKILL)
        self._leave()

    def end(self) -> None:
        """As `kill`, with the rights of this node: it ends."""
        self._close_streams()
        if self.state is not State.FREED:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except OSError:
                pass
        self._leave()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.ended is not None:
            self._free()
        elif self.state is not State.FREED:
            # Its exit frees it: nobody is left to ask.
            self.state = State.LEAVING

    @property
    def descriptor(self) -> int:
        """The pidfd: readable once the process has ended. Only while it is not FREED."""
        return self._pidfd

    def reap(self) -> None:
        """When no dispatch runs any more: free everything. Does not wait; init inherits what is not dead yet."""
        self._free()

    def _foreground(self) -> int:
        """The process group that a signal is for."""
        if self._master >= 0:
            try:
                group = int(struct.unpack("i", fcntl.ioctl(self._master, termios.TIOCGPGRP, b"\0\0\0\0"))[0])
                if group > 0:
                    return group
            except OSError:
                pass
        return self.pid

    def _send(self, number: int) -> int:
        group = self._foreground()
        if group != self.pid:
            code = send_to_group(self.account.user, group, number)
            if code != errno.ESRCH:
                return code
        return self._send_group(number)

    def _send_group(self, number: int) -> int:
        if self.state is State.FREED:
            return errno.ESRCH
        return send_to_group(self.account.user, self.pid, number)

    def _give_up(self, message: Message) -> None:
        self._waiting.remove(message)
        if message in self._for_stops:
            self._for_stops.remove(message)
        message.error(errno.EINTR)

    def _exited(self) -> None:
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # Somebody else in this process reaped it: how it ended is lost.
            self.ended = Ended(255, None)
        else:
            if result is None:
                return
            if result.si_code == os.CLD_EXITED:
                self.ended = Ended(result.si_status & 255, None)
            else:
                self.ended = Ended(None, result.si_status, result.si_code == os.CLD_DUMPED)
        self._dispatch.detach_fd(self._pidfd)
        waiting, self._waiting = self._waiting, []
        self._for_stops.clear()
        for message in waiting:
            message.reply(0, pack_ended(self.ended))
        self._on_end(self)
        if self.state is State.RUNNING:
            self.state = State.ENDED
            if self._left:
                self._free()
            elif self.on_settled is not None:
                self.on_settled()
        elif self.state is State.LEAVING and self._timer is None:
            self._free()

    def _close_streams(self) -> None:
        if self.inlet is not None:
            self.inlet.close()
            self.inlet = None
        outlets, self.outlets = self.outlets, {}
        for outlet in outlets.values():
            outlet.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _free(self) -> None:
        if self.state is State.FREED:
            return
        self.state = State.FREED
        self._close_streams()
        self._dispatch.detach_fd(self._pidfd)
        try:
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass
        os.close(self._pidfd)
        for message in self._waiting:
            message.error(errno.ESRCH)
        self._waiting.clear()
        self._for_stops.clear()
        self._freed(self)


def _stops_by_default(pid: int) -> bool:
    """Whether SIGTSTP is neither caught nor ignored."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            masks = [int(line.split()[1], 16) for line in file if line.startswith(("SigIgn:", "SigCgt:"))]
    except (OSError, ValueError, IndexError):
        return False
    return not any(mask >> (signal.SIGTSTP - 1) & 1 for mask in masks)
