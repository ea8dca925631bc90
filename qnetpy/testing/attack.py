"""The tests' side of a trial with an enemy (`qnetpy.testing.enemy`): records what he can hear, starts him, asks the victim how it is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qnetpy.cluster.handle import Cluster
from qnetpy.link import wire
from qnetpy.testing.cluster import facts
from qnetpy.testing.enemy import ETHERTYPE, pack_recording
from stack.wire.capture import read_records
from stack.wire.ethernet import HEADER_SIZE

TRIES = 4
RENEWED = 2.0
"""Seconds within which a link that is to have new keys has them, a second more than `qnetpy.link.machine` waits."""
TOPOLOGY = """
title = "flood"
[links.lan]
learning = false
[[config.access.exports]]
path = "/tmp"
verbs = ["read", "write"]
[nodes.n1]
[nodes.n2]
[nodes.x]
boot = []
shutdown = []
"""
"""Two nodes and an enemy, x, who sees every frame: the switch does not learn, since frames in another name would draw that node's."""


def read_pcap(file: Path) -> list[bytes]:
    """Frames of our ethertype."""
    wanted = ETHERTYPE.to_bytes(2, "big")
    return [one.frame for one in read_records(file.read_bytes()) if one.frame[12:14] == wanted]


def record(cluster: Cluster, caller: str, called: str, folder: Path, traffic: Callable[[], object] | None = None) -> bytes:
    """A handshake and some traffic, as somebody hears it who listens on the wire. It has a call of *caller*, a daemon, to *called*.

    It restarts *caller*, who is called then, and makes it call for new keys. *traffic* is done meanwhile; by default *caller* writes a file
    to *called*.
    """

    def write() -> None:
        cluster.run(caller, "sh", "-c", f"head -c 3000000 /dev/zero > /net/{called}/tmp/some")
        time.sleep(0.3)

    mac = bytes.fromhex(Victim(cluster, called).mac.replace(":", ""))
    for number in range(TRIES):
        file = folder / f"{caller}-{number}.pcap"
        with cluster.capture("lan", file):
            cluster.run(caller, "qnet", "down")
            cluster.run(caller, "qnet", "up")
            cluster.run(caller, "qnet", "nodes", "--wait", called)
            (traffic or write)()
            status = facts(cluster, caller)
            wanted = _handshakes(status) + sum(node["state"] == "up" for node in status["nodes"])
            cluster.run(caller, "qnet", "suites", *status["suites"])
            end = time.monotonic() + RENEWED
            while _handshakes(facts(cluster, caller)) < wanted and time.monotonic() < end:
                time.sleep(0.05)
        frames = read_pcap(file)
        if any(frame[:6] == mac and frame[HEADER_SIZE] == wire.INITIATION for frame in frames):
            return pack_recording(frames)
    raise AssertionError(f"{caller} did not call {called} for new keys, {TRIES} times")


def _handshakes(status: dict[str, Any]) -> int:
    """How many the node has completed that told *status*."""
    return int(status["handshake"].get("established", 0))


def drops_of(status: dict[str, Any]) -> Counter[str]:
    """What a node received and did not use, by the names of its counters, and under "screened out" what it did not look at."""
    drops = Counter(status["drops"]) + Counter(status["handshake"])
    for node in status["nodes"]:
        drops += Counter(node["link"]["drops"] if node["link"] else {})
    drops["screened out"] = sum(one["info"].get("screened out", 0) for one in status["interfaces"])
    return drops


