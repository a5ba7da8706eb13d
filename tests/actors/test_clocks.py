"""What waits for time: intervals, drains, graces, leases. On trio's mock clock, which jumps to the next deadline."""

from __future__ import annotations

import logging
import time
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
import trio.testing

from tests.actors.graphs import shape
from tests.actors.rig import rig
from tests.actors.stores import Noting, finished
from tinyllm.actors.events import NodeStarted
from tinyllm.actors.run import DRAIN_SECONDS, GRACE_SECONDS, LEASE_POLL_SECONDS
from tinyllm.errors import StorageError, StorageFailed
from tinyllm.graph.definition import Limits, Retry

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


async def same(value: Any) -> Any:
    return value


def taking(seconds: float) -> Any:
    async def work(value: Any) -> Any:
        await anyio.sleep(seconds)
        return value

    return work


def chain(*works: Any) -> Any:
    names = "abcdefgh"[: len(works)]
    edges = [f"{first} -> {second}" for first, second in pairwise(names)]
    return shape(*edges, functions=dict(zip(names, works, strict=True)))


# -- intervals -------------------------------------------------------------------------------------------------


async def test_by_interval_what_came_in_between_is_one_checkpoint() -> None:
    """Nodes end at 3, 6, 9, ... s, and every 10 s is a checkpoint, counted from the last one."""
    async with rig(chain(*[taking(3.0)] * 8), each_node=False, interval=10.0) as made:
        plan = made.admit()
        await made.run(plan).run()
        assert plan.status == "completed"
        assert [write.delta.step for write in made.store.appended] == [3, 6, 8]
        assert await finished(made.store, "t") == list("abcdefgh")


async def test_an_interval_is_over_also_while_nothing_happens() -> None:
    async with rig(chain(same, taking(3600.0)), each_node=False, interval=10.0) as made:
        plan = made.admit()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.run(plan).run)
            await anyio.sleep(9.0)
            assert await finished(made.store, "t") == []
            await anyio.sleep(2.0)
            assert await finished(made.store, "t") == ["a"]


async def test_without_an_interval_only_the_end_is_written() -> None:
    async with rig(chain(*[taking(1000.0)] * 3), each_node=False, interval=0.0) as made:
        await made.run(made.admit()).run()
        assert [write.delta.step for write in made.store.appended] == [3]


# -- drains and graces -----------------------------------------------------------------------------------------


async def failing(value: Any) -> Any:
    raise ValueError("boom")


def beside(slow: Any, fast: Any = failing) -> Any:
    return shape("a -> b", "a -> c", functions={"a": same, "b": slow, "c": fast})


@pytest.mark.parametrize(("seconds", "state"), [(DRAIN_SECONDS - 1, None), (DRAIN_SECONDS + 1, "cancelled")])
async def test_after_a_failure_nodes_in_flight_have_a_while(seconds: float, state: str | None) -> None:
    async with rig(beside(taking(seconds))) as made:
        plan = made.admit()
        began = anyio.current_time()
        await made.run(plan).run()
        assert anyio.current_time() - began <= DRAIN_SECONDS
        assert plan.status == "failed"
        snapshot = await made.store.load("t")
        assert {row.node: row.state for row in snapshot.frontier}.get("b") == state
        assert ("b" in await finished(made.store, "t")) is (state is None)


async def test_the_while_is_counted_from_the_first_failure() -> None:
    def failing_after(seconds: float) -> Any:
        async def later(value: Any) -> Any:
            await anyio.sleep(seconds)
            raise ValueError(f"after {seconds:g} s")

        return later

    works = {"a": same, "b": taking(3600.0), "c": failing_after(5.0), "d": failing_after(20.0)}
    graph = shape("a -> b", "a -> c", "a -> d", functions=works)
    async with rig(graph) as made:
        began = anyio.current_time()
        await made.run(plan := made.admit()).run()
        assert anyio.current_time() - began == pytest.approx(5.0 + DRAIN_SECONDS)
        assert plan.error is not None
        assert plan.error.message == "after 5 s"


async def test_after_the_store_failed_nodes_in_flight_have_a_while() -> None:
    store = Noting()
    store.failure = lambda writes: StorageError("no")
    async with rig(beside(taking(3600.0), same), store) as made:
        began = anyio.current_time()
        with pytest.raises(StorageFailed):
            await made.run(made.admit()).run()
        assert anyio.current_time() - began == pytest.approx(DRAIN_SECONDS, abs=0.1)


async def test_a_node_that_does_not_end_when_cancelled_is_left_and_the_trace_let_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stubborn(value: Any) -> Any:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(3600.0)

    with caplog.at_level(logging.WARNING):
        async with rig(chain(same, stubborn)) as made:
            run = made.run(made.admit())
            began = anyio.current_time()
            with anyio.move_on_after(5.0):
                await run.run()
            assert anyio.current_time() - began == pytest.approx(5.0 + GRACE_SECONDS)
            record = await made.store.trace("t")
            assert record is not None
            assert (record.status, record.owner) == ("interrupted", None)
            assert await finished(made.store, "t") == ["a"]
    assert "trace t: left while b still ran on" in caplog.text


async def test_a_store_that_hangs_does_not_hold_a_cancelled_run_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    store = Noting()
    store.gate = anyio.Event()
    with caplog.at_level(logging.WARNING):
        async with rig(chain(same, taking(3600.0)), store) as made:
            run = made.run(made.admit())
            began = anyio.current_time()
            with anyio.move_on_after(5.0):
                await run.run()
            assert anyio.current_time() - began == pytest.approx(5.0 + GRACE_SECONDS)
            store.gate.set()
    assert "trace t: left before the last of it was written" in caplog.text


