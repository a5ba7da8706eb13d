"""Stop a process in the middle of its traces, take them over, let it go on, and see that it writes nothing more."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import attrs

from tests.torture.forked import Forked, Nursery
from tests.torture.trial import LOOPS, Task, Trial, Violation
from tests.torture.victim import PATIENCE
from tinyllm import Executor, ExecutorConfig, Graph, GraphBuilder, SQLiteCheckpointStorage
from tinyllm.errors import DatabaseLocked, OwnershipLost
from tinyllm.storage.sqlite import database
from tinyllm.storage.sqlite.database import FILE_NAME
from tinyllm.storage.sqlite.library import sqlite3

NODES, TRACES = 20, 10
"""Of each trace, and of each process."""
PATIENT = 0.5
"""Seconds that whoever takes over waits for a lock, which a stopped process may hold."""

NAP = 0.02
LONGEST = 0.4
"""Seconds after which a process is stopped at most: it naps for as long."""
_OWN = ("messages", "activations", "arrivals", "variables", "steps", "checkpoints", "traces")


def chain() -> Graph:
    async def step(number: int) -> int:
        await anyio.sleep(NAP)
        return number + 1

    builder = GraphBuilder("chain")
    for index in range(NODES):
        builder.node(step, id=f"n{index}")
    return builder.chain(*[f"n{index}" for index in range(NODES)]).build()


# -- the trial ---------------------------------------------------------------------------------------------------


@attrs.define
class Tally:
    taken: int = 0
    ended: int = 0
    waited: int = 0
    """Times that it was stopped while it held the lock."""


def run_trial(task: Task) -> str:
    task.plant_it()
    tally = Tally()
    with Nursery() as nursery, patch.object(database, "LOCK_TIMEOUT", PATIENT):
        for number in task.numbers():
            if task.only is None and number % TRACES:
                continue  # a run is a trace, and so many go together
            stop_one(nursery, task, number, tally)
    return (
        f"{tally.taken:,} traces taken over from stopped processes ({tally.ended:,} had ended before, {tally.waited:,} "
        "times one held the lock): 0 stale writes, 0 recorded activations ran again"
    )


def stop_one(nursery: Nursery, task: Task, number: int, tally: Tally) -> None:
    shutil.rmtree(task.folder, ignore_errors=True)
    task.folder.mkdir()
    rng = random.Random(f"{task.seed}/{number}")
    loop, durability = rng.choice(LOOPS), rng.choice(("sync", "async"))
    store = task.folder / "store"
    given = {"store": str(store), "loop": loop, "durability": durability, "plant": task.plant}
    with nursery.start(f"{__name__}:live", given, task.folder / "log") as process:
        hear(process, b"begun")
        time.sleep(rng.uniform(0, LONGEST))  # the instant is what is tried
        process.send(signal.SIGSTOP)
        taken = anyio.run(take_over, store, process, tally, backend=rng.choice(LOOPS))
        before = rows(store, taken)
        process.send(signal.SIGCONT)
        told = json.loads(hear(process, b"{"))
    for trace in taken:
        if told[trace] != OwnershipLost.__name__:
            raise Violation(f"{trace} was taken over, and the process that had it says: {told[trace]}")
    if rows(store, taken) != before:
        raise Violation("what was taken over was written to by the process that had it")
    tally.taken += len(taken)
    tally.ended += TRACES - len(taken)


def hear(process: Forked, beginning: bytes) -> bytes:
    """The next line that begins so."""
    deadline = time.monotonic() + PATIENCE
    while select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
        line = process.stdout.readline()
        if not line:
            raise Violation(f"the process ended with {process.wait()}")
        if line.startswith(beginning):
            return line
    raise Violation("the process hangs")


async def take_over(store: Path, process: Forked, tally: Tally) -> list[str]:
    """Bring all traces to their end; returns those that had not come to it."""
    taken: list[str] = []
    while True:
        try:
            storage = SQLiteCheckpointStorage(str(store))
            await storage.initialize()
            try:
                async with Executor(chain(), ExecutorConfig(), storage) as executor:
                    await bring_to_their_end(executor, storage, taken)
                return taken
            finally:
                await storage.close()
        except DatabaseLocked:  # it was stopped inside a transaction
            tally.waited += 1
            process.send(signal.SIGCONT)
            await anyio.sleep(0.01)
            process.send(signal.SIGSTOP)


async def bring_to_their_end(executor: Executor, storage: SQLiteCheckpointStorage, taken: list[str]) -> None:
    locked: list[DatabaseLocked] = []

    async def bring(trace: str) -> None:
        try:
            record = await storage.trace(trace)
            if record is None or record.status == "completed":
                return
            response = await executor.resume_from_checkpoint(trace, take_over=True)
        except DatabaseLocked as error:
            locked.append(error)
            return
        if response.value != NODES:
            raise Violation(f"{trace} ends with {response.value}, not {NODES}")
        taken.append(trace)

    async with anyio.create_task_group() as tasks:
        for number in range(TRACES):
            tasks.start_soon(bring, f"t{number}")
    if locked:
        raise locked[0]


def rows(store: Path, traces: list[str]) -> list[Any]:
    """All that is recorded of `traces`."""
    with closing(sqlite3.connect(store / FILE_NAME)) as connection:
        found: list[Any] = []
        for trace in traces:
            (key,) = connection.execute("SELECT key FROM traces WHERE trace_id = ?", (trace,)).fetchone()
            for table in _OWN:
                where = "key = ?" if table == "traces" else "id >> 32 = ?"
                found += connection.execute(f"SELECT * FROM {table} WHERE {where}", (key,)).fetchall()
            steps = connection.execute("SELECT id & 4294967295 FROM steps WHERE id >> 32 = ? ORDER BY id", (key,))
            if [step for (step,) in steps] != list(range(1, NODES + 1)):
                raise Violation(f"{trace} has not each step once")
        return found


TRIALS = (
    Trial(
        "zombie", "a process is stopped, its traces are taken over, and it goes on", 600, 5_000, run_trial, on_disk=True
    ),
)


# -- the process -------------------------------------------------------------------------------------------------


def live(given: dict[str, Any]) -> None:
    Task(Path(given["store"]), 0, 0, plant=given["plant"]).plant_it()
    anyio.run(execute_all, given["store"], given["durability"], backend=given["loop"])


async def execute_all(store: str, durability: str) -> None:
    told: dict[str, str] = {}

    async def execute(executor: Executor, trace: str) -> None:
        try:
            told[trace] = (await executor.execute(0, trace_id=trace)).status
        except Exception as error:
            told[trace] = type(error).__name__

    config = ExecutorConfig(**{"durability": durability})  # type: ignore[arg-type] # it is one
    async with Executor(chain(), config, store) as executor, anyio.create_task_group() as tasks:
        for number in range(TRACES):
            tasks.start_soon(execute, executor, f"t{number}")
        os.write(1, b"begun\n")
    os.write(1, json.dumps(told).encode() + b"\n")
