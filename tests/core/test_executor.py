"""What `execute()` takes, gives back, and raises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypedDict

import anyio
import attrs
import pytest

from tinyllm import (
    ConfigError,
    ExecutionError,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    Message,
    MessagePayload,
    Result,
    Send,
    TaskPayload,
    ValueNotStorable,
)
from tinyllm.actors.events import Committed, Event, NodeFinished, TraceEnded, TraceStarted

pytestmark = pytest.mark.anyio

DEBUG = ExecutorConfig(debug_mutation=True)


def echo(value: Any) -> Any:
    return value


def one(function: Any, **keys: Any) -> Graph:
    return GraphBuilder("g").node(function, **keys).build()


@pytest.fixture
async def store() -> AsyncIterator[InMemoryCheckpointStorage]:
    made = InMemoryCheckpointStorage()
    await made.initialize()
    yield made
    await made.close()


# -- tasks and responses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "value", "content"),
    [
        ("text", "text", "text"),
        (TaskPayload("text"), "text", "text"),
        ({"a": [1, None]}, {"a": [1, None]}, '{\n  "a": [\n    1,\n    null\n  ]\n}'),
        (7, 7, "7"),
        (None, None, ""),
        ("", "", ""),
        (False, False, "false"),
        ((1, 2), (1, 2), None),
        (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC), None),
        (MessagePayload(structured={}, metadata={"a": 1}), {}, "{}"),
    ],
)
async def test_a_task_comes_out_as_it_went_in(task: Any, value: Any, content: str | None) -> None:
    async with Executor(one(echo), DEBUG) as executor:
        response = await executor.execute(task)
    assert response.value == value
    assert type(response.value) is type(value)
    assert content is None or response.content == content


async def test_a_response_says_what_was_done(store: InMemoryCheckpointStorage) -> None:
    async with Executor(GraphBuilder("g").chain(echo, "out").node("out", type="exit").build(), DEBUG, store) as ex:
        response = await ex.execute("text")
    assert (response.status, response.success, response.error, response.questions) == ("completed", True, None, ())
    assert response.nodes_executed == 2
    assert response.total_latency_ms > 0
    assert response.trace_id.startswith("g-")
    assert await store.trace(response.trace_id) is not None


async def test_a_task_with_metadata_reaches_conditions_and_messages() -> None:
    def read(message: Message) -> Any:
        assert message.payload.task == message.payload.content == "text"
        return dict(message.payload.metadata)

    def other() -> Any:
        return "not taken"

    def start(message: Message) -> Any:
        return message.payload

    graph = (
        GraphBuilder("g")
        .edge(start, read, when="metadata['lang'] == 'de' and lang == 'de'")
        .edge(start, other, when="lang != 'de'")
        .build()
    )
    async with Executor(graph, DEBUG) as executor:
        response = await executor.execute(TaskPayload("text", metadata={"lang": "de"}))
    assert response.value == {"lang": "de"}


async def test_several_exits_are_a_list() -> None:
    def split(value: Any) -> Any:
        return ["x", "y"]

    async with Executor(GraphBuilder("g").edge(split, echo, for_each=True).build(), DEBUG) as executor:
        response = await executor.execute("task")
    assert response.value == ["x", "y"]
    assert response.content == '[\n  "x",\n  "y"\n]'


async def test_initial_variables_and_what_nodes_set() -> None:
    def count(value: Any, context: Any) -> Any:
        return Result(value, set={"n": context.variables["n"] + 1, "log": f"n was {context.variables['n']}"})

    def read(context: Any) -> Any:
        return dict(context.variables)

    graph = (
        GraphBuilder("g", variables={"log": "append"}, allow_cycles=True)
        .entry(count)
        .edge(count, count, when="variables['n'] < 3")
        .edge(count, read, when="variables['n'] >= 3")
        .build()
    )
    async with Executor(graph, DEBUG) as executor:
        response = await executor.execute("task", variables={"n": 0, "log": ["begun"]})
    assert response.value == {"n": 3, "log": ["begun", "n was 0", "n was 1", "n was 2"]}


# -- nodes -----------------------------------------------------------------------------------------------------


@attrs.frozen
class Person:
    name: str
    tags: list[str]


class Found(TypedDict):
    people: list[Person]
    score: float


async def test_annotations_structure_what_a_node_gets() -> None:
    def find(value: str) -> Any:
        return {"people": [Person(value, ["x"])], "score": 1}

    def take(found: Found) -> Any:
        assert isinstance(found["people"][0], Person)
        return found["people"][0].name

    async with Executor(GraphBuilder("g").chain(find, take).build(), DEBUG) as executor:
        assert (await executor.execute("Ada")).value == "Ada"


async def test_what_does_not_fit_an_annotation_fails_the_node_with_the_path() -> None:
    def find(value: str) -> Any:
        return {"people": [{"name": "Ada", "tags": ["x", 7]}], "score": 1.0}

    def take(found: Found) -> Any:
        return found

    async with Executor(GraphBuilder("g").chain(find, take).build(), DEBUG) as executor:
        with pytest.raises(ExecutionError, match=r"nodes\.take: value\['people'\]\[0\]\.tags\[1\]: "):
            await executor.execute("Ada")


async def test_messages_of_a_join() -> None:
    def left(value: Any) -> Any:
        return "l"

    def right(value: Any) -> Any:
        return {"r": 1}

    def join(messages: list[Message]) -> Any:
        return sorted([message.source_node, message.payload.value, message.target_node] for message in messages)

    graph = GraphBuilder("g").edge(echo, left).edge(echo, right).edge(left, join).edge(right, join)
    async with Executor(graph.node(join, join="all").build(), DEBUG) as executor:
        response = await executor.execute("task")
    assert response.value == [["left", "l", "join"], ["right", {"r": 1}, "join"]]


async def test_sends_goto_and_none() -> None:
    def route(value: Any) -> Any:
        return [Send("work", 1), Send("work", 2), Send("skip", 3)]

    def work(value: Any) -> Any:
        return Result(value * 10, goto="end")

    def skip(value: Any) -> None:
        return None

    graph = (
        GraphBuilder("g").node(route, targets=["work", "skip"]).node(work, targets=["end", "skip"])
        .node(skip).edge(skip, "end").node("end", type="exit", join="all").build()
    )  # fmt: skip
    async with Executor(graph, DEBUG) as executor:
        assert (await executor.execute("task")).value == [10, 20, None]


async def test_mixed_sends_are_the_nodes_fault() -> None:
    def route(value: Any) -> Any:
        return [Send("work", 1), 2]

    graph = GraphBuilder("g").node(route, targets=[echo]).build()
    async with Executor(graph, DEBUG) as executor:
        with pytest.raises(ExecutionError, match="sends together with other items"):
            await executor.execute("task")


# -- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False])
async def test_a_failure_is_an_execution_error_with_all_that_is_known(
    stored: bool, store: InMemoryCheckpointStorage
) -> None:
    def boom(value: Any) -> Any:
        raise ValueError("boom")

    async with Executor(GraphBuilder("g").chain(echo, boom).build(), DEBUG, store if stored else None) as executor:
        with pytest.raises(ExecutionError, match="ValueError: boom") as caught:
            await executor.execute("task", trace_id="t")
    error = caught.value
    assert (error.trace_id, error.node_id, error.step) == ("t", "boom", 1)
    assert isinstance(error.__cause__, ValueError)
    assert error.response.status == "failed"
    assert error.response.success is False
    assert error.response.error.type == "ValueError"
    assert "raise ValueError" in error.response.error.traceback
    assert error.response.value is None
    if stored:
        record = await store.trace("t")
        assert record is not None
        assert record.status == "failed"


UNSTORABLE: Mapping[str, tuple[Any, str]] = {
    "object": ([0, 1, 2, {"when": object()}], r"nodes.measure: value\[3\]\['when'\]: "),
    "nan": ([1.0, float("nan")], r"nodes.measure: value\[1\]: "),
    "surrogate": ({"text": "\ud800"}, r"nodes.measure: value\['text'\]: "),
    "huge": ("x" * (65 * 2**20), r"nodes.measure: value: is larger than 64 MiB"),
}


@pytest.mark.parametrize("name", UNSTORABLE)
async def test_a_value_that_cannot_be_stored_fails_its_node_with_the_path(
    name: str, store: InMemoryCheckpointStorage
) -> None:
    value, message = UNSTORABLE[name]

    def measure() -> Any:
        return value

    async with Executor(one(measure), DEBUG, store) as executor:
        with pytest.raises(ExecutionError, match=message):
            await executor.execute("task", trace_id="t")
    assert await store.steps("t") == []


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"task": {"a": object()}}, r"task\['a'\]: "),
        ({"task": TaskPayload("x", metadata={"a": object()})}, r"task"),
        ({"task": 1, "variables": {"x": [object()]}}, r"variables\['x'\]\[0\]: "),
    ],
)
async def test_a_task_that_cannot_be_stored_is_refused_before_anything_is_run(
    options: dict[str, Any], path: str, store: InMemoryCheckpointStorage
) -> None:
    async with Executor(one(echo), DEBUG, store) as executor:
        with pytest.raises(ValueNotStorable, match=path):
            await executor.execute(**options)
    assert await store.traces() == []


@pytest.mark.parametrize("trace_id", ["", "a b", "@last", "x" * 200])
async def test_a_trace_id_that_nobody_could_type_is_refused(trace_id: str) -> None:
    async with Executor(one(echo), DEBUG) as executor:
        with pytest.raises(ConfigError, match="trace_id"):
            await executor.execute("task", trace_id=trace_id)


async def test_a_graph_that_ends_without_an_exit_is_an_execution_error() -> None:
    graph = GraphBuilder("g").edge(echo, "out", when="structured == 1").node("out", type="exit").build()
    async with Executor(graph, DEBUG) as executor:
        with pytest.raises(ExecutionError, match="without reaching an exit") as caught:
            await executor.execute(2)
        assert caught.value.node_id == "echo"
        assert not caught.value.resumable
        assert (await executor.execute(1)).value == 1


# -- observers -------------------------------------------------------------------------------------------------


async def test_an_observer_hears_in_order_and_its_mistakes_are_not_ours(
    store: InMemoryCheckpointStorage, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Event] = []

    def watch(event: Event) -> None:
        heard.append(event)
        if isinstance(event, NodeFinished):
            raise RuntimeError("the observer's own fault")

    async with Executor(
        GraphBuilder("g").chain(echo, "b").node("b", type="exit").build(), DEBUG, store, on_event=watch
    ) as ex:
        await ex.execute("task", trace_id="t")
    assert heard[0] == TraceStarted("t", False, 0, 0, 0, (), {"echo": 1})
    assert heard[-1] == TraceEnded("t", "completed", 2)
    assert [event.step for event in heard if isinstance(event, Committed)][-1] == 2
    assert all(event.trace_id == "t" for event in heard)
    assert "the observer of the executor failed" in caplog.text


# -- many at once ----------------------------------------------------------------------------------------------


async def test_many_traces_at_once_each_get_their_own_outcome(store: InMemoryCheckpointStorage) -> None:
    def split(value: Any) -> Any:
        return [value] * 3

    graph = GraphBuilder("g").edge(split, echo, for_each=True).edge(echo, sum_).node(sum_, join="all").build()
    outcomes: dict[int, Any] = {}
    async with Executor(graph, DEBUG, store) as executor, anyio.create_task_group() as tasks:

        async def execute(number: int) -> None:
            outcomes[number] = (await executor.execute(number)).value

        for number in range(60):
            tasks.start_soon(execute, number)
    assert outcomes == {number: 3 * number for number in range(60)}


def sum_(values: list[int]) -> int:
    return sum(values)


async def test_one_trace_with_many_siblings(store: InMemoryCheckpointStorage) -> None:
    async def split(value: Any) -> Any:
        return list(range(2000))

    async def same(value: Any) -> Any:
        return value

    graph = GraphBuilder("g").edge(split, same, for_each=True).edge(same, sum_).node(sum_, join="all").build()
    async with Executor(graph, ExecutorConfig(), store) as executor:
        response = await executor.execute("task", trace_id="t")
    assert response.value == sum(range(2000))
    assert response.nodes_executed == 2002
