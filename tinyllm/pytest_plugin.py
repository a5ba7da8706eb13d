"""The pytest plugin: what tests of graphs need as fixtures. It imports nothing of ours before a test asks for it."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tinyllm.storage.memory import InMemoryCheckpointStorage


@pytest.fixture
def memory_storage() -> Iterator[InMemoryCheckpointStorage]:
    """A store that lives as long as the test, open: for tests that are async, on either event loop, or not."""
    from tinyllm.storage.memory import InMemoryCheckpointStorage

    storage = InMemoryCheckpointStorage()
    _at_once(storage.initialize())
    yield storage
    _at_once(storage.close())


def _at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits, as nothing in the memory store does. An async fixture would be set up only for
    async tests, and by a plugin that the project may not have."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")
