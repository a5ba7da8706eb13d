"""How the actors of one process are put together, and in which order they end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
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
from tinyllm.errors import StorageError
from tinyllm.graph.definition import Graph
from tinyllm.storage.contract import CheckpointStorage, HighWater, Write
from tinyllm.storage.owners import this_process

logger = logging.getLogger(__name__)

MAILBOX = 256
"""Twice the largest batch: the writer finds its next one complete when a commit ends. Senders to a full one wait."""

SHUTDOWN_SECONDS = 30.0
"""How long the scheduler and the writer may take to write what they hold when everything else has ended."""

T = TypeVar("T")


class Engine:
    """One set of actors: a `NodeExecutor` for each node, a scheduler and a writer. Any number of traces at once.

    Shutdown is end-of-stream, in order: clients, then nodes and scheduler, then the writer, then the lease.
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
        self._clients: set[Client] = set()
        self._idle = anyio.Event()
        self._idle.set()

    @property
    def owner_id(self) -> str | None:
        return None if self._keeper is None else self._keeper.owner.id

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the actors; at the end, stop the runs, and wait until everything handed over is written."""
        error: BaseException | None = None
        async with AsyncExitStack() as stack:
            if self.storage is not None:
                self._keeper = LeaseKeeper(self.storage, this_process())
                await stack.enter_async_context(self._keeper.held())
            await stack.enter_async_context(Watchdog().watching())
            shields: list[anyio.CancelScope] = []
            async with anyio.create_task_group() as actors:
                try:
                    with anyio.CancelScope(shield=True):  # nothing in it waits; half of them would never end
                        await self._start(actors, shields)
                    yield
                except (Exception, SystemExit, KeyboardInterrupt) as raised:
                    error = raised  # carried past the task group, which would wrap it in a group
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
            try:
                executor = NodeExecutor(
                    self.graph, node, to_run, deps=self._deps, debug_mutation=self.config.debug_mutation
                )
            except BaseException:  # an annotation that nothing can be structured into
                to_run.close()
                raise
            await actors.start(executor.run, name=f"node executor {node.id}")

    async def _shut_down(self, shields: list[anyio.CancelScope]) -> None:
        """Clients have gone first, or are told to; then each stream is closed behind its last sender."""
        try:
            self.stop()
            await self._idle.wait()
        finally:
            with anyio.move_on_after(SHUTDOWN_SECONDS, shield=True):  # cancelled nodes end at once, and so do the runs
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
        """Let every client end at the next durable point."""
        for client in self._clients:
            client.stop()

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Somebody who has a trace executed here."""
        client = Client(self)
        if not self._clients:
            self._idle = anyio.Event()
        self._clients.add(client)
        try:
            yield client
        finally:
            self._clients.discard(client)
            if not self._clients:
                self._idle.set()

    def serves(self, trace_id: str, *, other_than: Client) -> bool:
        """Whether some other client has that trace."""
        return any(client.trace_id == trace_id for client in self._clients if client is not other_than)

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
        with anyio.CancelScope(shield=True):  # bounded: by the commit, whose outcome must be known
            await post(self._writer, Ask(trace_id, write, answer))
            outcome = await answer.wait()
        assert isinstance(outcome, kind)
        return outcome

    def run(self, plan: Plan, rev: int, *, stopped: bool) -> Run:
        """The actor that executes `plan`, not yet running."""
        keeper = self._keeper
        return Run(
            plan,
            self._nodes,
            journal=self._journal,
            rev=rev,
            durability=self.config.durability,
            merges=self.config.policy.merges,
            stopped=stopped,
            may_start=_always if keeper is None else keeper.may_start,
            high_water=self._high_water(plan),
            emit=self.emit,
        )

    def _high_water(self, plan: Plan) -> HighWater | None:
        if self.storage is None or self._keeper is None:
            return None
        try:
            return self.storage.high_water(self._keeper.owner, plan.key, plan.epoch)
        except StorageError as error:  # all it is for is to say, after a crash, how much was lost
            logger.warning("trace %s: %s", plan.trace_id, error)
            return None


class Client:
    """One call of an executor, from its beginning to its end: `stop()` reaches it wherever it is."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.trace_id: str | None = None
        """The trace that it executes, from before it owns it."""
        self._run: Run | None = None
        self._stopped = False

    def stop(self) -> None:
        """Let what runs end, and start nothing more. A second call does nothing."""
        if not self._stopped and self._run is not None:
            self._run.stop()
        self._stopped = True

    async def execute(self, plan: Plan, rev: int) -> Run:
        """Run `plan` to its end; returns the run, which knows how it went.

        :raises OwnershipLost: another process took the trace over.
        :raises StorageFailed: the store failed for good.
        """
        self._run = run = self.engine.run(plan, rev, stopped=self._stopped)
        try:
            await run.run()
        finally:
            self._run = None
        return run


def _always() -> bool:
    return True
