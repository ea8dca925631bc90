"""Operations run as the mapped user, on the calling thread only, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from resmgr.access import Export, MappedUser, UserRule
from resmgr.errors import ResmgrError
from resmgr.hostfs.device import FOREVER
from resmgr.hostfs.identity import Switch
from resmgr.iomsg import SET_MODE, SET_UID, Connect, Entry
from resmgr.iorequest import ConnectRequest, SetAttr
from resmgr.testing.hostdir import HostDirectory

pytestmark = pytest.mark.priv


def fails(code: int) -> pytest.RaisesExc[ResmgrError]:
    return pytest.raises(ResmgrError, match=os.strerror(code))


def status(thread: str = "thread-self") -> dict[str, str]:
    with open(f"/proc/{thread}/status") as file:
        return dict(line.rstrip("\n").split(":", 1) for line in file)


NONE = 0xFFFFFFFF
IDENTITY_FIELDS = ("Uid", "Gid", "Groups", "CapEff")


def mine() -> tuple[str, ...]:
    return tuple(status()[field] for field in IDENTITY_FIELDS)


def test_files_are_made_and_refused_as_the_client(host: HostDirectory) -> None:
    before = mine()
    host.root.chmod(0o777)
    user = host.client(1234, 4321)
    made = user.open(b"f", os.O_CREAT | os.O_WRONLY, 0o600)
    assert made.attr is not None
    assert (made.attr.uid, made.attr.gid) == (1234, 4321)
    (host.root / "secret").write_bytes(b"root's")
    (host.root / "secret").chmod(0o600)
    with fails(errno.EACCES):
        user.open(b"secret")
    with fails(errno.EPERM):
        user.setattr_path(b"secret", SetAttr(SET_MODE, 0o666))
    with fails(errno.EPERM):
        user.setattr_path(b"f", SetAttr(SET_UID, uid=0))
    with fails(errno.EACCES):
        user.name(Connect.ACCESS, b"secret", mode=os.R_OK)
    (host.root / "closed").mkdir(mode=0o700)
    with fails(errno.EACCES):
        user.lookup(b"closed/x")
    with fails(errno.EPERM):
        user.connect(ConnectRequest(Connect.MKNOD, 0, 0, b"dev", 0o020666, 0, os.makedev(1, 3)))
    made2 = Entry.parse(user.name(Connect.MKDIR, b"d", mode=0o755))
    assert made2.attr is not None
    assert made2.attr.uid == 1234
    assert host.client(0).get(b"secret") == b"root's"
    assert mine() == before


@pytest.mark.parametrize("user", [MappedUser(NONE, 1000), MappedUser(1000, NONE), MappedUser(1000, 1000, (NONE,)), MappedUser(1 << 32, 0)])
def test_numbers_that_the_kernel_takes_for_something_else_are_refused(user: MappedUser) -> None:
    """0xffffffff would leave root as it is, 1 << 32 would be cut to root."""
    switch = Switch()
    with pytest.raises(PermissionError, match="not the number of a user and a group"):
        switch.run(switch.identity(user), os.geteuid)
    assert switch.refused == 1


def test_a_node_that_claims_no_number_reads_nothing(host: HostDirectory) -> None:
    (host.root / "secret").write_bytes(b"root's")
    (host.root / "secret").chmod(0o600)
    host.fs.set_policy(host.policy((Export("/", ["read", "write"]),), (UserRule("identity"),)))
    with fails(errno.EPERM):
        host.remote("b", NONE, gid=NONE).open(b"secret")


def test_supplementary_groups_count(host: HostDirectory) -> None:
    (host.root / "shared").write_bytes(b"for 777")
    os.chown(host.root / "shared", 0, 777)
    (host.root / "shared").chmod(0o640)
    with fails(errno.EACCES):
        host.client(1234, 1234).open(b"shared")
    assert host.client(1234, 1234, (5, 777)).get(b"shared") == b"for 777"


def test_identity_is_restored_after_errors_and_other_threads_see_nothing(host: HostDirectory) -> None:
    before = mine()
    threads: list[tuple[str, ...]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            threads.append(mine())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        user = host.client(1234, 1234, (9,))
        for _ in range(300):
            with fails(errno.ENOENT):
                user.lookup(b"none")
            assert mine() == before
    finally:
        stop.set()
        watcher.join()
    assert set(threads) == {before}


def test_the_operation_itself_runs_without_capabilities() -> None:
    switch = Switch()
    identity = switch.identity(MappedUser(1234, 4321, (7, 8)))
    seen = switch.run(identity, status)
    assert seen["Uid"].split() == ["0", "1234", "0", "1234"]
    assert seen["Gid"].split() == ["0", "4321", "0", "4321"]
    assert seen["Groups"].split() == ["7", "8"]
    assert int(seen["CapEff"], 16) == 0
    with pytest.raises(ZeroDivisionError):
        switch.run(identity, lambda: 1 // 0)
    assert os.geteuid() == 0


def test_proc_does_not_take_the_client_for_root(host: HostDirectory) -> None:
    """/proc/sys looks at the effective uid and /proc/PID at CAP_SYS_PTRACE: file-system ids alone would let the client through."""
    from resmgr.hostfs.manager import HostFs
    from resmgr.testing.ioclient import IoClient

    fs = HostFs(host.kernel, host.policy(), root="/proc")
    try:
        user = IoClient(host.kernel, host.client(1234).credentials, target=fs.target, run=host._run)
        with fails(errno.EACCES):
            user.open(b"sys/kernel/core_pattern", os.O_WRONLY)
        with fails(errno.EACCES):
            maps = user.open(b"1/maps")
            user.read(maps.target, maps.ocb, 0, 100)
        assert user.get(b"version").startswith(b"Linux")
    finally:
        fs.destroy()


def test_writing_takes_set_uid_away(host: HostDirectory) -> None:
    (host.root / "suid").write_bytes(b"x")
    (host.root / "suid").chmod(0o4777)
    user = host.client(1234)
    entry = user.open(b"suid", os.O_WRONLY)
    user.write(entry.target, entry.ocb, 0, b"evil")
    assert os.stat(host.root / "suid").st_mode & 0o7777 == 0o777


def test_worker_threads_take_the_identity_too(host: HostDirectory) -> None:
    host.root.chmod(0o777)
    host.fs.devices.root.blocking_until = FOREVER
    (host.root / "secret").write_bytes(b"")
    (host.root / "secret").chmod(0o600)
    user = host.client(1234)
    made = user.open(b"f", os.O_CREAT | os.O_RDWR)
    assert made.attr is not None
    assert made.attr.uid == 1234
    assert user.write(made.target, made.ocb, 0, b"abc") == 3
    assert user.read(made.target, made.ocb, 0, 10) == b"abc"
    with fails(errno.EACCES):
        user.open(b"secret")
    assert host.fs.counters["threaded"] == 4


def test_remote_root_is_nobody_unless_said(host: HostDirectory) -> None:
    host.root.chmod(0o777)
    export = Export("/", ["read", "write"])
    host.fs.set_policy(host.policy((export,), (UserRule("identity"),)))
    far = host.remote("b", 0)
    made = far.open(b"f", os.O_CREAT | os.O_WRONLY)
    assert made.attr is not None
    assert (made.attr.uid, made.attr.gid) == (65534, 65534)
    far_user = host.remote("b", 1234, gid=42)
    made = far_user.open(b"g", os.O_CREAT | os.O_WRONLY)
    assert made.attr is not None
    assert (made.attr.uid, made.attr.gid) == (1234, 65534), "a claimed gid is not believed"
    host.fs.set_policy(host.policy((export,), (UserRule("identity", root="root"),)))
    made = far.open(b"h", os.O_CREAT | os.O_WRONLY)
    assert made.attr is not None
    assert made.attr.uid == 0
    host.fs.set_policy(host.policy((export,), (UserRule("none"),)))
    with fails(errno.EPERM):
        far.lookup(b"")
    assert host.fs.counters["user_refused"] == 1


UNPRIVILEGED = """
import errno, os, sys
from resmgr.access import MappedUser, Policy
from resmgr.channel import Credentials, Kernel
from resmgr.errors import ResmgrError
from resmgr.hostfs.manager import HostFs
from resmgr.testing.ioclient import IoClient
from resmgr.testing.virtual import VirtualDispatch
from resmgr.users import Accounts
if sys.argv[2] == "user":
    # Not before: another user may not reach this source.
    os.setgroups([])
    os.setresgid(4000, 4000, 4000)
    os.setresuid(4000, 4000, 4000)
dispatch = VirtualDispatch(1)
kernel = Kernel(dispatch, "n")
fs = HostFs(kernel, Policy(Accounts(dispatch.now)), root=sys.argv[1])
me = IoClient(kernel, Credentials(os.geteuid(), os.getegid()), target=fs.target)
assert me.lookup(b"").attr is not None
other = IoClient(kernel, Credentials(4242, 4242), target=fs.target)
try:
    other.lookup(b"")
except ResmgrError as error:
    assert error.errno == errno.EPERM
else:
    raise SystemExit("served as somebody else")
assert fs.counters["identity_refused"] == 1
print(fs.switch.problem)
"""


@pytest.mark.parametrize("how", ["user", "namespace", "capabilities"])
def test_without_the_right_only_oneself_is_served(how: str) -> None:
    prefix = {
        "user": [],
        "namespace": ["unshare", "--user", "--map-root-user"],
        "capabilities": ["setpriv", "--bounding-set=-setuid", "--inh-caps=-all"],
    }[how]
    result = subprocess.run([*prefix, sys.executable, "-c", UNPRIVILEGED, "/usr", how], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    assert {"user": "not started as root", "namespace": "single user", "capabilities": "CAP_SETUID"}[how] in result.stdout
