"""`qnet join` without a network: where the code may come from, and what is refused before anything is tried or after it was granted."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qnetpy.cli.join import _store
from qnetpy.cli.output import CommandError
from qnetpy.enrol.code import make_code
from qnetpy.enrol.wire import Grant
from qnetpy.identity.authority import issue_certificate, make_authority
from qnetpy.identity.keyfiles import load_identity, pending_key, public_key
from qnetpy.identity.trust import Kind, Revoked, make_statement
from qnetpy.members.store import DirectoryStore

CODE = make_code(random.Random(1).randbytes).spoken()
DAY = 86400.0


def grant(key: bytes, wall: float) -> Grant:
    authority = make_authority("garden", wall)
    certificate = issue_certificate(authority, "n2", public_key(key), [], wall, DAY)
    revoked = make_statement(authority, Kind.REVOKE, Revoked("n9", bytes(32)), wall)
    return Grant(authority.secret, certificate.chain, (authority.root.der,), (revoked.data,))


def test_what_was_granted_becomes_the_identity(tmp_path: Path) -> None:
    key = pending_key(tmp_path)
    identity = _store(grant(key, time.time()), key, tmp_path, "")
    assert load_identity(tmp_path) == identity
    (statement,) = DirectoryStore(tmp_path).load().statements
    assert isinstance(statement.subject, Revoked)
    assert statement.subject.name == "n9"
    assert not (tmp_path / "join.key").exists()


@pytest.mark.parametrize(("skew", "why"), [(DAY, "valid from"), (-2 * DAY, "expired")])
def test_a_clock_that_is_a_day_off_is_said_and_the_key_kept(tmp_path: Path, skew: float, why: str) -> None:
    key = pending_key(tmp_path)
    with pytest.raises(CommandError, match=f"{why}.*set the clocks"):
        _store(grant(key, time.time() + skew), key, tmp_path, "")
    assert pending_key(tmp_path) == key
    assert not (tmp_path / "node.key").exists()


def test_a_certificate_for_another_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="does not belong"):
        _store(grant(bytes(range(32)), time.time()), pending_key(tmp_path), tmp_path, "")


@pytest.mark.host
def test_where_the_code_comes_from(tmp_path: Path) -> None:
    def join(argument: str, text: str = "", **environment: str) -> str:
        command = [sys.executable, "-m", "qnetpy.cli.main", "join", argument, "127.0.0.1:1", "--dir", str(tmp_path / "keys")]
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=os.environ | environment)
        assert result.stderr.count("\n") == 1
        return f"{result.returncode} {result.stderr}"

    (tmp_path / "code").write_text(f"{CODE}\n")
    nobody = "5 qnet join: 127.0.0.1:1: connection refused"
    assert join(CODE).startswith(nobody)
    assert join("-", f"{CODE}\n").startswith(nobody)
    assert join(f"@{tmp_path}/code").startswith(nobody)
    assert join("env", QNET_JOIN_CODE=CODE).startswith(nobody)
    assert join("env").startswith("2 qnet join: a code has 9 characters")
    assert join("k7p-3mt-9xq").startswith("2 qnet join: the code has a typing error")
    assert join(f"@{tmp_path}/none").startswith("1 qnet join:")
    assert not (tmp_path / "keys/node.key").exists()


@pytest.mark.host
def test_a_directory_that_cannot_be_written_is_found_before_the_code_is_spent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "qnetpy.cli.main", "join", CODE, "127.0.0.1:1", "--dir", str(tmp_path / "file/keys")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, "Not a directory" in result.stderr) == (1, True), result.stderr


@pytest.mark.host
def test_an_address_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qnetpy.cli.main", "join", CODE, "127.0.0.1:abc", "--dir", str(tmp_path / "keys")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "qnet join: '127.0.0.1:abc' is not host, host:port or [IPv6 address]:port\n"
