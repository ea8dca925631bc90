"""`/dev/crypto`, behind the stack's `--prefix`: the crypto API for programs, as a resource manager. QNX: the cryptodev of io-pkt-*-hc.

Requests are devctl messages (`stack.cryptodev.protocol`); reading the device lists the algorithms. A session belongs to the opening it
was made through and ends with it, so with its program and with its node. Batches run as `stack.crypto.jobs`; their answers come when
they are done, and a client that gives up is let go at once, though work in a thread is finished for nobody.

Every user has limits (`stack.managers.accounts`): sessions, bytes under way, which items count for too, and work per second, which making a
session is. Work beyond the rate waits in the user's own line, in order; what is beyond the other limits is refused. Batches in threads are
done in turns, one user after another.

Clients of other nodes need an export that covers the device: the verb read for the list, read and write for the rest. Asked at each
request, so that a change of the rules holds for sessions that there are.

Unlike QNX: batches and AEADs instead of single operations with chained algorithms (CIOCCRYPT), no public keys (CIOCKEY), numbers of
sessions are valid for one opening only.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from stat import S_IFCHR

import attrs

from resmgr.access import MappedUser, Verb
from resmgr.channel import ND_LOCAL, ClientInfo, Message
from resmgr.dispatch import Buffer, Timer
from resmgr.errors import Misuse
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.node import Directory, Node, NodeClient, NodeHandle, TreeManager, local_or_nobody
from resmgr.iomsg import Io
from resmgr.iorequest import parse_devctl
from resmgr.pathspace import Attach, split
from stack.core.errors import ModuleError
from stack.core.isolation import RAISED
from stack.core.module import Context, Kind, Module
from stack.core.options import Size
from stack.crypto.algorithms import ALGORITHMS, Aead, Algorithm, Cipher, Hash, Mac, algorithm_named
from stack.crypto.api import Hardware
from stack.crypto.jobs import Jobs
from stack.crypto.registry import Crypto
from stack.cryptodev.protocol import (
    BATCH_MAX,
    PATH,
    Command,
    Listed,
    SessionRequest,
    parse_batch,
    parse_batch_head,
    parse_free,
    reply_size,
)
from stack.managers.accounts import Account, Accounts, Limits
from stack.managers.cryptorequest import ITEM_MEMORY, Opening, Request, Session, each, work_of

SESSIONS_ALL = 4096
INFLIGHT_ALL = 64 * 1024 * 1024
UNIT = 4096
"""Bytes of a unit of work; a request and each of its items are a unit, too."""
SESSION_UNITS = 2
"""Units that making a session counts for: 10 to 20 µs of key schedule, and a little for its end."""
OPENINGS_MAX = 1024
"""Of one user; users of other nodes count as whom they are mapped to. Each costs some 400 bytes, and who has many
connections may ask for as many openings on each."""
BURST_MIN = 2048
"""Units: more than the largest request has, or it could never be done."""
WAITING_MAX = 64
"""Requests of one user that wait for its rate; more is EAGAIN."""
HEADS = 64
"""Bytes of a request before the data of BATCH, generously."""


@attrs.frozen
class CryptodevOptions:
    """Options of the module. Limits are per user; `rate` in 4 KiB blocks per second."""

    mode: int = attrs.field(default=0o666, validator=[attrs.validators.ge(0), attrs.validators.le(0o777)])
    sessions: int = attrs.field(default=256, validator=attrs.validators.ge(1))
    inflight: Size = attrs.field(default=Size(8 * 1024 * 1024), validator=attrs.validators.ge(Size(4096)))
    rate: int = attrs.field(default=65536, validator=attrs.validators.ge(1))

    def limits(self) -> Limits:
        return Limits(self.sessions, SESSIONS_ALL, self.inflight, INFLIGHT_ALL, float(self.rate), float(max(self.rate / 4, BURST_MIN)))


class Device(Node):
    """The node. *listing* gives what reading tells; *ended* takes openings that are over. `refused` counts those beyond `OPENINGS_MAX`."""

    def __init__(self, mode: int, listing: Callable[[], bytes], ended: Callable[[Opening], None]) -> None:
        self.mode = S_IFCHR | mode
        self.refused = 0
        self._listing = listing
        self._ended = ended
        self._openings: Counter[int] = Counter()
        """By user."""

    def open(self, user: MappedUser, flags: int) -> Opening:
        if self._openings[user.uid] >= OPENINGS_MAX:
            self.refused += 1
            raise OSError(errno.EMFILE, "too many openings of one user")
        self._openings[user.uid] += 1
        return Opening(user.uid)

    def read(self, state: object | None, offset: int, size: int) -> Buffer:
        return self._listing()[offset : offset + size]

    def close(self, state: object | None) -> None:
        assert isinstance(state, Opening)
        self._openings[state.uid] -= 1
        if not self._openings[state.uid]:
            del self._openings[state.uid]
        self._ended(state)


class _Line:
    """Requests of one user that wait for its rate."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Request, float, Callable[[], None]]] = deque()
        self.timer: Timer | None = None


