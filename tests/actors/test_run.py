"""A run among its actors: how it ends, whatever happens to its nodes, its store, its host."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from tests.actors.graphs import block_loop, shape
from tests.actors.rig import Rig, rig
from tests.actors.stores import Noting, finished
from tinyllm.actors.dispatch import CREDIT
from tinyllm.actors.events import Committed, NodeFailed, NodeFinished, NodeStarted, Planned
from tinyllm.actors.run import Run
from tinyllm.errors import OwnershipLost, StorageError, StorageFailed, ValueNotStorable
from tinyllm.graph.definition import Graph
from tinyllm.graph.node import Result, node
from tinyllm.storage.contract import Append, Outcome, Release, Write

pytestmark = pytest.mark.anyio


async def same(value: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return value


def fan(width: int, work: Any = same) -> Graph:
    async def split(value: Any) -> Any:
        return list(range(width))

    return shape("a => b", "b -> j", joins=["j"], functions={"a": split, "b": work, "j": same})


async def test_a_run_ends_with_everything_durable() -> None:
    async with rig(fan(3)) as made:
        run = made.run(plan := made.admit())
        await run.run()
        assert plan.status == "completed"
        assert plan.outcome() == [0, 1, 2]
        assert await finished(made.store, "t") == ["a", "b", "b", "b", "j"]
        assert run.durable_step == 5
        record = await made.store.trace("t")
        assert record is not None
        assert record.status == "completed"


async def test_what_an_observer_hears() -> None:
    async with rig(fan(2)) as made:
        await made.run(made.admit()).run()
    heard = [event for event in made.events if not isinstance(event, Committed | NodeStarted)]
    assert [(type(event), event.node_id) for event in heard] == [  # type: ignore[union-attr]
        (Planned, "b"),
        (NodeFinished, "a"),
        (NodeFinished, "b"),
        (Planned, "j"),
        (NodeFinished, "b"),
        (NodeFinished, "j"),
    ]
    assert [event.count for event in heard if isinstance(event, Planned)] == [2, 1]
    assert sum(isinstance(event, NodeStarted) for event in made.events) == 4
    committed = [event.step for event in made.events if isinstance(event, Committed)]
    assert committed == sorted(set(committed)), "several deltas may become durable at once"
    assert committed[-1] == 4


async def test_how_far_a_run_is_is_noted_before_anything_starts() -> None:
    class Mark:
        def note(self, step: int, running: int) -> None:
            notes.append((len(made.events), step, running))

        def close(self) -> None: ...

    notes: list[tuple[int, int, int]] = []
    async with rig(fan(2)) as made:
        await made.run(made.admit(), high_water=Mark()).run()
    assert notes[0] == (0, 0, 0)
    assert notes[-1][1:] == (4, 0)


async def test_without_a_journal_a_run_records_nothing_and_ends_all_the_same() -> None:
    async with rig(fan(3), durability="sync") as made:
        journal, made.journal = made.journal, None
        run = made.run(plan := made.admit())
        await run.run()
        made.journal = journal
        assert plan.status == "completed"
        assert run.durable_step == 5
        assert made.store.appended == []


# -- a node fails ----------------------------------------------------------------------------------------------


async def test_after_a_failure_what_is_in_flight_ends_and_is_recorded() -> None:
    failed = anyio.Event()

    async def work(value: Any) -> Any:
        if value == 0:
            await anyio.wait_all_tasks_blocked()  # a node that has waited does not count as one that blocks the loop
            failed.set()
            raise ValueError("boom")
        await failed.wait()
        await anyio.wait_all_tasks_blocked()
        return value

    async with rig(fan(5, work)) as made:
        run = made.run(plan := made.admit())
        # All five are under way before the first fails: each lets the others begin.
        await run.run()
        assert plan.status == "failed"
        assert isinstance(run.failure, ValueError)
        steps = await finished(made.store, "t")
        started = sum(isinstance(event, NodeStarted) and event.node_id == "b" for event in made.events)
        assert steps == ["a", *["b"] * (started - 1)]
        snapshot = await made.store.load("t")
        assert [row.attempts for row in snapshot.frontier if row.state == "failed"] == [1]
        assert snapshot.status == "failed"
        assert b"boom" in (snapshot.record.error or b"")


async def test_three_hundred_of_three_hundred_records_survive_a_failing_node() -> None:
    """The failure of a sibling must not take with it what others have handed over."""
    store = Noting()

    async def work(value: Any) -> Any:
        if value == 300:
            raise ValueError("boom")
        return value

    async with rig(fan(301, work), store) as made:
        plan = made.admit()
        await made.run(plan).run()
    done = [event.node_id for event in made.events if isinstance(event, NodeFinished)]
    assert len(done) == 301
    assert await finished(store, "t") == done


async def test_the_first_failure_is_the_one_that_is_told() -> None:
    async def work(value: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        raise ValueError(value)

    async with rig(fan(3, work)) as made:
        run = made.run(plan := made.admit())
        await run.run()
        failures = [event for event in made.events if isinstance(event, NodeFailed)]
        assert len(failures) >= 1
        assert plan.error is not None
        assert plan.error.message == failures[0].error.message == str(run.failure)


async def test_a_result_that_does_not_fit_its_edges_fails_the_node() -> None:
    async with rig(shape("a => b", functions={"a": same, "b": same})) as made:
        run = made.run(plan := made.admit("text"))
        await run.run()
        assert plan.status == "failed"
        assert plan.error is not None
        assert plan.error.node_id == "a"
        assert "for_each, but the value is a str" in plan.error.message


async def test_a_trace_that_cannot_reach_an_exit_fails() -> None:
    async with rig(shape("a -> b if structured > 1", functions={"a": same, "b": same})) as made:
        run = made.run(plan := made.admit(1))
        await run.run()
        assert plan.status == "failed"
        assert run.failure is None


# -- the store fails -------------------------------------------------------------------------------------------


def failing_after(store: Noting, deltas: int, error: Exception) -> None:
    def failure(writes: Any) -> Exception | None:
        return error if len(store.appended) > deltas else None

    store.failure = failure


async def test_a_store_that_fails_is_told_with_the_last_durable_step() -> None:
    store = Noting()
    failing_after(store, 4, StorageError("disk full"))
    async with rig(fan(20), store, durability="sync") as made:
        run = made.run(made.admit())
        with pytest.raises(StorageFailed, match="disk full") as caught:
            await run.run()
        durable = await finished(store, "t")
        assert caught.value.step == len(durable) == run.durable_step
        assert isinstance(caught.value.__cause__, StorageError)
        assert len(made.store.batches) < 15, "nothing new was started"


async def test_what_is_in_flight_when_the_store_fails_ends() -> None:
    store = Noting()
    ended = []

    async def work(value: Any) -> Any:
        if value:
            await anyio.wait_all_tasks_blocked()
        ended.append(value)

    failing_after(store, 1, StorageError("disk full"))
    async with rig(fan(3, work), store) as made:
        with pytest.raises(StorageFailed):
            await made.run(made.admit()).run()
    started = sum(isinstance(event, NodeStarted) and event.node_id == "b" for event in made.events)
    assert len(ended) == started


async def test_the_reason_is_the_first_refusal_and_not_the_gap_that_it_leaves() -> None:
    """A delta that is too large is refused alone; those behind it, in the same batch, for coming out of order."""
    store = Noting()
    store.gate = anyio.Event()
    real = Noting.__mro__[1]._append  # type: ignore[attr-defined]
    refused = ValueNotStorable("nodes.b", "is too large")

    def append(self: Any, write: Append, now: float) -> Any:
        return refused if write.delta.rev == 2 else real(self, write, now)

    store._append = append.__get__(store)  # type: ignore[method-assign]
    async with rig(fan(10), store) as made, anyio.create_task_group() as tasks:

        async def execute() -> None:
            with pytest.raises(StorageFailed, match="is too large") as caught:
                await made.run(made.admit()).run()
            assert caught.value.step == 1

        tasks.start_soon(execute)
        await anyio.wait_all_tasks_blocked()
        assert store.gate is not None
        store.gate.set()


async def test_who_loses_the_trace_cancels_its_nodes() -> None:
    store = Noting()
    cancelled = []

    async def work(value: Any) -> Any:
        if value == 0:
            while not store.appended:
                await anyio.lowlevel.checkpoint()
            return value
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(value)
            raise

    async with rig(fan(3, work), store) as made:
        plan = made.admit()
        trace = store._traces[plan.key]

        def taken_over(writes: Any) -> None:
            if len(store.appended) == 2:
                trace.epoch += 1

        store.failure = taken_over
        with pytest.raises(OwnershipLost):
            await made.run(plan).run()
    assert sorted(cancelled) == [1, 2]
    assert await finished(store, "t") == ["a"]
    assert not any(isinstance(write, Release) for batch in store.batches for write in batch)


async def test_a_stopped_run_whose_last_writes_fail_does_not_claim_to_be_durable() -> None:
    store = Noting()
    begun = anyio.Event()
    go_on = anyio.Event()

    async def work(value: Any) -> Any:
        begun.set()
        await go_on.wait()

    async with rig(fan(1, work), store, each_node=False) as made, anyio.create_task_group() as tasks:
        run = made.run(made.admit())

        async def execute() -> None:
            with pytest.raises(StorageFailed, match="disk full") as caught:
                await run.run()
            assert caught.value.step == 0

        tasks.start_soon(execute)
        await begun.wait()
        failing_after(store, 0, StorageError("disk full"))
        run.stop()
        go_on.set()


async def test_a_trace_without_credit_waits_and_loses_nothing() -> None:
    store = Noting()
    store.gate = anyio.Event()
    async with rig(fan(3 * CREDIT), store) as made, anyio.create_task_group() as tasks:
        plan = made.admit()
        tasks.start_soon(made.run(plan).run)
        await anyio.wait_all_tasks_blocked()
        assert plan.number <= CREDIT + 1
        store.gate.set()
        store.gate = None
    assert plan.status == "completed"
    assert len(await finished(store, "t")) == 3 * CREDIT + 2


async def test_a_failure_that_another_node_handles_is_a_step_and_waits_for_credit_too() -> None:
    async def fail(_: int) -> None:
        raise ValueError("boom")

    width = 2 * CREDIT
    graph = fan(width, fail)
    handled = attrs.evolve(graph.nodes["b"], on_error="j", max_concurrency=width)
    store = Noting()
    store.gate = anyio.Event()
    async with (
        rig(attrs.evolve(graph, nodes={**graph.nodes, "b": handled}), store) as made,
        anyio.create_task_group() as tasks,
    ):
        plan = made.admit()
        tasks.start_soon(made.run(plan).run)
        await anyio.wait_all_tasks_blocked()
        assert plan.step <= CREDIT
        store.gate.set()
        store.gate = None
    assert plan.status == "completed"
    assert len(await finished(store, "t")) == width + 2


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
async def test_a_run_that_nobody_observes_hears_of_commits_where_it_needs_to(durability: Any) -> None:
    async with rig(fan(3 * CREDIT), durability=durability) as made:
        run = made.run(plan := made.admit(), observed=False)
        await run.run()
        assert plan.status == "completed"
        assert run.durable_step == 3 * CREDIT + 2
    assert len(await finished(made.store, "t")) == 3 * CREDIT + 2


async def test_a_node_with_effects_sees_what_is_durable_by_then_though_nobody_observes() -> None:
    seen = []

    @node(effects=True)
    async def acting(value: Any, context: Any) -> Any:
        seen.append(context.variables.get("n", 0))
        while len(store.appended) < len(seen):  # until what the one before it set is written
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        return Result(value, set={"n": len(seen)})

    async def eight(value: Any) -> Any:
        return list(range(8))

    store = Noting()
    graph = shape(
        "a => b", "b -> j", joins=["j"], functions={"a": eight, "b": acting, "j": same},
        b={"max_concurrency": 1},
    )  # fmt: skip
    async with rig(graph, store) as made:
        await made.run(made.admit(), observed=False).run()
    assert seen[-1] >= 5


async def test_what_was_sent_back_is_told_as_started_once_and_keeps_its_order() -> None:
    ran = []

    async def blocks(value: Any) -> Any:
        ran.append(value)
        block_loop()

    async with rig(fan(8, blocks)) as made:
        await made.run(plan := made.admit()).run()
    assert plan.status == "completed"
    assert ran == list(range(8))
    assert sum(isinstance(event, NodeStarted) for event in made.events) == 10


@pytest.mark.parametrize("each_node", [True, False])
async def test_a_slow_store_never_floods_a_run_with_acknowledgements(each_node: bool) -> None:
    """Each finished `b` plans a node with effects, so each is written at once, also in interval mode."""

    @node(effects=True)
    async def acting(value: Any) -> Any:
        return value

    async def split(value: Any) -> Any:
        return list(range(400))

    one = {"max_concurrency": 1}
    graph = shape(
        "a => b", "b -> c", "c -> j", joins=["j"], functions={"a": split, "b": same, "c": acting, "j": same},
        a=one, b=one, c=one, j=one,
    )  # fmt: skip
    store = Noting()
    async with rig(graph, store, each_node=each_node) as made, anyio.create_task_group() as tasks:
        plan = made.admit()
        store.gate = anyio.Event()
        tasks.start_soon(made.run(plan).run)
        await anyio.wait_all_tasks_blocked()
        store.gate.set()
        store.gate = None
    assert plan.status == "completed"


# -- stop and cancel -------------------------------------------------------------------------------------------


async def interrupted(made: Rig, steps: list[str]) -> None:
    """What an interrupted trace is in the store: durable to the last step, and nobody's."""
    record = await made.store.trace("t")
    assert record is not None
    assert (record.status, record.owner) == ("interrupted", None)
    assert await finished(made.store, "t") == steps


