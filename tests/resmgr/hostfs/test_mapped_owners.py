"""Mapped users on real files: who made it, who is shown, what chown does, and that the kernel here decides."""

from __future__ import annotations

import errno
import os
import pwd
import stat

import pytest

from resmgr.access import Export, UserRule
from resmgr.errors import ResmgrError
from resmgr.iomsg import SET_GID, SET_MODE, SET_SIZE, SET_UID, Connect, parse_dirents
from resmgr.iorequest import SetAttr
from resmgr.owners import NOBODY
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import IoClient

pytestmark = pytest.mark.priv

DAEMON, MAIL = pwd.getpwnam("daemon"), pwd.getpwnam("mail")
TABLE = UserRule("table", users={1000: "daemon", 1001: "mail"}, groups={500: "mail"})


def fails(code: int) -> pytest.RaisesExc[ResmgrError]:
    return pytest.raises(ResmgrError, match=os.strerror(code))


def shared(host: HostDirectory, *rules: UserRule, setuid: bool = False) -> None:
    host.root.chmod(0o1777)
    host.fs.set_policy(host.policy((Export("/", ["read", "write"], setuid=setuid),), rules))


def owner(client: IoClient, path: bytes) -> tuple[int, int]:
    attr = client.lookup(path).attr
    assert attr is not None
    return attr.uid, attr.gid


def test_every_way_to_look_shows_the_clients_own_numbers(host: HostDirectory) -> None:
    shared(host, TABLE)
    far = host.remote("b", 1000, gid=1000)
    made = far.open(b"f", os.O_CREAT | os.O_RDWR)
    assert made.attr is not None
    far.name(Connect.MKDIR, b"d", mode=0o755)
    far.symlink(b"l", b"f")
    here = os.stat(host.root / "f")
    assert (here.st_uid, here.st_gid) == (DAEMON.pw_uid, DAEMON.pw_gid)
    own = (1000, 1000)
    assert (made.attr.uid, made.attr.gid) == own
    for path in (b"f", b"d", b"l"):
        assert owner(far, path) == own
    stated = far.stat(made.target, made.ocb)
    assert (stated.uid, stated.gid) == own
    opened = far.open(b"", os.O_DIRECTORY, prefetch=4096)
    for entry in parse_dirents(opened.data, True):
        assert entry.attr is not None
        assert (entry.attr.uid, entry.attr.gid) == own
    changed = far.setattr_path(b"f", SetAttr(SET_MODE, 0o640))
    assert (changed.uid, changed.gid) == own
    # The others of that node see whose it is by their numbers; what the table does not know is nobody's, root is root.
    other = host.remote("b", 1001, gid=500)
    assert owner(other, b"f") == (1000, NOBODY)
    (host.root / "root").touch()
    (host.root / "strange").touch()
    os.chown(host.root / "strange", 4242, MAIL.pw_gid)
    assert owner(other, b"root") == (0, 0)
    assert owner(other, b"strange") == (NOBODY, 500)
    # At home numbers are what they are.
    assert owner(host.client(), b"f") == (DAEMON.pw_uid, DAEMON.pw_gid)


def test_chown_goes_the_same_way_and_the_kernel_decides(host: HostDirectory) -> None:
    shared(host, TABLE, UserRule(root="root"))
    host.fs.set_policy(
        host.policy((Export("/", ["read", "write"]),), (UserRule("table", users={0: "root", 1000: "daemon"}, groups={500: "mail"}),))
    )
    (host.root / "f").touch()
    root, user = host.remote("b", 0), host.remote("b", 1000, gid=1000)
    root.setattr_path(b"f", SetAttr(SET_UID | SET_GID, 0, 1000, 500))
    here = os.stat(host.root / "f")
    assert (here.st_uid, here.st_gid) == (DAEMON.pw_uid, MAIL.pw_gid)
    root.setattr_path(b"f", SetAttr(SET_GID, 0, 0, 0))
    assert os.stat(host.root / "f").st_gid == 0
    for wanted in (SetAttr(SET_UID, 0, DAEMON.pw_uid), SetAttr(SET_UID, 0, 4242), SetAttr(SET_GID, 0, 0, MAIL.pw_gid)):
        with fails(errno.EINVAL):
            root.setattr_path(b"f", wanted)
    user.setattr_path(b"f", SetAttr(SET_UID, 0, 1000))
    with fails(errno.EPERM):
        user.setattr_path(b"f", SetAttr(SET_UID, 0, 0))
    root.setattr_path(b"f", SetAttr(SET_UID, 0, NOBODY))
    assert os.stat(host.root / "f").st_uid == NOBODY


