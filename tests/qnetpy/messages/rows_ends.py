"""Rows: the ends of servers, clients, daemons, nodes and links."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from qnetpy.nodes import NodeState
from resmgr.channel import PULSE_DISCONNECT, Channel, Connection, Message, Pulse
from tests.qnetpy.messages.rig import Rig, Sent, TwoNodes
from tests.qnetpy.messages.row import NOT_HERE, Rows

ends = Rows("Ends of servers and clients")
nodes = Rows("Ends of nodes and links")
LEFT = "unblock, answer, DISCONNECT"
DOWN_AFTER = 3.5
"""Seconds of silence after which a node is down."""


class Ending:
    """A server that holds messages and says what it hears, a client that waits and one that is connected."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.held: list[Message] = []
        self.heard: list[str] = []
        self.idle_left = False
        self.deaths: list[str] = []
        self.channel: Channel = rig.channel(self._serve, on_pulse=self._pulse)
        self.connection = rig.connect(self.channel)
        self.idle = rig.connect(self.channel)
        self.connection.on_death = lambda dead: self.deaths.append("COIDDEATH")
        self.idle.on_death = lambda dead: self.deaths.append("COIDDEATH")

    def _serve(self, message: Message) -> None:
        if message.data == b"ready":
            message.reply()
            return
        self.held.append(message)
        message.on_unblock = lambda: self.heard.append("unblock")

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.code == PULSE_DISCONNECT:
            if pulse.info.scoid == self.held[0].info.scoid:
                self.heard.append("DISCONNECT")
            else:
                self.idle_left = True

    async def blocked(self) -> Sent:
        """A send that waits for its answer, and another connection that is known to the server."""
        await self.rig.call(self.idle, b"ready")
        sent = self.rig.send(self.connection, b"wait")
        await self.rig.until(lambda: bool(self.held))
        return sent

    async def server_ends(self, end: Callable[[], Awaitable[None]]) -> str:
        """What clients see of the end of a server."""
        sent = await self.blocked()
        await end()
        await self.rig.until(lambda: sent.ended and len(self.deaths) == 2)
        later = await self.rig.call(self.connection)
        return f"{sent.result}, {self.deaths[0]}, then {later.result}"

    async def client_ends(self, end: Callable[[], Awaitable[None]]) -> str:
        """What the server hears of the end of a client, and that its answer hurts nobody."""
        await self.blocked()
        await end()
        await self.rig.until(lambda: bool(self.heard) and self.idle_left)
        await self.rig.quiet()
        await self.answer()
        return ", ".join(self.heard)

    async def answer(self) -> None:
        """The server answers the client that is gone, and then hears of the disconnect."""
        self.heard.append("answer")
        self.held[0].reply(1)
        await self.rig.until(lambda: "DISCONNECT" in self.heard)


@ends("the server closes its channel", "ESRCH, COIDDEATH, then EBADF")
async def channel_closed(rig: Rig) -> str:
    ending = Ending(rig)

    async def end() -> None:
        ending.channel.destroy()

    return await ending.server_ends(end)


@ends("the server's process dies", NOT_HERE, "ESRCH, COIDDEATH, then EBADF", "ESRCH, COIDDEATH, then EBADF")
async def server_dies(rig: Rig) -> str:
    return await Ending(rig).server_ends(rig.kill_server)


@ends("a client that had attached before the server died, and sends for the first time", NOT_HERE, "EBADF", "EBADF")
async def first_send_after_death(rig: Rig) -> str:
    connection = rig.connect(rig.channel(lambda message: message.reply()))
    await rig.kill_server()
    return (await rig.call(connection)).result


@ends("the server answers and dies at once", NOT_HERE, "status 1", "status 1")
async def answers_and_dies(rig: Rig) -> str:
    held: list[Message] = []
    sent = rig.send(rig.connect(rig.channel(held.append)))
    await rig.until(lambda: bool(held))
    held[0].reply(1)
    await rig.quiet()
    await rig.kill_server()
    await rig.until(lambda: sent.ended)
    return sent.result


@ends("the client's process dies: the server hears", NOT_HERE, LEFT, LEFT)
async def client_dies(rig: Rig) -> str:
    return await Ending(rig).client_ends(rig.kill_client)


