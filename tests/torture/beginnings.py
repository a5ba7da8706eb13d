"""Kill a process at every change of the disk that it makes, from the first on: while the store is created or migrated,
and while its first trace begins. Afterwards the store opens, and the trace is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import closing
from itertools import product
from pathlib import Path

import anyio
import attrs

from tests.torture.disk import OK, Change, Disk
from tests.torture.power import content, journaled
from tests.torture.trial import Task, Trial, Violation
from tinyllm import Executor, ExecutorConfig, Graph, GraphBuilder, SQLiteCheckpointStorage
from tinyllm.actors.events import Committed, Event
from tinyllm.storage.sqlite.database import FILE_NAME
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.schema import APPLICATION_ID

SYNC = ExecutorConfig(durability="sync")
OLD = Path(__file__).parents[1] / "storage" / "version_1.sql"
MOST = 300
"""Changes, and more than any start makes."""
ENDED = 7
"""The exit code of a process that nobody killed."""


@attrs.frozen
class Start:
    """From nothing at all, or from a database of the first version."""

    loop: str
    journal: str
    old: bool


STARTS = [Start(*each) for each in product(("asyncio", "trio"), ("wal", "truncate"), (False, True))]


def graph() -> Graph:
    async def first(text: str) -> str:
        return text + "1"

    async def second(text: str) -> str:
        return text + "2"

    return GraphBuilder("g").chain(first, second).build()


# -- the trial ---------------------------------------------------------------------------------------------------


def run_trial(task: Task) -> str:
    """Of each start in turn, a kill at every so many-th change, of which the seed says which; at every one, if enough
    runs are asked for. (A run's number says the start and the change.)"""
    task.plant_it()
    starts = len(STARTS)
    stride = max(1, MOST * starts // task.runs)
    killed, ended = 0, set[Start]()
    changes = range(task.seed % stride, MOST, stride)
    numbers = [at * starts + start for at in changes for start in range(starts)] if task.only is None else [task.only]
    for done, number in enumerate(numbers):
        start = STARTS[number % starts]
        if start in ended:
            continue
        task.begin(number, done)
        if kill_one(task.folder / "run", start, number // starts):
            killed += 1
        else:
            ended.add(start)
    return f"{killed:,} processes killed: each new or old store opens, each first trace is whole or not there"


def kill_one(folder: Path, start: Start, at: int) -> bool:
    """Kill a process before its change number `at`; whether it made so many."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if start.old:
        make_old(folder)
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(reading)
            begin(folder, start, at, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()  # a byte for each step that was told to be durable
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code not in (-signal.SIGKILL, ENDED):
        raise Violation(f"{start}, change {at}: the process ended with {code}")
    try:
        with journaled(start.journal):
            anyio.run(go_on, folder, len(told), backend=start.loop)
        content(folder)
    except Exception as error:
        raise Violation(f"{start}, killed before change {at}: {error!r}") from error
    return code != ENDED


def make_old(folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(OLD.read_text(encoding="utf-8"))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")


def begin(folder: Path, start: Start, at: int, told: int) -> None:
    """The process that is killed."""
    changes = step = 0

    def count(_: Change) -> int:
        nonlocal changes
        if changes == at:
            os.kill(os.getpid(), signal.SIGKILL)
        changes += 1
        return OK

    def hear(event: Event) -> None:
        if isinstance(event, Committed):
            nonlocal step
            os.write(told, b"." * (event.step - step))
            step = event.step

    async def live() -> None:
        async with Executor(graph(), SYNC, str(folder), on_event=hear) as executor:
            await executor.execute("task", trace_id="new")

    with Disk(count), journaled(start.journal):
        anyio.run(live, backend=start.loop)
    os._exit(ENDED)


async def go_on(folder: Path, durable: int) -> None:
    storage = SQLiteCheckpointStorage(str(folder))
    await storage.initialize()
    try:
        record = await storage.trace("new")
        if record is not None:
            snapshot = await storage.load("new")  # by its checksums and counts
            if snapshot.step < durable:
                raise Violation(f"it is at step {snapshot.step}, and was told to be durable at {durable}")
        elif durable:
            raise Violation("the trace is not there")
        async with Executor(graph(), SYNC, storage) as executor:
            response = await executor.execute("task", trace_id="new")
        if response.value != "task12":
            raise Violation(f"the trace ends with {response.value}")
    finally:
        await storage.close()


TRIALS = (
    Trial(
        "beginning",
        "a process is killed at every change of the disk while a store and its first trace begin",
        400,
        5_000,
        run_trial,
    ),
)
