"""Fail every change of the disk once, and see that the store says so, loses nothing, and goes on."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import attrs

from tests.storage.deltas import Writer
from tests.torture.disk import FULL, IOERR_FSYNC, IOERR_SHORT, IOERR_TRUNCATE, IOERR_WRITE, OK, Change, Disk
from tests.torture.power import content, work
from tests.torture.trial import Task, Trial, Violation
from tinyllm import SQLiteCheckpointStorage
from tinyllm.errors import StorageError, TinyLLMError

CODES = {
    "write": (IOERR_WRITE, FULL, IOERR_SHORT),
    "truncate": (IOERR_TRUNCATE,),
    "sync": (IOERR_FSYNC,),
}
"""How what can fail."""

NAMES = {IOERR_WRITE: "EIO", FULL: "ENOSPC", IOERR_SHORT: "short", IOERR_TRUNCATE: "EIO", IOERR_FSYNC: "EIO"}

CALLS = 12
"""Of the store, in one piece of work; which has about 1,500 faults then."""


@attrs.frozen
class Fault:
    piece: int
    """Of work."""
    at: int
    """Which change of it."""
    kind: str
    code: int


async def fail_once(folder: Path, seed: str, at: int = -1, code: int = OK) -> tuple[list[Change], str]:
    """Do the work of `seed`; change number `at` fails with `code`. Returns the changes, and what the store said.

    A call that fails is made once more, for its outcome is not known.

    :raises Violation: something that was acknowledged is gone, or is there twice, or cannot be read.
    """
    asked, told = 0, ""
    writers: dict[str, Writer] = {}

    def refuse(_: Change) -> int:
        nonlocal asked
        asked += 1
        return code if asked - 1 == at else OK

    async def call(function: Callable[[], Awaitable[Any]]) -> Any:
        nonlocal told
        try:
            return await function()
        except StorageError as error:
            told = str(error)
        return await function()

    with Disk(refuse) as disk:
        storage = SQLiteCheckpointStorage(str(folder))
        await call(storage.initialize)
        try:
            async for _ in work(storage, random.Random(seed), CALLS, writers, call):
                pass
            await compare(storage, writers)
        finally:
            await storage.close()
    content(folder)
    storage = SQLiteCheckpointStorage(str(folder))
    await storage.initialize()
    try:
        await compare(storage, writers)
    finally:
        await storage.close()
    return disk.log, told


async def compare(storage: SQLiteCheckpointStorage, writers: dict[str, Writer]) -> None:
    """Read everything, by its checksums and counts."""
    for trace_id, writer in writers.items():
        try:
            snapshot = await storage.load(trace_id)
            steps = [step.step for step in await storage.steps(trace_id, limit=1_000_000)]
            messages = await storage.messages(trace_id, limit=1_000_000)
        except TinyLLMError as error:
            raise Violation(f"{trace_id} cannot be read: {error}") from error
        found = (snapshot.rev, snapshot.marks, len(messages), steps)
        wanted = (writer.rev, writer.marks, writer.history, list(range(1, writer.step + 1)))
        if found != wanted:
            raise Violation(f"{trace_id} is {found}, and was to be {wanted}")


def run_trial(task: Task) -> str:
    task.plant_it()
    failed: Counter[str] = Counter()
    silent, faults, known = 0, all_faults(task), list[Fault]()
    for number in task.numbers():
        while number >= len(known):
            known.append(next(faults))
        fault = known[number]
        _, said = make(task, fault.piece, fault.at, fault.code)
        failed[f"{fault.kind}: {NAMES[fault.code]}"] += 1
        silent += not said
    how = ", ".join(f"{count:,} times {name}" for name, count in failed.most_common())
    return f"{failed.total():,} faults ({how}), of which {silent:,} needed no word: 0 corrupt, 0 acknowledged lost"


def make(task: Task, piece: int, at: int = -1, code: int = OK) -> tuple[list[Change], str]:
    shutil.rmtree(task.folder, ignore_errors=True)
    return anyio.run(fail_once, task.folder / "store", f"{task.seed}/{piece}", at, code)


def all_faults(task: Task) -> Iterator[Fault]:
    """Every way in which a change can fail; of one piece of work after the other, of each in random order."""
    for piece in count():
        changes, _ = make(task, piece)
        faults = [
            Fault(piece, at, change.kind, code)
            for at, change in enumerate(changes)
            for code in CODES.get(change.kind, ())
        ]
        random.Random(f"{task.seed}/{piece}").shuffle(faults)
        yield from faults


TRIALS = (
    Trial(
        "faults",
        "every write, cut and sync of the disk fails once: EIO, ENOSPC, half of it written",
        1_700,
        20_000,
        run_trial,
    ),
)
