"""How executors begin and end: bare ones and shared ones, stores given and opened, stops and cancellations."""

from __future__ import annotations

import gc
import logging
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.actors.graphs import shape
from tests.actors.stores import Noting, finished
from tinyllm import (
    ConfigError,
    ExecutionError,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    SQLiteCheckpointStorage,
    StorageConfig,
    StorageError,
    StorageFailed,
    TaskResponse,
)
from tinyllm.actors.events import Event, NodeFinished, NodeStarted
from tinyllm.actors.invoke import THREADS
from tinyllm.core.store import opened_storage
from tinyllm.errors import CheckpointDamaged
from tinyllm.storage.contract import Admit, Append, Release

pytestmark = pytest.mark.anyio

DEBUG = ExecutorConfig(debug_mutation=True)


def echo(value: Any) -> Any:
    return value


async def in_loop(value: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return value


async def endless(value: Any) -> Any:
    await anyio.sleep_forever()


def chain(*functions: Any) -> Graph:
    builder = GraphBuilder("g")
    for index, function in enumerate(functions):
        builder.node(function, id="abcdefgh"[index])
    return builder.chain(*"abcdefgh"[: len(functions)]).build() if len(functions) > 1 else builder.build()


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(("lease", "tinyllm"))}


# -- whose store -----------------------------------------------------------------------------------------------


async def test_a_storage_that_is_given_is_initialized_and_not_closed() -> None:
    store = Noting()
    async with Executor(chain(echo), DEBUG, store) as executor:
        await executor.execute("task", trace_id="t")
    await executor.close()
    assert not store.closed
    assert await finished(store, "t") == ["a"]


async def test_a_storage_that_nobody_has_opened_is_opened_and_left_open(tmp_path: Path) -> None:
    store = SQLiteCheckpointStorage(tmp_path)
    executor = Executor(chain(echo), DEBUG, store)
    await executor.execute("task", trace_id="t")
    await executor.close()
    assert await finished(store, "t") == ["a"]
    await store.close()


@pytest.mark.parametrize("as_text", [True, False])
async def test_a_path_is_opened_and_closed_with_the_executor(as_text: bool, tmp_path: Path) -> None:
    place = tmp_path / "store"
    async with Executor(chain(echo), DEBUG, str(place) if as_text else place) as executor:
        await executor.execute("task", trace_id="t")
        assert any("tinyllm writer" in name for name in threads())
    assert not any("tinyllm writer" in name for name in threads())
    again = SQLiteCheckpointStorage(StorageConfig(sqlite_path=str(place)))
    await again.initialize()
    assert await finished(again, "t") == ["a"]
    await again.close()


async def test_a_bare_executor_keeps_its_store_open_until_it_is_closed(tmp_path: Path) -> None:
    executor = Executor(chain(echo), DEBUG, tmp_path / "store")
    assert (await executor.execute("task", trace_id="t")).status == "completed"
    assert any("tinyllm writer" in name for name in threads())
    assert (await executor.resume_from_checkpoint("t")).value == "task"
    await executor.close()
    await executor.close()
    assert not any("tinyllm writer" in name for name in threads())
    assert (await executor.execute("task", trace_id="t")).value == "task", "it opens the store again"
    await executor.close()


async def test_calls_of_a_bare_executor_at_once_share_one_store(tmp_path: Path) -> None:
    executor = Executor(chain(in_loop), DEBUG, tmp_path / "store")
    outcomes: list[Any] = []

    async def execute(number: int) -> None:
        outcomes.append((await executor.execute(number)).value)

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(execute, number)
    assert sorted(outcomes) == [0, 1, 2, 3]
    await executor.close()
    gc.collect()  # a store that was lost would be a ResourceWarning
    assert not any("tinyllm writer" in name for name in threads())


async def test_a_path_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    executor = Executor(chain(echo), DEBUG, tmp_path / "file")
    with pytest.raises(StorageError, match="not accessible"):
        await executor.execute("task")
    with pytest.raises(StorageError, match="not accessible"):
        async with executor:
            pytest.fail("it was entered")
    await executor.close()


