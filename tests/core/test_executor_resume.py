"""The same id is the same trace; resume, fork, and a graph that changed meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from tests.actors.stores import finished
from tinyllm import (
    CheckpointNotFound,
    ConfigError,
    ExecutionError,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    GraphChanged,
    InMemoryCheckpointStorage,
    NodeMissing,
    OwnershipLost,
    Result,
    TaskResponse,
    TraceExists,
    TraceMismatch,
    TraceNotFound,
    TraceOwned,
    node,
)
from tinyllm.actors.events import Event, NodeStarted, TraceStarted

pytestmark = pytest.mark.anyio

DEBUG = ExecutorConfig(debug_mutation=True)


class Work:
    """Node functions that count their calls, fail when told to, and wait when told to."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.keys: list[tuple[str, str, int]] = []
        self.broken: set[str] = set()
        self.held: dict[str, anyio.Event] = {}
        self.reached = anyio.Event()

    def node(self, name: str, answer: Any = None) -> Any:
        async def run(value: Any, context: Any) -> Any:
            self.calls[name] += 1
            self.keys.append((name, context.activation_id, context.attempt))
            if name in self.held:
                self.reached.set()
                await self.held[name].wait()
            if name in self.broken:
                raise ValueError(f"{name} is broken")
            return value if answer is None else answer(value, context)

        run.__name__ = name
        return run

    def chain(self, names: str = "abc", **keys: Any) -> Graph:
        return GraphBuilder("g", **keys).chain(*map(self.node, names)).build() if len(names) > 1 else self.one(names)

    def one(self, name: str) -> Graph:
        return GraphBuilder("g").node(self.node(name)).build()

    def take_calls(self) -> dict[str, int]:
        calls, self.calls = dict(self.calls), Counter()
        return calls


@pytest.fixture
async def store() -> AsyncIterator[InMemoryCheckpointStorage]:
    made = InMemoryCheckpointStorage()
    await made.initialize()
    yield made
    await made.close()


@pytest.fixture
async def work() -> Work:
    return Work()


