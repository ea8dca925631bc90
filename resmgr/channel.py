"""Channels, connections and messages: send, receive, reply, as in QNX (MsgSend, MsgReceive, MsgReply, MsgError, MsgRead, MsgWrite, pulses).

A server owns a `Channel`; a client holds a `Connection` to `(nd, pid, chid)`; `Kernel` is the table of both for one node. A send is a
record with a completion, not a task: `Connection.submit` hands the parts over and returns, and `done(status, reply)` is called once, in
dispatch context, when the server replied (status >= 0), answered an error, died, or the send was unblocked (status = -errno).

`nd == 0` is this node: the message goes to the channel's handler by a plain call. Any other node's messages, and those for channels that
live in other processes of this node, go to the `Remote` that the network module or the local socket server registered; the handler and
the caller cannot tell the difference except by latency.

States of a sent message, as QNX names them: SEND-blocked until the handler took it, REPLY-blocked until it is answered. `Pending.unblock`
(a signal, a deadline, a cancelled task) asks the server by `Message.on_unblock`; a server that set no callback is taken to agree and
the client gets EINTR at once. The rcvid (the `Message` object) stays valid until the server answers it, whatever the client does: what
the server then answers to a client that is gone is dropped, reads and writes give ESRCH.

Buffers: parts given to `submit` and `reply` are borrowed until the message ends (`done`, or the reply was handed on); the caller must
not change them before. `Message.data` is valid until the message is answered. Descriptors travel with messages inside a node only; they
are lent likewise: a server duplicates what it keeps before it answers, a client what it keeps before `done` returns.

A message may pass through a kernel on its way between two others (from a node to a process, from a process to a node): `Kernel.relay`
is `submit` for a message of which only the first part is here, with an `Answerer` that reaches the client.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from resmgr.credentials import ClientInfo as ClientInfo
from resmgr.credentials import Credentials as Credentials
from resmgr.dispatch import Buffer, Dispatch
from resmgr.errors import Misuse, ResmgrError
from resmgr.events import HANDLE_MAX, Events
from resmgr.ids import CHID_COPIES as CHID_COPIES
from resmgr.ids import CHID_NAMES as CHID_NAMES
from resmgr.ids import CHID_NODES as CHID_NODES
from resmgr.ids import CHID_PATHMGR as CHID_PATHMGR
from resmgr.ids import CHID_PROCMGR as CHID_PROCMGR
from resmgr.ids import CHID_REPLICA as CHID_REPLICA
from resmgr.ids import CHID_ROSTER as CHID_ROSTER
from resmgr.ids import DESCRIPTORS_MAX, PULSE_CODE_MAX, PULSE_VALUE_MAX, PULSE_VALUE_MIN, REPLY_LEN_MAX
from resmgr.ids import FIRST_PART_DEFAULT as FIRST_PART_DEFAULT
from resmgr.ids import ND_LOCAL as ND_LOCAL
from resmgr.ids import PID_SYSTEM as PID_SYSTEM
from resmgr.ids import PRIORITY_DEFAULT as PRIORITY_DEFAULT
from resmgr.ids import PRIORITY_MAX as PRIORITY_MAX
from resmgr.ids import PULSE_COIDDEATH as PULSE_COIDDEATH
from resmgr.ids import PULSE_DISCONNECT as PULSE_DISCONNECT
from resmgr.ids import Nd as Nd
from resmgr.localsend import DescriptorsDone as DescriptorsDone
from resmgr.localsend import Done as Done
from resmgr.localsend import LocalSend
from resmgr.received import Message as Message
from resmgr.received import Pulse as Pulse
from resmgr.relay import GONE as GONE
from resmgr.relay import Answerer as Answerer
from resmgr.relay import Descriptors as Descriptors
from resmgr.relay import Network as Network
from resmgr.relay import Passing as Passing
from resmgr.relay import Pending as Pending
from resmgr.relay import ReadDone as ReadDone
from resmgr.relay import Remote as Remote
from resmgr.shield import Running, Shield, shielded_message, shielded_relay


class Channel:
    """A server's end. `handler` is called with every message, `on_pulse` with every pulse, in dispatch context; neither may block.

    `first_part` is how many bytes of a message may come unasked. `remote` says whether clients on other nodes may use the channel at all
    (QNX: the NET_MSG flag).
    """

    __slots__ = ("chid", "first_part", "handler", "held", "kernel", "on_pulse", "pid", "remote", "shield")

    def __init__(
        self,
        kernel: Kernel,
        pid: int,
        chid: int,
        handler: Callable[[Message], None],
        on_pulse: Callable[[Pulse], None] | None,
        first_part: int,
        remote: bool,
    ) -> None:
        self.kernel = kernel
        self.pid = pid
        self.chid = chid
        self.handler = handler
        self.on_pulse = on_pulse
        self.first_part = first_part
        self.remote = remote
        self.shield = kernel.running()
        self.held: dict[Message, None] = {}
        """Messages received and not yet answered. A dict, here and elsewhere, where order must be the same in every run of a simulation."""

    def pulse(self, pulse: Pulse) -> None:
        """A pulse arrived. Whoever wants none gets none."""
        if self.on_pulse is None:
            return
        if self.shield is None:
            self.on_pulse(pulse)
        else:
            self.shield.run("channel: pulse", self.on_pulse, pulse)

    def deliver_event(self, client: ClientInfo, handle: int) -> int:
        """Send *client* (`Message.info`) the event that it registered (MsgDeliverEvent; `resmgr.events`). Never blocks.

        0 when it is on its way; -ESRCH when the client is gone, -EINVAL when a client in this kernel has registered no such event (of
        others that is not known: it is dropped at the client), -EAGAIN when its node or process takes nothing at the moment.
        """
        return self.kernel.deliver_event(self, client.scoid, handle)

    def destroy(self) -> None:
        """Close the channel: blocked clients get ESRCH, later sends EBADF, connected clients a death pulse."""
        self.kernel.destroy_channel(self)


class Connection:
    """A client's end (coid). Attaching is local: a wrong target shows at the first send, as in QNX."""

    __slots__ = (
        "chid",
        "closed",
        "coid",
        "credentials",
        "events",
        "info",
        "inherits",
        "kernel",
        "nd",
        "on_death",
        "on_event",
        "own",
        "pid",
        "priority",
        "remote_state",
        "sends",
        "shield",
        "unanswered",
        "used",
    )

    def __init__(self, kernel: Kernel, coid: int, nd: Nd, pid: int, chid: int, credentials: Credentials, priority: int) -> None:
        self.kernel = kernel
        self.coid = coid
        self.nd = nd
        self.pid = pid
        self.chid = chid
        self.credentials = credentials
        self.priority = priority
        self.closed = False
        self.shield = kernel.running()
        self.info = ClientInfo(ND_LOCAL, "", frozenset(), credentials, coid)
        self.on_death: Callable[[Connection], None] | None = None
        """Called once when the server's channel, process or node is gone, before the pulses of `Kernel.channel`'s *coid_death*."""
        self.own = True
        """False for what is carried here for a client elsewhere, whose own kernel tells him of the server's end."""
        self.inherits = True
        """Whether a task that works for a client sends with that client's priority (`resmgr.aio`) in place of the connection's."""
        self.events: Events[Channel] | None = None
        """What the server may deliver (`register_event`)."""
        self.on_event: Callable[[int], int] | None = None
        """The client is elsewhere: takes the number of an event there. 0 or -errno."""
        self.remote_state: object | None = None
        """Owned by the `Remote` that carries this connection."""
        self.sends: dict[LocalSend, None] = {}
        """Sends of this kernel's clients under way."""
        self.unanswered = 0
        """Closed, with a server in this kernel: messages that it has not answered, and 1 while the close is under way."""
        self.used = False
        """A server in this kernel has got something of it, so it will hear of its end."""

    def submit(self, parts: Sequence[Buffer], reply_len: int, done: Done, priority: int | None = None) -> Pending | None:
        """Send *parts* as one message and return; `done(status, reply)` once, possibly before this returns (then the result is None).

        Errors come as status: EBADF (no such channel), ESRCH (server died while blocked), EHOSTDOWN, EHOSTUNREACH, ENOTSUP (no
        network module), EINTR (unblocked), EAGAIN (too many sends under way to that peer), EMSGSIZE (a reply buffer above 4 GiB). A
        priority beyond what there is counts as the nearest.
        """
        return self.kernel.submit(self, parts, reply_len, done, self.priority if priority is None else priority)

    def submit_descriptors(
        self,
        parts: Sequence[Buffer],
        descriptors: Descriptors,
        reply_len: int,
        done: DescriptorsDone,
        priority: int | None = None,
    ) -> Pending | None:
        """As `submit`, with open descriptors, and taking descriptors with the reply. ENOTSUP towards another node."""
        send = LocalSend(self, parts, reply_len, None, descriptors, done)
        return self.kernel.start(send, self.priority if priority is None else priority)

    def pulse(self, code: int, value: int = 0, priority: int | None = None) -> int:
        """Send a pulse; 0, or -errno if it could not even be taken for delivery. Never blocks."""
        return self.kernel.pulse(self, code, value, self.priority if priority is None else priority)

    def register_event(self, channel: Channel, code: int, value: int = 0, priority: int | None = None, *, once: bool = False) -> int:
        """Let the server deliver this pulse to *channel*, one of this kernel (MsgRegisterEvent; `resmgr.events`). Returns the number to
        hand to it. *once*: the first delivery uses it up. ResmgrError: EBADF, EINVAL, EAGAIN (EVENTS_MAX are registered).
        """
        if self.closed or self.kernel.find_channel(channel.pid, channel.chid) is not channel:
            raise ResmgrError(errno.EBADF)
        if self.events is None:
            self.events = Events()
        return self.events.register(channel, code, value, self.priority if priority is None else priority, once)

    def unregister_event(self, handle: int) -> None:
        """Take an event back (MsgUnregisterEvent). What was delivered and not received yet still arrives."""
        if self.events is not None:
            self.events.unregister(handle)

    def died(self) -> None:
        """The server is gone (told by whoever carries it): tell whoever wants to know."""
        if self.closed:
            return
        try:
            if self.on_death is not None:
                if self.shield is None:
                    self.on_death(self)
                else:
                    self.shield.run("connection: death", self.on_death, self)
        finally:
            if self.own:
                self.kernel.pulse_death(self)

    def close(self) -> None:
        """Detach. Sends under way end with EBADF and are unblocked; when the server has answered the last, its channel gets
        PULSE_DISCONNECT. A server that got nothing of it hears nothing. Idempotent.
        """
        self.kernel.detach(self)


