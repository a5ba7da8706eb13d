"""Cancelled between any two steps of any task, an execution ends at once, leaves nothing behind, and can go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.torture.steps import after_each_step
from tinyllm import (
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    NodeContext,
    SQLiteCheckpointStorage,
)
from tinyllm.actors import run
from tinyllm.actors.events import Event, NodePaused, NodeStarted
from tinyllm.storage.contract import CheckpointStorage, Outcome, Release, Write

pytestmark = pytest.mark.anyio

DEBUG = ExecutorConfig(debug_mutation=True)


async def split(task: Any) -> Any:
    return [1, 2]


async def work(item: int) -> int:
    await anyio.lowlevel.checkpoint()
    return item * 10


async def collect(items: list[int]) -> list[int]:
    return items


def graph() -> Graph:
    return GraphBuilder("g").edge(split, work, for_each=True).edge(work, collect).node(collect, join="all").build()


# -- cancelling ------------------------------------------------------------------------------------------------

Cancelled = Callable[[Callable[[], Awaitable[None]], int], Awaitable[bool]]


async def by_scope(call: Callable[[], Awaitable[None]], step: int) -> bool:
    """Make `call`, and cancel the scope around it after `step` steps; whether it was still under way."""
    taken = 0
    scope = anyio.CancelScope()

    def count(_: bool) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            scope.cancel()

    async def host() -> None:
        with scope:
            await call()

    with after_each_step(count):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(host)
    return scope.cancelled_caught


async def natively(call: Callable[[], Awaitable[None]], step: int) -> bool:
    """The same, by asyncio's own cancellation, which comes through any shield."""
    taken = 0

    def count(_: bool) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            task.cancel()

    async def host() -> None:
        await call()

    with after_each_step(count):
        task = asyncio.create_task(host())
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return task.cancelled()


def leases() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lease ")]


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CheckpointStorage]:
    made = InMemoryCheckpointStorage() if request.param == "memory" else SQLiteCheckpointStorage(tmp_path)
    await made.initialize()
    yield made
    await made.close()


