"""What a claim costs, and a look at when the next is due, by how many traces wait: microseconds, medians.

The floor beside it is an empty commit on the same store. By hand, in an environment that has tinyllm:

    python benchmarks/claims.py [FOLDER]

It takes a minute; the stores are made in FOLDER, or in a temporary directory.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from tinyllm.storage.contract import Admit, Claim, Claimed, Counts, Delta, Marks, Release, Wanted
from tinyllm.storage.owners import this_process
from tinyllm.storage.sqlite import SQLiteCheckpointStorage

SIZES = (100, 1_000, 10_000, 100_000)
AT_ONCE = 16
ROUNDS = 200
BATCH = 1000
TOMORROW = time.time() + 86_400


def admission(number: int, graph_id: str, priority: int, not_before: float | None) -> Admit:
    return Admit(
        trace_id=f"{graph_id}-{number}",
        graph_id=graph_id,
        graph_version="1.0.0",
        fingerprint="f",
        definition=b"{}",
        graph_path=None,
        task_digest="digest",
        owner=None,
        priority=priority,
        not_before=not_before,
        first=Delta(trace=0, epoch=0, number=1, step=0, status="queued", marks=Marks(), counts=Counts()),
    )


async def fill(
    storage: SQLiteCheckpointStorage,
    first: int,
    last: int,
    graph_id: str = "g",
    priority: int | None = None,
    not_before: float | None = None,
) -> None:
    """Queue the traces numbered from `first` and before `last`; of ten priorities, if it is not said."""
    for start in range(first, last, BATCH):
        numbers = range(start, min(start + BATCH, last))
        await storage.commit(
            [admission(n, graph_id, n * 7 % 10 if priority is None else priority, not_before) for n in numbers]
        )


async def microseconds(call: Callable[[], Awaitable[object]], undo: Callable[[object], Awaitable[object]]) -> float:
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        outcome = await call()
        taken.append(time.perf_counter() - began)
        await undo(outcome)
    return median(taken) * 1e6


async def measure(storage: SQLiteCheckpointStorage, name: str, claim: Claim) -> None:
    async def nothing(_: object) -> None:
        pass

    async def give_back(outcome: object) -> None:
        assert isinstance(outcome, list)
        (claimed,) = outcome
        assert isinstance(claimed, Claimed)
        assert len(claimed.traces) == AT_ONCE
        await storage.commit([Release(held.trace, held.epoch) for held in claimed.traces])

    floor = await microseconds(lambda: storage.commit([]), nothing)
    claims = await microseconds(lambda: storage.commit([claim]), give_back)
    graphs = [each.graph_id for each in claim.wanted]
    looks = await microseconds(lambda: storage.next_due(graphs), nothing)
    read = await microseconds(lambda: storage.trace("g-0"), nothing)
    print(f"| {name:<46} | {floor:12,.0f} | {claims:11,.0f} | {read:13,.0f} | {looks:8,.0f} |", flush=True)


async def main(folder: Path) -> None:
    storage = SQLiteCheckpointStorage(folder)
    await storage.initialize()
    owner = this_process()
    storage.renew(owner)
    claim = Claim((Wanted("g", owner.id, at_most=10_000),), AT_ONCE)
    print(f"| {'traces that wait':<46} | empty commit | claim of {AT_ONCE} | read of one   | next_due |")
    print(f"| {'-' * 46} | -----------: | ----------: | ------------: | -------: |")
    waiting = 0
    for size in SIZES:
        await fill(storage, waiting, size)
        waiting = size
        await measure(storage, f"{size:,}", claim)
    most = SIZES[-1]
    await fill(storage, most, 2 * most, priority=99, not_before=TOMORROW)
    await measure(storage, f"and {most:,} of a higher priority, due tomorrow", claim)
    await fill(storage, 0, most, graph_id="h", priority=99)
    await measure(storage, f"and {most:,} of another graph", claim)
    both = Claim((*claim.wanted, Wanted("h", owner.id)), AT_ONCE)
    await measure(storage, "the same, for both graphs", both)
    storage.retire(owner)
    await storage.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as made:
        asyncio.run(main(Path(made)))
