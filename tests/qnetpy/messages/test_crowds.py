"""Many clients, servers that stop, and programs that are killed at every step: who is delayed, and what is left of it."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from resmgr.channel import ND_LOCAL, PULSE_DISCONNECT, Message, Pulse
from resmgr.dispatch import Buffer
from tests.qnetpy.messages.rig import PENDING_MAX, ROOT, STEP, Program, Sent, TwoNodes

pytestmark = pytest.mark.sim
CLIENTS = 1000
LARGE = bytes(400_000)


async def test_a_thousand_clients_of_one_server() -> None:
    """500 programs on either node, each with a small send and one that is pulled, all under way at once."""
    there = TwoNodes("clean", 1)
    held: list[Message] = []

    def serve(message: Message) -> None:
        held.append(message)

    channel = there.channel(serve)
    results: dict[int, list[tuple[int, bytes]]] = {}
    for number in range(CLIENTS):
        program = Program(there.world, there.a if number % 2 else there.b, 10_000 + number)
        connection = program.kernel.connect(there.nd if number % 2 else ND_LOCAL, channel.pid, channel.chid, ROOT)
        ended = results[number] = []

        def done(status: int, reply: Buffer, ended: list[tuple[int, bytes]] = ended) -> None:
            ended.append((status, bytes(reply)))

        connection.submit((b"%d" % number,), 20, done)
        connection.submit((b"%d" % number, bytes(20_000)), 20, done)
    await there.until(lambda: len(held) == 2 * CLIENTS, limit=60)

    def answer(message: Message) -> Callable[[int, Buffer], None]:
        def got(status: int, data: Buffer) -> None:
            number = bytes(data[:10]).rstrip(b"\0")
            message.reply(status, number)

        return got

    for message in held:
        message.read(0, message.msglen, answer(message))
    await there.until(lambda: all(len(ended) == 2 for ended in results.values()), limit=60)
    for number, ended in results.items():
        text = b"%d" % number
        assert sorted(ended) == [(len(text), text), (len(text) + 20_000, text)]


async def test_a_server_that_never_replies_delays_only_its_own_clients() -> None:
    """Its client's node refuses what is beyond the caps, at once; others answer that client, and others' clients, as if nothing were."""
    there = TwoNodes("clean", 2)
    held: list[Message] = []
    stopped = there.channel(held.append)
    quick = there.channel(lambda message: message.reply(1))
    other = Program(there.world, there.a, 701)
    waiting = [there.send(there.connect(stopped), LARGE) for _ in range(PENDING_MAX - 1)]
    await there.until(lambda: len(held) == len(waiting))
    answered: list[float] = []
    for kernel in (there.client, other.kernel):
        connection = kernel.connect(there.nd, quick.pid, quick.chid, ROOT)
        for _ in range(20):
            began = there.world.now
            before = len(answered)
            connection.submit((b"x",), 0, lambda status, reply, began=began: answered.append(there.world.now - began))  # type: ignore[misc]  # bound at once
            await there.until(lambda before=before: len(answered) > before)  # type: ignore[misc]  # as above
    assert max(answered) <= STEP
    one = there.send(there.connect(stopped))
    await there.until(lambda: len(held) == PENDING_MAX)
    more = [there.send(there.connect(stopped)) for _ in range(10)]
    await there.until(lambda: all(sent.ended for sent in more))
    assert {sent.statuses[0] for sent in more} == {-errno.EAGAIN}
    daemon = there.client_program.daemon_side.statistics()
    assert daemon.incoming == PENDING_MAX
    assert daemon.held <= PENDING_MAX * 16384, "of each only the first part is here"
    assert not one.ended
    await there.kill_server()
    await there.until(lambda: one.ended and all(sent.ended for sent in waiting))
    assert {sent.statuses[0] for sent in (one, *waiting)} == {-errno.ESRCH}
    assert there.client_program.daemon_side.statistics().incoming == 0


STEPS = (
    "attached",
    "pulsed",
    "event handed over",
    "event delivered",
    "sent",
    "held",
    "reading",
    "read",
    "written",
    "asked to let go",
    "answered",
    "closed",
)
VICTIMS = {"client": -errno.ESRCH, "server": -errno.ESRCH, "client's node": -errno.EHOSTDOWN, "server's node": -errno.EHOSTDOWN}
"""Who is killed; how a send that the other side held ends at a client that is left. A node takes its daemon and its programs along."""


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_every_step(victim: str, step: str) -> None:
    """One of four is killed at one step of all that two programs do with each other: who is left hears of it, nothing is kept, and the next
    client, or server, is served."""
    there = TwoNodes("clean", 3)
    held: list[Message] = []
    asked: list[str] = []
    ended: list[int] = []
    pulses: list[Pulse] = []
    events: list[Pulse] = []
    sent: list[Sent] = []

    def serve(message: Message) -> None:
        if message.msglen < 100:
            number = int(bytes(message.data) or b"0")
            message.reply()
            if number:
                message.deliver_event(number)
            return
        held.append(message)
        message.on_unblock = lambda: asked.append("asked")

    channel = there.channel(serve, on_pulse=pulses.append)
    own = there.client.channel(lambda message: message.reply(), on_pulse=events.append)
    connection = there.connect(channel)

    async def do(what: str) -> None:
        """One step. What needs an answer of the other side is not waited for: it is killed meanwhile."""
        if what == "pulsed":
            connection.pulse(7)
        elif what == "event handed over":
            there.send(connection, b"%d" % connection.register_event(own, 5))
        elif what == "event delivered":
            await there.until(lambda: bool(events))
        elif what == "sent":
            sent.append(there.send(connection, LARGE, reply_len=len(LARGE)))
        elif what == "held":
            await there.until(lambda: bool(held))
        elif what == "reading":
            held[0].read(0, len(LARGE), lambda status, data: ended.append(status))
        elif what == "read":
            await there.until(lambda: bool(ended))
        elif what == "written":
            held[0].write(0, LARGE)
        elif what == "asked to let go":
            sent[0].unblock()
        elif what == "answered":
            held[0].reply(0, LARGE)
        elif what == "closed":
            connection.close()

    for one in STEPS[: STEPS.index(step) + 1]:
        await do(one)
    if victim == "client":
        await there.kill_client()
    elif victim == "server":
        await there.kill_server()
    else:
        there.crash("a" if victim.startswith("client") else "b")
    lost = victim.startswith("server")
    there.world.run(5.0 if victim.endswith("node") else 2.0)
    if lost:
        allowed = [VICTIMS[victim], -errno.EBADF if step in ("sent", "closed", "event handed over") else 0, 0]
        if victim == "server's node" and STEPS.index(step) >= STEPS.index("asked to let go"):
            allowed.append(-errno.EINTR)  # an unblock during the silence
        for one_sent in there.sent:
            assert len(one_sent.statuses) == 1, f"a send ended {len(one_sent.statuses)} times"
            assert one_sent.statuses[0] in allowed, "EBADF: it had not arrived, or the connection was closed"
    elif held:
        assert not ended or 0 < ended[0] <= len(LARGE) or ended[0] == -errno.ESRCH, "what had come is read"
        if not held[0].answered:
            assert asked == ["asked"]
            held[0].reply()
            there.world.run(0.5)
        assert [pulse.code for pulse in pulses][-1] == PULSE_DISCONNECT
    connection.close()
    there.world.run(1.0)
    left = [program for program in (there.client_program, there.server_program) if not program.view.stopped and not program.node.dead]
    for program in left:
        counts = program.daemon_side.statistics()
        assert (counts.outgoing, counts.incoming, counts.held, counts.connections_in, counts.connections_out) == (0, 0, 0, 0, 0)
    for node in (there.a, there.b):
        assert node.dead or node.qnet.counters["handler_failed"] == 0
    if victim == "client":
        again = Program(there.world, there.a, 702).kernel.connect(there.nd, channel.pid, channel.chid, ROOT)
        answers: list[int] = []
        again.submit((b"",), 0, lambda status, reply: answers.append(status))
        await there.until(lambda: bool(answers))
        assert answers == [0], "the next client is served"
