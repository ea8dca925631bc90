"""Rows: sends, their parts, reads, writes, answers, what is refused."""

from __future__ import annotations

import os

from resmgr.channel import Message
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from tests.qnetpy.messages.rig import CONNECTIONS_MAX, PENDING_MAX, Rig, Sent, name_of
from tests.qnetpy.messages.row import Rows

sends = Rows("Send, receive, reply")
data = Rows("Read and write")
refusals = Rows("What is refused")
LARGE = bytes(range(256)) * 400


@sends("the server answers with a status and data", 'status 7, "answer"')
async def answered(rig: Rig) -> str:
    connection = rig.connect(rig.channel(lambda message: message.reply(7, b"answer")))
    sent = await rig.call(connection, b"question")
    return f'{sent.result}, "{sent.reply.decode()}"'


@sends("several parts are one message, a reply of several parts is one reply", '"question" is answered with "answer"')
async def vectors(rig: Rig) -> str:
    seen: list[bytes] = []

    def serve(message: Message) -> None:
        seen.append(bytes(message.data))
        message.reply(0, b"ans", b"", memoryview(b"wer"))

    sent = await rig.call(rig.connect(rig.channel(serve)), b"que", b"", memoryview(b"stion"))
    return f'"{seen[0].decode()}" is answered with "{sent.reply.decode()}"'


@sends("an empty message with no room for a reply", "status 0, 0 bytes")
async def empty(rig: Rig) -> str:
    sent = await rig.call(rig.connect(rig.channel(lambda message: message.reply(0, message.data))), b"", reply_len=0)
    return f"{sent.result}, {len(sent.reply)} bytes"


@sends("the reply is longer than the client's buffer of 5 bytes", "status 1, 5 bytes")
async def cut(rig: Rig) -> str:
    sent = await rig.call(rig.connect(rig.channel(lambda message: message.reply(1, b"answer"))), b"?", reply_len=5)
    return f"{sent.result}, {len(sent.reply)} bytes"


@sends("a reply of 3 MB", "status 0, all bytes as sent")
async def large_reply(rig: Rig) -> str:
    body = LARGE * 30
    sent = await rig.call(rig.connect(rig.channel(lambda message: message.reply(0, body))), reply_len=len(body))
    return f"{sent.result}, {'all bytes as sent' if sent.reply == body else 'other bytes'}"


@sends("the server answers an error", "ENOENT")
async def error(rig: Rig) -> str:
    return (await rig.call(rig.connect(rig.channel(lambda message: message.error(2))))).result


@sends("the server answers twice", "the server gets Misuse, the client status 1")
async def twice(rig: Rig) -> str:
    said: list[str] = []

    def serve(message: Message) -> None:
        message.reply(1)
        try:
            message.reply(2)
        except Misuse:
            said.append("Misuse")

    sent = await rig.call(rig.connect(rig.channel(serve)))
    await rig.until(lambda: bool(said))
    return f"the server gets {said[0]}, the client {sent.result}"


@sends("msglen and reply_len of a message of 102400 bytes", "102400, 64")
async def lengths(rig: Rig) -> str:
    seen: list[str] = []

    def serve(message: Message) -> None:
        seen.append(f"{message.msglen}, {message.reply_len}")
        message.reply()

    await rig.call(rig.connect(rig.channel(serve)), LARGE)
    return seen[0]


@sends(
    "how much of 102400 bytes comes unasked, first and later, to a channel that grants 65536",
    "102400, 102400",
    "16384, 65536",
    "16384, 65536",
)
async def first_part(rig: Rig) -> str:
    seen: list[str] = []

    def serve(message: Message) -> None:
        seen.append(str(len(message.data)))
        message.reply()

    connection = rig.connect(rig.channel(serve, first_part=65536))
    await rig.call(connection, LARGE)
    await rig.call(connection, LARGE)
    return ", ".join(seen)


@sends("who sent it", "nd 0, its user", "nd 0, its user", "nd of its node, node a, what its node says of its user")
async def who(rig: Rig) -> str:
    seen: list[str] = []

    def serve(message: Message) -> None:
        info = message.info
        user = (info.credentials.uid, info.credentials.gid) == (rig.credentials.uid, rig.credentials.gid)
        if info.nd:
            seen.append(f"nd of its node, node {info.node}, {'what its node says of its user' if user else 'another user'}")
        else:
            seen.append(f"nd 0, {'its user' if user else 'another user'}")
        message.reply()

    await rig.call(rig.connect(rig.channel(serve)))
    return seen[0]


@sends("priority 20, and one above the largest", "20, 63")
async def priority(rig: Rig) -> str:
    seen: list[str] = []

    def serve(message: Message) -> None:
        seen.append(str(message.priority))
        message.reply()

    connection = rig.connect(rig.channel(serve))
    await rig.call(connection, priority=20)
    await rig.call(connection, priority=300)
    return ", ".join(seen)


@data("the server reads within the message, across its end, behind it", "10, 10, 0 bytes")
async def reads(rig: Rig) -> str:
    counts: list[str] = []

    def serve(message: Message) -> None:
        places = [5, len(LARGE) - 10, len(LARGE) + 10]
        lengths = [10, 100, 100]

        def got(status: int, piece: Buffer) -> None:
            assert bytes(piece) == LARGE[places[0] : places[0] + lengths[0]]
            counts.append(str(status))
            del places[0], lengths[0]
            if places:
                message.read(places[0], lengths[0], got)
            else:
                message.reply()

        message.read(places[0], lengths[0], got)

    await rig.call(rig.connect(rig.channel(serve)), LARGE)
    return f"{', '.join(counts)} bytes"


