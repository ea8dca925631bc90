"""Programs that are there to be killed, and who starts, stops and kills them: `python victims.py` on a node takes orders as lines of JSON.

    {"start": 7, "role": "server", "words": []}     fork a program; it says what it does under this number
    {"signal": 7, "number": 9}                      send it a signal
    {"read": "/net/a/proc/qnetstats", "number": 8}  say what is in the file

What is said is a line of JSON, too: number, what, the monotonic clock (that of the machine, so lines of several nodes compare), and more.
Programs are forked with all modules loaded, so each starts within milliseconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import stat
import time
from collections.abc import Callable

from qnetpy.manage import Directory, Later, Node, daemon_socket, serve
from resmgr.client import Client
from resmgr.dispatch import Buffer
from resmgr.errors import ResmgrError
from resmgr.ids import PULSE_DISCONNECT, PULSE_UNBLOCK
from resmgr.names.client import name_attach, name_open
from resmgr.server import Message, Pulse

NAME = "victim"
PATH = "/dev/victim"
LARGE = bytes(400_000)
PART = 100_000
EVENT = 5


def say(number: int, what: str, **more: object) -> None:
    line = json.dumps({"number": number, "what": what, "at": time.monotonic(), **more})
    os.write(1, line.encode() + b"\n")


def name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def server(number: int) -> None:
    """Holds what it is told to hold, reads a part of what is long, answers, delivers events; says when clients go."""
    with Client(daemon_socket()) as client, name_attach(client, NAME, unblock=True) as name:
        say(number, "ready")
        held: dict[int, Message] = {}
        events: list[tuple[Message, int]] = []
        while True:
            item = name.channel.receive(0.001 if events else None)
            for one in events[:]:
                try:
                    one[0].deliver_event(one[1])
                except ResmgrError as error:
                    if error.errno != errno.EAGAIN:
                        events.remove(one)
            if isinstance(item, Pulse):
                if item.code == PULSE_DISCONNECT:
                    say(number, "disconnected")
                elif item.code == PULSE_UNBLOCK and item.value in held:
                    held.pop(item.value).reply()
            elif item is not None:
                word = bytes(item.data[:5])
                if word == b"part ":
                    with contextlib.suppress(ResmgrError):
                        item.read(0, PART)
                if word in (b"hold ", b"part "):
                    held[item.number] = item
                    say(number, "held")
                elif word == b"long ":
                    item.reply(0, LARGE)
                elif word == b"event":
                    item.reply()
                    events.append((item, int(item.data[5:])))
                else:
                    item.reply(0, b"served")


def client(number: int, step: str, node: str) -> None:
    """A client of that server, at one step of all that two programs do with each other."""
    with Client(daemon_socket()) as program:
        if step == "connect":
            say(number, "there")
            while True:
                connection = name_open(program, NAME, node=node)
                connection.send(b"ask", reply_len=10)
                connection.close()
        connection = name_open(program, NAME, node=node)
        if step == "ask":
            assert bytes(connection.send(b"ask", reply_len=10).data) == b"served"
            say(number, "served")
        elif step in ("send", "received"):
            say(number, "there")
            connection.send(b"hold ")
        elif step == "body pulled":
            say(number, "there")
            connection.send(b"part ", LARGE)
        elif step == "replied":
            while True:
                assert len(connection.send(b"long ", reply_len=len(LARGE)).data) == len(LARGE)
                say(number, "there")
        elif step == "event":
            channel = program.channel()
            connection.send(b"event%d" % connection.register_event(channel, EVENT))
            say(number, "there")
            while not connection.dead:
                channel.receive(0.05)
            connection.send(b"ask", reply_len=10)


class Silent(Node):
    """A device of which nothing is ever read."""

    mode = stat.S_IFCHR | 0o666
    live = True

    def read(self, state: object | None, offset: int, size: int) -> Buffer | Later[Buffer] | None:
        return Later()

    def poll(self, state: object | None) -> int:
        return 0


class Plain(Node):
    mode = stat.S_IFREG | 0o666
    live = True

    def read(self, state: object | None, offset: int, size: int) -> Buffer:
        return b"served"[offset : offset + size]


def manager(number: int) -> None:
    nodes: dict[bytes, Node] = {b"silent": Silent(), b"plain": Plain(), b"locked": Plain()}
    serve(PATH, Directory(nodes), ready=lambda managed: say(number, "ready"))


def appears(path: str) -> None:
    """Wait for what the kernel may remember as not there, for a tenth of a second."""
    deadline = time.monotonic() + 1.0
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)


def holder(number: int, path: str) -> None:
    """Has the lock for which others wait."""
    appears(f"{path}/locked")
    file = os.open(f"{path}/locked", os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_EX)
    say(number, "ready")
    signal.pause()


def user(number: int, step: str, path: str) -> None:
    """A program that knows nothing of Qnet, in one system call."""
    appears(f"{path}/plain")
    if step == "ask":
        with open(f"{path}/plain", "rb", buffering=0) as ask:
            assert ask.read(10) == b"served"
        assert sorted(os.listdir(path)) == ["locked", "plain", "silent"]
        return say(number, "served")
    if step == "open":
        say(number, "there")
        while True:
            os.close(os.open(f"{path}/plain", os.O_RDONLY))
    if step == "readdir":
        say(number, "there")
        while True:
            os.listdir(path)
    file = os.open(f"{path}/{'locked' if step == 'lock' else 'silent'}", os.O_RDONLY)
    say(number, "there")
    if step == "read":
        os.read(file, 10)
    elif step == "lock":
        fcntl.flock(file, fcntl.LOCK_EX)
    elif step == "poll":
        poll = select.poll()
        poll.register(file, select.POLLIN)
        [(_, events)] = poll.poll()
        if events & (select.POLLERR | select.POLLHUP):
            return say(number, "failed", error="poll")
    return None


ROLES: dict[str, Callable[..., None]] = {"server": server, "client": client, "manager": manager, "holder": holder, "user": user}


def run(number: int, role: str, words: list[str]) -> None:
    """The forked program, to its end."""
    try:
        ROLES[role](number, *words)
    except OSError as error:
        say(number, "failed", error=name_of(error))
    except BaseException as error:
        say(number, "broken", error=repr(error))
    os._exit(0)


def main() -> None:
    children: dict[int, int] = {}
    watched: dict[int, int] = {}
    poll = select.poll()
    poll.register(0, select.POLLIN)
    pending = b""
    while True:
        for descriptor, _ in poll.poll():
            if descriptor:
                number = watched.pop(descriptor)
                poll.unregister(descriptor)
                os.close(descriptor)
                status = os.waitpid(children.pop(number), 0)[1]
                say(number, "ended", status=os.waitstatus_to_exitcode(status))
                continue
            data = os.read(0, 65536)
            if not data:
                for pid in children.values():
                    os.kill(pid, signal.SIGKILL)
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if "start" in order:
                    number = order["start"]
                    pid = os.fork()
                    if not pid:
                        run(number, order["role"], order["words"])
                    children[number] = pid
                    watched[descriptor := os.pidfd_open(pid)] = number
                    poll.register(descriptor, select.POLLIN)
                elif "signal" in order:
                    if order["signal"] in children:
                        os.kill(children[order["signal"]], order["number"])
                else:
                    try:
                        with open(order["read"]) as file:
                            say(order["number"], "read", text=file.read())
                    except OSError as error:
                        say(order["number"], "failed", error=name_of(error))


if __name__ == "__main__":
    main()
