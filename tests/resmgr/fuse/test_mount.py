"""Real mounts: programs of this machine on a file system that another process serves through /dev/fuse."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resmgr.fuse.mount import parse_mountinfo
from resmgr.testing.fusemount import Served
from tests.resmgr.waiting import until

pytestmark = pytest.mark.priv

Serve = Callable[..., Served]


@pytest.fixture(params=["memfs", "hostfs"])
def mount(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Served:
    """A mount of either file system."""
    if request.param == "memfs":
        return serve()
    directory = tmp_path / "served"
    directory.mkdir()
    return serve(directory)


def code_of(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def test_cp_and_checksum(mount: Served, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(5_000_001)
    (tmp_path / "source").write_bytes(data)

    subprocess.run(["cp", tmp_path / "source", mount.path / "copy"], check=True)
    subprocess.run(["cp", mount.path / "copy", tmp_path / "back"], check=True)

    assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_tar_out_of_it_and_into_it(mount: Served, tmp_path: Path) -> None:
    tree = mount.path / "tree"
    (tree / "sub/deep").mkdir(parents=True)
    (tree / "sub/deep/file").write_bytes(b"content")
    (tree / "link").symlink_to("sub/deep/file")
    os.link(tree / "sub/deep/file", tree / "hard")
    os.utime(tree / "sub", ns=(10**18, 10**18 + 5))
    os.chmod(tree / "hard", 0o640)

    subprocess.run(["tar", "-C", mount.path, "-cf", tmp_path / "tree.tar", "tree"], check=True)
    (mount.path / "again").mkdir()
    subprocess.run(["tar", "-C", mount.path / "again", "-xf", tmp_path / "tree.tar"], check=True)

    again = mount.path / "again/tree"
    assert (again / "link").read_bytes() == b"content"
    assert os.stat(again / "hard").st_ino == os.stat(again / "sub/deep/file").st_ino
    assert os.stat(again / "hard").st_mode & 0o777 == 0o640
    with tarfile.open(tmp_path / "tree.tar") as archive:
        assert {member.name for member in archive.getmembers()} == {
            "tree", "tree/sub", "tree/sub/deep", "tree/sub/deep/file", "tree/link", "tree/hard",
        }  # fmt: skip


def test_what_git_does(mount: Served) -> None:
    """Exclusive lock files, rename over, mmap of an index, many small objects, fsync."""
    git = mount.path / "repo"
    git.mkdir()
    environment = dict(os.environ, HOME=str(mount.mountpoint), GIT_CONFIG_NOSYSTEM="1")

    def run(*arguments: str) -> str:
        command = [*mount.inside, "git", "-C", str(mount.mountpoint / "repo"), "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout

    run("init", "-q", ".")
    for number in range(20):
        (git / f"file{number}").write_text(f"{number}\n" * 100)
    run("add", ".")
    run("commit", "-q", "-m", "one")
    (git / "file3").write_text("changed\n")
    run("commit", "-q", "-a", "-m", "two")
    run("gc", "-q")

    assert run("status", "--porcelain") == ""
    assert run("show", "HEAD~1:file3") == "3\n" * 100
    assert "dangling" not in run("fsck", "--full")


def test_mmap_reads_and_shared_writes(mount: Served) -> None:
    path = mount.path / "mapped"
    path.write_bytes(b"a" * 10000)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        assert memory[5000:5003] == b"aaa"
        memory[5000:5003] = b"bcd"
        memory.flush()

    assert path.read_bytes()[4999:5004] == b"abcda"


def test_unlinked_file_stays_open(mount: Served) -> None:
    path = mount.path / "gone"
    with open(path, "w+b") as file:
        file.write(b"still here")
        file.flush()
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        os.ftruncate(file.fileno(), 5)
        file.seek(0)
        assert file.read() == b"still"


def test_rename_over_an_open_file(mount: Served) -> None:
    old, new = mount.path / "old", mount.path / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new!")
    with open(old, "rb") as file:
        os.rename(new, old)
        assert file.read() == b"old"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert old.read_bytes() == b"new!"
    assert not new.exists()


def test_directory_of_10000_entries(mount: Served) -> None:
    directory = mount.path / "many"
    directory.mkdir()
    expected = {f"entry-{number:05}" for number in range(10000)}
    for name in expected:
        os.mknod(directory / name)

    assert set(os.listdir(directory)) == expected
    found = {entry.name: entry.stat().st_size for entry in os.scandir(directory)}
    assert found == dict.fromkeys(expected, 0)
    subprocess.run(["rm", "-r", directory], check=True)
    assert os.listdir(mount.path) == []


def test_fifos_and_sockets_are_made_and_moved(serve: Serve, tmp_path: Path) -> None:
    """A FIFO is shown as a file (docs/decisions/fuse-devices.md), but the kernel wants to hear that it made one."""
    directory, source = tmp_path / "served", tmp_path / "source"
    directory.mkdir()
    source.mkdir()
    mount = serve(directory)
    os.mkfifo(source / "fifo", 0o640)
    subprocess.run(["cp", "-a", source, mount.path / "copy"], check=True)
    assert stat.S_ISFIFO((directory / "copy/fifo").stat().st_mode)
    shown = (mount.path / "copy/fifo").stat()
    assert stat.S_ISREG(shown.st_mode)
    assert shown.st_mode & 0o777 == 0o640

    os.mkfifo(mount.path / "made")
    os.rename(mount.path / "made", mount.path / "moved")
    os.mknod(mount.path / "socket", stat.S_IFSOCK | 0o600)
    assert stat.S_ISSOCK((mount.path / "socket").stat().st_mode)
    assert sorted(os.listdir(directory)) == ["copy", "moved", "socket"]
    os.unlink(mount.path / "moved")
    os.mkfifo(mount.path / "moved")
    os.unlink(mount.path / "moved")


def test_append_from_two_descriptors(mount: Served) -> None:
    path = mount.path / "log"
    first = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    second = os.open(path, os.O_WRONLY | os.O_APPEND)
    for _ in range(10):
        os.write(first, b"first\n")
        os.write(second, b"second\n")
    os.close(first)
    os.close(second)

    assert path.read_bytes() == b"first\nsecond\n" * 10


def test_errors_and_odd_names(mount: Served) -> None:
    name = os.fsencode(mount.path) + b"/\xff\xfe \n name"
    with open(name, "wb") as file:
        file.write(b"x")
    assert os.listdir(os.fsencode(mount.path)) == [b"\xff\xfe \n name"]
    assert code_of(lambda: os.rmdir(name)) == errno.ENOTDIR
    assert code_of(lambda: os.mkdir(name)) == errno.EEXIST
    assert code_of(lambda: os.open(mount.path / "none", os.O_RDONLY)) == errno.ENOENT
    assert code_of(lambda: os.open(mount.path / ("x" * 256), os.O_RDONLY | os.O_CREAT)) == errno.ENAMETOOLONG
    assert code_of(lambda: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)) == errno.EEXIST
    assert code_of(lambda: os.getxattr(name, "user.x")) in (errno.EOPNOTSUPP, errno.ENODATA)
    assert os.statvfs(mount.path).f_namemax == 255
    os.truncate(name, 100)
    assert os.stat(name).st_size == 100


def test_open_truncates_and_executes(mount: Served) -> None:
    script = mount.path / "script"
    script.write_text("#!/bin/sh\necho first\n")
    script.chmod(0o755)
    assert subprocess.run([script], check=True, capture_output=True).stdout == b"first\n"
    script.write_text("#!/bin/sh\necho 2\n")
    assert subprocess.run([script], check=True, capture_output=True).stdout == b"2\n"


def test_large_file_in_parallel_readers(mount: Served) -> None:
    data = random.Random(2).randbytes(8 << 20)
    path = mount.path / "large"
    path.write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()

    readers = [subprocess.Popen(["sha256sum", path], stdout=subprocess.PIPE, text=True) for _ in range(3)]

    for reader in readers:
        output, _ = reader.communicate(timeout=120)
        assert output.split()[0] == expected


# ---- changes by others


def test_close_to_open(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="f", data="first")
    assert (mount.path / "f").read_text() == "first"

    # Shorter, longer, same length: whoever opens sees it, however long the kernel may believe its attributes.
    for text in ("2", "much longer than before", "much longer than befoRe", ""):
        mount.order("write", path="f", data=text)
        assert (mount.path / "f").read_text() == text
    assert not os.path.exists(mount.path / "new")
    mount.order("write", path="new", data="x")
    until((mount.path / "new").exists, 5.0)
    assert (mount.path / "new").read_text() == "x"


def test_name_that_is_taken_back(serve: Serve) -> None:
    """What a node that went down needs: the kernel is told, whatever it was allowed to believe."""
    mount = serve(entry_valid=1000.0, attr_valid=1000.0)
    mount.order("write", path="node", data="x")
    os.stat(mount.path / "node")
    mount.order("remove", path="node")
    assert code_of(lambda: os.stat(mount.path / "node")) == 0

    mount.order("invalidate", path="node")

    until(lambda: code_of(lambda: os.stat(mount.path / "node")) == errno.ENOENT)


def test_second_open_needs_no_data(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="f", data="x" * 100_000)
    assert len((mount.path / "f").read_bytes()) == 100_000
    mount.order("messages")

    assert len((mount.path / "f").read_bytes()) == 100_000

    counts = mount.order("messages")
    assert isinstance(counts, dict)
    assert counts.get("read", 0) == 0


def test_small_file_costs_one_message_beyond_its_lookup(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="f", data="hello")
    os.stat(mount.path / "f")
    mount.order("messages")

    assert (mount.path / "f").read_text() == "hello"

    counts = mount.order("messages")
    assert isinstance(counts, dict)
    assert counts == {"open": 1}


def test_file_without_a_size_can_be_read(serve: Serve, tmp_path: Path) -> None:
    """What /proc has: hostfs serves it with size 0."""
    mount = serve(Path("/proc"))

    assert (mount.path / "version").read_text().startswith("Linux version")


# ---- hangs, death, restart


@pytest.mark.parametrize("operation", ["open", "read", "lookup"])
@pytest.mark.parametrize("deaf", [False, True])
def test_interrupt_of_a_hung_server_returns_at_once(serve: Serve, operation: str, deaf: bool) -> None:
    mount = serve(prefetch=0)
    mount.order("write", path="f", data="x")
    mount.fault(operation=operation, name="f", hang=True, deaf=deaf)
    cat = subprocess.Popen(["cat", mount.path / "f"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: bool(mount.order("status")))

    began = time.monotonic()
    cat.send_signal(signal.SIGINT)
    cat.wait(30)

    assert time.monotonic() - began < (5.0 if deaf else 0.9)
    assert cat.returncode == -signal.SIGINT


def test_write_to_a_hung_server_can_be_killed(serve: Serve) -> None:
    mount = serve()
    mount.fault(operation="write", hang=True)
    writer = subprocess.Popen(["dd", "if=/dev/zero", f"of={mount.path}/f", "bs=1M", "count=4"], stderr=subprocess.DEVNULL)
    until(lambda: bool(mount.order("status")))

    began = time.monotonic()
    writer.kill()
    writer.wait(30)

    # Its end closes the file, which waits for what was written, but not for ever.
    assert time.monotonic() - began < 2


def test_signal_that_a_program_handles_is_an_eintr_only_if_it_lasts(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="f", data="x")
    mount.fault(operation="open", delay=0.03)
    program = f"""