@pytest.mark.parametrize("each_node", [True, False])
async def test_stop_lets_what_runs_end_and_makes_it_durable(each_node: bool) -> None:
    begun = anyio.Event()
    go_on = anyio.Event()

    async def work(value: Any) -> Any:
        begun.set()
        await go_on.wait()

    graph = shape("a -> b", "b -> c", functions={"a": same, "b": work, "c": same})
    async with rig(graph, each_node=each_node) as made:
        run = made.run(plan := made.admit())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.run)
            await begun.wait()
            run.stop()
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        assert plan.status == "running"
        await interrupted(made, ["a", "b"])
        assert [event.step for event in made.events if isinstance(event, Committed)][-1] == 2


async def test_a_run_that_is_stopped_before_it_begins_starts_nothing() -> None:
    async with rig(fan(1)) as made:
        await made.run(made.admit(), stopped=True).run()
        assert "NodeStarted" not in made.names()
        await interrupted(made, [])


async def test_cancelling_the_host_leaves_the_trace_interrupted_and_no_task_behind() -> None:
    begun = anyio.Event()

    async def work(value: Any) -> Any:
        if value == 2:
            begun.set()
            await anyio.sleep_forever()
        return value

    async with rig(fan(3, work)) as made:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def cancel() -> None:
                    await begun.wait()
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()

                tasks.start_soon(cancel)
                await made.run(made.admit()).run()
                pytest.fail("the cancellation was swallowed")
        assert scope.cancelled_caught
        await interrupted(made, ["a", "b", "b"])
        snapshot = await made.store.load("t")
        assert {(row.node, row.state) for row in snapshot.frontier} == {("b", "cancelled"), ("j", "buffered")}


