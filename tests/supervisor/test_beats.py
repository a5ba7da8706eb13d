"""What a worker says of itself, and for how long it may say nothing: on a clock that jumps."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any, cast

import anyio
import attrs
import pytest
import trio.testing

from tests.soak.processes import stat
from tinyllm.supervisor.channel import Channel
from tinyllm.supervisor.life import Life
from tinyllm.supervisor.messages import Assignment, Beat, Ready, ToSupervisor
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


def assignment(hang_seconds: float) -> Assignment:
    return Assignment(
        graphs=(),
        path=(),
        storage="",
        concurrency=1,
        limits={},
        apart=False,
        grace=1.0,
        hang_seconds=hang_seconds,
        accept_graph_change=False,
        settings={},
        log_level=0,
    )


async def test_a_worker_tells_of_a_change_soon_and_else_only_that_it_lives() -> None:
    told = Told()
    worker = Worker(assignment(30.0), cast("Channel", told))
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
        await Worker(assignment(2.0), cast("Channel", told))._beat()
    assert told.at == pytest.approx([0, 1, 2, 3])


@attrs.define
class Sleeping:
    """Stands in for a worker's process: a real one, which says nothing. `ended`: how it was told to end."""

    pid: int
    ended: list[signal.Signals] = attrs.field(factory=list)

    def terminate(self) -> None:
        self.ended.append(signal.SIGTERM)

    def send_signal(self, number: signal.Signals) -> None:
        self.ended.append(number)

    def send(self, number: signal.Signals, state: str) -> None:
        """Send it a signal, and wait until it is in that state."""
        os.kill(self.pid, number)
        while (seen := stat(self.pid)) is None or seen.state != state:
            time.sleep(0.001)


@pytest.fixture
def process() -> Iterator[Sleeping]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield Sleeping(process.pid)
        process.kill()


def life() -> Life:
    """One that may be silent for 4 s, and is ready."""
    found = Life(assignment(4.0), 4.0, became_ready=lambda _: None, told=lambda _: None)
    found._hear(Ready((), ()))
    return found


async def test_a_worker_that_is_silent_for_too_long_is_ended(process: Sleeping) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life()._watch, cast("Any", process), anyio.CancelScope())
        await anyio.sleep(4.5)
        assert process.ended == []
        await anyio.sleep(1)
        assert process.ended == [signal.SIGTERM]
        tasks.cancel_scope.cancel()


async def test_one_that_is_stopped_goes_on_to_end(process: Sleeping) -> None:
    process.send(signal.SIGSTOP, "T")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life()._watch, cast("Any", process), anyio.CancelScope())
        await anyio.sleep(5.5)
        assert process.ended == [signal.SIGTERM, signal.SIGCONT]
        tasks.cancel_scope.cancel()


async def test_one_that_goes_on_in_the_last_moment_is_given_the_time_to_say_so(process: Sleeping) -> None:
    process.send(signal.SIGSTOP, "T")
    watched = life()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watched._watch, cast("Any", process), anyio.CancelScope())
        await anyio.sleep(4.5)
        process.send(signal.SIGCONT, "S")
        await anyio.sleep(4)
        assert process.ended == []
        watched._hear(Beat(0, 0, 0, 0))
        await anyio.sleep(4)
        assert process.ended == []
        await anyio.sleep(1)
        assert process.ended == [signal.SIGTERM]
        assert watched.state == "stopping"
        tasks.cancel_scope.cancel()
