"""The store that lives and dies with the process: for tests, and for traces nobody will want back.

It keeps all of the contract's promises but durability. Nothing in it waits, so a commit is one step of the event loop,
and a transaction without more ado.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from threading import Lock
from time import monotonic, time
from typing import assert_never
from weakref import WeakValueDictionary

import attrs

from tinyllm.errors import CheckpointNotFound, OwnershipLost, TraceExists
from tinyllm.storage import near, owners
from tinyllm.storage.caps import definition_too_big, too_big
from tinyllm.storage.contract import (
    TERMINAL,
    Acquire,
    Acquired,
    Admit,
    Admitted,
    Append,
    Appended,
    CheckpointRecord,
    CheckpointStorage,
    Delete,
    Delta,
    Done,
    Fork,
    HighWater,
    MessageRow,
    Outcome,
    Owner,
    Prune,
    Pruned,
    Release,
    Snapshot,
    Status,
    StepRow,
    StorageConfig,
    TraceRecord,
    Write,
)
from tinyllm.storage.memory_trace import Checkpoint, Definition, Trace

_RENEW_EVERY = 1.0
"""Seconds between two renewals by commits."""


@attrs.define(eq=False)
class _Lease:
    owner: Owner
    beat: int = 0
    renewed: float = 0.0


@attrs.define(eq=False)
class _HighWater:
    epoch: int
    mark: tuple[int, int] | None = None

    def note(self, step: int, running: int) -> None:
        self.mark = (step, running)

    def close(self) -> None:
        self.mark = None


class InMemoryCheckpointStorage(CheckpointStorage):
    """Keeps traces in this process; closing it forgets them."""

    name = "memory"

    def __init__(self, config: StorageConfig | None = None) -> None:
        self.config = config or StorageConfig()
        self._last_key = 0
        self._traces: dict[int, Trace] = {}
        self._keys: dict[str, int] = {}
        self._definitions: WeakValueDictionary[bytes, Definition] = WeakValueDictionary()
        self._high_water: dict[int, _HighWater] = {}
        self._leases: dict[str, _Lease] = {}
        self._lease_lock = Lock()  # the lease keeper's thread writes them too

    def __repr__(self) -> str:
        return f"<InMemoryCheckpointStorage, traces: {len(self._keys)}>"

    async def initialize(self) -> None:
        pass

    async def close(self) -> None:
        self._traces.clear()
        self._keys.clear()
        self._high_water.clear()
        with self._lease_lock:
            for owner in self._leases:
                owners.let_go(owner)
            self._leases.clear()

    # -- writing -----------------------------------------------------------------------------------------------

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        now = time()
        return [self._carry_out(write, now) for write in writes]

    def _carry_out(self, write: Write, now: float) -> Outcome:
        match write:
            case Append():
                return self._append(write, now)
            case Prune():
                trace = self._traces.get(write.trace)
                return Pruned(trace.prune(write.keep, write.limit) if trace else 0)
            case Admit():
                return self._admit(write, now)
            case Acquire():
                return self._acquire(write, now)
            case Release():
                trace = self._traces.get(write.trace)
                if trace and trace.epoch == write.epoch:
                    trace.owner = None
                return Done()
            case Fork():
                return self._fork(write, now)
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
            same = there and (there.epoch, there.step, there.marks) == (delta.epoch, delta.step, delta.marks)
            return Appended(delta.rev) if same else OwnershipLost(write.trace_id)
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
                owner=write.owner,
                created_at=now,
            ),
            write.first,
            now,
        )

    def _fork(self, write: Fork, now: float) -> Outcome:
        parent = self._traces.get(write.parent)
        start = parent.checkpoint(write.rev) if parent else None
        if parent is None or start is None:
            name = parent.trace_id if parent else write.trace_id
            return CheckpointNotFound(name, f"at rev {write.rev}", parent.kept() if parent else "")
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
            owner=write.owner,
            created_at=now,
            parent=parent,
            parent_rev=start.rev,
            parent_step=start.step,
            floor=start.marks,
            rev=start.rev,
        )
        return self._begin(child, write.first, now)

    def _begin(self, trace: Trace, first: Delta, now: float) -> Admitted:
        self._traces[trace.key] = trace
        self._keys[trace.trace_id] = trace.key
        self._add(trace, first, now)
        return Admitted(trace.key, trace.epoch, trace.rev)

    def _add(self, trace: Trace, delta: Delta, now: float) -> None:
        if trace.owner is not None:
            self._renew_if_due(trace.owner)
        trace.add(delta, now)
        if delta.status in TERMINAL:
            trace.owner = None

    def _acquire(self, write: Acquire, now: float) -> Outcome:
        if refused := definition_too_big(write.definition):
            return refused
        trace = self._traces.get(write.trace)
        if trace is None or trace.epoch != write.epoch:
            return OwnershipLost(write.trace_id)
        trace.epoch += 1
        trace.owner = write.owner
        trace.status = "running"
        trace.error = None
        trace.fingerprint = write.fingerprint
        trace.definition = self._defined(write.definition)
        trace.graph_path = write.graph_path
        trace.updated_at = now
        return Acquired(trace.epoch)

    def _delete(self, write: Delete) -> Outcome:
        trace: Trace | None = self._traces.pop(write.trace, None)
        if trace is None:
            return Done()
        del self._keys[trace.trace_id]
        self._high_water.pop(trace.key, None)
        # From here on only its forks know it. Whatever goes with its last one, goes; so on up the line of tombstones.
        while trace and trace.key not in self._traces and trace.bury():
            trace = trace.unpin()
        return Done()

    def _defined(self, body: bytes) -> Definition:
        return self._definitions.setdefault(body, Definition(body))

    async def reclaim(self, limit: int) -> int:  # noqa: ARG002 - what is freed here is free at once
        return 0

    # -- reading -----------------------------------------------------------------------------------------------

    async def trace(self, trace_id: str) -> TraceRecord | None:
        key = self._keys.get(trace_id)
        return None if key is None else self._record(self._traces[key])

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
            if status in (None, (record := self._record(trace)).status)
        ]
        found.sort(key=lambda record: (record.updated_at, record.trace), reverse=True)
        return found[offset : offset + limit]

    async def definition(self, trace_id: str) -> bytes:
        return self._find(trace_id).definition.body

    async def load(self, trace_id: str, rev: int | None = None) -> Snapshot:
        trace = self._find(trace_id)
        at = _checkpoint(trace, rev)
        frontier = trace.frontier(at)
        arrivals = trace.arrived(frontier, at)
        read = {row.message for row in frontier} | {arrival.message for arrival in arrivals}
        return Snapshot(
            record=self._record(trace),
            rev=at.rev,
            step=at.step,
            status=at.status,
            marks=at.marks,
            counts=at.counts,
            frontier=tuple(frontier),
            arrivals=tuple(arrivals),
            messages={seq: trace.message(seq) for seq in read if seq is not None},
            variables=trace.present(at),
        )

    async def checkpoints(self, trace_id: str, *, limit: int = 100, offset: int = 0) -> list[CheckpointRecord]:
        trace = self._find(trace_id)
        end = max(len(trace.checkpoints) - offset, 0)
        return [_listed(trace, at) for at in reversed(trace.checkpoints[max(end - limit, 0) : end])]

    async def steps(self, trace_id: str, *, after: int = 0, limit: int = 1000) -> list[StepRow]:
        return self._find(trace_id).finished(after, limit)

    async def messages(
        self, trace_id: str, *, rev: int | None = None, after: int = 0, limit: int = 1000
    ) -> list[MessageRow]:
        trace = self._find(trace_id)
        return trace.said(_checkpoint(trace, rev), after, limit)

    async def find_checkpoint(
        self, trace_id: str, *, node: str | None = None, step: int | None = None
    ) -> CheckpointRecord:
        trace = self._find(trace_id)
        for at in reversed(trace.checkpoints):
            if step not in (None, at.step):
                continue
            if node is None or any(row.node == node and row.state != "buffered" for row in trace.frontier(at)):
                return _listed(trace, at)
        wanted = f"at step {step}" if node is None else f"at which node {node!r} was waiting to run"
        raise CheckpointNotFound(trace_id, wanted, trace.kept())

    def _find(self, trace_id: str) -> Trace:
        key = self._keys.get(trace_id)
        if key is None:
            raise near.not_found(trace_id, self.name, islice(reversed(self._keys), near.AMONG))
        return self._traces[key]

    def _record(self, trace: Trace) -> TraceRecord:
        lease = self._leases.get(trace.owner) if trace.owner else None
        owner_alive = owners.alive(lease.owner) if lease else False
        parent = trace.parent if trace.parent and trace.parent.key in self._traces else None
        noted = self._high_water.get(trace.key)
        return TraceRecord(
            trace=trace.key,
            trace_id=trace.trace_id,
            graph_id=trace.graph_id,
            graph_version=trace.graph_version,
            graph_path=trace.graph_path,
            fingerprint=trace.fingerprint,
            task_digest=trace.task_digest,
            status="interrupted" if trace.status == "running" and owner_alive is False else trace.status,
            step=trace.step,
            rev=trace.rev,
            epoch=trace.epoch,
            owner=lease.owner if lease else None,
            owner_beat=lease.beat if lease else 0,
            owner_alive=owner_alive,
            high_water=noted.mark if noted and lease and noted.epoch == trace.epoch else None,
            parent=parent.trace_id if parent else None,
            parent_rev=trace.parent_rev,
            parent_step=trace.parent_step,
            created_at=trace.created_at,
            updated_at=trace.updated_at,
            error=trace.error,
        )

    # -- ownership ---------------------------------------------------------------------------------------------

    def renew(self, owner: Owner) -> None:
        with self._lease_lock:
            owners.keep(owner.id)
            lease = self._leases.get(owner.id)
            if lease is None:
                lease = self._leases[owner.id] = _Lease(owner)
            lease.beat += 1
            lease.renewed = monotonic()

    def retire(self, owner: Owner) -> None:
        with self._lease_lock:
            owners.let_go(owner.id)
            self._leases.pop(owner.id, None)

    def high_water(self, owner: Owner, trace: int, epoch: int) -> HighWater:  # noqa: ARG002 - the epoch tells whose
        # A new owner gets a place of its own: what the one before it may still note must not be taken for its marks.
        place = self._high_water[trace] = _HighWater(epoch)
        return place

    def _renew_if_due(self, owner_id: str) -> None:
        now = monotonic()
        with self._lease_lock:
            lease = self._leases.get(owner_id)
            if lease and now - lease.renewed >= _RENEW_EVERY:
                lease.beat += 1
                lease.renewed = now


def _checkpoint(trace: Trace, rev: int | None) -> Checkpoint:
    """The checkpoint of `rev`, or the newest.

    :raises CheckpointNotFound: it was never made, or is pruned.
    """
    at = trace.checkpoints[-1] if rev is None else trace.checkpoint(rev)
    if at is None:
        raise CheckpointNotFound(trace.trace_id, f"at rev {rev}", trace.kept())
    return at


def _listed(trace: Trace, at: Checkpoint) -> CheckpointRecord:
    return CheckpointRecord(
        id=f"{trace.trace_id}@{at.rev}",
        trace_id=trace.trace_id,
        graph_id=trace.graph_id,
        rev=at.rev,
        step=at.step,
        node_id=at.node,
        status=at.status,
        created_at=at.created_at,
        label=at.label,
        message_count=at.counts.messages,
        frontier_count=at.counts.frontier,
    )
