"""Fail syncs, as a kernel does that never writes what it could not, and cut the power later.

After a failed sync all seems well: what was written can be read, and the next sync succeeds. Only what is written once
more is ever on the disk. So a store that tries again, or believes what it reads, loses what it acknowledges afterwards.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs

from tests.storage.deltas import Writer
from tests.torture.disk import IOERR_FSYNC, OK, Change, Disk
from tests.torture.power import Drive, content, journaled, work
from tests.torture.trial import Task, Trial, Violation
from tinyllm import SQLiteCheckpointStorage
from tinyllm.errors import StorageError

CALLS = 60
"""Of the store, in one recording."""
CUTS = 50
"""Of one recording: which syncs fail matters more than where it is cut."""
SHARE = 0.15
"""Of the syncs fail."""


@attrs.frozen
class Recording:
    log: tuple[Change, ...]
    acknowledged: tuple[tuple[int, dict[str, int]], ...]
    """After so many changes, the revs of the traces of which the store said that they are durable."""

    def before(self, cut: int) -> dict[str, int]:
        return next((revs for changes, revs in reversed(self.acknowledged) if changes <= cut), {})


async def record(folder: Path, seed: str) -> Recording:
    """Have a store in `folder` do some of everything; a call that fails is made again, for its outcome is not known."""
    rng = random.Random(seed)
    acknowledged: list[tuple[int, dict[str, int]]] = []
    writers: dict[str, Writer] = {}
    opened = False

    def refuse(change: Change) -> int:
        if not opened or change.kind != "sync" or rng.random() > SHARE:
            return OK
        disk.log.append(Change("lost", change.name))
        return IOERR_FSYNC

    async def call(function: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await function()
            except StorageError:
                pass

    with Disk(refuse) as disk:
        storage = SQLiteCheckpointStorage(str(folder))
        await storage.initialize()
        opened = True  # to make a database is tried in other trials
        try:
            async for _ in work(storage, random.Random(f"{seed}/work"), CALLS, writers, call):
                acknowledged.append((len(disk.log), {name: writer.rev for name, writer in writers.items()}))
        finally:
            await storage.close()
    return Recording(tuple(disk.log), tuple(acknowledged))


async def check(folder: Path, files: dict[str, bytes], acknowledged: dict[str, int]) -> None:
    """Open the store on what is left.

    :raises Violation: something that was acknowledged is gone, or is not whole.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name, body in files.items():
        (folder / name).write_bytes(body)
    storage = SQLiteCheckpointStorage(str(folder))
    try:
        await storage.initialize()
        content(folder)  # which is an integrity check
        for trace, rev in acknowledged.items():
            found = (await storage.load(trace)).rev
            if found < rev:
                raise Violation(f"{trace} was acknowledged at rev {rev}, and is at {found}")
            steps = [step.step for step in await storage.steps(trace, limit=1_000_000)]
            if steps != list(range(1, len(steps) + 1)):
                raise Violation(f"{trace} has the steps {steps}")
            await storage.messages(trace, limit=1_000_000)
    except StorageError as error:
        raise Violation(f"the store cannot be read: {error!r}") from error
    finally:
        await storage.close()


def run_trial(task: Task, journal: str) -> str:
    task.plant_it()
    recorded: dict[int, Recording] = {}
    cuts = failed = 0
    with journaled(journal):
        for number in task.numbers():
            which = number // CUTS
            if which not in recorded:
                shutil.rmtree(task.folder, ignore_errors=True)
                recorded = {which: anyio.run(record, task.folder / "recorded", f"{task.seed}/{which}")}
                failed += sum(change.kind == "lost" for change in recorded[which].log)
            rng = random.Random(f"{task.seed}/{number}")
            recording = recorded[which]
            cut = rng.randint(recording.acknowledged[0][0], len(recording.log))
            drive = Drive()
            for change in recording.log[:cut]:
                drive.do(change)
            anyio.run(check, task.folder / "cut", drive.cut(rng), recording.before(cut))
            cuts += 1
    return (
        f"{cuts:,} power cuts after {failed:,} failed syncs in journal mode {journal}: 0 corrupt, 0 acknowledged lost"
    )


TRIALS = tuple(
    Trial(
        name,
        f"syncs fail and what they did not write is never written, then the power is cut, in journal mode {journal}",
        runs,
        long,
        partial(run_trial, journal=journal),
    )
    for name, journal, runs, long in (("fsync", "wal", 300, 20_000), ("fsync-truncate", "truncate", 200, 10_000))
)
