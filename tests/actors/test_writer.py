"""The writer: group commit, failures, pruning, and its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import attrs
import pytest
from anyio.streams.memory import MemoryObjectSendStream

from tests.actors.graphs import Hand, Record, now, shape
from tests.actors.stores import Noting
from tinyllm.actors import outage
from tinyllm.actors import writer as writer_module
from tinyllm.actors.batch import MAX_WRITES
from tinyllm.actors.protocol import Answer, Ask, Durable, PruneDue, Put, Refused, RunMessage, Stalled, WriteMessage
from tinyllm.actors.writer import PRUNE_SLICE, StorageWriter
from tinyllm.errors import DatabaseLocked, OwnershipLost, StorageError, StorageUnavailable
from tinyllm.storage.contract import Admitted, Done, Release
from tinyllm.storage.memory import InMemoryCheckpointStorage

pytestmark = pytest.mark.anyio

LOOP = shape("a -> a")


class Trace:
    """A trace in a store, and the mailbox where its run would hear of its deltas."""

    def __init__(self, store: Noting, trace_id: str) -> None:
        self.hand = Hand(LOOP, trace_id=trace_id)
        self.trace_id = trace_id
        self.rev = 0
        self.address, self.heard = anyio.create_memory_object_stream[RunMessage](1000)
        (admitted,) = now(
            InMemoryCheckpointStorage.commit(store, [Record(LOOP, trace_id).admission(self.hand.deltas[0])])
        )
        assert isinstance(admitted, Admitted)
        self.key, self.epoch = admitted.trace, admitted.epoch

    def put(self) -> Put:
        self.rev += 1
        delta = attrs.evolve(self.hand.finish("a"), trace=self.key, epoch=self.epoch, rev=self.rev)
        return Put(self.trace_id, delta, self.address)

    def release(self) -> Ask:
        return Ask(self.trace_id, Release(self.key, self.epoch), Answer())

    def told(self) -> list[RunMessage]:
        found = []
        while self.heard.statistics().current_buffer_used:
            found.append(self.heard.receive_nowait())
        return found

    def close(self) -> None:
        self.address.close()
        self.heard.close()


@asynccontextmanager
async def traces(store: Noting, *names: str) -> AsyncIterator[list[Trace]]:
    made = [Trace(store, name) for name in names]
    try:
        yield made
    finally:
        for trace in made:
            trace.close()


@asynccontextmanager
async def writing(store: Noting, keep: int = 100) -> AsyncIterator[MemoryObjectSendStream[WriteMessage]]:
    send, receive = anyio.create_memory_object_stream[WriteMessage](1000)
    async with anyio.create_task_group() as tasks:
        writer = StorageWriter(store, receive, anyio.CancelScope(shield=True), keep=keep)
        await tasks.start(writer.run)
        with send:
            yield send


async def until_idle() -> None:
    await anyio.wait_all_tasks_blocked()


async def test_what_waits_during_a_commit_is_the_next_batch() -> None:
    store = Noting()
    async with traces(store, "t", "u") as (t, u), writing(store) as writer:
        store.gate = anyio.Event()
        await writer.send(t.put())
        await until_idle()
        for trace in (t, t, u, t):
            await writer.send(trace.put())
        await until_idle()
        assert [len(batch) for batch in store.batches] == [1]
        store.gate.set()
        await until_idle()
        assert [len(batch) for batch in store.batches] == [1, 4]
        assert t.told() == [Durable(1, 1, 1), Durable(4, 4, 4)], "once for each batch"
        assert u.told() == [Durable(1, 1, 1)]


async def test_a_run_that_need_not_know_is_told_only_when_it_asks_or_is_refused() -> None:
    store = Noting()
    async with traces(store, "t", "u") as (t, u), writing(store) as writer:
        for trace in (t, u):
            await writer.send(attrs.evolve(trace.put(), tell=False))
        await until_idle()
        assert t.told() == u.told() == []
        await writer.send(t.put())
        await until_idle()
        assert t.told() == [Durable(2, 2, 2)]
        store.failure = lambda writes: StorageError("no")
        await writer.send(u.put())
        await until_idle()
        durable, refused = u.told()
        assert durable == Durable(1, 1, 1), "it hears how far it got before it hears that it gets no further"
        assert isinstance(refused, Refused)


async def test_nothing_is_told_before_it_is_durable() -> None:
    store = Noting()
    async with traces(store, "t") as (t,), writing(store) as writer:
        store.gate = anyio.Event()
        await writer.send(t.put())
        await until_idle()
        assert t.told() == []
        store.gate.set()
        await until_idle()
        assert t.told() == [Durable(1, 1, 1)]


@pytest.mark.parametrize("error", [StorageError("disk full"), RuntimeError("a bug")])
async def test_a_failing_commit_is_told_to_everybody_who_waits(error: Exception) -> None:
    store = Noting()
    async with traces(store, "t", "u") as (t, u), writing(store) as writer:
        store.gate = anyio.Event()
        await writer.send(t.put())
        await until_idle()
        store.failure = lambda writes: error
        asked = u.release()
        for message in (t.put(), u.put(), asked):
            await writer.send(message)
        store.gate.set()
        await until_idle()
        durable, refused = t.told()
        assert durable == Durable(1, 1, 1)
        assert isinstance(refused, Refused)
        assert refused.error is error
        assert [type(message) for message in u.told()] == [Refused]
        with pytest.raises(type(error)):
            await asked.answer.wait()
        # and it goes on
        store.failure = lambda writes: None
        again = u.release()
        await writer.send(again)
        assert await again.answer.wait() == Done()


async def test_a_refused_delta_takes_with_it_what_follows_of_its_trace_and_nothing_else() -> None:
    store = Noting()
    async with traces(store, "t", "u") as (t, u), writing(store) as writer:
        store.gate = anyio.Event()
        await writer.send(u.put())
        await until_idle()
        (trace,) = (trace for trace in store._traces.values() if trace.trace_id == "t")
        trace.epoch += 1  # another owner has it
        asked = t.release()
        for _ in range(MAX_WRITES + 1):
            await writer.send(t.put())
        await writer.send(asked)
        await writer.send(u.put())
        store.gate.set()
        await until_idle()
        told = t.told()
        assert len(told) == MAX_WRITES - 1
        assert all(isinstance(message, Refused) and isinstance(message.error, OwnershipLost) for message in told)
        with pytest.raises(OwnershipLost):
            await asked.answer.wait()
        assert u.told() == [Durable(1, 1, 1), Durable(2, 2, 2)]
        assert len(store.appended) == MAX_WRITES + 1, "what followed the first batch was never tried"


@pytest.mark.parametrize("error", [StorageUnavailable("/store", "the disk is full"), DatabaseLocked("/store", 10)])
async def test_what_may_pass_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of it: test_outage.py."""
    monkeypatch.setattr(outage, "FIRST_PAUSE_SECONDS", 0.001)
    store = Noting()
    tries = iter(range(3))
    store.failure = lambda writes: None if next(tries, None) is None else error
    async with traces(store, "t") as (t,), writing(store) as writer:
        release = t.release()
        for message in (t.put(), t.put(), release):
            writer.send_nowait(message)
        assert await release.answer.wait() == Done()
        await until_idle()
        stalled, durable = t.told()
        assert isinstance(stalled, Stalled)
        assert durable == Durable(2, 2, 2)
        assert [len(batch) for batch in store.batches][-3:] == [3, 3, 3]


