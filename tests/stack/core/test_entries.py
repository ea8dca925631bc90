"""Every way into a module, with an exception behind it: whoever calls goes on, the module's guard counts it, the module is restarted.

The ways are those of the table in docs/stack/manager.md; whoever adds one adds it here.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import os
import pkgutil
import re
import socket
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
import trio

import stack.core
from resmgr.channel import ND_LOCAL, PID_SYSTEM, Connection, Credentials, Message, Nd, Pulse, Remote
from resmgr.dispatch import Buffer, Dispatch
from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.system import System
from stack.core.driver import Port
from stack.core.errors import ModuleError
from stack.core.hooks import ORDER_FILTER, Point
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.ipfilters import Packet
from stack.core.linuxinterface import LinuxInterface
from stack.core.loaded import Loaded
from stack.core.module import Context, Kind, Module
from stack.core.screen import Screen
from stack.core.stack import Stack
from stack.core.wrapper import Around
from stack.crypto.algorithms import AES_128_GCM, Aead
from stack.crypto.api import ProviderFailed
from stack.crypto.jobs import Jobs
from stack.crypto.offer import Registration as Revocable
from stack.crypto.providers.openssl import OpenSSL, OpenSSLAead
from stack.drivers.hub import Hub
from stack.frame import Frame
from stack.managers.facts import interface_of, module
from stack.managers.iopkt import IoPktManager
from stack.managers.protocol import CHID_STACK, pack_request, unpack_reply
from stack.testing.driver import OTHER_TYPE, TYPE, frame
from stack.testing.runs import tcp_run
from stack.wire.ethernet import BROADCAST, TPID_8021Q
from stack.wire.ip import parse_ip
from stack.wire.run import Run

pytestmark = pytest.mark.host

MANAGER = Path(__file__).parents[3] / "docs/stack/manager.md"
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

    def close(self) -> None: ...


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


class World:
    """A stack with a good interface and a good protocol, and the bad modules, which are restarted."""

    def __init__(self, dispatch: TrioDispatch, raises: type[BaseException] = Boom) -> None:
        self.bomb = Bomb(raises)
        self.system = System(dispatch, "n")
        self.stack = Stack(self.system, os.urandom)
        self.hub = Hub(dispatch)
        self.manager = IoPktManager(self.stack, os.geteuid())
        self.heard = 0
        self.statuses: list[int] = []
        self.quiet = self.system.kernel.channel(lambda message: message.reply(0), chid=QUIET_CHID)
        self.stack.register_ethertype(OTHER_TYPE, self.good)
        self.far = self.hub.port("far", bytes.fromhex("020000000009"), dispatch=dispatch)
        self.stack.load(self.hub.module(), "name=good0,mac=02:00:00:00:00:02")
        self.protocols: list[BadProtocol] = []
        self.drivers: list[BadDriver] = []
        self.protocol = self.stack.load(Module("badprotocol", Kind.PROTOCOL, Options, self.make_protocol), "restart=1")
        self.driver = self.load_driver()
        self.client = self.system.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID, ROOT)

    def make_protocol(self, context: Context, options: Options) -> BadProtocol:
        self.protocols.append(BadProtocol(context, self.bomb))
        return self.protocols[-1]

    def prepare(self, system: System, options: Options) -> Ready:
        self.bomb.at("prepare")
        return Ready()

    def make_driver(self, context: Context, options: Options) -> BadDriver:
        self.drivers.append(BadDriver(context.dispatch, self.bomb))
        return self.drivers[-1]

    def load_driver(self, wrap: Sequence[tuple[str, str]] = ()) -> Loaded:
        module = Module("baddriver", Kind.DRIVER, Options, self.make_driver, prepare=self.prepare)
        loaded = self.stack.load(module, "restart=1", wrap=wrap)
        self.made = len(self.protocols) + len(self.drivers)
        return loaded

    def over(self, where: str) -> bool:
        """It has gone off, and what is to be restarted was."""
        made = len(self.protocols) + len(self.drivers)
        return self.bomb.gone_off == 1 and (where in (*NOT_LOADED, *ENDING) or made == self.made + 1)

    def good(self, interface: Interface, frames: list[Frame]) -> None:
        self.heard += len(frames)

    def interface(self, name: str) -> Interface:
        found = self.stack.interface(name)
        assert found is not None
        return found

    def ask(self, command: bool) -> None:
        """A request to the driver, as `qnet` would ask it."""
        more: dict[str, object] = {"command": "anything", "arguments": {}} if command else {}
        self.request("specific", **more)

    def request(self, verb: str, **more: object) -> None:
        asking = self.system.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, ROOT)
        asking.submit([pack_request(verb, interface="bad0", **more)], 65536, self.answered)

    def answered(self, status: int, reply: Buffer) -> None:
        code = unpack_reply(bytes(reply)).get("errno", 0) if status == 0 else -status
        assert isinstance(code, int)
        self.statuses.append(-code)

    def status(self, status: int, reply: Buffer) -> None:
        self.statuses.append(status)

    def send(self) -> None:
        """A message to the bad protocol."""
        self.client.submit([b"hello"], 10, self.status)

    def hold(self) -> None:
        """One that is held, and whose client gives up."""
        pending = self.client.submit([b"hello"], 10, self.status)
        assert pending is not None
        pending.unblock()

    def away(self) -> Connection:
        return self.system.kernel.connect(Nd(7), 1, 1, ROOT)

    def deliver(self, interface: str, ethertype: int, tags: tuple[tuple[int, int], ...] = ()) -> None:
        self.interface(interface).deliver([frame(self.interface(interface).mac, BROADCAST[:5] + b"\0", b"x", ethertype, tags)])


Trigger = Callable[[World], object]


def refused(call: Callable[[], object]) -> None:
    """Who asks for it hears of it."""
    with pytest.raises(ModuleError, match="its driver failed, as the log says"):
        call()


def not_loaded(call: Callable[[], object]) -> None:
    with pytest.raises(RAISES):
        call()


def wrapped(world: World) -> World:
    """With the bad wrapper around the bad driver."""
    world.stack.unload(world.driver)
    world.driver = world.load_driver([(WRAPPER, "")])
    return world


def talk(world: World) -> None:
    """A channel dies whose client the bad protocol is; an answer comes to it."""
    world.protocols[-1].connection.submit([b"?"], 0, lambda status, reply: world.bomb.at("connection answer"))


def sent_whole(world: World) -> None:
    """A run of segments, while a hook wants runs."""
    hook = world.stack.add_hook(Point.IN, lambda interface, frames: frames, runs=True)
    world.stack.output(world.interface("bad0"), [Run.make(*tcp_run(bytes(2000), 1000))])
    hook.revoke()


def filtered(world: World) -> None:
    """A packet is asked about."""
    packet = frame(MAC, MAC, bytes.fromhex("4500001400000000401166d70a0000010a000002"), 0x0800)
    asked = {0: Packet(packet, 14, parse_ip(memoryview(packet)[14:]))}
    passed = world.stack.ip_filters.passing(world.interface("good0"), Point.IN, asked)
    assert not passed, "a filter that fails lets nothing through"


def killed(world: World) -> None:
    talk(world)
    world.quiet.destroy()


def ciphered(world: World, later: bool = False) -> None:
    """What is asked of the bad provider gets its answer elsewhere."""
    session, items = world.stack.crypto.aead(AES_128_GCM, bytes(16)), ([bytes(12)], [b"text"], [b""])
    right = session.seal_many(*items)
    assert world.stack.crypto.use("bad").moved == 1
    jobs = Jobs(world.system.dispatch, inline=0)

    def done(result: object) -> None:
        assert result == right
        session.close()

    if later:
        session.seal_later(jobs, *items, done)
    else:
        done(session.seal_many(*items))


def unprepared(world: World) -> None:
    """A provider that cannot make what it is to move."""
    session = world.stack.crypto.aead(AES_128_GCM, bytes(16))
    with pytest.raises(ProviderFailed, match="nothing has changed"):
        world.stack.crypto.use("bad")
    assert session.provider == "openssl"


def unused(world: World) -> None:
    world.stack.crypto.use("bad")
    world.stack.unload(world.protocol)


def removed(world: World) -> None:
    world.stack.unload(world.driver)


ENTRIES: Mapping[str, Trigger] = {
    # Of drivers
    "prepare": lambda world: not_loaded(lambda: world.load_driver()),
    "attach": lambda world: not_loaded(lambda: world.load_driver()),
    "start": lambda world: not_loaded(lambda: wrapped(world)),
    "accept": lambda world: world.stack.register_ethertype(0x88B7, lambda interface, frames: None).revoke(),
    "transmit": lambda world: world.stack.output(world.interface("bad0"), [bytes(60)]),
    "transmit_runs": lambda world: sent_whole(world),
    "whole_runs": lambda world: world.stack.add_hook(Point.IN, lambda interface, frames: frames, runs=True).revoke(),
    "link": lambda world: world.request("interface", up=False, mtu=1000),
    "screen": lambda world: world.stack.screen(OTHER_TYPE, Screen((), (), 1, lambda: None)),
    "shed": lambda world: world.stack.shed(),
    "promiscuous": lambda world: refused(lambda: world.stack.promiscuous(world.interface("bad0"), "test")),
    "not promiscuous": lambda world: world.stack.promiscuous(world.interface("bad0"), "test").revoke(),
    "groups": lambda world: refused(lambda: world.stack.join(world.interface("bad0"), GROUP, "test")),
    "no groups": lambda world: world.stack.join(world.interface("bad0"), GROUP, "test").revoke(),
    "linux_interface": lambda world: world.stack.load("bridge", "add=bad0,engine=threads"),
    "stand_aside": lambda world: world.stack.load("bridge", "add=bad0,engine=threads"),
    "linux_index": lambda world: world.interface("bad0").linux_index,
    "below": lambda world: world.stack.load("vlan", "vlan=5,vlanif=bad0"),
    "set_specific": lambda world: world.ask(True),
    "get_specific": lambda world: world.ask(False),
    "info": lambda world: interface_of(world.stack, "bad0"),
    "module_counters": lambda world: module(world.driver),
    "keep": lambda world: world.stack.restarter.failed(world.driver.guard),
    "detach of a driver": removed,
    # Of wrappers
    "to_wire": lambda world: wrapped(world).stack.output(world.interface("bad0"), [bytes(60)]),
    "to_stack": lambda world: wrapped(world).drivers[-1].receive(),
    "close": lambda world: removed(wrapped(world)),
    # What modules register
    "handler": lambda world: world.deliver("good0", TYPE),
    "IP handler": lambda world: world.stack.received_ip(world.interface("good0"), 99, [bytes(20)]),
    "VLAN handler": lambda world: world.deliver("good0", OTHER_TYPE, ((TPID_8021Q, 9),)),
    "IP filter": lambda world: filtered(world),
    "IP filter watcher": lambda world: world.stack.add_ip_filter(lambda interface, point, packets: [], "another").revoke(),
    "IN hook": lambda world: world.deliver("good0", TYPE),
    "OUT hook": lambda world: world.stack.output(world.interface("good0"), [bytes(60)]),
    "interface listener": lambda world: world.interface("good0").set_addresses(("10.0.0.1",)),
    "hook watcher": lambda world: world.stack.add_hook(Point.OUT, lambda interface, frames: frames).revoke(),
    "screen pressed": lambda world: world.drivers[-1].press(),
    "detach of a protocol": lambda world: world.stack.unload(world.protocol),
    # Of crypto providers
    "crypto make": lambda world: world.stack.crypto.facts(),
    "crypto session": unprepared,
    "crypto call": ciphered,
    "crypto call in a thread": lambda world: ciphered(world, later=True),
    "crypto session close": ciphered,
    "crypto provider close": unused,
    # On the dispatch
    **{
        name: lambda world: world.protocols[-1].defer(world.bomb.where)
        for name in ("call_soon", "at_turn_end", "call_from_thread", "timer", "result of blocking work", "task")
    },
    "descriptor readable": lambda world: world.protocols[-1].defer("descriptor readable"),
    "descriptor writable": lambda world: world.protocols[-1].defer("descriptor writable"),
    # Messages
    "channel message": lambda world: world.send(),
    "message read": lambda world: world.send(),
    "message unblock": lambda world: world.hold(),
    "channel pulse": lambda world: world.client.pulse(1),
    "disconnect pulse": lambda world: world.client.close(),
    "connection answer": talk,
    "connection death": killed,
    "network.remote": lambda world: world.away().submit([b"?"], 0, world.status),
    "network.relay": lambda world: world.away().submit([b"?"], 0, world.status),
    "network.pulse": lambda world: world.away().pulse(1),
    "network.detach": lambda world: world.away().close(),
}
STATUSES: Mapping[str, list[int]] = {
    **{key: [-errno.EIO] for key in ("link", "set_specific", "get_specific", "channel message", "network.remote", "network.relay")},
    "message unblock": [-errno.EINTR],
    "message read": [0],
}
"""What whoever asked gets."""
NOT_LOADED = ("prepare", "attach", "start")
"""There, a load does not succeed; nobody restarts what was not loaded."""
ENDING = ("detach of a driver", "detach of a protocol", "close", "crypto provider close")


@pytest.mark.parametrize("raises", RAISES)
@pytest.mark.parametrize("where", [pytest.param(one, marks=pytest.mark.priv) if one == "stand_aside" else one for one in ENTRIES])
async def test_a_module_that_raises_there_is_isolated_counted_and_restarted(
    where: str, raises: type[BaseException], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_dispatch() as dispatch:
        world = World(dispatch, raises)
        wrapper = Module("badwrapper", Kind.WRAPPER, Options, lambda context, options: BadWrapper(world.bomb))
        for name, file in (("bad", types.ModuleType("bad")), (WRAPPER, types.ModuleType(WRAPPER))):
            monkeypatch.setattr(file, "MODULE", wrapper, raising=False)
            monkeypatch.setitem(sys.modules, name, file)
        before = list(world.stack.loaded)
        world.bomb.where = where

        def trigger() -> None:
            ENTRIES[where](world)

        dispatch.enter(trigger)

        with trio.fail_after(5):
            while not world.over(where):  # noqa: ASYNC110  # what is awaited is in the dispatch: no event tells
                await trio.sleep(0.001)
        assert world.bomb.gone_off == 1
        if where in NOT_LOADED:
            assert set(world.stack.loaded) <= set(before)
        else:
            assert sum(world.stack.failures().values()) == 1
            assert re.search("module bad(driver|protocol): exception in", caplog.text)
        assert world.statuses == STATUSES.get(where, [])
        for _ in range(2):
            dispatch.enter(lambda: world.deliver("good0", OTHER_TYPE))
        assert world.heard == 2, "others go on"
        dispatch.enter(world.stack.close)
        world.manager.close()
        assert dispatch.statistics().descriptors == 0


@pytest.mark.parametrize("raises", RAISES)
async def test_a_restart_that_fails_is_tried_again(raises: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    async with open_dispatch() as dispatch:
        world = World(dispatch, raises)
        world.bomb.where = "attach"
        dispatch.enter(lambda: world.stack.restarter.failed(world.driver.guard))

        with trio.fail_after(5):
            while not world.over("attach"):  # noqa: ASYNC110  # what is awaited is in the dispatch: no event tells
                await trio.sleep(0.001)
        assert world.stack.interface("bad0") is None
        assert "baddriver cannot be loaded again" in caplog.text
        dispatch.enter(world.stack.close)
        world.manager.close()


@pytest.mark.parametrize("raises", RAISES)
@pytest.mark.parametrize("where", ["info", "get_specific", "link"])
async def test_one_driver_that_raises_keeps_nobody_from_the_facts(where: str, raises: type[BaseException]) -> None:
    async with open_dispatch() as dispatch:
        world = World(dispatch, raises)
        world.bomb.where = where
        asking = world.system.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, ROOT)
        told: list[dict[str, object]] = []
        asking.submit([pack_request("facts")], 1 << 20, lambda status, reply: told.append(unpack_reply(bytes(reply))))

        with trio.fail_after(5):
            while not told:  # noqa: ASYNC110  # what is awaited is in the dispatch: no event tells
                await trio.sleep(0.001)
        found = told[0]["interfaces"]
        assert isinstance(found, list)
        assert [one["name"] for one in found] == ["good0", "bad0"]
        assert sum(world.stack.failures().values()) == world.bomb.gone_off
        assert world.bomb.gone_off == (where != "link"), "what a driver last told of its link needs no call"
        dispatch.enter(world.stack.close)
        world.manager.close()


NO_ENTRIES = {
    **dict.fromkeys(("mac", "mtu", "up"), "`link`"),
    **dict.fromkeys(("name", "around"), "asked when it is loaded, as `attach`"),
    "inner": "a wrapper's, for who looks for a capability",
    "detach": "two entries, of a driver and of a protocol",
}
"""Of drivers and modules."""


def test_every_capability_of_a_driver_or_module_is_an_entry() -> None:
    """Whoever adds one must say here what happens when it raises."""
    found: set[str] = set()
    for one in pkgutil.iter_modules(stack.core.__path__, "stack.core."):
        file = importlib.import_module(one.name)
        kinds = [kind for kind in vars(file).values() if isinstance(kind, type) and getattr(kind, "_is_protocol", False)]
        for kind in kinds:
            if issubclass_of_name(kind, ("Driver", "Attached", "Counting")):
                found |= {name for name in vars(kind) if not name.startswith("_")}
    assert {"accept", "whole_runs", "below", "keep"} <= found
    assert found - NO_ENTRIES.keys() <= set(ENTRIES)


def issubclass_of_name(kind: type, names: tuple[str, ...]) -> bool:
    return any(base.__name__ in names for base in kind.__mro__)


def test_the_documentation_lists_them_all() -> None:
    listed = re.search(r"## Ways into a module\n(.*?)\n## ", MANAGER.read_text(), re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"^\| `([^`]+)`[^|]* \|", listed[1], re.MULTILINE)) == set(ENTRIES)
