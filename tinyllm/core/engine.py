"""How the actors of one process are put together, and in which order they end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from tinyllm.actors.events import Event
from tinyllm.actors.lease import LeaseKeeper
from tinyllm.actors.mailbox import post
from tinyllm.actors.node_executor import NodeExecutor
from tinyllm.actors.plan import Plan
from tinyllm.actors.protocol import Answer, Ask, NodeMessage, ScheduleMessage, WriteMessage
from tinyllm.actors.run import Run
from tinyllm.actors.scheduler import CheckpointScheduler
from tinyllm.actors.watchdog import Watchdog
from tinyllm.actors.writer import StorageWriter
from tinyllm.core.config import ExecutorConfig
from tinyllm.graph.definition import Graph
from tinyllm.storage.contract import CheckpointStorage, Write
from tinyllm.storage.owners import this_process

logger = logging.getLogger(__name__)

MAILBOX = 256
"""Twice the largest batch: the writer finds its next one complete when a commit ends. Senders to a full one wait."""

SHUTDOWN_SECONDS = 30.0
"""How long the scheduler and the writer may take to write what they hold when everything else has ended."""

T = TypeVar("T")


class Engine:
    """One set of actors: a `NodeExecutor` for each node, a scheduler and a writer. Any number of traces at once.

    Shutdown is end-of-stream, in order: runs, then nodes and scheduler, then the writer, then the lease.
    """

    def __init__(
        self,
        graph: Graph,
        config: ExecutorConfig,
        storage: CheckpointStorage | None,
        *,
        deps: Any = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.graph = graph
        self.config = config
        self.storage = storage
        self._deps = deps
        self._on_event = on_event
        self._nodes: dict[str, MemoryObjectSendStream[NodeMessage]] = {}
        self._journal: MemoryObjectSendStream[ScheduleMessage] | None = None
        self._writer: MemoryObjectSendStream[WriteMessage] | None = None
        self._keeper: LeaseKeeper | None = None
        self._runs: set[Run] = set()
        self._idle = anyio.Event()
        self._idle.set()

    @property
    def owner_id(self) -> str | None:
        return None if self._keeper is None else self._keeper.owner.id

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the actors; at the end, stop the runs, and wait until everything handed over is written."""
        error: Exception | None = None
        async with AsyncExitStack() as stack:
            if self.storage is not None:
                self._keeper = LeaseKeeper(self.storage, this_process())
                await stack.enter_async_context(self._keeper.held())
            await stack.enter_async_context(Watchdog().watching())
            shields: list[anyio.CancelScope] = []
            async with anyio.create_task_group() as actors:
                try:
                    await self._start(actors, shields)
                    yield
                except Exception as raised:  # carried past the task group, which would wrap it in a group
                    error = raised
                finally:
                    await self._shut_down(shields)
        if error is not None:
            raise error

    async def _start(self, actors: anyio.abc.TaskGroup, shields: list[anyio.CancelScope]) -> None:
        if self.storage is not None:
            shields.extend(anyio.CancelScope(shield=True) for _ in range(2))
            self._writer, to_write = anyio.create_memory_object_stream[WriteMessage](MAILBOX)
            self._journal, to_schedule = anyio.create_memory_object_stream[ScheduleMessage](MAILBOX)
            keep = self.config.max_checkpoints_per_trace
            writer = StorageWriter(self.storage, to_write, shields[0], keep=keep)
            scheduler = CheckpointScheduler(self.config.policy, to_schedule, self._writer.clone(), shields[1])
            await actors.start(writer.run, name="storage writer")
            await actors.start(scheduler.run, name="checkpoint scheduler")
        for node in self.graph.nodes.values():
            self._nodes[node.id], to_run = anyio.create_memory_object_stream[NodeMessage](MAILBOX)
            executor = NodeExecutor(
                self.graph, node, to_run, deps=self._deps, debug_mutation=self.config.debug_mutation
            )
            await actors.start(executor.run, name=f"node executor {node.id}")

    async def _shut_down(self, shields: list[anyio.CancelScope]) -> None:
        """Runs have ended first, or are told to; then each stream is closed behind its last sender."""
        try:
            self.stop()
            await self._idle.wait()
        finally:
            with anyio.move_on_after(
                SHUTDOWN_SECONDS, shield=True
            ):  # cancelled nodes end at once, and with them the runs
                await self._idle.wait()
            for node in self._nodes.values():
                node.close()
            for scope in shields:
                scope.deadline = anyio.current_time() + SHUTDOWN_SECONDS
            if self._journal is not None and self._writer is not None:
                self._journal.close()
                self._writer.close()

    # -- what the executor asks --------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let every run end at the next durable point."""
        for run in self._runs:
            run.stop()

    def emit(self, event: Event) -> None:
        """Tell the observer; its mistakes are not ours to die of."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            logger.exception("the observer of the executor failed on %r", event)

    async def ask(self, trace_id: str, write: Write, kind: type[T]) -> T:
        """Have a write done by the writer, in its batch.

        :raises TinyLLMError: what the store says against it.
        """
        assert self._writer is not None
        answer = Answer()
        await post(self._writer, Ask(trace_id, write, answer))
        outcome = await answer.wait()
        assert isinstance(outcome, kind)
        return outcome

    async def execute(self, plan: Plan, rev: int) -> Run:
        """Run `plan` to its end; returns the run, which knows how it went.

        :raises OwnershipLost: another process took the trace over.
        :raises StorageFailed: the store failed for good.
        """
        config, keeper = self.config, self._keeper
        water = None
        if self.storage is not None and keeper is not None:
            water = self.storage.high_water(keeper.owner, plan.key, plan.epoch)
        run = Run(
            plan,
            self._nodes,
            journal=self._journal,
            rev=rev,
            durability=config.durability,
            credited=not config.policy.merges,
            may_start=_always if keeper is None else keeper.may_start,
            high_water=water,
            emit=self.emit,
        )
        if not self._runs:
            self._idle = anyio.Event()
        self._runs.add(run)
        try:
            await run.run()
        finally:
            self._runs.discard(run)
            if not self._runs:
                self._idle.set()
        return run


def _always() -> bool:
    return True
