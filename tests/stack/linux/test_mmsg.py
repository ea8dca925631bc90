"""Many messages with one call: what the kernel makes of the structures."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

import pytest

from stack.linux import mmsg
from stack.linux.constants import MSG_DONTWAIT

ROOM = 100
COUNT = 4


def receiver(sock: socket.socket) -> tuple[mmsg.Receiver, bytearray, bytearray, bytearray]:
    """With two iovecs for each message, of half the room each. And its memory, room for control data, and the iovecs, to be kept."""
    memory, controls, iovecs = bytearray(COUNT * ROOM), bytearray(COUNT * socket.CMSG_SPACE(4)), bytearray(2 * COUNT * mmsg.IOVEC.size)
    for number in range(2 * COUNT):
        mmsg.IOVEC.pack_into(iovecs, number * mmsg.IOVEC.size, mmsg.address(memory) + number * ROOM // 2, ROOM // 2)
    made = mmsg.headers(COUNT, mmsg.address(iovecs), 2, controls=(mmsg.address(controls), socket.CMSG_SPACE(4)))
    return mmsg.Receiver(sock, made), memory, controls, iovecs


@pytest.mark.host
def test_each_message_has_its_own_room_again_and_again() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        taking, memory, _, _kept = receiver(near)
        assert taking.receive(COUNT) == []
        for sizes in ([100, 1, 60], [3], [5, 6, 7, 8]):
            for number, size in enumerate(sizes):
                far.send(bytes([number + 1]) * size)
            assert taking.receive(COUNT) == sizes
            for number, size in enumerate(sizes):
                assert memory[number * ROOM : number * ROOM + size] == bytes([number + 1]) * size
        for _ in range(3):
            far.send(b"more")
        assert (taking.receive(2), taking.receive(2), taking.receive(2)) == ([4, 4], [4], [])


@pytest.mark.host
def test_control_data_is_told_by_its_length() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        taking, _, controls, _kept = receiver(near)
        far.sendmsg([b"none"])
        socket.send_fds(far, [b"one"], [far.fileno()])
        assert taking.receive(COUNT) == [4, 3]
        assert (taking.control_length(0), taking.control_length(1)) == (0, socket.CMSG_SPACE(4))
        (fd,) = struct.unpack_from("i", controls, socket.CMSG_SPACE(4) + socket.CMSG_LEN(0))
        socket.close(fd)


@pytest.mark.host
def test_what_is_no_socket_any_more() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    taking, _, _, _kept = receiver(near)
    near.close()
    far.close()
    with pytest.raises(OSError, match="recvmmsg") as refused:
        taking.receive(1)
    assert refused.value.errno == errno.EBADF


@pytest.mark.host
def test_sending() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        words = [bytearray(b"first"), bytearray(b"second")]
        iovecs = bytearray(b"".join(mmsg.IOVEC.pack(mmsg.address(word), len(word)) for word in words))
        made = mmsg.headers(2, mmsg.address(iovecs))
        assert ctypes.PyDLL(None).sendmmsg(near.fileno(), ctypes.c_void_p(mmsg.address(made)), 2, MSG_DONTWAIT) == 2
        assert [far.recv(99), far.recv(99)] == [b"first", b"second"]
