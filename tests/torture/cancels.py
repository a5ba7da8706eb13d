"""Cancel an execution at every suspension of any of its tasks, and see that all that was acknowledged is there, that
nobody waits for ever, and that it goes on to the end that it would have had."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs

from tests.torture.lives import CONFIGS, NODES, Life, Memory, Told, Way, Witness, whole
from tests.torture.steps import Hangs, after_each_step, run
from tests.torture.trial import Task, Trial, Violation
from tinyllm import (
    SQLiteCheckpointStorage,
)
from tinyllm.errors import TinyLLMError, TraceNotFound
from tinyllm.storage import owners
from tinyllm.storage.contract import CheckpointStorage

PATIENCE, HANGS = 9.0, 1000.0
"""Seconds, of a clock that only waiting moves, that a cancelled call may take: less than any deadline of ours that
would end a wait for what never comes; and after which it is cancelled once more."""
HANGS_REALLY = 30.0
"""Seconds, of a real clock, for what not even that ends."""
IN_MEMORY = [
    Way(loop, config, what, natively)
    for what in ("actor", "call", "block")
    for loop in ("asyncio", "trio")
    for config in CONFIGS
    for natively in (False, True)
    if (not natively or loop == "asyncio") and (natively or what != "actor")
]
ON_DISK = [attrs.evolve(way, on_disk=True) for way in IN_MEMORY if way.config == "async"]


# -- cancelling --------------------------------------------------------------------------------------------------


class Point:
    """Cancels at step `at`, of all tasks together; at none, and only counts, if that is 0."""

    def __init__(self, at: int, way: Way) -> None:
        self.at = at
        self.natively = way.natively
        self.actor = way.what == "actor"
        self.taken = 0
        self._step: Callable[[], object] = lambda: None

    async def cancel(self, call: Callable[[], Awaitable[None]]) -> None:
        """Make `call`, with that cancellation in the middle."""
        if self.natively and not self.actor:

            async def host() -> None:
                await call()

            coroutine = host()
            task = asyncio.create_task(coroutine, name="host")
            self._step = task.cancel
            await asyncio.wait([task])
            coroutine.close()  # it may never have begun
            if not task.cancelled():
                task.result()
            return
        with anyio.CancelScope() as scope:
            self._step = self._cancel_actor if self.actor else scope.cancel
            await call()

    def _cancel_actor(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        if task.get_name().startswith(ACTORS):
            task.cancel()

    def count(self, ended: bool) -> None:
        self.taken += 1
        if self.taken == self.at:
            if self.actor and ended:  # too late
                self.at += 1
            else:
                self._step()


ACTORS = ("storage writer", "checkpoint scheduler", "command reader", "node executor", "run ", "let go ")


async def live(way: Way, folder: Path, at: int) -> int:
    """Live, be cancelled at step `at`, and go on. Returns how many steps there were.

    :raises Violation: a promise was broken.
    """
    tasks, files = len(anyio.get_running_tasks()), open_files()
    complaints: list[str] = []
    if way.loop == "asyncio":
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
    point, witness = Point(at, way), Witness()
    async with opened(way, folder) as store:
        told = await be_cancelled(Life(way, store, witness), point)
        if len(anyio.get_running_tasks()) != tasks:
            raise Violation(f"tasks are left over: {[task.name for task in anyio.get_running_tasks()]}")
        await check(way, store, told)
        await go_on(way, store, witness)
    told.errors.clear()  # they hold on to where they were raised
    gc.collect()  # what was forgotten complains when it is collected
    if kept := owners._kept:
        raise Violation(f"leases are left over: {kept}")
    if threads := [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)]:
        raise Violation(f"threads are left over: {threads}")
    if open_files() > files:
        raise Violation(f"{open_files() - files} files are left open")
    if complaints:
        raise Violation(f"asyncio complains: {complaints[0]}")
    return point.taken


THREADS = ("lease ", "tinyllm writer", "tinyllm reader")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


class Log(logging.Handler):
    """What was logged, and is not shown."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


LOG = Log()


async def be_cancelled(life: Life, point: Point) -> Told:
    """Live, and be cancelled at that point. Returns what everybody was told."""
    began = anyio.current_time()

    async def host() -> None:
        with life.noted():
            await whole(life, point.cancel)

    with anyio.move_on_after(HANGS) as hanging, after_each_step(point.count):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(host, name="test")
    took = anyio.current_time() - began
    if hanging.cancelled_caught or took > PATIENCE:
        raise Violation(f"it took {took:g} s to end")
    if unknown := [text for text in [*map(str, life.told.errors), *LOG.texts] if "not known" in text]:
        raise Violation(f"a cancellation has left the outcome of a commit unknown: {unknown[0]}")
    for error in life.told.errors:
        # A host that is cancelled is told just that. Where an actor is, everybody is told what that means for him.
        if not (point.actor and isinstance(error, TinyLLMError)):
            raise Violation(f"somebody was told {error!r}") from error
    return life.told


@asynccontextmanager
async def opened(way: Way, folder: Path) -> AsyncIterator[CheckpointStorage]:
    shutil.rmtree(folder, ignore_errors=True)
    store = SQLiteCheckpointStorage(str(folder / "store")) if way.on_disk else Memory()
    await store.initialize()
    try:
        yield store
    finally:
        await store.close()


TRACES = "tufb"


