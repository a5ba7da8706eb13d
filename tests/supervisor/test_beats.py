"""What a worker says of itself, and how long it may say nothing: on a clock that jumps."""

from __future__ import annotations

from typing import Any, cast

import anyio
import pytest
import trio.testing

from tinyllm.supervisor.channel import Channel
from tinyllm.supervisor.messages import Assignment, Beat, ToSupervisor
from tinyllm.supervisor.worker import Worker

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class Told:
    """Stands in for the channel of a worker: when what was told."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.began = anyio.current_time()

    def tell(self, message: ToSupervisor) -> None:
        assert isinstance(message, Beat)
        self.at.append(anyio.current_time() - self.began)


def assignment(quiet_seconds: float) -> Assignment:
    return Assignment(
        graphs=(),
        path=(),
        storage="",
        concurrency=1,
        limits={},
        apart=False,
        grace=1.0,
        quiet_seconds=quiet_seconds,
        accept_graph_change=False,
        settings={},
        log_level=0,
    )


async def test_a_worker_tells_of_a_change_soon_and_else_only_that_it_lives() -> None:
    told = Told()
    worker = Worker(assignment(6.0), cast("Channel", told))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker._beat)
        await anyio.sleep(20)
        worker._changed.set()
        await anyio.sleep(0.5)
        worker._changed.set()
        await anyio.sleep(9)
        tasks.cancel_scope.cancel()
    assert told.at == pytest.approx([0, 6, 12, 18, 20, 21, 27])


async def test_a_worker_that_is_watched_closely_tells_each_second_that_it_lives() -> None:
    told = Told()
    with anyio.move_on_after(3.5):
        await Worker(assignment(0.4), cast("Channel", told))._beat()
    assert told.at == pytest.approx([0, 1, 2, 3])
