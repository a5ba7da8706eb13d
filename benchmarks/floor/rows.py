"""Floor: the rows of `n` deltas, committed 128 deltas at a time; and of 100 more, each committed by itself."""

from __future__ import annotations

from statistics import median

import msgspec
from deltas import ROWS, Delta, Store

from common import Case, Clock, Figures, main

BATCH = 128


def rows(case: Case) -> Figures:
    store = Store(case.folder / "floor.db")
    body = msgspec.json.encode({"content": "x" * 200})
    deltas = [Delta(step=n, node="node", ended=n, planned=n + 1, body=body) for n in range(1, case.n + BATCH + 1)]
    store.append(deltas[:BATCH])  # its statements are prepared then
    with Clock() as clock:
        for begin in range(BATCH, len(deltas), BATCH):
            store.append(deltas[begin : begin + BATCH])
    alone = []
    for n in range(len(deltas) + 1, len(deltas) + 101):
        with Clock() as one:
            store.append([Delta(step=n, node="node", ended=n, planned=n + 1, body=body)])
        alone.append(one.seconds)
    store.close()
    us_per_delta = clock.seconds / case.n * 1e6
    return {
        "us_per_row": us_per_delta / ROWS,
        "us_per_delta": us_per_delta,
        "us_per_delta_alone": median(alone) * 1e6,
    }


if __name__ == "__main__":
    main(rows)
