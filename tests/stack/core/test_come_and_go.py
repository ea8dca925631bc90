"""Every driver, wrapper and protocol that there is comes and goes again and again under traffic, and leaves nothing behind.

They are found by listing: whoever adds a module adds nothing here, unless it has an option that must be given and that `known` cannot fill.
A thousand times, but for those with which the kernel takes its time; `LOADS=1000` has them come as often.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import attrs
import pytest
import trio

import stack.drivers
import stack.drivers.wrap
import stack.inet
from resmgr.dispatch import Timer
from resmgr.heap import keep_freed_memory
from stack.core.errors import ModuleError
from stack.core.ifnet import Interface
from stack.core.loader import ENTRY_POINT_GROUP, find_module
from stack.core.manager import Manager, open_manager
from stack.core.module import Context, Kind, Loadable, Module
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.frame import Frame
from stack.testing.driver import TYPE, frame
from stack.testing.namespace import Namespace, Veth
from stack.wire.ethernet import BROADCAST
from tests.conftest import wired

LOADS = 1000
SLOW = {"packet": 20, "veth": 20, "xdp": 20, "tap": 20, "udp": 100, "vxlan": 100, "pcap": 300}
"""How often those come whose rings and devices take the kernel 15 to 90 ms each time, whose questions to it 5, or whose files 4."""
WORKERS_MAX = 8
"""Threads more than before: as many as were once busy together, closing sockets, are kept."""
TIMERS_MAX = 10
"""More than before: what is under way just then, such as a batch on the hub."""
MEMORY_MAX = 1 << 20
"""Bytes that all loads may leave allocated."""
BLOCKS_MAX = 3000
"""Small objects that all loads may leave: caches of the interpreter's fill up."""
BATCH = 4
NETWORK_MODULES = {"qnet"}
"""Modules that need more than a stack: tests/cluster/test_reload.py."""


def modules() -> list[Loadable]:
    """All that the loader can find by name."""
    found: list[Loadable] = []
    for package, kind in ((stack.drivers, Kind.DRIVER), (stack.drivers.wrap, Kind.WRAPPER), (stack.inet, Kind.PROTOCOL)):
        for one in pkgutil.iter_modules(package.__path__):
            if not one.ispkg:
                try:
                    found.append(find_module(one.name, kind))
                except ModuleError as error:
                    # A file beside the drivers; the hub, which is made by hand.
                    if "has no MODULE" not in str(error) and "cannot be loaded by name" not in str(error):
                        raise
    found += [find_module(entry.name) for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name not in NETWORK_MODULES]
    return found


MODULES = modules()


def options(module: Loadable, folder: Path) -> str:
    """What *module* must be told, from the names of its options."""
    known = {
        "ifname": "va",
        "if": "en0",
        "parent": "en0",
        "vlanif": "en0",
        "mac": "02:00:00:00:00:77",
        "file": str(folder / "frames"),
        "path": str(folder / "frames"),
        "peer": "127.0.0.1",
        "remote": "127.0.0.1",
        "local": "127.0.0.1",
        "vlan": "5",
        "vid": "5",
        "id": "5",
        "vni": "5",
        "port": "0",
    }
    if module.name == "veth":
        known |= {"ifname": "vx", "peer": "vy"}  # it makes both
    words = (
        {"pcap": [f"write={folder / 'frames'}"], "vxlan": ["remote=127.0.0.1"]}.get(module.name, []) if module.kind is Kind.DRIVER else []
    )
    for usage, default in module.usage():
        name = usage.partition("=")[0]
        if default == "required":
            assert name in known, f"{module.name} has a required option {name} that this test cannot fill: enter it in `known`"
            words.append(f"{name}={known[name]}")
    return ",".join(words)


@attrs.frozen
class NoOptions:
    pass


class Talker:
    """A protocol that sends a batch on every interface in each millisecond and when asked to, and counts what it hears. *enter*: of its
    dispatch."""

    def __init__(self, context: Context, enter: Callable[[Callable[[], None]], None], ethertype: int = TYPE) -> None:
        self.enter = enter
        self._stack: Stack = context.stack
        self._dispatch = context.dispatch
        self._type = ethertype
        self.heard = self.sent = 0
        self._registration = context.stack.register_ethertype(ethertype, self._receive)
        self._timer: Timer = context.dispatch.call_at(0.0, self._again)

    def _receive(self, interface: Interface, frames: list[Frame]) -> None:
        self.heard += len(frames)

    def talk(self) -> None:
        for interface in self._stack.interfaces:
            self._stack.output(interface, [frame(BROADCAST, interface.mac, bytes([n]) * 80, self._type) for n in range(BATCH)])
            self.sent += BATCH

    def _again(self) -> None:
        self.talk()
        self._timer = self._dispatch.call_at(self._dispatch.now() + 0.001, self._again)

    def detach(self) -> None:
        self._timer.cancel()
        self._registration.revoke()


def talker(made: list[Talker], manager: Manager) -> Module[NoOptions]:
    """The module of one that is put into *made*."""

    def attach(context: Context, _: NoOptions) -> Talker:
        made.append(Talker(context, manager.dispatch.enter))
        return made[-1]

    return Module("talker", Kind.PROTOCOL, NoOptions, attach)


