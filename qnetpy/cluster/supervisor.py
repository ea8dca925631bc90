"""PID 1 of a cluster: owns the links, starts the nodes, answers requests. `qnetpy.cluster.guardian` starts it and says what dies with what.

The supervisor lives in the fabric: a network namespace with one bridge per link, to which each node's veth is attached. Nodes are its
children, in PID namespaces below its own. One thread, one poll loop, standard library only: it forks and changes namespaces, and its memory
is every node init's memory. Standard input is a leash: when it is a pipe and its other end closes, the cluster ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Sequence

import qnetpy
from qnetpy.cluster import control, linux, machine, netlink

SHUTDOWN_SECONDS = 8.0
NODE = linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWNS


def fact(**what: object) -> None:
    """One line for whoever started us."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(what).encode() + b"\n")


class Node:
    """A node as the supervisor sees it. States: off, booting, up, failed (a boot command did not end with 0), dead (killed)."""

    def __init__(self, name: str, spec: dict[str, object]) -> None:
        self.name = name
        self.spec = spec
        self.state = "off"
        self.pid = 0
        self.outer_pid = 0
        self.channel: socket.socket | None = None
        self.namespaces: list[tuple[int, int]] = []
        self.report = ""

    @property
    def ports(self) -> list[dict[str, str]]:
        ports = self.spec["ports"]
        assert isinstance(ports, list)
        return ports

    def commands(self, which: str) -> list[list[str]]:
        commands = self.spec[which]
        assert isinstance(commands, list)
        return commands

    def namespace(self, kind: int) -> int:
        return next(fd for flag, fd in self.namespaces if flag == kind)


