"""What an executor cannot do without ends before its time: everybody hears of it, and the trace can go on."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.actors.stores import Noting
from tinyllm import Executor, ExecutorBroken, ExecutorConfig, Graph, GraphBuilder, TinyLLMError
from tinyllm.actors.node_executor import NodeExecutor
from tinyllm.actors.scheduler import CheckpointScheduler
from tinyllm.actors.writer import StorageWriter

pytestmark = pytest.mark.anyio

SYNC = ExecutorConfig(durability="sync", debug_mutation=True)


class Waiting:
    """A graph whose second node waits to be let go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = anyio.Event(), anyio.Event()

    def graph(self) -> Graph:
        async def first(value: Any) -> Any:
            return value

        async def second(value: Any) -> Any:
            self.begun.set()
            await self.go_on.wait()
            return value

        return GraphBuilder("g").chain(first, second).build()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("actor", ["command reader", "checkpoint scheduler", "storage writer"])
async def test_an_actor_that_is_cancelled_alone(actor: str) -> None:
    """By asyncio's own cancellation: trio has none."""
    store, waiting, told = Noting(), Waiting(), list[Any]()
    executor = Executor(waiting.graph(), SYNC, store)

    async def call() -> None:
        try:
            told.append((await executor.execute("task", trace_id="t")).status)
        except TinyLLMError as error:
            told.append(error)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as outside:
            with pytest.raises(ExecutorBroken, match=f"the {actor} of the executor ended before its time"):
                async with executor:
                    outside.start_soon(call)
                    await waiting.begun.wait()
                    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == actor)
                    task.cancel()
                    await anyio.sleep_forever()
        assert len(told) == 1
        waiting.go_on.set()
        async with Executor(waiting.graph(), SYNC, store) as other:
            assert (await other.execute("task", trace_id="t")).value == "task"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_run_that_is_cancelled_alone_takes_no_other_with_it() -> None:
    store, waiting = Noting(), Waiting()
    told: dict[str, str] = {}
    async with Executor(waiting.graph(), SYNC, store) as executor, anyio.create_task_group() as tasks:

        async def call(trace: str) -> None:
            told[trace] = (await executor.execute("task", trace_id=trace)).status

        tasks.start_soon(call, "t")
        tasks.start_soon(call, "u")
        await waiting.begun.wait()
        (run,) = (task for task in asyncio.all_tasks() if task.get_name() == "run t")
        run.cancel()
        await anyio.wait_all_tasks_blocked()
        waiting.go_on.set()
    assert told == {"t": "interrupted", "u": "completed"}


async def test_an_actor_that_simply_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the node executor does when one of its workers is cancelled: to its task group that is no error."""

    async def end(self: NodeExecutor) -> None:
        with self._inbox:
            await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(NodeExecutor, "run", end)
    with anyio.fail_after(10), pytest.raises(ExecutorBroken, match="the node executor of the executor ended"):
        await Executor(Waiting().graph(), SYNC, Noting()).execute("task")


@pytest.mark.parametrize(("actor", "name"), [(StorageWriter, "_tell_all"), (CheckpointScheduler, "_handle")])
async def test_a_fault_in_an_actor_is_told_with_its_cause(
    actor: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the block, and to a bare call."""

    def fault(*_: Any) -> Any:
        raise ZeroDivisionError

    waiting = Waiting()
    waiting.go_on.set()
    monkeypatch.setattr(actor, name, fault)
    with anyio.fail_after(10):
        with pytest.raises(ExecutorBroken, match="ZeroDivisionError") as caught:
            async with Executor(waiting.graph(), SYNC, Noting()) as executor:
                await executor.execute("task")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        with pytest.raises(ExecutorBroken, match="ZeroDivisionError"):
            await Executor(waiting.graph(), SYNC, Noting()).execute("task")
