"""What the commands ask the daemon of this node: one well-known channel of the node itself, JSON in, JSON out.

    {"do": "status"}    facts about the node: identity, interfaces, counters, mount, start
    {"do": "nodes"}     the node table
    {"do": "exports", ...}    what is exported to whom, and what was refused (`qnetpy.accessfacts`)
    {"do": "suites", "names": [...]}    use these ciphers from now on, best first
    {"do": "waiting"}   requests of /net that wait, the caller's own; for root and the daemon's user all (`qnetpy.stuck`)
    {"do": "abort", "ids": [...]}   end these
    {"do": "hand-over", "socket": true}    give the mounts away, to whoever starts the next daemon (`qnetpy.handed`)
    {"do": "invite", ...} and others: what is changed (`qnetpy.members.commands`)

The channel is `(0, PID_SYSTEM, CHID_CONTROL)` and takes no messages from other nodes. It tells every user of this machine; who changes
something must be root or the daemon's user. The daemon is stopped by a signal. Errors are errnos: EINVAL for what is no request, ENOSYS
for an unknown one, EPERM, EMSGSIZE; a request that was understood and cannot be done is answered with `{"error": sentence}`.

Not on any fast path: a request may walk tables and make text. `controlformat` is what the commands load of it.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping

import attrs

from resmgr.channel import ND_LOCAL, Message
from resmgr.errors import Misuse

REQUEST_MAX = 4096
"""A request is a short text; longer ones are refused unread."""
Facts = Callable[[], Mapping[str, object]]
Verb = Callable[[Mapping[str, object], Callable[[Mapping[str, object]], None]], None]
"""A request and what takes its answer, which comes once, then or later."""
Asking = Callable[[Mapping[str, object], int, bool], Mapping[str, object]]
"""A request, who asks, and whether that one may see and do everything; the answer."""


@attrs.define
class Control:
    """The daemon's side. The calls give facts that JSON can say."""

    status: Facts
    nodes: Facts
    verbs: Mapping[str, Verb] = attrs.Factory(dict)
    """What changes something, or tells what is not for everybody."""
    owner: int = 0
    """The daemon's user."""
    asks: Mapping[str, Asking] = attrs.Factory(dict)
    """What is answered to each user in his own way."""
    hand_over: Callable[[Message, Mapping[str, object]], None] | None = None
    """Answers `hand-over`, with descriptors."""

    def handle(self, message: Message) -> None:
        """The channel's handler."""
        if message.info.nd != ND_LOCAL:
            message.error(errno.EPERM)
            return
        if message.msglen > REQUEST_MAX or message.msglen != len(message.data):
            message.error(errno.EMSGSIZE)
            return
        try:
            request = json.loads(bytes(message.data))
            verb = request["do"]
        except (ValueError, KeyError, TypeError, RecursionError):
            message.error(errno.EINVAL)
            return
        if verb == "status":
            message.reply(0, _pack(self.status()))
        elif verb == "nodes":
            message.reply(0, _pack(self.nodes()))
        elif isinstance(verb, str) and verb in self.asks:
            uid = message.info.credentials.uid
            message.reply(0, _pack(self.asks[verb](request, uid, uid in (0, self.owner))))
        elif not isinstance(verb, str) or (verb not in self.verbs and (verb != "hand-over" or self.hand_over is None)):
            message.error(errno.ENOSYS)
        elif message.info.credentials.uid not in (0, self.owner):
            message.error(errno.EPERM)
        elif verb == "hand-over" and self.hand_over is not None:
            self.hand_over(message, request)
        else:
            self.verbs[verb](request, lambda facts: message.reply(0, _pack(facts)))


def suites_verb(use: Callable[[list[str]], None]) -> Verb:
    """The request `suites`; *use* raises Misuse for what is no cipher."""

    def verb(request: Mapping[str, object], answer: Callable[[Mapping[str, object]], None]) -> None:
        names = request.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            answer({"error": "a list of ciphers is needed"})
            return
        try:
            use(names)
        except Misuse as error:
            answer({"error": str(error)})
        else:
            answer({})

    return verb


def _pack(facts: Mapping[str, object]) -> bytes:
    return json.dumps(facts, default=str).encode()
