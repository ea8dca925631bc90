"""What a flood costs: a copy between two nodes while an enemy floods one of them, beside the same copy undisturbed.

    python bench/flood.py [--rate N] [--kind KIND]... [--seconds S] [--runs N]

Two nodes and the enemy on one hub (on a switch, frames in another name draw that node's frames). For each kind of frame

    core      what the flood takes of a core in the daemon while nothing else happens, less what it takes undisturbed: the figure that
              other users of this machine do not disturb
    alone     the copy undisturbed, MB/s
    nobody    the copy while the enemy floods with frames of a protocol that nobody speaks: what sending and switching so many frames takes
              from this machine's two cores, whoever they are for
    flood     the copy during the flood

A link that goes down, and growth of the daemon's memory, are failures (exit status 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from qnetpy.cluster.handle import Cluster, running
from qnetpy.testing.attack import TOPOLOGY, Victim, flooding, record

KINDS = ("noise", "bad-mac", "bad-mac-spoofed", "initiation", "initiation-spoofed", "data", "data-unknown", "data-forged")
VICTIM, OTHER, ENEMY = "n2", "n1", "x"
START = 1.5
IDLE = 2.0
GROWTH_MAX = 16384
"""KiB, by which the daemon may grow: a copy makes it use more of its heap, by up to half of that. 50 bytes a frame would be more in 5 s."""
COPY = """
import os, sys, time
began, done, block = time.monotonic(), 0, bytes(1 << 20)
out = os.open("/net/n2/tmp/flood", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
while time.monotonic() - began < float(sys.argv[1]):
    os.pwrite(out, block, done % (64 << 20))
    done += len(block)
os.fsync(out)
print(done / (time.monotonic() - began) / 1e6)
"""


def copy(cluster: Cluster, seconds: float) -> float:
    """MB/s."""
    return float(cluster.run(OTHER, sys.executable, "-c", COPY, str(seconds)).stdout)


def flooded(victim: Victim, recording: bytes, kind: str, rate: float, seconds: float) -> tuple[float, float, float]:
    """MB/s of the copy, share of a core, and frames per second that arrived at the victim's interface while nothing else happened."""
    with flooding(victim, ENEMY, recording, [kind], rate):
        time.sleep(START)
        share, arrived = victim.share(IDLE)
        return copy(victim.cluster, seconds), share, arrived


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=20000.0)
    parser.add_argument("--kind", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder, running(TOPOLOGY) as cluster:
        cluster.run(OTHER, "qnet", "nodes", "--wait", VICTIM)
        victim = Victim(cluster, VICTIM)
        copy(cluster, 1.0)
        idle, _ = victim.share(IDLE)
        print(f"{'kind':20} {'arrived/s':>9} {'core':>6} {'alone':>7} {'nobody':>7} {'flood':>7}  of alone  of nobody   memory  link")
        for kind in args.kind or KINDS:
            rows = []
            # Anew for each kind: the keys, and with them the index in recorded frames, change every two minutes.
            recording = record(cluster, OTHER, VICTIM, Path(folder))
            _, starts = victim.link(OTHER)
            copy(cluster, 1.0)
            memory = victim.memory()
            for _ in range(args.runs):
                alone = copy(cluster, args.seconds)
                control, _, _ = flooded(victim, recording, "nobody", args.rate, args.seconds)
                speed, share, rate = flooded(victim, recording, kind, args.rate, args.seconds)
                rows.append((rate, share - idle, alone, control, speed, speed / alone, speed / control))
            rate, share, alone, control, speed, part, of_control = (statistics.median(column) for column in zip(*rows, strict=True))
            grown = victim.memory() - memory
            state, now_starts = victim.link(OTHER)
            lost = now_starts - starts
            failed |= state != "up" or lost > 0 or grown > GROWTH_MAX
            figures = f"{rate:9.0f} {share:6.1%} {alone:7.1f} {control:7.1f} {speed:7.1f}  {part:8.2f}  {of_control:9.2f}"
            print(f"{kind:20} {figures}  {grown:+6} K  {state}, {lost} times down", flush=True)
        status = victim.status()
        print(json.dumps({"interface": status["interfaces"][0]["info"], "drops": status["drops"], "handshake": status["handshake"]}))
    sys.exit(failed)


if __name__ == "__main__":
    main()
