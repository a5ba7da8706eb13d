"""Take the disk, the lock or the descriptors away from a running executor for a while, and see that it outlives that.

Several traces are under way, and somebody reads in the store all the while. At a random instant a fault begins. Where
it ends, the traces must go on by themselves soon afterwards, and come to their end with each step recorded once. Where
it does not, each must say why, and which of its steps are durable; and they are.
"""

from __future__ import annotations

import logging
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import anyio.to_thread
import attrs

from tests.torture.disk import FULL, IOERR_FSYNC, IOERR_SHORT, IOERR_TRUNCATE, IOERR_WRITE, OK, READONLY, Change, Disk
from tests.torture.forked import ROOT
from tests.torture.trial import Task, Trial, Violation
from tests.torture.victim import PATIENCE
from tinyllm import Executor, ExecutorConfig, Graph, GraphBuilder, SQLiteCheckpointStorage
from tinyllm.actors import outage
from tinyllm.actors.dispatch import CREDIT
from tinyllm.actors.events import Committed, Event, NodeFinished, StoreRecovered, StoreStalled, TraceStarted
from tinyllm.errors import StorageError, StorageFailed
from tinyllm.storage.sqlite import database, store
from tinyllm.storage.sqlite.database import FILE_NAME

TRACES, STEPS = 3, 100
NAP = 0.002
"""Seconds that a node takes."""
PROMISED = 5.0
"""Seconds after the end of a fault by which something must be durable."""
LONGEST = 1.5
"""Seconds that a fault lasts at most, if it ends."""
ENDLESS = 6
"""Of so many faults one does not end,"""
IMPATIENT = 1.0
"""and is waited for so long, instead of two minutes."""
LONG_LOCK, LONG_SECONDS = 500, 60.0
"""The last of so many runs is a lock that is held for so long."""
ANSWERED = 1.0
"""Seconds within which a reader must be answered."""

Refuse = Callable[[Change], int]


# -- faults ------------------------------------------------------------------------------------------------------


@attrs.define
class Fault:
    """`during` holds while it lasts; `says` is in the error that tells of it."""

    kind: str
    says: str
    begins: float
    lasts: float | None
    """Seconds; None: it does not end."""
    short_timeout: bool

    @contextmanager
    def during(self, disk: Disk, folder: Path, rng: random.Random) -> Iterator[None]:
        with ExitStack() as held:
            match self.kind:
                case "lock":
                    held.enter_context(locked(folder / FILE_NAME, kills=rng.random() < 0.5))
                case "descriptors":
                    held.enter_context(limited(resource.RLIMIT_NOFILE, 3))
                    held.enter_context(refusing(disk, once(IOERR_WRITE)))  # so that it must be opened again
                case "file size":
                    grows = folder / FILE_NAME if wal(folder) is None else wal(folder)
                    assert grows is not None
                    held.enter_context(limited(resource.RLIMIT_FSIZE, grows.stat().st_size + rng.randrange(9_000)))
                case _:
                    share = 1.0 if self.lasts is None else rng.choice((1.0, 1.0, 0.3))
                    held.enter_context(refusing(disk, failing(DISK[self.kind], share, rng)))
            yield


def wal(folder: Path) -> Path | None:
    """The write-ahead log of the database; None where SQLite is not trusted with one."""
    path = Path(f"{folder / FILE_NAME}-wal")
    return path if path.exists() else None


DISK: dict[str, dict[str, int]] = {
    "EIO": {"write": IOERR_WRITE, "truncate": IOERR_TRUNCATE, "sync": IOERR_FSYNC},
    "EIO on fsync": {"sync": IOERR_FSYNC},
    "ENOSPC": {"write": FULL},
    "short writes": {"write": IOERR_SHORT},
    "read-only": {"write": READONLY, "truncate": READONLY},
}
SAYS = {
    "EIO": "the disk failed",
    "EIO on fsync": "the disk failed",
    "ENOSPC": "the disk is full",
    "short writes": "the disk failed",
    "read-only": "read-only",
    "lock": "has been locked by process",
    "descriptors": "it cannot be opened",
    "file size": "the disk failed",
}


