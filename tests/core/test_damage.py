"""A damaged trace goes on from its newest checkpoint that is whole, and never past effects unasked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tinyllm import (
    CheckpointDamaged,
    ExecutionError,
    Executor,
    Graph,
    GraphBuilder,
    NodeContext,
    RerunRefused,
    Result,
    TraceEnded,
    TraceOwned,
    TraceUnreadable,
    node,
)
from tinyllm.actors.events import Event, FellBack, TraceStarted
from tinyllm.core.store import opened_storage
from tinyllm.storage.contract import Leave
from tinyllm.storage.sqlite.library import sqlite3

pytestmark = pytest.mark.anyio

STEPS = 4


class World:
    """What the nodes of a trace did, outside of it; the last of them fails until it is told not to."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.fails = True


def graph(world: World, *, effects: bool | str = False) -> Graph:
    """first -> second -> third -> fourth -> last: each counts, and says what it did."""

    def working(name: str) -> Callable[..., Any]:
        @node(name=name, effects=name == ("third" if effects is True else effects))
        def work(value: int, context: NodeContext) -> Result:
            world.done.append((name, context.idempotency_key))
            if name == "last" and world.fails:
                raise RuntimeError("not yet")
            return Result(int(value) + 1, set={"count": int(value) + 1})

        return work

    return GraphBuilder("g").chain(*(working(name) for name in ("first", "second", "third", "fourth", "last"))).build()


async def failed(directory: Path, world: World, *, effects: bool | str = False) -> None:
    """Trace `t`, of which all but the last step are recorded."""
    async with Executor(graph(world, effects=effects), checkpoint_storage=directory) as executor:
        with pytest.raises(ExecutionError):
            await executor.execute(0, trace_id="t")
    assert len(world.done) == STEPS + 1


def damage(directory: Path, statement: str) -> None:
    connection = sqlite3.connect(directory / "tinyllm.db", isolation_level=None)
    assert connection.execute(statement).rowcount >= 1
    connection.close()


def damage_variable(directory: Path, step: int) -> None:
    damage(directory, f"UPDATE variables SET body = '7' WHERE body = '{step}'")


async def resumed(
    directory: Path, world: World, events: list[Event], *, effects: bool | str = False, rerun: bool = False
) -> object:
    world.fails = False
    again = graph(world, effects=effects)
    async with Executor(again, checkpoint_storage=directory, on_event=events.append) as executor:
        response = await executor.resume_from_checkpoint("t", rerun_effects=rerun)
    return response.content


async def test_it_goes_on_from_the_newest_checkpoint_that_is_whole(tmp_path: Path) -> None:
    world, events = World(), list[Event]()
    await failed(tmp_path, world)
    keys = dict(world.done)
    damage_variable(tmp_path, 4)
    assert await resumed(tmp_path, world, events) == "5"
    fell, started = events[:2]
    assert isinstance(fell, FellBack)
    assert (fell.step, fell.reached, fell.again) == (3, 4, {"fourth": 1})
    assert isinstance(started, TraceStarted)
    assert (started.resumed, started.kept, started.lost) == (True, 3, 0)
    # What runs again has the keys that it had, so that whoever was told before knows it again.
    assert world.done[STEPS + 1 :] == [("fourth", keys["fourth"]), ("last", keys["last"])]
    async with opened_storage(tmp_path) as storage:
        records = {record.trace_id: record for record in await storage.traces()}
        assert {name: record.status for name, record in records.items()} == {
            "t": "completed",
            fell.kept_as: "quarantined",
        }
        assert b"does not have the bytes" in (records[fell.kept_as].error or b"")
        assert [row.node for row in await storage.steps("t")] == ["first", "second", "third", "fourth", "last"]
        with pytest.raises(CheckpointDamaged):
            await storage.load(fell.kept_as)


async def test_it_goes_back_further_where_that_is_damaged_too(tmp_path: Path) -> None:
    world, events = World(), list[Event]()
    await failed(tmp_path, world)
    damage_variable(tmp_path, 4)
    damage_variable(tmp_path, 2)  # steps 2 and 3 see it, or a step 3 that has another
    damage(tmp_path, "DELETE FROM variables WHERE body = '3'")
    assert await resumed(tmp_path, world, events) == "5"
    assert isinstance(events[0], FellBack)
    assert (events[0].step, events[0].again) == (1, {"second": 1, "third": 1, "fourth": 1})


async def test_it_does_not_go_back_past_effects_unasked(tmp_path: Path) -> None:
    world, events = World(), list[Event]()
    await failed(tmp_path, world, effects=True)
    for step in (3, 4):
        damage_variable(tmp_path, step)
    with pytest.raises(RerunRefused, match=r"step 2, and since then nodes with effects .* 'third'\. If"):
        await resumed(tmp_path, world, events, effects=True)
    assert len(world.done) == STEPS + 1
    async with opened_storage(tmp_path) as storage:
        assert [record.trace_id for record in await storage.traces()] == ["t"]
    assert await resumed(tmp_path, world, events, effects=True, rerun=True) == "5"
    assert [name for name, _ in world.done[STEPS + 1 :]] == ["third", "fourth", "last"]


