"""Floor: one row, committed by itself (WAL, synchronous = FULL); the median of 300."""

from __future__ import annotations

from statistics import median

from sqlite_utils.utils import sqlite3  # the library that tinyllm uses: both choose it in the same way

from common import Case, Clock, Figures, main


def commit(case: Case) -> Figures:
    connection = sqlite3.connect(case.folder / "floor.db", isolation_level=None)
    (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, body TEXT)")
    seconds = []
    for _ in range(20 + 300):
        with Clock() as clock:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO rows (body) VALUES (?)", ("x" * 200,))
            connection.execute("COMMIT")
        seconds.append(clock.seconds)
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    connection.close()
    return {
        "us_per_commit": median(seconds[20:]) * 1e6,  # the first ones grow the files
        "journal_mode": journal,
        "synchronous": str(synchronous),
        "sqlite": sqlite3.sqlite_version,
    }


if __name__ == "__main__":
    main(commit)
