"""Managers in processes of their own: who may attach what to the pathname space, what is attached, and what other nodes may do there.

An attachment lives as long as the connection that made it: it goes with its process, whatever ends that. Who may attach is decided by the
uid that the process's socket proves: root anywhere, each user below `dev/user/NAME`, and whom a rule names. The names of other nodes and
of the node's own services are nobody's.

A client of another node reaches a process's manager only if the manager's path is exported to its node. It then is, for that manager, the
user to whom the rules map it: what the process hears of it is true here. If the export is for reading only, `READ_ONLY` is among its
node's roles, and the manager refuses to change anything.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Callable, Iterable

import attrs

from resmgr.access import Export, Policy, Verb
from resmgr.attachproto import ATTACH, DETACH, EXPORTS, LIST, READ_ONLY, REQUEST, Row, pack_row
from resmgr.channel import ND_LOCAL, PID_SYSTEM, PULSE_DISCONNECT, ClientInfo, Kernel, Message, Pulse
from resmgr.credentials import Credentials
from resmgr.errors import errno_of
from resmgr.ids import CHID_ATTACH
from resmgr.iomsg import PATH_MAX, Target
from resmgr.pathmgr import PathManager
from resmgr.pathspace import Attach, Attached, split
from resmgr.users import Accounts, LookingUp, retry

ATTACHED_PER_CONNECTION = 64
ATTACHED_PER_USER = 256
ATTACHED_MAX = 4096
"""Stop programs from filling the prefix tree; more is EAGAIN."""
DEPTH_MAX = 32
OWN = (b"dev", b"user")
"""Below this, each user has a directory of his own name."""
RESERVED = ((b"net",), (b"dev", b"name"))
_FLAGS = Attach.AFTER | Attach.EXACT | Attach.LOCAL


@attrs.frozen
class AttachRule:
    """These users may attach managers to *path* and below it."""

    path: str
    uids: frozenset[int]


@attrs.frozen
class _Held:
    attached: Attached
    uid: int
    program: str


class Attachments:
    """The service. *policy* and *rules* tell those of the moment. Everything in dispatch context."""

    def __init__(
        self,
        kernel: Kernel,
        paths: PathManager,
        accounts: Accounts,
        policy: Callable[[], Policy],
        rules: Callable[[], tuple[AttachRule, ...]],
    ) -> None:
        self._rules = rules
        self.counters = {"refused": 0, "full": 0, "reaped": 0}
        self._paths = paths
        self._accounts = accounts
        self._policy = policy
        self._held: dict[int, dict[bytes, _Held]] = {}
        self._of_user: Counter[int] = Counter()
        self._by_channel: dict[tuple[int, int], dict[Attached, None]] = {}
        self._count = 0
        self.channel = kernel.channel(self._receive, on_pulse=self._pulse, pid=PID_SYSTEM, chid=CHID_ATTACH)

    def destroy(self) -> None:
        self.channel.destroy()
        for scoid in list(self._held):
            self._reap(scoid)

    # ---- what clients of other nodes may

    def admit(self, info: ClientInfo, pid: int, chid: int) -> ClientInfo | int | None:
        """Who a remote client is for the manager behind a channel, or the errno that refuses it; None: no manager's channel."""
        attached = self._by_channel.get((pid, chid))
        if not attached:
            return None
        policy = self._policy()
        verbs: set[Verb] = set()
        for one in attached:
            if not one.flags & Attach.LOCAL:
                verbs |= policy.verbs(info, b"/" + b"/".join(one.prefix))
        if not verbs:
            return errno.EACCES
        user = policy.user(info)
        if isinstance(user, int):
            return user
        roles = info.roles if Verb.WRITE in verbs else info.roles | {READ_ONLY}
        return attrs.evolve(info, credentials=Credentials(user.uid, user.gid, user.groups, info.credentials.pid), roles=roles)

    # ---- messages

    def _receive(self, message: Message) -> None:
        try:
            self._answer(message)
        except LookingUp as looking:
            retry(message, looking, self._receive)
        except OSError as error:
            message.error(errno_of(error))

    def _answer(self, message: Message) -> None:
        data = bytes(message.data)
        if len(data) < REQUEST.size or len(data) != message.msglen or len(data) > REQUEST.size + PATH_MAX:
            raise OSError(errno.EINVAL, "not a request")
        operation, flags, number = REQUEST.unpack_from(data)
        path = data[REQUEST.size :]
        if operation == LIST:
            self._list(message, number)
            return
        if operation == EXPORTS:
            self._exports(message, number)
            return
        if message.info.nd != ND_LOCAL:
            raise PermissionError(errno.EPERM, "only programs of this machine attach")
        if operation == ATTACH:
            self._attach(message.info, path, flags, number)
        elif operation == DETACH:
            self._detach(message.info.scoid, b"/".join(split(path)))
        else:
            raise OSError(errno.ENOSYS, "no such operation")
        message.reply()

    def _attach(self, info: ClientInfo, path: bytes, flags: int, chid: int) -> None:
        prefix = split(path)
        if flags & ~_FLAGS or not prefix or len(prefix) > DEPTH_MAX or any(name in (b".", b"..") or len(name) > 255 for name in prefix):
            raise OSError(errno.EINVAL, "not a path or a flag")
        if b"\0" in path:
            raise OSError(errno.EINVAL, "path holds a NUL")
        who = info.credentials
        if not self._may(who.uid, prefix):
            self.counters["refused"] += 1
            raise PermissionError(errno.EPERM, "not yours")
        held = self._held.get(info.scoid, {})
        key = b"/".join(prefix)
        if key in held:
            raise FileExistsError(errno.EEXIST, "attached already")
        if len(held) >= ATTACHED_PER_CONNECTION or self._of_user[who.uid] >= ATTACHED_PER_USER or self._count >= ATTACHED_MAX:
            self.counters["full"] += 1
            raise OSError(errno.EAGAIN, "too many")
        attached = self._paths.attach(key, Target(ND_LOCAL, who.pid, chid), Attach(flags))
        held[key] = _Held(attached, who.uid, _program(who.pid))
        self._held[info.scoid] = held
        self._by_channel.setdefault((who.pid, chid), {})[attached] = None
        self._of_user[who.uid] += 1
        self._count += 1

    def _may(self, uid: int, prefix: tuple[bytes, ...]) -> bool:
        if any(prefix[: len(reserved)] == reserved for reserved in RESERVED):
            return False
        if uid == 0:
            return True
        if any(uid in rule.uids and prefix[: len(split(rule.path.encode()))] == split(rule.path.encode()) for rule in self._rules()):
            return True
        account = self._accounts.user_now(uid)
        return account is not None and len(prefix) > 3 and prefix[:2] == OWN and prefix[2] == account.name.encode()

    def _detach(self, scoid: int, key: bytes) -> None:
        held = self._held.get(scoid, {})
        one = held.pop(key, None)
        if one is None:
            raise FileNotFoundError(errno.ENOENT, "not attached")
        if not held:
            del self._held[scoid]
        self._paths.detach(one.attached)
        place = one.attached.target.pid, one.attached.target.chid
        others = self._by_channel[place]
        del others[one.attached]
        if not others:
            del self._by_channel[place]
        self._count -= 1
        self._of_user[one.uid] -= 1
        if not self._of_user[one.uid]:
            del self._of_user[one.uid]

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.code == PULSE_DISCONNECT:
            self._reap(pulse.info.scoid)

    def _reap(self, scoid: int) -> None:
        for key in list(self._held.get(scoid, ())):
            self.counters["reaped"] += 1
            self._detach(scoid, key)

    # ---- who serves what

    def rows(self) -> Iterable[Row]:
        """Everything attached, in path order; what this node serves itself as well."""
        known = {one.attached: one for held in self._held.values() for one in held.values()}
        for attached in self._paths.space.attachments():
            one = known.get(attached)
            uid, program = (0, "io-pkt") if one is None else (one.uid, one.program)
            target = attached.target
            yield Row(b"/" + b"/".join(attached.prefix), target.pid, uid, target.chid, int(attached.flags), program)

    def _list(self, message: Message, first: int) -> None:
        rows = list(self.rows())
        if message.info.nd != ND_LOCAL:
            policy, info = self._policy(), message.info
            rows = [row for row in rows if not row.flags & Attach.LOCAL and policy.verbs(info, row.path)]
        out: list[bytes] = []
        room = message.reply_len
        for row in rows[first:]:
            packed = pack_row(row)
            room -= len(packed)
            if room < 0:
                break
            out.append(packed)
        if first < len(rows) and not out:
            raise OSError(errno.EINVAL, "no room for one row")
        message.reply(len(rows), b"".join(out))

    def _exports(self, message: Message, first: int) -> None:
        policy, info = self._policy(), message.info
        user = policy.user(info)
        # What is hidden is not there for who asks, so its name is not told either.
        exports = [export for _, export in policy.exports(info) if export.verbs] if info.nd != ND_LOCAL else []
        told: dict[str, object] = {
            "local": info.nd == ND_LOCAL,
            "user": None if isinstance(user, int) else user.uid,
            "groups": [] if isinstance(user, int) else [user.gid, *user.groups],
            "errno": user if isinstance(user, int) else 0,
        }
        rows: list[dict[str, object]] = []
        data = json.dumps(told | {"exports": rows}).encode()
        for export in exports[first:]:
            rows.append(export_facts(export))
            longer = json.dumps(told | {"exports": rows}).encode()
            if len(longer) > message.reply_len:
                break
            data = longer
        message.reply(len(exports), data)


def export_facts(export: Export) -> dict[str, object]:
    """What a client may know of an export that is for it."""
    return {
        "path": "/" + b"/".join(export.path).decode("utf-8", "backslashreplace"),
        "verbs": sorted(verb.value for verb in export.verbs),
        "devices": sorted(export.devices),
        "setuid": export.setuid,
    }


def _program(pid: int) -> str:
    """Its name, as ps shows it."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).strip().decode("utf-8", "backslashreplace")
    except OSError:
        return ""
