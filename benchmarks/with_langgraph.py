"""What the scripts for LangGraph share: an AsyncSqliteSaver as it is shipped, and what its connection says of itself.

Modes: `none` compiles the graph without a checkpointer; `sync`, `async` and `exit` are LangGraph's own `durability`.
Where a list grows, `-delta` after the mode keeps it in a `DeltaChannel` instead of behind the plain reducer.
"""

from __future__ import annotations

import asyncio
import operator
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from common import Case, Figures, disk_bytes

MODES = ("none", "sync", "async", "exit", "sync-delta", "async-delta")
"""LangGraph itself takes any word for a durability."""

LIMIT = 1_000_000
"""LangGraph ends a run after so many supersteps; no workload here is to be ended."""


def extend(items: list[Any], writes: Sequence[list[Any]]) -> list[Any]:
    return items + [item for write in writes for item in write]


class Growing(TypedDict):
    items: Annotated[list[Any], operator.add]
    left: int


class GrowingDelta(TypedDict):
    items: Annotated[list[Any], DeltaChannel(extend)]
    left: int


def growing(mode: str) -> type:
    """The state of a graph whose list grows: how many steps are `left`, and the list."""
    return GrowingDelta if mode.endswith("-delta") else Growing


@asynccontextmanager
async def opened(mode: str, folder: Path) -> AsyncIterator[AsyncSqliteSaver | None]:
    if mode == "none":
        yield None
        return
    async with AsyncSqliteSaver.from_conn_string(str(folder / "langgraph.db")) as saver:
        await saver.setup()
        yield saver


def options(mode: str, thread: str = "") -> dict[str, Any]:
    """The keyword arguments of one `ainvoke`: how durable, and a thread of its own unless one is named."""
    config = {"recursion_limit": LIMIT, "configurable": {"thread_id": thread or uuid.uuid4().hex}}
    if mode == "none":
        return {"config": config}
    return {"config": config, "durability": mode.removesuffix("-delta")}


async def pragmas(saver: AsyncSqliteSaver | None) -> Figures:
    """As they are in force on the connection that writes."""
    found: Figures = {}
    if saver is not None:
        for name in ("journal_mode", "synchronous"):
            async with saver.conn.execute(f"PRAGMA {name}") as rows:
                found[name] = str((await rows.fetchone() or ["?"])[0])
    return found


def measured(case: Case, small: int, run: Callable[[Case], Awaitable[Figures]]) -> Figures:
    """The figures of `run`, after a case of size `small` in a store of its own: so nothing is imported, compiled or
    planned for the first time inside the clock."""

    if case.mode not in MODES:
        raise SystemExit(f"no mode {case.mode!r}: there are {', '.join(MODES)}")

    async def both() -> Figures:
        for name, n in (("warm-up", small), ("store", case.n)):
            folder = case.folder / name
            folder.mkdir()
            figures = await run(replace(case, n=n, folder=folder))
        if case.mode != "none":
            figures["disk_bytes"] = disk_bytes(folder)
            empty = case.folder / "empty"
            empty.mkdir()
            async with opened(case.mode, empty):
                pass
            figures["empty_bytes"] = disk_bytes(empty)
        return figures

    return asyncio.run(both())
