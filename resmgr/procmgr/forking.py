"""The daemon's end of its fork server (`forkserver`): a small process that starts programs, as children of this one.

docs/decisions/fork-server.md: to fork a daemon takes milliseconds, in which none of its threads runs Python; to fork this, half of one.
"""

from __future__ import annotations

import array
import errno
import logging
import marshal
import os
import resource
import socket
import subprocess
import sys

from resmgr.procmgr import forkserver
from resmgr.procmgr.forkserver import ANSWER, LENGTH
from resmgr.procmgr.message import UNLIMITED, Scheduling, Spawn

log = logging.getLogger("resmgr.procmgr")

PATIENCE = 5.0
"""Seconds for an answer: it never waits for anything that a user can hold up."""
POLICIES = {Scheduling.ORDINARY: 0, Scheduling.BATCH: os.SCHED_BATCH, Scheduling.IDLE: os.SCHED_IDLE}


class ForkServer:
    """Started by the first `start`, in whose thread's image: namespace, priority, signals. One call at a time, in threads like
    it. `close` ends it."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._useless = False

    def ready(self) -> bool:
        """Start it if it does not run. False: it cannot be had here (no such system call, or a sandbox), said once in the log."""
        if self._socket is None and not self._useless:
            try:
                self._begin()
            except OSError as error:
                self._useless = True
                self.close()
                log.warning("no fork server, so each program is started by a fork of this daemon, which is slower: %s", error)
        return not self._useless

    def start(
        self,
        spawn: Spawn,
        environment: dict[bytes, bytes],
        identity: tuple[int, int, tuple[int, ...]] | None,
        umask: int,
        home: bytes,
        terminal: bool,
        open_files: tuple[int, int] | None,
        stdio: tuple[int, int, int],
        speaker: bytes,
    ) -> int:
        """Start the program; its pid, a child of this process. *identity*: uid, gid and groups, None for this process's own. *home*: the
        directory if the client names none. *speaker*: who tells, on its standard error, why it cannot be executed. OSError: it could not
        be forked, or not become that user. Only when `ready`."""
        assert self._socket is not None
        nice = max(spawn.nice, 0)
        request = (
            spawn.arguments,
            environment,
            identity,
            umask,
            spawn.directory,
            home,
            terminal,
            spawn.terminal,
            _limits(spawn, open_files),
            nice,
            POLICIES[spawn.scheduling],
            speaker,
        )
        data = marshal.dumps(request)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", stdio))]
        try:
            self._socket.sendmsg([LENGTH.pack(len(data))], rights)
            self._socket.sendall(data)
            pid, code = self._answer()
        except OSError:
            # Whether the program runs cannot be known. The next request starts another server.
            self.close()
            raise
        if code:
            if pid:
                os.waitpid(pid, 0)
            raise OSError(code, os.strerror(code))
        return pid

    def close(self) -> None:
        """End it. What it started goes on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _begin(self) -> None:
        if not sys.executable:
            raise OSError(errno.ENOENT, "no interpreter to run it with")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            ours.settimeout(PATIENCE)
            self._socket = ours
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", forkserver.__file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={},
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        finally:
            theirs.close()
        self._answer()

    def _answer(self) -> tuple[int, int]:
        assert self._socket is not None
        data = self._socket.recv(ANSWER.size, socket.MSG_WAITALL)
        if len(data) < ANSWER.size:
            raise OSError(errno.EAGAIN, "the fork server has ended")
        pid, code = ANSWER.unpack(data)
        return pid, code


def _limits(spawn: Spawn, open_files: tuple[int, int] | None) -> tuple[tuple[int, int, int], ...]:
    """By number soft limits, -1 for none: what the client has, and of open files else what a program of this machine would have. Then hard
    ones, -1 for the daemon's."""
    wanted = {number: -1 if value == UNLIMITED else value for number, value in spawn.limits}
    if open_files is not None:
        wanted.setdefault(resource.RLIMIT_NOFILE, open_files[0])
    most = -1 if open_files is None else open_files[1]
    return tuple((number, soft, most if number == resource.RLIMIT_NOFILE else -1) for number, soft in wanted.items())
