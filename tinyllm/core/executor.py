"""`Executor`: runs the traces of one graph, from an asyncio or trio program or from a plain script."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio

from tinyllm.actors.events import Event
from tinyllm.actors.plan import Plan
from tinyllm.core import outside
from tinyllm.core.checkpoint import last_context
from tinyllm.core.checks import check_arguments
from tinyllm.core.config import ExecutorConfig
from tinyllm.core.engine import Client, Engine
from tinyllm.core.store import open_storage
from tinyllm.core.trace import TraceCall
from tinyllm.errors import ConfigError
from tinyllm.graph.context import ExecutionContext
from tinyllm.graph.definition import Graph
from tinyllm.graph.messages import TaskResponse
from tinyllm.graph.payload import Captured, encode_payload
from tinyllm.graph.questions import Question
from tinyllm.nodes.process import refuse_in_worker_start
from tinyllm.storage.contract import CheckpointStorage, Status

T = TypeVar("T")

__all__ = ["Executor", "ExecutorConfig"]


class Executor(anyio.AsyncContextManagerMixin):
    """Executes traces of `graph`.

    `async with Executor(...) as executor:` starts one set of actors that serves any number of concurrent calls. A bare
    executor works too; each call then has a set of its own, and `close()` ends it.

    :param checkpoint_storage: None records nothing. A path is opened here, as a SQLite store, and closed with the
        executor; a storage that is given is neither initialized twice nor closed.
    :param deps: given to nodes as `context.deps`.
    :param on_event: called with each event of `tinyllm.actors.events`, in the event loop: it must return at once.
    """

    def __init__(
        self,
        graph: Graph,
        config: ExecutorConfig | None = None,
        checkpoint_storage: CheckpointStorage | str | os.PathLike[str] | None = None,
        deps: Any = None,
        *,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.graph = graph
        check_arguments(graph, config, checkpoint_storage, ExecutorConfig)
        self.config = config or ExecutorConfig()
        self._given = checkpoint_storage
        self._opened: CheckpointStorage | None = None
        self._deps = deps
        self._on_event = on_event
        self._shared: Engine | None = None
        self._engines: set[Engine] = set()
        self._last: tuple[Plan, CheckpointStorage | None] | None = None

    def __repr__(self) -> str:
        where = self._given.name if isinstance(self._given, CheckpointStorage) else self._given
        return f"<Executor of {self.graph.id!r}, storage: {where or 'none'}>"

    @property
    def context(self) -> ExecutionContext | None:
        """The context of the trace that was executed last; None before there was one. Of a trace that is recorded, it
        is read from the store when it is looked at.

        :raises StorageNotOpen: the store has been closed.
        """
        return None if self._last is None else last_context(*self._last)

    _context = context
    """What programs that were written against an older interface call it."""

    @property
    def owner_id(self) -> str | None:
        """The owner that the traces executed here have, while `async with` lasts; None where nothing is recorded."""
        return None if self._shared is None else self._shared.owner_id

    # -- lifecycle ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Executor]:
        try:
            async with self._new_engine() as engine:
                self._shared = engine
                try:
                    yield self
                finally:
                    self._shared = None
        finally:
            with anyio.CancelScope(shield=True):  # bounded: a store closes after its present commit
                await self.close()

    async def close(self) -> None:
        """Stop what it executes, wait for that, and close what it opened. May be called twice."""
        self.stop()
        for engine in list(self._engines):
            await engine.ended()
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    def stop(self) -> None:
        """Start nothing more: nodes in flight end, all is made durable, and `execute()` returns `interrupted`."""
        for engine in self._engines:
            engine.stop()

    @asynccontextmanager
    async def _new_engine(self) -> AsyncIterator[Engine]:
        refuse_in_worker_start()
        engine = Engine(self.graph, self.config, await self._storage(), deps=self._deps, on_event=self._on_event)
        async with engine.running():
            self._engines.add(engine)
            try:
                yield engine
            finally:
                self._engines.discard(engine)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        if self._shared is not None:
            client = self._shared.enter()
            try:
                await self._shared.entrance.wait()
                yield client
            finally:
                self._leave(client)
            return
        async with self._new_engine() as engine:
            client = engine.enter()
            try:
                yield client
            finally:
                self._leave(client)

    def _leave(self, client: Client) -> None:
        client.engine.leave(client)
        if client.last is not None:
            self._last = client.last, client.engine.storage

    async def _storage(self) -> CheckpointStorage | None:
        if self._given is None:
            return None
        if isinstance(self._given, CheckpointStorage):
            await self._given.initialize()
            return self._given
        if self._opened is None:
            self._opened = open_storage(self._given)
        opened = self._opened  # two calls may come here at once: one store, which each makes sure is open
        await opened.initialize()
        return opened

    # -- running -----------------------------------------------------------------------------------------------

    async def execute(
        self,
        task: Any,
        *,
        trace_id: str | None = None,
        resume_trace_id: str | None = None,
        variables: Mapping[str, Any] | None = None,
        accept_graph_change: bool = False,
    ) -> TaskResponse:
        """Execute `task` (text, a `TaskPayload`, or any storable value) and return the outcome when it is durable.

        With `trace_id`, the same id and task mean the same trace: it is started, or continued where it was
        interrupted; if it has ended its outcome is returned, or its error raised again. `variables` are initial ones.

        With `resume_trace_id`, the task is told to a trace that exists. One that has not ended is resumed, and the task
        becomes part of its history, once. One that is completed runs again from its entries, with the variables and the
        history that it has: its next generation.

        An outcome with the status `paused` has `questions`: `answer()` or `resume_from_checkpoint(answers=)`.

        :raises ExecutionError: a node failed for good; the trace is kept as failed.
        :raises TraceMismatch: `trace_id` is a trace of another task or graph.
        :raises GraphChanged, NodeMissing: as `resume_from_checkpoint()`, of a trace that exists.
        :raises TraceOwned: another live process executes the trace.
        :raises ValueNotStorable: the task or a variable cannot be recorded.
        :raises StorageUnavailable, DatabaseLocked: the store takes no writes just now, and the trace was not executed;
            call this once more, with the same `trace_id`.
        :raises StorageFailed: the store failed for good.
        """
        captured = Captured(encode_payload(task, "task", self.config.redaction))
        if resume_trace_id is not None and (trace_id is not None or variables is not None):
            given = "trace_id" if trace_id is not None else "variables"
            raise ConfigError(given, trace_id or variables, "left out with resume_trace_id: that trace has its own")
        async with self._client() as client:
            call = TraceCall(self.graph, client)
            if resume_trace_id is not None:
                return await call.execute_in(resume_trace_id, captured, accept_graph_change)
            return await call.execute(captured, variables or {}, trace_id, accept_graph_change)

    async def resume_from_checkpoint(
        self,
        trace_id: str,
        *,
        answers: Mapping[str, Any] | None = None,
        accept_graph_change: bool = False,
        take_over: bool = False,
        rerun_effects: bool = False,
        force: bool = False,
    ) -> TaskResponse:
        """Continue an interrupted trace, try a failed one again, or answer a paused one; of one that is completed or
        cancelled, return the stored outcome.

        `answers`: by the id, or the name, of the question. `take_over`: also from a process that lives, for one that is
        stopped or hangs. What that had not recorded is lost to it: it can write nothing more of this trace, and says
        so when it tries; but a node that it is running goes on, beside the same node here.

        Where the trace is damaged, it goes on from its newest checkpoint that is whole: the event `FellBack` says from
        which, and what runs again. What was damaged is kept under another id, `quarantined`. `rerun_effects`: also if
        nodes with effects have run since, and run again, with the same keys.

        `force`: also one that is quarantined because the processes that executed it died of it. It is executed here,
        and its deaths are forgotten.

        :raises Quarantined: it is, and that is not forced; or it is because it was damaged.
        :raises QuestionNotOpen, AnswerRefused, AlreadyAnswered: as `answer()`.
        :raises TraceNotFound: naming ids that are near, and the store that was searched.
        :raises GraphChanged: the topology, a reducer or a node's version changed since, unless that is accepted.
        :raises NodeMissing: what must run next is no longer in the graph.
        :raises RerunRefused: it is damaged, and nodes with effects would run again.
        :raises TraceUnreadable: it is damaged, and no state of it is known.
        :raises TraceOwned, ExecutionError, StorageFailed: as `execute()`.
        """
        async with self._client() as client:
            call = TraceCall(self.graph, client)
            return await call.resume(trace_id, accept_graph_change, answers, take_over, rerun_effects, force)

    async def adopt(self, trace_id: str, *, accept_graph_change: bool = False) -> TaskResponse:
        """Go on with a trace that was claimed (`Claim`) for `owner_id`: as `resume_from_checkpoint()`, but nobody asked
        for it. So what failed is not tried again beyond its budget, and a pause that was left for the trace pauses it.

        Whatever is raised, a trace that has not ended then is still this owner's, unless the error is `TraceOwned`,
        `OwnershipLost` or `StorageFailed`: whoever claimed it gives it up (`Release`, with the epoch that its record
        has now), and says from when on it may be claimed again. What is returned is given up, whatever its status.

        :raises ConfigError: nothing is recorded here.
        :raises TraceOwned: it is executed here already; or it is another owner's.
        :raises Quarantined: it is.
        :raises TraceNotFound, TraceMismatch, GraphChanged, NodeMissing: as `resume_from_checkpoint()`.
        :raises RerunRefused, TraceUnreadable, ExecutionError, StorageFailed: likewise.
        """
        async with self._client() as client:
            return await TraceCall(self.graph, client, claimed=True).resume(trace_id, accept_graph_change)

    async def fork(
        self,
        trace_id: str,
        *,
        at: str | int,
        set: Mapping[str, Any] | None = None,
        new_trace_id: str | None = None,
        accept_graph_change: bool = False,
    ) -> TaskResponse:
        """Start a new trace from a kept checkpoint of `trace_id`, with changed variables, and execute it.

        `at`: a step; a node: then the newest checkpoint at which that node was still to run; or a label. What was in
        flight there runs in the fork; what was done is shared, and not run again. The same `new_trace_id` continues it.

        :raises CheckpointNotFound: naming what is kept.
        :raises TraceNotFound, GraphChanged, NodeMissing, ExecutionError, StorageFailed: as `resume_from_checkpoint()`.
        """
        async with self._client() as client:
            call = TraceCall(self.graph, client)
            return await call.fork(trace_id, at, set or {}, new_trace_id, accept_graph_change)

    # -- from outside ------------------------------------------------------------------------------------------

    async def answer(self, trace_id: str, value: Any, *, question: str | None = None) -> Question:
        """Answer a question of a trace, wherever it runs; `tinyllm.core.outside.answer` says more."""
        return await self._from_outside(outside.answer, trace_id, value, question, self.config.redact)

    async def pause(self, trace_id: str) -> Status:
        """Have a trace pause, wherever it runs: what runs may end, nothing more starts, a resume goes on.

        :raises TraceNotFound, TraceEnded: there is nothing to pause.
        """
        return await self._from_outside(outside.pause, trace_id)

    async def cancel(self, trace_id: str) -> Status:
        """Have a trace end as `cancelled`, wherever it runs.

        :raises TraceNotFound, TraceEnded: there is nothing to cancel.
        """
        return await self._from_outside(outside.cancel, trace_id)

    async def _from_outside(self, verb: Callable[..., Awaitable[T]], *args: Any) -> T:
        storage = await self._storage()
        if storage is None:
            raise ConfigError("checkpoint_storage", None, "a path or a storage: commands are left there")
        try:
            return await verb(storage, *args)
        finally:
            for engine in self._engines:
                engine.look()

    def run_sync(self, task: Any, **options: Any) -> TaskResponse:
        """`execute(task, **options)` from code that is not async; where a loop runs (a notebook), in a thread."""
        call = partial(self._run_alone, task, **options)
        if not _in_event_loop():
            return anyio.run(call)
        outcome: list[TaskResponse | BaseException] = []

        def work() -> None:
            try:
                outcome.append(anyio.run(call))
            except BaseException as error:  # handed to the caller's thread
                outcome.append(error)

        thread = threading.Thread(target=work, name="tinyllm run_sync")
        thread.start()
        thread.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    async def _run_alone(self, task: Any, **options: Any) -> TaskResponse:
        """With actors, and a store, of its own: those of this executor may belong to another event loop."""
        async with Executor(self.graph, self.config, self._given, self._deps, on_event=self._on_event) as alone:
            return await alone.execute(task, **options)


def _in_event_loop() -> bool:
    try:
        anyio.get_current_task()
    except anyio.NoEventLoopError:
        return False
    return True
