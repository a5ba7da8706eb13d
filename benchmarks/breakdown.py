"""Where the time of a node goes: W1 with a clock around the parts of tinyllm, as a table.

The parts are methods of tinyllm's own. The clocks take their time, too, and a run with them is slower than W1 says:
what counts are the proportions. What the storage thread does happens beside the loop, but for the interpreter lock.
"""

from __future__ import annotations

import functools
import inspect
import statistics
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import anyio

from common import Case, Clock
from tinyllm.actors.invoke import Code
from tinyllm.actors.plan import Plan
from tinyllm.actors.run import Run
from tinyllm.actors.scheduler import CheckpointScheduler
from tinyllm.actors.writer import StorageWriter
from tinyllm.storage.sqlite.rows import Rows
from tinyllm.storage.sqlite.store import SQLiteCheckpointStorage
from with_tinyllm import LOOPS, chain, executing

NODES, ROUNDS = 1000, 5

PARTS: tuple[tuple[str, str, type, str], ...] = (
    ("the node: arguments, the call, its result as bytes", "loop", Code, "invoke"),
    ("the plan: what follows, and the delta that records it", "loop", Plan, "finish"),
    ("handing a delta over", "loop", Run, "_hand"),
    ("starting what is planned", "loop", Run, "_start"),
    ("the scheduler", "loop", CheckpointScheduler, "_handle"),
    ("the writer: taking deltas", "loop", StorageWriter, "_take"),
    ("the writer: telling runs", "loop", StorageWriter, "_tell_all"),
    ("from deltas to rows", "storage thread", Rows, "add"),
    ("inserting rows", "storage thread", Rows, "insert"),
    ("the rest of a transaction, mostly its fsync", "storage thread", SQLiteCheckpointStorage, "_end"),
)

spent: dict[str, float] = {}


def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with what it takes added to `spent`. What it waits for is in it: none of the parts waits long."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def clocked_async(*args: Any, **keys: Any) -> Any:
            began = perf_counter()
            try:
                return await function(*args, **keys)
            finally:
                spent[part] = spent.get(part, 0.0) + perf_counter() - began

        return clocked_async

    @functools.wraps(function)
    def clocked_plain(*args: Any, **keys: Any) -> Any:
        began = perf_counter()
        try:
            return function(*args, **keys)
        finally:
            spent[part] = spent.get(part, 0.0) + perf_counter() - began

    return clocked_plain


def clock_parts() -> None:
    for part, _, owner, name in PARTS:
        if owner is not Code:
            setattr(owner, name, clocked(part, getattr(owner, name)))
    made = Code.__init__

    def make(self: Code, *args: Any, **keys: Any) -> None:
        made(self, *args, **keys)
        self.invoke = _awaited(PARTS[0][0], self.invoke)

    Code.__init__ = make  # type: ignore[method-assign]


def _awaited(part: str, invoke: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any) -> Any:
        return await invoke(*args)

    return clocked(part, call)


async def run(mode: str, folder: Path) -> float:
    """Microseconds per node of one chain."""
    async with executing(chain(NODES), Case(mode, "asyncio", NODES, folder)) as executor:
        with Clock() as clock:
            await executor.execute("x" * 200)
    return clock.seconds / NODES * 1e6


def measure(mode: str) -> tuple[float, dict[str, float]]:
    """The median over the rounds: of the whole, and of each part."""
    wholes, parts = [], []
    for _ in range(ROUNDS + 1):
        spent.clear()
        with TemporaryDirectory() as folder:
            wholes.append(anyio.run(run, mode, Path(folder), **LOOPS["asyncio"]))
        parts.append({part: seconds / NODES * 1e6 for part, seconds in spent.items()})
    parts, wholes = parts[1:], wholes[1:]  # the first warms up
    found = {part: statistics.median(each.get(part, 0.0) for each in parts) for part in parts[-1]}
    return statistics.median(wholes), found


def table() -> str:
    clock_parts()
    modes = {mode: measure(mode) for mode in ("none", "memory", "async")}
    lines = ["| us per node | where | none | memory | async |", "| --- | --- | --- | --- | --- |"]
    for part, where, _, _ in PARTS:
        figures = (parts.get(part) for _, parts in modes.values())
        lines.append(f"| {part} | {where} | {' | '.join('' if f is None else f'{f:.1f}' for f in figures)} |")
    rest = []
    for whole, parts in modes.values():
        in_loop = sum(parts.get(part, 0.0) for part, where, _, _ in PARTS if where == "loop")
        rest.append(f"{whole - in_loop:.1f}")
    lines.append(f"| the rest: turns of the loop, mailboxes, waiting for the lock | loop | {' | '.join(rest)} |")
    lines.append(f"| **wall time** | | {' | '.join(f'**{whole:.1f}**' for whole, _ in modes.values())} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
