"""An Ethernet over routed networks: `io-pkt -d vxlan vni=42,remote=192.0.2.7,remote=192.0.2.9`. VXLAN (RFC 7348), as Linux speaks it.

Each frame is the payload of a UDP datagram to port 4789. Which end a station is behind is learned from what arrives
(`stack.drivers.vxlan_tunnel.stations`); frames to groups and to unknown stations go to every `remote`, and to `group`, a multicast address
on `dev`. Datagrams are taken from the remotes only, unless there is a group: nothing in the tunnel is authenticated, and whoever may send
into it is on the LAN. Linux's end: `ip link add vxlan42 type vxlan id 42 dstport 4789 remote ADDRESS`.

    tx_no_buffers   the socket is full (EAGAIN, ENOBUFS)    rx_other_network    another network's identifier
    tx_unreachable  no route to there                       rx_stranger         not from a remote
    tx_refused      any other error of send                 rx_too_long         longer than the MTU
    tx_nowhere      no remote is known                      rx_malformed        no VXLAN header, or no frame behind it
    rx_own          came back to us                         tx_partly           copies to some of several ends

The MTU is the inner one; 1450 fits into 1500 over IPv4, 1430 over IPv6. Networks of one stack share an address and port
(`stack.drivers.vxlan_tunnel.tunnel`); the first one's `ttl` and `buffer` hold. A Linux end without a card between (namespaces, virtual
machines) leaves inner checksums and segmentation to that card, which a datagram cannot tell: `ethtool -K vxlan42 tx off` there. Needs no
right.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeGuard

import attrs

from resmgr.dispatch import Dispatch
from stack.capability import capability
from stack.core.driver import Port
from stack.core.errors import ModuleError
from stack.core.fitting import fitting
from stack.core.module import Context, Kind, Module
from stack.core.names import station_address
from stack.core.options import Size
from stack.core.silent import SILENT
from stack.core.statistics import Drop
from stack.drivers.vxlan_tunnel.stations import Stations
from stack.drivers.vxlan_tunnel.tunnel import Place, Tunnel
from stack.frame import BadFrame, Frame
from stack.linux.networkmonitor import NetworkMonitor
from stack.wire import vxlan
from stack.wire.endpoint import PORT_MAX, Endpoint, SockAddr, endpoint, from_sockaddr, split_host
from stack.wire.ethernet import HEADER_SIZE, MAC_SIZE, MTU_MIN, TAG_SIZE, ethertype_of, is_group, made_station

UNREACHABLE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL))
MTU_MAX = 65400


@attrs.frozen
class VxlanOptions:
    """Options of `-d vxlan`."""

    vni: int = attrs.field(validator=[attrs.validators.ge(0), attrs.validators.le(vxlan.VNI_MAX)])
    """The network's identifier."""
    remote: tuple[str, ...] = ()
    """Other ends: IP addresses, with :port if it is another; may be repeated."""
    group: str | None = None
    """A multicast address of the underlay, in place of remotes."""
    dev: str | None = None
    """Interface of this machine for the group."""
    local: str | None = None
    """Address of ours to use; all by default."""
    port: int = attrs.field(default=vxlan.PORT, validator=[attrs.validators.ge(1), attrs.validators.le(PORT_MAX)])
    ttl: int = attrs.field(default=64, validator=[attrs.validators.ge(1), attrs.validators.le(255)])
    name: str | None = None
    """vxlanN, after the identifier, by default."""
    mac: str | None = None
    """One of chance by default."""
    mtu: int | None = attrs.field(
        default=None, validator=attrs.validators.optional([attrs.validators.ge(MTU_MIN), attrs.validators.le(MTU_MAX)])
    )
    buffer: Size = attrs.field(default=Size(4 << 20), validator=attrs.validators.ge(Size(1 << 16)))