class Victim:
    """A node under attack, and what is asked of it."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self.cluster = cluster
        self.node = node
        status = self.status()
        self.pid = status["pid"]
        self.mac: str = status["interfaces"][0]["mac"]

    def status(self) -> dict[str, Any]:
        """Of `qnet status --json`."""
        return facts(self.cluster, self.node)

    def received(self) -> int:
        """Frames that came out of its interface, wanted or not."""
        return int(self.cluster.run(self.node, "cat", "/sys/class/net/eth0/statistics/rx_packets").stdout)

    def processor(self) -> float:
        """Seconds that the daemon's threads have had a core."""
        script = f"cat /proc/{self.pid}/task/*/schedstat"
        return sum(int(line.split()[0]) for line in self.cluster.run(self.node, "sh", "-c", script).stdout.splitlines()) / 1e9

    def share(self, seconds: float) -> tuple[float, float]:
        """Share of a core that the daemon takes, and frames per second that arrive, during so many seconds from now."""
        arrived, before, began = self.received(), self.processor(), time.monotonic()
        time.sleep(seconds)
        taken, passed = self.processor() - before, time.monotonic() - began
        return taken / passed, (self.received() - arrived) / (time.monotonic() - began)

    def until_screening(self, frames: int = 1000, seconds: float = 15.0) -> None:
        """Wait until the flood that has begun is screened away: so many more frames are shed."""
        wanted, end = self.status()["flood"]["shed"] + frames, time.monotonic() + seconds
        while (flood := self.status()["flood"])["shed"] < wanted or not flood["on"]:
            assert time.monotonic() < end, f"no flood is noticed: {flood}"
            time.sleep(0.05)

    def memory(self) -> int:
        """KiB."""
        lines = self.cluster.run(self.node, "cat", f"/proc/{self.pid}/status").stdout.splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def log(self) -> str:
        """What its daemon has said since it started."""
        return self.cluster.run(self.node, "cat", "/run/qnet/log").stdout

    def link(self, other: str) -> tuple[str, int]:
        """State of a node as the victim sees it, and how often it came up."""
        node = next(node for node in self.status()["nodes"] if node["name"] == other)
        return node["state"], node["starts"]


class Program:
    """A program of `qnetpy.testing` on a machine of the cluster that is talked to in lines and answers in JSON."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.said = self._hear()
        """What it said when it was ready."""

    def tell(self, line: str = "") -> dict[str, Any]:
        """Its answer to a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return self._hear()

    def end(self) -> dict[str, Any]:
        """Its last words."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read().decode())
        heard: dict[str, Any] = json.loads(line)
        return heard


@contextmanager
def program(cluster: Cluster, machine: str, name: str, *argv: str) -> Iterator[Program]:
    """`qnetpy.testing.NAME` on a machine, when it is ready, for the time of the block."""
    with cluster.running(machine, sys.executable, "-m", f"qnetpy.testing.{name}", *argv) as process:
        yield Program(process)


class Flood:
    """A flood under way."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._fd = process.stdout.fileno()
        os.set_blocking(self._fd, False)
        self._text = b""
        self._last = 0, 0.0
        self._mark = 0, 0.0

    def rate(self) -> float:
        """Frames per second since this was asked last, or since it began."""
        before, self._mark = self._mark, self._told()
        sent, seconds = (now - then for now, then in zip(self._mark, before, strict=True))
        return sent / seconds if seconds else 0.0

    def _told(self) -> tuple[int, float]:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 65536):
                self._text += data
        whole, _, self._text = self._text.rpartition(b"\n")
        if whole:
            told = json.loads(whole.splitlines()[-1])
            self._last = told["sent"], told["seconds"]
        return self._last


@contextmanager
def flooding(victim: Victim, enemy: str, recording: bytes, kinds: list[str], rate: float, *options: str) -> Iterator[Flood]:
    """The machine *enemy* floods *victim* with these kinds of frames, in turn, from when the block begins until it ends.

    *options*: more of the program's.
    """
    words = ["-m", "qnetpy.testing.enemy", "--to", victim.mac, "--rate", str(rate), "--seconds", "3600"]
    words += options
    for kind in kinds:
        words += ["--kind", kind]
    with victim.cluster.running(enemy, sys.executable, *words) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(recording)
        process.stdin.close()
        process.stdin = None
        # A line at a time, and nothing beyond it: `Flood` reads the descriptor.
        line = b""
        while not line.endswith(b"\n") and (byte := os.read(process.stdout.fileno(), 1)):
            line += byte
        if line != b"sending\n":
            assert process.stderr is not None
            raise AssertionError(process.stderr.read().decode())
        yield Flood(process)
