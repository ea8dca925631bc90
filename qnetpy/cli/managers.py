"""`qnet ls -m [NODE]`: the resource managers of a node. Loads neither Trio nor the stack, and no library for this node's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qnetpy.cli import daemon
from qnetpy.cli.output import CommandError, as_json, table, user
from resmgr.attachproto import LIST, LIST_LEN, REQUEST, Row, parse_rows
from resmgr.errors import BadMessage, ResmgrError
from resmgr.ids import CHID_ATTACH, PID_SYSTEM

if TYPE_CHECKING:
    from resmgr.client import Client

AFTER, EXACT, TRANSIT, LOCAL = 1, 2, 4, 8
"""`resmgr.pathspace.Attach`."""
SECONDS = 5.0


def run(node: str, config: str | None, json: bool) -> int:
    """Print the table, or the same facts as JSON."""
    with daemon.connect(config) as client:
        name = node or client.node
        try:
            rows = ask(client, node)
        except (ResmgrError, BadMessage) as error:
            why = error.strerror if isinstance(error, ResmgrError) else None
            raise CommandError(f"node {name}: {(why or str(error)).lower()}", "qnet nodes") from error
    if json:
        facts = [
            {**row._asdict(), "path": row.path.decode("utf-8", "backslashreplace"), "how": how(row.flags), "node": name} for row in rows
        ]
        print(as_json({"node": name, "managers": facts}))
    else:
        shown: list[list[object]] = [[text(row.path), name, row.pid, row.program, user(row.uid, not node), how(row.flags)] for row in rows]
        print(table(shown, ("PATH", "NODE", "PID", "PROGRAM", "USER", "HOW")))
    return 0


def ask(client: Client, node: str) -> list[Row]:
    """All rows of *node* (empty: this one) that this user's node may see."""
    nd = 0
    if node and node != client.node:
        from resmgr.walk import walk_blocking

        nd = walk_blocking(client, b"/net/" + node.encode(), SECONDS)[0].address[0]
    connection = client.connect(nd, PID_SYSTEM, CHID_ATTACH)
    rows: list[Row] = []
    while True:
        count, data, _ = connection.send(REQUEST.pack(LIST, 0, len(rows)), reply_len=LIST_LEN, timeout=SECONDS)
        more = parse_rows(data)
        rows += more
        if not more or len(rows) >= count:
            return rows


def how(flags: int) -> str:
    """Flags in words."""
    words = (("after", AFTER), ("one name", EXACT), ("other nodes", TRANSIT), ("this node only", LOCAL))
    return ", ".join(word for word, flag in words if flags & flag)


def text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
