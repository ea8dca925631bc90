"""What membership keeps on the disk, and that what others changed or broke is said."""

from __future__ import annotations

import random
from pathlib import Path

import attrs
import pytest

from qnetpy.identity.authority import make_authority
from qnetpy.identity.files import StoreError
from qnetpy.identity.keyfiles import AUTHORITY, create_cluster, load_authority, save_identity
from qnetpy.identity.trust import Kind, Revoked, make_statement
from qnetpy.members.register import Register, pack_register, parse_register
from qnetpy.members.store import DirectoryStore, Kept, erase_identity, pack_statements, unpack_statements
from qnetpy.testing.members import enrolled
from resmgr.errors import BadMessage

NOW = 1_800_000_000.0
AUTHORITY_OF = make_authority("garden", NOW, random=random.Random(1).randbytes)


def kept() -> Kept:
    first = enrolled(AUTHORITY_OF, "n1", NOW, random.Random(2).randbytes, roles=["issuer"]).kept
    register = Register()
    register.note(first.identity.certificate, {b"r" * 20: 2e9}, [power.issuer for power in first.powers])
    statement = make_statement(AUTHORITY_OF, Kind.REVOKE, Revoked("n2", bytes(32)), NOW)
    return attrs.evolve(
        first, next=first.identity.certificate, before=first.identity.certificate, statements=(statement,), register=pack_register(register)
    )


def test_everything_comes_back(tmp_path: Path) -> None:
    everything = kept()
    DirectoryStore(tmp_path).save(everything)
    assert DirectoryStore(tmp_path).load() == everything
    assert parse_register(everything.register).get("n1") is not None

    files = DirectoryStore(tmp_path)
    files.load()
    files.save(attrs.evolve(everything, next=None))
    assert DirectoryStore(tmp_path).load().next is None


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    files = DirectoryStore(tmp_path)
    everything = kept()
    files.save(everything)
    (tmp_path / "node.key").unlink()
    files.save(attrs.evolve(everything, register=b""))
    assert not (tmp_path / "node.key").exists()


def test_broken_files_are_named(tmp_path: Path) -> None:
    DirectoryStore(tmp_path).save(kept())
    for name in ("next.crt", "before.crt", "statements.pem", "members.json"):
        good = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(good[: len(good) // 2])
        with pytest.raises(StoreError, match=name):
            DirectoryStore(tmp_path).load()
        (tmp_path / name).write_bytes(good)
    DirectoryStore(tmp_path).load()


def test_a_register_that_is_too_long_does_not_stop_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    everything = kept()
    DirectoryStore(tmp_path).save(everything)
    monkeypatch.setattr("qnetpy.members.store.REGISTER_FILE_MAX", len(everything.register) - 1)
    assert DirectoryStore(tmp_path).load() == attrs.evolve(everything, register=b"")
    assert "begins anew" in caplog.text
    assert (tmp_path / "members.json.old").read_bytes() == everything.register
    assert DirectoryStore(tmp_path).load().register == b""


def test_statements_as_text() -> None:
    statements = list(kept().statements)
    text = pack_statements(statements)
    assert unpack_statements(text) == statements
    assert unpack_statements(b"") == []
    for wrong in (text.replace(b"A", b"!"), b"\xff", text[:80] + b"-----END QNET STATEMENT-----\n"):
        with pytest.raises(BadMessage):
            unpack_statements(wrong)


def test_another_root_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first = create_cluster(tmp_path, "garden", NOW)
    second = make_authority("garden", NOW + 1, secret=first.secret)
    DirectoryStore(tmp_path).replace_authority(second)
    assert load_authority(tmp_path) == second
    assert (tmp_path / AUTHORITY / "root.key.old").stat().st_mode & 0o777 == 0o600
    assert DirectoryStore(tmp_path / "elsewhere").authority() is None


def test_leaving_removes_the_keys_and_nothing_else(tmp_path: Path) -> None:
    DirectoryStore(tmp_path).save(kept())
    (tmp_path / "qnet.toml").write_text("")
    create_cluster(tmp_path, "garden", NOW)
    erase_identity(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority", "qnet.toml"]
    erase_identity(tmp_path)


def test_a_wrong_register_is_no_register() -> None:
    for data in (b"", b"{}x", b'[{"name": 1}]', b"[7]", b'[{"name":"a","key":"zz"}]'):
        with pytest.raises(ValueError):
            parse_register(data)


def test_the_key_of_a_command_is_not_written(tmp_path: Path) -> None:
    everything = kept()
    save_identity(tmp_path, everything.identity, keep_key=True)
    DirectoryStore(tmp_path, "true").save(everything)
    assert not (tmp_path / "node.key").exists()
