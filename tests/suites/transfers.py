"""Money moved between the accounts of one SQLite database by several processes: none is lost, whatever happens between them.

    python -P transfers.py JOURNAL FILE PROCESSES TRANSFERS
    python -P transfers.py one JOURNAL FILE TRANSFERS SEED     one of the processes; several machines can run some

A program of its own, as hammering.py is. JOURNAL is SQLite's journal_mode; `wal` is for processes of one machine.
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys

ACCOUNTS = 50
EACH = 100
SECONDS = 60.0


def connect(journal: str, file: str) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=SECONDS, isolation_level=None)
    (now,) = database.execute(f"PRAGMA journal_mode={journal}").fetchone()
    if now != journal:
        raise SystemExit(f"journal_mode is {now}, not {journal}")
    return database


def prepare(journal: str, file: str) -> None:
    database = connect(journal, file)
    database.execute("CREATE TABLE account (number INTEGER PRIMARY KEY, money INTEGER NOT NULL)")
    database.execute("CREATE TABLE transfer (who INTEGER, number INTEGER, PRIMARY KEY (who, number))")
    database.executemany("INSERT INTO account VALUES (?, ?)", [(number, EACH) for number in range(ACCOUNTS)])
    database.close()


def transfers(journal: str, file: str, count: int, seed: int) -> None:
    rng = random.Random(seed)
    database = connect(journal, file)
    for number in range(count):
        source, target = rng.sample(range(ACCOUNTS), 2)
        database.execute("BEGIN IMMEDIATE")
        (total,) = database.execute("SELECT sum(money) FROM account").fetchone()
        if total != ACCOUNTS * EACH:
            raise SystemExit(f"{total} is there, not {ACCOUNTS * EACH}")
        database.execute("UPDATE account SET money = money - 1 WHERE number = ?", (source,))
        if rng.randrange(10) == 0:
            database.execute("ROLLBACK")
            database.execute("BEGIN IMMEDIATE")
        else:
            database.execute("UPDATE account SET money = money + 1 WHERE number = ?", (target,))
        database.execute("INSERT INTO transfer VALUES (?, ?)", (seed, number))
        database.execute("COMMIT")
        if rng.randrange(8) == 0:
            database.close()
            database = connect(journal, file)
    database.close()


def check(journal: str, file: str, counts: dict[int, int]) -> None:
    database = connect(journal, file)
    (said,) = database.execute("PRAGMA integrity_check").fetchone()
    (total,) = database.execute("SELECT sum(money) FROM account").fetchone()
    done = dict(database.execute("SELECT who, count(*) FROM transfer GROUP BY who"))
    if (said, total, done) != ("ok", ACCOUNTS * EACH, counts):
        raise SystemExit(f"{file}: integrity {said}, {total} of {ACCOUNTS * EACH} there, transfers {done} of {counts}")


def main(words: list[str]) -> None:
    if words[0] == "one":
        transfers(words[1], words[2], int(words[3]), int(words[4]))
        return
    journal, file, processes, count = words[0], words[1], int(words[2]), int(words[3])
    prepare(journal, file)
    command = [sys.executable, "-P", __file__, "one", journal, file, str(count)]
    running = [subprocess.Popen([*command, str(seed)]) for seed in range(processes)]
    if any(code for code in [process.wait() for process in running]):
        raise SystemExit(1)
    check(journal, file, dict.fromkeys(range(processes), count))


if __name__ == "__main__":
    main(sys.argv[1:])
