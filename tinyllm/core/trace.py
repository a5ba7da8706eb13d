"""One call of an executor: what becomes of one trace, from its id to its outcome."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio

from tinyllm.actors.events import TraceEnded, TraceStarted
from tinyllm.actors.lease import TTL
from tinyllm.actors.plan import Plan
from tinyllm.core.changes import changes
from tinyllm.core.engine import Client
from tinyllm.core.fork import fork_delta
from tinyllm.core.outcome import failure, response, stored_response
from tinyllm.core.store import check_trace_id, free_trace_id, new_trace_id
from tinyllm.errors import (
    ConfigError,
    GraphChanged,
    NodeMissing,
    TraceExists,
    TraceMismatch,
    TraceOwned,
    ValueNotStorable,
)
from tinyllm.graph.definition import END, Graph, after
from tinyllm.graph.messages import TaskResponse
from tinyllm.graph.payload import Captured
from tinyllm.graph.values import digest
from tinyllm.graph.variables import capture_variables
from tinyllm.storage.contract import (
    Acquire,
    Acquired,
    Admit,
    Admitted,
    CheckpointRecord,
    CheckpointStorage,
    Fork,
    Owner,
    Snapshot,
    Status,
    TraceRecord,
)

OWNER_POLL_SECONDS = 1.0


class TraceCall:
    """Decides what a call means for the trace it names, and has that executed by the client's engine."""

    def __init__(self, graph: Graph, client: Client) -> None:
        self._graph = graph
        self._client = client

    @property
    def _storage(self) -> CheckpointStorage:
        if self._client.engine.storage is None:
            raise ConfigError("checkpoint_storage", None, "a path or a storage: without one nothing was recorded")
        return self._client.engine.storage

    # -- the verbs ---------------------------------------------------------------------------------------------

    async def execute(self, task: Captured, variables: Mapping[str, Any], trace_id: str | None) -> TaskResponse:
        """As `Executor.execute`."""
        initial = self._initial(variables, "variables")
        task_digest = _input_digest(task, initial)
        if trace_id is not None:
            check_trace_id(trace_id)
        if self._client.engine.storage is None:
            plan = Plan(self._graph, trace_id or new_trace_id(self._graph.id))
            plan.begin(task, initial)
            return await self._run(plan, 0, TraceStarted(plan.trace_id, False, 0, 0, 0, (), plan.waiting()))
        record = None if trace_id is None else await self._storage.trace(trace_id)
        while record is None:
            plan = Plan(self._graph, trace_id or new_trace_id(self._graph.id))
            try:
                return await self._admit(plan, task, initial, task_digest)
            except TraceExists:  # chosen at random, or admitted by somebody else just now
                record = None if trace_id is None else await self._storage.trace(trace_id)
        self._check_own_graph(record)
        if record.task_digest != task_digest:
            remedy = "use a new id, or resume the trace without naming them"
            raise TraceMismatch(record.trace_id, "task, or other initial variables", remedy)
        return await self._go_on(record, retry=False, accept_graph_change=False)

    async def resume(self, trace_id: str, accept_graph_change: bool) -> TaskResponse:
        """As `Executor.resume_from_checkpoint`."""
        record = await self._found(trace_id)
        self._check_own_graph(record)
        return await self._go_on(record, retry=True, accept_graph_change=accept_graph_change)

    async def fork(
        self,
        trace_id: str,
        at: str | int,
        variables: Mapping[str, Any],
        child_id: str | None,
        accept_graph_change: bool,
    ) -> TaskResponse:
        """As `Executor.fork`."""
        initial = self._initial(variables, "set")
        parent = await self._found(trace_id)
        self._check_own_graph(parent)
        node, step = (None, at) if isinstance(at, int) else (at, None)
        point = await self._storage.find_checkpoint(parent.trace_id, node=node, step=step)
        child = None if child_id is None else await self._storage.trace(check_trace_id(child_id))
        if child is not None:
            await self._check_same_fork(parent, point, child, initial)
            return await self._go_on(child, retry=True, accept_graph_change=accept_graph_change)
        snapshot = await self._storage.load(parent.trace_id, point.rev)
        noted = await self._check_graph(snapshot, accept_graph_change)
        name = child_id or await free_trace_id(self._storage, self._graph.id)
        engine = self._client.engine
        delta = fork_delta(snapshot, name, initial)
        write = Fork(parent=parent.trace, rev=point.rev, trace_id=name, owner=engine.owner_id, first=delta)
        self._client.trace_id = name
        forked = await engine.ask(name, write, Admitted)
        epoch = forked.epoch
        if noted:  # the fork is recorded with its parent's graph
            with self._given_back(name, forked.trace, epoch):
                epoch = await self._acquire(forked.trace, name, epoch)
        with self._given_back(name, forked.trace, epoch):
            plan, snapshot = await self._restored(name)
        return await self._go(plan, snapshot, noted, again=0, lost=0)

    # -- how a trace begins and goes on ------------------------------------------------------------------------

    async def _admit(
        self, plan: Plan, task: Captured, variables: Mapping[str, bytes], task_digest: str
    ) -> TaskResponse:
        write = Admit(
            trace_id=plan.trace_id,
            graph_id=self._graph.id,
            graph_version=self._graph.version,
            fingerprint=self._graph.fingerprint,
            definition=self._graph.definition,
            graph_path=self._graph.path,
            task_digest=task_digest,
            owner=self._client.engine.owner_id,
            first=plan.begin(task, variables),
        )
        self._client.trace_id = plan.trace_id
        admitted = await self._client.engine.ask(plan.trace_id, write, Admitted)
        plan.key, plan.epoch = admitted.trace, admitted.epoch
        started = TraceStarted(plan.trace_id, False, 0, 0, 0, (), plan.waiting())
        return await self._run(plan, admitted.rev, started)

    async def _go_on(self, record: TraceRecord, *, retry: bool, accept_graph_change: bool) -> TaskResponse:
        if record.status == "completed" or (record.status == "failed" and not retry):
            plan, snapshot = await self._restored(record.trace_id)
            told = stored_response(plan, snapshot)
            if told.status == "failed":
                raise failure(told)
            return told
        record = await self._unowned(record)
        self._client.trace_id = record.trace_id
        snapshot = await self._storage.load(record.trace_id)
        noted = await self._check_graph(snapshot, accept_graph_change)
        epoch = await self._acquire(record.trace, record.trace_id, record.epoch)
        if record.high_water is not None:
            handed, again = record.high_water
            lost: int | None = max(0, handed - record.step)
        else:
            again = sum(row.state == "cancelled" for row in snapshot.frontier)
            lost = 0 if record.owner is None else None
        with self._given_back(record.trace_id, record.trace, epoch):
            plan, snapshot = await self._restored(record.trace_id)
        return await self._go(plan, snapshot, noted, again=again, lost=lost)

    async def _acquire(self, trace: int, trace_id: str, epoch: int) -> int:
        """Make the trace ours, and this graph the one that it is recorded with; returns the new epoch."""
        assert self._client.engine.owner_id is not None
        graph = self._graph
        write = Acquire(
            trace, trace_id, epoch, self._client.engine.owner_id, graph.fingerprint, graph.definition, graph.path
        )
        return (await self._client.engine.ask(trace_id, write, Acquired)).epoch

    @contextmanager
    def _given_back(self, trace_id: str, trace: int, epoch: int) -> Iterator[None]:
        """What is ours and not executed yet is let go of where that comes to nothing."""
        try:
            yield
        except BaseException:
            self._client.engine.let_go(trace_id, trace, epoch)
            raise

    async def _restored(self, trace_id: str) -> tuple[Plan, Snapshot]:
        snapshot = await self._storage.load(trace_id)
        plan = Plan(self._graph, trace_id)
        plan.restore(snapshot)
        return plan, snapshot

    async def _go(
        self, plan: Plan, snapshot: Snapshot, noted: list[str], *, again: int, lost: int | None
    ) -> TaskResponse:
        """Execute a trace that is ours from what the store has of it."""
        started = TraceStarted(plan.trace_id, True, snapshot.step, again, lost, tuple(noted), plan.waiting())
        return await self._run(plan, snapshot.record.rev, started, began=snapshot.record.created_at)

    async def _run(self, plan: Plan, rev: int, started: TraceStarted, began: float | None = None) -> TaskResponse:
        began = time.time() if began is None else began
        emit = self._client.engine.emit
        emit(started)
        run = await self._client.execute(plan, rev)
        status: Status = "interrupted" if plan.status == "running" else plan.status
        told = response(plan, status, began)
        emit(TraceEnded(plan.trace_id, status, plan.step))
        if told.status == "failed":
            raise failure(told, run.failure)
        return told

    # -- what is checked ---------------------------------------------------------------------------------------

    def _initial(self, variables: Mapping[str, Any], where: str) -> dict[str, bytes]:
        """Variables that are given from outside."""
        captured = capture_variables(variables, where)
        for key, body in captured.items():
            if self._graph.variables.get(key) == "append" and not body.startswith(b"["):
                raise ValueNotStorable(f"{where}[{key!r}]", "its reducer is append; give it a list")
        return captured

    def _check_own_graph(self, record: TraceRecord) -> None:
        if record.graph_id != self._graph.id:
            remedy = f"resume it with graph {record.graph_id!r}, or use a new id"
            raise TraceMismatch(record.trace_id, f"graph ({record.graph_id!r})", remedy)

    async def _check_same_fork(
        self,
        parent: TraceRecord,
        point: CheckpointRecord,
        child: TraceRecord,
        variables: Mapping[str, bytes],
    ) -> None:
        """Refuse to take an existing trace for a fork that was made otherwise."""
        remedy = "use a new id, or resume the trace"
        if child.parent != parent.trace_id:
            raise TraceExists(child.trace_id)
        if child.parent_rev != point.rev:
            raise TraceMismatch(child.trace_id, "point to fork from", remedy)
        before, first = (
            await self._storage.load(parent.trace_id, point.rev),
            await self._storage.load(child.trace_id, point.rev + 1),
        )
        was, now = ({key: rows[0].seq for key, rows in snapshot.variables.items()} for snapshot in (before, first))
        changed = {key: first.variables[key][0].body for key, seq in now.items() if was.get(key) != seq}
        if changed != dict(variables):
            raise TraceMismatch(child.trace_id, "set of variables", remedy)

    async def _found(self, trace_id: str) -> TraceRecord:
        """That very trace: nothing is resumed by accident. (`load` raises, and names what is near.)"""
        return await self._storage.trace(trace_id) or (await self._storage.load(trace_id)).record

    async def _check_graph(self, snapshot: Snapshot, accept_graph_change: bool) -> list[str]:
        """What changed in the graph and may be accepted."""
        trace_id = snapshot.record.trace_id
        serious, harmless = changes(await self._storage.definition(trace_id), self._graph)
        if serious and not accept_graph_change:
            raise GraphChanged(trace_id, tuple(serious))
        missing = sorted({after(row.node) for row in snapshot.frontier} - self._graph.nodes.keys() - {END})
        if missing:
            raise NodeMissing(trace_id, tuple(missing))
        return serious + harmless

    async def _unowned(self, record: TraceRecord) -> TraceRecord:
        """`record`, once it is sure that nobody executes it.

        It may be ours already, from a call that could not let go of it when the store failed. An owner whose process
        cannot be seen from here is dead when its lease has not been renewed for as long as a lease lasts, by our own
        clock.
        """
        seen = record
        deadline = time.monotonic() + TTL
        while seen.owner is not None and seen.owner_alive is not False:
            owner = seen.owner
            if owner.id == self._client.engine.owner_id and not self._client.engine.serves(
                seen.trace_id, other_than=self._client
            ):
                return seen
            if seen.owner_alive or seen.owner_beat != record.owner_beat:
                raise _owned(seen.trace_id, owner)
            if time.monotonic() >= deadline:
                return seen
            with anyio.move_on_after(OWNER_POLL_SECONDS):
                await self._client.stopping.wait()
                raise _owned(seen.trace_id, owner)  # as far as one can tell: there is no time left to find out
            seen = await self._storage.trace(record.trace_id) or seen
        return seen


def _input_digest(task: Captured, variables: Mapping[str, bytes]) -> str:
    """Of the task and the initial variables: the same id with others is refused."""
    return digest(task.body + b"".join(b"\n%s=%s" % (key.encode(), variables[key]) for key in sorted(variables)))


def _owned(trace_id: str, owner: Owner) -> TraceOwned:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.since))
    return TraceOwned(trace_id, owner.host, owner.pid, since)
