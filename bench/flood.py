"""What a flood costs: bulk data between two nodes while an enemy floods the one that receives it.

    python bench/flood.py [--rate N]... [--kind KIND]... [--seconds S] [--runs N]

The bulk data goes between two programs that are nodes themselves (`qnetpy.testing.bulk`): of all ways the one with the fewest processes, so
that two cores are not full without the enemy. All are on one hub (on a switch, frames in another name draw that node's frames). For each
rate and kind of frame

    core      what the flood takes of a core in the victim while nothing else happens, less what it takes undisturbed: the figure that
              other users of this machine do not disturb. What the kernel does before a frame is shed is done in the enemy's name.
    control   MB/s while the enemy sends the very same frames at the same rate, of an ethertype that nobody speaks: what making, carrying
              and delivering them costs this machine, which plays both the enemy and the victim
    flood     MB/s while they are of ours
    ratio     flood / control; each run has them in the order control, flood, flood, control; the median of all such pairs, the worst and
              the best
    of rest   flood / undisturbed, for who wants to know it
    work      the victim's processor time for a megabyte, control / flood, median: what the ratio is where the victim is what limits the
              speed. It says the same on a machine that does other things as well, on which MB/s say little

A link that goes down, and growth of the victim's memory, are failures (exit status 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from qnetpy.cluster.handle import running
from qnetpy.testing.attack import record
from qnetpy.testing.floodtrial import OTHER, RECORDED, TOPOLOGY, VICTIM, Trial, start

KINDS = (
    "noise",
    "bad-mac",
    "bad-mac-spoofed",
    "solicitation-made-up",
    "initiation",
    "initiation-spoofed",
    "data",
    "data-unknown",
    "data-forged",
)
IDLE = 2.0
GROWTH_MAX = 16384
"""KiB, by which the victim may grow: more data in flight makes it use more of its heap. 50 bytes a frame would be more in 5 s."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, action="append", default=[])
    parser.add_argument("--kind", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder, running(TOPOLOGY) as cluster, ExitStack() as stack:
        victim, sender = start(cluster, stack)
        idle, _ = victim.share(IDLE)
        print(f"{'kind':20} {'sent/s':>9} {'core':>6} {'control':>7} {'flood':>7}  {'ratio':>5} (worst-best)  of rest  work   memory  link")
        for rate in args.rate or (20000.0, 100000.0):
            for kind in args.kind or KINDS:
                # Anew for each kind: the keys, and with them the index in recorded frames, change every two minutes.
                recording = record(cluster, RECORDED, VICTIM, Path(folder), lambda: sender.tell("0.3"))
                trial = Trial(victim, sender, recording, [kind], rate, args.seconds)
                rest = trial.bulk()
                _, starts = victim.link(OTHER)
                memory = victim.memory()
                pairs = [pair for _ in range(args.runs) for pair in trial.pairs()]
                share = trial.share(IDLE) - idle
                grown = victim.memory() - memory
                state, now_starts = victim.link(OTHER)
                lost = now_starts - starts
                failed |= state != "up" or lost > 0 or grown > GROWTH_MAX
                control = statistics.median(pair.control.speed for pair in pairs)
                flood = statistics.median(pair.flood.speed for pair in pairs)
                ratios = sorted(pair.speed for pair in pairs)
                work = statistics.median(pair.work for pair in pairs)
                sent = statistics.median(trial.sent)
                figures = f"{sent:9.0f} {share:6.1%} {control:7.1f} {flood:7.1f}  {statistics.median(ratios):5.2f}"
                spread = f"({ratios[0]:.2f}-{ratios[-1]:.2f})"
                told = f"{flood / rest.speed:8.2f} {work:5.2f}  {grown:+6} K  {state}, {lost} times down"
                print(f"{kind:20} {figures} {spread:12} {told}", flush=True)
        status = victim.status()
        print(json.dumps({"interface": status["interfaces"][0]["info"], "drops": status["drops"], "handshake": status["handshake"]}))
    sys.exit(failed)


if __name__ == "__main__":
    main()
