"""Bugs to plant in a victim: the harness must find each of them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import attrs

from tinyllm.actors import writer
from tinyllm.actors.dispatch import Dispatch
from tinyllm.actors.joins import Joins
from tinyllm.actors.mailbox import reply
from tinyllm.actors.merge import Merged
from tinyllm.actors.plan import Plan
from tinyllm.actors.protocol import Ask, Durable, Put
from tinyllm.actors.routes import Router
from tinyllm.actors.schedule import TraceSchedule, WriteNow
from tinyllm.actors.writer import StorageWriter
from tinyllm.core.way_back import WayBack
from tinyllm.graph.definition import END
from tinyllm.storage import framing, memory, memory_prune
from tinyllm.storage.contract import Delta, Outcome, Snapshot
from tinyllm.storage.memory_trace import Trace
from tinyllm.storage.sqlite import SQLiteCheckpointStorage, database, prune, sense, write
from tinyllm.storage.sqlite import seals as sqlite_seals
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.thread import DedicatedThread, _Job, _settled, loop_caller

BUSY = 0.02
"""Seconds by which a commit takes longer, so that a kill hits it more often."""


def acknowledge_before_commit() -> None:
    """The writer says that a delta is durable, and only then writes it."""
    commit, tell = StorageWriter._commit, StorageWriter._tell

    async def early(self: StorageWriter, batch: list[Put | Ask]) -> None:
        for item in batch:
            if isinstance(item, Put):
                reply(item.reply, Durable(item.delta.number, item.delta.step, item.delta.rev))
        await anyio.sleep(BUSY)
        await commit(self, batch)

    def later(self: StorageWriter, item: Put | Ask, outcome: Outcome) -> None:
        if isinstance(item, Ask):
            tell(self, item, outcome)

    StorageWriter._commit = early  # type: ignore[method-assign]
    StorageWriter._tell = later  # type: ignore[method-assign]


def start_before_commit() -> None:
    """The next node starts as in `async` mode, whatever mode was asked for, and effects wait for nothing."""
    commit, made = StorageWriter._commit, Dispatch.__init__

    async def slow(self: StorageWriter, batch: list[Put | Ask]) -> None:
        await anyio.sleep(BUSY)
        await commit(self, batch)

    def init(self: Dispatch, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self._sync = self._commits_output = False

    StorageWriter._commit = slow  # type: ignore[method-assign]
    Dispatch.__init__ = init  # type: ignore[method-assign]


def forget_an_end() -> None:
    """The scheduler loses, of every fifth delta, that an activation ended; all counts agree with that."""
    write = TraceSchedule._write
    forgotten = 0
    unread = 0
    arrived: Counter[int] = Counter()

    def lossy(self: TraceSchedule, delta: Delta, now: float) -> Any:
        nonlocal forgotten, unread
        effects = write(self, delta, now)
        for place, effect in enumerate(effects):
            if isinstance(effect, WriteNow):
                delta = effect.delta
                arrived.update(row.activation for row in delta.arrivals)
                if delta.step % 5 == 4:
                    forgotten += len(delta.ended)
                    unread += sum(arrived[seq] for seq in delta.ended)
                    delta = attrs.evolve(delta, ended=())
                counts = delta.counts
                counts = attrs.evolve(counts, frontier=counts.frontier + forgotten, arrivals=counts.arrivals + unread)
                effects[place] = WriteNow(attrs.evolve(delta, counts=counts))
        return effects

    TraceSchedule._write = lossy  # type: ignore[method-assign]


def normal_for_full() -> None:
    """Commits are not synced, which makes them quicker, and a power cut takes them."""
    connect = database.connect

    def hasty(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    database.connect = hasty


def believe_a_failed_commit() -> None:
    """What raised is taken for done."""

    def end(self: SQLiteCheckpointStorage, connection: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):
            connection.execute("COMMIT")

    SQLiteCheckpointStorage._end = end  # type: ignore[method-assign]


def skip_the_first_when_trying_again() -> None:
    """Of what a store did not take, the first delta is not written again, and taken for durable."""
    hold = StorageWriter._hold

    async def lossy(self: StorageWriter, until: float) -> None:
        await hold(self, until)
        if isinstance(item := self._batch[0], Put):
            reply(item.reply, Durable(item.delta.number, item.delta.step, item.delta.rev))
            del self._batch[0]

    StorageWriter._hold = lossy  # type: ignore[method-assign]


def acknowledge_what_is_held() -> None:
    """What a store did not take is said to be durable while it is tried again."""
    stall = StorageWriter._stall

    def early(self: StorageWriter, error: Exception) -> None:
        stall(self, error)
        for item in self._batch:
            if isinstance(item, Put):
                reply(item.reply, Durable(item.delta.number, item.delta.step, item.delta.rev))

    StorageWriter._stall = early  # type: ignore[method-assign]


def try_once() -> None:
    """No fault passes."""
    writer.pause = lambda *_: None  # type: ignore[attr-defined]


def write_without_looking() -> None:
    """Whether a trace is still its own is not looked at where it is written."""
    for name in ("_APPEND", "_APPEND_LAST", "_APPEND_ONE"):
        statement = getattr(write, name)
        for column in ("epoch", "rev"):
            statement = statement.replace(f"AND {column} = ", f"AND {column} >= ")
        setattr(write, name, statement)


def no_checksum() -> None:
    """Every row has the same checksum, whatever it says."""
    without = SimpleNamespace(**{**vars(zlib), "crc32": lambda *_: 0})
    vars(framing)["zlib"] = without
    vars(sqlite_seals)["crc32"] = without.crc32


def fall_back_past_effects() -> None:
    """A damaged trace goes back as far as it must, without asking."""
    WayBack.refuse_effects = lambda *_: None  # type: ignore[method-assign]


def check_then_write() -> None:
    """Whoever takes a trace over looks whose it is, and then writes, whoever has taken it since."""
    write._ACQUIRE = """
    UPDATE traces SET epoch = ?4 + 1, owner = ?1, updated_at = ?2 WHERE key = ?3 AND trace_id IS NOT NULL
    RETURNING rev, graph, EXISTS (SELECT 1 FROM commands WHERE trace = traces.key AND consumed = 0)
    """


def counter_activation_ids() -> None:
    """The id of an activation is the next number of its trace, whatever caused it."""
    counted: dict[Router, int] = {}
    restore = Plan.restore

    def count(self: Router, cause: bytes, edge: str, ordinal: int) -> bytes:
        counted[self] = counted.get(self, 0) + 1
        return counted[self].to_bytes(16, "big")

    def go_on(self: Plan, snapshot: Snapshot, *, retry: bool = True) -> None:
        restore(self, snapshot, retry=retry)
        counted[self._router] = snapshot.marks.activation + snapshot.marks.arrival

    Router._id = count  # type: ignore[method-assign]
    Plan.restore = go_on  # type: ignore[method-assign]


def prune_ignoring_a_pin() -> None:
    """A checkpoint from which a fork starts is pruned like any other."""
    prune._DROPPABLE = prune._DROPPABLE.replace("pins = 0 AND", "")
    careful = memory_prune.prune

    def careless(trace: Trace, keep: int, limit: int) -> int:
        pins = [(at, at.pins) for at in trace.checkpoints]
        for at, _ in pins:
            at.pins = 0
        dropped = careful(trace, keep, limit)
        for at, count in pins:
            at.pins = count
        return dropped

    memory.prune = careless  # type: ignore[attr-defined]


def lose_an_arrival() -> None:
    """Of all that reaches a join before it is written, only the last is."""
    merged = Merged.delta

    def lossy(self: Merged) -> Delta:
        self._arrivals = {seq: rows[-1:] for seq, rows in self._arrivals.items()}
        return merged(self)

    Merged.delta = lossy  # type: ignore[method-assign]


def fire_when_anything_has_arrived() -> None:
    """A join waits for nothing."""

    def hasty(self: Joins, active: Any, *, anything_runs: bool) -> list[str]:
        return [node for node in self.rounds if node != END]

    Joins.ready = hasty  # type: ignore[method-assign]


def believe_every_row() -> None:
    """What a store says is taken for what a tinyllm wrote there."""
    sense.check.__code__ = (lambda found: None).__code__  # wherever it was imported


def abandoned_cancel() -> None:
    """Whoever waits for a thread is cancelled at once, and what it does is done alone, as `anyio.to_thread` has it with
    `abandon_on_cancel`."""

    async def call(self: DedicatedThread, function: Callable[..., Any], *args: Any) -> Any:
        done, soon = anyio.Event(), loop_caller()

        class Caller:
            def wake(self) -> None:
                with suppress(RuntimeError):  # the loop has ended
                    soon(done.set)

        job = _Job(function, args, Caller())
        self._put(job)
        await done.wait()
        return _settled(job)

    DedicatedThread.call = call  # type: ignore[method-assign,assignment]