# -- the lease -------------------------------------------------------------------------------------------------


async def test_near_the_end_of_the_lease_nothing_starts_and_after_its_renewal_the_run_goes_on() -> None:
    renewed_at = 100.0
    async with rig(chain(same, same)) as made:
        began = anyio.current_time()
        asked: list[float] = []

        def may_start() -> bool:
            asked.append(anyio.current_time() - began)
            return len(asked) == 1 or asked[-1] >= renewed_at

        await made.run(plan := made.admit(), may_start=may_start).run()
        assert plan.status == "completed"
        assert renewed_at <= anyio.current_time() - began <= renewed_at + LEASE_POLL_SECONDS
        assert len(asked) < 200


async def test_stopped_while_it_waits_for_the_lease_a_run_lets_what_runs_end() -> None:
    """The look at the lease is no deadline for the nodes."""
    lent = True
    async with rig(shape("a -> b", "a -> c", functions={"a": same, "b": taking(20.0), "c": same})) as made:
        run = made.run(made.admit(), may_start=lambda: lent)

        async def stop() -> None:
            nonlocal lent
            while not any(isinstance(event, NodeStarted) and event.node_id == "b" for event in made.events):
                await anyio.lowlevel.checkpoint()
            lent = False
            await anyio.sleep(5.3)
            run.stop()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.run)
            tasks.start_soon(stop)
        assert "b" in await finished(made.store, "t")


# -- attempts and limits ---------------------------------------------------------------------------------------


def flaky(times: int, seconds: float = 0.0) -> Any:
    left = [times]

    async def work(value: Any) -> Any:
        await anyio.sleep(seconds)
        if left[0]:
            left[0] -= 1
            raise ConnectionError
        return value

    return work


async def test_a_retry_waits_and_the_others_go_on_meanwhile() -> None:
    graph = shape(
        "a -> b",
        "a -> c",
        functions={"a": same, "b": flaky(2), "c": taking(10.0)},
        b={"retry": Retry(max_attempts=3, initial=100.0, max=1e4, jitter=0.0)},
    )
    async with rig(graph) as made:
        began = anyio.current_time()
        await made.run(made.admit()).run()
        took = anyio.current_time() - began
        assert await finished(made.store, "t") == ["a", "c", "b"]
        assert 299.0 < took <= 300.1, "100 s, then 200 s"


async def test_a_backoff_that_outlived_its_process_is_waited_for_where_it_was() -> None:
    graph = shape(
        "a -> b", functions={"a": flaky(1)}, a={"retry": Retry(max_attempts=2, initial=1000.0, max=1e4, jitter=0.0)}
    )
    async with rig(graph) as made:
        async with anyio.create_task_group() as tasks:
            run = made.run(made.admit())
            tasks.start_soon(run.run)
            await anyio.sleep(10.0)
            run.stop()
        again = made.taken_over()
        (activation,) = again.activations.values()
        assert activation.due is not None
        began = anyio.current_time()
        await made.run(again).run()
        assert again.status == "completed"
        assert 900.0 < anyio.current_time() - began <= 1000.0


async def test_a_clock_that_is_set_back_by_hours_does_not_prolong_a_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = shape(
        "a -> b", functions={"a": flaky(1)}, a={"retry": Retry(max_attempts=2, initial=10.0, max=20.0, jitter=0.0)}
    )
    real = time.time
    async with rig(graph) as made:
        async with anyio.create_task_group() as tasks:
            run = made.run(made.admit())
            tasks.start_soon(run.run)
            await anyio.sleep(1.0)
            run.stop()
        monkeypatch.setattr(time, "time", lambda: real() - 36_000.0)
        again = made.taken_over()
        began = anyio.current_time()
        await made.run(again).run()
        assert again.status == "completed"
        assert anyio.current_time() - began == 20.0


@pytest.mark.parametrize(("durability", "writes"), [("async", 3), ("sync", 3), ("exit", 1)])
async def test_a_backoff_is_written_unless_only_the_end_is(durability: Any, writes: int) -> None:
    graph = shape("a -> b", functions={"a": flaky(1)}, a={"retry": Retry(max_attempts=2)})
    async with rig(graph, durability=durability) as made:
        await made.run(made.admit()).run()
        assert len(made.store.appended) == writes


async def test_a_trace_that_runs_out_of_time_cancels_what_runs_and_fails() -> None:
    graph = attrs.evolve(chain(taking(10.0), taking(10.0), taking(10.0)), limits=Limits(timeout=15.0))
    async with rig(graph) as made:
        plan = made.admit()
        began = anyio.current_time()
        await made.run(plan).run()
        assert anyio.current_time() - began == 15.0
        assert (plan.status, plan.error and plan.error.type) == ("failed", "LimitReached")
        assert plan.elapsed == 15.0


async def test_time_counts_across_resumes_but_not_between_them() -> None:
    graph = attrs.evolve(chain(taking(10.0), taking(10.0), taking(10.0)), limits=Limits(timeout=25.0))
    async with rig(graph) as made:
        async with anyio.create_task_group() as tasks:
            run = made.run(made.admit())
            tasks.start_soon(run.run)
            await anyio.sleep(15.0)
            run.stop()
        await anyio.sleep(1_000_000.0)
        again = made.taken_over()
        assert again.elapsed == 20.0, "it was stopped in the second node, which ended"
        await made.run(again).run()
        assert (again.status, again.elapsed) == ("failed", 25.0)