class VxlanDriver:
    """See the head of this file and `stack.core.driver.Driver`."""

    def __init__(self, dispatch: Dispatch, options: VxlanOptions, mac: bytes, tunnels: Iterable[Tunnel] = ()) -> None:
        """*mac*: ours, unless the options say another. *tunnels*: endpoints that are there, to be shared. ModuleError when an option makes
        no sense or the port is taken."""
        self.name = options.name or f"vxlan{options.vni}"
        self._options = options
        self._dispatch = dispatch
        self._port: Port = SILENT
        self._closed = False
        self._accepted: frozenset[int] | None = frozenset()
        self._others = False
        self._header = vxlan.pack(options.vni)
        self._stations: Stations[Endpoint] = Stations()
        self.mac = mac if options.mac is None else station_address(options.mac, "vxlan")
        try:
            self._remotes = tuple(endpoint(*split_host(text, options.port)) for text in options.remote)
            self._group = None if options.group is None else endpoint(options.group, options.port)
            local = None if options.local is None else endpoint(options.local, options.port)
        except ValueError as error:
            raise ModuleError(errno.EINVAL, f"vxlan: {error}") from error
        self._six = _family_of((*self._remotes, *(() if self._group is None else (self._group,)), *(() if local is None else (local,))))
        self._check()
        self.mtu = options.mtu or 1500 - (vxlan.OVERHEAD_IPV6 if self._six else vxlan.OVERHEAD_IPV4)
        self.up = False
        self._local = None if local is None else local.address
        self._ends = {remote.address: remote for remote in self._remotes}
        """By address: ends send from any port, and listen on one."""
        self._flood: tuple[SockAddr, ...] = tuple(remote.sockaddr for remote in self._remotes)
        if self._group is not None:
            self._flood = (self._group.sockaddr, *self._flood)
        place: Place = self._six, self._local or "", options.port, options.dev or ""
        with contextlib.ExitStack() as undo:
            self._monitor = NetworkMonitor(dispatch, self._network_changed)
            undo.callback(self._monitor.close)
            shared = next((tunnel for tunnel in tunnels if tunnel.open and tunnel.place == place), None)
            self.tunnel = shared or Tunnel(place, options.ttl, options.buffer)
            self.tunnel.enter(options.vni, self)
            undo.callback(self.tunnel.leave, options.vni)
            if self._group is not None and options.dev is not None:
                index = self._index_of(options.dev)
                try:
                    self.tunnel.join(self._group, index)
                except OSError as error:
                    raise ModuleError(error.errno or errno.EIO, f"vxlan: cannot join {options.group}: {error.strerror}") from error
            self.up = self._is_up()
            undo.pop_all()

    def _check(self) -> None:
        options = self._options
        if self._group is not None and not ipaddress.ip_address(self._group.address).is_multicast:
            raise ModuleError(errno.EINVAL, f"vxlan: group={options.group} is no multicast address")
        if self._group is not None and options.dev is None:
            raise ModuleError(errno.EINVAL, "vxlan: a group needs the interface on which it is: dev=eth0")
        for remote in self._remotes:
            if not remote.is_callable():
                raise ModuleError(errno.EINVAL, f"vxlan: remote={remote} cannot be sent to")

    def _index_of(self, name: str) -> int:
        found = self._monitor.interfaces().get(name)
        if found is None:
            raise ModuleError(errno.ENODEV, f"vxlan: there is no network interface {name} in this network namespace")
        return found

    def start(self, port: Port) -> None:
        self._port = port
        self.tunnel.listen(self._options.vni, self._dispatch)
        self._monitor.start()

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self._accepted = ethertypes

    def promiscuous(self, on: bool) -> None:
        self._others = on

    def info(self) -> Mapping[str, str | int]:
        return {
            "driver": "vxlan",
            "network": self._options.vni,
            "remotes": " ".join(map(str, self._remotes)) or "none",
            **({} if self._group is None else {"group": f"{self._group} on {self._options.dev}"}),
            "stations": len(self._stations),
            "stations not learned": self._stations.refused,
            "networks on this port": self.tunnel.networks,
        }

    def detach(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.up = False
        self._monitor.close()
        self.tunnel.leave(self._options.vni)

    # Sending

    def transmit(self, frames: list[Frame]) -> None:
        if not self.up:
            self.count(Drop.LINK_DOWN, len(frames))
            return
        now = self._dispatch.now()
        for frame in fitting(frames, self.mtu, self.count):
            there = None if is_group(frame) else self._stations.find(bytes(frame[:MAC_SIZE]), now)
            self._send(frame, self._flood if there is None else (there.sockaddr,))

    def _send(self, frame: Frame, to: tuple[SockAddr, ...]) -> None:
        """To one or several ends; counted as dropped when it reached none, the copies that were lost as `tx_partly` when some."""
        reason = "tx_nowhere"
        lost = 0
        for address in to:
            try:
                self.tunnel.sock.sendmsg((self._header, frame), (), 0, address)
            except OSError as error:
                reason = _reason(error.errno or 0)
                lost += 1
        if lost == len(to):
            self.count(reason)
        elif lost:
            self.count("tx_partly", lost)

    # Receiving

    def arrived(self, frames: list[tuple[SockAddr, Frame]]) -> None:
        """`stack.drivers.vxlan_tunnel.tunnel.Network`."""
        good: list[Frame] = []
        now = self._dispatch.now()
        before: SockAddr | None = None
        there: Endpoint | None = None
        for source, frame in frames:
            if source != before:
                before, there = source, self._end_of(source)
            if there is None:
                self.count("rx_stranger")
            else:
                self._take(frame, there, good, now)
        if good and not self._closed:
            self._port.deliver(good)

    def _end_of(self, source: SockAddr) -> Endpoint | None:
        """Where what came from *source* is answered; None when it is nobody's business to send here."""
        known = self._ends.get(source[0])
        if known is None and self._group is not None:
            there = from_sockaddr(source)
            known = Endpoint(there.address, self._options.port, there.scope)
        return known

    def _take(self, frame: Frame, there: Endpoint, frames: list[Frame], now: float) -> None:
        """Learn from a frame, and add it to *frames* if it is wanted."""
        if len(frame) > self.mtu + HEADER_SIZE + 2 * TAG_SIZE:
            self.count("rx_too_long")
            return
        try:
            kind = ethertype_of(frame)
        except BadFrame:
            self.count("rx_malformed")
            return
        source = bytes(frame[MAC_SIZE : 2 * MAC_SIZE])
        if source == self.mac:
            self.count("rx_own")
            return
        if not is_group(source):
            self._stations.learn(source, there, now)
        if (self._others or is_group(frame) or frame[:MAC_SIZE] == self.mac) and (self._accepted is None or kind in self._accepted):
            frames.append(frame)

    def count(self, reason: str, number: int = 1) -> None:
        """`stack.drivers.vxlan_tunnel.tunnel.Network`."""
        self._port.count(reason, number)

    # The underlay

    def _is_up(self) -> bool:
        """An address of ours of the family is on an interface with carrier."""
        return any(one.up and one.is_ipv6 == self._six and self._local in (None, one.address) for one in self._monitor.look())

    def _network_changed(self) -> None:
        up = self._is_up()
        if up != self.up:
            self.up = up
            if not up:
                self._stations.forget()
            self._port.changed()


def _family_of(ends: tuple[Endpoint, ...]) -> bool:
    """Whether all are of IPv6. ModuleError when some are and some are not, or there is none."""
    families = {one.is_ipv6 for one in ends}
    if not families:
        raise ModuleError(errno.EINVAL, "vxlan: give another end, remote=ADDRESS, or a group")
    if len(families) > 1:
        raise ModuleError(errno.EINVAL, "vxlan: addresses of IPv4 and IPv6 do not go together: use two interfaces")
    return families.pop()


def _reason(code: int) -> str:
    if code in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
        return "tx_no_buffers"
    if code == errno.EMSGSIZE:
        return Drop.TOO_LONG
    if code == errno.ENETDOWN:
        return Drop.LINK_DOWN
    return "tx_unreachable" if code in UNREACHABLE else "tx_refused"


def _attach(context: Context, options: VxlanOptions) -> VxlanDriver:
    return VxlanDriver(context.dispatch, options, made_station(context.random(6)), _tunnels(context))


def _tunnels(context: Context) -> Iterator[Tunnel]:
    """Of the networks that this stack has."""
    for interface in context.stack.interfaces:
        driver = capability(interface.driver, _is_vxlan)
        if driver is not None:
            yield driver.tunnel


def _is_vxlan(driver: object) -> TypeGuard[VxlanDriver]:
    return isinstance(driver, VxlanDriver)


MODULE = Module("vxlan", Kind.DRIVER, VxlanOptions, _attach)