class CryptoManager(TreeManager):
    """Serves the device on a channel of the context's kernel. `counters` as `Manager`'s, and `waited`: requests beyond a rate."""

    def __init__(self, context: Context, path: bytes, options: CryptodevOptions) -> None:
        self._system = context.system
        self._crypto: Crypto = context.stack.crypto
        self._dispatch = context.dispatch
        self.path = path
        self.accounts = Accounts(options.limits())
        self.jobs = Jobs(context.dispatch, jobs_max=SESSIONS_ALL, bytes_max=2 * INFLIGHT_ALL)
        self._lines: dict[Account, _Line] = {}
        self._listed_at = -1
        self._text = b""
        self._device = Device(options.mode, self._listing, self._ended)
        super().__init__(context.kernel, Directory(), name="cryptodev", user=self._who)
        self.counters["waited"] = 0

    def io_table(self) -> dict[Io, Callable[[Message, NodeClient, Handle, int], None]]:
        return super().io_table() | {Io.READ: self._listed, Io.DEVCTL: self._requested}

    def _walk(self, client: NodeClient, base: Handle | None, path: bytes) -> tuple[Node, bytes, bytes]:
        """The device is all there is."""
        if path:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return self._device, b"", b""

    @property
    def openings_refused(self) -> int:
        return self._device.refused

    # Who may

    def _verbs(self, info: ClientInfo) -> frozenset[Verb]:
        return self._system.policy.verbs(info, self.path)

    def _who(self, info: ClientInfo) -> MappedUser | int:
        if info.nd != ND_LOCAL and Verb.READ not in self._verbs(info):
            return errno.EACCES
        return local_or_nobody(info)

    def _listing(self) -> bytes:
        version = self._crypto.version
        if self._listed_at != version:
            self._listed_at, self._text = version, self._made_listing()
        return self._text

    def _made_listing(self) -> bytes:
        lines = []
        for one in ALGORITHMS:
            key = (
                (one.key_size, one.key_size)
                if isinstance(one, Aead | Cipher)
                else (one.key_min, one.key_max)
                if isinstance(one, Mac)
                else (0, 0)
            )
            nonce = one.nonce_size if isinstance(one, Aead | Cipher) else 0
            tag = one.digest_size if isinstance(one, Hash) else 0 if isinstance(one, Cipher) else one.tag_size
            provider = self._crypto.serving(one)
            if provider:
                lines.append(Listed(one.kind.value, one.name, *key, nonce, tag, provider).line())
        return "".join(f"{line}\n" for line in lines).encode()

    # Requests

    def _listed(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        self._check(client.info, Verb.READ)
        self.opened.read(message, client, handle, flags)

    def _check(self, info: ClientInfo, *verbs: Verb) -> None:
        if info.nd != ND_LOCAL and not self._verbs(info).issuperset(verbs):
            raise OSError(errno.EACCES, "not exported so")

    def _requested(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        assert isinstance(handle, NodeHandle)
        if not handle.opened or handle.flags & os.O_ACCMODE != os.O_RDWR:
            raise OSError(errno.EBADF, "not open for reading and writing")
        self._check(client.info, Verb.READ, Verb.WRITE)
        size = message.msglen
        if size > BATCH_MAX + HEADS:
            raise OSError(errno.EMSGSIZE, "a request has at most 1 MiB")
        opening = handle.state
        assert isinstance(opening, Opening)
        if opening.account is None:
            opening.account = self.accounts.of((client.info.nd, client.info.credentials.uid), self._dispatch.now())
        self.accounts.begin(opening.account, size)
        request = Request(self.accounts, self.manager.failed, message, opening, opening.account)
        if len(message.data) == size:
            self._do(request, message.data)
        else:
            message.read(0, size, partial(self._pulled, request))

    def _pulled(self, request: Request, count: int, data: Buffer) -> None:
        if count == request.size:
            self._do(request, data)
        else:
            request.fail(OSError(-count if count < 0 else errno.EBADMSG, "client gone"))

    def _do(self, request: Request, message: Buffer) -> None:
        opening = request.opening
        try:
            command, data = parse_devctl(message)
            if command == Command.SESSION:
                wanted = SessionRequest.parse(data)
                self._in_turn(request, 1.0 + SESSION_UNITS, lambda: request.answer(self._session(opening, request.account, wanted)))
            elif command == Command.FREE:
                session = opening.sessions.pop(parse_free(data), None)
                if session is None:
                    raise OSError(errno.EBADF, "no such session")
                session.close()
                self.accounts.remove(request.account)
                request.answer(0)
            elif command == Command.BATCH:
                self._batch(request, data)
            else:
                raise OSError(errno.ENOTTY, "no such command")
        except RAISED as error:
            request.fail(error)

    def _session(self, opening: Opening, account: Account, wanted: SessionRequest) -> int:
        """The number of a new session."""
        if opening.ended:
            raise OSError(errno.EBADF, "closed meanwhile")
        try:
            algorithm = algorithm_named(wanted.name)
        except LookupError as error:
            raise OSError(errno.ENOENT, str(error)) from None
        self.accounts.add(account)
        try:
            session = self._made(algorithm, wanted)
        except BaseException:
            self.accounts.remove(account)
            raise
        number = opening.next
        opening.next += 1
        opening.sessions[number] = session
        return number

    def _made(self, algorithm: Algorithm, wanted: SessionRequest) -> Session:
        hardware = Hardware(wanted.hardware)
        if isinstance(algorithm, Mac):
            return self._crypto.mac(algorithm, wanted.key, wanted.tag_size, hardware=hardware)
        if wanted.tag_size:
            raise Misuse(f"{algorithm.name} has no tags to cut")
        if isinstance(algorithm, Hash):
            if wanted.key:
                raise Misuse(f"{algorithm.name} has no key")
            return self._crypto.hash(algorithm, hardware=hardware)
        if isinstance(algorithm, Cipher):
            return self._crypto.cipher(algorithm, wanted.key, hardware=hardware)
        return self._crypto.aead(algorithm, wanted.key, hardware=hardware)

    def _batch(self, request: Request, data: Buffer) -> None:
        number, operation, count = parse_batch_head(data)
        session = request.opening.sessions.get(number)
        if session is None:
            raise OSError(errno.EBADF, "no such session")
        # Before it is cut up: that is what costs memory.
        request.charge(count * ITEM_MEMORY)
        algorithm = session.algorithm
        batch = parse_batch(data, count, algorithm.nonce_size if isinstance(algorithm, Aead | Cipher) else 0)
        payload = sum(map(len, batch.items))
        if reply_size(operation, count, payload, each(session)) > request.message.reply_len:
            raise OSError(errno.EMSGSIZE, "the reply buffer is too small")
        work = work_of(session, operation, batch.nonces, batch.aads, batch.items, request.account.client)
        units = 1.0 + count + (payload + sum(map(len, batch.aads))) // UNIT
        self._in_turn(request, units, lambda: work(self.jobs, request.done))

    # Rate

    def _in_turn(self, request: Request, units: float, work: Callable[[], None]) -> None:
        """*work* now, or when the user has units for it. What it raises is answered."""
        account = request.account
        request.message.on_unblock = partial(request.message.error, errno.EINTR)

        def begin() -> None:
            if not request.message.client_waits:
                request.answer(0)
                return
            try:
                work()
            except RAISED as error:
                request.fail(error)

        line = self._lines.get(account)
        if line is None and account.bucket.take(self._dispatch.now(), units):
            begin()
            return
        if line is None:
            line = self._lines[account] = _Line()
        if len(line.waiting) >= WAITING_MAX:
            raise OSError(errno.EAGAIN, "too many requests wait")
        self.counters["waited"] += 1
        line.waiting.append((request, units, begin))
        if line.timer is None:
            self._next(account, line)

    def _next(self, account: Account, line: _Line) -> None:
        line.timer = None
        while line.waiting:
            request, units, begin = line.waiting[0]
            # Who gave up pays nothing.
            if request.message.client_waits and not account.bucket.take(self._dispatch.now(), units):
                line.timer = self._dispatch.call_at(account.bucket.ready_at(units), lambda: self._next(account, line))
                return
            line.waiting.popleft()
            begin()
        del self._lines[account]

    # End

    def _ended(self, opening: Opening) -> None:
        opening.ended = True
        for session in opening.sessions.values():
            session.close()
        if opening.account is not None:
            self.accounts.remove(opening.account, len(opening.sessions))
        opening.sessions.clear()

    def destroy(self) -> None:
        for line in self._lines.values():
            if line.timer is not None:
                line.timer.cancel()
        self._lines.clear()
        super().destroy()


class Cryptodev:
    """The module at work."""

    def __init__(self, context: Context, options: CryptodevOptions) -> None:
        self._system = context.system
        path = context.stack.prefix.encode() + PATH
        if any(one.prefix == split(path) for one in self._system.paths.space.attachments()):
            there = f"there is something at /{path.decode().lstrip('/')} already"
            ours = any(loaded.module.name == MODULE.name for loaded in context.stack.loaded)
            why = "this stack has a cryptodev; one serves all" if ours else "two stacks need a --prefix of their own"
            raise ModuleError(errno.EEXIST, f"{there}: {why}")
        self.manager = CryptoManager(context, path, options)
        self._attached = self._system.paths.attach(self.manager.path, self.manager.target, Attach.EXACT)
        self._system.guard(self.manager.channel)

    def module_counters(self) -> dict[str, int]:
        """`stack.core.counting.Counting`."""
        manager = self.manager
        return {
            **manager.counters,
            "refused_openings": manager.openings_refused,
            "batches_inline": manager.jobs.inline,
            "batches_threaded": manager.jobs.threaded,
            "batches_refused": manager.jobs.refused,
            **{f"refused_{limit}": number for limit, number in manager.accounts.refused.items()},
        }

    def detach(self) -> None:
        """`Attached`: sessions end, keys are wiped, clients get errors."""
        self._system.paths.detach(self._attached)
        self._system.unguard(self.manager.channel)
        self.manager.destroy()


def attach(context: Context, options: CryptodevOptions) -> Cryptodev:
    """Called by the stack's loader."""
    return Cryptodev(context, options)


MODULE = Module("cryptodev", Kind.PROTOCOL, CryptodevOptions, attach)
