"""lsm-qnet at work: the thin runner that ties the pure parts together on a node's dispatch.

    stack (frames) <-> LinkMachine (links) <-> Peer per node (messages) <-> kernel (channels)
    discovery -> hints -> LinkMachine        LinkMachine -> NodeTable -> NetFs (/net)
                 hints of IP endpoints, gossip -> Reach -> hints

It owns the one timer of the link machine, sends what the machine has at the end of each turn, and does nothing else by itself. It runs the
same on real and on virtual time.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Final

from qnetpy.discovery.ethernet import EthernetDiscovery
from qnetpy.discovery.hint import TOKEN_LENGTH, Announcement, Discovery, Hint
from qnetpy.discovery.hint import Interface as DiscoveryInterface
from qnetpy.discovery.several import SeveralDiscovery
from qnetpy.discovery.standing import Standing
from qnetpy.identity.authority import NodeIdentity
from qnetpy.identity.certificate import Certificate
from qnetpy.identity.names import is_name
from qnetpy.link.constants import VERSION
from qnetpy.link.handshake import HandshakeMachine, everybody
from qnetpy.link.machine import Link, LinkMachine
from qnetpy.link.outcome import Failed, Reason
from qnetpy.link.transport.routes import route
from qnetpy.link.wire import Address
from qnetpy.linkscreen import LinkScreen
from qnetpy.members.membership import Membership
from qnetpy.netfs.manager import NetFs
from qnetpy.netfs.told import Told, Way
from qnetpy.nodes import Node, NodeState, NodeTable
from qnetpy.parameters import QnetSettings
from qnetpy.qos import LOADBALANCE, Choice, QosError, parse_choice, split
from qnetpy.reach.reach import Reach, discovery_interfaces
from qnetpy.routewatch import RouteWatch
from resmgr.access import Verb
from resmgr.channel import ClientInfo, Nd, Remote
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.ids import node_of
from resmgr.pathspace import Attach
from resmgr.peer import Peer
from resmgr.system import System
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.module import Random
from stack.core.stack import Stack
from stack.frame import Frame
from stack.wire.endpoint import Endpoint
from stack.wire.ethernet import HEADER_SIZE, mac_text, payload_offset

log = logging.getLogger(__name__)

BACKLOG_MAX: Final = 64 << 20
"""Bytes waiting for one node above which new messages to it fail with EAGAIN: bounds our memory when a node is slow."""


_low_byte: Final = itemgetter(13)
"""Last byte of a frame's first type field."""


class _LinkCarrier:
    """A `Carrier` over one link."""

    __slots__ = ("link", "qnet")

    def __init__(self, qnet: Qnet, link: Link) -> None:
        self.qnet = qnet
        self.link = link

    def send(self, stream: int, parts: Sequence[Buffer], priority: int, route: int = 0) -> None:
        qnet = self.qnet
        qnet.machine.send(self.link, stream, parts, priority, qnet.now(), route)
        qnet.flush_later()

    def congested(self) -> bool:
        return self.link.transport.backlog() > BACKLOG_MAX


