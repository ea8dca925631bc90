"""io-pkt as a server: loads and unloads modules at run time, switches interfaces, tells what there is. QNX's `mount -T io-pkt`.

Anybody on this machine may ask for facts. Who changes something must be root, the manager's own user, or a member of the configured group,
as the local socket's credentials say (EACCES, as in QNX, otherwise). A client of another node needs the verb `administer` for anything, and
is then judged by whom its user is mapped to.

Requests that change something wait in line; one is done as a whole before the next. Who only asks stands in another line and is answered
while frames go on (`stack.managers.questions`). In both, users take turns (`stack.managers.requestline`). A module is found, imported
and prepared (`stack.core.preparation`) in a thread, as QNX leaves `dlopen` to another one, because that may take as long as it likes; the
rest takes as long as the module's `attach`. Meanwhile only the client that asked for it waits, and whoever else wants to mount when
`PREPARING_EACH` of one user or `PREPARING_MAX` of all are under way: a client's requests are done in the order in which it sent them.
Nothing is done in the call that brought the request: that may be a module's own callback (a request of another node comes through
lsm-qnet), and a module must not vanish below it.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
from collections.abc import Callable, Iterator

import attrs

from resmgr.access import Verb
from resmgr.channel import ND_LOCAL, PID_SYSTEM, ClientInfo, Message
from resmgr.errors import Misuse, ResmgrError
from resmgr.users import LookingUp, retry
from stack.core.errors import ModuleError
from stack.core.ifnet import Interface
from stack.core.isolation import RAISED, REFUSALS
from stack.core.loaded import Loaded
from stack.core.module import Kind
from stack.core.preparation import Preparation, prepare
from stack.core.sources import edited
from stack.core.specific import sayable_table, specific_module
from stack.core.stack import Stack
from stack.managers.facts import crypto, facts, module
from stack.managers.layer2 import does_not_say, row_by_row
from stack.managers.protocol import CHID_STACK, REQUEST_MAX, pack_reply, refuse, unpack_request
from stack.managers.questions import Questions, let_go
from stack.managers.refusals import SHARE as REFUSALS_SHARE
from stack.managers.refusals import Refusals
from stack.managers.requestline import RequestLine, user_of
from stack.managers.share import Share
from stack.managers.slices import pieces

log = logging.getLogger(__name__)

DIRECTORY = "/dev/io-net/"
"""Where QNX's legacy drivers show: `umount /dev/io-net/en0`."""
_LIBRARY = re.compile(r"(?:.*/)?(?P<kind>devnp|devn|lsm)-(?P<name>[A-Za-z0-9_-]+)\.so")
WRAPPERS_MAX = 16
WAITING_MAX = 64
"""Requests in each line, of all users but root; more are refused with EAGAIN."""
WAITING_EACH = 16
"""Of one user."""

PREPARING_MAX = 8
"""Modules that get ready at once."""
PREPARING_EACH = 4
"""Of one user: the threads are everybody's."""

Request = dict[str, object]


@attrs.frozen
class _Change:
    message: Message
    verb: str
    request: Request

    @property
    def client(self) -> tuple[int, int]:
        """Whose order holds: a connection."""
        return (self.message.info.nd, self.message.info.scoid)


@attrs.frozen
class _Made:
    """What a mount got ready, or why not."""

    made: Preparation | BaseException
    edited: str
    """As of `stack.core.sources`."""

    def close(self) -> None:
        if isinstance(self.made, Preparation):
            self.made.close()