async def test_two_executors_on_one_store_at_once() -> None:
    store = Noting()
    async with (
        Executor(chain(in_loop), DEBUG, store) as first,
        Executor(chain(in_loop), DEBUG, store) as second,
        anyio.create_task_group() as tasks,
    ):
        for number in range(10):
            tasks.start_soon(lambda n=number: first.execute(n, trace_id=f"f{n}"))  # type: ignore[misc]
            tasks.start_soon(lambda n=number: second.execute(n, trace_id=f"s{n}"))  # type: ignore[misc]
    records = await store.traces()
    assert len(records) == 20
    assert {record.status for record in records} == {"completed"}
    assert len(store.retired) == 2


# -- from plain scripts ----------------------------------------------------------------------------------------


def test_run_sync_in_a_script(tmp_path: Path) -> None:
    executor = Executor(chain(echo), DEBUG, tmp_path / "store")
    first = executor.run_sync("task", trace_id="t")
    assert (first.status, first.value) == ("completed", "task")
    assert executor.run_sync("task", trace_id="t").nodes_executed == 1
    assert threads() == set()


def test_run_sync_raises_what_execute_would() -> None:
    def boom(value: Any) -> Any:
        raise ValueError("boom")

    with pytest.raises(ExecutionError, match="boom"):
        Executor(chain(boom), DEBUG).run_sync("task")


async def test_run_sync_in_a_running_loop() -> None:
    assert Executor(chain(in_loop), DEBUG).run_sync("task").value == "task"

    async def boom(value: Any) -> Any:
        raise ValueError("boom")

    with pytest.raises(ExecutionError, match="boom"):
        Executor(chain(boom), DEBUG).run_sync("task")


async def test_run_sync_beside_the_shared_actors_of_another_loop(tmp_path: Path) -> None:
    """It must neither wait for actors whose loop it blocks, nor close their store."""
    async with Executor(chain(in_loop), DEBUG, tmp_path / "store") as executor:
        assert (await executor.execute("one", trace_id="t")).value == "one"
        assert executor.run_sync("two", trace_id="u").value == "two"
        assert (await executor.execute("three", trace_id="v")).value == "three"


# -- errors ----------------------------------------------------------------------------------------------------


class Odd(BaseException):
    """As what a test framework raises to end a test."""


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3), KeyError("k"), Odd()])
async def test_an_error_raised_in_the_block_comes_out_as_it_is(error: BaseException, stored: bool) -> None:
    with pytest.raises(type(error)) as caught:
        async with Executor(chain(echo), DEBUG, InMemoryCheckpointStorage() if stored else None):
            raise error
    assert caught.value is error


async def test_an_execution_error_comes_out_as_it_is() -> None:
    def boom(value: Any) -> Any:
        raise ValueError("boom")

    with pytest.raises(ExecutionError):
        async with Executor(chain(boom), DEBUG, InMemoryCheckpointStorage()) as executor:
            await executor.execute("task")
    with pytest.raises(ExecutionError):
        await Executor(chain(boom), DEBUG, InMemoryCheckpointStorage()).execute("task")


async def test_a_graph_that_cannot_be_served_is_told_and_leaves_nothing_behind() -> None:
    def odd(value: 5) -> Any:  # type: ignore[valid-type]
        return value

    store = Noting()
    with pytest.raises(TypeError):
        async with Executor(shape("a -> b", functions={"a": echo, "b": odd}), DEBUG, store):
            pytest.fail("it was entered")
    assert len(store.retired) == 1
    gc.collect()


async def test_a_high_water_mark_that_cannot_be_kept_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Full(Noting):
        def high_water(self, owner: Any, trace: int, epoch: int) -> Any:
            raise StorageError("no space left")

    with caplog.at_level(logging.WARNING):
        async with Executor(chain(echo), DEBUG, Full()) as executor:
            assert (await executor.execute("task")).status == "completed"
    assert "no space left" in caplog.text


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"checkpoint_interval_ms": -1}, "at least 0"),
        ({"checkpoint_interval_ms": 1.5}, "whole number"),
        ({"checkpoint_interval_ms": True}, "whole number"),
        ({"max_checkpoints_per_trace": 0}, "at least 1"),
        ({"checkpoint_after_each_node": 1}, "True or False"),
        ({"debug_mutation": "no"}, "True or False"),
        ({"durability": "fast"}, "'async', 'sync' or 'exit'"),
    ],
)
def test_settings_out_of_their_range_are_refused_with_the_range(settings: Any, allowed: str) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=allowed) as caught:
        ExecutorConfig(**settings)
    assert caught.value.setting == name


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="max_checkpoints"):
        ExecutorConfig(max_checkpoints=3)  # type: ignore[call-arg]


