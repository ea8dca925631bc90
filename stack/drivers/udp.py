"""UDP over IPv4 and IPv6: `io-pkt -d udp port=34997,bind=10.0.0.1`. For nodes that no Ethernet joins.

A datagram is one frame of one ethertype, without its Ethernet header. To the stack this is an Ethernet interface whose stations are
endpoints (`stack.core.endpoints`; docs/decisions/udp-driver.md): there is no broadcast, and no VLAN tags. Our own MAC address follows from
this machine's IP addresses, so that a change of them shows as what it is to protocols above, a change of address.

Without `bind` there is a socket for IPv4 and one for IPv6, for all addresses of this machine; each endpoint is answered from the address
that it wrote to. With `bind` there is a socket for each address given, which need not be there yet (IP_FREEBIND). The interface is up
while one of the addresses is on an interface with carrier. Its MTU is the largest of those interfaces', less the headers of IP and UDP:
what passes to whom the transport finds by probes, for which the DF bit is set. What is dropped is counted:

    tx_queue_full       the queue is full                too_long, too_short  no frame for this MTU; EMSGSIZE
    tx_no_buffers       the kernel dropped (ENOBUFS)     link_down            no address with carrier (or ENETDOWN)
    tx_unreachable      no route to there                tx_no_endpoint       no station of ours, or one long forgotten; a group
    tx_refused          any other error of send (EPERM:  tx_not_carried       another ethertype, or VLAN tags
                        a firewall)                      rx_overrun           the socket's buffer was full
    rx_too_long         longer than the MTU              rx_group             was sent to a group or to everybody
    rx_bad_source       from port 0, or from ourselves   rx_collision         two endpoints with one station (see the table)
    rx_error            an error of the socket

A coalesced run that overruns the buffer counts once.

Needs no right, except for a port below 1024.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Mapping

from resmgr.dispatch import Dispatch
from stack.core.driver import BATCH_MAX, Port, in_batches
from stack.core.endpoints import LOCAL_MAX
from stack.core.errors import ModuleError
from stack.core.module import Context, Kind, Module, Random
from stack.core.silent import SILENT
from stack.core.statistics import Drop
from stack.drivers.udp_socket.channel import Channel, open_channel, parse_bind
from stack.drivers.udp_socket.constants import HEADERS_IPV4, HEADERS_IPV6, SEGMENTS_MAX
from stack.drivers.udp_socket.options import UdpOptions
from stack.drivers.udp_socket.receiver import Arrival
from stack.drivers.udp_socket.sender import Socket
from stack.drivers.udp_socket.table import EndpointTable, Entry
from stack.frame import Frame
from stack.linux.interfaces import LocalAddress
from stack.linux.networkmonitor import NetworkMonitor
from stack.wire.endpoint import DATAGRAM_MAX, MTU_MIN, Endpoint, SockAddr, from_sockaddr
from stack.wire.ethernet import HEADER_SIZE, mac_text

log = logging.getLogger(__name__)

SOURCE_STALE = 1.0
"""An endpoint is answered from the address of ours to which it wrote, until nothing came to that one for so many seconds."""


class UdpDriver:
    """See the head of this file, `stack.core.driver.Driver` and `stack.core.endpoints.Endpoints`."""

    def __init__(self, dispatch: Dispatch, options: UdpOptions, random: Random = os.urandom) -> None:
        """ModuleError when an address or the port cannot be had."""
        self.name = options.name
        self.port = options.port
        self._options = options
        self._dispatch = dispatch
        self._port: Port = SILENT
        self._closed = False
        self._wanted = True
        self._type = options.ethertype.to_bytes(2, "big")
        self._table: EndpointTable[Socket] = EndpointTable(random(16))
        self._channels: list[Channel] = []
        self._local: tuple[LocalAddress, ...] = ()
        self.mac, self.mtu, self.up = bytes(6), options.mtu or MTU_MIN, False
        try:
            self._monitor = NetworkMonitor(dispatch, self._network_changed)
        except OSError as error:
            raise ModuleError(error.errno or errno.EIO, f"udp: no rtnetlink: {error.strerror}") from error
        try:
            for text in options.bind:
                self._open(*parse_bind(text, self._monitor.interfaces()))
            if not options.bind:
                self._bind_all()
            self._look()
        except BaseException:
            self.detach()
            raise

    # Sockets

    def _bind_all(self) -> None:
        self._open("", socket.AF_INET, 0)
        if socket.has_ipv6:
            try:
                self._open("", socket.AF_INET6, 0)
            except ModuleError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                log.info("udp: %s: IPv4 only", error)

    def _open(self, bound: str, family: socket.AddressFamily, index: int) -> None:
        options = self._options
        channel = open_channel(
            bound,
            self.port,
            family,
            index,
            dispatch=self._dispatch,
            buffer=options.buffer,
            queue=options.queue,
            room=self.mtu,
            offload=options.offload == "auto",
            count=self._count,
        )
        self.port = channel.out.sock.getsockname()[1]
        self._channels.append(channel)
        if self._port is not SILENT:
            self._attach(channel)

    def start(self, port: Port) -> None:
        self._port = port
        for channel in self._channels:
            self._attach(channel)
        self._monitor.start()

    def _attach(self, channel: Channel) -> None:
        self._dispatch.attach_fd(channel.out.sock.fileno(), lambda: self._readable(channel))

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self._wanted = ethertypes is None or self._options.ethertype in ethertypes
        if not self._closed:
            for channel in self._channels:
                channel.listen(self._wanted)

    def detach(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.up = False
        self._monitor.close()
        for channel in self._channels:
            if self._port is not SILENT:
                self._dispatch.detach_fd(channel.out.sock.fileno())
            channel.out.sock.close()

    def info(self) -> Mapping[str, str | int]:
        self._count_overruns()
        outs = [channel.out for channel in self._channels]
        receivers = [channel.receiver for channel in self._channels]
        kept, used, heard = self._table.sizes()
        bound = [f"{channel.bound or ('[::]' if channel.out.is_ipv6 else '0.0.0.0')} port {self.port}" for channel in self._channels]
        return {
            "driver": "udp",
            "bound": ", ".join(bound),
            "local addresses": ", ".join(str(one) for one in self.local()) or "none",
            "transmit": "segments" if any(out.segments for out in outs) else "one by one",
            "sent in segments": sum(out.segmented for out in outs),
            "calls for them": sum(out.segmented_calls for out in outs),
            "transmit queue": sum(out.waiting for out in outs),
            "receive": "coalesced" if any(channel.coalesces for channel in self._channels) else "one by one",
            "received coalesced": sum(receiver.coalesced for receiver in receivers),
            "copied": sum(receiver.copied for receiver in receivers),
            "receive overruns": sum(channel.overruns for channel in self._channels),
            "endpoints kept": kept,
            "used": used,
            "heard": heard,
        }

    # Endpoints

    def station(self, endpoint: Endpoint) -> bytes | None:
        channel = self._channel_for(endpoint)
        if channel is None or self._closed or not endpoint.is_callable() or self._is_own(endpoint.sockaddr):
            return None
        entry = self._table.keep(endpoint.sockaddr, channel.out)
        return None if entry is None else entry.station

    def release(self, endpoint: Endpoint) -> None:
        self._table.let_go(endpoint.sockaddr)

    def endpoint(self, station: bytes) -> Endpoint | None:
        entry = self._table.by_station.get(station)
        return None if entry is None else from_sockaddr(entry.sockaddr)

    def local(self) -> tuple[Endpoint, ...]:
        found = [one for one in self._local if not one.loopback] or list(self._local)
        places = [Endpoint(one.address, self.port, one.index if one.is_ipv6 and one.link_local else 0) for one in found if one.up]
        return tuple(places[:LOCAL_MAX])

    def local_interfaces(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.interface for one in self._local if not one.loopback))

    def _channel_for(self, endpoint: Endpoint) -> Channel | None:
        fitting = [channel for channel in self._channels if channel.out.is_ipv6 == endpoint.is_ipv6]
        if endpoint.scope:
            fitting = [channel for channel in fitting if channel.index in (0, endpoint.scope)]
        elif len(fitting) > 1:
            # A link-local address of ours reaches nothing beyond its link.
            fitting.sort(key=lambda channel: channel.index != 0)
        return fitting[0] if fitting else None

    def _is_own(self, sockaddr: SockAddr) -> bool:
        return sockaddr[1] == self.port and any(one.address == sockaddr[0] for one in self._local)

    # Receiving

    def _readable(self, channel: Channel) -> None:
        receiver = channel.receiver
        batch: list[Frame] = []
        while len(batch) <= BATCH_MAX - SEGMENTS_MAX and not receiver.full:
            arrivals = receiver.take()
            for arrival in arrivals:
                if arrival.frames:
                    self._received(channel, arrival, batch)
            if not arrivals:
                break
        port = self._port
        if receiver.too_long:
            port.count("rx_too_long", receiver.too_long)
            receiver.too_long = 0
        if receiver.errors:
            port.count("rx_error", receiver.errors)
            receiver.errors = 0
        for part in in_batches(batch):
            if self._closed:
                port.count(Drop.LINK_DOWN, len(part))
            else:
                port.deliver(part)
        if not self._closed:
            receiver.give_back()
            if len(batch) > BATCH_MAX - SEGMENTS_MAX:
                self._count_overruns()

    def _received(self, channel: Channel, arrival: Arrival, batch: list[Frame]) -> None:
        frames, source, sockaddr = arrival.frames, arrival.source, arrival.sockaddr
        if source is None:
            self._count("rx_group", len(frames))
            return
        entry = self._table.by_address.get(sockaddr)
        if entry is None:
            if sockaddr[1] == 0 or self._is_own(sockaddr):
                self._count("rx_bad_source", len(frames))
                return
            entry = self._table.heard(sockaddr, channel.out)
            if entry is None:
                self._count("rx_collision", len(frames))
                return
        if not entry.header:
            entry.header = self.mac + entry.station + self._type
        now = self._dispatch.now()
        if source == entry.source and entry.socket is channel.out:
            entry.heard_at = now
        elif now - entry.heard_at > SOURCE_STALE:
            entry.source, entry.socket, entry.heard_at = source, channel.out, now
        header = entry.header
        for frame in frames:
            frame[:HEADER_SIZE] = header
        batch += frames

    def _count_overruns(self) -> None:
        for channel in self._channels:
            fresh = 0 if self._closed else channel.overrun()
            if fresh:
                self._count("rx_overrun", fresh)

    def _count(self, reason: str, number: int = 1) -> None:
        self._port.count(reason, number)

    # Sending

    def transmit(self, frames: list[Frame]) -> None:
        if self._closed or not self.up:
            self._count(Drop.LINK_DOWN, len(frames))
            return
        count = len(frames)
        if count == 1:
            frame = frames[0]
            entry = self._destination(frame)
            if entry is not None:
                entry.socket.send_one(entry, frame)
            return
        start = 0
        while start < count:
            entry = self._destination(frames[start])
            if entry is None:
                start += 1
                continue
            stop, sizes = self._alike(frames, start)
            entry.socket.send(entry, frames[start:stop] if stop - start < count else frames, sizes)
            start = stop

    def _destination(self, frame: Frame) -> Entry[Socket] | None:
        """Where a frame goes; None, and it is counted, if it goes nowhere."""
        size = len(frame)
        if size < HEADER_SIZE:
            self._count(Drop.TOO_SHORT)
        elif frame[12:HEADER_SIZE] != self._type:
            self._count("tx_not_carried")
        elif size > self.mtu + HEADER_SIZE:
            self._count(Drop.TOO_LONG)
        else:
            entry = self._table.by_station.get(bytes(frame[:6]))
            if entry is not None:
                self._table.use(entry)
                return entry
            self._count("tx_no_endpoint")
        return None

    def _alike(self, frames: list[Frame], start: int) -> tuple[int, list[int]]:
        """Up to where the frames from *start* on go to the same place and are good, and their sizes."""
        longest = self.mtu + HEADER_SIZE
        head = bytes(frames[start][:HEADER_SIZE])
        rest = frames if start == 0 else frames[start:]
        sizes = list(map(len, rest))
        if set(map(type, rest)) == {bytes} and max(sizes) <= longest:
            others = [place for place, frame in enumerate(rest) if not frame.startswith(head)]  # type: ignore[union-attr]  # all are bytes
            stop = others[0] if others else len(rest)
        else:
            stop = 1
            while stop < len(rest) and HEADER_SIZE <= sizes[stop] <= longest and rest[stop][:HEADER_SIZE] == head:
                stop += 1
        return start + stop, sizes[:stop] if stop < len(sizes) else sizes

    # The network

    def _network_changed(self) -> None:
        before = self._local, self.mac, self.mtu, self.up
        self._look()
        if before != (self._local, self.mac, self.mtu, self.up):
            self._port.changed()

    def _look(self) -> None:
        """Take over this machine's addresses."""
        every = sorted(self._monitor.look(), key=lambda one: (one.index, one.is_ipv6, one.address))
        self._rebind()
        served = [one for one in every if any(channel.serves(one) for channel in self._channels)]
        chosen = [one for one in served if not one.loopback] or [one for one in served if self._options.bind]
        self._local = tuple(served)
        carrying = [one for one in chosen if one.up]
        self.up = bool(carrying) and not self._closed
        if self._options.mtu is None and carrying:
            largest = max(one.mtu - (HEADERS_IPV6 if one.is_ipv6 else HEADERS_IPV4) for one in carrying)
            mtu = max(MTU_MIN, min(largest, DATAGRAM_MAX))
            if mtu != self.mtu or self._channels[0].receiver.room != mtu:
                self.mtu = mtu
                for channel in self._channels:
                    channel.receiver.set_room(mtu)
        # Link-local addresses come and go by themselves beside others, and mean nothing further off.
        told = [one for one in carrying if not one.link_local] or carrying
        mac = self._table.hash("own " + ", ".join(f"{one.address}%{one.index}" for one in told))
        if mac != self.mac:
            self.mac = mac
            for entry in self._table.by_station.values():
                entry.header = b""
        here = {ipaddress.ip_address(one.address).packed for one in every}
        for entry in self._table.by_station.values():
            if entry.source and entry.source not in here:
                entry.source = b""

    def _rebind(self) -> None:
        """A link-local address whose interface came back has another index now: it needs another socket."""
        scoped = [channel for channel in self._channels if channel.index]
        if not scoped:
            return
        interfaces = self._monitor.interfaces()
        for text in self._options.bind:
            address, _, interface = text.partition("%")
            index = interfaces.get(interface)
            here = [one for one in scoped if one.bound == str(ipaddress.ip_address(address))]
            gone = [one for one in here if one.index not in interfaces.values()]
            if index and gone and index not in [one.index for one in here]:
                self._replace(gone[0], index)

    def _replace(self, channel: Channel, index: int) -> None:
        """Another socket for the same address; made in the network namespace in which the process is now."""
        try:
            self._open(channel.bound, socket.AF_INET6, index)
        except ModuleError as error:
            log.warning("%s; the next change of the network tries again", error)
            return
        old, new = channel.out, self._channels[-1]
        new.listen(self._wanted)
        old.clear()
        if self._port is not SILENT:
            self._dispatch.detach_fd(old.sock.fileno())
        old.sock.close()
        self._channels.remove(channel)
        for entry in self._table.by_station.values():
            if entry.socket is old:
                entry.socket = new.out


def _attach(context: Context, options: UdpOptions) -> UdpDriver:
    driver = UdpDriver(context.dispatch, options, context.random)
    log.info("udp: port %d, own station %s", driver.port, mac_text(driver.mac))
    return driver


MODULE = Module("udp", Kind.DRIVER, UdpOptions, _attach)
