"""/dev/crypto as clients see it, in virtual time: what it does, what it refuses, what it lets nobody take, and what is left when
somebody is gone.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import struct
from collections.abc import Callable, Iterator

import attrs
import pytest

from resmgr.access import Export, Policy
from resmgr.channel import ClientInfo, Credentials, Nd
from resmgr.dispatch import Buffer
from resmgr.iomsg import Entry
from resmgr.iorequest import pack_devctl
from resmgr.system import System
from resmgr.testing.ioclient import IoClient, fails
from resmgr.testing.virtual import VirtualDispatch
from stack.core.errors import ModuleError
from stack.core.loaded import Loaded
from stack.core.stack import Stack
from stack.crypto.algorithms import AEADS, ALGORITHMS, CIPHERS, HASHES, MACS, Hash
from stack.crypto.api import Provider
from stack.crypto.providers.openssl import Digests, OpenSSL
from stack.cryptodev.protocol import (
    BATCH_HEAD,
    BATCH_MAX,
    Command,
    Operation,
    SessionRequest,
    pack_batch,
    pack_free,
    parse_listing,
    parse_results,
)
from stack.managers.crypto import OPENINGS_MAX, WAITING_MAX, Cryptodev
from stack.managers.facts import module

KEY = bytes(range(16))
NONCE = bytes(12)


@attrs.define
class User:
    """A client with the device open."""

    client: IoClient
    entry: Entry

    def command(self, command: int, data: bytes, reply_len: int = 2 << 20) -> tuple[int, Buffer]:
        return self.client.send(self.entry.target, (pack_devctl(self.entry.ocb, command, data),), reply_len)

    def session(self, name: str = "aes-128-gcm", key: bytes = KEY, tag: int = 0, hardware: str = "any") -> int:
        return self.command(Command.SESSION, SessionRequest(name, key, tag, hardware).pack())[0]

    def batch(
        self, session: int, operation: Operation, nonces: list[bytes], aads: list[bytes], items: list[bytes], reply_len: int = 2 << 20
    ) -> list[bytes | None]:
        _, data = self.command(Command.BATCH, b"".join(pack_batch(session, operation, nonces, aads, items)), reply_len)
        return parse_results(data, len(items))

    def seal(self, session: int, text: bytes = b"text") -> bytes | None:
        return self.batch(session, Operation.SEAL, [NONCE], [b""], [text])[0]

    def later(self, session: int, size: int, answers: list[int]) -> Callable[[], None]:
        """A digest of *size* bytes under way; the result lets it give up."""
        data = pack_devctl(self.entry.ocb, Command.BATCH, b"".join(pack_batch(session, Operation.DIGEST, [], [], [bytes(size)])))
        pending = self.client.connection(self.entry.target).submit((data,), 1000, lambda status, _: answers.append(status))
        assert pending is not None
        return pending.unblock


class Rig:
    def __init__(self, options: str = "") -> None:
        self.dispatch = VirtualDispatch(1)
        self.system = System(self.dispatch, "here")
        self.stack = Stack(self.system, lambda size: bytes(size))
        self.loaded: Loaded = self.stack.load("stack.managers.crypto", options)
        attached = self.loaded.attached
        assert isinstance(attached, Cryptodev)
        self.manager = attached.manager

    def run(self, goal: Callable[[], bool]) -> None:
        self.dispatch.run_until(goal)

    def user(self, uid: int = 1000, nd: int = 0, flags: int = os.O_RDWR) -> User:
        client = IoClient(self.system.kernel, Credentials(uid, uid), run=self.run)
        for target in (client.root, self.manager.target):
            connection = client.connection(target)
            if nd:
                connection.info = ClientInfo(Nd(nd), "other", frozenset(), Credentials(uid, uid), connection.coid)
        return User(client, client.open(b"dev/crypto", flags))

    def export(self, *verbs: str) -> None:
        exports = (Export("/dev/crypto", verbs),) if verbs else ()
        self.system.set_policy(Policy(self.system.accounts, exports=exports))


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.stack.close()
    made.system.close()
    assert made.stack.crypto.sessions == 0


def test_reading_lists_what_there_is(rig: Rig) -> None:
    client = IoClient(rig.system.kernel, Credentials(4000, 4000))
    entry = client.open(b"dev/crypto")
    listed = parse_listing(bytes(client.read(entry.target, entry.ocb, 0, 65536)))
    assert [one.name for one in listed] == [one.name for one in ALGORITHMS]
    assert {one.provider for one in listed} == {"openssl"}
    assert client.stat(entry.target, entry.ocb).mode == 0o020666
    with fails(errno.EBADF):
        client.send(entry.target, (pack_devctl(entry.ocb, Command.SESSION, b""),))
    with fails(errno.ENOTDIR):
        client.open(b"x", handle=0, target=rig.manager.target)


def test_every_algorithm_gives_what_the_api_gives(rig: Rig) -> None:
    user, right = rig.user(), OpenSSL()
    items = [b"", b"text", bytes(70_000)]
    for aead in AEADS:
        key = bytes(aead.key_size)
        nonces, aads = [bytes([number]) * aead.nonce_size for number in range(3)], [b"", b"head", bytes(20)]
        items_now = [one[: aead.plaintext_max] for one in items]
        session = user.session(aead.name, key)
        sealed = right.aead(aead, key).seal_many(nonces, items_now, aads)
        assert user.batch(session, Operation.SEAL, nonces, aads, items_now) == sealed
        assert user.batch(session, Operation.OPEN, nonces, aads, [sealed[0], b"short", sealed[2]]) == [items_now[0], None, items_now[2]]
    for cipher in CIPHERS:
        blocks = [bytes([number]) * 16 for number in range(3)]
        session = user.session(cipher.name, bytes(cipher.key_size))
        made = right.cipher(cipher, bytes(cipher.key_size)).encrypt_many(blocks, items)
        assert user.batch(session, Operation.ENCRYPT, blocks, [], items) == made
        assert user.batch(session, Operation.DECRYPT, blocks, [], made) == items
    for mac in MACS:
        session = user.session(mac.name, bytes(mac.key_max), mac.tag_min)
        tags = right.mac(mac, bytes(mac.key_max), mac.tag_min).tag_many(items)
        assert user.batch(session, Operation.TAG, [], [], items) == tags
        assert user.batch(session, Operation.VERIFY, [], items, [tags[0], tags[0], tags[2]]) == [b"", None, b""]
    for algorithm in HASHES:
        session = user.session(algorithm.name, b"")
        assert user.batch(session, Operation.DIGEST, [], [], items) == right.hash(algorithm).digest_many(items)
    assert (rig.manager.jobs.threaded, rig.manager.jobs.inline) == (2 * len((*AEADS, *CIPHERS, *MACS)) + len(HASHES), 0)
    assert user.batch(session, Operation.DIGEST, [], [], items[:2]) == right.hash(algorithm).digest_many(items[:2])
    assert rig.manager.jobs.inline == 1
    told = module(rig.loaded)["counters"]
    assert isinstance(told, dict)
    assert (told["batches_inline"], told["refused_users"]) == (1, 0)
    assert rig.stack.crypto.sessions == len(ALGORITHMS)


def test_what_is_wrong_is_an_errno_and_costs_nothing(rig: Rig) -> None:
    user = rig.user()
    session, digest = user.session(), user.session("sha256", b"")
    for name, key, tag, hardware, code in (
        ("rot13", KEY, 0, "any", errno.ENOENT),
        ("aes-128-gcm", KEY[:15], 0, "any", errno.EINVAL),
        ("aes-128-gcm", KEY, 4, "any", errno.EINVAL),
        ("sha256", KEY, 0, "any", errno.EINVAL),
        ("hmac-sha256", KEY, 9, "any", errno.EINVAL),
        ("aes-128-gcm", KEY, 0, "only", errno.EOPNOTSUPP),
    ):
        with fails(code):
            user.session(name, key, tag, hardware)
    for operation in (Operation.OPEN, Operation.ENCRYPT, Operation.TAG, Operation.VERIFY, Operation.SEAL):
        with fails(errno.EINVAL):
            user.batch(digest, operation, [], [], [b"x"])
    with fails(errno.EBADMSG):
        user.batch(session, Operation.SEAL, [NONCE[:11]], [b""], [b"x"])
    with fails(errno.EINVAL):
        user.batch(user.session("ccmp-128"), Operation.SEAL, [bytes(13)], [b""], [bytes(65536)])
    with fails(errno.EMSGSIZE):
        user.batch(session, Operation.SEAL, [NONCE], [b""], [b"text"], reply_len=4 + 4 + 15)
    with fails(errno.EMSGSIZE):
        user.batch(digest, Operation.DIGEST, [], [], [bytes(BATCH_MAX + 64)])
    for number in (0, 99):
        with fails(errno.EBADF):
            user.seal(number)
        with fails(errno.EBADF):
            user.command(Command.FREE, pack_free(number))
    with fails(errno.ENOTTY):
        user.command(9, b"")
    for command in (Command.SESSION, Command.FREE, Command.BATCH):
        with fails(errno.EBADMSG):
            user.command(command, b"\1")
    with fails(errno.EBADMSG):
        user.command(Command.BATCH, BATCH_HEAD.pack(session, 1, 1000) + struct.pack("!II", 2**32 - 1, 2**32 - 1) * 1000)
    assert user.batch(digest, Operation.DIGEST, [], [], []) == []
    assert rig.manager.accounts.inflight == 0
    assert rig.manager.counters["bad_message"] == 5
    assert rig.manager.counters["failed"] == 0
    assert len(user.seal(session) or b"") == 20


def test_sessions_are_for_one_opening_and_end_with_it(rig: Rig) -> None:
    one, other = rig.user(), rig.user(2000)
    number = one.session()
    mine = rig.manager._device
    assert mine is not None
    with fails(errno.EBADF):
        other.seal(number)
    second = rig.user()
    with fails(errno.EBADF):
        second.seal(number)
    one.command(Command.FREE, pack_free(number))
    with fails(errno.EBADF):
        one.seal(number)
    keys = []
    for user in (one, other, second):
        user.session()
        user.session("hmac-sha256")
    for handle in list(rig.stack.crypto._handles.values()):
        keys.append(handle._key)  # type: ignore[attr-defined]  # only handles are in there
    del handle
    assert (rig.stack.crypto.sessions, rig.manager.accounts.things) == (6, 6)
    one.client.close(one.entry.target, one.entry.ocb)
    assert rig.stack.crypto.sessions == 4
    other.client.close_all()  # its program is gone
    assert rig.stack.crypto.sessions == 2
    rig.stack.unload(rig.loaded)
    assert (rig.stack.crypto.sessions, rig.manager.accounts.things) == (0, 0)
    assert {bytes(key) for key in keys} == {bytes(16)}
    with fails(errno.EBADF):
        second.session()
    with fails(errno.ENOENT):
        rig.user()


def test_limits_are_per_user() -> None:
    rig = Rig("sessions=3,inflight=100k")
    one, again, other = rig.user(), rig.user(), rig.user(2000)
    for _ in range(3):
        digest = one.session("sha256", b"")
    for user in (one, again):
        with fails(errno.EMFILE):
            user.session()
    assert other.session("sha256", b"") == 1
    # Under way: virtual time begins threaded work at once and tells of it later.
    answers: list[int] = []
    one.later(digest, 60_000, answers)
    with fails(errno.EAGAIN):
        one.batch(digest, Operation.DIGEST, [], [], [bytes(60_000)])
    assert len(other.batch(1, Operation.DIGEST, [], [], [bytes(60_000)])) == 1
    assert answers == [0]
    assert one.batch(digest, Operation.DIGEST, [], [], [bytes(60_000)])
    assert rig.manager.accounts.refused == {"things": 2, "inflight": 1, "users": 0}
    assert rig.manager.accounts.inflight == 0
    rig.stack.close()
    rig.system.close()


def test_one_user_has_so_many_openings(rig: Rig) -> None:
    user = rig.user(4001)
    entries = [user.client.open(b"dev/crypto", os.O_RDWR) for _ in range(OPENINGS_MAX - 1)]
    for flags in (os.O_RDONLY, os.O_RDWR):
        with fails(errno.EMFILE):
            user.client.open(b"dev/crypto", flags)
    with fails(errno.EMFILE):
        rig.user(4001)  # nor by another connection
    other = rig.user(4002)
    assert other.seal(other.session())
    user.client.close(entries[0].target, entries[0].ocb)
    again = user.client.open(b"dev/crypto", os.O_RDWR)
    assert again.ocb
    told = module(rig.loaded)["counters"]
    assert isinstance(told, dict)
    assert told["refused_openings"] == 3
    user.client.close_all()
    assert rig.manager._device._openings == {4002: 1}


def test_work_beyond_the_rate_waits_its_turn() -> None:
    rig = Rig("rate=1000,inflight=64M")
    user, other = rig.user(), rig.user(2000)
    digest, others = user.session("sha256", b""), other.session("sha256", b"")
    answers: list[int] = []
    begin = rig.dispatch.time
    size = 400_000  # 1 + 1 + 97 units, of 2048 at once
    giving_up = [user.later(digest, size, answers) for _ in range(40)]
    # What fits the burst is done; somebody else is not held up.
    assert len(other.batch(others, Operation.DIGEST, [], [], [bytes(size)])) == 1
    assert rig.dispatch.time - begin < 0.01
    assert len(answers) < 5, "it did not take its turn, but stood behind all that the first has"
    rig.dispatch.run_for(0.01)
    assert len(answers) == 20
    assert rig.manager.counters["waited"] == 20
    giving_up[39]()
    giving_up[21]()
    assert answers[20:] == [-errno.EINTR, -errno.EINTR]
    for _ in range(WAITING_MAX - 20):
        user.later(digest, 10, answers)
    with fails(errno.EAGAIN):
        user.batch(digest, Operation.DIGEST, [], [], [b"x"])
    rig.dispatch.run_until(lambda: len(answers) == 40 + WAITING_MAX - 20)
    assert 1.7 < rig.dispatch.time - begin < 2.0
    assert answers.count(0) == len(answers) - 2
    assert (rig.manager.accounts.inflight, rig.manager._lines) == (0, {})
    # A client that is gone while its work waits takes nothing from the next.
    for _ in range(40):
        user.later(digest, size, answers)
    user.client.close_all()
    rig.dispatch.run_for(10.0)
    assert (rig.manager.accounts.inflight, rig.manager._lines, rig.manager.accounts.things) == (0, {}, 1)
    rig.stack.close()
    rig.system.close()


def test_making_sessions_is_work_that_waits_for_the_rate() -> None:
    rig = Rig("rate=1000")
    user, begin = rig.user(), rig.dispatch.time
    for _ in range(1000):
        user.command(Command.FREE, pack_free(user.session()))
    # 3 units each, of 2048 at once.
    assert rig.dispatch.time - begin == pytest.approx((3 * 1000 - 2048) / 1000, abs=0.02)
    answers: list[int] = []
    data = pack_devctl(user.entry.ocb, Command.SESSION, SessionRequest("aes-128-gcm", KEY).pack())
    user.client.connection(user.entry.target).submit((data,), 1000, lambda status, _: answers.append(status))
    assert answers == []
    # The device is closed while a session waits: it is not made for nobody.
    user.client.close(user.entry.target, user.entry.ocb)
    rig.dispatch.run_for(1.0)
    assert len(answers) == 1
    assert answers[0] < 0
    assert (rig.stack.crypto.sessions, rig.manager.accounts.things, rig.manager.accounts.inflight) == (0, 0, 0)
    rig.stack.close()
    rig.system.close()


def test_items_and_associated_data_count_as_their_bytes_do(rig: Rig) -> None:
    """Neither 1,024 empty items nor a small text with a large head is done in the dispatch, nor held for nothing."""
    user = rig.user()
    session = user.session()
    user.batch(session, Operation.SEAL, [NONCE] * 1024, [b""] * 1024, [b""] * 1024)
    user.batch(session, Operation.SEAL, [NONCE], [bytes(500_000)], [b"x"])
    assert (rig.manager.jobs.threaded, rig.manager.jobs.inline) == (2, 0)
    small = Rig("inflight=1M")
    user, answers = small.user(), list[int]()
    digest = user.session("sha256", b"")
    batch = pack_devctl(user.entry.ocb, Command.BATCH, b"".join(pack_batch(digest, Operation.DIGEST, [], [], [b""] * 1024)))
    for _ in range(4):
        user.client.connection(user.entry.target).submit((batch,), 1 << 20, lambda status, _: answers.append(status))
    small.dispatch.run_for(1.0)
    assert sorted(answers) == [-errno.EAGAIN, -errno.EAGAIN, -errno.EAGAIN, 0]
    assert small.manager.accounts.inflight == 0
    small.stack.close()
    small.system.close()


def test_other_nodes_need_an_export_at_each_request(rig: Rig) -> None:
    with fails(errno.EACCES):
        rig.user(nd=5)
    rig.export("read")
    reader = rig.user(nd=5, flags=os.O_RDONLY)
    assert parse_listing(bytes(reader.client.read(reader.entry.target, reader.entry.ocb, 0, 65536)))
    user = rig.user(nd=5)
    with fails(errno.EACCES):
        user.session()
    rig.export("read", "write")
    session = user.session()
    assert user.seal(session)
    rig.export("read")
    with fails(errno.EACCES):
        user.seal(session)
    rig.export()
    with fails(errno.EACCES):
        user.seal(session)
    with fails(errno.EACCES):
        reader.client.read(reader.entry.target, reader.entry.ocb, 0, 65536)
    assert rig.manager.accounts.inflight == 0
    assert rig.user().session() == 1
    # Two nodes' users of one number are two users.
    assert len(rig.manager.accounts) == 2


def test_sessions_move_with_the_rest(rig: Rig) -> None:
    class Other(OpenSSL):
        name = "other"

    def other() -> Provider:
        return Other()

    rig.stack.crypto.add("other", other)
    user = rig.user()
    session = user.session()
    before = user.seal(session)
    assert rig.stack.crypto.use("other").moved == 1
    assert user.seal(session) == before
    listed = parse_listing(bytes(user.client.read(user.entry.target, user.entry.ocb, 0, 65536)))
    assert {one.provider for one in listed} == {"other"}
    rig.stack.crypto.remove("other")
    assert user.seal(session) == before


def test_loaded_and_unloaded_a_thousand_times_under_traffic() -> None:
    """Sessions, batches in threads and batches that wait: nothing of a round is there after it, and what was under way is answered."""
    rig = Rig("rate=8000")
    rig.stack.unload(rig.loaded)
    client = IoClient(rig.system.kernel, Credentials(1000, 1000), run=rig.run)
    answers: list[int] = []
    held = 0
    for number in range(1000):
        loaded = rig.stack.load("stack.managers.crypto", "rate=8000")
        user = User(client, client.open(b"dev/crypto", os.O_RDWR))
        user.session()
        digest = user.session("sha256", b"")
        for size in (10, 60_000, 600_000, 600_000):
            user.later(digest, size, answers)
        rig.stack.unload(loaded)
        rig.dispatch.run_for(0.001)
        client.close_all()
        assert len(answers) == 4 * (number + 1)
        assert rig.stack.crypto.sessions == 0
        if number == 20:
            gc.collect()
            held = len(gc.get_objects())
            assert rig.system._guarded
            guarded = len(rig.system._guarded)
    gc.collect()
    assert len(gc.get_objects()) < held + 200
    assert len(rig.system._guarded) == guarded
    rig.stack.close()
    rig.system.close()


def test_a_provider_that_breaks_is_passed_over(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(OpenSSL):
        name = "broken"

        def hash(self, algorithm: Hash) -> Digests:
            return Digests(algorithm, lambda item: b""[9:10] or bytes(1 // len(item)))

    rig.stack.crypto.add("broken", Broken)
    user = rig.user()
    digest = user.session("sha256", b"")
    right = user.batch(digest, Operation.DIGEST, [], [], [b""])
    rig.stack.crypto.use("broken")
    for _ in range(2):
        assert user.batch(digest, Operation.DIGEST, [], [], [b""]) == right
    assert "ZeroDivisionError" in caplog.text
    assert rig.manager.counters["failed"] == 0
    # Nobody else has it: the client is told.
    rig.stack.crypto.use("broken")
    for name in ("openssl", "threads", "reference"):
        rig.stack.crypto.remove(name)
    with fails(errno.EAGAIN):
        user.batch(digest, Operation.DIGEST, [], [], [b""])
    assert rig.manager.accounts.inflight == 0


def test_there_is_one_of_a_path(rig: Rig) -> None:
    with pytest.raises(ModuleError, match="there is something at /dev/crypto already: this stack has a cryptodev") as raised:
        rig.stack.load("stack.managers.crypto", "sessions=3")
    assert raised.value.errno == errno.EEXIST
    user = rig.user()
    assert user.seal(user.session())
    assert len(rig.stack.loaded) == 1
    rig.stack.unload(rig.loaded)
    rig.stack.load("stack.managers.crypto")


@pytest.mark.parametrize("raises", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_whatever_work_raises_is_answered(rig: Rig, raises: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the manager's own hands, at once and when the rate lets it."""
    user = rig.user()

    def wrong(*_: object, **__: object) -> None:
        raise raises("wrong")

    monkeypatch.setattr(rig.stack.crypto, "aead", wrong)
    with fails(errno.EIO):
        user.session()
    monkeypatch.setattr("stack.managers.crypto.parse_devctl", wrong)
    with fails(errno.EIO):
        user.session()
    assert rig.loaded.guard.failures == {}
    assert (rig.manager.accounts.inflight, rig.manager.accounts.things) == (0, 0)


def test_each_of_two_stacks_in_one_pathname_space_has_its_device(rig: Rig) -> None:
    """A stack's prefix is where all that it has is."""
    other = Stack(rig.system, lambda size: bytes(size), "io-pkt1", prefix="/alt")
    loaded = other.load("stack.managers.crypto", "mode=0o600").attached
    assert isinstance(loaded, Cryptodev)
    client = IoClient(rig.system.kernel, Credentials(0, 0))
    assert client.open(b"dev/crypto", os.O_RDWR).target == rig.manager.target
    assert client.open(b"alt/dev/crypto", os.O_RDWR).target == loaded.manager.target
    with fails(errno.EACCES):
        IoClient(rig.system.kernel, Credentials(1000, 1000)).open(b"alt/dev/crypto", os.O_RDWR)
    other.close()
