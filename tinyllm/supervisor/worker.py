"""What runs in a worker's process: claims traces, executes many at once, and tells its supervisor that it lives."""

from __future__ import annotations

import logging
import random
import signal
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from tinyllm.actors.events import Committed, Event
from tinyllm.core.builder import load_graph
from tinyllm.core.executor import Executor
from tinyllm.core.store import opened_storage
from tinyllm.core.wake import wake
from tinyllm.errors import (
    CheckpointDamaged,
    ConfigError,
    DatabaseLocked,
    ExecutionError,
    ExecutorBroken,
    GraphError,
    OwnershipLost,
    StorageError,
    StorageUnavailable,
    TinyLLMError,
    TraceOwned,
)
from tinyllm.graph.definition import Graph
from tinyllm.storage.contract import Acquit, CheckpointStorage, Claim, Claimed, Held, Release, Snapshot, Wanted
from tinyllm.storage.thread import loop_caller
from tinyllm.supervisor.channel import Channel
from tinyllm.supervisor.messages import Assignment, Beat, Freed, Leaving, Ready, Reason, Refused, Wake, config_of

logger = logging.getLogger("tinyllm.supervisor.worker")  # it is run as `__main__`

BEAT_SECONDS = 1.0
"""How often, at most, it tells what has changed."""

BEATS = 5
"""How often it is heard, if nothing changes, in the time after which it would be taken to hang."""

LOOK_SECONDS = 5.0
"""How long a trace may wait unseen. Who submits one says so, and it is seen at once; but it may die before it has."""

AGAIN_SECONDS = 1.0
"""How long to wait for a store that takes nothing just now."""

REFUSED_SECONDS = 60.0
"""How long a trace is left alone that cannot be executed as things are: its graph changed, say."""


