"""Both backends, open, for tests that ask for `store`; a module that has its own keeps it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tinyllm import CheckpointStorage, InMemoryCheckpointStorage, SQLiteCheckpointStorage


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CheckpointStorage]:
    made = InMemoryCheckpointStorage() if request.param == "memory" else SQLiteCheckpointStorage(tmp_path)
    await made.initialize()
    yield made
    await made.close()
