"""`Executor`: runs the traces of one graph, from an asyncio or trio program or from a plain script."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio

from tinyllm.actors.events import Event, TraceEnded, TraceStarted
from tinyllm.actors.lease import TTL
from tinyllm.actors.plan import Plan
from tinyllm.core.changes import changes
from tinyllm.core.config import ExecutorConfig
from tinyllm.core.engine import Client, Engine
from tinyllm.core.fork import fork_delta
from tinyllm.core.outcome import failure, response, stored_response
from tinyllm.core.store import check_trace_id, find_trace, open_storage
from tinyllm.core.store import new_trace_id as random_trace_id
from tinyllm.errors import ConfigError, GraphChanged, NodeMissing, TraceExists, TraceMismatch, TraceOwned
from tinyllm.graph.definition import END, Graph
from tinyllm.graph.messages import TaskResponse
from tinyllm.graph.payload import Captured, encode_payload
from tinyllm.graph.values import capture
from tinyllm.nodes.process import refuse_in_worker_start
from tinyllm.storage.contract import Acquire, Acquired, Admit, Admitted, CheckpointStorage, Fork, Snapshot, TraceRecord

__all__ = ["Executor", "ExecutorConfig"]

OWNER_POLL_SECONDS = 1.0


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
        self.config = config or ExecutorConfig()
        self._given = checkpoint_storage
        self._opened: CheckpointStorage | None = None
        self._deps = deps
        self._on_event = on_event
        self._shared: Engine | None = None
        self._engines: set[Engine] = set()

    def __repr__(self) -> str:
        where = self._given.name if isinstance(self._given, CheckpointStorage) else self._given
        return f"<Executor of {self.graph.id!r}, storage: {where or 'none'}>"

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
        """Close what this executor opened. May be called twice."""
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
            with self._shared.client() as client:
                yield client
            return
        async with self._new_engine() as engine:
            with engine.client() as client:
                yield client

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
        self, task: Any, *, trace_id: str | None = None, variables: Mapping[str, Any] | None = None
    ) -> TaskResponse:
        """Execute `task` (text, a `TaskPayload`, or any storable value) and return the outcome when it is durable.

        With `trace_id`, the same id and task mean the same trace: it is started, or continued where it was
        interrupted; if it has ended its outcome is returned, or its error raised again. `variables` are initial ones.

        :raises ExecutionError: a node failed for good; the trace is kept as failed.
        :raises TraceMismatch: `trace_id` is a trace of another task or graph.
        :raises TraceOwned: another live process executes the trace.
        :raises ValueNotStorable: the task or a variable cannot be recorded.
        :raises StorageFailed: the store failed for good.
        """
        captured = Captured(encode_payload(task, "task"))
        initial = {key: capture(value, f"variables[{key!r}]") for key, value in (variables or {}).items()}
        if trace_id is not None:
            check_trace_id(trace_id)
        async with self._client() as client:
            storage = client.engine.storage
            if storage is None:
                plan = Plan(self.graph, trace_id or random_trace_id(self.graph.id))
                plan.begin(captured, initial)
                return await self._run(client, plan, 0, TraceStarted(plan.trace_id, False, 0, 0, 0, (), plan.waiting()))
            record = None if trace_id is None else await storage.trace(trace_id)
            while record is None:
                plan = Plan(self.graph, trace_id or random_trace_id(self.graph.id))
                try:
                    return await self._admit(client, plan, captured, initial)
                except TraceExists:  # chosen at random, or admitted by somebody else just now
                    record = None if trace_id is None else await storage.trace(trace_id)
            if record.graph_id != self.graph.id:
                raise TraceMismatch(record.trace_id, f"graph ({record.graph_id!r})")
            if record.task_digest != captured.digest:
                raise TraceMismatch(record.trace_id, "task")
            return await self._go_on(client, record, retry=False, accept_graph_change=False)

    async def resume_from_checkpoint(self, trace_id: str, *, accept_graph_change: bool = False) -> TaskResponse:
        """Continue an interrupted trace, or try a failed one again; of a completed one, return the stored outcome.

        :raises TraceNotFound: naming ids that are near, and the store that was searched.
        :raises GraphChanged: the topology, a reducer or a node's version changed since, unless that is accepted.
        :raises NodeMissing: what must run next is no longer in the graph.
        :raises TraceOwned, ExecutionError, StorageFailed: as `execute()`.
        """
        async with self._client() as client:
            storage = self._needs_storage(client)
            record = await find_trace(storage, trace_id)
            if record.graph_id != self.graph.id:
                raise TraceMismatch(record.trace_id, f"graph ({record.graph_id!r})")
            return await self._go_on(client, record, retry=True, accept_graph_change=accept_graph_change)

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

        `at`: a step, or a node: then the newest checkpoint at which that node was still to run. What was in flight
        there runs in the fork; what was done is shared, and not run again. The same `new_trace_id` continues it.

        :raises CheckpointNotFound: naming what is kept.
        :raises TraceNotFound, GraphChanged, NodeMissing, ExecutionError, StorageFailed: as `resume_from_checkpoint()`.
        """
        initial = {key: capture(value, f"set[{key!r}]") for key, value in (set or {}).items()}
        async with self._client() as client:
            storage = self._needs_storage(client)
            parent = await find_trace(storage, trace_id)
            if parent.graph_id != self.graph.id:
                raise TraceMismatch(parent.trace_id, f"graph ({parent.graph_id!r})")
            child = None if new_trace_id is None else await storage.trace(check_trace_id(new_trace_id))
            if child is not None:
                if child.parent != parent.trace_id:
                    raise TraceExists(child.trace_id)
                return await self._go_on(client, child, retry=True, accept_graph_change=accept_graph_change)
            if isinstance(at, int):
                point = await storage.find_checkpoint(parent.trace_id, step=at)
            else:
                point = await storage.find_checkpoint(parent.trace_id, node=at)
            snapshot = await storage.load(parent.trace_id, point.rev)
            noted = await self._check_graph(storage, snapshot, accept_graph_change)
            name = new_trace_id or random_trace_id(parent.trace_id)  # `survey-7k3mq` forks into `survey-7k3mq-x4f9p`
            delta = fork_delta(snapshot, name, initial)
            write = Fork(parent=parent.trace, rev=point.rev, trace_id=name, owner=client.engine.owner_id, first=delta)
            client.trace_id = name
            forked = await client.engine.ask(name, write, Admitted)
            if noted:  # the fork is recorded with its parent's graph
                await self._acquire(client, forked.trace, name, forked.epoch)
            return await self._restored(client, name, noted, again=0, lost=0)

    def run_sync(self, task: Any, **options: Any) -> TaskResponse:
        """`execute(task, **options)` from code that is not async; where a loop runs (a notebook), in a thread."""
        call = partial(self._run_alone, task, **options)
        try:
            anyio.get_current_task()
        except anyio.NoEventLoopError:
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

    # -- how it goes on ----------------------------------------------------------------------------------------

    async def _admit(self, client: Client, plan: Plan, task: Captured, variables: Mapping[str, bytes]) -> TaskResponse:
        write = Admit(
            trace_id=plan.trace_id,
            graph_id=self.graph.id,
            graph_version=self.graph.version,
            fingerprint=self.graph.fingerprint,
            definition=self.graph.definition,
            graph_path=self.graph.path,
            task_digest=task.digest,
            owner=client.engine.owner_id,
            first=plan.begin(task, variables),
        )
        client.trace_id = plan.trace_id
        admitted = await client.engine.ask(plan.trace_id, write, Admitted)
        plan.key, plan.epoch = admitted.trace, admitted.epoch
        started = TraceStarted(plan.trace_id, False, 0, 0, 0, (), plan.waiting())
        return await self._run(client, plan, admitted.rev, started)

    async def _go_on(
        self, client: Client, record: TraceRecord, *, retry: bool, accept_graph_change: bool
    ) -> TaskResponse:
        storage = self._needs_storage(client)
        if record.status == "completed" or (record.status == "failed" and not retry):
            snapshot = await storage.load(record.trace_id)
            plan = Plan(self.graph, record.trace_id)
            plan.restore(snapshot)
            told = stored_response(plan, snapshot)
            if told.status == "failed":
                raise failure(told)
            return told
        record = await self._unowned(client, storage, record)
        client.trace_id = record.trace_id
        snapshot = await storage.load(record.trace_id)
        noted = await self._check_graph(storage, snapshot, accept_graph_change)
        await self._acquire(client, record.trace, record.trace_id, record.epoch)
        if record.high_water is not None:
            handed, again = record.high_water
            lost: int | None = max(0, handed - record.step)
        else:
            again = sum(row.state == "cancelled" for row in snapshot.frontier)
            lost = 0 if record.owner is None else None
        return await self._restored(client, record.trace_id, noted, again=again, lost=lost)

    async def _acquire(self, client: Client, trace: int, trace_id: str, epoch: int) -> None:
        """Make the trace ours, and this graph the one that it is recorded with."""
        assert client.engine.owner_id is not None
        graph = self.graph
        write = Acquire(trace, trace_id, epoch, client.engine.owner_id, graph.fingerprint, graph.definition, graph.path)
        await client.engine.ask(trace_id, write, Acquired)

    async def _restored(
        self, client: Client, trace_id: str, noted: list[str], *, again: int, lost: int | None
    ) -> TaskResponse:
        """Execute a trace that is ours from what the store has of it."""
        storage = self._needs_storage(client)
        with anyio.CancelScope(shield=True):  # bounded, and the trace is ours: only its run lets go of it
            snapshot = await storage.load(trace_id)
        plan = Plan(self.graph, trace_id)
        plan.restore(snapshot)
        started = TraceStarted(trace_id, True, snapshot.step, again, lost, tuple(noted), plan.waiting())
        return await self._run(client, plan, snapshot.record.rev, started, began=snapshot.record.created_at)

    async def _run(
        self, client: Client, plan: Plan, rev: int, started: TraceStarted, began: float | None = None
    ) -> TaskResponse:
        began = time.time() if began is None else began
        emit = client.engine.emit
        emit(started)
        run = await client.execute(plan, rev)
        told = response(plan, "interrupted" if plan.status == "running" else plan.status, began)
        emit(TraceEnded(plan.trace_id, plan.status if plan.status != "running" else "interrupted", plan.step))
        if told.status == "failed":
            raise failure(told, run.failure)
        return told

    # -- what is checked ---------------------------------------------------------------------------------------

    @staticmethod
    def _needs_storage(client: Client) -> CheckpointStorage:
        if client.engine.storage is None:
            raise ConfigError("checkpoint_storage", None, "a path or a storage: without one nothing was recorded")
        return client.engine.storage

    async def _check_graph(
        self, storage: CheckpointStorage, snapshot: Snapshot, accept_graph_change: bool
    ) -> list[str]:
        """What changed in the graph and may be accepted."""
        trace_id = snapshot.record.trace_id
        serious, harmless = changes(await storage.definition(trace_id), self.graph)
        if serious and not accept_graph_change:
            raise GraphChanged(trace_id, tuple(serious))
        missing = sorted({row.node for row in snapshot.frontier} - self.graph.nodes.keys() - {END})
        if missing:
            raise NodeMissing(trace_id, tuple(missing))
        return serious + harmless

    @staticmethod
    async def _unowned(client: Client, storage: CheckpointStorage, record: TraceRecord) -> TraceRecord:
        """`record`, once it is sure that nobody executes it.

        It may be ours already, from a call that could not let go of it when the store failed. An owner whose process
        cannot be seen from here is dead when its lease has not been renewed for as long as a lease lasts, by our own
        clock.
        """
        seen = record
        deadline = time.monotonic() + TTL
        while seen.owner is not None and seen.owner_alive is not False:
            owner = seen.owner
            if owner.id == client.engine.owner_id and not client.engine.serves(seen.trace_id, other_than=client):
                return seen
            if seen.owner_alive or seen.owner_beat != record.owner_beat:
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.since))
                raise TraceOwned(seen.trace_id, owner.host, owner.pid, since)
            if time.monotonic() >= deadline:
                return seen
            await anyio.sleep(OWNER_POLL_SECONDS)
            seen = await storage.trace(record.trace_id) or seen
        return seen
