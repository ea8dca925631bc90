"""Random histories of programs on real mounts, judged by the checker of those in virtual time (journal.py, docs/protocol/coherence.md).

    python -m tests.suites.history [--cuts] [SECONDS [SEED [BOUND [MOUNT OPTIONS]]]]

On each of three nodes two programs work in one directory of the second one, which are local there; when each thing was called and
answered is written down, and afterwards each thing seen must be what the server can have held then: for contents from when the open began,
for names, attributes and what is kept open or mapped BOUND seconds before that. After rounds of ten seconds all stop, and must see the same
within 20. How old what was seen was is printed: 50 ms is what the page promises, and a busy machine is later. With --cuts the carriers of
the clients are pulled meanwhile: what they believed before is not believed any more, and what they see again is no older than without.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from qnetpy.testing import cluster as kit
from tests.suites.hammer import TOPOLOGY
from tests.suites.journal import ALWAYS, NEVER, Broken, Journal, Look, age
from tests.suites.recording import NAMES, in_place, kept

PROGRAM = Path(__file__).with_name("recording.py")
SERVER = "b"
FOLDER = "/tmp/history"
EACH = 2
"""Programs of one node: what one changes the other sees at once."""
ROUND = 10.0
HEARD = 0.2
"""Seconds in which all of them have heard when they begin."""
SETTLES = 20.0
"""Seconds after which everybody has to see what there is."""
ENDS = 60.0
MOST = 30.0
"""Seconds that anything may be old without being called wrong."""
PROMISED = 0.05
SUSPECT = 1.0
"""Seconds that what is leased is believed without a sign of life from its server."""


@attrs.define
class Seen:
    """How old what was seen was, by kinds of looks; `NEVER`: it was never held, or not for a long time."""

    ages: dict[str, list[float]] = attrs.field(factory=lambda: defaultdict(list))
    wrong: list[str] = attrs.field(factory=list)
    settled: float = 0.0
    stale: int = 0
    """Opens that said ESTALE."""
    failed: int = 0
    """Calls that failed while a carrier was pulled."""

    def oldest(self, *kinds: str) -> float:
        return max((one for kind in kinds or self.ages for one in self.ages[kind]), default=0.0)

    def table(self) -> str:
        lines = []
        for kind, ages in sorted(self.ages.items()):
            old = sorted(one for one in ages if one)
            late = sum(one > PROMISED for one in old)
            middle = f", median {1000 * old[len(old) // 2]:.1f} ms, oldest {1000 * old[-1]:.1f} ms" if old else ""
            lines.append(f"{kind:7} {len(ages):6} seen, {len(old):5} of before{middle}; {late} more than {1000 * PROMISED:.0f} ms old")
        return "\n".join(lines)


def prepare(cluster: kit.Cluster, folder: str) -> None:
    workers = EACH * len(cluster.nodes)
    script = "import os, sys; os.makedirs(sys.argv[1] + '/d'); [os.mkdir(f'{sys.argv[1]}/own{one}') for one in range(int(sys.argv[2]))]; "
    script += "[open(f'{sys.argv[1]}/d/{name}', 'w').write(text) for name, text in (one.split('=') for one in sys.argv[3:])]"
    texts = [f"{in_place(one)}=" for one in range(workers)] + [f"{kept(one)}=nothing." for one in range(workers)]
    cluster.run(SERVER, sys.executable, "-c", script, folder, str(workers), *texts)


def play(
    cluster: kit.Cluster,
    folder: str,
    seconds: float,
    seed: int,
    points: dict[str, str] | None = None,
    settles: float = SETTLES,
    cuts: bool = False,
) -> Seen:
    """One round in *folder* of the server; *points*: where others have mounted it. *cuts*: carriers are pulled meanwhile. Raises Broken if
    somebody ended with an error."""
    prepare(cluster, folder)
    roots = {node: folder if node == SERVER else f"/net/{SERVER}{folder}" for node in cluster.nodes} | (points or {})
    nodes = [node for node in cluster.nodes for _ in range(EACH)]
    running = []
    for number, node in enumerate(nodes):
        words = [roots[node], node, str(number), str(len(nodes)), str(seed), str(seconds), str(settles), str(int(cuts))]
        running.append(cluster.running(node, sys.executable, "-P", str(PROGRAM), "work", *words))
    processes = [each.__enter__() for each in running]
    told: list[dict[str, Any]] = []
    failed = []
    try:
        _wait(processes)
        begin = time.monotonic() + HEARD
        for process in processes:
            if process.stdin is not None and process.poll() is None:
                process.stdin.write(b"%r\n" % begin)
                process.stdin.flush()
        if cuts:
            _cut(cluster, random.Random(f"cuts/{seed}"), begin, begin + seconds)
        _wait(processes)
        truth = cluster.run(SERVER, sys.executable, "-P", str(PROGRAM), "look", folder).stdout
        for process in processes:
            output, errors = process.communicate(truth.encode(), timeout=ENDS)
            if process.returncode:
                failed.append(errors.decode().strip())
            else:
                told.append(json.loads(output))
    finally:
        for each in running:
            each.__exit__(None, None, None)
    if failed:
        raise Broken("\n".join(failed))
    return judge(nodes, told)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Each has said that it is so far, or has ended."""
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()


def _cut(cluster: kit.Cluster, rng: random.Random, begin: float, end: float) -> None:
    """Pull the carriers of clients, for times shorter and longer than a node may be silent, until *end*."""
    clients = [node for node in cluster.nodes if node != SERVER]
    time.sleep(max(0.0, begin - time.monotonic()))
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.3, 1.5))
        node = rng.choice(clients)
        cluster.link_down(node)
        time.sleep(min(rng.choice((0.2, 0.9, 1.5, 3.5, 5.0)), max(0.0, end - time.monotonic())))
        cluster.link_up(node)
    for node in clients:
        cluster.run(node, "qnet", "nodes", "--wait", SERVER)


