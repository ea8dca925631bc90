"""An enemy on the wire, as a program for a machine of a test cluster: sends frames of one kind at a steady rate.

    python -m qnetpy.testing.enemy --to MAC --kind KIND --rate N --seconds S [--from MAC] < recording

The recording is real frames of the cluster, Ethernet header and all, each behind two bytes of length; only the kinds that repeat or change
real frames need it. It prints `sending` when it begins, and then, ten times a second, a line of JSON: how many frames it has sent, in how
many seconds. docs/protocol/attacks.md lists what each kind gets. It needs CAP_NET_RAW and knows no key.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qnetpy.link import solicitation, wire
from qnetpy.link.constants import GROUP, VERSION
from stack.drivers.af_packet.sender import SLOTS, Sender
from stack.frame import Frame
from stack.linux.constants import SOL_PACKET
from stack.wire.ethernet import HEADER_SIZE

ETHERTYPE = 0x88B5
NOBODYS_ETHERTYPE = 0x88B6
QDISC_BYPASS = 20
SNDBUF = 1 << 22
POOL = 4096
"""Different frames, made before the sending begins: the sending costs one system call per 64 frames and nothing else."""
TELL = 0.1
BEHIND_MAX = 0.05
"""Seconds' worth of frames sent at once when the machine had other things to do."""
TICK = 0.002
"""Seconds between bursts: a steady rate as a victim's queue sees it."""


class Recording:
    """Real frames, by their type byte."""

    def __init__(self, data: bytes) -> None:
        self.frames: list[bytes] = []
        at = 0
        while at + 2 <= len(data):
            end = at + 2 + int.from_bytes(data[at : at + 2], "big")
            self.frames.append(data[at + 2 : end])
            at = end

    def of(self, kind: int, destination: bytes) -> list[bytes]:
        found = [frame for frame in self.frames if frame[HEADER_SIZE] == kind and frame[:6] == destination]
        if not found:
            raise SystemExit(f"the recording has no frame of type {kind} to {destination.hex(':')}")
        return found


def pack_recording(frames: list[bytes]) -> bytes:
    return b"".join(len(frame).to_bytes(2, "big") + frame for frame in frames)


class Enemy:
    """Makes frames to one victim. *own* is the address it sends from where it does not lie."""

    def __init__(self, victim: bytes, own: bytes, recording: Recording, seed: int) -> None:
        self.victim = victim
        self.own = own
        self.recording = recording
        self.random = random.Random(seed)

    def header(self, source: bytes | None = None) -> bytes:
        return self.victim + (self.own if source is None else source) + ETHERTYPE.to_bytes(2, "big")

    def station(self) -> bytes:
        """A made-up single station."""
        return bytes((self.random.randrange(256) & 0xFC | 2,)) + self.random.randbytes(5)

    def noise(self) -> bytes:
        return self.header() + self.random.randbytes(self.random.randrange(46, 600))

    def bad_mac(self, source: bytes | None = None) -> bytes:
        """An INITIATION like a real one, of somebody without the cluster secret."""
        suites = bytes((1, 3, 2, 0))
        body = self.random.randbytes(232)
        frame = wire.HandshakeFrame(wire.INITIATION, self.random.getrandbits(32) or 1, 0, wire.PATTERN_XX, suites, body)
        return self.header(source) + frame.pack() + self.random.randbytes(wire.macs_size(wire.INITIATION))

    def bad_mac_spoofed(self) -> bytes:
        return self.bad_mac(self.station())

    def initiation(self) -> bytes:
        """A recorded INITIATION as it was, sender's address included."""
        return self.random.choice(self.recording.of(wire.INITIATION, self.victim))

    def initiation_spoofed(self) -> bytes:
        frame = self.initiation()
        return self.header(self.station()) + frame[HEADER_SIZE:]

    def solicitation_made_up(self) -> bytes:
        """A SOLICITATION like a real one, to all, of somebody without the cluster secret, from a made-up station."""
        rest = self.random.randbytes(solicitation.REST_SIZE)
        return self.to_all(self.station(), solicitation.HEADER.pack(wire.SOLICITATION, VERSION, len(rest)) + rest)

    def solicitation(self) -> bytes:
        """A recorded one as it was, sender's address included."""
        return self.random.choice(self.recording.of(wire.SOLICITATION, GROUP))

    def solicitation_spoofed(self) -> bytes:
        return self.to_all(self.station(), self.solicitation()[HEADER_SIZE:])

    def to_all(self, source: bytes, data: bytes) -> bytes:
        return GROUP + source + ETHERTYPE.to_bytes(2, "big") + data

    def data(self) -> bytes:
        """A recorded DATA frame of a live session as it was."""
        return self.random.choice(self.recording.of(wire.DATA, self.victim)[-512:])

    def data_unknown(self) -> bytes:
        """Well-formed DATA of no session."""
        body = self.random.randbytes(1400)
        index = self.random.getrandbits(32)
        return self.header() + wire.DATA_HEADER.pack(wire.DATA, 0, len(body), index, self.random.getrandbits(20)) + body

    def data_forged(self) -> bytes:
        """DATA of a live session with a number of the future and no tag: each costs the victim a decryption."""
        frame = bytearray(self.data())
        struct.pack_into("!Q", frame, HEADER_SIZE + 8, self.random.getrandbits(40) + (1 << 40))
        return bytes(frame)