@pytest.mark.parametrize("effects", [True, False])
async def test_what_cannot_be_read_may_have_had_effects(tmp_path: Path, effects: bool) -> None:
    world, events = World(), list[Event]()
    await failed(tmp_path, world, effects=effects)
    damage_variable(tmp_path, 4)
    damage(tmp_path, f"DELETE FROM steps WHERE id & {(1 << 32) - 1} = 4")
    if effects:
        with pytest.raises(RerunRefused, match="what was done since cannot be read"):
            await resumed(tmp_path, world, [], effects=True)
    else:  # nothing in the graph has any
        assert await resumed(tmp_path, world, events) == "5"
        assert isinstance(events[0], FellBack)
        assert events[0].again is None


async def test_what_has_begun_and_not_ended_may_have_had_effects(tmp_path: Path) -> None:
    world, events = World(), list[Event]()
    await failed(tmp_path, world, effects="last")
    damage_variable(tmp_path, 4)
    with pytest.raises(RerunRefused, match="'last'"):  # it failed, and who knows when
        await resumed(tmp_path, world, events, effects="last")
    assert await resumed(tmp_path, world, events, effects="last", rerun=True) == "5"


async def test_a_trace_that_was_cancelled_is_not_brought_back(tmp_path: Path) -> None:
    world = World()
    await failed(tmp_path, world)
    async with opened_storage(tmp_path) as storage:
        record = (await storage.load("t")).record
    damage(tmp_path, "UPDATE traces SET status = 'cancelled'")
    with pytest.raises(TraceEnded, match="cancelled"):
        await resumed(tmp_path, world, [])
    damage(tmp_path, "UPDATE traces SET status = 'failed'")
    damage_variable(tmp_path, 4)
    assert await resumed(tmp_path, world, []) == "5"
    with pytest.raises(TraceEnded, match="quarantined"):
        async with Executor(graph(world), checkpoint_storage=tmp_path) as executor:
            await executor.resume_from_checkpoint(f"t.damaged-{record.trace}")


async def test_a_cancel_that_was_left_is_heeded(tmp_path: Path) -> None:
    world, events = World(), list[Event]()
    await failed(tmp_path, world)
    damage(tmp_path, "UPDATE traces SET status = 'running', error = NULL, error_crc = NULL")
    async with opened_storage(tmp_path) as storage:
        record = await storage.trace("t")
        assert record is not None
        await storage.commit([Leave(record.trace, "t", "cancel")])
    damage_variable(tmp_path, 4)
    world.fails = False
    async with Executor(graph(world), checkpoint_storage=tmp_path, on_event=events.append) as executor:
        response = await executor.resume_from_checkpoint("t")
    assert (response.status, len(world.done)) == ("cancelled", STEPS + 1)
    assert [type(event) for event in events] == [FellBack]


async def test_of_two_that_have_it_fall_back_one_does(tmp_path: Path) -> None:
    world = World()
    await failed(tmp_path, world)
    damage_variable(tmp_path, 4)
    world.fails = False
    said: list[object] = []

    async def resume(executor: Executor) -> None:
        try:
            said.append((await executor.resume_from_checkpoint("t")).content)
        except TraceOwned as error:
            said.append(type(error))

    async with (
        Executor(graph(world), checkpoint_storage=tmp_path) as one,
        Executor(graph(world), checkpoint_storage=tmp_path) as other,
        anyio.create_task_group() as tasks,
    ):
        for executor in (one, other, one):
            tasks.start_soon(resume, executor)
    assert set(said) <= {"5", TraceOwned}
    assert "5" in said
    assert [name for name, _ in world.done[STEPS + 1 :]] == ["fourth", "last"]
    async with opened_storage(tmp_path) as storage:
        assert len(await storage.traces()) == 2


async def test_effects_before_it_do_not_matter(tmp_path: Path) -> None:
    world, events = World(), list[Event]()
    await failed(tmp_path, world, effects=True)
    damage_variable(tmp_path, 4)
    assert await resumed(tmp_path, world, events, effects=True) == "5"
    assert isinstance(events[0], FellBack)
    assert events[0].again == {"fourth": 1}


async def test_without_a_state_that_is_whole_it_says_so(tmp_path: Path) -> None:
    world = World()
    await failed(tmp_path, world)
    damage(tmp_path, "UPDATE traces SET fingerprint = 'another'")
    with pytest.raises(TraceUnreadable, match="doctor --salvage"):
        await resumed(tmp_path, world, [])
    damage(tmp_path, "UPDATE checkpoints SET step = step + 1")
    with pytest.raises(TraceUnreadable):
        await resumed(tmp_path, world, [])
    async with opened_storage(tmp_path) as storage:
        assert [record.trace_id for record in await storage.traces()] == ["t"]  # a list shows what is there