import os, signal
signal.signal(signal.SIGALRM, lambda *arguments: None)
signal.setitimer(signal.ITIMER_REAL, 0.01)
os.close(os.open({str(mount.path / "f")!r}, 0))
"""

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_killed_server_is_enotconn_at_once(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="f", data="x")
    directory = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
    mount.fault(operation="open", hang=True)
    cat = subprocess.Popen(["cat", f"/proc/self/fd/{directory}/f"], pass_fds=(directory,), stderr=subprocess.PIPE)
    until(lambda: bool(mount.order("status")))

    mount.kill()

    _, message = cat.communicate(timeout=30)
    assert cat.returncode == 1
    assert b"connect" in message.lower() or b"abort" in message.lower()
    assert code_of(lambda: os.stat("other", dir_fd=directory)) in (errno.ENOTCONN, errno.ECONNABORTED)
    os.close(directory)


def test_restarted_manager_needs_no_remount(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="d/e/f", data="before")
    directory = os.open(mount.path / "d/e", os.O_RDONLY | os.O_DIRECTORY)
    file = os.open(mount.path / "d/e/f", os.O_RDWR)
    mount.order("restart")

    assert code_of(lambda: os.pwrite(file, b"x", 0)) == errno.ESTALE
    assert (mount.path / "d/e/f").read_text() == "before"
    assert os.stat("f", dir_fd=directory).st_size == 6
    assert os.listdir(f"/proc/self/fd/{directory}") == ["f"]
    os.close(file)
    os.close(directory)


def test_manager_that_is_gone_is_an_error_not_a_hang(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="d/f", data="x")
    assert (mount.path / "d/f").read_text() == "x"
    mount.order("destroy")

    began = time.monotonic()
    assert code_of(lambda: os.listdir(mount.path / "d")) != 0
    assert time.monotonic() - began < 1


def test_down_node_is_told_as_it_is(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="d/f", data="x")
    mount.fault(operation="*", code=errno.EHOSTDOWN)

    assert code_of(lambda: os.stat(mount.path / "d/f")) == errno.EHOSTDOWN
    mount.order("heal")
    assert (mount.path / "d/f").read_text() == "x"


# ---- mounting and unmounting


def test_unmount_while_busy(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="f", data="x" * 100)
    file = os.open(mount.path / "f", os.O_RDWR)

    refused = mount.order("unmount")
    assert isinstance(refused, dict)
    assert refused["errno"] == "EBUSY"
    assert "busy" in refused["text"]
    assert (mount.path / "f").exists()

    # Lazily it goes, and what is open goes on.
    mount.order("unmount", lazy="yes")
    assert not (mount.path / "f").exists()
    assert os.pread(file, 10, 0) == b"x" * 10
    os.close(file)
    assert mount.read() == {"ended": "unmounted"}


def test_clean_unmount_ends_the_session(serve: Serve) -> None:
    mount = serve()
    os.listdir(mount.path)

    subprocess.run([*mount.inside, "umount", str(mount.mountpoint)], check=True)

    assert mount.read() == {"ended": "unmounted"}


def run_isolated(code: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Python *code* in a mount namespace of its own."""
    command = [*(prefix or ("unshare", "-m")), sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[3])