class Kernel:
    """Channels and connections of one node: what procnto is to QNX, reduced to messages. Pure: all calls happen in dispatch context."""

    def __init__(self, dispatch: Dispatch, node_name: str) -> None:
        self.dispatch = dispatch
        self.own_dispatch = dispatch
        """For what is the node's own, so that its mistakes do not end the node (`resmgr.owndispatch`)."""
        self.node_name = node_name
        self.node_by_name: Callable[[str], Nd | None] = _no_node
        """The node of that name, if it can be reached now. Set by the network module while it is loaded, as is `name_of_node`."""
        self.name_of_node: Callable[[int], str] = _no_name
        """The name of the node with that number, or nothing."""
        self._network: Network | None = None
        self._network_shield: Shield | None = None
        self.running = Running()
        """Whose callback is running (`resmgr.shield`). Told by stacks."""
        self.passing: Passing | None = None
        """Takes messages with descriptors for other nodes: descriptors do not leave this one."""
        self.uplink: Remote | None = None
        """In the kernel of a process: the daemon, which knows all other processes."""
        self._channels: dict[tuple[int, int], Channel] = {}
        self._processes: dict[int, Remote] = {}
        self._connections: dict[int, Connection] = {}
        self._by_channel: dict[Channel, dict[Connection, None]] = {}
        self._death_channels: dict[Channel, None] = {}
        self.pid = PID_SYSTEM
        """Whose channels are made here: the node's own, or those of one process."""
        self._next_coid = 1
        self._next_chid = 16

    @property
    def network(self) -> Network | None:
        """Set by the network module (Qnet) while it is loaded."""
        return self._network

    @network.setter
    def network(self, network: Network | None) -> None:
        self._network = network
        self._network_shield = None if network is None else self.running()

    def become(self, pid: int, first_chid: int) -> None:
        """Be the kernel of process *pid* of the node (in the process; told by the daemon). Channel ids begin at *first_chid*."""
        if self._channels:
            raise Misuse("this kernel has channels already")
        self.pid = pid
        self._next_chid = first_chid

    def channel(
        self,
        handler: Callable[[Message], None],
        *,
        on_pulse: Callable[[Pulse], None] | None = None,
        pid: int | None = None,
        chid: int | None = None,
        first_part: int = FIRST_PART_DEFAULT,
        remote: bool = True,
        coid_death: bool = False,
    ) -> Channel:
        """Create a channel (ChannelCreate). *chid* is chosen unless given; ids are never used twice in one kernel's life.

        *coid_death*: it gets PULSE_COIDDEATH, with the coid as the value, when the server behind a connection of this program is gone (of
        a part of the daemon: behind a connection of that part).
        """
        if pid is None:
            pid = self.pid
        if chid is None:
            chid = self._next_chid
            self._next_chid += 1
        if (pid, chid) in self._channels:
            raise Misuse(f"channel {pid}/{chid} exists")
        channel = Channel(self, pid, chid, handler, on_pulse, first_part, remote)
        self._channels[pid, chid] = channel
        self._by_channel[channel] = {}
        if coid_death:
            self._death_channels[channel] = None
        if channel.shield is not None:
            channel.shield.opened(channel)
        return channel

    def reserve(self) -> int:
        """A channel id for `channel` to be given later."""
        chid = self._next_chid
        self._next_chid += 1
        return chid

    def find_channel(self, pid: int, chid: int) -> Channel | None:
        return self._channels.get((pid, chid))

    def connect(self, nd: Nd, pid: int, chid: int, credentials: Credentials, *, priority: int | None = None) -> Connection:
        """Attach to a channel (ConnectAttach). Never fails and never blocks: a wrong target shows at the first send.

        *priority*: of what is sent on it, whoever the sender works for; None: inherited, or PRIORITY_DEFAULT.
        """
        connection = Connection(self, self._next_coid, nd, pid, chid, credentials, PRIORITY_DEFAULT if priority is None else priority)
        connection.inherits = priority is None
        self._next_coid += 1
        self._connections[connection.coid] = connection
        if nd == ND_LOCAL:
            channel = self._channels.get((pid, chid))
            if channel is not None:
                self._by_channel[channel][connection] = None
        return connection

    def connected(self, channel: Channel) -> tuple[Connection, ...]:
        """Connections of this kernel's clients to *channel*, one of its own."""
        return tuple(self._by_channel.get(channel, ()))

    def attach_process(self, pid: int, remote: Remote) -> None:
        """Channels of process *pid* of this node are reached through *remote* (the local socket server) from now on."""
        self._processes[pid] = remote

    def detach_process(self, pid: int) -> None:
        self._processes.pop(pid, None)

    def carrier(self, connection: Connection) -> Remote | int:
        """Who carries this connection, or the errno of why nobody does. Only for targets outside this kernel."""
        if connection.nd != ND_LOCAL:
            if self._network is not None:
                return self._network.remote(connection.nd)
            return errno.ENOTSUP if self.uplink is None else self.uplink
        remote = self._processes.get(connection.pid, self.uplink)
        return errno.EBADF if remote is None else remote

    def submit(self, connection: Connection, parts: Sequence[Buffer], reply_len: int, done: Done, priority: int) -> Pending | None:
        return self.start(LocalSend(connection, parts, reply_len, done), priority)

    def start(self, send: LocalSend, priority: int) -> Pending | None:
        """Send what a client of this kernel handed over."""
        connection = send.connection
        code = 0
        if connection.closed:
            code = errno.EBADF
        elif not 0 <= send.reply_len <= REPLY_LEN_MAX:
            code = errno.EMSGSIZE
        elif send.descriptors and connection.nd == ND_LOCAL and len(send.descriptors) > DESCRIPTORS_MAX:
            code = errno.EINVAL
        if code:
            send.answer(-code, (), ())
            return None
        connection.sends[send] = None
        data = send.data
        if not 0 <= priority <= PRIORITY_MAX:
            priority = 0 if priority < 0 else PRIORITY_MAX
        send.pending = self.relay(connection, data, len(data), send.reply_len, priority, send, send.descriptors)
        return None if send.pending is None else send

    def relay(
        self,
        connection: Connection,
        data: Buffer,
        msglen: int,
        reply_len: int,
        priority: int,
        answerer: Answerer,
        descriptors: Descriptors = (),
    ) -> Pending | None:
        """Send a message of which *data* is the beginning; the rest is pulled from *answerer*. None if it is answered already."""
        channel = self._channels.get((connection.pid, connection.chid)) if connection.nd == ND_LOCAL else None
        if channel is None:
            if descriptors and connection.nd != ND_LOCAL and self.passing is not None:
                return self.passing(connection, data, priority, answerer, descriptors)
            shield = self._network_shield
            if shield is not None and connection.nd != ND_LOCAL:
                return shielded_relay(
                    shield, lambda: self._relay_away(connection, data, msglen, reply_len, priority, answerer, descriptors), answerer
                )
            return self._relay_away(connection, data, msglen, reply_len, priority, answerer, descriptors)
        self._by_channel[channel][connection] = None
        connection.used = True
        message = self.deliver(channel, connection.info, data, msglen, reply_len, priority, answerer, descriptors)
        return message if message.client_waits else None

    def _relay_away(
        self,
        connection: Connection,
        data: Buffer,
        msglen: int,
        reply_len: int,
        priority: int,
        answerer: Answerer,
        descriptors: Descriptors,
    ) -> Pending | None:
        remote = self.carrier(connection)
        if isinstance(remote, int):
            answerer.answer(-remote, (), ())
            return None
        return remote.relay(connection, data, msglen, reply_len, priority, answerer, descriptors)

    def deliver(
        self,
        channel: Channel,
        info: ClientInfo,
        data: Buffer,
        msglen: int,
        reply_len: int,
        priority: int,
        answerer: Answerer,
        descriptors: Descriptors = (),
    ) -> Message:
        """Hand a message to a channel's handler. Used for local sends and by remotes for what arrived."""
        message = Message(channel, info, data, msglen, reply_len, priority, answerer, descriptors)
        channel.held[message] = None
        if channel.shield is None:
            channel.handler(message)
        else:
            shielded_message(channel.shield, message)
        return message

    def pulse(self, connection: Connection, code: int, value: int, priority: int) -> int:
        if connection.closed:
            return -errno.EBADF
        if not 0 <= code <= PULSE_CODE_MAX or not PULSE_VALUE_MIN <= value <= PULSE_VALUE_MAX or not 0 <= priority <= PRIORITY_MAX:
            return -errno.EINVAL
        channel = self._channels.get((connection.pid, connection.chid)) if connection.nd == ND_LOCAL else None
        if channel is None:
            return self._away(connection, lambda remote: remote.pulse(connection, code, value, priority))
        connection.used = True
        channel.pulse(Pulse(code, value, priority, connection.info))
        return 0

    def _away(self, connection: Connection, call: Callable[[Remote], int]) -> int:
        """Ask whoever carries *connection*; -errno when nobody does."""
        status = [-errno.EIO]

        def run() -> None:
            remote = self.carrier(connection)
            status[0] = -remote if isinstance(remote, int) else call(remote)

        shield = self._network_shield
        if shield is None or connection.nd == ND_LOCAL:
            run()
        else:
            shield.run("network: pulse or detach", run)
        return status[0]

    def deliver_event(self, channel: Channel, scoid: int, handle: int) -> int:
        """`Channel.deliver_event`."""
        connection = self._connections.get(scoid)
        if connection is None or connection.nd != ND_LOCAL or (connection.pid, connection.chid) != (channel.pid, channel.chid):
            return -errno.ESRCH
        return self.event(connection, handle)

    def event(self, connection: Connection, handle: int) -> int:
        """The server of *connection* delivers an event to its client. Used for local servers and by remotes for what arrived."""
        if not 0 < handle <= HANDLE_MAX:
            return -errno.EINVAL
        if connection.on_event is not None:
            return connection.on_event(handle)
        event = None if connection.events is None or connection.closed else connection.events.delivered(handle)
        if event is None:
            return -errno.EINVAL
        channel = event.channel
        if self._channels.get((channel.pid, channel.chid)) is not channel:
            connection.unregister_event(handle)
            return -errno.EINVAL
        channel.pulse(Pulse(event.code, event.value, event.priority, connection.info))
        return 0

    def detach(self, connection: Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        connection.events = None
        self._connections.pop(connection.coid, None)
        channel = self._channels.get((connection.pid, connection.chid)) if connection.nd == ND_LOCAL else None
        if channel is not None:
            self._by_channel[channel].pop(connection, None)
        # The clients are told first: a server that agrees to the unblock must find nobody left to tell EINTR.
        sends = list(connection.sends)
        if channel is not None:
            connection.unanswered = len(sends) + 1
        for send in sends:
            send.answer(-errno.EBADF, (), ())
        for send in sends:
            send.unblock()
        if channel is None:
            self._away(connection, lambda remote: _detached(remote, connection))
        elif connection.used:
            self.answered_late(connection)

    def answered_late(self, connection: Connection) -> None:
        """A closed connection has one message less at the server (called by its sends). With the last one the server is told of its end."""
        connection.unanswered -= 1
        channel = self._channels.get((connection.pid, connection.chid))
        if connection.unanswered == 0 and connection.nd == ND_LOCAL and channel is not None:
            channel.pulse(Pulse(PULSE_DISCONNECT, connection.coid, connection.priority, connection.info))

    def destroy_channel(self, channel: Channel) -> None:
        if self._channels.pop((channel.pid, channel.chid), None) is None:
            return
        self._death_channels.pop(channel, None)
        if channel.shield is not None:
            channel.shield.closed(channel)
        for message in list(channel.held):
            message.abandon(errno.ESRCH)
        failure: Exception | None = None
        for connection in list(self._by_channel.pop(channel, ())):
            connection.events = None
            try:
                connection.died()
            except Exception as error:
                failure = failure or error  # of a program's own: when the others have been told
        if failure is not None:
            raise failure

    def pulse_death(self, connection: Connection) -> None:
        """PULSE_COIDDEATH to the channels of the part of which *connection* is."""
        for channel in list(self._death_channels):
            if channel.shield is connection.shield:
                channel.pulse(Pulse(PULSE_COIDDEATH, connection.coid, connection.priority, connection.info))


def _no_node(name: str) -> Nd | None:
    return None


def _no_name(nd: int) -> str:
    return ""


def _detached(remote: Remote, connection: Connection) -> int:
    remote.detach(connection)
    return 0
