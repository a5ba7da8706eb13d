"""Many traces at once, and one trace with many siblings."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tinyllm import Executor, Graph, GraphBuilder, SQLiteCheckpointStorage, StorageConfig

pytestmark = pytest.mark.anyio

TRACES = 1_000
SIBLINGS = 10_000


@pytest.fixture
def storage(tmp_path: Path) -> SQLiteCheckpointStorage:
    return SQLiteCheckpointStorage(StorageConfig(sqlite_path=str(tmp_path)))


async def test_a_thousand_traces_at_once(storage: SQLiteCheckpointStorage) -> None:
    """All have begun before the first may end."""
    begun = 0
    all_begun = anyio.Event()

    async def number(task: str) -> int:
        nonlocal begun
        begun += 1
        if begun == TRACES:
            all_begun.set()
        await all_begun.wait()
        return int(task)

    async def double(value: int) -> int:
        return value * 2

    async def add_one(value: int) -> int:
        return value + 1

    values: dict[int, object] = {}
    async with Executor(GraphBuilder("three").chain(number, double, add_one).build(), None, storage) as executor:

        async def execute(trace: int) -> None:
            values[trace] = (await executor.execute(str(trace), trace_id=f"t{trace}")).value

        async with anyio.create_task_group() as traces:
            for trace in range(TRACES):
                traces.start_soon(execute, trace)
    stored = await storage.traces(limit=2 * TRACES)
    await storage.close()

    assert values == {trace: trace * 2 + 1 for trace in range(TRACES)}
    assert {record.trace_id for record in stored} == {f"t{trace}" for trace in range(TRACES)}
    assert {(record.status, record.step, record.rev) for record in stored} == {("completed", 3, 3)}


def siblings() -> Graph:
    async def numbers(task: str) -> list[int]:
        return list(range(int(task)))

    async def square(value: int) -> int:
        return value * value

    async def joined(values: list[int]) -> list[int]:
        return values

    return (
        GraphBuilder("siblings")
        .edge(numbers, square, for_each=True)
        .chain(square, joined)
        .node(joined, join="all")
        .build()
    )


async def test_ten_thousand_siblings(storage: SQLiteCheckpointStorage) -> None:
    async with Executor(siblings(), None, storage) as executor:
        response = await executor.execute(str(SIBLINGS), trace_id="t")
    steps = await storage.steps("t", limit=2 * SIBLINGS)
    checkpoints = await storage.checkpoints("t", limit=2 * SIBLINGS)
    await storage.close()

    assert response.value == [number * number for number in range(SIBLINGS)]
    assert [step.step for step in steps] == list(range(1, SIBLINGS + 3))
    assert len({step.activation for step in steps}) == SIBLINGS + 2
    assert [checkpoint.step for checkpoint in checkpoints] == [*range(SIBLINGS + 2, SIBLINGS - 98, -1), 0]
