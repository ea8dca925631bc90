"""The programs of `qnet bench` that run on a node: clients print one JSON object, servers print `ready` and serve until they are killed.

    python bench/probe.py [--cpu N] VERB ...

One process per measurement, so that nothing of one is warm in the next but what the node itself keeps.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

from resmgr.procmgr.message import Spawn

SIZE = 64
WARM_UP = 300
PORT = 7100
NAME = "bench"
BLOCK = 1 << 20
UNKNOWN_REQUEST = b"\xff\xff" + bytes(SIZE - 2)
"""To the far process manager: a type it does not know. It is looked up and answered ENOSYS: the shortest way through a daemon and back."""

TRUE = Spawn((b"true",))


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def round_trips(once: Callable[[], None], count: int) -> None:
    """p50 and p99 of *count* calls in µs, after a warm-up."""
    for _ in range(WARM_UP):
        once()
    clock = time.perf_counter_ns
    took = []
    for _ in range(count):
        begin = clock()
        once()
        took.append(clock() - begin)
    took.sort()
    say(p50=took[count // 2] / 1e3, p99=took[count * 99 // 100] / 1e3)


def serve_tcp() -> None:
    server = socket.create_server(("", PORT))
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(SIZE):
            connection.sendall(data)


def tcp(host: str, count: int) -> None:
    connection = socket.create_connection((host, PORT))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = bytes(SIZE)

    def once() -> None:
        connection.sendall(data)
        connection.recv(SIZE)

    round_trips(once, count)


def serve_zmq() -> None:
    import zmq

    server = zmq.Context().socket(zmq.REP)
    server.bind(f"tcp://*:{PORT + 1}")
    print("ready", flush=True)
    while True:
        server.send(server.recv())


def zmq_req(host: str, count: int) -> None:
    import zmq

    client = zmq.Context().socket(zmq.REQ)
    client.connect(f"tcp://{host}:{PORT + 1}")
    data = bytes(SIZE)

    def once() -> None:
        client.send(data)
        client.recv()

    round_trips(once, count)
    client.close(0)


def run_socket() -> str:
    return os.path.join(os.environ.get("QNET_RUN_DIR") or "/run/qnet", "socket")


def serve_name() -> None:
    from resmgr.client import Client
    from resmgr.names.client import name_attach
    from resmgr.server import Pulse

    with Client(run_socket()) as client, name_attach(client, NAME) as server:
        print("ready", flush=True)
        while True:
            message = server.channel.receive()
            if message is not None and not isinstance(message, Pulse):
                message.reply(0, message.data)


def name(node: str, count: int) -> None:
    from resmgr.client import Client
    from resmgr.names.client import name_open

    with Client(run_socket()) as client:
        connection = name_open(client, NAME, node=node)
        data = bytes(SIZE)

        def once() -> None:
            connection.send(data, reply_len=SIZE)

        round_trips(once, count)


def daemon(node: str, count: int) -> None:
    from resmgr.client import Client
    from resmgr.errors import ResmgrError
    from resmgr.ids import CHID_PROCMGR, PID_SYSTEM
    from resmgr.procmgr.client import node_descriptor

    with Client(run_socket()) as client:
        connection = client.connect(node_descriptor(client, node), PID_SYSTEM, CHID_PROCMGR)

        def once() -> None:
            try:
                connection.send(UNKNOWN_REQUEST, reply_len=SIZE)
            except ResmgrError as error:
                if error.errno != errno.ENOSYS:
                    raise

        round_trips(once, count)


def start(command: str, count: int) -> None:
    """Milliseconds from fork to exit of a command, after one that warms it up."""
    words = shlex.split(command)
    took = []
    for _ in range(count + 1):
        begin = time.perf_counter()
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        took.append((time.perf_counter() - begin) * 1e3)
    took = sorted(took[1:])
    say(p50=took[count // 2], p99=took[count * 99 // 100])


def run(node: str, count: int) -> None:
    """Milliseconds of a blocking program that runs `true` on a node."""
    from resmgr.client import Client
    from resmgr.procmgr import client as programs

    with Client(run_socket()) as client:

        def once() -> None:
            assert programs.run(client, programs.node_descriptor(client, node), TRUE).ended.status == 0

        took = []
        for _ in range(count + 1):
            begin = time.perf_counter()
            once()
            took.append((time.perf_counter() - begin) * 1e3)
    took = sorted(took[1:])
    say(p50=took[count // 2], p99=took[count * 99 // 100])


def run_trio(node: str, count: int) -> None:
    """The same by a Trio program."""
    import trio

    from resmgr.aio import open_process
    from resmgr.client import Client
    from resmgr.ids import CHID_PROCMGR, PID_SYSTEM
    from resmgr.procmgr import aio
    from resmgr.procmgr.client import node_descriptor

    with Client(run_socket()) as client:
        nd = node_descriptor(client, node)

    async def measure() -> list[float]:
        took = []
        async with open_process(run_socket()) as process:
            for _ in range(count + 1):
                begin = time.perf_counter()
                assert (await aio.run(process.connect(nd, PID_SYSTEM, CHID_PROCMGR), TRUE)).ended.status == 0
                took.append((time.perf_counter() - begin) * 1e3)
        return sorted(took[1:])

    took = trio.run(measure)
    say(p50=took[count // 2], p99=took[count * 99 // 100])


def pipe(command: str, size: int) -> None:
    """MB/s of *size* bytes through a command that gives back what it gets, the start of the command included."""
    begin = time.perf_counter()
    with subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        writer = threading.Thread(target=_fill, args=(process.stdin, size))
        writer.start()
        found = 0
        buffer = bytearray(BLOCK)
        while count := process.stdout.readinto(buffer):  # type: ignore[attr-defined]  # a buffered reader has it
            found += count
        writer.join()
    if found != size or process.returncode:
        raise OSError(errno.EIO, f"{found} of {size} bytes came back, exit status {process.returncode}")
    say(rate=size / (time.perf_counter() - begin) / 1e6)


def _fill(file: IO[bytes], size: int) -> None:
    block = random.Random(1).randbytes(BLOCK)
    with file:
        for _ in range(size // BLOCK):
            file.write(block)


def usage() -> None:
    """Processor seconds and context switches of every process of the node, its threads included: {pid: [command, seconds, switches]}."""
    ticks = os.sysconf("SC_CLK_TCK")
    found: dict[str, tuple[str, float, int]] = {}
    for pid in os.listdir("/proc"):
        if not pid.isdecimal() or int(pid) == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                text = file.read()
            fields = text.rpartition(")")[2].split()
            switches = 0
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii", errors="replace") as file:
                    switches += sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)
        except OSError:
            continue
        found[pid] = (text[text.index("(") + 1 : text.rindex(")")], (int(fields[11]) + int(fields[12])) / ticks, switches)
    say(processes=found)


CLIENTS: dict[str, Callable[[str, int], None]] = {
    "tcp": tcp,
    "zmq": zmq_req,
    "name": name,
    "daemon": daemon,
    "start": start,
    "run": run,
    "run-trio": run_trio,
    "pipe": pipe,
}
SERVERS: dict[str, Callable[[], None]] = {"serve-tcp": serve_tcp, "serve-zmq": serve_zmq, "serve-name": serve_name, "usage": usage}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", type=int)
    parser.add_argument("verb", choices=[*CLIENTS, *SERVERS])
    parser.add_argument("where", nargs="?", default="")
    parser.add_argument("count", nargs="?", type=int, default=0)
    args = parser.parse_args()
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    try:
        if args.verb in SERVERS:
            SERVERS[args.verb]()
        else:
            CLIENTS[args.verb](args.where, args.count)
    except OSError as error:
        sys.exit(f"{args.verb} {args.where}: {error}")


if __name__ == "__main__":
    main()
