"""How stores and their traces show themselves at a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm import Executor, GraphBuilder, InMemoryCheckpointStorage, SQLiteCheckpointStorage

GRAPH = GraphBuilder("sums").node(sum).build()


@pytest.mark.anyio
async def test_a_sqlite_store_says_where_it_is_and_whether_it_is_open(tmp_path: Path) -> None:
    storage = SQLiteCheckpointStorage(tmp_path)
    assert repr(storage) == f"<SQLiteCheckpointStorage {tmp_path}, not open>"
    await storage.initialize()
    assert repr(storage) == f"<SQLiteCheckpointStorage {tmp_path}, open>"
    await storage.close()
    assert repr(storage) == f"<SQLiteCheckpointStorage {tmp_path}, not open>"


@pytest.mark.anyio
async def test_a_store_in_memory_says_how_much_it_has_and_a_trace_how_far_it_is() -> None:
    storage = InMemoryCheckpointStorage()
    async with Executor(GRAPH, checkpoint_storage=storage) as executor:
        await executor.execute([1, 2], trace_id="one")
    assert repr(storage) == "<InMemoryCheckpointStorage, traces: 1>"
    assert repr(await storage.trace("one")) == "<TraceRecord 'one' of 'sums', completed at step 1>"
