"""What a node does outside must rest on nothing that a crash could undo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from tinyllm import Executor, ExecutorConfig, GraphBuilder, InMemoryCheckpointStorage, Result
from tinyllm.storage.contract import Append, Outcome, Write

pytestmark = pytest.mark.anyio

DEBUG = ExecutorConfig(debug_mutation=True)


class Held(InMemoryCheckpointStorage):
    """The commit of a variable waits until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = anyio.Event()
        self.let_through = anyio.Event()

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        if any(isinstance(write, Append) and write.delta.variables for write in writes):
            self.reached.set()
            with anyio.CancelScope(shield=True):
                await self.let_through.wait()
        return await super().commit(writes)


async def test_a_node_with_effects_sees_only_variables_that_are_durable() -> None:
    store = Held()
    sending = anyio.Event()
    seen: list[tuple[str, Any, bool]] = []

    async def split(task: Any) -> Any:
        return [1, 2]

    async def decide(task: Any) -> Any:
        await sending.wait()  # or its variable may be in one commit with what planned the senders, who then never start
        return Result(task, set={"choice": "mine"})

    async def look(name: str, context: Any) -> None:
        durable = "choice" in (await store.load("t")).variables
        seen.append((name, context.variables.get("choice"), durable))

    async def send(item: int, context: Any) -> Any:
        if item == 1:  # the second, planned before the variable was set, starts between that and its commit
            sending.set()
            await store.reached.wait()
        await look(f"send {item}", context)
        if item == 2:
            store.let_through.set()
        return item

    async def publish(item: Any, context: Any) -> Any:
        await look("publish", context)
        return item

    graph = (
        GraphBuilder("g")
        .edge(split, decide)
        .edge(split, send, for_each=True)
        .edge(decide, publish)
        .node(send, effects=True, max_concurrency=1)
        .node(publish, effects=True)
        .build()
    )
    async with Executor(graph, DEBUG, store) as executor:
        with anyio.fail_after(10):
            assert (await executor.execute("task", trace_id="t")).status == "completed"
    assert seen == [("send 1", None, False), ("send 2", None, False), ("publish", "mine", True)]


async def test_a_node_without_effects_need_not_wait_for_what_it_sees() -> None:
    store = Held()
    seen: list[Any] = []

    async def decide(task: Any) -> Any:
        return Result(task, set={"choice": "mine"})

    async def read(task: Any, context: Any) -> Any:
        await store.reached.wait()
        seen.append(context.variables["choice"])
        store.let_through.set()
        return task

    async with Executor(GraphBuilder("g").chain(decide, read).build(), DEBUG, store) as executor:
        with anyio.fail_after(10):
            assert (await executor.execute("task")).status == "completed"
    assert seen == ["mine"]
