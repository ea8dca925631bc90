"""A node's discovery alone, run by test_zeroconf.py in a namespace of its own: commands as JSON lines in, events as JSON lines out."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.abc
import json
import logging
import os
import resource
import socket
import struct
import sys
import threading
import time

import trio

from qnetpy.discovery.addresses import usable_addresses
from qnetpy.discovery.hint import Announcement, Hint, Interface
from qnetpy.discovery.responder import Responder
from qnetpy.discovery.zeroconf import ZeroconfDiscovery
from resmgr.runner import TrioDispatch, open_dispatch


def say(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **facts}), flush=True)


def interface(text: str) -> Interface:
    """`eth0`, `eth0:PORT` with the UDP bearer too, or `eth0:PORT:only` with nothing else."""
    name, _, rest = text.partition(":")
    port, _, only = rest.partition(":")
    if only:
        return Interface(name, b"", int(port))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return Interface(name, fcntl.ioctl(sock, 0x8927, struct.pack("16s24x", name.encode()))[18:24], int(port or 0))


class SlowImport(importlib.abc.MetaPathFinder):
    """Has who imports zeroconf wait."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "zeroconf":
            self.begun.set()
            self.go_on.wait(10.0)


class Node:
    def __init__(self, dispatch: TrioDispatch, done: trio.Event) -> None:
        self.dispatch = dispatch
        self.done = done
        self.discovery = ZeroconfDiscovery()
        self.rest = b""
        dispatch.attach_fd(0, self.readable)

    def heard(self, event: str, hint: Hint) -> None:
        place = {"mac": hint.mac.hex(), "ethertype": hint.ethertype, "port": hint.port, "addresses": hint.addresses}
        say(event, interface=hint.interface, token=hint.token.hex(), **place)

    def readable(self) -> None:
        data = os.read(0, 65536)
        if not data:
            self.dispatch.detach_fd(0)
            self.done.set()
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            getattr(self, json.loads(line)[0])(*json.loads(line)[1:])

    def start(self, token: str, *names: str) -> None:
        begin = time.monotonic()
        say("starting")
        announce = Announcement(bytes.fromhex(token), 0x88B5)
        interfaces = [interface(name) for name in names]
        self.discovery.start(
            self.dispatch, interfaces, announce, lambda hint: self.heard("hint", hint), lambda hint: self.heard("gone", hint)
        )
        say("started", took=time.monotonic() - begin)

    def add(self, name: str) -> None:
        self.discovery.interface_added(interface(name))

    def remove(self, name: str) -> None:
        self.discovery.interface_removed(name)

    def facts(self) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        say("facts", drops=self.discovery.drops, cpu=usage.ru_utime + usage.ru_stime, threads=threading.active_count())

    def flash(self, token: str, rounds: int, name: str) -> None:
        """Come and go: at once, while the library is being imported, for which the import waits; then again and again a responder, before
        what it began had a turn."""
        announce = Announcement(bytes.fromhex(token), 0x88B5)
        slow = SlowImport()
        sys.meta_path.insert(0, slow)
        self.start(token, name)
        assert slow.begun.wait(10.0)
        self.discovery.close()
        slow.go_on.set()
        threads = [thread for thread in threading.enumerate() if thread.name == "qnet-discovery"]
        for thread in threads:
            thread.join(10.0)

        async def come_and_go() -> None:
            for _ in range(rounds):
                responder = Responder(announce, interface(name), usable_addresses([name])[name], lambda heard: None)
                await responder.start()
                responder.withdraw(goodbye=True)
                await responder.close()

        asyncio.run(come_and_go())
        say("flashed", threads=[thread.name for thread in threads if thread.is_alive()])

    def close(self) -> None:
        begin = time.monotonic()
        self.discovery.close()
        names = [thread.name for thread in threading.enumerate() if thread.name == "qnet-discovery"]
        say("closed", took=time.monotonic() - begin, threads=names)


async def main() -> None:
    done = trio.Event()
    async with open_dispatch() as dispatch:
        Node(dispatch, done)
        say("ready")
        await done.wait()


if __name__ == "__main__":
    # A callback that took long says how busy this machine is; what is complained of otherwise is a leak.
    logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))
    sys.exit(trio.run(main))
