"""The backends, short ways to use them, and a look behind the contract: which rows each really keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from tests.storage.deltas import Writer
from tinyllm.persistence.memory_backend import InMemoryCheckpointStorage
from tinyllm.persistence.sqlite_backend import SQLiteCheckpointStorage
from tinyllm.storage.contract import (
    Appended,
    CheckpointStorage,
    Outcome,
    Owner,
    Snapshot,
    StorageConfig,
    TraceRecord,
    Write,
)
from tinyllm.storage.memory_trace import Trace
from tinyllm.storage.sqlite.load import Loader
from tinyllm.storage.sqlite.schema import LAST, SHIFT

BACKENDS = ["memory", "sqlite"]

CLOCKS = {"memory": "tinyllm.storage.memory_leases.monotonic", "sqlite": "tinyllm.storage.sqlite.store.boottime"}
"""By which each measures the time between two renewals of a lease."""

Census = dict[int, dict[str, set[int]]]
"""By trace key, by kind of row: the sequence numbers (of steps: their number) of what is kept, but for deletions."""


async def commit(storage: CheckpointStorage, *writes: Write) -> list[Outcome]:
    return await storage.commit(writes)


async def commit_one(storage: CheckpointStorage, write: Write) -> Outcome:
    (outcome,) = await storage.commit([write])
    return outcome


async def admit(storage: CheckpointStorage, trace_id: str = "t", owner: Owner | None = None, **first: Any) -> Writer:
    """A new trace, whose frontier is activation 1 of node `a` if `first` says nothing else."""
    writer = Writer(trace_id, owner.id if owner else None)
    return writer.admitted(await commit_one(storage, writer.admit(**first)))


async def run_steps(storage: CheckpointStorage, writer: Writer, count: int) -> None:
    """Each step ends the oldest activation, plans another, and changes the variable `x`."""
    for _ in range(count):
        write = writer.append(
            end=min(writer.live), plan=["a"], body=b"%d" % writer.rev, set=[("x", b"%d" % writer.rev)]
        )
        assert await commit_one(storage, write) == Appended(writer.rev)


async def fork(
    storage: CheckpointStorage, parent: Writer, rev: int, trace_id: str = "child", owner: Owner | None = None
) -> Writer:
    snapshot = await storage.load(parent.trace_id, rev)
    child, write = parent.fork(snapshot, trace_id, owner.id if owner else None)
    return child.admitted(await commit_one(storage, write))


async def found(storage: CheckpointStorage, trace_id: str = "t") -> TraceRecord:
    record = await storage.trace(trace_id)
    assert record is not None
    return record


async def kept(storage: CheckpointStorage, trace_id: str = "t") -> list[int]:
    return [record.rev for record in await storage.checkpoints(trace_id)]


def content(snapshot: Snapshot) -> Snapshot:
    """A snapshot without what the trace itself has become since."""
    return attrs.evolve(snapshot, record=None)  # type: ignore[arg-type] # compared only


async def ids(storage: CheckpointStorage, **which: Any) -> list[str]:
    return [record.trace_id for record in await storage.traces(**which)]


def open_backend(name: str, directory: Path) -> CheckpointStorage:
    config = StorageConfig(sqlite_path=str(directory))
    if name == "memory":
        return InMemoryCheckpointStorage(config)
    return SQLiteCheckpointStorage(config)


def backend_of(storage: CheckpointStorage) -> str:
    return "memory" if isinstance(storage, InMemoryCheckpointStorage) else "sqlite"


async def census(storage: CheckpointStorage) -> Census:
    if isinstance(storage, InMemoryCheckpointStorage):
        return _in_memory(storage)
    assert isinstance(storage, SQLiteCheckpointStorage)
    return await storage._ask(_in_sqlite)


def _in_memory(storage: InMemoryCheckpointStorage) -> Census:
    found: Census = {}
    waiting: list[Trace | None] = list(storage._traces.values())
    while waiting:
        trace = waiting.pop()
        if trace is None or trace.key in found:
            continue
        waiting.append(trace.parent)
        assert trace.loose.keys() <= trace.readers.keys()
        found[trace.key] = {
            "messages": {row.seq for row in trace.history} | set(trace.loose),
            "activations": set(trace.activations),
            "arrivals": {row.seq for rows in trace.arrivals.values() for row in rows},
            "variables": {row.seq for rows in trace.variables.values() for row in rows if row.kind != "deleted"},
            "steps": {row.step for row in trace.steps},
        }
    return found


def _in_sqlite(store: Loader) -> Census:
    query = store.connection.execute
    traces = [key for (key,) in query("SELECT key FROM traces")]
    found: Census = {key: {} for key in traces}
    for table in ("messages", "activations", "arrivals", "variables", "steps"):
        for rows in found.values():
            rows[table] = set()
        where = "WHERE kind != 'deleted'" if table == "variables" else ""
        for (row,) in query(f"SELECT id FROM {table} {where}"):
            found[row >> SHIFT][table].add(row & LAST)
    for orphans in (
        "SELECT count(*) FROM graphs WHERE digest NOT IN (SELECT graph FROM traces)",
        f"SELECT count(*) FROM checkpoints WHERE id >> {SHIFT} NOT IN (SELECT key FROM traces)",
        "SELECT count(*) FROM commands WHERE trace NOT IN (SELECT key FROM traces WHERE trace_id IS NOT NULL)",
    ):
        assert query(orphans).fetchone() == (0,), orphans
    return found