async def test_a_cancellation_leaves_no_gap_in_what_is_recorded() -> None:
    """Mailboxes of one, a slow store, and a cancellation at every turn of the loop: nothing is half handed over."""

    class Slow(Noting):
        async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
            with anyio.CancelScope(shield=True):
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
            return await super().commit(writes)

    for turns in range(100):
        async with rig(fan(12), Slow(), mailbox=1) as made:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def cancel(scope: anyio.CancelScope = scope, turns: int = turns) -> None:
                        for _ in range(turns):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()

                    tasks.start_soon(cancel)
                    await made.run(made.admit()).run()
            steps = await made.store.steps("t")
            assert [row.step for row in steps] == list(range(1, len(steps) + 1))
            done = [event.node_id for event in made.events if isinstance(event, NodeFinished)]
            assert [row.node for row in steps] == done
            snapshot = await made.store.load("t")
            assert snapshot.counts.frontier == len(snapshot.frontier)
            if snapshot.status == "running":
                await interrupted(made, done)


async def test_when_those_who_run_nodes_are_cancelled_a_run_ends_by_itself() -> None:
    """The host of the executor is cancelled, the task that executes is not."""
    begun = anyio.Event()

    async def work(value: Any) -> Any:
        begun.set()
        await anyio.sleep_forever()

    store = Noting()
    outcome: list[Run] = []
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as host:
            async with rig(fan(2, work), store) as made:
                run = made.run(plan := made.admit())

                async def execute(run: Run = run) -> None:
                    await run.run()
                    outcome.append(run)

                tasks.start_soon(execute)
                await begun.wait()
                host.cancel()
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        while not outcome:
                            await anyio.lowlevel.checkpoint()
    assert plan.status == "running"
    record = await store.trace("t")
    assert record is not None
    assert record.status == "interrupted"


async def test_what_cannot_be_let_go_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    store = Noting()
    store.failure = lambda writes: StorageError("no") if any(isinstance(w, Release) for w in writes) else None
    with caplog.at_level(logging.WARNING):
        async with rig(fan(1), store) as made:
            with pytest.raises(StorageFailed):
                await made.run(made.admit(), stopped=True).run()
    assert "trace t could not be let go: no" in caplog.text