# -- the end ---------------------------------------------------------------------------------------------------


async def test_leaving_the_block_lets_what_runs_end_and_makes_it_durable() -> None:
    store, begun, go_on = Noting(), anyio.Event(), anyio.Event()
    responses: list[TaskResponse] = []

    async def work(value: Any) -> Any:
        begun.set()
        await go_on.wait()
        return value

    async with (
        anyio.create_task_group() as tasks,
        Executor(chain(in_loop, work, in_loop), DEBUG, store) as executor,
    ):

        async def execute() -> None:
            responses.append(await executor.execute("task", trace_id="t"))

        tasks.start_soon(execute)
        await begun.wait()
        tasks.start_soon(_set_later, go_on)
    assert [response.status for response in responses] == ["interrupted"]
    assert await finished(store, "t") == ["a", "b"]
    assert isinstance(store.batches[-1][-1], Release)
    assert len(store.retired) == 1


async def _set_later(event: anyio.Event) -> None:
    await anyio.wait_all_tasks_blocked()
    event.set()


async def test_a_call_that_has_only_just_begun_is_waited_for_too() -> None:
    store = Noting()
    responses: list[TaskResponse] = []

    async with anyio.create_task_group() as tasks, Executor(chain(in_loop, in_loop), DEBUG, store) as executor:
        store.gate = anyio.Event()

        async def execute() -> None:
            responses.append(await executor.execute("task", trace_id="t"))

        tasks.start_soon(execute)
        while not any(isinstance(write, Admit) for batch in store.batches for write in batch):
            await anyio.lowlevel.checkpoint()
        tasks.start_soon(lambda: _set_later(store.gate))  # type: ignore[arg-type]
    (response,) = responses
    assert (response.status, response.nodes_executed) == ("interrupted", 0)
    record = await store.trace("t")
    assert record is not None
    assert (record.status, record.owner) == ("interrupted", None)


async def test_stop_reaches_a_call_that_is_still_being_admitted() -> None:
    store = Noting()
    heard: list[Event] = []
    async with Executor(chain(in_loop, in_loop), DEBUG, store, on_event=heard.append) as executor:
        store.gate = anyio.Event()
        responses: list[TaskResponse] = []
        async with anyio.create_task_group() as tasks:

            async def execute() -> None:
                responses.append(await executor.execute("task", trace_id="t"))

            tasks.start_soon(execute)
            await anyio.wait_all_tasks_blocked()
            for _ in range(50):  # a person may press Ctrl-C more than once
                executor.stop()
            store.gate.set()
            store.gate = None
        assert responses[0].status == "interrupted"
        assert not any(isinstance(event, NodeStarted) for event in heard)
        assert (await executor.execute("task", trace_id="t")).status == "completed", "a stop is for the calls of then"


async def test_what_waits_for_a_place_at_its_node_does_not_begin_after_a_stop() -> None:
    begun: list[str] = []
    go_on = anyio.Event()

    async def one_at_a_time(value: str) -> str:
        begun.append(value)
        await go_on.wait()
        return value

    built = GraphBuilder("g").node(one_at_a_time, max_concurrency=1).build()
    store = InMemoryCheckpointStorage()
    told: list[str] = []
    async with Executor(built, DEBUG, store) as executor:
        async with anyio.create_task_group() as tasks:

            async def execute(task: str) -> None:
                told.append((await executor.execute(task, trace_id=task)).status)

            for task in ("a", "b", "c"):
                tasks.start_soon(execute, task)
            await anyio.wait_all_tasks_blocked()
            assert len(begun) == 1
            executor.stop()
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        assert sorted(told) == ["completed", "interrupted", "interrupted"]
        assert len(begun) == 1
        for task in ("a", "b", "c"):
            assert (await executor.execute(task, trace_id=task)).status == "completed"
        assert sorted(begun) == ["a", "b", "c"]


