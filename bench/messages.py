"""Round trip of a small message between a program and a server in its node's daemon, and between two programs, through the daemon and over
a direct link, blocking and with Trio, beside a plain echo of the same kind.

    python bench/messages.py [rounds]

Both ends on one core, then on two; with and without looking before sleeping (docs/decisions/dispatch-waiting.md). Per round trip also the
processor time of either end, which a busy machine disturbs less than the latency.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from resmgr.aio import open_process, send
from resmgr.channel import Kernel
from resmgr.client import Client
from resmgr.ids import DESCRIPTORS_MAX
from resmgr.runner import SPIN_DEFAULT, open_dispatch
from resmgr.server import Message
from resmgr.transport.datagram import DATAGRAM_MAX
from resmgr.transport.unix import UnixServer

SIZE = 64
WARM_UP = 300
CHID = 50


def child(core: int, work: Callable[[], None]) -> int:
    """Run *work* in a new process on *core*; it is ended with `end`."""
    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setaffinity(0, {core})
            work()
        finally:
            os._exit(0)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def processor_time(pid: int | str) -> float:
    """Microseconds on a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e3


def measure(what: str, pid: int, rounds: int, turn: Callable[[], object]) -> None:
    for _ in range(WARM_UP):
        turn()
    took: list[float] = []
    ours, theirs = processor_time("self"), processor_time(pid)
    for _ in range(rounds):
        began = time.perf_counter()
        turn()
        took.append((time.perf_counter() - began) * 1e6)
    report(what, pid, took, ours, theirs)


async def measure_async(what: str, pid: int, rounds: int, turn: Callable[[], Awaitable[object]]) -> None:
    for _ in range(WARM_UP):
        await turn()
    took: list[float] = []
    ours, theirs = processor_time("self"), processor_time(pid)
    for _ in range(rounds):
        began = time.perf_counter()
        await turn()
        took.append((time.perf_counter() - began) * 1e6)
    report(what, pid, took, ours, theirs)


def report(what: str, pid: int, took: list[float], ours: float, theirs: float) -> None:
    rounds = len(took)
    ours, theirs = (processor_time("self") - ours) / rounds, (processor_time(pid) - theirs) / rounds
    took.sort()
    p50, p99 = took[rounds // 2], took[rounds * 99 // 100]
    print(f"{what:44} p50 {p50:7.1f}  p99 {p99:7.1f}  processor: client {ours:5.1f}  server {theirs:5.1f} µs", flush=True)


def plain(core: int, name: str, rounds: int) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def echo() -> None:
        left.close()
        while data := right.recv(SIZE):
            right.send(data)

    pid = child(core, echo)
    right.close()
    body = bytes(SIZE)
    measure(f"{name}, plain blocking echo", pid, rounds, lambda: (left.send(body), left.recv(SIZE)))
    left.close()
    end(pid)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * 4)

    def echo_all() -> None:
        left.close()
        while data := right.recvmsg(DATAGRAM_MAX, room)[0]:
            right.sendmsg([data])

    pid = child(core, echo_all)
    right.close()
    what = f"{name}, the same by sendmsg and recvmsg"
    measure(what, pid, rounds, lambda: (left.sendmsg([body]), left.recvmsg(DATAGRAM_MAX, room)))
    left.close()
    end(pid)


def daemon(path: Path, spin: float) -> None:
    async def main() -> None:
        async with open_dispatch(spin=spin) as dispatch:
            kernel = Kernel(dispatch, "bench")
            kernel.channel(lambda message: message.reply(0, message.data), chid=CHID)
            UnixServer(dispatch, kernel, path)
            await trio.sleep_forever()

    trio.run(main)


