"""`executor.context`: what the last trace has come to, with and without a store."""

from __future__ import annotations

from typing import Any

import pytest

from tinyllm import (
    CheckpointManager,
    CheckpointStorage,
    ExecutionContext,
    ExecutionError,
    Executor,
    Graph,
    GraphBuilder,
    NothingToRun,
    Result,
)

pytestmark = pytest.mark.anyio


def graph(history: str | None = None) -> Graph:
    async def first(task: str, context: Any) -> Any:
        context.add_tokens(5, 7)
        return Result(f"{task}!", set={"seen": [task]})

    async def second(value: str) -> str:
        if value.startswith("bad"):
            raise ValueError(value)
        return value.upper()

    return GraphBuilder("g", history=history).chain(first, second).build()


@pytest.mark.parametrize("recorded", [True, False])
async def test_the_context_of_the_last_trace(store: CheckpointStorage, recorded: bool) -> None:
    async with Executor(graph(), checkpoint_storage=store if recorded else None) as executor:
        assert executor.context is None
        await executor.execute("x", trace_id="t")
        context = executor.context
        assert context is not None
        assert (context.trace_id, context.graph_id, context.current_node) == ("t", "g", "second")
        assert list(context.visited_nodes) == ["first", "second"]
        assert context.variables == {"seen": ["x"]}
        assert [message.payload.content for message in context.messages] == ["x", "x!", "X!"]
        assert [message.source_node for message in context.messages] == ["", "first", "second"]
        assert (context.step_count, context.total_tokens_in, context.total_tokens_out) == (2, 5, 7)
        assert executor._context == context


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_failed_trace_has_a_context_too(store: CheckpointStorage, recorded: bool) -> None:
    async with Executor(graph(), checkpoint_storage=store if recorded else None) as executor:
        with pytest.raises(ExecutionError):
            await executor.execute("bad", trace_id="t")
        assert executor.context is not None
        assert list(executor.context.visited_nodes) == ["first"]


@pytest.mark.parametrize(("history", "kept"), [("none", []), ("window(2)", ["x!", "X!"]), ("all", ["x", "x!", "X!"])])
@pytest.mark.parametrize("recorded", [True, False])
async def test_the_history_policy_says_which_messages_it_has(
    store: CheckpointStorage, recorded: bool, history: str, kept: list[str]
) -> None:
    async with Executor(graph(history), checkpoint_storage=store if recorded else None) as executor:
        assert (await executor.execute("x")).value == "X!"
        assert executor.context is not None
        assert [message.payload.content for message in executor.context.messages] == kept


async def test_a_trace_that_was_saved_by_hand_has_nothing_to_run(store: CheckpointStorage) -> None:
    manager = CheckpointManager(store)
    await manager.save_checkpoint(ExecutionContext(trace_id="t", graph_id="g"), "node1", force=True)
    async with Executor(graph(), checkpoint_storage=store) as executor:
        for call in (
            executor.resume_from_checkpoint("t"),
            executor.execute("x", trace_id="t"),
            executor.execute("x", resume_trace_id="t"),
            executor.fork("t", at=0),
        ):
            with pytest.raises(NothingToRun, match="saved by hand"):
                await call