@ends("the daemon ends", NOT_HERE, "ENOTCONN, COIDDEATH, then EBADF", NOT_HERE)
async def daemon_ends(rig: Rig) -> str:
    return await Ending(rig).server_ends(rig.end_daemon)


@nodes("the server's node loses power", NOT_HERE, NOT_HERE, "EHOSTDOWN, COIDDEATH, then EBADF")
async def node_dies(rig: Rig) -> str:
    assert isinstance(rig, TwoNodes)

    async def end() -> None:
        rig.crash("b")

    return await Ending(rig).server_ends(end)


@nodes("the server's node stops", NOT_HERE, NOT_HERE, "EHOSTDOWN, COIDDEATH, then EBADF")
async def node_stops(rig: Rig) -> str:
    assert isinstance(rig, TwoNodes)

    async def end() -> None:
        rig.b.stop()

    return await Ending(rig).server_ends(end)


@nodes("the client's node loses power: the server hears", NOT_HERE, NOT_HERE, LEFT)
async def client_node_dies(rig: Rig) -> str:
    assert isinstance(rig, TwoNodes)

    async def end() -> None:
        rig.crash("a")

    return await Ending(rig).client_ends(end)


@nodes("a new connection to a node that is down", NOT_HERE, NOT_HERE, "EHOSTDOWN")
async def connect_to_dead(rig: Rig) -> str:
    assert isinstance(rig, TwoNodes)
    channel = rig.channel(lambda message: message.reply())
    rig.crash("b")
    await rig.until(lambda: not rig.a.sees("b"))
    return (await rig.call(rig.connect(channel))).result


def _suspects(rig: TwoNodes) -> bool:
    node = rig.a.qnet.nodes.get("b")
    return node is not None and node.state is NodeState.SUSPECT


async def answer_of(rig: Rig, connection: Connection) -> str:
    return (await rig.call(connection, b"ready")).result


@nodes("silence for 1 s", NOT_HERE, NOT_HERE, "the send waits, its answer comes")
async def short_silence(rig: Rig) -> str:
    assert isinstance(rig, TwoNodes)
    ending = Ending(rig)
    sent = await ending.blocked()
    rig.cut(True)
    ending.held[0].reply(5)
    rig.world.run(1.0)
    waits = "the send waits" if not sent.ended else "the send ends"
    rig.cut(False)
    await rig.until(lambda: sent.ended)
    return f"{waits}, {'its answer comes' if sent.result == 'status 5' and not ending.deaths else sent.result}"


@nodes("an unblock during a silence, the server being one that is asked", NOT_HERE, NOT_HERE, "EINTR at once")
async def unblock_in_silence(rig: Rig) -> str:
    assert isinstance(rig, TwoNodes)
    ending = Ending(rig)
    sent = await ending.blocked()
    rig.cut(True)
    await rig.until(lambda: _suspects(rig))
    began = rig.world.now
    sent.unblock()
    await rig.until(lambda: sent.ended)
    return f"{sent.result} {'at once' if rig.world.now - began < 0.1 else 'late'}"


@nodes(
    "the link is lost for longer and comes back",
    NOT_HERE,
    NOT_HERE,
    f"EHOSTDOWN, COIDDEATH; the server hears {LEFT}; old connection EBADF, new one status 0",
)
async def link_lost(rig: Rig) -> str:
    assert isinstance(rig, TwoNodes)
    ending = Ending(rig)
    sent = await ending.blocked()
    rig.cut(True)
    await rig.until(lambda: sent.ended and bool(ending.heard))
    deaths = ending.deaths[0]
    await ending.answer()
    rig.cut(False)
    await rig.until(rig.world.settled)
    old = await answer_of(rig, ending.connection)
    new = await answer_of(rig, rig.connect(ending.channel))
    return f"{sent.result}, {deaths}; the server hears {', '.join(ending.heard)}; old connection {old}, new one {new}"


@nodes("the server's node was started again", NOT_HERE, NOT_HERE, "old connection EBADF, new one status 0")
async def restarted(rig: Rig) -> str:
    assert isinstance(rig, TwoNodes)
    ending = Ending(rig)
    await ending.blocked()
    rig.crash("b")
    rig.world.run(DOWN_AFTER)
    await rig.restart_server()
    old = await answer_of(rig, ending.connection)
    again = Ending(rig)
    return f"old connection {old}, new one {await answer_of(rig, again.connection)}"