def test_supplementary_groups_are_those_of_the_account_here(host: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the node claims of groups opens nothing; what the account has here does."""
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, MAIL.pw_gid] if name == "daemon" else [gid])
    shared(host, TABLE)
    (host.root / "g").write_bytes(b"members only")
    os.chown(host.root / "g", 0, MAIL.pw_gid)
    (host.root / "g").chmod(0o040)
    assert host.remote("b", 1000, gid=1000).get(b"g") == b"members only"
    # Made with the group that the table makes of the claimed one, since he is a member.
    made = host.remote("b", 1000, gid=500).open(b"m", os.O_CREAT | os.O_WRONLY)
    assert made.attr is not None
    assert made.attr.gid == 500
    assert os.stat(host.root / "m").st_gid == MAIL.pw_gid
    with fails(errno.EACCES):
        host.remote("b", 4242, gid=500).open(b"g")


def test_a_setgid_directory_gives_its_group(host: HostDirectory) -> None:
    shared(host, TABLE)
    (host.root / "d").mkdir()
    os.chown(host.root / "d", 0, MAIL.pw_gid)
    (host.root / "d").chmod(0o2777)
    far = host.remote("b", 1000, gid=1000)
    far.open(b"d/f", os.O_CREAT | os.O_WRONLY)
    far.name(Connect.MKDIR, b"d/e", mode=0o755)
    assert os.stat(host.root / "d/f").st_gid == MAIL.pw_gid
    assert stat.S_IMODE(os.stat(host.root / "d/e").st_mode) == 0o2755
    assert owner(far, b"d/e") == (1000, 500)


def test_root_is_nobody_and_squashed_users_own_nothing(host: HostDirectory) -> None:
    shared(host, UserRule(nodes=["b"]), UserRule("squash"))
    (host.root / "secret").write_bytes(b"")
    (host.root / "secret").chmod(0o600)
    for far in (host.remote("b", 0), host.remote("c", 0), host.remote("c", 1000)):
        with fails(errno.EACCES):
            far.open(b"secret")
        far.open(b"made", os.O_CREAT | os.O_WRONLY)
        assert os.stat(host.root / "made").st_uid == NOBODY
        (host.root / "made").unlink()
    far = host.remote("c", 1000)
    far.open(b"mine", os.O_CREAT | os.O_WRONLY)
    assert owner(far, b"mine") == (NOBODY, NOBODY)


@pytest.mark.parametrize("allowed", [False, True])
def test_set_id_bits_need_the_exports_word(host: HostDirectory, allowed: bool) -> None:
    shared(host, UserRule(), setuid=allowed)
    far = host.remote("b", 1000, gid=1000)
    far.open(b"f", os.O_CREAT | os.O_WRONLY, 0o755)
    os.mkdir(host.root / "d")
    os.chown(host.root / "d", 1000, 65534)
    attempts = (
        lambda: far.setattr_path(b"f", SetAttr(SET_MODE, 0o4755)),
        lambda: far.setattr_path(b"f", SetAttr(SET_MODE, 0o2755)),
        lambda: far.open(b"new", os.O_CREAT | os.O_WRONLY, 0o4755),
        lambda: far.name(Connect.MKNOD, b"node", mode=stat.S_IFREG | 0o4755),
    )
    for attempt in attempts:
        if allowed:
            attempt()
        else:
            with fails(errno.EPERM):
                attempt()
    assert (host.root / "new").exists() == (host.root / "node").exists() == allowed
    # A directory's is about groups of files, and what is set here already may stay.
    far.setattr_path(b"d", SetAttr(SET_MODE, 0o2755))
    (host.root / "f").chmod(0o4755)
    far.setattr_path(b"f", SetAttr(SET_MODE, 0o4711))
    assert stat.S_IMODE(os.stat(host.root / "f").st_mode) == 0o4711
    # Whoever writes takes it away, as at home.
    far.setattr_path(b"f", SetAttr(SET_SIZE, size=0))
    assert not os.stat(host.root / "f").st_mode & 0o6000
