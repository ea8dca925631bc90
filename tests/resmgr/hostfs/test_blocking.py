"""What would block runs on worker threads, as the client, and nothing is closed under it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable

import pytest
import trio

from resmgr.channel import ND_LOCAL, Credentials, Kernel
from resmgr.errors import ResmgrError
from resmgr.handlelist import pack_close
from resmgr.hostfs.device import FOREVER, REST, SLOW, Device
from resmgr.hostfs.manager import HostFs
from resmgr.iofunc.lanes import Lanes
from resmgr.iomsg import Connect, Entry, Io
from resmgr.iorequest import ConnectRequest, pack_read, pack_write
from resmgr.runner import open_dispatch
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.virtual import VirtualDispatch


def test_a_cold_read_is_right_and_not_inline(host: HostDirectory) -> None:
    data = random.Random(1).randbytes(1 << 20)
    path = host.root / "cold"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    client = host.client()
    entry = client.open(b"cold", prefetch=4096)
    assert bytes(entry.data) in (b"", data[:4096])
    assert client.read(entry.target, entry.ocb, 0, 1 << 20) == data
    assert host.fs.counters["threaded"] == host.fs.counters["read_blocked"]
    before = host.fs.counters["threaded"]
    assert client.read(entry.target, entry.ocb, 5, 1 << 20) == data[5:]
    assert host.fs.counters["threaded"] == before, "warm now"


def test_a_device_that_was_slow_is_left_alone_for_a_while() -> None:
    lanes = Lanes(VirtualDispatch(1))
    device = Device(1, b"ext4", 0, lanes)
    device.took(SLOW / 2, 10.0)
    assert device.blocking_until <= 10.0
    device.took(SLOW * 2, 10.0, SLOW * 2)
    assert device.blocking_until <= 10.0, "it was expected to take that long"
    device.took(SLOW * 2, 10.0)
    assert device.blocking_until == 10.0 + REST
    pages = Device(1, b"tmpfs", 0, lanes)
    pages.took(10.0, 10.0)
    assert pages.blocking_until == 0.0, "it has nothing to wait for"
    for kind in (b"nfs4", b"fuse.sshfs", b"cifs", b"9p"):
        assert Device(1, kind, 0, lanes).blocking_until == FOREVER


def test_every_operation_on_a_network_file_system_is_threaded(host: HostDirectory) -> None:
    host.fs.devices.root.blocking_until = FOREVER
    client = host.client()
    made = client.open(b"f", os.O_CREAT | os.O_RDWR)
    for call in (
        lambda: client.write(made.target, made.ocb, 0, b"hello"),
        lambda: client.read(made.target, made.ocb, 0, 5),
        lambda: client.stat(made.target, made.ocb),
        lambda: client.lookup(b"f"),
        lambda: client.two(Connect.LINK, b"f", b"g"),
        lambda: client.two(Connect.RENAME, b"f", b"h"),
        lambda: client.io(made.target, Io.STATFS, made.ocb),
        lambda: client.space(made.target, made.ocb, 0, 0, 10),
    ):
        before = host.fs.counters["threaded"]
        one: Callable[[], object] = call
        one()
        assert host.fs.counters["threaded"] == before + 1
    assert client.names() == {b"g", b"h"}
    with pytest.raises(ResmgrError) as caught:
        client.open(b"none")
    assert caught.value.errno == errno.ENOENT


def test_a_file_of_a_network_file_system_is_closed_in_its_turn(host: HostDirectory) -> None:
    """close(2) may wait for the server: not in the dispatch."""
    root = host.fs.devices.root
    root.blocking_until = FOREVER
    root.lane.patient = True
    client = host.client()
    made = client.open(b"f", os.O_CREAT | os.O_RDWR)
    before = len(os.listdir("/proc/self/fd"))
    began = root.lane.begun
    client.close(made.target, made.ocb, made.handle)
    host.dispatch.run_for(1.0)
    assert root.lane.begun == began + 1
    assert len(os.listdir("/proc/self/fd")) < before


def user_ids() -> set[tuple[str, ...]]:
    """Real, effective, saved and file-system uid of every thread of this process."""
    found = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/status") as status:
                found.add(tuple(next(line for line in status if line.startswith("Uid:")).split()[1:]))
        except OSError:
            continue
    return found


@pytest.mark.priv
async def test_on_real_threads(host: HostDirectory) -> None:
    """Many requests at once on a slow device: right answers, the client's identity, no descriptor left, closing waits for its users."""
    host.root.chmod(0o777)
    (host.root / "secret").write_bytes(b"root's")
    (host.root / "secret").chmod(0o600)
    before = len(os.listdir("/proc/self/fd"))
    async with open_dispatch() as dispatch:
        opened = len(os.listdir("/proc/self/fd"))
        kernel = Kernel(dispatch, "n")
        fs = HostFs(kernel, host.policy(), root=str(host.root))
        fs.devices.root.blocking_until = FOREVER
        connections = [kernel.connect(ND_LOCAL, 1, fs.channel.chid, Credentials(uid, uid)) for uid in (1234, 1235)]
        results: list[tuple[int, int, bytes]] = []
        done = trio.Event()
        wanted = 200

        def submit(which: int, parts: tuple[bytes, ...], then: Callable[[int, bytes], None]) -> None:
            connections[which].submit(parts, 1 << 20, lambda status, reply: then(status, bytes(reply)))

        def finish(uid: int, status: int, data: bytes) -> None:
            results.append((uid, status, data))
            if len(results) == wanted:
                done.set()

        def one(number: int) -> None:
            which = number % 2
            uid = 1234 + which
            name = b"f%d" % number

            def made(status: int, reply: bytes) -> None:
                entry = Entry.parse(reply)
                assert entry.attr is not None
                assert entry.attr.uid == uid
                text = name * 100

                def written(status: int, reply: bytes) -> None:
                    assert status == len(text)
                    submit(which, (pack_read(entry.ocb, 0, 10_000),), lambda status, reply: finish(uid, status, reply))
                    # Closed while the read is on a thread: the read still has its descriptor.
                    submit(which, (pack_close(entry.ocb),), lambda status, reply: None)

                submit(which, (pack_write(entry.ocb, 0, len(text)), text), written)

            submit(which, (ConnectRequest(Connect.OPEN, os.O_CREAT | os.O_RDWR, 0, name, 0o600).pack(),), made)

        def start() -> None:
            for number in range(wanted):
                one(number)

        dispatch.enter(start)
        with trio.fail_after(20):
            await done.wait()
        assert sorted(data for _, _, data in results) == sorted(b"f%d" % number * 100 for number in range(wanted))
        refused: list[int] = []
        again = trio.Event()

        def denied(status: int, reply: bytes) -> None:
            refused.append(status)
            again.set()

        dispatch.enter(lambda: submit(0, (ConnectRequest(Connect.OPEN, 0, 0, b"secret").pack(),), denied))
        with trio.fail_after(5):
            await again.wait()
        assert refused == [-errno.EACCES]
        fs.destroy()
        assert len(os.listdir("/proc/self/fd")) == opened
    assert len(os.listdir("/proc/self/fd")) == before
    assert user_ids() == {("0", "0", "0", "0")}
