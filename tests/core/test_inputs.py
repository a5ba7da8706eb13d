"""What a node, a join, a variable and a trace id are given: always the same, or a refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tinyllm import (
    ExecutionError,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    MessagePayload,
    Result,
    Send,
    SQLiteCheckpointStorage,
    TraceMismatch,
    TraceNotFound,
)
from tinyllm.graph.values import MAX_BYTES
from tinyllm.storage.contract import CheckpointStorage

pytestmark = pytest.mark.anyio

DEBUG = ExecutorConfig(debug_mutation=True)


async def echo(value: Any) -> Any:
    return value


async def read(value: Any, context: Any) -> Any:
    return context.variables.get("k")


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CheckpointStorage]:
    made = InMemoryCheckpointStorage() if request.param == "memory" else SQLiteCheckpointStorage(tmp_path)
    await made.initialize()
    yield made
    await made.close()


# -- the same id is the same trace -----------------------------------------------------------------------------


async def test_an_id_with_other_variables_is_refused(store: CheckpointStorage) -> None:
    async with Executor(GraphBuilder("g").chain(echo, read).build(), DEBUG, store) as executor:
        assert (await executor.execute("task", trace_id="t", variables={"k": 1, "l": [2]})).value == 1
        assert (await executor.execute("task", trace_id="t", variables={"l": [2], "k": 1})).value == 1
        for other in ({"k": 2, "l": [2]}, {"k": 1}, {"k": 1, "l": [2], "m": 3}, {"k": True, "l": [2]}, None):
            with pytest.raises(TraceMismatch, match="initial variables"):
                await executor.execute("task", trace_id="t", variables=other)
        assert (await executor.resume_from_checkpoint("t")).value == 1


async def test_a_fork_from_another_point_or_with_other_variables_is_refused(store: CheckpointStorage) -> None:
    async with Executor(GraphBuilder("g").chain(echo, read).build(), DEBUG, store) as executor:
        await executor.execute("task", trace_id="t", variables={"k": 1})
        for _ in range(2):
            assert (await executor.fork("t", at="read", set={"k": 5}, new_trace_id="f")).value == 5
        with pytest.raises(TraceMismatch, match="point to fork from"):
            await executor.fork("t", at="echo", set={"k": 5}, new_trace_id="f")
        for other in ({"k": 6}, {"k": 5, "l": 1}, {"l": 1}, None):
            with pytest.raises(TraceMismatch, match="set of variables"):
                await executor.fork("t", at="read", set=other, new_trace_id="f")


async def test_the_beginning_of_an_id_names_no_trace(store: CheckpointStorage) -> None:
    async with Executor(GraphBuilder("g").chain(echo, read).build(), DEBUG, store) as executor:
        await executor.execute("task", trace_id="job-10", variables={"k": 10})
        with pytest.raises(TraceNotFound, match=r"'job-1' .*did you mean job-10\?"):
            await executor.resume_from_checkpoint("job-1")
        with pytest.raises(TraceNotFound):
            await executor.fork("job-1", at="read")
        assert (await executor.execute("task", trace_id="job-1", variables={"k": 1})).value == 1
        assert (await executor.resume_from_checkpoint("job-1")).value == 1
        assert (await executor.resume_from_checkpoint("job-10")).value == 10


# -- joins -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("sends", [True, False])
async def test_a_join_behind_a_fan_out_of_any_size_gets_a_list(count: int, sends: bool) -> None:
    async def spread(number: int) -> Any:
        return [Send("echo", item) if sends else item for item in range(number)]

    async def join(values: list[Any]) -> Any:
        return {"got": values}

    builder = GraphBuilder("g").node(echo).edge(echo, join).node(join, join="all")
    graph = (builder.node(spread, targets=["echo"]) if sends else builder.edge(spread, echo, for_each=True)).build()
    async with Executor(graph, DEBUG) as executor:
        assert (await executor.execute(count)).value == {"got": list(range(count))}


def branches(first: list[str]) -> Graph:
    """Three branches that meet; those in `first` end before the others. Written in the order zeta, alpha, mid."""

    async def start(value: Any) -> Any:
        return value

    def branch(name: str) -> Any:
        async def run(value: Any) -> Any:
            for _ in range(10 * (name not in first)):
                await anyio.lowlevel.checkpoint()
            return Result(name, set={"log": name})

        run.__name__ = name
        return run

    async def join(values: list[Any], context: Any) -> Any:
        return [values, context.variables["log"]]

    builder = GraphBuilder("g", variables={"log": "append"}).node(start)
    for name in WRITTEN:
        builder.node(branch(name)).edge("start", name).edge(name, "join")
    return builder.node(join, join="all").build()


WRITTEN = ["zeta", "alpha", "mid"]


@pytest.mark.parametrize("first", [[], ["alpha"], ["mid", "alpha"]])
async def test_branches_meet_in_the_order_in_which_they_are_written(first: list[str], store: CheckpointStorage) -> None:
    async with Executor(branches(first), DEBUG, store) as executor:
        for number in range(8):  # six orders of three: an order by a digest of the id would show
            response = await executor.execute("task", trace_id=f"t{number}")
            assert response.value == [WRITTEN, WRITTEN]
            for at in ("zeta", "mid", "join"):
                assert (await executor.fork(f"t{number}", at=at)).value == [WRITTEN, WRITTEN]


# -- what is too large -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False])
async def test_a_payload_just_over_the_cap_fails_its_node(stored: bool) -> None:
    """Its parts fit; what encodes them does not."""
    wanted = True

    async def make(value: Any) -> Any:
        return MessagePayload(content="x" * (MAX_BYTES - 45), metadata={"k": 1}) if wanted else value

    store = InMemoryCheckpointStorage() if stored else None
    async with Executor(GraphBuilder("g").chain(make, echo).build(), DEBUG, store) as executor:
        with pytest.raises(ExecutionError, match="more than the 67,108,864 allowed") as caught:
            await executor.execute("task", trace_id="t")
        assert (caught.value.node_id, caught.value.step) == ("make", 0)
        wanted = False
        if stored:
            assert (await executor.resume_from_checkpoint("t")).value == "task"
