"""Flip one bit of a store, and see that nothing it says afterwards is wrong.

The store has traces in every state, with forks, joins, answers and pruned checkpoints; once it was closed, once its
process was killed, so that it has a write-ahead log. A bit is flipped anywhere in its files; then every trace is read,
and one that is not at its end is resumed. Each answer must be the one of the undamaged store, or an error that says
what is damaged. A trace that falls back must end as the undamaged one does, and run again what it said it would.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import attrs

from tests.torture.trial import Task, Trial, Violation
from tinyllm import (
    ExecutionError,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    NodeContext,
    Result,
    SQLiteCheckpointStorage,
    StorageConfig,
    TinyLLMError,
    node,
)
from tinyllm.actors.events import Event, FellBack
from tinyllm.core.outside import tag
from tinyllm.errors import CheckpointDamaged, CommitsMissing, TraceNotFound
from tinyllm.storage.sqlite import health
from tinyllm.storage.sqlite.commits import FILE_NAME as COMMITS
from tinyllm.storage.sqlite.database import FILE_NAME

FILES = (FILE_NAME, f"{FILE_NAME}-wal", COMMITS)
CONFIG = ExecutorConfig(durability="sync", max_checkpoints_per_trace=6)
EFFECTS = "send"
LETTER = " ".join(str(number) for number in range(300))
"""So large that a flip often hits what has effects."""


class World:
    """What happens outside of the store: which nodes ran, and which of them fail."""

    def __init__(self, *, failing: str = "") -> None:
        self.failing = failing
        self.ran: list[tuple[str, str]] = []
        """Node, key."""

    def did(self, name: str, context: NodeContext) -> None:
        self.ran.append((name, context.idempotency_key))
        if name == self.failing:
            raise RuntimeError(f"{name} fails")


def graph(world: World) -> Graph:
    """spread -> work (one for each of 4) -> gather (all) -> count (4 times around) -> send (effects) -> close"""

    @node
    def spread(task: str, context: NodeContext) -> Result:
        world.did("spread", context)
        return Result([f"{task} {number}" for number in range(4)], set={"task": task})

    @node
    def work(item: str, context: NodeContext) -> Result:
        world.did("work", context)
        return Result({"item": item, "text": item * 40}, set={"sizes": len(item)})

    @node
    def gather(items: list[dict[str, Any]], context: NodeContext) -> Result:
        world.did("gather", context)
        return Result(0, set={"items": [each["item"] for each in items]})

    @node
    def count(value: int, context: NodeContext) -> Result:
        world.did("count", context)
        return Result(int(value) + 1, set={"count": int(value) + 1}, goto="count" if int(value) < 3 else EFFECTS)

    @node(effects=True)
    def send(value: int, context: NodeContext) -> Result:
        world.did(EFFECTS, context)
        return Result(value, set={"sent": LETTER})

    @node
    async def close(value: int, context: NodeContext) -> dict[str, Any]:
        world.did("close", context)
        sure = await context.ask("Sure?", name="sure") if context.variables["task"] == "asking" else True
        return {"sure": sure, "sizes": sorted(context.variables["sizes"]), "items": context.variables["items"]}

    return (
        GraphBuilder("flips", variables={"sizes": "append"}, allow_cycles=True)
        .edge(spread, work, for_each=True)
        .edge(work, gather)
        .node(gather, join="all")
        .edge(gather, count)
        .node(count, targets=["count", EFFECTS])
        .node(send)
        .edge(send, close)
        .build()
    )


TRACES = {"done": "", "asking": "close", "early": "count", "late": "close", "forked": "close"}
"""By trace, the node at which it stops: that fails, or asks."""


@attrs.frozen
class Truth:
    """What the undamaged store says and does."""

    read: dict[str, object]
    """By trace."""
    recorded: dict[str, frozenset[tuple[str, str]]]
    """What had run, and was recorded."""
    outcome: dict[str, object]
    """What a resume of it returns."""


async def make(folder: Path, seed: str) -> dict[str, frozenset[tuple[str, str]]]:
    """A store with all of `TRACES`, closed in `folder/closed`, and as it lies there open in `folder/open`."""
    recorded: dict[str, frozenset[tuple[str, str]]] = {}
    place = folder / "closed"
    for trace_id, stops in TRACES.items():
        world = World(failing=stops if trace_id != "asking" else "")
        async with Executor(graph(world), CONFIG, str(place)) as executor:
            try:
                if trace_id == "forked":
                    await executor.fork("late", at=EFFECTS, set={"more": seed}, new_trace_id=trace_id)
                else:
                    await executor.execute(trace_id if trace_id == "asking" else seed, trace_id=trace_id)
            except ExecutionError:
                pass
        recorded[trace_id] = frozenset((name, key) for name, key in world.ran if name != stops)
    storage = SQLiteCheckpointStorage(StorageConfig(sqlite_path=str(place)))
    await storage.initialize()
    try:
        await tag(storage, "late", "good")
        shutil.copytree(place, folder / "open")
    finally:
        await storage.close()
    return recorded


async def read(storage: SQLiteCheckpointStorage, trace_id: str) -> object:
    """All that the store says of a trace."""
    revs = [record.rev for record in await storage.checkpoints(trace_id)]
    states = [await storage.load(trace_id, rev) for rev in (None, *revs)]
    return (
        # (When it waits to be claimed, and for whom, makes no difference to what it computes.)
        [
            attrs.evolve(state.record, updated_at=0.0, epoch=0, priority=0, not_before=None, apart=False)
            for state in states[:1]
        ],
        [attrs.asdict(state, filter=attrs.filters.exclude("record")) for state in states],
        [repr(record) for record in await storage.checkpoints(trace_id)],
        await storage.messages(trace_id),
        await storage.steps(trace_id),
        await storage.definition(trace_id),
    )


async def resume(place: Path, trace_id: str, world: World, events: list[Event]) -> object:
    answers = {"sure": True} if trace_id == "asking" else None
    async with Executor(graph(world), CONFIG, str(place), on_event=events.append) as executor:
        response = await executor.resume_from_checkpoint(trace_id, answers=answers)
    return response.status, response.content


async def truth_of(folder: Path, recorded: dict[str, frozenset[tuple[str, str]]]) -> Truth:
    place = folder / "copy"
    shutil.copytree(folder / "closed", place)
    storage = SQLiteCheckpointStorage(StorageConfig(sqlite_path=str(place)))
    await storage.initialize()
    try:
        found = {trace_id: await read(storage, trace_id) for trace_id in TRACES}
    finally:
        await storage.close()
    outcome = {trace_id: await resume(place, trace_id, World(), []) for trace_id in TRACES}
    shutil.rmtree(place)
    return Truth(found, recorded, outcome)


@attrs.define
class Seen:
    """What one flip came to."""

    detected: bool = False
    wrong: str = ""
    fell_back: bool = False


async def look(place: Path, truth: Truth, resumed: str) -> Seen:
    """Read all traces, and resume one that is damaged; if none is, `resumed`."""
    seen = Seen()
    storage = SQLiteCheckpointStorage(StorageConfig(sqlite_path=str(place)))
    try:
        await storage.initialize()
        try:
            for trace_id in TRACES:
                try:
                    if await read(storage, trace_id) != truth.read[trace_id]:
                        seen.wrong = f"{trace_id} is read otherwise"
                except TraceNotFound:
                    seen.wrong = f"{trace_id} is not found"
                except TinyLLMError as error:
                    seen.detected = True
                    resumed = trace_id if isinstance(error, CheckpointDamaged) else resumed
        finally:
            await storage.close()
        await go_on(place, truth, resumed, seen)
    except TraceNotFound:
        seen.wrong = f"{resumed} is not found"
    except TinyLLMError:
        seen.detected = True
    return seen


async def go_on(place: Path, truth: Truth, trace_id: str, seen: Seen) -> None:
    world, events = World(), list[Event]()
    outcome = await resume(place, trace_id, world, events)
    fell = next((event for event in events if isinstance(event, FellBack)), None)
    again = Counter(name for name, key in world.ran if (name, key) in truth.recorded[trace_id])
    told = Counter(fell.again) if fell is not None and fell.again is not None else Counter[str]()
    seen.detected |= fell is not None
    seen.fell_back = fell is not None
    if outcome != truth.outcome[trace_id]:
        seen.wrong = f"{trace_id} ends as {outcome}, and was to end as {truth.outcome[trace_id]}"
    elif again != told:
        seen.wrong = f"{trace_id} ran {dict(again)} again, and said {dict(told)}"
    elif again[EFFECTS]:
        seen.wrong = f"{trace_id} ran something with effects again, unasked"
    if seen.wrong and seen.fell_back:  # for then all was known
        raise Violation(seen.wrong)


def flip(place: Path, rng: random.Random) -> str:
    """Flip a bit of any file, each byte of which is as likely as any other; returns where."""
    sizes = {name: (place / name).stat().st_size for name in FILES if (place / name).exists()}
    at = rng.randrange(sum(sizes.values()))
    files = list(sizes)
    while at >= sizes[files[0]]:
        at -= sizes[files.pop(0)]
    name = files[0]
    with (place / name).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        bit = rng.randrange(8)
        file.write(bytes([byte ^ 1 << bit]))
    return f"bit {bit} of byte {at:,} of {name}"


def run_trial(task: Task) -> str:
    task.plant_it()
    truth = anyio.run(prepared, task.folder, str(task.seed))
    counts: Counter[str] = Counter()
    for number in task.numbers():
        rng = random.Random(f"{task.seed}/{number}")
        place = task.folder / "flipped"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(task.folder / rng.choice(("closed", "open")), place)
        where = flip(place, rng)
        image = task.folder / "as_flipped"
        shutil.rmtree(image, ignore_errors=True)
        shutil.copytree(place, image)
        try:
            seen = anyio.run(look, place, truth, rng.choice(list(TRACES)), backend=rng.choice(("asyncio", "trio")))
        except Violation as violation:
            raise Violation(f"{where}: {violation}") from violation
        except Exception as error:
            raise Violation(f"{where}: {type(error).__name__}: {error}") from error
        if seen.wrong and not seen.detected:
            if is_sound(image):
                raise Violation(f"{where}: {seen.wrong}, and nothing tells")
            counts["told by doctor alone"] += 1
        elif seen.wrong and not is_sound(image):
            counts["told"] += 1
        elif seen.wrong:
            raise Violation(f"{where}: {seen.wrong}")
        else:
            counts["told" if seen.detected else "harmless"] += 1
        counts["fell back"] += seen.fell_back
    return (
        f"{counts['harmless']:,} flips were harmless, {counts['told']:,} were told where they mattered, "
        f"{counts['told by doctor alone']:,} by `tinyllm doctor` alone; {counts['fell back']:,} times a trace went on "
        "from an older checkpoint and ended as it should: 0 wrong answers that nothing tells"
    )


async def prepared(folder: Path, seed: str) -> Truth:
    return await truth_of(folder, await make(folder, seed))


def is_sound(place: Path) -> bool:
    try:
        return health.examine(place).sound
    except (TinyLLMError, CommitsMissing):
        return False


TRIALS = (Trial("flips", "one bit of the store is flipped", 2_000, 50_000, run_trial),)