# -- pruning ---------------------------------------------------------------------------------------------------


async def checkpoints(store: Noting, trace_id: str) -> int:
    return len(await store.checkpoints(trace_id, limit=10_000))


async def test_it_prunes_slice_by_slice_until_nothing_is_left_to_drop() -> None:
    store = Noting()
    async with traces(store, "t") as (t,), writing(store, keep=10) as writer:
        for _ in range(3 * PRUNE_SLICE):
            await writer.send(t.put())
        await writer.send(PruneDue("t", t.key))
        await until_idle()
        assert await checkpoints(store, "t") == 11
        assert [prune.limit for prune in store.prunes] == [PRUNE_SLICE] * 3
        assert t.told()[-1] == Durable(3 * PRUNE_SLICE, 3 * PRUNE_SLICE, 3 * PRUNE_SLICE)


async def test_it_prunes_with_the_room_that_a_batch_has_left() -> None:
    store = Noting()
    async with traces(store, "t", "u") as (t, u), writing(store, keep=10) as writer:
        store.gate = anyio.Event()
        await writer.send(u.put())
        await until_idle()
        for _ in range(MAX_WRITES + 1):
            await writer.send(t.put())
        await writer.send(PruneDue("t", t.key))
        store.gate.set()
        await until_idle()
        assert [len(batch) for batch in store.batches[:3]] == [1, MAX_WRITES, 2]
        assert not any(write in store.prunes for write in store.batches[1])
        assert store.batches[2][-1] in store.prunes


