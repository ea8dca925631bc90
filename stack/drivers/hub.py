"""A hub in memory: Ethernet between stacks of one process, under virtual time or real. The simulator's cable.

Every frame goes to the port that it is addressed to, broadcast and multicast to all others, after `latency`, in the order of transmission.
A port is a driver like any other, and behaves like a network card: it hands up what is of the ethertypes that the stack accepts.
Delivery runs on the receiving port's own dispatch, so a simulated node that is stopped receives nothing.

Received frames are memoryviews whose bytes are overwritten when `deliver` returns: a module that keeps a frame without copying it is found
out in the simulator, not by a ring on a real link.

    hub = Hub(dispatch)
    stack.load(hub.module(), "mac=02:00:00:00:00:01")     or     hub.port("en0", mac) for a bare driver
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import attrs

from resmgr.dispatch import Dispatch, Timer
from resmgr.errors import Misuse
from stack.core.driver import BATCH_MAX, Port
from stack.core.fitting import fitting, is_accepted
from stack.core.module import Context, Kind, Module
from stack.core.silent import SILENT
from stack.core.statistics import Drop
from stack.frame import Frame
from stack.wire.ethernet import MTU_DEFAULT, MTU_MIN, is_group, mac_bytes, mac_text

LATENCY_DEFAULT = 10e-6
"""Seconds on the cable. Not 0, so that time passes in a simulation in which two nodes answer each other at once."""
WAITING_MAX = 4096
"""Frames that wait at a port: what a card's ring would hold. More are lost (`rx_overrun`)."""
POISON = 0xDB


NOT_BY_NAME = "a hub joins stacks of one program, which makes it and loads what `Hub.module` gives"
"""What to say to who asks for it by name."""


@attrs.frozen
class HubOptions:
    """Options of a hub's module."""

    mac: str
    name: str = "en0"
    mtu: int = attrs.field(default=MTU_DEFAULT, validator=[attrs.validators.ge(MTU_MIN), attrs.validators.le(65535)])


class Hub:
    """See the head of this file. *dispatch* serves ports that bring none of their own."""

    def __init__(self, dispatch: Dispatch, *, latency: float = LATENCY_DEFAULT) -> None:
        self._dispatch = dispatch
        self._ports: dict[bytes, HubPort] = {}
        """By address: what has one addressee must not cost a look at every port."""
        self._hear_all: list[HubPort] = []
        self.latency = latency
        self.frames = 0
        """Frames that were put on the hub."""

    def port(self, name: str, mac: bytes, *, mtu: int = MTU_DEFAULT, dispatch: Dispatch | None = None) -> HubPort:
        """Plug in. Misuse when a port has this address already."""
        port = HubPort(self, self._dispatch if dispatch is None else dispatch, name, mac, mtu)
        self.plug(port)
        return port

    def plug(self, port: HubPort) -> None:
        """Plug a port in that was made for this hub. Misuse when there is one with its address already."""
        if port.mac in self._ports:
            raise Misuse(f"the hub has a port {mac_text(port.mac)} already")
        self._ports[port.mac] = port

    def module(self) -> Module[HubOptions]:
        """A driver module whose interfaces are plugged into this hub, on the dispatch of the stack that loads it."""

        def attach(context: Context, options: HubOptions) -> HubPort:
            return self.port(options.name, mac_bytes(options.mac), mtu=options.mtu, dispatch=context.dispatch)

        return Module("hub", Kind.DRIVER, HubOptions, attach)

    @property
    def ports(self) -> tuple[HubPort, ...]:
        return tuple(self._ports.values())

    def spread(self, sender: HubPort, frames: list[bytes]) -> None:
        """For ports: carry *frames* to all others that they are for, in order."""
        self.frames += len(frames)
        if any(map(is_group, frames)):
            for port in self._ports.values():
                if port is not sender:
                    port.arrive([frame for frame in frames if port.hears_all or is_group(frame) or frame[:6] == port.mac])
            return
        addressed: dict[bytes, list[bytes]] = {}
        for frame in frames:
            addressed.setdefault(frame[:6], []).append(frame)
        for mac, batch in addressed.items():
            there = self._ports.get(mac)
            if there is not None and there is not sender and not there.hears_all:
                there.arrive(batch)
        for port in self._hear_all:
            if port is not sender:
                port.arrive(frames)

    def hear_all(self, port: HubPort, on: bool) -> None:
        """For ports: *port* is carried what is for others too, or not any more."""
        port.hears_all = on
        self._hear_all = [one for one in self._ports.values() if one.hears_all]

    def unplug(self, port: HubPort) -> None:
        """For ports that are detached."""
        del self._ports[port.mac]
        self.hear_all(port, False)


