"""Rows: unblock, deadline, cancellation, close; pulses."""

from __future__ import annotations

from resmgr.channel import PULSE_DISCONNECT, Message, Pulse
from tests.qnetpy.messages.rig import Rig, name_of
from tests.qnetpy.messages.row import Rows

unblocks = Rows("Unblock, deadline, cancellation")
pulses = Rows("Pulses, attach and detach")


async def unblocked(rig: Rig, on_unblock: str) -> str:
    """A send that is unblocked twice; *on_unblock*: what the server does when it hears of it."""
    held: list[Message] = []
    asked: list[str] = []

    def serve(message: Message) -> None:
        held.append(message)

        def ask() -> None:
            asked.append("asked")
            if on_unblock == "agrees":
                message.error(4)
            elif on_unblock == "answers":
                message.reply(3)

        if on_unblock:
            message.on_unblock = ask

    sent = rig.send(rig.connect(rig.channel(serve)))
    await rig.until(lambda: bool(held))
    sent.unblock()
    sent.unblock()
    await rig.quiet()
    result = sent.result if sent.ended else "waits"
    if not held[0].answered:
        held[0].reply(5)
        await rig.quiet()
        result += f"; the server answers 5: {sent.result}"
    assert len(asked) == (1 if on_unblock else 0)
    return result


@unblocks("the server did not want to be asked", "EINTR; the server answers 5: EINTR")
async def no_consent(rig: Rig) -> str:
    return await unblocked(rig, "")


@unblocks("the server is asked (once) and agrees", "EINTR")
async def agrees(rig: Rig) -> str:
    return await unblocked(rig, "agrees")


@unblocks("the server is asked and answers with status 3", "status 3")
async def answers(rig: Rig) -> str:
    return await unblocked(rig, "answers")


@unblocks("the server is asked and goes on", "waits; the server answers 5: status 5")
async def goes_on(rig: Rig) -> str:
    return await unblocked(rig, "goes on")


async def given_up(rig: Rig, answer: int, cancel: bool) -> str:
    held: list[Message] = []

    def serve(message: Message) -> None:
        held.append(message)
        if answer:
            message.on_unblock = lambda: message.reply(answer)

    return await rig.awaited(rig.connect(rig.channel(serve)), None if cancel else 0.05)


@unblocks("the deadline passes, the server lets go", "ETIMEDOUT")
async def deadline(rig: Rig) -> str:
    return await given_up(rig, 0, cancel=False)


@unblocks("the deadline passes, the server is asked and answers with status 3", "status 3")
async def deadline_answered(rig: Rig) -> str:
    return await given_up(rig, 3, cancel=False)


@unblocks("the task is cancelled, the server lets go", "cancelled")
async def cancelled(rig: Rig) -> str:
    return await given_up(rig, 0, cancel=True)


@unblocks("the task is cancelled, the server is asked and answers with status 3", "status 3")
async def cancelled_answered(rig: Rig) -> str:
    return await given_up(rig, 3, cancel=True)


AWAITED = {deadline, deadline_answered, cancelled, cancelled_answered}
"""Rows whose client is a task that waits for an answer: one on a machine that has lost power would wait for ever."""


@unblocks(
    "the client closes the connection with a send under way",
    "EBADF at once; the server is asked, answers, is told of the disconnect; later sends EBADF",
)
async def closed_under_way(rig: Rig) -> str:
    heard: list[str] = []
    held: list[Message] = []

    def serve(message: Message) -> None:
        held.append(message)
        message.on_unblock = lambda: heard.append("is asked")

    def pulse(pulse: Pulse) -> None:
        heard.append("is told of the disconnect" if pulse.code == PULSE_DISCONNECT else "is pulsed")

    connection = rig.connect(rig.channel(serve, on_pulse=pulse))
    sent = rig.send(connection)
    await rig.until(lambda: bool(held))
    connection.close()
    connection.close()
    at_once = sent.result
    await rig.quiet()
    heard.append("answers")
    held[0].reply(9)
    await rig.until(lambda: len(heard) == 3)
    return f"{at_once} at once; the server {', '.join(heard)}; later sends {(await rig.call(connection)).result}"


@pulses("pulses of one connection", "in order, with code, value and priority")
async def pulse_order(rig: Rig) -> str:
    came: list[tuple[int, int, int]] = []
    channel = rig.channel(lambda message: None, on_pulse=lambda pulse: came.append((pulse.code, pulse.value, pulse.priority)))
    connection = rig.connect(channel)
    wanted = [(code, (code - 60) << 55, 63 - code // 2) for code in range(128)]
    for code, value, priority in wanted:
        assert connection.pulse(code, value, priority) == 0
    await rig.until(lambda: len(came) == len(wanted))
    return "in order, with code, value and priority" if came == wanted else "other ones"


@pulses("codes -1 and 128, a value of 65 bits, a priority of 64", "EINVAL, EINVAL, EINVAL, EINVAL")
async def bad_pulse(rig: Rig) -> str:
    connection = rig.connect(rig.channel(lambda message: None))
    statuses = [connection.pulse(-1), connection.pulse(128), connection.pulse(1, 1 << 63), connection.pulse(1, 0, 64)]
    return ", ".join(name_of(status) for status in statuses)


@pulses("a channel whose server takes no pulses", "status 0, nothing happens")
async def no_pulses(rig: Rig) -> str:
    connection = rig.connect(rig.channel(lambda message: message.reply()))
    status = connection.pulse(1)
    await rig.quiet()
    assert (await rig.call(connection)).result == "status 0"
    return f"{name_of(status)}, nothing happens"


@pulses("a pulse to no channel", "EBADF", "status 0; the connection dies; then EBADF", "status 0; the connection dies; then EBADF")
async def pulse_nowhere(rig: Rig) -> str:
    channel = rig.channel(lambda message: None)
    connection = rig.to(channel.pid, channel.chid + 1000)
    deaths: list[int] = []
    connection.on_death = lambda dead: deaths.append(dead.coid)
    status = connection.pulse(1)
    if status < 0:
        return name_of(status)
    await rig.until(lambda: bool(deaths))
    return f"{name_of(status)}; the connection dies; then {name_of(connection.pulse(1))}"


@pulses("attach to what is not there", "no error before the first send")
async def attach(rig: Rig) -> str:
    connection = rig.to(999_999, 16)
    await rig.quiet()
    return "an error" if connection.closed else "no error before the first send"


@pulses("detach, with nothing sent", "the server hears of nothing")
async def detach_unused(rig: Rig) -> str:
    heard: list[Pulse] = []
    rig.connect(rig.channel(lambda message: None, on_pulse=heard.append)).close()
    await rig.quiet()
    return f"the server hears of {'a disconnect' if heard else 'nothing'}"


@pulses("detach after a send and a pulse", "message, pulse, disconnect")
async def detach(rig: Rig) -> str:
    heard: list[str] = []

    def serve(message: Message) -> None:
        heard.append("message")
        message.reply()

    def pulse(pulse: Pulse) -> None:
        heard.append("disconnect" if pulse.code == PULSE_DISCONNECT else "pulse")

    connection = rig.connect(rig.channel(serve, on_pulse=pulse))
    await rig.call(connection)
    connection.pulse(1)
    connection.close()
    await rig.until(lambda: len(heard) == 3)
    await rig.quiet()
    return ", ".join(heard)


@pulses("send and pulse on a closed connection", "EBADF, EBADF")
async def after_close(rig: Rig) -> str:
    connection = rig.connect(rig.channel(lambda message: message.reply()))
    connection.close()
    return f"{(await rig.call(connection)).result}, {name_of(connection.pulse(1))}"
