"""The reader of commands: what it tells, whom, and when."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import pytest
import trio.testing
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from tinyllm.actors.commands import LOOK_SECONDS, CommandReader
from tinyllm.actors.protocol import ROOM, Look, ReadMessage, RunMessage, Stop, Told, Unwatch, Watch
from tinyllm.errors import StorageError
from tinyllm.storage.contract import Command
from tinyllm.storage.memory import InMemoryCheckpointStorage

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class Left(InMemoryCheckpointStorage):
    """Has commands for trace 1."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = [Command(at, 1, "answer", b"a", f"q{at}", b"1", 0.0) for at in range(count)]

    async def commands(self, *, owner: str | None = None, trace: int | None = None) -> list[Command]:
        return self.left


@attrs.frozen
class Desk:
    reader: MemoryObjectSendStream[ReadMessage]
    run: MemoryObjectSendStream[RunMessage]
    told: MemoryObjectReceiveStream[RunMessage]

    def heard(self) -> Sequence[RunMessage]:
        return [self.told.receive_nowait() for _ in range(self.told.statistics().current_buffer_used)]


@asynccontextmanager
async def desk(commands: int | Left) -> AsyncIterator[Desk]:
    reader, inbox = anyio.create_memory_object_stream[ReadMessage](16)
    run, told = anyio.create_memory_object_stream[RunMessage](2 * ROOM)
    with reader, run, told:
        async with anyio.create_task_group() as tasks:
            store = Left(commands) if isinstance(commands, int) else commands
            tasks.start_soon(CommandReader(store, "me", inbox).run, name="reader")
            yield Desk(reader, run, told)
            reader.close()


async def test_all_that_was_left_for_a_trace_is_told_at_once() -> None:
    async with desk(1000) as made:
        await made.reader.send(Watch(1, made.run))
        await made.reader.send(Look())
        await anyio.wait_all_tasks_blocked()
        (told,) = made.heard()
        assert isinstance(told, Told)
        assert len(told.commands) == 1000


async def test_a_busy_run_is_not_told_before_it_has_room() -> None:
    async with desk(1) as made:
        await made.reader.send(Watch(1, made.run))
        for _ in range(ROOM):
            await made.run.send(Stop())
        await anyio.sleep(3.5 * LOOK_SECONDS)
        assert made.heard() == [Stop()] * ROOM
        await anyio.sleep(LOOK_SECONDS)
        assert made.heard() == [Told(tuple(Left(1).left))]


class Unreadable(Left):
    """Until the fourth look, and from the sixth."""

    looks = 0

    async def commands(self, *, owner: str | None = None, trace: int | None = None) -> list[Command]:
        self.looks += 1
        if self.looks != 5:
            raise StorageError("unreadable")
        return self.left


async def test_a_store_that_cannot_be_read_is_looked_into_again_and_complained_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Unreadable(1)
    with caplog.at_level(logging.WARNING):
        async with desk(store) as made:
            await made.reader.send(Watch(1, made.run))
            await anyio.sleep(4.5 * LOOK_SECONDS)
            assert caplog.text.count("unreadable") == 1
            assert made.heard() == []
            await anyio.sleep(LOOK_SECONDS)
            assert made.heard() == [Told(tuple(store.left))]
            await anyio.sleep(3 * LOOK_SECONDS)
            assert caplog.text.count("unreadable") == 2


async def test_commands_are_seen_in_time_however_many_traces_begin_and_end() -> None:
    async with desk(1) as made:
        await made.reader.send(Watch(1, made.run))
        for other in range(2, 8):
            await anyio.sleep(LOOK_SECONDS / 2)
            await made.reader.send(Watch(other, made.run))
            await made.reader.send(Unwatch(other))
        await anyio.wait_all_tasks_blocked()
        assert made.heard()