class HubPort:
    """One plug of the hub: see `stack.core.driver.Driver`."""

    def __init__(self, hub: Hub, dispatch: Dispatch, name: str, mac: bytes, mtu: int) -> None:
        self.name = name
        self.mac = mac
        self.mtu = mtu
        self.up = True
        self._hub = hub
        self._dispatch = dispatch
        self._port: Port = SILENT
        self._accepted: frozenset[int] | None = frozenset()
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._due = False
        self._timer: Timer | None = None
        self._detached = False
        self.hears_all = False

    def start(self, port: Port) -> None:
        self._port = port

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self._accepted = ethertypes

    def promiscuous(self, on: bool) -> None:
        self._hub.hear_all(self, on)

    def info(self) -> Mapping[str, str | int]:
        return {"driver": "hub", "ports": len(self._hub.ports), "waiting": len(self._waiting)}

    def set_carrier(self, up: bool) -> None:
        """Pull the plug or put it back, as seen from this port: the stack is told, nothing passes meanwhile."""
        if self._detached or up == self.up:
            return
        self.up = up
        if not up and self._waiting:
            self._port.count(Drop.LINK_DOWN, len(self._waiting))
            self._waiting.clear()
        self._port.changed()

    def detach(self) -> None:
        if not self._detached:
            self._detached = True
            self.up = False
            if self._waiting:
                self._port.count(Drop.LINK_DOWN, len(self._waiting))
            self._waiting.clear()
            if self._timer is not None:
                self._timer.cancel()
            self._hub.unplug(self)

    def transmit(self, frames: list[Frame]) -> None:
        if not self.up:
            self._port.count(Drop.LINK_DOWN, len(frames))
            return
        good = [bytes(frame) for frame in fitting(frames, self.mtu, self._port.count)]
        if good:
            self._hub.spread(self, good)

    def arrive(self, frames: list[bytes]) -> None:
        """For the hub: frames from another port, addressed to this one or to a group."""
        if self._port is SILENT:
            return
        if not self.up:
            if lost := sum(map(self._is_wanted, frames)):
                self._port.count(Drop.LINK_DOWN, lost)
            return
        when = self._dispatch.now() + self._hub.latency
        for frame in frames:
            if not self._is_wanted(frame):
                continue
            if len(self._waiting) >= WAITING_MAX:
                self._port.count("rx_overrun")
            else:
                self._waiting.append((when, frame))
        self._schedule()

    def _is_wanted(self, frame: bytes) -> bool:
        return is_accepted(frame, self._accepted)

    def _schedule(self) -> None:
        if self._due or not self._waiting:
            return
        self._due = True
        when = self._waiting[0][0]
        if when > self._dispatch.now():
            self._timer = self._dispatch.call_at(when, self._deliver)
        else:
            self._dispatch.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._due = False
        self._timer = None
        now = self._dispatch.now()
        batch: list[bytearray] = []
        while self._waiting and len(batch) < BATCH_MAX and self._waiting[0][0] <= now:
            batch.append(bytearray(self._waiting.popleft()[1]))
        if batch:
            self._port.deliver([memoryview(frame) for frame in batch])
            for frame in batch:
                frame[:] = bytes((POISON,)) * len(frame)
        self._schedule()
