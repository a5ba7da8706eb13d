"""Floor: `n` message bodies of 1 KiB read from SQLite by one SELECT and decoded; the median of 5."""

from __future__ import annotations

from statistics import median

import msgspec
from sqlite_utils.utils import sqlite3

from common import Case, Clock, Figures, main


def read_decode(case: Case) -> Figures:
    path = case.folder / "floor.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE messages (id INTEGER PRIMARY KEY, body TEXT)")
    body = msgspec.json.encode({"content": "x" * 1024}).decode()
    connection.executemany("INSERT INTO messages (body) VALUES (?)", [(body,)] * case.n)
    connection.commit()
    connection.close()
    decode = msgspec.json.Decoder().decode
    seconds = []
    for _ in range(5):
        connection = sqlite3.connect(path)
        with Clock() as clock:
            messages = [decode(row[0]) for row in connection.execute("SELECT body FROM messages ORDER BY id")]
        connection.close()
        assert len(messages) == case.n
        seconds.append(clock.seconds)
    return {"all_read_ms": median(seconds) * 1000}


if __name__ == "__main__":
    main(read_decode)
