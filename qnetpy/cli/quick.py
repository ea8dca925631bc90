"""Where the command qnet begins: `qnet on NODE CMD` in its plain form is done here; everything else goes on to `main`.

A program that is started remotely mostly ends at once, and then what its start costs is the interpreter and what is imported. So the plain
form (no terminal, no options but -f, -T, --no-input) is parsed, sent and answered here, with nothing imported that is not part of the
interpreter: the message of `resmgr.procmgr.message`, brief, over the local socket of `resmgr.client`, packed by hand. A test compares them
byte for byte with what those modules make. Whatever is not as expected before the start is left to `main`, which then finds and says it;
a program that does not end at once goes on in `qnetpy.cli.pump`, over the same connection.
"""

from __future__ import annotations

import _socket
import os
import struct
import sys

from qnetpy.cli.place import socket_path

FAILED = 255
ASK_SECONDS, START_SECONDS = 5.0, 10.0
PASSED_ON = (b"LANG", b"LANGUAGE", b"COLORTERM")
DATAGRAM_MAX = 65536
FIRST_PART = 16 * 1024
"""Longer messages go another way than in one datagram."""
OUTPUT = 32 * 1024
"""Room for what a short program says: with its heads in one datagram."""
SEND, REPLY, HELLO, VERSION, CONNECT = 1, 2, 10, 1, 1
LENGTH = struct.Struct("!I")
SEND_HEADER = struct.Struct("!BBBBIIIQ")
REPLY_HEADER = struct.Struct("!BBBBIIq")
HELLO_HEADER = struct.Struct("!BBBBIIII")
BLOCK = struct.Struct("!HHIIIIIIBB")
PRIORITY = 10
PID_SYSTEM, CHID_PATHMGR, CHID_PROCMGR = 1, 1, 2
LOOKUP = struct.pack("!HHIQ", 0x100, 1, 0, 0)
LOOKUP_ROOM = 8192
SPAWN, STDIN, STDOUT, STDERR, BRIEF = 0x200, 4, 8, 16, 64
SPAWN_HEADER = struct.Struct("!HHIQIHHHHHHHBBBx")
ANSWER = struct.Struct("!QIBBHII")
END = 1 << 31
EXITED, KILLED = 1, 2
LIMITS = (0, 1, 2, 3, 4, 7, 9)
NULL = os.makedev(1, 3)


class Unusual(Exception):
    """Not for this file; nothing has been started."""


def main() -> int:
    """The exit status of the command."""
    if sys.argv[1:2] == ["on"]:
        try:
            status = on(sys.argv[2:])
        except Unusual:
            pass
        except KeyboardInterrupt:
            os._exit(130)
        else:
            os._exit(status)
    from qnetpy.cli.main import main

    return main()


def on(words: list[str]) -> int:
    """`qnet on` with these arguments. Unusual: not one of the plain ones, or something is wrong."""
    node, command, no_input = plain(words)
    try:
        null = os.fstat(0).st_rdev == NULL
        if os.isatty(0) and os.isatty(1):
            raise Unusual
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        sock.settimeout(ASK_SECONDS)
        sock.connect(socket_path())
        (hello,) = items(sock.recv(DATAGRAM_MAX))
        if hello[0] != HELLO or HELLO_HEADER.unpack_from(hello)[5] != VERSION:
            raise Unusual
        used = nd = 0
        if node.encode() != hello[HELLO_HEADER.size :]:
            used += 1
            request = LOOKUP + b"net/" + node.encode()
            status, data = ask(sock, used, 0, CHID_PATHMGR, request, LOOKUP_ROOM)
            if status < 0:
                raise Unusual
            nd, pid, _ = struct.unpack_from("!III", data)
            if not nd and pid != PID_SYSTEM:
                raise Unusual
        request = spawn(command, STDOUT | STDERR | (0 if no_input or null else STDIN))
        if len(request) > FIRST_PART:
            raise Unusual
    except (OSError, ValueError, IndexError, struct.error):
        raise Unusual from None
    return start(sock, hello, used + 1, node, nd, request)


def plain(words: list[str]) -> tuple[str, list[str], bool]:
    """Node, command, and whether standard input is empty. Unusual: anything that needs the parser."""
    at, node, no_input = 0, "", False
    while at < len(words):
        word = words[at]
        if word == "--":
            at += 1
            break
        if word == "--no-input":
            no_input = True
        elif word == "-f" and not node and at + 1 < len(words):
            at += 1
            node = words[at]
        elif word.startswith("-") and word != "-T":
            raise Unusual
        elif word == "-T":
            pass
        elif node:
            break
        else:
            node = word
        at += 1
    command = words[at:]
    if not node or not command or node.startswith(("-", ".")) or "~" in node or "/" in node or "," in node or not node.isascii():
        raise Unusual
    return node, command, no_input


