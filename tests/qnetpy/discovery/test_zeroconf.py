"""mDNS between real network namespaces: two child processes, each in one of its own, joined by veth pairs.

The namespaces have no name and end with their processes. Whatever is measured is in the failure's text.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from qnetpy.discovery.hint import Place, instance_name, pack_txt

pytestmark = pytest.mark.priv
ANNOUNCER = Path(__file__).with_name("announcer.py")
DISCOVERED_WITHIN = 2.0
"""Seconds: the contract for nodes that have an address when they start."""
PATIENCE = 10.0
Event = dict[str, object]


class Node:
    """A child in its own network namespace."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self.process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-X", "dev", str(ANNOUNCER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.wait("ready")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.put(json.loads(line))

    def wait(self, event: str, patience: float = PATIENCE, **facts: object) -> Event:
        """The next event of that kind with those facts; others before it are dropped."""
        end = time.monotonic() + patience
        while True:
            try:
                found = self.events.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no {event} {facts} within {patience} s")
            if found["event"] == event and facts.items() <= found.items():
                return found

    def rest(self) -> list[Event]:
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self.events.get_nowait())
        return found

    def do(self, *command: str | int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def run(self, *command: str) -> str:
        """A command in this node's namespace."""
        done = subprocess.run(["nsenter", "-n", "-t", str(self.process.pid), *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def end(self) -> str:
        """Everything the child said on standard error; dev mode makes it complain of leaks."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.reader.join()
        text = self.process.stderr.read()
        self.process.stderr.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return text


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    a, b = Node(), Node()
    try:
        yield a, b
    finally:
        said = a.end() + b.end()
    assert said == ""


def join(a: Node, b: Node, name: str, net: int, *, addresses: bool = True, ipv6: bool = True) -> None:
    """A veth pair called *name* on both sides, up, with IPv4 addresses. Without *ipv6* no link-local address comes a second later, which
    makes the responders start again."""
    a.run("ip", "link", "add", "name", name, "type", "veth", "peer", "name", name, "netns", str(b.process.pid))
    for host, node in enumerate((a, b), 1):
        if addresses:
            node.run("ip", "addr", "add", f"10.9.{net}.{host}/24", "dev", name)
        if not ipv6:
            node.run("ip", "link", "set", name, "addrgenmode", "none")
        node.run("ip", "link", "set", name, "up")


def mac(node: Node, name: str) -> str:
    return cast(str, json.loads(node.run("ip", "-j", "link", "show", name))[0]["address"]).replace(":", "")


def at(event: Event) -> float:
    return cast(float, event["at"])


def found_each_other(a: Node, b: Node, name: str, began: float) -> float:
    heard_a = a.wait("hint", token=b.token, interface=name, mac=mac(b, name), ethertype=0x88B5)
    heard_b = b.wait("hint", token=a.token, interface=name, mac=mac(a, name), ethertype=0x88B5)
    return max(at(heard_a), at(heard_b)) - began


def test_nodes_that_start_together_find_each_other(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    join(a, b, "eth0", 1)
    a.do("start", a.token, "eth0")
    b.do("start", b.token, "eth0")
    began = max(at(a.wait("starting")), at(b.wait("starting")))
    assert cast(float, a.wait("started")["took"]) < 0.1
    took = found_each_other(a, b, "eth0", began)
    assert took < DISCOVERED_WITHIN
    print(f"found each other after {took * 1e3:.0f} ms, import included")


def test_the_udp_bearer_is_announced_with_its_addresses_and_its_port_is_live(nodes: tuple[Node, Node]) -> None:
    """b has both bearers, then another port; a has UDP only, and so no hardware address to send frames to."""
    a, b = nodes
    join(a, b, "eth0", 1)
    a.do("start", a.token, "eth0:1111:only")
    b.do("start", b.token, "eth0:2222")
    heard = b.wait("hint", token=a.token, interface="eth0", mac="", port=1111)
    assert "10.9.1.1" in cast(list[str], heard["addresses"])
    a.wait("hint", token=b.token, mac=mac(b, "eth0"), port=2222)
    b.do("add", "eth0:3333")
    a.wait("hint", token=b.token, mac=mac(b, "eth0"), port=3333)
    b.do("add", "eth0")
    a.wait("hint", token=b.token, mac=mac(b, "eth0"), port=0)


def test_goodbye_is_heard_and_close_leaves_no_thread(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    join(a, b, "eth0", 1)
    a.do("start", a.token, "eth0")
    b.do("start", b.token, "eth0")
    found_each_other(a, b, "eth0", 0.0)
    a.do("close")
    closed = a.wait("closed")
    assert closed["threads"] == []
    assert cast(float, closed["took"]) < 0.5
    assert at(b.wait("gone", token=a.token)) - at(closed) < 0.5
    b.do("close")
    b.wait("closed", threads=[])


def test_what_ends_as_soon_as_it_began_ends_without_a_word(nodes: tuple[Node, Node]) -> None:
    """The fixture sees to the words: an exception of a task that nobody asked for is one, and that the thread does not end is another."""
    a, b = nodes
    join(a, b, "eth0", 1)
    a.do("flash", a.token, 5, "eth0")
    a.wait("flashed", threads=[])


def test_a_node_that_starts_later_finds_one_that_was_quiet_for_long(nodes: tuple[Node, Node]) -> None:
    """All announcements of the first are over: it answers the query of the second."""
    a, b = nodes
    join(a, b, "eth0", 1)
    a.do("start", a.token, "eth0")
    time.sleep(2.5)  # the quiet is what is tested: announcements and first queries take 0.5 and 1 s
    b.do("start", b.token, "eth0")
    began = at(b.wait("starting"))
    assert found_each_other(a, b, "eth0", began) < DISCOVERED_WITHIN


def test_each_interface_hears_only_itself(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    join(a, b, "eth0", 1)
    join(a, b, "eth1", 2)
    a.do("start", a.token, "eth0", "eth1")
    b.do("start", b.token, "eth0", "eth1")
    macs = {"eth0": mac(b, "eth0"), "eth1": mac(b, "eth1")}
    first = a.wait("hint", token=b.token)
    other = "eth0" if first["interface"] == "eth1" else "eth1"
    hints = [first, a.wait("hint", token=b.token, interface=other), *a.rest()]
    assert all(hint["mac"] == macs[cast(str, hint["interface"])] for hint in hints if hint["event"] == "hint")


def test_an_interface_that_appears_later_and_gets_its_address_later_still(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    join(a, b, "eth0", 1)
    a.do("start", a.token, "eth0")
    b.do("start", b.token, "eth0")
    found_each_other(a, b, "eth0", 0.0)
    join(a, b, "eth1", 2, addresses=False)
    for node in nodes:
        node.run("sysctl", "-q", "-w", "net.ipv6.conf.eth1.disable_ipv6=1")
        node.do("add", "eth1")
    b.run("ip", "addr", "add", "10.9.2.2/24", "dev", "eth1")
    a.run("ip", "addr", "add", "10.9.2.1/24", "dev", "eth1")
    began = time.monotonic()
    assert found_each_other(a, b, "eth1", began) < DISCOVERED_WITHIN
    a.do("remove", "eth0")
    a.wait("gone", token=b.token, interface="eth0", patience=1.0)
    b.wait("gone", token=a.token, interface="eth0", patience=1.0)
    assert not [event for event in (*a.rest(), *b.rest()) if event["interface"] == "eth1" and event["event"] == "gone"]


def test_a_lost_carrier_takes_nothing_away_and_its_return_finds_a_restarted_peer(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    join(a, b, "eth0", 1)
    a.do("start", a.token, "eth0")
    b.do("start", b.token, "eth0")
    found_each_other(a, b, "eth0", 0.0)
    b.run("ip", "link", "set", "eth0", "down")
    c = Node()
    try:
        # The same machine boots again, as another process, while a has no carrier.
        b.run("ip", "link", "set", "eth0", "netns", str(c.process.pid))
        c.run("ip", "addr", "add", "10.9.1.2/24", "dev", "eth0")
        c.do("start", c.token, "eth0")
        assert not [event for event in a.rest() if event["event"] == "gone"]
        c.run("ip", "link", "set", "eth0", "up")
        began = time.monotonic()
        assert found_each_other(a, c, "eth0", began) < DISCOVERED_WITHIN
    finally:
        assert c.end() == ""


def test_link_local_addresses_are_enough(nodes: tuple[Node, Node]) -> None:
    """IPv6 only. The kernel checks for duplicates first, one to two seconds after the link came up, so the clock starts after that."""
    a, b = nodes
    join(a, b, "eth0", 1, addresses=False)
    a.do("start", a.token, "eth0")
    b.do("start", b.token, "eth0")
    for node in nodes:
        while "tentative" in node.run("ip", "-6", "addr", "show", "dev", "eth0"):
            time.sleep(0.02)
    assert found_each_other(a, b, "eth0", time.monotonic()) < DISCOVERED_WITHIN


def record(name: str, kind: int, data: bytes, ttl: int = 1200) -> bytes:
    return packed_name(name) + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def packed_name(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in (part.encode() for part in name.rstrip(".").split("."))) + b"\0"


def response(*records: bytes) -> bytes:
    return struct.pack("!HHHHHH", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def announced(name: str, txt: bytes) -> bytes:
    service = "_qnet._udp.local."
    return response(
        record(service, 12, packed_name(name)),
        record(name, 33, struct.pack("!HHH", 0, 0, 0) + packed_name("h.local.")),
        record(name, 16, txt),
        record("h.local.", 1, bytes((10, 9, 1, 2))),
    )


def send(node: Node, packets: list[bytes]) -> None:
    """Multicast *packets* from the node's namespace, as an mDNS responder would."""
    command = ["nsenter", "-n", "-t", str(node.process.pid), sys.executable, "-c", SENDER]
    done = subprocess.run(command, input="\n".join(packet.hex() for packet in packets), text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0


def counted(node: Node, **least: int) -> None:
    """Wait until each of those drops was counted at least that often."""
    end = time.monotonic() + PATIENCE
    while True:
        node.do("facts")
        drops = cast(dict[str, int], node.wait("facts")["drops"])
        if all(drops[reason] >= count for reason, count in least.items()):
            return
        assert time.monotonic() < end, str(drops)


SENDER = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.9.1.2"))
sock.bind(("10.9.1.2", 5353))
for line in sys.stdin:
    sock.sendto(bytes.fromhex(line), ("224.0.0.251", 5353))
"""


def test_hostile_announcements_are_counted_and_honest_ones_still_heard(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    join(a, b, "eth0", 1, ipv6=False)
    a.do("start", a.token, "eth0")
    good = pack_txt(Place(1, b"\2\0\0\0\0\7", 0x88B5))
    rng = random.Random(3)
    packets = [
        announced("evil name._qnet._udp.local.", good),
        announced("\u202e" * 20 + "._qnet._udp.local.", good),
        announced(instance_name(rng.randbytes(16)), b"\x03v=7" + good[4:]),
        announced(instance_name(rng.randbytes(16)), b"\xffshort"),
        announced(instance_name(rng.randbytes(16)), good.replace(b"m=02", b"m=ff")),
        announced(instance_name(rng.randbytes(16)), pack_txt(Place(1, b"", 0x88B5))),
        announced(instance_name(bytes.fromhex(a.token)), good),
    ]
    whole = announced(instance_name(rng.randbytes(16)), good)
    packets += [whole[:length] for length in range(len(whole))]
    packets += [rng.randbytes(rng.randrange(400)) for _ in range(100)]
    # A pointer loop.
    packets.append(struct.pack("!HHHHHH", 0, 0x8400, 0, 1, 0, 0) + b"\xc0\x0c" + bytes(10))
    unexplained = [response(record("_qnet._udp.local.", 12, packed_name(instance_name(rng.randbytes(16))))) for _ in range(100)]
    b.do("start", b.token, "eth0")
    found_each_other(a, b, "eth0", 0.0)
    a.rest()
    send(b, packets[:7])
    counted(a, bad_name=2, bad_txt=4)
    send(b, packets[7:])
    # In pieces that fit a socket's buffer.
    send(b, unexplained)
    counted(a, resolve_busy=1)
    c = Node()
    try:
        # After all that, a third node on the same wire (its own namespace, a bridge is not needed: it takes b's place).
        b.do("close")
        b.wait("closed")
        a.wait("gone", token=b.token)
        b.run("ip", "link", "set", "eth0", "netns", str(c.process.pid))
        c.run("ip", "addr", "add", "10.9.1.2/24", "dev", "eth0")
        c.run("ip", "link", "set", "eth0", "up")
        c.do("start", c.token, "eth0")
        assert found_each_other(a, c, "eth0", time.monotonic()) < DISCOVERED_WITHIN
    finally:
        assert c.end() == ""


def test_a_socket_of_another_program_on_the_port_is_no_hindrance(nodes: tuple[Node, Node]) -> None:
    """avahi-daemon holds UDP 5353 on most desktops, with SO_REUSEADDR."""
    a, b = nodes
    join(a, b, "eth0", 1)
    holder = subprocess.Popen(
        ["nsenter", "-n", "-t", str(a.process.pid), sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"bound\n"
        a.do("start", a.token, "eth0")
        b.do("start", b.token, "eth0")
        found_each_other(a, b, "eth0", 0.0)
    finally:
        holder.communicate()


HOLDER = f"""
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, {socket.SO_REUSEADDR}, 1)
sock.bind(("", 5353))
sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + socket.inet_aton("10.9.1.1"))
print("bound", flush=True)
sys.stdin.read()
"""
