"""What remote clients see and may do: exports, verbs, races, moves, caps and reaping."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable

import pytest

from resmgr.access import Export
from resmgr.errors import ResmgrError
from resmgr.hostfs.manager import HostFs
from resmgr.iomsg import SET_MODE, WANT_HANDLE, Connect, parse_dirents
from resmgr.iorequest import ConnectRequest, SetAttr
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import IoClient

_EXCHANGE = 2


def fails(code: int) -> pytest.RaisesExc[ResmgrError]:
    return pytest.raises(ResmgrError, match=os.strerror(code))


@pytest.fixture
def tree(host: HostDirectory) -> HostDirectory:
    for name in ("pub/sub", "pub/secret", "rw", "private", "deep/er/open", "deep/other", "drop"):
        (host.root / name).mkdir(parents=True)
    for name in ("pub/f", "pub/secret/s", "rw/f", "private/p", "deep/er/open/x", "deep/o", "drop/d"):
        (host.root / name).write_bytes(name.encode())
    host.fs.set_policy(
        host.policy(
            (
                Export("/pub", ["read"]),
                Export("/pub/secret", []),
                Export("/rw", ["read", "write"], nodes=["b"]),
                Export("/rw/ro", ["read"], nodes=["b"]),
                Export("/deep/er/open", ["read", "write"], roles=["ops"]),
                Export("/drop", ["write"]),
            )
        )
    )
    return host


def test_nothing_is_exported_by_default(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"")
    far = host.remote("b")
    assert far.names() == set()
    with fails(errno.EACCES):
        far.lookup(b"f")
    with fails(errno.EACCES):
        far.open(b"new", os.O_CREAT | os.O_WRONLY)
    with fails(errno.EROFS):
        far.setattr_path(b"", SetAttr(SET_MODE, 0))


def test_only_exports_and_the_way_to_them_exist(tree: HostDirectory) -> None:
    b, c, ops = tree.remote("b"), tree.remote("c"), tree.remote("d", roles=frozenset({"ops"}))
    assert tree.client().names() == {b"pub", b"rw", b"private", b"deep", b"drop"}
    assert b.names() == {b"pub", b"rw", b"drop"}
    assert c.names() == {b"pub", b"drop"}
    assert ops.names() == {b"pub", b"deep", b"drop"}
    assert ops.names(b"deep") == {b"er"}
    assert ops.names(b"deep/er") == {b"open"}
    assert ops.get(b"deep/er/open/x") == b"deep/er/open/x"
    assert c.names(b"pub") == {b"f", b"sub"}
    first = c.open(b"pub", os.O_DIRECTORY, prefetch=4096).data
    assert {entry.name for entry in parse_dirents(first, True)} == {b"f", b"sub"}
    # Hidden is not there; outside of the exports nobody looks whether anything is.
    for client, path, code in (
        (b, b"private/p", errno.EACCES),
        (b, b"private", errno.EACCES),
        (b, b"pub/secret", errno.ENOENT),
        (b, b"pub/secret/s", errno.ENOENT),
        (c, b"rw", errno.EACCES),
        (ops, b"deep/o", errno.EACCES),
        (b, b"x", errno.EACCES),
    ):
        with fails(code):
            client.lookup(path)
        with fails(code):
            client.open(path)
        with fails(code):
            client.name(Connect.READLINK, path)
    walked = ops.lookup(b"deep")
    with fails(errno.EACCES):
        ops.lookup(b"o", walked.handle)
    assert ops.lookup(b"er/open/x", walked.handle).attr is not None


def test_verbs_decide_what_may_be_done(tree: HostDirectory) -> None:
    b = tree.remote("b")
    assert b.get(b"pub/f") == b"pub/f"
    known = os.stat(tree.root / "pub" / "f")
    calls: list[Callable[[], object]] = [
        lambda: b.open(b"pub/f", os.O_RDWR),
        lambda: b.open(b"pub/f", os.O_RDONLY | os.O_TRUNC),
        lambda: b.open(b"pub/new", os.O_CREAT | os.O_RDONLY),
        lambda: b.name(Connect.MKDIR, b"pub/new"),
        lambda: b.name(Connect.UNLINK, b"pub/f"),
        lambda: b.connect(ConnectRequest(Connect.REMOVE, 0, 0, b"pub/f", ino=known.st_ino, ctime=known.st_ctime_ns)),
        lambda: b.symlink(b"pub/l", b"x"),
        lambda: b.setattr_path(b"pub/f", SetAttr(SET_MODE, 0o777)),
        lambda: b.two(Connect.RENAME, b"pub/f", b"pub/g"),
        lambda: b.two(Connect.LINK, b"rw/f", b"pub/g"),
        lambda: b.name(Connect.ACCESS, b"pub/f", mode=os.W_OK),
    ]
    for call in calls:
        with fails(errno.EROFS):
            call()
    assert b.open(b"pub/f", os.O_CREAT | os.O_RDONLY).ocb
    made = b.open(b"drop/new", os.O_CREAT | os.O_WRONLY)
    assert b.write(made.target, made.ocb, 0, b"x") == 1
    with fails(errno.EACCES):
        b.open(b"drop/new")
    with fails(errno.EACCES):
        b.open(b"drop", os.O_DIRECTORY)
    with fails(errno.EACCES):
        b.open(b"drop/new2", os.O_CREAT | os.O_RDWR)


def test_moves_and_links_never_widen_rights(tree: HostDirectory) -> None:
    b = tree.remote("b")
    (tree.root / "rw" / "ro").mkdir()
    (tree.root / "rw" / "ro" / "f").write_bytes(b"")
    with fails(errno.EROFS):
        b.two(Connect.RENAME, b"rw/ro/f", b"rw/g")
    with fails(errno.EXDEV):
        b.two(Connect.LINK, b"rw/ro/f", b"rw/g")
    with fails(errno.EXDEV):
        b.two(Connect.RENAME, b"drop/d", b"rw/d")
    with fails(errno.EXDEV):
        b.two(Connect.LINK, b"drop/d", b"rw/d")
    calls: list[Callable[[], object]] = [
        lambda: b.two(Connect.RENAME, b"rw/ro", b"rw/x"),
        lambda: b.two(Connect.RENAME, b"rw/f", b"rw/ro"),
        lambda: b.name(Connect.RMDIR, b"rw/ro"),
    ]
    for call in calls:
        with fails(errno.EBUSY):
            call()
    b.two(Connect.RENAME, b"rw/f", b"rw/g")
    with fails(errno.EACCES):
        b.two(Connect.RENAME, b"rw/g", b"private/g")


def test_moves_and_links_bring_no_device_and_no_set_id_bits_along(host: HostDirectory) -> None:
    for name in ("s", "n", "m"):
        (host.root / name).mkdir()
    for name in ("n/p", "m/x"):
        os.mkfifo(host.root / name)
    (host.root / "s" / "f").write_bytes(b"")
    (host.root / "s" / "f").chmod(0o4755)
    both = ["read", "write"]
    exports = (Export("/s", both, setuid=True, devices=["all"]), Export("/n", both, devices=[]), Export("/m", both, devices=["fifos"]))
    host.fs.set_policy(host.policy(exports))
    b = host.remote("b")
    for old, new in ((b"n/p", b"m/q"), (b"n/p", b"s/q"), (b"s/f", b"n/f")):
        for kind in (Connect.RENAME, Connect.LINK):
            with fails(errno.EXDEV):
                b.two(kind, old, new)
    held = b.lookup(b"n/p", flags=WANT_HANDLE)
    with fails(errno.EXDEV):
        b.two(Connect.LINK, b"", b"m/q", handle=held.handle)
    with fails(errno.EXDEV):
        b.two(Connect.RENAME, b"m/x", b"n/p", flags=_EXCHANGE)
    b.two(Connect.RENAME, b"n/p", b"n/q")


def test_what_an_export_begins_with_is_not_made_through_a_wider_one(tree: HostDirectory) -> None:
    b = tree.remote("b")
    makes: list[Callable[[], object]] = [
        lambda: b.name(Connect.MKDIR, b"rw/ro", mode=0o777),
        lambda: b.name(Connect.MKNOD, b"rw/ro", mode=0o777),
        lambda: b.symlink(b"rw/ro", b"/etc"),
        lambda: b.two(Connect.LINK, b"rw/f", b"rw/ro"),
        lambda: b.open(b"rw/ro", os.O_RDWR | os.O_CREAT | os.O_EXCL),
    ]
    for make in makes:
        with fails(errno.EBUSY):
            make()
    with fails(errno.EBUSY):
        b.open(b"rw/ro", os.O_RDONLY | os.O_CREAT)
    assert not os.path.lexists(tree.root / "rw" / "ro")
    (tree.root / "rw" / "ro").mkdir()
    for make in makes:
        with fails(errno.EEXIST):
            make()


def test_a_directory_moved_out_of_its_export_is_reached_by_handle_only(tree: HostDirectory) -> None:
    b = tree.remote("b")
    (tree.root / "rw" / "d").mkdir()
    held = b.lookup(b"rw/d")
    os.rename(tree.root / "rw" / "d", tree.root / "private" / "d")
    with fails(errno.ENOENT):
        b.lookup(b"rw/d")
    with fails(errno.EACCES):
        b.lookup(b"private/d")
    assert b.lookup(b"", held.handle).attr is not None
    for path in (b"..", b"../p"):
        with fails(errno.EBADMSG):
            b.lookup(path, held.handle)
    tree.fs.set_policy(tree.policy())
    with fails(errno.EBADF):
        b.lookup(b"", held.handle)


def test_what_leads_to_an_export_is_a_directory_or_nothing(host: HostDirectory) -> None:
    (host.root / "way").write_bytes(b"a file")
    (host.root / "link").symlink_to("/etc")
    host.fs.set_policy(host.policy((Export("/way/below", ["read"]), Export("/link/below", ["read"]))))
    b = host.remote("b")
    for name in (b"way", b"link"):
        for flags in (0, WANT_HANDLE):
            with fails(errno.ENOENT):
                b.lookup(name, flags=flags)
        with pytest.raises(ResmgrError):
            b.open(name)
        with fails(errno.ENOENT):
            b.name(Connect.READLINK, name)


def test_symbolic_links_are_told_and_never_followed(tree: HostDirectory) -> None:
    b = tree.remote("b")
    b.symlink(b"rw/out", b"../private")
    os.symlink("/etc", tree.root / "rw" / "abs")
    os.symlink("f", tree.root / "rw" / "in")
    for path in (b"rw/out/p", b"rw/abs/passwd"):
        with fails(errno.ELOOP):
            b.lookup(path)
        with fails(errno.ELOOP):
            b.open(path)
    for path in (b"rw/out", b"rw/abs", b"rw/in"):
        with fails(errno.ELOOP):
            b.open(path, os.O_WRONLY)
    with pytest.raises(ResmgrError):
        b.open(b"rw/out", os.O_DIRECTORY)
    link = b.lookup(b"rw/out", flags=WANT_HANDLE)
    with pytest.raises(ResmgrError):
        b.lookup(b"p", link.handle)
    assert bytes(b.name(Connect.READLINK, b"", link.handle)) == b"../private"
    assert bytes(b.name(Connect.READLINK, b"rw/abs")) == b"/etc"


@pytest.mark.parametrize("openat2", [True, False])
def test_swapping_a_directory_for_a_link_wins_nothing(tree: HostDirectory, openat2: bool) -> None:
    """A local accomplice exchanges a directory and a link to outside as fast as it can."""
    tree.fs.ops._openat2 = openat2
    outside, inside = tree.root / "private", tree.root / "rw" / "swap"
    inside.mkdir()
    (inside / "p").write_bytes(b"inside")
    (tree.root / "rw" / "link").symlink_to(outside)
    libc = ctypes.CDLL(None)
    stop = threading.Event()

    def swap() -> None:
        here = os.open(tree.root / "rw", os.O_RDONLY)
        while not stop.is_set():
            libc.renameat2(here, b"swap", here, b"link", 2)
        os.close(here)

    accomplice = threading.Thread(target=swap)
    accomplice.start()
    b = tree.remote("b")
    codes: set[int] = set()
    good = refused = 0
    try:
        while good < 200 or refused < 200:
            try:
                assert b.get(b"rw/swap/p") == b"inside"
                good += 1
            except ResmgrError as error:
                codes.add(error.errno or 0)
                refused += 1
            try:
                directory = b.lookup(b"rw/swap")
                if directory.handle:
                    assert b.lookup(b"p", directory.handle).attr is not None
                    b.close(directory.target, directory.handle)
            except ResmgrError as error:
                codes.add(error.errno or 0)
    finally:
        stop.set()
        accomplice.join()
    assert codes <= {errno.ELOOP, errno.ENOENT, errno.ENOTDIR}
    assert len(tree.fs.manager.table.handles) == 0


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_handles_die_with_their_client_and_belong_to_it(host: HostDirectory) -> None:
    (host.root / "d").mkdir()
    (host.root / "f").write_bytes(b"")
    before = descriptors()
    one, other = host.client(0), host.client(1234, 0)
    held = one.lookup(b"d")
    opened = one.open(b"f")
    for handle in (held.handle, opened.ocb):
        with fails(errno.EBADF):
            other.stat(held.target, handle)
        with fails(errno.EBADF):
            other.close(held.target, handle)
    assert descriptors() == before + 2
    one.close(held.target, held.handle)
    with fails(errno.EBADF):
        one.close(held.target, held.handle)
    one.close_all()
    assert descriptors() == before
    assert host.fs.counters["reaped"] == 1


def test_errors_leave_no_descriptor_behind(tree: HostDirectory) -> None:
    b = tree.remote("b")
    before = descriptors()
    calls: list[Callable[[], object]] = [
        lambda: b.open(b"rw/none/x"),
        lambda: b.open(b"pub/sub/none"),
        lambda: b.open(b"pub/f", os.O_RDWR),
        lambda: b.two(Connect.RENAME, b"pub/f", b"rw/none/x"),
        lambda: b.two(Connect.LINK, b"pub/sub/none", b"rw/x"),
        lambda: b.name(Connect.READLINK, b"pub/sub/none"),
        lambda: b.name(Connect.MKNOD, b"pub/sub/x", mode=0o170000),
        lambda: b.lookup(b"pub/f/x/y"),
    ]
    for _ in range(5):
        for call in calls:
            with pytest.raises(ResmgrError):
                call()
    assert descriptors() == before


def test_a_client_has_only_so_many_handles(host: HostDirectory) -> None:
    fs = HostFs(host.kernel, host.policy(), root=host.root.as_posix(), handles_per_client=5)
    client = IoClient(host.kernel, host.client().credentials, target=fs.target)
    other = IoClient(host.kernel, host.client().credentials, target=fs.target)
    held = [client.lookup(b"") for _ in range(5)]
    before = descriptors()
    for _ in range(3):
        with fails(errno.EMFILE):
            client.lookup(b"")
        with fails(errno.EMFILE):
            client.open(b"new", os.O_CREAT | os.O_WRONLY)
    assert not (host.root / "new").exists()
    assert descriptors() == before
    assert other.lookup(b"").handle
    client.close(held[0].target, *(entry.handle for entry in held))
    assert client.lookup(b"").handle
    assert fs.counters["handles_full"] == 6
    fs.destroy()


def test_one_node_cannot_take_all_handles(host: HostDirectory) -> None:
    host.fs.set_policy(host.policy((Export("/", ["read"]),)))
    host.fs.manager.table.handles_max = 10
    far, near = [host.remote("b", uid) for uid in (0, 1000, 1001)], host.client()
    for turn in range(5):
        far[turn % 3].lookup(b"")
    for client in far:
        with fails(errno.ENFILE):
            client.lookup(b"")
    for _ in range(5):
        near.lookup(b"")
    with fails(errno.ENFILE):
        near.lookup(b"")
    far[0].close_all()
    assert near.lookup(b"").handle


@pytest.mark.parametrize("local", [False, True])
def test_one_user_cannot_take_all_handles_of_a_node(host: HostDirectory, local: bool) -> None:
    host.root.chmod(0o755)
    host.fs.set_policy(host.policy((Export("/", ["read"]),)))
    host.fs.manager.table.handles_max = 24
    greedy, other = [host.client(uid) if local else host.remote("b", uid) for uid in (1000, 1001)]
    again = host.client(1000) if local else host.remote("b", 1000)
    for turn in range(9):
        (greedy, again)[turn % 2].lookup(b"")
    for client in (greedy, again):
        with fails(errno.EMFILE):
            client.lookup(b"")
    for _ in range(3):
        other.lookup(b"")
    again.close_all()
    assert greedy.lookup(b"").handle
    assert host.client(0).lookup(b"").handle, "root of this machine is never out"


@pytest.mark.priv
def test_a_full_file_system_is_told_exactly(host: HostDirectory) -> None:
    """A tiny tmpfs in a mount namespace of this thread's own: short write first, ENOSPC then."""
    libc = ctypes.CDLL(None, use_errno=True)
    failure: list[BaseException] = []

    def body() -> None:
        try:
            assert libc.unshare(0x00020000 | 0x00000200) == 0, os.strerror(ctypes.get_errno())
            assert libc.mount(b"none", b"/", None, 0x44000, None) == 0
            assert libc.mount(b"tiny", os.fsencode(host.root), b"tmpfs", 0, b"size=64k") == 0, os.strerror(ctypes.get_errno())
            fs = HostFs(host.kernel, host.policy(), root=host.root.as_posix())
            client = IoClient(host.kernel, host.client().credentials, target=fs.target)
            entry = client.open(b"f", os.O_CREAT | os.O_RDWR)
            assert client.write(entry.target, entry.ocb, 0, b"x" * 100_000) == 65536
            with fails(errno.ENOSPC):
                client.write(entry.target, entry.ocb, 65536, b"x")
            assert client.read(entry.target, entry.ocb, 0, 1 << 20) == b"x" * 65536
            assert client.statfs(b"").bfree == 0
            assert entry.attr is not None
            fs.destroy()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


