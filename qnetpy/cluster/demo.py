"""`make demo`: three machines become one, shown with real commands and their output, each checked; in under two minutes, without traces.

The commands are what a user would type on the nodes of clusters/three; `nN$` before a command says on which. A step that does not show what
it should ends the demo with one line that says so and exit status 1.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import qnetpy
from qnetpy.cluster import handle, keys, rights, state
from qnetpy.cluster.control import ControlError
from qnetpy.cluster.handle import Cluster
from qnetpy.cluster.harness import ClusterError
from qnetpy.settings import SettingsError

TOPOLOGY = Path(qnetpy.__file__).parents[1] / "clusters" / "three"
NODES = ("n1", "n2", "n3")
MIB = 1 << 20
BIG = 64 * MIB
FOUND_SECONDS = 5.0
"""Discovery is to take under 2 s; a loaded machine may be slower, and the measured time is printed."""
DEAD_SECONDS = 3.0
"""Within this a node that was killed is down (docs/protocol/node.md); the operations that waited for it then end."""
SLACK = 1.5
"""For noticing it, ending the program and starting commands on a loaded machine."""
BACK_SECONDS = 2.0
SECRET_CHUNK = 8

SERVE = "import socket; s = socket.create_server(('', 7000)); print('ready', flush=True); s.accept()[0].sendall(open('{}', 'rb').read())"
FETCH = (
    "import socket, sys; s = socket.create_connection((sys.argv[1], 7000)); print(sum(len(d) for d in iter(lambda: s.recv(65536), b'')))"
)


class Wrong(Exception):
    """A step did not show what it should."""


def check(true: bool, claim: str) -> None:
    if not true:
        raise Wrong(f"not so: {claim}")
    print(f"    -> {claim}", flush=True)


class Demo:
    """The running cluster and the way commands on it are shown."""

    def __init__(self, cluster: Cluster, users: bool) -> None:
        self.cluster = cluster
        self.users = users
        self.number = 0

    def step(self, title: str) -> None:
        self.number += 1
        print(f"\n{self.number}. {title}", flush=True)

    def on(
        self, node: str, command: str, user: str | None = None, status: int | None = 0, quiet: bool = False, seconds: float = 60.0
    ) -> str:
        """Run a shell command on a node, print it and its output. Wrong when its exit status is not *status* (None: any)."""
        if not quiet:
            print(f"  {node}{f' ({user})' if user else ''}$ {command}", flush=True)
        try:
            result = self.cluster.run(node, "sh", "-c", command, user=user, check=False, seconds=seconds)
        except subprocess.TimeoutExpired:
            raise Wrong(f"{node}: {command}: no end after {seconds:g} s") from None
        output = result.stdout + result.stderr
        if not quiet and output:
            print("\n".join(f"    {line}" for line in output.rstrip("\n").split("\n")), flush=True)
        if status is not None and result.returncode != status:
            raise Wrong(f"{node}: {command}: exit status {result.returncode}" + (f": {output.strip()}" if quiet else ""))
        return output

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for *condition*; the seconds it took. Wrong when it takes too long."""
        begin = time.monotonic()
        while not condition():
            if time.monotonic() - begin > seconds:
                raise Wrong(f"{what}: not within {seconds:g} s")
            time.sleep(0.02)
        return time.monotonic() - begin

    def listed(self, node: str) -> set[str]:
        return set(self.on(node, "ls /net", quiet=True, seconds=5).split())


def discovery(demo: Demo) -> None:
    demo.step("The nodes find each other, prove who they are, and appear in /net; nobody told them of each other")
    demo.until(lambda: all(demo.listed(node) >= set(NODES) - {node} for node in NODES), FOUND_SECONDS, "each lists the other two")
    for node in NODES:
        demo.on(node, "ls /net")
    check(True, f"each of them saw the others at most {found_after(demo):.1f} s after both were started")


def found_after(demo: Demo) -> float:
    """The longest time from the start of the later of two daemons until one of them had the other up."""
    facts = {node: json.loads(demo.on(node, "qnet status --json", quiet=True)) for node in NODES}
    ups = [(node, other["name"], other["seconds"]) for node in NODES for other in facts[node]["nodes"] if other["name"] in NODES]
    return float(max(min(facts[node]["seconds"], facts[other]["seconds"]) - ago for node, other, ago in ups))


