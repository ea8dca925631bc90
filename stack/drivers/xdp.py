"""AF_XDP on a Linux interface: `io-pkt -d xdp ifname=eth0`. Frames go between the interface and our memory, past the kernel's stack.

An XDP program on the interface (`stack.drivers.af_xdp.program`) gives each frame that the stack wants to the socket of its receive queue,
and everything else to the kernel's own stack; unlike with `packet`, where both get it, what the driver accepts the kernel does not see. The
program falls away with the driver's descriptors. Received frames are memoryviews of shared memory until `deliver` returns; transmitted
ones are copied into it once. All queues are received from; the first one sends.

The interface is followed through rtnetlink, and taken again when one of the same name comes back. What is dropped is counted:

    tx_queue_full   all chunks wait to be sent          link_down            the interface is down or gone
    tx_refused      any other error of send             too_long, too_short  not a frame for this MTU
    rx_overrun      no room in ring or memory       rx_resized           was in the rings when the MTU changed

Needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF. Only one XDP program fits on an interface: the forwarding engine `kernel` and this driver
exclude each other there.

XDP shows a frame's bytes and nothing of what Linux keeps beside them. From a card that is the whole frame, if it leaves VLAN tags in place
(`ethtool -K IF rxvlan off`) and merges nothing. From this machine's other namespaces it is not: their checksums are partial and their runs
of segments uncut, unless `tx` and `tso` are off at the far end. There `packet` is the right driver, which puts such frames right.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Mapping
from functools import partial

from resmgr.dispatch import Dispatch, Timer
from stack.core.driver import BATCH_BYTES, BATCH_MAX, Port
from stack.core.errors import ModuleError
from stack.core.fitting import fitting
from stack.core.module import Context, Kind, Module
from stack.core.silent import SILENT
from stack.core.statistics import Drop
from stack.drivers.af_xdp.attachment import LET_GO, Attachment
from stack.drivers.af_xdp.options import XdpOptions
from stack.frame import Frame
from stack.linux.constants import (
    ARPHRD_ETHER,
    LINK_ERRORS,
    PACKET_ADD_MEMBERSHIP,
    PACKET_MR_MULTICAST,
    PACKET_MR_PROMISC,
    PACKET_MREQ,
    SOL_PACKET,
)
from stack.linux.linkmonitor import LinkMonitor
from stack.linux.namespace import inside
from stack.linux.packetring import ring_is_safe
from stack.wire.ethernet import MAC_SIZE
from stack.wire.rtnetlink import Link

__all__ = ["MODULE", "XdpDriver", "XdpOptions"]

log = logging.getLogger(__name__)

KICK_AGAIN = 0.001
"""Seconds after which the kernel is asked again to send what it did not take."""


RETAKE = 0.05
"""Seconds after which an interface is tried again that could not be taken: the kernel is slow to let go of its queues."""
RETAKE_QUIETLY = 20
"""Times, before somebody should know."""


class XdpDriver:
    """See the head of this file and `stack.core.driver.Driver`."""

    def __init__(self, dispatch: Dispatch, options: XdpOptions) -> None:
        """ModuleError when there is no such interface, it is no Ethernet, a right is missing, or the kernel has no AF_XDP.

        Blocks for up to LET_GO when a socket on the interface has been closed just now: loading cannot come back later.
        """
        self.name = options.name or options.ifname
        self._options = options
        self._dispatch = dispatch
        self._port: Port = SILENT
        self._closed = False
        self._delivering = False
        self._waste: list[Attachment] = []
        self._attachment: Attachment | None = None
        self._ethertypes: frozenset[int] | None = frozenset()
        self._others = False
        self._groups: frozenset[bytes] = frozenset()
        self._lost_before = 0
        self._overruns = 0
        self._again: Timer | None = None
        self._retake: Timer | None = None
        self._refused = 0
        if not ring_is_safe():
            raise ModuleError(errno.EOPNOTSUPP, "this processor does not keep the order of stores that rings in shared memory need")
        self._membership: socket.socket | None = None
        with contextlib.ExitStack() as undo:
            # The interface comes back there, whatever namespace the process is in by then.
            self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, self._namespace)
            self._monitor = LinkMonitor(dispatch, self._link_reported, _is_ethernet)
            undo.callback(self._monitor.close)
            link = self._monitor.find(options.ifname)
            if link is None:
                raise ModuleError(errno.ENODEV, f"there is no network interface {options.ifname} in this network namespace")
            if not _is_ethernet(link):
                raise ModuleError(errno.EINVAL, f"{options.ifname} is no Ethernet interface (device type {link.kind})")
            self._link: Link | None = link
            self.mac, self.mtu, self.up = link.mac, link.mtu, link.up
            try:
                self._attachment = Attachment(link, options, LET_GO)
            except OSError as error:
                raise ModuleError(error.errno or errno.EIO, f"cannot use {options.ifname} with AF_XDP: {error.strerror}") from error
            undo.pop_all()

    def start(self, port: Port) -> None:
        self._port = port
        self._watch()
        self._monitor.start()

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self._ethertypes = ethertypes
        self._tell()

    def promiscuous(self, on: bool) -> None:
        """`stack.core.promiscuity.Promiscuous`."""
        self._join(on, self._groups)
        self._tell()

    def groups(self, wanted: frozenset[bytes]) -> None:
        """`stack.core.groups.Grouping`."""
        self._join(self._others, wanted)

    def _join(self, others: bool, groups: frozenset[bytes]) -> None:
        """The interface itself is in groups and promiscuous for as long as a packet socket wants it, which hears nothing else.

        With OSError everything is as it was.
        """
        link, made = self._link, None
        if (others or groups) and link is not None and not self._closed:
            with inside(self._namespace):
                made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            wanted = [(PACKET_MR_MULTICAST, group) for group in groups]
            try:
                for kind, address in [*wanted, (PACKET_MR_PROMISC, b"")] if others else wanted:
                    made.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MREQ.pack(link.index, kind, len(address), address))
            except OSError:
                made.close()
                raise
        if self._membership is not None:
            self._membership.close()
        self._membership = made
        self._others, self._groups = others, groups

    def _tell(self) -> None:
        if self._attachment is not None:
            self._attachment.accept(self._ethertypes, self._others, self.mac)

    def info(self) -> Mapping[str, str | int]:
        self._count_overruns()
        link, attachment = self._link, self._attachment
        return {
            "driver": "xdp",
            "linux interface": self._options.ifname if link is None else f"{link.name} (index {link.index})",
            "receive": "nothing: the interface is gone" if attachment is None else attachment.describe(),
            "transmit": "chunks of shared memory, one copy",
            "transmit queue": 0 if attachment is None else attachment.queues[0].unsent,
            "receive overruns": self._overruns,
        }

    def detach(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.up = False
        self._monitor.close()
        self._drop_attachment(Drop.LINK_DOWN)
        self._join(self._others, self._groups)
        for timer in (self._again, self._retake):
            if timer is not None:
                timer.cancel()
        os.close(self._namespace)

    # Receiving

    def _watch(self) -> None:
        attachment = self._attachment
        if attachment is None or self._port is SILENT:
            return
        for number, queue in enumerate(attachment.queues):
            self._dispatch.attach_fd(queue.sock.fileno(), partial(self._readable, attachment, number))

    def _readable(self, attachment: Attachment, number: int) -> None:
        queue, port = attachment.queues[number], self._port
        frames = queue.take(BATCH_MAX, BATCH_BYTES)
        if not frames:
            # The interface went down: the error makes the socket readable until somebody fetches it.
            queue.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return
        self._delivering = True
        try:
            port.deliver(frames)
        finally:
            self._delivering = False
            del frames
            waste, self._waste = self._waste, []
            for one in waste:
                one.close_memory()
        if attachment is self._attachment:
            queue.give_back()

    def _count_overruns(self) -> None:
        if self._attachment is not None:
            lost = self._attachment.lost()
            if lost > self._lost_before:
                self._port.count("rx_overrun", lost - self._lost_before)
                self._overruns += lost - self._lost_before
            self._lost_before = lost

    # Sending

    def transmit(self, frames: list[Frame]) -> None:
        attachment = self._attachment
        if attachment is None or not self.up:
            self._port.count(Drop.LINK_DOWN, len(frames))
            return
        frames = fitting(frames, self.mtu, self._port.count)
        queue, start = attachment.queues[0], 0
        try:
            while start < len(frames):
                taken = queue.send(frames, start)
                start += taken
                asleep = queue.kick()
                if not taken:
                    self._port.count("tx_queue_full", len(frames) - start)
                    start = len(frames)
                if not asleep:
                    self._kick_later()
        except OSError as error:
            self._port.count(Drop.LINK_DOWN if error.errno in LINK_ERRORS else "tx_refused", len(frames) - start)

    def _kick_later(self) -> None:
        if self._again is None:
            self._again = self._dispatch.call_at(self._dispatch.now() + KICK_AGAIN, self._kick)

    def _kick(self) -> None:
        self._again = None
        if self._attachment is None:
            return
        try:
            if not self._attachment.queues[0].kick():
                self._kick_later()
        except OSError as error:
            log.info("xdp: %s does not send: %s", self._options.ifname, error.strerror)

    # The link

    def _link_reported(self, link: Link | None) -> None:
        before, self._link = self._link, link
        if link is None:
            log.warning("xdp: interface %s is gone", self._options.ifname)
            self.up = False
            self._drop_attachment(Drop.LINK_DOWN)
        else:
            self.mac = link.mac
            if before is None or before.index != link.index or link.mtu != self.mtu or self._attachment is None:
                self.mtu = link.mtu
                self._take(link)
            self.up = link.up and self._attachment is not None
            self._tell()
        self._port.changed()

    def _take(self, link: Link) -> None:
        """Other chunks for another MTU, or another interface of the same name. What lies in the rings is lost (`rx_resized`)."""
        self._drop_attachment("rx_resized")
        if self._retake is not None:
            self._retake.cancel()
            self._retake = None
        try:
            self._join(self._others, self._groups)
            with inside(self._namespace):
                self._attachment = Attachment(link, self._options)
        except OSError as error:
            self._refused += 1
            if self._refused == RETAKE_QUIETLY:
                log.warning("xdp: cannot take %s, and goes on trying: %s", link.name, error.strerror)
            self._retake = self._dispatch.call_at(self._dispatch.now() + RETAKE, self._again_take)
            return
        self._refused = 0
        self._watch()

    def _again_take(self) -> None:
        self._retake = None
        if self._attachment is None and self._link is not None and not self._closed:
            self._link_reported(self._link)

    def _drop_attachment(self, why: str) -> None:
        """*why*: the reason under which frames count that lie in the rings."""
        attachment = self._attachment
        if attachment is None:
            return
        self._count_overruns()
        self._attachment = None
        self._lost_before = 0
        for queue in attachment.queues:
            if self._port is not SILENT:
                self._dispatch.detach_fd(queue.sock.fileno())
        attachment.close()
        for queue in attachment.queues:
            while left := len(queue.take(BATCH_MAX, BATCH_BYTES)):
                self._port.count(why, left)
        if self._delivering:
            self._waste.append(attachment)
        else:
            attachment.close_memory()


def _is_ethernet(link: Link) -> bool:
    return link.kind == ARPHRD_ETHER and len(link.mac) == MAC_SIZE


def _attach(context: Context, options: XdpOptions) -> XdpDriver:
    return XdpDriver(context.dispatch, options)


MODULE = Module("xdp", Kind.DRIVER, XdpOptions, _attach, capabilities=("NET_RAW", "NET_ADMIN", "BPF"))
