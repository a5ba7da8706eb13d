"""A graph of deterministic nodes, in any order, interrupted after any rev and resumed, ends as if nothing had been."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import attrs
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.actors.graphs import Record, now
from tests.actors.lives import Life, state
from tests.actors.worlds import TASK, End, TooLong, Walk, World, whole, worlds
from tinyllm.actors.plan import Plan
from tinyllm.core import outside
from tinyllm.core.config import ExecutorConfig
from tinyllm.core.executor import Executor
from tinyllm.errors import ExecutionError, OwnershipLost, StorageError, TraceNotFound
from tinyllm.graph.messages import TaskResponse
from tinyllm.graph.variables import Variables
from tinyllm.storage.contract import Append, CheckpointStorage, Outcome, StorageConfig, Write
from tinyllm.storage.memory import InMemoryCheckpointStorage
from tinyllm.storage.sqlite import SQLiteCheckpointStorage

UNHURRIED = [HealthCheck.too_slow, HealthCheck.filter_too_much]


def reference(world: World) -> End:
    try:
        return whole(world)
    except TooLong:
        assume(False)
        raise


@settings(max_examples=100, suppress_health_check=UNHURRIED)
@given(worlds(), st.integers(0, 2**32))
def test_the_end_does_not_depend_on_the_order(world: World, seed: int) -> None:
    expected = reference(world)
    assert whole(world, seed) == expected


@settings(max_examples=200, suppress_health_check=UNHURRIED)
@given(worlds(), st.integers(0, 2**32), st.integers(1, 4))
def test_interrupted_anywhere_it_ends_the_same(world: World, seed: int, crashes: int) -> None:
    expected = reference(world)
    rng = random.Random(seed)
    for _ in range(3):
        assert Life(world, rng, crashes=crashes).run() == expected


@settings(max_examples=40, suppress_health_check=UNHURRIED)
@given(worlds(), st.integers(0, 2**32))
def test_from_every_rev_it_ends_the_same(world: World, seed: int) -> None:
    expected = reference(world)
    walk = Walk(world, random.Random(seed))
    deltas, steps = [walk.begin()], [0]
    while (delta := walk.next()) is not None:
        deltas.append(delta)
        steps.append(len(walk.steps))
    for rev in range(len(deltas)):
        record, again = Record(world.graph), Walk(world, random.Random(seed + rev))
        record.admit(again.plan, deltas[0])
        for delta in deltas[1 : rev + 1]:
            record.append(delta)
        again.go_on(record.resume())
        again.steps = walk.steps[: steps[rev]]
        again.plan.wake()
        again.rest()
        assert again.end() == expected, f"interrupted after rev {rev}"


# -- forks and prunes ------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=UNHURRIED)
@given(worlds(), st.integers(0, 2**32), st.integers(0, 2))
def test_forks_from_any_checkpoint_at_any_time_end_the_same_and_leave_their_parents_as_they_are(
    world: World, seed: int, crashes: int
) -> None:
    expected = reference(world).by_node
    rng = random.Random(seed)
    lives = [Life(world, rng, crashes=crashes, keep=rng.choice([1, 3, 10_000]))]
    shared: list[Counter[Any]] = [Counter()]
    while len(lives) < 6 or any(not life.over for life in lives):
        if len(lives) < 6 and rng.random() < 0.1:
            parent = rng.choice(lives).record
            fork = parent.fork(rng.choice(parent.kept()), f"fork {len(lives)}")
            shared.append(Counter(row.node for row in now(fork.store.steps(fork.trace_id))))
            lives.append(Life(world, rng, crashes=crashes, keep=rng.choice([1, 3, 10_000]), record=fork))
        going = [life for life in lives if not life.over]
        if going:
            rng.choice(going).happen()
    for life, before in zip(lives, shared, strict=True):
        end = life.end().by_node
        assert attrs.evolve(end, steps=before + end.steps) == expected
        life.check()
    ids = [id for life in lives for _, id in life.end().steps]
    assert len(ids) == len(set(ids))


@settings(max_examples=60, suppress_health_check=UNHURRIED)
@given(worlds(), st.integers(0, 2**32), st.integers(0, 3), st.integers(1, 3))
def test_pruned_at_any_time_it_ends_the_same_and_what_is_kept_is_what_it_was(
    world: World, seed: int, crashes: int, keep: int
) -> None:
    expected = reference(world)
    life = Life(world, random.Random(seed), crashes=crashes, keep=keep)
    assert life.run() == expected
    life.check()


async def written_again(record: Record, store: SQLiteCheckpointStorage) -> dict[int, dict[str, Any]]:
    """Each checkpoint of `store` after it was given all that was written to `record`."""
    await store.initialize()
    for write, outcome in record.written:
        assert await store.commit([write]) == [outcome]
    kept = await store.checkpoints("t", limit=10_000)
    states = {found.rev: await state(store, "t", found.rev) for found in kept}
    await store.close()
    return states


@settings(max_examples=10, suppress_health_check=UNHURRIED)
@given(worlds(), st.integers(0, 2**32), st.integers(0, 3), st.integers(1, 3))
def test_a_pruned_sqlite_store_keeps_and_loads_the_same(world: World, seed: int, crashes: int, keep: int) -> None:
    reference(world)
    life = Life(world, random.Random(seed), crashes=crashes, keep=keep)
    life.run()
    with TemporaryDirectory() as directory:
        states = anyio.run(written_again, life.record, SQLiteCheckpointStorage(StorageConfig(sqlite_path=directory)))
    assert states == {rev: life.states[rev] for rev in life.record.kept()}


# -- through executors -----------------------------------------------------------------------------------------


class Failing(InMemoryCheckpointStorage):
    """Takes `left` more deltas, then nothing: what a killed process leaves behind."""

    left = 0

    async def commit(self, writes: list[Write]) -> list[Outcome]:  # type: ignore[override]
        return await super().commit(limited(self, writes))


class FailingSQLite(SQLiteCheckpointStorage):
    left = 0

    async def commit(self, writes: list[Write]) -> list[Outcome]:  # type: ignore[override]
        return await super().commit(limited(self, writes))


def limited(store: Failing | FailingSQLite, writes: list[Write]) -> list[Write]:
    appends = sum(isinstance(write, Append) for write in writes)
    if appends > store.left:
        raise StorageError("killed")
    store.left -= appends
    return writes


class Calls:
    """One trace of `world`, called for until it has ended; its questions are answered, each once."""

    def __init__(self, world: World, store: Failing | FailingSQLite, rng: random.Random) -> None:
        self.world = world
        self.store = store
        self.rng = rng
        self.failing = 3
        self.ran: list[tuple[str, str]] = []
        self.config = ExecutorConfig(
            debug_mutation=True,
            durability=rng.choice(["async", "sync"]),
            checkpoint_after_each_node=rng.random() < 0.8,
            checkpoint_interval_ms=rng.choice([0, 1, 5000]),
        )
        self._answered: set[str] = set()

    async def until_ended(self, trace_id: str, first: Callable[[Executor], Awaitable[TaskResponse]]) -> TaskResponse:
        """`first` begins it; the first `failing` calls find a store that soon gives out."""
        for number in range(100):
            self.store.left = self.rng.randrange(12) if number < self.failing else 10_000
            response = await self._call(trace_id, first if number == 0 else None)
            if response is not None and response.status in ("completed", "failed"):
                return response
        raise AssertionError("it does not end")

    async def _call(
        self, trace_id: str, first: Callable[[Executor], Awaitable[TaskResponse]] | None
    ) -> TaskResponse | None:
        """The response, or None where the store gave out."""
        response: TaskResponse | None = None
        async with (
            Executor(self.world.graph, self.config, self.store, deps=self.ran) as executor,
            anyio.create_task_group() as tasks,
        ):
            try:
                if first is None and self.rng.random() < 0.5:
                    await self._answer(executor, trace_id)
                tasks.start_soon(self._answer_meanwhile, executor, trace_id)
                if first is not None:
                    response = await first(executor)
                else:
                    answers = await self._replies(trace_id)
                    response = await executor.resume_from_checkpoint(trace_id, answers=answers)
            except (StorageError, OwnershipLost):
                pass  # it was killed, or somebody who answered owned it just now
            except ExecutionError as error:
                response = error.response
        return response

    async def _answer_meanwhile(self, executor: Executor, trace_id: str) -> None:
        with suppress(TraceNotFound, StorageError):  # it is not admitted yet; it was killed
            for _ in range(self.rng.randrange(10)):
                await anyio.lowlevel.checkpoint()
                await self._answer(executor, trace_id)

    async def _answer(self, executor: Executor, trace_id: str) -> None:
        for question, reply in (await self._replies(trace_id)).items():
            await executor.answer(trace_id, reply, question=question)

    async def _replies(self, trace_id: str) -> dict[str, str]:
        """To one of the questions that are open. (If one still is that was answered, the answer is on its way.)"""
        asked = await outside.questions(self.store, trace_id)
        fresh = [question for question in asked if question.id not in self._answered]
        if not fresh:
            return {}
        question = self.rng.choice(fresh)
        self._answered.add(question.id)
        return {question.id: self.world.reply(question)}


async def end_of(world: World, store: CheckpointStorage, response: TaskResponse) -> End:
    plan = Plan(world.graph, response.trace_id)
    plan.restore(await store.load(response.trace_id))
    assert response.status == "failed" or response.value == plan.outcome()
    nodes = Counter(row.node for row in await store.steps(response.trace_id))
    return world.end(response.status, plan.outcome(), Variables(plan.versions), nodes)


async def through_executors(world: World, store: Failing | FailingSQLite, rng: random.Random, expected: End) -> None:
    await store.initialize()
    calls = Calls(world, store, rng)
    response = await calls.until_ended("t", lambda executor: executor.execute(TASK, trace_id="t"))
    assert await end_of(world, store, response) == expected.by_node
    assert {(node, bytes.fromhex(id)) for node, id in calls.ran} == set(expected.steps)
    before = await store.load("t")
    at = rng.choice(await store.checkpoints("t")).step
    calls.ran.clear()
    response = await calls.until_ended("c", lambda executor: executor.fork("t", at=at, new_trace_id="c"))
    assert await end_of(world, store, response) == expected.by_node
    assert await store.load("t") == before
    assert not {bytes.fromhex(id) for _, id in calls.ran} & {id for _, id in expected.steps}
    await store.close()


def run(world: World, store: Failing | FailingSQLite, seed: int, expected: End) -> None:
    rng = random.Random(seed)
    anyio.run(through_executors, world, store, rng, expected, backend=rng.choice(["asyncio", "trio"]))


@settings(max_examples=60, suppress_health_check=UNHURRIED)
@given(worlds(), st.integers(0, 2**32))
def test_through_executors_it_ends_the_same(world: World, seed: int) -> None:
    run(world, Failing(), seed, reference(world))


@settings(max_examples=12, suppress_health_check=UNHURRIED)
@given(worlds(), st.integers(0, 2**32))
def test_through_executors_and_sqlite_it_ends_the_same(world: World, seed: int) -> None:
    with TemporaryDirectory() as directory:
        run(world, FailingSQLite(StorageConfig(sqlite_path=str(Path(directory)))), seed, reference(world))
