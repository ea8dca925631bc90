"""A program for the tests of real mounts: serves a manager on a mountpoint of its own mount namespace, and takes orders on its input.

    serve_mount.py MOUNTPOINT [hostfs DIRECTORY]

One JSON object per line, in both directions. It prints {"ready": true} when the mount is there, {"ended": REASON} when the kernel ended it.
"""

from __future__ import annotations

import errno
import json
import os
import sys

import attrs
import trio

from resmgr.access import Policy, UserRule
from resmgr.channel import Kernel
from resmgr.fuse.machine import Machine
from resmgr.fuse.mount import Mount, MountError, private_namespace
from resmgr.fuse.options import FuseOptions
from resmgr.fuse.servers import KernelResolver
from resmgr.fuse.session import Session
from resmgr.hostfs.manager import HostFs
from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.testing.memfs import Fault, MemFs
from resmgr.users import Accounts


def say(value: dict[str, object]) -> None:
    print(json.dumps(value), flush=True)


class Served:
    """The mounted manager and what the orders do with it."""

    def __init__(self, dispatch: TrioDispatch, mountpoint: str, options: FuseOptions, directory: str | None) -> None:
        self.dispatch = dispatch
        self.kernel = Kernel(dispatch, "test")
        self.memory = MemFs(self.kernel)
        target = self.memory.target
        if directory is not None:
            policy = Policy(Accounts(dispatch.now), users=(UserRule("identity", root="root"),), exports=(), grants=())
            target = HostFs(self.kernel, policy, root=directory).target
        self.machine = Machine(dispatch, KernelResolver(self.kernel), target, options, mountpoint.encode())
        self.mount = Mount(mountpoint, options)
        self.session = Session(dispatch, self.mount.attach(), self.machine, lambda reason: say({"ended": reason}))
        self.session.start()

    def order(self, order: dict[str, str]) -> object:
        kind = order["order"]
        path = order.get("path", "").encode()
        if kind == "write":
            self.memory.add(path, order["data"].encode())
        elif kind == "remove":
            self.memory.remove(path)
        elif kind == "fault":
            fields = json.loads(order["fault"])
            fields["name"] = fields["name"].encode() if fields.get("name") else None
            self.memory.faults.append(Fault(**fields))
        elif kind == "heal":
            self.memory.faults.clear()
        elif kind == "restart":
            channel = self.memory.manager.channel
            old = self.memory.root
            self.memory.destroy()
            self.memory = MemFs(self.kernel, chid=channel.chid)
            self.memory.root = old
        elif kind == "destroy":
            self.memory.destroy()
        elif kind == "status":
            return [attrs.asdict(request) for request in self.machine.status()]
        elif kind == "statistics":
            return attrs.asdict(self.machine.statistics())
        elif kind == "messages":
            counts, self.memory.requests = self.memory.requests, {}
            return counts
        elif kind == "unmount":
            try:
                self.mount.detach(lazy=order.get("lazy") == "yes")
            except MountError as error:
                return {"errno": errno.errorcode.get(error.errno or 0, ""), "text": str(error)}
        return None


async def main(arguments: list[str]) -> None:
    mountpoint = arguments[0]
    options = FuseOptions(**json.loads(os.environ.get("FUSE_OPTIONS", "{}")))
    private_namespace(follow=False)
    async with open_dispatch() as dispatch:
        served = Served(dispatch, mountpoint, options, arguments[2] if len(arguments) > 2 else None)
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
