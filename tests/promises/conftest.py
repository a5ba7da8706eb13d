"""A graph of five nodes, and both backends as they are promised."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.promises.stages import Stages
from tinyllm.persistence.interface import CheckpointStorage, StorageConfig
from tinyllm.persistence.memory_backend import InMemoryCheckpointStorage
from tinyllm.persistence.sqlite_backend import SQLiteCheckpointStorage


@pytest.fixture
def stages() -> Stages:
    return Stages()


@pytest.fixture(params=["memory", "sqlite"])
async def checkpoint_storage(
    request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[CheckpointStorage]:
    config = StorageConfig(sqlite_path=str(tmp_path / "checkpoints"))
    made: CheckpointStorage = (
        InMemoryCheckpointStorage(config) if request.param == "memory" else SQLiteCheckpointStorage(config)
    )
    await made.initialize()
    yield made
    await made.close()


@pytest.fixture
def root_logging() -> Iterator[None]:
    """`--log-level` sets up the root logger of the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
