"""How the actors of one process are put together, and in which order they end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from tinyllm.actors.commands import CommandReader
from tinyllm.actors.dispatch import Bounds
from tinyllm.actors.events import Event
from tinyllm.actors.lease import LeaseKeeper
from tinyllm.actors.mailbox import Journal, post, reply
from tinyllm.actors.node_executor import NodeExecutor
from tinyllm.actors.plan import Plan
from tinyllm.actors.protocol import (
    Answer,
    Ask,
    Hurry,
    Look,
    NodeMessage,
    ReadMessage,
    ScheduleMessage,
    Unwatch,
    Watch,
    WriteMessage,
)
from tinyllm.actors.run import Run
from tinyllm.actors.running import Running
from tinyllm.actors.scheduler import CheckpointScheduler
from tinyllm.actors.turnstile import Turnstile
from tinyllm.actors.watchdog import Watchdog
from tinyllm.actors.writer import StorageWriter
from tinyllm.core.config import ExecutorConfig
from tinyllm.errors import ExecutorBroken, StorageError, TinyLLMError
from tinyllm.graph.definition import Graph
from tinyllm.storage.contract import CheckpointStorage, Delta, Done, HighWater, Owner, Release, Write
from tinyllm.storage.owners import this_process
from tinyllm.storage.thread import outlast

logger = logging.getLogger(__name__)

MAILBOX = 2048
"""Many times the largest batch, and a message from each of many traces: to wait for room costs a run as much as a small
node. A message is a few hundred bytes, of which the bodies are held by the trace in any case."""

ADMISSIONS = 16
"""Traces that may be on their way into the store at once. Where it is the store that everything waits for, a trace that
is begun makes all others slower: this lets some end before others begin."""

SHUTDOWN_SECONDS = 30.0
"""How long the scheduler and the writer may take to write what they hold when everything else has ended."""

T = TypeVar("T")


class Engine:
    """One set of actors: a node executor, a scheduler, a writer and a reader of commands. Any number of
    traces at once.

    Shutdown is end-of-stream, in order: clients, then nodes and scheduler, then the writer, then the lease, then what
    the graph's lifespan made.
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
        self._bounds = Bounds(graph)
        self._deps = deps
        self._on_event = on_event
        self._nodes: MemoryObjectSendStream[NodeMessage] | None = None
        self._journal: Journal | None = None
        self._writer: MemoryObjectSendStream[WriteMessage] | None = None
        self._reader: MemoryObjectSendStream[ReadMessage] | None = None
        self._keeper: LeaseKeeper | None = None
        self._observer_failed = False
        self._closing = False
        """The actors are told to end."""
        self._broken: ExecutorBroken | None = None
        self.admissions = anyio.Semaphore(ADMISSIONS, fast_acquire=True)
        self.entrance = Turnstile(turns=4)  # what runs gets further in these than a trace costs that is begun
        self.start = Turnstile()
        """Not the same: what was admitted is executed while others still wait to be."""
        self._clients: set[Client] = set()
        self._busy = 0
        self._watchdog = Watchdog()
        self._idle = anyio.Event()
        self._ended = anyio.Event()
        self._actors: anyio.abc.TaskGroup

    @property
    def owner(self) -> Owner | None:
        return None if self._keeper is None else self._keeper.owner

    @property
    def owner_id(self) -> str | None:
        return None if self._keeper is None else self._keeper.owner.id

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the actors; at the end, stop the runs, and wait until everything handed over is written."""
        try:
            async with self._running():
                yield
        finally:
            self._ended.set()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        error: BaseException | None = None
        try:
            async with AsyncExitStack() as stack:
                if self._deps is None and self.graph.lifespan is not None:
                    self._deps = await stack.enter_async_context(self.graph.lifespan())
                if self.storage is not None:
                    _ = self.graph.fingerprint, self.graph.definition  # made once, from sources: some milliseconds
                    self._keeper = LeaseKeeper(self.storage, this_process())
                    await stack.enter_async_context(self._keeper.held())
                await stack.enter_async_context(self._watchdog.watching())
                shields: list[anyio.CancelScope] = []
                async with anyio.create_task_group() as actors:
                    self._actors = actors
                    try:
                        self._start(shields)
                        await anyio.lowlevel.checkpoint()  # each has had its first turn before anybody waits for one
                        yield
                    except BaseException as raised:
                        if isinstance(raised, (anyio.get_cancelled_exc_class(), GeneratorExit, BaseExceptionGroup)):
                            raise
                        error = raised  # carried past the task group, which would wrap it in a group
                    finally:
                        await self._shut_down(shields)
        except Exception as ending:
            if error is None:
                raise
            error.add_note(f"besides, closing what it ran in failed: {ending!r}")
        if self._broken is not None:  # what it led to in the block says less
            raise self._broken from self._broken.__cause__ or error
        if error is not None:
            raise error

    def _start(self, shields: list[anyio.CancelScope]) -> None:
        """Without a wait: a cancellation, even asyncio's own, which no shield stops, finds none or all of them."""
        if self.storage is not None:
            shields.extend(anyio.CancelScope(shield=True) for _ in range(2))
            self._writer, to_write = anyio.create_memory_object_stream[WriteMessage](MAILBOX)
            schedule, to_schedule = anyio.create_memory_object_stream[ScheduleMessage](MAILBOX)
            ring, bell = anyio.create_memory_object_stream[Hurry](1)
            self._journal = Journal(schedule, ring)
            keep = self.config.max_checkpoints_per_trace
            writer = StorageWriter(self.storage, to_write, shields[0], keep=keep)
            scheduler = CheckpointScheduler(self.config.policy, to_schedule, bell, self._writer.clone(), shields[1])
            self._reader, to_read = anyio.create_memory_object_stream[ReadMessage](MAILBOX)
            reader = CommandReader(self.storage, self.owner_id or "", to_read)
            self._begin("command reader", reader.run)
            self._begin("storage writer", writer.run)
            self._begin("checkpoint scheduler", scheduler.run)
        self._nodes, to_run = anyio.create_memory_object_stream[NodeMessage](MAILBOX)
        try:
            executor = NodeExecutor(
                self.graph,
                to_run,
                deps=self._deps,
                debug_mutation=self.config.debug_mutation,
                redaction=self.config.redaction,
            )
        except BaseException:  # a function that no worker process can load
            to_run.close()
            raise
        self._begin("node executor", executor.run)

    def _begin(self, name: str, act: Callable[[], Awaitable[None]]) -> None:
        self._actors.start_soon(self._keep, name, act, name=name)

    async def _keep(self, name: str, act: Callable[[], Awaitable[None]]) -> None:
        """Run an actor. If it ends before its time, so does everything here: whoever waits for it must not wait on."""
        try:
            await act()
        except Exception as error:
            broken = ExecutorBroken(name, repr(error))
            broken.__cause__ = error
        except anyio.get_cancelled_exc_class():
            await anyio.lowlevel.checkpoint_if_cancelled()  # raises if it was everything here that was cancelled
            broken = ExecutorBroken(name, "its task was cancelled")
        else:
            if self._closing:
                return
            broken = ExecutorBroken(name, "one of its tasks was cancelled")
        self._broken = self._broken or broken
        self._actors.cancel_scope.cancel()

    async def _shut_down(self, shields: list[anyio.CancelScope]) -> None:
        """Clients and runs have gone first, or are told to; then each stream is closed behind its last sender."""
        try:
            self.stop()
            if self._busy:
                await self._idle.wait()
        finally:
            try:
                if self._busy:  # cancelled nodes end at once, and so do the runs
                    with anyio.move_on_after(SHUTDOWN_SECONDS, shield=True):
                        await self._idle.wait()
            finally:
                self._closing = True
                for scope in shields:
                    scope.deadline = anyio.current_time() + SHUTDOWN_SECONDS
                for mailbox in (self._nodes, self._reader, self._journal, self._writer):
                    if mailbox is not None:
                        mailbox.close()

    # -- what the executor asks --------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let every client end at the next durable point."""
        for client in self._clients:
            client.stop()

    # Not context managers: each that is entered holds a frame and two objects, and of thousands of traces that is felt.
    def enter(self) -> Client:
        """Somebody has a trace executed here, until `leave()`."""
        client = Client(self)
        self._clients.add(client)
        self._begin_work()
        return client

    def leave(self, client: Client) -> None:
        self._end_work()
        self._clients.discard(client)

    def _begin_work(self) -> None:
        """Something begins that must end before the actors do."""
        if not self._busy:
            self._idle = anyio.Event()
            self._watchdog.wake()
        self._busy += 1

    def _end_work(self) -> None:
        self._busy -= 1
        if not self._busy:
            self._idle.set()
            self._watchdog.rest()

    @property
    def observed(self) -> bool:
        """Whether anybody is told of events."""
        return self._on_event is not None

    async def ended(self) -> None:
        """Wait until everything here has ended."""
        await self._ended.wait()

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
            if not self._observer_failed:  # it will fail again: once is enough to say so
                logger.exception(
                    "the observer of the executor failed on %r; it is told what follows all the same", event
                )
            self._observer_failed = True

    async def ask(self, trace_id: str, write: Write, kind: type[T]) -> T:
        """Have a write done by the writer, in its batch.

        :raises TinyLLMError: what the store says against it.
        """
        assert self._writer is not None
        answer = Answer()
        try:
            await post(self._writer, Ask(trace_id, write, answer))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise StorageError(f"trace {trace_id!r}: the writer has ended; use another executor") from None
        outcome = await outlast(answer.wait)  # bounded: by the commit, whose outcome must be known
        assert isinstance(outcome, kind)
        return outcome

    def let_go(self, trace_id: str, trace: int, epoch: int) -> None:
        """Release a trace that was taken, and then not executed."""
        self._actors.start_soon(self._let_go, trace_id, trace, epoch, name=f"let go {trace_id}")

    async def _let_go(self, trace_id: str, trace: int, epoch: int) -> None:
        self._begin_work()
        try:
            # Where the writer has been told to end before this had its first turn, the end of the lease lets go of all.
            with suppress(TinyLLMError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                await self.ask(trace_id, Release(trace, epoch), Done)
        finally:
            self._end_work()

    def look(self) -> None:
        """Somebody in this process left a command."""
        if self._reader is not None:
            with suppress(anyio.WouldBlock):  # then it will look soon anyway
                reply(self._reader, Look())

    def run(self, plan: Plan, rev: int, opening: Sequence[Delta], *, stopped: bool) -> Running:
        """Start the actor that executes `plan`, which has made the deltas `opening` since it was restored."""
        keeper = self._keeper
        assert self._nodes is not None
        run = Run(
            plan,
            self._nodes,
            self._bounds,
            journal=self._journal,
            rev=rev,
            opening=opening,
            durability=self.config.durability,
            merges=self.config.policy.merges,
            fail_fast=self.config.fail_fast,
            redaction=self.config.redaction,
            stopped=stopped,
            may_start=_always if keeper is None else keeper.may_start,
            high_water=self._high_water(plan),
            emit=None if self._on_event is None else self.emit,
        )
        running = Running(run)

        async def act() -> None:
            self._begin_work()
            try:
                await self._tell_reader(Watch(plan.key, run.address))
                try:
                    await running.act()
                finally:
                    if run.left_unwritten and keeper is not None:
                        keeper.abandon()
                    await self._tell_reader(Unwatch(plan.key))
            finally:
                self._end_work()

        self._actors.start_soon(act, name=f"run {plan.trace_id}")
        return running

    async def _tell_reader(self, message: ReadMessage) -> None:
        if self._reader is not None:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # it was cancelled, or told to end
                await post(self._reader, message)

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
        self.last: Plan | None = None
        """The state that the call has come to."""
        self._running: Running | None = None
        self.stopping = False
        self._stopped: anyio.Event | None = None  # made by whoever waits for it, as hardly anybody does: it is large

    def stop(self) -> None:
        """Let what runs end, and start nothing more. A second call does nothing."""
        if not self.stopping and self._running is not None:
            self._running.run.stop()
        self.stopping = True
        if self._stopped is not None:
            self._stopped.set()

    async def stopped(self) -> None:
        """Wait until this is to stop."""
        if self._stopped is None:
            self._stopped = anyio.Event()
            if self.stopping:
                self._stopped.set()
        await self._stopped.wait()

    async def execute(self, plan: Plan, rev: int, opening: Sequence[Delta] = ()) -> Run:
        """Run `plan` to its end; returns the run, which knows how it went.

        :raises OwnershipLost: another process took the trace over.
        :raises StorageFailed: the store failed for good.
        """
        await outlast(self.engine.start.wait)  # bounded: by a turn for each that waits; the trace is ours already
        self._running = running = self.engine.run(plan, rev, opening, stopped=self.stopping)
        try:
            return await running.outcome()
        finally:
            self._running = None


def _always() -> bool:
    return True