class IoPktManager:
    """Serves *stack* until `close`. *owner*: the manager's user; *group*: whose members may change things, if any."""

    def __init__(self, stack: Stack, owner: int, group: int | None = None, share: Share | None = None) -> None:
        """*share*: of the dispatch's time, for questions; None: they are bounded in bytes only."""
        self._stack = stack
        self._owner = owner
        self._group = group
        self._line: RequestLine[_Change] = RequestLine(WAITING_EACH, WAITING_MAX)
        self._busy = False
        self._preparing: list[_Change] = []
        """Mounts whose modules get ready in threads."""
        self._closed = False
        share = share or Share()
        self._questions = Questions(stack.dispatch, WAITING_EACH, WAITING_MAX, share)
        self._answers = Questions(stack.dispatch, sys.maxsize, sys.maxsize, share.beside(1.0), self._next_soon)
        """To changes that were done and have much to tell: nobody waits for them but their own clients."""
        self._telling: list[_Change] = []
        """Those changes."""
        self._refusals = Refusals(share.beside(REFUSALS_SHARE))
        self._verbs: dict[str, Callable[[Request], dict[str, object]]] = {
            "umount": self._umount,
            "destroy": self._destroy,
            "interface": self._interface,
            "specific": self._specific,
            "use-crypto": self._use_crypto,
        }
        self.channel = stack.kernel.channel(self._handle, pid=PID_SYSTEM, chid=CHID_STACK)
        stack.system.guard(self.channel)

    def close(self) -> None:
        """Clients under way get ESRCH; what gets ready is closed when it is, or when the stack is. Idempotent."""
        self._closed = True
        self._questions.close()
        self._answers.close()
        self.channel.destroy()

    def _handle(self, message: Message) -> None:
        user = user_of(message.info)
        if self._refusals.leave_unread(user):
            message.error(errno.EAGAIN)
            return
        try:
            self._answer(message)
        except LookingUp as looking:
            retry(message, looking, self._handle)
        except RAISED:
            # What raises while somebody asks must not end the stack.
            log.exception("a request failed")
            refuse(message, errno.EIO, "the request failed, as the log says")
        if message.answered:
            self._refusals.refused(user)

    def _answer(self, message: Message) -> None:
        if message.msglen > REQUEST_MAX or message.msglen != len(message.data):
            refuse(message, errno.EMSGSIZE, f"a request has at most {REQUEST_MAX} bytes, and comes in one piece: this has {message.msglen}")
            return
        request = unpack_request(bytes(message.data))
        if request is None:
            refuse(message, errno.EINVAL, 'a request is a table in JSON with a text for "do"')
            return
        verb = str(request["do"])
        question = verb in ("facts", "crypto") or (verb == "specific" and "command" not in request)
        refused = self._refused(message.info, change=not question)
        if refused:
            refuse(message, errno.EACCES, refused)
        elif question:
            self._questions.ask(message, lambda: self._told(verb, request))
        elif verb not in self._verbs and verb != "mount":
            there = ", ".join(sorted({"facts", "crypto", "mount", *self._verbs}))
            refuse(message, errno.ENOSYS, f"{self._stack.name} knows no request {verb!r:.40}; it knows {there}")
        elif self._line.add(user_of(message.info), _Change(message, verb, request)):
            self._next_soon()
        else:
            refuse(message, errno.EAGAIN, "too many requests wait: ask again when one is answered")

    def _told(self, verb: str, request: Request) -> Iterator[str]:
        if verb == "facts":
            refused = {"changes": self._line.refused, "questions": self._questions.refused, "unread": self._refusals.unread}
            return pieces({**facts(self._stack), "requests_refused": refused})
        return pieces(crypto(self._stack.crypto) if verb == "crypto" else self._specific(request))

    def _next_soon(self) -> None:
        if len(self._line) and not self._busy and not self._closed:
            self._busy = True
            self._stack.dispatch.call_soon(self._next)

    def _next(self) -> None:
        """One request that nothing stands before, if there is one."""
        self._busy = False
        if self._closed:
            return
        self._telling = [one for one in self._telling if not one.message.answered]
        waiting = {one.client for one in (*self._preparing, *self._telling)}

        def ready(one: _Change) -> bool:
            if one.client not in waiting and one.message.client_waits and one.verb == "mount" and not self._may_prepare(one):
                waiting.add(one.client)
            return one.client not in waiting or not one.message.client_waits

        change = self._line.take(ready)
        if change is None:
            return  # whoever gets ready calls again
        self._next_soon()
        message, request = change.message, change.request
        if not message.client_waits:
            let_go(message)
        elif change.verb == "mount":
            self._preparing.append(change)
            self._stack.prepare_in_thread(lambda: self._prepare(request), lambda made: self._prepared(change, made))
        else:
            self._do(change, lambda: self._verbs[change.verb](request))

    def _may_prepare(self, change: _Change) -> bool:
        user = user_of(change.message.info)
        own = sum(user_of(one.message.info) == user for one in self._preparing)
        return len(self._preparing) < PREPARING_MAX and own < PREPARING_EACH

    def _prepare(self, request: Request) -> _Made:
        """In a thread."""
        try:
            made: Preparation | BaseException = self._found(request)
        except RAISED as error:
            made = error
        name = request.get("module")
        return _Made(made, edited(name) if isinstance(name, str) else "")

    def _found(self, request: Request) -> Preparation:
        name, kind = module_name(_text(request, "module"))
        asked = request.get("kind")
        if asked is not None:
            try:
                kind = Kind(asked)
            except ValueError:
                raise ModuleError(errno.EINVAL, f"{asked!r} is no kind of module: driver or protocol") from None
        return prepare(self._stack.system, name, _text(request, "options", ""), kind, _wrap(request.get("wrap")))

    def _prepared(self, change: _Change, result: _Made | BaseException) -> None:
        self._preparing.remove(change)
        self._next_soon()
        made, old = (result.made, result.edited) if isinstance(result, _Made) else (result, "")
        if isinstance(made, Preparation) and (self._closed or not change.message.client_waits):
            self._stack.discard(made)
        if not self._closed:
            self._do(change, lambda: self._mount(made), old)

    def _refused(self, info: ClientInfo, change: bool) -> str:
        """Why *info* may not ask that; empty when it may."""
        system = self._stack.system
        if info.nd != ND_LOCAL and not system.policy.may(info, Verb.ADMINISTER):
            return f"node {info.node} may not administer this one ([access] administer)"
        if not change:
            return ""
        try:
            user = system.policy.user(info)
        except LookingUp:
            raise
        except ResmgrError as error:
            return f"who asks cannot be found out: {error.strerror}"
        if isinstance(user, int):
            return f"users of node {info.node} are not let in here"
        groups = {user.gid, *user.groups}
        if user.uid in (0, self._owner) or (self._group is not None and self._group in groups):
            return ""
        return f"user {user.uid} may not change {self._stack.name}: only root, its own user and members of its --group may"

    def _do(self, change: _Change, act: Callable[[], dict[str, object]], old: str = "") -> None:
        """*old*: it is done by old code, and this says why; empty: it is not."""
        message, verb = change.message, change.verb
        if not message.client_waits:
            let_go(message)
            return
        try:
            answer = act()
        except ModuleError as error:
            answer = {"error": str(error), "errno": error.errno}
        except Misuse as error:
            answer = {"error": str(error), "errno": errno.EBUSY}
        except RAISED as error:
            log.exception("%s: %s raised", self._stack.name, verb)
            answer = {"error": f"{verb} raised {type(error).__name__}: {error}; the log says more", "errno": errno.EIO}
        if old:
            log.warning("%s: %s", self._stack.name, old)
            answer |= {"error": f"{answer['error']}; {old}"} if "error" in answer else {"edited": old}
        if verb == "specific" and "error" not in answer:
            self._telling.append(change)
            self._answers.ask(message, lambda: pieces(answer))
        elif not message.answered:
            message.reply(0, pack_reply(answer))

    # Requests

    def _mount(self, made: Preparation | BaseException) -> dict[str, object]:
        if isinstance(made, BaseException):
            raise made
        loaded = self._stack.load_prepared(made)
        log.info("%s: module %s is loaded", self._stack.name, loaded.module.name)
        return module(loaded)

    def _umount(self, request: Request) -> dict[str, object]:
        what = _text(request, "what")
        name, kind = module_name(what)
        waiting = self._stack.restarter.waiting(name, self._interface_in(what), kind)
        there = self._called(what)
        if not waiting:
            return self._unload(self._find(what))
        if len(waiting) + len(there) > 1:
            which = ", ".join([*(f"#{one.number}" for one in there), *(f"{one.partition(' ')[2]} (waiting)" for one in waiting)])
            raise ModuleError(errno.EINVAL, f"{what} names {len(waiting) + len(there)} modules: say which, {which}")
        had = self._stack.restarter.give_up(waiting[0])
        own, _, number = waiting[0].partition(" #")
        return {"name": own, "number": int(number), "interface": had.interface or None, "waiting": had.why}

    def _interface_in(self, what: str) -> str:
        """The interface that *what* names, if it names one."""
        return what.removeprefix(self._stack.prefix).removeprefix(DIRECTORY)

    def _destroy(self, request: Request) -> dict[str, object]:
        found = self._named(_text(request, "interface"))
        return self._unload(next(one for one in self._stack.loaded if one.interface is found))

    def _unload(self, loaded: Loaded) -> dict[str, object]:
        told = module(loaded)
        self._stack.unload(loaded)
        log.info("%s: module %s is unloaded", self._stack.name, loaded.module.name)
        return told

    def _interface(self, request: Request) -> dict[str, object]:
        found = self._named(_text(request, "interface"))
        mtu, up = request.get("mtu"), request.get("up")
        if mtu is not None and (not isinstance(mtu, int) or isinstance(mtu, bool)):
            raise ModuleError(errno.EINVAL, f"{mtu!r} is no MTU")
        if up is not None and not isinstance(up, bool):
            raise ModuleError(errno.EINVAL, f"{up!r} is not true or false")
        if mtu is not None:
            found.limit_mtu(mtu)
        if up is not None:
            found.switch(up)
        return {"name": found.name, "up": found.up, "enabled": found.enabled, "mtu": found.mtu}

    def _specific(self, request: Request) -> dict[str, object]:
        """QNX's SIOCSDRVSPEC and SIOCGDRVSPEC: without a command, the facts that only this kind of module has."""
        if "module" in request:
            loaded = self._find(_text(request, "module"))
            name, found = loaded.module.name, specific_module(loaded.attached)
        else:
            interface = self._named(_text(request, "interface"))
            loaded = next(one for one in self._stack.loaded if one.interface is interface)
            name, found = interface.name, specific_module(interface.driver)
        guard, module = loaded.guard, loaded.module.name
        command = request.get("command")
        if found is None:
            raise ModuleError(errno.EOPNOTSUPP, f"{name} has no requests of its own")
        if command is not None:
            arguments = request.get("arguments", {})
            if not isinstance(command, str) or not isinstance(arguments, dict):
                raise ModuleError(errno.EINVAL, "a command is a text, and its arguments are a table")
            guard.ask("request", found.set_specific, command, arguments)
        try:
            return guard.ask("request", lambda: sayable_table(found.get_specific(), row_by_row(guard, "request")))
        except REFUSALS:
            raise
        except RAISED as error:
            raise ModuleError(errno.EIO, does_not_say(module, error)) from error

    def _use_crypto(self, request: Request) -> dict[str, object]:
        name = _text(request, "name")
        try:
            moved = self._stack.crypto.use(name)
        except LookupError as error:
            raise ModuleError(errno.ENXIO, str(error.args[0])) from None
        except OSError as error:
            raise ModuleError(error.errno or errno.EIO, f"{name} cannot be used here: {error.strerror or error}") from error
        log.info("%s: %s does the ciphers from now on; %d sessions moved, %d stayed", self._stack.name, name, moved.moved, moved.stayed)
        return {"moved": moved.moved, "stayed": moved.stayed}

    def _named(self, name: str) -> Interface:
        found = self._stack.interface(name.removeprefix(DIRECTORY))
        if found is None:
            there = ", ".join(one.name for one in self._stack.interfaces) or "none"
            raise ModuleError(errno.ENXIO, f"{self._stack.name} has no interface {name}; there is: {there}")
        return found

    def _called(self, what: str) -> list[Loaded]:
        """The modules that *what* names: an interface, a module or the path by which it was found, `#3`."""
        stack = self._stack
        if what.startswith("#"):
            return [one for one in stack.loaded if f"#{one.number}" == what]
        interface = self._interface_in(what)
        name, kind = module_name(what)
        found = [one for one in stack.loaded if one.interface is not None and one.interface.name == interface]
        return found or [one for one in stack.loaded if one.called(name) and kind in (None, one.module.kind)]

    def _find(self, what: str) -> Loaded:
        """The one module that *what* names."""
        stack, found = self._stack, self._called(what)
        if not found:
            there = ", ".join(dict.fromkeys(one.module.name for one in stack.loaded)) or "nothing"
            raise ModuleError(errno.ENXIO, f"{stack.name} has no module or interface {what}; loaded: {there}")
        if len(found) > 1:
            which = ", ".join(f"#{one.number}" + (f" ({one.interface.name})" if one.interface else "") for one in found)
            raise ModuleError(errno.EINVAL, f"{what} is loaded {len(found)} times: say which, {which}")
        return found[0]


def module_name(text: str) -> tuple[str, Kind | None]:
    """`/lib/dll/devnp-hub.so`, as people write it who know QNX, is the driver hub, and `lsm-qnet.so` the protocol qnet."""
    match = _LIBRARY.fullmatch(text)
    if match is None:
        return text, None
    return match["name"], Kind.PROTOCOL if match["kind"] == "lsm" else Kind.DRIVER


def _text(request: Request, key: str, default: str | None = None) -> str:
    found = request.get(key, default)
    if not isinstance(found, str) or (not found and default is None):
        raise ModuleError(errno.EINVAL, f"the request needs {key!r}")
    return found


def _wrap(asked: object) -> list[tuple[str, str]]:
    if asked is None:
        return []
    if not isinstance(asked, list) or len(asked) > WRAPPERS_MAX:
        raise ModuleError(errno.EINVAL, f"wrappers are a list of at most {WRAPPERS_MAX}")
    pairs = [one for one in asked if isinstance(one, list) and len(one) == 2 and all(isinstance(word, str) for word in one)]
    if len(pairs) != len(asked):
        raise ModuleError(errno.EINVAL, "a wrapper is a name and options")
    return [(one[0], one[1]) for one in pairs]
