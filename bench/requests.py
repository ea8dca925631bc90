"""What work with another node's files takes, counted: requests of the kernel by operation, messages to the far node, processor time of both
daemons. Counts do not depend on what else the machine does.

    python bench/requests.py [--mtu N] [--only NAME,...] [--count N] [--options TEXT]

Two nodes made for it, the far folder in memory. `messages` are those that the near node sent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from files import FOLDER, TREE
from filework import REPOSITORY
from run import CLIENT, SERVER, Bench, cluster_of

WORK = str(Path(__file__).with_name("filework.py"))
GIT = "git -c 'safe.directory=*'"
STEPS = {
    "stat": f"{sys.executable} {WORK} stat {{folder}} {{count}}",
    "small": f"{sys.executable} {WORK} small {{folder}} {{count}}",
    "small-again": f"{sys.executable} {WORK} small {{folder}} {{count}}",
    "find": "find {folder} -type f -size +0",
    "find-again": "find {folder} -type f -size +0",
    "find-third": "find {folder} -type f -size +0",
    "ls": "ls -lR {folder}",
    "ls-again": "ls -lR {folder}",
    "ls-third": "ls -lR {folder}",
    "random": f"{sys.executable} {WORK} random {{folder}}/random {{count}}",
    "read": f"{sys.executable} {WORK} read {{folder}}/random 67108864",
    "made-folder": "mkdir {folder}-new",
    "made": f"{sys.executable} {WORK} fill {{folder}}-new {{count}}",
    "made-gone": f"{sys.executable} {WORK} empty {{folder}}-new {{count}}",
    "git-clone": f"{GIT} clone -q --no-hardlinks file://{REPOSITORY} {{folder}}-new",
    "git-status": f"{GIT} -C {{folder}}-new status --porcelain",
    "git-again": f"{GIT} -C {{folder}}-new status --porcelain",
    "git-third": f"{GIT} -C {{folder}}-new status --porcelain",
}
"""In this order. What several steps have in common before the first `-` has a tree of its own."""


class Counts:
    """Counters of the near node, and processor seconds of the daemons, now."""

    def __init__(self, bench: Bench) -> None:
        told = json.loads(bench.cluster.run(CLIENT, "qnet", "status", "--json").stdout)
        mount = told["mounts"][0]
        self.requests, self.events = Counter(mount["requests"]), Counter(mount["events"])
        self.messages = sum(node["link"]["messages_sent"] for node in told["nodes"] if node["link"])
        self.seconds = [_seconds(bench, node) for node in (CLIENT, SERVER)]


def _seconds(bench: Bench, node: str) -> float:
    """Of the node's daemon, in all its threads; the kernel's count of nanoseconds."""
    text = bench.cluster.run(node, "sh", "-c", "cat /proc/$(cat /run/qnet/lock)/task/*/schedstat").stdout
    return sum(int(line.split()[0]) for line in text.splitlines()) / 1e9


def count(bench: Bench, name: str, words: str) -> None:
    before = Counts(bench)
    shell = f"time -p {words} >/tmp/out; head -c 200 /tmp/out"
    done = bench.cluster.run(CLIENT, "taskset", "-c", str(bench.cpus[CLIENT]), "sh", "-c", shell, seconds=300)
    after = Counts(bench)
    near, far = (new - old for new, old in zip(after.seconds, before.seconds, strict=True))
    took = next((line.split()[1] for line in done.stderr.splitlines() if line.startswith("real")), "?")
    requests = after.requests - before.requests
    messages = after.messages - before.messages
    print(f"{name}: {took} s, {messages} messages, near {near:.3f} s, far {far:.3f} s, {sum(requests.values())} requests")
    for what, told in (("", requests), ("events: ", after.events - before.events)):
        print("    " + what + ", ".join(f"{key} {number}" for key, number in told.most_common()))
    if done.stdout.startswith("{"):
        print("    " + done.stdout.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description="count requests and messages of work with files")
    parser.add_argument("--mtu", type=int, default=9000)
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--count", type=int, default=2000, metavar="N", help="files; 5 times as many to find and list")
    parser.add_argument("--options", default="", help="of the mount")
    args = parser.parse_args()
    wanted = [name for name in STEPS if not args.only or name.split("-")[0] in args.only.split(",")]
    with cluster_of(args.mtu, options=args.options) as cluster:
        bench = Bench(cluster, args.mtu, 1, lambda result: None)
        bench.place("split")
        print(bench.code)
        cluster.run(SERVER, "sh", "-c", f"mkdir -p {FOLDER}; mount -t tmpfs -o mode=1777 none {FOLDER}")
        trees: set[str] = set()
        for name in wanted:
            tree = name.split("-")[0]
            number = args.count * (5 if tree in ("find", "ls") else 1)
            if tree == "git" and tree not in trees:
                cluster.run(CLIENT, sys.executable, WORK, "make-source", TREE, seconds=300)
            if tree not in trees:
                trees.add(tree)
                cluster.run(SERVER, sys.executable, WORK, "make-tree", f"{FOLDER}/{tree}", str(number + 100), seconds=300)
                cluster.run(SERVER, sys.executable, WORK, "make-file", f"{FOLDER}/{tree}/random", str(64 << 20))
            if name in ("random", "read"):
                number = 1000
            count(bench, name, STEPS[name].format(folder=f"/net/{SERVER}{FOLDER}/{tree}", count=number))


if __name__ == "__main__":
    main()