@pytest.fixture(scope="module")
def cable() -> Iterator[Veth]:
    """The same for all: what one module left there, the next would find."""
    with wired() as made:
        yield made


class Mallinfo(ctypes.Structure):
    """struct mallinfo2 of mallinfo2(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


def allocated() -> int:
    """Bytes that malloc has given out and not got back."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    told = mallinfo()
    return int(told.uordblks) + int(told.hblkhd)


@attrs.frozen
class State:
    """What a process holds, and the kernel for it."""

    descriptors: int
    sockets: int
    """In the namespace of the modules."""
    tasks: int
    timers: int = attrs.field(eq=False)
    threads: int = attrs.field(eq=False)
    attached: int
    mounts: int
    links: tuple[str, ...]
    memory: int = attrs.field(eq=False)
    """Bytes of large things. What is resident says less: large buffers of many sizes leave gaps, which later ones use."""
    blocks: int = attrs.field(eq=False)
    """Small ones, by number."""

    @classmethod
    def now(cls, manager: Manager, place: Namespace) -> State:
        gc.collect()
        with place.entered():
            tables = [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("packet", "netlink", "udp", "udp6", "raw", "tcp")]
        return cls(
            len(os.listdir("/proc/self/fd")),
            sum(table.count("\n") for table in tables),
            trio.lowlevel.current_statistics().tasks_living,
            manager.dispatch.statistics().timers,
            threading.active_count(),
            manager.dispatch.statistics().descriptors,
            Path("/proc/self/mounts").read_text().count("\n"),
            tuple(sorted(os.listdir("/sys/class/net"))),
            allocated(),
            sys.getallocatedblocks(),
        )


def loading(manager: Manager, module: Loadable | str, text: str = "") -> Callable[[], None]:
    """For `enter`."""

    def load() -> None:
        manager.stack.load(module, text)

    return load


async def in_turn(manager: Manager, hub: Module[object] | None, module: Loadable, text: str, talkers: list[Talker]) -> None:
    """Load, let traffic flow, unload. The first of *talkers* is in *manager*."""
    loaded = []
    around = module.kind is Kind.WRAPPER

    def load() -> None:
        if around:
            assert hub is not None
            loaded.append(manager.stack.load(hub, "mac=02:00:00:00:00:78,name=en1", wrap=[(module.name, text)]))
        else:
            loaded.append(manager.stack.load(module, text))

    manager.dispatch.enter(load)
    for talker in talkers:
        talker.enter(talker.talk)
    await trio.lowlevel.checkpoint()
    manager.dispatch.enter(lambda: manager.stack.unload(loaded[0]))


async def settled(manager: Manager) -> None:
    """What is closed in worker threads is closed."""
    with trio.fail_after(10):
        while manager.dispatch.statistics().blocking_now:  # noqa: ASYNC110  # what is awaited are worker threads
            await trio.sleep(0.002)


@pytest.mark.priv
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
async def test_a_module_that_comes_and_goes_leaves_nothing(
    module: Loadable, cable: Veth, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loads = max(int(os.environ.get("LOADS", "0")), SLOW.get(module.name, LOADS))
    keep_freed_memory()  # as io-pkt: with glibc's defaults large buffers are mapped at first and lie in the heap later
    text = options(module, tmp_path)
    async with open_manager([]) as manager, open_manager([]) as other:
        hub = Hub(manager.dispatch)
        driver: Module[object] = hub.module()  # type: ignore[assignment]  # its options are its own
        near: list[Talker] = []
        far: list[Talker] = []
        manager.dispatch.enter(loading(manager, driver, "mac=02:00:00:00:00:01,name=en0"))
        manager.dispatch.enter(loading(manager, talker(near, manager)))
        with cable.b.entered():
            other.dispatch.enter(loading(other, "packet", "ifname=vb"))
        other.dispatch.enter(loading(other, talker(far, other)))
        with cable.a.entered():
            # Allocators find their size.
            for _ in range(max(5, loads // 20)):
                await in_turn(manager, driver, module, text, [*near, *far])
        await settled(manager)
        before = State.now(manager, cable.a)
        with cable.a.entered():
            for _ in range(loads):
                await in_turn(manager, driver, module, text, [*near, *far])
        await settled(manager)
        after = State.now(manager, cable.a)

        assert after == before
        assert after.timers < before.timers + TIMERS_MAX
        assert after.threads <= before.threads + WORKERS_MAX
        assert after.memory - before.memory < MEMORY_MAX, f"{(after.memory - before.memory) / loads:.0f} bytes each time"
        assert after.blocks - before.blocks < BLOCKS_MAX, f"{(after.blocks - before.blocks) / loads:.1f} objects each time"
        assert [one.module.name for one in manager.stack.loaded] == ["hub", "talker"]
        assert dict(manager.stack.failures()) == {}
        assert manager.stack.statistics().interfaces["en0"].tx_frames > loads, "there was no traffic"
        if module.name == "packet":
            assert far[0].heard > loads, "nothing got through"
    assert "behind" not in caplog.text


def test_the_list_has_what_everybody_knows() -> None:
    assert {"packet", "udp", "fault", "ip"} <= {one.name for one in MODULES}
