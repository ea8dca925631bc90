"""Mounts on their way from one daemon to the next (docs/decisions/fuse-hand-over.md).

The running daemon answers `hand-over` with descriptors: a memory file with what the next one has to know, then the /dev/fuse of each mount.
Where a message cannot carry so many, and who asks says `"socket": true`, the second one is a socket in which all of these wait, as one
datagram; so nothing is left behind in the daemon, and they are closed with it if nobody takes them.
`qnet restart` keeps them while there is no daemon, and starts the next one with them; ENVIRONMENT there has their numbers.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence

import attrs

from resmgr.channel import Message
from resmgr.ids import DESCRIPTORS_MAX

ENVIRONMENT = "QNET_HANDED"
MESSAGE_MAX = DESCRIPTORS_MAX - 1
"""Mounts whose descriptors one message carries."""
SCM_MAX_FD = 253
"""Descriptors that the kernel lets a datagram carry."""
STATE_MAX = 64 << 20
"""Bytes of the memory file."""
NAMES_MAX = STATE_MAX // 280
"""Names that the kernel knows of all mounts, which take less mostly. More are refused while the mounts are still served."""


@attrs.frozen
class Handed:
    """One mount: *main*, the one of the configuration; what of /net it shows, its options and its device number; what its machine told
    (`resmgr.fuse.state`); and its /dev/fuse, the holder's to close."""

    point: str
    main: bool
    source: str
    options: str
    number: tuple[int, int]
    state: object
    fd: int

    def told(self) -> dict[str, object]:
        """As JSON can say it, without the descriptor."""
        return {
            "point": self.point,
            "main": self.main,
            "source": self.source,
            "options": self.options,
            "device": self.number,
            "state": self.state,
        }

    @classmethod
    def parse(cls, told: object, fd: int) -> Handed:
        """Of what `told` gave. ValueError; of the state that is for others to say."""
        match told:
            case {
                "point": str(point),
                "main": bool(main),
                "source": str(source),
                "options": str(options),
                "device": [int(major), int(minor)],
                "state": state,
            }:
                return cls(point, main, source, options, (major, minor), state, fd)
        raise ValueError("a mount that is told of in another way")


def give(message: Message, mounts: Sequence[Handed]) -> None:
    """Answer `hand-over`; the descriptors of *mounts* are closed here."""
    try:
        data = json.dumps({"mounts": [one.told() for one in mounts]}).encode()
        if len(data) > STATE_MAX:
            message.reply(0, json.dumps({"error": f"what the kernel knows of the mounts takes more than {STATE_MAX >> 20} MiB"}).encode())
            return
        memory = os.memfd_create("qnet-mounts", os.MFD_CLOEXEC)
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(data)
            facts = json.dumps({"mounts": [[one.point, *one.number] for one in mounts], "socket": len(mounts) > MESSAGE_MAX}).encode()
            devices = [one.fd for one in mounts]
            if len(mounts) > MESSAGE_MAX:
                with _holding(devices) as holder:
                    message.reply(0, facts, descriptors=(memory, holder.fileno()))
            else:
                message.reply(0, facts, descriptors=(memory, *devices))
        finally:
            os.close(memory)
    finally:
        for one in mounts:
            os.close(one.fd)


def most(request: Mapping[str, object]) -> int:
    """How many mounts can be given to who asked so."""
    return SCM_MAX_FD if request.get("socket") is True else MESSAGE_MAX


def _holding(devices: Sequence[int]) -> socket.socket:
    """A socket from which *devices* can be received."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with ours:
            socket.send_fds(ours, [b"0"], devices, socket.MSG_DONTWAIT)
    except BaseException:
        theirs.close()
        raise
    return theirs


def received(facts: Mapping[str, object], descriptors: Sequence[int]) -> tuple[int, ...]:
    """What the answer *facts* came with: the memory file, then the device of each mount. All of it is the caller's to close."""
    if facts.get("socket") is not True or len(descriptors) < 2:
        return tuple(descriptors)
    memory, holder, *_ = descriptors
    with socket.socket(fileno=holder) as held:
        _, devices, _, _ = socket.recv_fds(held, 1, SCM_MAX_FD, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
    return memory, *devices


def environment(descriptors: Sequence[int]) -> dict[str, str]:
    """Of the next daemon, which is started with these descriptors."""
    return {ENVIRONMENT: ",".join(map(str, descriptors))}


def take(complain: Callable[[str], None]) -> list[Handed]:
    """What this process was started with, once. What cannot be read is closed, and *complain* told why."""
    said = os.environ.pop(ENVIRONMENT, "")
    if not said:
        return []
    devices: list[int] = []
    try:
        memory, *devices = map(int, said.split(","))
        for fd in (memory, *devices):
            os.set_inheritable(fd, False)
        for fd in devices:
            os.set_blocking(fd, False)
        with open(memory, "rb") as file:
            file.seek(0)
            mounts = json.loads(file.read(STATE_MAX))["mounts"]
        return [Handed.parse(told, fd) for told, fd in zip(mounts, devices, strict=True)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        complain(f"the mounts of the daemon before are lost: {error}")
        for fd in devices:
            try:
                os.close(fd)
            except OSError:
                continue
        return []
