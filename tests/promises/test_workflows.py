"""The two example workflows that users were given, with a node that fails where the text says that one may."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.promises.stages import Stages
from tinyllm.core.checkpoint import CheckpointManager
from tinyllm.core.executor import Executor, ExecutorConfig
from tinyllm.core.message import TaskPayload, TaskResponse
from tinyllm.errors import ExecutionError
from tinyllm.persistence.interface import CheckpointStorage, StorageConfig
from tinyllm.persistence.sqlite_backend import SQLiteCheckpointStorage

pytestmark = pytest.mark.anyio

logger = logging.getLogger(__name__)


async def test_fault_tolerant_data_processing(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    processing_graph = stages.graph("processing")

    async def process_large_dataset() -> TaskResponse:
        checkpoint_storage = SQLiteCheckpointStorage(
            StorageConfig(sqlite_path="./checkpoints"),
        )
        await checkpoint_storage.initialize()

        executor = Executor(
            graph=processing_graph,
            config=ExecutorConfig(
                checkpoint_interval_ms=10000,
                checkpoint_after_each_node=True,
            ),
            checkpoint_storage=checkpoint_storage,
        )

        try:
            response = await executor.execute(
                TaskPayload(content="Process 1M records"),
            )
            return response  # noqa: RET504 - as in the text, whose `except` reads it
        except ExecutionError as e:  # where the text reads `response.trace_id`, which is unbound: the error has it
            logger.error(f"Execution failed: {e}")
            stages.broken = None
            latest = await checkpoint_storage.get_latest_checkpoint(
                graph_id=processing_graph.id,
                trace_id=e.trace_id,
            )
            if latest:
                return await executor.resume_from_checkpoint(latest.trace_id)
            raise
        finally:
            await executor.close()
            await checkpoint_storage.close()

    stages.broken = "node3"
    response = await process_large_dataset()
    assert "Execution failed: " in caplog.text
    assert "node3 is broken" in caplog.text
    assert (response.status, response.content) == (
        "completed",
        "Process 1M records > node1 > node2 > node3 > node4 > node5",
    )
    assert stages.calls == {"node1": 1, "node2": 1, "node3": 2, "node4": 1, "node5": 1}
    assert (tmp_path / "checkpoints").is_dir()


@pytest.mark.parametrize("broken", [None, "node2"])
async def test_multi_stage_pipeline_with_checkpoints(
    stages: Stages, checkpoint_storage: CheckpointStorage, broken: str | None
) -> None:
    executor = Executor(graph=stages.graph(), checkpoint_storage=checkpoint_storage)
    manager = CheckpointManager(checkpoint_storage)

    async def multi_stage_pipeline() -> TaskResponse:
        response1 = await executor.execute(TaskPayload(content="Ingest data"))

        assert executor._context is not None
        checkpoint = await manager.save_checkpoint(
            context=executor._context,
            current_node_id="ingestion_complete",
            force=True,
        )
        assert checkpoint is not None
        assert (checkpoint.trace_id, checkpoint.node_id) == (response1.trace_id, "ingestion_complete")

        stages.broken = broken
        response2 = await executor.execute(
            TaskPayload(content="Process data"),
            resume_trace_id=response1.trace_id,
        )

        return response2  # noqa: RET504 - as in the text

    try:
        response = await multi_stage_pipeline()
    except ExecutionError as failed:
        stages.broken = None
        response = await executor.resume_from_checkpoint(failed.trace_id)
    assert (response.status, response.content) == (
        "completed",
        "Process data > node1 > node2 > node3 > node4 > node5",
    )
    again = 1 if broken else 0
    assert stages.calls == {"node1": 2, "node2": 2 + again, "node3": 2, "node4": 2, "node5": 2}
    assert response.nodes_executed == 10
    records = await manager.list_checkpoints("my-graph", response.trace_id)
    assert [(record.step, record.label) for record in records if record.label] == [(5, "ingestion_complete")]
    assert records[0].state["variables"] == {"key": "value", "seen": 10}, "the restored context"
    said = [message.payload.content for message in records[0].messages if message.source_node == ""]
    assert said == ["Ingest data", "Process data"]