@data("the server reads 3 MB", "all bytes as sent")
async def pulled(rig: Rig) -> str:
    body = LARGE * 30
    pieces: list[bytes] = []

    def serve(message: Message) -> None:
        def got(status: int, piece: Buffer) -> None:
            pieces.append(bytes(piece))
            message.reply()

        message.read(0, message.msglen, got)

    await rig.call(rig.connect(rig.channel(serve)), body)
    return "all bytes as sent" if pieces == [body] else "other bytes"


@data("the server writes 4 bytes, 6 where 3 have room, 1 behind the buffer", "4, 3, 0 bytes")
async def writes(rig: Rig) -> str:
    counts: list[str] = []

    def serve(message: Message) -> None:
        counts.extend(str(count) for count in (message.write(0, b"0123"), message.write(7, b"abcdef"), message.write(10, b"z")))
        message.reply()

    sent = await rig.call(rig.connect(rig.channel(serve)), reply_len=10)
    assert sent.reply == b"0123\0\0\0abc"
    return f"{', '.join(counts)} bytes"


@data("a reply over what was written", '"ABefgh"')
async def over(rig: Rig) -> str:
    def serve(message: Message) -> None:
        message.write(4, b"gh")
        message.write(2, b"ef")
        message.reply(0, b"AB")

    sent = await rig.call(rig.connect(rig.channel(serve)))
    return f'"{sent.reply.decode()}"'


@data("read and write of a message whose client waits no more", "ESRCH, ESRCH")
async def gone(rig: Rig) -> str:
    held: list[Message] = []
    sent = rig.send(rig.connect(rig.channel(held.append)), LARGE)
    await rig.until(lambda: bool(held))
    sent.unblock()
    await rig.until(lambda: sent.ended)
    seen: list[str] = []
    held[0].read(20_000, 30_000, lambda status, piece: seen.append(name_of(status)))
    seen.append(name_of(held[0].write(0, b"x")))
    await rig.until(lambda: len(seen) == 2)
    held[0].reply()
    return ", ".join(seen)


@refusals("no such channel", "EBADF")
async def no_channel(rig: Rig) -> str:
    channel = rig.channel(lambda message: message.reply())
    return (await rig.call(rig.to(channel.pid, channel.chid + 1000))).result


@refusals("no such process", "EBADF")
async def no_process(rig: Rig) -> str:
    return (await rig.call(rig.to(999_999, 16))).result


@refusals("a node that nobody knows", "ENOTSUP", "ENOTSUP", "EHOSTUNREACH")
async def no_node(rig: Rig) -> str:
    from resmgr.channel import Nd

    return (await rig.call(rig.to(1, 1, Nd(77)))).result


@refusals("a channel that keeps other nodes out", "status 0", "status 0", "EBADF")
async def not_remote(rig: Rig) -> str:
    return (await rig.call(rig.connect(rig.channel(lambda message: message.reply(), remote=False)))).result


@refusals("a reply buffer of more than 4 GiB", "EMSGSIZE")
async def too_big(rig: Rig) -> str:
    return (await rig.call(rig.connect(rig.channel(lambda message: message.reply())), reply_len=1 << 32)).result


@refusals("more messages under way than a program may have", "all are taken", "the next gets EAGAIN", "the next gets EAGAIN")
async def too_many(rig: Rig) -> str:
    held: list[Message] = []
    connection = rig.connect(rig.channel(held.append))
    sends = [rig.send(connection, b"x") for _ in range(PENDING_MAX)]
    await rig.until(lambda: len(held) == PENDING_MAX)
    more = rig.send(connection, b"x")
    await rig.until(lambda: more.ended or len(held) > PENDING_MAX)
    for message in held:
        message.reply()
    await rig.until(lambda: all(sent.ended for sent in sends))
    return f"the next gets {more.result}" if more.statuses[0] < 0 else "all are taken"


@refusals("more connections than a program may have", "all are taken", "the next gets EAGAIN", "the next gets EAGAIN")
async def too_many_connections(rig: Rig) -> str:
    channel = rig.channel(lambda message: message.reply())
    sends: list[Sent] = [rig.send(rig.connect(channel)) for _ in range(CONNECTIONS_MAX + 1)]
    await rig.until(lambda: all(sent.ended for sent in sends))
    refused = [sent for sent in sends if sent.statuses[0] < 0]
    return f"the next gets {refused[0].result}" if refused else "all are taken"


async def with_descriptors(rig: Rig, count: int, answer: int = 0) -> str:
    """Lend *count* descriptors with a send, and get *answer* with its reply."""
    came: list[int] = []
    results: list[str] = []
    reader, writer = os.pipe()
    try:

        def serve(message: Message) -> None:
            came.extend(message.descriptors)
            for fd in message.descriptors[:1]:
                os.write(fd, b"x")
            message.reply(0, descriptors=(writer,) * answer)

        connection = rig.connect(rig.channel(serve))
        connection.submit_descriptors(
            (b"",), (writer,) * count, 0, lambda status, reply, got: results.append(f"{name_of(status)}, {len(got)} come back")
        )
        await rig.until(lambda: bool(results))
        if came:
            assert os.read(reader, 10) == b"x"
        return results[0].removesuffix(", 0 come back")
    finally:
        os.close(reader)
        os.close(writer)


@refusals("a descriptor with the send", "status 0", "status 0", "ENOTSUP")
async def descriptor(rig: Rig) -> str:
    return await with_descriptors(rig, 1)


@refusals("a descriptor with the reply", "status 0, 1 come back", "status 0, 1 come back", "ENOTSUP")
async def descriptor_back(rig: Rig) -> str:
    return await with_descriptors(rig, 0, 1)


@refusals("17 descriptors with the send", "EINVAL", "EINVAL", "ENOTSUP")
async def many_descriptors(rig: Rig) -> str:
    return await with_descriptors(rig, 17)