def files(demo: Demo) -> None:
    demo.step("A file of another machine, with an ordinary program")
    check(demo.on("n1", "cat /net/n2/etc/hostname") == "n2\n", "n1 reads n2's own host name")
    demo.step("Writing on n1 what n3 reads at home")
    demo.on("n1", "echo written on n1 >/net/n3/tmp/note")
    check(demo.on("n3", "cat /tmp/note") == "written on n1\n", "the file is on n3")
    if demo.users:
        demo.step("An ordinary user is the same user there, and root of one node is nobody on another")
        demo.on("n1", "echo mine >/net/n3/home/alice/letter", user="alice")
        demo.on("n1", "touch /net/n3/tmp/by-root")
        owners = demo.on("n3", "stat -c '%U %n' /home/alice/letter /tmp/by-root")
        check(owners == "alice /home/alice/letter\nnobody /tmp/by-root\n", "alice wrote as alice, n1's root as nobody")
        demo.on("n1", "cat /net/n3/etc/shadow", status=1)
        demo.on("n1", "touch /net/n3/etc/mine", status=1)
        check(True, "what is not exported, or not nobody's to read, is refused")


def copies(demo: Demo) -> None:
    demo.step("64 MiB there and back, with matching checksums")
    demo.on("n1", f"dd if=/dev/urandom of=/tmp/big bs=1M count={BIG // MIB} 2>/dev/null")
    for command in ("cp /tmp/big /net/n2/tmp/big", "cp /net/n2/tmp/big /tmp/back"):
        begin = time.monotonic()
        demo.on("n1", command)
        took = time.monotonic() - begin
        print(f"    {took:.2f} s, {BIG / MIB / took:.0f} MiB/s")
    sums = demo.on("n1", "sha256sum /tmp/big /tmp/back").split()[::2] + demo.on("n2", "sha256sum /tmp/big").split()[::2]
    check(len(sums) == 3 and len(set(sums)) == 1, "three equal checksums")
    demo.step("Searching a tree on another machine")
    demo.on(
        "n2", "mkdir -p /tmp/tree && cd /tmp/tree && for d in a b c d; do mkdir $d; for f in 1 2 3 4 5; do echo straw >$d/$f; done; done"
    )
    demo.on("n2", "echo a needle >/tmp/tree/c/3")
    check(demo.on("n1", "grep -r needle /net/n2/tmp/tree") == "/net/n2/tmp/tree/c/3:a needle\n", "grep found it")


def messages(demo: Demo) -> None:
    demo.step("A message to a named server on another machine, and its reply")
    print("  n2$ qnet name demo &", flush=True)
    with demo.cluster.running("n2", "qnet", "name", "demo") as server:
        assert server.stdout is not None
        ready = server.stdout.readline().decode()
        print(f"    {ready.strip()}", flush=True)
        reply = demo.on("n1", "qnet send n2/demo 'hello from n1'")
    check("hello from n1" in reply, "the server on n2 answered")


def programs(demo: Demo) -> None:
    demo.step("Programs on another machine, with their streams and exit status here")
    user = "alice" if demo.users else None
    check(demo.on("n1", "qnet on n2 -- uname -n; echo exit status $?", user) == "n2\nexit status 0\n", "it ran on n2")
    check(demo.on("n1", "qnet on n2 -- sh -c 'exit 7'; echo exit status $?", user) == "exit status 7\n", "its exit status is ours")
    if user:
        check(demo.on("n1", "qnet on n2 -- id -un", user) == "alice\n", "it runs there as the user who started it here")
    piped = demo.on("n1", "printf 'pear\\nfig\\napple\\n' | qnet on n2 -- sort | tr a-z A-Z", user)
    check(piped == "APPLE\nFIG\nPEAR\n", "a pipe goes through a process on n2")


def frames(file: Path) -> list[bytes]:
    """The frames of a pcap file."""
    data = file.read_bytes()
    found, at = [], 24
    while at + 16 <= len(data):
        size = struct.unpack_from("<I", data, at + 8)[0]
        found.append(data[at + 16 : at + 16 + size])
        at += 16 + size
    return found


def leaks(capture: bytes, secret: bytes) -> int:
    """How many of the secret's 8-byte pieces stand in the capture."""
    return sum(secret[at : at + SECRET_CHUNK] in capture for at in range(0, len(secret), SECRET_CHUNK))


