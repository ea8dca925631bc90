"""Every way into a module, with an exception behind it: whoever calls goes on, the module's guard counts it, the module is restarted.

The ways are those of the table in docs/stack/manager.md; whoever adds one adds it here.
"""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import trio

import stack.core
from resmgr.channel import ND_LOCAL, PID_SYSTEM, Connection, Nd
from resmgr.dispatch import Buffer
from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.system import System
from stack.core.errors import ModuleError
from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.ipfilters import Packet
from stack.core.loaded import Loaded
from stack.core.module import Context, Kind, Module
from stack.core.screen import Screen
from stack.core.stack import Stack
from stack.crypto.algorithms import AES_128_GCM
from stack.crypto.api import ProviderFailed
from stack.crypto.jobs import Jobs
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
from tests.stack.core.badmodules import (
    CHID,
    GROUP,
    MAC,
    QUIET_CHID,
    RAISES,
    ROOT,
    WRAPPER,
    BadDriver,
    BadProtocol,
    BadWrapper,
    Bomb,
    Boom,
    Options,
    Ready,
)

pytestmark = pytest.mark.host

MANAGER = Path(__file__).parents[3] / "docs/stack/manager.md"


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
        return Ready(self.bomb)

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

    def leave(self) -> None:
        """Its client, of which it has heard."""
        self.client.pulse(1)
        self.client.close()

    def away(self) -> Connection:
        return self.system.kernel.connect(Nd(7), 1, 1, ROOT)

    def deliver(self, interface: str, ethertype: int, tags: tuple[tuple[int, int], ...] = ()) -> None:
        self.interface(interface).deliver([frame(self.interface(interface).mac, BROADCAST[:5] + b"\0", b"x", ethertype, tags)])


Trigger = Callable[[World], object]


def refused(call: Callable[[], object]) -> None:
    """Who asks for it hears of it."""
    with pytest.raises(ModuleError, match="its driver failed, as the log says"):
        call()


def taken(world: World) -> None:
    """A load that fails for another reason, which is what is told."""
    with pytest.raises(ModuleError, match="bad0") as told:
        world.load_driver()
    assert told.value.errno == errno.EEXIST


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
    "prepared close": taken,
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
    "disconnect pulse": lambda world: world.leave(),
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
ENDING = ("prepared close", "detach of a driver", "detach of a protocol", "close", "crypto provider close")


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
