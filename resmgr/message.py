"""Wire formats of message passing, the same to a process (AF_UNIX) and to another node. QNX's kernel-to-kernel messages are the model.

All in network byte order. Every message begins with eight bytes, and its length is the carrier's:

    0      1       2          3             4             8
    +------+-------+----------+-------------+-------------+----------
    | kind | flags | priority | descriptors | id          | fixed part, then bytes
    +------+-------+----------+-------------+-------------+----------

`id` is a transaction for SEND, UNBLOCK, READ_DATA (chosen by the one who sends these, the client) and for REPLY, READ, WRITE (chosen by the
one who receives these); it is a connection, chosen by the client, for PULSE, DETACH (sent by the client), DEATH and EVENT (by the server).
A transaction number is free again after its REPLY; a connection number is never used twice on one link. `descriptors` counts the file
descriptors that the carrier passes along.

| kind      | fixed part                                   | bytes                    |
|-----------|----------------------------------------------|--------------------------|
| SEND      | connection u32, reply_len u32, msglen u64    | connect block, beginning of the message |
| REPLY     | first_part u32, status i64                   | data, if status >= 0     |
| READ      | number u32, length u32, offset u64           | none                     |
| READ_DATA | number u32, status i32                       | data: exactly status     |
| WRITE     | offset u64                                   | data                     |
| PULSE     | code i32, value i64                          | connect block            |
| UNBLOCK   | none                                         | none                     |
| DETACH    | none                                         | none                     |
| DEATH     | none                                         | none                     |
| EVENT     | handle u64                                   | none                     |
| HELLO     | version u32, pid u32, first chid u32         | name of the node         |

The connect block is there iff flag CONNECT is set: the client sets it until a first REPLY with flag CONNECTED came back on the connection.
Docs: docs/protocol/messages.md. Whatever does not parse raises BadMessage and nothing else.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from resmgr.dispatch import Buffer
from resmgr.errors import ERRNO_MAX as ERRNO_MAX
from resmgr.errors import BadMessage
from resmgr.ids import DESCRIPTORS_MAX as DESCRIPTORS_MAX

SEND: Final = 1
REPLY: Final = 2
READ: Final = 3
READ_DATA: Final = 4
WRITE: Final = 5
PULSE: Final = 6
UNBLOCK: Final = 7
DETACH: Final = 8
DEATH: Final = 9
HELLO: Final = 10
EVENT: Final = 11
# 12 to 16: resmgr.directproto

VERSION: Final = 1
CONNECT: Final = 1
"""Flag of SEND and PULSE: a connect block follows the fixed part."""
CONNECTED: Final = 1
"""Flag of REPLY: the server's side keeps the connection; leave the connect block out from now on."""

HEADER: Final = struct.Struct("!BBBBI")
SEND_HEADER: Final = struct.Struct("!BBBBIIIQ")
REPLY_HEADER: Final = struct.Struct("!BBBBIIq")
READ_HEADER: Final = struct.Struct("!BBBBIIIQ")
READ_DATA_HEADER: Final = struct.Struct("!BBBBIIi")
WRITE_HEADER: Final = struct.Struct("!BBBBIQ")
PULSE_HEADER: Final = struct.Struct("!BBBBIiq")
EVENT_MESSAGE: Final = struct.Struct("!BBBBIQ")
HELLO_HEADER: Final = struct.Struct("!BBBBIIII")
BLOCK: Final = struct.Struct("!HHIIIIIIBB")
"""length of the block, number of groups; nd, pid, chid of the server; pid, uid, gid of the client; lengths of what follows the groups:
number of roles (255: the client is not known further, nothing follows) and length of the node's name."""

CHUNK_MAX: Final = (1 << 20) + 4096
"""Most data bytes in one message of any kind: a mebibyte and the head of a manager's message, so that a write of that size can be pushed
whole. Larger replies go out as WRITEs first, larger pulls as several READs."""
PULL_CHUNK: Final = 256 * 1024
"""What one READ asks for."""
BLOCK_MAX: Final = 8 * 1024
MESSAGE_MAX: Final = CHUNK_MAX + BLOCK_MAX + 64
"""No message is longer; a carrier refuses what claims to be (a stranger's endless message would fill memory)."""
MSGLEN_MAX: Final = 1 << 40
"""A larger message is refused: offsets stay far from where arithmetic ends."""
GROUPS_MAX: Final = 256
"""Supplementary groups told to a server. A client that has more is shown with the first of them: it loses rights, never gains."""
ROLES_MAX: Final = 32
NAME_MAX: Final = 255
UNKNOWN: Final = 255
ID_MAX: Final = (1 << 32) - 1


