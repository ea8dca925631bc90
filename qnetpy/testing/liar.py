"""Somebody who lies over mDNS about where nodes are, as a program for a machine of a test cluster.

    python -m qnetpy.testing.liar --address OURS --victim MAC --other MAC [--rate N]

He announces, in turn and under a new token each time: nodes at invented stations; nodes at the station of *victim*, who hears it, and of
*other*, who is a node; a node at a group's station; nonsense. And he says goodbye for every node that he hears announced. Prints a line of
JSON when he begins and, at the end of standard input, another with what he sent. docs/protocol/attacks.md says what it gets him. He needs
no right.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import struct
import sys
import time
from collections import Counter

from zeroconf import (  # type: ignore[attr-defined]  # public, and not said so to type checkers
    DNSAddress,
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSService,
    DNSText,
)

from qnetpy.discovery.hint import SERVICE_TYPE, VERSION, Place, instance_name, pack_txt
from qnetpy.testing.tamper import ETHERTYPE

GROUP = "224.0.0.251"
PORT = 5353
TTL = 1200
UNIQUE = 0x8001
"""Class IN with the cache-flush bit."""
TICK = 0.01
DATAGRAM_MAX = 9000


class Liar:
    """Makes the packets. *victim* and *other* are stations."""

    def __init__(self, address: str, victim: bytes, other: bytes, seed: int) -> None:
        self.address = socket.inet_aton(address)
        self.random = random.Random(seed)
        self.said: Counter[str] = Counter()
        self.stations = {"victim": victim, "other": other, "group": b"\1\0\x5e\0\0\1"}
        self.heard: set[str] = set()
        """Instances that were announced by others, not yet taken back by us."""
        self._own: set[str] = set()

    def packet(self) -> bytes:
        """The next lie."""
        if self.heard:
            return self.goodbye(self.heard.pop())
        kind = self.random.choice(["invented", "invented", "invented", "victim", "other", "group", "nonsense"])
        self.said[kind] += 1
        if kind == "nonsense":
            return self.announcement(self.random.randbytes(self.random.randrange(1, 300)))
        station = self.stations.get(kind) or bytes((2,)) + self.random.randbytes(5)
        return self.announcement(pack_txt(Place(VERSION, station, ETHERTYPE)))

    def announcement(self, txt: bytes) -> bytes:
        token = self.random.randbytes(16)
        name, host = instance_name(token), f"{token.hex()}.local."
        self._own.add(name)
        out = DNSOutgoing(0x8400)
        out.add_answer_at_time(DNSPointer(SERVICE_TYPE, 12, 1, TTL, name), 0)
        out.add_answer_at_time(DNSService(name, 33, UNIQUE, TTL, 0, 0, 0, host), 0)
        out.add_answer_at_time(DNSText(name, 16, UNIQUE, TTL, txt), 0)
        out.add_answer_at_time(DNSAddress(host, 1, UNIQUE, TTL, self.address), 0)
        return out.packets()[0]

    def goodbye(self, name: str) -> bytes:
        self.said["goodbye"] += 1
        out = DNSOutgoing(0x8400)
        out.add_answer_at_time(DNSPointer(SERVICE_TYPE, 12, 1, 0, name), 0)
        return out.packets()[0]

    def hear(self, packet: bytes) -> None:
        for record in DNSIncoming(packet).answers():
            if isinstance(record, DNSPointer) and record.name == SERVICE_TYPE and record.alias not in self._own and record.ttl:
                self.heard.add(record.alias)


def open_socket(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + socket.inet_aton(address))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, struct.pack("B", 255))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
    sock.bind(("", PORT))
    return sock


def main() -> None:
    parser = argparse.ArgumentParser(prog="liar", description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--victim", required=True)
    parser.add_argument("--other", required=True)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    victim, other = (bytes.fromhex(text.replace(":", "")) for text in (args.victim, args.other))
    liar = Liar(args.address, victim, other, args.seed)
    with open_socket(args.address) as sock:
        print(json.dumps({"ready": True}), flush=True)
        began, sent = time.monotonic(), 0
        while not select.select([0], [], [], TICK)[0] or sys.stdin.readline():
            while select.select([sock], [], [], 0)[0]:
                liar.hear(sock.recv(DATAGRAM_MAX))
            for _ in range(sent, int((time.monotonic() - began) * args.rate)):
                sock.sendto(liar.packet(), (GROUP, PORT))
                sent += 1
    print(json.dumps({"sent": sent, **liar.said}), flush=True)


if __name__ == "__main__":
    main()
