"""The store that lives and dies with the process: for tests, and for traces nobody will want back.

It keeps all of the contract's promises but durability. Nothing in it waits, so a commit is one step of the event loop,
and a transaction without more ado.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from time import time
from typing import TypeVar, assert_never
from weakref import WeakValueDictionary

import attrs

from tinyllm.errors import CheckpointNotFound, OwnershipLost, StorageNotOpen, TraceExists, TraceNotFound
from tinyllm.storage import near, owners
from tinyllm.storage.caps import answer_too_big, definition_too_big, too_big
from tinyllm.storage.contract import (
    UNOWNED,
    Acquire,
    Acquired,
    Acquit,
    Admit,
    Admitted,
    Append,
    Appended,
    Backlog,
    CheckpointRecord,
    CheckpointStorage,
    Claim,
    Claimed,
    Command,
    Delete,
    Delta,
    Demand,
    Disown,
    Done,
    Drop,
    FallBack,
    Fork,
    Held,
    HighWater,
    Intact,
    Label,
    Lease,
    Leave,
    MessageRow,
    Outcome,
    Owned,
    Owner,
    Prune,
    Pruned,
    Reads,
    Release,
    Snapshot,
    Status,
    StepRow,
    StorageConfig,
    TraceRecord,
    Write,
)
from tinyllm.storage.memory_leases import HighWaterInMemory, Leases
from tinyllm.storage.memory_prune import bury, drop, prune
from tinyllm.storage.memory_trace import Checkpoint, Definition, Trace
from tinyllm.storage.memory_waiting import Waiting

T = TypeVar("T")


class InMemoryCheckpointStorage(CheckpointStorage):
    """Keeps traces in this process; closing it forgets them."""

    name = "memory"

    def __init__(self, config: StorageConfig | None = None) -> None:
        self.config = config or StorageConfig()
        self._last_key = 0
        self._last_command = 0
        self._traces: dict[int, Trace] = {}
        self._keys: dict[str, int] = {}
        self._definitions: WeakValueDictionary[bytes, Definition] = WeakValueDictionary()
        self._high_water: dict[int, HighWaterInMemory] = {}
        self._leases = Leases()
        self._waiting = Waiting()
        self._reading = _Reading(self)
        self._closed = False

    def __repr__(self) -> str:
        return f"<InMemoryCheckpointStorage, traces: {len(self._keys)}>"

    async def initialize(self) -> None:
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        self._traces.clear()
        self._keys.clear()
        self._high_water.clear()
        self._leases.clear()
        self._waiting.clear()

    # -- writing -----------------------------------------------------------------------------------------------

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        now = time()
        self._let_go()
        return [self._carry_out(write, now) for write in writes]

    def _carry_out(self, write: Write, now: float) -> Outcome:
        match write:
            case Append():
                return self._append(write, now)
            case Prune():
                trace = self._traces.get(write.trace)
                return Pruned(prune(trace, write.keep, write.limit) if trace else 0)
            case Admit():
                return self._admit(write, now)
            case Acquire():
                return self._acquire(write, now)
            case Release():
                trace = self._traces.get(write.trace)
                if trace and trace.epoch == write.epoch:
                    trace.owner, trace.due, trace.updated_at = None, write.not_before, now
                    self._waiting.note(trace)
                return Done()
            case Claim():
                return self._claim(write, now)
            case Disown():
                return self._disown(write, now)
            case Acquit():
                return self._acquit(write)
            case Fork():
                return self._fork(write, now)
            case FallBack():
                return self._fall_back(write, now)
            case Leave():
                return self._leave(write, now)
            case Label():
                return self._label(write)
            case Drop():
                trace = self._traces.get(write.trace)
                dropped = drop(trace, write.rev) if trace else 0
                return Pruned(dropped) if isinstance(dropped, int) else dropped
            case Delete():
                return self._delete(write)
        assert_never(write)

    def _append(self, write: Append, now: float) -> Outcome:
        delta = write.delta
        trace = self._traces.get(delta.trace)
        if trace is None or trace.epoch != delta.epoch:
            return OwnershipLost(write.trace_id)
        if delta.rev != trace.rev + 1:
            there = trace.checkpoint(delta.rev)
            # Without its checkpoint it was written and pruned: in that epoch nobody else has written.
            same = there is None or (there.epoch, there.step, there.marks) == (delta.epoch, delta.step, delta.marks)
            return Appended(delta.rev) if same and delta.rev <= trace.rev else OwnershipLost(write.trace_id)
        if refused := too_big(delta):
            return refused
        self._add(trace, delta, now)
        return Appended(delta.rev)

    def _admit(self, write: Admit, now: float) -> Outcome:
        if write.trace_id in self._keys:
            return TraceExists(write.trace_id)
        if refused := too_big(write.first) or definition_too_big(write.definition):
            return refused
        self._last_key += 1
        return self._begin(
            Trace(
                key=self._last_key,
                trace_id=write.trace_id,
                graph_id=write.graph_id,
                graph_version=write.graph_version,
                graph_path=write.graph_path,
                fingerprint=write.fingerprint,
                definition=self._defined(write.definition),
                task_digest=write.task_digest,
                last_task=write.task_digest,
                window=write.history,
                owner=None if write.first.status == "queued" else write.owner,
                created_at=now,
                priority=write.priority,
                due=write.not_before,
            ),
            write.first,
            now,
        )

    def _fork(self, write: Fork, now: float) -> Outcome:
        parent = self._traces.get(write.parent)
        start = parent.checkpoint(write.rev) if parent else None
        if parent is None or start is None:
            return _not_kept(parent, write.trace_id, write.rev)
        if write.trace_id in self._keys:
            return TraceExists(write.trace_id)
        if refused := too_big(write.first):
            return refused
        start.pins += 1
        self._last_key += 1
        child = Trace(
            key=self._last_key,
            trace_id=write.trace_id,
            graph_id=parent.graph_id,
            graph_version=parent.graph_version,
            graph_path=parent.graph_path,
            fingerprint=parent.fingerprint,
            definition=parent.definition,
            task_digest=parent.task_digest,
            last_task=parent.last_task,
            window=parent.window,
            owner=write.owner,
            created_at=now,
            priority=parent.priority,
            parent=parent,
            parent_rev=start.rev,
            parent_step=start.step,
            floor=start.marks,
            rev=start.rev,
        )
        task = write.first.task or parent.task_at(start.rev)
        return self._begin(child, attrs.evolve(write.first, task=task), now)

    def _fall_back(self, write: FallBack, now: float) -> Outcome:
        trace = self._traces.get(write.trace)
        if trace is None or (trace.epoch, trace.rev) != (write.epoch, write.reached):
            return OwnershipLost(write.trace_id)
        if write.kept_as in self._keys:
            return TraceExists(write.kept_as)
        del self._keys[write.trace_id]
        outcome = self._fork(write.fork, now)
        if not isinstance(outcome, Admitted):
            self._keys[write.trace_id] = trace.key
            return outcome
        self._keys[write.kept_as] = trace.key
        trace.trace_id, trace.status, trace.owner, trace.error = write.kept_as, "quarantined", None, write.error
        trace.died = None
        trace.epoch += 1
        trace.updated_at = now
        self._waiting.note(trace)
        return outcome

    def _begin(self, trace: Trace, first: Delta, now: float) -> Admitted:
        self._traces[trace.key] = trace
        self._keys[trace.trace_id] = trace.key
        self._add(trace, first, now)
        return Admitted(trace.key, trace.epoch, trace.rev)

    def _add(self, trace: Trace, delta: Delta, now: float) -> None:
        if trace.owner is not None:
            self._leases.renew_if_due(trace.owner)
        trace.add(delta, now)
        if delta.status in UNOWNED:
            trace.owner = None
        self._waiting.note(trace)

    def _acquire(self, write: Acquire, now: float) -> Outcome:
        if write.definition is not None and (refused := definition_too_big(write.definition)):
            return refused
        trace = self._traces.get(write.trace)
        if trace is None or trace.epoch != write.epoch:
            return OwnershipLost(write.trace_id)
        trace.epoch += 1
        trace.owner, trace.due, trace.died = write.owner, None, None
        trace.updated_at = now
        self._waiting.note(trace)
        if write.definition is not None:
            trace.status = "running"
            trace.error = None
            trace.fingerprint = write.fingerprint
            trace.definition = self._defined(write.definition)
            trace.graph_path = write.graph_path
        return Acquired(trace.epoch, trace.rev, bool(trace.commands))

    def _claim(self, write: Claim, now: float) -> Outcome:
        taken = []
        for trace, wanted in self._waiting.next(write, self._traces, now):
            trace.epoch += 1
            trace.owner, trace.died = wanted.owner, None
            trace.updated_at = now
            self._waiting.note(trace)
            self._leases.renew_if_due(wanted.owner)
            taken.append(Held(trace.key, trace.trace_id, trace.graph_id, trace.epoch))
        return Claimed(tuple(taken))

    def _disown(self, write: Disown, now: float) -> Outcome:
        trace = self._traces.get(write.trace)
        if trace is None or (trace.epoch, trace.owner) != (write.epoch, write.owner):
            return OwnershipLost(write.trace_id)
        trace.epoch += 1
        trace.owner, trace.died = None, self._leases.get(write.owner)
        trace.deaths, trace.apart = write.deaths, write.apart
        trace.updated_at = now
        if write.error is not None:
            trace.quarantine(write.error)
        self._waiting.note(trace)
        return Done()

    def _acquit(self, write: Acquit) -> Outcome:
        trace = self._traces.get(write.trace)
        if trace is None or trace.epoch != write.epoch:
            return OwnershipLost(write.trace_id)
        trace.deaths, trace.apart = None, False
        self._waiting.note(trace)
        return Done()

    def _let_go(self) -> None:
        """Take from owners that were retired, which any thread may do, what they still had."""
        if retired := self._leases.retired():
            for trace in list(self._waiting.owned.values()):
                if trace.owner in retired:
                    trace.owner = None
                    self._waiting.note(trace)

    def _leave(self, write: Leave, now: float) -> Outcome:
        if refused := answer_too_big(write):
            return refused
        trace = self._traces.get(write.trace)
        if trace is None:
            return TraceNotFound(write.trace_id, self.name)
        self._last_command += 1
        return trace.leave(write, self._last_command, now)

    def _label(self, write: Label) -> Outcome:
        trace = self._traces.get(write.trace)
        at = trace.checkpoint(write.rev) if trace else None
        if at is None:
            return _not_kept(trace, write.trace_id, write.rev)
        at.label = write.label
        return Done()

    def _delete(self, write: Delete) -> Outcome:
        trace: Trace | None = self._traces.pop(write.trace, None)
        if trace is None:
            return Done()
        del self._keys[trace.trace_id]
        self._high_water.pop(trace.key, None)
        self._waiting.forget(trace.key)
        # From here on only its forks know it. Whatever goes with its last one, goes; so on up the line of tombstones.
        while trace and trace.key not in self._traces and bury(trace):
            trace = trace.unpin()
        return Done()

    def _defined(self, body: bytes) -> Definition:
        if (known := self._definitions.get(body)) is None:
            known = self._definitions[body] = Definition(body)
        return known

    async def reclaim(self, limit: int) -> int:  # noqa: ARG002 - what is freed here is free at once
        return 0

    # -- reading -----------------------------------------------------------------------------------------------

    async def trace(self, trace_id: str) -> TraceRecord | None:
        key = self._keys.get(trace_id)
        return None if key is None else self.record(self._traces[key])

    async def traces(
        self,
        *,
        prefix: str = "",
        graph_id: str | None = None,
        status: Status | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[TraceRecord]:
        found = [
            record
            for trace in self._traces.values()
            if trace.trace_id.startswith(prefix) and graph_id in (None, trace.graph_id)
            if status in (None, (record := self.record(trace)).status)
        ]
        found.sort(key=lambda record: (record.updated_at, record.trace), reverse=True)
        return found[offset : offset + limit]

    async def definition(self, trace_id: str) -> bytes:
        return self._reading.definition(trace_id)

    async def load(self, trace_id: str, rev: int | None = None) -> Snapshot:
        return self._reading.load(trace_id, rev)

    async def load_intact(self, trace_id: str) -> Intact:
        return Intact(await self.load(trace_id))

    async def checkpoints(self, trace_id: str, *, limit: int = 100, offset: int = 0) -> list[CheckpointRecord]:
        return self._reading.checkpoints(trace_id, limit, offset)

    async def steps(self, trace_id: str, *, after: int = 0, limit: int = 1000) -> list[StepRow]:
        return self._reading.steps(trace_id, after, limit)

    async def messages(
        self, trace_id: str, *, rev: int | None = None, after: int = 0, limit: int = 1000
    ) -> list[MessageRow]:
        return self._reading.messages(trace_id, rev, after, limit)

    def read_now(self, question: Callable[[Reads], T]) -> T:
        if self._closed:
            raise StorageNotOpen(self.name, "it was closed, and has forgotten what it kept")
        return question(self._reading)

    async def find_checkpoint(
        self, trace_id: str, *, node: str | None = None, step: int | None = None
    ) -> CheckpointRecord:
        trace = self.found(trace_id)
        for at in reversed(trace.checkpoints):
            if step not in (None, at.step):
                continue
            if node is None or any(row.node == node and row.state != "buffered" for row in trace.frontier(at)):
                return CheckpointRecord.of(self, self.record(trace), at)
        wanted = f"at step {step}" if node is None else f"at which node {node!r} was waiting to run"
        raise CheckpointNotFound(trace_id, wanted, trace.kept())

    async def commands(self, *, owner: str | None = None, trace: int | None = None) -> list[Command]:
        if trace is not None:
            traces = [self._traces[trace]] if trace in self._traces else []
        else:
            traces = [each for each in self._traces.values() if owner is not None and each.owner == owner]
        return sorted((command for each in traces for command in each.commands.values()), key=lambda left: left.id)

    async def next_due(self, graph_ids: Sequence[str], *, apart: bool = False) -> float | None:
        self._let_go()
        return self._waiting.next_due(graph_ids, apart, time())

    async def backlog(self, graph_ids: Sequence[str]) -> Backlog:
        self._let_go()
        return self._waiting.backlog(graph_ids, self._traces, time())

    async def demand(self) -> list[Demand]:
        self._let_go()
        return self._waiting.demand(self._traces)

    async def owners(self) -> list[Lease]:
        self._let_go()
        found = []
        for owner in sorted({trace.owner for trace in self._waiting.owned.values() if trace.owner is not None}):
            lease = self._leases.get(owner)
            alive = owners.alive(lease.owner) if lease else False
            found.append(Lease(owner, lease.owner if lease else None, lease.beat if lease else 0, alive))
        return found

    async def held(self, owner: str) -> list[Owned]:
        self._let_go()
        traces = sorted(self._waiting.owned.values(), key=lambda trace: trace.key)
        return [
            Owned(each.key, each.trace_id, each.graph_id, each.epoch, each.status, each.step, each.deaths)
            for each in traces
            if each.owner == owner
        ]

    async def answered(self, trace: int) -> list[tuple[bytes, str]]:
        answers = self._traces[trace].answers if trace in self._traces else {}
        found = [(number, id_, name) for id_, named in answers.items() for name, number in named.items()]
        return [(id_, name) for _, id_, name in sorted(found) if id_ is not None and name is not None]

    def found(self, trace_id: str) -> Trace:
        key = self._keys.get(trace_id)
        if key is None:
            raise near.not_found(trace_id, self.name, islice(reversed(self._keys), near.AMONG))
        return self._traces[key]

    def record(self, trace: Trace) -> TraceRecord:
        lease = self._leases.get(trace.owner) if trace.owner is not None else trace.died
        owner_alive = owners.alive(lease.owner) if lease and trace.owner is not None else False
        parent = trace.parent if trace.parent and trace.parent.key in self._traces else None
        noted = self._high_water.get(trace.key)
        noted_at = trace.epoch if trace.died is None else trace.epoch - 1
        return TraceRecord(
            trace=trace.key,
            trace_id=trace.trace_id,
            graph_id=trace.graph_id,
            graph_version=trace.graph_version,
            graph_path=trace.graph_path,
            fingerprint=trace.fingerprint,
            definition_digest=trace.definition.digest,
            task_digest=trace.task_digest,
            last_task=trace.last_task,
            history=trace.window,
            status="interrupted" if trace.status == "running" and owner_alive is False else trace.status,
            step=trace.step,
            rev=trace.rev,
            epoch=trace.epoch,
            owner=lease.owner if lease else None,
            owner_beat=lease.beat if lease else 0,
            owner_alive=owner_alive,
            high_water=noted.mark if noted and lease and noted.epoch == noted_at else None,
            parent=parent.trace_id if parent else None,
            parent_rev=trace.parent_rev,
            parent_step=trace.parent_step,
            created_at=trace.created_at,
            updated_at=trace.updated_at,
            error=trace.error,
            priority=trace.priority,
            not_before=trace.due if trace.due is not None and trace.due > time() else None,
            apart=trace.apart,
            deaths=trace.deaths,
        )

    # -- ownership ---------------------------------------------------------------------------------------------

    def renew(self, owner: Owner) -> None:
        self._leases.renew(owner)

    def retire(self, owner: Owner) -> None:
        self._leases.retire(owner)

    def high_water(self, owner: Owner, trace: int, epoch: int) -> HighWater:  # noqa: ARG002 - the epoch tells whose
        # A new owner gets a place of its own: what the one before it may still note must not be taken for its marks.
        place = self._high_water[trace] = HighWaterInMemory(epoch)
        return place


class _Reading:
    """What can be read without waiting for anything."""

    def __init__(self, storage: InMemoryCheckpointStorage) -> None:
        self._storage = storage

    def definition(self, trace_id: str) -> bytes:
        return self._storage.found(trace_id).definition.body

    def load(self, trace_id: str, rev: int | None) -> Snapshot:
        trace = self._storage.found(trace_id)
        at = _checkpoint(trace, rev)
        frontier = trace.frontier(at)
        arrivals = trace.arrived(frontier, at)
        read = {row.message for row in frontier} | {arrival.message for arrival in arrivals}
        return Snapshot(
            record=self._storage.record(trace),
            rev=at.rev,
            step=at.step,
            status=at.status,
            marks=at.marks,
            counts=at.counts,
            frontier=tuple(frontier),
            arrivals=tuple(arrivals),
            messages={seq: trace.message(seq) for seq in read if seq is not None},
            variables=trace.present(at),
            generation=at.generation,
            generation_step=at.generation_step,
            elapsed=at.elapsed,
            tokens_in=at.tokens_in,
            tokens_out=at.tokens_out,
        )

    def checkpoints(self, trace_id: str, limit: int, offset: int) -> list[CheckpointRecord]:
        trace = self._storage.found(trace_id)
        record = self._storage.record(trace)
        end = max(len(trace.checkpoints) - offset, 0)
        points = reversed(trace.checkpoints[max(end - limit, 0) : end])
        return [CheckpointRecord.of(self._storage, record, at) for at in points]

    def steps(self, trace_id: str, after: int, limit: int) -> list[StepRow]:
        return self._storage.found(trace_id).finished(after, limit)

    def messages(self, trace_id: str, rev: int | None, after: int, limit: int) -> list[MessageRow]:
        trace = self._storage.found(trace_id)
        return trace.said(_checkpoint(trace, rev), after, limit)


def _checkpoint(trace: Trace, rev: int | None) -> Checkpoint:
    """The checkpoint of `rev`, or the newest.

    :raises CheckpointNotFound: it was never made, or is pruned.
    """
    at = trace.checkpoints[-1] if rev is None else trace.checkpoint(rev)
    if at is None:
        raise _not_kept(trace, trace.trace_id, rev)
    return at


def _not_kept(trace: Trace | None, trace_id: str, rev: int | None) -> CheckpointNotFound:
    name = trace.trace_id if trace else trace_id
    return CheckpointNotFound(name, f"at rev {rev}", trace.kept() if trace else "")