async def check(way: Way, store: CheckpointStorage, told: Told) -> None:
    """What is there after the cancellation is all that was acknowledged, and nobody's."""
    for trace in TRACES:
        record = await store.trace(trace)
        step, rev = told.committed.get(trace, (0, 0))
        if record is None:
            if trace in told.committed or trace in told.responses:
                raise Violation(f"{trace} is not there, and was told to be durable")
            continue
        if record.step < step or record.rev < rev:
            raise Violation(f"{trace} is at {record.step, record.rev}, and was told to be durable at {step, rev}")
        if record.owner is not None and way.what != "actor":
            raise Violation(f"{trace} still has an owner")
        if record.status not in ("interrupted", "paused", "completed") and way.what != "actor":
            raise Violation(f"{trace} is {record.status}")
        response = told.responses.get(trace)
        if response is not None and response.status == "completed" and record.status != "completed":
            raise Violation(f"{trace} was told to be completed, and is {record.status}")
    if way.what == "call" and told.responses["b"].value != "31 yes 30":
        raise Violation(f"the trace beside has become {told.responses['b']}")


async def go_on(way: Way, store: CheckpointStorage, witness: Witness) -> None:
    """It comes to the end that it would have had, and nothing recorded runs again."""
    before = {trace: await store.trace(trace) for trace in TRACES}
    recorded = {trace: await steps(store, trace) for trace in TRACES}
    witness.begun.clear()
    life = Life(way, store, witness, goes_on=True)
    with anyio.fail_after(HANGS):
        async with life.executor:
            await life.calls()
            await life.beside()
    if life.told.errors:
        raise Violation(f"it does not go on: {life.told.errors[0]!r}") from life.told.errors[0]
    for trace in TRACES:
        if life.told.responses[trace].value != "31 yes 30":
            raise Violation(f"{trace} ends with {life.told.responses[trace]}")
        record, was = await store.trace(trace), before[trace]
        assert record is not None
        if was is not None and (record.rev < was.rev or record.step < was.step or record.epoch < was.epoch):
            raise Violation(
                f"{trace} was at {was.step, was.rev, was.epoch} and is {record.step, record.rev, record.epoch}"
            )
        for node, times in NODES.items():
            if len(witness.begun[trace, node]) > times - recorded[trace][node] and not (trace == "f" and was is None):
                raise Violation(f"{node} of {trace} was recorded {recorded[trace][node]} times, and run again")
        if await steps(store, trace) != Counter(NODES):
            raise Violation(f"the steps of {trace} are {await steps(store, trace)}")
        if way.config == "async":
            revs = [checkpoint.rev for checkpoint in await store.checkpoints(trace)]
            if trace != "f" and sorted(revs) != list(range(record.rev + 1)):
                raise Violation(f"the revs of {trace} are {revs}")


async def steps(store: CheckpointStorage, trace: str) -> Counter[str]:
    """How often each node has finished, as recorded."""
    try:
        rows = await store.steps(trace)
    except TraceNotFound:
        return Counter()
    if [row.step for row in rows] != list(range(1, len(rows) + 1)):
        raise Violation(f"the steps of {trace} are {rows}")
    return Counter(row.node for row in rows)


# -- the trial ---------------------------------------------------------------------------------------------------


def run_trial(task: Task, ways: Sequence[Way]) -> str:
    """Cancel at every so many-th point of all, of which the seed says which; at every one, if enough runs are asked
    for. What is run has a number among all."""
    task.plant_it()
    logger = logging.getLogger("tinyllm")
    logger.addHandler(LOG)
    logger.propagate = False
    warnings.simplefilter("error")
    sys.unraisablehook = unraisable = Unraisable()
    points = [(way, at) for way in ways for at in range(1, make(task, way, 0) + 1)]
    gc.collect()
    gc.freeze()  # what is there now need not be looked through each time
    stride = max(1, len(points) // task.runs)
    chosen = range(task.seed % stride, len(points), stride) if task.only is None else [task.only]
    for done, number in enumerate(chosen):
        task.begin(number, done)
        way, at = points[number]
        make(task, way, at)
        if unraisable.seen:
            raise Violation(f"{way}, step {at}: {unraisable.seen[0]}")
    return (
        f"{len(chosen):,} of all {len(points):,} cancellations, in {len(ways)} ways: nothing hung, 0 acknowledged "
        "lost, 0 recorded activations ran again"
    )


class Unraisable:
    """Notes what Python cannot raise anywhere: a coroutine that nobody awaited, a resource that nobody closed."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, what: Any) -> None:
        self.seen.append(repr(what.exc_value))


def make(task: Task, way: Way, at: int) -> int:
    """Cancel at step `at`, or at none if that is 0; returns how many steps there were."""
    hangs = False

    def ring(*_: object) -> None:
        nonlocal hangs
        hangs = True
        raise Hangs

    LOG.texts.clear()
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, HANGS_REALLY, 1)  # again while what is left is cancelled, and waits as well
    try:
        taken: int = run(way.loop, live, way, task.folder / "run", at)
    except BaseException as error:
        if hangs or isinstance(error, Violation | Hangs):
            raise Violation(f"{way}, step {at}: {error if isinstance(error, Violation) else 'it hangs'}") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return taken


TRIALS = (
    Trial(
        "cancel",
        "an execution is cancelled at a suspension of any of its tasks, and goes on",
        1_000,
        1_000_000,
        partial(run_trial, ways=IN_MEMORY),
    ),
    Trial("cancel-disk", "the same on a disk", 100, 1_000_000, partial(run_trial, ways=ON_DISK)),
)
