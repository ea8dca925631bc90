"""Record what crosses a link, as a pcap file (nanoseconds; https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html).

The bridge is put into promiscuous mode, so that it hands every frame that it forwards to this socket too.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time

from qnetpy.cluster import control, linux
from qnetpy.cluster.control import ControlError
from stack.drivers.af_packet.constants import ETH_P_ALL, PACKET_STATISTICS, SOL_PACKET

PACKET_ADD_MEMBERSHIP = 1
PACKET_MR_PROMISC = 1
PCAP_MAGIC_NANOSECONDS = 0xA1B23C4D
LINKTYPE_ETHERNET = 1
SNAP_LENGTH = 262144
RECEIVE_BUFFER = 64 << 20


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
        _widen(tap)
        tap.bind((link, ETH_P_ALL))
        tap.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8s", socket.if_nametoindex(link), PACKET_MR_PROMISC, 0, b""))
        awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake)
        out.write(struct.pack("<IHHiIII", PCAP_MAGIC_NANOSECONDS, 2, 4, 0, 0, SNAP_LENGTH, LINKTYPE_ETHERNET))
        print(f"recording {link} to {file}", flush=True)
        frames = _copy(tap, awake, out.write)
        _, lost = struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    print(f"{frames} frames recorded, {lost} lost", flush=True)
    return 1 if lost else 0


def _widen(tap: socket.socket) -> None:
    so_rcvbufforce = 33
    try:
        tap.setsockopt(socket.SOL_SOCKET, so_rcvbufforce, RECEIVE_BUFFER)
    except PermissionError:
        # In a user namespace the system's limit holds; frames that do not fit are counted as lost.
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _copy(tap: socket.socket, awake: int, write: object) -> int:
    assert callable(write)
    poll = select.poll()
    poll.register(tap, select.POLLIN)
    poll.register(awake, select.POLLIN)
    frames = 0
    last = False
    while True:
        ready = [fd for fd, _ in poll.poll(0 if last else None)]
        if not ready:
            return frames
        while True:
            try:
                frame = tap.recv(SNAP_LENGTH)
            except BlockingIOError:
                break
            moment = time.time_ns()
            write(struct.pack("<IIII", moment // 1_000_000_000, moment % 1_000_000_000, len(frame), len(frame)) + frame)
            frames += 1
        if awake in ready:
            # What is in the socket still belongs to the time before the signal: one more round.
            os.read(awake, 4096)
            poll.unregister(awake)
            last = True
