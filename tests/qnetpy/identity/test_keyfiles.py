"""Key files: layout and modes, and one sentence for each way they can be wrong."""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path

import pytest

from qnetpy.identity.authority import NodeIdentity
from qnetpy.identity.keyfiles import (
    StoreError,
    create_cluster,
    forget_pending,
    install_bundle,
    issue_node,
    load_authority,
    load_identity,
    pack_bundle,
    pending_key,
    unpack_bundle,
)

NOW = 1_800_000_000.0
DAY = 86400.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An authority that is also node n1."""
    directory = tmp_path / "keys"
    create_cluster(directory, "garden", NOW)
    install_bundle(directory, issue_node(directory, "n1", ["admin"], 30 * DAY, now=NOW))
    return directory


def test_layout_and_modes(home: Path) -> None:
    found = {str(path.relative_to(home)): stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*")}
    assert found == {
        "authority": 0o700,
        "authority/root.key": 0o600,
        "authority/root.crt": 0o644,
        "authority/cluster.secret": 0o600,
        "node.key": 0o600,
        "node.crt": 0o644,
        "roots.crt": 0o644,
        "cluster.secret": 0o600,
    }
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_cluster(tmp_path / "keys", "garden", NOW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys/authority/root.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys/authority").stat().st_mode) == 0o700


def test_what_was_saved_is_loaded(home: Path) -> None:
    identity = load_identity(home)
    assert (identity.name, identity.cluster, identity.roles) == ("n1", "garden", frozenset({"admin"}))
    assert identity.certificate.not_after == NOW + 30 * DAY
    authority = load_authority(home)
    assert identity.secret == authority.secret
    assert identity.roots == (authority.root,)
    assert unpack_bundle(pack_bundle(identity)) == identity


def test_the_authority_can_live_elsewhere_than_the_node(home: Path, tmp_path: Path) -> None:
    bundle = issue_node(home, "n2", [], now=NOW)
    identity = install_bundle(tmp_path / "other", bundle)
    assert load_identity(tmp_path / "other") == identity
    assert not (tmp_path / "other/authority").exists()


def test_a_cluster_is_never_overwritten(home: Path) -> None:
    before = (home / "authority/root.key").read_bytes()
    with pytest.raises(StoreError, match="never overwritten") as caught:
        create_cluster(home, "garden", NOW)
    assert caught.value.errno == errno.EEXIST
    assert (home / "authority/root.key").read_bytes() == before


@pytest.mark.parametrize("name", ["node.key", "cluster.secret"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_an_exposed_secret_is_refused(home: Path, name: str, mode: int) -> None:
    (home / name).chmod(mode)
    with pytest.raises(StoreError, match=f"{name}: mode is {mode:04o} .*chmod 600") as caught:
        load_identity(home)
    assert caught.value.errno == errno.EACCES


def test_an_exposed_root_key_is_refused(home: Path) -> None:
    (home / "authority/root.key").chmod(0o640)
    with pytest.raises(StoreError, match=r"root\.key: mode is 0640"):
        issue_node(home, "n2", [], now=NOW)


def test_a_stricter_mode_is_fine(home: Path) -> None:
    (home / "node.key").chmod(0o400)
    load_identity(home)


def test_a_secret_of_somebody_else_is_refused(home: Path) -> None:
    os.chown(home / "node.key", 12345, 12345)
    with pytest.raises(StoreError, match="belongs to user 12345"):
        load_identity(home)


def test_a_link_and_a_pipe_are_refused(home: Path) -> None:
    (home / "node.key").rename(home / "real.key")
    (home / "node.key").symlink_to(home / "real.key")
    with pytest.raises(StoreError, match="symbolic link"):
        load_identity(home)
    (home / "node.key").unlink()
    os.mkfifo(home / "node.key", 0o600)
    with pytest.raises(StoreError, match="not a regular file"):
        load_identity(home)


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys").chmod(0o777)
    with pytest.raises(StoreError, match="others may write here"):
        create_cluster(tmp_path / "keys", "garden", NOW)


@pytest.mark.parametrize("name", ["node.key", "node.crt", "roots.crt", "cluster.secret"])
def test_a_missing_or_broken_file_is_named(home: Path, name: str) -> None:
    path = home / name
    good = path.read_bytes()
    for bad in (b"", good[: len(good) // 2], b"\xff\x00" * 40, random.Random(5).randbytes(300)):
        path.write_bytes(bad)
        with pytest.raises(StoreError, match=str(path)) as caught:
            load_identity(home)
        assert caught.value.errno == errno.EINVAL
    path.write_bytes(bytes(65 * 1024))
    with pytest.raises(StoreError, match="too long"):
        load_identity(home)
    path.unlink()
    with pytest.raises(StoreError, match=str(path)) as caught:
        load_identity(home)
    assert caught.value.errno == errno.ENOENT


def test_the_key_of_another_node_is_refused(home: Path, tmp_path: Path) -> None:
    install_bundle(tmp_path / "other", issue_node(home, "n2", [], now=NOW))
    (home / "node.key").write_bytes((tmp_path / "other/node.key").read_bytes())
    with pytest.raises(StoreError, match="does not belong to the certificate of n1"):
        load_identity(home)


def test_a_root_that_does_not_belong_to_the_key_is_refused(home: Path, tmp_path: Path) -> None:
    create_cluster(tmp_path / "other", "garden", NOW)
    (home / "authority/root.crt").write_bytes((tmp_path / "other/authority/root.crt").read_bytes())
    with pytest.raises(StoreError, match=r"does not belong to root\.key"):
        load_authority(home)


def test_a_broken_bundle_is_one_error(home: Path) -> None:
    good = issue_node(home, "n2", [], now=NOW)
    for length in range(0, len(good) - len("-----END QNET CLUSTER SECRET-----\n") + 1, 11):
        with pytest.raises(StoreError) as caught:
            unpack_bundle(good[:length])
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(StoreError, match="not a node bundle"):
        unpack_bundle(b"\xff" * 100)


def test_nothing_is_left_beside_the_files(home: Path) -> None:
    before = load_identity(home)
    install_bundle(home, pack_bundle(before))
    assert not [path for path in home.rglob("*") if path.name.startswith(".")]
    assert isinstance(load_identity(home), NodeIdentity)


def test_a_machine_that_tries_to_join_again_has_the_same_key(tmp_path: Path) -> None:
    """Its code is spent on the first key."""
    first = pending_key(tmp_path / "keys")
    assert pending_key(tmp_path / "keys") == first
    assert stat.S_IMODE((tmp_path / "keys/join.key").stat().st_mode) == 0o600
    (tmp_path / "keys/join.key").chmod(0o644)
    with pytest.raises(StoreError, match="chmod 600"):
        pending_key(tmp_path / "keys")
    forget_pending(tmp_path / "keys")
    assert pending_key(tmp_path / "keys") != first
