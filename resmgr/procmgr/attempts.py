"""What is told of an attempt to start or signal something: facts for the audit log, phrases for the log."""

from __future__ import annotations

import os

from resmgr.access import MappedUser
from resmgr.channel import ND_LOCAL, ClientInfo
from resmgr.procmgr.audit import NAMES_MAX, WORD_MAX, Fact, word, words
from resmgr.procmgr.message import SPAWN_DETACHED, SPAWN_PTY, SPAWN_ROOT, Spawn

_HOW = ((SPAWN_PTY, "terminal"), (SPAWN_DETACHED, "detached"), (SPAWN_ROOT, "root of the client's node"))


def asker(info: ClientInfo, fingerprint: str) -> dict[str, Fact]:
    """Who asks."""
    claimed = info.credentials
    return {
        "node": info.node,
        "fingerprint": fingerprint,
        "roles": sorted(info.roles),
        "claimed_uid": claimed.uid,
        "claimed_gid": claimed.gid,
        "client_pid": claimed.pid,
    }


def wanted(spawn: Spawn, user: MappedUser) -> dict[str, Fact]:
    """What is to be started, of whatever length the message was: words are cut."""
    return {
        "uid": user.uid,
        "as": word(spawn.user),
        "command": words(spawn.arguments),
        "directory": word(spawn.directory),
        "variables": words(tuple(variable.partition(b"=")[0] for variable in spawn.environment), NAMES_MAX),
        "nice": spawn.nice,
        "how": [name for flag, name in _HOW if spawn.flags & flag] + ([f"on {word(spawn.terminal)}"] if spawn.terminal else []),
    }


def who(info: ClientInfo) -> str:
    where = f"node {info.node!r}" if info.nd != ND_LOCAL else "this node"
    return f"client on {where}, its uid {info.credentials.uid}, pid {info.credentials.pid}"


def shown(name: bytes) -> str:
    """For the log: no line breaks, no terminal codes, not endless."""
    return ascii(os.fsdecode(name[: WORD_MAX // 2]))