class ConnectBlock(NamedTuple):
    """Where a connection goes and who opened it. `nd`, `pid`, `chid` as the receiver of the block numbers them.

    `client_nd`, `node` and `roles` are told by a daemon to a process of its node, and only believed there; `node` is None otherwise.
    """

    nd: int
    pid: int
    chid: int
    client_pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    client_nd: int = 0
    node: str | None = None
    roles: tuple[str, ...] = ()


def pack_block(block: ConnectBlock) -> bytes:
    groups = block.groups[:GROUPS_MAX]
    tail = bytearray(struct.pack(f"!{len(groups)}I", *groups))
    roles = UNKNOWN
    name = b""
    if block.node is not None:
        name = block.node.encode()
        roles = len(block.roles)
        tail += struct.pack("!I", block.client_nd) + name
        for role in block.roles:
            encoded = role.encode()
            tail.append(len(encoded))
            tail += encoded
    return (
        BLOCK.pack(
            BLOCK.size + len(tail),
            len(groups),
            block.nd,
            block.pid,
            block.chid,
            block.client_pid,
            block.uid,
            block.gid,
            roles,
            len(name),
        )
        + tail
    )


def parse_block(view: Buffer, offset: int) -> tuple[ConnectBlock, int]:
    """The block at *offset* and the offset after it."""
    if len(view) - offset < BLOCK.size:
        raise BadMessage("connect block cut short")
    length, ngroups, nd, pid, chid, client_pid, uid, gid, nroles, name_len = BLOCK.unpack_from(view, offset)
    end = offset + length
    if not BLOCK.size <= length <= BLOCK_MAX or end > len(view):
        raise BadMessage("connect block has a wrong length")
    at = offset + BLOCK.size
    if ngroups > GROUPS_MAX or at + 4 * ngroups > end:
        raise BadMessage("connect block has too many groups")
    groups = struct.unpack_from(f"!{ngroups}I", view, at)
    at += 4 * ngroups
    client_nd = 0
    node: str | None = None
    roles: list[str] = []
    if nroles != UNKNOWN:
        if nroles > ROLES_MAX or at + 4 + name_len > end:
            raise BadMessage("connect block's node cut short")
        (client_nd,) = struct.unpack_from("!I", view, at)
        at += 4
        node = _text(view, at, name_len)
        at += name_len
        for _ in range(nroles):
            if at >= end or at + 1 + view[at] > end:
                raise BadMessage("connect block's roles cut short")
            roles.append(_text(view, at + 1, view[at]))
            at += 1 + view[at]
    if at != end:
        raise BadMessage("connect block is longer than what it holds")
    return ConnectBlock(nd, pid, chid, client_pid, uid, gid, groups, client_nd, node, tuple(roles)), end


def _text(view: Buffer, offset: int, length: int) -> str:
    try:
        return bytes(view[offset : offset + length]).decode()
    except UnicodeDecodeError:
        raise BadMessage("a name in the connect block is not UTF-8") from None


def parse_send(view: Buffer) -> tuple[int, int, int, int, int, int, int, ConnectBlock | None, memoryview]:
    """flags, priority, descriptors, transaction, connection, reply_len, msglen, connect block, beginning of the message."""
    if len(view) < SEND_HEADER.size:
        raise BadMessage("SEND cut short")
    _, flags, priority, descriptors, txn, connection, reply_len, msglen = SEND_HEADER.unpack_from(view)
    block = None
    start = SEND_HEADER.size
    if flags:
        if flags != CONNECT:
            raise BadMessage("SEND has unknown flags")
        block, start = parse_block(view, start)
    data = memoryview(view)[start:]
    if len(data) > msglen or len(data) > CHUNK_MAX or msglen > MSGLEN_MAX:
        raise BadMessage("SEND is longer than it says")
    return flags, priority, descriptors, txn, connection, reply_len, msglen, block, data


def parse_reply(view: Buffer) -> tuple[int, int, int, int, int, memoryview]:
    """flags, descriptors, transaction, first_part, status, data."""
    if len(view) < REPLY_HEADER.size:
        raise BadMessage("REPLY cut short")
    _, flags, _, descriptors, txn, first_part, status = REPLY_HEADER.unpack_from(view)
    data = memoryview(view)[REPLY_HEADER.size :]
    if flags & ~CONNECTED or len(data) > CHUNK_MAX or (status < 0 and (data or status < -ERRNO_MAX)):
        raise BadMessage("REPLY contradicts itself")
    return flags, descriptors, txn, first_part, status, data


