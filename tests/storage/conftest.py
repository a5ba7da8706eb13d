"""Every test that takes `storage` runs on every backend.

For a long run of the model test: `pytest tests/storage/test_model.py --hypothesis-profile=long --timeout=0`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.storage.backends import BACKENDS, open_backend
from tinyllm.storage.contract import CheckpointStorage, Owner
from tinyllm.storage.owners import this_process

settings.register_profile("long", deadline=None, max_examples=20_000, stateful_step_count=60, print_blob=True)


@pytest.fixture(params=BACKENDS)
async def storage(
    request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[CheckpointStorage]:
    opened = open_backend(request.param, tmp_path)
    await opened.initialize()
    yield opened
    await opened.close()


@pytest.fixture
def owner(storage: CheckpointStorage) -> Owner:
    """This process, with a lease."""
    this = this_process()
    storage.renew(this)
    return this
