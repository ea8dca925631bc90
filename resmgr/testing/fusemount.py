"""Real FUSE mounts for tests: a program that serves a manager in its own mount namespace, and the other end of it.

    python -m resmgr.testing.fusemount MOUNTPOINT [hostfs DIRECTORY | devices -]

It takes orders on its input and answers on its output, one JSON object per line; {"ready": true} comes when the mount is there,
{"ended": REASON} when the kernel ended it. The test reaches the mount through /proc/PID/root: whoever serves a mount must not make system
calls on it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from resmgr.access import Policy, UserRule
from resmgr.channel import Kernel
from resmgr.fuse import machine
from resmgr.fuse.formats import Init, inval_pages
from resmgr.fuse.machine import Machine
from resmgr.fuse.mount import Mount, MountError, private_namespace
from resmgr.fuse.options import FuseOptions, Permissions
from resmgr.fuse.servers import KernelResolver
from resmgr.fuse.session import Session
from resmgr.hostfs.manager import HostFs
from resmgr.iofunc.node import Directory, Node, TreeManager, Value
from resmgr.iomsg import Connect, Io
from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.testing.devices import Pipe, Screen, Slow
from resmgr.testing.memfs import Fault, MemFs
from resmgr.users import Accounts


def say(value: dict[str, object]) -> None:
    print(json.dumps(value), flush=True)


def count_messages(host: HostFs) -> dict[str, int]:
    """From now on each message that *host* is sent is counted by its name, but for CLOSE and WATCH."""
    counts: dict[str, int] = {}

    def counting(name: str, handler: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: object) -> None:
            counts[name] = counts.get(name, 0) + 1
            handler(*arguments)

        return counted

    manager = host.manager
    manager._connect = {kind: counting(Connect(kind).name.lower(), handler) for kind, handler in manager._connect.items()}
    manager._io = {kind: counting(Io(kind).name.lower(), handler) for kind, handler in manager._io.items()}
    return counts


class Server:
    """The mounted manager and what the orders do with it."""

    def __init__(self, dispatch: TrioDispatch, mountpoint: str, options: FuseOptions, directory: str | None) -> None:
        self.dispatch = dispatch
        self.kernel = Kernel(dispatch, "test")
        self.memory = MemFs(self.kernel)
        target = self.memory.target
        self.pipe = Pipe()
        self.manager: TreeManager | None = None
        self.host_messages: dict[str, int] = {}
        self.host_counters: dict[str, int] = {}
        if directory == "-":
            nodes: dict[bytes, Node] = {b"pipe": self.pipe, b"slow": Slow(), b"screen": Screen(), b"value": Value(lambda: b"x\n")}
            self.manager = TreeManager(self.kernel, Directory(nodes), name="devices")
            target = self.manager.target
        elif directory is not None:
            policy = Policy(Accounts(dispatch.now), users=(UserRule("identity", root="root"),), exports=(), grants=())
            host = HostFs(self.kernel, policy, root=directory)
            self.host_messages = count_messages(host)
            self.host_counters = host.manager.counters
            target = host.target
        self.machine = Machine(dispatch, KernelResolver(self.kernel), target, options, mountpoint.encode())
        self.mount = Mount(mountpoint, options)
        self.session = Session(dispatch, self.mount.attach(), self.machine, lambda reason: say({"ended": reason}))
        self.session.start()
        self.handed: list[int] = []
        """The descriptor, once this process serves no more and the next one may."""

    def order(self, order: dict[str, str]) -> object:
        kind = order["order"]
        path = order.get("path", "").encode()
        if kind == "write":
            self.memory.add(path, order["data"].encode())
        elif kind == "touch":
            self.memory.touch(self.memory.find(path), data=True)
        elif kind == "remove":
            self.memory.remove(path)
        elif kind == "fault":
            fields = json.loads(order["fault"])
            fields["name"] = fields["name"].encode() if fields.get("name") else None
            self.memory.faults.append(Fault(**fields))
        elif kind == "heal":
            self.memory.faults.clear()
        elif kind == "release":
            while self.memory.hanging:
                self.memory.hanging.pop().error(errno.EINTR)
        elif kind == "restart":
            channel = self.memory.manager.channel
            old = self.memory.root
            self.memory.destroy()
            self.memory = MemFs(self.kernel, chid=channel.chid)
            self.memory.root = old
        elif kind == "destroy":
            self.memory.destroy()
        elif kind == "put":
            self.pipe.data += order["data"].encode()
            self.pipe.notify()
        elif kind == "urgent":
            self.pipe.urgent = True
            self.pipe.notify()
        elif kind == "waits":
            return 0 if self.pipe.waiters is None else len(self.pipe.waiters.queue)
        elif kind == "gone":
            assert self.manager is not None
            self.manager.destroy()
        elif kind == "invalidate":
            self.session.invalidate_entry(1, path)
        elif kind == "drop":
            node = next(node for node in self.machine.nodes if node.path() == path)
            self.machine.drop_pages(node.nodeid, lambda: None)
        elif kind == "expire":
            self.machine.tell_kernel([inval_pages(node.nodeid) for node in self.machine.nodes if node.path() == path], lambda: None)
        elif kind == "telling":
            return self.session.telling
        elif kind == "hand over":
            self.session.hand_over(lambda nd: None, lambda fd, state: self.handed.append(fd))
        elif kind == "handed":
            return bool(self.handed)
        elif kind == "helpers":
            helpers = self.session.waits.entries, self.session.waits.pages
            return [helper.process for helper in helpers if helper.ready]
        elif kind == "status":
            return [attrs.asdict(request) | {"first": os.fsdecode(request.first)} for request in self.machine.status()]
        elif kind == "statistics":
            return attrs.asdict(self.machine.statistics())
        elif kind == "messages":
            counts, self.memory.requests = self.memory.requests, {}
            return counts
        elif kind == "served":
            counts = dict(self.host_messages)
            self.host_messages.clear()
            return counts
        elif kind == "counters":
            return self.host_counters
        elif kind == "quiet":
            # As if nobody had changed anything, or been refused, for long.
            self.machine.delegated.quiet = self.machine.own_locks.pause = 0.0
        elif kind == "keep":
            # What is delegated goes when it is given back, and not after a while.
            self.machine.delegated.kept = 3600.0
        elif kind == "unmount":
            try:
                self.mount.detach(lazy=order.get("lazy") == "yes")
            except MountError as error:
                return {"errno": errno.errorcode.get(error.errno or 0, ""), "text": str(error)}
        return None


class Served:
    """A mount of another process. `path` leads into its mount namespace: system calls there go through the kernel to that process."""

    def __init__(self, mountpoint: Path, options: dict[str, object], directory: Path | None) -> None:
        self.mountpoint = mountpoint
        arguments = [] if directory is None else ["devices" if str(directory) == "-" else "hostfs", str(directory)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "resmgr.testing.fusemount", str(mountpoint), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ, FUSE_OPTIONS=json.dumps(options)),
        )
        ready = self.read()
        if ready != {"ready": True}:
            raise RuntimeError(f"mount not served: {ready}")
        self.path = Path(f"/proc/{self.process.pid}/root{mountpoint}")
        self.inside = ["nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt"]
        """Put before a command that is to run where the mount has its own name, `mountpoint`."""

    def read(self) -> dict[str, object]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "server ended"
        value: dict[str, object] = json.loads(line)
        return value

    def order(self, order: str, **fields: str) -> object:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"order": order, **fields}).encode() + b"\n")
        self.process.stdin.flush()
        return self.read()["result"]

    def fault(self, **fields: object) -> None:
        self.order("fault", fault=json.dumps(fields))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()


async def main(arguments: list[str]) -> None:
    mountpoint = arguments[0]
    told = json.loads(os.environ.get("FUSE_OPTIONS", "{}"))
    # As a kernel is that does not know them.
    machine.WANTED &= ~Init(told.pop("without", 0))
    if "permissions" in told:
        told["permissions"] = Permissions(told["permissions"])
    options = FuseOptions(**told)
    private_namespace(follow=False)
    async with open_dispatch() as dispatch:
        served = Server(dispatch, mountpoint, options, arguments[2] if len(arguments) > 2 else None)
        say({"ready": True})
        buffered = b""
        orders: list[dict[str, str]] = []

        def obey() -> None:
            say({"result": served.order(orders.pop())})

        os.set_blocking(0, False)
        while True:
            await trio.lowlevel.wait_readable(0)
            data = os.read(0, 65536)
            if not data:
                break
            buffered += data
            *lines, buffered = buffered.split(b"\n")
            for line in lines:
                orders.append(json.loads(line))
                dispatch.enter(obey)
        served.session.close()


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