@pytest.mark.priv
def test_inode_numbers_are_unique_across_devices(host: HostDirectory) -> None:
    fs = HostFs(host.kernel, host.policy(), root="/")
    client = IoClient(host.kernel, host.client().credentials, target=fs.target, run=host._run)
    proc, dev = client.lookup(b"proc").attr, client.lookup(b"dev").attr
    root = client.lookup(b"").attr
    assert proc is not None
    assert dev is not None
    assert root is not None
    assert root.ino == os.stat("/").st_ino
    assert proc.ino & 0xFFFFFFFF == os.stat("/proc").st_ino
    assert len({proc.ino, dev.ino, root.ino}) == 3
    assert proc.ino >> 48
    entry = client.open(b"proc/version")
    assert client.read(entry.target, entry.ocb, 0, 4096).startswith(b"Linux")
    fs.destroy()


def test_what_is_hidden_cannot_be_uncovered_by_moving_what_is_above(host: HostDirectory) -> None:
    (host.root / "rw/a/secret").mkdir(parents=True)
    (host.root / "rw/a/secret/s").write_bytes(b"secret")
    (host.root / "rw/b").mkdir()
    host.fs.set_policy(host.policy((Export("/rw", ["read", "write"]), Export("/rw/a/secret", []))))
    far = host.remote("b")
    for flags in (0, 1, 2):  # as it is, NOREPLACE, EXCHANGE
        for old, new in ((b"rw/a", b"rw/c"), (b"rw/b", b"rw/a")):
            with fails(errno.EBUSY):
                far.connect(ConnectRequest(Connect.RENAME, flags, 0, old, path2=new))
    attempts: list[Callable[[], object]] = [
        lambda: far.two(Connect.RENAME, b"rw/a/secret", b"rw/c"),
        lambda: far.two(Connect.RENAME, b"rw/b", b"rw/a/secret"),
        lambda: far.two(Connect.RENAME, b"rw/b", b"rw/a/secret/b"),
        lambda: far.two(Connect.LINK, b"rw/a/secret/s", b"rw/s"),
        lambda: far.name(Connect.MKDIR, b"rw/a/secret"),
        lambda: far.name(Connect.RMDIR, b"rw/a/secret"),
        lambda: far.symlink(b"rw/a/secret", b"b"),
        lambda: far.open(b"rw/a/secret", os.O_DIRECTORY),
        lambda: far.lookup(b"secret", far.lookup(b"rw/a").handle),
        lambda: far.setattr_path(b"rw/a/secret", SetAttr(SET_MODE, 0o777)),
        lambda: far.name(Connect.ACCESS, b"rw/a/secret", mode=0),
        lambda: far.statfs(b"rw/a/secret/s"),
    ]
    for attempt in attempts:
        with fails(errno.ENOENT):
            attempt()
    assert far.names(b"rw/a") == set()
    # A link is a text; whoever follows it asks again.
    far.symlink(b"rw/way", b"a/secret/s")
    with fails(errno.ELOOP):
        far.open(b"rw/way")


def test_hiding_holds_while_its_place_is_exchanged(host: HostDirectory) -> None:
    """A local accomplice exchanges the hidden directory and an open one: by name it is never there, whatever has the name."""
    for name in ("pub/secret", "pub/other"):
        (host.root / name).mkdir(parents=True)
        (host.root / name / "f").write_bytes(name.encode())
    host.fs.set_policy(host.policy((Export("/pub", ["read"]), Export("/pub/secret", []))))
    libc = ctypes.CDLL(None)
    stop = threading.Event()

    def swap() -> None:
        here = os.open(host.root / "pub", os.O_RDONLY)
        while not stop.is_set():
            libc.renameat2(here, b"secret", here, b"other", 2)
        os.close(here)

    accomplice = threading.Thread(target=swap)
    accomplice.start()
    far = host.remote("b")
    base = far.lookup(b"pub").handle
    try:
        for _ in range(200):
            for path, handle in ((b"pub/secret/f", 0), (b"secret", base), (b"secret/f", base)):
                with fails(errno.ENOENT):
                    far.lookup(path, handle)
            assert far.names(b"pub") <= {b"other"}
    finally:
        stop.set()
        accomplice.join()