def judge(nodes: Sequence[str], told: Sequence[dict[str, Any]]) -> Seen:
    """What they did, in order, is what was held; and how old is what each has seen."""
    journal = Journal()
    for name in NAMES:
        journal.named(name.encode(), ALWAYS, ALWAYS, None)
    for number in range(len(nodes)):
        journal.named(in_place(number).encode(), ALWAYS, ALWAYS, -1 - number)
        journal.held(-1 - number, ALWAYS, ALWAYS, b"")
        journal.held(-1001 - number, ALWAYS, ALWAYS, b"nothing.")
    done = [(line, node) for node, one in zip(nodes, told, strict=True) for line in one["said"]]
    looks = []
    for (what, began, answered, *more), node in sorted(done, key=lambda one: one[0][1]):
        ended = NEVER if answered is None else answered
        if what == "held":
            if began < 0:
                began = ended = ALWAYS
            journal.held(more[0], began, ended, more[1].encode(), node)
        elif what == "named":
            journal.named(more[0].encode(), began, ended, more[1], node, None if more[2] is None else more[2].encode())
        else:
            looks.append((what, Look(began, ended, 0.0, node), more))
    seen = Seen(
        settled=max(one["settled"] for one in told), stale=sum(one["stale"] for one in told), failed=sum(one["failed"] for one in told)
    )
    seen.wrong += [
        f"{node} does not come to see what there is: {one['wrong']}" for node, one in zip(nodes, told, strict=True) if one["wrong"]
    ]
    for what, look, more in looks:
        for kind, old, how in _ages(journal, what, look, more):
            seen.ages[kind].append(old)
            if old == NEVER:
                seen.wrong.append(f"{look.by}, {look.began:.4f} to {look.ended:.4f}: {what} {more[0]!r}: {how}")
    return seen


def _ages(journal: Journal, what: str, look: Look, more: list[Any]) -> list[tuple[str, float, str]]:
    """Kind of what was seen, how old that is, and what it was, in words."""
    most = 0.0 if look.by == SERVER else MOST

    def existing(name: str, there: bool, most: float) -> float:
        return age(lambda one: there in journal.there(name.encode(), one), look, most)

    if what == "list":
        return [("list", existing(name, name in more[0], most), f"{name}: {name in more[0]}") for name in NAMES]
    if what in ("kept", "mapped"):
        ino, data = more[0], more[1].encode()
        return [(what, age(lambda one: data in journal.contents((ino,), one), look, most), repr(data))]
    if what == "there":
        there, exact = more[1], more[2]
        return [("change" if exact else "name", existing(more[0], there, 0.0 if exact else most), str(there))]
    name, said = more[0].encode(), more[1]
    if what == "stat":
        return [("stat", age(lambda one: said in journal.sizes(name, one), look, most), str(said))]
    if said is None:
        return [("absent", age(lambda one: journal.absent(name, one), look, most), "absent")]
    text = said.encode()
    if _ends_where_it_did(journal, name, look, text):
        return [("cut", 0.0, "")]
    return [("read", age(lambda one: text in journal.texts(name, one, believed=True), look, most), f"{text[:20]!r}, {len(text)} bytes")]


def _ends_where_it_did(journal: Journal, name: bytes, look: Look, text: bytes) -> bool:
    """Whether *text* is what the file holds, but as long as it was before: what the kernel's cache makes of a file that is changed between
    its open and its read (docs/posix.md)."""
    possible = journal.texts(name, look, believed=True)
    if text in possible or len(text) not in journal.sizes(name, attrs.evolve(look, bound=MOST)):
        return False
    whole = text.rstrip(b"\0")
    return any(one.startswith(text) or (whole != text and one == whole) for one in possible)


def main(words: list[str]) -> int:
    cuts = "--cuts" in words
    words = [word for word in words if word != "--cuts"]
    seconds = float(words[0]) if words else 60.0
    seed = int(words[1]) if len(words) > 1 else time.time_ns() % 1_000_000
    bound = float(words[2]) if len(words) > 2 else (SUSPECT if cuts else 0.0) + 2.0
    topology = TOPOLOGY + (f'[config.qnet.mount]\noptions = "{words[3]}"\n' if len(words) > 3 else "")
    print(f"{seconds:g} seconds, seed {seed}", flush=True)
    status = 0
    kinds: Counter[str] = Counter()
    with kit.cluster(topology) as cluster:
        for node in cluster.nodes:
            cluster.run(node, "qnet", "nodes", "--wait", ",".join(other for other in cluster.nodes if other != node))
        while seconds > 0:
            seen = play(cluster, f"{FOLDER}/{seed}", min(ROUND, seconds), seed, cuts=cuts)
            # A page that is mapped stays as it was while there is nobody who could bring another.
            late = [kind for kind in seen.ages if seen.oldest(kind) > bound and not (cuts and kind == "mapped")]
            print(f"seed {seed}: settled in {seen.settled:.3f} s, {seen.stale} ESTALE, {seen.failed} failed\n{seen.table()}", flush=True)
            if seen.wrong or late:
                status = 1
                print("\n".join(["BROKEN", *seen.wrong[:20], *(f"{kind}: {seen.oldest(kind):.3f} s old" for kind in late)]), flush=True)
            kinds.update({kind: len(ages) for kind, ages in seen.ages.items()})
            seconds -= ROUND
            seed += 1
    print(f"{'BROKEN' if status else 'held'}: {sum(kinds.values())} things seen")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
