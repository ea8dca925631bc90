"""A tap device: `io-pkt -d tap ifname=tap0`. The Linux machine itself becomes a station of the stack's Ethernet.

    Linux's TCP/IP -- tap0 (its MAC address) ==== this driver (`mac`) -- stack

Frames are whole above the driver. With `runs` Linux leaves checksums and the cutting of TCP and UDP runs to us
(`stack.wire.segmentation`), which is dearer than Linux's own cutting and there for programs that insist on it. A program in the kernel
lets only wanted ethertypes for this station wake the node.
The Linux interface is made and switched on, and goes with the driver; its address, routes and firewall are the administrator's. Its MTU
and carrier are followed; when somebody deletes it, the link is down for good.

    tx_no_buffers   the kernel has no memory            rx_unfinished   a run that cannot be taken apart
    tx_refused      any other error of write            rx_truncated    longer than the MTU allows
    rx_tiny_segments    a run of more segments than we take apart

Needs CAP_NET_ADMIN in the user namespace that owns the network namespace, or a device that was made for this user
(`ip tuntap add tap0 mode tap vnet_hdr user NAME`); and /dev/net/tun must be writable, which most systems leave to all.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping

import attrs

from resmgr.dispatch import Dispatch
from stack.core.driver import BATCH_BYTES, BATCH_MAX, Port, in_batches
from stack.core.errors import ModuleError
from stack.core.fitting import fitting
from stack.core.module import Context, Kind, Module
from stack.core.names import check_linux_name, station_address
from stack.core.silent import SILENT
from stack.core.statistics import Drop
from stack.drivers.tun_device.device import TapDevice
from stack.frame import Frame
from stack.linux.linkmonitor import LinkMonitor
from stack.linux.typefilter import station_program
from stack.linux.unfinished import RUN_MAX, Restorer
from stack.wire import virtio_net
from stack.wire.ethernet import MTU_MIN, mac_text, made_station
from stack.wire.rtnetlink import Link
from stack.wire.run import Run

log = logging.getLogger(__name__)

FINISHED = bytes(virtio_net.SIZE)
"""In front of what we send: nothing is left to do."""
LINK_ERRORS = frozenset((errno.EIO, errno.ENETDOWN, errno.EBADFD))
"""EIO: the interface is switched off; EBADFD: it was deleted."""


@attrs.frozen
class TapOptions:
    """Options of `-d tap`."""

    ifname: str = "tap%d"
    """The Linux interface; %d becomes the first number that is free."""
    name: str | None = None
    """Name of the interface in the stack; the Linux name by default."""
    mac: str | None = None
    """Of our end; one of chance by default. Linux chooses that of its own."""
    mtu: int | None = attrs.field(
        default=None, validator=attrs.validators.optional([attrs.validators.ge(MTU_MIN), attrs.validators.le(65521)])
    )
    """To be set on the Linux interface."""
    up: bool = True
    """Switch the Linux interface on."""
    runs: bool = False
    """Let Linux hand over runs of segments and partial checksums."""


class TapDriver:
    """See the head of this file and `stack.core.driver.Driver`."""

    def __init__(self, dispatch: Dispatch, options: TapOptions, mac: bytes) -> None:
        """*mac*: of our end, unless the options say another. ModuleError when the device cannot be made."""
        self.mac = mac if options.mac is None else station_address(options.mac, "tap")
        check_linux_name(options.ifname.replace("%d", "0"), "tap")
        self._dispatch = dispatch
        self._port: Port = SILENT
        self._closed = False
        self._attached = False
        self._ethertypes: frozenset[int] | None = frozenset()
        self._others = False
        self._memory = memoryview(bytearray(BATCH_BYTES + 2 * RUN_MAX))
        self._monitor = LinkMonitor(dispatch, self._link_reported)
        try:
            self._device = TapDevice(options.ifname, options.runs)
        except BaseException:
            self._monitor.close()
            raise
        try:
            self._filter()
            self._device.configure(options.up, options.mtu)
            link = self._monitor.find(self._device.ifname)
            if link is None:
                raise ModuleError(errno.ENODEV, f"the tap device {self._device.ifname} is gone again")
        except OSError as error:
            self._monitor.close()
            self._device.close()
            if isinstance(error, ModuleError):
                raise
            raise ModuleError(error.errno or errno.EIO, f"cannot set {self._device.ifname} up: {error.strerror}") from error
        self._link: Link | None = link
        self.name = options.name or self._device.ifname
        self.mtu, self.up = link.mtu, link.up
        self._restorer = Restorer(link.mtu)

    def start(self, port: Port) -> None:
        self._port = port
        self._attached = True
        self._dispatch.attach_fd(self._device.fd, self._readable)
        self._monitor.start()

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self._ethertypes = ethertypes
        if not self._closed:
            self._filter()

    def promiscuous(self, on: bool) -> None:
        """`stack.core.promiscuity.Promiscuous`."""
        self._others = on
        if not self._closed:
            self._filter()

    def whole_runs(self, on: bool) -> None:
        """`stack.core.runs.RunDriver`: with `runs` Linux hands some over."""
        self._restorer.whole = on

    def _filter(self) -> None:
        self._device.attach(station_program(self._ethertypes, None if self._others else self.mac))

    def info(self) -> Mapping[str, str | int]:
        link = self._link
        return {
            "driver": "tap",
            "linux interface": f"{self._device.ifname} (deleted)" if link is None else f"{link.name} (index {link.index})",
            "linux address": "" if link is None else mac_text(link.mac),
            "runs from linux": self._device.runs,
            **self._restorer.info(),
        }

    def detach(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.up = False
        self._monitor.close()
        self._unwatch()
        self._device.close()

    def _unwatch(self) -> None:
        if self._attached:
            self._attached = False
            self._dispatch.detach_fd(self._device.fd)

    # Receiving: what Linux sends

    def _readable(self) -> None:
        frames: list[Frame] = []
        memory, read, fd, put_right = self._memory, os.readv, self._device.fd, self._restorer.put_right
        place = 0
        while len(frames) < BATCH_MAX and place < BATCH_BYTES:
            try:
                size = read(fd, (memory[place : place + RUN_MAX],))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EBADFD:
                    self._unwatch()
                break
            frames += put_right(memory, place + virtio_net.SIZE, size - virtio_net.SIZE, 0, 0, 0)
            place += (size + 15) & ~15
        for batch in in_batches(frames):
            if self._closed:
                self._port.count(Drop.LINK_DOWN, len(batch))
            else:
                self._port.deliver(batch)
        self._restorer.tell(self._port.count)

    # Sending: what Linux receives

    def transmit(self, frames: list[Frame]) -> None:
        if self._closed or not self.up:
            self._port.count(Drop.LINK_DOWN, len(frames))
            return
        write, fd = os.writev, self._device.fd
        for frame in fitting(frames, self.mtu, self._port.count):
            try:
                write(fd, (FINISHED, frame))
            except OSError as error:
                self._port.count(_reason(error.errno or 0))

    def transmit_runs(self, frames: list[Frame]) -> None:
        """`stack.core.runs.RunDriver`: Linux takes runs as they are."""
        for frame in frames:
            if not isinstance(frame, Run):
                self.transmit([frame])
            elif self._closed or not self.up:
                self._port.count(Drop.LINK_DOWN)
            elif not frame.fits(self.mtu):
                self._port.count(Drop.TOO_LONG)
            else:
                try:
                    os.writev(self._device.fd, (frame.header.pack(), frame))
                except OSError as error:
                    self._port.count(_reason(error.errno or 0))

    # The link

    def _link_reported(self, link: Link | None) -> None:
        self._link = link
        if link is None:
            log.warning("tap: interface %s was deleted", self._device.ifname)
            self._unwatch()
            self.up = False
        else:
            self.mtu, self.up = link.mtu, link.up
            self._restorer.set_mtu(link.mtu)
        self._port.changed()


def _reason(code: int) -> str:
    if code in LINK_ERRORS:
        return Drop.LINK_DOWN
    return "tx_no_buffers" if code in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM) else "tx_refused"


def _attach(context: Context, options: TapOptions) -> TapDriver:
    return TapDriver(context.dispatch, options, made_station(context.random(6)))


MODULE = Module("tap", Kind.DRIVER, TapOptions, _attach, capabilities=("NET_ADMIN",))