class Worker:
    """One worker, from its assignment to its end. It ends by `stop()`, and never while something it executes has not
    come to a durable point."""

    def __init__(self, assignment: Assignment, channel: Channel) -> None:
        self._assignment = assignment
        self._channel = channel
        self._executors: dict[str, Executor] = {}
        self._storage: CheckpointStorage
        self._tasks: TaskGroup
        self._running: dict[str, Held] = {}
        self._ended: Counter[str] = Counter()
        self._stopping = False
        self._unsure = False
        """A claim failed, and may be there all the same."""
        self._leaving = Leaving("drained")
        self._rung = anyio.Event()
        self._committed = anyio.Event()
        self._changed = anyio.Event()
        """What a beat tells is not what the last one told."""

    async def run(self, graphs: list[Graph]) -> Leaving:
        """Work until told to stop; why it ends.

        :raises TinyLLMError: it cannot begin.
        """
        given = self._assignment
        call_soon = loop_caller()

        def hear(message: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended
                call_soon(partial(self._hear, message))

        self._channel.listen(hear, grace=given.grace, hang_seconds=given.hang_seconds)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._beat, name="heartbeat")
            tasks.start_soon(self._stop_at_signal, name="signals")
            try:
                async with AsyncExitStack() as stack:
                    self._storage = await stack.enter_async_context(opened_storage(given.storage))
                    observe = self._observe if given.apart else None
                    for graph in graphs:
                        executor = Executor(graph, config_of(given.settings), self._storage, on_event=observe)
                        self._executors[graph.id] = await stack.enter_async_context(executor)
                    self._channel.tell(Ready(tuple(self._executors), tuple(map(_owner, self._executors.values()))))
                    await self._work()
                    self._tell_beat()
                    wake(self._storage)  # others can go on with what it gave up; its own supervisor may be dead
            except Exception as error:  # raised below: out of a task group it would come wrapped in a group
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return self._leaving

    def stop(self, reason: Reason = "drained", text: str = "") -> None:
        """Claim nothing more, and let what runs come to a durable point."""
        if not self._stopping:
            self._stopping, self._leaving = True, Leaving(reason, text)
        for executor in self._executors.values():
            executor.stop()
        self._rung.set()

    # -- what it hears and tells -------------------------------------------------------------------------------

    def _hear(self, message: Any) -> None:
        if isinstance(message, Wake):
            self._rung.set()
        else:
            self.stop()

    async def _beat(self) -> None:
        """Soon after something has changed, and now and then."""
        while True:
            self._changed = anyio.Event()
            self._tell_beat()
            await anyio.sleep(BEAT_SECONDS)
            with anyio.move_on_after(self._assignment.hang_seconds / BEATS - BEAT_SECONDS):
                await self._changed.wait()

    def _tell_beat(self) -> None:
        ended = self._ended
        others = ended.total() - ended["completed"] - ended["failed"]
        self._channel.tell(Beat(len(self._running), ended["completed"], ended["failed"], others))

    async def _stop_at_signal(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self.stop()

    # -- claiming ----------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Claim, whenever there is room and something may wait, and execute; return when all of that has ended."""
        while not self._stopping or self._running:
            self._rung = anyio.Event()
            wait: float | None = None
            if not self._stopping and len(self._running) < self._assignment.concurrency:
                try:
                    wait = await self._claim(self._assignment.concurrency - len(self._running))
                except (StorageUnavailable, DatabaseLocked) as error:
                    self._unsure = True
                    logger.warning("%s: nothing can be claimed just now: %s", self._storage.name, error)
                    wait = AGAIN_SECONDS
                except StorageError as error:
                    self.stop("store", str(error))
            if self._stopping and not self._running:
                break
            with anyio.move_on_after(wait) if wait is not None else anyio.CancelScope():
                await self._rung.wait()

    async def _claim(self, room: int) -> float:
        """Claim what there is room for; seconds after which there may be more."""
        apart = self._assignment.apart
        if self._unsure:
            await self._give_back_unknown()
        look = LOOK_SECONDS * random.uniform(0.8, 1.2)  # many workers are not to look all at once
        due = await self._storage.next_due(tuple(self._executors), apart=apart)
        if due is None and apart and not self._running:
            self.stop()
            return 0.0
        if due is None or due > (now := time.time()):
            return look if due is None else min(look, due - now)
        limits = self._assignment.limits
        wanted = tuple(Wanted(id_, _owner(each), limits.get(id_)) for id_, each in self._executors.items())
        (claimed,) = await self._storage.commit([Claim(wanted, room, apart)])
        assert isinstance(claimed, Claimed)
        for held in claimed.traces:
            self._running[held.trace_id] = held
            self._changed.set()
            self._tasks.start_soon(self._execute, held, name=f"trace {held.trace_id}")
        # What is left may not be claimed, as its graph has as many running as it may; else look again, for what is due.
        return 0.0 if claimed.traces else look

    async def _give_back_unknown(self) -> None:
        """Let go of what a claim got that failed, and yet is there: nobody executes it."""
        for executor in self._executors.values():
            held = await self._storage.held(_owner(executor))
            unknown = [each for each in held if each.trace_id not in self._running]
            await self._storage.commit([Release(each.trace, each.epoch) for each in unknown])
        self._unsure = False

    # -- executing ---------------------------------------------------------------------------------------------

    async def _execute(self, held: Held) -> None:
        try:
            if self._assignment.apart:
                await self._adopt_apart(held)
            else:
                await self._adopt(held)
        finally:
            del self._running[held.trace_id]
            self._changed.set()
            self._rung.set()

    async def _adopt(self, held: Held) -> None:
        executor = self._executors[held.graph_id]
        while True:
            if self._stopping:  # it was claimed before that
                await self._give_back(held)
                return
            try:
                response = await executor.adopt(held.trace_id, accept_graph_change=self._assignment.accept_graph_change)
            except ExecutionError as error:
                logger.warning("%s", error)
                self._ended["failed"] += 1
            except TraceOwned as error:  # by this worker itself, which was given it back before it had let go of it
                logger.warning("%s", error)
                await self._give_back(held, time.time() + AGAIN_SECONDS)
            except OwnershipLost as error:
                logger.warning("%s", error)
                self._ended["lost"] += 1
            except (StorageUnavailable, DatabaseLocked) as error:
                logger.warning("trace %r waits for the store: %s", held.trace_id, error)
                await anyio.sleep(AGAIN_SECONDS)
                continue
            except (StorageError, ExecutorBroken) as error:
                if isinstance(error, CheckpointDamaged):
                    await self._refuse(held, error)
                else:
                    self.stop("store", str(error))
            except TinyLLMError as error:
                await self._refuse(held, error)
            except Exception as error:
                logger.exception("trace %r could not be executed", held.trace_id)
                await self._refuse(held, error)
            else:
                if response.status != "interrupted":
                    self._ended[response.status] += 1
            return

    async def _refuse(self, held: Held, error: Exception) -> None:
        """Leave a trace alone for a while that cannot be executed as things are."""
        reason = str(error) or type(error).__name__
        logger.warning(
            "trace %r is left alone for %.0f s, as it cannot be executed: %s", held.trace_id, REFUSED_SECONDS, reason
        )
        await self._give_back(held, time.time() + REFUSED_SECONDS)
        self._channel.tell(Refused(held.trace_id, reason[:1000]))

    async def _give_back(self, held: Held, not_before: float | None = None) -> None:
        try:  # it may have been acquired since it was claimed, or fallen back: then it is another one of that id
            ours = await self._storage.held(_owner(self._executors[held.graph_id]))
            writes = [Release(each.trace, each.epoch, not_before) for each in ours if each.trace_id == held.trace_id]
            await self._storage.commit(writes)
        except StorageError as failure:  # the end of the lease gives it back
            self.stop("store", str(failure))

    # -- apart -------------------------------------------------------------------------------------------------

    def _observe(self, event: Event) -> None:
        if isinstance(event, Committed):
            self._committed.set()

    async def _adopt_apart(self, held: Held) -> None:
        """Execute a trace that may kill its worker. When all that was running at its last death has ended, it did not
        do it this time: it goes on among the others."""
        try:
            before = _planned(await self._storage.load(held.trace_id))
        except TinyLLMError as error:  # what that means is seen where it is executed
            logger.warning("trace %r is executed apart to its end: %s", held.trace_id, error)
            await self._adopt(held)
            return
        async with anyio.create_task_group() as tasks:
            if before:
                tasks.start_soon(self._acquit_when_past, held, before)
            await self._adopt(held)
            tasks.cancel_scope.cancel()
        self._channel.tell(Freed(held.trace_id))

    async def _acquit_when_past(self, held: Held, before: frozenset[int]) -> None:
        while True:
            self._committed = anyio.Event()
            try:
                snapshot = await self._storage.load(held.trace_id)
                if not before & _planned(snapshot):
                    write = Acquit(snapshot.record.trace, held.trace_id, snapshot.record.epoch)
                    (outcome,) = await self._storage.commit([write])
                    if isinstance(outcome, Exception):  # somebody took it over
                        return
                    break
            except StorageError as error:  # it stays apart; that costs time, and nothing else
                logger.warning("trace %r is executed apart to its end: %s", held.trace_id, error)
                return
            await self._committed.wait()
        self._executors[held.graph_id].stop()


def _owner(executor: Executor) -> str:
    assert executor.owner_id is not None
    return executor.owner_id


def _planned(snapshot: Snapshot) -> frozenset[int]:
    """The activations that are to run, or have begun."""
    return frozenset(row.seq for row in snapshot.frontier if row.state == "planned")


def _load(paths: tuple[str, ...]) -> list[Graph]:
    graphs = [load_graph(path) for path in paths]
    for id_, count in Counter(graph.id for graph in graphs).items():
        if count > 1:
            same = [path for path, graph in zip(paths, graphs, strict=True) if graph.id == id_]
            remedy = f"files of graphs with different ids: {count} are called {id_!r}, leave out all but one"
            raise ConfigError("graphs", same, remedy)
    return graphs


def main() -> None:
    """Be a worker of the process at the other end of stdin and stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C goes to all of a terminal; the supervisor says what follows
    channel = Channel()
    assignment = channel.assignment()
    if assignment is None:
        return
    logging.basicConfig(level=assignment.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.path[:] = assignment.path
    try:
        leaving = anyio.run(Worker(assignment, channel).run, _load(assignment.graphs))
    except StorageError as error:
        leaving = Leaving("store", str(error))
    except (GraphError, ConfigError) as error:
        leaving = Leaving("broken", str(error), usage=True)
    except TinyLLMError as error:
        leaving = Leaving("broken", str(error))
    except Exception as error:  # a graph's lifespan, or what its modules do when they are imported
        logger.exception("the worker could not go on")
        leaving = Leaving("broken", repr(error))
    channel.tell(leaving)
    sys.exit(leaving.reason != "drained")


if __name__ == "__main__":
    main()
