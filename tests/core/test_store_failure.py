"""A store that fails and is mended: the process that was executing goes on with its own trace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from tinyllm import (
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    SQLiteCheckpointStorage,
    StorageError,
    StorageFailed,
    StorageUnavailable,
    TraceOwned,
)
from tinyllm.actors import run
from tinyllm.actors.events import Event, StoreRecovered, StoreStalled, TraceStarted
from tinyllm.core import engine, trace
from tinyllm.storage.contract import Acquire, Acquired, CheckpointStorage, Outcome, Owner, Write
from tinyllm.storage.owners import this_process

pytestmark = pytest.mark.anyio

# In `sync` mode each node waits for the commit of the one before: what is durable when the store fails is certain.
SYNC = ExecutorConfig(durability="sync", debug_mutation=True)


class Breaking(CheckpointStorage):
    """What a full disk refuses, in front of a real store."""

    broken = False
    error: StorageError = StorageError("disk full")

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        if self.broken:
            raise self.error
        return await super().commit(writes)  # type: ignore[safe-super]

    def retire(self, owner: Owner) -> None:
        if self.broken:
            raise StorageError("disk full")
        super().retire(owner)  # type: ignore[safe-super]


class BreakingMemory(Breaking, InMemoryCheckpointStorage):
    pass


class BreakingSQLite(Breaking, SQLiteCheckpointStorage):
    pass


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Breaking]:
    made: Breaking = BreakingMemory() if request.param == "memory" else BreakingSQLite(tmp_path)
    await made.initialize()
    yield made
    await made.close()


def breaking(store: Breaking) -> tuple[Graph, list[str]]:
    """A graph whose second node breaks the store, the first time; and which nodes were called."""
    calls: list[str] = []

    async def first(value: Any) -> Any:
        calls.append("first")
        return value

    async def second(value: Any) -> Any:
        store.broken = "second" not in calls
        calls.append("second")
        return value

    async def third(value: Any) -> Any:
        calls.append("third")
        return value

    return GraphBuilder("g").chain(first, second, third).build(), calls


@pytest.mark.parametrize("mended", ["before the executor ends", "after it"])
@pytest.mark.parametrize("resume", [True, False])
async def test_the_next_executor_of_the_process_goes_on(store: Breaking, mended: str, resume: bool) -> None:
    graph, calls = breaking(store)
    async with Executor(graph, SYNC, store) as executor:
        with pytest.raises(StorageFailed, match="disk full") as caught:
            await executor.execute("task", trace_id="t")
        assert caught.value.step == 1
        store.broken = mended == "after it"
    store.broken = False
    heard: list[Event] = []
    async with Executor(graph, SYNC, store, on_event=heard.append) as executor:
        with anyio.fail_after(10):
            call = executor.resume_from_checkpoint("t") if resume else executor.execute("task", trace_id="t")
            assert (await call).status == "completed"
    assert heard[0] == TraceStarted("t", True, kept=1, again=0, lost=1, changes=(), waiting={"second": 1})
    assert calls == ["first", "second", "second", "third"]


@pytest.mark.parametrize("bare", [True, False])
async def test_the_same_executor_goes_on(store: Breaking, bare: bool) -> None:
    graph, calls = breaking(store)
    heard: list[Event] = []
    executor = Executor(graph, SYNC, store, on_event=heard.append)

    async def fail_and_go_on() -> None:
        with pytest.raises(StorageFailed, match="disk full"):
            await executor.execute("task", trace_id="t")
        store.broken = False
        with anyio.fail_after(10):
            assert (await executor.execute("task", trace_id="t")).status == "completed"

    if bare:
        await fail_and_go_on()
    else:
        async with executor:
            await fail_and_go_on()
    started = [event for event in heard if isinstance(event, TraceStarted)]
    assert started[1] == TraceStarted("t", True, kept=1, again=0, lost=1, changes=(), waiting={"second": 1})
    assert calls == ["first", "second", "second", "third"]


@pytest.mark.parametrize("changed", [True, False])
async def test_a_fork_that_cannot_be_read_is_let_go(
    store: Breaking, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, calls = breaking(store)
    calls.append("second")  # so that it breaks nothing
    async with Executor(graph, SYNC, store) as executor:
        await executor.execute("task", trace_id="t")
    accepted = attrs.evolve(graph, version="2", variables={"k": "append"}) if changed else graph
    load = store.load

    async def unreadable(trace_id: str, rev: int | None = None) -> Any:
        if trace_id == "f":
            raise StorageError("unreadable")
        return await load(trace_id, rev)

    async with Executor(accepted, SYNC, store) as executor:
        with monkeypatch.context() as patched:
            patched.setattr(store, "load", unreadable)
            with pytest.raises(StorageError, match="unreadable"):
                await executor.fork("t", at="second", new_trace_id="f", accept_graph_change=True)
        with anyio.fail_after(10):
            while (await owner_of(store, "f")) is not None:
                await anyio.lowlevel.checkpoint()
        async with Executor(accepted, SYNC, store) as other:
            response = await other.fork("t", at="second", new_trace_id="f", accept_graph_change=True)
        assert response.status == "completed"


async def owner_of(store: CheckpointStorage, trace_id: str) -> Owner | None:
    record = await store.trace(trace_id)
    assert record is not None
    return record.owner


async def test_stop_reaches_a_call_that_waits_for_an_owner_elsewhere(
    store: Breaking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "OWNER_POLL_SECONDS", 3600.0)
    graph, _ = breaking(store)
    async with Executor(graph, SYNC, store) as executor:
        with pytest.raises(StorageFailed):
            await executor.execute("task", trace_id="t")
        store.broken = False
    await taken_elsewhere(store, graph)
    executor = Executor(graph, SYNC, store)
    waiting = anyio.Event()
    look = store.load

    async def looked(trace_id: str, rev: int | None = None) -> Any:
        snapshot = await look(trace_id, rev)
        waiting.set()
        return snapshot

    monkeypatch.setattr(store, "load", looked)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:

            async def resume() -> None:
                with pytest.raises(TraceOwned, match="on elsewhere since"):
                    await executor.resume_from_checkpoint("t")

            tasks.start_soon(resume)
            await waiting.wait()
            executor.stop()
    await executor.close()


async def taken_elsewhere(store: CheckpointStorage, graph: Graph) -> None:
    """Another host, of which nothing can be seen from here, becomes the owner of `t`."""
    owner = attrs.evolve(this_process(), host="elsewhere", boot_id="another")
    record = await store.trace("t")
    assert record is not None
    store.renew(owner)
    write = Acquire(record.trace, "t", record.epoch, owner.id, graph.fingerprint, graph.definition, None)
    (outcome,) = await store.commit([write])
    assert isinstance(outcome, Acquired)


# -- a store that fails for a while ----------------------------------------------------------------------------

FULL = StorageUnavailable("/store", "the disk is full")


async def test_a_fault_that_passes_is_outlived_and_nothing_begins_meanwhile(store: Breaking) -> None:
    store.error = FULL
    graph, calls = breaking(store)
    heard: list[Event] = []
    refused = anyio.Event()

    async def execute_another() -> None:
        with pytest.raises(StorageUnavailable, match="the disk is full"):
            await executor.execute("task", trace_id="another")
        store.broken = False
        refused.set()

    def hear(event: Event) -> None:
        heard.append(event)
        if isinstance(event, StoreStalled):
            tasks.start_soon(execute_another)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, Executor(graph, SYNC, store, on_event=hear) as executor:
            assert (await executor.execute("task", trace_id="t")).status == "completed"
            await refused.wait()
    assert calls == ["first", "second", "third"]
    assert [event for event in heard if isinstance(event, StoreStalled | StoreRecovered)] == [
        StoreStalled("t", str(FULL)),
        StoreRecovered("t"),
    ]
    assert [step.step for step in await store.steps("t")] == [1, 2, 3]


@pytest.mark.parametrize("leave", ["cancel", "stop"])
async def test_who_leaves_has_deadlines_that_are_shorter_than_the_patience_with_a_store(
    store: Breaking, leave: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(engine, "SHUTDOWN_SECONDS", 0.05)
    store.error = FULL
    graph, calls = breaking(store)

    def hear(event: Event) -> None:
        if isinstance(event, StoreStalled):
            scope.cancel() if leave == "cancel" else executor.stop()

    with anyio.fail_after(10), anyio.CancelScope() as scope:
        async with Executor(graph, SYNC, store, on_event=hear) as executor:
            with pytest.raises(StorageFailed, match="the disk is full") if leave == "stop" else nullcontext():
                await executor.execute("task", trace_id="t")
    assert scope.cancelled_caught is (leave == "cancel")
    store.broken = False
    heard: list[Event] = []
    async with Executor(graph, SYNC, store, on_event=heard.append) as executor:
        assert (await executor.resume_from_checkpoint("t")).status == "completed"
    assert heard[0] == TraceStarted("t", True, kept=1, again=0, lost=1, changes=(), waiting={"second": 1})
    assert calls == ["first", "second", "second", "third"]
