"""A store that takes no writes for a while: what is handed over is held and written later, or is refused in the end. On
trio's mock clock, which jumps to the next deadline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
import trio.testing

from tests.actors.graphs import shape
from tests.actors.rig import rig
from tests.actors.stores import Noting, finished
from tests.actors.test_writer import traces, until_idle, writing
from tinyllm.actors.dispatch import CREDIT
from tinyllm.actors.events import StoreRecovered, StoreStalled
from tinyllm.actors.outage import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, PATIENCE_SECONDS, is_repeatable, pause
from tinyllm.actors.protocol import Answer, Ask, Durable, PruneDue, Refused, Stalled
from tinyllm.actors.run import GRACE_SECONDS
from tinyllm.actors.writer import StorageWriter
from tinyllm.errors import (
    DatabaseCorrupt,
    DatabaseLocked,
    DatabaseTooNew,
    StorageError,
    StorageFailed,
    StoragePathError,
    StorageUnavailable,
)
from tinyllm.storage.contract import Acquire, Acquired, Append, Done, Outcome, Release, Write

pytestmark = pytest.mark.anyio

FULL = StorageUnavailable("/store", "the disk is full")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


# -- what is decided -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [FULL, DatabaseLocked("/store", 10.0)])
def test_what_may_pass_is_tried_again_at_growing_pauses_until_patience_is_over(error: Exception) -> None:
    pauses: list[float] = []
    while (wait := pause(error, sum(pauses), len(pauses))) is not None:
        pauses.append(wait)
    assert pauses[0] == FIRST_PAUSE_SECONDS
    assert pauses[:-1] == sorted(pauses[:-1])
    assert max(pauses) == LONGEST_PAUSE_SECONDS
    assert sum(pauses) == pytest.approx(PATIENCE_SECONDS)
    assert pause(error, 0.0, 10**6) == LONGEST_PAUSE_SECONDS


@pytest.mark.parametrize(
    "error",
    [
        DatabaseCorrupt("/store", "oops"),
        DatabaseTooNew("/store", "9", "2"),
        StoragePathError("/store", "it is not an SQLite database"),
        StorageError("no"),
        RuntimeError("a bug"),
    ],
)
def test_what_does_not_pass_is_not_tried_again(error: Exception) -> None:
    assert pause(error, 0.0, 0) is None


# -- the writer ------------------------------------------------------------------------------------------------


class Faulty(Noting):
    """Commits that come before `mended_at` fail; the first `late` of them after the fact."""

    def __init__(self, mended_at: float = float("inf"), late: int = 0, error: Exception = FULL) -> None:
        super().__init__()
        self.mended_at = mended_at
        self.late = late
        self.error = error
        self.committed_at: float | None = None
        """When the first one was after it was mended."""

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes = None
        fails = anyio.current_time() < self.mended_at
        if not fails or self.late:
            outcomes = await super().commit(writes)
        else:
            self.batches.append(list(writes))
            await anyio.lowlevel.checkpoint()
        if fails:
            self.late = max(0, self.late - 1)
            raise self.error
        assert outcomes is not None
        if self.committed_at is None:
            self.committed_at = anyio.current_time()
        return outcomes


async def test_a_batch_that_failed_is_written_when_the_fault_has_passed(caplog: pytest.LogCaptureFixture) -> None:
    store = Faulty()
    async with traces(store, "t", "u") as (t, u), writing(store) as writer:
        store.mended_at = anyio.current_time() + 30.3
        with caplog.at_level(logging.WARNING):
            for trace in (t, u, t):
                writer.send_nowait(trace.put())
            await anyio.sleep(20.0)
            assert t.told() == [stalled] == u.told()
            await anyio.sleep(20.0)
        assert store.committed_at is not None
        assert store.committed_at - store.mended_at <= LONGEST_PAUSE_SECONDS
        assert t.told() == [Durable(2, 2, 2)]
        assert u.told() == [Durable(1, 1, 1)]
        assert await finished(store, "t") == ["a", "a"]
    said = [record.message for record in caplog.records]
    assert len(said) == 2, "that it begins, and that it is over"
    assert "takes no writes" in said[0]
    assert "the disk is full" in said[0]
    assert "takes writes again, after 3" in said[1]


class _Stalled:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stalled) and other.error is FULL

    __hash__ = None  # type: ignore[assignment]


stalled: Any = _Stalled()


async def test_what_failed_after_the_fact_is_written_once() -> None:
    store = Faulty(late=1)
    async with traces(store, "t") as (t,), writing(store) as writer:
        store.mended_at = anyio.current_time() + 3.0
        for _ in range(5):
            writer.send_nowait(t.put())
        await anyio.sleep(10.0)
        assert t.told() == [stalled, Durable(5, 5, 5)]
        assert await finished(store, "t") == ["a"] * 5
        assert len(await store.messages("t")) == 6


async def test_what_comes_meanwhile_is_taken_and_nothing_begins() -> None:
    store = Faulty()
    async with traces(store, "t", "u", "v") as (t, u, v), writing(store) as writer:
        store.gate = anyio.Event()
        await writer.send(v.put())
        await until_idle()
        begins = [Ask(trace.trace_id, Acquire(trace.key, trace.trace_id, 1, "me"), Answer()) for trace in (u, v)]
        release = t.release()
        store.mended_at = anyio.current_time() + 60.0
        store.gate.set()
        for message in (t.put(), begins[0]):
            await writer.send(message)
        await anyio.sleep(1.0)
        for message in (t.put(), release, begins[1], u.put()):
            await writer.send(message)
        await anyio.sleep(1.0)
        assert writer.statistics().current_buffer_used == 0, "whoever hands something over does not wait"
        for begin in begins:
            with pytest.raises(StorageUnavailable):
                await begin.answer.wait()
        assert u.told() == [stalled]
        assert await release.answer.wait() == Done()
        await until_idle()
        assert t.told() == [stalled, Durable(2, 2, 2)]
        assert u.told() == [Durable(1, 1, 1)]
        again = Ask("u", Acquire(u.key, "u", 1, "me"), Answer())
        await writer.send(again)
        assert isinstance(await again.answer.wait(), Acquired)


async def test_a_run_that_need_not_know_when_it_is_durable_hears_that_it_is_over() -> None:
    store = Faulty()
    async with traces(store, "t") as (t,), writing(store) as writer:
        store.mended_at = anyio.current_time() + 3.0
        await writer.send(attrs.evolve(t.put(), tell=False))
        await anyio.sleep(10.0)
        assert t.told() == [stalled, Durable(1, 1, 1)]
        await writer.send(attrs.evolve(t.put(), tell=False))
        await until_idle()
        assert t.told() == []


async def test_patience_ends_and_then_nothing_is_held_any_more(caplog: pytest.LogCaptureFixture) -> None:
    store = Faulty()
    async with traces(store, "t", "u") as (t, u), writing(store) as writer:
        began = anyio.current_time()
        await writer.send(t.put())
        await anyio.sleep(PATIENCE_SECONDS - 1)
        await writer.send(u.put())
        assert t.told() == [stalled]
        await anyio.sleep(1.5)
        (refused,) = t.told()
        assert isinstance(refused, Refused)
        assert refused.error is FULL
        told = u.told()
        assert told[0] == stalled
        assert isinstance(told[1], Refused), "it is not waited for once more"
        tries = len(store.batches)
        begin = Ask("t", Acquire(t.key, "t", 1, "me"), Answer())
        await writer.send(begin)
        with pytest.raises(StorageUnavailable):
            await begin.answer.wait()
        assert len(store.batches) == tries + 1, "but it is tried"
        assert anyio.current_time() - began == pytest.approx(PATIENCE_SECONDS, abs=1.0)
        store.mended_at = 0.0
        begin = Ask("t", Acquire(t.key, "t", 1, "me"), Answer())
        await writer.send(begin)
        assert isinstance(await begin.answer.wait(), Acquired)
        store.mended_at = anyio.current_time() + 3.0
        await writer.send(u.put())
        await anyio.sleep(10.0)
        assert [type(message) for message in u.told()] == [Stalled, Refused], "a gap; but it was outlived"


async def test_a_prune_is_not_tried_again() -> None:
    store = Faulty()
    async with traces(store, "t") as (t,), writing(store) as writer:
        store.mended_at = anyio.current_time() + 3.0
        writer.send_nowait(PruneDue("t", t.key))
        writer.send_nowait(t.put())
        await anyio.sleep(10.0)
        assert len(store.prunes) == 1
        assert t.told() == [stalled, Durable(1, 1, 1)]


async def test_a_fault_that_turns_out_to_last_ends_it() -> None:
    store = Faulty()
    async with traces(store, "t") as (t,), writing(store) as writer:
        await writer.send(t.put())
        await anyio.sleep(5.0)
        store.error = DatabaseCorrupt("/store", "oops")
        await anyio.sleep(1.0)
        told = t.told()
        assert told[0] == stalled
        assert isinstance(told[1], Refused)
        assert told[1].error is store.error


async def test_its_deadline_reaches_it_while_it_holds_something() -> None:
    store = Faulty()
    send, receive = anyio.create_memory_object_stream[Any](10)
    shield = anyio.CancelScope(shield=True)
    async with traces(store, "t") as (t,), anyio.create_task_group() as tasks:
        tasks.start_soon(StorageWriter(store, receive, shield, keep=1).run)
        release = t.release()
        with send:
            for message in (t.put(), release, t.put()):
                send.send_nowait(message)
            await anyio.sleep(1.0)
        shield.deadline = anyio.current_time() + 30.0
        with pytest.raises(StorageUnavailable):
            await release.answer.wait()
        assert anyio.current_time() == pytest.approx(31.0, abs=0.1)
        told = t.told()
        assert told[0] == stalled
        assert isinstance(told[1], Refused)


# -- a run -----------------------------------------------------------------------------------------------------


async def same(value: Any) -> Any:
    return value


def fan(count: int) -> Any:
    async def many(value: Any) -> Any:
        return list(range(count))

    return shape("a => b", "b -> j", joins=["j"], functions={"a": many, "b": same, "j": same})


@pytest.mark.parametrize("durability", ["async", "sync"])
async def test_a_trace_outlives_it_and_holds_its_credit_at_most(durability: Any) -> None:
    store = Faulty()
    async with rig(fan(3 * CREDIT), store, durability=durability) as made, anyio.create_task_group() as tasks:
        plan = made.admit()
        store.mended_at = anyio.current_time() + 60.0
        tasks.start_soon(made.run(plan).run)
        await anyio.sleep(50.0)
        assert plan.number <= CREDIT + 1
        assert await finished(store, "t") == []
        assert made.names().count("StoreStalled") == 1
        assert StoreStalled("t", str(FULL)) in made.events
        assert StoreRecovered("t") not in made.events
    assert plan.status == "completed"
    assert len(await finished(store, "t")) == 3 * CREDIT + 2
    assert made.names().count("StoreRecovered") == 1


@pytest.mark.parametrize("interval", [0.0, 1.0])
async def test_where_deltas_are_merged_nothing_more_starts(interval: float) -> None:
    ran: list[float] = []

    async def second(value: Any) -> Any:
        ran.append(anyio.current_time())
        await anyio.sleep(0.3)
        return {"n": value["n"] + 1, "body": "x" * 300_000}

    graph = shape(
        "a -> a if structured['n'] < 300", "a -> z if structured['n'] >= 300", functions={"a": second, "z": same}
    )
    store = Faulty()
    async with rig(graph, store, each_node=False, interval=interval) as made, anyio.create_task_group() as tasks:
        plan = made.admit({"n": 0})
        store.mended_at = anyio.current_time() + 60.0

        async def go() -> None:
            with pytest.raises(StorageFailed):
                await run.run()

        run = made.run(plan)
        tasks.start_soon(go)
        await anyio.sleep(50.0)
        before = len(ran)
        assert before < 20, "what waits to be written must not grow as long as it waits"
        await anyio.sleep(15.0)
        assert len(ran) > before
        store.mended_at = float("inf")


async def test_in_the_end_the_run_says_why_and_what_is_durable() -> None:
    async def breaking(value: Any) -> Any:
        await anyio.sleep(1.0)
        store.mended_at = float("inf")
        return value

    store = Faulty(mended_at=0.0)
    graph = shape("a -> b", "b -> c", functions={"a": same, "b": breaking, "c": same})
    async with rig(graph, store) as made:
        began = anyio.current_time()
        with pytest.raises(StorageFailed, match="the disk is full") as caught:
            await made.run(made.admit()).run()
        assert caught.value.step == 1
        assert caught.value.__cause__ is FULL
        assert anyio.current_time() - began == pytest.approx(PATIENCE_SECONDS, abs=2.0)
        assert await finished(store, "t") == ["a"]


# -- whoever does not want to wait -----------------------------------------------------------------------------


def stops(run: Any, scope: anyio.CancelScope) -> None:
    run.stop()


def cancels(run: Any, scope: anyio.CancelScope) -> None:
    scope.cancel()


@pytest.mark.parametrize("nodes", [1, 3 * CREDIT])
@pytest.mark.parametrize("durability", ["async", "sync"])
@pytest.mark.parametrize("leave", [stops, cancels])
async def test_who_leaves_waits_for_a_grace_and_hears_what_is_durable(
    leave: Callable[[Any, anyio.CancelScope], None], durability: Any, nodes: int
) -> None:
    store = Faulty()
    raised: list[BaseException] = []
    async with rig(fan(nodes), store, durability=durability) as made:
        run = made.run(plan := made.admit())
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def go() -> None:
                    try:
                        await run.run()
                    except BaseException as error:
                        raised.append(error)
                        raise

                with pytest.raises(BaseExceptionGroup) if leave is stops else anyio.CancelScope():
                    async with anyio.create_task_group() as inner:
                        inner.start_soon(go)
                        await anyio.sleep(5.0)
                        began = anyio.current_time()
                        leave(run, scope)
                tasks.cancel_scope.cancel()
        assert anyio.current_time() - began <= 2 * GRACE_SECONDS + 0.1
        assert run.left_unwritten, "its mark stays, and tells the next owner how much was lost"
        if leave is stops:
            assert isinstance(raised[0], StorageFailed)
            assert raised[0].step == 0
            assert raised[0].__cause__ is FULL
        assert plan.number <= 2 * CREDIT + 1
        # What it left is written all the same, if the store is mended before the writer ends.
        store.mended_at = 0.0
    assert len(await finished(store, "t")) == plan.step


async def test_who_stops_a_trace_that_is_done_but_not_written_does_not_wait_for_the_store() -> None:
    store = Faulty()
    async with rig(shape("a -> b", functions={"a": same, "b": same}), store) as made:
        run = made.run(plan := made.admit())
        with pytest.raises(BaseExceptionGroup) as caught:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run.run)
                await anyio.sleep(1.0)
                assert plan.status == "completed"
                run.stop()
        assert caught.group_contains(StorageFailed)
        assert anyio.current_time() <= 1.1 + GRACE_SECONDS
        store.mended_at = 0.0


def test_what_is_tried_again_does_nothing_twice() -> None:
    assert is_repeatable(Release(1, 1))
    assert not is_repeatable(Acquire(1, "t", 1, "me"))
    assert is_repeatable(Append("t", None))  # type: ignore[arg-type] # what is in it does not matter
