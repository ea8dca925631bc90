"""Mounts on their way from one daemon to the next (docs/decisions/fuse-hand-over.md).

The running daemon answers `hand-over` with descriptors: a memory file with what the next one has to know, then the /dev/fuse of each mount.
`qnet restart` keeps them while there is no daemon, and starts the next one with them; ENVIRONMENT there has their numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

import attrs

from resmgr.channel import Message
from resmgr.ids import DESCRIPTORS_MAX

ENVIRONMENT = "QNET_HANDED"
MOUNTS_MAX = DESCRIPTORS_MAX - 1
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
            facts = {"mounts": [[one.point, *one.number] for one in mounts]}
            message.reply(0, json.dumps(facts).encode(), descriptors=(memory, *(one.fd for one in mounts)))
        finally:
            os.close(memory)
    finally:
        for one in mounts:
            os.close(one.fd)


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
