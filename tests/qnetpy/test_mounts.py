"""The mounts of a node that are made and ended while it runs. What the kernel would see of them: tests/cluster."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping

import trio

from qnetpy.handed import Handed
from qnetpy.netfs.mount import NET_OPTIONS
from qnetpy.netfs.mounts import NetMounts
from resmgr.channel import Kernel
from resmgr.fuse.mount import Mount
from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.testing.memfs import MemFs
from resmgr.users import Accounts


class SlowMount(Mount):
    """Its mountpoint lies where only the dispatch can answer."""

    def __init__(self, point: str) -> None:
        super().__init__(point, NET_OPTIONS)
        self.device = (0, 50)
        self.answered = threading.Event()
        self.gone = False

    def detach(self, *, lazy: bool = True, abort: bool = False) -> None:
        assert self.answered.wait(5.0), "the dispatch waits for itself"
        self.gone = True


def made(dispatch: TrioDispatch) -> NetMounts:
    kernel = Kernel(dispatch, "here")
    return NetMounts(dispatch, kernel, Accounts(dispatch.now), MemFs(kernel).target, lambda: None)


async def test_a_mount_in_another_is_unmounted_while_that_is_served_and_told_as_ended() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    async with open_dispatch() as dispatch:
        mounts = made(dispatch)
        mount = SlowMount("/net/inner")
        reasons: list[str] = []
        answers: list[Mapping[str, object]] = []
        done = trio.Event()

        def answer(told: Mapping[str, object]) -> None:
            answers.append(told)
            done.set()

        mounts.serve(mount, near.detach(), reasons.append)
        mounts.umount({"point": "/net/inner"}, answer)
        mounts.umount({"point": "/net/inner"}, answers.append)
        assert answers == [{"error": "/net/inner is being unmounted already"}]
        answers.clear()
        assert not mount.gone
        assert [fact["point"] for fact in mounts.facts()] == ["/net/inner"]
        mount.answered.set()
        with trio.fail_after(5):
            await done.wait()
        assert mount.gone
        assert (answers, reasons, mounts.facts()) == ([{"point": "/net/inner"}], ["unmounted"], [])
    far.close()


async def test_what_the_kernel_unmounts_leaves_nothing_behind() -> None:
    def left() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), sum(thread.name == "mount-copies" for thread in threading.enumerate())

    near, far = socket.socketpair()
    near.setblocking(False)
    device = near.detach()
    async with open_dispatch() as dispatch:
        mounts = made(dispatch)
        descriptors, threads = left()
        ended = trio.Event()
        mount = mounts.serve(Mount("/net", NET_OPTIONS), device, lambda reason: ended.set())
        mount.machine.on_end("unmounted")
        try:
            with trio.fail_after(5):
                await ended.wait()
                # The processes that tell the kernel of changes are just being started.
                while left() != (descriptors - 1, threads):
                    await trio.lowlevel.checkpoint()
        finally:
            far.close()


async def test_what_is_being_unmounted_is_not_handed_over_nor_waited_for() -> None:
    near, far = socket.socketpair()
    other, rest = socket.socketpair()
    async with open_dispatch() as dispatch:
        mounts = made(dispatch)
        inner, net = SlowMount("/net/inner"), SlowMount("/net")
        for mount, end in (inner, near), (net, other):
            end.setblocking(False)
            mounts.serve(mount, end.detach(), lambda reason: None)
        answers: list[Mapping[str, object]] = []
        given: list[object] = []
        done, over = trio.Event(), trio.Event()

        def answer(told: Mapping[str, object]) -> None:
            answers.append(told)
            done.set()

        def handed(told: list[Handed]) -> None:
            for one in told:
                given.append(one.point)
                os.close(one.fd)
            over.set()

        assert mounts.names() == 2, "their roots"
        mounts.umount({"point": "/net/inner"}, answer)
        mounts.hand_over(lambda nd: None, handed)
        mounts.umount({"point": "/net"}, answers.append)
        inner.answered.set()
        with trio.fail_after(5):
            await over.wait()
            await done.wait()
        assert given == ["/net"]
        assert answers == [{"error": "the node ends"}, {"point": "/net/inner"}]
    far.close()
    rest.close()