def capture(demo: Demo, folder: Path) -> None:
    demo.step("What a listener on the wire sees of a file: first sent in clear over TCP, then read through /net")
    demo.on("n2", "dd if=/dev/urandom of=/tmp/secret bs=1k count=64 2>/dev/null")
    secret = bytes.fromhex(demo.on("n2", "od -An -v -tx1 /tmp/secret | tr -d ' \\n'", quiet=True))
    pieces = len(secret) // SECRET_CHUNK
    clear, sealed = folder / "clear.pcap", folder / "sealed.pcap"
    with demo.cluster.capture("lan", clear), demo.cluster.running("n2", "python3", "-c", SERVE.format("/tmp/secret")) as server:
        assert server.stdout is not None
        server.stdout.readline()
        demo.cluster.run("n1", "python3", "-c", FETCH, "n2")
    seen = leaks(b"".join(frame[66:] for frame in frames(clear)), secret)
    check(seen >= pieces * 0.9, f"TCP: {seen} of {pieces} pieces of the file stand in the capture, so the listener does listen")
    with demo.cluster.capture("lan", sealed):
        sums = demo.on("n1", "sha256sum </net/n2/tmp/secret")
    recorded = frames(sealed)
    check(sums.split()[0] == hashlib.sha256(secret).hexdigest(), "/net: n1 read the file right")
    kinds = Counter(int.from_bytes(frame[12:14], "big") for frame in recorded)
    print("    " + ", ".join(f"{count} frames of ethertype {kind:#06x}" for kind, count in kinds.most_common()))
    carried = sum(len(frame) for frame in recorded if int.from_bytes(frame[12:14], "big") == keys.ETHERTYPE)
    check(carried >= len(secret), f"/net: {carried} bytes of Qnet frames crossed the wire meanwhile")
    check(leaks(b"".join(recorded), secret) == 0, f"/net: none of the {pieces} pieces stands in the capture")


def stranger(demo: Demo) -> None:
    demo.step("A machine of another cluster on the same wire gets nowhere")
    listed = set(demo.on("x", "ls /net").split())
    check(not listed & set(NODES), "it sees none of them")
    demo.on("x", "cat /net/n1/etc/hostname", status=1)
    check("x" not in demo.listed("n1"), "and none of them sees it")


def death(demo: Demo) -> None:
    demo.step("A machine dies in the middle of a copy: the copy ends with an error, and /net goes on")
    cluster = demo.cluster
    command = "while cat /net/n2/tmp/big >/dev/null; do echo copied; done"
    print(f"  n1$ {command} &", flush=True)
    with cluster.running("n1", "sh", "-c", command) as copier:
        assert copier.stdout is not None
        assert copier.stderr is not None
        copier.stdout.readline()
        print("  $ qnet cluster kill n2", flush=True)
        begin = time.monotonic()
        cluster.kill("n2")
        slowest = 0.0
        gone = None
        while gone is None:
            if time.monotonic() - begin > DEAD_SECONDS + SLACK:
                raise Wrong(f"n2 is still in n3's /net after {DEAD_SECONDS + SLACK:g} s")
            asked = time.monotonic()
            listed = demo.listed("n3")
            slowest = max(slowest, time.monotonic() - asked)
            gone = None if "n2" in listed else time.monotonic() - begin
        try:
            copier.wait(max(0.1, DEAD_SECONDS + SLACK - (time.monotonic() - begin)))
        except subprocess.TimeoutExpired:
            raise Wrong(f"the copy still hangs {DEAD_SECONDS + SLACK:g} s after the death") from None
        ended = time.monotonic() - begin
        print("\n".join(f"    {line}" for line in copier.stderr.read().decode().strip().split("\n")), flush=True)
    check(ended <= DEAD_SECONDS + SLACK, f"the copy ended with an error after {ended:.1f} s")
    check(slowest < 1.0, f"meanwhile ls /net on n3 never took more than {slowest * 1000:.0f} ms; n2 left it after {gone:.1f} s")
    demo.on("n1", "ls /net/n2/etc", status=2)
    demo.step("It comes back, and is there again without a remount")
    print("  $ qnet cluster start n2", flush=True)
    cluster.start("n2")
    took = demo.until(
        lambda: demo.on("n1", "cat /net/n2/etc/hostname", status=None, quiet=True) == "n2\n",
        BACK_SECONDS + SLACK,
        "n2 is back in n1's /net",
    )
    demo.on("n1", "cat /net/n2/etc/hostname")
    check(True, f"n1 reads n2's files again {took:.1f} s after it had started")


def show() -> int:
    """Run the demo. Returns the exit status."""
    lacks = rights.missing()
    if lacks:
        print(f"demo: {'; '.join(lacks)}", file=sys.stderr)
        return 1
    started = time.monotonic()
    print(f"Three machines and a stranger on one switch, clusters/{TOPOLOGY.name}/cluster.toml", flush=True)
    try:
        with handle.running(TOPOLOGY) as cluster, tempfile.TemporaryDirectory(prefix="demo-") as folder:
            demo = Demo(cluster, bool(cluster.plan.topology.users))
            for part in (discovery, files, copies, messages, programs, lambda demo: capture(demo, Path(folder)), stranger, death):
                part(demo)
    except (Wrong, ClusterError, ControlError, SettingsError, AssertionError) as error:
        print(f"demo: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    if cluster.name in state.names() or cluster.processes():
        print("demo: the cluster did not go away", file=sys.stderr)
        return 1
    print(f"\nEverything is gone again: no namespace, mount, process or file is left. {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(show())