class Supervisor:
    """PID 1 of the cluster. Makes the links and nodes of the plan, then answers requests until it is told to end."""

    def __init__(self, path: str, user_namespace: bool) -> None:
        self.path = path
        with open(f"{path}/plan", encoding="utf-8") as file:
            self.plan = json.load(file)
        self.nodes = {name: Node(name, spec) for name, spec in self.plan["nodes"].items()}
        self.outer_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.pid = os.readlink("self", dir_fd=self.outer_proc)
        self.user_namespace = user_namespace
        self.poll = select.poll()
        self.calls: dict[int, Callable[[], None]] = {}
        self.waiters: list[tuple[socket.socket, list[Node]]] = []
        self.ending: float | None = None
        self.down_carriers: set[tuple[str, str]] = set()
        self.started = time.time()

    # Set-up

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
        linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        os.mkdir(f"{self.path}/disk")
        linux.mount("qnet-cluster", f"{self.path}/disk", "tmpfs", linux.MS_NODEV, "mode=0711")
        self.netlink = netlink.Netlink()
        self.netlink.set_up("lo")
        for name, link in self.plan["links"].items():
            if link["kind"] == "bridge":
                self.netlink.add_bridge(name, link["mtu"], link["learning"])
        server = control.bind(self.path)
        self.watch(server.fileno(), lambda: self.accept(server))
        self.watch(awake, lambda: self.woken(awake))
        if stat.S_ISFIFO(os.fstat(0).st_mode) or stat.S_ISSOCK(os.fstat(0).st_mode):
            self.watch(0, self.leash)
        for node in self.nodes.values():
            if node.spec["start"]:
                self.start(node)
        fact(ready=True)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.close(null)
        while self.step():
            pass

    def step(self) -> bool:
        timeout = None if self.ending is None else max(0.0, self.ending - time.monotonic()) * 1000
        for fd, _ in self.poll.poll(timeout):
            if fd in self.calls:
                self.calls[fd]()
        self.settle()
        if self.ending is None:
            return True
        running = [node for node in self.nodes.values() if node.pid]
        if running and time.monotonic() < self.ending:
            return True
        for client, _ in self.waiters:
            self.answer(client, {"ok": True})
        return False

    def watch(self, fd: int, call: Callable[[], None]) -> None:
        self.calls[fd] = call
        self.poll.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        if self.calls.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def leash(self) -> None:
        if not os.read(0, 4096):
            self.forget(0)
            self.end()

    def end(self) -> None:
        """Ask every node to shut down; the loop ends when all have, or after SHUTDOWN_SECONDS."""
        if self.ending is not None:
            return
        self.ending = time.monotonic() + SHUTDOWN_SECONDS
        for node in self.nodes.values():
            if node.channel is not None:
                with contextlib.suppress(OSError):
                    node.channel.send(b"stop")

    # Nodes

    def start(self, node: Node) -> None:
        """Give *node* a new init and its interfaces, and let it boot."""
        disk = f"{self.path}/disk/{node.name}"
        root = f"{self.path}/disk/{node.name}.root"
        if not os.path.isdir(disk):
            os.mkdir(disk, 0o755)
            keys = f"{self.path}/keys/{node.name}"
            machine.install_disk(disk, node.name, self.plan["hosts"], self.plan["users"], keys if os.path.isdir(keys) else None)
            os.mkdir(root)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.fork()
        if parent == 0:
            ours.close()
            self._birth(node, disk, root, theirs)
        theirs.close()
        os.waitpid(parent, 0)
        first = json.loads(ours.recv(65536) or b'{"error": "init ended at birth"}')
        if "error" in first:
            ours.close()
            raise OSError(0, f"node {node.name}: {first['error']}")
        node.pid, node.outer_pid, node.channel, node.state, node.report = first["pid"], first["outer"], ours, "booting", ""
        node.namespaces = linux.namespace_fds(node.pid, user=False)
        self.wire(node)
        self.watch(ours.fileno(), lambda: self.heard(node))
        ours.send(b"boot")

    def _birth(self, node: Node, disk: str, root: str, channel: socket.socket) -> None:
        """In a fresh child: make the namespaces, then the init, which tells its own number. Never returns."""
        try:
            signal.set_wakeup_fd(-1)
            linux.unshare(NODE)
            child = os.fork()
            if child:
                os._exit(0)
            outer = int(os.readlink("self", dir_fd=self.outer_proc))
            pid = int(os.readlink("/proc/self"))
            self._let_go(channel)
            socket.sethostname(node.name)
            machine.build_root(root, disk, visible_paths(), [*self.plan["writable"]], bool(self.plan["users"]))
            if not self.plan["ipv6"]:
                with contextlib.suppress(FileNotFoundError), open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as file:
                    file.write("1")
            channel.send(json.dumps({"pid": pid, "outer": outer}).encode())
            machine.init_main(channel, node.name, node.commands("boot"), node.commands("shutdown"))
        except OSError as error:
            with contextlib.suppress(OSError):
                channel.send(json.dumps({"error": error.strerror or str(error)}).encode())
        finally:
            os._exit(1)

    def _let_go(self, channel: socket.socket) -> None:
        """In a new init: close what belongs to the supervisor; above all its lock, its leash and the other nodes."""
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        kept = channel.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, 4096)

    def wire(self, node: Node) -> None:
        """Plug *node* into its links."""
        target = node.namespace(linux.CLONE_NEWNET)
        for port in node.ports:
            link = self.plan["links"][port["link"]]
            mac = bytes.fromhex(port["mac"].replace(":", ""))
            if link["kind"] == "bridge":
                outside = outer_name(node.name, port["link"], list(self.nodes))
                self.netlink.add_veth(outside, bytes((mac[0] | 0x10, *mac[1:])), port["interface"], mac, target, link["mtu"])
                if not link["offload"]:
                    netlink.offloads_off(outside)
                self.netlink.join(outside, socket.if_nametoindex(port["link"]))
                if (node.name, port["link"]) not in self.down_carriers:
                    self.netlink.set_up(outside)
                self.configure(node, port, link)
            else:
                self.wire_cable(node, port, link)
        self.inside(node, lambda handle: handle.set_up("lo"))

    def wire_cable(self, node: Node, port: dict[str, str], link: dict[str, object]) -> None:
        """The veth pair between two nodes is made when the second of them comes up; with either it goes."""
        ends = [
            (other, end) for other in self.nodes.values() for end in other.ports if end["link"] == port["link"] and other.name != node.name
        ]
        (other, end) = ends[0]
        if not other.pid:
            return
        mtu = link["mtu"]
        assert isinstance(mtu, int)
        macs = [bytes.fromhex(one["mac"].replace(":", "")) for one in (port, end)]
        self.netlink.add_veth("cable", macs[0], end["interface"], macs[1], other.namespace(linux.CLONE_NEWNET), mtu)
        self.netlink.move("cable", node.namespace(linux.CLONE_NEWNET), port["interface"])
        self.configure(node, port, link)
        self.configure(other, end, link)

    def other_end(self, node: Node, link: str) -> tuple[Node, dict[str, str]]:
        """The other node of a veth link and its port."""
        return next((other, end) for other in self.nodes.values() if other is not node for end in other.ports if end["link"] == link)

    def configure(self, node: Node, port: dict[str, str], link: dict[str, object]) -> None:
        """Address and state of one interface inside a node."""

        def inside(handle: netlink.Netlink) -> None:
            if not link["offload"]:
                netlink.offloads_off(port["interface"])
            handle.set_up(port["interface"])
            handle.add_address(socket.if_nametoindex(port["interface"]), port["address"], 24)

        self.inside(node, inside)

    def inside(self, node: Node, work: Callable[[netlink.Netlink], None]) -> None:
        """Do *work* in the node's network namespace."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.setns(node.namespace(linux.CLONE_NEWNET), linux.CLONE_NEWNET)
            handle = netlink.Netlink()
            try:
                work(handle)
            finally:
                handle.close()
        finally:
            linux.setns(home, linux.CLONE_NEWNET)
            os.close(home)

    def heard(self, node: Node) -> None:
        """A node's init says something, or is gone."""
        assert node.channel is not None
        try:
            data = node.channel.recv(1 << 20)
        except ConnectionError:
            data = b""
        if not data:
            self.gone(node)
            return
        said = json.loads(data)
        if said.get("up"):
            node.state = "up"
        elif said["status"] != 0:
            node.state = "failed"
            node.report = f"{' '.join(said['ran'])} ended with {said['status']}: {said['output'].strip() or 'no output'}"
        self.log(f"{node.name}: {json.dumps(said)}")

    def gone(self, node: Node) -> None:
        if node.channel is not None:
            self.forget(node.channel.fileno())
            node.channel.close()
            node.channel = None
        for _, fd in node.namespaces:
            os.close(fd)
        node.namespaces = []
        node.pid = node.outer_pid = 0
        node.state = "off" if self.ending is not None else "dead"
        self.unplug(node)

    def unplug(self, node: Node) -> None:
        """Interfaces die with their namespace, but in the kernel's own time; a node that starts again needs their names now."""
        for port in node.ports:
            with contextlib.suppress(OSError):
                if self.plan["links"][port["link"]]["kind"] == "bridge":
                    self.netlink.delete(outer_name(node.name, port["link"], list(self.nodes)))
                else:
                    other, end = self.other_end(node, port["link"])
                    if other.pid:
                        self.inside(other, functools.partial(netlink.Netlink.delete, name=end["interface"]))

    def kill(self, node: Node) -> None:
        """Power off: no process of the node gets to do anything more. Returns when its init has been collected."""
        os.kill(node.pid, signal.SIGKILL)
        os.waitpid(node.pid, 0)
        self.gone(node)

    def woken(self, fd: int) -> None:
        """A signal: collect children; SIGTERM ends the cluster."""
        numbers = os.read(fd, 4096)
        if signal.SIGTERM in numbers:
            self.end()
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                for node in self.nodes.values():
                    if node.pid == pid:
                        self.gone(node)

    # Requests

    def accept(self, server: socket.socket) -> None:
        client, _ = server.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, control.MESSAGE_MAX)
        client.settimeout(5.0)
        try:
            request = json.loads(client.recv(65536) or b"{}")
            self.request(client, request)
        except (OSError, ValueError, KeyError) as error:
            self.answer(client, {"error": (error.strerror if isinstance(error, OSError) else None) or str(error)})

    def answer(self, client: socket.socket, what: dict[str, object], fds: Sequence[int] = ()) -> None:
        with contextlib.suppress(OSError):
            socket.send_fds(client, [json.dumps(what).encode()], list(fds))
        client.close()

    def node(self, request: dict[str, object]) -> Node:
        name = request.get("node")
        if not isinstance(name, str) or name not in self.nodes:
            raise ValueError(f"no node {name!r}; known: {', '.join(self.nodes)}")
        return self.nodes[name]

    def request(self, client: socket.socket, request: dict[str, object]) -> None:
        match request.get("do"):
            case "status":
                self.answer(client, self.status())
            case "wait":
                self.waiters.append((client, list(self.nodes.values())))
            case "enter":
                node = self.node(request)
                if not node.pid:
                    raise ValueError(f"node {node.name} is {node.state}")
                self.enter(client, node.namespaces, {"pid": node.outer_pid})
            case "fabric":
                opened = linux.namespace_fds(os.getpid(), user=False)
                self.enter(client, opened, {})
                for _, fd in opened:
                    os.close(fd)
            case "kill":
                node = self.node(request)
                if not node.pid:
                    raise ValueError(f"node {node.name} is {node.state} already")
                self.kill(node)
                self.answer(client, {"ok": True})
            case "start":
                node = self.node(request)
                if node.pid:
                    raise ValueError(f"node {node.name} is running already")
                self.start(node)
                self.waiters.append((client, [node]))
            case "link":
                self.carrier(self.node(request), request.get("link"), bool(request["up"]))
                self.answer(client, {"ok": True})
            case "down":
                self.waiters.append((client, []))
                self.end()
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")

    def enter(self, client: socket.socket, namespaces: Sequence[tuple[int, int]], facts: dict[str, object]) -> None:
        """Hand out namespace descriptors, the user namespace first if there is one."""
        own: list[tuple[int, int]] = []
        if self.user_namespace:
            own.append((linux.CLONE_NEWUSER, os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)))
        everything = [*own, *namespaces]
        self.answer(client, {"ok": True, "kinds": [kind for kind, _ in everything], **facts}, [fd for _, fd in everything])
        for _, fd in own:
            os.close(fd)

    def carrier(self, node: Node, link: object, up: bool) -> None:
        names = [port["link"] for port in node.ports if link in (None, port["link"])]
        if not names:
            raise ValueError(f"node {node.name} has no link {link!r}")
        for name in names:
            if self.plan["links"][name]["kind"] != "bridge":
                raise ValueError(f"link {name} is a cable: use `ip link set` on one of its nodes")
            (self.down_carriers.discard if up else self.down_carriers.add)((node.name, name))
            if node.pid:
                self.netlink.set_up(outer_name(node.name, name, list(self.nodes)), up)

    def settle(self) -> None:
        """Answer those who wait for nodes that have settled."""
        if self.ending is not None:
            return
        for waiter in list(self.waiters):
            client, nodes = waiter
            if all(node.state != "booting" for node in nodes):
                self.waiters.remove(waiter)
                failed = {node.name: node.report or node.state for node in nodes if node.state in ("failed", "dead")}
                self.answer(client, {"ok": True, "failed": failed})

    def status(self) -> dict[str, object]:
        nodes = {}
        for node in self.nodes.values():
            ports = [{**port, "carrier": (node.name, port["link"]) not in self.down_carriers} for port in node.ports]
            nodes[node.name] = {"state": node.state, "pid": node.outer_pid, "report": node.report, "ports": ports}
        return {
            "ok": True,
            "name": self.plan["name"],
            "pid": int(self.pid),
            "seconds": round(time.time() - self.started, 1),
            "user_namespace": self.user_namespace,
            "links": self.plan["links"],
            "nodes": nodes,
        }

    def log(self, line: str) -> None:
        with open(f"{self.path}/log", "a", encoding="utf-8") as file:
            file.write(line + "\n")


def outer_name(node: str, link: str, order: Sequence[str]) -> str:
    """The fabric's end of a node's wire: the link's name and the node's number, within 15 bytes."""
    return f"{link}.{order.index(node) + 1}"


def visible_paths() -> list[str]:
    """Directories without which the node could not run the project's own commands."""
    source = os.path.dirname(os.path.dirname(os.path.abspath(qnetpy.__file__)))
    return sorted({os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, source)} | {sys.prefix, source})
