"""Whose request it is, and where its work is done: what every handler of `HostFs` stands on.

A request is answered inline when its file system answers from memory (see `device`), else in a worker thread; both run the same operation
as the client's mapped user (see `identity`). What is new (handles) is registered in dispatch context.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from resmgr.access import NotExported, Policy, Scope
from resmgr.channel import Message
from resmgr.dispatch import Dispatch
from resmgr.errors import ResmgrError
from resmgr.explain import what
from resmgr.hostfs.device import Device, Devices
from resmgr.hostfs.identity import Identity, Switch
from resmgr.hostfs.locks import HostLocks
from resmgr.hostfs.made import Opened
from resmgr.hostfs.mountpoints import MountPoints
from resmgr.hostfs.objects import Busy, HostClient, HostHandle, Leased
from resmgr.hostfs.operations import Operations
from resmgr.hostfs.special import Special
from resmgr.hostfs.streams import DeviceIo
from resmgr.hostfs.watching import Watching
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.manager import Manager
from resmgr.iomsg import (
    DELEGATED,
    EMPTY,
    SET_SIZE,
    WATCH_ATTRIB,
    WATCH_CLOSE_WRITE,
    WATCH_CREATE,
    WATCH_DELETE,
    WATCH_MODIFY,
    WATCH_MOVED_FROM,
    WATCH_MOVED_TO,
    WATCHED,
    Connect,
)
from resmgr.iorequest import ConnectRequest
from resmgr.refusals import Refusals

RENAME_EXCHANGE: Final = 2
CLIENT_EXPIRY: Final = 60.0
"""Seconds after which a client's mapping and exports are computed again (accounts may have changed)."""

_OPEN: Final = int(Connect.OPEN)
_RENAME: Final = int(Connect.RENAME)
_LINK: Final = int(Connect.LINK)
_CHANGES: Final = {
    int(Connect.UNLINK): WATCH_DELETE,
    int(Connect.RMDIR): WATCH_DELETE,
    int(Connect.REMOVE): WATCH_DELETE,
    int(Connect.MKDIR): WATCH_CREATE,
    int(Connect.MKNOD): WATCH_CREATE,
    int(Connect.SYMLINK): WATCH_CREATE,
    int(Connect.SETATTR): WATCH_ATTRIB | WATCH_MODIFY,
}
"""Events that come of connect messages."""

if TYPE_CHECKING:
    from resmgr.hostfs.delegating import HostDelegations
    from resmgr.hostfs.fetches import Fetches
    from resmgr.hostfs.offers import Offers
    from resmgr.hostfs.reopen import Reopening

Result = bytes | Opened | Special | Busy
Operation = Callable[[Operations, HostHandle, ConnectRequest], Result]