def ours(folder: Path, core: int, name: str, server_spin: float, client_spin: float, rounds: int) -> None:
    path = folder / "socket"
    path.unlink(missing_ok=True)
    pid = child(core, lambda: daemon(path, server_spin))
    while not path.exists():
        time.sleep(0.01)
    looks = {(False, False): "nobody looks", (True, False): "daemon looks", (True, True): "both look"}
    with Client(path, spin=client_spin) as client:
        connection = client.connect(0, 1, CHID)
        body = bytes(SIZE)
        what = f"{name}, {looks[bool(server_spin), bool(client_spin)]}"
        measure(what, pid, rounds, lambda: connection.send(body, reply_len=SIZE))
    end(pid)


def program(path: Path, place: int, direct: bool) -> None:
    """A blocking server; tells its address through the pipe *place*."""
    with Client(path, direct=direct) as client:
        channel = client.channel()
        os.write(place, f"{channel.pid} {channel.chid}".encode())
        while True:
            message = channel.receive()
            if isinstance(message, Message):
                message.reply(0, message.data)


def trio_program(path: Path, place: int, direct: bool) -> None:
    """A Trio server of the shortest kind: its handler answers at once."""

    async def main() -> None:
        async with open_process(path, direct=direct) as process:
            channel = process.kernel.channel(lambda message: message.reply(0, message.data))
            os.write(place, f"{channel.pid} {channel.chid}".encode())
            await trio.sleep_forever()

    trio.run(main)


def through(folder: Path, daemon_core: int, server_core: int, name: str, rounds: int, kind: str, direct: bool) -> None:
    """From program to program. Processor time is the client's and the server's."""
    path = folder / "socket"
    path.unlink(missing_ok=True)
    middle = child(daemon_core, lambda: daemon(path, SPIN_DEFAULT))
    while not path.exists():
        time.sleep(0.01)
    read, write = os.pipe()
    serve = trio_program if kind == "Trio" else program
    server = child(server_core, lambda: serve(path, write, direct))
    pid, chid = map(int, os.read(read, 100).split())
    what = f"{name}, {kind}, {'direct' if direct else 'through the daemon'}"
    body = bytes(SIZE)
    if kind == "Trio":
        trio.run(trio_client, path, pid, chid, direct, what, server, rounds)
    else:
        with Client(path, direct=direct) as client:
            connection = client.connect(0, pid, chid)
            measure(what, server, rounds, lambda: connection.send(body, reply_len=SIZE))
    end(server)
    end(middle)
    os.close(read)
    os.close(write)


async def trio_client(path: Path, pid: int, chid: int, direct: bool, what: str, server: int, rounds: int) -> None:
    async with open_process(path, direct=direct) as process:
        connection = process.connect(0, pid, chid)
        body = (bytes(SIZE),)

        async def turn() -> None:
            await send(connection, body, SIZE)

        await measure_async(what, server, rounds, turn)


def bare_trio(core: int, name: str, rounds: int) -> None:
    """What Trio itself costs: a task at each end of a socketpair that receives and sends."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def echo() -> None:
        sock = trio.socket.from_stdlib_socket(right)
        while data := await sock.recv(SIZE):
            await sock.send(data)

    def serve() -> None:
        left.close()
        trio.run(echo)

    pid = child(core, serve)
    right.close()

    async def ask() -> None:
        sock = trio.socket.from_stdlib_socket(left)
        body = bytes(SIZE)

        async def turn() -> None:
            await sock.send(body)
            await sock.recv(SIZE)

        await measure_async(f"{name}, plain Trio echo", pid, rounds, turn)

    trio.run(ask)
    left.close()
    end(pid)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    with tempfile.TemporaryDirectory() as folder:
        for name, core in (("one core", cores[0]), ("two cores", cores[-1])):
            plain(core, name, rounds)
            for server_spin, client_spin in ((0.0, 0.0), (SPIN_DEFAULT, 0.0), (SPIN_DEFAULT, SPIN_DEFAULT)):
                ours(Path(folder), core, name, server_spin, client_spin, rounds)
            for direct in (False, True):
                through(Path(folder), cores[0], core, name, rounds, "blocking", direct)
            bare_trio(core, name, rounds)
            for direct in (False, True):
                through(Path(folder), cores[0], core, name, rounds, "Trio", direct)


if __name__ == "__main__":
    main()
