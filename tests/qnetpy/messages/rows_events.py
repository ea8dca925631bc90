"""Rows: events that a server delivers; priority, in which order a server receives and with which one it sends on."""

from __future__ import annotations

import trio

from resmgr.channel import PULSE_DISCONNECT, Channel, Connection, Message, Pulse
from resmgr.errors import ResmgrError
from resmgr.events import EVENTS_MAX
from tests.qnetpy.messages.rig import Rig, name_of
from tests.qnetpy.messages.row import NOT_HERE, Rows

events = Rows("Events")
priorities = Rows("Priority")


class Notified:
    """A client with a channel of its own, a server that keeps who asked, and a connection between them."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.came: list[Pulse] = []
        self.asked: list[tuple[Message, int]] = []
        self.left = False
        self.own = rig.client.channel(lambda message: None, on_pulse=self.came.append)
        self.channel: Channel = rig.channel(self._serve, on_pulse=self._pulse)
        self.connection = rig.connect(self.channel)

    def _serve(self, message: Message) -> None:
        self.asked.append((message, int(bytes(message.data))))
        message.reply()

    def _pulse(self, pulse: Pulse) -> None:
        self.left = self.left or pulse.code == PULSE_DISCONNECT

    def register(self, once: bool = False) -> int:
        return self.connection.register_event(self.own, 5, 7, 30, once=once)

    async def hand_over(self, handle: int, connection: Connection | None = None) -> None:
        await self.rig.call(self.connection if connection is None else connection, b"%d" % handle)

    async def delivered(self, times: int = 1) -> str:
        """What comes of it when the server delivers what it was handed."""
        message, handle = self.asked[-1]
        for _ in range(times):
            status = message.deliver_event(handle)
        await self.rig.quiet()
        if self.came:
            return f"{name_of(status)}, {len(self.came)} come"
        return f"{name_of(status)}, nothing comes"


@events("the server delivers an event after its reply", "code 5, value 7, priority 30, with the number of the client's connection")
async def deliver(rig: Rig) -> str:
    there = Notified(rig)
    await there.hand_over(there.register())
    assert await there.delivered() == "status 0, 1 come"
    pulse = there.came[0]
    whose = "the client's connection" if pulse.info.scoid == there.connection.coid else "another one"
    return f"code {pulse.code}, value {pulse.value}, priority {pulse.priority}, with the number of {whose}"


@events("the server delivers it three times", "status 0, 3 come")
async def often(rig: Rig) -> str:
    there = Notified(rig)
    await there.hand_over(there.register())
    return await there.delivered(3)


@events("the server delivers one that was registered for once twice", "EINVAL, 1 come", "status 0, 1 come", "status 0, 1 come")
async def once(rig: Rig) -> str:
    there = Notified(rig)
    await there.hand_over(there.register(once=True))
    return await there.delivered(2)


@events("a number that nobody registered", "EINVAL, nothing comes", "status 0, nothing comes", "status 0, nothing comes")
async def forged(rig: Rig) -> str:
    there = Notified(rig)
    there.register()
    await there.hand_over(99)
    return await there.delivered()


@events("one that was registered for another connection", "EINVAL, nothing comes", "status 0, nothing comes", "status 0, nothing comes")
async def of_another(rig: Rig) -> str:
    there = Notified(rig)
    handle = there.register()
    await there.hand_over(handle, rig.connect(there.channel))
    return await there.delivered()


@events("one that was taken back", "EINVAL, nothing comes", "status 0, nothing comes", "status 0, nothing comes")
async def taken_back(rig: Rig) -> str:
    there = Notified(rig)
    handle = there.register()
    await there.hand_over(handle)
    there.connection.unregister_event(handle)
    return await there.delivered()


@events("the client's channel is closed", "EINVAL, nothing comes", "status 0, nothing comes", "status 0, nothing comes")
async def own_channel_closed(rig: Rig) -> str:
    there = Notified(rig)
    await there.hand_over(there.register())
    there.own.destroy()
    return await there.delivered()


@events("the client has closed the connection", "ESRCH, nothing comes")
async def detached(rig: Rig) -> str:
    there = Notified(rig)
    await there.hand_over(there.register())
    there.connection.close()
    await rig.until(lambda: there.left)
    return await there.delivered()


@events("the client's process has died", NOT_HERE, "ESRCH", "ESRCH")
async def client_died(rig: Rig) -> str:
    there = Notified(rig)
    await there.hand_over(there.register())
    await rig.kill_client()
    await rig.until(lambda: there.left)
    message, handle = there.asked[-1]
    return name_of(message.deliver_event(handle))


@events("register: a code of -1, on a closed connection, one more than a connection may have", "EINVAL, EBADF, EAGAIN")
async def bad_registration(rig: Rig) -> str:
    there = Notified(rig)
    closed = rig.connect(there.channel)
    closed.close()
    for _ in range(EVENTS_MAX):
        there.register()
    seen: list[str] = []
    for connection, code in ((there.connection, -1), (closed, 1), (there.connection, 1)):
        try:
            connection.register_event(there.own, code)
        except ResmgrError as error:
            seen.append(name_of(-(error.errno or 0)))
    return ", ".join(seen)


@priorities("waiting: messages of 5, 20, 20, 1 and a pulse of 30", "pulse 30, then 20 (first), 20 (second), 5, 1")
async def order(rig: Rig) -> str:
    with rig.receiving() as channel:
        connection = rig.connect(channel.channel)
        rig.send(connection, b"", priority=5)
        await rig.quiet()
        for text, priority in ((b" (first)", 20), (b" (second)", 20), (b"", 1)):
            rig.send(connection, text, priority=priority)
            await rig.quiet()
        connection.pulse(1, 0, 30)
        await rig.quiet()
        received: list[str] = []
        for _ in range(5):
            item = await channel.receive()
            if isinstance(item, Pulse):
                received.append(f"pulse {item.priority}, then")
            else:
                received.append(f"{item.priority}{bytes(item.data).decode()},")
                item.reply()
        await rig.until(lambda: all(sent.ended for sent in rig.sent))
        return " ".join(received).removesuffix(",")


async def sent_on(rig: Rig, own: int | None) -> str:
    """With which priority a server sends to a second one while it works for a client of priority 33."""
    seen: list[int] = []

    def second(message: Message) -> None:
        seen.append(message.priority)
        message.reply()

    behind = rig.client.channel(second)
    with rig.receiving() as channel:
        onward = rig.server.connect(rig.nd_back, behind.pid, behind.chid, rig.credentials, priority=own)

        async def serve() -> None:
            message = await channel.receive()
            assert not isinstance(message, Pulse)
            await rig.send_as_server(onward)
            message.reply()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await rig.call(rig.connect(channel.channel), priority=33)
    return str(seen[0])


@priorities("what a server sends while it works for a client of priority 33", "33")
async def inherited(rig: Rig) -> str:
    return await sent_on(rig, None)


@priorities("the same on a connection that it gave priority 11", "11")
async def not_inherited(rig: Rig) -> str:
    return await sent_on(rig, 11)


TASKS = {order, inherited, not_inherited}
"""Rows whose server is a task: one on a machine that has lost power would wait for ever."""