class Running:
    """The parts of a `HostFs`, set by it, and how an operation is carried out."""

    dispatch: Dispatch
    switch: Switch
    policy: Policy
    prefix: bytes
    devices: Devices
    root: HostHandle
    mounts: MountPoints
    looked: float
    locks: HostLocks
    special: DeviceIo
    manager: Manager[HostClient]
    ops: Operations
    reopening: Reopening
    offers: Offers
    fetches: Fetches
    watching: Watching
    delegations: HostDelegations
    counters: dict[str, int]
    refusals: Refusals

    # ---- who and what

    def refresh(self, client: HostClient) -> Identity:
        """Ask the policy again. Raises EPERM for a client that is nobody here."""
        user = self.policy.user(client.info)
        if isinstance(user, int):
            self.counters["user_refused"] += 1
            raise OSError(user, "no user mapping lets this client in")
        try:
            identity = self.switch.identity(user)
        except PermissionError:
            self.counters["identity_refused"] = self.switch.refused
            raise
        scope: Scope = self.policy.scope(client.info, self.prefix)
        owners = self.policy.owners(client.info)
        client.identity = identity
        client.ops = self.ops.for_owners(owners)
        client.root = HostHandle(self.root.fd, scope, self.devices.root, True)
        client.root.inode = self.root.inode
        client.expires = self.dispatch.now() + CLIENT_EXPIRY
        return identity

    def identity(self, client: HostClient) -> Identity:
        identity = client.identity
        if identity is None or client.expires <= self.dispatch.now():
            return self.refresh(client)
        return identity

    def place(self, client: HostClient, base: Handle | None) -> HostHandle:
        """Where a connect message of *client*, perhaps its first, begins."""
        if base is None and client.root is None:
            self.identity(client)
        place = base or client.root
        assert isinstance(place, HostHandle)
        return place

    def ops_of(self, client: HostClient) -> Operations:
        """The operations as this client is told owners."""
        self.identity(client)
        ops = client.ops
        assert ops is not None
        ops.at_risk = self.ops.at_risk
        return ops

    # ---- running operations

    def run(
        self,
        message: Message,
        client: HostClient,
        base: Handle | None,
        request: ConnectRequest,
        operation: Operation,
        second: Handle | None = None,
        inline: bool = True,
        delegate: Callable[[Opened], bool] | None = None,
    ) -> None:
        """Carry out a connect operation and answer. *second* is a further handle that the operation uses. Not *inline*: it takes long
        whatever the file system. *delegate*: offers the client a delegation of what was opened."""
        identity = self.identity(client)
        place = self.place(client, base)
        ops = client.ops
        assert ops is not None
        device = place.device
        now = self.dispatch.now()
        waits = device if not inline or device.blocking_until > now else self.crosses(request, now)
        ops.at_risk = self.ops.at_risk
        if waits is None and isinstance(second, HostHandle) and second.device.blocking_until > now:
            waits = second.device
        if self.delegations.alone and self.delegations.meets(message, client, place, second, request, waits is None):
            return
        if waits is not None:
            self.counters["threaded"] += 1
            request.watch = request.after = None
            self.manager.background(
                message,
                client,
                (self.root, base or self.root, second or self.root),
                lambda: self.in_thread(client, identity, operation, ops, place, request),
                lambda result: self.finish(message, client, result),
                _discard,
                waits.lane,
            )
            return
        start = monotonic()
        try:
            result = self.switch.run(identity, operation, ops, place, request)
        except NotExported as error:
            self.refused(client, error.path)
            raise
        except BlockingIOError as met:
            self.delegations.caught(message, met)
            return
        finally:
            device.took(monotonic() - start, now)
        if delegate is not None and isinstance(result, Opened):
            result.delegated = delegate(result)
        if self.watching.active:
            self._changed(client, place, request, result, second)
        if isinstance(result, bytes):
            message.reply(0, result)
        else:
            self.finish(message, client, result)

    def in_thread(
        self, client: HostClient, identity: Identity, operation: Operation, ops: Operations, place: HostHandle, request: ConnectRequest
    ) -> Result:
        """Carry it out as the client, in a worker thread."""
        try:
            return self.switch.run(identity, operation, ops, place, request)
        except NotExported as error:
            self.dispatch.call_from_thread(partial(self.refused, client, error.path))
            raise
        except BlockingIOError as met:
            return Busy(met)

    def refused(self, client: HostClient, path: bytes) -> None:
        """The client asked for what no export covers."""

        def why() -> str:
            try:
                return what(self.policy, client.info, path)
            except ResmgrError:
                # The accounts that the rules name are being looked up again.
                return "no export covers it"

        self.refusals.note(client.info, path, why)

    def _changed(self, client: HostClient, base: HostHandle, request: ConnectRequest, result: Result, second: Handle | None) -> None:
        """What *client* has changed by *request* it need not be told."""
        subtype, path = request.subtype, request.path
        if subtype == _OPEN:
            ocb = result.ocb if isinstance(result, Opened) else None
            if ocb is None or not ocb.writable or not path or path.find(b"/") >= 0:
                return
            ino, name = ocb.place = (base.ino, path)
            ocb.after_close = partial(self.watching.later, client, (ino, name, WATCH_CLOSE_WRITE))
            kinds = (WATCH_CREATE if request.flags & os.O_CREAT else 0) | (WATCH_MODIFY if request.flags & os.O_TRUNC else 0)
            if kinds:
                self.watching.later(client, (ino, name, kinds))
        elif subtype == _RENAME and isinstance(second, HostHandle):
            both = WATCH_MOVED_FROM | WATCH_MOVED_TO if request.flags & RENAME_EXCHANGE else 0
            old, new = both or WATCH_MOVED_FROM, both or WATCH_MOVED_TO
            self.watching.later(client, (base.ino, path, old), (second.ino, request.path2, new))
        elif subtype == _LINK and isinstance(second, HostHandle):
            self.watching.later(client, (second.ino, request.path2, WATCH_CREATE))
        elif subtype in _CHANGES and request.after is None:
            self.watching.later(client, (base.ino, path, _CHANGES[subtype] | (WATCH_CLOSE_WRITE if resizes(request) else 0)))

    def at_risk(self, now: float) -> Mapping[bytes, int]:
        """Names of mount points that must not be touched inline; asked for once a turn."""
        if now != self.looked:
            self.looked = now
            self.ops.at_risk = self.mounts.look()
        return self.ops.at_risk

    def crosses(self, request: ConnectRequest, now: float) -> Device | None:
        """The file system that may not answer and that the way seems to lead into."""
        names = self.at_risk(now)
        if names:
            for name in (*request.path.split(b"/"), *request.path2.split(b"/")):
                if name in names:
                    return self.devices.get(names[name])
        return None

    def finish(self, message: Message, client: HostClient, result: Result) -> None:
        if isinstance(result, bytes):
            message.reply(0, result)
            return
        if isinstance(result, Special):
            self.special.open(message, client, result)
            return
        if isinstance(result, Busy):
            self.delegations.caught(message, result)
            return
        alone = self.delegations.alone
        if alone and (key := alone.of_opened(client, result)) is not None:
            result.discard()
            self.delegations.caught_by(message, [key])
            return
        try:
            self.manager.check_room(client)
        except OSError:
            result.discard()
            raise
        node = 0 if result.node is None else self.manager.add(message, client, result.node)
        ocb = 0 if result.ocb is None else self.manager.add(message, client, result.ocb)
        if result.ocb is not None and result.ocb.directory:
            node = ocb
        bits = (WATCHED if result.watched else 0) | (EMPTY if result.empty else 0) | (DELEGATED if result.delegated else 0)
        message.reply(0, self.ops.entry(result.attr, node, ocb, result.data, bits))

    def io(
        self,
        message: Message,
        client: HostClient,
        handle: HostHandle,
        work: Callable[[], bytes],
        inline: bool = True,
        expected: float = 0.0,
    ) -> None:
        """Carry out an I/O operation as the client and answer with its bytes."""
        identity = self.identity(client)
        device = handle.device
        now = self.dispatch.now()
        if not inline or device.blocking_until > now:
            self.counters["threaded"] += 1
            self.manager.background(
                message, client, (handle,), lambda: self._worked(identity, work), lambda data: self._done(message, data), lane=device.lane
            )
            return
        start = monotonic()
        try:
            data = self.switch.run(identity, work)
        except Leased as met:
            self.delegations.caught(message, met)
            return
        finally:
            device.took(monotonic() - start, now, expected)
        message.reply(0, data)

    def _worked(self, identity: Identity, work: Callable[[], bytes]) -> bytes | Busy:
        try:
            return self.switch.run(identity, work)
        except Leased as met:
            return Busy(met)

    def _done(self, message: Message, data: bytes | Busy) -> None:
        if isinstance(data, Busy):
            self.delegations.caught(message, data)
        else:
            message.reply(0, data)

    def second(self, message: Message, client: HostClient, request: ConnectRequest) -> HostHandle:
        """The further base handle that *request* names."""
        self.identity(client)
        if not request.handle2:
            assert client.root is not None
            return client.root
        handle = self.manager.table.find(client, request.handle2, message.channel is self.manager.channel)
        if not isinstance(handle, HostHandle):
            raise OSError(errno.EBADF, "second base handle")
        return handle


def resizes(request: ConnectRequest) -> bool:
    """Whether it is a SETATTR of the size, for which the file is opened and closed."""
    return request.change is not None and bool(request.change.valid & SET_SIZE)


def _discard(result: Result) -> None:
    if not isinstance(result, bytes):
        result.discard()