async def test_stop_many_times_while_a_node_runs() -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def work(value: Any) -> Any:
        begun.set()
        await go_on.wait()

    told: list[str] = []

    async def execute(executor: Executor) -> None:
        told.append((await executor.execute("task")).status)

    async with Executor(chain(work, in_loop), DEBUG) as executor, anyio.create_task_group() as tasks:
        tasks.start_soon(execute, executor)
        await begun.wait()
        for _ in range(500):
            executor.stop()
        go_on.set()
    assert told == ["interrupted"]


async def test_stop_of_a_bare_executor_stops_its_calls() -> None:
    store, begun, go_on = Noting(), anyio.Event(), anyio.Event()
    responses: list[TaskResponse] = []

    async def work(value: Any) -> Any:
        begun.set()
        await go_on.wait()

    executor = Executor(chain(work, in_loop), DEBUG, store)
    async with anyio.create_task_group() as tasks:

        async def execute() -> None:
            responses.append(await executor.execute("task", trace_id="t"))

        tasks.start_soon(execute)
        await begun.wait()
        executor.stop()
        go_on.set()
    assert responses[0].status == "interrupted"
    assert (await executor.resume_from_checkpoint("t")).status == "completed"


async def test_a_close_that_waits_for_a_call_ends_when_the_call_is_cancelled() -> None:
    begun = anyio.Event()

    async def work(value: Any) -> Any:
        begun.set()
        await anyio.sleep_forever()

    executor = Executor(chain(work), DEBUG)
    closed = anyio.Event()

    async def close() -> None:
        await executor.close()
        closed.set()

    async with anyio.create_task_group() as tasks, anyio.create_task_group() as calls:
        calls.start_soon(executor.execute, "task")
        await begun.wait()
        tasks.start_soon(close)
        await anyio.wait_all_tasks_blocked()
        assert not closed.is_set()
        calls.cancel_scope.cancel()
    assert closed.is_set()


async def test_a_call_that_came_to_nothing_leaves_the_context_of_the_one_before() -> None:
    store = Noting()
    async with Executor(chain(in_loop), DEBUG, store) as executor:
        store.failure = lambda writes: StorageError("no") if isinstance(writes[0], Admit) else None
        with pytest.raises(StorageError):
            await executor.execute("task")
        assert executor.context is None


@pytest.mark.parametrize("bare", [True, False])
async def test_cancelling_the_host_leaves_the_trace_interrupted_and_no_thread_behind(bare: bool) -> None:
    store, begun = Noting(), anyio.Event()

    async def work(value: Any) -> Any:
        begun.set()
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await begun.wait()
                scope.cancel()

            tasks.start_soon(cancel)
            executor = Executor(chain(in_loop, work), DEBUG, store)
            if bare:
                await executor.execute("task", trace_id="t")
            else:
                async with executor:
                    await executor.execute("task", trace_id="t")
            pytest.fail("the cancellation was swallowed")
    assert scope.cancelled_caught
    record = await store.trace("t")
    assert record is not None
    assert (record.status, record.owner) == ("interrupted", None)
    assert await finished(store, "t") == ["a"]
    assert len(store.retired) == 1


async def test_cancelled_at_any_turn_an_executor_leaves_nothing_behind(tmp_path: Path) -> None:
    """From before it has begun to after it has ended: no unclosed stream, no hung shutdown, no trace that is stuck."""
    for turns in range(0, 60, 2):
        store = Noting()
        with anyio.CancelScope() as scope, anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:

                async def cancel(scope: anyio.CancelScope = scope, turns: int = turns) -> None:
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()

                tasks.start_soon(cancel)
                async with Executor(chain(in_loop, in_loop, in_loop), DEBUG, store) as executor:
                    await executor.execute("task", trace_id="t")
        record = await store.trace("t")
        if record is not None:
            assert record.status in ("interrupted", "completed")
            assert record.owner is None
    gc.collect()


