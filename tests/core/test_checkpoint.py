"""`CheckpointManager`: what a program saves, lists, restores and clears by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.storage.backends import BACKENDS, open_backend
from tinyllm import (
    CheckpointConfig,
    CheckpointInUse,
    CheckpointManager,
    CheckpointRecord,
    ConfigError,
    ExecutionContext,
    ExecutionError,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    Message,
    MessagePayload,
    Result,
    StorageNotOpen,
    TraceMismatch,
    TraceOwned,
    UnknownSetting,
    ValueNotStorable,
)
from tinyllm.core.checkpoint import context_of
from tinyllm.storage.contract import Append, CheckpointStorage, Outcome, Write

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BACKENDS)
async def storage(
    request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[CheckpointStorage]:
    opened = open_backend(request.param, tmp_path)
    await opened.initialize()
    yield opened
    await opened.close()


@pytest.fixture
async def stores(tmp_path: Path, anyio_backend: str) -> AsyncIterator[list[CheckpointStorage]]:
    """One database, opened three times, as by three processes."""
    opened = [open_backend("sqlite", tmp_path) for _ in range(3)]
    for each in opened:
        await each.initialize()
    yield opened
    for each in opened:
        await each.close()


@pytest.fixture
def manager(storage: CheckpointStorage) -> CheckpointManager:
    return CheckpointManager(storage)


@pytest.fixture
def written(storage: CheckpointStorage, monkeypatch: pytest.MonkeyPatch) -> list[Write]:
    """What is written, as it is."""
    writes: list[Write] = []
    commit = storage.commit

    async def noted(batch: Any) -> list[Outcome]:
        writes.extend(batch)
        return await commit(batch)

    monkeypatch.setattr(storage, "commit", noted)
    return writes


def example(trace_id: str = "trace-123", nodes: int = 5) -> ExecutionContext:
    """A context as a program keeps it: each node said one thing."""
    context = ExecutionContext(
        trace_id=trace_id, graph_id="my-graph", start_time=datetime(2025, 12, 19, 10, tzinfo=UTC), config=object()
    )
    context.set_variable("key", "value")
    for number in range(1, nodes + 1):
        go_on(context, number)
    context.add_tokens(100, 150)
    return context


def go_on(context: ExecutionContext, number: int) -> None:
    context.visit_node(f"node{number}")
    context.add_message(Message("trace-123", f"node{number}", payload=MessagePayload(content=f"said {number}")))


def facts(context: ExecutionContext) -> dict[str, Any]:
    return {
        "nodes": list(context.visited_nodes),
        "variables": context.variables,
        "messages": list(context.messages),
        "counters": (context.step_count, context.total_tokens_in, context.total_tokens_out),
        "started": context.start_time,
    }


def pair() -> Graph:
    def one(value: str) -> Any:
        return Result(value + "!", set={"one": 1})

    def two(value: str) -> str:
        return value + "?"

    return GraphBuilder("g").chain(one, two).build()


# -- as the promise has it -------------------------------------------------------------------------------------


async def test_the_promised_example_works(storage: CheckpointStorage) -> None:
    manager = CheckpointManager(
        storage,
        CheckpointConfig(checkpoint_interval_ms=5000, checkpoint_after_each_node=True, max_checkpoints_per_trace=50),
    )
    await manager.initialize()
    context = example()
    checkpoint = await manager.save_checkpoint(context=context, current_node_id="node5", force=True)
    assert checkpoint is not None
    assert (checkpoint.graph_id, checkpoint.trace_id, checkpoint.step, checkpoint.node_id) == (
        "my-graph",
        "trace-123",
        5,
        "node5",
    )
    assert checkpoint.state == {
        "current_node": "node5",
        "visited_nodes": ["node1", "node2", "node3", "node4", "node5"],
        "variables": {"key": "value"},
        "step_count": 5,
        "total_tokens_in": 100,
        "total_tokens_out": 150,
        "start_time": "2025-12-19T10:00:00+00:00",
    }
    assert checkpoint.messages == context.messages
    assert await manager.load_checkpoint(graph_id="my-graph", trace_id="trace-123") == checkpoint
    restored = ExecutionContext(trace_id="new", graph_id="my-graph")
    await manager.restore_context(checkpoint, restored)
    assert facts(restored) == facts(context)
    assert (restored.current_node, restored.trace_id) == ("node5", "new")
    checkpoints = await manager.list_checkpoints(graph_id="my-graph", trace_id="trace-123")
    assert [f"Step {cp.step}: {cp.node_id} ({cp.status})" for cp in checkpoints] == ["Step 5: node5 (paused)"]
    assert await manager.clear_checkpoints(graph_id="my-graph", trace_id="trace-123") == 1
    assert await manager.load_checkpoint("my-graph", "trace-123") is None
    assert await manager.clear_checkpoints("my-graph", "trace-123") == 0
    await manager.close()
    await manager.close()


async def test_a_restored_context_is_changed_without_changing_the_checkpoint(manager: CheckpointManager) -> None:
    context = example()
    context.set_variable("list", [1])
    saved = await manager.save_checkpoint(context, "node5")
    assert saved is not None
    restored = ExecutionContext(trace_id="trace-123", graph_id="my-graph")
    await manager.restore_context(saved, restored)
    restored.get_variable("list").append(2)
    go_on(restored, 6)
    assert (saved.state["variables"]["list"], len(saved.messages), len(saved.state["visited_nodes"])) == ([1], 5, 5)
    later = await manager.save_checkpoint(restored, "node6")
    assert later is not None
    assert (later.step, later.message_count, later.state["variables"]["list"]) == (6, 6, [1, 2])


async def test_a_record_that_a_program_made_itself_is_restored_too(manager: CheckpointManager) -> None:
    said = [Message("t", "a", payload=MessagePayload(content="hi"))]
    state = {"visited_nodes": ["a"], "variables": {"x": [1]}, "step_count": 3, "total_tokens_in": 4}
    record = CheckpointRecord(id="i", graph_id="g", trace_id="t", step=3, state=state, messages=said, node_id="a")
    context = ExecutionContext(trace_id="t", graph_id="g")
    await manager.restore_context(record, context)
    assert context.current_node == "a", "the node of the checkpoint, whatever its state says"
    context.visit_node("b")
    context.add_message(said[0])
    context.get_variable("x").append(2)
    assert (context.step_count, context.total_tokens_in, context.messages) == (4, 4, said * 2)
    assert (record.messages, record.state) == (said, state)
    assert state == {"visited_nodes": ["a"], "variables": {"x": [1]}, "step_count": 3, "total_tokens_in": 4}


async def test_a_start_time_without_a_zone_is_utc(manager: CheckpointManager) -> None:
    """As the records that users were shown have it."""
    record = CheckpointRecord(
        id="i", graph_id="my-graph", trace_id="t", step=5, state={"start_time": "2025-12-19T10:00:00"}
    )
    context = ExecutionContext(trace_id="t", graph_id="my-graph")
    await manager.restore_context(record, context)
    assert context.start_time == datetime(2025, 12, 19, 10, tzinfo=UTC)


# -- what is stored --------------------------------------------------------------------------------------------


async def test_only_what_is_new_is_written(manager: CheckpointManager, written: list[Write]) -> None:
    context = example(nodes=50)
    context.set_variable("big", "x" * 10_000)
    context.set_variable("gone", 1)
    await manager.save_checkpoint(context, "node50")
    written.clear()
    go_on(context, 51)
    context.set_variable("key", "changed")
    del context.variables["gone"]
    saved = await manager.save_checkpoint(context, "node51")
    (delta,) = [write.delta for write in written if isinstance(write, Append)]
    assert [row.node for row in delta.messages] == ["node51"]
    assert [(row.key, row.kind) for row in delta.variables] == [("key", "full"), ("gone", "deleted")]
    assert [(row.step, row.node) for row in delta.steps] == [(51, "node51")]
    assert delta.size < 1000
    assert saved is not None
    assert (saved.messages, saved.state["variables"]) == (context.messages, context.variables)
    assert saved.state["visited_nodes"] == context.visited_nodes


async def test_each_save_is_a_checkpoint_that_can_be_restored(manager: CheckpointManager) -> None:
    context = ExecutionContext(trace_id="t", graph_id="g")
    expected = []
    for number in range(1, 8):
        go_on(context, number)
        if number % 2:
            context.set_variable("count", number)
        context.add_tokens(1, 2)
        await manager.save_checkpoint(context, f"node{number}")
        expected.append({**facts(context), "variables": dict(context.variables)})
    records = (await manager.list_checkpoints("g", "t"))[::-1]
    assert [(record.step, record.node_id, record.rev) for record in records] == [
        (number, f"node{number}", number - 1) for number in range(1, 8)
    ]
    assert [facts(context_of(record)) for record in records] == expected
    assert await manager.save_checkpoint(context, "node7") == (await manager.list_checkpoints("g", "t"))[0]
    assert len(await manager.list_checkpoints("g", "t")) == 8


async def test_steps_may_be_counted_otherwise_than_by_visits(manager: CheckpointManager) -> None:
    context = ExecutionContext(trace_id="t", graph_id="g", visited_nodes=["a"], step_count=7)
    saved = await manager.save_checkpoint(context, "a")
    assert saved is not None
    assert (saved.step, saved.state["visited_nodes"], saved.state["step_count"]) == (7, ["a"], 7)
    context.visit_node("b")
    saved = await manager.save_checkpoint(context, "b")
    assert saved is not None
    assert (saved.step, saved.state["visited_nodes"]) == (8, ["a", "b"])


async def test_no_more_are_kept_than_the_setting_says(storage: CheckpointStorage) -> None:
    manager = CheckpointManager(storage, CheckpointConfig(max_checkpoints_per_trace=5))
    context = ExecutionContext(trace_id="t", graph_id="g")
    for number in range(1, 21):
        go_on(context, number)
        await manager.save_checkpoint(context, f"node{number}")
    records = await manager.list_checkpoints("g", "t")
    assert [record.step for record in records] == [20, 19, 18, 17, 1]
    assert [facts(context_of(records[0]))["messages"], len(records[-1].messages)] == [list(context.messages), 1]


async def test_what_cannot_be_stored_is_named_and_nothing_is_written(
    manager: CheckpointManager, written: list[Write]
) -> None:
    context = example()
    context.set_variable("bad", {"when": object()})
    with pytest.raises(ValueNotStorable, match=r"context\.variables\['bad'\]\['when'\]"):
        await manager.save_checkpoint(context, "node5")
    del context.variables["bad"]
    context.add_message(Message("t", "a", payload=MessagePayload(structured=object())))
    with pytest.raises(ValueNotStorable, match=r"context\.messages\[5\]\.payload"):
        await manager.save_checkpoint(context, "node5")
    assert written == []
    with pytest.raises(ConfigError, match="trace_id"):
        await manager.save_checkpoint(ExecutionContext(trace_id="not an id", graph_id="g"), "a")


async def test_a_context_that_goes_on_otherwise_is_refused(manager: CheckpointManager) -> None:
    context = example()
    await manager.save_checkpoint(context, "node5")
    other = example(nodes=4)
    go_on(other, 9)
    for unlike in (other, example(nodes=4)):
        with pytest.raises(TraceMismatch, match=r"another list of messages; .* another trace_id"):
            await manager.save_checkpoint(unlike, "node9")
    with pytest.raises(TraceMismatch, match="another graph"):
        await manager.save_checkpoint(ExecutionContext(trace_id="trace-123", graph_id="h"), "node1")
    nodes = example()
    nodes.visited_nodes[-1] = "other"
    with pytest.raises(TraceMismatch, match="another list of visited nodes"):
        await manager.save_checkpoint(nodes, "node9")


async def test_two_that_save_at_once_lose_nothing(storage: CheckpointStorage) -> None:
    """Each has a variable of its own: both are there, one after the other, or the later one is what it says."""
    await CheckpointManager(storage).save_checkpoint(ExecutionContext(trace_id="t", graph_id="g"), "start")

    async def save(name: str) -> None:
        context = ExecutionContext(trace_id="t", graph_id="g", variables={name: 1})
        await CheckpointManager(storage).save_checkpoint(context, name)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(save, f"saver{number}")
    records = await storage.list_checkpoints("g", "t")
    assert [record.rev for record in records] == [5, 4, 3, 2, 1, 0]
    assert {record.node_id for record in records[:-1]} == {f"saver{number}" for number in range(5)}
    for record in records[:-1]:
        assert record.state["variables"] == {record.node_id: 1}
    trace = await storage.trace("t")
    assert trace is not None
    assert (trace.status, trace.owner) == ("paused", None)


_changes = st.lists(
    st.one_of(
        st.tuples(st.just("visit"), st.sampled_from("abc")),
        st.tuples(st.just("say"), st.one_of(st.text(max_size=3), st.integers(), st.none())),
        st.tuples(st.just("set"), st.tuples(st.sampled_from("xyz"), st.lists(st.integers(), max_size=2))),
        st.tuples(st.just("forget"), st.sampled_from("xyz")),
        st.tuples(st.just("count"), st.integers(0, 5)),
        st.tuples(st.just("save"), st.sampled_from("abc")),
    ),
    max_size=30,
)


@given(changes=_changes)
def test_whatever_was_saved_is_restored_as_it_was_then(changes: list[tuple[str, Any]]) -> None:
    async def run() -> None:
        storage = InMemoryCheckpointStorage()
        manager = CheckpointManager(storage, CheckpointConfig(max_checkpoints_per_trace=1000))
        context = ExecutionContext(trace_id="t", graph_id="g")
        expected: list[dict[str, Any]] = []
        for kind, what in changes:
            match kind:
                case "visit":
                    context.visit_node(what)
                case "say":
                    context.add_message(Message("t", "a", "b", payload=MessagePayload.of(what)))
                case "set":
                    context.set_variable(*what)
                case "forget":
                    context.variables.pop(what, None)
                case "count":
                    context.add_tokens(what, 1)
                case _:
                    await manager.save_checkpoint(context, what)
                    expected.append({**facts(context), "variables": deepcopy(context.variables)})
        records = await manager.list_checkpoints("g", "t")
        assert [facts(context_of(record)) for record in reversed(records)] == expected
        await storage.close()

    anyio.run(run)


async def test_programs_that_save_the_same_trace_at_once_lose_nothing(stores: list[CheckpointStorage]) -> None:
    """Whoever comes second finds what the first added, and adds its own behind that."""
    await CheckpointManager(stores[0]).save_checkpoint(ExecutionContext(trace_id="t", graph_id="g"), "start")

    async def save(storage: CheckpointStorage, name: str) -> None:
        manager = CheckpointManager(storage)
        for number in range(5):
            context = ExecutionContext(trace_id="t", graph_id="g", variables={name: number})
            await manager.save_checkpoint(context, f"{name}{number}")

    async with anyio.create_task_group() as tasks:
        for name, storage in zip("abc", stores, strict=True):
            tasks.start_soon(save, storage, name)
    records = await stores[0].list_checkpoints("g", "t")
    assert [record.rev for record in records] == list(range(15, -1, -1))
    for record in records[:-1]:
        assert {f"{name}{number}" for name, number in record.state["variables"].items()} == {record.node_id}


# -- traces that an executor executed --------------------------------------------------------------------------


async def test_a_traces_own_context_is_a_label_and_nothing_else_is_written(
    storage: CheckpointStorage, manager: CheckpointManager, written: list[Write]
) -> None:
    response = await Executor(pair(), checkpoint_storage=storage).execute("go")
    latest = await manager.load_checkpoint("g", response.trace_id)
    assert latest is not None
    context = context_of(latest)
    assert (context.visited_nodes, context.variables, context.step_count) == (["one", "two"], {"one": 1}, 2)
    assert [message.payload.value for message in context.messages] == ["go", "go!", "go!?"]
    written.clear()
    before = await manager.list_checkpoints("g", response.trace_id)
    saved = await manager.save_checkpoint(context, current_node_id="ingestion_complete", force=True)
    assert saved is not None
    assert (saved.id, saved.label, saved.node_id) == (latest.id, "ingestion_complete", "ingestion_complete")
    assert [type(write).__name__ for write in written] == ["Label"]
    after = await manager.list_checkpoints("g", response.trace_id)
    assert [record.rev for record in after] == [record.rev for record in before]
    assert after[0].label == "ingestion_complete"
    assert (
        await Executor(pair(), checkpoint_storage=storage).resume_from_checkpoint(response.trace_id)
    ).value == "go!?"
    restored = ExecutionContext(trace_id=response.trace_id, graph_id="g")
    await manager.restore_context(saved, restored)
    assert restored.current_node == "ingestion_complete"


async def test_an_older_state_of_a_trace_is_labelled_where_it_is(
    storage: CheckpointStorage, manager: CheckpointManager
) -> None:
    response = await Executor(pair(), checkpoint_storage=storage).execute("go")
    newest, middle, _ = await manager.list_checkpoints("g", response.trace_id)
    saved = await manager.save_checkpoint(context_of(middle), "half")
    assert saved is not None
    assert (saved.id, saved.label) == (middle.id, "half")
    assert (await manager.get_checkpoint(newest.id)) == newest


async def test_what_was_changed_in_a_traces_context_is_added_to_it(
    storage: CheckpointStorage, manager: CheckpointManager
) -> None:
    broken = True

    def one(value: str) -> str:
        return value + "!"

    def two(value: str, context: Any) -> str:
        if broken:
            raise ValueError("broken")
        return f"{value} {context.variables['hint']}"

    executor = Executor(GraphBuilder("g").chain(one, two).build(), checkpoint_storage=storage)
    with pytest.raises(ExecutionError) as failed:
        await executor.execute("go")
    trace_id = failed.value.trace_id
    latest = await manager.load_checkpoint("g", trace_id)
    assert latest is not None
    context = context_of(latest)
    context.set_variable("hint", "mended")
    saved = await manager.save_checkpoint(context, "by hand")
    assert saved is not None
    assert (saved.rev, saved.status, saved.frontier_count) == (latest.rev + 1, "failed", 1)
    assert saved.label == "by hand", "so it is kept, as one that was saved by hand is"
    assert list(saved.visited_nodes) == ["one"]
    trace = await storage.trace(trace_id)
    assert trace is not None
    assert (trace.status, trace.owner, trace.error is None) == ("failed", None, False)
    broken = False
    assert (await executor.resume_from_checkpoint(trace_id)).value == "go! mended"


async def test_a_trace_that_a_live_process_executes_is_labelled_but_not_changed(
    storage: CheckpointStorage, manager: CheckpointManager
) -> None:
    reached, held = anyio.Event(), anyio.Event()

    async def one(value: str) -> str:
        reached.set()
        await held.wait()
        return value

    executor = Executor(GraphBuilder("g").node(one).build(), checkpoint_storage=storage)
    async with executor, anyio.create_task_group() as tasks:
        tasks.start_soon(executor.execute, "go")
        await reached.wait()
        (trace,) = await storage.traces()
        latest = await manager.load_checkpoint("g", trace.trace_id)
        assert latest is not None
        context = context_of(latest)
        labelled = await manager.save_checkpoint(context, "here")
        assert labelled is not None
        assert labelled.label == "here"
        context.set_variable("x", 1)
        with pytest.raises(TraceOwned):
            await manager.save_checkpoint(context, "here")
        with pytest.raises(TraceOwned):
            await manager.clear_checkpoints("g", trace.trace_id)
        held.set()
    assert (await storage.traces())[0].status == "completed"


# -- when ------------------------------------------------------------------------------------------------------


async def test_a_checkpoint_is_due_as_configured(storage: CheckpointStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tinyllm.core.checkpoint.monotonic", lambda: now[0])
    each = CheckpointManager(storage, CheckpointConfig(checkpoint_interval_ms=0))
    assert each.should_checkpoint()
    never = CheckpointManager(storage, CheckpointConfig(checkpoint_interval_ms=0, checkpoint_after_each_node=False))
    timed = CheckpointManager(storage, CheckpointConfig(checkpoint_interval_ms=5000, checkpoint_after_each_node=False))
    assert (never.should_checkpoint(), never.should_checkpoint(force=True)) == (False, True)
    now[0] += 4.9
    assert not timed.should_checkpoint()
    assert await timed.save_checkpoint(example(), "node5") is None
    assert await storage.list() == []
    now[0] += 0.1
    assert timed.should_checkpoint()
    assert not never.should_checkpoint()
    assert await timed.save_checkpoint(example(), "node5") is not None
    assert not timed.should_checkpoint()
    assert await never.save_checkpoint(example("forced"), "node5", force=True) is not None


# -- finding and taking away -----------------------------------------------------------------------------------


async def test_a_checkpoint_is_found_and_deleted_by_its_id(
    manager: CheckpointManager, storage: CheckpointStorage
) -> None:
    context = example()
    saved = []
    for number in range(6, 9):
        go_on(context, number)
        saved.append(await manager.save_checkpoint(context, f"node{number}"))
    first, middle, newest = (record.id for record in saved if record is not None)
    assert await manager.get_checkpoint(middle) == saved[1]
    assert await manager.delete_checkpoint(middle) is True
    assert await manager.delete_checkpoint(middle) is False
    assert await manager.get_checkpoint(middle) is None
    for kept in (first, newest):
        with pytest.raises(CheckpointInUse):
            await manager.delete_checkpoint(kept)
    latest = await manager.load_checkpoint("my-graph", "trace-123")
    assert latest is not None
    assert facts(context_of(latest)) == facts(context)


async def test_with_its_only_checkpoint_a_trace_is_deleted(
    manager: CheckpointManager, storage: CheckpointStorage
) -> None:
    saved = await manager.save_checkpoint(example(), "node5")
    assert saved is not None
    assert await manager.delete_checkpoint(saved.id) is True
    assert await storage.traces() == []


async def test_clearing_counts_what_was_there_and_leaves_other_traces(manager: CheckpointManager) -> None:
    context = example()
    for number in range(6, 9):
        go_on(context, number)
        await manager.save_checkpoint(context, f"node{number}")
    await manager.save_checkpoint(example("other"), "node5")
    assert await manager.clear_checkpoints("another-graph", "trace-123") == 0
    assert await manager.clear_checkpoints("my-graph", "trace-123") == 3
    assert [record.trace_id for record in await manager.list_checkpoints("my-graph")] == ["other"]


# -- lifecycle and settings ------------------------------------------------------------------------------------


async def test_closing_a_manager_leaves_the_storage_that_it_was_given(storage: CheckpointStorage) -> None:
    manager = CheckpointManager(storage)
    await manager.initialize()
    await manager.initialize()
    saved = await manager.save_checkpoint(example(), "node5")
    await manager.close()
    await manager.close()
    assert saved is not None
    assert await storage.get(saved.id) == saved


async def test_a_path_is_opened_and_closed(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    with pytest.raises(StorageNotOpen, match="call initialize"):
        await manager.list_checkpoints("g")
    await manager.initialize()
    await manager.initialize()
    saved = await manager.save_checkpoint(example(), "node5")
    storage = manager.storage
    await manager.close()
    await manager.close()
    with pytest.raises(StorageNotOpen):
        await storage.traces()
    await manager.initialize()
    assert saved is not None
    found = await manager.get_checkpoint(saved.id)
    assert found is not None
    assert [message.payload.value for message in found.messages] == [f"said {number}" for number in range(1, 6)]
    await manager.close()
    assert repr(manager) == f"<CheckpointManager of {tmp_path}>"


async def test_a_manager_refuses_what_is_no_storage_and_no_config() -> None:
    given: Any = 5
    with pytest.raises(ConfigError, match="storage"):
        CheckpointManager(given)
    with pytest.raises(ConfigError, match="config"):
        CheckpointManager(".", given)


@pytest.mark.parametrize("kind", [CheckpointConfig, ExecutorConfig])
async def test_settings_have_the_promised_defaults_and_name_what_they_refuse(kind: Any) -> None:
    config = kind()
    assert config.checkpoint_interval_ms == 5000
    assert config.checkpoint_after_each_node is True
    assert config.max_checkpoints_per_trace == 100
    assert config.durability == "async"
    with pytest.raises(UnknownSetting) as unknown:
        kind(checkpoint_intervall_ms=5)
    assert str(unknown.value) == (
        "there is no setting 'checkpoint_intervall_ms'; did you mean 'checkpoint_interval_ms' "
        "(a whole number of at least 0)?"
    )
    for setting, value, allowed in (
        ("checkpoint_interval_ms", -1, "a whole number of at least 0"),
        ("checkpoint_interval_ms", True, "a whole number of at least 0"),
        ("max_checkpoints_per_trace", 0, "a whole number of at least 1"),
        ("checkpoint_after_each_node", 1, "True or False"),
        ("durability", "later", "'async', 'sync' or 'exit'"),
    ):
        with pytest.raises(ConfigError, match=f"setting '{setting}' is {value!r}; it must be {allowed}"):
            kind(**{setting: value})


# -- a store's own method --------------------------------------------------------------------------------------


async def test_a_store_saves_a_state_directly(storage: CheckpointStorage) -> None:
    state = {
        "current_node": "node2",
        "visited_nodes": ["node1", "node2"],
        "variables": {"key": "value"},
        "step_count": 2,
        "total_tokens_in": 1,
        "total_tokens_out": 2,
        "start_time": "2025-12-19T10:00:00",
        "mine": {"anything": [1]},
    }
    said = [{"role": "user", "content": "hi"}, Message("t", "node1", payload=MessagePayload(content="x"))]
    record = await storage.save_checkpoint(
        graph_id="g", trace_id="t", step=2, state=state, messages=said, node_id="node2"
    )
    assert (record.id, record.step, record.node_id) == ("t@0", 2, "node2")
    assert record.state == state
    assert record.messages[0].payload.structured == {"role": "user", "content": "hi"}
    assert record.messages[1] == said[1]
    more = await storage.save_checkpoint(
        graph_id="g", trace_id="t", step=3, state={**state, "mine": 2}, messages=[*said, "bye"], node_id="node3"
    )
    assert (more.id, more.step, more.message_count, more.state["mine"]) == ("t@1", 3, 3, 2)
    assert await storage.get_latest_checkpoint("g", "t") == more
    bare = await storage.save_checkpoint(graph_id="g", trace_id="bare", step=1, state={}, messages=[], node_id="a")
    assert (bare.step, bare.state["current_node"], len(bare.messages)) == (1, "a", 0)
