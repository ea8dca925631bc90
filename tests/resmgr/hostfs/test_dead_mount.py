"""Mounts whose FUSE server never answers: they keep their share of the worker threads, whatever is elsewhere goes on.

Two processes in a mount namespace of their own: the servers of the mounts, and the served tree with its client. They must be two, because a
thread that waits for a FUSE server cannot be killed, and its process keeps the descriptor that would have to be closed to let it go.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from resmgr.access import Policy
from resmgr.channel import ND_LOCAL, Credentials, Kernel, Pending
from resmgr.dispatch import Buffer
from resmgr.fuse import formats
from resmgr.fuse.mount import Mount, private_namespace
from resmgr.fuse.options import FuseOptions, Permissions
from resmgr.hostfs.manager import HostFs
from resmgr.iofunc.lanes import PATIENT_MAX, PATIENT_SUM
from resmgr.iomsg import READDIR_ATTRS, REQUEST, Connect, Entry, Io
from resmgr.iorequest import ConnectRequest, pack_readdir
from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.users import Accounts

MOUNTS = 12
NAMES = [f"dead{number}" for number in range(MOUNTS)]
EACH = 40
"""Requests for each dead mount: ten times its threads."""
OPTIONS = FuseOptions(permissions=Permissions.SERVER)


@pytest.mark.priv
def test_dead_mounts_do_not_take_the_threads_of_others(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, __file__, "servers", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, errors.decode()
    told = json.loads(output)
    print(told)
    assert told["one dead"]["running"] == PATIENT_MAX
    assert told["one dead"]["waiting"] == EACH - PATIENT_MAX
    assert told["all dead"]["running"] == PATIENT_SUM
    for state in ("one dead", "all dead"):
        assert max(told[state]["seconds"]) < 1.0, "a lookup, an fsync and a listing elsewhere"
    assert told["given up"] == {"answers": {str(-errno.EINTR): MOUNTS * EACH}, "running": PATIENT_SUM, "waiting": 0}
    assert told["after"] == {"running": 0, "waiting": 0}


def serve_nothing(fd: int, opened: threading.Event) -> None:
    """Answer INIT, so that the mount is one, and nothing else."""
    os.set_blocking(fd, True)
    opened.set()
    while True:
        try:
            request = os.read(fd, 1 << 21)
        except OSError:
            return
        header = formats.IN_HEADER.parse(request)
        if header[1] == formats.Opcode.INIT:
            reply = formats.INIT_OUT.pack(formats.MAJOR, formats.MINOR_MIN, 0, 0, 0, 0, 4096, 1, 0, 0, 0)
            os.write(fd, formats.OUT_HEADER.pack(16 + len(reply), 0, header[2]) + reply)


class Scene:
    """Hostfs over a tree with the dead mounts in it, and one client."""

    def __init__(self, dispatch: TrioDispatch, root: Path) -> None:
        self.dispatch = dispatch
        kernel = Kernel(dispatch, "n")
        self.fs = HostFs(kernel, Policy(Accounts(dispatch.now)), root=str(root))
        self.connection = kernel.connect(ND_LOCAL, 1, self.fs.channel.chid, Credentials(0, 0))
        self.stuck: list[Pending] = []
        self.answers: list[int] = []

    async def ask(self, *parts: bytes) -> tuple[int, bytes]:
        done = trio.Event()
        result: list[tuple[int, bytes]] = []

        def answered(status: int, reply: Buffer) -> None:
            result.append((status, bytes(reply)))
            done.set()

        def submit() -> None:
            self.connection.submit(parts, 1 << 16, answered)

        self.dispatch.enter(submit)
        with trio.fail_after(20):
            await done.wait()
        return result[0]

    async def inside(self, call: Callable[[], None]) -> None:
        done = trio.Event()

        def run() -> None:
            call()
            done.set()

        self.dispatch.enter(run)
        await done.wait()

    def storm(self, name: bytes) -> None:
        for _ in range(EACH):
            pending = self.connection.submit(
                (ConnectRequest(Connect.LOOKUP, 0, 0, name + b"/x").pack(),), 4096, lambda status, reply: self.answers.append(status)
            )
            assert pending is not None
            self.stuck.append(pending)

    def give_up(self) -> None:
        for pending in self.stuck:
            pending.unblock()

    def lanes(self) -> dict[str, int]:
        lanes = [device.lane for device in self.fs.devices._devices.values() if device.lane.patient]
        return {"running": sum(lane.running for lane in lanes), "waiting": sum(lane.waiting for lane in lanes)}

    async def others(self) -> list[float]:
        """What somebody who has nothing to do with the dead mounts waits: a lookup, an fsync (in a thread), a listing of the directory with
        the mounts in it."""
        seconds = []
        for path, kind in ((b"alive", None), (b"alive", Io.SYNC), (b"", Io.READDIR)):
            start = time.monotonic()
            status, reply = await self.ask(ConnectRequest(Connect.OPEN, os.O_RDONLY, 0, path).pack())
            assert status == 0
            if kind is not None:
                ocb = Entry.parse(reply).ocb
                status, _ = await self.ask(
                    pack_readdir(ocb, 0, 8192, READDIR_ATTRS) if kind is Io.READDIR else REQUEST.pack(kind, 0, 0, ocb)
                )
                assert status >= 0
            seconds.append(time.monotonic() - start)
        return seconds


def servers(root: Path) -> int:
    """Make and serve the mounts, and run the other process meanwhile. Its exit status."""
    private_namespace(follow=False)
    (root / "alive").write_bytes(b"x")
    for name in NAMES:
        (root / name).mkdir()
        fd = Mount(str(root / name), OPTIONS).attach()
        opened = threading.Event()
        threading.Thread(target=serve_nothing, args=(fd, opened), daemon=True).start()
        opened.wait()
    return subprocess.run([sys.executable, __file__, "client", str(root)], check=False).returncode


async def client(root: Path) -> None:
    told: dict[str, object] = {}
    async with open_dispatch() as dispatch:
        scene = Scene(dispatch, root)
        await scene.inside(lambda: scene.storm(NAMES[0].encode()))
        told["one dead"] = {**scene.lanes(), "seconds": await scene.others()}
        for name in NAMES[1:]:
            await scene.inside(partial(scene.storm, name.encode()))
        told["all dead"] = {**scene.lanes(), "seconds": await scene.others()}
        await scene.inside(scene.give_up)
        told["given up"] = {"answers": {status: scene.answers.count(status) for status in set(scene.answers)}, **scene.lanes()}
        await trio.run_process(["umount", "--lazy", "--force", *(str(root / name) for name in NAMES)])
        with trio.fail_after(10):
            while scene.lanes()["running"]:  # noqa: ASYNC110  # the threads come back one by one, without a call to us
                await trio.sleep(0.01)
        told["after"] = scene.lanes()
        await scene.inside(scene.fs.destroy)
    print(json.dumps(told), flush=True)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "servers":
        os._exit(servers(Path(sys.argv[2])))
    trio.run(client, Path(sys.argv[2]))
