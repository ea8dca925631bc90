"""AF_PACKET on a Linux interface: `io-pkt -d packet ifname=eth0`. The driver for every Ethernet that Linux knows.

Receives from a ring in shared memory and sends with send or sendmmsg (`stack.drivers.af_packet`; docs/decisions/packet-io.md has the
measurements). A BPF program in the kernel lets only wanted ethertypes for this machine wake the node; own transmissions are not heard.
Frames are delivered as they are on a wire: VLAN tags that the kernel took out are put back, partial checksums completed, runs of
segments that it merged taken apart (`stack.linux.unfinished`), unless somebody carries them whole (`stack.core.runs`).
Receiving, sending and sending runs have a socket each: what the kernel is told in front of a run it would want in front of every frame.

The interface is followed through rtnetlink. When it vanishes the link is down; when one of the same name comes again, the driver takes it.
Frames that the kernel cannot take at once wait in a short queue (`stack.drivers.af_packet.output`). What is dropped is counted:

    tx_queue_full       the queue is full            link_down           the interface is down or gone (ENETDOWN, ENXIO)
    tx_no_buffers       the device dropped (ENOBUFS) too_long, too_short not a frame for this MTU
    tx_refused          any other error of send      rx_overrun          the ring was full (PACKET_STATISTICS)
    rx_truncated        longer than the MTU allows rx_unfinished        a run that cannot be taken apart
    rx_tiny_segments    a run of more segments than we take apart
    rx_side_overrun     a stranger's frame, and the side queue was full

A run that the kernel itself cannot describe (SCTP) counts as rx_overrun.

With a screen (`stack.core.screen`) strangers' frames have a socket of their own (`stack.drivers.af_packet.side`).

Needs CAP_NET_RAW in the user namespace that owns the network namespace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import socket
import struct
from collections.abc import Mapping
from functools import partial
from typing import Final

from resmgr.dispatch import Dispatch
from stack.core.driver import BATCH_BYTES, BATCH_MAX, Port, in_batches
from stack.core.errors import ModuleError
from stack.core.linuxinterface import LinuxInterface
from stack.core.module import Context, Kind, Module
from stack.core.screen import Screen
from stack.core.silent import SILENT
from stack.core.statistics import Drop
from stack.drivers.af_packet.filter import program
from stack.drivers.af_packet.membership import Membership
from stack.drivers.af_packet.opening import close_all, fetch_error, find_ethernet, is_ethernet, open_socket
from stack.drivers.af_packet.options import PacketOptions
from stack.drivers.af_packet.output import Output
from stack.drivers.af_packet.receiver import Receiver, Recv, Ring
from stack.drivers.af_packet.side import MTU as SIDE_MTU
from stack.drivers.af_packet.side import RING as SIDE_RING
from stack.drivers.af_packet.side import SideQueue
from stack.filter.bpf.attach import attach
from stack.frame import Frame
from stack.linux.constants import (
    ETH_P_ALL,
    LINK_ERRORS,
    PACKET_STATISTICS,
    PACKET_VNET_HDR,
    SIOCGSKNS,
    SOL_PACKET,
)
from stack.linux.linkmonitor import LinkMonitor
from stack.linux.packetring import ring_is_safe
from stack.wire.rtnetlink import Link

__all__ = ["MODULE", "PacketDriver", "PacketOptions"]

log = logging.getLogger(__name__)

MTU_MAX: Final = 65535


class PacketDriver:
    """See the head of this file and `stack.core.driver.Driver`."""

    def __init__(self, dispatch: Dispatch, options: PacketOptions) -> None:
        """ModuleError when there is no such interface, it is no Ethernet, or the right is missing."""
        self.name = options.name or options.ifname
        self._options = options
        self._dispatch = dispatch
        self._port: Port = SILENT
        self._closed = False
        self._delivering = False
        self._overruns = 0
        self._ethertypes: frozenset[int] | None = frozenset()
        self._screens: Mapping[int, Screen] = {}
        self._side: SideQueue | None = None
        self._unscreened = ""
        self._aside = False
        with contextlib.ExitStack() as undo:
            self._monitor = LinkMonitor(dispatch, self._link_reported, is_ethernet)
            undo.callback(self._monitor.close)
            link = find_ethernet(self._monitor, options.ifname)
            self._link: Link | None = link
            self.mac, self.mtu, self.up = link.mac, link.mtu, link.up
            try:
                self._sock = undo.enter_context(open_socket(options.ifname))
                self._membership = Membership(self._sock)
                # Now, since they belong to the network namespace that this thread is in; they hear nothing, or not until there is a screen.
                self._out = undo.enter_context(open_socket(options.ifname))
                self._side_sock = undo.enter_context(open_socket(options.ifname))
                self._run_sock = undo.enter_context(open_socket(options.ifname))
                self._run_sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
                self._receiver = self._make_receiver()
                undo.callback(self._receiver.close)
                self._output = Output(dispatch, self._out, self._run_sock, min(self.mtu, MTU_MAX), options.queue, self._count)
                self._bind(link)
            except ModuleError:
                raise
            except OSError as error:
                raise ModuleError(error.errno or errno.EIO, f"cannot use {options.ifname}: {error.strerror}") from error
            undo.pop_all()

    def _make_receiver(self) -> Receiver:
        mode = self._options.rx
        size = self._options.ring
        if mode == "ring" or (mode == "auto" and ring_is_safe()):
            return Ring(self._sock, min(self.mtu, MTU_MAX), size)
        return Recv(self._sock, min(self.mtu, MTU_MAX), size)

    def _bind(self, link: Link) -> None:
        self._out.bind((link.name, 0))
        self._run_sock.bind((link.name, 0))
        self._sock.bind((link.name, ETH_P_ALL))
        if self._side is not None:
            self._side.bind(link.name)

    def start(self, port: Port) -> None:
        self._port = port
        self._dispatch.attach_fd(self._sock.fileno(), self._readable)
        for sock in (self._out, self._run_sock):
            self._dispatch.attach_fd(sock.fileno(), partial(fetch_error, sock))
        self._monitor.start()

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self._ethertypes = ethertypes
        self._attach()

    def promiscuous(self, on: bool) -> None:
        """`stack.core.promiscuity.Promiscuous`: the Linux interface becomes promiscuous for as long as this socket wants it."""
        self._membership.join(self._linux(), on, self._membership.groups)
        self._attach()

    def groups(self, wanted: frozenset[bytes]) -> None:
        """`stack.core.groups.Grouping`: memberships of the socket, which the kernel tells the card."""
        self._membership.join(self._linux(), self._membership.others, wanted)

    def _linux(self) -> int | None:
        """The index of the interface that the socket is bound to; None while there is none."""
        return None if self._link is None or self._closed else self._link.index

    def linux_interface(self) -> LinuxInterface | None:
        """`stack.core.linuxinterface.OnLinux`."""
        link = self._link
        if link is None or self._closed:
            return None
        return LinuxInterface(link.name, link.index, fcntl.ioctl(self._sock.fileno(), SIOCGSKNS))

    def stand_aside(self, aside: bool) -> None:
        self._aside = aside
        self._attach()

    @property
    def linux_index(self) -> int:
        """Of the Linux interface; 0 while it is gone."""
        return 0 if self._link is None else self._link.index

    def screen(self, screens: Mapping[int, Screen]) -> None:
        """`stack.core.screen.Screening`: in the kernel, with a second socket for the side queue."""
        self._screens = screens
        self._attach()

    @property
    def shed(self) -> int:
        return 0 if self._side is None else self._side.shed

    def _attach(self) -> None:
        """Tell the kernel what is wanted: first the side socket, so that no frame falls between the two."""
        if self._closed:
            return
        if self._aside:
            for sock in (self._sock, self._side_sock):
                attach(sock, program(frozenset()))
            return
        screens = self._screens
        try:
            if screens and self._side is None:
                self._side = self._open_side()
            if self._side is not None:
                self._side.screen(self._ethertypes, screens)
            attach(self._sock, program(self._ethertypes, screens, self._membership.others))
            self._unscreened = ""
        except OSError as error:
            # All frames as before: nothing depends on a screen but the cost of a flood.
            self._unscreened = error.strerror or "the kernel refuses"
            log.warning("packet: no screen on %s: %s", self._options.ifname, self._unscreened)
            attach(self._sock, program(self._ethertypes, None, self._membership.others))
            attach(self._side_sock, program(frozenset()))

    def _open_side(self) -> SideQueue:
        mode = self._options.rx
        # First what can fail and leaves nothing: until there is a program nothing comes.
        if self._link is not None:
            self._side_sock.bind((self._link.name, ETH_P_ALL))
        if mode == "ring" or (mode == "auto" and ring_is_safe()):
            receiver: Receiver = Ring(self._side_sock, SIDE_MTU, SIDE_RING, runs=False)
        else:
            receiver = Recv(self._side_sock, SIDE_MTU, SIDE_RING)
        return SideQueue(self._dispatch, self._side_sock, receiver, self._port)

    def info(self) -> Mapping[str, str | int]:
        self._count_overruns()
        link = self._link
        return {
            "driver": "packet",
            "linux interface": self._options.ifname if link is None else f"{link.name} (index {link.index})",
            "receive": self._receiver.describe(),
            "transmit": self._output.describe(),
            "transmit queue": self._output.waiting,
            "transmitted by a copy": self._output.copied,
            **({"runs sent whole": self._output.runs} if self._output.runs else {}),
            "receive overruns": self._overruns,
            **self._receiver.restorer.info(),
            **self._screen_info(),
        }

    def _screen_info(self) -> dict[str, str | int]:
        side = self._side
        if side is None:
            return {"screen": f"none: {self._unscreened}"} if self._unscreened else {}
        lost = side.count_lost()
        if lost:
            self._count("rx_side_overrun", lost)
        how = f"none: {self._unscreened}" if self._unscreened else side.describe()
        return {"screen": how, "screened out": self.shed, "side queue overruns": side.lost}

    def detach(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.up = False
        self._monitor.close()
        self._output.clear()
        if self._side is not None:
            self._side.close()
        if self._port is not SILENT:
            self._dispatch.detach_fd(self._sock.fileno())
            for sock in (self._out, self._run_sock):
                self._dispatch.detach_fd(sock.fileno())
        if not self._delivering:
            self._end()

    def _end(self) -> None:
        """Nothing of it is in use any more."""
        with contextlib.suppress(OSError):
            attach(self._sock, program(frozenset()))
        with contextlib.suppress(OSError):
            # Now, and not when the thread below comes to it.
            self._membership.join(None if self._link is None else self._link.index, False, frozenset())
        self._count_left(Drop.LINK_DOWN)
        self._receiver.close()
        # For each of them the kernel waits until all its processors have seen that it is gone, 10 to 20 ms.
        sockets = self._sock, self._out, self._run_sock, self._side_sock
        self._dispatch.call_blocking(lambda: close_all(sockets), lambda _: None)

    # Receiving

    def _readable(self) -> None:
        receiver, port = self._receiver, self._port
        try:
            frames = receiver.take(BATCH_MAX, BATCH_BYTES)
        except OSError as error:
            if error.errno not in LINK_ERRORS:
                raise
            return
        if frames:
            self._delivering = True
            try:
                self._deliver(port, frames)
            finally:
                self._delivering = False
                receiver.give_back()
                if self._closed:
                    self._end()
            if self._closed:
                return
        else:
            receiver.give_back()
            # An error of the socket (the interface went down) makes it readable until somebody fetches it.
            self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        receiver.restorer.tell(port.count)
        if receiver.losing:
            self._count_overruns()

    def _deliver(self, port: Port, frames: list[Frame]) -> None:
        """In batches: a run of segments may make them more than were taken."""
        if not frames:
            return
        for batch in (frames,) if len(frames) <= BATCH_MAX else in_batches(frames):
            if self._closed:
                port.count(Drop.LINK_DOWN, len(batch))
            else:
                port.deliver(batch)

    def _count_left(self, reason: str) -> None:
        """Frames that have come, and that nobody will look at any more."""
        with contextlib.suppress(OSError):
            while left := len(self._receiver.take(BATCH_MAX)):
                self._receiver.give_back()
                self._count(reason, left)

    def _count_overruns(self) -> None:
        if self._closed:
            return
        self._receiver.losing = False
        _, lost = struct.unpack("II", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if lost:
            self._overruns += lost
            self._port.count("rx_overrun", lost)

    def transmit(self, frames: list[Frame]) -> None:
        if self._closed or self._link is None:
            self._count(Drop.LINK_DOWN, len(frames))
        else:
            self._output.transmit(frames)

    def whole_runs(self, on: bool) -> None:
        """`stack.core.runs.RunDriver`."""
        self._receiver.restorer.whole = on

    def transmit_runs(self, frames: list[Frame]) -> None:
        if self._closed or self._link is None:
            self._count(Drop.LINK_DOWN, len(frames))
        else:
            self._output.transmit_runs(frames)

    def _count(self, reason: str, number: int = 1) -> None:
        self._port.count(reason, number)

    # The link

    def _link_reported(self, link: Link | None) -> None:
        before = self._link
        self._link = link
        if link is None:
            log.warning("packet: interface %s is gone", self._options.ifname)
            self._output.clear()
            self.up = False
        else:
            if before is None or before.index != link.index:
                try:
                    self._bind(link)
                    self._membership.join(link.index, self._membership.others, self._membership.groups)
                except OSError as error:
                    log.warning("packet: cannot take %s: %s", link.name, error.strerror)
                    self._link = None
                    return
            if link.mtu != self.mtu:
                self._resize(link.mtu)
            self.mac, self.up = link.mac, link.up
        self._port.changed()

    def _resize(self, mtu: int) -> None:
        """Another MTU: other slots. What lies in the ring is lost (`rx_resized`)."""
        self._count_left("rx_resized")
        self.mtu = mtu
        self._output.set_mtu(min(mtu, MTU_MAX))
        self._receiver.restorer.set_mtu(min(mtu, MTU_MAX))
        if isinstance(self._receiver, Ring) and not self._receiver.dissolve():
            log.warning("packet: a module holds frames of %s: the ring stays as it is, longer frames cost more", self._options.ifname)
            return
        before = self._receiver.restorer
        try:
            self._receiver = self._make_receiver()
        except OSError as error:
            log.warning("packet: no ring for MTU %d on %s (%s): receiving with recv", mtu, self._options.ifname, error.strerror)
            self._receiver = Recv(self._sock, min(mtu, MTU_MAX), self._options.ring)
        self._receiver.restorer.go_on_from(before)


def _attach(context: Context, options: PacketOptions) -> PacketDriver:
    return PacketDriver(context.dispatch, options)


MODULE = Module("packet", Kind.DRIVER, PacketOptions, _attach, capabilities=("NET_RAW",))
