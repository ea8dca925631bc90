"""Programs of two machines and of the one whose files they are hammer one tree, with checksums.

    python -m tests.suites.hammer [SECONDS [SEED]]

While they run each looks at what it sees (hammering.py). At the end every record is there once, counters are exact, what only one could
make has one maker, everything that was moved about is somewhere once, and all three machines see the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from qnetpy.testing import cluster as kit
from tests.suites.hammering import DIRECTORIES, MOVED, Broken, check_log, opened, sealed

WORKER = Path(__file__).with_name("hammering.py")
FOLDER = "/tmp/hammer"
SERVER = "b"
TOPOLOGY = """
title = "hammer"
[[config.access.users]]
mapping = "identity"
root = "root"
[[config.access.exports]]
path = "/tmp"
verbs = ["read", "write"]
[nodes.a]
[nodes.b]
[nodes.c]
"""
ENDS = 60.0
"""Seconds that an operation may take which was begun just before the end."""


def root(node: str) -> str:
    return FOLDER if node == SERVER else f"/net/{SERVER}{FOLDER}"


def prepare(cluster: kit.Cluster) -> None:
    names = ["published", "contests", "token", *DIRECTORIES, *(f"of-{node}" for node in cluster.nodes)]
    cluster.run(SERVER, "mkdir", FOLDER, *(f"{FOLDER}/{name}" for name in names))
    files = {f"counter-{kind}": "0" * 20 for kind in ("posix", "ofd", "flock")}
    files[f"token/{min(cluster.nodes)}"] = json.dumps({"number": 0, "by": "nobody", "how": {}, "files": {}})
    for number in range(MOVED):
        files[f"p/m{number}"] = sealed(f"m{number}", b"x" * 10_000 * number).decode()
    write = "import json, sys; [open(name, 'w').write(text) for name, text in json.load(sys.stdin).items()]"
    cluster.run(SERVER, sys.executable, "-c", write, input=json.dumps({f"{FOLDER}/{name}": text for name, text in files.items()}))


def hammer(cluster: kit.Cluster, seconds: float, seed: int) -> Counter[str]:
    """Raises AssertionError or Broken; returns how often what was done."""
    prepare(cluster)
    begin = time.time() + 0.5
    running = []
    for node in cluster.nodes:
        others = ",".join(other for other in cluster.nodes if other != node)
        command = [sys.executable, "-P", str(WORKER), "work", root(node), node, others, str(seed), str(begin), str(seconds)]
        running.append(cluster.running(node, *command))
    told: dict[str, Any] = {}
    failed = []
    processes = [each.__enter__() for each in running]
    try:
        for node, process in zip(cluster.nodes, processes, strict=True):
            output, errors = process.communicate(timeout=seconds + ENDS)
            if process.returncode:
                failed.append(errors.decode().strip())
            else:
                told[node] = json.loads(output)
    finally:
        for each in running:
            each.__exit__(None, None, None)
    assert not failed, "\n".join(failed)
    compare(cluster)
    judge(cluster, told)
    did: Counter[str] = Counter()
    for one in told.values():
        did.update(one["did"])
        did["tokens"] += one["tokens"]
    return did


def compare(cluster: kit.Cluster) -> None:
    """All machines see the same tree."""
    seen = {}
    for node in cluster.nodes:
        seen[node] = json.loads(cluster.run(node, sys.executable, "-P", str(WORKER), "digest", root(node), seconds=ENDS).stdout)
    for node, tree in seen.items():
        differ = [path for path in {*tree, *seen[SERVER]} if tree.get(path) != seen[SERVER].get(path)]
        assert not differ, f"{node} sees {[(path, tree.get(path), seen[SERVER].get(path)) for path in sorted(differ)[:5]]}"


def judge(cluster: kit.Cluster, told: dict[str, Any]) -> None:
    """What is on the server is what they say that they did."""

    own = [f"of-{node}" for node in cluster.nodes]
    names = ["contests", *DIRECTORIES, *own, *(f"counter-{kind}" for kind in ("posix", "ofd", "flock"))]
    names += sorted({name for one in told.values() for name in one["appended"]})
    there = json.loads(cluster.run(SERVER, sys.executable, "-P", str(WORKER), "contents", FOLDER, *names, seconds=ENDS).stdout)

    def held(name: str) -> bytes:
        return str(there[name]).encode("latin-1")

    def listed(name: str) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in there if path.rpartition("/")[0] == name)

    for name in {name for one in told.values() for name in one["appended"]}:
        found = check_log(name, held(name))
        wanted = {node: one["appended"].get(name, 0) for node, one in told.items() if one["appended"].get(name)}
        assert found == wanted, f"{name}: {found}, written were {wanted}"
    for kind in ("posix", "ofd", "flock"):
        total = sum(one["counted"].get(kind, 0) for one in told.values())
        assert int(held(f"counter-{kind}")) == total, f"counter under {kind}: {held(f'counter-{kind}')!r}, {total} were added"
    makers = Counter(name for one in told.values() for name in one["won"])
    assert [name for name, count in makers.items() if count > 1] == []
    assert listed("contests") == sorted(makers)
    for node, one in told.items():
        assert listed(f"of-{node}") == one["own"]
        for name in one["won"]:
            if not name.endswith("mkdir"):
                assert held(f"contests/{name}") == node.encode(), name
    places = Counter(name for directory in DIRECTORIES for name in listed(directory))
    assert places == {f"m{number}": 1 for number in range(MOVED)}
    for directory in DIRECTORIES:
        for name in listed(directory):
            if opened(name, held(f"{directory}/{name}")) != name:
                raise Broken(f"{directory}/{name} holds another's contents")


def main(words: list[str]) -> int:
    seconds = float(words[0]) if words else 600.0
    seed = int(words[1]) if len(words) > 1 else time.time_ns() % 1_000_000
    print(f"{seconds:g} seconds, seed {seed}", flush=True)
    with kit.cluster(TOPOLOGY) as cluster:
        for node in cluster.nodes:
            cluster.run(node, "qnet", "nodes", "--wait", ",".join(other for other in cluster.nodes if other != node))
        did = hammer(cluster, seconds, seed)
    print(f"held: {sum(did.values())} operations: " + ", ".join(f"{count} {name}" for name, count in did.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