def failing(codes: dict[str, int], share: float, rng: random.Random) -> Refuse:
    """A share of the changes fails."""
    return lambda change: codes.get(change.kind, OK) if rng.random() < share else OK


def once(code: int) -> Refuse:
    codes = [code]
    return lambda change: codes.pop() if codes and change.kind == "write" else OK


@contextmanager
def refusing(disk: Disk, refuse: Refuse) -> Iterator[None]:
    disk.refuse = refuse
    try:
        yield
    finally:
        disk.refuse = None


@contextmanager
def limited(what: int, limit: int) -> Iterator[None]:
    """For this process, and really. (What would exceed the size of a file gets EFBIG after a short write.)"""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


_HOLDER = """
import sys
from tinyllm.storage.sqlite.library import sqlite3
connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path: Path, *, kills: bool) -> Iterator[None]:
    """Another process is inside a transaction."""
    command = [sys.executable, "-c", _HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield
        finally:
            if kills:
                holder.kill()
            holder.stdin.close()
            holder.wait()


# -- one run -----------------------------------------------------------------------------------------------------


def counting(calls: Counter[tuple[str, int]]) -> Graph:
    """A node that follows itself. `calls`: how often it was called, by trace and step."""

    async def step(value: dict[str, Any], context: Any) -> dict[str, Any]:
        calls[value["trace"], value["n"]] += 1
        await anyio.sleep(NAP)
        context.set_variable("log", value["n"])
        return {**value, "n": value["n"] + 1, "body": "x" * 200}

    async def end(value: dict[str, Any]) -> int:
        return int(value["n"])

    builder = GraphBuilder("counting", allow_cycles=True, variables={"log": "append"})
    builder.node(step, id="step").node(end, id="end")
    builder.edge("step", "step", when=f"structured['n'] < {STEPS}")
    builder.edge("step", "end", when=f"structured['n'] >= {STEPS}")
    return builder.entry("step").build()


@attrs.define
class Watch:
    """What the events of an executor say about memory and time."""

    done: Counter[str] = attrs.field(factory=Counter)
    durable: Counter[str] = attrs.field(factory=Counter)
    stalled: Counter[str] = attrs.field(factory=Counter)
    """By trace that was told so and not yet that it is over: steps that finished since."""
    was_stalled: bool = False
    on: int = 0
    """Steps that finished in a trace since it was told so, at most."""
    committed: list[float] = attrs.field(factory=list)
    held: int = 0
    """Steps of one trace that were finished and not durable, at most."""

    def __call__(self, event: Event) -> None:
        match event:
            case NodeFinished():
                self.done[event.trace_id] = event.step
                self.held = max(self.held, event.step - self.durable[event.trace_id])
                if event.trace_id in self.stalled:
                    self.stalled[event.trace_id] += 1
                    self.on = max(self.on, self.stalled[event.trace_id])
            case Committed():
                self.durable[event.trace_id] = max(self.durable[event.trace_id], event.step)
                self.committed.append(time.monotonic())
            case TraceStarted():  # once more, after it gave up
                self.stalled.pop(event.trace_id, None)
            case StoreStalled():
                self.was_stalled = True
                self.stalled[event.trace_id] = 0
            case StoreRecovered():
                del self.stalled[event.trace_id]
            case _:
                pass


@attrs.define
class Tally:
    kinds: Counter[str] = attrs.field(factory=Counter)
    after: list[float] = attrs.field(factory=list)
    """Seconds from the end of a fault to the next commit."""
    unfelt: int = 0
    failed: int = 0
    reads: int = 0
    """While a fault lasted."""
    slowest: float = 0.0
    held: int = 0


class Strike:
    """One fault of one executor."""

    def __init__(self, folder: Path, fault: Fault, config: ExecutorConfig, rng: random.Random, tally: Tally) -> None:
        self.folder = folder
        self.fault = fault
        self.config = config
        self.rng = rng
        self.tally = tally
        self.calls: Counter[tuple[str, int]] = Counter()
        self.watch = Watch()
        self.began = self.ended = float("inf")
        self.outcomes: dict[str, Any] = {}
        self.untrue = ""
        """What a reader found that cannot be."""

    async def run(self) -> None:
        with Disk() as disk:
            storage = SQLiteCheckpointStorage(str(self.folder))
            await storage.initialize()
            try:
                async with Executor(counting(self.calls), self.config, storage, on_event=self.watch) as executor:
                    await self._execute(executor, storage, disk)
                    for trace, outcome in self.outcomes.items():
                        await self._check(executor, storage, trace, outcome)
            finally:
                await storage.close()
        self._tally()

    async def _execute(self, executor: Executor, storage: SQLiteCheckpointStorage, disk: Disk) -> None:
        begun, over = anyio.Event(), anyio.Event()

        async def execute(trace: str) -> None:
            try:
                self.outcomes[trace] = (await executor.execute({"trace": trace, "n": 0}, trace_id=trace)).value
            except Exception as error:
                self.outcomes[trace] = error
            if len(self.outcomes) == TRACES:
                over.set()

        async def strike() -> None:
            while len(self.watch.done) < TRACES:  # nothing is admitted while the store takes no writes
                await anyio.sleep(NAP)
            await anyio.sleep(self.fault.begins)
            during = self.fault.during(disk, self.folder, self.rng)
            await anyio.to_thread.run_sync(during.__enter__)
            self.began = time.monotonic()
            begun.set()
            try:
                with anyio.move_on_after(self.fault.lasts):
                    await over.wait() if self.fault.lasts is None else await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(during.__exit__, None, None, None)
                self.ended = time.monotonic()

        async def read() -> None:
            while True:
                await anyio.sleep(0.01)
                trace = f"t{self.rng.randrange(TRACES)}"
                asked, durable = time.monotonic(), self.watch.durable[trace]
                try:
                    record = await storage.trace(trace)
                    if record is not None:
                        await storage.load(trace)
                        steps = await storage.steps(trace, after=max(record.step - 5, 0))
                        if record.step < durable or (record.step and steps[-1].step < record.step):
                            self.untrue = f"{trace} was durable up to {durable}, and a reader finds {record.step}"
                except StorageError:
                    # With a rollback journal a commit locks readers out; and one that was cut off is theirs to undo.
                    if wal(self.folder) is not None:
                        raise
                    continue
                if self.began < asked and time.monotonic() < self.ended:
                    self.tally.reads += 1
                    if wal(self.folder) is not None:
                        self.tally.slowest = max(self.tally.slowest, time.monotonic() - asked)

        with anyio.fail_after(PATIENCE + (self.fault.lasts or 0)):
            async with anyio.create_task_group() as readers:
                readers.start_soon(read)
                async with anyio.create_task_group() as tasks:
                    for number in range(TRACES):
                        tasks.start_soon(execute, f"t{number}")
                    tasks.start_soon(strike)
                readers.cancel_scope.cancel()

    async def _check(self, executor: Executor, storage: SQLiteCheckpointStorage, trace: str, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            if self.fault.lasts is not None or not isinstance(outcome, StorageFailed):
                raise Violation(f"{trace} did not outlive {self.fault.lasts} s of {self.fault.kind}: {outcome!r}")
            if self.fault.says not in str(outcome):
                raise Violation(f"{trace} failed of {self.fault.kind}, and says: {outcome}")
            record = await storage.trace(trace)
            assert record is not None
            if record.step < max(outcome.step, self.watch.durable[trace]):
                raise Violation(f"{trace} is at step {record.step}, and was durable up to {outcome.step}")
            recorded = record.step
            self.tally.failed += 1
            outcome = (await executor.resume_from_checkpoint(trace)).value
        else:
            recorded = STEPS
        if outcome != STEPS:
            raise Violation(f"{trace} ends with {outcome}")
        if again := [n for n in range(min(recorded, STEPS)) if self.calls[trace, n] != 1]:
            raise Violation(f"{trace}: steps {again[:5]} were recorded, and ran {self.calls[trace, again[0]]} times")
        steps = [step.step for step in await storage.steps(trace, limit=10 * STEPS)]
        (log,) = [variable for key, variable in (await storage.load(trace)).variables.items() if key == "log"]
        if steps != list(range(1, STEPS + 2)) or len(log) != STEPS + (log[0].body == b"[]"):
            raise Violation(f"{trace} has the steps {steps}, and {len(log)} items")

    def _tally(self) -> None:
        tally, watch, fault = self.tally, self.watch, self.fault
        tally.kinds[fault.kind] += 1
        each_node = self.config.checkpoint_after_each_node
        held = watch.held if each_node else watch.on  # where deltas are merged, nobody counts them
        tally.held = max(tally.held, held)
        if self.untrue:
            raise Violation(self.untrue)
        if held > (CREDIT if each_node else 1):
            raise Violation(f"a trace held {held} steps that were not durable")
        if tally.slowest > ANSWERED:
            raise Violation(f"a reader waited for {tally.slowest:.1f} s")
        if fault.lasts is None:
            return
        if watch.stalled:
            raise Violation(f"{', '.join(watch.stalled)} never heard that the store takes writes again")
        after = [at - self.ended for at in watch.committed if at > self.ended]
        if not watch.was_stalled and fault.kind != "lock":
            tally.unfelt += 1
        elif after:
            tally.after.append(after[0])
            if after[0] > PROMISED:
                raise Violation(f"{after[0]:.1f} s after the end of {fault.kind} nothing had been committed")


# -- the trial ---------------------------------------------------------------------------------------------------


def run_trial(task: Task) -> str:
    task.plant_it()
    logging.getLogger("tinyllm").addHandler(logging.NullHandler())  # it says of each fault that it begins, and is over
    tally = Tally()
    for number in task.numbers():
        make(task, number, tally)
    kinds = ", ".join(f"{count} times {kind}" for kind, count in tally.kinds.most_common())
    after = sorted(tally.after) or [0.0]
    return (
        f"{tally.kinds.total():,} faults ({kinds}; {tally.unfelt} of them hit no write): {TRACES} traces each, all "
        f"completed with each step once; {tally.failed} traces gave up on a fault without an end, and said what is "
        f"durable; the next commit came {statistics.median(after):.2f} s after the end of a fault (median; at most "
        f"{after[-1]:.2f} s); a trace held {tally.held} steps at most; {tally.reads:,} reads meanwhile, the slowest "
        f"{tally.slowest * 1000:.0f} ms"
    )


def make(task: Task, number: int, tally: Tally) -> None:
    shutil.rmtree(task.folder, ignore_errors=True)
    rng = random.Random(f"{task.seed}/{number}")
    fault = choose(number, rng)
    # What lasts longer than the interval is merged, but for what comes within it.
    config = rng.choice(
        (
            ExecutorConfig(max_checkpoints_per_trace=rng.choice((1, 3, 100))),
            ExecutorConfig(durability="sync", max_checkpoints_per_trace=rng.choice((1, 3, 100))),
            ExecutorConfig(checkpoint_after_each_node=False, checkpoint_interval_ms=20),
        )
    )
    with ExitStack() as patched:
        if fault.short_timeout:
            for module in (database, store):
                patched.enter_context(patch.object(module, "LOCK_TIMEOUT", 0.2))
        if fault.lasts is None:
            patched.enter_context(patch.object(outage, "PATIENCE_SECONDS", IMPATIENT))
        strike = Strike(task.folder / "store", fault, config, rng, tally)
        anyio.run(strike.run, backend=rng.choice(("asyncio", "trio")))


def choose(number: int, rng: random.Random) -> Fault:
    if number % LONG_LOCK == LONG_LOCK - 1:
        return Fault("lock", SAYS["lock"], rng.uniform(0, 0.1), LONG_SECONDS, short_timeout=False)
    kind = rng.choice(list(SAYS))
    endless = number % ENDLESS == ENDLESS - 1
    lasts = None if endless else rng.uniform(0.05, LONGEST)
    short_timeout = endless or rng.random() < 0.5
    return Fault(kind, SAYS[kind], rng.uniform(0, 0.3), lasts, short_timeout=short_timeout)


TRIALS = (
    Trial(
        "outage",
        "the disk is full, fails or is read-only, the lock is taken or no file can be opened, for a while or for good",
        30,
        1_500,
        run_trial,
    ),
)
