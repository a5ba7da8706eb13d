"""What the design promises of whole traces, where no test of a part can show it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.actors.stores import Noting
from tinyllm import (
    CheckpointManager,
    CheckpointStorage,
    ExecutionContext,
    ExecutionError,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    Result,
    SQLiteCheckpointStorage,
)
from tinyllm.actors.dispatch import Durability
from tinyllm.storage.contract import Delta, Fork

pytestmark = pytest.mark.anyio

KILOBYTE = "x" * 1024


@pytest.fixture
async def noting() -> AsyncIterator[Noting]:
    store = Noting()
    await store.initialize()
    yield store
    await store.close()


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[CheckpointStorage]:
    store = SQLiteCheckpointStorage(path)
    await store.initialize()
    try:
        yield store
    finally:
        await store.close()


def rows(delta: Delta) -> int:
    """How many rows a delta writes, at most."""
    kinds = (delta.messages, delta.activations, delta.arrivals, delta.fired, delta.changed, delta.ended)
    return sum(map(len, (*kinds, delta.variables, delta.steps)))


def counting(**keys: Any) -> Graph:
    """Count up to the task. `log` gets an item with each step."""

    async def start(upto: int) -> Any:
        return Result({"n": 0, "upto": upto}, set={"big": KILOBYTE * 200, "log": ["begun"]})

    async def count(value: dict[str, int]) -> Any:
        return Result(value | {"n": value["n"] + 1}, set={"log": KILOBYTE})

    builder = GraphBuilder("counting", allow_cycles=True, variables={"log": "append"}, **keys)
    builder.edge(start, count).edge(count, count, when="structured['n'] < structured['upto']")
    return builder.entry(start).exit(count).build()


def spreading() -> Graph:
    async def spread(count: int) -> list[int]:
        return list(range(count))

    async def work(number: int) -> int:
        return number

    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    return GraphBuilder("spreading").edge(spread, work, for_each=True).edge(work, total).node(total, join="all").build()


# -- when ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        ExecutorConfig(durability="exit"),
        ExecutorConfig(checkpoint_after_each_node=False, checkpoint_interval_ms=0),
        ExecutorConfig(),
        ExecutorConfig(durability="sync"),
    ],
    ids=["exit", "no interval", "each node", "sync"],
)
async def test_whatever_the_settings_admission_pause_failure_and_end_are_checkpoints(
    checkpoint_storage: CheckpointStorage, config: ExecutorConfig
) -> None:
    broken = [True]

    async def ask(task: str, context: Any) -> str:
        return f"{task} {await context.ask('and?')}"

    async def fail(value: str) -> str:
        if broken.pop():
            raise ConnectionError("no route")
        return value

    async def first(task: str) -> str:
        return task

    async def last(value: str) -> str:
        return value

    graph = GraphBuilder("g").chain(first, ask, fail, last).build()
    async with Executor(graph, config, checkpoint_storage) as executor:
        assert (await executor.execute("this", trace_id="t")).status == "paused"
        with pytest.raises(ExecutionError, match="no route"):
            await executor.resume_from_checkpoint("t", answers={"answer": "that"})
        broken.append(False)
        assert (await executor.resume_from_checkpoint("t")).value == "this that"
    kept = {(record.step, record.status) for record in await checkpoint_storage.list_checkpoints("g", "t")}
    assert {(0, "running"), (1, "paused"), (2, "failed"), (4, "completed")} <= kept
    if config.durability == "exit":
        assert (3, "running") not in kept


async def test_in_sync_mode_a_node_starts_after_the_commit_of_all_before_it(
    checkpoint_storage: CheckpointStorage,
) -> None:
    found: list[tuple[int, int]] = []

    async def count(number: int) -> int:
        found.append((number, (await checkpoint_storage.load("t")).step))
        return number + 1

    builder = GraphBuilder("g", allow_cycles=True).edge(count, count, when="structured < 20")
    async with Executor(
        builder.entry(count).exit(count).build(), ExecutorConfig(durability="sync"), checkpoint_storage
    ) as executor:
        assert (await executor.execute(0, trace_id="t")).value == 20
    assert found == [(number, number) for number in range(20)]


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
@pytest.mark.parametrize("each_node", [True, False])
async def test_what_an_outcome_tells_is_durable_when_it_is_told(
    tmp_path: Path, durability: Durability, each_node: bool
) -> None:
    """Another store on the same database, as another process has it, sees it at once."""
    config = ExecutorConfig(durability=durability, checkpoint_after_each_node=each_node)
    async with opened(tmp_path) as store, opened(tmp_path) as other, Executor(counting(), config, store) as executor:
        for number in range(1, 6):
            response = await executor.execute(number)
            record = await other.trace(response.trace_id)
            assert record is not None
            assert (record.status, record.step) == ("completed", response.nodes_executed) == ("completed", number + 1)
            assert len(await other.steps(response.trace_id)) == number + 1


@pytest.mark.parametrize("each_node", [True, False])
@pytest.mark.parametrize("end", ["fails", "is cancelled"])
async def test_progress_is_found_after_a_resume(
    checkpoint_storage: CheckpointStorage, end: str, each_node: bool
) -> None:
    config = ExecutorConfig(checkpoint_after_each_node=each_node, checkpoint_interval_ms=0)
    found: list[Any] = []
    saved = anyio.Event()

    async def work(task: str, context: Any) -> str:
        found.append(context.progress)
        if context.progress is None:
            await context.save_progress({"page": 3})
            saved.set()
            if end == "fails":
                raise ConnectionError("no route")
            await anyio.sleep_forever()
        return "done"

    graph = GraphBuilder("g").node(work).build()
    async with Executor(graph, config, checkpoint_storage) as executor:
        if end == "fails":
            with pytest.raises(ExecutionError):
                await executor.execute("task", trace_id="t")
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: executor.execute("task", trace_id="t"))
                await saved.wait()
                tasks.cancel_scope.cancel()
    async with Executor(graph, config, checkpoint_storage) as executor:
        assert (await executor.resume_from_checkpoint("t")).value == "done"
    assert found == [None, {"page": 3}]


# -- what a step costs -----------------------------------------------------------------------------------------


async def test_a_step_of_a_long_trace_with_big_constants_costs_no_more_than_the_first(noting: Noting) -> None:
    async with Executor(counting(), checkpoint_storage=noting) as executor:
        assert (await executor.execute(200)).success
    deltas = [write.delta for write in noting.appended]
    assert len(deltas) == 201
    assert deltas[0].size > 200 * len(KILOBYTE)
    early, late = deltas[2], deltas[-2]
    assert rows(early) == rows(late) == 5, "a message, an activation, an ended one, an item and a step"
    assert early.size <= late.size < 1.2 * len(KILOBYTE), "no more than the digits of the number"


async def test_a_step_beside_many_siblings_costs_no_more_than_alone(noting: Noting) -> None:
    async with Executor(spreading(), checkpoint_storage=noting) as executor:
        assert (await executor.execute(300)).value == sum(range(300))
    spread, *works, last, total = [rows(write.delta) for write in noting.appended]
    assert works == [5, *[4] * 298], "a message, an arrival, an ended one and a step; the first opens the round"
    assert spread > 300
    assert (last, total) < (10, 10)


async def test_a_fork_costs_its_frontier_and_not_what_it_shares(noting: Noting) -> None:
    async with Executor(counting(), checkpoint_storage=noting) as executor:
        await executor.execute(100, trace_id="t")
        forked = await executor.fork("t", at=99, new_trace_id="f")
        assert forked.value == {"n": 100, "upto": 100}
    (first,) = [write.first for batch in noting.batches for write in batch if isinstance(write, Fork)]
    assert (rows(first), first.size) == (1, 0), "the activation in flight"


async def test_disk_grows_with_what_changes(tmp_path: Path) -> None:
    async with Executor(counting(), checkpoint_storage=tmp_path) as executor:
        assert (await executor.execute(400)).success
    taken = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert taken < 2_000_000, "400 steps with a KiB each, and 200 KiB once: not 400 times the state, or half of that"


async def test_a_message_that_is_history_and_an_input_is_one_row(noting: Noting) -> None:
    async with Executor(counting(), checkpoint_storage=noting) as executor:
        response = await executor.execute(10, trace_id="t")
    written = [row for write in noting.appended for row in write.delta.messages]
    assert len(written) == response.nodes_executed == 11
    assert all(row.history for row in written)
    assert [row.consumers for row in written] == [1] * 11, "of the last one, the end"
    assert len(await noting.messages("t")) == 12, "with the task"


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
async def test_in_interval_mode_what_was_born_and_died_inside_is_not_written(tmp_path: Path, backend: str) -> None:
    store = Noting() if backend == "memory" else SQLiteCheckpointStorage(tmp_path)
    await store.initialize()
    config = ExecutorConfig(checkpoint_after_each_node=False, checkpoint_interval_ms=0)
    async with Executor(counting(history="none"), config, store) as executor:
        await executor.execute(50, trace_id="t")
    assert [(record.step, record.status) for record in await store.checkpoints("t")] == [
        (51, "completed"),
        (0, "running"),
    ]
    if isinstance(store, Noting):
        (delta,) = [write.delta for write in store.appended]
        assert len(delta.messages) == 1, "what 50 activations read in between is read by nobody any more"
        assert [row.node for row in delta.activations] == ["$end"]
        assert len(delta.ended) == 1, "the one that admission planned"
        assert [row.key for row in delta.variables].count("big") == 1
    await store.close()


async def test_what_is_written_again_and_again_is_logged_once_with_the_remedy(
    checkpoint_storage: CheckpointStorage, caplog: pytest.LogCaptureFixture
) -> None:
    async def grow(number: int, context: Any) -> Any:
        return Result(number + 1, set={"list": [*context.variables.get("list", []), KILOBYTE * 8], "small": number})

    builder = GraphBuilder("g", allow_cycles=True).edge(grow, grow, when="structured < 60")
    async with Executor(builder.entry(grow).exit(grow).build(), checkpoint_storage=checkpoint_storage) as executor:
        await executor.execute(0, trace_id="t")
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "trace t: variable 'list' was written with " in record.message
    assert "give it a reducer" in record.message


# -- history ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("history", "kept"), [("all", 12), ("window(3)", 3), ("none", 0)])
async def test_the_history_is_what_the_graph_says_and_a_resume_does_not_need_it(
    checkpoint_storage: CheckpointStorage, history: str, kept: int
) -> None:
    broken = [True]

    async def check(value: dict[str, int]) -> str:
        if broken.pop():
            raise ConnectionError("no route")
        return f"{value['n']} of {value['upto']}"

    async def start(upto: int) -> dict[str, int]:
        return {"n": 0, "upto": upto}

    async def count(value: dict[str, int]) -> dict[str, int]:
        return value | {"n": value["n"] + 1}

    builder = GraphBuilder("g", allow_cycles=True, history=history).chain(start, count)
    builder.edge(count, count, when="structured['n'] < structured['upto']")
    graph = builder.edge(count, check, when="structured['n'] == structured['upto']").build()
    async with Executor(graph, ExecutorConfig(max_checkpoints_per_trace=2), checkpoint_storage) as executor:
        with pytest.raises(ExecutionError, match="no route"):
            await executor.execute(9, trace_id="t")
        broken.append(False)
        assert (await executor.resume_from_checkpoint("t")).value == "9 of 9"
    record = await checkpoint_storage.get_latest_checkpoint("g", "t")
    assert record is not None
    assert (record.message_count, len(record.messages)) == (kept, kept)
    assert [message.payload.value for message in record.messages][-1:] == ["9 of 9"][:kept]


# -- by hand ---------------------------------------------------------------------------------------------------


async def test_what_a_manager_did_is_durable_when_it_returns(tmp_path: Path) -> None:
    """Another store on the same database, as another process has it, sees it at once."""
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        manager = CheckpointManager(store)
        context = ExecutionContext(trace_id="t", graph_id="g")
        for number in range(1, 4):
            context.visit_node(f"node{number}")
            saved = await manager.save_checkpoint(context, f"node{number}", force=True)
            assert saved is not None
            found = await other.get(saved.id)
            assert found is not None
            assert found.state == saved.state
        assert await manager.delete_checkpoint("t@1")
        assert [record.id for record in await other.list()] == ["t@2", "t@0"]
        assert await manager.clear_checkpoints("g", "t") == 2
        assert await other.list() == []
