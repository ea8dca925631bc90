"""The short way of a message for a blocking program, to another one or to its daemon: where all is simple, a few calls for each side.

What is not simple goes the long way, `Client.submit` and `Client.pump`, which can everything; these functions only leave out what is not
needed, and say None before anything has happened when it is. The bytes are the same.

A client that is alone with its answer waits in the link's socket, not in epoll; at a direct one, it looks at its daemon's twice a second
(DAEMON_LOOK).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from resmgr import message as wire
from resmgr.clientconnection import Reply, Send
from resmgr.clientlink import ANCILLARY, CLOEXEC, DONTWAIT, NOW, Link
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.transport.datagram import DATAGRAM_MAX, LENGTH_SIZE, REPLY_DATAGRAM, SEND_DATAGRAM

if TYPE_CHECKING:
    from resmgr.client import Client
    from resmgr.clientconnection import Connection
    from resmgr.server import Channel, Message

SIMPLE_MAX = 16384
"""Bytes of a message that goes this way."""
_SEND_SIZE = wire.SEND_HEADER.size
_REPLY_SIZE = REPLY_DATAGRAM.size
_SEND_DATAGRAM_SIZE = SEND_DATAGRAM.size
_pack = SEND_DATAGRAM.pack
_unpack = REPLY_DATAGRAM.unpack_from
_unpack_send = SEND_DATAGRAM.unpack_from
_pack_reply = REPLY_DATAGRAM.pack
_monotonic = time.monotonic
_new = tuple.__new__


def exchange(client: Client, connection: Connection, link: Link, data: Buffer, reply_len: int) -> Reply | None:
    """`Connection.send` of one small message with nothing else under way, of a program without channels. None: nothing was sent, for it is
    not simple.
    """
    size = len(data)
    if client.sends or client.arrived or client.service is not None or link.queued or connection.closed or connection.dead:
        return None
    if not link.direct and (len(client.links) > 1 or link.gone):
        return None
    if size > SIMPLE_MAX or size > connection.first_part or not 0 <= reply_len <= wire.ID_MAX:
        return None
    txn = client.next_txn = client.next_txn + 1 & wire.ID_MAX
    waiting = client.waiting
    looks = waiting.look() and client.spin > 0
    timed = waiting.timing
    began = _monotonic() if looks or timed else 0.0
    head = _pack(size + _SEND_SIZE, wire.SEND, 0, connection.priority, 0, txn, connection.number, reply_len, size)
    try:
        link.send(head + data, DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        pass  # the end of the link is seen below
    interrupted: KeyboardInterrupt | None = None
    receive = link.receive
    datagram = None
    try:
        while looks:
            try:
                datagram, ancillary, _, _ = receive(DATAGRAM_MAX, ANCILLARY, NOW)
                break
            except BlockingIOError:
                if _monotonic() - began >= client.spin:
                    break
                os.sched_yield()
        if datagram is None:
            datagram, ancillary, _, _ = receive(DATAGRAM_MAX, ANCILLARY, CLOEXEC)
    except OSError:
        pass  # nothing came for a while, or the link has ended: who waits the long way sees which
    except KeyboardInterrupt as error:
        interrupted = error
    if datagram is not None:
        if timed:
            waiting.took(looks, _monotonic() - began)
        if not ancillary and _REPLY_SIZE <= len(datagram) <= reply_len + _REPLY_SIZE and not link.partial:
            length, kind, flags, _, count, answered, first_part, status = _unpack(datagram)
            if kind == 2 and answered == txn and flags == 1 and status >= 0 and not count and length + LENGTH_SIZE == len(datagram):
                connection.first_part = first_part if first_part < wire.CHUNK_MAX else wire.CHUNK_MAX
                return _new(Reply, (status, datagram[_REPLY_SIZE:], ()))
    send = client.sends[txn] = Send(connection, txn, data, reply_len, None)
    connection.sends += 1
    if datagram is not None:
        try:
            ended = link.feed(datagram, ancillary) < 0
        except BadMessage:
            ended = True
        if ended:
            client.arrived.append((link, None, ()))
    if interrupted is not None:
        send.let_go()
        raise interrupted
    return send.wait(None)


def next_plain(client: Client, channel: Channel) -> Message | None:
    """`Channel.receive` with nothing waiting: a small message that comes alone while we wait. None: something else came, or more; it has
    been taken in, or is there to be taken.
    """
    if client.arrived or client.daemon.gone:
        return None
    poll = client.epoll.poll
    waiting = client.waiting
    looks = waiting.look() and client.spin > 0
    timed = waiting.timing
    began = (client.sent or _monotonic()) if looks or timed else 0.0
    client.sent = 0.0
    events = poll(0)
    if events:
        # It was here before we were: there may be more, of a higher priority.
        client.gather()
        return None
    if looks:
        until = _monotonic() + client.spin
        while not events and _monotonic() < until:
            os.sched_yield()
            events = poll(0)
    if not events:
        events = poll()
    if timed:
        waiting.took(looks, _monotonic() - began)
    if len(events) != 1:
        return None
    link = client.links.get(events[0][0])
    if link is None or link.place is not None or link.partial:
        return None
    try:
        datagram, ancillary, _, _ = link.receive(DATAGRAM_MAX, ANCILLARY, NOW)
    except OSError:
        return None
    client.last = link
    if len(datagram) >= _SEND_DATAGRAM_SIZE and not ancillary and client.service is not None:
        length, kind, flags, priority, count, txn, number, reply_len, msglen = _unpack_send(datagram)
        if kind == 1 and not flags and not count and length + LENGTH_SIZE == len(datagram):
            message = client.service.plain(link, channel, number, txn, datagram[_SEND_DATAGRAM_SIZE:], msglen, reply_len, priority)
            if message is not None:
                return message
    try:
        ended = link.feed(datagram, ancillary) < 0
    except BadMessage:
        ended = True
    if ended:
        client.arrived.append((link, None, ()))
    return None


def answer_plain(client: Client, link: Link, txn: int, grant: int, status: int, data: Buffer) -> bool:
    """REPLY of a small answer over a link on which nothing waits. False: not sent."""
    if client.waiting.timing:
        client.sent = _monotonic()
    head = _pack_reply(len(data) + _REPLY_SIZE - LENGTH_SIZE, wire.REPLY, wire.CONNECTED, 0, 0, txn, grant, status)
    return link.write_plain(head + data)
