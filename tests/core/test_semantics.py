"""Retries, time-outs, handled failures, limits, progress, generations, lifespans: on both loops and both backends."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import attrs
import pytest

from tinyllm import (
    CheckpointStorage,
    ConfigError,
    ExecutionError,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    Limits,
    Message,
    Result,
    Retry,
    Send,
    TaskPayload,
    lifespan,
)
from tinyllm.actors.events import Event, NodeFailed, NodeRetried

pytestmark = pytest.mark.anyio


def changed(graph: Graph, node: str, **keys: Any) -> Graph:
    """The graph with other keys for one node."""
    return attrs.evolve(graph, nodes={**graph.nodes, node: attrs.evolve(graph.nodes[node], **keys)})


class Flaky:
    """A node that fails so many times, and then does not."""

    def __init__(self, failures: int, error: type[Exception] = ConnectionError) -> None:
        self.left = failures
        self.error = error
        self.attempts: list[tuple[int, str]] = []

    def graph(self, **keys: Any) -> Graph:
        async def work(task: str, context: Any) -> str:
            self.attempts.append((context.attempt, context.idempotency_key))
            if self.left:
                self.left -= 1
                raise self.error(f"{self.left} more to go")
            return task.upper()

        return changed(GraphBuilder("flaky").node(work).build(), "work", **keys)


FAST = Retry(max_attempts=3, initial=0.001, jitter=0.0)


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
async def test_a_failed_attempt_is_tried_again_with_the_same_key(store: CheckpointStorage, durability: Any) -> None:
    flaky, events = Flaky(2), list[Event]()
    config = ExecutorConfig(durability=durability)
    async with Executor(flaky.graph(retry=FAST), config, store, on_event=events.append) as executor:
        assert (await executor.execute("x", trace_id="t")).value == "X"
    assert [number for number, _ in flaky.attempts] == [1, 2, 3]
    assert len({key for _, key in flaky.attempts}) == 1
    retried = [event for event in events if isinstance(event, NodeRetried)]
    assert [(event.attempt, event.error.message) for event in retried] == [(1, "1 more to go"), (2, "0 more to go")]
    assert [row.attempts for row in await store.steps("t")] == [3]


async def test_after_the_last_attempt_the_trace_fails_and_an_explicit_resume_has_a_new_budget(
    store: CheckpointStorage,
) -> None:
    flaky = Flaky(5)
    async with Executor(flaky.graph(retry=FAST), checkpoint_storage=store) as executor:
        with pytest.raises(ExecutionError, match="ConnectionError: 2 more to go"):
            await executor.execute("x", trace_id="t")
        with pytest.raises(ExecutionError, match="2 more to go"):
            await executor.execute("x", trace_id="t")  # the stored error: nothing is resumed by accident
        assert (await executor.resume_from_checkpoint("t")).value == "X"
    assert [number for number, _ in flaky.attempts] == [1, 2, 3, 4, 5, 6]


async def test_an_error_that_is_not_named_is_not_tried_again(store: CheckpointStorage) -> None:
    flaky = Flaky(1, ValueError)
    graph = flaky.graph(retry=attrs.evolve(FAST, on=("OSError",)))
    async with Executor(graph, checkpoint_storage=store) as executor:
        with pytest.raises(ExecutionError):
            await executor.execute("x")
    assert len(flaky.attempts) == 1


async def test_an_attempt_that_takes_too_long_is_one_that_failed(store: CheckpointStorage) -> None:
    waits = [True, False]

    async def work(task: str) -> str:
        if waits.pop(0):
            await anyio.sleep_forever()
        return task

    graph = GraphBuilder("g").node(work).build()
    graph = changed(graph, "work", timeout=0.01, retry=attrs.evolve(FAST, on=("TimeoutError",)))
    async with Executor(graph, checkpoint_storage=store) as executor:
        assert (await executor.execute("x")).value == "x"


async def test_a_result_that_cannot_be_used_took_its_time_too(store: CheckpointStorage) -> None:
    async def work(task: str) -> list[Send]:
        return [Send("nowhere", task)]

    async def mend(message: Message) -> str:
        assert message.payload.error is not None
        return message.payload.error.type

    graph = GraphBuilder("g").node(work, on_error=mend).node(mend).build()
    async with Executor(graph, checkpoint_storage=store) as executor:
        assert (await executor.execute("x", trace_id="t")).value == "NodeError"
    assert [row.duration_ms > 0 for row in await store.steps("t")] == [True, True]


async def test_a_failure_goes_to_the_node_that_handles_it(store: CheckpointStorage) -> None:
    async def work(task: str) -> str:
        raise ValueError("boom")

    async def mend(message: Message) -> str:
        assert message.payload.error is not None
        return f"{message.payload.content}: {message.payload.error.type}"

    async def end(value: str) -> str:
        return value

    graph = GraphBuilder("g").node(work, on_error=mend).chain(work, end).chain(mend, end).build()
    events: list[Event] = []
    async with Executor(graph, checkpoint_storage=store, on_event=events.append) as executor:
        response = await executor.execute("x", trace_id="t")
    assert (response.status, response.value) == ("completed", "x: ValueError")
    assert [event.handler for event in events if isinstance(event, NodeFailed)] == ["mend"]
    assert [(row.node, row.status) for row in await store.steps("t")] == [
        ("work", "failed"),
        ("mend", None),
        ("end", None),
    ]


# -- failure ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail_fast", [False, True])
async def test_after_a_failure_the_others_may_end_or_are_cancelled_at_once(
    store: CheckpointStorage, fail_fast: bool
) -> None:
    began, failed, ended = anyio.Event(), anyio.Event(), list[str]()

    async def start(task: str) -> str:
        return task

    async def bad(value: str) -> str:
        await began.wait()
        raise ValueError("boom")

    async def slow(value: str) -> str:
        began.set()
        await failed.wait()
        ended.append("slow")
        return value

    def observe(event: Event) -> None:
        if isinstance(event, NodeFailed) and not fail_fast:
            failed.set()

    graph = GraphBuilder("g").edge(start, bad).edge(start, slow).build()
    config = ExecutorConfig(fail_fast=fail_fast)
    async with Executor(graph, config, store, on_event=observe) as executor:
        with pytest.raises(ExecutionError) as caught:
            await executor.execute("x", trace_id="t")
    assert (caught.value.trace_id, caught.value.node_id) == ("t", "bad")
    assert ended == ([] if fail_fast else ["slow"])
    snapshot = await store.load("t")
    assert {row.node: row.state for row in snapshot.frontier if row.node in ("bad", "slow")} == (
        {"bad": "failed", "slow": "cancelled"} if fail_fast else {"bad": "failed"}
    )


# -- limits ----------------------------------------------------------------------------------------------------


def loop() -> Graph:
    async def count(number: int) -> int:
        return number + 1

    builder = GraphBuilder("loop", allow_cycles=True)
    return builder.edge(count, count, when="structured < 10").entry(count).exit(count).build()


async def test_a_step_limit_ends_a_cycle_and_a_raised_one_lets_it_go_on(store: CheckpointStorage) -> None:
    limited = attrs.evolve(loop(), limits=Limits(max_steps=4))
    async with Executor(limited, checkpoint_storage=store) as executor:
        with pytest.raises(ExecutionError, match=r"limits.max_steps of 4 is reached") as caught:
            await executor.execute(0, trace_id="t")
        assert (caught.value.node_id, caught.value.step, caught.value.resumable) == (None, 4, True)
        with pytest.raises(ExecutionError, match="max_steps"):
            await executor.resume_from_checkpoint("t")
    async with Executor(loop(), checkpoint_storage=store) as executor:
        assert (await executor.resume_from_checkpoint("t")).value == 10


async def test_a_time_limit_cancels_what_runs(store: CheckpointStorage) -> None:
    async def sleep(task: str) -> None:
        await anyio.sleep_forever()

    graph = attrs.evolve(GraphBuilder("g").node(sleep).build(), limits=Limits(timeout=0.02))
    async with Executor(graph, checkpoint_storage=store) as executor:
        with pytest.raises(ExecutionError, match=r"limits.timeout of 0.02 s is reached"):
            await executor.execute("x", trace_id="t")
    snapshot = await store.load("t")
    assert [row.state for row in snapshot.frontier] == ["cancelled"]
    assert snapshot.elapsed >= 0.02


async def test_no_more_of_a_trace_runs_at_once_than_it_allows(store: CheckpointStorage) -> None:
    running, most = 0, 0

    async def items(task: str) -> list[int]:
        return list(range(20))

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        return number

    graph = GraphBuilder("g").edge(items, work, for_each=True).build()
    async with Executor(attrs.evolve(graph, limits=Limits(max_concurrency=3)), checkpoint_storage=store) as executor:
        await executor.execute("x")
    assert most <= 3


# -- progress --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
async def test_progress_is_found_by_the_next_attempt(store: CheckpointStorage, durability: Any, threaded: bool) -> None:
    found: list[Any] = []

    async def in_loop(task: str, context: Any) -> str:
        found.append(context.progress)
        for page in range(3):
            await context.save_progress({"page": page})
        if len(found) == 1:
            raise ConnectionError
        return "done"

    def in_thread(task: str, context: Any) -> str:
        found.append(context.progress)
        for page in range(3):
            context.save_progress({"page": page})
        if len(found) == 1:
            raise ConnectionError
        return "done"

    graph = GraphBuilder("g").node(in_thread if threaded else in_loop, id="work").build()
    graph = changed(graph, "work", retry=FAST)
    async with Executor(graph, ExecutorConfig(durability=durability), store) as executor:
        assert (await executor.execute("x", trace_id="t")).value == "done"
    assert found == [None, {"page": 2}]


async def test_progress_is_durable_when_it_was_saved(store: CheckpointStorage) -> None:
    seen: list[Any] = []

    async def work(task: str, context: Any) -> str:
        await context.save_progress("half")
        seen.append([row.progress for row in (await store.load("t")).frontier])
        return "done"

    graph = GraphBuilder("g").node(work).build()
    async with Executor(graph, checkpoint_storage=store) as executor:
        await executor.execute("x", trace_id="t")
    assert seen == [[b'"half"']]


async def test_an_attempt_that_was_given_up_does_not_overwrite_what_the_next_has_saved(
    store: CheckpointStorage,
) -> None:
    timed_out, tried = threading.Event(), threading.Event()
    found: list[Any] = []

    def work(task: str, context: Any) -> str:
        found.append(context.progress)
        if context.attempt == 1:
            timed_out.wait(10)
            try:
                context.save_progress("late")
            finally:
                tried.set()
        if context.attempt == 2:
            context.save_progress("new")
            timed_out.set()
            tried.wait(10)
            raise ConnectionError
        return "done"

    graph = changed(GraphBuilder("g").node(work).build(), "work", retry=FAST, timeout=0.3)
    async with Executor(graph, checkpoint_storage=store) as executor:
        assert (await executor.execute("x", trace_id="t")).value == "done"
    assert found == [None, None, "new"]


async def test_a_node_may_save_from_many_tasks_at_once(store: CheckpointStorage) -> None:
    async def work(task: str, context: Any) -> str:
        async with anyio.create_task_group() as tasks:
            for page in range(300):
                tasks.start_soon(context.save_progress, page)
        return "done"

    graph = GraphBuilder("g").node(work, max_concurrency=1).build()
    async with Executor(graph, checkpoint_storage=store) as executor:
        assert (await executor.execute("x", trace_id="t")).value == "done"


# -- generations -----------------------------------------------------------------------------------------------


def counting() -> Graph:
    async def count(task: str, context: Any) -> Any:
        context.add_tokens(3, 4)
        return Result(f"{task} #{context.variables.get('runs', 0)}", set={"runs": context.variables.get("runs", 0) + 1})

    async def end(value: str) -> str:
        return value

    return GraphBuilder("counting").chain(count, end).build()


async def test_a_completed_trace_runs_again_with_its_restored_context(store: CheckpointStorage) -> None:
    async with Executor(counting(), checkpoint_storage=store) as executor:
        first = await executor.execute(TaskPayload(content="ingest"))
        assert (first.content, first.total_tokens_in, first.total_tokens_out) == ("ingest #0", 3, 4)
        second = await executor.execute(TaskPayload(content="process"), resume_trace_id=first.trace_id)
        assert second.trace_id == first.trace_id
        assert (second.content, second.nodes_executed, second.total_tokens_in) == ("process #1", 4, 6)
        stored = await executor.resume_from_checkpoint(first.trace_id)
        assert stored.content == "process #1"
    snapshot = await store.load(first.trace_id)
    assert (snapshot.generation, snapshot.generation_step) == (2, 2)
    said = [row.body for row in await store.messages(first.trace_id)]
    assert (said.count(b'"ingest"'), said.count(b'"process"')) == (1, 1)


async def test_an_unfinished_trace_is_continued_and_the_task_is_in_its_history_once(store: CheckpointStorage) -> None:
    flaky = Flaky(2)
    async with Executor(flaky.graph(), checkpoint_storage=store) as executor:
        with pytest.raises(ExecutionError):
            await executor.execute("first", trace_id="t")
        with pytest.raises(ExecutionError):
            await executor.execute("more", resume_trace_id="t")
        assert (await executor.execute("more", resume_trace_id="t")).value == "FIRST"
    assert [row.body for row in await store.messages("t")].count(b'"more"') == 1


async def test_a_trace_that_is_resumed_has_its_own_id_and_variables(store: CheckpointStorage) -> None:
    async with Executor(counting(), checkpoint_storage=store) as executor:
        with pytest.raises(ConfigError, match="trace_id"):
            await executor.execute("x", trace_id="a", resume_trace_id="b")
        with pytest.raises(ConfigError, match="variables"):
            await executor.execute("x", resume_trace_id="b", variables={})


# -- lifespan --------------------------------------------------------------------------------------------------


async def test_a_lifespan_makes_the_deps_around_everything(store: CheckpointStorage) -> None:
    life: list[str] = []

    @lifespan
    async def clients() -> AsyncIterator[dict[str, str]]:
        life.append("open")
        yield {"client": "c"}
        life.append("closed")

    async def work(task: str, context: Any) -> Any:
        life.append("work")
        return context.deps

    graph = attrs.evolve(GraphBuilder("g").node(work).build(), lifespan=clients)
    async with Executor(graph, checkpoint_storage=store) as executor:
        assert (await executor.execute("x")).value == {"client": "c"}
        assert (await executor.execute("y")).value == {"client": "c"}
    assert life == ["open", "work", "work", "closed"]
    async with Executor(graph, checkpoint_storage=store, deps={"client": "mine"}) as executor:
        assert (await executor.execute("x")).value == {"client": "mine"}
    assert life.count("open") == 1


async def test_a_lifespan_that_fails_at_its_end_hides_no_other_failure(store: CheckpointStorage) -> None:
    @lifespan
    async def clients() -> AsyncIterator[str]:
        yield "pool"
        raise OSError("the pool is broken")

    async def work(task: str) -> None:
        raise ConnectionError

    graph = attrs.evolve(GraphBuilder("g").node(work).build(), lifespan=clients)
    with pytest.raises(ExecutionError) as raised:
        await Executor(graph, checkpoint_storage=store).execute("x")
    assert raised.value.__notes__ == ["besides, closing what it ran in failed: OSError('the pool is broken')"]


async def test_a_lifespan_that_fails_is_the_executors_failure(store: CheckpointStorage) -> None:
    @lifespan
    async def clients() -> AsyncIterator[None]:
        raise OSError("no network")
        yield

    graph = attrs.evolve(counting(), lifespan=clients)
    with pytest.raises(OSError, match="no network"):
        async with Executor(graph, checkpoint_storage=store):
            pytest.fail("it was entered")