async def test_a_prune_that_fails_is_given_up() -> None:
    store = Noting()
    async with traces(store, "t") as (t,), writing(store, keep=1) as writer:
        store.failure = lambda writes: StorageError("no")
        await writer.send(PruneDue("t", t.key))
        await until_idle()
        assert len(store.prunes) == 1


class Reclaiming(Noting):
    left = 3

    async def reclaim(self, limit: int) -> int:
        self.left -= 1
        if self.left < 0:
            raise StorageError("no")
        return self.left


@pytest.mark.parametrize("left", [3, 0])
async def test_free_pages_go_back_when_nothing_has_come_for_a_while(left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "IDLE_SECONDS", 0.0)
    store = Reclaiming()
    store.left = left
    async with traces(store, "t") as (t,), writing(store, keep=1) as writer:
        await writer.send(PruneDue("t", t.key))
        while store.left > (0 if left else -1):
            await anyio.lowlevel.checkpoint()
        await until_idle()
        assert store.left == (0 if left else -1)


async def test_until_then_nobody_waits_for_that_but_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "IDLE_SECONDS", 3600.0)
    store = Reclaiming()
    async with traces(store, "t") as (t,):
        async with writing(store, keep=1) as writer:
            await writer.send(PruneDue("t", t.key))
            await until_idle()
            await writer.send(t.put())
            await until_idle()
            assert t.told() == [Durable(1, 1, 1)]
            assert store.left == 3
        assert store.left == 0


# -- its end ---------------------------------------------------------------------------------------------------


async def test_it_ends_when_every_sender_has_closed_and_not_before() -> None:
    store = Noting()
    ended = anyio.Event()
    send, receive = anyio.create_memory_object_stream[WriteMessage](10)
    second = send.clone()

    async def write() -> None:
        await StorageWriter(store, receive, anyio.CancelScope(shield=True), keep=1).run()
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        send.close()
        await until_idle()
        assert not ended.is_set()
        second.close()
        await ended.wait()


async def test_what_was_handed_over_is_written_whatever_is_cancelled() -> None:
    store = Noting()
    async with traces(store, "t") as (t,):
        with anyio.CancelScope() as scope:
            async with writing(store) as writer:
                store.gate = anyio.Event()
                for _ in range(300):
                    writer.send_nowait(t.put())
                await until_idle()
                scope.cancel()
                store.gate.set()
        assert len(store.appended) == 300
        assert t.told()[-1] == Durable(300, 300, 300)


async def test_a_writer_whose_senders_leak_ends_at_its_deadline() -> None:
    shield = anyio.CancelScope(shield=True)
    send, receive = anyio.create_memory_object_stream[WriteMessage](10)
    with send:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(StorageWriter(Noting(), receive, shield, keep=1).run)
            await until_idle()
            shield.deadline = anyio.current_time()
    assert shield.cancelled_caught


async def test_a_run_that_has_gone_is_no_harm() -> None:
    store = Noting()
    async with traces(store, "t") as (t,), writing(store) as writer:
        t.heard.close()
        await writer.send(t.put())
        await until_idle()
        assert len(store.appended) == 1