def kinds(enemy: Enemy) -> dict[str, Callable[[], bytes]]:
    return {
        "noise": enemy.noise,
        "bad-mac": enemy.bad_mac,
        "bad-mac-spoofed": enemy.bad_mac_spoofed,
        "initiation": enemy.initiation,
        "initiation-spoofed": enemy.initiation_spoofed,
        "solicitation-made-up": enemy.solicitation_made_up,
        "solicitation": enemy.solicitation,
        "solicitation-spoofed": enemy.solicitation_spoofed,
        "data": enemy.data,
        "data-unknown": enemy.data_unknown,
        "data-forged": enemy.data_forged,
    }


def unheard(frame: bytes) -> bytes:
    """The same of a protocol that nobody speaks: what sending and carrying it costs this machine, whoever it is for."""
    return frame[: HEADER_SIZE - 2] + NOBODYS_ETHERTYPE.to_bytes(2, "big") + frame[HEADER_SIZE:]


def bursts(rate: float, seconds: float, clock: Callable[[], float], sleep: Callable[[float], None], tick: float = TICK) -> Iterator[int]:
    """How many frames to send now, until the time is up. What could not be sent in time is made up for, up to BEHIND_MAX."""
    began = clock()
    sent = 0
    while (passed := clock() - began) < seconds:
        due = int(passed * rate) - sent
        if due > rate * BEHIND_MAX:
            sent += due - int(rate * BEHIND_MAX)
            due = int(rate * BEHIND_MAX)
        if due > 0:
            yield due
            sent += due
        sleep(tick)


def flood(interface: str, pool: list[bytes], rate: float, seconds: float, tick: float, told: Callable[[int, float], None]) -> None:
    """*told* hears every TELL seconds, and at the end, how many frames the kernel has taken, and in how many seconds."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, QDISC_BYPASS, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SNDBUF)
        sock.bind((interface, 0))
        sender = Sender(sock, max(map(len, pool)))
        began = time.monotonic()
        sent = place = 0
        tell_at = 0.0
        for due in bursts(rate, seconds, time.monotonic, time.sleep, tick):
            while due > 0:
                batch: list[Frame] = [pool[(place + number) % len(pool)] for number in range(min(due, SLOTS))]
                place += len(batch)
                due -= len(batch)
                taken, _ = sender.send(batch, 0)
                sent += taken
            passed = time.monotonic() - began
            if passed >= tell_at:
                told(sent, passed)
                tell_at = passed + TELL
        told(sent, time.monotonic() - began)


def say(sent: int, seconds: float) -> None:
    print(json.dumps({"sent": sent, "seconds": seconds}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="enemy", description=__doc__)
    parser.add_argument("--interface", default="eth0")
    parser.add_argument("--to", required=True, help="the victim's MAC address")
    parser.add_argument("--from", dest="source", default="", help="the MAC address to send from, for the kinds that do not invent one")
    parser.add_argument("--kind", required=True, action="append", help="may be repeated: kinds in turn")
    parser.add_argument("--rate", type=float, default=20000.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--unheard", action="store_true", help="the same frames of a protocol that nobody speaks: the control")
    parser.add_argument("--tick", type=float, default=TICK, help="seconds between bursts")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    own = bytes.fromhex((args.source or Path(f"/sys/class/net/{args.interface}/address").read_text()).strip().replace(":", ""))
    recording = Recording(b"" if os.isatty(0) else sys.stdin.buffer.read())
    makers = kinds(Enemy(bytes.fromhex(args.to.replace(":", "")), own, recording, args.seed))
    pool = [makers[kind]() for _ in range(POOL // len(args.kind)) for kind in args.kind]
    if args.unheard:
        pool = [unheard(frame) for frame in pool]
    print("sending", flush=True)
    flood(args.interface, pool, args.rate, args.seconds, args.tick, say)


if __name__ == "__main__":
    main()
