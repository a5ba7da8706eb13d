"""What users were given as code works as it was written, with paths and ids filled in.

Names, arguments and import paths are those of the text, on purpose also where a shorter form would do.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import pytest

from tests.promises.stages import NODES, Stages
from tinyllm.core.checkpoint import CheckpointConfig, CheckpointManager
from tinyllm.core.context import ExecutionContext
from tinyllm.core.executor import Executor, ExecutorConfig
from tinyllm.core.graph import Graph
from tinyllm.core.message import Message, MessagePayload, TaskPayload
from tinyllm.errors import ExecutionError, TraceNotFound
from tinyllm.persistence.interface import CheckpointRecord, CheckpointStorage, StorageConfig
from tinyllm.persistence.memory_backend import InMemoryCheckpointStorage
from tinyllm.persistence.sqlite_backend import SQLiteCheckpointStorage

pytestmark = pytest.mark.anyio

logger = logging.getLogger(__name__)

STATE_KEYS = [
    "current_node",
    "visited_nodes",
    "variables",
    "step_count",
    "total_tokens_in",
    "total_tokens_out",
    "start_time",
]


@pytest.fixture
def graph(stages: Stages) -> Graph:
    return stages.graph()


@pytest.fixture
def executor(graph: Graph, checkpoint_storage: CheckpointStorage) -> Executor:
    return Executor(graph=graph, config=ExecutorConfig(), checkpoint_storage=checkpoint_storage)


# -- storage backends ------------------------------------------------------------------------------------------


async def test_sqlite_storage(tmp_path: Path) -> None:
    config = StorageConfig(sqlite_path=str(tmp_path / "path/to/checkpoint/directory"))
    checkpoint_storage = SQLiteCheckpointStorage(config)
    await checkpoint_storage.initialize()
    await checkpoint_storage.initialize()
    assert await checkpoint_storage.list() == []
    await checkpoint_storage.close()
    await checkpoint_storage.close()
    assert (tmp_path / "path/to/checkpoint/directory").is_dir()


async def test_in_memory_storage() -> None:
    config = StorageConfig()
    checkpoint_storage = InMemoryCheckpointStorage(config)
    await checkpoint_storage.initialize()
    await checkpoint_storage.initialize()
    assert await checkpoint_storage.list() == []
    await checkpoint_storage.close()
    await checkpoint_storage.close()


# -- configuration ---------------------------------------------------------------------------------------------


async def test_executor_configuration(graph: Graph, checkpoint_storage: CheckpointStorage) -> None:
    executor_config = ExecutorConfig(
        checkpoint_interval_ms=5000,
        checkpoint_after_each_node=True,
    )
    executor = Executor(
        graph=graph,
        config=executor_config,
        checkpoint_storage=checkpoint_storage,
    )
    assert executor.config == executor_config == ExecutorConfig()


def test_checkpoint_config_options() -> None:
    config = CheckpointConfig(
        checkpoint_interval_ms=0,
        checkpoint_after_each_node=False,
    )
    assert (config.checkpoint_interval_ms, config.checkpoint_after_each_node) == (0, False)
    assert config.max_checkpoints_per_trace == 100


# -- usage -----------------------------------------------------------------------------------------------------


async def test_basic_execution_with_checkpointing(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = StorageConfig(sqlite_path="~/.tinyllm/data")
    checkpoint_storage = SQLiteCheckpointStorage(config)
    await checkpoint_storage.initialize()

    executor_config = ExecutorConfig(
        checkpoint_interval_ms=5000,
        checkpoint_after_each_node=True,
    )

    executor = Executor(
        graph=graph,
        config=executor_config,
        checkpoint_storage=checkpoint_storage,
    )

    task = TaskPayload(content="Process this long-running task")
    response = await executor.execute(task)

    assert response.success
    assert response.content == "Process this long-running task > node1 > node2 > node3 > node4 > node5"
    saved = await checkpoint_storage.list_checkpoints(graph_id="my-graph", trace_id=response.trace_id)
    assert [record.node_id for record in saved] == [*reversed(NODES), None], "one after each node, and the admission"
    assert (tmp_path / ".tinyllm/data").is_dir()

    await executor.close()
    await checkpoint_storage.close()


async def test_resuming_using_the_same_executor(executor: Executor, stages: Stages) -> None:
    stages.broken = "node4"
    with pytest.raises(ExecutionError) as failed:
        await executor.execute(TaskPayload(content="Process"))
    stages.broken = None
    response = await executor.resume_from_checkpoint(
        trace_id=failed.value.trace_id,
    )
    assert response.content == "Process > node1 > node2 > node3 > node4 > node5"
    assert stages.calls == {"node1": 1, "node2": 1, "node3": 1, "node4": 2, "node5": 1}


async def test_resuming_with_a_task_and_the_resume_trace_id_parameter(
    executor: Executor, stages: Stages, checkpoint_storage: CheckpointStorage
) -> None:
    stages.broken = "node4"
    with pytest.raises(ExecutionError) as failed:
        await executor.execute(TaskPayload(content="Process"))
    stages.broken = None
    response = await executor.execute(
        task=TaskPayload(content="Resume task"),
        resume_trace_id=failed.value.trace_id,
    )
    assert response.trace_id == failed.value.trace_id
    assert response.content == "Process > node1 > node2 > node3 > node4 > node5", "an unfinished trace is continued"
    assert stages.calls["node1"] == 1
    latest = await checkpoint_storage.get_latest_checkpoint("my-graph", response.trace_id)
    assert latest is not None
    said = [message.payload.content for message in latest.messages]
    assert said.count("Resume task") == 1


async def test_using_the_checkpoint_manager_directly(checkpoint_storage: CheckpointStorage) -> None:
    execution_context = ExecutionContext(trace_id="trace-123", graph_id="my-graph")
    new_context = ExecutionContext(trace_id="trace-124", graph_id="my-graph")
    execution_context.visit_node("node1")
    execution_context.set_variable("key", "value")

    checkpoint_config = CheckpointConfig(
        checkpoint_interval_ms=5000,
        checkpoint_after_each_node=True,
        max_checkpoints_per_trace=50,
    )

    manager = CheckpointManager(checkpoint_storage, checkpoint_config)
    await manager.initialize()

    checkpoint = await manager.save_checkpoint(
        context=execution_context,
        current_node_id="node1",
        force=True,
    )
    assert checkpoint is not None

    loaded = await manager.load_checkpoint(
        graph_id="my-graph",
        trace_id="trace-123",
    )
    assert loaded == checkpoint

    await manager.restore_context(checkpoint, new_context)
    assert (new_context.current_node, new_context.visited_nodes) == ("node1", ["node1"])
    assert new_context.get_variable("key") == "value"

    checkpoints = await manager.list_checkpoints(
        graph_id="my-graph",
        trace_id="trace-123",
    )
    assert checkpoints == [checkpoint]
    assert len(await manager.list_checkpoints(graph_id="my-graph")) == 1, "the trace is optional"

    count = await manager.clear_checkpoints(
        graph_id="my-graph",
        trace_id="trace-123",
    )
    assert count == 1
    assert await manager.load_checkpoint(graph_id="my-graph", trace_id="trace-123") is None

    await manager.close()
    assert await checkpoint_storage.list() == [], "who was given a storage does not close it"


# -- checkpoint data structure ---------------------------------------------------------------------------------


def test_a_checkpoint_record_is_made_as_the_text_shows_it() -> None:
    messages = [Message("trace-123", "node5", payload=MessagePayload(content="done"))]
    record = CheckpointRecord(
        id="checkpoint-uuid",
        graph_id="my-graph",
        trace_id="trace-123",
        step=5,
        state={
            "current_node": "node5",
            "visited_nodes": ["node1", "node2", "node3", "node4", "node5"],
            "variables": {"key": "value"},
            "step_count": 5,
            "total_tokens_in": 100,
            "total_tokens_out": 150,
            "start_time": "2025-12-19T10:00:00",
        },
        messages=messages,
        node_id="node5",
        status="pending",
    )
    assert (record.id, record.graph_id, record.trace_id, record.step) == ("checkpoint-uuid", "my-graph", "trace-123", 5)
    assert (record.node_id, record.status, record.messages) == ("node5", "pending", messages)
    assert list(record.state) == STATE_KEYS
    assert (record.message_count, record.metadata) == (1, {})
    assert record.created_at.utcoffset() == record.updated_at.utcoffset() == timedelta(0)


async def test_a_record_from_a_store_has_all_that_the_text_shows(
    executor: Executor, checkpoint_storage: CheckpointStorage
) -> None:
    response = await executor.execute(TaskPayload(content="Process"))
    record = await checkpoint_storage.get_latest_checkpoint(graph_id="my-graph", trace_id=response.trace_id)
    assert record is not None
    assert list(record.state) == STATE_KEYS
    assert record.state["start_time"].startswith(f"{record.created_at:%Y-%m-%dT}")
    assert {key: value for key, value in record.state.items() if key != "start_time"} == {
        "current_node": "node5",
        "visited_nodes": list(NODES),
        "variables": {"key": "value", "seen": 5},
        "step_count": 5,
        "total_tokens_in": 100,
        "total_tokens_out": 150,
    }
    assert (record.graph_id, record.trace_id, record.step, record.node_id) == (
        "my-graph",
        response.trace_id,
        5,
        "node5",
    )
    assert record.status == "completed"
    assert [message.source_node for message in record.messages] == ["", *NODES]
    assert record.messages[-1].payload.content == response.content
    assert record.message_count == 6
    assert record.metadata == {}
    assert record.created_at.utcoffset() == record.updated_at.utcoffset() == timedelta(0)


# -- best practices --------------------------------------------------------------------------------------------


async def test_error_handling(executor: Executor, stages: Stages, caplog: pytest.LogCaptureFixture) -> None:
    trace_id, task = "trace-123", TaskPayload(content="Process")
    try:
        response = await executor.resume_from_checkpoint(trace_id)
    except Exception as e:
        logger.error(f"Failed to resume from checkpoint: {e}")
        response = await executor.execute(task)
    assert response.success
    assert "Failed to resume from checkpoint: no checkpoint found" in caplog.text
    assert stages.calls["node1"] == 1


async def test_monitoring(
    executor: Executor, checkpoint_storage: CheckpointStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = CheckpointManager(checkpoint_storage)
    graph_id, trace_id = "my-graph", (await executor.execute(TaskPayload(content="Process"))).trace_id

    checkpoints = await manager.list_checkpoints(graph_id, trace_id)
    print(f"Total checkpoints: {len(checkpoints)}")

    for cp in checkpoints:
        print(f"Step {cp.step}: {cp.node_id} ({cp.status})")

    assert capsys.readouterr().out.splitlines() == [
        "Total checkpoints: 6",
        "Step 5: node5 (completed)",
        "Step 4: node4 (running)",
        "Step 3: node3 (running)",
        "Step 2: node2 (running)",
        "Step 1: node1 (running)",
        "Step 0: None (running)",
    ]


# -- troubleshooting -------------------------------------------------------------------------------------------


async def test_no_checkpoint_found_says_where_it_looked(
    executor: Executor, checkpoint_storage: CheckpointStorage
) -> None:
    with pytest.raises(TraceNotFound, match="no checkpoint found") as error:
        await executor.resume_from_checkpoint(trace_id="trace-123")
    assert checkpoint_storage.name in str(error.value)
    with pytest.raises(TraceNotFound, match="no checkpoint found"):
        await executor.execute(task=TaskPayload(content="Resume task"), resume_trace_id="trace-123")