async def test_a_call_cancelled_at_any_turn_can_be_made_again_in_the_same_executor() -> None:
    """Above all while it is being admitted: the trace must not stay ours, with nobody to run it."""
    store = Noting()
    async with Executor(chain(in_loop, in_loop), DEBUG, store) as executor:
        for turns in range(40):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def cancel(scope: anyio.CancelScope = scope, turns: int = turns) -> None:
                        for _ in range(turns):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()

                    tasks.start_soon(cancel)
                    await executor.execute("task", trace_id=f"t{turns}")
            record = await store.trace(f"t{turns}")
            assert record is None or record.owner is None
            assert (await executor.execute("task", trace_id=f"t{turns}")).status == "completed"


async def test_after_the_store_failed_the_same_executor_can_go_on_with_the_trace() -> None:
    store = Noting()
    store.failure = lambda writes: StorageError("full") if any(not isinstance(w, Admit) for w in writes) else None
    async with Executor(chain(in_loop, in_loop), DEBUG, store) as executor:
        with pytest.raises(StorageFailed, match="full"):
            await executor.execute("task", trace_id="t")
        store.failure = lambda writes: None
        assert (await executor.resume_from_checkpoint("t")).status == "completed"


async def test_a_failing_node_takes_nothing_with_it_that_was_done() -> None:
    store, heard = Noting(), list[Event]()

    async def split(value: Any) -> Any:
        return list(range(301))

    async def work(value: Any) -> Any:
        if value == 300:
            raise ValueError("boom")
        return value

    graph = GraphBuilder("g").edge(split, work, for_each=True).build()
    with pytest.raises(ExecutionError):
        async with Executor(graph, DEBUG, store, on_event=heard.append) as executor:
            await executor.execute("task", trace_id="t")
    done = sum(isinstance(event, NodeFinished) and event.node_id == "work" for event in heard)
    assert done == 300
    assert (await finished(store, "t")).count("work") == 300


async def test_a_plain_function_has_more_threads_for_many_traces_than_for_one() -> None:
    together = threading.Barrier(THREADS, timeout=20)
    met: set[int] = set()

    def meet(value: Any) -> Any:
        together.wait()  # raises unless all are there at once
        met.add(threading.get_ident())

    async with Executor(chain(meet), DEBUG) as executor, anyio.create_task_group() as tasks:
        for number in range(THREADS):
            tasks.start_soon(executor.execute, number)
    assert len(met) == THREADS


async def test_actors_end_in_order() -> None:
    """Runs, then the writer behind them, then the lease."""
    order: list[str] = []
    begun = anyio.Event()
    started: set[int] = set()

    async def work(value: Any) -> Any:
        started.add(value)
        if started >= {0, 1, 2}:
            begun.set()
        await anyio.lowlevel.checkpoint()

    class Ordered(Noting):
        async def commit(self, writes: Any) -> Any:
            order.extend(type(write).__name__ for write in writes if isinstance(write, Append | Release))
            return await super().commit(writes)

        def retire(self, owner: Any) -> None:
            order.append("retired")
            super().retire(owner)

    async with anyio.create_task_group() as tasks, Executor(chain(work, in_loop), DEBUG, Ordered()) as executor:
        for number in range(3):
            tasks.start_soon(executor.execute, number)
        await begun.wait()
    assert order.count("Release") <= 3
    assert order.count("Append") >= 3
    assert order.index("retired") == len(order) - 1


async def test_a_trace_that_comes_to_nothing_as_its_executor_ends_does_not_trouble_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def node(_: str) -> None: ...

    def no_sense(*_: Any, **__: Any) -> None:
        raise LookupError

    executor = Executor(GraphBuilder("g").node(node).build(), checkpoint_storage=tmp_path)
    await executor.execute("x", trace_id="t")
    monkeypatch.setattr("tinyllm.actors.plan.Plan.restore", no_sense)
    with pytest.raises(CheckpointDamaged, match=r"its frontier makes no sense \(LookupError\)") as caught:
        await executor.fork("t", at=0, new_trace_id="fork")
    assert not getattr(caught.value, "__notes__", ())
    await executor.close()
    async with opened_storage(tmp_path) as storage:
        record = await storage.trace("fork")
        assert record is not None
        assert record.owner is None
