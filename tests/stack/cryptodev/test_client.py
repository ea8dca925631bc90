"""The client, in a process of its own and as another user, against a daemon's /dev/crypto over a real socket."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from resmgr.client import Client
from resmgr.errors import Misuse, ResmgrError
from stack.core.commandline import Load
from stack.core.manager import open_manager
from stack.core.module import Kind
from stack.crypto.algorithms import AES_128_CTR, AES_128_GCM, HMAC_SHA256, SHA3_256
from stack.crypto.providers.openssl import OpenSSL
from stack.cryptodev.client import CryptoDevice
from stack.cryptodev.protocol import Listed

pytestmark = pytest.mark.host
T = TypeVar("T")
ROOT = Path(__file__).parents[3]
KEY = bytes(range(16))
DEVICE = Load(Kind.PROTOCOL, "stack.managers.crypto", "sessions=4")

PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
from resmgr.client import Client
from resmgr.errors import ResmgrError
from stack.cryptodev.client import CryptoDevice
assert "stack.core" not in sys.modules and "trio" not in sys.modules and "cryptography" not in sys.modules
if len(sys.argv) > 3:
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[3]))
client = Client(sys.argv[2])
device = CryptoDevice(client)
sessions = []
try:
    while True:
        sessions.append(device.aead("aes-128-gcm", bytes(range(16))))
except ResmgrError as error:
    print(len(sessions), error.errno, sessions[0].seal_many([bytes(12)], [b"text"], [b"head"])[0].hex(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def open_folder() -> Iterator[str]:
    """One that other users may look into."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield folder


async def in_thread(work: Callable[[], T]) -> T:
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(work)


async def test_calls_of_any_size_give_what_the_api_gives(tmp_path: Path) -> None:
    socket = str(tmp_path / "socket")
    right = OpenSSL()
    items = [bytes([number % 256]) * (number * 7) for number in range(2500)]
    nonces = [number.to_bytes(12, "big") for number in range(2500)]
    blocks = [number.to_bytes(16, "little") for number in range(2500)]
    aads = [b"head"] * 2500

    def program() -> None:
        with Client(socket) as client, CryptoDevice(client, timeout=30) as device:
            assert device.algorithms["aes-128-gcm"].provider == "openssl"
            with device.aead("aes-128-gcm", KEY) as aead:
                sealed = right.aead(AES_128_GCM, KEY).seal_many(nonces, items, aads)
                assert aead.seal_many(nonces, items, aads) == sealed
                forged = [one if number % 100 else bytes(len(one)) for number, one in enumerate(sealed)]
                opened = aead.open_many(nonces, forged, aads)
                assert opened == [one if number % 100 else None for number, one in enumerate(items)]
                assert aead.seal_many([], [], []) == []
                with pytest.raises(Misuse, match="2500 items"):
                    aead.seal_many(nonces[1:], items, aads)
            with pytest.raises(Misuse, match="closed"):
                aead.seal_many(nonces, items, aads)
            aead.close()
            with device.cipher("aes-128-ctr", KEY) as cipher:
                made = right.cipher(AES_128_CTR, KEY).encrypt_many(blocks, items)
                assert cipher.encrypt_many(blocks, items) == made
                assert cipher.decrypt_many(blocks, made) == items
            with device.mac("hmac-sha256", KEY, 16) as mac:
                tags = right.mac(HMAC_SHA256, KEY, 16).tag_many(items)
                assert mac.tag_many(items) == tags
                assert mac.verify_many(items, [tags[0]] * 2500) == [True] + [False] * 2499
            with device.hash("sha3-256") as hasher:
                assert hasher.digest_many(items) == right.hash(SHA3_256).digest_many(items)
                assert hasher.digest_many([bytes(1_000_000)] * 2) == right.hash(SHA3_256).digest_many([bytes(1_000_000)] * 2)
                with pytest.raises(ResmgrError, match="too long"):
                    hasher.digest_many([bytes(2_000_000)])
            with pytest.raises(LookupError, match="/dev/crypto has no aead aes-128-ctr; it has aes-128-gcm"):
                device.aead("aes-128-ctr", KEY)
            with pytest.raises(ResmgrError, match="Invalid argument"):
                device.aead("aes-128-gcm", KEY[1:])
            with pytest.raises(ResmgrError, match="not supported"):
                device.aead("aes-128-gcm", KEY, hardware="only")

    async with open_manager([DEVICE], socket=socket) as manager:
        await in_thread(program)
        assert manager.stack.crypto.sessions == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
async def test_two_users_and_what_is_left_when_a_program_is_killed(open_folder: str) -> None:
    socket = f"{open_folder}/socket"
    text = OpenSSL().aead(AES_128_GCM, KEY).seal_many([bytes(12)], [b"text"], [b"head"])[0].hex()

    def start(*user: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(ROOT), socket, *user], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def said(program: subprocess.Popen[str]) -> str:
        assert program.stdout is not None
        return program.stdout.readline()

    async with open_manager([DEVICE], socket=socket) as manager:
        crypto = manager.stack.crypto
        one, other = start(), start("4001")
        try:
            # Each may have four, so neither takes any from the other.
            assert await in_thread(lambda: said(one)) == f"4 24 {text}\n"
            assert await in_thread(lambda: said(other)) == f"4 24 {text}\n"
            keys = [handle._key for handle in list(crypto._handles.values())]  # type: ignore[attr-defined]  # only handles are in there
            assert (crypto.sessions, set(map(bytes, keys))) == (8, {KEY})
            for program, left in ((one, 4), (other, 0)):
                program.kill()
                await in_thread(program.wait)
                with trio.fail_after(20):
                    while crypto.sessions != left:  # noqa: ASYNC110  # there is no event for what a daemon does
                        await trio.sleep(0.001)
            assert set(map(bytes, keys)) == {bytes(16)}
        finally:
            for program in (one, other):
                program.kill()
                program.communicate()


async def test_a_device_that_cannot_be_listed_leaves_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = str(tmp_path / "socket")
    made: list[CryptoDevice] = []

    def broken(device: CryptoDevice) -> list[Listed]:
        made.append(device)
        raise ResmgrError(5, "no list")

    monkeypatch.setattr(CryptoDevice, "_listing", broken)

    def program() -> None:
        with Client(socket) as client:
            with pytest.raises(ResmgrError, match="no list"):
                CryptoDevice(client, timeout=30)
            with pytest.raises(ResmgrError, match="Bad file descriptor"):
                made[0]._connection.send(b"?", reply_len=0, timeout=30)

    async with open_manager([DEVICE], socket=socket):
        await trio.to_thread.run_sync(program)
