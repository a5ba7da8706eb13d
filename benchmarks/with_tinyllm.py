"""What the scripts for tinyllm share: its modes, its event loops, and what is read off its store afterwards.

Modes: `none` records nothing; `memory` keeps checkpoints in memory; `sync` and `async` are tinyllm's own `durability`,
with SQLite and a checkpoint after each node; `interval` makes one every 5 seconds instead, with SQLite.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import anyio
import sqlite_utils

from common import Case, Figures, disk_bytes, percentile
from tinyllm import (
    CheckpointStorage,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    Result,
    SQLiteCheckpointStorage,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "memory": {},
    "sync": {"durability": "sync"},
    "async": {"durability": "async"},
    "interval": {"checkpoint_after_each_node": False, "checkpoint_interval_ms": 5000},
}

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "trio": {"backend": "trio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},  # raises where it is not installed
}

Work = Callable[[Case], Awaitable[Figures]]


def measuring(work: Work, *, warm_up: int) -> Callable[[Case], Figures]:
    """What `common.main` calls: it does `work` with the size `warm_up` first, in another store, and then for the clock;
    and says how large the store has become, and what an empty one is."""

    async def both(case: Case) -> Figures:
        await work(_in_folder(case, "warm-up", min(warm_up, case.n)))
        return await work(_in_folder(case, "measured", case.n))

    async def nothing(case: Case) -> Figures:
        async with opened(case.mode, case.folder):
            return {}

    def measure(case: Case) -> Figures:
        for option, value, known in (("--mode", case.mode, SETTINGS), ("--loop", case.loop, LOOPS)):
            if value not in known:
                raise SystemExit(f"{option} {value}: tinyllm is measured with {', '.join(known)}")
        figures = anyio.run(both, case, **LOOPS[case.loop])
        if case.mode in ("none", "memory"):
            return figures
        anyio.run(nothing, _in_folder(case, "empty", 0), **LOOPS[case.loop])
        figures.setdefault("disk_bytes", disk_bytes(case.folder / "measured"))
        figures["empty_bytes"] = disk_bytes(case.folder / "empty")
        return figures | _pragmas(case.folder / "measured")

    return measure


def _in_folder(case: Case, name: str, n: int) -> Case:
    return Case(case.mode, case.loop, n, case.folder / name)


@asynccontextmanager
async def opened(mode: str, folder: Path) -> AsyncIterator[CheckpointStorage | None]:
    """The mode's store, open; None for `none`."""
    if mode == "none":
        yield None
        return
    storage = InMemoryCheckpointStorage() if mode == "memory" else SQLiteCheckpointStorage(folder)
    await storage.initialize()
    try:
        yield storage
    finally:
        await storage.close()


@asynccontextmanager
async def executing(graph: Graph, case: Case) -> AsyncIterator[Executor]:
    """An executor of `graph` with the case's mode and store, ready."""
    config = ExecutorConfig(**SETTINGS[case.mode])
    async with opened(case.mode, case.folder) as storage, Executor(graph, config, storage) as executor:
        yield executor


def chain(n: int) -> Graph:
    """A chain of `n` nodes that do nothing but pass their input on: all time is the engine's."""
    builder = GraphBuilder("chain")
    for index in range(n):
        builder.node(pass_on, id=f"n{index}")
    return builder.chain(*[f"n{index}" for index in range(n)]).build()


async def pass_on(state: str) -> str:
    return state


def loop(step: Callable[..., Awaitable[Result]], **keys: Any) -> Graph:
    """A graph of the one node `step`, which goes to itself until it says otherwise; `keys` are further ones of it."""
    return GraphBuilder("loop", allow_cycles=True, **keys).node(step, id="step", targets="step").entry("step").build()


def noise(count: int, size: int) -> list[str]:
    """`count` texts of `size` characters, the same ones each time, that compression makes hardly smaller."""
    random = Random(0)
    return [b64encode(random.randbytes(size * 3 // 4 + 3)).decode()[:size] for _ in range(count)]


def rss_bytes() -> int:
    """The memory that the process has now, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Stalls:
    """By how much a task oversleeps that sleeps 1 ms again and again: how long the event loop let others wait."""

    def __init__(self) -> None:
        self._late: list[float] = []

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            yield
            await anyio.sleep(0.001)  # what was asleep then has woken, however long it was kept from it
            tasks.cancel_scope.cancel()

    async def _watch(self) -> None:
        while True:
            began = perf_counter()
            await anyio.sleep(0.001)
            self._late.append((perf_counter() - began) * 1000 - 1)

    def figures(self) -> Figures:
        return {
            "stall_p50_ms": percentile(self._late, 50),
            "stall_p99_ms": percentile(self._late, 99),
            "stall_max_ms": max(self._late),
        }


def _pragmas(folder: Path) -> Figures:
    """The journal mode is a fact of the file. How much is synchronized is one of the writing connection, which is not
    public: what stands here is what docs/reference/storage.md promises."""
    database = sqlite_utils.Database(folder / "tinyllm.db")
    try:
        return {"journal_mode": database.journal_mode, "synchronous": "full, as documented"}
    finally:
        database.close()
