"""Requests to `/dev/crypto` under way: what an opening has, what a request is charged to, and which call a batch is."""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable, Sequence

from resmgr.channel import Message
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.handles import AeadHandle, CipherHandle, HashHandle, MacHandle
from stack.crypto.jobs import Jobs
from stack.crypto.registry import NotServed
from stack.cryptodev.protocol import Operation, pack_results
from stack.managers.accounts import Account, Accounts

Session = AeadHandle | CipherHandle | MacHandle | HashHandle


class Opening:
    """One opening of the device, by the local user *uid*, and its sessions by number."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.sessions: dict[int, Session] = {}
        self.account: Account | None = None
        self.next = 1
        self.ended = False


class Request:
    """A request under way, charged to its user until it is answered."""

    def __init__(
        self,
        accounts: Accounts,
        failed: Callable[[Message, BaseException], None],
        message: Message,
        opening: Opening,
        account: Account,
    ) -> None:
        """*failed* answers a message with what an error means."""
        self._accounts = accounts
        self._failed = failed
        self.message = message
        self.size = message.msglen
        """Bytes of the request."""
        self._charged = self.size
        self.opening = opening
        self.account = account

    def charge(self, size: int) -> None:
        """*size* bytes more are under way because of it. EAGAIN; then it is charged for nothing, and is to be failed."""
        whole, charged, self._charged = self._charged + size, self._charged, 0
        self._accounts.end(self.account, charged)
        self._accounts.begin(self.account, whole)
        self._charged = whole

    def answer(self, status: int, *data: Buffer) -> None:
        """Once, or `fail` once. A client that gave up has been answered already."""
        self._accounts.end(self.account, self._charged)
        if not self.message.answered:
            self.message.reply(status, *data)

    def fail(self, error: BaseException) -> None:
        self._accounts.end(self.account, self._charged)
        if not self.message.answered:
            self._failed(self.message, told_as(error))

    def done(self, results: Sequence[Buffer | None] | Sequence[bool] | BaseException) -> None:
        """The end of a batch."""
        if isinstance(results, BaseException):
            self.fail(results)
        else:
            self.answer(0, pack_results([b"" if one is True else None if one is False else one for one in results]))


def told_as(error: BaseException) -> BaseException:
    """*error* as the client is told of it: what it did wrong is not this program's mistake."""
    if isinstance(error, Misuse):
        return OSError(errno.EINVAL, str(error))
    if isinstance(error, NotServed):
        return OSError(errno.EOPNOTSUPP, str(error))
    return error


def each(session: Session) -> int:
    """Bytes that each item's result has, or has more than its data."""
    if isinstance(session, MacHandle):
        return session.tag_size
    if isinstance(session, HashHandle):
        return session.algorithm.digest_size
    return session.algorithm.tag_size if isinstance(session, AeadHandle) else 0


ITEM_MEMORY = 768
"""Bytes that an item takes while it is under way, beside its own: three views and a result, as Python has them. Without it, a request of
1,024 empty items would hold a hundred times what it is charged for."""


Work = Callable[[Jobs, Callable[[Sequence[Buffer | None] | Sequence[bool] | BaseException], None]], None]


def work_of(
    session: Session, operation: int, nonces: list[memoryview], aads: list[memoryview], items: list[memoryview], client: Hashable
) -> Work:
    """What to give to the jobs, in *client*'s turn. Misuse when the session is of another kind."""
    match session, operation:
        case AeadHandle(), Operation.SEAL:
            return lambda jobs, done: session.seal_later(jobs, nonces, items, aads, done, client)
        case AeadHandle(), Operation.OPEN:
            return lambda jobs, done: session.open_later(jobs, nonces, items, aads, done, client)
        case CipherHandle(), Operation.ENCRYPT:
            return lambda jobs, done: session.encrypt_later(jobs, nonces, items, done, client)
        case CipherHandle(), Operation.DECRYPT:
            return lambda jobs, done: session.decrypt_later(jobs, nonces, items, done, client)
        case MacHandle(), Operation.TAG:
            return lambda jobs, done: session.tag_later(jobs, items, done, client)
        case MacHandle(), Operation.VERIFY:
            return lambda jobs, done: session.verify_later(jobs, aads, items, done, client)
        case HashHandle(), Operation.DIGEST:
            return lambda jobs, done: session.digest_later(jobs, items, done, client)
    raise Misuse(f"{session.algorithm.name} does not do that")
