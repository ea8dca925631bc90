"""A cable that is made for the purpose: `io-pkt -d veth ifname=q0,peer=q1,netns=box`.

Makes a veth pair of Linux, puts the far end into a network namespace if one is given (a name of `ip netns`, a process number, a path),
drives the near end as `packet` does, and removes the pair when it is detached. So another stack, a container or Linux itself gets an
Ethernet cable to this one.

Needs CAP_NET_ADMIN and CAP_NET_RAW; for another namespace CAP_NET_ADMIN there and CAP_SYS_ADMIN, which with `-U` must be among
`--keep-caps`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

import attrs

from resmgr.dispatch import Dispatch
from stack.core.errors import ModuleError
from stack.core.linuxinterface import LinuxInterface
from stack.core.module import Context, Kind, Module
from stack.core.names import check_linux_name, station_address
from stack.core.wrapper import Around
from stack.drivers.packet import PacketDriver, PacketOptions
from stack.frame import Frame
from stack.linux.vethpair import VethPair, open_namespace
from stack.wire.ethernet import MTU_DEFAULT, MTU_MIN
from stack.wire.rtnetlink import End


@attrs.frozen
class VethOptions:
    """Options of `-d veth`."""

    ifname: str
    """The near end."""
    peer: str
    """The far end."""
    netns: str | None = None
    """Where the far end goes."""
    name: str | None = None
    """Name of the interface in the stack; that of the near end by default."""
    mac: str | None = None
    peer_mac: str | None = None
    """Addresses; Linux chooses them by default."""
    mtu: int = attrs.field(default=MTU_DEFAULT, validator=[attrs.validators.ge(MTU_MIN), attrs.validators.le(65535)])


class VethDriver(Around):
    """See the head of this file: the packet driver of the near end, and the pair."""

    def __init__(self, dispatch: Dispatch, options: VethOptions) -> None:
        """ModuleError when the pair cannot be made."""
        super().__init__()
        self._options = options
        for name in (options.ifname, options.peer):
            check_linux_name(name, "veth")
        near, far = End(options.ifname, _mac(options.mac)), End(options.peer, _mac(options.peer_mac))
        try:
            self._pair = _make(near, far, options)
        except OSError as error:
            raise ModuleError(error.errno or errno.EIO, error.strerror or "") from error
        try:
            self._packet = PacketDriver(dispatch, PacketOptions(options.ifname, options.name))
            self.around(self._packet)
        except BaseException:
            self._pair.remove()
            raise

    # `stack.core.runs.RunDriver`: as the packet driver, which sees no more than this one.

    def whole_runs(self, on: bool) -> None:
        self._packet.whole_runs(on)

    def transmit_runs(self, frames: list[Frame]) -> None:
        self._packet.transmit_runs(frames)

    # `stack.core.linuxinterface.OnLinux`: this driver changes no frame, so who works beside the packet driver works beside it.

    def linux_interface(self) -> LinuxInterface | None:
        return self._packet.linux_interface()

    def stand_aside(self, aside: bool) -> None:
        self._packet.stand_aside(aside)

    def detach(self) -> None:
        super().detach()
        self._pair.remove()

    def info(self) -> Mapping[str, str | int]:
        where = f" in {self._options.netns}" if self._options.netns is not None else ""
        return {**self.inner.info(), "driver": "veth", "peer": f"{self._options.peer}{where}"}


def _make(near: End, far: End, options: VethOptions) -> VethPair:
    if options.netns is None:
        return VethPair(near, far, options.mtu)
    namespace = open_namespace(options.netns)
    try:
        return VethPair(near, attrs.evolve(far, namespace=namespace), options.mtu)
    finally:
        os.close(namespace)


def _mac(text: str | None) -> bytes | None:
    return None if text is None else station_address(text, "veth")


def _attach(context: Context, options: VethOptions) -> VethDriver:
    return VethDriver(context.dispatch, options)


MODULE = Module("veth", Kind.DRIVER, VethOptions, _attach, capabilities=("NET_ADMIN", "NET_RAW"))
