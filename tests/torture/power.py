"""Cut the power at every change of the disk, and see that all that was acknowledged is there, whole and once.

A store does its work on a disk that notes every change. From those is made up what a disk may have on it after a power
cut: all that was synced, and of the rest any part, whole sectors in any order. The store is opened on that, and must be
as it was after the last commit that had been acknowledged by then, or after the one that was under way.
"""

from __future__ import annotations

import hashlib
import marshal
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import attrs

from tests.storage.deltas import Item, Writer
from tests.torture.disk import Change, Disk
from tests.torture.trial import Task, Trial, Violation
from tinyllm import SQLiteCheckpointStorage
from tinyllm.errors import TraceExists
from tinyllm.storage.contract import Admitted, Appended, Prune, Pruned, Write
from tinyllm.storage.sqlite import database
from tinyllm.storage.sqlite.database import FILE_NAME
from tinyllm.storage.sqlite.library import sqlite3

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""


Call = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


@attrs.frozen
class Acknowledged:
    """After so many changes the store said that all until now is durable; `content` is what was in it."""

    changes: int
    content: str


@attrs.frozen
class Recording:
    log: tuple[Change, ...]
    acknowledged: tuple[Acknowledged, ...]

    def before(self, cut: int) -> int:
        """Which was the last acknowledgement before the cut; -1: none."""
        return sum(each.changes <= cut for each in self.acknowledged) - 1


# -- the work ----------------------------------------------------------------------------------------------------


async def record(folder: Path, seed: str, calls: int) -> Recording:
    """Have a store in `folder` do some of everything that changes files."""
    acknowledged: list[Acknowledged] = []
    with Disk() as disk:
        storage = SQLiteCheckpointStorage(str(folder))
        await storage.initialize()
        try:
            async for _ in work(storage, random.Random(seed), calls, {}, lambda function: function()):
                acknowledged.append(Acknowledged(len(disk.log), content(folder)))
        finally:
            await storage.close()
    acknowledged.append(Acknowledged(len(disk.log), content(folder)))
    return Recording(tuple(disk.log), tuple(acknowledged))


async def work(
    storage: SQLiteCheckpointStorage, rng: random.Random, calls: int, writers: dict[str, Writer], call: Call
) -> AsyncIterator[None]:
    """Call the store by way of `call`, and yield whenever it has returned. `writers`: what is written, by trace."""
    yield
    for number in range(calls):
        some = rng.choice(list(writers.values())) if writers else None
        match rng.choices(("admit", "append", "prune", "reclaim", "reopen"), (3, 20, 4, 2, 1))[0]:
            case "append" if some:
                appends = [_append(rng.choice(list(writers.values())), rng) for _ in range(rng.randint(1, 6))]
                for outcome in await call(partial(storage.commit, appends)):
                    expect(outcome, Appended)
            case "prune" if some:
                expect((await call(partial(storage.commit, [Prune(some.key, 5, 64)])))[0], Pruned)
            case "reclaim":
                await call(partial(storage.reclaim, 64))
            case "reopen":
                await storage.close()
                await call(storage.initialize)
            case _:
                new = Writer(f"t{number}")
                admit = new.admit(plan=["a"], set=[("list", b"[]"), ("x", b"1")])
                (outcome,) = await call(partial(storage.commit, [admit]))
                if isinstance(outcome, TraceExists):  # it was written by a call whose outcome was not known
                    record = await storage.trace(new.trace_id)
                    assert record is not None
                    outcome = Admitted(record.trace, record.epoch, record.rev)
                expect(outcome, Admitted)
                writers[new.trace_id] = new.admitted(outcome)
        yield


def expect(outcome: object, kind: type[object]) -> None:
    if not isinstance(outcome, kind):
        raise Violation(f"the store answers {outcome!r}, not {kind.__name__}")


def _append(writer: Writer, rng: random.Random) -> Write:
    ready = [seq for seq, row in writer.live.items() if row.state == "planned"]
    body = b'"%s"' % rng.randbytes(rng.choice((20, 200, 2000, 9000))).hex().encode()
    return writer.append(
        end=rng.choice(ready) if ready else None,
        plan=rng.choices("abc", k=rng.choice((1, 1, 2)) if len(ready) < 4 else 0),
        body=body,
        set=rng.sample([("list", Item(b"1")), ("x", body), ("y", b"2")], rng.randint(0, 2)),
    )


def content(folder: Path) -> str:
    """A digest of all rows."""
    digest = hashlib.sha256()
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as connection:
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
        if sound != "ok":
            raise Violation(f"the database is corrupt: {sound}")
        tables = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        digest.update(repr(tables).encode())
        for name, sql in tables:
            if (sql or "").startswith("CREATE TABLE"):
                rows = connection.execute(f"SELECT rowid, * FROM {name} ORDER BY rowid").fetchall()
                digest.update(marshal.dumps(rows, 2))  # what version 2 makes of equal rows is equal
    return digest.hexdigest()


# -- the cut -----------------------------------------------------------------------------------------------------


