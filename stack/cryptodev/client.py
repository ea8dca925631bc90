"""`/dev/crypto` for blocking programs: sessions with the calls of `stack.crypto.api`, carried out by the daemon of this node or of another.

    with Client(socket_path) as client, CryptoDevice(client) as device:
        with device.aead("aes-128-gcm", key) as session:
            sealed = session.seal_many(nonces, plaintexts, aads)
    CryptoDevice(client, node="B")        # /net/B/dev/crypto, if B's rules let us

A call of any size is cut into requests that the manager takes. What an algorithm needs is known here from the device's own list; lists
of unequal length are Misuse here, everything else is the manager's answer: ResmgrError with its errno (EMFILE too many sessions,
EAGAIN too much under way, EACCES).

Keys go to the daemon once, over its socket, and stay there; between nodes they go as all messages do, encrypted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from resmgr.client import Client
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse, ResmgrError
from resmgr.handlelist import pack_close
from resmgr.iomsg import Connect, Entry
from resmgr.iorequest import ConnectRequest, pack_devctl, pack_read
from resmgr.walk import REPLY_LEN, translate, walk_blocking
from stack.cryptodev.protocol import (
    BATCH_HEAD,
    BATCH_MAX,
    ITEMS_MAX,
    LENGTHS,
    PATH,
    Command,
    Listed,
    Operation,
    SessionRequest,
    pack_batch,
    pack_free,
    parse_listing,
    parse_results,
    reply_size,
)

_LISTING_MAX = 65536
_ROOM = BATCH_MAX - BATCH_HEAD.size


class CryptoDevice:
    """The device, opened. *timeout*: seconds for each request, None for ever. Close it, or leave the with block: its sessions end."""

    def __init__(self, client: Client, node: str = "", *, path: bytes = PATH, timeout: float | None = None) -> None:
        root, at = walk_blocking(client, b"/net/" + node.encode() if node else b"/", timeout)
        self._timeout = timeout
        try:
            request = ConnectRequest(Connect.OPEN, os.O_RDWR, root.entry.handle, path.lstrip(b"/")).pack()
            reply = at.send(request, reply_len=REPLY_LEN, timeout=timeout)
            if reply.status:
                raise ResmgrError(errno.ENOTSUP, "the device is served by another program, which this client does not follow")
            entry = Entry.parse(reply.data)
            target = entry.target
            self._connection = client.connect(*translate(root.address[0], (target.nd, target.pid, target.chid)))
            self._ocb = entry.ocb
            # The handle is the path manager's connection's until it is used on the device's own.
            try:
                self.algorithms = {one.name: one for one in self._listing()}
            except BaseException:
                self._connection.close()
                raise
            """By name, with the provider that serves new sessions."""
        finally:
            at.close()

    def _listing(self) -> list[Listed]:
        reply = self._connection.send(pack_read(self._ocb, 0, _LISTING_MAX), reply_len=_LISTING_MAX, timeout=self._timeout)
        return parse_listing(bytes(reply.data))

    def aead(self, name: str, key: Buffer, *, hardware: str = "any") -> AeadClient:
        """A session. ResmgrError: ENOENT no such algorithm, EINVAL no such key, EOPNOTSUPP nobody serves it so, EMFILE."""
        return AeadClient(self, self._known(name, "aead"), key, 0, hardware)

    def cipher(self, name: str, key: Buffer, *, hardware: str = "any") -> CipherClient:
        """See `aead`."""
        return CipherClient(self, self._known(name, "cipher"), key, 0, hardware)

    def mac(self, name: str, key: Buffer, tag_size: int = 0, *, hardware: str = "any") -> MacClient:
        """See `aead`. *tag_size* 0: whole tags."""
        return MacClient(self, self._known(name, "mac"), key, tag_size, hardware)

    def hash(self, name: str, *, hardware: str = "any") -> HashClient:
        """See `aead`."""
        return HashClient(self, self._known(name, "hash"), b"", 0, hardware)

    def _known(self, name: str, kind: str) -> Listed:
        found = self.algorithms.get(name)
        if found is None or found.kind != kind:
            have = ", ".join(one.name for one in self.algorithms.values() if one.kind == kind)
            raise LookupError(f"/dev/crypto has no {kind} {name}; it has {have}")
        return found

    def request(self, command: Command, *parts: Buffer, reply_len: int = 0) -> tuple[int, Buffer]:
        """One devctl: its status and data. For sessions."""
        reply = self._connection.send(pack_devctl(self._ocb, command, b"".join(parts)), reply_len=reply_len, timeout=self._timeout)
        return reply.status, reply.data

    def close(self) -> None:
        """End the sessions. Idempotent."""
        if self._ocb:
            ocb, self._ocb = self._ocb, 0
            try:
                self._connection.send(pack_close(ocb), timeout=self._timeout)
            finally:
                self._connection.close()

    def __enter__(self) -> CryptoDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Session:
    """A session of a device. Close it, or leave the with block, or close the device."""

    def __init__(self, device: CryptoDevice, algorithm: Listed, key: Buffer, tag_size: int, hardware: str) -> None:
        self.algorithm = algorithm
        self.tag_size = tag_size or algorithm.tag
        self._device = device
        request = SessionRequest(algorithm.name, bytes(key), tag_size, hardware).pack()
        self._number, _ = device.request(Command.SESSION, request)

    def close(self) -> None:
        """The daemon forgets the key. Idempotent."""
        if self._number:
            number, self._number = self._number, 0
            self._device.request(Command.FREE, pack_free(number))

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _batches(
        self, operation: Operation, nonces: Sequence[Buffer], aads: Sequence[Buffer], items: Sequence[Buffer]
    ) -> Iterator[bytes | None]:
        """The results of all items, in requests of a size that the manager takes."""
        if not self._number:
            raise Misuse("the session is closed")
        if any(given and len(given) != len(items) for given in (nonces, aads)) or (self.algorithm.nonce and len(nonces) != len(items)):
            raise Misuse(f"{len(nonces)} nonces, {len(items)} items and {len(aads)} associated data")
        begin = 0
        while begin < len(items):
            end, room = begin, _ROOM
            while end < len(items) and end - begin < ITEMS_MAX:
                room -= LENGTHS.size + self.algorithm.nonce + len(items[end]) + (len(aads[end]) if aads else 0)
                if room < 0 and end > begin:
                    break
                end += 1
            yield from self._batch(operation, nonces[begin:end], aads[begin:end], items[begin:end])
            begin = end

    def _batch(self, operation: Operation, nonces: Sequence[Buffer], aads: Sequence[Buffer], items: Sequence[Buffer]) -> list[bytes | None]:
        size = reply_size(operation, len(items), sum(map(len, items)), self.tag_size)
        _, data = self._device.request(Command.BATCH, *pack_batch(self._number, operation, nonces, aads, items), reply_len=size)
        return parse_results(data, len(items))

    def _all(self, operation: Operation, nonces: Sequence[Buffer], aads: Sequence[Buffer], items: Sequence[Buffer]) -> list[bytes]:
        """Of an operation that refuses no item."""
        return [b"" if one is None else one for one in self._batches(operation, nonces, aads, items)]


S = TypeVar("S", bound=_Session)


class AeadClient(_Session):
    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer]) -> list[bytes]:
        """`stack.crypto.api.AeadSession.seal_many`; Misuse of nonces and sizes is ResmgrError EINVAL or EBADMSG."""
        return self._all(Operation.SEAL, nonces, aads, plaintexts)

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer]) -> list[bytes | None]:
        """Plaintexts, None for an item that does not open."""
        return list(self._batches(Operation.OPEN, nonces, aads, ciphertexts))


class CipherClient(_Session):
    def encrypt_many(self, nonces: Sequence[Buffer], items: Sequence[Buffer]) -> list[bytes]:
        return self._all(Operation.ENCRYPT, nonces, (), items)

    def decrypt_many(self, nonces: Sequence[Buffer], items: Sequence[Buffer]) -> list[bytes]:
        return self._all(Operation.DECRYPT, nonces, (), items)


class MacClient(_Session):
    def tag_many(self, items: Sequence[Buffer]) -> list[bytes]:
        return self._all(Operation.TAG, (), (), items)

    def verify_many(self, items: Sequence[Buffer], tags: Sequence[Buffer]) -> list[bool]:
        """Whether each item has its tag; compared by the daemon."""
        return [one is not None for one in self._batches(Operation.VERIFY, (), items, tags)]


class HashClient(_Session):
    def digest_many(self, items: Sequence[Buffer]) -> list[bytes]:
        return self._all(Operation.DIGEST, (), (), items)
