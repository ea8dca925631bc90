"""Run directories that are somebody else's trap: neither end uses one. And whose io-pkt an ordinary user's commands find."""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qnetpy.cli import bridge, daemon, iopkt, netstat, nicinfo, output, rates  # loaded before a test becomes somebody  # noqa: F401
from qnetpy.cli.main import main as qnet
from qnetpy.cli.output import CommandError
from qnetpy.netfs.own import move
from resmgr.client import Client  # likewise  # noqa: F401
from stack.core.errors import ModuleError
from stack.core.runlock import LOCK, locked
from stack.rights import User
from stack.rundir import default_run_dir, distrusted
from stack.testing.namespace import Veth

pytestmark = pytest.mark.priv
UID, OTHER = 4242, 4343
PR_SET_DUMPABLE = 4


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory like /tmp, in it."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o1777)
    yield place
    shutil.rmtree(place)


def as_user(uid: int, call: Callable[[], object]) -> str:
    """What *call* gave, or printed, in a process of that user."""
    end, mine = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.dup2(mine, 1)
            os.dup2(mine, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
            print(call())
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(mine)
    with os.fdopen(end) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def made(place: Path, uid: int, mode: int = 0o755) -> Path:
    place.mkdir()
    os.chown(place, uid, uid)
    place.chmod(mode)
    return place


def starts(place: Path, user: User | None = None) -> str:
    try:
        with locked(str(place), "io-pkt0", user):
            return f"locked, of user {place.stat().st_uid}"
    except ModuleError as error:
        return str(error)


def test_a_server_starts_only_in_what_is_its_own(shared: Path) -> None:
    mine = f"locked, of user {UID}\n"
    assert as_user(UID, lambda: starts(made(shared / "own", UID))) == mine
    assert (shared / "own").is_dir(), "what was there stays"
    assert as_user(UID, lambda: starts(shared / "new")) == mine
    assert not (shared / "new").exists(), "what it made goes with it"
    made(shared / "trap", OTHER, 0o777)
    assert "can be written by others than its owner (mode 0777)" in as_user(UID, lambda: starts(shared / "trap"))
    (shared / "trap").chmod(0o755)
    assert f"belongs to somebody else (user {OTHER})" in as_user(UID, lambda: starts(shared / "trap"))
    assert f"belongs to somebody else (user {OTHER})" in starts(shared / "trap")
    assert os.listdir(shared / "trap") == []


def test_links_of_others_are_not_followed(shared: Path) -> None:
    precious = made(shared / "precious", UID)
    (precious / LOCK).write_text("mine")
    os.symlink(precious, shared / "run")
    os.lchown(shared / "run", OTHER, OTHER)
    assert f"is a link of user {OTHER}" in as_user(UID, lambda: starts(shared / "run"))
    dangling = shared / "dangling"
    os.symlink(shared / "nothing", dangling)
    os.lchown(dangling, OTHER, OTHER)
    assert "cannot use the run directory" in starts(dangling, User(UID, UID)) or "is a link" in starts(dangling, User(UID, UID))
    assert not (shared / "nothing").exists()
    assert (precious / LOCK).read_text() == "mine"
    # Nor one in the directory, whoever made it.
    own = made(shared / "own", UID)
    os.symlink(precious / LOCK, own / LOCK)
    assert "the lock in it is a link" in as_user(UID, lambda: starts(own))
    assert (precious / LOCK).read_text() == "mine"
    os.symlink(own, shared / "mine")  # root's: an administrator may
    (own / LOCK).unlink()
    assert as_user(UID, lambda: starts(shared / "mine")) == f"locked, of user {UID}\n"


def test_a_place_that_others_can_replace(shared: Path) -> None:
    shared.chmod(0o777)
    place = str(made(shared / "run", UID))
    assert "lies where others can put another in its place" in as_user(UID, lambda: distrusted(place))
    shared.chmod(0o1777)
    assert as_user(UID, lambda: distrusted(place)) == "\n"


def test_what_root_gave_away_is_believed(shared: Path) -> None:
    place = made(shared / "run", OTHER)
    assert as_user(UID, lambda: distrusted(str(place), given=True)).startswith("belongs to somebody else")
    shared.chmod(0o755)
    assert as_user(UID, lambda: distrusted(str(place), given=True)) == "\n"
    assert as_user(UID, lambda: distrusted(str(place))).startswith("belongs to somebody else")
    place.chmod(0o775)
    assert as_user(UID, lambda: distrusted(str(place), given=True)).startswith("can be written by others")


def test_in_a_user_namespace_the_machine_s_own_places_are_believed(shared: Path) -> None:
    """Root has no number there."""
    system = Path(tempfile.mkdtemp(dir="/run"))
    try:
        system.chmod(0o755)
        codecs.lookup("ascii")  # a user who may not look into this Python's directories cannot
        ours = made(system / "qnet", 0)

        def inside(place: Path, given: bool = True) -> str:
            def call() -> str:
                # Who changed his user may not write his own maps before.
                ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)
                move()
                return distrusted(str(place), given=given)

            return as_user(UID, call).strip()

        assert inside(ours) == ""
        assert inside(ours, given=False).startswith("belongs to somebody else"), "a server starts in its own only"
        # Somebody may have laid it there: below a directory like /tmp, or one that a group may write.
        assert inside(made(shared / "run", OTHER)).startswith("belongs to somebody else")
        system.chmod(0o775)
        assert inside(ours).startswith("belongs to somebody else")
        # Who has a number there is no unknown one: this user could have made it himself.
        system.chmod(0o755)
        os.chown(system, UID, UID)
        assert inside(ours).startswith("belongs to somebody else")
    finally:
        shutil.rmtree(system)