def test_stale_mount_is_replaced(tmp_path: Path) -> None:
    code = f"""
import os
from resmgr.fuse.mount import Mount, MountError
from resmgr.fuse.options import FuseOptions
place = {str(tmp_path)!r}
os.close(Mount(place, FuseOptions()).attach())
try:
    os.stat(place)
except OSError as error:
    print(error.strerror)
mount = Mount(place, FuseOptions())
fd = mount.attach()
print(sum(place in line for line in open("/proc/self/mountinfo")))
mount.detach()
print(sum(place in line for line in open("/proc/self/mountinfo")))
"""
    result = run_isolated(code)

    assert result.stdout.splitlines() == ["Transport endpoint is not connected", "1", "0"], result.stderr


def test_a_mount_that_is_known_to_be_left_is_aborted_and_not_looked_at(tmp_path: Path) -> None:
    """Somebody still holds its connection, and answers nothing: a look at it would wait."""
    code = f"""
import os
from resmgr.fuse.mount import Mount, MountError
from resmgr.fuse.options import FuseOptions
place = {str(tmp_path)!r}
old = Mount(place, FuseOptions())
held = old.attach()
os.read(held, 1 << 21)
try:
    Mount(place, FuseOptions()).attach()
except MountError as error:
    print(error.strerror)
mount = Mount(place, FuseOptions())
fd = mount.attach({{old.device}})
try:
    os.read(held, 1 << 21)
except OSError as error:
    print(error.strerror)
print(sum(place in line for line in open("/proc/self/mountinfo")))
os.close(fd)
mount.detach()
"""
    said = run_isolated(code).stdout.splitlines()

    assert said == [
        f"{tmp_path} is mounted already and its server says nothing; umount -f {tmp_path}, if nobody serves it any more",
        "No such device",
        "1",
    ]