async def interrupt(work: Work, at: str, executor: Executor, task: Any = "task") -> TaskResponse:
    """Execute as trace `t` and stop while `at` runs, which then ends."""
    work.held[at] = anyio.Event()
    work.reached = anyio.Event()
    responses = []

    async def execute() -> None:
        responses.append(await executor.execute(task, trace_id="t"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(execute)
        await work.reached.wait()
        executor.stop()
        work.held.pop(at).set()
    return responses[0]


# -- the same id -----------------------------------------------------------------------------------------------


async def test_a_completed_trace_gives_its_outcome_again_and_runs_nothing(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    async with Executor(work.chain(), DEBUG, store) as executor:
        first = await executor.execute({"x": 1}, trace_id="t")
        assert work.take_calls() == {"a": 1, "b": 1, "c": 1}
        again = await executor.execute({"x": 1}, trace_id="t")
        resumed = await executor.resume_from_checkpoint("t")
    assert work.calls == {}
    for told in (again, resumed):
        assert (told.status, told.value, told.content, told.nodes_executed) == (
            "completed",
            {"x": 1},
            first.content,
            first.nodes_executed,
        )
        assert told.total_latency_ms >= 0


async def test_an_interrupted_trace_is_continued_where_it_was(store: InMemoryCheckpointStorage, work: Work) -> None:
    heard: list[Event] = []
    async with Executor(work.chain(), DEBUG, store, on_event=heard.append) as executor:
        response = await interrupt(work, "b", executor)
        assert (response.status, response.nodes_executed, response.value) == ("interrupted", 2, None)
        assert work.take_calls() == {"a": 1, "b": 1}
        response = await executor.execute("task", trace_id="t")
        assert response.status == "completed"
        assert response.nodes_executed == 3
        assert work.take_calls() == {"c": 1}
    started = [event for event in heard if isinstance(event, TraceStarted)]
    assert started[1] == TraceStarted("t", True, 2, 0, 0, (), {"c": 1})


async def test_a_failed_trace_raises_its_error_again_and_runs_nothing(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    work.broken = {"b"}
    async with Executor(work.chain(), DEBUG, store) as executor:
        with pytest.raises(ExecutionError) as first:
            await executor.execute("task", trace_id="t")
        work.broken, _ = set(), work.take_calls()
        with pytest.raises(ExecutionError) as again:
            await executor.execute("task", trace_id="t")
        assert work.calls == {}
        assert (first.value.stored, again.value.stored) == (False, True)
        assert str(again.value) == str(first.value).replace("in node 'b'", "in node 'b' before (nothing was run now)")
        assert (again.value.node_id, again.value.step) == ("b", 1)
        assert again.value.response.error == first.value.response.error


async def test_a_failed_trace_is_tried_again_by_a_resume_and_only_where_it_failed(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    work.broken = {"b"}
    async with Executor(work.chain(), DEBUG, store) as executor:
        with pytest.raises(ExecutionError):
            await executor.execute("task", trace_id="t")
        with pytest.raises(ExecutionError):
            await executor.resume_from_checkpoint("t")
        work.broken = set()
        response = await executor.resume_from_checkpoint("t")
    assert response.status == "completed"
    assert work.calls == {"a": 1, "b": 3, "c": 1}
    tries = [(key, attempt) for name, key, attempt in work.keys if name == "b"]
    assert len({key for key, _ in tries}) == 1, "the same work has the same key"
    assert [attempt for _, attempt in tries] == [1, 2, 3]
    (row,) = [row for row in await store.steps("t") if row.node == "b"]
    assert row.attempts == 3


async def test_another_task_or_graph_is_refused(store: InMemoryCheckpointStorage, work: Work) -> None:
    async with Executor(work.chain(), DEBUG, store) as executor:
        await executor.execute("task", trace_id="t")
        work.take_calls()
        with pytest.raises(TraceMismatch, match="another task"):
            await executor.execute("other", trace_id="t")
    other = GraphBuilder("other").node(work.node("a")).build()
    async with Executor(other, DEBUG, store) as executor:
        with pytest.raises(TraceMismatch, match="another graph"):
            await executor.execute("task", trace_id="t")
        with pytest.raises(TraceMismatch, match="another graph"):
            await executor.resume_from_checkpoint("t")
        with pytest.raises(TraceMismatch, match="another graph"):
            await executor.fork("t", at="a")
    assert work.calls == {}


async def test_a_trace_that_is_being_executed_is_not_executed_twice(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    work.held["b"] = anyio.Event()
    async with (
        Executor(work.chain(), DEBUG, store) as executor,
        Executor(work.chain(), DEBUG, store) as second,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(lambda: executor.execute("task", trace_id="t"))
        await work.reached.wait()
        for other in (executor, second):
            with pytest.raises(TraceOwned, match="is being executed by another call in this process"):
                await other.execute("task", trace_id="t")
            with pytest.raises(TraceOwned):
                await other.resume_from_checkpoint("t")
        work.held.pop("b").set()
    assert work.calls == {"a": 1, "b": 1, "c": 1}


async def test_a_trace_is_taken_over_from_an_owner_that_lives(store: InMemoryCheckpointStorage, work: Work) -> None:
    """Who had it can record nothing more, and says so."""
    held = work.held["b"] = anyio.Event()
    sync = ExecutorConfig(durability="sync", debug_mutation=True)
    async with Executor(work.chain(), sync, store) as executor, Executor(work.chain(), sync, store) as other:
        async with anyio.create_task_group() as tasks:
            lost: list[type[Exception]] = []

            async def execute() -> None:
                try:
                    await executor.execute("task", trace_id="t")
                except Exception as error:
                    lost.append(type(error))

            tasks.start_soon(execute)
            await work.reached.wait()
            del work.held["b"]
            response = await other.resume_from_checkpoint("t", take_over=True)
            assert response.status == "completed"
            recorded = await store.list_checkpoints("g", "t")
            held.set()
        assert lost == [OwnershipLost]
    assert [each.id for each in await store.list_checkpoints("g", "t")] == [each.id for each in recorded]
    assert await finished(store, "t") == ["a", "b", "c"]
    assert work.calls == {"a": 1, "b": 2, "c": 1}


async def test_an_executor_does_not_take_a_trace_over_from_itself(store: InMemoryCheckpointStorage, work: Work) -> None:
    """Two runs of one trace would share what writes them: all that the executor executes ended with that."""
    held = work.held["b"] = anyio.Event()
    async with Executor(work.chain(), DEBUG, store) as executor, anyio.create_task_group() as tasks:
        responses: list[TaskResponse] = []

        async def execute() -> None:
            responses.append(await executor.execute("task", trace_id="t"))

        tasks.start_soon(execute)
        await work.reached.wait()
        with pytest.raises(TraceOwned, match="is being executed by another call in this process"):
            await executor.resume_from_checkpoint("t", take_over=True)
        held.set()
    assert [response.status for response in responses] == ["completed"]
    assert work.calls == {"a": 1, "b": 1, "c": 1}


async def test_who_was_succeeded_and_does_not_know_it_is_not_joined_by_another_run(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    held = work.held["b"] = anyio.Event()
    sync = ExecutorConfig(durability="sync", debug_mutation=True)  # it has nothing to write, and to learn it by, yet
    async with Executor(work.chain(), sync, store) as executor:
        async with anyio.create_task_group() as tasks:
            lost: list[type[Exception]] = []

            async def execute() -> None:
                try:
                    await executor.execute("task", trace_id="t")
                except Exception as error:
                    lost.append(type(error))

            tasks.start_soon(execute)
            await work.reached.wait()
            async with Executor(work.chain(), DEBUG, store, on_event=lambda _: other.stop()) as other:
                await other.resume_from_checkpoint("t", take_over=True)
            with pytest.raises(TraceOwned):
                await executor.resume_from_checkpoint("t")
            held.set()
        assert lost == [OwnershipLost]
        assert (await executor.resume_from_checkpoint("t")).status == "completed"


async def test_two_calls_that_admit_the_same_id_at_once_make_one_trace(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    outcomes: list[str] = []
    async with Executor(work.chain(), DEBUG, store) as executor, anyio.create_task_group() as tasks:

        async def execute() -> None:
            try:
                outcomes.append((await executor.execute("task", trace_id="t")).status)
            except TraceOwned:
                outcomes.append("owned")

        for _ in range(5):
            tasks.start_soon(execute)
    assert outcomes.count("completed") >= 1
    assert work.calls == {"a": 1, "b": 1, "c": 1}


async def test_an_unknown_id_names_near_ones_and_the_store(store: InMemoryCheckpointStorage, work: Work) -> None:
    async with Executor(work.chain(), DEBUG, store) as executor:
        await executor.execute("task", trace_id="survey-7k3mq")
        with pytest.raises(TraceNotFound, match=r"'survey-7k3mp' is not in memory; did you mean survey-7k3mq\?"):
            await executor.resume_from_checkpoint("survey-7k3mp")
        with pytest.raises(TraceNotFound):
            await executor.fork("nothing-like-it", at="a")


async def test_without_a_storage_nothing_can_be_resumed(work: Work) -> None:
    async with Executor(work.chain(), DEBUG) as executor:
        assert (await executor.execute("task", trace_id="t")).trace_id == "t"
        with pytest.raises(ConfigError, match="checkpoint_storage"):
            await executor.resume_from_checkpoint("t")
        with pytest.raises(ConfigError, match="checkpoint_storage"):
            await executor.fork("t", at="a")


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
@pytest.mark.parametrize("each_node", [True, False])
async def test_whatever_the_settings_an_interrupted_trace_goes_on(
    durability: Any, each_node: bool, store: InMemoryCheckpointStorage, work: Work
) -> None:
    config = ExecutorConfig(durability=durability, checkpoint_after_each_node=each_node, debug_mutation=True)
    async with Executor(work.chain("abcde"), config, store) as executor:
        assert (await interrupt(work, "c", executor)).status == "interrupted"
        assert await finished(store, "t") == ["a", "b", "c"]
        response = await executor.execute("task", trace_id="t")
    assert response.status == "completed"
    assert await finished(store, "t") == list("abcde")
    assert set(work.calls.values()) == {1}


# -- forks -----------------------------------------------------------------------------------------------------


def ranking(work: Work) -> Graph:
    def measure(value: Any, context: Any) -> Any:
        return value * 10

    def rank(value: Any, context: Any) -> Any:
        return [context.variables["order"], sorted(value, reverse=context.variables["order"] == "down")]

    return (
        GraphBuilder("g")
        .edge(work.node("files", lambda value, context: [3, 1, 2]), "measure", for_each=True)
        .node(work.node("measure", measure))
        .edge("measure", "rank")
        .node(work.node("rank", rank), join="all")
        .edge("rank", "write")
        .node(work.node("write"))
        .build()
    )


async def test_a_fork_at_a_node_runs_it_and_what_follows_and_nothing_before(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    async with Executor(ranking(work), DEBUG, store) as executor:
        first = await executor.execute("task", trace_id="t", variables={"order": "up"})
        assert first.value == ["up", [10, 20, 30]]
        work.take_calls()
        forked = await executor.fork("t", at="rank", set={"order": "down"}, new_trace_id="f")
        assert forked.value == ["down", [30, 20, 10]]
        assert work.take_calls() == {"rank": 1, "write": 1}
        assert forked.trace_id == "f"
        assert forked.nodes_executed == first.nodes_executed
        ids = {key for name, key, _ in work.keys if name in ("rank", "write")}
        assert len(ids) == 4, "a fork's activations have keys of their own"
        assert (await executor.execute("task", trace_id="t", variables={"order": "up"})).value == first.value
        for other in ({"order": "down"}, None):
            with pytest.raises(TraceMismatch, match="initial variables"):
                await executor.execute("task", trace_id="t", variables=other)
        assert await finished(store, "f") == await finished(store, "t")
        record = await store.trace("f")
        assert record is not None
        assert (record.parent, record.parent_step) == ("t", 4)


async def test_a_fork_at_a_step_runs_what_came_after_it(store: InMemoryCheckpointStorage, work: Work) -> None:
    async with Executor(ranking(work), DEBUG, store) as executor:
        await executor.execute("task", trace_id="t", variables={"order": "up"})
        work.take_calls()
        assert (await executor.fork("t", at=2)).value == ["up", [10, 20, 30]]
        assert work.take_calls() == {"measure": 2, "rank": 1, "write": 1}
        forked = await executor.fork("t", at=0, set={"order": "down", "new": 1})
        assert forked.trace_id.startswith("g-")
        assert work.take_calls() == {"files": 1, "measure": 3, "rank": 1, "write": 1}


async def test_a_fork_of_the_end_has_the_same_outcome_and_runs_nothing(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    async with Executor(work.chain(), DEBUG, store) as executor:
        await executor.execute("task", trace_id="t")
        work.take_calls()
        forked = await executor.fork("t", at=3, new_trace_id="f")
        assert (forked.status, forked.value) == ("completed", "task")
        assert work.calls == {}


async def test_the_same_fork_again_is_the_same_trace(store: InMemoryCheckpointStorage, work: Work) -> None:
    work.broken = {"c"}
    async with Executor(work.chain(), DEBUG, store) as executor:
        with pytest.raises(ExecutionError):
            await executor.execute("task", trace_id="t")
        with pytest.raises(ExecutionError):
            await executor.fork("t", at="b", new_trace_id="f")
        work.broken, _ = set(), work.take_calls()
        assert (await executor.fork("t", at="b", new_trace_id="f")).status == "completed"
        assert work.take_calls() == {"c": 1}
        assert (await executor.fork("t", at="b", new_trace_id="f")).status == "completed"
        assert work.take_calls() == {}
        with pytest.raises(TraceMismatch, match="point to fork from"):
            await executor.fork("t", at="c", new_trace_id="f")
        with pytest.raises(TraceMismatch, match="set of variables"):
            await executor.fork("t", at="b", set={"k": 1}, new_trace_id="f")
        await executor.execute("task", trace_id="u")
        with pytest.raises(TraceExists):
            await executor.fork("t", at="b", new_trace_id="u")
        with pytest.raises(ConfigError):
            await executor.fork("t", at="b", new_trace_id="not an id")


async def test_a_fork_from_what_is_not_kept_names_what_is(store: InMemoryCheckpointStorage, work: Work) -> None:
    async with Executor(work.chain(), DEBUG, store) as executor:
        await executor.execute("task", trace_id="t")
        with pytest.raises(CheckpointNotFound, match="at step 9; kept are steps 0-3"):
            await executor.fork("t", at=9)
        with pytest.raises(CheckpointNotFound, match="'nowhere'"):
            await executor.fork("t", at="nowhere")


async def test_a_fork_of_a_fork(store: InMemoryCheckpointStorage, work: Work) -> None:
    async with Executor(ranking(work), DEBUG, store) as executor:
        await executor.execute("task", trace_id="t", variables={"order": "up"})
        await executor.fork("t", at="rank", set={"order": "down"}, new_trace_id="f")
        work.take_calls()
        again = await executor.fork("f", at="rank", set={"order": "up"}, new_trace_id="ff")
        assert again.value == ["up", [10, 20, 30]]
        assert work.take_calls() == {"rank": 1, "write": 1}


# -- a graph that changed --------------------------------------------------------------------------------------


async def interrupted_before_c(store: InMemoryCheckpointStorage, work: Work) -> None:
    async with Executor(work.chain("abcd"), DEBUG, store) as executor:
        await interrupt(work, "b", executor)
    work.take_calls()


async def test_topology_that_changed_is_refused_with_the_list_unless_it_is_accepted(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    await interrupted_before_c(store, work)
    heard: list[Event] = []
    async with Executor(work.chain("abced"), DEBUG, store, on_event=heard.append) as executor:
        for resume in (executor.resume_from_checkpoint("t"), executor.execute("task", trace_id="t")):
            with pytest.raises(GraphChanged) as caught:
                await resume
            assert "+ node e" in caught.value.changes
            assert "- edge c -> d" in caught.value.changes
            assert "--accept-graph-change" in str(caught.value)
        assert work.calls == {}
        response = await executor.resume_from_checkpoint("t", accept_graph_change=True)
        assert response.status == "completed"
        assert work.calls == {"c": 1, "e": 1, "d": 1}
    (started,) = (event for event in heard if isinstance(event, TraceStarted))
    assert "+ node e" in started.changes


async def test_an_accepted_change_is_recorded_and_accepted_once(store: InMemoryCheckpointStorage, work: Work) -> None:
    await interrupted_before_c(store, work)
    async with Executor(work.chain("abced"), DEBUG, store) as executor:
        work.held["e"] = anyio.Event()
        work.reached = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: executor.resume_from_checkpoint("t", accept_graph_change=True))
            await work.reached.wait()
            executor.stop()
            work.held.pop("e").set()
        assert (await executor.resume_from_checkpoint("t")).status == "completed"


async def test_a_task_that_is_told_to_a_completed_trace_may_accept_a_change(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    """A resume cannot do it: of a completed trace it runs nothing."""
    async with Executor(work.chain("ab"), DEBUG, store) as executor:
        await executor.execute("first", trace_id="t")
    async with Executor(work.chain("abc"), DEBUG, store) as executor:
        with pytest.raises(GraphChanged, match="accept_graph_change=True"):
            await executor.execute("second", resume_trace_id="t")
        response = await executor.execute("second", resume_trace_id="t", accept_graph_change=True)
        assert (response.value, response.nodes_executed) == ("second", 5)
        assert (await executor.execute("third", resume_trace_id="t")).value == "third", "it is recorded"


async def test_a_trace_that_was_interrupted_goes_on_under_its_id_with_a_change_that_is_accepted(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    await interrupted_before_c(store, work)
    async with Executor(work.chain("abced"), DEBUG, store) as executor:
        with pytest.raises(GraphChanged, match="accept_graph_change=True"):
            await executor.execute("task", trace_id="t")
        assert (await executor.execute("task", trace_id="t", accept_graph_change=True)).status == "completed"
    assert work.calls == {"c": 1, "e": 1, "d": 1}


async def test_a_change_accepted_by_a_fork_is_recorded_with_the_fork(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    await interrupted_before_c(store, work)
    work.broken = {"e"}
    async with Executor(work.chain("abced"), DEBUG, store) as executor:
        with pytest.raises(GraphChanged):
            await executor.fork("t", at="c", new_trace_id="f")
        with pytest.raises(ExecutionError):
            await executor.fork("t", at="c", new_trace_id="f", accept_graph_change=True)
        work.broken = set()
        assert (await executor.resume_from_checkpoint("f")).status == "completed"
        with pytest.raises(GraphChanged):
            await executor.resume_from_checkpoint("t")


async def test_a_node_that_must_run_next_and_is_gone_is_refused_whatever_is_accepted(
    store: InMemoryCheckpointStorage, work: Work
) -> None:
    await interrupted_before_c(store, work)
    async with Executor(work.chain("abd"), DEBUG, store) as executor:
        with pytest.raises(NodeMissing, match="must run 'c' next"):
            await executor.resume_from_checkpoint("t", accept_graph_change=True)
        with pytest.raises(NodeMissing):
            await executor.fork("t", at="c", accept_graph_change=True)
        record = await store.trace("t")
        assert record is not None
        assert record.status == "interrupted", "nothing was taken over"


async def test_code_that_changed_is_told_and_continued(store: InMemoryCheckpointStorage, work: Work) -> None:
    heard: list[Event] = []

    def first(value: Any) -> Any:
        raise ValueError("a bug")

    def second(value: Any) -> Any:
        return "mended"

    first.__name__ = second.__name__ = "fix"
    async with Executor(GraphBuilder("g").chain(work.node("a"), first).build(), DEBUG, store) as executor:
        with pytest.raises(ExecutionError):
            await executor.execute("task", trace_id="t")
    mended = GraphBuilder("g").chain(work.node("a"), second).build()
    async with Executor(mended, DEBUG, store, on_event=heard.append) as executor:
        assert (await executor.resume_from_checkpoint("t")).value == "mended"
    (started,) = (event for event in heard if isinstance(event, TraceStarted))
    assert started.changes == ("node fix: code changed",)
    assert work.calls == {"a": 1}


async def test_a_node_version_that_changed_is_refused(store: InMemoryCheckpointStorage, work: Work) -> None:
    def graph(version: str) -> Graph:
        marked = node(version=version)(work.node("b"))
        return GraphBuilder("g").chain(work.node("a"), marked).build()

    work.broken = {"b"}
    async with Executor(graph("1"), DEBUG, store) as executor:
        with pytest.raises(ExecutionError):
            await executor.execute("task", trace_id="t")
    async with Executor(graph("2"), DEBUG, store) as executor:
        with pytest.raises(GraphChanged, match="version of b: 1 -> 2"):
            await executor.resume_from_checkpoint("t")


@pytest.mark.parametrize("each_node", [True, False])
async def test_a_result_whose_edges_could_not_be_decided_is_kept_and_not_made_again(
    each_node: bool, store: InMemoryCheckpointStorage, work: Work
) -> None:
    def graph(condition: str) -> Graph:
        builder = GraphBuilder("g", variables={"log": "append"})
        builder.node(work.node("a", lambda value, context: Result({"n": 1}, set={"log": "a was here"})))
        builder.node(work.node("b", lambda value, context: [value["n"], context.variables["log"]]))
        return builder.node(work.node("c")).edge("a", "b", when=condition).edge("a", "c", when="False").build()

    config = ExecutorConfig(checkpoint_after_each_node=each_node, debug_mutation=True)
    async with Executor(graph("structured['missing'] == 1"), config, store) as executor:
        with pytest.raises(ExecutionError, match="missing") as caught:
            await executor.execute("task", trace_id="t")
        assert (caught.value.node_id, caught.value.step) == ("a", 1)
        with pytest.raises(ExecutionError, match="missing"):
            await executor.resume_from_checkpoint("t")
    async with Executor(graph("structured['n'] == 1"), config, store) as executor:
        response = await executor.resume_from_checkpoint("t")
    assert response.value == [1, ["a was here"]]
    assert work.calls == {"a": 1, "b": 1}


# -- what a resume says ----------------------------------------------------------------------------------------


async def test_what_was_cancelled_is_told_as_running_again_once(store: InMemoryCheckpointStorage, work: Work) -> None:
    heard: list[Event] = []
    graph = GraphBuilder("g").edge(work.node("a"), "b").edge("a", "c").node(work.node("b")).node(work.node("c")).build()
    work.held["b"] = anyio.Event()
    async with Executor(graph, DEBUG, store, on_event=heard.append) as executor:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: executor.execute("task", trace_id="t"))
                await work.reached.wait()
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        work.held.clear()
        assert (await executor.execute("task", trace_id="t")).status == "completed"
    resumed = [event for event in heard if isinstance(event, TraceStarted)][1]
    assert (resumed.kept, resumed.again, resumed.lost, resumed.waiting) == (2, 1, 0, {"b": 1})
    started = [event.node_id for event in heard if isinstance(event, NodeStarted)]
    assert sorted(started) == ["a", "b", "b", "c"]
