"""One call of an executor: what becomes of one trace, from its id to its outcome."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import attrs

from tinyllm.actors import events
from tinyllm.actors.lease import TTL
from tinyllm.actors.plan import Plan
from tinyllm.core.admission import admission, check_same_task, input_digest, perhaps_admitted
from tinyllm.core.checks import (
    check_graph,
    check_own_graph,
    check_same_fork,
    initial_variables,
    refuse_cancelled,
    refuse_quarantined,
)
from tinyllm.core.engine import Client
from tinyllm.core.fork import fork_delta
from tinyllm.core.opening import opening_of, toll
from tinyllm.core.outcome import failure, response, stored_response
from tinyllm.core.outside import carry_out, found, labels, leave_answers
from tinyllm.core.store import check_trace_id, free_trace_id, new_trace_id
from tinyllm.core.way_back import WayBack
from tinyllm.errors import (
    CheckpointDamaged,
    CheckpointNotFound,
    ConfigError,
    OwnershipLost,
    TraceExists,
    ValueNotReadable,
)
from tinyllm.graph.definition import Graph
from tinyllm.graph.findings import near
from tinyllm.graph.messages import TaskResponse
from tinyllm.graph.payload import Captured
from tinyllm.graph.values import NONSENSE
from tinyllm.storage.contract import (
    UNOWNED,
    Acquire,
    Acquired,
    Acquit,
    Admitted,
    CheckpointRecord,
    CheckpointStorage,
    Delta,
    Done,
    FallBack,
    Fork,
    Snapshot,
    Status,
    TraceRecord,
)
from tinyllm.storage.owners import is_owned, refuse_owned

OWNER_POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


class TraceCall:
    """Decides what a call means for the trace it names, and has that executed by the client's engine.

    `claimed`: nobody asked for this trace just now. The engine's owner claimed it, and holds it until it is executed.
    """

    def __init__(self, graph: Graph, client: Client, *, claimed: bool = False) -> None:
        self._graph = graph
        self._client = client
        self._claimed = claimed

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
        initial = initial_variables(self._graph, variables, "variables", self._client.engine.config.redaction)
        task_digest = input_digest(task, initial)
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
        check_same_task(self._graph, record, task_digest)
        return await self._go_on(record, retry=False, accept_graph_change=accept_graph_change)

    async def resume(
        self,
        trace_id: str,
        accept_graph_change: bool,
        answers: Mapping[str, Any] | None = None,
        take_over: bool = False,
        rerun_effects: bool = False,
        force: bool = False,
    ) -> TaskResponse:
        """As `Executor.resume_from_checkpoint`; of a trace that was claimed, as `Executor.adopt`."""
        try:
            snapshot = await self._storage.load(trace_id)
        except CheckpointDamaged as damage:
            if answers:  # what was asked is asked again
                raise
            return await self._fall_back(damage, accept_graph_change, take_over, rerun_effects, force)
        check_own_graph(self._graph, snapshot.record)
        refuse_quarantined(snapshot.record, force=force)
        if answers:
            await leave_answers(self._storage, trace_id, answers.items(), self._client.engine.config.redaction)
            self._client.engine.look()
        return await self._go_on(
            snapshot.record,
            retry=not self._claimed,
            accept_graph_change=accept_graph_change,
            snapshot=snapshot,
            take_over=take_over,
            force=force,
        )

    async def execute_in(self, trace_id: str, task: Captured, accept_graph_change: bool) -> TaskResponse:
        """As `Executor.execute(task, resume_trace_id=trace_id)`."""
        record = await found(self._storage, trace_id)
        check_own_graph(self._graph, record)
        refuse_cancelled(record)
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
        initial = initial_variables(self._graph, variables, "set", self._client.engine.config.redaction)
        parent = await found(self._storage, trace_id)
        check_own_graph(self._graph, parent)
        point = await self._point(parent.trace_id, at)
        child = None if child_id is None else await self._storage.trace(check_trace_id(child_id))
        if child is not None:
            await check_same_fork(self._storage, parent, point, child, initial)
            return await self._go_on(child, retry=True, accept_graph_change=accept_graph_change)
        snapshot = await self._storage.load(parent.trace_id, point.rev)
        noted = await check_graph(self._storage, self._graph, snapshot, accept_graph_change)
        name = child_id or await free_trace_id(self._storage, self._graph.id)
        owner = self._client.engine.owner_id
        delta = fork_delta(snapshot, initial)
        write = Fork(parent=parent.trace, rev=point.rev, trace_id=name, owner=owner, first=delta)
        return await self._go(*await self._forked(write, noted), noted, again=0, lost=0)

    async def _fall_back(
        self, damage: CheckpointDamaged, accept_graph_change: bool, take_over: bool, rerun_effects: bool, force: bool
    ) -> TaskResponse:
        """Go on with a damaged trace from its newest checkpoint that is whole, under its own id."""
        intact = await self._storage.load_intact(damage.trace_id)
        good, seen = intact.snapshot, intact.snapshot.record
        check_own_graph(self._graph, seen)
        refuse_cancelled(seen, force=force)
        noted = await check_graph(self._storage, self._graph, good, accept_graph_change)
        if not take_over:
            await self._unowned(seen)
        way = await WayBack.of(self._storage, intact, damage)
        now = (await self._storage.load_intact(damage.trace_id)).snapshot.record
        if (now.trace, now.epoch, now.rev) != (seen.trace, seen.epoch, seen.rev):
            return await self.resume(damage.trace_id, accept_graph_change, None, take_over, rerun_effects, force)
        if not rerun_effects:
            way.refuse_effects(self._graph)
        self._serve(seen)
        running, lost = toll(seen, good)
        try:
            write = way.write(self._client.engine.owner_id)
            plan, snapshot = await self._forked(write, [] if way.cancelled else noted)
        except (OwnershipLost, TraceExists):  # to somebody who had it fall back, or go on, just then
            return await self.resume(damage.trace_id, accept_graph_change, None, take_over, rerun_effects, force)
        self._client.engine.emit(way.told)
        if not self._client.engine.observed:
            where = f"goes on from step {good.step}, and what was damaged is kept as {way.kept_as}"
            logger.warning("trace %r was damaged (%s); it %s", damage.trace_id, damage.what, where)
        if way.cancelled:
            return stored_response(plan, snapshot)
        again = running + (way.again or Counter()).total()
        opening = [plan.close("paused")] if self._claimed and way.paused else []
        return await self._go(plan, snapshot, noted, again=again, lost=lost, opening=opening)

    async def _forked(self, write: Fork | FallBack, noted: list[str]) -> tuple[Plan, Snapshot]:
        """A fork that was made and is ours, ready to be executed."""
        name = self._client.trace_id = write.trace_id
        forked = await self._client.engine.ask(name, write, Admitted)
        epoch = forked.epoch
        if noted:  # the fork is recorded with its parent's graph
            with self._given_back(name, forked.trace, epoch):
                epoch = (await self._acquire(forked.trace, name, epoch)).epoch
        with self._given_back(name, forked.trace, epoch):
            return await self._restored(name)

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
        first = plan.begin(task, variables)
        write = admission(self._graph, plan.trace_id, task_digest, first, owner=self._client.engine.owner_id)
        self._client.trace_id = plan.trace_id
        async with self._client.engine.admissions:
            with perhaps_admitted(plan.trace_id):
                admitted = await self._client.engine.ask(plan.trace_id, write, Admitted)
        del first, write  # here it would live, with the first delta, as long as the trace runs
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
        force: bool = False,
    ) -> TaskResponse:
        """`retry`: a failed one is tried again. `task`: what the trace is told besides; a completed one runs with it as
        its next generation. `snapshot` is the trace's state if that was read with `record`. `force`: a quarantined one
        is released."""
        released = force and record.status == "quarantined"
        if (
            record.status in UNOWNED
            and not released
            and not await self._wakes(record, retry=retry, told=task is not None)
        ):
            return await self._stored(record.trace_id)
        seen = record
        if not take_over:
            record = await self._unowned(record)
        self._serve(record)
        if snapshot is None or seen is not record:
            snapshot = await self._storage.load(record.trace_id)
        noted = await check_graph(self._storage, self._graph, snapshot, accept_graph_change)
        try:
            acquired = await self._acquire(record.trace, record.trace_id, record.epoch)
        except OwnershipLost:  # to somebody who executes it now, or who answered, or saved a checkpoint, just then
            taken = await found(self._storage, record.trace_id)
            refuse_quarantined(taken, force=force)
            return await self._go_on(
                taken, retry=retry, accept_graph_change=accept_graph_change, task=task, force=force
            )
        with self._given_back(record.trace_id, record.trace, acquired.epoch):
            if released:  # only now: should this process die before, the trace is not without its deaths
                write = Acquit(record.trace, record.trace_id, acquired.epoch)
                await self._client.engine.ask(record.trace_id, write, Done)
            if acquired.rev == snapshot.rev:
                snapshot = attrs.evolve(snapshot, record=attrs.evolve(snapshot.record, epoch=acquired.epoch))
            else:  # the last owner was not dead yet
                snapshot = await self._storage.load(record.trace_id)
            again, lost = toll(attrs.evolve(record, step=snapshot.step), snapshot)
            plan = self._planned(snapshot, retry=retry)
            commands = [] if acquired.told is False else await self._storage.commands(trace=record.trace)
            opening = opening_of(plan, record, commands, task, lifts=not self._claimed)
        return await self._go(plan, snapshot, noted, again=again, lost=lost, opening=opening)

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
                states = {row.state for row in (await self._storage.load(record.trace_id)).frontier}
                return "paused" not in states or bool(states - {"paused", "buffered"})
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
        """What is ours and not executed yet is let go of where that comes to nothing. (Of what was claimed, that is for
        whoever claimed it: it says when the trace may be claimed again.)"""
        try:
            yield
        except BaseException:
            if not self._claimed:
                self._client.engine.let_go(trace_id, trace, epoch)
            raise

    async def _restored(self, trace_id: str, *, retry: bool = True) -> tuple[Plan, Snapshot]:
        snapshot = await self._storage.load(trace_id)
        return self._planned(snapshot, retry=retry), snapshot

    def _planned(self, snapshot: Snapshot, *, retry: bool) -> Plan:
        plan = self._client.last = Plan(self._graph, snapshot.record.trace_id)
        try:
            plan.restore(snapshot, retry=retry)
        except (ValueNotReadable, *NONSENSE) as error:
            what = f"its frontier makes no sense ({str(error) or type(error).__name__})"
            raise CheckpointDamaged(plan.trace_id, snapshot.step, what) from error
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
        resumed = snapshot.record.status != "queued"
        started = events.TraceStarted(plan.trace_id, resumed, snapshot.step, again, lost, tuple(noted), plan.waiting())
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

    # -- who has it --------------------------------------------------------------------------------------------

    def _serve(self, record: TraceRecord) -> None:
        """From now on this call is the one that has the trace here."""
        engine = self._client.engine
        if engine.serves(record.trace_id, other_than=self._client):
            # Perhaps it was taken over from that call, which does not know it yet. No two runs of one trace share the
            # actors of an engine: what one has handed over, and hears, would be the other's.
            refuse_owned(attrs.evolve(record, owner=engine.owner, owner_alive=True))
        self._client.trace_id = record.trace_id

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