@attrs.define
class _File:
    durable: bytearray = attrs.field(factory=bytearray)
    pending: list[Change] = attrs.field(factory=list)
    entered: bool = False
    """Its entry in the directory is durable."""

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()
        self.entered = True

    def cut(self, rng: random.Random) -> bytes:
        image = bytearray(self.durable)
        share = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        last = rng.choice((rng.randint(0, len(self.pending)), len(self.pending)))
        for change in self.pending[:last]:
            if rng.random() < share:
                for part in _torn(change, rng):
                    _apply(image, part)
        return bytes(image)


class Drive:
    """What is on the disk, and what is only on its way there, as one plays a log."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {FILE_NAME: _File(entered=True)}
        self._deleted: dict[str, _File] = {}
        """What may come back: the directory was not synced since."""

    def do(self, change: Change) -> None:
        name = change.name
        if change.kind == "delete":
            gone = self._files.pop(name, None)
            if gone is not None and gone.entered and not change.at:
                self._deleted[name] = gone
            return
        file = self._files.setdefault(name, _File())
        if change.kind == "sync":
            if (
                not file.entered
            ):  # with the first sync of a new file SQLite syncs its directory, and what was deleted stays so
                self._deleted.clear()
            file.sync()
        elif change.kind == "lost":
            file.pending.clear()  # as the kernel does: who reads sees it all, and no later sync writes it
        elif change.kind != "create":
            file.pending.append(change)

    def cut(self, rng: random.Random) -> dict[str, bytes]:
        """What one may find when the power is back."""
        found = {name: file for name, file in self._files.items() if file.entered or rng.random() < 0.5}
        found |= {name: file for name, file in self._deleted.items() if name not in found and rng.random() < 0.5}
        return {name: file.cut(rng) for name, file in sorted(found.items())}


def _torn(change: Change, rng: random.Random) -> Iterator[Change]:
    """The change whole, or some of the sectors of a write."""
    if change.kind != "write" or rng.random() < 0.7:
        yield change
        return
    begin = 0
    while begin < len(change.data):
        end = min(len(change.data), begin + SECTOR - (change.at + begin) % SECTOR)
        if rng.random() < 0.5:
            yield attrs.evolve(change, at=change.at + begin, data=change.data[begin:end])
        begin = end


def _apply(image: bytearray, change: Change) -> None:
    if change.kind == "truncate":
        del image[change.at :]
        image.extend(bytes(change.at - len(image)))
        return
    if len(image) < change.at:
        image.extend(bytes(change.at - len(image)))
    image[change.at : change.at + len(change.data)] = change.data


async def check(folder: Path, files: dict[str, bytes], allowed: set[str] | None) -> None:
    """Open the store on what is left.

    :raises Violation: it is not one of the `allowed` ones. (None: it was not even made when the power was cut, so that
        it can be opened is all that is wanted.)
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name, body in files.items():
        (folder / name).write_bytes(body)
    storage = SQLiteCheckpointStorage(str(folder))
    try:
        await storage.initialize()
    except Exception as error:
        raise Violation(f"the store cannot be opened: {error!r}") from error
    await storage.close()
    if content(folder) not in (allowed or {content(folder)}):
        raise Violation("something acknowledged is gone, or something else is there")


CALLS = 60
"""Of the store, in one recording."""

CUTS = 500
"""Of one recording."""


def run_trial(task: Task, journal: str) -> str:
    places: Counter[str] = Counter()
    task.plant_it()
    with journaled(journal):
        for first, numbers in groupby(range(task.runs) if task.only is None else [task.only], lambda n: n // CUTS):
            anyio.run(cut_one, task, first, list(numbers), places)
    where = ", ".join(f"{count:,} before a {kind}" for kind, count in places.most_common())
    return f"{places.total():,} power cuts ({where}) in journal mode {journal}: 0 corrupt, 0 acknowledged lost"


async def cut_one(task: Task, which: int, numbers: list[int], places: Counter[str]) -> None:
    """Make a recording, and cut the power of it as often as there are `numbers`: the earliest first, so that it is
    played once."""
    shutil.rmtree(task.folder, ignore_errors=True)
    recording = await record(task.folder / "recorded", f"{task.seed}/{which}", CALLS)
    rngs = {number: random.Random(f"{task.seed}/{number}") for number in numbers}
    cuts = sorted((rng.randint(0, len(recording.log)), number) for number, rng in rngs.items())
    drive, played = Drive(), 0
    for done, (cut, number) in enumerate(cuts):
        task.begin(number, which * CUTS + done)
        for change in recording.log[played:cut]:
            drive.do(change)
        played = cut
        at = recording.before(cut)
        allowed = {each.content for each in recording.acknowledged[max(at, 0) : at + 2]}
        await check(task.folder / "cut", drive.cut(rngs[number]), allowed if at >= 0 else None)
        places[recording.log[cut].kind if cut < len(recording.log) else "end"] += 1


@contextmanager
def journaled(mode: str) -> Iterator[None]:
    """Have stores use the rollback journal, as with a SQLite that is not safe with a WAL."""
    with patch.object(database, "has_wal_reset_bug", lambda *_: True) if mode == "truncate" else nullcontext():
        yield


TRIALS = tuple(
    Trial(
        name,
        f"power cuts in journal mode {journal}: what was not synced is dropped, torn and reordered",
        runs,
        long,
        partial(run_trial, journal=journal),
    )
    for name, journal, runs, long in (("power", "wal", 16_000, 200_000), ("power-truncate", "truncate", 4_000, 50_000))
)