class Qnet:
    """See the head of this file. `detach` ends it: goodbye to every node, nothing left behind."""

    def __init__(
        self,
        stack: Stack,
        system: System,
        identity: NodeIdentity,
        settings: QnetSettings,
        discovery: Discovery,
        random: Random,
        membership: Membership | None = None,
        dispatch: Dispatch | None = None,
    ) -> None:
        """*membership* renews and revokes; without one the identity stays as it is, and whoever has a good certificate is let in.

        *dispatch*: the module's own; the stack's if None.
        """
        self._dispatch = stack.dispatch if dispatch is None else dispatch
        self.stack = stack
        self._system = system
        self._kernel = system.kernel
        self.identity = identity
        self.settings = settings
        self.nodes = NodeTable()
        self.counters: Counter[str] = Counter()
        """What went wrong above the links, by reason."""
        self._membership = membership
        self._peers: dict[int, Peer] = {}
        self._up: dict[str, tuple[Node, Peer]] = {}
        """Nodes that have a link."""
        self.ethernet: EthernetDiscovery | None = None
        """Where it is looked for nodes without IP."""
        if settings.solicit:
            self.ethernet = EthernetDiscovery(stack, identity.secret, self._own_boot, self._boot_at, random)
        self._discovery: Discovery = discovery if self.ethernet is None else SeveralDiscovery([discovery, self.ethernet])
        self._standing = Standing()
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._flushing = False
        self._continues = False
        """The timer rings now, to send what the last turn had no time for."""
        self._detached = False
        self._low_byte = settings.ethertype & 0xFF
        self.now = self._dispatch.now
        self._began = self._dispatch.wall()
        self._random = random
        self.boot_id = random(16)
        self.machine = LinkMachine(
            identity.name,
            self._make_handshake,
            settings.ethertype,
            self,
            timers=settings.timers,
            transport=settings.transport,
            rekey=settings.rekey,
            routes=self.route,
        )
        self.netfs = NetFs(self._kernel, self.nodes, self.route_by, self._transit, self._seek, self._told)
        self.reach = Reach(
            self._dispatch, system, identity.name, self._call, self._call_no_more, self._endpoint_of_node, random, self.counters
        )
        self._attached = system.paths.attach(b"net", self.netfs.target, Attach.TRANSIT)
        system.paths.transit = self._transit
        system.guard(self.netfs.channel)
        self._kernel.network = self
        self._kernel.node_by_name = self._node_by_name
        self._kernel.name_of_node = self._name_of_node
        self._ethertype = stack.register_ethertype(settings.ethertype, self._input, vlans=True)
        self.screen = LinkScreen(stack, settings.ethertype, self.handshake, self.machine.sessions)
        self._listener = stack.on_interface(self._interface_event)
        now = self.now()
        used = [interface for interface in stack.interfaces if self._uses(interface)]
        self._looked_on: dict[str, DiscoveryInterface] = discovery_interfaces(used)
        """Where discovery looks for nodes."""
        for interface in used:
            self._tell_machine(interface, now)
            self.reach.interface(interface)
        self.announcement = Announcement(random(TOKEN_LENGTH), settings.ethertype)
        if membership is not None:
            system.guard(membership.channel)
            membership.start(self)
        self._discovery.start(self._dispatch, list(self._looked_on.values()), self.announcement, self._hint, self._hint_gone)
        self.flush_later()

    def _own_boot(self) -> bytes:
        return self.boot_id

    def _boot_at(self, address: Address) -> bytes:
        return self.machine.boot_at(address)

    def _transit(self, info: ClientInfo) -> bool:
        """Whether a client of another node may see this node's /net, and go on from there."""
        return Verb.READ in self._system.policy.verbs(info, b"/net")

    def _told(self, name: str) -> Told | None:
        """What there is to say of a node, as it is named in /net."""
        bare, choice = split(name)
        if bare == self.identity.name:
            return Told("up", self._began, self.boot_id, roles=self.identity.certificate.roles, version=str(VERSION))
        node = self.nodes.get(bare)
        if node is None:
            return None
        if choice is not None:
            self.route_by(choice)
        ways: list[Way] = []
        suite = ""
        link = self.machine.links.get(bare)
        if link is not None and node.reachable:
            counted = link.transport.statistics().paths
            for path in link.paths.values():
                told = counted[path.number]
                ways.append(Way(self.place(path.address), told.state, told.smoothed_rtt))
            suite = "" if link.sessions.current is None else link.sessions.current.suite
        since = self._dispatch.wall() - (self.now() - node.since)
        version = str(VERSION) if suite else ""
        return Told.of(node, since, choice or str(self.choice(bare)), ways, suite, version)

    def _make_handshake(self, machine: LinkMachine) -> HandshakeMachine:
        self.handshake = HandshakeMachine(
            self.identity,
            machine,
            self.boot_id,
            self.stack.crypto,
            self._random,
            self._dispatch.wall,
            self.settings.suites,
            mtu=machine.mtu,
            accept=everybody if self._membership is None else self._membership.keyring.trust.accepts,
            place=self.place,
        )
        return self.handshake

    # Kernel's network

    def remote(self, nd: Nd) -> Remote | int:
        """`resmgr.channel.Network`."""
        number = node_of(nd)
        peer = self._peers.get(number)
        if peer is not None:
            return peer
        return errno.EHOSTDOWN if self.nodes.by_nd(number) is not None else errno.EHOSTUNREACH

    def _node_by_name(self, name: str) -> Nd | None:
        node = self.nodes.get(name)
        return node.nd if node is not None and node.reachable else None

    def _name_of_node(self, nd: int) -> str:
        node = self.nodes.by_nd(node_of(nd))
        return "" if node is None else node.name

    # Routes

    def choice(self, name: str) -> Choice:
        """By which paths messages to that node go, unless they say otherwise."""
        return parse_choice(self.settings.policies.get(name, self.settings.paths))

    def route(self, name: str) -> int:
        """The same as a number for the link; 0 is loadbalance."""
        choice = self.choice(name)
        return 0 if choice == LOADBALANCE else route(choice.policy, self.machine.port_number(choice.interface) if choice.interface else 0)

    def route_by(self, text: str) -> int:
        """The number of what a program chose. OSError: EINVAL for no policy, ENXIO for no interface of ours."""
        try:
            choice = parse_choice(text)
        except QosError as error:
            log.info("/net: ~%s: %s", text, error)
            raise OSError(errno.EINVAL, str(error)) from None
        if choice.interface and choice.interface not in self.machine.ports:
            why = f"{choice.interface!r} is no interface that Qnet uses here; there are: {', '.join(self.machine.ports) or 'none'}"
            log.info("/net: ~%s: %s", text, why)
            raise OSError(errno.ENXIO, why)
        return route(choice.policy, self.machine.port_number(choice.interface) if choice.interface else 0)

    # Stack

    def _uses(self, interface: Interface) -> bool:
        return not self.settings.interfaces or interface.endpoints is not None or interface.name in self.settings.interfaces

    def _tell_machine(self, interface: Interface, now: float) -> None:
        shared = interface.endpoints is None
        self.machine.interface(interface.name, interface.mac, interface.mtu, interface.up, now, shared)

    def _interface_event(self, event: InterfaceEvent, interface: Interface) -> None:
        if event is InterfaceEvent.ADDRESSES or not self._uses(interface):
            return
        now = self.now()
        if event is InterfaceEvent.DETACHED:
            self._look_on(discovery_interfaces(one for one in self.stack.interfaces if self._uses(one)))
            self.reach.interface_gone(interface.name)
            self.machine.interface_gone(interface.name, now)
        else:
            self._tell_machine(interface, now)
            self.reach.interface(interface)
            self._look_on(discovery_interfaces(one for one in self.stack.interfaces if self._uses(one)))
        self.flush_later()

    def _look_on(self, interfaces: dict[str, DiscoveryInterface]) -> None:
        """Tell discovery what is new."""
        before, self._looked_on = self._looked_on, interfaces
        for name in before.keys() - interfaces.keys():
            self._discovery.interface_removed(name)
        for name, interface in interfaces.items():
            if before.get(name) != interface:
                self._discovery.interface_added(interface)

    def _input(self, interface: Interface, frames: list[Frame]) -> None:
        if self.settings.interfaces and not self._uses(interface):
            return
        now = self.now()
        self.screen.received(frames, now)
        # Tags end in 0x00 or 0xa8, and so the settings refuse ethertypes that do.
        low = self._low_byte
        if len(frames) == 1:
            self.machine.receive(interface.name, frames, HEADER_SIZE if frames[0][13] == low else payload_offset(frames[0]), now)
        elif list(map(_low_byte, frames)).count(low) != len(frames):
            for frame in frames:
                self.machine.receive(interface.name, [frame], payload_offset(frame), now)
        else:
            self.machine.receive(interface.name, frames, HEADER_SIZE, now)
        self.flush_later()

    def flush_later(self) -> None:
        """Transmit at the end of this turn, or begin a turn for it."""
        if not self._flushing:
            self._flushing = True
            self._dispatch.at_turn_end(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        now = self.now()
        # Before frames go out that tell an index: the answer must find it known.
        self.screen.refresh()
        for name, frames in self.machine.transmit(now, self._continues):
            interface = self.stack.interface(name)
            if interface is not None:
                batch: list[Frame] = list(frames)  # called as list[Frame](...) it costs three times that
                self.stack.output(interface, batch)
        if self._detached:
            return
        # What is left waits for the next turn: descriptors and other tasks come first.
        self._continues = self.machine.pending
        when = now if self._continues else self.machine.next_timeout()
        if when is not None and (self._timer is None or when < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._dispatch.call_at(when, self._timeout)
            self._timer_at = when

    def _timeout(self) -> None:
        self._timer = None
        self._continues = False
        self.machine.handle_timeout(self.now())
        self.flush_later()

    # Discovery

    def _hint(self, hint: Hint) -> None:
        if hint.ethertype == self.settings.ethertype and hint.token != self.announcement.token:
            left = self._standing.said(hint)
            if left is not None:
                self._call_no_more(left)
            if hint.mac:
                self._call((hint.interface, hint.mac))
            if hint.port:
                self.reach.hint(hint)

    def _hint_gone(self, hint: Hint) -> None:
        left = self._standing.gone(hint)
        if left is not None:
            self._call_no_more(left)
        self.reach.hint_gone(hint)

    def solicited(self, address: Address, frame: memoryview) -> None:
        """`Upcalls`."""
        if self.ethernet is not None:
            self.ethernet.heard(address, frame)
        else:
            self.machine.counters["solicitations_unheard"] += 1

    def _seek(self, name: str) -> None:
        """A program asked for a node that was never met."""
        if self.ethernet is not None and is_name(name):
            self.ethernet.seek()

    def _call(self, address: Address) -> None:
        self.machine.hint(address, self.now())
        self.flush_later()

    def _call_no_more(self, address: Address) -> None:
        self.machine.unhint(address, self.now())
        self.flush_later()

    def endpoint(self, address: Address) -> Endpoint | None:
        """The IP endpoint behind an address of the link machine, None when it is on an Ethernet."""
        interface = self.stack.interface(address[0])
        return None if interface is None or interface.endpoints is None else interface.endpoints.endpoint(address[1])

    def place(self, address: Address) -> str:
        """An address of the link machine for people: `eth0 02:00:00:00:00:01`, `udp0 10.0.0.2:34997`."""
        return f"{address[0]} {self.endpoint(address) or mac_text(address[1])}"

    def _endpoint_of_node(self, name: str) -> Endpoint | None:
        link = self.machine.links.get(name)
        for path in link.paths.values() if link is not None else ():
            endpoint = self.endpoint(path.address)
            if endpoint is not None:
                return endpoint
        return None

    # Links

    def _enter(self, node: Node, state: NodeState, reason: str) -> None:
        if self.nodes.enter(node, state, self.now(), reason):
            log.info("node %s is %s%s", node.name, state.value, f": {reason}" if reason else "")
            self.netfs.changed(node.name)

    def link_up(self, link: Link, restarted: bool) -> None:
        """`Upcalls`."""
        node = self.nodes.add(link.name, self.now())
        if node is None:
            self.counters["node_table_full"] += 1
            log.error("node %s is not taken in: the table of nodes is full", link.name)
            self._dispatch.call_soon(lambda: self._drop(link, "no room for another node"))
            return
        node.boot_id, node.roles = link.peer.boot_id, link.peer.roles
        carrier = _LinkCarrier(self, link)
        peer = Peer(
            self._kernel,
            carrier,
            nd=node.nd,
            node=node.name,
            roles=node.roles,
            authorize=self._system.admit,
            congested=carrier.congested,
            stuck=RouteWatch(self._dispatch, link.transport.stuck, self.settings.timers.down_after, lambda: peer.routes_changed()).state,
            route=self.route(link.name),
        )
        self._peers[node.nd] = peer
        self._up[link.name] = node, peer
        choice = self.choice(link.name)
        if choice.interface and choice.interface not in self.machine.ports:
            log.warning("node %s: %s names an interface that Qnet does not use here now", link.name, choice)
        self._enter(node, NodeState.UP, "restarted" if restarted else "")
        self.netfs.silent(node.nd, False)
        self._system.nodes.up(node.name, node.nd, node.boot_id, node.roles)
        if self._membership is not None:
            self._membership.link_up(link.name)
        self.reach.node_up(link.name, node.nd)

    def _drop(self, link: Link, reason: str) -> None:
        self.machine.drop(link, reason, self.now())
        self.flush_later()

    def link_suspect(self, link: Link, reason: str) -> None:
        """`Upcalls`."""
        if link.name in self._up:
            node, peer = self._up[link.name]
            self._enter(node, NodeState.SUSPECT, reason)
            peer.suspect(True)
            self.netfs.silent(node.nd, True)
            self._system.nodes.suspect(node.name, reason)

    def link_back(self, link: Link) -> None:
        """`Upcalls`."""
        if link.name in self._up:
            node, peer = self._up[link.name]
            self._enter(node, NodeState.UP, "heard again")
            peer.suspect(False)
            self.netfs.silent(node.nd, False)
            self._system.nodes.back(node.name)

    def link_down(self, link: Link, reason: str) -> None:
        """`Upcalls`."""
        if link.name in self._up:
            if self._membership is not None:
                self._membership.link_down(link.name)
            node, peer = self._up.pop(link.name)
            self.reach.node_down(link.name)
            del self._peers[node.nd]
            self._enter(node, NodeState.DOWN, reason)
            self._system.nodes.down(node.name, reason)
            peer.down(errno.EHOSTDOWN)

    def calling(self, name: str) -> None:
        """`Upcalls`."""
        node = self.nodes.get(name)
        if node is not None:
            self._enter(node, NodeState.CONNECTING, "")

    def unreachable(self, name: str, why: str) -> None:
        """`Upcalls`."""
        node = self.nodes.get(name)
        if node is not None and node.state is NodeState.CONNECTING:
            self._enter(node, NodeState.DOWN, why)

    def path_changed(self, link: Link, address: Address, what: str) -> None:
        """`Upcalls`."""
        log.info("node %s: path over %s %s", link.name, self.place(address), what)
        if link.name in self._up:
            self._up[link.name][1].routes_changed()

    def message(self, link: Link, stream: int, priority: int, data: Buffer, route: int) -> None:
        """`Upcalls`."""
        up = self._up.get(link.peer.name)
        if up is not None:
            try:
                up[1].receive(data, stream, priority, route=route)
            except Exception:
                # A server's bug must not lose the messages of others that came in the same batch.
                self.counters["handler_failed"] += 1
                log.exception("a message from node %s: exception in its server", link.name)

    def refused(self, failed: Failed) -> None:
        """`Upcalls`."""
        if not failed.repeated:
            log.warning("%s", failed.sentence)
        if failed.told and self._membership is not None:
            if failed.reason is Reason.WRONG_CLUSTER:
                self._membership.root_unknown()
            elif failed.reason is Reason.REFUSED:
                self._membership.refused(failed.name)

    def begin_anew(self, reason: str) -> None:
        """There may be a copy of this process: end every session without a word, and call everybody as another boot."""
        self.boot_id = self._random(16)
        self.machine.begin_anew(self.boot_id, reason, self.now())
        self.flush_later()

    def rekey(self) -> None:
        """New keys for every link within a second or two; the old ones are in use until then."""
        self.machine.rekey("clock")

    # What membership needs

    def members_up(self) -> Mapping[str, Certificate]:
        """`qnetpy.members.membership.Links`."""
        return {name: self.machine.links[name].peer.certificate for name in self._up if name in self.machine.links}

    def member_nd(self, name: str) -> Nd:
        """`qnetpy.members.membership.Links`."""
        return self._up[name][0].nd

    def end_link(self, name: str, reason: str) -> None:
        """`qnetpy.members.membership.Links`: within this call the node's sessions are gone here, and it is told."""
        link = self.machine.links.get(name)
        if link is not None:
            self._drop(link, reason)

    def set_identity(self, identity: NodeIdentity) -> None:
        """`qnetpy.members.membership.Links`: a renewed certificate, or other roots."""
        self.identity = identity
        self.machine.set_identity(identity, self.now())
        self.flush_later()

    def set_suites(self, names: Sequence[str]) -> None:
        """Other ciphers from now on, best first: every link renews its keys within a second or two. Misuse for an unknown one."""
        self.handshake.set_suites(names)
        self.machine.rekey("suite")

    def suites(self) -> list[str]:
        """In order of preference."""
        return self.handshake.suites()

    def sizes(self) -> dict[str, int]:
        """How much of everything there is at the moment, for leak checks and for people."""
        sizes = {"peers": len(self._peers), **self.machine.sizes(), **self.reach.sizes()}
        if self.ethernet is not None:
            sizes |= self.ethernet.sizes()
        for peer in self._peers.values():
            told = peer.statistics()
            for name in ("outgoing", "incoming", "connections_out", "connections_in", "held"):
                sizes[name] = sizes.get(name, 0) + getattr(told, name)
        return sizes

    def dropped(self) -> dict[str, int]:
        """Messages of other nodes that made no sense, by reason, on the links of now."""
        dropped: Counter[str] = Counter()
        for peer in self._peers.values():
            dropped.update(peer.statistics().dropped)
        return dict(dropped)

    # End

    def detach(self) -> None:
        """Say goodbye, then undo everything. Connections through us end with EHOSTDOWN. Idempotent."""
        if self._detached:
            return
        self._discovery.close()
        self.reach.close()
        self.machine.close(self.now())
        self._detached = True
        if self._timer is not None:
            self._timer.cancel()
        self._flush()
        self._listener.revoke()
        self.screen.close()
        self._ethertype.revoke()
        self._kernel.network = None
        self._kernel.node_by_name = lambda name: None
        self._kernel.name_of_node = lambda nd: ""
        self._system.paths.detach(self._attached)
        self.netfs.destroy()
