"""Modules of every kind, with a bomb at every way into them, for `test_entries.py`: it goes off once where it was put."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import attrs
import trio

from resmgr.channel import ND_LOCAL, PID_SYSTEM, Connection, Credentials, Message, Pulse, Remote
from resmgr.dispatch import Buffer, Dispatch
from stack.core.driver import Port
from stack.core.hooks import ORDER_FILTER, Point
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.ipfilters import Packet
from stack.core.linuxinterface import LinuxInterface
from stack.core.module import Context
from stack.core.screen import Screen
from stack.core.wrapper import Around
from stack.crypto.algorithms import Aead
from stack.crypto.offer import Registration as Revocable
from stack.crypto.providers.openssl import OpenSSL, OpenSSLAead
from stack.frame import Frame
from stack.testing.driver import TYPE, frame

MAC = bytes.fromhex("020000000001")
GROUP = bytes.fromhex("0100deadbeef")
CHID, QUIET_CHID = 700, 701
WRAPPER = "bad.wrapper"
ROOT = Credentials(0, 0)


class Boom(Exception):
    """What modules raise here. Nothing of ours raises or expects it."""


RAISES = (Boom, SystemExit, KeyboardInterrupt, asyncio.CancelledError)
"""Of each branch of exceptions one; GeneratorExit is as the last two."""


@attrs.frozen
class Options:
    pass


class Bomb:
    """Goes off once where it was put."""

    def __init__(self, raises: type[BaseException] = Boom) -> None:
        self.where = ""
        self.raises = raises
        self.gone_off = 0

    def at(self, where: str) -> None:
        if where == self.where:
            self.where = ""
            self.gone_off += 1
            raise self.raises(where)


class Ready:
    """What the bad driver prepares."""

    def __init__(self, bomb: Bomb) -> None:
        self.bomb = bomb

    def close(self) -> None:
        self.bomb.at("prepared close")


class BadDriver:
    """A driver with everything that a driver may have."""

    name, mac, up = "bad0", MAC, True

    def __init__(self, dispatch: Dispatch, bomb: Bomb) -> None:
        bomb.at("attach")
        self.dispatch = dispatch
        self.bomb = bomb
        self.port: Port | None = None
        self.screens: Mapping[int, Screen] = {}

    @property
    def mtu(self) -> int:
        self.bomb.at("link")
        return 1500

    def start(self, port: Port) -> None:
        self.bomb.at("start")
        self.port = port

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self.bomb.at("accept")

    def transmit(self, frames: list[Frame]) -> None:
        self.bomb.at("transmit")

    def whole_runs(self, on: bool) -> None:
        self.bomb.at("whole_runs")

    def transmit_runs(self, frames: list[Frame]) -> None:
        self.bomb.at("transmit_runs")

    def screen(self, screens: Mapping[int, Screen]) -> None:
        self.screens = screens
        self.bomb.at("screen")

    @property
    def shed(self) -> int:
        self.bomb.at("shed")
        return 0

    def promiscuous(self, on: bool) -> None:
        self.bomb.at("promiscuous" if on else "not promiscuous")

    def groups(self, wanted: frozenset[bytes]) -> None:
        self.bomb.at("groups" if wanted else "no groups")

    def linux_interface(self) -> LinuxInterface | None:
        self.bomb.at("linux_interface")
        if self.bomb.where != "stand_aside":
            return None
        return LinuxInterface("lo", socket.if_nametoindex("lo"), os.open("/proc/self/ns/net", os.O_RDONLY))

    def stand_aside(self, aside: bool) -> None:
        self.bomb.at("stand_aside")

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None:
        self.bomb.at("set_specific")

    def get_specific(self) -> Mapping[str, object]:
        self.bomb.at("get_specific")
        return {}

    @property
    def below(self) -> tuple[str, ...]:
        self.bomb.at("below")
        return ()

    @property
    def linux_index(self) -> int:
        self.bomb.at("linux_index")
        return 0

    def module_counters(self) -> Mapping[str, int]:
        self.bomb.at("module_counters")
        return {}

    def keep(self) -> object:
        self.bomb.at("keep")
        return None

    def info(self) -> Mapping[str, str | int]:
        self.bomb.at("info")
        return {}

    def receive(self) -> None:
        """A frame arrives, as the kernel would tell."""
        assert self.port is not None
        port = self.port
        self.dispatch.call_soon(lambda: port.deliver([frame(MAC, MAC, b"x")]))

    def press(self) -> None:
        for one in self.screens.values():
            one.pressed()

    def detach(self) -> None:
        self.bomb.at("detach of a driver")


class BadWrapper(Around):
    def __init__(self, bomb: Bomb) -> None:
        super().__init__()
        self.bomb = bomb

    def to_wire(self, frames: list[Frame]) -> None:
        self.bomb.at("to_wire")
        self.send(frames)

    def to_stack(self, frames: list[Frame]) -> None:
        self.bomb.at("to_stack")
        self.hand_up(frames)

    def close(self) -> None:
        self.bomb.at("close")


class BadNetwork:
    """A network module as the kernel sees it, and the carrier of its one node."""

    def __init__(self, bomb: Bomb) -> None:
        self.bomb = bomb

    def remote(self, nd: object) -> Remote | int:
        self.bomb.at("network.remote")
        return self

    def relay(self, *args: object) -> None:
        self.bomb.at("network.relay")

    def pulse(self, connection: Connection, code: int, value: int, priority: int) -> int:
        self.bomb.at("network.pulse")
        return 0

    def detach(self, connection: Connection) -> None:
        self.bomb.at("network.detach")


class BadCrypto(OpenSSL):
    """A crypto provider that is OpenSSL otherwise."""

    def __init__(self, bomb: Bomb) -> None:
        bomb.at("crypto make")
        self.bomb = bomb

    def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
        self.bomb.at("crypto session")
        good, bomb = super().aead(algorithm, key), self.bomb

        class Session(OpenSSLAead):
            def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
                bomb.at("crypto call")
                bomb.at("crypto call in a thread")
                return super().seal_many(nonces, plaintexts, aads)

            def close(self) -> None:
                bomb.at("crypto session close")

        assert good._seal is not None
        assert good._open is not None
        return Session(algorithm, good._seal, good._open)

    def close(self) -> None:
        self.bomb.at("crypto provider close")


class BadProtocol:
    """A protocol that has something everywhere."""

    def __init__(self, context: Context, bomb: Bomb) -> None:
        self.context = context
        self.bomb = bomb
        stack = context.stack
        self.registrations: list[Revocable] = [
            stack.register_ethertype(TYPE, self.frames("handler")),
            stack.register_ip_protocol(99, self.frames("IP handler")),
            stack.register_vlan("good0", 9, self.frames("VLAN handler"), "bad vlan"),
            stack.on_interface(self.event),
            stack.on_hooks(lambda: bomb.at("hook watcher")),
            stack.add_ip_filter(self.ip_filter, "bad filter"),
            stack.crypto.add("bad", lambda: BadCrypto(bomb), by_name=True),
            stack.on_ip_filters(lambda: bomb.at("IP filter watcher")),
            stack.add_hook(Point.IN, self.hook("IN hook"), name="bad in", order=ORDER_FILTER, interfaces=("good0",)),
            stack.add_hook(Point.OUT, self.hook("OUT hook"), name="bad out", order=ORDER_FILTER, interfaces=("good0",)),
        ]
        stack.screen(TYPE, Screen((), (), 1, lambda: bomb.at("screen pressed")))
        self.channel = context.kernel.channel(self.message, on_pulse=self.pulse, chid=CHID)
        self.connection = context.kernel.connect(ND_LOCAL, PID_SYSTEM, QUIET_CHID, ROOT)
        self.connection.on_death = lambda connection: bomb.at("connection death")
        self.held: list[Message] = []
        context.kernel.network = BadNetwork(bomb)
        self.reader, self.writer = os.pipe()
        context.dispatch.attach_fd(self.reader, self.readable)

    def frames(self, where: str) -> Callable[[Interface, list[Frame]], None]:
        return lambda interface, frames: self.bomb.at(where)

    def hook(self, where: str) -> Callable[[Interface, list[Frame]], list[Frame]]:
        def run(interface: Interface, frames: list[Frame]) -> list[Frame]:
            self.bomb.at(where)
            return frames

        return run

    def ip_filter(self, interface: Interface, point: Point, packets: list[Packet]) -> list[bool]:
        self.bomb.at("IP filter")
        return [True] * len(packets)

    def event(self, event: InterfaceEvent, interface: Interface) -> None:
        self.bomb.at("interface listener")

    def message(self, message: Message) -> None:
        self.bomb.at("channel message")
        if self.bomb.where == "message read":
            message.read(0, 1, lambda count, data: self.bomb.at("message read"))
            message.reply(0)
        else:
            message.on_unblock = lambda: self.bomb.at("message unblock")
            self.held.append(message)

    def pulse(self, pulse: Pulse) -> None:
        self.bomb.at("channel pulse" if pulse.code >= 0 else "disconnect pulse")

    def readable(self) -> None:
        os.read(self.reader, 1)
        self.bomb.at("descriptor readable")

    def writable(self) -> None:
        self.context.dispatch.want_write(self.writer, None)
        self.bomb.at("descriptor writable")

    async def task(self) -> None:
        await trio.lowlevel.checkpoint()
        self.bomb.at("task")

    def defer(self, where: str) -> None:
        """Ask the dispatch for a call."""
        dispatch = self.context.dispatch

        def call() -> None:
            self.bomb.at(where)

        match where:
            case "call_soon":
                dispatch.call_soon(call)
            case "at_turn_end":
                dispatch.at_turn_end(call)
            case "call_from_thread":
                dispatch.call_from_thread(call)
            case "timer":
                dispatch.call_at(dispatch.now(), call)
            case "result of blocking work":
                dispatch.call_blocking(lambda: 1, lambda result: call())
            case "task":
                dispatch.start_task(self.task)
            case "descriptor readable":
                os.write(self.writer, b"x")
            case "descriptor writable":
                dispatch.attach_fd(self.writer, lambda: None)
                dispatch.want_write(self.writer, self.writable)

    def detach(self) -> None:
        for registration in self.registrations:
            registration.revoke()
        self.channel.destroy()
        self.context.kernel.network = None
        self.context.dispatch.detach_fd(self.reader)
        with suppress(KeyError):
            self.context.dispatch.detach_fd(self.writer)
        os.close(self.reader)
        os.close(self.writer)
        self.bomb.at("detach of a protocol")
