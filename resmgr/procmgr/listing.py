"""The processes of this node, as rows for `sin` and `pidin`: read from /proc. Blocking; run it in a worker thread."""

from __future__ import annotations

import os
import pwd

from resmgr.access import MappedUser
from resmgr.procmgr.asuser import as_user
from resmgr.procmgr.message import Row, pack_row

COMMAND_MAX = 512
"""Bytes of a command line that are told."""

Rows = tuple[int, bytes]
"""Number of rows, and the rows."""


def rows_for(user: MappedUser, only: frozenset[int] | None, after: int, limit: int) -> Rows:
    """`rows`, of the processes that *user* may see: where /proc hides those of others (hidepid), they are hidden here."""
    return as_user(user, lambda: rows(after, limit, only=only))


def rows(after: int, limit: int, proc: str = "/proc", only: frozenset[int] | None = None) -> Rows:
    """The rows of processes above *after*, as many as fit *limit* bytes; with *only*, of these. A process that ends meanwhile is left
    out."""
    parts: list[bytes] = []
    size = 0
    users: dict[int, bytes] = {}
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdecimal()):
        if pid <= after or (only is not None and pid not in only):
            continue
        row = read(pid, proc)
        if row is None:
            continue
        if row.uid not in users:
            users[row.uid] = _name(row.uid)
        part = pack_row(row._replace(user=users[row.uid]))
        if size + len(part) > limit:
            break
        parts.append(part)
        size += len(part)
    return len(parts), b"".join(parts)


def _name(uid: int) -> bytes:
    """Of the account with this number; the number where there is none."""
    try:
        return os.fsencode(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return b"%d" % uid


def read(pid: int, proc: str = "/proc") -> Row | None:
    """proc(5): stat (whose second field may hold anything, blanks and brackets too), cmdline, and the owner of the directory."""
    try:
        uid = os.stat(f"{proc}/{pid}").st_uid
        with open(f"{proc}/{pid}/stat", "rb") as file:
            stat = file.read()
        with open(f"{proc}/{pid}/cmdline", "rb") as file:
            command = file.read(COMMAND_MAX).rstrip(b"\0")
    except OSError:
        return None
    name = stat[stat.index(b"(") + 1 : stat.rindex(b")")]
    fields = stat[stat.rindex(b")") + 2 :].split()
    ticks = int(fields[11]) + int(fields[12])
    return Row(
        pid,
        int(fields[1]),
        uid,
        fields[0].decode("ascii"),
        int(fields[16]),
        int(fields[17]),
        int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        ticks / os.sysconf("SC_CLK_TCK"),
        name,
        command,
        began=int(fields[19]),
    )
