"""A graph of deterministic nodes, in any order, interrupted after any rev and resumed, ends as if nothing had been."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.actors.graphs import Record
from tests.actors.worlds import TASK, End, TooLong, Walk, World, whole, worlds
from tinyllm.actors.merge import merge
from tinyllm.core.config import ExecutorConfig
from tinyllm.core.executor import Executor
from tinyllm.errors import ExecutionError, StorageError, StorageFailed
from tinyllm.graph.messages import TaskResponse
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


def interrupted(world: World, rng: random.Random, crashes: int) -> End:
    """Run with random interleaving and random merging; lose what was not stored and go on, `crashes` times."""
    record = Record(world.graph)
    walk = Walk(world, rng)
    record.admit(walk.plan, walk.begin())
    pending = None
    durable: list[tuple[str, bytes]] = []
    while True:
        delta = walk.next()
        if delta is not None:
            pending = delta if pending is None else merge(pending, delta)
        if pending is not None and (delta is None or rng.random() < 0.7):
            record.append(pending)
            pending, durable = None, list(walk.steps)
        if crashes and rng.random() < 0.15:
            crashes -= 1
            pending, walk.steps = None, list(durable)
            walk.plan = record.resume()
            if woken := walk.plan.wake():
                record.append(woken)
        elif delta is None:
            return walk.end()


@settings(max_examples=400, suppress_health_check=UNHURRIED)
@given(worlds(), st.integers(0, 2**32), st.integers(1, 4))
def test_interrupted_anywhere_it_ends_the_same(world: World, seed: int, crashes: int) -> None:
    expected = reference(world)
    rng = random.Random(seed)
    for _ in range(5):
        assert interrupted(world, rng, crashes) == expected


@settings(max_examples=60, suppress_health_check=UNHURRIED)
@given(worlds(), st.integers(0, 2**32))
def test_from_every_rev_it_ends_the_same(world: World, seed: int) -> None:
    expected = reference(world)
    walk, deltas = Walk(world, random.Random(seed)), []
    deltas.append(walk.begin())
    deltas += walk.rest()
    for rev in range(len(deltas)):
        record, again = Record(world.graph), Walk(world, random.Random(seed + rev))
        record.admit(again.plan, deltas[0])
        for delta in deltas[1 : rev + 1]:
            record.append(delta)
        again.plan, again.steps = record.resume(), walk.steps[:rev]
        again.plan.wake()
        again.rest()
        assert again.end() == expected, f"interrupted after rev {rev}"


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


async def execute(
    world: World, store: CheckpointStorage, config: ExecutorConfig, ran: list[tuple[str, str]], *, resume: bool
) -> TaskResponse | None:
    """The response, or None where the store gave out."""
    async with Executor(world.graph, config, store, deps=ran) as executor:
        try:
            if resume:
                return await executor.resume_from_checkpoint("t")
            return await executor.execute(TASK, trace_id="t")
        except StorageFailed:
            return None
        except ExecutionError as error:
            response: TaskResponse = error.response
            return response


async def through_executors(world: World, store: Failing | FailingSQLite, rng: random.Random, expected: End) -> None:
    await store.initialize()
    config = ExecutorConfig(
        debug_mutation=True,
        durability=rng.choice(["async", "sync"]),
        checkpoint_after_each_node=rng.random() < 0.8,
    )
    ran: list[tuple[str, str]] = []
    for attempt in range(20):
        store.left = rng.randrange(8) if attempt < 3 else 10_000
        response = await execute(world, store, config, ran, resume=attempt > 0)
        if response is not None:
            break
    assert response is not None
    assert response.status == expected.status
    assert response.value == (expected.value if expected.status == "completed" else None)
    steps = await store.steps("t")
    assert sorted(row.node for row in steps) == sorted(node for node, _ in expected.steps.elements())
    assert {(node, bytes.fromhex(id)) for node, id in ran} == set(expected.steps)
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
