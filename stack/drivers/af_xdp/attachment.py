"""The driver's hold on one interface: the program, its maps, and a socket for each receive queue."""

from __future__ import annotations

import contextlib
import errno
import logging
import struct
import time

from stack.drivers.af_xdp.constants import XDP_COPY, XDP_ZEROCOPY
from stack.drivers.af_xdp.options import XdpOptions
from stack.drivers.af_xdp.program import SETTINGS, TYPE_KEY, TYPES_MAX, receiving, settings
from stack.drivers.af_xdp.umem import Queue
from stack.ebpf.constants import MapType, XdpMode
from stack.ebpf.map import Map
from stack.ebpf.program import Program, XdpLink
from stack.ebpf.syscall import refusal
from stack.linux.ethtool import receive_queues
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TAGS_MAX
from stack.wire.rtnetlink import Link

log = logging.getLogger(__name__)

QUEUES_MAX = 64
LET_GO = 0.5
"""Seconds in which the kernel has let go of a queue; 30 to 90 ms on a busy machine."""
_INDEX = struct.Struct("=I")
_COPY = {"auto": 0, "on": XDP_COPY, "off": XDP_ZEROCOPY}


class Attachment:
    """On *link*, in the thread's network namespace. Accepts nothing before `accept`. OSError, and nothing is left, if it does not work."""

    def __init__(self, link: Link, options: XdpOptions, patience: float = 0.0) -> None:
        """*patience*: seconds that this may block while a queue that was closed just now is still taken."""
        until = time.monotonic() + patience
        self.queues: list[Queue] = []
        self._accepted: frozenset[int] = frozenset()
        size = link.mtu + HEADER_SIZE + TAG_SIZE * TAGS_MAX
        with contextlib.ExitStack() as undo:
            make = undo.enter_context
            try:
                self._sockets = make(Map(MapType.XSKMAP, 4, 4, QUEUES_MAX, "sockets"))
                self._types = make(Map(MapType.HASH, TYPE_KEY.size, 4, TYPES_MAX, "types"))
                self._settings = make(Map(MapType.ARRAY, 4, SETTINGS.size, 1, "settings"))
                program = make(Program(receiving(self._sockets.fd, self._types.fd, self._settings.fd), f"xsk_{link.name}"))
            except OSError as error:
                raise OSError(error.errno, refusal(error, "load an XDP program")) from error
            for number in range(min(QUEUES_MAX, receive_queues(link.name))):
                try:
                    queue = _opened(link.index, number, size, options, until)
                except OSError as error:
                    if options.copy == "off" and error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                        raise OSError(error.errno, "its driver has no zero copy; try copy=auto") from error
                    if error.errno == errno.EBUSY:
                        raise OSError(error.errno, f"another AF_XDP socket has its queue {number}") from error
                    raise OSError(error.errno, refusal(error, "open an AF_XDP socket")) from error
                undo.callback(queue.close)
                self.queues.append(queue)
                self._sockets.update(_INDEX.pack(number), _INDEX.pack(queue.sock.fileno()))
            self.link = _linked(program, link, options)
            undo.callback(self.link.close)
            self._closing = undo.pop_all()

    def accept(self, ethertypes: frozenset[int] | None, promiscuous: bool, mac: bytes) -> None:
        """Tell the program. What is new is in before anything is taken out."""
        wanted = frozenset() if ethertypes is None else ethertypes
        for kind in wanted - self._accepted:
            self._types.update(TYPE_KEY.pack(kind), bytes(4))
        self._settings.update(bytes(4), settings(ethertypes is None, promiscuous, mac))
        for kind in self._accepted - wanted:
            self._types.delete(TYPE_KEY.pack(kind))
        self._accepted = wanted

    def lost(self) -> int:
        return sum(queue.lost() for queue in self.queues)

    def describe(self) -> str:
        how = "zero copy" if self.queues[0].zero_copy else "the kernel copies"
        mode = "native" if self.link.mode is XdpMode.NATIVE else "generic"
        first = self.queues[0]
        return f"XDP {mode}, {how}, {len(self.queues)} queues of {first.frames} chunks of {first.chunk} bytes"

    def close(self) -> None:
        """Off the interface, and no more frames. Those handed out stay readable until `close_memory`."""
        self.link.close()
        for queue in self.queues:
            queue.sock.close()

    def close_memory(self) -> None:
        self._closing.close()


def _opened(index: int, number: int, size: int, options: XdpOptions, until: float) -> Queue:
    """The kernel lets go of a queue some time after the socket on it was closed: this waits for that."""
    while True:
        try:
            return Queue(index, number, size, options.frames, _COPY[options.copy])
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= until:
                raise
        time.sleep(0.005)


def _linked(program: Program, link: Link, options: XdpOptions) -> XdpLink:
    modes = {"auto": (XdpMode.NATIVE, XdpMode.GENERIC), "native": (XdpMode.NATIVE,), "generic": (XdpMode.GENERIC,)}[options.xdp]
    refused: OSError | None = None
    for mode in modes:
        try:
            return XdpLink(program, link.index, mode)
        except OSError as error:
            refused = error
            if error.errno == errno.EBUSY:
                break
            log.info("xdp: %s takes no %s program: %s", link.name, mode.name.lower(), error.strerror)
    assert refused is not None
    if refused.errno == errno.EBUSY:
        raise OSError(errno.EBUSY, "another XDP program is on it") from refused
    raise OSError(refused.errno, refusal(refused, "put an XDP program on it")) from refused