@pytest.mark.parametrize("mode", ["bare", "entered", "shared"])
@pytest.mark.parametrize("cancelled", [by_scope, natively])
async def test_cancelled_after_any_step(
    cancelled: Cancelled,
    mode: str,
    store: CheckpointStorage,
    anyio_backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if cancelled is natively and anyio_backend == "trio":
        pytest.skip("trio has no cancellation but scopes")
    monkeypatch.setattr(run, "GRACE_SECONDS", 60.0)  # who waits for what never comes is not saved by it here
    async with Executor(graph(), DEBUG, store) as other:

        async def call() -> None:
            executor = other if mode == "shared" else Executor(graph(), DEBUG, store)
            if mode == "entered":
                async with executor:
                    await executor.execute("task", trace_id=trace_id)
            else:
                await executor.execute("task", trace_id=trace_id)

        # On a disk the two kinds of actors of one's own share the steps: a bare call's odd ones, a block's even ones.
        stride = 1 if mode == "shared" or isinstance(store, InMemoryCheckpointStorage) else 2
        step, under_way = 0 if stride == 1 or mode == "entered" else -1, True
        await anyio.wait_all_tasks_blocked()  # each node executor has its worker
        tasks_before = len(anyio.get_running_tasks())
        while under_way:
            step += stride
            trace_id = f"t{step}"
            with anyio.fail_after(10):
                under_way = await cancelled(call, step)
            assert len(anyio.get_running_tasks()) == tasks_before, f"after step {step}"
            assert len(leases()) == 1, f"after step {step}"
            record = await store.trace(trace_id)
            assert record is None or record.owner is None, f"after step {step}"
            response = await other.execute("task", trace_id=trace_id)
            assert (response.status, response.value) == ("completed", [10, 20]), f"after step {step}"
    assert step > 10


@pytest.mark.parametrize("verb", ["resume", "fork"])
@pytest.mark.parametrize("cancelled", [by_scope, natively])
async def test_a_resume_or_fork_cancelled_after_any_step(
    cancelled: Cancelled, verb: str, store: CheckpointStorage, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an executor that lives on: what was taken over must not stay with it, with nobody to execute it."""
    if cancelled is natively and anyio_backend == "trio":
        pytest.skip("trio has no cancellation but scopes")
    monkeypatch.setattr(run, "GRACE_SECONDS", 60.0)
    async with Executor(graph(), DEBUG, store) as executor, Executor(graph(), DEBUG, store) as other:
        await executor.execute("task", trace_id="parent")

        async def call() -> None:
            if verb == "resume":
                await executor.resume_from_checkpoint(trace_id)
            else:
                await executor.fork("parent", at="work", new_trace_id=trace_id)

        step, under_way = 0, True
        while under_way:
            step += 1
            trace_id = f"t{step}"
            if verb == "resume":
                await interrupted(store, trace_id)
            with anyio.fail_after(10):
                under_way = await cancelled(call, step)
            record = await store.trace(trace_id)
            assert record is None or record.owner is None, f"after step {step}"
            if record is not None:
                response = await other.resume_from_checkpoint(trace_id)
                assert (response.status, response.value) == ("completed", [10, 20]), f"after step {step}"
    assert step > 10


async def interrupted(store: CheckpointStorage, trace_id: str) -> None:
    """A trace of `graph()` that was stopped after its first node."""

    def stop(event: Event) -> None:
        if isinstance(event, NodeStarted):
            executor.stop()

    executor = Executor(graph(), DEBUG, store, on_event=stop)
    assert (await executor.execute("task", trace_id=trace_id)).status == "interrupted"


# -- what comes while a run leaves -----------------------------------------------------------------------------


class Releasing(InMemoryCheckpointStorage):
    """Lets nobody let go of a trace before `go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = anyio.Event(), anyio.Event()

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        if any(isinstance(write, Release) for write in writes):
            self.begun.set()
            await self.go_on.wait()
        return await super().commit(writes)


async def test_an_answer_that_comes_while_a_trace_is_let_go_of_is_for_its_next_owner() -> None:
    async def asks(value: Any, context: NodeContext) -> Any:
        return await context.ask("go on?", name="q")

    async def waits(value: Any) -> Any:
        await anyio.sleep_forever()

    store = Releasing()
    graph = GraphBuilder("g").edge(split, asks).edge(split, waits).build()
    asked = anyio.Event()

    def hear(event: Event) -> None:
        if isinstance(event, NodePaused):
            asked.set()

    async with Executor(graph, DEBUG, store, on_event=hear) as executor, anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def call() -> None:
            with scope:
                await executor.execute("task", trace_id="t")

        tasks.start_soon(call)
        await asked.wait()
        scope.cancel()
        await store.begun.wait()
        await executor.answer("t", "yes")
        await anyio.wait_all_tasks_blocked()
        store.go_on.set()
    assert [command.kind for command in await store.commands(trace=1)] in ([], ["answer"])


async def test_cancelled_twice_a_call_still_ends_after_its_run(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio has no cancellation but scopes")
    runs, most = 0, 0

    async def stubborn(value: Any) -> Any:
        nonlocal runs, most
        runs += 1
        most = max(most, runs)
        with anyio.CancelScope(shield=True):
            begun.set()
            await go_on.wait()
        runs -= 1
        return value

    begun, go_on = anyio.Event(), anyio.Event()
    async with Executor(GraphBuilder("g").node(stubborn).build(), DEBUG, InMemoryCheckpointStorage()) as executor:
        call = asyncio.create_task(executor.execute("task", trace_id="t"))
        await begun.wait()
        for _ in range(3):
            call.cancel()
            await anyio.wait_all_tasks_blocked()
            assert not call.done(), "its run still goes on"
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await executor.execute("task", trace_id="t")).value == "task"
    assert most == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_scope_around_tasks_of_asyncio_ends_while_the_store_is_slow() -> None:
    """anyio cancels such tasks in every turn of the loop, and knows its own cancellations by what they say."""

    async def echo(text: str) -> str:
        return text

    class Slow(InMemoryCheckpointStorage):
        async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            return await super().commit(writes)

    graph = GraphBuilder("g").node(echo).build()
    storage = Slow()
    async with Executor(graph, checkpoint_storage=storage) as executor:
        with anyio.CancelScope() as scope:
            calls = asyncio.gather(executor.execute("x", trace_id="t"), executor.execute("x", trace_id="u"))
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
            await calls
        assert scope.cancelled_caught
    assert [record.owner for record in await storage.traces()] == [None, None]