def parse_read(view: Buffer) -> tuple[int, int, int, int]:
    """transaction, number, length, offset."""
    if len(view) != READ_HEADER.size:
        raise BadMessage("READ has a wrong length")
    _, _, _, _, txn, number, length, offset = READ_HEADER.unpack_from(view)
    if length > CHUNK_MAX or offset > MSGLEN_MAX:
        raise BadMessage("READ asks for too much")
    return txn, number, length, offset


def parse_read_data(view: Buffer) -> tuple[int, int, int, memoryview]:
    """transaction, number, status, data."""
    if len(view) < READ_DATA_HEADER.size:
        raise BadMessage("READ_DATA cut short")
    _, _, _, _, txn, number, status = READ_DATA_HEADER.unpack_from(view)
    data = memoryview(view)[READ_DATA_HEADER.size :]
    if len(data) != max(status, 0) or len(data) > CHUNK_MAX or status < -ERRNO_MAX:
        raise BadMessage("READ_DATA has another length than it says")
    return txn, number, status, data


def parse_write(view: Buffer) -> tuple[int, int, memoryview]:
    """transaction, offset, data."""
    if len(view) < WRITE_HEADER.size:
        raise BadMessage("WRITE cut short")
    _, _, _, _, txn, offset = WRITE_HEADER.unpack_from(view)
    data = memoryview(view)[WRITE_HEADER.size :]
    if len(data) > CHUNK_MAX or offset > MSGLEN_MAX:
        raise BadMessage("WRITE is too long")
    return txn, offset, data


def parse_pulse(view: Buffer) -> tuple[int, int, int, int, ConnectBlock | None]:
    """priority, connection, code, value, connect block."""
    if len(view) < PULSE_HEADER.size:
        raise BadMessage("PULSE cut short")
    _, flags, priority, _, connection, code, value = PULSE_HEADER.unpack_from(view)
    block = None
    end = PULSE_HEADER.size
    if flags:
        if flags != CONNECT:
            raise BadMessage("PULSE has unknown flags")
        block, end = parse_block(view, end)
    if end != len(view):
        raise BadMessage("PULSE has a wrong length")
    return priority, connection, code, value, block


def parse_bare(view: Buffer) -> int:
    """UNBLOCK, DETACH, DEATH: the id."""
    if len(view) != HEADER.size:
        raise BadMessage("a message without a body has one")
    identifier: int = HEADER.unpack_from(view)[4]
    return identifier


def pack_event(connection: int, handle: int, priority: int) -> bytes:
    return EVENT_MESSAGE.pack(EVENT, 0, priority, 0, connection, handle)


def parse_event(view: Buffer) -> tuple[int, int]:
    """connection, handle."""
    if len(view) != EVENT_MESSAGE.size:
        raise BadMessage("EVENT has a wrong length")
    _, _, _, _, connection, handle = EVENT_MESSAGE.unpack_from(view)
    if not handle:
        raise BadMessage("EVENT without a handle")
    return connection, handle


def pack_hello(pid: int, first_chid: int, node: str, flags: int = 0) -> bytes:
    """What a daemon says first on a local socket: the process's pid as others see it, where its channel ids begin, the node's name."""
    return HELLO_HEADER.pack(HELLO, flags, 0, 0, 0, VERSION, pid, first_chid) + node.encode()[:NAME_MAX]


def parse_hello(view: Buffer) -> tuple[int, int, int, str]:
    """version, pid, first chid, node."""
    if not HELLO_HEADER.size <= len(view) <= HELLO_HEADER.size + NAME_MAX or view[0] != HELLO:
        raise BadMessage("HELLO has a wrong length")
    _, _, _, _, _, version, pid, first_chid = HELLO_HEADER.unpack_from(view)
    return version, pid, first_chid, _text(view, HELLO_HEADER.size, len(view) - HELLO_HEADER.size)


STREAM_OWN: Final = 0
STREAM_ANSWER: Final = 1
STREAM_CONNECTION: Final = 2
STREAM_DEATH: Final = 3
"""Low two bits of a stream number, above them the message's id. The streams of the two directions have nothing to do with each other."""
