"""Record what crosses a link, as a pcap file with nanoseconds.

The bridge is put into promiscuous mode, so that it hands every frame that it forwards to this socket too. Frames are recorded as they
would be on a wire: with their VLAN tags, with whole checksums, and in segments.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable

from qnetpy.cluster import control, linux
from qnetpy.cluster.control import ControlError
from stack.drivers.af_packet.receiver import Recv
from stack.linux.constants import (
    ETH_P_ALL,
    PACKET_ADD_MEMBERSHIP,
    PACKET_MR_PROMISC,
    PACKET_MREQ,
    PACKET_STATISTICS,
    SOL_PACKET,
)
from stack.wire import pcap

MTU_MAX = 65535
BATCH = 64
RECEIVE_BUFFER = 64 << 20
"""Bytes. In a user namespace the system's limit holds; frames that do not fit are counted as lost."""


def record(path: str, link: str, file: str) -> int:
    """Record *link* of the cluster in directory *path* until SIGINT or SIGTERM; prints how much. Returns 1 when frames were lost."""
    answer, fds = control.ask(path, {"do": "status"})
    links = answer["links"]
    assert isinstance(links, dict)
    if link not in links:
        raise ControlError(f"no link {link!r}; known: {', '.join(links)}")
    if links[link]["kind"] != "bridge":
        raise ControlError(f"link {link!r} is a cable between two nodes: record on one of them")
    out = open(file, "wb", buffering=1 << 20)  # noqa: SIM115  # opened before the namespaces change, closed below
    answer, fds = control.ask(path, {"do": "fabric"})
    kinds = answer["kinds"]
    assert isinstance(kinds, list)
    for kind, fd in zip(kinds, fds, strict=True):
        if kind in (linux.CLONE_NEWUSER, linux.CLONE_NEWNET):
            linux.setns(fd, kind)
        os.close(fd)
    with out, socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL)) as tap:
        receiver = Recv(tap, MTU_MAX, RECEIVE_BUFFER)
        tap.bind((link, ETH_P_ALL))
        tap.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MREQ.pack(socket.if_nametoindex(link), PACKET_MR_PROMISC, 0, b""))
        awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake)
        out.write(pcap.pack_header())
        print(f"recording {link} to {file}", flush=True)
        frames = _copy(tap, receiver, awake, out.write)
        _, lost = struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    print(f"{frames} frames recorded, {lost} lost", flush=True)
    return 1 if lost else 0


def _copy(tap: socket.socket, receiver: Recv, awake: int, write: Callable[[bytes], object]) -> int:
    poll = select.poll()
    poll.register(tap, select.POLLIN)
    poll.register(awake, select.POLLIN)
    frames = 0
    last = False
    while True:
        ready = [fd for fd, _ in poll.poll(0 if last else None)]
        if not ready:
            return frames
        while batch := receiver.take(BATCH):
            moment = time.time_ns()
            for frame in batch:
                write(pcap.pack_record(moment, frame))
            frames += len(batch)
        if awake in ready:
            # What is in the socket still belongs to the time before the signal: one more round.
            os.read(awake, 4096)
            poll.unregister(awake)
            last = True