def test_no_command_talks_to_a_trap(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another user laid where an ordinary user's own instance would be."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("stack.rundir.default_run_dir", lambda number: str(shared / f"io-pkt{number}-{os.geteuid()}"))
    monkeypatch.setenv("QNET_RUN_DIR", str(shared / "none"))
    trap = made(shared / f"io-pkt0-{UID}", OTHER)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(trap / "socket"))
        (trap / "socket").chmod(0o666)
        listener.listen()
        listener.setblocking(False)
        for words in (["netstat"], ["netstat", "--run-dir", str(trap)]):
            said = as_user(UID, lambda: qnet(words))  # noqa: B023  # called at once
            assert f"the run directory {trap} belongs to somebody else (user {OTHER}), so whoever listens there is not asked" in said
        monkeypatch.setenv("QNET_RUN_DIR", str(trap))
        for call in (lambda: daemon.running_pid(str(trap)), daemon.connect):
            with pytest.raises(CommandError, match="belongs to somebody else"):
                call()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_an_ordinary_user_finds_roots_and_is_told(veth: Veth, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.chmod(0o755)
    places = {0: str(shared / "root"), UID: str(shared / "own")}
    monkeypatch.setattr("stack.rundir.default_run_dir", lambda number: places[os.geteuid()])
    monkeypatch.setattr("stack.rundir.root_run_dir", lambda number: places[0])
    monkeypatch.setenv("QNET_RUN_DIR", str(shared / "none"))
    monkeypatch.delenv("SOCK", raising=False)
    said = as_user(UID, lambda: qnet(["netstat"]))
    assert "no io-pkt listens at" in said
    words = ["-m", "stack.core.main", "--run-dir", places[0], "-d", "packet", "ifname=va"]
    with veth.a.entered():
        manager = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
    assert manager.stdout is not None
    assert manager.stdout.readline().startswith(b"io-pkt0 ready")
    try:
        said = as_user(UID, lambda: qnet(["netstat"]))
        assert said.startswith(f"asking io-pkt of root, at {shared}/root/socket\n")
        assert "va" in said
        line, _, text = as_user(UID, lambda: qnet(["nicinfo", "--json"])).partition("\n")
        assert line.startswith("asking ")
        assert json.loads(text.rpartition("\n0")[0])[0]["name"] == "va"
        assert "may not change io-pkt0" in as_user(UID, lambda: qnet(["ifconfig", "va", "down"]))
    finally:
        manager.terminate()
        manager.communicate(timeout=20)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert default_run_dir(2) == "/run/io-pkt2"
    assert as_user(UID, lambda: default_run_dir(2)) == f"/tmp/io-pkt2-{UID}\n"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/5")
    assert as_user(UID, lambda: default_run_dir(2)) == "/run/user/5/io-pkt2\n"
