"""One call of an executor: what becomes of one trace, from its id to its outcome."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import attrs

from tinyllm.actors import events
from tinyllm.actors.lease import TTL
from tinyllm.actors.plan import Plan
from tinyllm.core.changes import changes
from tinyllm.core.engine import Client
from tinyllm.core.fork import fork_delta
from tinyllm.core.outcome import failure, response, stored_response
from tinyllm.core.outside import carry_out, found, labels, leave_answers
from tinyllm.core.store import check_trace_id, free_trace_id, new_trace_id
from tinyllm.errors import (
    CheckpointNotFound,
    ConfigError,
    GraphChanged,
    NodeMissing,
    NothingToRun,
    OwnershipLost,
    TraceEnded,
    TraceExists,
    TraceMismatch,
    ValueNotStorable,
)
from tinyllm.graph.definition import END, Graph, after
from tinyllm.graph.findings import near
from tinyllm.graph.messages import TaskResponse
from tinyllm.graph.payload import Captured
from tinyllm.graph.values import digest
from tinyllm.graph.variables import capture_variables
from tinyllm.storage.contract import (
    UNOWNED,
    Acquire,
    Acquired,
    Admit,
    Admitted,
    CheckpointRecord,
    CheckpointStorage,
    Command,
    Delta,
    Fork,
    Snapshot,
    Status,
    TraceRecord,
)
from tinyllm.storage.owners import is_owned, refuse_owned
from tinyllm.storage.records import BY_HAND

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

    async def execute(
        self, task: Captured, variables: Mapping[str, Any], trace_id: str | None, accept_graph_change: bool
    ) -> TaskResponse:
        """As `Executor.execute`."""
        initial = self._initial(variables, "variables")
        task_digest = _input_digest(task, initial)
        if trace_id is not None:
            check_trace_id(trace_id)
        if self._client.engine.storage is None:
            plan = self._client.last = Plan(self._graph, trace_id or new_trace_id(self._graph.id))
            plan.keep_history(time.time())
            plan.begin(task, initial)
            return await self._run(plan, 0, events.TraceStarted(plan.trace_id, False, 0, 0, 0, (), plan.waiting()))
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
        return await self._go_on(record, retry=False, accept_graph_change=accept_graph_change)

    async def resume(
        self,
        trace_id: str,
        accept_graph_change: bool,
        answers: Mapping[str, Any] | None = None,
        take_over: bool = False,
    ) -> TaskResponse:
        """As `Executor.resume_from_checkpoint`."""
        snapshot = await self._storage.load(trace_id)
        self._check_own_graph(snapshot.record)
        if answers:
            await leave_answers(self._storage, trace_id, answers.items())
            self._client.engine.look()
        return await self._go_on(
            snapshot.record,
            retry=True,
            accept_graph_change=accept_graph_change,
            snapshot=snapshot,
            take_over=take_over,
        )

    async def execute_in(self, trace_id: str, task: Captured, accept_graph_change: bool) -> TaskResponse:
        """As `Executor.execute(task, resume_trace_id=trace_id)`."""
        record = await found(self._storage, trace_id)
        self._check_own_graph(record)
        if record.status in ("cancelled", "quarantined"):
            raise TraceEnded(trace_id, record.status)
        return await self._go_on(record, retry=True, accept_graph_change=accept_graph_change, task=task)

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
        parent = await found(self._storage, trace_id)
        self._check_own_graph(parent)
        point = await self._point(parent.trace_id, at)
        child = None if child_id is None else await self._storage.trace(check_trace_id(child_id))
        if child is not None:
            await self._check_same_fork(parent, point, child, initial)
            return await self._go_on(child, retry=True, accept_graph_change=accept_graph_change)
        snapshot = await self._storage.load(parent.trace_id, point.rev)
        noted = await self._check_graph(snapshot, accept_graph_change)
        name = child_id or await free_trace_id(self._storage, self._graph.id)
        engine = self._client.engine
        delta = fork_delta(snapshot, initial)
        write = Fork(parent=parent.trace, rev=point.rev, trace_id=name, owner=engine.owner_id, first=delta)
        self._client.trace_id = name
        forked = await engine.ask(name, write, Admitted)
        epoch = forked.epoch
        if noted:  # the fork is recorded with its parent's graph
            with self._given_back(name, forked.trace, epoch):
                epoch = (await self._acquire(forked.trace, name, epoch)).epoch
        with self._given_back(name, forked.trace, epoch):
            plan, snapshot = await self._restored(name)
        return await self._go(plan, snapshot, noted, again=0, lost=0)

    async def _point(self, trace_id: str, at: str | int) -> CheckpointRecord:
        """The checkpoint that `at` means: a step, a node that waited to run, or a label."""
        if isinstance(at, int):
            return await self._storage.find_checkpoint(trace_id, step=at)
        known = await labels(self._storage, trace_id)
        for record in known if at not in self._graph.nodes else ():
            if record.label == at:
                return record
        try:
            return await self._storage.find_checkpoint(trace_id, node=at)  # one that is gone may have waited, too
        except CheckpointNotFound:
            if at in self._graph.nodes:
                raise
        guess = near(at, [*self._graph.nodes, *(str(record.label) for record in known)])
        hint = f" (did you mean {guess!r}?)" if guess else ""
        raise CheckpointNotFound(trace_id, f"for {at!r}, which is no node, no step and no label{hint}")

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
            history=self._graph.history,
            owner=self._client.engine.owner_id,
            first=plan.begin(task, variables),
        )
        self._client.trace_id = plan.trace_id
        async with self._client.engine.admissions:
            admitted = await self._client.engine.ask(plan.trace_id, write, Admitted)
        del write  # here it would live, with the first delta, as long as the trace runs
        plan.key, plan.epoch = admitted.trace, admitted.epoch
        self._client.last = plan
        return await self._run(
            plan, admitted.rev, events.TraceStarted(plan.trace_id, False, 0, 0, 0, (), plan.waiting())
        )

    async def _go_on(
        self,
        record: TraceRecord,
        *,
        retry: bool,
        accept_graph_change: bool,
        task: Captured | None = None,
        snapshot: Snapshot | None = None,
        take_over: bool = False,
    ) -> TaskResponse:
        """`retry`: a failed one is tried again. `task`: what the trace is told besides; a completed one runs with it as
        its next generation. `snapshot` is the trace's state if that was read with `record`."""
        if record.status in UNOWNED and not await self._wakes(record, retry=retry, told=task is not None):
            return await self._stored(record.trace_id)
        seen = record
        if not take_over:
            record = await self._unowned(record)
        self._client.trace_id = record.trace_id
        if snapshot is None or seen is not record:
            snapshot = await self._storage.load(record.trace_id)
        noted = await self._check_graph(snapshot, accept_graph_change)
        try:
            acquired = await self._acquire(record.trace, record.trace_id, record.epoch)
        except OwnershipLost:  # to somebody who executes it now, or who answered, or saved a checkpoint, just then
            taken = await found(self._storage, record.trace_id)
            return await self._go_on(taken, retry=retry, accept_graph_change=accept_graph_change, task=task)
        if record.high_water is not None:
            handed, running = record.high_water
            lost: int | None = max(0, handed - record.step)
        else:
            running = sum(row.state == "cancelled" for row in snapshot.frontier)
            lost = 0 if record.owner is None else None
        with self._given_back(record.trace_id, record.trace, acquired.epoch):
            if acquired.rev == snapshot.rev:
                snapshot = attrs.evolve(snapshot, record=attrs.evolve(snapshot.record, epoch=acquired.epoch))
            else:  # the last owner was not dead yet
                snapshot = await self._storage.load(record.trace_id)
            plan = self._planned(snapshot, retry=retry)
            commands = [] if acquired.told is False else await self._storage.commands(trace=record.trace)
            opening = _opening(plan, record, commands, task)
        return await self._go(plan, snapshot, noted, again=running, lost=lost, opening=opening)

    async def _wakes(self, record: TraceRecord, *, retry: bool, told: bool) -> bool:
        """Whether a trace of which nothing runs goes on when it is asked to. A resume lifts a pause; a question stays
        one until it is answered."""
        match record.status:
            case "completed":
                return told
            case "failed":
                return retry
            case "paused" if told or await self._storage.commands(trace=record.trace):
                return True
            case "paused" if retry:
                frontier = (await self._storage.load(record.trace_id)).frontier
                return any(row.state not in ("paused", "buffered") for row in frontier)
            case _:
                return False

    async def _stored(self, trace_id: str) -> TaskResponse:
        """The outcome of a trace of which nothing runs."""
        plan, snapshot = await self._restored(trace_id)
        told = stored_response(plan, snapshot)
        if told.status == "failed":
            raise failure(told, stored=True)
        return told

    async def _acquire(self, trace: int, trace_id: str, epoch: int) -> Acquired:
        """Make the trace ours, and this graph the one that it is recorded with."""
        assert self._client.engine.owner_id is not None
        graph = self._graph
        write = Acquire(
            trace, trace_id, epoch, self._client.engine.owner_id, graph.fingerprint, graph.definition, graph.path
        )
        return await self._client.engine.ask(trace_id, write, Acquired)

    @contextmanager
    def _given_back(self, trace_id: str, trace: int, epoch: int) -> Iterator[None]:
        """What is ours and not executed yet is let go of where that comes to nothing."""
        try:
            yield
        except BaseException:
            self._client.engine.let_go(trace_id, trace, epoch)
            raise

    async def _restored(self, trace_id: str, *, retry: bool = True) -> tuple[Plan, Snapshot]:
        snapshot = await self._storage.load(trace_id)
        return self._planned(snapshot, retry=retry), snapshot

    def _planned(self, snapshot: Snapshot, *, retry: bool) -> Plan:
        plan = self._client.last = Plan(self._graph, snapshot.record.trace_id)
        plan.restore(snapshot, retry=retry)
        return plan

    async def _go(
        self,
        plan: Plan,
        snapshot: Snapshot,
        noted: list[str],
        *,
        again: int,
        lost: int | None,
        opening: Sequence[Delta] = (),
    ) -> TaskResponse:
        """Execute a trace that is ours from what the store has of it."""
        started = events.TraceStarted(plan.trace_id, True, snapshot.step, again, lost, tuple(noted), plan.waiting())
        return await self._run(plan, snapshot.record.rev, started, opening, began=snapshot.record.created_at)

    async def _run(
        self,
        plan: Plan,
        rev: int,
        started: events.TraceStarted,
        opening: Sequence[Delta] = (),
        began: float | None = None,
    ) -> TaskResponse:
        began = time.time() if began is None else began
        emit = self._client.engine.emit
        emit(started)
        del started
        run = await self._client.execute(plan, rev, opening)
        status: Status = "interrupted" if plan.status == "running" else plan.status
        told = response(plan, status, began)
        emit(events.TraceEnded(plan.trace_id, status, plan.step))
        if told.status == "failed":
            raise failure(told, run.failure, recorded=self._client.engine.storage is not None)
        if status in ("paused", "interrupted") and self._client.engine.storage is not None:
            return await self._see_to_the_rest(plan, told)
        return told

    async def _see_to_the_rest(self, plan: Plan, told: TaskResponse) -> TaskResponse:
        """Carry out what was left after the run last looked and before it gave the trace up: whoever left it saw an
        owner, and relies on that."""
        kinds = {command.kind for command in await self._storage.commands(trace=plan.key)}
        if not kinds:
            return told
        if told.status == "paused" and kinds == {"answer"} and not self._client.stopping:
            record = await found(self._storage, plan.trace_id)
            return await self._go_on(record, retry=False, accept_graph_change=False)
        await carry_out(self._storage, plan.trace_id)
        record = await found(self._storage, plan.trace_id)
        # Else it could not be let go of, because the store failed, and nothing was carried out.
        return attrs.evolve(told, status=record.status) if record.status in UNOWNED else told

    # -- what is checked ---------------------------------------------------------------------------------------

    def _initial(self, variables: Mapping[str, Any], where: str) -> dict[str, bytes]:
        """Variables that are given from outside."""
        captured = capture_variables(variables, where)
        for key, body in captured.items():
            if self._graph.variables.get(key) == "append" and not body.startswith(b"["):
                raise ValueNotStorable(f"{where}[{key!r}]", "its reducer is append; give it a list")
        return captured

    def _check_own_graph(self, record: TraceRecord) -> None:
        if record.fingerprint == BY_HAND:
            raise NothingToRun(record.trace_id)
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

    async def _check_graph(self, snapshot: Snapshot, accept_graph_change: bool) -> list[str]:
        """What changed in the graph and may be accepted."""
        trace_id = snapshot.record.trace_id
        serious: list[str] = []
        harmless: list[str] = []
        if snapshot.record.definition_digest != digest(self._graph.definition):
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
        while seen.owner is not None and is_owned(seen):
            if seen.owner.id == self._client.engine.owner_id and not self._client.engine.serves(
                seen.trace_id, other_than=self._client
            ):
                return seen
            if seen.owner_alive or seen.owner_beat != record.owner_beat:
                refuse_owned(seen)
            if time.monotonic() >= deadline:
                return seen
            with anyio.move_on_after(OWNER_POLL_SECONDS):
                await self._client.stopped()
                refuse_owned(seen)  # as far as one can tell: there is no time left to find out
            seen = await self._storage.trace(record.trace_id) or seen
        return seen


def _opening(plan: Plan, record: TraceRecord, commands: Sequence[Command], task: Captured | None) -> list[Delta]:
    """The deltas by which a restored trace goes on: what others left for it, and what it is told now."""
    if cancels := [command.id for command in commands if command.kind == "cancel"]:
        return [plan.close("cancelled", cancels)]
    opening = [plan.heed(commands)] if commands else []
    if task is not None:
        told = digest(task.body)
        if record.status == "completed":
            opening.append(plan.begin_again(task, told))
        elif told != record.last_task:  # once, however often it is told
            opening.append(plan.hear(task, told))
    return opening


def _input_digest(task: Captured, variables: Mapping[str, bytes]) -> str:
    """Of the task and the initial variables: the same id with others is refused."""
    return digest(task.body + b"".join(b"\n%s=%s" % (key.encode(), variables[key]) for key in sorted(variables)))