def test_what_waits_in_the_kernel_ends_with_a_mount_that_is_not_served_any_more(tmp_path: Path) -> None:
    """A thread of ours may be there, and then the connection outlives the session's descriptor."""
    code = f"""
import os, subprocess, sys, time
from resmgr.fuse.mount import Mount
from resmgr.fuse.options import FuseOptions
place = {str(tmp_path)!r}
mount = Mount(place, FuseOptions())
fd = mount.attach()
held = os.dup(fd)
os.set_blocking(held, True)
os.read(held, 1 << 21)
look = "import os, sys; print(flush=True); os.stat(sys.argv[1])"
waits = subprocess.Popen([sys.executable, "-c", look, place], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
waits.stdout.readline()
while open(f"/proc/{{waits.pid}}/stat").read().rpartition(")")[2].split()[0] not in "SD":
    time.sleep(0.01)
os.close(fd)
print(waits.poll())
mount.detach(abort=True)
print(waits.communicate()[1].splitlines()[-1].partition(":")[0])
"""
    said = run_isolated(code)

    assert said.stdout.splitlines() == ["None", "OSError"], said.stderr


def test_mount_in_the_namespace_that_the_daemon_left(tmp_path: Path) -> None:
    """The daemon does not see its own mount, its old namespace does, and read-ahead is raised."""
    code = f"""
import os, subprocess
from resmgr.fuse.mount import Mount, private_namespace
from resmgr.fuse.options import FuseOptions
os.system("mount --make-rshared /")
place = {str(tmp_path)!r}
origin = private_namespace()
mount = Mount(place, FuseOptions(), origin)
fd = mount.attach()
here = sum(place in line for line in open("/proc/self/mountinfo"))
os.set_inheritable(origin, True)
look = "nsenter --mount=/proc/self/fd/%d grep -c %s /proc/self/mountinfo" % (origin, place)
run = lambda: subprocess.run(look, shell=True, close_fds=False, capture_output=True, text=True).stdout.strip()
there = int(run())
print(here, there, mount.read_ahead_set, open("/sys/class/bdi/%d:%d/read_ahead_kb" % mount.device).read().strip())
mount.detach()
print(run())
"""
    result = run_isolated(code)

    assert result.stdout.splitlines() == ["0 1 True 4096", "0"], result.stderr