def items(datagram: bytes) -> list[bytes]:
    """The messages of a datagram."""
    found, at = [], 0
    while at < len(datagram):
        (size,) = LENGTH.unpack_from(datagram, at)
        at += LENGTH.size + size
        if at > len(datagram):
            # One that is longer than a datagram has a bit there.
            raise ValueError("not a datagram of ours")
        found.append(datagram[at - size : at])
    return found


def ask(sock: _socket.socket, number: int, nd: int, chid: int, request: bytes, room: int) -> tuple[int, bytes]:
    """Send on connection *number*, as the send of that number; status and data of the reply."""
    head = SEND_HEADER.pack(SEND, CONNECT, PRIORITY, 0, number, number, room, len(request))
    block = BLOCK.pack(BLOCK.size, 0, nd, PID_SYSTEM, chid, 0, 0, 0, 255, 0)
    sock.send(LENGTH.pack(len(head) + len(block) + len(request)) + head + block + request)
    while True:
        datagram = sock.recv(DATAGRAM_MAX)
        if not datagram:
            raise OSError(107, os.strerror(107))
        for message in items(datagram):
            if message[0] == REPLY:
                _, _, _, _, txn, _, status = REPLY_HEADER.unpack_from(message)
                if txn == number:
                    return status, message[REPLY_HEADER.size :]


def spawn(command: list[str], flags: int) -> bytes:
    """The message that starts it, brief."""
    import resource

    mask = os.umask(0o077)
    os.umask(mask)
    variables = [name + b"=" + value for name, value in os.environb.items() if name in PASSED_ON or name.startswith(b"LC_")]
    strings = [*map(os.fsencode, command), *variables]
    limits = [(number, resource.getrlimit(number)[0]) for number in LIMITS]
    return b"".join(
        (
            SPAWN_HEADER.pack(SPAWN, 0, flags | BRIEF, 0, mask, 0, 0, len(command), len(variables), 0, 0, 0, 20, 0, len(limits)),
            *(struct.pack("!IQ", number, value & 0xFFFFFFFFFFFFFFFF) for number, value in limits),
            struct.pack(f"!{len(strings)}I", *map(len, strings)),
            *strings,
        )
    )


def start(sock: _socket.socket, hello: bytes, number: int, node: str, nd: int, request: bytes) -> int:
    """Start it and see it through. The exit status; Unusual, if the node does not know brief starts."""
    sock.settimeout(START_SECONDS)
    status = kind = code = handle = pid = 0
    try:
        status, data = ask(sock, number, nd, CHID_PROCMGR, request, ANSWER.size + OUTPUT)
        handle, pid, kind, core, code, *sizes = ANSWER.unpack_from(data) if status >= 0 else (0,) * 7
        output, errors = (size & ~END for size in sizes)
        if status >= 0 and ANSWER.size + output + errors != len(data):
            raise ValueError
    except TimeoutError:
        status = -110
    except (ValueError, IndexError, struct.error):
        status = -71
    except OSError as error:
        status = -(error.errno or 5)
    if status < 0:
        if status == -74:
            raise Unusual
        from qnetpy.cli import on

        return int(on.refused(node, -status))
    data = data[ANSWER.size :]
    if not put(1, data[:output]) or not put(2, data[output:]):
        return FAILED
    if not handle and kind in (EXITED, KILLED):
        return int(code) if kind == EXITED else 128 + int(code)
    return go_on(sock, hello, number, node, nd, handle, pid, (kind, core, code), (bool(sizes[0] & END), bool(sizes[1] & END)), request)


def put(fd: int, data: bytes) -> bool:
    """Write what the program said. False when that failed in another way than that nobody reads it, and was said."""
    try:
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                import select

                select.select([], [fd], [])
    except BrokenPipeError:
        pass
    except OSError as error:
        name = ("", "standard output", "standard error")[fd]
        os.write(2, f"qnet on: {name}: {(error.strerror or '').lower()}\n".encode())
        return False
    return True


def go_on(
    sock: _socket.socket,
    hello: bytes,
    number: int,
    node: str,
    nd: int,
    handle: int,
    pid: int,
    end: tuple[int, int, int],
    over: tuple[bool, bool],
    request: bytes,
) -> int:
    """It did not end at once: the engine that moves everything takes over."""
    from qnetpy.cli.output import CommandError
    from qnetpy.cli.pump import Pump
    from resmgr.client import Client
    from resmgr.ids import PRIORITY_DEFAULT
    from resmgr.procmgr import message
    from resmgr.procmgr.client import Process

    flags = SPAWN_HEADER.unpack_from(request)[2]
    ended = message.parse_ended(message.ENDED.pack(*end)) if end[0] else None
    with Client.resume(sock.detach(), hello, number) as client:
        process = Process(client.connect(nd, PID_SYSTEM, CHID_PROCMGR, priority=PRIORITY_DEFAULT), handle, pid)
        try:
            return Pump(client, process, terminal=False, no_input=not flags & STDIN, ended=ended, over=over).run(node)
        except CommandError as error:
            print(f"qnet on: {error}", file=sys.stderr)
            return error.status
