"""Transactions on an SQLite database of another node, over and over: `python banking.py JOURNAL FILE WHO FIRST`.

Each moves money between accounts whose rows fill many pages, with a cache of a few, so that pages of the database are written long before
its end. Lines of output: `begun N`, then `done N` when COMMIT has returned; a `begun` without `done` may be there or not. What fails is
said (`error TEXT`) and the file is opened again. Ends when the input does.

    python banking.py prepare JOURNAL FILE
    python banking.py check JOURNAL FILE     JSON: {"integrity": "ok", "sum": of all money, "done": {WHO: [N, ...]}}
"""

from __future__ import annotations

import json
import random
import select
import sqlite3
import sys
import time

ACCOUNTS, EACH = 60, 100
PADDING = 900
"""Bytes of a row, four to a page: some fifteen pages, of which TOUCHED change in a transaction."""
TOUCHED = 10
WAIT = 20.0
"""Seconds for a lock: that of a node that is gone is free after 3."""
PAUSE = 0.15
"""Seconds at most between two transactions: SQLite asks for its lock again and again, so who never pauses never lets others in."""
LOOK = 8
"""Every so many transactions, integrity_check."""


def connect(journal: str, file: str) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=WAIT, isolation_level=None)
    database.execute("PRAGMA cache_size=5")
    database.execute(f"PRAGMA journal_mode={journal}").fetchone()
    return database


def prepare(journal: str, file: str) -> None:
    database = connect(journal, file)
    database.execute("CREATE TABLE account (number INTEGER PRIMARY KEY, money INTEGER NOT NULL, padding TEXT)")
    database.execute("CREATE TABLE transfer (who TEXT, number INTEGER, PRIMARY KEY (who, number))")
    database.execute("BEGIN")
    database.executemany("INSERT INTO account VALUES (?, ?, ?)", [(number, EACH, "." * PADDING) for number in range(ACCOUNTS)])
    database.execute("COMMIT")
    database.close()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def transfer(database: sqlite3.Connection, who: str, number: int, rng: random.Random) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        (total,) = database.execute("SELECT sum(money) FROM account").fetchone()
        if total != ACCOUNTS * EACH:
            raise SystemExit(f"{who}: {total} is there, not {ACCOUNTS * EACH}")
        if number % LOOK == 0:
            (found,) = database.execute("PRAGMA integrity_check").fetchone()
            if found != "ok":
                raise SystemExit(f"{who}: integrity_check: {found}")
        touched = rng.sample(range(ACCOUNTS), TOUCHED)
        for place, account in enumerate(touched):
            change = 1 if place % 2 else -1
            database.execute("UPDATE account SET money = money + ?, padding = ? WHERE number = ?", (change, who * PADDING, account))
        database.execute("INSERT INTO transfer VALUES (?, ?)", (who, number))
        database.execute("COMMIT")
    except sqlite3.Error:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def work(journal: str, file: str, who: str, number: int) -> None:
    rng = random.Random(f"{who}{number}")
    database = None
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            database = database or connect(journal, file)
            number += 1
            say(f"begun {number}")
            transfer(database, who, number, rng)
            say(f"done {number}")
            time.sleep(rng.uniform(0.0, PAUSE))
        except sqlite3.DatabaseError as error:
            # "malformed" and "not a database" are what must not be.
            say(f"error {error}")
            if not isinstance(error, sqlite3.OperationalError):
                raise SystemExit(f"{who}: {error}") from error
            try:
                if database is not None:
                    database.close()
            except sqlite3.Error:
                pass
            database = None
            time.sleep(0.05)


def check(journal: str, file: str) -> dict[str, object]:
    database = connect(journal, file)
    done: dict[str, list[int]] = {}
    for who, number in database.execute("SELECT who, number FROM transfer ORDER BY number"):
        done.setdefault(who, []).append(number)
    return {
        "integrity": database.execute("PRAGMA integrity_check").fetchone()[0],
        "sum": database.execute("SELECT sum(money) FROM account").fetchone()[0],
        "done": done,
    }


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(*sys.argv[2:])
    elif sys.argv[1] == "check":
        print(json.dumps(check(*sys.argv[2:])))
    else:
        work(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