def test_errors_of_mounting_are_one_sentence(tmp_path: Path) -> None:
    code = f"""
import os
import ctypes  # what is imported as nobody has to be readable by everybody
from resmgr.fuse import mount
from resmgr.fuse.options import FuseOptions
for place in ({str(tmp_path / "none")!r}, "/proc/self/cmdline"):
    try:
        mount.Mount(place, FuseOptions()).attach()
    except mount.MountError as error:
        print(error.strerror)
mount.DEVICE = "/dev/none"
try:
    mount.open_device()
except mount.MountError as error:
    print(error.strerror)
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
mount.DEVICE = "/dev/fuse"
try:
    mount.Mount({str(tmp_path)!r}, FuseOptions()).attach()
except mount.MountError as error:
    print(error.strerror)
"""
    result = run_isolated(code)

    lines = result.stdout.splitlines()
    assert len(lines) == 4, result.stderr
    assert "existing directory" in lines[0]
    assert "existing directory" in lines[1]
    assert "modprobe fuse" in lines[2]
    assert "root" in lines[3]


def test_mount_in_a_user_namespace(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    code = f"""
import os, subprocess, sys
from pathlib import Path
from resmgr.testing.fusemount import Served
served = Served(Path({str(tmp_path)!r}), {{}}, None)
(served.path / "f").write_text("hello")
print((served.path / "f").read_text())
served.close()
"""
    result = run_isolated(code, "unshare", "-Urm")

    assert result.stdout == "hello\n", result.stderr


def test_mount_for_somebody_elses_user_namespace(tmp_path: Path) -> None:
    """Root's daemon mounts for a user's namespace; a daemon inside one cannot mount outside, and says so."""
    tmp_path.chmod(0o777)
    code = f"""
import os, subprocess
from resmgr.fuse.mount import Mount, MountError
from resmgr.fuse.options import FuseOptions
hold = ["sh", "-c", "echo ready; read x; grep -c {tmp_path} /proc/self/mountinfo"]
pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
inner = subprocess.Popen(["unshare", "-Urm", *hold], **pipes)
inner.stdout.readline()
namespace = os.open("/proc/%d/ns/mnt" % inner.pid, os.O_RDONLY)
fd = Mount({str(tmp_path)!r}, FuseOptions(), namespace).attach()
print(inner.communicate(b"x")[0].decode().strip())
outer = os.open("/proc/self/ns/mnt", os.O_RDONLY)
if os.fork() == 0:
    import ctypes
    ctypes.CDLL(None).unshare(0x10000000 | 0x20000)
    try:
        Mount({str(tmp_path)!r}, FuseOptions(), outer).attach()
    except MountError as error:
        print(error.strerror, flush=True)
    os._exit(0)
os.wait()
"""
    result = run_isolated(code)

    lines = result.stdout.splitlines()
    assert lines[0] == "1", result.stderr
    assert lines[1].startswith("cannot enter the mount namespace")


def test_parse_mountinfo() -> None:
    text = (
        b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        b"bad line\n"
        b"40 35 0:52 / /net rw,nosuid,nodev - fuse.qnet qnet rw,user_id=0\n"
    )

    entries = parse_mountinfo(text)

    assert [(entry.device, entry.place, entry.kind, entry.source) for entry in entries] == [
        ((98, 0), b"/mnt 2", "ext3", "/dev/root"),
        ((0, 52), b"/net", "fuse.qnet", "qnet"),
    ]


def test_no_process_is_left_in_uninterruptible_sleep(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="f", data="x" * 3_000_000)
    mount.fault(operation="read", hang=True, deaf=True)
    readers = [subprocess.Popen(["cat", mount.path / "f"], stdout=subprocess.DEVNULL) for _ in range(3)]
    until(lambda: bool(mount.order("status")))

    for reader in readers:
        reader.kill()
    for reader in readers:
        reader.wait(30)


def test_many_threads_at_once(mount: Served) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            base = mount.path / f"t{number}"
            base.mkdir()
            for step in range(30):
                path = base / f"f{step}"
                path.write_bytes(b"%d" % step * 1000)
                assert path.read_bytes() == b"%d" % step * 1000
                if step % 3 == 0:
                    path.rename(base / f"g{step}")
            assert len(os.listdir(base)) == 30
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failures == []
    statistics = mount.order("statistics")
    assert isinstance(statistics, dict)
    assert statistics["outstanding"] == 0
    assert "reply_refused" not in statistics["events"]
