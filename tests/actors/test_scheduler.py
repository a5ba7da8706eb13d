"""What the scheduler lets gather, and what it hands on at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from tests.actors.graphs import Hand, shape
from tinyllm.actors import scheduler
from tinyllm.actors.mailbox import Journal
from tinyllm.actors.protocol import Close, Handed, Hurry, Open, Put, RunMessage, ScheduleMessage, Stepped, WriteMessage
from tinyllm.actors.schedule import Policy
from tinyllm.actors.scheduler import CheckpointScheduler
from tinyllm.storage.contract import Delta

pytestmark = pytest.mark.anyio

EACH = Policy(each_node=True, interval=0.0, durability="async", keep=100)


def deltas(count: int) -> list[Delta]:
    hand = Hand(shape("a -> a", "a -> b"))
    return [hand.finish("a", number) for number in range(count)]


@asynccontextmanager
async def scheduling(mailbox: int = 100) -> AsyncIterator[tuple[Journal, MemoryObjectReceiveStream[WriteMessage]]]:
    """A scheduler that knows the trace `t`; the way to it, and what it hands on."""
    schedule, inbox = anyio.create_memory_object_stream[ScheduleMessage](mailbox)
    ring, bell = anyio.create_memory_object_stream[Hurry](1)
    to_writer, handed = anyio.create_memory_object_stream[WriteMessage](100)
    address, told = anyio.create_memory_object_stream[RunMessage](100)
    journal = Journal(schedule, ring)
    async with anyio.create_task_group() as tasks:
        actor = CheckpointScheduler(EACH, inbox, bell, to_writer, anyio.CancelScope(shield=True))
        await tasks.start(actor.run)
        await journal.post(Open("t", 1, 0, address), hurry=True)
        await anyio.wait_all_tasks_blocked()
        try:
            with address, told, handed:
                yield journal, handed
        finally:
            journal.close()


def steps(message: WriteMessage) -> list[int]:
    assert isinstance(message, Handed)
    return [each.delta.step for each in message.messages if isinstance(each, Put)]


@pytest.fixture
def for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lingers until somebody hurries it."""
    monkeypatch.setattr(scheduler, "LINGER_SECONDS", 3600.0)


@pytest.mark.usefixtures("for_ever")
async def test_what_nobody_waits_for_gathers_until_something_hurries() -> None:
    async with scheduling() as (journal, handed):
        first, second, third = deltas(3)
        await journal.post(Stepped("t", first, forced=False, hurry=False))
        await journal.post(Stepped("t", second, forced=False, hurry=False))
        await anyio.wait_all_tasks_blocked()
        assert handed.statistics().current_buffer_used == 0
        await journal.post(Stepped("t", third, forced=True), hurry=True)
        assert steps(await handed.receive()) == [1, 2, 3]


@pytest.mark.usefixtures("for_ever")
async def test_who_finds_the_mailbox_full_does_not_wait_for_the_rest_to_gather() -> None:
    async with scheduling(mailbox=2) as (journal, handed):
        with anyio.fail_after(10):
            for delta in deltas(20):
                await journal.post(Stepped("t", delta, forced=False, hurry=False))
        journal.close()
        found: list[int] = []
        while len(found) < 20:
            found += steps(await handed.receive())
        assert found == list(range(1, 21))


async def test_what_gathers_is_handed_on_after_a_while() -> None:
    async with scheduling() as (journal, handed):
        for delta in deltas(3):
            await journal.post(Stepped("t", delta, forced=False, hurry=False))
        assert steps(await handed.receive()) == [1, 2, 3]


@pytest.mark.usefixtures("for_ever")
async def test_at_the_end_all_is_handed_on() -> None:
    async with scheduling() as (journal, handed):
        for delta in deltas(2):
            await journal.post(Stepped("t", delta, forced=False, hurry=False))
        await journal.post(Close("t"))
        journal.close()
        assert steps(await handed.receive()) == [1, 2]
